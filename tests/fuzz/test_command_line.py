"""The command line with what nobody should ask of it: one clear line on stderr, exit code 2, never
a traceback.

Arguments are those that a shell can hand over: any text without a zero byte, names that are no
UTF-8 included. What would take long (training, measuring, drawing everything) is replaced by
``Began``: a case that gets there is accepted.
"""

import json
import os
import shutil
import stat
import subprocess
import sys
import zlib
from pathlib import Path

import hypothesis
import pytest
import torch
from hypothesis import HealthCheck, Phase, given
from hypothesis import strategies as st
from reformer_lab import cli, figures, notebooks, planner
from reformer_lab.benchmarks import decoding, million
from reformer_lab.benchmarks import run as bench_run
from reformer_lab.claims import command as reproduce
from reformer_lab.claims import figure5_depth
from reformer_lab.training import loop as training
from reformer_lab.training import processes
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.model.config import ReformerConfig
from tests.fuzz.harness import CASES, SEED

ROOT = Path(__file__).resolve().parents[2]
NUMERALS = (
    "-1", "0", "1", "2", "3", "7", "64", "-0", "+5", "1_0", "0x10", "1e3", "2.5", "nan", "inf", "-inf", "1e400",
    "1e-320", "1000000", str(2**40), str(2**63 - 1), str(2**63), str(10**30), "9" * 5000, "٣", "",
)  # fmt: skip
WORDS = (
    *NUMERALS, " ", "-", "--", "None", "True", "lsh", "local,lsh", "lsh,", ",", "magic", "trax", "cosine", "rsqrt",
    "paper", "cpu", "cuda", "cuda:9", "meta", "toaster", "16GB", "1B", "0GB", "9" * 400 + "GB", "x" * 5000, "ä\n\tß",
    "\udcff", "\x1b[31m", "%s%d{}", "a;b|c&d", "$HOME", "~", "adam", "adafactor", "bf16", "fp16", "float16", "ROMEO",
    "all", "attention", "decoding", "gemm", "ours", "[]", "{}",
)  # fmt: skip
FILES = (
    "text.txt", "empty", "one", "binary", "sparse", "locked", "folder", "pipe", "loop", "broken", "missing",
    "missing/deeper",
    "text.txt/deeper", "/dev/null", "/dev/zero", "/dev/full", "/proc/self/mem", "/", ".", "..", "odd \n\t\udcff name",
    "-dash", "x" * 300, "ok.json", "nan.json", "deep.json", "list.json", "wrong.json", "digits.json", "model", "halved",
    "new", "new/deeper/still", "out.json", "out.png", "out.xyz", "run", "notebooks", "picture.ipynb",
)  # fmt: skip
TINY = {"--text": "text.txt", "--length": "64", "--n-layers": "1", "--d-model": "16", "--n-heads": "2", "--d-ff": "8"}
COMMANDS = {  # valid options; None: a flag
    "train": TINY | {
        "--task": "text", "--steps": "1", "--minutes": None, "--batch": "1", "--held-out-windows": "2", "--seed": "0",
        "--config": None, "--pattern": "local,lsh", "--dropout": "0", "--preset": "strict", "--n-hashes": "1",
        "--chunk-length": "8", "--local-chunk-length": "8", "--recipe": None, "--optimizer": "adam",
        "--learning-rate": "0.01", "--warmup": "1", "--schedule": "cosine", "--clip": "1", "--accumulate": "1",
        "--precision": "32",
        "--out": "new", "--checkpoint-every": "0", "--checkpoint-minutes": "0", "--evaluate-every": "0",
        "--processes": "1",
        "--timeout": "60", "--device": "cpu", "--threads": "1",
    },
    "generate": {
        "--checkpoint": "model", "--prompt": "ab", "--tokens": "2", "--temperature": "0.8", "--top-k": "3",
        "--top-p": "0.9", "--seed": "0", "--threads": "1",
    },
    "memory": {
        "--length": "64", "--budget": "1MB", "--batch": "1", "--n-layers": "1", "--pattern": "lsh", "--d-model": "8",
        "--n-heads": "1", "--d-ff": "8", "--preset": "trax", "--n-hashes": "1", "--chunk-length": "8",
        "--ff-chunk": "0", "--loss-chunk": "0",
        "--vocab-size": "16", "--optimizer": "adam", "--dtype": "float32", "--device": "cuda", "--plot": "out.png",
        "--json": "out.json",
    },
    "million": TINY | {
        "--length": "64", "--n-hashes": "1", "--chunk-length": "8", "--pattern": "lsh", "--preset": "trax",
        "--ff-chunk": "16", "--loss-chunk": "16", "--steps": "1",
        "--learning-rate": "0.001", "--seed": "0", "--threads": "1", "--out": "out.json",
    },
    "bench": {
        "": "attention", "--length": "128", "--n-hashes": "1", "--n-layers": "1", "--only": "ours", "--repeats": "1",
        "--threads": "1", "--limit": "10", "--out": "new",
    },
    "reproduce": {
        "": "figure5_depth", "--seeds": "0", "--only": "layers1", "--data": "text.txt", "--jobs": "1", "--threads": "1",
        "--runs": "new", "--out": "out",
    },
    "figures": {"--run": "run", "--out": "new"},
    "walkthrough": {"--notebooks": "notebooks", "--only": "00", "--out": "new"},
}  # fmt: skip
FLAGS = {"generate": ["--no-cache"], "memory": ["--no-reversible"], "million": ["--repeat-text", "--loss-after"],
         "bench": ["--quick"], "walkthrough": ["--store"], "train": ["--resume"],
         "reproduce": ["--smoke", "--no-progress", "--no-record", "--list", "--table"]}  # fmt: skip
TEXT = b"the quick brown fox jumps over the lazy dog. " * 60
NOTEBOOK = '{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'
OF_FILES = (
    "--text",
    "--out",
    "--config",
    "--checkpoint",
    "--plot",
    "--json",
    "--run",
    "--notebooks",
    "--data",
    "--runs",
)
NEVER = {"--threads": {"64", "1000000"}}  # values that would change the machine more than a test may


class Began(Exception):
    """The work has begun: everything that was asked for was accepted."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder that `train` wrote."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_bytes(TEXT)
    line = [w for n, v in COMMANDS["train"].items() if v is not None for w in (n, v)]
    line += ["--no-progress", "--text", str(folder / "text.txt"), "--out", str(folder / "model")]
    assert cli.main(["train", *line]) == 0
    return folder / "model"


@pytest.fixture
def place(tmp_path, trained):
    """A folder with every kind of file, good and bad."""
    for name, content in {
        "text.txt": TEXT, "empty": b"", "one": b"a", "binary": bytes(range(256)) * 16, "locked": TEXT,
        "odd \n\t\udcff name": TEXT, "-dash": TEXT, "ok.json": config().to_json().encode(),
        "nan.json": b'{"dropout": NaN}', "deep.json": b"[" * 100_000, "list.json": b"[1, 2]",
        "wrong.json": b'{"d_modell": 3}', "digits.json": b'{"d_model": ' + b"9" * 5000 + b"}", "picture.ipynb": b"x",
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(content)
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(100 << 20)
    (tmp_path / "locked").chmod(0)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "broken").symlink_to("nowhere")
    for name in ("folder", "run", "notebooks"):
        (tmp_path / name).mkdir()
    (tmp_path / "run" / "metrics.json").write_text('{"curve": 3}')
    (tmp_path / "notebooks" / "00_a.ipynb").write_text(NOTEBOOK)
    (tmp_path / "notebooks" / "01_b.ipynb").write_text("{}")
    for copy in ("model", "halved"):
        shutil.copytree(trained, tmp_path / copy)
    for file in (tmp_path / "halved").rglob("*"):
        if file.is_file():
            os.truncate(file, file.stat().st_size // 2)
    return tmp_path


def config():
    sizes = {"d_model": 8, "n_layers": 1, "n_heads": 1, "d_ff": 8, "max_length": 64}
    return ReformerConfig(**sizes, pattern=("lsh",), lsh=LSHOptions.preset("strict", chunk_length=8))


@pytest.fixture(autouse=True)
def _nothing_long(monkeypatch, place):
    """Stand-ins for what takes long; threads and streams as before afterwards."""
    monkeypatch.chdir(place)

    def begin(*_, **__):
        raise Began

    make = processes.make_fabric
    monkeypatch.setattr(
        processes, "make_fabric", lambda device, n, *a, **k: make(device, n, *a, **k) if n == 1 else begin()
    )
    for module, name in (
        (training, "train"), (million, "train"), (bench_run, "measure"), (decoding, "ours"), (notebooks, "run"),
        (figures, "draw_all"), (figure5_depth, "run"), (reproduce._Work, "start"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, begin)
    monkeypatch.setattr(planner, "answer", begin)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run(argv, capfd):
    """(exit code or "began", stdout, stderr) of one command in this process."""
    capfd.readouterr()
    try:
        with torch.random.fork_rng():
            code = cli.main(argv)
    except SystemExit as stop:  # --help
        code = stop.code
    except Began:
        code = "began"
    out, err = capfd.readouterr()
    return code, out, err


def expect_one_line(argv, code, err):
    """A refusal is one line that begins with the program's name; nothing else is on stderr."""
    assert code in (0, 1, 2, "began"), f"exit code {code!r} from {argv!r}\n{err}"
    if code in (1, 2):
        assert err.count("\n") == 1, f"not one line but {err.count(chr(10))} from {argv!r}:\n{err}"
        assert err.startswith("reformer-ref"), f"not said by whom: {argv!r}\n{err}"
        assert len(err) > 25, f"hardly a sentence: {argv!r}\n{err}"
        assert len(err) < 2000, f"{len(err)} characters from {argv!r}"
    assert "Traceback" not in err


def command_line(draw, command):
    """A valid line of this command with none, one or two options replaced, left out, doubled or
    added.
    """
    options = dict(COMMANDS[command])
    words = [w for w in (*WORDS, *FILES) if "\0" not in w]
    flags = draw(st.lists(st.sampled_from(FLAGS.get(command, [""])), max_size=1))
    for name in draw(st.permutations(sorted(options)))[: draw(st.sampled_from([1, 1, 1, 2, 2, 0]))]:
        likely = FILES if name in OF_FILES else NUMERALS if (options[name] or "0")[0].isdigit() else WORDS
        good = [w for w in (likely if draw(st.integers(0, 3)) else words) if w not in NEVER.get(name, ())]
        options[name] = draw(st.sampled_from(good))
    line = [w for name, value in options.items() if value is not None for w in ([name] if name else []) + [value]]
    more = draw(st.sampled_from([[]] * 12 + [["--nonsense"], ["--nonsense\n3"], ["more"], ["--seed"]]))
    return [command, *line, *filter(None, flags), *more]


@pytest.mark.parametrize("command", COMMANDS)
def test_hostile_arguments(command, capfd, counts):
    counts |= {"target": f"cli.{command}", "seed": SEED, "accepted": 0, "refused": 0}

    @hypothesis.seed(SEED + zlib.crc32(command.encode()))
    @hypothesis.settings(
        max_examples=4 * CASES, database=None, deadline=None, derandomize=False, print_blob=False,
        phases=[Phase.generate], report_multiple_bugs=False, suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.data())
    def cases(data):
        argv = command_line(data.draw, command)
        code, _, err = run(argv, capfd)
        expect_one_line(argv, code, err)
        counts["refused" if code in (1, 2) else "accepted"] += 1

    cases()


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_right_is_accepted(command, capfd):
    """The lines that are spoilt here are good ones."""
    options = COMMANDS[command] | ({"--run": None} if command == "figures" else {})
    argv = [command, *(w for n, v in options.items() if v is not None for w in ([n] if n else []) + [v])]
    code, _, err = run(argv, capfd)
    assert code == (0 if command == "generate" else "began"), err


FILE_OPTIONS = [(command, name) for command, options in COMMANDS.items() for name in options if name in OF_FILES]


@pytest.mark.parametrize(("command", "option"), FILE_OPTIONS, ids=lambda x: x)
def test_every_kind_of_file(command, option, capfd, counts):
    """Every file option with every kind of file: answered at once, pipes and endless devices
    included.
    """
    counts |= {"target": f"cli.{command}{option.replace('--', '_')}", "seed": SEED, "accepted": 0, "refused": 0}
    for file in FILES:
        options = COMMANDS[command] | {option: file}
        argv = [command, *(w for n, v in options.items() if v is not None for w in ([n] if n else []) + [v])]
        code, _, err = run(argv, capfd)
        expect_one_line(argv, code, err)
        counts["refused" if code in (1, 2) else "accepted"] += 1
    assert counts["refused"] > (0 if option == "--out" else 3)  # a run looks at its folder itself


@pytest.mark.parametrize(("command", "option"), [("train", "--text"), ("million", "--text"), ("train", "--config")])
@pytest.mark.parametrize(
    "file", ["empty", "folder", "pipe", "/dev/zero", "missing", "text.txt/deeper", "broken", "loop"]
)
def test_bad_files_are_named(command, option, file, capfd):
    options = COMMANDS[command] | {option: file}
    code, out, err = run([command, *(w for n, v in options.items() if v is not None for w in (n, v))], capfd)
    expect_one_line(command, code, err)
    assert (code, out) == (2, "")
    assert file in err or (option, file) == ("--config", "empty")  # a text that is no configuration


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_locked_file_is_refused(capfd):
    code, _, err = run(["train", "--text", "locked", "--steps", "1"], capfd)
    assert code == 2
    assert "Permission denied" in err


@pytest.mark.parametrize(
    "argv",
    [
        ["train", "--text", "pipe"],
        ["train", "--text", "/dev/zero"],
        ["million", "--text", "empty"],
        ["train", "--text", "odd \udcff missing"],
        ["generate", "--checkpoint", "halved"],
        ["generate", "--checkpoint", "pipe"],
        ["memory", "--d-model", "9" * 5000],
        ["figures", "--run", "run"],
        ["walkthrough", "--notebooks", "empty"],
        ["bench", "attention", "--length", "100"],
        ["reproduce", "figure3", "--data", "/dev/zero"],
        ["dance\nwith me"],
    ],
    ids=lambda argv: ascii(" ".join(argv))[:40],
)
def test_in_a_real_process(argv, place, counts):
    counts |= {"target": "cli.process", "seed": SEED, "accepted": 0, "refused": 1}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    line = [os.fsencode(word) for word in [sys.executable, "-m", "reformer_lab", *argv]]
    done = subprocess.run(line, cwd=place, env=environment, capture_output=True, timeout=120, check=False)
    expect_one_line(argv, done.returncode, done.stderr.decode("utf-8", "replace"))
    assert (done.returncode, done.stdout) == (2, b"")


def test_the_files_are_what_they_are_called(place):
    assert ReformerConfig.from_json((place / "ok.json").read_text()) == config()
    assert json.loads((place / "run" / "metrics.json").read_text()) == {"curve": 3}
    assert stat.S_ISFIFO((place / "pipe").stat().st_mode)
    assert (place / "sparse").stat().st_size == 100 << 20
