"""Axial, learned and sinusoidal positions in PyTorch, gathered for the positions asked for only."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from reformer_ref._arguments import require_int, require_room, shown
from reformer_ref._tensors import (
    has_values,
    require_dtype,
    require_floating,
    require_generator,
    require_integers,
    require_same_kind,
)


def axial_positions(tables, positions):
    """The rows of each position's coordinates, one axis after the other (google/trax,
    ``AxialPositionalEncoding``).

    tables: one (n_i, d_i) tensor per axis; positions (…) integers in [0, Π n_i), any number of them
    in any order -> (…, Σ d_i). The coordinates are the digits of the position in the mixed radix
    (n_1, n_2, …), the last axis fastest: (j // n2, j % n2) for two axes. ValueError on positions
    out of range or tables of another shape.
    """
    _require_tables(tables)
    rest = _integers(positions, math.prod([len(table) for table in tables]))
    pieces = []
    for table in reversed(tables):
        pieces.append(F.embedding(rest % len(table), table))  # (…, d_i)
        rest = rest // len(table)
    return torch.cat(pieces[::-1], dim=-1)


def learned_positions(table, positions):
    """table (n, d), positions (…) integers in [0, n) -> (…, d): one row each. The axial case with a
    single axis.
    """
    _require_tables([table])
    return F.embedding(_integers(positions, len(table)), table)


def sinusoidal_positions(positions, d_model, dtype=None):
    """Vaswani et al. 2017, section 3.5: sin(j / 10000^(2i / d_model)) at 2i and the cosine at 2i +
    1, interleaved.

    positions (…) integers ≥ 0, of any size; d_model even -> (…, d_model) in ``dtype`` (None:
    torch's default). The angles are float64, because a float32 angle near position 1,000,000 is off
    by up to 0.03 radians. ValueError if d_model is odd or a position is negative.
    """
    if require_int("d_model", d_model, minimum=2) % 2:
        raise ValueError(f"d_model must be even (a sine and a cosine per frequency), got {d_model}")
    dtype = torch.get_default_dtype() if dtype is None else require_dtype("dtype", dtype)
    positions = _integers(positions, math.inf)
    require_room(d_model=d_model)
    even = torch.arange(0, d_model, 2, device=positions.device, dtype=torch.float64)
    angle = positions[..., None] * 10000.0 ** -(even / d_model)  # (…, d_model / 2)
    out = angle.new_empty(*positions.shape, d_model, dtype=dtype)
    out[..., 1::2] = angle.cos()
    out[..., 0::2] = angle.sin_()
    return out


class AxialPositions(nn.Module):
    """Learned positions from one table (n_i, d_i) per axis, drawn from a standard normal.

    ``shape`` (n_1, n_2, …) serves every length up to ``max_length`` = Π n_i; ``dims`` (d_1, d_2, …)
    add up to d_model. ``generator`` draws the first values (None: torch's global one).
    """

    def __init__(self, shape, dims, generator=None):
        super().__init__()
        if (
            not isinstance(shape, (list, tuple))
            or not isinstance(dims, (list, tuple))
            or len(shape) != len(dims)
        ):
            raise ValueError(
                f"shape and dims must be tuples with one entry per axis, got {shown(shape)} and {shown(dims)}"
            )
        if not shape:
            raise ValueError("shape must have at least one axis, got an empty tuple")
        self.shape = tuple(require_int("shape", n) for n in shape)
        self.dims = tuple(require_int("dims", d) for d in dims)
        self.max_length = math.prod(self.shape)
        self.d_model = sum(self.dims)
        self.tables = nn.ParameterList(
            nn.Parameter(_normal(generator, shape=n, dims=d))
            for n, d in zip(self.shape, self.dims, strict=True)
        )

    def forward(self, positions):
        """positions (…) integers in [0, max_length) -> (…, d_model)."""
        return axial_positions(list(self.tables), positions)

    def extra_repr(self):
        return f"shape={self.shape}, dims={self.dims}"


class LearnedPositions(nn.Module):
    """One learned row per position, drawn from a standard normal with ``generator`` (None: torch's
    global one).
    """

    def __init__(self, max_length, d_model, generator=None):
        super().__init__()
        self.max_length = require_int("max_length", max_length)
        self.d_model = require_int("d_model", d_model)
        self.table = nn.Parameter(
            _normal(generator, max_length=self.max_length, d_model=self.d_model)
        )

    def forward(self, positions):
        """positions (…) integers in [0, max_length) -> (…, d_model)."""
        return learned_positions(self.table, positions)

    def extra_repr(self):
        return f"max_length={self.max_length}, d_model={self.d_model}"


class SinusoidalPositions(nn.Module):
    """Fixed positions without parameters or a longest length; the result follows the module's
    dtype.
    """

    max_length = None

    def __init__(self, d_model):
        super().__init__()
        if require_int("d_model", d_model, minimum=2) % 2:
            raise ValueError(
                f"d_model must be even (a sine and a cosine per frequency), got {d_model}"
            )
        self.d_model = d_model
        self.register_buffer(
            "like", torch.empty(0), persistent=False
        )  # holds nothing, knows the dtype

    def forward(self, positions):
        """positions (…) integers ≥ 0 -> (…, d_model)."""
        return sinusoidal_positions(positions, self.d_model, self.like.dtype)

    def extra_repr(self):
        return f"d_model={self.d_model}"


def _normal(generator, **sizes):
    require_room(**sizes)
    generator = None if generator is None else require_generator("generator", generator)
    return torch.randn(*sizes.values(), generator=generator)


def _integers(positions, end):
    """``positions`` as int64; TypeError if not integers, ValueError if empty or, where it has
    values, out of range.
    """
    positions = require_integers("positions", positions)
    if positions.numel() == 0:
        raise ValueError(
            f"positions must hold at least one position, got shape {tuple(positions.shape)}"
        )
    if has_values(positions):
        low, high = (int(value) for value in positions.aminmax())
        if low < 0 or high >= end:
            raise ValueError(
                f"positions must be in [0, {end}), got values from {low} to {high}; longer sequences need larger tables"
            )
    return positions


def _require_tables(tables):
    if not isinstance(tables, (list, tuple)) or not tables:
        raise ValueError("tables must be a list with one (n_i, d_i) tensor per axis, got none")
    for table in tables:
        require_floating("tables", table)
        if table.ndim != 2 or table.numel() == 0:
            raise ValueError(
                f"tables must be non-empty (n_i, d_i) tensors, got shape {tuple(table.shape)}"
            )
        require_same_kind("the first of tables", tables[0], tables=table)
