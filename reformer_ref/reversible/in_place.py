"""Reversible stack whose layers work in the streams themselves, and the loss on top of them.

Beyond two streams and, in backward, their two gradients, a training step needs what one layer
needs: each layer is added to a stream, and taken away from it, in place (`InPlaceLayer`). The
functions equal those of ``reversible.pytorch``.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from reformer_ref._replay import Replay
from reformer_ref._tensors import never_compiled
from reformer_ref.reversible import pytorch as plain
from reformer_ref.reversible.pytorch import (
    Step,
    add_gradients,
    call_layer,
    detached_leaves,
    parameters_of,
    records_gradients,
    refuse_second_derivative,
    rerun_layer,
)

# (name of the pass, module) -> a context that surrounds the work of the layer, for instance a clock
Observer = Callable[[str, nn.Module], AbstractContextManager[Any]]


class InPlaceLayer(Protocol):
    """A layer F that can be added to a stream, and taken away from it, in place."""

    module: nn.Module
    """Whose parameters get the gradients."""

    def add_(self, y: Tensor, x: Tensor, context: Sequence[Tensor | None], saved: dict) -> None:
        """y += F(x). ``saved`` keeps what must not be chosen anew in ``subtract_``."""

    def subtract_(
        self,
        y: Tensor,
        d_y: Tensor,
        x: Tensor,
        d_x: Tensor,
        params: dict[str, Tensor],
        context: Sequence[Tensor | None],
        saved: dict,
    ) -> tuple[list[Tensor | None], dict[str, Tensor]]:
        """y −= F(x), d_x += what flows back from d_y; gradients of the context and of ``params``."""


class ModuleLayer:
    """Any module as an `InPlaceLayer`: it is run again as a whole."""

    def __init__(self, module):
        self.module = module
        self.params = dict(module.named_parameters())

    def add_(self, y, x, context, saved):
        y += call_layer(self.module, x, context, saved)

    def subtract_(self, y, d_y, x, d_x, params, context, saved):
        step = Step(self.module, self.params, None, saved)
        leaf = {p: params[name] for name, p in self.params.items()}
        x = x.detach().requires_grad_()
        out, d_through, d_context, d_params = rerun_layer(step, x, context, leaf, d_y)
        y -= out
        if d_through is not None:
            d_x += d_through
        return d_context, {name: d_params.get(p) for name, p in self.params.items()}


class Link(NamedTuple):
    """The place of a block in a stack of which every block is a node (``reversible.sharded``)."""

    start: int = 0
    """The number of layers before the block."""
    before: list | None = None
    """Where backward puts the inputs of the block, which are the outputs of the block before."""
    after: list | None = None
    """Where backward finds the outputs, put there by the block after. None: they are stored."""


WHOLE = Link()  # the stack is one node


def unobserved(name, module):
    """The observer that does nothing."""
    return nullcontext()


def reversible_stack(x1, x2, layers, *context, observe: Observer = unobserved, link: Link = WHOLE):
    """The output streams of a flat list of `InPlaceLayer`, as ``reversible.pytorch`` has them."""
    modules = [layer.module for layer in layers]
    if torch.compiler.is_compiling() or not records_gradients(modules, x1, x2, *context):
        return plain_stack(x1, x2, modules, *context, start=link.start)
    params = parameters_of(modules)
    return _apply(layers, None, observe, link, len(context), 0, x1, x2, *context, *params)


def reversible_loss(
    loss, loss_tensors, x1, x2, layers, *context, observe: Observer = unobserved, link: Link = WHOLE
):
    """``loss(y1, y2, *loss_tensors)`` of the stack's outputs, which exist only inside.

    loss: a function of two streams and of ``loss_tensors`` (weights, targets) that returns one
    tensor. Everything differentiable that it uses must be among its arguments, and the gradients of
    the two streams must be tensors of their own. Backward consumes the streams, so it runs once.
    """
    modules = [layer.module for layer in layers]
    tensors = (*context, *loss_tensors)
    if torch.compiler.is_compiling() or not records_gradients(modules, x1, x2, *tensors):
        return loss(*plain_stack(x1, x2, modules, *context, start=link.start), *loss_tensors)
    n_context, n_loss = len(context), len(loss_tensors)
    params = parameters_of(modules)
    return _apply(layers, loss, observe, link, n_context, n_loss, x1, x2, *tensors, *params)


def plain_stack(x1, x2, modules, *context, start=0, reversible=True):
    """``reversible.pytorch.reversible_stack`` of layers that come after ``start`` others."""
    if start % 2 == 0:
        return plain.reversible_stack(x1, x2, [modules], *context, reversible=reversible)
    # The first of these layers changes the second stream.
    y2, y1 = plain.reversible_stack(x2, x1, [modules], *context, reversible=reversible)
    return y1, y2


class _InPlaceStack(torch.autograd.Function):
    """The whole stack, and the loss if there is one, as one node of the autograd graph."""

    @staticmethod
    def forward(ctx, layers, loss, observe, link, n_context, n_loss, x1, x2, *tensors):
        context, loss_tensors = tensors[:n_context], tensors[n_context : n_context + n_loss]
        ctx.params = tensors[n_context + n_loss :]
        ctx.loss, ctx.observe, ctx.link, ctx.n_context = loss, observe, link, n_context
        # 1. Add every layer to its stream, in copies of the inputs.
        streams, ctx.steps = [x1.clone(), x2.clone()], []
        for k, layer in enumerate(layers, link.start):
            target, source = k % 2, 1 - k % 2
            module = layer.module
            replay = Replay(x1, *context, module=module)
            step = Step(layer, dict(module.named_parameters()), replay, {})
            with observe("forward", module), step.replay.uncached_autocast():
                layer.add_(streams[target], streams[source], context, step.saved)
            ctx.steps.append(step)
        # 2. Without a loss the streams are the output, stored unless backward finds them elsewhere.
        if loss is None:
            stored = streams if link.after is None else ()
            ctx.save_for_backward(*tensors, *stored)
            return tuple(streams)
        # 3. With one they stay inside, and backward may overwrite them.
        ctx.save_for_backward(*tensors)
        ctx.streams = streams
        ctx.loss_replay = Replay(x1)
        with ctx.loss_replay.uncached_autocast():
            return loss(*streams, *loss_tensors)

    @staticmethod
    @never_compiled
    def backward(ctx, *d_out):
        refuse_second_derivative()
        needs = ctx.needs_input_grad[8:]
        saved = ctx.saved_tensors  # read once: some saved-tensor hooks allow no more
        tensors = saved[: len(needs)]
        leaves, leaf = detached_leaves(tensors, ctx.params, needs)
        context, loss_leaves = leaves[: ctx.n_context], leaves[ctx.n_context :]
        # 1. The streams and their gradients, which are changed in place from here on.
        d_loss_tensors = []
        if ctx.loss is None:
            streams = [y.clone() for y in saved[len(needs) :]]
            if ctx.link.after is not None:
                streams = ctx.link.after.pop()
            d_streams = [d.clone() for d in d_out]
        else:
            streams, d_streams, d_loss_tensors = _differentiate_loss(ctx, loss_leaves, *d_out)
        # 2. Undo and differentiate layer by layer, the last one first.
        d_context, d_params = [None] * len(context), {}
        for k, step in reversed(list(enumerate(ctx.steps, ctx.link.start))):
            target, source = k % 2, 1 - k % 2
            params = {name: leaf[p] for name, p in step.params.items()}
            with ctx.observe("backward", step.layer.module), step.replay.restored():
                d_context_of_layer, d_named = step.layer.subtract_(
                    streams[target],
                    d_streams[target],
                    streams[source],
                    d_streams[source],
                    params,
                    context,
                    step.saved,
                )
            trained = {p: d_named[n] for n, p in step.params.items() if leaf[p].requires_grad}
            add_gradients(d_context, d_params, d_context_of_layer, trained)
            del d_named, trained
        # 3. What is left in the streams are x1 and x2, and in d_streams their gradients.
        if ctx.link.before is not None:
            ctx.link.before.append(streams)
        d_params = [d_params.get(p) for p in ctx.params]
        return *[None] * 6, *d_streams, *d_context, *d_loss_tensors, *d_params


# Compiled separately, forward and recomputation would draw different random numbers.
_apply = never_compiled(_InPlaceStack.apply)


def _differentiate_loss(ctx, leaves, d_loss):
    """The streams, their gradients, and those of the loss tensors."""
    if ctx.streams is None:
        reason = "backward of the loss runs once"
        raise RuntimeError(f"{reason}: compute the loss again instead of retain_graph=True")
    streams, ctx.streams = ctx.streams, None
    # 1. Compute the loss again, from leaves.
    ends = [s.detach().requires_grad_() for s in streams]
    with torch.enable_grad(), ctx.loss_replay.restored():
        value = ctx.loss(*ends, *leaves)
    # 2. Differentiate it. A loss may ignore a stream.
    used = [t for t in leaves if t is not None and t.requires_grad]
    d1, d2, *d_used = torch.autograd.grad(value, [*ends, *used], d_loss, allow_unused=True)
    d_streams = [
        torch.zeros_like(streams[0]) if d1 is None else d1,
        torch.zeros_like(streams[1]) if d2 is None else d2,
    ]
    d = dict(zip(used, d_used, strict=True))
    return streams, d_streams, [d.get(t) for t in leaves]
