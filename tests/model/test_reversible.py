"""Gradients of the whole reversible model are those of ordinary autograd, however it is used."""

import dataclasses
from collections import Counter

import pytest
import torch
from reformer_ref.model import in_place
from reformer_ref.model.checks import small_config
from reformer_ref.model.layers import FeedForwardLayer, SelfAttention
from reformer_ref.model.pytorch import ReformerLM
from reformer_ref.testing import expect_close
from torch.utils._python_dispatch import TorchDispatchMode

TOLERANCE = 1e-12
PATTERN = {"pattern": ("local", "lsh", "dense", "regular"), "n_layers": 5}
# With dropout a layer is recomputed as a module; without, in place: all heads together, or one after
# the other.
WAYS = {
    "dropout": ({"dropout": 0.2, "ff_chunk": 5, "loss_chunk": 9}, None),
    "in place": ({"ff_chunk": None, "loss_chunk": None}, None),
    "head by head": ({"ff_chunk": 5, "loss_chunk": 9}, 1),
}


@pytest.fixture(params=WAYS)
def pair(request, monkeypatch):
    """A function that makes the same model twice, float64: reversible, and with ordinary autograd."""
    way, rows = WAYS[request.param]
    if rows is not None:
        monkeypatch.setattr(in_place, "ROWS_AT_A_TIME", rows)

    def models(preset="paper", options=None, **fields):
        config = small_config(preset, options or {"n_hashes": 3}, **{**PATTERN, **way, **fields})
        both = [ReformerLM(dataclasses.replace(config, reversible=r)).double() for r in (True, False)]
        both[1].load_state_dict(both[0].state_dict())
        return both

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
        ("lucidrains", {"dense_block": 4, "n_heads": 1}),
    ],
)
def test_presets_with_fresh_rotations(pair, preset, fields):
    models = pair(preset, {"n_hashes": 2}, **fields)
    mask = torch.ones(2, 23, dtype=torch.bool)
    mask[0, :5] = mask[1, 20:] = False
    for model in models:
        for seed, kwargs in ((1, {"targets": batch(9)}), (2, {"targets": batch(9), "padding_mask": mask})):
            loss(model, seed, **kwargs).backward()
    expect_same_gradients(models)


def test_the_plain_listing_and_the_engine_in_place_are_one_function(pair):
    models = pair()
    models[1].backbone.stack.reversible = True
    models[1].backbone.in_place = False
    for model in models:
        loss(model, 1).backward()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            model(batch()).sin().sum().backward()
    expect_same_gradients(models)


def test_gradients_through_the_logits(pair):
    """Any function of the logits, not the loss alone."""
    models = pair()
    for model in models:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            logits = model(batch(), generator=torch.Generator().manual_seed(1))
        logits.sin().sum().backward()
    expect_same_gradients(models)


def test_two_forwards_before_one_backward(pair):
    models = pair()
    for model in models:
        first, second = loss(model, 1), loss(model, 2, 17)
        (first + 2 * second).backward()
    expect_same_gradients(models)


def test_backward_in_the_opposite_order_and_accumulation(pair):
    models = pair()
    for model in models:
        losses = [loss(model, seed) for seed in (1, 2, 3)]
        for loss_value in reversed(losses):
            loss_value.backward()
    expect_same_gradients(models)


def test_eval_mode(pair):
    models = pair()
    for model in models:
        model.eval()
        model.loss(batch()).backward()
    expect_same_gradients(models)


def test_mode_switched_between_forward_and_backward(pair):
    models = pair()
    for model in models:
        loss_value = loss(model)
        model.eval()
        loss_value.backward()
    expect_same_gradients(models)


def test_frozen_parameters(pair):
    models = pair()
    for model in models:
        for name, p in model.named_parameters():
            p.requires_grad_("q.weight" not in name and "embedding" not in name and "layers.1" not in name)
        loss(model).backward()
    expect_same_gradients(models)
    for model in models:  # everything but the head
        model.zero_grad()
        model.backbone.requires_grad_(False)
        loss(model).backward()
    expect_same_gradients(models)


def test_gradients_of_a_subset(pair):
    models = pair()
    wanted = [n for n, _ in models[0].named_parameters()][::5]
    results = []
    for model in models:
        parameters = dict(model.named_parameters())
        results.append(torch.autograd.grad(loss(model), [parameters[n] for n in wanted]))
        assert all(p.grad is None for p in model.parameters())
    for name, got, want in zip(wanted, *results, strict=True):
        expect_close(f"gradient of {name}", got, want, TOLERANCE)


def test_nothing_of_a_forward_pass_stays_on_the_modules(pair):
    """A forward pass between forward and backward changes no gradient."""
    models = pair()
    for i, model in enumerate(models):
        loss_value = loss(model, 1)
        if i == 0:
            loss(model, 7, 11)
            model(batch(3, 29))
        loss_value.backward()
    expect_same_gradients(models)


def test_backward_never_hashes(pair, monkeypatch):
    """Buckets of reconstructed activations could differ from those that made the output."""
    model, calls = pair()[0], []
    monkeypatch.setattr(SelfAttention, "hash", lambda *args, hash=SelfAttention.hash: calls.append(1) or hash(*args))
    loss_value = loss(model)
    in_forward = len(calls)
    assert in_forward > 0
    loss_value.backward()
    assert len(calls) == in_forward


class Products(TorchDispatchMode):
    """Counts matrix products by dtype and shape while it is entered."""

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):  # linear maps; attention has its own
            self.count[out.dtype, tuple(out.shape)] += 1
        return out


def test_autocast_recomputes_in_the_same_dtype(pair):
    """Forward under bfloat16, backward outside of it: every linear map of forward is made again, in
    its dtype.
    """
    model = pair()[0].float()
    with torch.autocast("cpu", torch.bfloat16), Products() as forward:
        loss_value = loss(model)
    with Products() as backward:
        loss_value.backward()
    assert {dtype for dtype, _ in forward.count} == {torch.bfloat16}
    for key, count in forward.count.items():
        assert backward.count[key] >= count, f"{key} is not recomputed in the same dtype"


def test_autocast_recomputes_modules_in_the_same_dtype(pair):
    """The same with hooks on the modules, that see what goes through them."""
    model, seen = pair()[0].float(), []

    def record(module, inputs, output):
        seen.append((names[module], output.dtype, output.detach().clone()))

    kinds = (torch.nn.Linear, SelfAttention, FeedForwardLayer)
    names = {m: n for n, m in model.backbone.named_modules() if isinstance(m, kinds)}
    for module in names:
        module.register_forward_hook(record)
    with torch.autocast("cpu", torch.bfloat16):
        loss_value = loss(model)
    forward, _ = seen.copy(), seen.clear()
    loss_value.backward()
    assert {name for name, _, _ in forward} == set(names.values())
    assert {dtype for _, dtype, _ in forward} == {torch.bfloat16}
    assert {(n, d) for n, d, _ in forward} == {(n, d) for n, d, _ in seen}
    again = {name: out for name, _, out in seen}
    for name, _, out in forward:  # the inputs are reconstructed, so equal up to the rounding of bfloat16
        expect_close(name, again[name].float(), out.float(), 0.02)
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


def test_autocast_gradients_are_as_good_as_those_of_ordinary_autograd(pair):
    """Against float64: at most twice the error of ordinary autograd under the same autocast."""
    models = pair(pattern=("local", "dense", "regular"))  # no hash, which bfloat16 would change
    loss(models[1]).backward()
    exact, errors = gradients(models[1]), []
    for model in models:
        model.float().zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss_value = loss(model)
        loss_value.backward()
        errors.append({name: float((g - exact[name]).norm()) for name, g in gradients(model).items()})
    for name, want in errors[1].items():
        assert errors[0][name] <= 2 * want, f"gradient of {name}: error {errors[0][name]:.1e}, ordinary {want:.1e}"


@pytest.mark.parametrize("kind", ["local", "lsh", "dense", "regular"])
def test_second_derivatives_exist_without_reversible_layers_and_chunks(kind):
    """What the refusals advise works; without it no gradient comes that silently lacks a graph."""

    def model_and_gradients(**fields):
        model = ReformerLM(small_config("paper", pattern=(kind,), **fields)).double()
        return model, torch.autograd.grad(model.loss(batch()), tuple(model.parameters()), create_graph=True)

    with pytest.raises(RuntimeError, match=r"reversible=False and no chunk lengths \(ff_chunk, loss_chunk\)"):
        model_and_gradients()
    for fields in ({"ff_chunk": 5}, {"loss_chunk": 5}):
        with pytest.raises(RuntimeError, match=r"no chunk lengths \(chunk_length, ff_chunk, loss_chunk\)"):
            model_and_gradients(reversible=False, **fields)
    model, gradients = model_and_gradients(reversible=False)
    sum(d.square().sum() for d in gradients).backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in model.parameters())
    call = torch.func.grad(lambda weights: torch.func.functional_call(model, weights, (batch(),)).square().sum())
    assert call({name: p.detach() for name, p in model.named_parameters()})["head.weight"].any()
