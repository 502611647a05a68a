"""Reversible residual stack in PyTorch: the memory of activations does not grow with depth.

The functions of ``reversible/spec.py`` on tensors and ``nn.Module`` layers. There are two streams,
and one list of the layers of all blocks. Layers change the streams in turn, each by a function of
the other stream (a block of F and G changes both, once):

    target, source = k % 2, 1 - k % 2
    streams[target] += layers[k](streams[source])

The backward pass starts from the two outputs. For every layer, last one first, it runs the layer
again, differentiates it, and subtracts it from its stream, which gives the input of the layer. The
gradients of the parameters are returned to autograd, not written into ``.grad``.

``d_x`` is the gradient of the loss with respect to ``x``. Streams keep their dtype: under autocast
the outputs of layers have another one.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from reformer_ref._replay import Replay
from reformer_ref._tensors import never_compiled


def reversible_stack(
    x1: Float[Tensor, "*batch d_model"],
    x2: Float[Tensor, "*batch d_model"],
    blocks: Iterable[Iterable[nn.Module]],
    *context: Tensor | None,
    reversible: bool = True,
) -> tuple[Tensor, Tensor]:
    """The output streams (y1, y2) of x1, x2; a layer is called ``layer(x, *context)``.

    context: the same for all layers, for instance a padding mask. reversible=False: by ordinary
    autograd, which stores the input of every layer.
    """
    layers = flat(blocks)
    if reversible and records_gradients(layers, x1, x2, *context):
        # Autograd only returns gradients of arguments, so the parameters are among them.
        return _apply(layers, len(context), x1, x2, *context, *parameters_of(layers))
    streams = [x1, x2]
    for k, layer in enumerate(layers):
        target, source = k % 2, 1 - k % 2
        out = call_layer(layer, streams[source], context, {})
        streams[target] = (streams[target] + out).to(x1.dtype)
    return tuple(streams)


def reversible_stack_inverse(
    y1: Float[Tensor, "*batch d_model"],
    y2: Float[Tensor, "*batch d_model"],
    blocks: Iterable[Iterable[nn.Module]],
    *context: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The inputs (x1, x2) of the stack that gave (y1, y2), up to rounding."""
    streams = [y1, y2]
    for k, layer in reversed(list(enumerate(flat(blocks)))):
        target, source = k % 2, 1 - k % 2
        out = call_layer(layer, streams[source], context, {})
        streams[target] = (streams[target] - out).to(y1.dtype)
    return tuple(streams)


class _ReversibleStack(torch.autograd.Function):
    """The whole stack as one node of the autograd graph.

    It is never compiled: forward and recomputation, compiled separately, would draw different random
    numbers.
    """

    @staticmethod
    def forward(ctx, layers, n_context, x1, x2, *tensors):
        # The parameters themselves are needed too: gradients are collected by parameter.
        context, ctx.params = tensors[:n_context], tensors[n_context:]
        streams, ctx.steps = [x1, x2], []
        for k, layer in enumerate(layers):
            target, source = k % 2, 1 - k % 2
            # 1. Record the state of random numbers and autocast (on the devices of these tensors),
            #    and which submodules are in training mode.
            replay = Replay(x1, *context, module=layer)
            step = Step(layer, dict(layer.named_parameters()), replay, {})
            # 2. y = x + F(other stream). The weights that autocast casts here have no graph, and
            #    must not stay in its cache for layers that need one.
            with step.replay.uncached_autocast():
                out = call_layer(layer, streams[source], context, step.saved)
            streams[target] = (streams[target] + out).to(x1.dtype)
            ctx.steps.append(step)
        # 3. Save the outputs, but no other activation. Context and parameters are saved so that autograd
        #    notices if they are changed in place before backward.
        ctx.save_for_backward(*streams, *tensors)
        return tuple(streams)

    @staticmethod
    @never_compiled
    def backward(ctx, *d_streams):
        refuse_second_derivative()
        y1, y2, *tensors = ctx.saved_tensors
        needs = ctx.needs_input_grad[4:]  # after layers, n_context, x1 and x2
        context, leaf = detached_leaves(tensors, ctx.params, needs)
        streams, d_streams = [y1, y2], list(d_streams)
        d_context, d_params = [None] * len(context), {}
        for k, step in reversed(list(enumerate(ctx.steps))):
            target, source = k % 2, 1 - k % 2
            # 1. Run the layer again at its input, and differentiate it.
            x = streams[source].detach().requires_grad_()
            with step.replay.restored():
                out, d_x, *d_used = rerun_layer(step, x, context, leaf, d_streams[target])
            # 2. Undo it: x = y − F(other stream).
            streams[target] = (streams[target] - out).to(y1.dtype)
            # 3. Two gradients flow into the stream that the layer reads: the one that the stream has
            #    already, and the one through F.
            d_streams[source] = add(d_streams[source], d_x)
            add_gradients(d_context, d_params, *d_used)
            del out, d_x, d_used  # free them before the next layer runs
        return None, None, *d_streams, *d_context, *(d_params.get(p) for p in ctx.params)


_apply = never_compiled(_ReversibleStack.apply)


class Step(NamedTuple):
    """One layer, and what backward needs to run it again."""

    layer: nn.Module
    params: dict  # its parameters by name, as they were in forward
    replay: Replay  # the state of random numbers and autocast before it ran
    saved: (
        dict  # decisions such as bucket numbers: x, rebuilt with rounding errors, could change them
    )


def call_layer(layer, x, context, saved, params=None):
    """``layer(x, *context)``, with ``params`` in place of its own parameters if given.

    A layer with the attribute ``uses_saved`` gets ``saved=<dict>`` too: empty in forward, to be
    filled with what must not be chosen anew in backward.
    """
    kwargs = {"saved": saved} if getattr(layer, "uses_saved", False) else {}
    args = (x, *context)
    out = layer(*args, **kwargs) if params is None else functional_call(layer, params, args, kwargs)
    if getattr(out, "shape", None) != x.shape:
        given = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
        requirement = f"must return a tensor of its input's shape, {tuple(x.shape)}"
        raise ValueError(f"blocks: {type(layer).__name__} {requirement}, got {given}")
    return out


def rerun_layer(step, x, context, leaf, d_out):
    """(out, d_x, d_context, d_params) of a layer at the leaf x, for the gradient ``d_out`` of out.

    ``leaf`` maps each parameter to a detached stand-in. Differentiated here, the parameters
    themselves would run their hooks here too, and not only once, when the whole gradient is there.
    """
    # 1. Run the layer with the stand-ins in place of its parameters.
    with torch.enable_grad():
        params = {name: leaf[p] for name, p in step.params.items()}
        out = call_layer(step.layer, x, context, step.saved, params)
    if not out.requires_grad:  # the layer depends on nothing that needs a gradient
        return out, None, [None] * len(context), {}
    # 2. Differentiate its output by x, by the context and by the parameters.
    trained = [p for p in step.params.values() if leaf[p].requires_grad]
    inputs = [x, *(t for t in context if t is not None and t.requires_grad)]
    inputs += [leaf[p] for p in trained]
    # functional_call replaces registered parameters alone. A layer that keeps one in a plain list
    # too still uses the parameter itself there.
    inputs += [p for p in trained if p.requires_grad]
    grads = torch.autograd.grad(out, inputs, d_out.to(out.dtype), allow_unused=True)
    # 3. Sort the gradients by what they belong to.
    gradient_of = dict(zip(inputs, grads, strict=True))
    d_context = [gradient_of.get(t) for t in context]
    d_params = {p: add(gradient_of.get(leaf[p]), gradient_of.get(p)) for p in trained}
    return out.detach(), gradient_of[x], d_context, d_params


def detached_leaves(tensors, params, needs):
    """The context as detached leaves, and a dict from each parameter to its detached leaf."""
    leaves = []
    for tensor, need in zip(tensors, needs, strict=True):
        leaves.append(None if tensor is None else tensor.detach().requires_grad_(need))
    n_context = len(tensors) - len(params)
    return leaves[:n_context], dict(zip(params, leaves[n_context:], strict=True))


def add(d_sum, d):
    """The sum of two gradients, either of which may be None."""
    if d_sum is None or d is None:
        return d if d_sum is None else d_sum
    return d_sum + d


def add_gradients(d_context, d_params, d_context_of_layer, d_params_of_layer):
    """Add the gradients of a layer to those of the stack."""
    for i, d in enumerate(d_context_of_layer):
        d_context[i] = add(d_context[i], d)
    for p, d in d_params_of_layer.items():
        d_params[p] = add(d_params.get(p), d)


def refuse_second_derivative():
    """RuntimeError for create_graph=True: only then is gradient mode on inside a backward."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "a reversible stack has no second derivative: for create_graph give reversible=False "
            "and no chunk lengths (ff_chunk, loss_chunk); LSH and local attention of long "
            'sequences have none either, except with backend="plain"'
        )


def records_gradients(layers, *tensors):
    """Whether autograd can ask for gradients: only then is there anything to recompute.

    torch.compile and torch.export trace a stack in eval mode as plain operations: a function with
    its own backward would break their graph.
    """
    traced = torch.compiler.is_compiling() and not any(layer.training for layer in layers)
    if traced or not torch.is_grad_enabled():
        return False
    given = (*tensors, *parameters_of(layers))
    needs = [t.requires_grad for t in given if t is not None]
    return any(needs)


def parameters_of(layers):
    """The parameters of all layers, each once."""
    return list(dict.fromkeys([p for layer in layers for p in layer.parameters()]))


def flat(blocks):
    """All layers of all blocks, in the order in which they are applied."""
    return [layer for block in blocks for layer in block]
