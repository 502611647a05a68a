"""The encoder-decoder: against its spec, gradients, masks on both sides, causal in the target."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from reformer_ref.model import spec
from reformer_ref.model.checks import small_config
from reformer_ref.model.encoder_decoder import ReformerEncoderDecoder
from reformer_ref.testing import expect_close, expect_equal, to_numpy

FIELDS = {"pattern": ("local", "lsh"), "n_layers": 3}
LOOKING_AROUND = {"n_hashes": 2, "n_buckets": 4, "chunks_after": 1}
ENCODER = small_config("paper", LOOKING_AROUND, causal=False, vocab_size=9, max_length=99, n_heads=3, **FIELDS)
DECODER = small_config("strict", {"n_hashes": 2}, **FIELDS)


def model_of(encoder=ENCODER, decoder=DECODER, **fields):
    return ReformerEncoderDecoder(*(dataclasses.replace(c, **fields) for c in (encoder, decoder))).double().eval()


def source_of(length, seed=0):
    return torch.randint(0, 9, (2, length), generator=torch.Generator().manual_seed(seed))


def target_of(length, seed=1):
    return torch.randint(0, 11, (2, length), generator=torch.Generator().manual_seed(seed))


def mask_of(length, *real):
    """One (first, last) per row."""
    at = torch.arange(length)
    return torch.stack([(at >= first) & (at < last) for first, last in real])


MASKS = [(None, None), (mask_of(14, (0, 9), (3, 14)), mask_of(10, (2, 10), (0, 8)))]


@pytest.mark.parametrize("tie_head", [False, True])
@pytest.mark.parametrize("masks", MASKS, ids=["no padding", "padding"])
@pytest.mark.parametrize("pattern", [("local", "lsh"), ("dense", "regular", "lsh")], ids="-".join)
def test_agrees_with_the_spec(pattern, masks, tie_head):
    model = model_of(pattern=pattern, tie_head=tie_head, dense_block=3)
    configs, params = ((model.encoder_config, model.decoder_config), to_numpy(dict(model.state_dict())))
    inputs = (source_of(14), target_of(10), *masks)
    got, want = (model(*inputs), spec.encoder_decoder(params, *configs, *(to_numpy(x) for x in inputs)))
    expect_close("logits", got.detach(), want, 1e-12)


@pytest.mark.parametrize("lengths", [(1, 1), (1, 7), (7, 1), (13, 5), (4, 29)])
def test_any_two_lengths(lengths):
    model = model_of()
    source, target = source_of(lengths[0]), target_of(lengths[1])
    params = to_numpy(dict(model.state_dict()))
    want = spec.encoder_decoder(params, ENCODER, DECODER, source.numpy(), target.numpy())
    got = model(source, target)
    assert got.shape == (2, lengths[1], 11)
    expect_close("logits", got.detach(), want, 1e-12)


@pytest.mark.parametrize("masks", MASKS, ids=["no padding", "padding"])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_reversible_gradients_are_those_of_ordinary_autograd(mode, masks):
    results = []
    for reversible in (True, False):
        model = model_of(reversible=reversible, dropout=0.2, ff_chunk=3, loss_chunk=4).train(mode == "train")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            generator = torch.Generator().manual_seed(4)
            first = model.loss(source_of(14), target_of(10), *masks, generator=generator)
            second = model.loss(source_of(6), target_of(7), generator=generator)  # two forwards, one backward
        (first + second).backward()
        results.append([first.detach(), *(p.grad for p in model.parameters())])
    names = ["loss", *(name for name, _ in model.named_parameters())]
    for name, got, want in zip(names, *results, strict=True):
        assert want.abs().max() > 0, f"{name}: nothing flows"  # the encoder's weights learn too
        expect_close(name, got, want, 1e-12)


def test_gradient_of_the_memory_is_summed_over_layers():
    results = []
    for reversible in (True, False):
        model = model_of(reversible=reversible)
        encoder_output = model.encode(source_of(14)).detach().requires_grad_()
        model.decode(target_of(10), encoder_output).square().sum().backward()
        results.append(encoder_output.grad)
    expect_close("gradient of the encoder_output", *results, 1e-12)


def test_loss_is_the_cross_entropy_of_the_logits():
    source, target = source_of(14), target_of(10)
    for loss_chunk in (None, 1, 4, 100):
        model = model_of(loss_chunk=loss_chunk)
        want = F.cross_entropy(model(source, target)[:, :-1].flatten(0, 1), target[:, 1:].flatten())
        expect_close("loss", model.loss(source, target).item(), want.item(), 1e-12)
    mask = mask_of(10, (2, 10), (0, 8))
    logits, nats = model(source, target, None, mask), 0.0
    for row, (first, last) in enumerate([(2, 10), (0, 8)]):
        nats += F.cross_entropy(logits[row, first : last - 1], target[row, first + 1 : last], reduction="sum").item()
    expect_close("loss", model.loss(source, target, None, mask).item(), nats / 14, 1e-12)


# Masks


@pytest.mark.parametrize("padding", [0, 1, 7, 64])
def test_padding_of_the_source_never_matters(padding):
    model = model_of()
    source, target, junk = source_of(14), target_of(10), source_of(padding, 7)
    want = model(source, target).detach()
    for left in (0, padding // 2, padding):
        mask = mask_of(14 + padding, *[(left, left + 14)] * 2)
        got = model(torch.cat([junk[:, :left], source, junk[:, left:]], 1), target, mask)
        expect_close(f"{left} positions before", got.detach(), want, 1e-13)


@pytest.mark.parametrize("padding", [1, 7, 19])
def test_padding_of_the_target_never_matters(padding):
    model = model_of()
    source, target, junk = source_of(14), target_of(10), target_of(padding, 7)
    want = model(source, target).detach()
    for left in (0, padding // 2, padding):
        mask = mask_of(10 + padding, *[(left, left + 10)] * 2)
        got = model(source, torch.cat([junk[:, :left], target, junk[:, left:]], 1), None, mask)
        expect_close(f"{left} positions before", got[:, left : left + 10].detach(), want, 1e-13)


@pytest.mark.parametrize("at", [0, 1, 6, 13])
def test_each_source_token_matters_unless_it_is_masked(at):
    """Positions 0 and 1 like all others."""
    model, source, target = model_of(), source_of(14), target_of(10)
    changed = source.clone()
    changed[:, at] = (source[:, at] + 1) % 9
    seen, hidden = torch.ones(2, 14, dtype=torch.bool), torch.ones(2, 14, dtype=torch.bool)
    hidden[:, at] = False
    expect_equal("masked", model(changed, target, hidden).detach(), model(source, target, hidden).detach())
    difference = (model(changed, target, seen) - model(source, target, seen)).abs().amax(-1)
    assert difference.min() > 1e-3  # every position of the target sees it


def test_masked_cross_attention_still_depends_on_the_query():
    """With a mask, two queries that differ must be answered differently, each row by its own
    source.
    """
    model = model_of(pattern=("dense",), n_layers=1)
    layer = model.decoder.stack.blocks[0].layers[1]
    x = torch.randn(2, 5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    encoder_output = torch.randn(2, 7, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mask = mask_of(7, (2, 7), (0, 3))
    out = layer(x, None, None, encoder_output, mask).detach()
    assert (out[:, 0] - out[:, 1]).abs().max() > 1e-2
    for row, (first, last) in enumerate([(2, 7), (0, 3)]):
        separate = layer(x[row, None], None, None, encoder_output[row, None, first:last]).detach()
        expect_close("each row sees its own real keys", out[row], separate[0], 1e-13)
    nothing = layer(x, None, None, encoder_output, torch.zeros_like(mask))
    assert not nothing.any()


def test_causal_in_the_target():
    model, source, target = model_of(), source_of(14), target_of(23)
    want = model(source, target).detach()
    for at in (1, 4, 9, 22):
        changed = torch.cat([target[:, :at], (target[:, at:] + 3) % 11], 1)
        expect_close(f"changed from {at}", model(source, changed)[:, :at].detach(), want[:, :at], 1e-13)
        expect_close(f"cut at {at}", model(source, target[:, :at]).detach(), want[:, :at], 1e-13)
        assert (model(source, changed)[:, at] - want[:, at]).abs().max() > 1e-3


def test_memory_may_be_kept():
    model, source, target = model_of(), source_of(14), target_of(10)
    for mask in (None, mask_of(14, (0, 9), (3, 14))):
        encoder_output = model.encode(source, mask)
        assert encoder_output.shape == (2, 14, 24)
        expect_equal(
            "logits", model.decode(target, encoder_output, mask).detach(), model(source, target, mask).detach()
        )


def test_seed_decides_everything():
    before = torch.get_rng_state()
    first, again, other = (model_of(seed=s) for s in (3, 3, 4))
    source, target = source_of(14), target_of(10)
    losses = [m.loss(source, target, generator=torch.Generator().manual_seed(0)).item() for m in (first, again, other)]
    assert losses[0] == losses[1] != losses[2]
    expect_equal("state of the global generator", torch.get_rng_state(), before)
    again.load_state_dict(other.state_dict())
    expect_equal("logits", again(source, target).detach(), other(source, target).detach())


def test_fresh_rotations_on_both_sides():
    model, source, target = model_of(), source_of(14), target_of(29)
    encoder_output = model.encode(source)
    fresh = model.encode(source, generator=torch.Generator().manual_seed(0))
    assert (fresh - encoder_output).abs().max() > 1e-3
    fresh = model.decode(target, encoder_output, generator=torch.Generator().manual_seed(0))
    assert (fresh - model.decode(target, encoder_output)).abs().max() > 1e-3


def test_learns_to_reverse():
    """The answer is in the source alone, so cross-attention must carry it: from log 5 = 1.6 nats to
    far below.
    """
    torch.manual_seed(0)
    fields = {"vocab_size": 6, "d_model": 32, "max_length": 8, "n_layers": 2, "pattern": ("dense",)}
    encoder, decoder = (small_config(causal=causal, **fields) for causal in (False, True))
    model, draws = ReformerEncoderDecoder(encoder, decoder), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(150):
        source = torch.randint(1, 6, (64, 4), generator=draws)
        target = F.pad(source.flip(1), (1, 0))  # begins with 0
        loss = model.loss(source, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.3


# Bad input


@pytest.mark.parametrize(
    ("encoder", "decoder", "error", "says"),
    [
        (DECODER, DECODER, ValueError, "encoder_config must have causal=False"),
        (ENCODER, ENCODER, ValueError, "decoder_config must have causal=True"),
        (ENCODER, dataclasses.replace(DECODER, d_model=16, axial_dims=None), ValueError, "same d_model, got 12 and 16"),
        ({}, DECODER, TypeError, "encoder_config must be a ReformerConfig"),
        (ENCODER, None, TypeError, "decoder_config must be a ReformerConfig"),
    ],
)
def test_configurations_must_go_together(encoder, decoder, error, says):
    with pytest.raises(error, match=says):
        ReformerEncoderDecoder(encoder, decoder)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda m: m(source_of(14).float(), target_of(5)), TypeError, "source must be int64 or int32"),
        (lambda m: m(source_of(14), target_of(5).bool()), TypeError, "target must be int64 or int32"),
        (lambda m: m(source_of(14) + 9, target_of(5)), ValueError, "source must lie in 0 … 8"),
        (lambda m: m(source_of(14), target_of(5) - 11), ValueError, "target must lie in 0 … 10"),
        (lambda m: m(source_of(100), target_of(5)), ValueError, "source must be at most max_length = 99"),
        (lambda m: m(source_of(14), target_of(30)), ValueError, "target must be at most max_length = 29"),
        (lambda m: m(source_of(14), target_of(0)), ValueError, "target must have shape"),
        (lambda m: m(source_of(14)[:1], target_of(5)), ValueError, "batch of target"),
        (
            lambda m: m(source_of(14), target_of(5), mask_of(13, (0, 9), (0, 9))),
            ValueError,
            "padding_mask must broadcast",
        ),
        (lambda m: m(source_of(14), target_of(5), None, target_of(5)), TypeError, "padding_mask must be boolean"),
        (lambda m: m(source_of(14), target_of(5), generator=0), TypeError, "generator"),
        (lambda m: m(source_of(14), target_of(5).to("meta")), ValueError, "target must be on cpu"),
        (lambda m: m.loss(source_of(14), target_of(1)), ValueError, "at least 2 tokens"),
        (lambda m: m.loss(source_of(14), [[1, 2]]), TypeError, "target must be a torch.Tensor"),
        (lambda m: m.decode(target_of(5), target_of(5)), TypeError, "encoder_output must"),
        (lambda m: m.decode(target_of(5), torch.zeros(2, 14)), ValueError, "encoder_output must have shape"),
        (lambda m: m.decode(target_of(5), torch.zeros(2, 14, 12)), ValueError, "encoder_output must have shape"),
        (lambda m: m.decode(target_of(5), torch.zeros(2, 0, 24)), ValueError, "encoder_output must have shape"),
    ],
)
def test_what_does_not_fit_is_refused(call, error, says):
    with pytest.raises(error, match=says):
        call(model_of())


def test_weights_that_are_not_finite_are_noticed():
    model, source, target = model_of(), source_of(14), target_of(10)
    memory = model.encode(source)
    for weight, calls in (
        (model.decoder.norm.weight, [lambda: model.decode(target, memory), lambda: model.loss(source, target)]),
        (model.encoder.norm.weight, [lambda: model.encode(source), lambda: model(source, target)]),
    ):
        with torch.no_grad():
            weight[0] = float("nan")
        for call in calls:
            with pytest.raises(ValueError, match="from its weights must be finite"):
                call()
        with torch.no_grad():
            weight[0] = 1.0
