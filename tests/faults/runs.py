"""Real runs of the command in real processes, small enough to be killed by the dozen."""

import os
import subprocess
import sys
from pathlib import Path

from reformer_lab.training import checkpoint

ROOT = Path(__file__).resolve().parents[2]
FULL = os.environ.get("REFORMER_FAULTS") == "full"  # as many kills as the README reports, instead of a few
STEPS = 150
TINY = {
    "text": "text.txt", "steps": STEPS, "length": 64, "batch": 2, "n-layers": 2, "d-model": 16, "n-heads": 2,
    "d-ff": 32, "chunk-length": 8, "dropout": 0.1, "learning-rate": 1e-2, "warmup": 5,
    "held-out-windows": 2, "evaluate-every": 20, "checkpoint-every": 10, "threads": 1,
}  # fmt: skip


def arguments(out, **changes):
    """The command line of a small run; ``changes`` by name, None takes an option away."""
    options = {**TINY, "out": out, **{name.replace("_", "-"): value for name, value in changes.items()}}
    words = ["train", "--no-progress"]
    for name, value in options.items():
        if value is True:
            words.append(f"--{name}")
        elif value is not None:
            words += [f"--{name}", str(value)]
    return words


def start(folder, *words, program=("-m", "reformer_lab"), before=(), **environment):
    """A process in ``folder``, where text.txt is made if need be."""
    text = Path(folder) / "text.txt"
    if not text.exists():
        text.write_bytes(b"the quick brown fox jumps over the lazy dog. " * 60)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        **environment,
    }
    return subprocess.Popen(
        [*before, sys.executable, *program, *map(str, words)], cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def wait_for(process, beginning):
    """Read the process's output up to the line that begins so."""
    for line in process.stdout:
        if line.startswith(beginning):
            return line
    raise AssertionError(f"the process ended before it said {beginning!r}: {process.stderr.read()}")


def finish(process, timeout=120):
    """(exit code, output, errors) of a process; it must not leave a traceback."""
    out, err = process.communicate(timeout=timeout)
    assert "Traceback" not in err, err
    return process.returncode, out, err


def train(folder, out, **changes):
    """Run to the end, without a fault."""
    code, printed, err = finish(start(folder, *arguments(out, **changes)))
    assert code == 0, err
    return printed


def outcome(run):
    """Everything about a run that must not depend on what happened to it: metrics, weights, state of the optimiser."""
    last = checkpoint.read(Path(run) / f"checkpoints/step-{STEPS:09d}.safetensors")
    tensors = {name: t.numpy().tobytes() for name, t in (last.weights | last.training).items()}
    return Path(run, "metrics.jsonl").read_bytes(), tensors, last.state["tokens"]
