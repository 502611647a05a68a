"""The reversible stack: the public functions, which check their arguments once, and the modules."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reformer_ref._arguments import require_bool, short_repr
from reformer_ref._tensors import require_floating, require_tensor
from reformer_ref.reversible import in_place
from reformer_ref.reversible import pytorch as plain
from reformer_ref.reversible.in_place import InPlaceLayer, ModuleLayer
from reformer_ref.reversible.pytorch import flat
from reformer_ref.reversible.sharded import any_sharded, call_blocks, require_gathered

__all__ = [
    "InPlaceLayer",
    "ReversibleBlock",
    "ReversibleStack",
    "reversible_stack",
    "reversible_stack_inverse",
]


class ReversibleBlock(nn.Module):
    """The layers of one block as a module: ``ReversibleBlock(f, g)``, or any number of layers."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.ModuleList(_layers_of(layers))

    def __iter__(self):
        return iter(self.layers)

    def forward(
        self,
        x1: Float[Tensor, "*batch d"],
        x2: Float[Tensor, "*batch d"],
        *context: Tensor | None,
        compute: Callable[..., Any] | None = None,
    ) -> Any:
        """This block alone, as a stack; or ``compute(x1, x2, layers, *context)``, for sharded stacks."""
        if compute is None:
            return reversible_stack(x1, x2, [self.layers], *context)
        return compute(x1, x2, self.layers, *context)


Block = ReversibleBlock | Sequence[nn.Module] | nn.Module
Blocks = Sequence[Block] | nn.ModuleList


def reversible_stack(
    x1: Float[Tensor, "*batch d"],
    x2: Float[Tensor, "*batch d"],
    blocks: Blocks,
    *context: Tensor | None,
    reversible: bool = True,
) -> tuple[Float[Tensor, "*batch d"], Float[Tensor, "*batch d"]]:
    """Run two streams through reversible blocks: y1 = x1 + F(x2), y2 = x2 + G(y1).

    Only the outputs and the context are stored for backward, besides random states and what the
    layers save. Source: paper section 3, "Reversible Transformer".

    A layer is an ``nn.Module`` called as ``layer(x, *context)`` that returns a tensor of the shape
    of x. It may use dropout, autocast and any parameters of its own; a tensor that it holds in
    another way is a constant to backward. It runs again in backward, so it must not change buffers
    in forward (as batch norm does in training) nor draw from an explicit ``torch.Generator``,
    unless it keeps what it drew: a layer with the attribute ``uses_saved = True`` gets
    ``saved=<dict>``, empty in forward, and in backward with what forward put in. No other thread
    may use a layer while backward recomputes it.

    Args:
        x1: the first stream. Keep both in float32 or wider: the reconstruction carries their
            rounding (layers may compute in lower precision, as under autocast).
        x2: the second stream, of the shape, dtype and device of x1.
        blocks: each a `ReversibleBlock`, a sequence of modules (usually a pair (f, g)), or a module
            with submodules ``f`` and ``g``. All layers, in order, change stream 1, 2, 1, ....
        context: further tensors (an encoder's output, a mask) or None, passed to every layer;
            gradients of floating-point ones are summed over the layers.
        reversible: False computes the same with ordinary autograd, storing all activations.

    Returns:
        The streams in their original roles.

    Raises:
        TypeError: for streams, blocks, layers or context of another kind.
        ValueError: for streams that differ, no blocks, a block without layers, or a layer that
            returns another shape.
    """
    _check_streams(("x1", x1), ("x2", x2))
    _check_context(context)
    checked = _checked_blocks(blocks)
    require_bool("reversible", reversible)
    called = [block for block in blocks if isinstance(block, ReversibleBlock)]
    require_gathered("blocks", nn.ModuleList(flat(checked)), called)
    if any_sharded(called):
        modules = [
            block if isinstance(block, ReversibleBlock) else ReversibleBlock(*layers)
            for block, layers in zip(blocks, checked, strict=True)
        ]
        return call_blocks(
            partial(_compute_block, reversible=reversible), x1, x2, modules, *context
        )
    return plain.reversible_stack(x1, x2, checked, *context, reversible=reversible)


def reversible_stack_inverse(
    y1: Float[Tensor, "*batch d"],
    y2: Float[Tensor, "*batch d"],
    blocks: Blocks,
    *context: Tensor | None,
) -> tuple[Float[Tensor, "*batch d"], Float[Tensor, "*batch d"]]:
    """Compute the inputs of the stack that gave (y1, y2), up to rounding.

    Args:
        y1: the first output stream.
        y2: the second output stream.
        blocks: as in `reversible_stack`. The layers must be repeatable: dropout off, fixed
            rotations.
        context: as in `reversible_stack`.

    Returns:
        (x1, x2), differentiable by ordinary autograd.

    Raises:
        TypeError: as in `reversible_stack`.
        ValueError: as in `reversible_stack`.
    """
    _check_streams(("y1", y1), ("y2", y2))
    _check_context(context)
    checked = _checked_blocks(blocks)
    remedy = "call the inverse in a process that holds them whole"
    require_gathered("blocks", nn.ModuleList(flat(checked)), remedy=remedy)
    return plain.reversible_stack_inverse(y1, y2, checked, *context)


class ReversibleStack(nn.Module):
    """`reversible_stack` as a module.

    Args:
        blocks: as in `reversible_stack`.
        reversible: may be switched at any time.
    """

    def __init__(self, blocks: Blocks, reversible: bool = True):
        super().__init__()
        _checked_blocks(blocks)
        modules = [b if isinstance(b, nn.Module) else ReversibleBlock(*b) for b in blocks]
        self.blocks = nn.ModuleList(modules)
        self.reversible = require_bool("reversible", reversible)

    def forward(
        self, x1: Float[Tensor, "*batch d"], x2: Float[Tensor, "*batch d"], *context: Tensor | None
    ) -> tuple[Float[Tensor, "*batch d"], Float[Tensor, "*batch d"]]:
        """The output streams (y1, y2)."""
        return reversible_stack(x1, x2, self.blocks, *context, reversible=self.reversible)

    def extra_repr(self) -> str:
        return f"reversible={self.reversible}"


def _compute_block(x1, x2, layers, *context, link, reversible):
    """A block of a sharded stack."""
    if reversible:
        layers = [ModuleLayer(layer) for layer in layers]
        return in_place.reversible_stack(x1, x2, layers, *context, link=link)
    return in_place.plain_stack(x1, x2, layers, *context, start=link.start, reversible=False)


def _checked_blocks(blocks):
    """The blocks as sequences of layers."""
    if not isinstance(blocks, (list, tuple, nn.ModuleList)):
        raise TypeError(f"blocks must be a sequence of blocks, got {type(blocks).__name__}")
    if len(blocks) == 0:
        raise ValueError("blocks must hold at least one block, got none")
    return [_layers_of(block) for block in blocks]


def _layers_of(block):
    if isinstance(block, ReversibleBlock):
        return block.layers
    if isinstance(block, (list, tuple, nn.ModuleList)):
        layers = block
    elif isinstance(block, nn.Module) and hasattr(block, "f") and hasattr(block, "g"):
        layers = (block.f, block.g)
    else:
        accepted = "ReversibleBlock, sequences of modules such as (f, g), or modules with f and g"
        raise TypeError(f"blocks must hold {accepted}, got {type(block).__name__}")
    if len(layers) == 0:
        raise ValueError("blocks: each block must hold at least one layer, got an empty one")
    for layer in layers:
        if not isinstance(layer, nn.Module):
            given = f"{short_repr(layer)} ({type(layer).__name__})"
            raise TypeError(f"blocks: each layer must be an nn.Module, got {given}")
    return layers


def _check_context(context):
    for tensor in context:
        if tensor is not None and not isinstance(tensor, torch.Tensor):
            given = f"{short_repr(tensor)} ({type(tensor).__name__})"
            raise TypeError(f"context must be tensors or None, got {given}")
        if tensor is not None:
            require_tensor("context", tensor)


def _check_streams(first, second):
    """Both (name, tensor) are float tensors of one shape, dtype and device."""
    for name, stream in (first, second):
        if not isinstance(stream, torch.Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(stream).__name__}")
        if not stream.is_floating_point():
            raise TypeError(f"{name} must have a floating-point dtype, got {stream.dtype}")
        require_floating(name, stream)
    (name1, a), (name2, b) = first, second
    for attribute in ("shape", "dtype", "device"):
        if getattr(a, attribute) != getattr(b, attribute):
            given = f"{getattr(a, attribute)} and {getattr(b, attribute)}"
            raise ValueError(f"{name1} and {name2} must have the same {attribute}, got {given}")
