"""The kernels as machine code: no register spills, and room for several programs on a multiprocessor."""

import json
import os
import subprocess
import sys

import pytest
from reformer_lab.benchmarks import kernels
from reformer_lab.records import FOLDER

pytestmark = pytest.mark.kernels

RECORD = json.loads((FOLDER / "kernels.json").read_text(encoding="utf-8"))


def check(entries):
    for entry in entries:
        assert entry["spilled_bytes"] == 0, entry
        assert entry["shared_bytes"] <= kernels.SHARED_LIMIT, entry
        assert 0 < entry["registers"] <= 255, entry
        assert entry["instructions"] > 100, entry


def test_the_record_has_every_kernel_and_none_spills():
    names = dict.fromkeys(kernels.WORK, ("forward", "delta", "backward_queries", "backward_keys")) | {"hash": ("hash",)}
    cases = {
        (capability, str(dtype).removeprefix("torch."), d, work, name)
        for capability in kernels.CAPABILITIES
        for dtype in kernels.DTYPES
        for d in kernels.HEAD_SIZES
        for work in kernels.WORK
        for name in names[work]
    }
    keys = ("capability", "dtype", "d", "work", "kernel")
    recorded = [tuple(entry[key] for key in keys) for entry in RECORD["kernels"]]
    assert sorted(recorded) == sorted(cases)
    check(RECORD["kernels"])


@pytest.mark.parametrize(
    "case",
    [
        "90, torch.bfloat16, 64, 'paper'",
        "80, torch.float32, 128, 'paper'",
        "80, torch.float16, 128, 'local'",
        "90, torch.float32, 64, 'hash'",
    ],
)
def test_compiled_now_as_recorded(case):
    """In a process without the interpreter."""
    code = (
        f"import json, torch; from reformer_lab.benchmarks import kernels; print(json.dumps(kernels.compiled({case})))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    entries = json.loads(done.stdout)
    check(entries)
    import triton

    if RECORD["versions"]["triton"] == triton.__version__:
        assert all(entry in RECORD["kernels"] for entry in entries)
