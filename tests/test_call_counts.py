"""A call of a public function stays shallow: few Python calls inside the package, and few of them checks."""

import sys
from pathlib import Path

import torch
from reformer_ref.lsh_attention.api import lsh_attention
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.model import ReformerConfig, ReformerLM


def calls_inside(fn):
    """File and name of the functions of reformer_ref that ``fn()`` calls, once per call; comprehensions count."""
    names = []

    def profile(frame, event, _):
        if event == "call" and "/reformer_ref/" in frame.f_code.co_filename:
            names.append((Path(frame.f_code.co_filename).name, frame.f_code.co_name))

    fn()  # what happens only once happens now
    sys.setprofile(profile)
    try:
        fn()
    finally:
        sys.setprofile(None)
    return names


@torch.no_grad()
def test_lsh_attention():
    options = LSHOptions.preset("paper", n_hashes=2)
    qk, v = torch.randn(2, 2, 256, 16, generator=torch.Generator().manual_seed(0))
    buckets = torch.randint(0, 8, (2, 2, 256), generator=torch.Generator().manual_seed(1))
    names = calls_inside(lambda: lsh_attention(qk, v, buckets, options))
    print(f"{len(names)} calls: {names}")
    assert len(names) <= 40


def test_loss_of_a_model_of_two_layers():
    config = ReformerConfig(d_model=32, n_heads=2, n_layers=2, pattern=("local", "lsh"), max_length=256)
    model, tokens = ReformerLM(config).train(), torch.randint(0, 256, (1, 256))
    names = calls_inside(lambda: model.loss(tokens))
    checks = [name for file, name in names if file in ("_arguments.py", "_tensors.py")]
    print(f"{len(names)} calls, {len(checks)} of them checks: {names}")
    assert len(names) <= 200
    assert len(checks) <= 20
