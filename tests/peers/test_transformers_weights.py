"""Folders that transformers writes, the two published shapes, the way back, and damaged files."""

import json
import shutil

import pytest
import torch
from reformer_ref.huggingface.files import DEFAULTS
from reformer_ref.huggingface.weights import to_huggingface
from reformer_ref.model.config import ReformerConfig
from reformer_ref.model.pytorch import ReformerLM
from reformer_ref.testing import relative_error
from safetensors.torch import load_file, save_file

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peers

# The configurations of the two published models, as their names on the hub say them.
PUBLISHED = {
    "google/reformer-crime-and-punishment": {
        "attn_layers": ["local", "lsh", "local", "lsh", "local", "lsh"], "axial_pos_embds_dim": [64, 192],
        "axial_pos_shape": [512, 1024], "attention_head_size": 64, "feed_forward_size": 512, "hidden_act": "relu",
        "hidden_size": 256, "is_decoder": True, "max_position_embeddings": 524288, "num_attention_heads": 2,
        "num_buckets": [64, 128], "num_hashes": 1, "vocab_size": 320, "lsh_attn_chunk_length": 64,
        "local_attn_chunk_length": 64,
    },
    "google/reformer-enwik8": {
        "attn_layers": ["local", "local", "lsh", "local"] * 3, "axial_pos_embds_dim": [256, 768],
        "axial_pos_shape": [128, 512], "attention_head_size": 128, "feed_forward_size": 4096, "hidden_act": "relu",
        "hidden_size": 1024, "is_decoder": True, "max_position_embeddings": 65536, "num_attention_heads": 8,
        "num_buckets": [64, 128], "num_hashes": 4, "vocab_size": 258, "lsh_attn_chunk_length": 256,
        "local_attn_chunk_length": 128,
    },
}  # fmt: skip
SMALL = {
    "attn_layers": ["local", "lsh"], "vocab_size": 13, "hidden_size": 8, "num_attention_heads": 3,
    "attention_head_size": 4, "feed_forward_size": 10, "axial_pos_shape": [8, 8], "axial_pos_embds_dim": [3, 5],
    "max_position_embeddings": 64, "num_hashes": 2, "num_buckets": [4, 4], "lsh_attn_chunk_length": 4,
    "local_attn_chunk_length": 4, "is_decoder": True, "hidden_dropout_prob": 0.0,
}  # fmt: skip


def their_model(values, dtype=torch.float32):
    config = transformers.ReformerConfig(**values, hash_seed=3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.ReformerModelWithLMHead(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return model.to(dtype)


@torch.no_grad()
def same_logits(theirs, ours, length, vocab_size):
    tokens = torch.randint(vocab_size, (2, length), generator=torch.Generator().manual_seed(1))
    with torch.random.fork_rng():
        want = theirs(tokens, use_cache=False).logits
    return relative_error(ours(tokens), want)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("pretrained")
    their_model(SMALL).save_pretrained(path)
    return path


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_shapes_both_ways(name, tmp_path):
    """Random weights in the shapes of the published models: logits to 1e-10 in float64, there and
    back.
    """
    theirs = their_model(PUBLISHED[name])
    theirs.save_pretrained(tmp_path)
    ours = ReformerLM.from_huggingface(tmp_path)
    assert not ours.training
    theirs, ours = theirs.double(), ours.double()
    for block in ours.backbone.stack.blocks:  # rotations as transformers draws them in float64
        layer = block.layers[0]
        if layer.kind == "lsh":
            n_heads, n_hashes, d, width = layer.rotations.shape
            drawn = torch.randn(
                n_heads, d, n_hashes, width, generator=torch.Generator().manual_seed(3), dtype=torch.float64
            )
            layer.rotations.copy_(drawn.transpose(1, 2))
    vocab_size = PUBLISHED[name]["vocab_size"]
    assert same_logits(theirs, ours, 600, vocab_size) <= 1e-10
    back = transformers.ReformerModelWithLMHead(theirs.config).double().eval()
    back.load_state_dict(to_huggingface(ours), strict=True)
    assert same_logits(back, ours, 600, vocab_size) <= 1e-10


def test_a_folder_gives_the_model(folder):
    theirs = transformers.ReformerModelWithLMHead.from_pretrained(folder).eval()
    assert same_logits(theirs, ReformerLM.from_huggingface(folder), 32, 13) <= 1e-4
    assert same_logits(theirs, ReformerLM.from_huggingface(str(folder)), 32, 13) <= 1e-4


@pytest.mark.parametrize("form", ["in parts", "pickled"])
def test_other_forms_of_weights(folder, tmp_path, form):
    shutil.copy(folder / "config.json", tmp_path)
    weights = load_file(folder / "model.safetensors")
    if form == "pickled":
        torch.save(weights, tmp_path / "pytorch_model.bin")
    else:
        names = sorted(weights)
        parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
        for file, some in parts.items():
            save_file({n: weights[n] for n in some}, tmp_path / file)
        index = {"weight_map": {n: file for file, some in parts.items() for n in some}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    want, got = (ReformerLM.from_huggingface(folder).state_dict(), ReformerLM.from_huggingface(tmp_path).state_dict())
    assert all(torch.equal(want[n], got[n]) for n in want)


def test_defaults_are_those_of_transformers():
    theirs = transformers.ReformerConfig()
    ours = {name: tuple(value) if isinstance(value, list) else value for name, value in DEFAULTS.items()}
    assert {name: getattr(theirs, name) for name in DEFAULTS} == ours


def test_there_and_back_gives_the_same_numbers(folder):
    ours = ReformerLM.from_huggingface(folder, add_head_bias=True)
    given = load_file(folder / "model.safetensors")
    back = to_huggingface(ours)
    assert all(torch.equal(back[name], given[name]) for name in given)


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


def _damage(folder, how):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "header too long":
        path.write_bytes((2**40).to_bytes(8, "little") + content[8:])
    elif how == "header no JSON":
        path.write_bytes(content[:8] + b"x" * 40 + content[48:])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "no weights":
        path.unlink()
    elif how == "a pickle that executes":
        path.unlink()
        torch.save(Bomb(), folder / "pytorch_model.bin")
    elif how == "parts elsewhere":
        path.unlink()
        index = {"weight_map": {"a": "../model.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    elif how == "config no JSON":
        (folder / "config.json").write_text("{")
    elif how == "another model":
        (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    elif how == "no config":
        (folder / "config.json").unlink()
    else:
        weights = load_file(path)
        name = "reformer.encoder.layer_norm.weight"
        if how == "missing":
            del weights[name]
        elif how == "extra":
            weights["more"] = torch.zeros(2)
        elif how == "shape":
            weights[name] = torch.zeros(3)
        elif how == "dtype":
            weights[name] = weights[name].half()
        elif how == "not a number":
            weights[name] = weights[name] * float("nan")
        save_file(weights, path)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("truncated", "cannot be read as weights"), ("header too long", "cannot be read as weights"),
        ("header no JSON", "cannot be read as weights"), ("empty", "cannot be read as weights"),
        ("no weights", "no weights in"), ("a pickle that executes", "cannot be read as weights"),
        ("parts elsewhere", "outside the folder"), ("config no JSON", "config.json cannot be read"),
        ("another model", "must describe a Reformer"), ("no config", "config.json cannot be read"),
        ("missing", "missing: reformer.encoder.layer_norm.weight"), ("extra", "unknown: more"),
        ("shape", "shape of reformer.encoder.layer_norm.weight"), ("dtype", "dtype of reformer.encoder.layer_norm"),
        ("not a number", "not finite: reformer.encoder.layer_norm.weight"),
    ],
)  # fmt: skip
def test_damaged_folders_are_told(folder, tmp_path, how, words):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    _damage(copy, how)
    with pytest.raises(ValueError, match=words):
        ReformerLM.from_huggingface(copy)


def test_names_that_are_no_folder_are_told(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="no folder here"):
        ReformerLM.from_huggingface("google/no-such-model")


@pytest.mark.parametrize("changes", [{"pattern": ("dense",)}, {"tie_head": True}, {"positions": "none"}])
def test_models_without_counterpart_are_told(changes):
    model = ReformerLM(ReformerConfig(vocab_size=5, d_model=8, n_layers=1, n_heads=1, max_length=16, **changes))
    with pytest.raises(ValueError, match="does not fit weights of transformers"):
        to_huggingface(model)
