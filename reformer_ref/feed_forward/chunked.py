"""Feed-forward and cross-entropy in chunks of positions that save memory in training too.

Chunks save memory in training only if backward works chunk by chunk as well: ``chunked`` keeps
nothing but its inputs, and later recomputes and differentiates one chunk at a time.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from reformer_ref._blocks import block_starts
from reformer_ref._replay import Replay
from reformer_ref.feed_forward import pytorch as plain


def feed_forward(x, w1, b1, w2, b2, activation="relu", chunk_length=None, dropout=0.0):
    """``feed_forward.pytorch.feed_forward`` in the memory of one chunk."""
    fn = partial(plain.feed_forward, activation=activation, dropout=dropout)
    return chunked(fn, (x,), (w1, b1, w2, b2), chunk_length, rng=dropout > 0)


def cross_entropy(hidden, weight, bias, targets, chunk_length=None):
    """``feed_forward.pytorch.cross_entropy`` in the memory of one chunk."""

    def chunk_sum(hidden, targets, weight, bias):
        return plain.cross_entropy_sum(F.linear(hidden, weight.t(), bias), targets)

    hidden = hidden.reshape(-1, hidden.shape[-1])  # (N, d)
    targets = targets.reshape(-1)  # (N)
    loss_sum = chunked(
        chunk_sum, (hidden, targets), (weight, bias), chunk_length, dim=0, add=True, rng=False
    )
    return loss_sum / (targets != plain.IGNORED).sum()


def chunked(fn, xs, params=(), chunk_length=None, dim=-2, add=False, rng=True):
    """``fn(*xs, *params)`` computed chunk by chunk of positions, in forward and in backward.

    fn must treat every position alike and by itself. The tensors ``xs`` are cut along ``dim``;
    ``params``, tensors or None, are passed whole. The results are put together along ``dim``, or
    added up if ``add`` (fn then returns a sum over its positions). chunk_length=None: all at once,
    with ordinary autograd.

    With a chunk length, xs and params are all that is saved for backward. Each chunk is recomputed
    under the autocast and random-number state of forward (``rng=False`` skips the latter where fn
    draws nothing) and differentiated by itself. Gradients flow to xs and params only, and once.

    What this saves, counted for a layer of 64 · 256 · 64 at 16,384 tokens: 54.6 MB all at once,
    33.6 MB in chunks of 512 by ordinary autograd, 16.8 MB here. ``torch.utils.checkpoint`` of every
    chunk needs 16.8 MB as well; but it sums the gradients of the parameters in their own dtype,
    which loses a factor of 3.5 in bfloat16 with chunks of 7, where the sums here are float32.
    """
    if chunk_length is None:
        return fn(*xs, *params)
    tensors = [t for t in (*xs, *params) if t is not None]
    if not torch.is_grad_enabled() or not any(t.requires_grad for t in tensors):
        return _in_chunks(fn, xs, params, chunk_length, dim, add)
    if not torch.compiler.is_compiling():
        return _Chunked.apply(fn, chunk_length, dim, add, rng, len(xs), *xs, *params)
    # An exported graph holds the plain loop; a compiled one checkpoints every chunk. (PyTorch 2.6
    # cannot tell exporting from compiling.)
    if not getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)():
        fn = partial(checkpoint, fn, use_reentrant=False)
    return _in_chunks(fn, xs, params, chunk_length, dim, add)


def chunk_ranges(length, chunk_length):
    """The chunks of ``length`` positions as slices; the last may be shorter. None: a single one."""
    step = chunk_length or length
    return [slice(start, min(start + step, length)) for start in block_starts(length, step)]


def _cut(x, dim, chunk):
    return x.narrow(dim, chunk.start, chunk.stop - chunk.start)


def _in_chunks(fn, xs, params, chunk_length, dim, add):
    """One chunk after the other, written into (or added to) one result."""
    result = None
    for chunk in chunk_ranges(xs[0].shape[dim], chunk_length):
        out = fn(*[_cut(x, dim, chunk) for x in xs], *params)
        if add:
            result = out if result is None else result + out
            continue
        if result is None:
            shape = list(out.shape)
            shape[dim] = xs[0].shape[dim]
            result = out.new_empty(shape)
        _cut(result, dim, chunk).copy_(out)
    return result


class _Chunked(torch.autograd.Function):
    """Saves its inputs, returns the gradients of all of them."""

    @staticmethod
    def forward(ctx, fn, chunk_length, dim, add, rng, n_xs, *tensors):
        ctx.fn, ctx.dim, ctx.add, ctx.n_xs = fn, dim, add, n_xs
        ctx.chunks = chunk_ranges(tensors[0].shape[dim], chunk_length)
        ctx.replay = Replay(*tensors, rng=rng)
        ctx.save_for_backward(*tensors)
        with ctx.replay.uncached_autocast():
            return _in_chunks(fn, tensors[:n_xs], tensors[n_xs:], chunk_length, dim, add)

    @staticmethod
    def backward(ctx, d_out):
        if torch.is_grad_enabled():  # only with create_graph=True
            raise RuntimeError(
                "what is computed in chunks has no second derivative: for create_graph give no "
                "chunk lengths (chunk_length, ff_chunk, loss_chunk)"
            )
        dim, n_xs = ctx.dim, ctx.n_xs
        needs = ctx.needs_input_grad[6:]
        tensors = [None if t is None else t.detach() for t in ctx.saved_tensors]
        grads = [None] * len(tensors)
        for i, need in enumerate(needs):
            if need and i < n_xs:
                grads[i] = torch.zeros_like(tensors[i])
            elif need:  # a sum over chunks, kept in float32 at least
                tensors[i].requires_grad_()
                dtype = torch.promote_types(tensors[i].dtype, torch.float32)
                grads[i] = torch.zeros_like(tensors[i], dtype=dtype)
        # gradients are computed in the autocast state that backward was called in
        outside = Replay(d_out, rng=False)
        # all chunks draw from one stream of random numbers: replayed in order from its start
        with ctx.replay.restored(), torch.enable_grad():
            for chunk in ctx.chunks:
                # 1. compute the chunk again
                inputs = tensors.copy()
                for i in range(n_xs):
                    inputs[i] = _cut(tensors[i], dim, chunk).requires_grad_(needs[i])
                out = ctx.fn(*inputs)
                # 2. differentiate it
                d_chunk = d_out if ctx.add else _cut(d_out, dim, chunk)
                used = [i for i, need in enumerate(needs) if need]
                with outside.uncached_autocast():
                    d_used = torch.autograd.grad(
                        out, [inputs[i] for i in used], d_chunk, allow_unused=True
                    )
                # 3. write the gradients of its positions, add those of the parameters
                for i, d in zip(used, d_used, strict=True):
                    if d is not None:
                        (_cut(grads[i], dim, chunk) if i < n_xs else grads[i]).add_(d)
        for i, t in enumerate(tensors):
            grads[i] = None if grads[i] is None else grads[i].to(t.dtype)
        return None, None, None, None, None, None, *grads
