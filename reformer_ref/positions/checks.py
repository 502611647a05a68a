"""What any axial, learned and sinusoidal positions must satisfy. Each check takes a function on
NumPy arrays.
"""

import math

import numpy as np

from reformer_ref.positions import spec
from reformer_ref.testing import central_difference, expect_close, in_a_sentence

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
    """fn(tables, positions) against the table of the whole grid, laid out as in the authors' code."""
    errors = []
    for tables, positions in _axial_cases(seed):
        errors.append(
            expect_close(
                f"axial_positions with axes {tuple(len(t) for t in tables)} and positions of shape {positions.shape}",
                fn(tables, positions),
                _grid(tables)[positions],
                tolerance,
                "The last axis is the fastest: (j // n2, j % n2), in the order of the tables.",
            )
        )
    print(f"check_axial_positions: {len(errors)} cases, worst relative error {max(errors):.1e}")


@in_a_sentence
def check_axial_positions_vjp(fn, seed=0, tolerance=1e-12):
    """fn(tables, positions, d_out) -> one gradient per table, against central differences and the
    spec.
    """
    rng = np.random.default_rng(seed + 1)
    n, worst, worst_difference = 0, 0.0, 0.0
    for tables, positions in _axial_cases(seed):
        d_out = rng.standard_normal((*positions.shape, sum(t.shape[1] for t in tables)))
        got, want = fn(tables, positions, d_out), spec.axial_positions_vjp(tables, positions, d_out)
        if len(got) != len(tables):
            raise AssertionError(
                f"axial_positions_vjp: got {len(got)} gradients, expected one per table ({len(tables)})."
            )
        for i in range(len(tables)):
            what = f"gradient of table {i} of {len(tables)}, positions of shape {positions.shape}"
            hint = "A row's gradient is the sum over all positions that use it."

            def with_table(table, i=i, tables=tables, positions=positions):
                return _grid([*tables[:i], table, *tables[i + 1 :]])[positions]

            numeric = central_difference(with_table, tables[i], d_out)
            worst_difference = max(
                worst_difference, expect_close(what, got[i], numeric, 1e-7, hint)
            )
            worst = max(worst, expect_close(what, got[i], want[i], tolerance, hint))
        n += 1
    print(
        f"check_axial_positions_vjp: {n} cases, worst relative error {worst:.1e}, "
        f"against central differences {worst_difference:.1e}"
    )


@in_a_sentence
def check_learned_positions(fn, seed=0, tolerance=1e-12):
    """fn(table, positions): one row per position."""
    rng = np.random.default_rng(seed)
    errors = []
    for n, d, shape in ((1, 1, (1,)), (6, 3, (6,)), (11, 2, (2, 4))):
        table, positions = rng.standard_normal((n, d)), rng.integers(0, n, shape)
        want = np.array([table[j] for j in positions.reshape(-1)]).reshape(*shape, d)
        errors.append(
            expect_close(
                f"learned_positions of shape {shape}", fn(table, positions), want, tolerance
            )
        )
    print(f"check_learned_positions: {len(errors)} cases, worst relative error {max(errors):.1e}")


@in_a_sentence
def check_sinusoidal_positions(fn, seed=0, tolerance=1e-12):
    """fn(positions, d_model) against the formula, and its reason: a shift by k is the same rotation
    everywhere.
    """
    rng = np.random.default_rng(seed)
    errors = []
    for d_model, shape in ((2, (3,)), (6, (2, 5)), (10, (1,))):
        positions = rng.integers(0, 100_000, shape)
        got, want = fn(positions, d_model), np.empty((*shape, d_model))
        for index in np.ndindex(*shape):
            for i in range(d_model // 2):
                angle = float(positions[index]) / 10000 ** (2 * i / d_model)
                want[(*index, 2 * i)], want[(*index, 2 * i + 1)] = math.sin(angle), math.cos(angle)
        hint = "Sine at 2i, cosine at 2i + 1, of j / 10000^(2i / d_model)."
        # The angle itself is known to one part in 2^53 only, so its sine can be off by that many
        # radians.
        rounding = 4 * positions.max() * np.finfo(np.float64).eps
        what = f"sinusoidal_positions of shape {shape}, d_model={d_model}"
        errors.append(expect_close(what, got, want, max(tolerance, rounding), hint))
    lengths = np.linalg.norm(fn(np.arange(7), 8), axis=-1)
    errors.append(
        expect_close("norm of each row, √(d_model / 2)", lengths, np.full(7, 2.0), tolerance)
    )
    print(
        f"check_sinusoidal_positions: {len(errors)} cases, worst relative error {max(errors):.1e}"
    )


def _axial_cases(seed):
    rng = np.random.default_rng(seed)
    for axes, widths, shape in CASES:
        tables = [rng.standard_normal((n, d)) for n, d in zip(axes, widths, strict=True)]
        count, product = math.prod(shape), math.prod(axes)
        # in order and complete where the shape asks for every position; otherwise in any order,
        # with repeats
        positions = (
            np.arange(product)
            if shape == (product,)
            else rng.integers(0, product, count).reshape(shape)
        )
        yield tables, positions


def _grid(tables):
    """All Π n_i rows: each table broadcast along its own axis of the grid, then concatenated and
    flattened.
    """
    axes = tuple(len(table) for table in tables)
    parts = []
    for i, table in enumerate(tables):
        own = [1] * len(axes) + [table.shape[1]]
        own[i] = axes[i]
        parts.append(np.broadcast_to(table.reshape(own), (*axes, table.shape[1])))
    return np.concatenate(parts, axis=-1).reshape(math.prod(axes), -1)
