"""Pictures of memory and speed: they show what they are given, and say so; the explorer shows what
is predicted.
"""

import json
from itertools import product

import numpy as np
import pytest
from reformer_lab.planner import format_bytes
from reformer_lab.plots import measured as plots
from reformer_lab.plots.drawing import Picture
from reformer_lab.widgets import memory as explorer
from reformer_ref.memory.predict import CATEGORIES, predict_peak
from tests.pictures import ends

MACHINE = {"cpu": "A processor", "cores": 2, "threads": 1, "memory_bytes": 8, "system": "Linux x86_64"}
HEAD = {
    "command": "reformer-ref bench a --out reformer_lab/records/x.json",
    "date": "2026-01-02T03:04",
    "machine": MACHINE,
}


def bench(lengths=(1024, 2048), rounds=(4,), contenders=("ours-trax", "dense", "matmul"), n_layers=0):
    def result(name, n, h):
        if name == "dense" and n > 1024:
            return {"contender": name, "status": "skipped", "detail": "too long"}
        seconds = n * h * {"ours-trax": 2, "matmul": 1}.get(name, 3)
        return {"contender": name, "status": "ok", "median": float(seconds), "above_start_bytes": n * 2**20}

    points = [
        {"length": n, "n_hashes": h, "n_layers": n_layers, "flops": 1e9 * n * h,
         "results": [result(name, n, h) for name in contenders]}
        for n, h in product(lengths, rounds)
    ]  # fmt: skip
    return {**HEAD, "points": points}


def million(length, seconds):
    parts = {"forward, lsh attention": seconds / 2, "backward, feed-forward": seconds / 4, "optimiser": seconds / 4}
    steps = [{"seconds": seconds, "parts": parts}]
    return {**HEAD, "text": {"used_bytes": length}, "steps": steps, "peak_rss_bytes": 3 * 2**30}


def described(picture, **expected):
    """A picture that can be drawn, whose caption is a sentence and whose numbers hold what is
    expected.
    """
    assert isinstance(picture, Picture)
    assert len(picture.caption) > 60
    assert expected.items() <= picture.numbers.items()
    assert picture.png(dpi=40).startswith(b"\x89PNG")
    return picture


def test_a_record_says_where_it_comes_from():
    text = plots.source(HEAD, HEAD)
    assert text.count("“reformer-ref bench a”") == 1
    assert "A processor, 2 cores, 1 thread, Linux x86_64; 2026-01-02." in text
    assert "figures" not in text
    with pytest.raises(ValueError, match="records must be at least one"):
        plots.source()
    with pytest.raises(ValueError, match="name must be a record in reformer_lab/records, got 'no_such'"):
        plots.read("no_such")


def test_who_did_not_finish_is_not_shown():
    medians = plots.medians([bench(lengths=(2048,)), bench(lengths=(1024,))], n_hashes=4)
    assert [list(map(float, x)) for x in medians["ours-trax"]] == [[1024, 2048], [8192, 16384]]
    assert medians["dense"][0].tolist() == [1024]
    assert plots.medians([bench()], n_hashes=1) == {}


def test_attention_by_length_and_share():
    numbers = {
        "reformer_ref, trax at 2,048 tokens": "16,400 s, 2,050 MiB",
        "dense at 1,024 tokens": "12,300 s, 1,020 MiB",
    }
    described(plots.attention_by_length([bench()]), **numbers)
    described(
        plots.matmul_rate([bench()]),
        **{"reformer_ref, trax at 2,048 tokens": "50 %", "matrix products alone": "1 GFLOP/s"},
    )
    with pytest.raises(ValueError, match="records must hold the contender matmul"):
        plots.matmul_rate([bench(contenders=("ours-trax",))])


def test_rounds_and_crossover():
    described(plots.attention_by_rounds(bench((1024,), (1, 2, 8))), **{"reformer_ref, trax, 8 rounds": "16,400 s"})
    record = bench((512, 1024), (1, 4), ("ours-trax", "dense"))
    first = "1 round: first length where LSH is faster"
    described(plots.crossover(record), **{first: 512, "4 rounds: times as fast at 1,024 tokens": 1.5})
    for point in record["points"]:
        point["results"][0]["median"] *= 10
    described(plots.crossover(record), **{first: "none measured"})


def test_steps():
    record = bench((4096,), (2,), ("ours", "huggingface"), n_layers=6)
    described(plots.training_step([record]), **{"reformer_ref, 4,096 tokens": "24,600 s, 4 GiB"})
    pair = [million(2000, 2.0), million(1000, 0.5)]
    described(
        plots.million_steps(pair),
        **{"1,000 tokens": "500 µs per token, 3 GiB", "2,000 tokens": "1,000 µs per token, 3 GiB"},
    )


def test_attention_on_a_gpu_with_and_without_a_measurement():
    prediction = plots.read("roofline")
    picture = described(
        plots.attention_on_gpu(prediction), **{"16,384 tokens, predicted": "5.2 to 8.1 × as fast as dense"}
    )
    assert "No time was measured" in picture.caption
    entries = [
        {"name": "triton, 16384 tokens, bfloat16", "status": "ok", "median_seconds": 0.002},
        {"name": "dense, 16384 tokens, bfloat16", "status": "out of memory"},
    ]
    measurement = {**bench(), "entries": entries, "gpu": {"name": "NVIDIA H200"}}
    numbers = {"triton, 16,384 tokens, measured": "2 ms"}
    picture = described(plots.attention_on_gpu(prediction, measurement), **numbers)
    assert "Measured on NVIDIA H200" in picture.caption
    assert not any(name.startswith("dense") for name in picture.numbers)


def test_a_record_that_is_not_there_is_none():
    assert plots.recorded("nothing") is None
    assert plots.recorded("roofline") == plots.read("roofline")


def test_every_record_at_hand_can_be_drawn():
    draw = {
        "bench_attention": lambda r: [plots.attention_by_length([r]), plots.matmul_rate([r])],
        "bench_crossover": lambda r: [plots.crossover(r)],
        "bench_step": lambda r: [plots.training_step([r])],
    }
    for name in draw:
        for picture in draw[name](plots.read(name)):
            assert "reformer-ref bench" in described(picture).caption


@pytest.mark.parametrize("budget", [None, 10**9, 10**15])
def test_memory_bars(budget):
    rows = {"one": dict.fromkeys(CATEGORIES, 10**8), "two": {**dict.fromkeys(CATEGORIES, 0), "streams": 512}}
    picture = described(plots.memory_bars(rows, budget), one="500 MB", two="512 B")
    assert ("far to the right" in picture.axes[0].get_title(loc="left")) == (budget == 10**15)
    for bad in ({}, {"one": {"streams": 1}}):
        with pytest.raises(ValueError, match="rows must map names to bytes"):
            plots.memory_bars(bad)


def test_lines_and_exponents():
    x, ways = np.array([1, 2, 4]), {"square": 5e6 * np.array([1, 4, 16]), "flat": [7, 7, 7]}
    described(plots.memory_lines(x, ways, "tokens", budget=10**9), **{"square, 4 tokens": "80.0 MB, exponent 2.00"})
    described(plots.memory_lines(x, ways, "layers", log=False), **{"flat, 4 layers": "7 B"})
    assert plots.exponent([3, 6, 12], [2, 16, 128]) == pytest.approx(3)
    for bad in (([1], [1]), ([1, 2], [1, 2, 3]), ([1, 2], [0, 1]), ([[1, 2]], [[1, 2]])):
        with pytest.raises(ValueError, match="x and y must be"):
            plots.exponent(*bad)
    described(plots.memory_over_time({"a": [0, 3e6, 1e6], "b": [2e6]}), **{"peak, a": "3.00 MB", "peak, b": "2.00 MB"})
    with pytest.raises(ValueError, match="lines must map names to rows"):
        plots.memory_over_time({"a": []})


# The explorer


def test_both_ends_of_every_slider():
    for name in explorer.memory.controls:
        for end in ends(explorer.memory, name):
            picture = described(explorer.memory(**{name: end}))
            assert "predicted" in picture.caption
    chosen = explorer.memory(length=4096, layers=2, heads=8, rounds=1, reversible=False)
    total = sum(explorer.peak_parts(4096, 2, 8, 1, False).values())
    assert chosen.numbers["together"] == format_bytes(total)
    assert chosen.numbers["as chosen fits"] == (total <= explorer.BUDGET)
    with pytest.raises(ValueError, match="rounds must be one of 1, 2, 4, got 3"):
        explorer.memory(rounds=3)


@pytest.mark.parametrize(
    "point",
    [(4096, 2, 4, 2, True), (4096, 8, 2, 4, True), (8192, 6, 1, 1, False), (16384, 4, 8, 2, True)],
    ids=["predicted", "deeper", "not reversible", "longer"],
)
def test_the_explorer_shows_what_is_predicted(point):
    peak = predict_peak(explorer.config_of(*point), point[0])
    rows = explorer.peak_parts(*point)
    assert sum(rows.values()) == pytest.approx(peak.peak_bytes, rel=0.01)
    assert rows["parameters"] == pytest.approx(dict(peak.breakdown)["parameters"], rel=0.01)


def test_lengths_beyond_the_predicted_lie_on_a_line():
    a, b, c = (sum(explorer.peak_parts(n, 6, 4, 2, True).values()) for n in (2**18, 2**19, 2**20))
    assert c - b == pytest.approx(2 * (b - a), rel=1e-6)
    for bad in ((5000, 6, 4, 2, True), (4096, 6, 3, 2, True), (4096, 1, 4, 2, True)):
        with pytest.raises(ValueError, match="must be"):
            explorer.peak_parts(*bad)


def test_points_are_written_as_they_are_read(tmp_path):
    explorer.write_points(tmp_path / "points.json", lengths=(4096,), heads=(4,), rounds=(2,))
    written = json.loads((tmp_path / "points.json").read_text())
    assert [entry["reversible"] for entry in written["points"]] == [True, False]
    stored = json.loads(explorer.POINTS.read_text())
    assert (stored["parts"], stored["layers"]) == (written["parts"], written["layers"])
    same = next(e for e in stored["points"] if (e["heads"], e["rounds"], e["reversible"]) == (4, 2, True))
    np.testing.assert_allclose(written["points"][0]["bytes"][0], same["bytes"][0], rtol=0.01)


@pytest.mark.parametrize("steps", [0, 2**62, 1.5])
def test_so_many_steps_are_refused(steps):
    with pytest.raises((TypeError, ValueError), match="steps must be"):
        explorer.train_steps(explorer.config_of(64, 2, 1, 1, True), 64, steps)
