"""The command line as a user runs it: real processes, a tiny model, exit codes and what is printed."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from reformer_lab import cli
from reformer_lab.options import ModelOptions
from reformer_lab.training import checkpoint
from reformer_lab.training import loop as training
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.model.config import ReformerConfig

ROOT = Path(__file__).resolve().parents[1]
TINY = {
    "length": 64, "batch": 2, "n-layers": 2, "d-model": 16, "n-heads": 2, "d-ff": 32, "chunk-length": 8,
    "learning-rate": 1e-2, "warmup": 1, "held-out-windows": 2, "evaluate-every": 2, "threads": 1,
}  # fmt: skip
TINY = [word for name, value in TINY.items() for word in (f"--{name}", str(value))]


def start(*args, cwd):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "reformer_lab", *map(str, args)],
        cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def call(*args, cwd):
    process = start(*args, cwd=cwd)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with text.txt and runs/text, trained for three steps by the real command."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "text.txt").write_bytes(b"the quick brown fox jumps over the lazy dog. " * 60)
    code, out, err = call("train", "--text", "text.txt", "--steps", 3, *TINY, cwd=folder)
    assert code == 0, err
    (folder / "out.txt").write_text(out)
    (folder / "err.txt").write_text(err)
    return folder


def test_train_says_what_it_does_and_writes_what_it_learned(trained):
    out, metrics = ((trained / "out.txt").read_text(), json.loads((trained / "runs/text/metrics.json").read_text()))
    assert "text.txt: 2,430 bytes to train on, 270 held out" in out
    assert f"{metrics['parameters']:,} parameters: 2 layers (local, lsh)" in out
    baselines = metrics["held_out_bits_per_byte"]
    assert f"{baselines['unigram']:.3f} bits per byte by byte frequencies, {baselines['zlib']:.3f} by zlib" in out
    first, last = metrics["evaluations"][0], metrics["evaluations"][-1]
    assert f"{first['bits']:.3f} bits per byte before, {last['bits']:.3f} after 3 steps" in out
    assert last["bits"] < first["bits"]
    assert metrics["steps"] == len(metrics["curve"]) == 3
    assert metrics["command"].startswith("reformer-ref train --text text.txt --steps 3")
    assert metrics["config"]["lsh"]["window"] == "rank"  # strict: generation computes the function that was trained
    assert "3/3" in (trained / "err.txt").read_text()  # the progress bar
    assert str(trained) not in json.dumps(metrics)
    folder = trained / "runs/text"
    assert sorted(p.name for p in folder.iterdir()) == [
        ".lock", "checkpoints", "metrics.json", "metrics.jsonl", "timings.jsonl",
    ]  # fmt: skip
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["bits"] for line in lines if "bits" in line] == [point["bits"] for point in metrics["curve"]]
    assert [line["step"] for line in lines if "held_out_bits" in line] == [0, 2, 3]
    timings = [json.loads(line) for line in (folder / "timings.jsonl").read_text().splitlines()]
    assert [line["step"] for line in timings] == [1, 2, 3]
    assert all(line["tokens_per_second"] > 0 and line["peak_bytes"] > 1e8 for line in timings)


def test_the_same_seed_trains_the_same_weights(trained, tmp_path):
    def weights(folder):
        last = checkpoint.newest(folder)[0]
        return {name: t.numpy().tobytes() for name, t in (last.weights | last.training).items()}

    common = ["train", "--text", str(trained / "text.txt"), "--steps", "3", *TINY, "--no-progress", "--out"]
    code, _, err = call(*common, tmp_path / "again", cwd=tmp_path)
    assert (code, err) == (0, "")
    assert weights(tmp_path / "again") == weights(trained / "runs/text")
    assert cli.main([*common, str(tmp_path / "other"), "--seed", "1"]) == 0
    assert weights(tmp_path / "other") != weights(trained / "runs/text")


def test_generate_continues_the_prompt(trained, monkeypatch, capfdbinary):
    def generate(*more):
        assert (
            cli.main([*["generate", "--prompt", "fox", "--tokens", "20", "--top-k", "5", "--top-p", "0.9"], *more]) == 0
        )
        out, err = capfdbinary.readouterr()
        assert err == b""
        assert len(out) == len("fox") + 20 + 1
        return out

    monkeypatch.chdir(trained)
    assert generate().startswith(b"fox")
    assert generate() == generate()
    assert generate("--seed", "1") != generate()


def test_ctrl_c_keeps_what_was_learned(trained, tmp_path):
    process = start("train", "--text", trained / "text.txt", "--steps", 100_000, *TINY, cwd=tmp_path)
    for line in process.stdout:  # the model is described just before training starts
        if line.startswith("baselines"):
            break
    time.sleep(2.0)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "interrupted after" in err.splitlines()[-1]
    metrics = json.loads((tmp_path / "runs/text/metrics.json").read_text())
    assert metrics["interrupted"] is True
    assert metrics["steps"] == len(metrics["curve"]) < 100_000
    checkpoint.load(tmp_path / "runs/text")


WRONG = [
    ("", "Expected one of {train, generate"),
    ("dance", "Unrecognized options: dance"),
    ("train --task chess", "invalid choice 'chess' for argument '--task'"),
    ("train --steps many", "Error parsing --steps"),
    ("train --steps 3 --minutes 1", "give either --steps or --minutes"),
    ("train --text text.txt --length 64 --recipe bert", "--recipe must be one of"),
    ("train --text text.txt --length 64 --optimizer sgd", "optimizer must be one of"),
    ("train --text text.txt --length 64 --precision 8", "precision must be one of"),
    (
        "train --text text.txt --length 64 --accumulate 2 --steps 1 --out other",
        "cannot be divided by 1 processes × 2 micro-batches",
    ),
    ("train --text text.txt --length 64 --processes 0", "--processes must be at least 1"),
    ("train --text text.txt --length 64 --timeout 0", "--timeout must be at least 1 second"),
    ("train --text text.txt --length 64 --checkpoint-every -1", "checkpoint_every must be at least 0"),
    ("train --text text.txt --length 64 --checkpoint-minutes inf", "checkpoint_minutes must be finite"),
    ("train --text text.txt --length 64 --config missing.json", "missing.json: it cannot be read: No such file"),
    ("train --text text.txt --length 64 --config text.txt", "not valid JSON"),
    ("train --text text.txt --length 64 --config short.json", "max_length of at least --length (64)"),
    ("train --text text.txt --length 64 --steps 3", "runs/text already holds a run; go on with it (--resume)"),
    (
        "train --text text.txt --length 64 --steps 3 --resume",
        "of another run, which cannot go on as this one: batch is 2",
    ),
    ("train --text missing.txt", "missing.txt' does not exist"),
    ("train --text .", "is a directory"),
    ("train --text empty.txt", "is empty"),
    ("train --text text.txt --length 100000 --steps 1", "fewer than one window"),
    ("train --text text.txt --length 64 --steps 0", "steps must be at least 1"),
    ("train --text text.txt --length 64 --minutes -1", "minutes must be at least 0"),
    ("train --text text.txt --length 64 --minutes nan", "minutes must be finite"),
    ("train --text text.txt --length 64 --learning-rate 0", "learning_rate must be more than 0"),
    ("train --text text.txt --length 64 --learning-rate 1e38", "learning_rate must be less than"),
    ("train --text text.txt --length 64 --schedule linear", "schedule must be one of"),
    ("train --text text.txt --length 64 --preset best", "preset must be one of"),
    ("train --text text.txt --length 64 --pattern local,magic", "pattern"),
    ("train --text text.txt --length 64 --n-heads 3", "n_heads"),
    ("train --text text.txt --length 64 --batch 0", "batch must be at least 1"),
    ("train --text text.txt --length 0", "length"),
    ("train --text text.txt --length 64 --seed -1", "seed must be at least 0"),
    ("train --text text.txt --length 64 --seed 99999999999999999999", "seed must be at most"),
    ("train --text text.txt --length 64 --threads 0", "--threads must be at least 1"),
    ("train --text text.txt --length 64 --device toaster", "--device toaster cannot be used"),
    ("train --text text.txt --length 64 --dropout 1.0", "dropout must be less than 1"),
    ("train --text text.txt --length 64 --held-out-windows 0", "count must be at least 1"),
    ("train --text text.txt --length 64 --out text.txt", "cannot write to --out text.txt"),
    ("generate --checkpoint nowhere", "no checkpoint in nowhere"),
    ("generate --checkpoint text.txt", "text.txt"),
    ("generate --prompt ", "--prompt must hold at least one character"),
    ("generate --tokens -1", "max_new_tokens must be at least 0"),
    ("generate --temperature -1", "temperature must be at least 0"),
    ("generate --top-k 0", "top_k must be at least 1"),
    ("generate --top-p 2", "top_p must be in (0, 1]"),
    ("generate --seed -1", "--seed must be in"),
    ("figures --run nowhere", "train one first"),
    ("figures --run broken", "is not what `train` writes"),
]


@pytest.mark.parametrize(("line", "message"), WRONG, ids=[line or "nothing" for line, _ in WRONG])
def test_mistakes_end_with_one_line_and_exit_code_2(line, message, trained, monkeypatch, capfd):
    monkeypatch.chdir(trained)
    Path("empty.txt").touch()
    Path("broken").mkdir(exist_ok=True)
    Path("broken/metrics.json").write_text('{"curve": 3}')
    Path("short.json").write_text('{"max_length": 32}')
    code = cli.main(line.split(" ") if line else [])
    out, err = capfd.readouterr()
    assert code == 2
    assert err.count("\n") == 1, err
    assert message in err
    assert err.startswith("reformer-ref")
    assert "held out  " not in out


def test_a_configuration_in_a_file_replaces_the_options_of_the_model(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(trained)
    config = ReformerConfig(d_model=24, n_heads=2, n_layers=1, pattern=("local",), max_length=64, seed=3)
    Path("model.json").write_text(config.to_json())
    out = str(tmp_path / "run")
    assert cli.main(["train", "--text", "text.txt", "--steps", "1", *TINY, "--config", "model.json", "--out", out]) == 0
    assert checkpoint.load(out)[0].config == config


def test_a_mistake_gives_no_traceback_in_a_real_process(trained):
    code, out, err = call("train", "--text", "missing.txt", cwd=trained)
    assert (code, out) == (2, "")
    assert err == "reformer-ref: --text: the text file 'missing.txt' does not exist\n"


@pytest.mark.parametrize("line", ["generate", "memory --length 64", "train --text text.txt", "dance", "--help"])
def test_without_standard_output_there_is_one_line(line, trained):
    command = f"{sys.executable} -m reformer_lab {line} >&-"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, shell=True, cwd=trained, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("reformer-ref: there is no standard output to write to")


def test_processes_that_fail_alike_say_so_once(trained, tmp_path):
    words = ["--text", trained / "text.txt", "--out", trained / "runs/text", "--processes", 2]
    code, _, err = call("train", *words, "--steps", 3, *TINY, cwd=tmp_path)
    assert code == 2
    assert err.count("reformer-ref:") == 1, err
    assert "runs/text already holds a run" in err


def test_a_run_that_diverges_exits_with_1(trained, monkeypatch, capfd):
    def diverge(*args, **kwargs):
        raise training.NonFiniteLoss("the loss is nan at step 3")

    monkeypatch.chdir(trained)
    monkeypatch.setattr(training, "train", diverge)
    assert cli.main(["train", "--text", "text.txt", "--steps", "9", *TINY, "--out", "diverged"]) == 1
    assert capfd.readouterr().err == "reformer-ref: the loss is nan at step 3\n"


def test_dropout_is_seeded_and_the_global_state_put_back(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(trained)
    state, weights = torch.get_rng_state(), []
    for name in ("a", "b"):
        line = ["train", "--text", "text.txt", "--steps", "2", *TINY, "--dropout", "0.3", "--out", str(tmp_path / name)]
        assert cli.main(line) == 0
        weights.append(checkpoint.load(tmp_path / name)[1].weights)
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert torch.equal(torch.get_rng_state(), state)


COMMANDS = [[], *([name] for name in cli.COMMANDS), ["classroom", "grade"]]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_is_complete(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([*command, "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert f"usage: {' '.join(['reformer-ref', *command])}" in out
    assert "default: None" not in out


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_does_not_wait_for_torch(command):
    code = f"""import sys
from reformer_lab import cli
try:
    cli.main({[*command, "--help"]})
except SystemExit as stop:
    sys.exit(stop.code or "torch" in sys.modules)"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_options_of_the_model_are_fields_of_its_configuration():
    """One name for one thing: of each option that all commands share, and of those of a training run."""
    renamed = {"preset", "local_chunk_length"}  # a preset gives the other fields of LSHOptions
    names = {field.name for kind in (ReformerConfig, LSHOptions) for field in fields(kind)}
    assert {field.name for field in fields(ModelOptions)} - renamed <= names
    values = {"n_layers": 3, "d_ff": 12, "n_hashes": 5, "ff_chunk": 7, "local_chunk_length": 4, "pattern": "lsh, local"}
    config = ModelOptions(**values).config(vocab_size=9, max_length=64)
    assert (config.n_layers, config.d_ff, config.lsh.n_hashes, config.vocab_size) == (3, 12, 5, 9)
    assert (config.ff_chunk, config.loss_chunk, config.local.chunk_length) == (7, None, 4)
    assert config.pattern == ("lsh", "local")


@pytest.mark.parametrize("kind", cli.COMMANDS.values(), ids=cli.COMMANDS)
def test_options_with_one_meaning_have_one_name(kind):
    """No command has another word for what the shared options say."""
    words = {field.name for field in fields(kind)} | {field.name for field in fields(ModelOptions)}
    assert not words & {"layers", "heads", "rounds", "lr", "lengths", "depths", "slice", "reversible"}


def test_options_of_train_reach_the_training():
    options = cli.parse(["train", "--steps", "5", "--recipe", "wmt", "--warmup", "3", "--clip", "2"]).training_options()
    assert (options.steps, options.minutes, options.warmup, options.clip, options.schedule) == (
        5,
        None,
        3,
        2.0,
        "rsqrt",
    )
    options = cli.parse(["train"]).training_options()
    assert (options.steps, options.minutes, options.learning_rate, options.optimizer) == (None, 4.7, 0.01, "adam")


def test_running_out_of_memory_is_one_line(monkeypatch, capsys):
    for error in (MemoryError("none left"), RuntimeError("[enforce fail] can't allocate memory:\nyou tried")):

        def fail(self, line, error=error):
            raise error

        monkeypatch.setattr(cli.COMMANDS["figures"], "run", fail)
        assert cli.main(["figures"]) == 1
        text = capsys.readouterr().err
        assert text.startswith("reformer-ref: out of memory: ")
        assert text.count("\n") == 1
