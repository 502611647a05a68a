"""Reversible residual stack in PyTorch: memory independent of depth, gradients by ordinary autograd
rules.

The same functions as in ``spec``, on tensors and ``nn.Module`` halves. The backward pass of
`reversible_stack` rebuilds the inputs of every half from the two outputs, recomputes the half,
differentiates it, and goes on to the previous one; the gradients of the parameters are *returned*
to autograd, not written into ``.grad``.

A half is an ``nn.Module`` called as ``half(x, *extras)``; it returns a tensor of the shape of
``x``. It may use dropout, autocast and any parameters of its own. Differentiated are ``x``, the
extras and the half's parameters: a tensor that it holds in another way (plain attribute, closure)
is a constant to the backward pass. Since the half runs again in backward, a half that changes its
own buffers in forward (batch norm in training mode) changes them twice and does not belong here;
nor does one that draws from an explicit ``torch.Generator``, unless it keeps what it drew: a half
with the attribute ``keeps_memo = True`` is called with ``memo=<dict>``, which is empty in forward
(fill it, for example with bucket numbers) and in backward holds what forward put in. While backward
recomputes a half, the module holds stand-ins for its parameters: no other thread may use it then.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.func import functional_call

from reformer_ref._arguments import require_bool, shown
from reformer_ref._replay import Replay
from reformer_ref._tensors import has_values, require_floating, require_tensor


def reversible_stack(x1, x2, blocks, *extras, reversible=True):
    """The two output streams of a stack of reversible blocks (paper section 3: y1 = x1 + F(x2), y2
    = x2 + G(y1)).

    Args:
        x1, x2: (..., d_model) float tensors of equal shape, dtype and device. Keep them in float32
        or wider: the
            reconstruction carries their rounding (halves may compute in lower precision, as under
            autocast).
        blocks: sequence of blocks: `ReversibleBlock`, a sequence of modules (usually a pair (f,
        g)), or a module with
            submodules ``f`` and ``g``. The halves of all blocks, in order, change stream 1, stream
            2, stream 1, ...
        extras: further tensors (an encoder's memory, a mask) or None, passed to every half after
        ``x``; gradients of
            floating-point extras are summed over the halves.
        reversible: False computes the same function with ordinary autograd, storing all
        activations.

    Returns:
        (y1, y2): the streams in their original roles, shape and dtype.

    Raises:
        ValueError: streams that differ, no blocks, a block without halves, a half that returns
        another shape. TypeError: streams that are not floating-point tensors, other kinds of
        blocks, halves or extras. RuntimeError: in backward, if it is to be differentiated again or
        a parameter was changed in place meanwhile.

    Only y1, y2 and the extras are stored, besides each half's `Replay` and memo. Where no gradient
    can be asked for (grad mode off, nothing requires one) the halves run plainly. So they do where
    ``torch.compile`` or ``torch.export`` traces a stack in eval mode; a compiled model in training
    mode runs the stack between two compiled parts. Halves may be compiled one by one.
    """
    _check_streams(("x1", x1), ("x2", x2))
    _check_extras(extras)
    require_bool("reversible", reversible)
    halves = _halves(blocks)
    traced_eval = torch.compiler.is_compiling() and not any(half.training for half in halves)
    if reversible and torch.is_grad_enabled() and not traced_eval:
        params = list(dict.fromkeys(p for half in halves for p in half.parameters()))
        if any(t.requires_grad for t in (x1, x2, *extras, *params) if t is not None):
            return _apply(halves, None, len(extras), 0, x1, x2, *extras, *params)
    streams = [x1, x2]
    for k, half in enumerate(halves):
        target, source = k % 2, 1 - k % 2
        streams[target] = _add(streams[target], _run(half, streams[source], extras, {}))
    return tuple(streams)


def reversible_loss(head, x1, x2, blocks, *extras, head_tensors=(), reversible=True):
    """``head(y1, y2, *head_tensors)`` of the stack's outputs, in less memory than the two called
    one after the other.

    The outputs exist only inside, so backward works in them in place: beyond two streams and their
    two gradients it needs what one half needs. head: function of two streams and ``head_tensors``
    (weights, targets, None; gradients are returned for those that require one) that returns one
    tensor, usually a scalar; everything differentiable that it uses must be among its arguments.
    Other arguments and errors: `reversible_stack`.

    Backward consumes the streams, so it runs once: RuntimeError if it is asked for again
    (``retain_graph=True``).
    """
    _check_streams(("x1", x1), ("x2", x2))
    _check_extras(extras)
    _check_head(head, head_tensors), require_bool("reversible", reversible)
    halves, tensors = _halves(blocks), (x1, x2, *extras, *head_tensors)
    params = list(dict.fromkeys(p for half in halves for p in half.parameters()))
    needed = torch.is_grad_enabled() and any(
        t.requires_grad for t in (*tensors, *params) if t is not None
    )
    if not (reversible and needed) or torch.compiler.is_compiling():
        return head(
            *reversible_stack(x1, x2, blocks, *extras, reversible=reversible), *head_tensors
        )
    return _apply(halves, head, len(extras), len(head_tensors), *tensors, *params)


def reversible_stack_inverse(y1, y2, blocks, *extras):
    """The inputs (x1, x2) of the stack that gave (y1, y2), up to rounding; arguments as in
    `reversible_stack`.

    The halves must be repeatable: dropout off, fixed rotations. Differentiable by ordinary
    autograd.
    """
    _check_streams(("y1", y1), ("y2", y2))
    _check_extras(extras)
    streams = [y1, y2]
    for k, half in reversed(list(enumerate(_halves(blocks)))):
        target, source = k % 2, 1 - k % 2
        streams[target] = _add(streams[target], _run(half, streams[source], extras, {}), sign=-1)
    return tuple(streams)


class ReversibleBlock(nn.Module):
    """The halves of one block, as a module: ``ReversibleBlock(f, g)``, or any number of halves."""

    def __init__(self, *halves):
        super().__init__()
        self.layers = nn.ModuleList(_block_halves(halves))

    def forward(self, x1, x2, *extras):
        """This block alone, as a stack."""
        return reversible_stack(x1, x2, [self], *extras)


class ReversibleStack(nn.Module):
    """`reversible_stack` as a module. ``blocks``: as there. ``reversible`` may be switched at any
    time.
    """

    def __init__(self, blocks, reversible=True):
        super().__init__()
        _halves(blocks)
        self.blocks = nn.ModuleList(
            b if isinstance(b, nn.Module) else ReversibleBlock(*b) for b in blocks
        )
        self.reversible = require_bool("reversible", reversible)

    def forward(self, x1, x2, *extras):
        """(y1, y2) from (x1, x2), each (..., d_model)."""
        return reversible_stack(x1, x2, self.blocks, *extras, reversible=self.reversible)

    def extra_repr(self):
        return f"reversible={self.reversible}"


@dataclass(frozen=True)
class _Step:
    """What backward needs to run one half again."""

    half: nn.Module
    names: dict  # parameter name -> its index in the list of extras, head tensors and parameters
    replay: Replay
    memo: dict
    in_place: bool


class _ReversibleStack(torch.autograd.Function):
    """The whole stack, and the head if there is one, as one node of the autograd graph.

    ``rest`` holds the extras, then the head's tensors, then the unique parameters.
    """

    @staticmethod
    def forward(ctx, halves, head, n_extras, n_head, x1, x2, *rest):
        index = {p: n_extras + n_head + i for i, p in enumerate(rest[n_extras + n_head :])}
        ctx.n_extras, ctx.head, ctx.steps, extras = n_extras, head, [], rest[:n_extras]
        streams, owned = [x1, x2], [False, False]
        for k, half in enumerate(halves):
            target, source = k % 2, 1 - k % 2
            names = {name: index[p] for name, p in half.named_parameters()}
            step = _Step(half, names, Replay(x1, *extras, module=half), {}, _in_place(half, extras))
            with step.replay.uncached_autocast():
                if step.in_place:
                    streams[target] = streams[target] if owned[target] else streams[target].clone()
                    half.add_(streams[target], streams[source], *extras, memo=step.memo)
                else:
                    streams[target] = _add(
                        streams[target], _run(half, streams[source], extras, step.memo)
                    )
            owned[target] = True
            step.memo.update(
                (key, v.detach()) for key, v in step.memo.items() if isinstance(v, torch.Tensor)
            )
            ctx.steps.append(step)
        # the parameters are saved too: a change in place before backward is an error
        if head is None:
            ctx.save_for_backward(*rest, *streams)
            return tuple(streams)
        ctx.save_for_backward(*rest)
        ctx.streams = [s if mine else s.clone() for s, mine in zip(streams, owned, strict=True)]
        ctx.head_tensors = range(n_extras, n_extras + n_head)
        ctx.head_replay = Replay(x1)
        with ctx.head_replay.uncached_autocast():
            return head(*ctx.streams, *rest[n_extras : n_extras + n_head])

    @staticmethod
    @torch.compiler.disable
    def backward(ctx, *d_out):
        if torch.is_grad_enabled():
            raise RuntimeError(
                "a reversible stack has no second derivative: give reversible=False for create_graph"
            )
        needs = ctx.needs_input_grad[6:]
        rest = ctx.saved_tensors[: len(needs)]
        # fresh leaves: hooks of the parameters themselves run once, in the outer backward, not here
        # as well
        leaves = [
            t if t is None else t.detach().requires_grad_(n)
            for t, n in zip(rest, needs, strict=True)
        ]
        d_rest = [None] * len(rest)
        owned = ctx.head is not None
        if owned:
            streams, d_streams = _through_head(ctx, leaves, needs, d_rest, *d_out)
        else:
            streams, d_streams = list(ctx.saved_tensors[len(needs) :]), list(d_out)
        mine, d_mine = [owned, owned], [owned, owned]  # which may be changed in place
        for k, step in reversed(list(enumerate(ctx.steps))):
            target, source = k % 2, 1 - k % 2
            if step.in_place:
                streams[target] = streams[target] if mine[target] else streams[target].clone()
                d_streams[source] = (
                    d_streams[source] if d_mine[source] else d_streams[source].clone()
                )
                d_used = _undo(step, streams, d_streams, target, leaves, ctx.n_extras, needs)
            else:
                used = [i for i in (*range(ctx.n_extras), *step.names.values()) if needs[i]]
                out, d_x, d_used = _recompute(
                    step, streams[source], leaves, rest, used, ctx.n_extras, d_streams[target]
                )
                streams[target] = _add(streams[target], out, sign=-1)
                if d_x is not None:
                    d_streams[source] = d_streams[source] + d_x
                del out, d_x  # not alive while the next half is recomputed
            mine[target] = d_mine[source] = True
            _accumulate(d_rest, d_used)
            del d_used
        return None, None, None, None, *d_streams, *d_rest


def _in_place(half, extras):
    return hasattr(half, "in_place") and half.in_place(*extras)


def _accumulate(totals, found):
    for i, d in found:
        totals[i] = d if totals[i] is None else totals[i] + d


def _undo(step, streams, d_streams, target, leaves, n_extras, needs):
    """One half taken away from stream ``target`` in place; (index, gradient) pairs of its
    parameters.
    """
    params = {name: leaves[i] for name, i in step.names.items()}
    source = 1 - target
    with step.replay.context():
        grads = step.half.subtract_(
            streams[target],
            d_streams[target],
            streams[source],
            d_streams[source],
            params,
            *leaves[:n_extras],
            memo=step.memo,
        )
    return [(step.names[name], d) for name, d in grads.items() if needs[step.names[name]]]


def _through_head(ctx, leaves, needs, d_rest, d_value):
    """The streams and their gradients, both ours to change; the head's own gradients go into
    ``d_rest``.
    """
    if ctx.streams is None:
        raise RuntimeError(
            "backward of reversible_loss runs once: compute the loss again instead of retain_graph=True"
        )
    streams, ctx.streams = ctx.streams, None
    ends = [s.detach().requires_grad_() for s in streams]
    with torch.enable_grad(), ctx.head_replay.context():
        value = ctx.head(*ends, *(leaves[i] for i in ctx.head_tensors))
    used = [i for i in ctx.head_tensors if needs[i]]
    d1, d2, *grads = torch.autograd.grad(
        value, [*ends, *(leaves[i] for i in used)], d_value, allow_unused=True
    )
    d_streams = [
        torch.zeros_like(s) if d is None else d for s, d in zip(streams, (d1, d2), strict=True)
    ]
    _accumulate(d_rest, [(i, d) for i, d in zip(used, grads, strict=True) if d is not None])
    same = has_values(d_streams[0]) and d_streams[0].data_ptr() == d_streams[1].data_ptr()
    return streams, [d_streams[0], d_streams[1].clone() if same else d_streams[1]]


# Compiled separately, forward and recompute would draw different random numbers.
_apply = torch.compiler.disable(_ReversibleStack.apply)


def _recompute(step, x, leaves, rest, used, n_extras, d_out):
    """One half again, under the state of forward: its output, the gradient of ``x``, and (index,
    gradient) pairs.
    """
    x = x.detach().requires_grad_()
    with torch.enable_grad(), step.replay.context():
        params = {name: leaves[i] for name, i in step.names.items()}
        out = _run(step.half, x, leaves[:n_extras], step.memo, params)
    if not out.requires_grad:
        return out, None, []
    # a module may reach a parameter past its name, say through a list, which the swap does not
    # change: ask for both
    kept = [i for i in used if i >= n_extras and rest[i].requires_grad]
    sources = [x, *(leaves[i] for i in used), *(rest[i] for i in kept)]
    d_x, *grads = torch.autograd.grad(out, sources, d_out.to(out.dtype), allow_unused=True)
    return (
        out.detach(),
        d_x,
        [(i, d) for i, d in zip([*used, *kept], grads, strict=True) if d is not None],
    )


def _run(half, x, extras, memo, params=None):
    """``half(x, *extras)``, with ``params`` in place of its own parameters if given."""
    kwargs = {"memo": memo} if getattr(half, "keeps_memo", False) else {}
    out = (
        half(x, *extras, **kwargs)
        if params is None
        else functional_call(half, params, (x, *extras), kwargs)
    )
    if not isinstance(out, torch.Tensor) or out.shape != x.shape:
        got = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
        raise ValueError(
            f"blocks: {type(half).__name__} must return a tensor of its input's shape, {tuple(x.shape)}, got {got}"
        )
    return out


def _add(stream, out, sign=1):
    """``stream`` ± ``out`` in the wider of the two dtypes, returned in the stream's."""
    return (stream + out if sign == 1 else stream - out).to(stream.dtype)


def _halves(blocks):
    """All halves of all blocks, in the order in which they are applied."""
    if not isinstance(blocks, (list, tuple, nn.ModuleList)):
        raise TypeError(f"blocks must be a sequence of blocks, got {type(blocks).__name__}")
    if len(blocks) == 0:
        raise ValueError("blocks must hold at least one block, got none")
    return [half for block in blocks for half in _block_halves(block)]


def _block_halves(block):
    if isinstance(block, ReversibleBlock):
        return block.layers
    if isinstance(block, (list, tuple, nn.ModuleList)):
        halves = block
    elif isinstance(block, nn.Module) and hasattr(block, "f") and hasattr(block, "g"):
        halves = (block.f, block.g)
    else:
        raise TypeError(
            "blocks must hold ReversibleBlock, sequences of modules such as (f, g), or modules with f and g, "
            f"got {type(block).__name__}"
        )
    if len(halves) == 0:
        raise ValueError("blocks: each block must hold at least one half, got an empty one")
    for half in halves:
        if not isinstance(half, nn.Module):
            raise TypeError(
                f"blocks: each half must be an nn.Module, got {shown(half)} ({type(half).__name__})"
            )
    return halves


def _check_extras(extras):
    for extra in extras:
        if extra is not None and not isinstance(extra, torch.Tensor):
            raise TypeError(
                f"extras must be tensors or None, got {shown(extra)} ({type(extra).__name__})"
            )


def _check_head(head, head_tensors):
    if not callable(head):
        raise TypeError(
            f"head must be a function of two streams and the head_tensors, got {shown(head)}"
        )
    if not isinstance(head_tensors, (list, tuple)):
        raise TypeError(f"head_tensors must be a list or tuple, got {type(head_tensors).__name__}")
    for tensor in head_tensors:
        if tensor is not None:
            require_tensor("each of head_tensors", tensor)


def _check_streams(first, second):
    """TypeError or ValueError unless both (name, tensor) are float tensors of one shape, dtype and
    device.
    """
    for name, value in (first, second):
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
        if not value.is_floating_point():
            raise TypeError(f"{name} must have a floating-point dtype, got {value.dtype}")
        require_floating(name, value)
    (name1, a), (name2, b) = first, second
    for what in ("shape", "dtype", "device"):
        if getattr(a, what) != getattr(b, what):
            got = f"{getattr(a, what)} and {getattr(b, what)}"
            raise ValueError(f"{name1} and {name2} must have the same {what}, got {got}")
