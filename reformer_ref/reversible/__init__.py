"""The reversible residual stack: two streams, an exact inverse, and backward from outputs alone."""

from reformer_ref.reversible.api import (
    InPlaceLayer,
    ReversibleBlock,
    ReversibleStack,
    reversible_stack,
    reversible_stack_inverse,
)

__all__ = [
    "InPlaceLayer",
    "ReversibleBlock",
    "ReversibleStack",
    "reversible_stack",
    "reversible_stack_inverse",
]
