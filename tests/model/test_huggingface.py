"""Which models have a counterpart in transformers; transformers itself is not needed."""

from dataclasses import replace

import pytest
import torch
from reformer_ref.huggingface.weights import to_huggingface
from reformer_ref.local_attention.options import LocalOptions
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.model.config import ReformerConfig
from reformer_ref.model.pytorch import ReformerLM

LSH = LSHOptions.preset("huggingface", n_hashes=2, n_buckets=(4, 4), chunk_length=4)
LOCAL = LocalOptions(chunk_length=6, wrap=True)
THEIRS = ReformerConfig(
    vocab_size=5, d_model=8, n_layers=2, n_heads=2, max_length=16, lsh=LSH, local=LOCAL, length_multiple=12
)
WITHOUT = {
    "pattern must hold": {"pattern": ("lsh", "dense", "local")},
    "positions must be": {"positions": "sinusoidal"},
    "axial_shape must have two axes": {"axial_shape": (2, 2, 4)},
    "tie_head must be False": {"tie_head": True},
    "streams must be 2, got 1": {"streams": 1, "reversible": False},
    "d_v must be d_head (4), got 3": {"d_v": 3},
    "lsh.within_bucket must be False": {"lsh": replace(LSH, within_bucket=True)},
    "lsh.count_once must be False": {"lsh": replace(LSH, count_once=True)},
    "lsh.wrap must be True": {"lsh": replace(LSH, wrap=False)},
    "lsh.window must be 'chunk'": {"lsh": LSHOptions.preset("strict", n_buckets=4, chunk_length=4)},
    "lsh.scale must be 1.0, got 'rsqrt_d'": {"lsh": replace(LSH, scale="rsqrt_d")},
    "lsh.norm_eps must be 1e-06, got 0.0": {"lsh": replace(LSH, norm_eps=0.0)},
    "lsh.chunks_after must be 0, got 1": {"lsh": replace(LSH, chunks_after=1)},
    "local.wrap must be True": {"local": replace(LOCAL, wrap=False)},
    "local.scale must be None, got 1.0": {"local": replace(LOCAL, scale=1.0)},
    "local.chunks_after must be 0, got 1": {"local": replace(LOCAL, chunks_after=1)},
    "length_multiple must be 12": {"length_multiple": 6},
}
BOTH_WAYS = {"causal": False, "lsh": replace(LSH, causal=False, chunks_after=1)}
WITH = {
    "as it is": {},
    "free choices": {"dropout": 0.1, "reversible": False, "seed": 3, "ff_chunk": 2, "loss_chunk": 3, "max_length": 9},
    "scale as a number": {"local": replace(LOCAL, scale=0.5)},
    "other windows": {"lsh": replace(LSH, n_buckets=None, chunks_before=2), "norm_eps": 1e-12, "activation": "gelu"},
    "not causal": {**BOTH_WAYS, "local": replace(LOCAL, causal=False, chunks_after=1)},
    "one kind": {"pattern": ("lsh",), "local": LocalOptions(chunk_length=5), "length_multiple": 1},
    "learned positions": {"positions": "learned", "d_head": 5, "d_v": 5},
}


@pytest.mark.parametrize("reason", WITHOUT)
def test_what_transformers_cannot_compute_is_refused_in_both_directions(reason):
    config = replace(THEIRS, **{"axial_shape": None, "axial_dims": None, **WITHOUT[reason]})
    with pytest.raises(ValueError, match="does not fit weights of transformers") as there:
        to_huggingface(ReformerLM(config))
    with pytest.raises(ValueError, match="does not fit weights of transformers") as back:
        ReformerLM.from_huggingface({}, config)
    assert reason in str(there.value)
    assert str(there.value) == str(back.value)


def test_one_message_lists_every_reason():
    config = ReformerConfig(d_model=8, d_v=3, tie_head=True, streams=1, reversible=False, pattern=("lsh", "local"))
    with pytest.raises(ValueError, match="does not fit weights of transformers") as caught:
        to_huggingface(ReformerLM(config))
    reasons = ["tie_head", "streams", "d_v", "lsh.within_bucket", "lsh.count_once", "lsh.wrap", "local.wrap"]
    assert [reason.split()[0] for reason in str(caught.value).partition(": ")[2].split("; ")] == reasons


@torch.no_grad()
@pytest.mark.parametrize("name", WITH)
def test_what_it_computes_goes_there_and_back(name):
    config = replace(THEIRS, axial_shape=None, axial_dims=None, **WITH[name])
    model = ReformerLM(config).eval()
    back = ReformerLM.from_huggingface(to_huggingface(model), config, add_head_bias=True)
    tokens = torch.arange(9)[None] % 5
    assert torch.equal(back(tokens), model(tokens))
