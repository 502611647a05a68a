"""Axial, learned and sinusoidal positions: the definition, in NumPy float64, gradients by hand.

The axial tables are the authors' way (google/trax, ``AxialPositionalEncoding``) of giving half a
million positions a learned vector each without half a million rows: position j has a coordinate on
every axis, and its vector is the rows of its coordinates side by side. Two tables of n1 × d1 and n2
× d2 numbers serve n1 · n2 positions.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Integer


def axial_positions(
    tables: Sequence[Float[np.ndarray, "_ _"]], positions: Integer[np.ndarray, "*batch"]
) -> Float[np.ndarray, "*batch d_model"]:
    """Put the rows of each position's coordinates side by side.

    One table (n_i, d_i) per axis; positions in [0, Π n_i), any number of them in any order. The
    coordinates are the digits of the position in the mixed radix (n_1, n_2, …), the last axis
    fastest: (j // n2, j % n2) for two axes.
    """
    coordinates = _coordinates(tables, positions)
    return np.concatenate([table[c] for table, c in zip(tables, coordinates, strict=True)], axis=-1)


def axial_positions_vjp(tables, positions, d_out):
    """The gradient of each table: a row adds up wherever it was used."""
    d_tables = [np.zeros_like(table) for table in tables]
    ends = np.cumsum([table.shape[1] for table in tables])
    d_rows = np.split(d_out, ends[:-1], axis=-1)  # each (…, d_i)
    for d_table, c, d_row in zip(d_tables, _coordinates(tables, positions), d_rows, strict=True):
        np.add.at(d_table, c, d_row)
    return d_tables


def _coordinates(tables, positions):
    """Mixed-radix digits of the positions: one integer array (…) per axis, the last axis fastest."""
    rest = positions
    coordinates = []
    for table in reversed(tables[1:]):
        coordinates.append(rest % len(table))
        rest = rest // len(table)
    return [rest, *coordinates[::-1]]


def learned_positions(
    table: Float[np.ndarray, "n d_model"], positions: Integer[np.ndarray, "*batch"]
) -> Float[np.ndarray, "*batch d_model"]:
    """Look up one row per position: the axial case with a single axis."""
    return table[positions]


def learned_positions_vjp(table, positions, d_out):
    """The gradient of the table."""
    return axial_positions_vjp([table], positions, d_out)[0]


def sinusoidal_positions(
    positions: Integer[np.ndarray, "*batch"], d_model: int
) -> Float[np.ndarray, "*batch d_model"]:
    """Compute sin(j / 10000^(2i / d_model)) at 2i and the cosine at 2i + 1 (Vaswani et al. 2017,
    section 3.5).

    d_model is even; positions may be of any size.
    """
    frequency = 10000.0 ** -(np.arange(0, d_model, 2) / d_model)  # from 1 down to almost 1 / 10000
    angle = positions[..., None] * frequency  # (…, d_model / 2)
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(*positions.shape, d_model)
