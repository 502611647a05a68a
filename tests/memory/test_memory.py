"""The three figures against each other: measured, counted, predicted; and what they say about the
model.
"""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reformer_ref._blocks import block_device, block_starts, predicting
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.memory import count_peak, measure, measure_peak, predict, predict_peak
from reformer_ref.memory.count import Counter
from reformer_ref.model.config import ReformerConfig
from reformer_ref.model.pytorch import ReformerLM

MB = 10**6


def small(**changes):
    values = {
        "vocab_size": 64, "d_model": 64, "n_layers": 2, "n_heads": 2, "d_ff": 128, "max_length": 4096,
        "ff_chunk": 512, "loss_chunk": 512, "lsh": LSHOptions(n_hashes=2),
    }  # fmt: skip
    return ReformerConfig(**{**values, **changes})


# measured


def take_and_let_go(size):
    def fn():
        torch.ones(size // 4)  # written to, so resident
        return torch.ones(1000)

    return fn


def test_measures_200_megabytes():
    peak = measure_peak(take_and_let_go(200 * MB), "cpu")
    assert peak.above_start_bytes == pytest.approx(200 * MB, rel=0.1)
    assert peak.kind.startswith("measured (process RSS")
    assert peak.result.shape == (1000,)
    assert peak.peak_bytes == peak.start_bytes + peak.above_start_bytes
    again = measure_peak(take_and_let_go(100 * MB), "cpu")  # a smaller one after a larger one
    assert "lower bound" in again.kind or again.above_start_bytes == pytest.approx(100 * MB, rel=0.1)


def test_without_a_mark_to_set_back_the_figure_is_a_lower_bound(monkeypatch):
    def no_status(name):
        raise OSError

    monkeypatch.setattr(measure, "_process_status", no_status)
    peak = measure_peak(lambda: None, "cpu")
    assert "lower bound" in peak.kind
    assert peak.start_bytes > 10 * MB
    grown = measure_peak(take_and_let_go(peak.start_bytes + 200 * MB), "cpu").above_start_bytes
    assert 190 * MB <= grown <= peak.start_bytes + 220 * MB
    monkeypatch.setitem(sys.modules, "resource", None)
    with pytest.raises(RuntimeError, match="count_peak does"):
        measure_peak(lambda: None, "cpu")


def test_cuda_figures_come_from_its_allocator(monkeypatch):
    class Allocator:
        now, most, resets = 5, 900, 0

    def reset(device):
        Allocator.resets, Allocator.most = 1, Allocator.now

    def fn():
        Allocator.now, Allocator.most = 6, 700
        return "done"

    for name, replacement in {
        "is_available": lambda: True,
        "synchronize": lambda device: None,
        "reset_peak_memory_stats": reset,
        "memory_allocated": lambda device: Allocator.now,
        "max_memory_allocated": lambda device: Allocator.most,
        "get_device_name": lambda device: "a card",
    }.items():
        monkeypatch.setattr(torch.cuda, name, replacement)
    peak = measure_peak(fn)
    assert (peak.start_bytes, peak.above_start_bytes, peak.result) == (5, 695, "done")
    assert peak.kind == "measured (CUDA allocator, a card)"
    assert Allocator.resets == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_cuda_is_said():
    with pytest.raises(RuntimeError, match="no CUDA device"):
        measure_peak(lambda: None, "cuda")
    assert measure_peak(lambda: None).kind.startswith("measured (process RSS")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_prediction_against_the_cuda_allocator():
    config = small(max_length=65536)
    model = ReformerLM(config).cuda()
    tokens = torch.zeros(1, 65536, dtype=torch.int64, device="cuda")
    measured = measure_peak(lambda: model.loss(tokens).backward(), "cuda")
    assert measured.peak_bytes == pytest.approx(predict_peak(config, 65536, optimizer=None).peak_bytes, rel=0.1)


# predicted against counted


def steps(config, length, training=True, optimizer="adam", dtype=torch.float32):
    """Two training steps from nothing: by the second the optimizer has its state."""
    model = ReformerLM(config).to(dtype).train(training)
    if not training:
        with torch.no_grad():
            return model.loss(torch.zeros(1, length, dtype=torch.int64))
    stepper = None
    if optimizer is not None:
        stepper = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[optimizer](model.parameters())
    for _ in range(2):
        model.zero_grad()
        model.loss(torch.zeros(1, length, dtype=torch.int64)).backward()
        if stepper is not None:
            stepper.step()
    return None


@pytest.mark.parametrize(
    ("changes", "run"),
    [
        ({}, {}),
        ({}, {"optimizer": "sgd"}),
        ({}, {"training": False}),
        ({"pattern": ("lsh",), "reversible": False}, {"optimizer": None}),
        ({"lsh": LSHOptions.preset("strict", n_hashes=2), "ff_chunk": None, "loss_chunk": None}, {}),
        ({"pattern": ("dense", "regular"), "dense_block": 1000, "positions": "none"}, {}),
        ({"pattern": ("lsh",), "lsh": LSHOptions.preset("trax")}, {"dtype": torch.bfloat16}),
    ],
    ids=["local and lsh", "sgd", "no training", "not reversible", "strict", "dense", "bfloat16"],
)
def test_predicted_is_what_is_counted(changes, run):
    config, length = small(**changes), 3000
    counted = count_peak(lambda: steps(config, length, **run), on="cpu").above_start_bytes
    predicted = predict_peak(config, length, "cpu", **run)
    assert predicted.peak_bytes == pytest.approx(counted, rel=0.01)
    assert predicted.peak_bytes == sum(n for _, n in predicted.breakdown)


def test_parts_are_what_they_are_called():
    config = small()
    parts = dict(
        predict_peak(config, 4096, "cpu").breakdown
    )  # on CUDA their peak is in backward, before all gradients exist
    model = ReformerLM(config)
    weights, buffers = (sum(t.numel() for t in ts) * 4 for ts in (model.parameters(), model.buffers()))
    assert weights + buffers <= parts["parameters"] < 1.2 * (weights + buffers)  # 1.2: whole blocks
    assert 2 * weights <= parts["optimizer"] < 2.4 * weights
    assert 0 < parts["gradients"] < 1.2 * weights
    assert parts["streams"] >= 4 * 4096 * 64 * 4  # two streams and their gradients
    assert not predict_peak(config, 4096, "cpu", training=False).breakdown[2][1]


def test_remembering_shapes_changes_nothing(monkeypatch):
    config = small(pattern=("local", "lsh", "dense", "regular"), n_layers=4, dense_block=700)
    fast = predict_peak(config, 2500)
    predict._predict.cache_clear()
    monkeypatch.setattr(predict, "MetaCounter", lambda: Counter("meta"))
    assert predict_peak(config, 2500).breakdown == fast.breakdown
    predict._predict.cache_clear()


def test_blocks_are_those_of_the_device_and_put_back(monkeypatch):
    monkeypatch.setenv("REFORMER_TRITON", "0")  # the kernels work without blocks
    predict._predict.cache_clear()
    small_blocks, large_blocks = (predict_peak(small(), 4000, device).peak_bytes for device in ("cpu", "cuda"))
    predict._predict.cache_clear()
    assert small_blocks < large_blocks
    assert block_device(torch.device("meta")) == "meta"
    assert list(block_starts(100, 10)) == list(range(0, 100, 10))


@pytest.mark.parametrize("reversible", [True, False])
@pytest.mark.parametrize("pattern", [("lsh",), ("local", "lsh")], ids=",".join)
def test_shortened_loops_change_nothing(pattern, reversible, monkeypatch):
    config = small(pattern=pattern, ff_chunk=256, loss_chunk=400, reversible=reversible)
    fast = [predict_peak(config, n, "cpu").breakdown for n in (4096, 3001)]
    predict._predict.cache_clear()
    monkeypatch.setattr(predict, "predicting", lambda device: predicting(device, shorten=False))
    assert [predict_peak(config, n, "cpu").breakdown for n in (4096, 3001)] == fast
    predict._predict.cache_clear()


def test_a_model_that_is_not_causal_and_lengths_beyond_the_longest():
    bidirectional = small(causal=False, lsh=None)
    assert predict_peak(bidirectional, 1000).peak_bytes > 0
    assert predict_peak(small(), 5000).result.max_length == 5000
    assert predict_peak(small(axial_shape=(64, 64), axial_dims=(16, 48)), 5000).result.axial_dims == (16, 48)
    three = small(axial_shape=(16, 16, 16), axial_dims=(16, 16, 32))
    assert predict_peak(three, 5000).result.max_length == 5000


@pytest.mark.parametrize(
    "changes",
    [
        {"pattern": ("lsh",)},
        {"pattern": ("lsh",), "reversible": False},
        {"n_layers": 9},
        {"n_layers": 9, "reversible": False},
        {"dropout": 0.1},
        {"d_model": 512, "n_heads": 8, "d_ff": 2048},
        {"pattern": ("dense",), "dense_block": 1000},
    ],
    ids=["lsh", "lsh, not reversible", "local and lsh", "not reversible", "dropout", "wide", "dense"],
)
@pytest.mark.parametrize("length", [2000, 20000])
def test_depth_is_extrapolated_within_one_percent(changes, length):
    config = small(**{"n_layers": 8, "max_length": length, **changes})
    for device in ("cpu", "cuda"):
        scaled, exact = (predict_peak(config, length, device, exact=exact) for exact in (False, True))
        assert "extrapolated" in scaled.kind
        assert "extrapolated" not in exact.kind
        assert scaled.peak_bytes == pytest.approx(exact.peak_bytes, rel=0.01)


# what the figures say about the model: linear in the length, flat in the depth


@pytest.mark.parametrize(
    ("pattern", "lengths"),
    [(("lsh",), (8192, 16384, 32768)), (("local", "lsh"), (8192, 16384, 32768)), (("lsh",), (65536, 98304, 131072))],
    ids=["lsh", "local and lsh", "long"],
)
def test_linear_in_the_length(pattern, lengths):
    """Up to some ten thousand tokens heads are worked on together, beyond that one at a time: a
    line each.
    """
    config = small(pattern=pattern, n_layers=len(pattern), max_length=lengths[-1], ff_chunk=2048, loss_chunk=2048)
    peaks = [predict_peak(config, n, "cpu").peak_bytes for n in lengths]
    slope = (peaks[-1] - peaks[0]) / (lengths[-1] - lengths[0])
    for length, peak in zip(lengths, peaks, strict=True):
        assert peak == pytest.approx(peaks[0] + slope * (length - lengths[0]), rel=0.02)


def test_linear_in_the_length_as_counted():
    config = small(n_layers=1, pattern=("lsh",), max_length=16384)
    peaks = [count_peak(lambda: steps(config, n), on="cpu").above_start_bytes for n in (4096, 8192, 12288)]  # noqa: B023
    assert peaks[1] == pytest.approx((peaks[0] + peaks[2]) / 2, rel=0.02)


@pytest.mark.parametrize("pattern", [("lsh",), ("local", "lsh")])
def test_flat_in_the_depth(pattern):
    """Beyond its parameters, their gradients and Adam's state, a layer leaves its buckets behind,
    and nothing else.
    """
    length, depths = 8192, (2, 4, 8)
    peaks = [predict_peak(small(pattern=pattern, n_layers=n, max_length=length), length, "cpu") for n in depths]
    buckets = length * 2 * 2 * 2  # heads, rounds, int16
    left = []
    for peak, depth in zip(peaks, depths, strict=True):
        parts = dict(peak.breakdown)
        layers = depth // len(pattern)
        left.append(parts["streams"] + parts["working set"] - layers * buckets)
    assert max(left) <= 1.01 * min(left)


# bad input


NOT_FUNCTIONS = st.one_of(st.none(), st.integers(), st.text(max_size=5), st.just(torch.ones(2)))


@given(NOT_FUNCTIONS)
def test_what_cannot_be_called(fn):
    for figure in (measure_peak, count_peak):
        with pytest.raises(TypeError, match="fn must be a function without arguments"):
            figure(fn)


@settings(max_examples=25)
@given(
    st.sampled_from(
        [
            ("length", st.one_of(st.integers(-5, 1), st.floats(), st.text(max_size=3), st.booleans())),
            ("batch", st.one_of(st.integers(-5, 0), st.floats(), st.booleans())),
            ("device", st.sampled_from(["cuda:9", "gpu", "meta", None, 3])),
            ("optimizer", st.sampled_from(["Adam", "rmsprop", 1, torch.optim.Adam])),
            ("dtype", st.sampled_from([torch.int64, "float32", None])),
            ("training", st.sampled_from([None, 1, "yes"])),
            ("exact", st.sampled_from([None, 1, "yes"])),
            ("config", st.sampled_from([None, {}, "ReformerConfig"])),
        ]
    ).flatmap(lambda pair: st.tuples(st.just(pair[0]), pair[1]))
)
def test_bad_input_to_a_prediction(pair):
    name, value = pair
    arguments = {"config": small(), "length": 1000, name: value}
    with pytest.raises((TypeError, ValueError), match=f"^{name} must be"):
        predict_peak(**arguments)


def test_bad_devices():
    with pytest.raises(ValueError, match="device must be one of 'cpu', 'cuda', got 'meta'"):
        measure_peak(lambda: None, "meta")


def test_a_prediction_allocates_nothing():
    """A hundred gigabytes, predicted in a process of its own that stays below two."""
    code = (
        "from reformer_ref.memory import *; from reformer_ref.model.config import ReformerConfig;"
        "c = ReformerConfig(n_layers=2, d_model=64, n_heads=1, pattern=('dense',));"
        "p = measure_peak(lambda: predict_peak(c, 1 << 18).peak_bytes, 'cpu'); print(p.result, p.peak_bytes)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    predicted, measured = map(int, done.stdout.split())
    assert predicted > 100e9
    assert measured < 2e9
