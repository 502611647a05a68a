"""Axial positions: the rows that each position takes, the numbers learned, and which positions are similar."""

import numpy as np
import torch
from reformer_ref._arguments import clear_errors
from reformer_ref.positions import spec
from reformer_ref.positions.modules import AxialPositions, LearnedPositions

from reformer_lab.plots.drawing import controls
from reformer_lab.plots.positions import grid_and_parameters

DIMS = (32, 32)  # widths of the two tables of the explorer


@clear_errors
def rows_in_use(shape, length):
    """The row of each table that positions 0 … length − 1 take, (length, number of axes) integers.

    Looked up by the spec, in tables whose rows hold their number.
    """
    tables = [np.arange(n, dtype=np.float64)[:, None] for n in shape]
    return spec.axial_positions(tables, np.arange(length)).astype(int)


@clear_errors
def learned_numbers(shape, dims):
    """Count the numbers that a module of this shape learns, without allocating them; one axis: the ordinary table."""
    with torch.device("meta"):
        module = AxialPositions(shape, dims) if len(shape) > 1 else LearnedPositions(*shape, *dims)
    return sum(p.numel() for p in module.parameters())


@clear_errors
def cosine_similarity(vectors):
    """vectors (L, d) -> (L, L): the cosine of the angle between every two of them."""
    unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return unit @ unit.T


@controls(n1=(1, 12), n2=(1, 16), position=(0, 191))
def axial(n1=4, n2=6, position=9):
    """The grid of two tables with n1 and n2 rows, the two rows of a position, and parameters beside one table."""
    length = n1 * n2
    parameters = {"axial": learned_numbers((n1, n2), DIMS), "one table": learned_numbers((length,), (sum(DIMS),))}
    chosen = position if position < length else None
    picture = grid_and_parameters(rows_in_use((n1, n2), length), (n1, n2), chosen, parameters)
    if chosen is None:
        caption = f"There is no position {position}: {n1} · {n2} = {length} positions are served. {picture.caption}"
        return picture.describe(caption, **picture.numbers)
    return picture
