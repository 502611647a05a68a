"""Pictures of chunks hold the numbers they were given; the explorer counts what ``count_peak`` counts."""

from functools import partial

import numpy as np
import pytest
import torch
from reformer_lab.plots import feed_forward as plots
from reformer_lab.plots.drawing import Picture
from reformer_lab.widgets.feed_forward import chunk_sizes, count_without_data, feed_forward_ways, loss_ways
from reformer_ref.feed_forward.api import feed_forward
from reformer_ref.memory import count_peak
from torch.utils._python_dispatch import TorchDispatchMode

COUNTED = {"whole": 48_000_000, "chunked": 3_000_000}


def numbers_of(picture):
    assert isinstance(picture, Picture)
    assert len(picture.caption) > 40
    assert picture.png(dpi=30).startswith(b"\x89PNG")
    return picture.numbers


@pytest.mark.parametrize("sizes", [[1], [3, 3, 1], [5] * 100])
def test_layout(sizes):
    numbers = numbers_of(plots.chunk_layout(sizes, 16, current=len(sizes) - 1))
    assert numbers["positions"] == sum(sizes)
    assert numbers["chunks"] == len(sizes)
    assert numbers["numbers in memory"] == 16 * sizes[-1]
    both = numbers_of(plots.chunks_and_peaks(sizes, 16, COUNTED, 10_000_000))
    assert both["numbers in memory"] == 16 * sizes[0]
    assert both["chunked (MB)"] == 3


def test_peaks():
    numbers = numbers_of(plots.peak_bars(COUNTED, 16_000_000, "the wide array"))
    assert numbers == {"whole (MB)": 48, "chunked (MB)": 3, "the wide array (MB)": 16}
    numbers = numbers_of(plots.peak_by_chunk_length([8, 64], [1_000_000, 4_000_000], 9_000_000))
    assert numbers == {"chunks of 8 (MB)": 1, "chunks of 64 (MB)": 4, "whole (MB)": 9}


def test_means_of_chunks():
    numbers = numbers_of(plots.chunk_means([1, 1, 1, 5], [3, 1]))
    assert (numbers["mean"], numbers["mean of chunk means"]) == (2, 3)
    assert numbers["too large by a factor"] == 1.5
    numbers = numbers_of(plots.chunk_means(np.full(6, 0.5), [2, 2, 2]))
    assert numbers["mean"] == numbers["mean of chunk means"] == 0.5


@pytest.mark.parametrize(
    ("draw", "name"),
    [
        (lambda: plots.chunk_layout([], 4), "sizes"),
        (lambda: plots.chunk_layout([2, 0], 4), "sizes"),
        (lambda: plots.chunk_layout([2.5], 4), "sizes"),
        (lambda: plots.chunk_layout([2], 0), "width"),
        (lambda: plots.chunk_layout([2, 2], 4, current=2), "current"),
        (lambda: plots.peak_bars({}, 4, "a"), "counted"),
        (lambda: plots.peak_bars({"a": 3}, -4, "a"), "array_bytes"),
        (lambda: plots.chunks_and_peaks([2], 4, {"a": float("nan")}, 4), "counted"),
        (lambda: plots.peak_by_chunk_length([1, 2], [3], 4), "counted"),
        (lambda: plots.peak_by_chunk_length([1], [3], 0), "whole"),
        (lambda: plots.chunk_means([1, 2, 3], [2, 2]), "nats"),
    ],
)
def test_bad_input_is_named(draw, name):
    with pytest.raises(ValueError, match=f"^{name} must"):
        draw()


@pytest.mark.parametrize("ways", [feed_forward_ways, partial(loss_ways, vocabulary=300)])
def test_counting_without_data_is_count_peak(ways):
    without = count_without_data(lambda device: ways(500, 64, device=device))
    assert without == {name: count_peak(run).above_start_bytes for name, run in ways(500, 64).items()}
    whole, forward_only, both = without.values()
    assert both < forward_only < whole


@pytest.mark.parametrize("ways", [feed_forward_ways, partial(loss_ways, vocabulary=30)])
def test_the_three_ways_give_the_same_gradients(ways):
    whole, *others = (run() for run in ways(50, 8).values())
    for grads in others:
        for a, b in zip(grads, whole, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * float(b.abs().max()))


@pytest.mark.parametrize("ways", [feed_forward_ways, partial(loss_ways, vocabulary=30)])
def test_integers_of_numpy_are_integers(ways):
    for run in ways(np.uint8(50), np.uint8(8)).values():
        assert run()


class Activations(TorchDispatchMode):
    """Notes the number of positions in each ReLU."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.relu.default:
            self.sizes.append(args[0].shape[-2])
        return func(*args, **(kwargs or {}))


def test_chunks_are_those_of_the_package():
    assert chunk_sizes(10, 4) == chunk_sizes(np.uint8(10), np.uint8(4)) == [4, 4, 2]
    assert chunk_sizes(3, 100) == [3]
    weights = torch.zeros(8, 16), torch.zeros(16), torch.zeros(16, 8), torch.zeros(8)
    with torch.no_grad(), Activations() as noted:
        feed_forward(torch.zeros(10, 8), *weights, "relu", 4)
    assert noted.sizes == chunk_sizes(10, 4)
