"""Positions: the public functions, which check their arguments once, and the modules."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from reformer_ref._arguments import require_fits
from reformer_ref._tensors import require_dtype, require_floating, require_same_kind
from reformer_ref.positions import pytorch as plain
from reformer_ref.positions.modules import (
    AxialPositions,
    LearnedPositions,
    SinusoidalPositions,
    require_even,
    require_positions,
)

__all__ = [
    "AxialPositions",
    "LearnedPositions",
    "SinusoidalPositions",
    "axial_positions",
    "learned_positions",
    "sinusoidal_positions",
]


def axial_positions(
    tables: Sequence[Float[Tensor, "_ _"]], positions: Integer[Tensor, "*batch"]
) -> Float[Tensor, "*batch d_model"]:
    """Put the rows of each position's coordinates side by side.

    The coordinates are the digits of the position in the mixed radix (n_1, n_2, …), the last axis
    fastest: (j // n_2, j % n_2) for two axes. Source: google/trax, ``AxialPositionalEncoding``.

    Args:
        tables: one (n_i, d_i) tensor per axis.
        positions: integers in [0, Π n_i), any number of them in any order.

    Returns:
        (…, Σ d_i) in the dtype of the tables.

    Raises:
        TypeError: for a wrong type or dtype.
        ValueError: for positions out of range, or tables of another shape.
    """
    _require_tables(tables)
    positions = require_positions(positions, math.prod([len(table) for table in tables]))
    return plain.axial_positions(tables, positions)


def learned_positions(
    table: Float[Tensor, "n d_model"], positions: Integer[Tensor, "*batch"]
) -> Float[Tensor, "*batch d_model"]:
    """Look up one row per position: ``axial_positions`` with a single axis."""
    return axial_positions([table], positions)


def sinusoidal_positions(
    positions: Integer[Tensor, "*batch"], d_model: int, dtype: torch.dtype | None = None
) -> Float[Tensor, "*batch d_model"]:
    """Compute sin(j / 10000^(2i / d_model)) at 2i and the cosine at 2i + 1, from float64 angles.

    Source: Vaswani et al. 2017, section 3.5.

    Args:
        positions: integers ≥ 0, of any size.
        d_model: even.
        dtype: of the result; None: torch's default.

    Returns:
        (…, d_model).

    Raises:
        TypeError: for a wrong type or dtype.
        ValueError: for an odd d_model or a negative position.
    """
    require_even(d_model)
    if dtype is not None:
        require_dtype("dtype", dtype)
    positions = require_positions(positions, math.inf)
    require_fits(positions=positions.numel(), d_model=d_model)
    return plain.sinusoidal_positions(positions, d_model, dtype)


def _require_tables(tables):
    if not isinstance(tables, (list, tuple)) or not tables:
        raise ValueError("tables must be a list with one (n_i, d_i) tensor per axis, got none")
    for table in tables:
        if require_floating("tables", table).ndim != 2 or table.numel() == 0:
            given = tuple(table.shape)
            raise ValueError(f"tables must be non-empty (n_i, d_i) tensors, got shape {given}")
        require_same_kind("the first of tables", tables[0], tables=table)
