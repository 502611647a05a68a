"""Gradients of the whole reversible model are those of ordinary autograd, however it is used."""

import dataclasses

import pytest
import torch

from reformer_ref.compare import expect_close
from reformer_ref.model.checks import small_config
from reformer_ref.model.pytorch import FeedForwardHalf, ReformerLM, SelfAttention

TOLERANCE = 1e-12
EVERYTHING = {
    "pattern": ("local", "lsh", "dense", "regular"),
    "n_layers": 5,
    "dropout": 0.2,
    "ff_slice": 5,
    "loss_slice": 9,
}


def pair(preset="paper", options=None, **fields):
    """The same model twice, float64: reversible, and with ordinary autograd."""
    config = small_config(preset, options or {"n_hashes": 3}, **{**EVERYTHING, **fields})
    models = [ReformerLM(dataclasses.replace(config, reversible=r)).double() for r in (True, False)]
    models[1].load_state_dict(models[0].state_dict())
    return models


def batch(seed=0, length=23):
    return torch.randint(0, 11, (2, length), generator=torch.Generator().manual_seed(seed))


def loss(model, seed=0, length=23, **kwargs):
    """A loss with dropout and fresh rotations that depend on ``seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model.loss(batch(seed, length), generator=torch.Generator().manual_seed(seed), **kwargs)


def gradients(model):
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def expect_same_gradients(models, tolerance=TOLERANCE):
    got, want = map(gradients, models)
    for name in want:
        assert (got[name] is None) == (want[name] is None), name
        if want[name] is not None:
            expect_close(f"gradient of {name}", got[name], want[name], tolerance)
    assert any(w is not None and bool(w.abs().max() > 0) for w in want.values())


@pytest.mark.parametrize(
    ("preset", "fields"),
    [
        ("paper", {}),
        ("strict", {"n_heads": 3, "tie_head": True}),
        ("trax", {"positions": "learned"}),
        ("huggingface", {"causal": False, "activation": "gelu"}),
        ("lucidrains", {"dense_strip": 4, "n_heads": 1}),
    ],
)
def test_with_dropout_and_fresh_rotations(preset, fields):
    models = pair(preset, {"n_hashes": 2}, **fields)
    mask = torch.ones(2, 23, dtype=torch.bool)
    mask[0, :5] = mask[1, 20:] = False
    for model in models:
        for seed, kwargs in ((1, {"targets": batch(9)}), (2, {"targets": batch(9), "padding_mask": mask})):
            loss(model, seed, **kwargs).backward()
    expect_same_gradients(models)


def test_two_forwards_before_one_backward():
    models = pair()
    for model in models:
        first, second = loss(model, 1), loss(model, 2, 17)
        (first + 2 * second).backward()
    expect_same_gradients(models)


def test_backward_in_the_opposite_order_and_accumulation():
    models = pair()
    for model in models:
        losses = [loss(model, seed) for seed in (1, 2, 3)]
        for one in reversed(losses):
            one.backward()
    expect_same_gradients(models)


def test_eval_mode():
    models = pair()
    for model in models:
        model.eval()
        model.loss(batch()).backward()
    expect_same_gradients(models)


def test_mode_switched_between_forward_and_backward():
    models = pair()
    for model in models:
        one = loss(model)
        model.eval()
        one.backward()
    expect_same_gradients(models)


def test_frozen_parameters():
    models = pair()
    for model in models:
        for name, p in model.named_parameters():
            p.requires_grad_("q.weight" not in name and "embedding" not in name and "halves.1" not in name)
        loss(model).backward()
    expect_same_gradients(models)
    for model in models:  # everything but the head
        model.zero_grad()
        model.trunk.requires_grad_(False)
        loss(model).backward()
    expect_same_gradients(models)


def test_gradients_of_a_subset():
    models = pair()
    wanted = [n for n, _ in models[0].named_parameters()][::5]
    results = []
    for model in models:
        parameters = dict(model.named_parameters())
        results.append(torch.autograd.grad(loss(model), [parameters[n] for n in wanted]))
        assert all(p.grad is None for p in model.parameters())
    for name, got, want in zip(wanted, *results, strict=True):
        expect_close(f"gradient of {name}", got, want, TOLERANCE)


def test_nothing_of_a_forward_pass_stays_on_the_modules():
    """A forward pass between forward and backward changes no gradient."""
    models = pair()
    for i, model in enumerate(models):
        one = loss(model, 1)
        if i == 0:
            loss(model, 7, 11)
            model(batch(3, 29))
        one.backward()
    expect_same_gradients(models)


def test_backward_never_hashes(monkeypatch):
    """Buckets of reconstructed activations could differ from those that made the output."""
    model, calls = pair()[0], []
    monkeypatch.setattr(SelfAttention, "hash", lambda *args, hash=SelfAttention.hash: calls.append(1) or hash(*args))
    one = loss(model)
    assert len(calls) == model.config.layers.count("lsh") > 0
    one.backward()
    assert len(calls) == model.config.layers.count("lsh")


def test_autocast_recomputes_in_the_same_dtype():
    """Under bfloat16 autocast, backward outside of it: what a half computes with has the dtypes of forward."""
    config = small_config("paper", {"n_hashes": 2}, **{**EVERYTHING, "dropout": 0.0, "ff_slice": None})
    model, seen = ReformerLM(config), []

    def record(module, inputs, output):
        seen.append((names[module], output.dtype, output.detach().clone()))

    names = {m: n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear | SelfAttention | FeedForwardHalf)}
    for module in names:
        if module is not model.head:
            module.register_forward_hook(record)
    with torch.autocast("cpu", torch.bfloat16):
        one = model.loss(batch())
    forward, _ = seen.copy(), seen.clear()
    one.backward()
    assert len(forward) == len(seen) > 0
    assert {dtype for _, dtype, _ in forward} == {torch.bfloat16}
    assert {(n, d) for n, d, _ in forward} == {(n, d) for n, d, _ in seen}
    again = {name: out for name, _, out in seen}
    for name, _, out in forward:  # the inputs are reconstructed, so equal up to the rounding of bfloat16
        expect_close(name, again[name].float(), out.float(), 0.02)
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


def test_autocast_gradients_are_those_of_ordinary_autograd():
    """Up to roundings of bfloat16 that fall differently when the inputs are reconstructed."""
    models = [m.float() for m in pair(dropout=0.0)]
    for model in models:
        with torch.autocast("cpu", torch.bfloat16):
            one = model.loss(batch())
        one.backward()
    for (name, p), q in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        difference = (p.grad - q.grad).norm() / q.grad.norm()
        assert difference < 0.02, f"gradient of {name} differs by {difference:.1%}"
