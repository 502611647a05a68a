"""kill −9 at random moments, and inside the writing of checkpoints: the resumed run ends as if
nothing had happened.
"""

import random
import signal
import time

import pytest
from reformer_lab.training import checkpoint
from tests.faults.runs import FULL, STEPS, arguments, finish, outcome, start, train, wait_for

pytestmark = pytest.mark.nightly  # real processes, minutes of them

KILLS = range(30 if FULL else 3)
# A file takes an fsync of it, a rename, and an fsync of its folder. Before the first checkpoint two folders are synced,
# so checkpoint n is file n, with the fsyncs 2n + 1 and 2n + 2.
INSIDE = [
    ("half-written", 3), ("replace", 2), ("fsync", 7), ("fsync", 8), ("half-written", 1), ("replace", 1),
    ("fsync", 3), ("fsync", 2), ("replace", 8), ("half-written", 14),
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The outcome of the run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    train(folder, "run")
    return outcome(folder / "run")


def killed(process):
    code, _, _ = finish(process)
    return code == -signal.SIGKILL


def steps_in(run):
    """Steps in the metrics so far."""
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b'"bits"') if path.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("number", KILLS)
def test_killed_at_a_random_moment(number, whole, tmp_path):
    chance, places = random.Random(number), []
    for _ in range(1 + number % 3):  # once, twice, three times in one run
        written = checkpoint.paths(tmp_path / "run/checkpoints")
        process = start(tmp_path, *arguments("run", resume=True))
        wait_for(process, "going on" if written else "baselines")
        target = chance.randrange(STEPS - 30)
        while process.poll() is None and steps_in(tmp_path / "run") < target:
            time.sleep(0.001)
        time.sleep(chance.uniform(0.0, 0.03))  # some steps more, or the middle of one
        process.kill()
        assert killed(process), "it was over before the signal came"
        places.append(steps_in(tmp_path / "run"))
    printed = train(tmp_path, "run", resume=True)
    assert ("going on after step" in printed) or ("beginning at step 0" in printed)
    assert outcome(tmp_path / "run") == whole
    print(f"killed in step {', '.join(map(str, places))}; {printed.splitlines()[4]}")


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "call"), INSIDE if FULL else INSIDE[:4])
def test_killed_inside_the_writing_of_a_checkpoint(fault, call, whole, tmp_path):
    process = start(tmp_path, fault, call, *arguments("run"), program=("-m", "tests.faults.dying"))
    assert killed(process)
    left = sorted(path.name for path in (tmp_path / "run/checkpoints").glob("*"))
    assert f"step-{STEPS:09d}.safetensors" not in left
    printed = train(tmp_path, "run", resume=True)
    assert outcome(tmp_path / "run") == whole
    assert not list((tmp_path / "run/checkpoints").glob(".*.tmp"))
    print(f"{fault} {call}: {len(left)} files in the folder; {printed.splitlines()[4]}")


@pytest.mark.slow
def test_a_line_cut_in_the_middle_is_written_again(whole, tmp_path):
    process = start(tmp_path, *arguments("run"))
    wait_for(process, "baselines")
    time.sleep(1.0)
    process.kill()
    killed(process)
    for name in ("metrics.jsonl", "timings.jsonl"):
        with open(tmp_path / "run" / name, "ab") as file:
            file.write(b'{"step": 149, "bi')
    train(tmp_path, "run", resume=True)
    assert outcome(tmp_path / "run") == whole
