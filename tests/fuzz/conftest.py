"""Counts of fuzz cases, printed when all tests are over; a limit of memory, so that no case takes
the machine down.
"""

import sys
from collections import defaultdict

import pytest
import torch

REPORTED = pytest.StashKey[bool]()
MEMORY = 8 << 30  # bytes that may come on top of what the process has when fuzzing begins


@pytest.fixture
def counts(request):
    """A dict that a test fills: target, seed, accepted, refused. It travels with the report, also
    between workers.
    """
    case = {}
    request.node.user_properties.append(("fuzz", case))
    return case


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """A hostile path may be a relative name, and what is written there a real file: not in the
    project.
    """
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _little_memory():
    """Whoever asks for too much gets a MemoryError instead of the machine's swap."""
    if sys.platform != "linux" or torch.cuda.is_available():  # CUDA takes address space by the hundred gigabytes
        yield
        return
    import resource

    with open("/proc/self/statm") as statm:
        taken = int(statm.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def pytest_terminal_summary(terminalreporter, config):
    """Cases, accepted and refused, per module (per function with -v) and in all.

    Where several workers run all tests, only ``tests/conftest.py`` is read by the process that
    prints: it may import this function.
    """
    reported = [
        dict(value)
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", None) == "call"
        for name, value in report.user_properties
        if name == "fuzz" and "target" in value
    ]
    if not reported or REPORTED in config.stash:
        return
    config.stash[REPORTED] = True
    sums = defaultdict(lambda: [0, 0, 0])
    for case in reported:
        where = case["target"] if config.get_verbosity() > 0 else case["target"].rpartition(".")[0] or "functions"
        for i, number in enumerate((1, case["accepted"], case["refused"])):
            sums[where][i] += number
            sums["in all"][i] += number
    terminalreporter.section(f"fuzz cases (REFORMER_FUZZ_SEED={reported[0]['seed']})")
    for where, (functions, accepted, refused) in sorted(sums.items(), key=lambda item: (item[0] == "in all", item[0])):
        terminalreporter.write_line(
            f"{where:<60} {functions:4} targets {accepted + refused:7,} cases: {accepted:6,} accepted, "
            f"{refused:6,} refused"
        )
