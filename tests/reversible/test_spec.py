"""The NumPy definition: exact inverse, hand-written gradient against central differences."""

import numpy as np
import pytest
from reformer_ref.reversible import checks, spec
from reformer_ref.reversible.checks import TanhLayer
from reformer_ref.testing import central_difference, expect_close


def make(sizes, shape, seed=0):
    rng = np.random.default_rng(seed)
    d = shape[-1]
    x1, x2 = rng.standard_normal((2, *shape))
    blocks = [[TanhLayer(rng.standard_normal((d, d)), rng.standard_normal(d)) for _ in range(n)] for n in sizes]
    return x1, x2, [tuple(block) for block in blocks]


def test_two_lines_of_the_paper():
    x1, x2, [(f, g)] = make((2,), (5, 3))
    y1, y2 = spec.reversible_stack(x1, x2, [(f, g)])
    np.testing.assert_array_equal(y1, x1 + f(x2))
    np.testing.assert_array_equal(y2, x2 + g(y1))


def test_checks_accept_the_spec():
    checks.check_reversible_stack(spec.reversible_stack)
    checks.check_reversible_inverse(spec.reversible_stack_inverse)
    checks.check_reversible_vjp(spec.reversible_stack_vjp)


@pytest.mark.parametrize("sizes", [(2,), (2, 2, 2), (3, 3), (1, 2)])
def test_vjp_against_central_differences(sizes):
    x1, x2, blocks = make(sizes, (2, 3))
    d_y1, d_y2 = np.random.default_rng(1).standard_normal((2, 2, 3))
    y1, y2 = spec.reversible_stack(x1, x2, blocks)
    _, _, d_x1, d_x2, d_params = spec.reversible_stack_vjp(y1, y2, blocks, d_y1, d_y2)
    d_y = np.stack([d_y1, d_y2])

    def run(x):
        return np.stack(spec.reversible_stack(x[0], x[1], blocks))

    want = central_difference(run, np.stack([x1, x2]), d_y)
    expect_close("d_x", np.stack([d_x1, d_x2]), want, 1e-7)
    for block, d_block in zip(blocks, d_params, strict=True):
        for layer, d_layer in zip(block, d_block, strict=True):
            for name in ("w", "b"):
                value = getattr(layer, name)

                def with_value(new, layer=layer, name=name):
                    old = getattr(layer, name)
                    setattr(layer, name, new)
                    try:
                        return np.stack(spec.reversible_stack(x1, x2, blocks))
                    finally:
                        setattr(layer, name, old)

                expect_close(f"d_{name}", d_layer[name], central_difference(with_value, value, d_y), 1e-7)


def test_inputs_are_left_alone():
    x1, x2, blocks = make((2, 3), (4, 3))
    before = x1.copy(), x2.copy()
    y1, y2 = spec.reversible_stack(x1, x2, blocks)
    spec.reversible_stack_vjp(y1, y2, blocks, y1, y2)
    np.testing.assert_array_equal(x1, before[0])
    np.testing.assert_array_equal(x2, before[1])
