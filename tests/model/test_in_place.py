"""Layers work in place only while their weights alone say what they compute; anything else must not
go unnoticed.
"""

import dataclasses
from functools import partial

import pytest
import torch
from reformer_ref.local_attention.api import local_attention
from reformer_ref.local_attention.options import LocalOptions
from reformer_ref.lsh_attention.api import lsh_attention
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.model.config import ReformerConfig
from reformer_ref.model.in_place import in_place_layer
from reformer_ref.model.layers import SelfAttention
from reformer_ref.model.pytorch import ReformerLM
from reformer_ref.reversible.in_place import ModuleLayer
from reformer_ref.testing import expect_close
from torch import nn

CONFIG = ReformerConfig(
    vocab_size=11, d_model=16, n_layers=2, n_heads=2, max_length=64, ff_chunk=5, loss_chunk=7,
    lsh=LSHOptions(n_hashes=2, n_buckets=4, chunk_length=4), local=LocalOptions(chunk_length=4),
)  # fmt: skip


def both_models(change=lambda model: None, **fields):
    """The same model reversible and with ordinary autograd, both changed alike, in float64."""
    models = []
    for reversible in (True, False):
        torch.manual_seed(3)
        model = ReformerLM(dataclasses.replace(CONFIG, reversible=reversible, **fields)).double()
        change(model)
        models.append(model.double())
    return models


def tokens():
    return torch.randint(0, 11, (2, 23), generator=torch.Generator().manual_seed(0))


def expect_same(models, between=lambda model: None):
    losses, gradients = [], []
    for model in models:
        torch.manual_seed(5)
        loss = model.loss(tokens())
        between(model)
        loss.backward()
        losses.append(loss.item())
        gradients.append({n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()})
    expect_close("loss", losses[0], losses[1], 1e-12)
    for name, want in gradients[1].items():
        expect_close(name, gradients[0][name], want, 1e-12)
    return gradients[1]


def works_in_place(layer):
    return not isinstance(in_place_layer(layer), ModuleLayer)


def layers(model, number):
    return [block.layers[number] for block in model.backbone.stack.blocks]


def each(number, change):
    return lambda model: [change(layer) for layer in layers(model, number)]


def monte_carlo_dropout(model):
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.train().p = 0.3


def doubled(weight, x):
    return 2 * nn.functional.linear(x, weight)


CHANGES = {
    "nothing": lambda model: None,
    "a projection with a bias": each(0, lambda h: setattr(h, "q", nn.Linear(16, 16))),
    "an output with a bias": each(0, lambda h: setattr(h, "out", nn.Linear(16, 16))),
    "a norm without bias": each(0, lambda h: setattr(h, "norm", nn.LayerNorm(16, bias=False))),
    "a norm without weights": each(1, lambda h: setattr(h, "norm", nn.LayerNorm(16, elementwise_affine=False))),
    "another epsilon": each(0, lambda h: setattr(h.norm, "eps", 0.5)),
    "another activation": each(1, lambda h: setattr(h.inner, "activation", "gelu")),
    "dropout switched on later": lambda model: [setattr(m, "p", 0.5) for m in model.modules() if type(m) is nn.Dropout],
    "dropout in eval mode": lambda model: monte_carlo_dropout(model.eval()),
    "shared projections": lambda model: setattr(layers(model, 0)[0].k, "weight", layers(model, 0)[0].q.weight),
    "a patched forward": each(0, lambda h: setattr(h.v, "forward", partial(doubled, h.v.weight))),
    "a hook": each(1, lambda h: h.norm.register_forward_hook(lambda module, inputs, out: 3 * out)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_layer_computes_is_never_guessed(name):
    fields = {"loss_chunk": None, "ff_chunk": None} if "dropout" in name else {}  # else masks are drawn in other orders
    plain = name == "nothing"
    models = both_models(CHANGES[name], **fields)
    assert all(works_in_place(layer) for n in (0, 1) for layer in layers(models[0], n)) == plain
    expect_same(models)


@pytest.mark.parametrize("start", [True, False])
def test_a_change_of_mode_before_backward_changes_nothing(start):
    """Dropout is what it was when the loss was computed."""
    same, changed = (both_models(dropout=0.4, ff_chunk=None) for _ in range(2))
    wanted = expect_same([m.train(start) for m in same])
    for name, got in expect_same([m.train(start) for m in changed], lambda model: model.train(not start)).items():
        expect_close(name, got, wanted[name], 1e-12)


def test_autocast_in_place(monkeypatch):
    """What attention is given has one dtype in forward and in the recompute of backward."""
    model, seen = ReformerLM(CONFIG), []
    attend = SelfAttention.attend
    record = lambda self, q, *rest: seen.append(q.dtype) or attend(self, q, *rest)  # noqa: E731
    monkeypatch.setattr(SelfAttention, "attend", record)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(tokens())
    forward = seen.copy()
    loss.backward()
    assert works_in_place(layers(model, 0)[0])
    assert set(forward) == {torch.bfloat16}
    assert seen == forward * 2
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


def test_the_number_of_buckets_counts_no_padding():
    config = dataclasses.replace(CONFIG, lsh=LSHOptions(n_hashes=2, chunk_length=2))
    model, x = ReformerLM(config).double(), tokens()[:, :17]
    for before, after in ((0, 7), (7, 0), (3, 30)):
        padded = nn.functional.pad(x, (before, after))
        mask = nn.functional.pad(torch.ones_like(x, dtype=torch.bool), (before, after))
        expect_close("logits", model(padded, mask)[:, before : before + 17].detach(), model(x).detach(), 1e-13)


def test_a_head_of_another_kind_is_refused():
    model = ReformerLM(CONFIG)
    model.head = nn.utils.parametrizations.weight_norm(nn.Linear(32, 11))  # its weight is what it says
    model.loss(tokens()).backward()
    hooked = nn.Linear(32, 11)
    hooked.register_forward_hook(lambda module, inputs, out: 2 * out)
    for model.head in (nn.Linear(32, 11, bias=False), nn.Sequential(nn.Linear(32, 11)), hooked):
        for use in (model, model.loss):
            with pytest.raises(TypeError, match="head must be"):
                use(tokens())


def test_half_precision_far_from_one():
    """float16 ends at 65504: products must not leave it on the way, tiny vectors must not become
    infinite keys.
    """
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 64, 64, generator=g) for _ in range(3))
    out = local_attention((50 * q).half(), (50 * k).half(), v.half(), LocalOptions(chunk_length=16))
    assert out.isfinite().all()
    buckets = torch.zeros(1, 1, 64, dtype=torch.int64)
    for size in (1e4, 6e-8):
        qk = (size * q).half().requires_grad_()
        out = lsh_attention(qk, v.half(), buckets, LSHOptions.preset("lucidrains", chunk_length=16))
        assert out.isfinite().all()
        out.sum().backward()
        assert qk.grad.isfinite().all() or size < 1


def test_gradients_of_many_chunks_in_half_precision():
    """The sums over chunks are float32: with a chunk for every position they are as good as with one."""
    errors = []
    for chunk in (None, 1):
        grads = {}
        for dtype in (torch.float64, torch.bfloat16):
            config = dataclasses.replace(
                CONFIG, ff_chunk=chunk, max_length=600, axial_shape=None, pattern=("local", "regular")
            )
            model = ReformerLM(config).bfloat16().to(dtype)
            model.loss(torch.arange(600)[None] % 11).backward()
            grads[dtype] = model.backbone.stack.blocks[1].layers[0].v.weight.grad.double()
        exact, narrow = grads.values()
        errors.append((narrow - exact).norm() / exact.norm())
    assert errors[1] < 2 * errors[0]


def test_checkpointing_around_a_reversible_model():
    """Non-reentrant checkpointing lets saved tensors be read once."""
    model = ReformerLM(CONFIG).double()
    x = torch.arange(32)[None] % 11
    model(x).sum().backward()
    want = model.backbone.embedding.weight.grad.clone()
    model.zero_grad()
    torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False).sum().backward()
    expect_close("gradient", model.backbone.embedding.weight.grad, want, 1e-12)
