"""What any axial, learned and sinusoidal positions must satisfy. Each check takes a function on
NumPy arrays.
"""

import math

import numpy as np

from reformer_ref.positions import spec
from reformer_ref.testing import (
    central_difference,
    compare_all,
    compare_gradients,
    expect_close,
    in_a_sentence,
)

# (axis lengths, axis widths, shape of the positions)
CASES = (
    ((5,), (3,), (5,)),
    ((4, 3), (2, 5), (12,)),
    ((3, 4), (1, 1), (7,)),  # fewer positions than the product
    ((2, 3, 4), (3, 1, 2), (2, 9)),
    ((1, 7, 1, 2), (1, 2, 3, 1), (1,)),
)


@in_a_sentence
def check_axial_positions(fn, seed=0, tolerance=1e-12):
    """fn(tables, positions) against the table of the whole grid, laid out as by the authors."""
    hint = "The last axis is the fastest: (j // n2, j % n2), in the order of the tables."
    comparisons = (
        (label, fn(tables, positions), _grid(tables)[positions], hint)
        for label, tables, positions in _axial_cases(seed)
    )
    compare_all("check_axial_positions", comparisons, tolerance)


@in_a_sentence
def check_axial_positions_vjp(fn, seed=0, tolerance=1e-12):
    """fn(tables, positions, d_out) -> one gradient per table."""
    hint = "A row's gradient is the sum over all positions that use it."

    def comparisons():
        rng = np.random.default_rng(seed + 1)
        for label, tables, positions in _axial_cases(seed):
            d_out = rng.standard_normal((*positions.shape, sum(t.shape[1] for t in tables)))
            got = fn(tables, positions, d_out)
            want = spec.axial_positions_vjp(tables, positions, d_out)
            if len(got) != len(tables):
                raise AssertionError(f"{label}: got {len(got)} gradients, expected one per table.")
            for i in range(len(tables)):

                def with_table(table, i=i, tables=tables, positions=positions):
                    return _grid([*tables[:i], table, *tables[i + 1 :]])[positions]

                numeric = central_difference(with_table, tables[i], d_out)
                yield f"gradient of table {i}, {label}", got[i], want[i], numeric, hint

    compare_gradients("check_axial_positions_vjp", comparisons(), tolerance)


@in_a_sentence
def check_learned_positions(fn, seed=0, tolerance=1e-12):
    """fn(table, positions): one row per position."""

    def comparisons():
        rng = np.random.default_rng(seed)
        for n, d, shape in ((1, 1, (1,)), (6, 3, (6,)), (11, 2, (2, 4))):
            table = rng.standard_normal((n, d))
            positions = rng.integers(0, n, shape)
            want = np.array([table[j] for j in positions.reshape(-1)]).reshape(*shape, d)
            yield f"learned_positions of shape {shape}", fn(table, positions), want, ""

    compare_all("check_learned_positions", comparisons(), tolerance)


@in_a_sentence
def check_sinusoidal_positions(fn, seed=0, tolerance=1e-12):
    """fn(positions, d_model) against the formula, entry by entry."""
    rng = np.random.default_rng(seed)
    hint = "Sine at 2i, cosine at 2i + 1, of j / 10000^(2i / d_model)."
    errors = []
    for d_model, shape in ((2, (3,)), (6, (2, 5)), (10, (1,))):
        positions = rng.integers(0, 100_000, shape)
        want = np.empty((*shape, d_model))
        for index in np.ndindex(*shape):
            for i in range(d_model // 2):
                angle = float(positions[index]) / 10000 ** (2 * i / d_model)
                want[(*index, 2 * i)] = math.sin(angle)
                want[(*index, 2 * i + 1)] = math.cos(angle)
        # An angle is known to one part in 2^53 only, so its sine can be off by that many radians.
        rounding = 4 * positions.max() * np.finfo(np.float64).eps
        label = f"sinusoidal_positions of shape {shape}, d_model={d_model}"
        got = fn(positions, d_model)
        errors.append(expect_close(label, got, want, max(tolerance, rounding), hint))
    norms = np.linalg.norm(fn(np.arange(7), 8), axis=-1)
    errors.append(expect_close("norm of each row, √(d_model/2)", norms, np.full(7, 2.0), tolerance))
    worst = f"{max(errors):.1e}"
    print(f"check_sinusoidal_positions: {len(errors)} cases, worst relative error {worst}")


def _axial_cases(seed):
    """(label, tables, positions)."""
    rng = np.random.default_rng(seed)
    for axes, widths, shape in CASES:
        tables = [rng.standard_normal((n, d)) for n, d in zip(axes, widths, strict=True)]
        n_positions = math.prod(axes)
        # Complete and in order where the shape asks for every position, otherwise in any order.
        positions = np.arange(n_positions)
        if shape != (n_positions,):
            positions = rng.integers(0, n_positions, shape)
        yield f"axial_positions, axes {axes}, positions of shape {shape}", tables, positions


def _grid(tables):
    """All Π n_i rows: each table broadcast along its own axis of the grid, then concatenated."""
    axes = tuple(len(table) for table in tables)
    columns = []
    for i, table in enumerate(tables):
        shape = [1] * len(axes) + [table.shape[1]]
        shape[i] = axes[i]
        columns.append(np.broadcast_to(table.reshape(shape), (*axes, table.shape[1])))
    return np.concatenate(columns, axis=-1).reshape(math.prod(axes), -1)
