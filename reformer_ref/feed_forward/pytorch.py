"""Layer norm, feed-forward and cross-entropy in PyTorch, in slices of positions that save memory in
training too.

Slices save memory in training only if the backward pass is sliced as well: ``sliced`` keeps nothing
but its inputs and later recomputes and differentiates one slice at a time.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from reformer_ref._arguments import (
    require_bool,
    require_choice,
    require_float,
    require_int,
    require_room,
    require_shape,
)
from reformer_ref._blocks import block_starts
from reformer_ref._replay import Replay
from reformer_ref._tensors import (
    has_values,
    require_floating,
    require_generator,
    require_integers,
    require_same_kind,
    require_tensor,
)

IGNORED = -100  # a target with this value takes no part in the loss
SMALLEST_EPS = (
    1e-30  # of a layer norm; less is zero in float32, which a row of equal numbers is divided by
)
ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu}


def layer_norm(x, scale, bias, eps=1e-5):
    """scale · (x - mean) / √(variance + eps) + bias, over the last axis (Ba et al. 2016,
    arXiv:1607.06450).

    x (…, d), scale (d), bias (d) -> (…, d). ValueError on other shapes, TypeError if not floating
    point.
    """
    _require_same("x", x, {}, scale=scale, bias=bias)
    eps = require_float("eps", eps, minimum=0.0)
    _require_positions("x", x, at_least=1)
    for name, tensor in (("scale", scale), ("bias", bias)):
        require_shape(name, tensor, x.shape[-1:], "(d)")
    if eps < SMALLEST_EPS and has_values(x) and not bool(x.var(-1, correction=0).all()):
        raise ValueError(
            "eps must be above 0 (and above 1e-30 in float32) where a row of x holds equal numbers"
        )
    return F.layer_norm(x, x.shape[-1:], scale, bias, eps)


def feed_forward(x, w1, b1, w2, b2, activation="relu", slice_length=None, dropout=0.0):
    """activation(x w1 + b1) w2 + b2 at every position, ``slice_length`` positions at a time.

    Vaswani et al. 2017, equation 2. x (…, L, d_model), w1 (d_model, d_ff), b1 (d_ff), w2 (d_ff,
    d_model), b2 (d_model) -> (…, L, d_model). A bias may be None; activation is "relu" or "gelu"
    (the exact one); slice_length ≥ 1 need not divide L, None means all at once, with ordinary
    autograd. A ``dropout`` above 0 is applied to the hidden activations (pass 0 in evaluation).
    ValueError on other shapes or an empty sequence, TypeError on mixed dtypes outside autocast.
    """
    require_choice("activation", activation, tuple(ACTIVATIONS))
    dropout = require_float("dropout", dropout, minimum=0.0, below=1.0)
    _require_same("x", x, {"b1": b1, "b2": b2}, w1=w1, w2=w2)
    _require_positions("x", x, at_least=2)
    d_model, d_ff = x.shape[-1], w1.shape[-1] if w1.ndim else 0
    require_shape("w1", w1, (d_model, d_ff), "(d_model, d_ff)")
    require_shape("w2", w2, (d_ff, d_model), "(d_ff, d_model)")
    if b1 is not None:
        require_shape("b1", b1, (d_ff,), "(d_ff)")
    if b2 is not None:
        require_shape("b2", b2, (d_model,), "(d_model)")
    fn = partial(_feed_forward, activation=activation, dropout=dropout)
    return sliced(fn, x, (w1, b1, w2, b2), slice_length, rng=dropout > 0)


def cross_entropy(hidden, weight, bias, targets, slice_length=None):
    """Mean over the counted positions of log Σ_v exp(z_v) - z_target in nats, with logits z =
    hidden · weight + bias.

    hidden (…, d), weight (d, V), bias (V) or None, targets (…) integers in [0, V), or IGNORED =
    -100 where a position does not count -> scalar, in float32 for half-precision inputs. The (N, V)
    logits exist for ``slice_length`` positions at a time, in forward and in backward. ValueError on
    other shapes, targets out of range, or when no position counts (looking at the targets waits for
    the device once); TypeError on other dtypes.
    """
    _require_same("hidden", hidden, {"bias": bias}, weight=weight)
    _require_positions("hidden", hidden, at_least=1)
    vocabulary = weight.shape[-1] if weight.ndim else 0
    require_shape("weight", weight, (hidden.shape[-1], vocabulary), "(d, V)")
    if bias is not None:
        require_shape("bias", bias, (vocabulary,), "(V)")
    targets = require_targets(targets, hidden.shape[:-1], vocabulary, hidden.device).reshape(
        -1
    )  # (N)
    hidden = hidden.reshape(-1, hidden.shape[-1])  # (N, d)
    total = sliced(
        total_nats, (hidden, targets), (weight, bias), slice_length, dim=0, total=True, rng=False
    )
    return total / (targets != IGNORED).sum()


def _feed_forward(x, w1, b1, w2, b2, activation, dropout):
    hidden = ACTIVATIONS[activation](F.linear(x, w1.t(), b1))  # (…, slice, d_ff)
    if dropout:
        hidden = F.dropout(hidden, dropout)
    return F.linear(hidden, w2.t(), b2)  # (…, slice, d_model)


def total_nats(hidden, targets, weight, bias):
    """Sum of the cross-entropy over positions, unchecked and unsliced: hidden (…, d), targets int64
    (…) -> scalar.
    """
    logits = F.linear(hidden, weight.t(), bias).flatten(0, -2)  # (slice, V)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED, reduction="sum")


def sliced(fn, x, params=(), slice_length=None, dim=-2, total=False, rng=True):
    """``fn(x, *params)`` computed slice by slice of positions, in forward and in backward.

    fn must treat every position alike and by itself. x is a tensor, or a tuple of tensors (fn then
    takes as many) that are all cut along ``dim``; params are tensors or None, passed whole. The
    result is put together along ``dim``, or added up if ``total`` (fn then returns a sum over its
    positions). slice_length=None: one piece, ordinary autograd.

    With a slice length, x and params are all that is saved for backward; each slice is then
    recomputed, under the autocast and random-number state of forward (``rng=False`` skips the
    latter where fn draws nothing), and differentiated by itself. Gradients flow to x and params
    only, so fn must not reach other tensors that need one, and only once (no double backward).
    Under torch.compile the same is left to the compiler (checkpoint per slice). ValueError on an
    empty sequence or a slice length below 1.
    """
    xs, params = x if isinstance(x, tuple) else (x,), tuple(params)
    for t in (*xs, *(p for p in params if p is not None)):
        require_tensor("x and params", t)
    length = xs[0].shape[dim] if xs and all(-t.ndim <= dim < t.ndim for t in xs) else 0
    if length == 0 or any(t.shape[dim] != length for t in xs):
        shapes = ", ".join(str(tuple(t.shape)) for t in xs)
        raise ValueError(
            f"x must hold at least one position along dim {dim}, the same number everywhere, got {shapes}"
        )
    require_bool("total", total), require_bool("rng", rng)
    if slice_length is None:
        return fn(*xs, *params)
    step = require_int("slice_length", slice_length)
    cut = (dim, [(start, min(step, length - start)) for start in block_starts(length, step)], total)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (*xs, *params)):
        if not torch.compiler.is_compiling():
            return _Sliced.apply(fn, cut, rng, len(xs), *xs, *params)
        # An exported graph holds the plain loop. (PyTorch 2.6 cannot tell exporting from
        # compiling.)
        if not getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)():
            fn = partial(checkpoint, fn, use_reentrant=False)
    return _in_slices(fn, cut, xs, params)


def _in_slices(fn, cut, xs, params):
    """The forward loop: one slice after the other, written into (or added to) one result."""
    dim, slices, total = cut
    out = None
    for start, size in slices:
        piece = fn(*(x.narrow(dim, start, size) for x in xs), *params)
        if total:
            out = piece if out is None else out + piece
            continue
        if out is None:
            shape = list(piece.shape)
            shape[dim] = xs[0].shape[dim]
            out = piece.new_empty(shape)
        out.narrow(dim, start, size).copy_(piece)
    return out


class _Sliced(torch.autograd.Function):
    """Saves its inputs, returns the gradients of all of them."""

    @staticmethod
    def forward(ctx, fn, cut, rng, n_xs, *tensors):
        ctx.fn, ctx.cut, ctx.n_xs = fn, cut, n_xs
        ctx.replay = Replay(*tensors, rng=rng)
        ctx.save_for_backward(*tensors)
        with ctx.replay.uncached_autocast():
            return _in_slices(fn, cut, tensors[:n_xs], tensors[n_xs:])

    @staticmethod
    @once_differentiable
    def backward(ctx, d_out):
        dim, slices, total = ctx.cut
        needs = ctx.needs_input_grad[4:]
        tensors = [None if t is None else t.detach() for t in ctx.saved_tensors]
        xs, params = tensors[: ctx.n_xs], tensors[ctx.n_xs :]
        for param, need in zip(params, needs[ctx.n_xs :], strict=True):
            if need:
                param.requires_grad_()
        grads = [
            torch.zeros_like(t, dtype=t.dtype if i < ctx.n_xs else _sum_dtype(t)) if need else None
            for i, (t, need) in enumerate(zip(tensors, needs, strict=True))
        ]
        outside = Replay(
            d_out, rng=False
        )  # gradients are computed in the autocast state that backward was called in
        # Slices draw from one stream of random numbers, so replaying them in order from its start
        # is exact.
        with ctx.replay.context(), torch.enable_grad():
            for start, size in slices:
                pieces = [
                    x.narrow(dim, start, size).requires_grad_(n)
                    for x, n in zip(xs, needs, strict=False)
                ]
                out = ctx.fn(*pieces, *params)
                wanted = [i for i, need in enumerate(needs) if need]
                with outside.uncached_autocast():
                    d_piece = d_out if total else d_out.narrow(dim, start, size)
                    inputs = [(*pieces, *params)[i] for i in wanted]
                    found = torch.autograd.grad(out, inputs, d_piece, allow_unused=True)
                for i, grad in zip(wanted, found, strict=True):
                    if grad is not None:
                        target = grads[i].narrow(dim, start, size) if i < ctx.n_xs else grads[i]
                        target.add_(grad)
        grads = [None if g is None else g.to(t.dtype) for g, t in zip(grads, tensors, strict=True)]
        return None, None, None, None, *grads


class FeedForward(nn.Module):
    """Feed-forward layer w2(dropout(activation(w1 x))): parameters w1 (d_model, d_ff), b1, w2
    (d_ff, d_model), b2.

    ``slice_length`` positions are worked on at a time (None: all). Weights start normal with
    variance 1 / fan-in, drawn with ``generator`` (None: torch's global one); biases start at zero,
    and are None with ``bias=False``.
    """

    def __init__(
        self,
        d_model,
        d_ff,
        activation="relu",
        dropout=0.0,
        slice_length=None,
        bias=True,
        generator=None,
    ):
        super().__init__()
        self.d_model, self.d_ff = require_int("d_model", d_model), require_int("d_ff", d_ff)
        self.activation = require_choice("activation", activation, tuple(ACTIVATIONS))
        self.dropout = require_float("dropout", dropout, minimum=0.0, below=1.0)
        self.slice_length = (
            None if slice_length is None else require_int("slice_length", slice_length)
        )
        with_bias = require_bool("bias", bias)
        require_room(d_model=d_model, d_ff=d_ff)
        if generator is not None:
            require_generator("generator", generator)
        self.w1 = nn.Parameter(torch.randn(d_model, d_ff, generator=generator) * d_model**-0.5)
        self.b1 = nn.Parameter(torch.zeros(d_ff)) if with_bias else None
        self.w2 = nn.Parameter(torch.randn(d_ff, d_model, generator=generator) * d_ff**-0.5)
        self.b2 = nn.Parameter(torch.zeros(d_model)) if with_bias else None

    def forward(self, x):
        """x (…, L, d_model) -> (…, L, d_model)."""
        dropout = self.dropout if self.training else 0.0
        return feed_forward(
            x, self.w1, self.b1, self.w2, self.b2, self.activation, self.slice_length, dropout
        )

    def extra_repr(self):
        return (
            f"{self.d_model}, {self.d_ff}, activation={self.activation!r}, dropout={self.dropout}, "
            f"slice_length={self.slice_length}, bias={self.b1 is not None}"
        )


def _sum_dtype(tensor):
    """Sums over slices are kept in float32 at least."""
    return torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else tensor.dtype


def _require_same(first_name, first, optional, **others):
    """Floating-point tensors on one device and, outside autocast, of one dtype; None passes among
    ``optional``.
    """
    others |= {name: t for name, t in optional.items() if t is not None}
    for name, tensor in {first_name: first, **others}.items():
        require_floating(name, tensor)
    device = first.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    others = {name: t for name, t in others.items() if not autocast or t.device != first.device}
    require_same_kind(first_name, first, **others)


def _require_positions(name, tensor, at_least):
    if tensor.ndim < at_least or tensor.numel() == 0:
        shape = "(…, L, d_model)" if at_least == 2 else "(…, d)"
        raise ValueError(
            f"{name} must have shape {shape} and hold at least one position, got {tuple(tensor.shape)}"
        )


def require_targets(targets, shape, vocabulary, device):
    """``targets`` as int64 of ``shape``; their values are looked at where there are any:
    ValueError, TypeError.
    """
    targets = require_integers("targets", targets)
    if targets.device != device:
        raise ValueError(
            f"targets must be on the device of hidden ({device}), got {targets.device}"
        )
    require_shape("targets", targets, shape, "hidden without its last axis")
    if not has_values(targets):
        return targets
    outside = (targets != IGNORED) & ((targets < 0) | (targets >= vocabulary))
    wrong, highest = torch.stack([outside.sum(), targets.max()]).tolist()
    if wrong:
        low, high = (int(value) for value in targets.aminmax())
        raise ValueError(
            f"targets must be in [0, {vocabulary}) or {IGNORED}, got values from {low} to {high}"
        )
    if highest == IGNORED:
        raise ValueError(f"targets must hold at least one position that counts, got only {IGNORED}")
    return targets
