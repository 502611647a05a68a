"""Reversible residual stack in PyTorch: the memory of activations does not grow with depth.

The functions of ``spec`` on tensors and ``nn.Module`` layers. The backward pass rebuilds the input
of every layer from the two outputs, runs the layer again and differentiates it, then goes on to the
previous one. The gradients of the parameters are returned to autograd, not written into ``.grad``.
"""

import operator
from typing import NamedTuple

import torch
from torch import nn
from torch.func import functional_call

from reformer_ref._replay import Replay
from reformer_ref._tensors import never_compiled


def reversible_stack(x1, x2, blocks, *context, reversible=True):
    """The output streams (y1, y2) of x1, x2; a layer is called ``layer(x, *context)``."""
    layers = flat(blocks)
    if reversible and records_gradients(layers, x1, x2, *context):
        return _apply(layers, len(context), x1, x2, *context, *parameters_of(layers))
    streams = [x1, x2]
    for k, layer in enumerate(layers):
        target, source = k % 2, 1 - k % 2
        out = run_layer(layer, streams[source], context, {})
        streams[target] = (streams[target] + out).to(x1.dtype)
    return tuple(streams)


def reversible_stack_inverse(y1, y2, blocks, *context):
    """The inputs (x1, x2) of the stack that gave (y1, y2), up to rounding."""
    streams = [y1, y2]
    for k, layer in reversed(list(enumerate(flat(blocks)))):
        target, source = k % 2, 1 - k % 2
        out = run_layer(layer, streams[source], context, {})
        streams[target] = (streams[target] - out).to(y1.dtype)
    return tuple(streams)


class _ReversibleStack(torch.autograd.Function):
    """The whole stack as one node of the autograd graph."""

    @staticmethod
    def forward(ctx, layers, n_context, x1, x2, *tensors):
        context, ctx.params = tensors[:n_context], tensors[n_context:]
        streams, ctx.steps = [x1, x2], []
        for k, layer in enumerate(layers):
            target, source = k % 2, 1 - k % 2
            step = Step(layer, named(layer), Replay(x1, *context, module=layer), {})
            # y = x + F(other stream)
            with step.replay.uncached_autocast():
                out = run_layer(layer, streams[source], context, step.saved)
            streams[target] = (streams[target] + out).to(x1.dtype)
            ctx.steps.append(step)
        # no activations but the outputs; the parameters too, so that a change in place is noticed
        ctx.save_for_backward(*streams, *tensors)
        return tuple(streams)

    @staticmethod
    @never_compiled
    def backward(ctx, *d_streams):
        refuse_second_derivative()
        y1, y2, *tensors = ctx.saved_tensors
        context, leaf = detached_leaves(tensors, ctx.params, ctx.needs_input_grad[4:])
        streams, d_streams = [y1, y2], list(d_streams)
        d_context, d_params = [None] * len(context), {}
        for k, step in reversed(list(enumerate(ctx.steps))):
            target, source = k % 2, 1 - k % 2
            # 1. run the layer again at its input, and differentiate it
            x = streams[source].detach().requires_grad_()
            with step.replay.context():
                out, d_x, *d_used = rerun_layer(step, x, context, leaf, d_streams[target])
            # 2. undo it: x = y - F(other stream)
            streams[target] = (streams[target] - out).to(y1.dtype)
            # 3. the stream that it reads collects two gradients: one passed on, one through F
            d_streams[source] = add(d_streams[source], d_x)
            add_gradients(d_context, d_params, *d_used)
            del out, d_x, d_used  # not alive while the next layer is run again
        return None, None, *d_streams, *d_context, *(d_params.get(p) for p in ctx.params)


# Compiled separately, forward and recomputation would draw different random numbers.
_apply = never_compiled(_ReversibleStack.apply)


class Step(NamedTuple):
    """One layer, and what backward needs to run it again."""

    layer: nn.Module
    named: dict  # its parameters in forward, by name
    replay: Replay
    saved: dict  # what it chose in forward, such as bucket numbers


def run_layer(layer, x, context, saved, params=None):
    """``layer(x, *context)``, with ``params`` in place of its own parameters if given.

    A layer with the attribute ``uses_saved`` gets ``saved=<dict>`` too: empty in forward, to be
    filled with what must not be chosen anew in backward.
    """
    kwargs = {"saved": saved} if getattr(layer, "uses_saved", False) else {}
    args = (x, *context)
    out = layer(*args, **kwargs) if params is None else functional_call(layer, params, args, kwargs)
    if getattr(out, "shape", None) != x.shape:
        given = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
        what = f"must return a tensor of its input's shape, {tuple(x.shape)}"
        raise ValueError(f"blocks: {type(layer).__name__} {what}, got {given}")
    return out


def rerun_layer(step, x, context, leaf, d_out):
    """(out, d_x, d_context, d_params) of a layer at the leaf x, for the gradient ``d_out`` of out.

    ``leaf`` maps each parameter to a detached stand-in: hooks of the parameters themselves run
    once, in the outer backward, not here as well.
    """
    with torch.enable_grad():
        params = {name: leaf[p] for name, p in step.named.items()}
        out = run_layer(step.layer, x, context, step.saved, params)
    if not out.requires_grad:
        return out, None, [None] * len(context), {}
    trained = [p for p in step.named.values() if leaf[p].requires_grad]
    inputs = [x, *(t for t in context if t is not None and t.requires_grad)]
    inputs += [leaf[p] for p in trained]
    # a module may also reach a parameter past its name, say through a list
    inputs += [p for p in trained if p.requires_grad]
    grads = torch.autograd.grad(out, inputs, d_out.to(out.dtype), allow_unused=True)
    d = dict(zip(inputs, grads, strict=True))
    d_params = {p: add(d.get(leaf[p]), d.get(p)) for p in trained}
    return out.detach(), d[x], [d.get(t) for t in context], d_params


def detached_leaves(tensors, params, needs):
    """The context as detached leaves, and a map from each parameter to its own."""
    leaves = []
    for tensor, need in zip(tensors, needs, strict=True):
        leaves.append(None if tensor is None else tensor.detach().requires_grad_(need))
    n_context = len(tensors) - len(params)
    return leaves[:n_context], dict(zip(params, leaves[n_context:], strict=True))


def add(total, d):
    """The sum of two gradients, either of which may be None."""
    if total is None or d is None:
        return d if total is None else total
    return total + d


def add_gradients(d_context, d_params, d_context_of_layer, d_params_of_layer):
    """Add the gradients of a layer to those of the stack."""
    for i, d in enumerate(d_context_of_layer):
        d_context[i] = add(d_context[i], d)
    for p, d in d_params_of_layer.items():
        d_params[p] = add(d_params.get(p), d)


def refuse_second_derivative():
    """RuntimeError where autograd wants a graph of the backward pass."""
    if torch.is_grad_enabled():
        what = "a reversible stack has no second derivative"
        raise RuntimeError(f"{what}: give reversible=False for create_graph")


def records_gradients(layers, *tensors):
    """Whether autograd can ask for gradients: only then is there anything to recompute.

    torch.compile and torch.export trace a stack in eval mode as plain operations.
    """
    traced = torch.compiler.is_compiling() and not any(layer.training for layer in layers)
    if traced or not torch.is_grad_enabled():
        return False
    given = [t for t in (*tensors, *parameters_of(layers)) if t is not None]
    return any(map(operator.attrgetter("requires_grad"), given))


def named(layer):
    """The parameters of a layer by name."""
    return dict(layer.named_parameters())


def parameters_of(layers):
    """The parameters of all layers, each once."""
    return list(dict.fromkeys([p for layer in layers for p in layer.parameters()]))


def flat(blocks):
    """All layers of all blocks, in the order in which they are applied."""
    return [layer for block in blocks for layer in block]
