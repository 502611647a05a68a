"""Padding changes nothing, later tokens change nothing in the strict preset, and every length
works.
"""

import numpy as np
import pytest
import torch
from reformer_ref.lsh_attention.options import PRESETS
from reformer_ref.model.checks import small_config
from reformer_ref.model.pytorch import ReformerLM
from reformer_ref.testing import expect_close, relative_error

TOLERANCE = 1e-13
WITHOUT_WRAP = [("paper", {}, True), ("paper", {"chunks_after": 1}, False), ("strict", {}, True)]
WITHOUT_WRAP += [("paper", {"within_bucket": False, "count_once": False, "scale": "rsqrt_d"}, True)]


def model_of(preset, options=None, **fields):
    config = small_config(preset, {"n_hashes": 2, "n_buckets": 4, **(options or {})}, **{"max_length": 128, **fields})
    return ReformerLM(config).double().eval()


def tokens_of(length, seed=0, batch=2):
    return torch.randint(0, 11, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("preset", "options", "causal"), WITHOUT_WRAP)
def test_padding_never_matters(preset, options, causal):
    """0, 1, 7 or 64 padded positions, left or right, whatever stands there; rows of one batch
    padded differently.
    """
    model = model_of(preset, options, causal=causal, pattern=("local", "lsh", "dense", "regular"), n_layers=4)
    for length in (1, 5, 23):
        tokens = tokens_of(length, length)
        with torch.no_grad():
            want = model(tokens)
            for padding in (0, 1, 7, 64):
                junk = tokens_of(padding, 99)
                for left in (0, padding // 2, padding):
                    right = padding - left
                    padded = torch.cat([junk[:, :left], tokens, junk[:, left:]], 1)
                    mask = torch.zeros(2, length + padding, dtype=torch.bool)
                    mask[:, left : left + length] = True
                    got = model(padded, mask)[:, left : left + length]
                    expect_close(f"{left} + {length} + {right} positions", got, want, TOLERANCE)
    rows = torch.zeros(2, 30, dtype=torch.int64)
    mask = torch.zeros(2, 30, dtype=torch.bool)
    rows[0, 7:], mask[0, 7:] = tokens[0], True
    rows[1, :23], mask[1, :23] = tokens[1], True
    got = model(rows, mask)[mask].view(2, 23, -1)
    expect_close("rows padded on different sides", got.detach(), want, TOLERANCE)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("n_buckets", [None, 4])
@torch.no_grad()
def test_a_given_number_of_buckets_makes_padding_exact_beside_longer_rows(n_buckets, compiled):
    """By itself a row of 20 tokens has 10 buckets; beside one of 100, or compiled, it has 50."""
    model = model_of("paper", {"n_buckets": n_buckets}, pattern=("local", "lsh"))
    tokens, mask = tokens_of(100), torch.ones(2, 100, dtype=torch.bool)
    mask[0, 20:] = False
    torch.compiler.reset()
    batched = torch.compile(model, backend="aot_eager") if compiled else model
    got, want = batched(tokens, mask)[0, :20], model(tokens[:1, :20])[0]
    if n_buckets is None:
        assert relative_error(got, want) > 1e-3
    else:
        expect_close("a row beside a longer one", got, want, TOLERANCE)
        expect_close("a row padded", batched(tokens[:1], mask[:1])[0, :20], want, TOLERANCE)


def test_padding_never_matters_to_the_loss():
    model = model_of("strict", pattern=("local", "lsh"), loss_chunk=7)
    tokens = tokens_of(23)
    mask = torch.ones(2, 30, dtype=torch.bool)
    mask[:, :7] = False
    padded = torch.cat([tokens_of(7, 5), tokens], 1)
    expect_close("loss", model.loss(padded, padding_mask=mask).item(), model.loss(tokens).item(), TOLERANCE)
    one_for_all = model.loss(padded, padding_mask=mask[0])  # a mask that broadcasts
    expect_close("loss", one_for_all.item(), model.loss(tokens).item(), TOLERANCE)


@pytest.mark.parametrize("n_buckets", [None, 4, (2, 6)])
def test_strict_outputs_depend_on_their_prefix_alone(n_buckets):
    """Later tokens changed, or cut off: with ``n_buckets=None`` too, which then follows
    ``max_length``.
    """
    model = model_of("strict", {"n_hashes": 3, "n_buckets": n_buckets}, pattern=("local", "lsh"), n_layers=4)
    tokens = tokens_of(45, batch=3)
    with torch.no_grad():
        want = model(tokens)
        for at in (1, 2, 3, 4, 5, 16, 31, 44):
            expect_close(f"cut at {at}", model(tokens[:, :at]), want[:, :at], TOLERANCE)
            changed = torch.cat([tokens[:, :at], tokens_of(45 - at, 8, batch=3)], 1)
            assert (changed[:, at:] != tokens[:, at:]).any()
            expect_close(f"changed from {at}", model(changed)[:, :at], want[:, :at], TOLERANCE)


@pytest.mark.parametrize("preset", sorted(set(PRESETS) - {"strict"}))
def test_other_presets_are_causal_in_value_only(preset):
    """Later tokens move the chunk borders of the sorted sequence, and with them what earlier tokens
    see.

    Logits have a standard deviation of about one; the earlier ones change by as much, in most
    positions.
    """
    model = model_of(preset, pattern=("local", "lsh"), n_layers=4)
    tokens = tokens_of(45, batch=8)
    changed = torch.cat([tokens[:, :30], tokens_of(15, 8, batch=8)], 1)
    with torch.no_grad():
        want = model(tokens)[:, :30]
        for change, other in (("changed", model(changed)[:, :30]), ("cut", model(tokens[:, :30]))):
            difference = (other - want).abs().amax(-1)  # (8, 30)
            assert difference.max() > 0.5, f"later tokens {change}: at most {difference.max():.2g}"
            fraction = (difference > 1e-3).double().mean()
            assert fraction > 0.3, f"later tokens {change}: {fraction:.0%} of the positions"


def test_dense_and_local_layers_are_strictly_causal():
    model = model_of("paper", pattern=("dense", "regular", "local"), n_layers=3)
    tokens = tokens_of(37)
    with torch.no_grad():
        expect_close("prefix", model(tokens[:, :20]), model(tokens)[:, :20], TOLERANCE)


def test_both_directions_see_everything():
    """Not causal: the first output depends on the last token."""
    model = model_of("paper", {"n_hashes": 1, "chunks_after": 1}, causal=False, pattern=("dense",))
    tokens = tokens_of(9)
    changed = tokens.clone()
    changed[:, -1] = (tokens[:, -1] + 1) % 11
    with torch.no_grad():
        assert (model(tokens) - model(changed))[:, 0].abs().max() > 1e-3


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_length_trains(preset):
    config = small_config(preset, {"n_hashes": 2}, pattern=("local", "lsh"), max_length=70)
    model = ReformerLM(config)
    for length in (2, 3, 4, 5, 8, 31, 64, 70):
        model.zero_grad()
        model.loss(tokens_of(length)).backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    assert model(tokens_of(1)).shape == (2, 1, 11)


def test_rows_of_padding_alone_are_harmless():
    model = model_of("paper", pattern=("local", "lsh", "dense", "regular"), n_layers=4)
    tokens, mask = tokens_of(13), torch.ones(2, 13, dtype=torch.bool)
    mask[1] = False
    with torch.no_grad():
        got = model(tokens, mask)
        assert bool(got.isfinite().all())
        expect_close("the other row", got[:1], model(tokens[:1]), TOLERANCE)
        expect_close("loss", model.loss(tokens, padding_mask=mask), model.loss(tokens[:1]), TOLERANCE)


def test_rows_of_a_batch_do_not_meet():
    model = model_of("trax", pattern=("local", "lsh"))
    tokens = tokens_of(29, batch=5)
    with torch.no_grad():
        together, separate = (model(tokens), np.concatenate([model(row[None]).numpy() for row in tokens]))
    expect_close("rows", together, separate, TOLERANCE)
