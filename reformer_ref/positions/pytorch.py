"""Axial, learned and sinusoidal positions, the PyTorch version to read. Not checked.

Rows are gathered for the positions asked for only: no table of all positions is ever made.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor


def axial_positions(
    tables: Sequence[Float[Tensor, "_ _"]], positions: Integer[Tensor, "*batch"]
) -> Float[Tensor, "*batch d_model"]:
    """Put the rows of each position's coordinates side by side (google/trax,
    ``AxialPositionalEncoding``).

    One table (n_i, d_i) per axis. The coordinates are the digits of the position in the mixed radix
    (n_1, n_2, …), the last axis fastest: (j // n_2, j % n_2) for two axes.
    """
    rest = positions.long()
    rows = []
    for table in reversed(tables[1:]):
        rows.append(F.embedding(rest % len(table), table))  # (…, d_i)
        rest = rest // len(table)
    rows.append(F.embedding(rest, tables[0]))
    return torch.cat(rows[::-1], dim=-1)  # (…, Σ d_i)


def learned_positions(
    table: Float[Tensor, "n d_model"], positions: Integer[Tensor, "*batch"]
) -> Float[Tensor, "*batch d_model"]:
    """Look up one row per position: the axial case with a single axis."""
    return F.embedding(positions.long(), table)


def sinusoidal_positions(
    positions: Integer[Tensor, "*batch"], d_model: int, dtype: torch.dtype | None = None
) -> Float[Tensor, "*batch d_model"]:
    """Compute sin(j / 10000^(2i / d_model)) at 2i and the cosine at 2i + 1 (Vaswani et al. 2017,
    section 3.5).

    The angles are float64: a float32 angle near position 1,000,000 is off by up to 0.03 radians.
    """
    even = torch.arange(0, d_model, 2, device=positions.device, dtype=torch.float64)
    angle = positions[..., None] * 10000.0 ** -(even / d_model)  # (…, d_model / 2)
    dtype = torch.get_default_dtype() if dtype is None else dtype
    out = angle.new_empty(*positions.shape, d_model, dtype=dtype)  # (…, d_model)
    out[..., 0::2] = angle.sin()
    out[..., 1::2] = angle.cos()
    return out
