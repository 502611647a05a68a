"""A language model in use: loss, seeds, random state, state dict, bad input, and that it learns."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from reformer_ref.model.checks import small_config
from reformer_ref.model.pytorch import ReformerLM
from reformer_ref.testing import expect_close, expect_equal

CONFIG = small_config("paper", {"n_hashes": 2}, pattern=("local", "lsh"), n_layers=3)
MASKED = small_config("paper", {"n_hashes": 2, "chunks_after": 1}, causal=False, pattern=("local", "lsh"))


def tokens_of(length, seed=0, batch=2):
    return torch.randint(0, 11, (batch, length), generator=torch.Generator().manual_seed(seed))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def same_state(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


# Loss


@pytest.mark.parametrize("tie_head", [False, True])
@pytest.mark.parametrize("loss_chunk", [None, 1, 7, 44, 1000])
def test_loss_is_the_cross_entropy_of_the_logits(loss_chunk, tie_head):
    model = ReformerLM(dataclasses.replace(CONFIG, loss_chunk=loss_chunk, tie_head=tie_head)).double()
    tokens, results = tokens_of(23), []
    for loss in (model.loss(tokens), F.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())):
        model.zero_grad()
        loss.backward()
        results.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
    for got, want in zip(*results, strict=True):
        expect_close("loss and gradients", got, want, 1e-12)


def test_loss_of_padded_rows_asks_for_real_tokens_only():
    model = ReformerLM(CONFIG).double()
    tokens = tokens_of(12)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], [1] * 12], dtype=torch.bool)
    logits = model(tokens, mask)
    nats = F.cross_entropy(logits[0, 2:8], tokens[0, 3:9], reduction="sum")
    nats = nats + F.cross_entropy(logits[1, :11], tokens[1, 1:], reduction="sum")
    expect_close("loss", model.loss(tokens, padding_mask=mask).item(), nats.item() / 17, 1e-12)


def test_masked_language_model():
    """Not causal: targets where tokens were hidden, −100 elsewhere; padding is neither seen nor
    counted.
    """
    model = ReformerLM(MASKED).double()
    tokens, hidden = tokens_of(21), torch.zeros(2, 21, dtype=torch.bool)
    hidden[0, [3, 9]] = hidden[1, [0, 20]] = True
    targets = torch.where(hidden, tokens, -100)
    seen = tokens.masked_fill(hidden, 10)
    mask = torch.ones(2, 21, dtype=torch.bool)
    mask[1, 15:] = False  # one of the four asked positions is padding
    logits = model(seen, mask)
    counted = hidden & mask
    want = F.cross_entropy(logits[counted], tokens[counted])
    expect_close("loss", model.loss(seen, targets, mask).item(), want.item(), 1e-12)
    whole = F.cross_entropy(model(seen)[hidden], tokens[hidden])
    expect_close("loss without padding", model.loss(seen, targets).item(), whole.item(), 1e-12)
    with pytest.raises(ValueError, match="targets must be given"):
        model.loss(tokens)


# The same numbers every time


def test_seed_decides_everything():
    first, again, other = (ReformerLM(dataclasses.replace(CONFIG, seed=s)) for s in (3, 3, 4))
    assert same_state(first.state_dict(), again.state_dict())
    assert not same_state(first.state_dict(), other.state_dict())
    tokens, results = tokens_of(23), []
    for model in (first, again):
        torch.manual_seed(len(results))  # must not matter
        loss = model.loss(tokens, generator=generator())
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters())])
    for a, b in zip(*results, strict=True):
        expect_equal("loss and gradients", a, b)


def test_weights_do_not_depend_on_the_global_state():
    torch.manual_seed(1)
    first = ReformerLM(CONFIG).state_dict()
    torch.manual_seed(2)
    assert same_state(first, ReformerLM(CONFIG).state_dict())


def test_global_random_state_is_not_touched():
    before = torch.get_rng_state()
    model = ReformerLM(CONFIG)
    model.loss(tokens_of(23), generator=generator()).backward()
    model(tokens_of(23))
    model.eval()
    model(tokens_of(23), generator=generator())
    expect_equal("state of the global generator", torch.get_rng_state(), before)


def test_a_generator_brings_fresh_rotations():
    model, tokens = ReformerLM(CONFIG).double().eval(), tokens_of(29)
    with torch.no_grad():
        stored, fresh, same, other = (model(tokens, generator=g) for g in (None, *map(generator, (1, 1, 2))))
    expect_equal("same seed", fresh, same)
    assert (fresh - stored).abs().max() > 1e-3
    assert (fresh - other).abs().max() > 1e-3
    same_generator = generator(1)
    with torch.no_grad():
        expect_equal("first call", model(tokens, generator=same_generator), fresh)
        assert (model(tokens, generator=same_generator) - fresh).abs().max() > 1e-3  # the next call draws anew


# State dict, head, repr


@pytest.mark.parametrize("positions", ["axial", "learned", "sinusoidal", "none"])
def test_state_dict_round_trip(positions, tmp_path):
    config = dataclasses.replace(CONFIG, positions=positions, axial_shape=None, axial_dims=None)
    model = ReformerLM(config).double()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    again = ReformerLM(dataclasses.replace(config, seed=99)).double()
    tokens = tokens_of(23)
    assert not torch.equal(again(tokens), model(tokens))
    again.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    expect_equal("logits", again(tokens).detach(), model(tokens).detach())  # the rotations travelled too


def test_tied_head_is_the_embedding():
    config = dataclasses.replace(CONFIG, tie_head=True)
    model, tokens = ReformerLM(config).double(), tokens_of(23)
    assert not any("head" in name for name in model.state_dict())
    first, second = model.hidden(tokens).chunk(2, -1)
    want = (first + second) @ model.backbone.embedding.weight.t() / (2 * config.d_model) ** 0.5
    expect_close("logits", model(tokens).detach(), want.detach(), 1e-13)
    large = ReformerLM(small_config(tie_head=True, d_model=128, vocab_size=500))
    assert 0.5 < large(tokens_of(29)).std() < 2


def test_repr_shows_what_was_filled_in():
    text = repr(ReformerLM(CONFIG))
    for part in ("axial_shape=(6, 5)", "axial_dims=(6, 6)", "d_ff=48", "n_hashes=2", "reversible=True"):
        assert part in text


def test_int32_tokens_are_tokens():
    model, tokens = ReformerLM(CONFIG), tokens_of(23)
    expect_equal("logits", model(tokens.int()).detach(), model(tokens).detach())
    assert model.loss(tokens.int()) == model.loss(tokens)


# Bad input

MODEL = ReformerLM(CONFIG)
BAD_DTYPES = [torch.float32, torch.float64, torch.bool, torch.uint8, torch.int16, torch.complex64]
SHAPES = st.lists(st.integers(0, 40), max_size=4).map(tuple)


@given(st.sampled_from(BAD_DTYPES), st.booleans())
@settings(deadline=None, max_examples=25)
def test_tokens_must_be_integers(dtype, as_loss):
    with pytest.raises(TypeError, match="tokens must be int64 or int32"):
        (MODEL.loss if as_loss else MODEL)(torch.zeros(2, 5, dtype=dtype))


@given(SHAPES, st.booleans())
@settings(deadline=None, max_examples=50)
def test_any_shape_works_or_is_refused(shape, as_loss):
    tokens = torch.zeros(shape, dtype=torch.int64)
    shortest = 2 if as_loss else 1
    fits = len(shape) == 2 and shape[0] >= 1 and shortest <= shape[1] <= CONFIG.max_length
    if fits:
        out = (MODEL.loss if as_loss else MODEL)(tokens)
        assert bool(out.isfinite().all())
        return
    with pytest.raises(ValueError, match="tokens must"):
        (MODEL.loss if as_loss else MODEL)(tokens)


@given(st.integers(-(2**40), 2**40))
@settings(deadline=None, max_examples=25)
def test_tokens_must_be_in_the_vocabulary(value):
    tokens = tokens_of(5)
    tokens[1, 3] = value
    if 0 <= value < 11:
        MODEL(tokens)
        return
    with pytest.raises(ValueError, match="tokens must lie in 0 … 10"):
        MODEL(tokens)


@given(st.sampled_from([*BAD_DTYPES[:2], torch.uint8, torch.int64]), SHAPES)
@settings(deadline=None, max_examples=25)
def test_masks_must_be_boolean_and_fit(dtype, shape):
    with pytest.raises(TypeError, match="padding_mask must be boolean"):
        MODEL(tokens_of(5), torch.ones(2, 5, dtype=dtype))
    broadcasts = len(shape) <= 2 and all(a in (1, b) for a, b in zip(shape[::-1], (5, 2), strict=False))
    mask = torch.ones(shape, dtype=torch.bool)
    if broadcasts:
        expect_close("logits", MODEL(tokens_of(5), mask).detach(), MODEL(tokens_of(5)).detach(), 1e-5)
        return
    with pytest.raises(ValueError, match="padding_mask must broadcast"):
        MODEL(tokens_of(5), mask)


@given(SHAPES, st.booleans())
@settings(deadline=None, max_examples=25)
def test_targets_must_have_the_shape_of_tokens(shape, masked):
    if shape == (2, 5):
        return
    mask = torch.ones(2, 5, dtype=torch.bool) if masked else None
    with pytest.raises(ValueError, match="targets must have shape"):
        MODEL.loss(tokens_of(5), torch.zeros(shape, dtype=torch.int64), mask)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda m: m([[1, 2]]), TypeError, "tokens must be a torch.Tensor"),
        (lambda m: m(tokens_of(5), [[True] * 5] * 2), TypeError, "padding_mask must be a torch.Tensor"),
        (lambda m: m(tokens_of(5), generator=7), TypeError, "generator must be a torch.Generator"),
        (lambda m: m(tokens_of(5).to("meta")), ValueError, "tokens must be on cpu"),
        (lambda m: m(tokens_of(5), torch.ones(2, 5, dtype=torch.bool, device="meta")), ValueError, "must be on cpu"),
        (lambda m: m.loss(tokens_of(5), tokens_of(5).float()), TypeError, "targets must be int64 or int32"),
        (lambda m: m.loss(tokens_of(5), [1]), TypeError, "targets must be a torch.Tensor"),
        (lambda m: m.loss(tokens_of(5), tokens_of(5).to("meta")), ValueError, "targets must be on cpu"),
        (lambda m: m.loss(tokens_of(5), tokens_of(5) + 11), ValueError, r"targets must be in \[0, 11\)"),
        (lambda m: m.loss(tokens_of(5), tokens_of(5) * 0 - 100), ValueError, "at least one position that counts"),
        (lambda m: m.loss(tokens_of(5), padding_mask=torch.arange(5) < 1), ValueError, "at least one position"),
        (lambda m: ReformerLM({"d_model": 3}), TypeError, "config must be a ReformerConfig"),
    ],
)
def test_what_does_not_fit_is_refused(call, error, says):
    with pytest.raises(error, match=says):
        call(MODEL)


def test_weights_that_are_not_finite_are_noticed():
    model = ReformerLM(CONFIG)
    with torch.no_grad():
        model.backbone.embedding.weight[3, 0] = float("nan")
    tokens = torch.full((1, 5), 3)
    for call in (model, model.loss, lambda tokens: model.loss(tokens, torch.full_like(tokens, 3))):
        for context in (torch.enable_grad, torch.no_grad):
            with context(), pytest.raises(ValueError, match="from its weights must be finite"):
                call(tokens)


# Learning


def test_overfits_a_periodic_sequence():
    """Period 7, with fresh rotations at every step: from above log 11 = 2.4 nats to almost none."""
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIG, d_model=32, d_head=None, d_v=None, d_ff=None, axial_dims=None, n_layers=2)
    model, draws = ReformerLM(config), generator()
    pattern = torch.tensor([3, 1, 4, 1, 5, 9, 2])
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(150):
        at = torch.randint(0, 7, (8, 1), generator=draws)
        loss = model.loss(pattern[(at + torch.arange(29)) % 7], generator=draws)
        if step == 0:
            assert loss > 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    guesses = model(pattern[torch.arange(29) % 7][None]).argmax(-1)
    assert loss < 0.2
    assert torch.equal(guesses[0, 5:], pattern[torch.arange(6, 30) % 7])
