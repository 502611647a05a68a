"""Feed-forward layer and loss in chunks: three ways to train through them, counted, and the explorer."""

from functools import partial

import torch
import torch.nn.functional as F
from reformer_ref._arguments import clear_errors, require_int
from reformer_ref.feed_forward import cross_entropy, feed_forward
from reformer_ref.memory.count import MetaCounter

from reformer_lab.plots.drawing import controls
from reformer_lab.plots.feed_forward import chunks_and_peaks

MOST = 1 << 20  # positions
WHOLE, FORWARD_ONLY, BOTH = "whole", "chunked in forward only", "chunked in forward and backward"


@clear_errors
def chunk_sizes(length, chunk_length):
    """The number of positions in each chunk of ``chunk_length``."""
    length = require_int("length", length, 1, MOST)
    chunk_length = require_int("chunk_length", chunk_length, 1, MOST)
    return [min(chunk_length, length - start) for start in range(0, length, chunk_length)]


@clear_errors
def feed_forward_ways(length, chunk_length, d_model=64, d_ff=256, device="cpu"):
    """Three ways through one feed-forward layer and back: {name: function without arguments, for ``count_peak``}.

    Each returns the gradients of x (length, d_model) and of the four weights, float32.
    """
    length = require_int("length", length, 1, MOST)
    chunk_length = require_int("chunk_length", chunk_length, 1, MOST)
    tensors = x, *weights = _draw(device, (length, d_model), (d_model, d_ff), (d_ff,), (d_ff, d_model), (d_model,))

    def chunked_in_forward():
        return torch.cat([feed_forward(chunk, *weights) for chunk in x.split(chunk_length)])

    return _with_gradients(
        tensors,
        partial(feed_forward, *tensors),
        chunked_in_forward,
        partial(feed_forward, *tensors, "relu", chunk_length),
    )


@clear_errors
def loss_ways(length, chunk_length, d_model=64, vocabulary=8192, device="cpu"):
    """The same three ways for the cross-entropy over a vocabulary: hidden (length, d_model), weight, bias, float32."""
    length = require_int("length", length, 1, MOST)
    chunk_length = require_int("chunk_length", chunk_length, 1, MOST)
    tensors = hidden, weight, bias = _draw(device, (length, d_model), (d_model, vocabulary), (vocabulary,))
    targets = torch.arange(length, device=device) % vocabulary

    def chunked_in_forward():
        chunks = zip(hidden.split(chunk_length), targets.split(chunk_length), strict=True)
        return sum(F.cross_entropy(h @ weight + bias, t, reduction="sum") for h, t in chunks) / length

    return _with_gradients(
        tensors,
        partial(cross_entropy, *tensors, targets),
        chunked_in_forward,
        partial(cross_entropy, *tensors, targets, chunk_length),
    )


@clear_errors
def count_without_data(ways):
    """{name: peak in bytes} of ``ways("meta")``: counted like ``count_peak``, on tensors that have shapes only."""
    peaks = {}
    with MetaCounter() as counter:
        for name, step in ways("meta").items():
            counter.forget_peak()
            before = counter.live
            step()
            peaks[name] = counter.peak - before
    return peaks


@controls(length=(200, 2000, 100), chunk_length=[32, 64, 128, 256, 512, 1024], d_ff=[64, 256, 1024])
def feed_forward_chunks(length=1000, chunk_length=128, d_ff=1024):
    """The layout of the chunks, and the counted peaks of three ways to train the layer."""
    peaks = count_without_data(lambda device: feed_forward_ways(length, chunk_length, d_ff=d_ff, device=device))
    return chunks_and_peaks(chunk_sizes(length, chunk_length), d_ff, peaks, array_bytes=4 * length * d_ff)


def _draw(device, *shapes):
    generator = torch.Generator().manual_seed(0) if device == "cpu" else None
    return [torch.randn(s, generator=generator, device=device).mul_(s[0] ** -0.5).requires_grad_() for s in shapes]


def _with_gradients(tensors, *forward):
    """{name: forward and backward in one function}."""

    def step(forward):
        out = forward()
        return torch.autograd.grad(out, tensors, torch.ones_like(out))

    return {name: partial(step, f) for name, f in zip((WHOLE, FORWARD_ONLY, BOTH), forward, strict=True)}
