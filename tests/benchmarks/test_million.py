"""``million`` at a length of a few hundred, its record, and its mistakes; and what every record
says about itself.
"""

import json

import pytest
import torch
from reformer_lab import cli
from reformer_lab.benchmarks import million, record
from reformer_ref.model.pytorch import ReformerLM

SMALL = [
    "--length",
    "256",
    "--n-layers",
    "2",
    "--d-model",
    "32",
    "--n-heads",
    "2",
    "--d-ff",
    "64",
    "--chunk-length",
    "16",
]


def arguments(*words):
    return cli.parse(["million", *map(str, words)])


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "a text.txt"
    path.write_bytes(b"It was the best of times, it was the worst of times. " * 6)
    return path


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(text, tmp_path, *words):
    out = tmp_path / "data" / "million.json"
    args = arguments("--text", text, *SMALL, "--threads", 1, "--no-progress", "--out", out, *words)
    assert args.run("reformer-ref million") == 0
    return json.loads(out.read_text())


def test_defaults_are_the_million_of_the_paper():
    args = arguments("--text", "x")
    config = million.model_config(args)
    assert args.length == config.max_length == 2**20
    assert config.axial_shape == (1024, 1024)
    assert (config.n_layers, config.d_model, config.n_heads, config.d_ff, config.lsh.n_hashes) == (6, 256, 4, 1024, 2)
    assert config.layers == ("lsh",) * 6
    assert config.reversible
    assert config.ff_chunk == config.loss_chunk == 4096


def test_steps_are_recorded(text, tmp_path, capsys):
    data = run(text, tmp_path, "--steps", 3, "--learning-rate", 0.01, "--pattern", "local,lsh", "--loss-after")
    assert {"command", "date", "machine", "versions", "config", "parameters", "peak_rss_bytes"} <= data.keys()
    assert data["text"]["name"] == "a text.txt"
    assert data["text"]["bytes"] == 318
    assert data["text"]["used_bytes"] == 256
    assert data["config"]["pattern"] == ["local", "lsh"]
    losses = [step["bits_per_byte"] for step in data["steps"]] + [data["bits_per_byte_after"]]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]
    for step in data["steps"]:
        assert sum(step["parts"].values()) == pytest.approx(step["seconds"])
        assert 0 < step["peak_rss_bytes"] <= data["peak_rss_bytes"]
    layers = ("lsh attention", "local attention", "feed-forward", million.UNFOLLOWED)
    parts = {f"{way}, {layer}" for way in ("forward", "backward") for layer in layers}
    assert data["steps"][0]["parts"].keys() == parts | {"optimiser"}
    printed = capsys.readouterr().out
    assert "bits per byte" in printed
    assert "GiB at the peak of the whole process" in printed


def test_the_clock_leaves_the_model_as_it_was(text):
    args = arguments("--text", text, *SMALL, "--no-progress")
    model, plain = (ReformerLM(million.model_config(args)) for _ in "ab")
    tokens, _ = million.read_tokens(text, 256)
    loss = million.train(model, tokens, args)["steps"][0]["bits_per_byte"]
    from reformer_lab.data.text import bits
    from reformer_lab.training.loop import step_generator

    assert loss == pytest.approx(bits(plain.loss(tokens, generator=step_generator(0, 0)).item()), rel=1e-6)
    assert "observe" not in model.backbone.__dict__


def test_a_short_text_is_repeated_only_if_asked(text):
    with pytest.raises(ValueError, match=r"318 bytes, the sequence 400.*--repeat-text"):
        million.read_tokens(text, 400)
    tokens, about = million.read_tokens(text, 400, repeat=True)
    assert tokens.shape == (1, 400)
    assert about["repeated"] is True
    assert torch.equal(tokens[0, 318:], tokens[0, :82])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", 0], "--steps must be at least 1"),
        (["--learning-rate", 0], "--learning-rate must be more than 0"),
        (["--seed", -1], "--seed must be at least 0"),
        (["--threads", 0], "--threads must be at least 1"),
        (["--length", 1], "--length must be at least 2"),
        (["--length", 100_000], "has 318 bytes"),
        (["--pattern", "nothing"], "pattern must be one of"),
        (["--preset", "none"], "preset must be one of"),
        (["--n-heads", 3], "divisible by n_heads"),
        (["--text", "nowhere"], "--text: the text file 'nowhere' does not exist"),
    ],
)
def test_mistakes_are_told(text, words, message):
    args = arguments("--text", text, *SMALL, *words)
    with pytest.raises(ValueError, match=message):
        args.run("reformer-ref million")


def test_running_out_of_memory_ends_with_code_1(text, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.")

    monkeypatch.setattr(million, "train", fail)
    words = ["million", "--text", str(text), *SMALL, "--out", str(tmp_path / "x.json")]
    assert cli.main(words) == 1
    assert "out of memory" in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()


# Records


def test_a_record_names_no_folder_of_this_machine():
    said = record.without_folders("reformer-ref million --text /some/where/a.txt --out=/x/y.json --length 5 b/c.txt")
    assert said == "reformer-ref million --text a.txt --out=y.json --length 5 b/c.txt"


def test_a_record_is_json_with_a_line_per_result(tmp_path):
    value = {"a": 1, "points": [{"x": [1, 2]}, {"x": []}], "empty": [], "é": None}
    record.write(tmp_path / "new" / "r.json", value)
    text = (tmp_path / "new" / "r.json").read_text()
    assert json.loads(text) == value
    assert len(text.splitlines()) == 9
    with pytest.raises(ValueError, match="JSON"):
        record.write(tmp_path / "r.json", {"a": float("nan")})


def test_peak_rss_grows_with_memory():
    before = record.peak_rss()
    kept = torch.ones(1 << 24)  # 64 MiB
    assert record.peak_rss() >= before > 2**20
    del kept
