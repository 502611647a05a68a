"""Axial, learned and sinusoidal positions in NumPy float64, with gradients by hand.

The axial tables are the authors' way (google/trax, ``AxialPositionalEncoding``) of giving half a
million positions a learned vector each without half a million rows: position j has a coordinate on
every axis, and its vector is the rows of its coordinates side by side. Two tables of n1 × d1 and n2
× d2 numbers serve n1 · n2 positions.
"""

import math

import numpy as np

from reformer_ref._arguments import as_floats, as_integers, require_int, require_room, require_shape


def axial_positions(tables, positions):
    """The rows of each position's coordinates, one axis after the other.

    tables: one (n_i, d_i) array per axis; positions (…) integers in [0, Π n_i), any number of them
    in any order -> (…, Σ d_i). The coordinates are the digits of the position in the mixed radix
    (n_1, n_2, …), the last axis fastest: (j // n2, j % n2) for two axes. ValueError on positions
    out of range or tables of another shape.
    """
    tables = _tables(tables)
    coordinates = _coordinates([len(table) for table in tables], positions)
    return np.concatenate([table[c] for table, c in zip(tables, coordinates, strict=True)], axis=-1)


def axial_positions_vjp(tables, positions, d_out):
    """Gradients [d_table, …] of Σ d_out · axial_positions(tables, positions): a row adds up
    wherever it was used.
    """
    tables = _tables(tables)
    coordinates = _coordinates([len(table) for table in tables], positions)
    widths = [table.shape[1] for table in tables]
    d_out = as_floats("d_out", d_out)
    require_shape("d_out", d_out, (*coordinates[0].shape, sum(widths)), "(…, Σ d_i)")
    d_tables = [np.zeros_like(table) for table in tables]
    pieces = np.split(d_out, np.cumsum(widths)[:-1], axis=-1)  # each (…, d_i)
    for d_table, c, piece in zip(d_tables, coordinates, pieces, strict=True):
        np.add.at(d_table, c, piece)
    return d_tables


def learned_positions(table, positions):
    """table (n, d), positions (…) integers in [0, n) -> (…, d): one row each. The axial case with a
    single axis.
    """
    return axial_positions([table], positions)


def learned_positions_vjp(table, positions, d_out):
    """Gradient d_table of Σ d_out · learned_positions(table, positions)."""
    return axial_positions_vjp([table], positions, d_out)[0]


def sinusoidal_positions(positions, d_model):
    """Vaswani et al. 2017, section 3.5: sin(j / 10000^(2i / d_model)) at 2i and the cosine at 2i +
    1, interleaved.

    positions (…) integers ≥ 0, of any size; d_model even -> (…, d_model). ValueError if d_model is
    odd or a position is negative.
    """
    if require_int("d_model", d_model, minimum=2) % 2:
        raise ValueError(f"d_model must be even (a sine and a cosine per frequency), got {d_model}")
    positions = _integers(positions, math.inf)
    require_room(positions=positions.size, d_model=d_model)
    frequency = 10000.0 ** -(
        np.arange(0, d_model, 2) / d_model
    )  # (d_model / 2), from 1 down to almost 1 / 10000
    angle = positions[..., None] * frequency  # (…, d_model / 2)
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(*angle.shape[:-1], d_model)


def _coordinates(shape, positions):
    """Mixed-radix digits of ``positions``: one integer array (…) per axis, the last axis fastest."""
    rest = _integers(positions, math.prod(shape))
    coordinates = []
    for n in reversed(shape):
        coordinates.append(rest % n)
        rest = rest // n
    return coordinates[::-1]


def _integers(positions, end):
    positions = as_integers("positions", positions)
    if positions.size == 0:
        raise ValueError(f"positions must hold at least one position, got shape {positions.shape}")
    if positions.min() < 0 or positions.max() >= end:
        raise ValueError(
            f"positions must be in [0, {end}), got values from {positions.min()} to {positions.max()}; "
            "longer sequences need larger tables"
        )
    return positions


def _tables(tables):
    if not isinstance(tables, (list, tuple)) or not tables:
        raise ValueError("tables must be a list with one (n_i, d_i) array per axis, got none")
    tables = [as_floats("tables", table) for table in tables]
    for table in tables:
        if table.ndim != 2 or table.size == 0:
            raise ValueError(f"tables must be non-empty (n_i, d_i) arrays, got shape {table.shape}")
    return tables
