"""Feed-forward and loss in slices: ways to train through them, counted, and the explorer of slice
sizes.
"""

from functools import partial

import torch
from reformer_ref._arguments import clear_errors, require_int
from reformer_ref.feed_forward.pytorch import cross_entropy, feed_forward, sliced, total_nats
from reformer_ref.memory.count import MetaCounter

from reformer_lab.plots.drawing import controls
from reformer_lab.plots.feed_forward import slices_and_peaks

MOST = 1 << 20  # positions
WHOLE, FORWARD_ONLY, BOTH = "whole", "sliced in forward only", "sliced in forward and backward"


@clear_errors
def slice_sizes(length, slice_length):
    """The number of positions in each slice, as ``sliced`` hands them to the function that it is
    given.
    """
    sizes, length = [], require_int("length", length, 1, MOST)
    sliced(lambda piece: sizes.append(piece.shape[-2]) or piece, torch.empty(length, 1), (), slice_length)
    return sizes


@clear_errors
def feed_forward_ways(length, slice_length, d_model=64, d_ff=256, device="cpu"):
    """Three ways through one feed-forward layer and back: {name: function without arguments, for
    ``count_peak``}.

    Each returns the gradients of x (length, d_model) and of the four weights, float32.
    """
    length, slice_length = (require_int("length", length, 1, MOST), require_int("slice_length", slice_length, 1, MOST))
    tensors = x, *weights = _draw(device, (length, d_model), (d_model, d_ff), (d_ff,), (d_ff, d_model), (d_model,))

    def piece_by_piece():
        return torch.cat([feed_forward(piece, *weights) for piece in x.split(slice_length)])

    return _there_and_back(
        tensors,
        whole=partial(feed_forward, *tensors),
        forward_only=piece_by_piece,
        both=partial(feed_forward, *tensors, slice_length=slice_length),
    )


@clear_errors
def loss_ways(length, slice_length, d_model=64, vocabulary=8192, device="cpu"):
    """The same three ways for the cross-entropy over a vocabulary: hidden (length, d_model),
    weight, bias, float32.
    """
    length, slice_length = (require_int("length", length, 1, MOST), require_int("slice_length", slice_length, 1, MOST))
    tensors = hidden, weight, bias = _draw(device, (length, d_model), (d_model, vocabulary), (vocabulary,))
    targets = torch.arange(length, device=device) % vocabulary

    def piece_by_piece():
        pieces = zip(hidden.split(slice_length), targets.split(slice_length), strict=True)
        return sum(total_nats(h, t, weight, bias) for h, t in pieces) / length

    return _there_and_back(
        tensors,
        whole=partial(cross_entropy, *tensors, targets),
        forward_only=piece_by_piece,
        both=partial(cross_entropy, *tensors, targets, slice_length),
    )


@clear_errors
def count_without_data(ways):
    """{name: peak in bytes} of ``ways("meta")``: counted like ``count_peak``, on tensors that have
    shapes only.
    """
    peaks = {}
    with MetaCounter() as counter:
        for name, run in ways("meta").items():
            counter.forget_peak()
            before = counter.live
            run()
            peaks[name] = counter.peak - before
    return peaks


@controls(
    length=(200, 2000, 100),
    chunk_length=[32, 64, 128, 256, 512, 1024],
    d_ff=[64, 256, 1024],
)
def feed_forward_chunks(length=1000, chunk_length=128, d_ff=1024):
    """The layout of the chunks, and the counted peaks of three ways to train the layer."""
    peaks = count_without_data(lambda device: feed_forward_ways(length, slice_length, d_ff=d_ff, device=device))
    return slices_and_peaks(slice_sizes(length, slice_length), d_ff, peaks, array_bytes=4 * length * d_ff)


def _draw(device, *shapes):
    generator = torch.Generator().manual_seed(0) if device == "cpu" else None
    return [torch.randn(s, generator=generator, device=device).mul_(s[0] ** -0.5).requires_grad_() for s in shapes]


def _there_and_back(tensors, whole, forward_only, both):
    """{name: forward and backward in one function}."""

    def run(forward):
        out = forward()
        return torch.autograd.grad(out, tensors, torch.ones_like(out))

    return {name: partial(run, f) for name, f in ((WHOLE, whole), (FORWARD_ONLY, forward_only), (BOTH, both))}
