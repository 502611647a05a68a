"""Several processes: the same gradients as one, and what happens when one of them, or the whole
run, is ended.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from reformer_lab.training import checkpoint
from tests.faults.runs import arguments, finish, outcome, start, train, wait_for

pytestmark = pytest.mark.nightly  # real processes, minutes of them

TORCHRUN = ("-m", "torch.distributed.run")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def port():
    return {"MASTER_PORT": str(free_port())}


def curve(run):
    lines = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    return np.array([line["bits"] for line in lines if "bits" in line])


def first_moments(run, step):
    """Adam's exp_avg after one step is 0.1 times the gradient."""
    stored = checkpoint.read(Path(run, f"checkpoints/step-{step:09d}.safetensors"))
    return {name: t.double() for name, t in stored.training.items() if name.endswith("exp_avg")}


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "bound"), [("32", 1e-6), ("64", 1e-12)])
def test_two_processes_compute_the_gradients_of_one(precision, bound, tmp_path):
    two = {"processes": 2}
    sharded = {**two, "strategy": "fsdp"}
    runs = {"one": {}, "two": two, "parts": {"accumulate": 2}, "sharded": sharded}
    runs["sharded parts"] = {**sharded, "accumulate": 2}
    for out, more in runs.items():
        options = {"steps": 1, "batch": 4, "precision": precision, "dropout": 0.0, "clip": 1e5}
        code, _, err = finish(start(tmp_path, *arguments(out, **options, **more), **port()))
        assert code == 0, err
    want = first_moments(tmp_path / "one", 1)
    largest = max(g.abs().max() for g in want.values())
    for other in list(runs)[1:]:
        got = first_moments(tmp_path / other, 1)
        assert got.keys() == want.keys()
        worst = max(float((got[name] - want[name]).abs().max() / largest) for name in want)
        print(f"{other}: gradients differ by {worst:.1e} in float{precision}")
        assert worst <= bound


@pytest.mark.slow
def test_two_processes_have_the_loss_curve_of_one(tmp_path):
    options = {"steps": 50, "batch": 4, "dropout": 0.0}
    train(tmp_path, "one", **options)
    words = ["--nproc-per-node", 2, "-m", "reformer_lab", *arguments("two", **options)]
    code, _, err = finish(start(tmp_path, *words, program=TORCHRUN, **port()))
    assert code == 0, err
    worst = np.abs(curve(tmp_path / "one") / curve(tmp_path / "two") - 1.0).max()
    print(f"loss curves over 50 steps differ by {worst:.1e}")
    assert len(curve(tmp_path / "two")) == 50
    assert worst <= 1e-5


@pytest.mark.slow
def test_a_sharded_run_goes_on_sharded_or_in_one_process(tmp_path):
    options = {
        "steps": 12,
        "batch": 4,
        "dropout": 0.0,
        "precision": "64",
        "schedule": "constant",
        "checkpoint_every": 5,
    }
    two = {**options, "processes": 2, "strategy": "fsdp", "held_out_windows": 3, "checkpoint_every": 5}
    unsharded = {**two, "processes": 1, "strategy": "ddp", "resume": True}
    train(tmp_path, "whole", **two)
    train(tmp_path, "run", **{**two, "steps": 6})
    shutil.copytree(tmp_path / "run", tmp_path / "unsharded")
    train(tmp_path, "run", **two, resume=True)
    said = train(tmp_path, "unsharded", **unsharded)
    assert "strategy is 'fsdp' in the checkpoint and None now" in said
    whole, again, changed = (checkpoint.newest(tmp_path / out)[0] for out in ("whole", "run", "unsharded"))
    for name, t in (whole.weights | whole.training).items():
        assert t.numpy().tobytes() == (again.weights | again.training)[name].numpy().tobytes(), name
        np.testing.assert_allclose((changed.weights | changed.training)[name], t, rtol=1e-9, atol=1e-12)
    model, _ = checkpoint.load(tmp_path / "run")
    assert model.loss(torch.arange(64)[None]).isfinite()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"strategy": "fsdp"}, "strategy fsdp divides the model among processes and needs 2 or more, got 1"),
        ({"strategy": "zero"}, "strategy must be one of 'ddp', 'fsdp', got 'zero'"),
        ({"strategy": "fsdp", "processes": 2, "optimizer": "adafactor"}, "strategy fsdp needs optimizer adam, got"),
    ],
)
def test_what_a_sharded_run_cannot_do_is_refused(changes, reason, tmp_path):
    code, _, err = finish(start(tmp_path, *arguments("run", **changes), **port()))
    assert code == 2
    assert reason in err


def children(process):
    out = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=False)
    return [int(word) for word in out.stdout.split()]


@pytest.mark.slow
@pytest.mark.parametrize("dies", ["the first", "the second"])
def test_when_one_process_dies_the_other_ends_and_the_run_goes_on(dies, tmp_path):
    if shutil.which("ps") is None:
        pytest.skip("needs ps")
    train(tmp_path, "whole", processes=2)
    process = start(tmp_path, *arguments("run", processes=2, steps=150), **port())
    wait_for(process, "baselines")
    while not checkpoint.paths(tmp_path / "run/checkpoints"):
        time.sleep(0.01)
    second = children(process)[0]
    os.kill(process.pid if dies == "the first" else second, signal.SIGKILL)
    begun = time.perf_counter()
    out, err = process.communicate(timeout=60)  # the other one holds the pipe too: it ends when both have
    print(f"the other process ended {time.perf_counter() - begun:.1f} s after {dies} was killed")
    assert "another process of this run has ended" in err
    assert "--resume" in err
    assert "Traceback" not in err
    assert process.returncode == (-signal.SIGKILL if dies == "the first" else 1)
    code, out, err = finish(start(tmp_path, *arguments("run", processes=2, resume=True), **port()))
    assert code == 0, err
    assert "going on after step" in out
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_end_a_run_with_a_checkpoint(number, code, tmp_path):
    train(tmp_path, "whole")
    process = start(tmp_path, *arguments("run", checkpoint_every=0))
    wait_for(process, "baselines")
    time.sleep(0.5)
    process.send_signal(number)
    got, out, err = finish(process)
    if got == 0:
        pytest.skip("the run was over before the signal came")
    assert got == code
    assert "stopping after this step" in out
    assert "go on with --resume" in err
    assert checkpoint.newest(tmp_path / "run")[0].step > 0
    train(tmp_path, "run", resume=True, checkpoint_every=0)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


@pytest.mark.slow
def test_signals_reach_all_processes(tmp_path):
    process = start(tmp_path, *arguments("run", processes=2, steps=100_000), **port())
    wait_for(process, "baselines")
    time.sleep(1.0)
    process.send_signal(signal.SIGTERM)  # only to the first: the others are told
    got, _, err = finish(process, timeout=60)
    assert got == 143, err
    assert "another process" not in err
    assert checkpoint.newest(tmp_path / "run")[0].step > 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_signals_count_although_nobody_reads_the_output_any_more(number, tmp_path):
    process = start(tmp_path, *arguments("run", steps=100_000))
    wait_for(process, "baselines")
    time.sleep(0.5)
    process.stdout.close()  # as when Ctrl-C ends `| tee` too
    process.send_signal(number)
    time.sleep(0.001)
    process.send_signal(number)  # torchrun sends its own as well: together they are one
    code = process.wait(timeout=60)
    assert code == 128 + number, process.stderr.read()
    assert checkpoint.newest(tmp_path / "run")[0].step > 0


@pytest.mark.slow
def test_processes_with_different_texts_are_refused(tmp_path):
    processes, address = [], free_port()
    for rank in range(2):
        folder = tmp_path / f"host{rank}"
        folder.mkdir()
        (folder / "text.txt").write_bytes(b"one text or another. " * (100 + rank))
        words = ["--nnodes", 2, "--node-rank", rank, "--nproc-per-node", 1, "--master-addr", "127.0.0.1"]
        words += ["--master-port", address, "-m", "reformer_lab", *arguments("run", dropout=0.0)]
        processes.append(start(folder, *words, program=TORCHRUN))
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert all(process.returncode for process in processes)
    assert all("started with different options or data" in err for err in errors)


@pytest.mark.slow
def test_out_of_memory_is_said_in_one_line(tmp_path):
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30)); "
    program = ("-c", limit + "from reformer_lab import cli; sys.exit(cli.main(sys.argv[1:]))")
    code, _, err = finish(start(tmp_path, *arguments("run", batch=400_000, steps=2), program=program))
    assert code == 1
    assert err.startswith("reformer-ref: out of memory")
    assert err.count("\n") == 1


@pytest.mark.slow
def test_two_runs_in_one_folder_are_refused_until_the_first_is_gone(tmp_path):
    first = start(tmp_path, *arguments("run", steps=100_000))
    wait_for(first, "baselines")
    time.sleep(0.5)
    for more in ({}, {"resume": True}):
        code, _, err = finish(start(tmp_path, *arguments("run", steps=100_000, **more)))
        assert code == 2
        assert f"run is in use by process {first.pid} on" in err
    first.kill()
    finish(first)
    code, _, err = finish(start(tmp_path, *arguments("run", steps=100_000)))
    assert code == 2
    assert "already holds a run" in err


CLOCK = """
import itertools, time
count = itertools.count()
time.time = lambda: 4e9 - 3600.0 * next(count)  # an hour back at every look
time.time_ns = lambda: int(time.time() * 1e9)
"""


@pytest.mark.slow
def test_a_clock_that_goes_backwards_changes_nothing(tmp_path):
    train(tmp_path, "whole")
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(CLOCK)
    path = os.pathsep.join([str(tmp_path / "site"), str(Path(__file__).resolve().parents[2])])
    process = start(tmp_path, *arguments("run"), PYTHONPATH=path)
    wait_for(process, "baselines")
    time.sleep(0.7)
    process.kill()
    finish(process)
    for age, stored in enumerate(sorted((tmp_path / "run/checkpoints").glob("*"))):
        os.utime(stored, (10**9 - age * 10**6,) * 2)  # the newest has the oldest date
    code, _, err = finish(start(tmp_path, *arguments("run", resume=True), PYTHONPATH=path))
    assert code == 0, err
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def run(*words):
    subprocess.run(words, check=True, capture_output=True)


@pytest.fixture
def two_hosts():
    """Two network namespaces joined by a cable, 10.99.0.1 and .2: two machines as far as the
    network can tell.
    """
    names, made = [f"reformer{os.getpid()}a", f"reformer{os.getpid()}b"], []
    try:
        try:
            for name in names:
                run("ip", "netns", "add", name)
                made.append(name)
            ends = [f"v{os.getpid()}a", f"v{os.getpid()}b"]
            run("ip", "link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
            for number, (name, end) in enumerate(zip(names, ends, strict=True), 1):
                run("ip", "link", "set", end, "netns", name)
                inside = ("ip", "netns", "exec", name, "ip")
                run(*inside, "addr", "add", f"10.99.0.{number}/24", "dev", end)
                run(*inside, "link", "set", end, "up")
                run(*inside, "link", "set", "lo", "up")
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"network namespaces need the right to make them: {error}")
        yield [(name, end) for name, end in zip(names, ends, strict=True)]
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.mark.slow
def test_two_hosts_as_the_documentation_says(two_hosts, tmp_path):
    train(tmp_path, "whole", steps=30, dropout=0.0)
    processes = []
    for rank, (name, end) in enumerate(two_hosts):
        folder = tmp_path / f"host{rank}"  # no shared file system
        folder.mkdir()
        words = ["--nnodes", 2, "--node-rank", rank, "--nproc-per-node", 1]
        words += ["--master-addr", "10.99.0.1", "--master-port", 29400, "-m", "reformer_lab"]
        processes.append(start(
            folder, *words, *arguments("run", steps=30, dropout=0.0), program=TORCHRUN,
            before=("ip", "netns", "exec", name), GLOO_SOCKET_IFNAME=end,
        ))  # fmt: skip
    for process in processes:
        code, _, err = finish(process, timeout=180)
        assert code == 0, err
    assert not (tmp_path / "host1/run").exists()
    np.testing.assert_allclose(curve(tmp_path / "host0/run"), curve(tmp_path / "whole"), rtol=1e-5)
