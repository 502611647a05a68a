"""Values of the authors' own ``AxialPositionalEncoding`` (google/trax 7c189c2c, Apache-2.0): x +
positions.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from reformer_ref.positions import pytorch, spec
from reformer_ref.testing import expect_close

GOLDEN = Path(__file__).parents[1] / "golden" / "trax_lsh_axial.npz"


@pytest.fixture(scope="module")
def recorded():
    with np.load(GOLDEN) as arrays:
        values = dict(arrays)
    tables = [values[f"w{i}"].reshape(n, d) for i, (n, d) in enumerate([(4, 3), (8, 5), (2, 8)])]
    return tables, values["x"], values["out"]


def test_spec_gives_the_authors_values(recorded):
    tables, x, out = recorded
    got = x.astype(np.float64) + spec.axial_positions(tables, np.arange(x.shape[1]))
    expect_close("x + axial_positions", got, out, 1e-6)  # recorded in float32 only


def test_pytorch_gives_the_authors_values_bit_for_bit(recorded):
    tables, x, out = recorded
    rows = pytorch.axial_positions([torch.from_numpy(t) for t in tables], torch.arange(x.shape[1]))
    np.testing.assert_array_equal(x + rows.numpy(), out)  # float32: one addition, rounded alike
    double = pytorch.axial_positions([torch.from_numpy(t).double() for t in tables], torch.arange(x.shape[1]))
    expect_close("x + axial_positions", x + double.numpy(), out, 1e-6)


@pytest.mark.parametrize("length", [1, 13, 40])
def test_a_shorter_sequence_is_a_prefix(recorded, length):
    tables, x, out = recorded
    got = x[:, :length] + spec.axial_positions(tables, np.arange(length))
    expect_close("x + axial_positions", got, out[:, :length], 1e-6)


@pytest.mark.parametrize("fastest_first", [True, False])
def test_another_order_of_the_axes_is_noticed(recorded, fastest_first):
    tables, x, out = recorded
    j = np.arange(64)
    c0, c1, c2 = (j % 4, j // 4 % 8, j // 32) if fastest_first else (j // 16, j // 2 % 8, j % 2)
    error = np.abs(x + np.concatenate([tables[0][c0], tables[1][c1], tables[2][c2]], axis=-1) - out).max()
    assert (error > 0.1) == fastest_first
