"""Axial, learned and sinusoidal positions as modules; sizes are checked once, when one is made."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from reformer_ref._arguments import require_int, require_room, shown
from reformer_ref._tensors import has_values, require_generator, require_integers
from reformer_ref.positions.pytorch import axial_positions, learned_positions, sinusoidal_positions


class AxialPositions(nn.Module):
    """Learned positions from one table (n_i, d_i) per axis, drawn from a standard normal.

    Args:
        shape: (n_1, n_2, …); serves every length up to ``max_length`` = Π n_i.
        dims: (d_1, d_2, …), which add up to d_model.
        generator: draws the first values; None: torch's global one.
    """

    def __init__(
        self, shape: Sequence[int], dims: Sequence[int], generator: torch.Generator | None = None
    ):
        super().__init__()
        sequences = isinstance(shape, (list, tuple)) and isinstance(dims, (list, tuple))
        if not sequences or len(shape) != len(dims):
            given = f"{shown(shape)} and {shown(dims)}"
            raise ValueError(f"shape and dims must be tuples, one entry per axis, got {given}")
        if not shape:
            raise ValueError("shape must have at least one axis, got an empty tuple")
        self.shape = tuple(require_int("shape", n) for n in shape)
        self.dims = tuple(require_int("dims", d) for d in dims)
        self.max_length = math.prod(self.shape)
        self.d_model = sum(self.dims)
        sizes = zip(self.shape, self.dims, strict=True)
        self.tables = nn.ParameterList([_normal(generator, shape=n, dims=d) for n, d in sizes])

    def forward(self, positions: Integer[Tensor, "*batch"]) -> Float[Tensor, "*batch d_model"]:
        """The vectors of positions in [0, max_length)."""
        return axial_positions(list(self.tables), require_positions(positions, self.max_length))

    def extra_repr(self) -> str:
        return f"shape={self.shape}, dims={self.dims}"


class LearnedPositions(nn.Module):
    """One learned row per position, drawn from a standard normal with ``generator``."""

    def __init__(self, max_length: int, d_model: int, generator: torch.Generator | None = None):
        super().__init__()
        self.max_length = require_int("max_length", max_length)
        self.d_model = require_int("d_model", d_model)
        self.table = _normal(generator, max_length=self.max_length, d_model=self.d_model)

    def forward(self, positions: Integer[Tensor, "*batch"]) -> Float[Tensor, "*batch d_model"]:
        """The vectors of positions in [0, max_length)."""
        return learned_positions(self.table, require_positions(positions, self.max_length))

    def extra_repr(self) -> str:
        return f"max_length={self.max_length}, d_model={self.d_model}"


class SinusoidalPositions(nn.Module):
    """Fixed positions without parameters or a longest length, in the dtype of the module."""

    max_length = None

    def __init__(self, d_model: int):
        super().__init__()
        self.d_model = require_even(d_model)
        self.like: Tensor
        self.register_buffer("like", torch.empty(0), persistent=False)  # knows the dtype

    def forward(self, positions: Integer[Tensor, "*batch"]) -> Float[Tensor, "*batch d_model"]:
        """The vectors of any positions ≥ 0."""
        positions = require_positions(positions, math.inf)
        return sinusoidal_positions(positions, self.d_model, self.like.dtype)

    def extra_repr(self) -> str:
        return f"d_model={self.d_model}"


def require_even(d_model):
    """``d_model`` as an even int."""
    if require_int("d_model", d_model, minimum=2) % 2:
        raise ValueError(f"d_model must be even (a sine and a cosine per frequency), got {d_model}")
    return int(d_model)


def _normal(generator, **sizes):
    require_room(**sizes)
    if generator is not None:
        require_generator("generator", generator)
    return nn.Parameter(torch.randn(*sizes.values(), generator=generator))


def require_positions(positions, end):
    """``positions`` as int64, if they are integers in [0, end)."""
    positions = require_integers("positions", positions)
    if positions.numel() == 0:
        shape = tuple(positions.shape)
        raise ValueError(f"positions must hold at least one position, got shape {shape}")
    if has_values(positions):
        low, high = torch.stack(positions.aminmax()).tolist()
        if low < 0 or high >= end:
            given = f"values from {low} to {high}; longer sequences need larger tables"
            raise ValueError(f"positions must be in [0, {end}), got {given}")
    return positions
