"""The quick run: every component's checks on its specification, its plain PyTorch version and its public function."""

import pytest
import torch
from reformer_ref import ReformerConfig, ReformerLM, reversible_stack
from tests.all_checks import all_checks

pytestmark = pytest.mark.quick
CHECKS = list(all_checks())


@pytest.mark.parametrize("check", [check for _, check in CHECKS], ids=[name for name, _ in CHECKS])
def test_all_versions_pass_the_checks(check):
    check()


def test_a_reversible_stack_is_the_ordinary_one():
    layers = [torch.nn.Linear(4, 4, dtype=torch.float64) for _ in range(4)]
    streams = torch.randn((2, 3, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gradients = []
    for reversible in (True, False):
        y1, y2 = reversible_stack(streams, streams, [layers[:2], layers[2:]], reversible=reversible)
        parameters = [p for layer in layers for p in layer.parameters()]
        gradients.append(torch.autograd.grad((y1 * y2).sum(), parameters))
    for got, want in zip(*gradients, strict=True):
        assert torch.allclose(got, want, rtol=1e-12, atol=1e-12)


def test_a_model_learns():
    config = ReformerConfig(vocab_size=8, d_model=16, n_layers=2, n_heads=2, pattern=("local", "lsh"), max_length=64)
    model, tokens = ReformerLM(config), torch.arange(64)[None] % 7
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(20):
        loss = model.loss(tokens)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
