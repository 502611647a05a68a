"""What LSH attention promises: padding, strict causality, self, counts, precision, repeatability."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from reformer_ref.attention.api import shared_qk_attention
from reformer_ref.lsh_attention import spec
from reformer_ref.lsh_attention.api import lsh_attention
from reformer_ref.lsh_attention.options import PRESETS, LSHOptions
from reformer_ref.testing import as_numpy, expect_close, expect_equal, relative_error, to_numpy, to_torch

plain = partial(lsh_attention, backend="plain")
streaming = partial(lsh_attention, backend="streaming")
FUNCTIONS = {"spec": spec.lsh_attention, "plain": as_numpy(plain), "streaming": as_numpy(streaming)}
BOTH = pytest.mark.parametrize("fn", FUNCTIONS.values(), ids=FUNCTIONS)
BACKENDS = pytest.mark.parametrize("attention", [plain, streaming], ids=["plain", "streaming"])
WRAPPING = [name for name in PRESETS if LSHOptions.preset(name).wrap]
CHUNKS = [name for name in PRESETS if name != "strict"]


def draw(seed, options, length, lead=(), n_buckets=4, d=6):
    """qk (…, L, d), v (…, L, 5), buckets."""
    rng = np.random.default_rng(seed)
    qk, v = rng.standard_normal((*lead, length, d)), rng.standard_normal((*lead, length, 5))
    return qk, v, rng.integers(0, n_buckets, (*lead, options.n_hashes, length))


def padded(qk, v, buckets, n, side, seed=99):
    """The same sequence with n padded positions, filled with noise, and its mask."""
    rng = np.random.default_rng(seed)

    def extend(x, axis, noise):
        return np.concatenate([noise, x] if side == "left" else [x, noise], axis=axis)

    shape = (*qk.shape[:-2], n)
    qk = extend(qk, -2, 30 * rng.standard_normal((*shape, qk.shape[-1])))
    v = extend(v, -2, 30 * rng.standard_normal((*shape, v.shape[-1])))
    buckets = extend(buckets, -1, rng.integers(0, 4, (*buckets.shape[:-1], n)))
    real = extend(np.ones((*shape[:-1], v.shape[-2] - n), dtype=bool), -1, np.zeros(shape, dtype=bool))
    return (qk, v, buckets), real


# Padding


@BOTH
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", PRESETS)
def test_padding_never_matters_without_wrap(fn, side, name):
    """0, 1, 7 and 64 padded positions; the presets of the authors' last code and of the ports with
    wrap=False.
    """
    for length in (1, 4, 19):
        o = LSHOptions.preset(name, n_hashes=2, chunk_length=4, wrap=False)
        inputs = draw(1, o, length, (2,))
        want = fn(*inputs, o, None)
        for n in (0, 1, 7, 64):
            longer, real = padded(*inputs, n, side)
            got = fn(*longer, o, real)[real].reshape(want.shape)
            expect_close(f"{name}, L={length}, {n} padded on the {side}", got, want, 1e-13)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", PRESETS)
@BACKENDS
def test_gradients_do_not_notice_padding(side, name, attention):
    o = LSHOptions.preset(name, n_hashes=2, chunk_length=4, wrap=False)
    inputs = draw(2, o, 19, (2,))
    d_out = np.random.default_rng(0).standard_normal(inputs[1].shape)

    def gradients(qk, v, buckets, d_out, real=None):
        leaves = [to_torch(a).requires_grad_() for a in (qk, v)]
        out = attention(*leaves, to_torch(buckets), o, to_torch(real))
        return to_numpy(torch.autograd.grad(out, leaves, to_torch(d_out)))

    want = gradients(*inputs, d_out)
    for n in (1, 7, 64):
        longer, real = padded(*inputs, n, side)
        d_longer = np.zeros(longer[1].shape)
        d_longer[real] = d_out.reshape(-1, d_out.shape[-1])
        for name_of, a, b in zip(("d_qk", "d_v"), gradients(*longer, d_longer, real), want, strict=True):
            expect_close(f"{name_of}, {n} padded on the {side}", a[real].reshape(b.shape), b, 1e-12)
            assert not a[~real].any()


@BOTH
@pytest.mark.parametrize("name", WRAPPING)
def test_with_wrap_the_amount_of_padding_moves_the_window(fn, name):
    """As in the originals: the first chunk sees the last one, and what stands there depends on the
    length.

    What the padded positions hold still never matters; how many there are changes outputs by
    numbers of order one.
    """
    o = LSHOptions.preset(name, n_hashes=2, chunk_length=4, causal=False)
    inputs = draw(3, o, 19)
    want = fn(*inputs, o, None)
    longer, real = padded(*inputs, 7, "right")
    got = fn(*longer, o, real)[real]
    assert np.abs(got - want).max() > 0.3
    other, _ = padded(*inputs, 7, "right", seed=7)
    expect_equal("other noise in the padding", fn(*other, o, real)[real], got)


@BOTH
@pytest.mark.parametrize("name", PRESETS)
def test_rows_of_padding(fn, name):
    """A row that is all padding gives zeros and finite gradients, and leaves the other rows alone."""
    o = LSHOptions.preset(name, n_hashes=2, chunk_length=4)
    inputs = draw(4, o, 10, (3,))
    real = np.ones((3, 10), dtype=bool)
    real[1] = False
    got = fn(*inputs, o, real)
    assert not got[1].any()
    expect_close("other rows", got[[0, 2]], fn(*(x[[0, 2]] for x in inputs), o, None), 1e-13)
    for attention in (plain, streaming):
        leaves = [to_torch(a).requires_grad_() for a in inputs[:2]]
        out = attention(*leaves, to_torch(inputs[2]), o, to_torch(real))
        for grad in torch.autograd.grad(out.sum(), leaves):
            assert grad.isfinite().all()
            assert not grad[1].any()


def test_a_mask_for_one_row_serves_all():
    o = LSHOptions(n_hashes=2, chunk_length=4)
    inputs = draw(5, o, 10, (2, 3))
    real = np.arange(10) < 7
    everywhere = np.array(np.broadcast_to(real, (2, 3, 10)))
    for fn in FUNCTIONS.values():
        expect_equal("out", fn(*inputs, o, real), fn(*inputs, o, everywhere))


# Strict causality, and what the other presets do instead


@BOTH
@pytest.mark.parametrize("chunk_length", [1, 4, 7])
def test_strict_outputs_depend_on_their_prefix_alone(fn, chunk_length):
    o = LSHOptions.preset("strict", n_hashes=3, chunk_length=chunk_length)
    length = 31
    qk, v, buckets = draw(6, o, length, (2,))
    want = fn(qk, v, buckets, o, None)
    for t in (1, 2, 7, 8, 16, 30):
        cut = fn(qk[:, :t], v[:, :t], buckets[..., :t], o, None)
        expect_close(f"the first {t} tokens alone", cut, want[:, :t], 1e-13)
        other = [x.copy() for x in draw(t, o, length, (2,))]
        other[0][:, :t], other[1][:, :t], other[2][..., :t] = qk[:, :t], v[:, :t], buckets[..., :t]
        expect_close(f"after tokens {t}… changed", fn(*other, o, None)[:, :t], want[:, :t], 1e-13)


@BACKENDS
def test_strict_gradients_flow_to_the_prefix_alone(attention):
    o = LSHOptions.preset("strict", n_hashes=3, chunk_length=4)
    qk, v, buckets = (to_torch(a) for a in draw(7, o, 23))
    leaves = [qk.requires_grad_(), v.requires_grad_()]
    out = attention(*leaves, buckets, o)
    for t in (0, 11, 20):
        d_qk, d_v = torch.autograd.grad(out[t].sum(), leaves, retain_graph=True)
        assert d_v[: t + 1].any()
        assert d_qk[: t + 1].any() == (t > 0)  # the first token sees itself alone, whatever its direction
        assert not d_qk[t + 1 :].any()
        assert not d_v[t + 1 :].any()


@BOTH
@pytest.mark.parametrize("name", CHUNKS)
def test_other_presets_are_causal_in_values_but_not_in_pattern(fn, name):
    """Later tokens move the borders of the chunks: earlier outputs change by numbers of order one."""
    o = LSHOptions.preset(name, n_hashes=1, chunk_length=4)
    qk, v, buckets = draw(8, o, 40)
    qk *= 3  # sharp, so that an output is little more than the value of one key
    want, t = fn(qk, v, buckets, o, None), 30
    values = qk.copy(), v.copy()
    for x in values:
        x[t:] += 1.0
    expect_close("values of later tokens", fn(*values, buckets, o, None)[:t], want[:t], 1e-13)
    other = buckets.copy()
    other[:, t:] = 0  # now the later tokens stand in front, in the sorted order
    changed = np.abs(fn(qk, v, other, o, None)[:t] - want[:t]).max(-1)
    cut = np.abs(fn(qk[:t], v[:t], buckets[:, :t], o, None) - want[:t]).max(-1)
    assert changed.max() > 0.5
    assert cut.max() > 0.5


# Self, counts, and dense attention as the limit


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n_hashes", [1, 2, 4])
@pytest.mark.parametrize("name", PRESETS)
def test_the_first_token_is_exactly_its_own_value(name, n_hashes, dtype):
    """Not a penalty of −1e5, which in float32 is wrong by up to a per cent as soon as there are two
    rounds.
    """
    o = LSHOptions.preset(name, n_hashes=n_hashes, chunk_length=4)
    qk, v, buckets = (to_torch(a, dtype) for a in draw(9, o, 30, (2,)))
    out, record = lsh_attention(qk, v, buckets, o, return_record=True)
    assert out.dtype == dtype
    assert torch.equal(out[:, 0], v[:, 0])
    assert torch.equal(streaming(qk, v, buckets, o)[:, 0], v[:, 0])
    assert torch.equal(record.dense()[:, 0, 0], torch.ones_like(record.dense()[:, 0, 0]))


@BOTH
def test_without_causality_only_a_token_alone_in_its_buckets_sees_itself(fn):
    o = LSHOptions(n_hashes=2, chunk_length=16, causal=False, chunks_after=1)
    qk, v, _ = draw(10, o, 9)
    buckets = np.array([[0, 0, 0, 1, 2, 2, 2, 2, 2], [0, 0, 0, 1, 0, 0, 2, 2, 2]])
    out = fn(qk, v, buckets, o, None)
    expect_equal("the only token of its buckets", out[3], v[3])
    v[0] += 100.0
    change = np.abs(fn(qk, v, buckets, o, None) - out).max(-1) > 1e-9
    expect_equal("who sees token 0", change, [False, True, True, False, True, True, False, False, False])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", PRESETS)
def test_dense_attention_when_everything_is_visible(name, causal):
    if name == "strict" and not causal:
        return
    o = LSHOptions.preset(name, n_hashes=2, chunk_length=25, causal=causal)
    qk, v, buckets = draw(11, o, 25, (2,))
    real = np.random.default_rng(0).random((2, 25)) < 0.8
    if o.within_bucket:
        buckets[:] = 0
    want = as_numpy(shared_qk_attention)(qk, v, causal, real, o.scale, o.norm_eps)
    for fn in FUNCTIONS.values():
        expect_close(name, fn(qk, v, buckets, o, real)[real], want[real], 1e-12)


@BOTH
def test_counts(fn):
    """A round that comes twice adds nothing with count_once, and weighs double without."""
    o = LSHOptions(n_hashes=2, chunk_length=4)
    qk, v, buckets = draw(12, o, 30)
    thrice = buckets[[0, 0, 1]]
    once, often = (replace(o, count_once=c, n_hashes=3) for c in (True, False))
    expect_close("count_once", fn(qk, v, thrice, once, None), fn(qk, v, buckets, o, None), 1e-13)
    counted = fn(qk, v, thrice, often, None)
    assert relative_error(counted, fn(qk, v, buckets, replace(o, count_once=False), None)) > 0.05
    only = replace(o, count_once=False, n_hashes=2)
    single = fn(qk, v, buckets[:1], replace(o, n_hashes=1), None)
    expect_close("all pairs twice", fn(qk, v, buckets[[0, 0]], only, None), single, 1e-13)


@pytest.mark.parametrize("name", PRESETS)
def test_the_preset_says_what_it_does(name):
    """The table of the presets, row by row, each with a case in which the option decides."""
    o = LSHOptions.preset(name, n_hashes=2, chunk_length=4)
    qk, v, buckets = draw(13, o, 30)
    out = spec.lsh_attention(qk, v, buckets, o)
    paper = name == "paper"
    assert (o.within_bucket, o.count_once, o.wrap) == (
        (True, True, False) if name in ("paper", "strict") else (False, False, True)
    )
    assert o.scale == ("rsqrt_d" if name == "lucidrains" else 1.0)
    same_as_paper = relative_error(
        out, spec.lsh_attention(qk, v, buckets, replace(LSHOptions(), n_hashes=2, chunk_length=4))
    )
    assert (same_as_paper == 0) == paper
    same_as_trax = relative_error(
        out, spec.lsh_attention(qk, v, buckets, LSHOptions.preset("trax", n_hashes=2, chunk_length=4))
    )
    assert (same_as_trax == 0) == (name in ("trax", "huggingface"))


# Precision


def naive(qk, v, counts, options):
    """Dense masked softmax in the dtype of the inputs, all of it."""
    keys = qk / (qk.square().sum(-1, keepdim=True) + qk.shape[-1] * options.norm_eps).sqrt()
    scores = options.scale_for(qk.shape[-1]) * (qk @ keys.transpose(-1, -2))
    scores = scores + torch.where(counts > 0, counts, 1).log().to(scores.dtype)
    scores = scores.masked_fill(counts == 0, torch.finfo(scores.dtype).min)
    return scores.softmax(-1) @ v


def errors_against_spec(attention, dtype, name, seed, autocast=False):
    """Errors (ours, the plain formula's) of out, d_qk and d_v, relative to the largest entry, as
    arrays.

    The float64 spec gets the same rounded numbers.
    """
    o = LSHOptions.preset(name, n_hashes=2, chunk_length=16)
    qk, v, buckets = draw(seed, o, 120, (2,), n_buckets=8, d=16)
    d_out = np.random.default_rng(seed + 1).standard_normal(v.shape)
    held = torch.float32 if autocast else dtype
    qk, v, d_out = (to_torch(a, held) for a in (qk, v, d_out))
    exact_inputs = [to_numpy(t.double()) for t in (qk, v, d_out)]
    exact = [spec.lsh_attention(*exact_inputs[:2], buckets, o)]
    exact += spec.lsh_attention_vjp(*exact_inputs[:2], buckets, o, exact_inputs[2])
    counts = to_torch(spec.visible_counts(buckets, o))

    def run(fn):
        leaves = [t.clone().requires_grad_() for t in (qk, v)]
        with torch.autocast("cpu", dtype, enabled=autocast):
            out = fn(*leaves)
        grads = torch.autograd.grad(out, leaves, d_out.to(out.dtype))
        assert [g.dtype for g in grads] == [held, held]
        return [to_numpy(t.double()) for t in (out, *grads)]

    ours = run(lambda qk, v: attention(qk, v, to_torch(buckets), o))
    formula = run(lambda qk, v: naive(qk, v, counts, o))
    return [[(x - c) / np.abs(c).max() for x in (a, b)] for a, b, c in zip(ours, formula, exact, strict=True)]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", PRESETS)
@BACKENDS
def test_lower_precision_is_as_good_as_the_plain_formula(attention, name, dtype, autocast):
    """At most twice the error of a dense softmax in the same precision: root mean square, and
    largest entry.

    The largest error of one draw is one unlucky rounding, so it is averaged over the draws.
    """
    if autocast and dtype == torch.float32:
        return
    draws = [errors_against_spec(attention, dtype, name, seed, autocast) for seed in range(5)]
    for name, errors in zip(("out", "d_qk", "d_v"), zip(*draws, strict=True), strict=True):
        errors = np.abs(errors)  # (draw, ours or the formula's, …)
        for kind, of in (("root mean square", lambda e: np.sqrt(np.mean(e**2))), ("largest", np.max)):
            ours, formula = (np.mean([of(e) for e in side]) for side in zip(*errors, strict=True))
            assert ours <= 2 * formula, f"{name}: {kind} error {ours:.2e}, the plain formula's {formula:.2e}"
        assert errors.max() <= 30 * torch.finfo(dtype).eps


@BACKENDS
def test_statistics_do_not_overflow_in_half_precision(attention):
    """Logits beyond the range of float16, and more keys than float16 counts."""
    o = LSHOptions(n_hashes=1, chunk_length=2500, scale=100.0)
    rng = np.random.default_rng(15)
    qk, v = (to_torch(rng.standard_normal((2500, 4)), torch.float16) for _ in range(2))
    buckets = torch.zeros(1, 2500, dtype=torch.int64)
    assert attention(4 * qk, v, buckets, o).isfinite().all()
    flat = attention(1e-3 * qk, torch.ones_like(v), buckets, replace(o, scale=1.0))
    assert float((flat - 1).abs().max()) < 0.01


# Repeatability


@pytest.mark.parametrize("name", PRESETS)
@BACKENDS
def test_same_call_same_bits_and_no_random_state(attention, name):
    o = LSHOptions.preset(name, n_hashes=2, chunk_length=4)
    inputs = [to_torch(a, torch.float32) for a in draw(16, o, 41, (2, 2))]
    state = torch.get_rng_state()
    results = []
    for _ in range(2):
        leaves = [t.clone().requires_grad_() for t in inputs[:2]]
        out = attention(*leaves, inputs[2], o)
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
        torch.rand(3) if not results[1:] else None
        torch.set_rng_state(state)
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@BACKENDS
def test_inputs_are_left_alone_and_layout_does_not_matter(attention):
    """int16 and int32 buckets, transposed and sliced tensors: the same bits; nothing is written
    into the inputs.
    """
    o = LSHOptions(n_hashes=2, chunk_length=4)
    qk, v, buckets = (to_torch(a) for a in draw(17, o, 21, (2, 3)))
    kept = [t.clone() for t in (qk, v, buckets)]
    want = attention(qk, v, buckets, o)
    assert all(torch.equal(a, b) for a, b in zip(kept, (qk, v, buckets), strict=True))
    for dtype in (torch.int16, torch.int32):
        assert torch.equal(attention(qk, v, buckets.to(dtype), o), want)
    strided = qk.transpose(0, 2).contiguous().transpose(0, 2), v.repeat_interleave(2, -1)[..., ::2]
    expect_close("strided", attention(*strided, buckets.flip(-1).flip(-1), o), want, 1e-14)


@BACKENDS
def test_windows_wider_than_the_sequence(attention):
    wide = LSHOptions(n_hashes=2, chunk_length=4, chunks_before=10**9, chunks_after=10**9, causal=False)
    qk, v, buckets = (torch.from_numpy(x) for x in draw(0, wide, 10))
    want = attention(qk, v, buckets, replace(wide, chunks_before=2, chunks_after=2))
    assert torch.equal(attention(qk, v, buckets, wide), want)
