"""The benchmarks, at lengths where nothing is worth measuring: every case runs, records, and
survives failures.
"""

import json
import math
from dataclasses import asdict
from importlib.util import find_spec
from typing import get_args

import pytest
import torch
from reformer_lab import cli
from reformer_lab.benchmarks import cases, worker
from reformer_lab.benchmarks import command as bench
from reformer_lab.benchmarks import run as runner
from reformer_lab.benchmarks.contenders import (
    axial_shape,
    build,
    huggingface_model,
    lucidrains_model,
    our_model,
    predicted_bytes,
)
from reformer_lab.benchmarks.run import measure, ratios, table
from reformer_ref.memory import count_peak

SETTINGS = {"device": "cpu", "threads": 1, "repeats": 1, "limit": 300.0, "memory_limit": None}
needs_peers = pytest.mark.skipif(
    not (find_spec("transformers") and find_spec("reformer_pytorch")), reason="needs the extra `peers`"
)


def command(*words):
    words = ["bench", *map(str, words)]
    return cli.parse(words).run(" ".join(["reformer-ref", *words]))


class InProcess:
    """In the place of ``runner.Worker``: the same work in this process, which needs no second to
    start.
    """

    def __init__(self, contender, point, settings):
        self.order, self.made = {"contender": contender, "point": asdict(point), **settings}, []

    def answer(self, limit):
        return worker._again(self.made[0], "cpu") if self.made else worker._first(self.order, self.made)

    def end(self):
        self.made.clear()


@pytest.fixture
def _in_process(monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(runner, "Worker", InProcess)
    yield
    torch.set_num_threads(threads)


def point(kind="attention", length=128, n_hashes=1, n_layers=1, flops=1e7):
    return cases.Point(kind, length, n_hashes, n_layers, flops)


# Points and contenders


@pytest.mark.parametrize("name", list(cases.CASES))
def test_points_are_sorted_and_everybody_can_run_them(name):
    points = cases.points(name)
    assert points == sorted(points, key=lambda p: (p.length, p.n_hashes, p.n_layers))
    for p in points:
        assert p.kind == "gemm" or p.length % 128 == 0
        assert math.prod(axial_shape(p.length)) == p.length
    assert all(n in cases.CONTENDERS for n in cases.CASES[name].contenders)


def test_the_wanted_points_are_there():
    assert [p.length for p in cases.points("attention")] == [2**k for k in range(10, 19)]
    assert [p.n_hashes for p in cases.points("rounds")] == [1, 2, 4, 8]
    steps = {(p.length, p.n_layers) for p in cases.points("step")}
    assert steps == {(4096, 6), (16384, 2), (16384, 6), (16384, 12), (65536, 6)}
    assert {(p.length, p.n_layers) for p in cases.points("step", [256], depths=[1, 2])} == {(256, 1), (256, 2)}
    assert max(p.length for p in cases.points("attention", quick=True)) <= 512


def test_attention_flops():
    assert cases.attention_flops(16384, 4) == 7 * 2 * (8 * 4 * 16384 * 128) * 64


def test_cases_of_the_command_are_the_cases():
    assert list(get_args(bench.Case)) == [*cases.CASES, "all", "decoding"]


def test_contenders_are_chosen_by_name():
    assert [c.name for c in cases.chosen("crossover", ["ours"])] == ["ours-trax"]
    assert [c.name for c in cases.chosen("attention", ["dense", "ours-paper"])] == ["ours-paper", "dense"]
    with pytest.raises(ValueError, match="the case gemm has matmul"):
        cases.chosen("gemm", ["ours"])


# From the command to the record


def test_contenders_run_in_processes_of_their_own(tmp_path):
    words = ["--only", "ours-trax", "matmul", "--length", 128, "--repeats", 2, "--threads", 1, "--out", tmp_path]
    assert command("attention", *words) == 0
    (entry,) = json.loads((tmp_path / "bench_attention.json").read_text())["points"]
    assert [r["contender"] for r in entry["results"]] == ["ours-trax", "matmul"]
    for result in entry["results"]:
        assert result["status"] == "ok", result["detail"]
        assert len(result["seconds"]) == 2
    assert entry["results"][0]["above_start_bytes"] > 0


@pytest.mark.usefixtures("_in_process")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("attention", ["--length", 128, 256, "--only", "ours-trax", "dense", "matmul"]),
        ("rounds", ["--length", 128, "--n-hashes", 1, "--only", "ours"]),
        ("step", ["--length", 128, "--n-layers", 1, "--only", "ours"]),
        ("crossover", ["--length", 128, "--n-hashes", 1]),
        ("gemm", ["--quick"]),
    ],
)
def test_a_case_runs_and_is_recorded(name, options, tmp_path, capsys):
    assert command(name, *options, "--repeats", 1, "--threads", 1, "--out", tmp_path) == 0
    data = json.loads((tmp_path / f"bench_{name}.json").read_text())
    printed = capsys.readouterr().out
    assert data["case"] == name
    assert data["complete"] is True
    assert {"command", "date", "machine", "versions", "repeats", "limit", "threads"} <= data.keys()
    assert {"cpu", "cores", "threads"} <= data["machine"].keys()
    assert {"python", "torch", "numpy", "reformer_ref"} <= data["versions"].keys()
    assert data["points"]
    for entry in data["points"]:
        assert {"kind", "length", "n_hashes", "n_layers", "flops", "results", "ratios"} == entry.keys()
        for result in entry["results"]:
            assert result["status"] == "ok", result["detail"]
            assert len(result["seconds"]) == 1
            assert result["seconds"][0] == result["median"] > 0
            assert result["above_start_bytes"] >= 0
            assert result["contender"] in printed
    if name == "attention":
        assert data["points"][0]["ratios"]["ours-trax"].keys() == {
            "times_faster_than_dense", "times_faster_than_dense_range", "share_of_matmul_rate",
            "share_of_matmul_rate_range",
        }  # fmt: skip


@pytest.mark.peers
@needs_peers
@pytest.mark.usefixtures("_in_process")
@pytest.mark.parametrize(("name", "options"), [("attention", ["--n-hashes", 2]), ("step", ["--n-layers", 2])])
def test_peers_run_beside_ours(name, options, tmp_path):
    assert command(name, *options, "--length", 256, "--repeats", 1, "--threads", 1, "--out", tmp_path / "x.json") == 0
    data = json.loads((tmp_path / "x.json").read_text())
    (entry,) = data["points"]
    assert {r["contender"]: r["status"] for r in entry["results"]} == dict.fromkeys(cases.CASES[name].contenders, "ok")
    assert {"times_faster_than_port", "memory_of_port", "fastest_port"} <= next(iter(entry["ratios"].values())).keys()


@pytest.mark.peers
@needs_peers
def test_models_of_the_step_are_of_one_size():
    sizes = [
        sum(p.numel() for p in make(point("step", 256, 2, 2))[0].parameters())
        for make in (our_model, huggingface_model, lucidrains_model)
    ]
    assert max(sizes) < 1.1 * min(sizes)


@pytest.mark.peers
@needs_peers
def test_peers_of_attention_do_the_whole_work():
    """Both gradients arrive, and no two of the inputs are one."""
    for name in ("ours-trax", "reformer-pytorch", "huggingface"):
        d_qk, d_v = build(name, point(length=256, n_hashes=2))()
        assert d_qk.numel() == d_v.numel() == 8 * 256 * 64
        assert d_qk.abs().max() > 0
        assert d_v.abs().max() > 0
        assert not torch.equal(d_qk, d_v)


@pytest.mark.usefixtures("_in_process")
def test_quick_writes_nothing_unless_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command("gemm", "--quick", "--threads", 1) == 0
    assert list(tmp_path.iterdir()) == []


# Ratios


def result(name, seconds, memory):
    entry = {"contender": name, "status": "ok", "seconds": seconds, "median": sorted(seconds)[1]}
    return entry | {"above_start_bytes": memory}


def test_ratios_refer_to_the_best_port_and_say_how_far_the_runs_spread():
    failed = {"contender": "ours-strict", "status": "failed", "detail": "boom", "seconds": []}
    results = [
        result("ours-trax", [1.0, 1.0, 2.0], 10), result("ours-paper", [2.0, 2.0, 2.0], 20), failed,
        result("reformer-pytorch", [5.0, 6.0, 9.0], 400), result("huggingface", [8.0, 8.0, 8.0], 100),
        result("dense", [3.0, 3.0, 3.0], 1), result("matmul", [0.5, 0.5, 0.5], 0),
    ]  # fmt: skip
    comparison = ratios(results)
    assert comparison.keys() == {"ours-trax", "ours-paper"}
    assert comparison["ours-trax"] == {
        "fastest_port": "reformer-pytorch", "smallest_port": "huggingface", "times_faster_than_port": 6.0,
        "times_faster_than_port_range": [4.5, 6.0], "memory_of_port": 0.1, "times_faster_than_dense": 3.0,
        "times_faster_than_dense_range": [1.5, 3.0], "share_of_matmul_rate": 0.5,
        "share_of_matmul_rate_range": [0.25, 0.5],
    }  # fmt: skip
    text = table(point(flops=1e9), {"results": results, "ratios": comparison})
    assert "6.00× (4.50× – 6.00×) the speed of reformer-pytorch, 0.100× the memory of huggingface, 3.00× (" in text
    assert "50% (25% – 50%) of the matmul rate" in text
    assert "boom" in text
    assert "2 GFLOP/s" in text


# What goes wrong is told, and the others go on


def test_a_peer_that_is_not_installed_is_absent(monkeypatch):
    monkeypatch.setattr(cases, "find_spec", lambda name: None)
    (result,) = measure(point(), [cases.CONTENDERS["huggingface"]], SETTINGS, {})
    assert result["status"] == "absent"
    assert "pip install" in result["detail"]


def test_a_timeout_is_recorded_and_longer_ones_are_skipped(monkeypatch):
    monkeypatch.setattr(runner, "START_UP", 0.0)
    history, settings = {}, SETTINGS | {"limit": 0.01}
    contender = [cases.CONTENDERS["dense"]]
    assert measure(point(), contender, settings, history)[0]["status"] == "timeout"
    (result,) = measure(point(length=256), contender, settings, history)
    assert result["status"] == "skipped"
    assert "predicted from 128 tokens" in result["detail"]


def test_dense_attention_is_predicted_to_grow_with_the_square():
    history, dense = {("dense", 4, 0): (1024, 10.0)}, cases.CONTENDERS["dense"]
    longer = cases.points("attention", [4096])[0]
    assert runner._expected(dense, longer, 161.0, history)["status"] == "ok"
    assert runner._expected(dense, longer, 159.0, history)["status"] == "skipped"
    assert "65,536" in runner._expected(dense, cases.points("attention", [131072])[0], 1e9, {})["detail"]


def test_running_out_of_memory_is_recorded(tmp_path):
    history, contender = {}, [cases.CONTENDERS["matmul"]]
    settings = SETTINGS | {"memory_limit": 8 * 2**30}
    (result,) = measure(point("gemm", length=2**22), contender, settings, history)
    assert result["status"] == "out of memory", result["detail"]
    assert measure(point("gemm", length=2**23), contender, settings, history)[0]["status"] == "skipped"


def test_a_failure_of_ours_is_the_exit_code(monkeypatch, capsys):
    monkeypatch.setattr(runner.Worker, "answer", lambda self, limit: {"status": "failed", "detail": "no luck"})
    assert command("crossover", "--quick", "--only", "ours", "--length", 128, "--n-hashes", 1) == 1
    assert "no luck" in capsys.readouterr().out


def test_a_worker_that_dies_says_why():
    contender = runner.Worker("nobody", point(), SETTINGS)
    try:
        reply = contender.answer(120.0)
        assert reply["status"] == "failed"
        assert "nobody" in reply["detail"]
        assert contender.answer(60.0)["status"] == "failed"
    finally:
        contender.end()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["attention", "--length", 100], "multiples of 128"),
        (["attention", "--length", 0], "--length must be at least 1"),
        (["step", "--n-layers", 0], "at least 1"),
        (["gemm", "--repeats", -1], "--repeats must be at least 1"),
        (["gemm", "--threads", 0], "--threads must be at least 1"),
        (["gemm", "--limit", 0], "--limit must be at least"),
        (["gemm", "--only", "huggingface"], "the case gemm has matmul"),
        (["gemm", "rounds", "--out", "x.json"], "give a folder"),
    ],
)
def test_mistakes_are_told_before_anything_runs(words, message):
    with pytest.raises(ValueError, match=message):
        command(*words)


# CUDA


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_gpu_benchmarks_refuse_to_run_without_one(capsys):
    assert cli.main(["bench", "attention", "--quick", "--device", "cuda"]) == 2
    assert "no CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["ours-trax", "ours-strict"])
def test_prediction_of_attention_is_the_count(name):
    """Predicted on tensors without contents, with the CPU's block size: what is counted in a real
    run.
    """
    counted = count_peak(build(name, point(length=512, n_hashes=2))).above_start_bytes
    assert predicted_bytes(name, point(length=512, n_hashes=2), "cpu") == counted


def test_decoding_runs_and_is_recorded(tmp_path, capsys):
    threads = torch.get_num_threads()
    try:
        assert command("decoding", "--quick", "--only", "ours", "--threads", 1, "--out", tmp_path) == 0
    finally:
        torch.set_num_threads(threads)
    data = json.loads((tmp_path / "bench_decoding.json").read_text())
    assert [point["length"] for point in data["points"]] == [64, 128]
    assert len({point["kept_bytes"] for point in data["points"]}) == 1  # whatever was read before
    assert data["generated"]["recomputed_from"] == 16
    assert "times as long" in capsys.readouterr().out
    with pytest.raises(ValueError, match="a run of its own"):
        command("decoding", "step", "--quick")
