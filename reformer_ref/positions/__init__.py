"""Positions: axial tables as in the authors' code, learned rows, and sines."""

from reformer_ref.positions.api import (
    AxialPositions,
    LearnedPositions,
    SinusoidalPositions,
    axial_positions,
    learned_positions,
    sinusoidal_positions,
)

__all__ = [
    "AxialPositions",
    "LearnedPositions",
    "SinusoidalPositions",
    "axial_positions",
    "learned_positions",
    "sinusoidal_positions",
]
