"""How many Python calls inside the package a public call makes: a sign of how far a reader must go."""

import sys
from collections import Counter
from pathlib import Path

import torch
from reformer_ref.lsh_attention.api import lsh_attention
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.model import ReformerConfig, ReformerLM


def calls(function):
    """Calls of functions whose code lies in reformer_ref, comprehensions included, by file name."""
    function()  # what is done once only, such as imports, does not count
    count = Counter()

    def profile(frame, event, _):
        if event == "call" and "/reformer_ref/" in Path(frame.f_code.co_filename).as_posix():
            count[Path(frame.f_code.co_filename).name] += 1

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


def test_loss_of_a_model_of_two_layers():
    config = ReformerConfig(d_model=32, n_heads=2, n_layers=2, pattern=("local", "lsh"), max_length=256)
    model, tokens = ReformerLM(config).train(), torch.randint(0, 256, (1, 256))
    count = calls(lambda: model.loss(tokens))
    print(f"{count.total()} calls, by file: {count.most_common()}")
    assert count.total() <= 200
    assert count["_arguments.py"] + count["_tensors.py"] <= 20


@torch.no_grad()
def test_lsh_attention():
    options = LSHOptions.preset("paper", n_hashes=2)
    qk, v = torch.randn(2, 2, 256, 16, generator=torch.Generator().manual_seed(0))
    buckets = torch.randint(0, 8, (2, 2, 256), generator=torch.Generator().manual_seed(1))
    count = calls(lambda: lsh_attention(qk, v, buckets, options))
    print(f"{count.total()} calls, by file: {count.most_common()}")
    assert count.total() <= 40
