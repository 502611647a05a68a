"""Local attention: spec and PyTorch are one function, its promises hold, and bad input is refused."""

import json
from dataclasses import FrozenInstanceError
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from reformer_ref.attention.pytorch import regular_attention
from reformer_ref.local_attention import checks, spec
from reformer_ref.local_attention.api import local_attention
from reformer_ref.local_attention.options import LocalOptions
from reformer_ref.testing import as_numpy, autograd_vjp, expect_close, expect_equal, to_numpy, to_torch

DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()
plain = partial(local_attention, backend="plain")
streaming = partial(local_attention, backend="streaming")
FUNCTIONS = {"spec": spec.local_attention, "plain": as_numpy(plain), "streaming": as_numpy(streaming)}
BOTH = pytest.mark.parametrize("fn", FUNCTIONS.values(), ids=FUNCTIONS)
BACKENDS = pytest.mark.parametrize("attention", [plain, streaming], ids=["plain", "streaming"])


def gradients(q, k, v, options, d_out, padding_mask, device="cpu", attention=local_attention):
    """(d_q, d_k, d_v) by autograd."""
    padding_mask = to_torch(padding_mask, device=device)
    fn = partial(attention, options=options, padding_mask=padding_mask)
    return autograd_vjp(fn, (q, k, v), d_out, device=device)[1]


def draw(seed, length, lead=(), d=5, d_v=3):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((*lead, length, size)) for size in (d, d, d_v)]


def test_spec_passes_the_checks():
    checks.check_local_attention(spec.local_attention)
    checks.check_local_attention_vjp(spec.local_attention_vjp)


@pytest.mark.parametrize("device", DEVICES)
@BACKENDS
def test_pytorch_passes_the_checks(attention, device, capsys):
    checks.check_local_attention(as_numpy(attention, device=device))
    checks.check_local_attention_vjp(partial(gradients, device=device, attention=attention))
    checks.check_local_attention(as_numpy(attention, device=device), LocalOptions(chunk_length=16), seed=3)
    assert capsys.readouterr().out.count("worst relative error") == 3


@pytest.mark.parametrize("neighbours", [(1, 0), (1, 1), (2, 0), (0, 0), (0, 2), (3, 1)])
def test_every_combination_of_options(neighbours):
    rng = np.random.default_rng(5)
    for length, chunk_length, wrap, causal in product(
        (1, 2, 3, 4, 5, 13, 16, 29), (1, 4), (False, True), (False, True)
    ):
        o = LocalOptions(chunk_length, *neighbours, causal=causal, wrap=wrap)
        lead = ((), (2,), (2, 3))[length % 3]
        inputs = draw(length, length, lead)
        d_out = rng.standard_normal((*lead, length, 3))
        mask = None if rng.random() < 0.4 else rng.random((*lead, length)) < 0.7
        case = f"L={length}, {o}, {'no' if mask is None else 'a'} mask"
        want = spec.local_attention(*inputs, o, mask)
        d_want = np.concatenate(spec.local_attention_vjp(*inputs, o, d_out, mask), axis=-1)
        for attention in (plain, streaming):
            expect_close(case, as_numpy(attention)(*inputs, o, mask), want, 1e-12)
            got = np.concatenate(gradients(*inputs, o, d_out, mask, attention=attention), axis=-1)
            expect_close(f"gradients, {case}", got, d_want, 1e-12)


def test_block_size_and_layout_change_nothing():
    rng = np.random.default_rng(6)
    for lead, wrap in product(((3,), (2, 3)), (False, True)):
        o, inputs = (LocalOptions(chunk_length=4, chunks_after=1, causal=False, wrap=wrap), draw(6, 14, lead))
        d_out, mask = (rng.standard_normal((*lead, 14, 3)), to_torch(rng.random((*lead[:-1], 1, 14)) < 0.8))

        def run(interleave, block_size, inputs=inputs, d_out=d_out, o=o, mask=mask):
            leaves = [to_torch(a).requires_grad_() for a in inputs]
            heads = [t.transpose(-3, -2).contiguous().transpose(-3, -2) if interleave else t for t in leaves]
            out = streaming(*heads, o, mask, block_size=block_size) if block_size else plain(*heads, o, mask)
            return to_numpy([out, *torch.autograd.grad(out, leaves, to_torch(d_out))])

        want = run(False, None)
        for interleave, block_size in product((False, True), (None, 1, 100, 10**9)):
            for name, a, b in zip(("out", "d_q", "d_k", "d_v"), run(interleave, block_size), want, strict=True):
                expect_close(f"{name}, interleaved: {interleave}, block_size={block_size}", a, b, 1e-13)


# Promises


@BOTH
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("causal", [True, False])
def test_padding_never_matters_without_wrap(fn, side, causal):
    for length in (1, 4, 19):
        o = LocalOptions(chunk_length=4, chunks_after=0 if causal else 1, causal=causal)
        inputs = draw(length, length, (2,))
        want = fn(*inputs, o, None)
        for n in (0, 1, 7, 64):
            noise = [30 * x for x in draw(n, n, (2,))]
            pairs = [(a, b) if side == "left" else (b, a) for a, b in zip(noise, inputs, strict=True)]
            real = np.ones((2, length + n), dtype=bool)
            real[:, slice(0, n) if side == "left" else slice(length, None)] = False
            got = fn(*(np.concatenate(p, axis=-2) for p in pairs), o, real)[real].reshape(want.shape)
            expect_close(f"L={length}, {n} padded on the {side}", got, want, 1e-13)


@BOTH
def test_with_wrap_the_amount_of_padding_moves_the_window(fn):
    """As in the authors' code: the first chunk sees the last one, and what stands there depends on
    the length.
    """
    o, inputs = LocalOptions(chunk_length=4, causal=False, wrap=True), draw(7, 16)
    want = fn(*inputs, o, None)
    longer = [np.concatenate([x, np.ones((7, x.shape[-1]))]) for x in inputs]
    real = np.arange(23) < 16
    got = fn(*longer, o, real)[real]
    assert np.abs(got - want).max() > 0.3
    expect_close("chunks that do not wrap", got[4:], want[4:], 1e-13)


@BOTH
def test_causal_outputs_depend_on_their_prefix_alone(fn):
    o, inputs = LocalOptions(chunk_length=4), draw(8, 31)
    want = fn(*inputs, o, None)
    for t in (1, 2, 4, 5, 16, 30):
        expect_close(f"the first {t}", fn(*(x[:t] for x in inputs), o, None), want[:t], 1e-13)
        other = draw(t, 31)
        for x, y in zip(other, inputs, strict=True):
            x[:t] = y[:t]
        expect_close(f"after tokens {t}… changed", fn(*other, o, None)[:t], want[:t], 1e-13)


@BOTH
def test_rows_of_padding_give_zeros(fn):
    o, inputs, real = LocalOptions(chunk_length=4), draw(9, 10, (3,)), np.ones((3, 10), dtype=bool)
    real[1] = False
    got = fn(*inputs, o, real)
    assert not got[1].any()
    expect_close("other rows", got[[0, 2]], fn(*(x[[0, 2]] for x in inputs), o, None), 1e-13)
    for attention in (plain, streaming):
        leaves = [to_torch(a).requires_grad_() for a in inputs]
        for grad in torch.autograd.grad(attention(*leaves, o, to_torch(real)).sum(), leaves):
            assert grad.isfinite().all()
            assert not grad[1].any()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("scale", [None, 0.7])
def test_dense_attention_when_everything_is_visible(causal, scale):
    o, inputs = LocalOptions(chunk_length=25, causal=causal, scale=scale), draw(10, 25, (2,))
    real = np.random.default_rng(0).random((2, 25)) < 0.8
    want = as_numpy(regular_attention)(*inputs, causal, real, scale)
    for fn in FUNCTIONS.values():
        expect_close("one chunk", fn(*inputs, o, real)[real], want[real], 1e-12)


def naive(q, k, v, counts, options):
    """Dense masked softmax in the dtype of the inputs, all of it."""
    scores = options.scale_for(q.shape[-1]) * (q @ k.transpose(-1, -2))
    return scores.masked_fill(counts == 0, torch.finfo(scores.dtype).min).softmax(-1) @ v


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@BACKENDS
def test_lower_precision_is_as_good_as_the_plain_formula(attention, dtype, autocast):
    """At most twice the error of a dense softmax in the same precision: root mean square, and
    largest entry.

    The largest error of one draw is one unlucky rounding, so it is averaged over the draws.
    """
    o, held = LocalOptions(chunk_length=16), torch.float32 if autocast else dtype
    counts = to_torch(spec.local_counts(np.ones(120, dtype=bool), o))
    sizes = []
    for seed in range(5):
        *inputs, d_out = (
            to_torch(a, held) for a in [*draw(seed, 120, (2,), 16, 5), draw(seed + 9, 120, (2,), 16, 5)[2]]
        )
        exact = [to_numpy(t.double()) for t in inputs]
        want = [spec.local_attention(*exact, o), *spec.local_attention_vjp(*exact, o, to_numpy(d_out.double()))]

        def run(fn, inputs=inputs, d_out=d_out):
            leaves = [t.clone().requires_grad_() for t in inputs]
            with torch.autocast("cpu", dtype, enabled=autocast):
                out = fn(*leaves)
            return [out, *torch.autograd.grad(out, leaves, d_out.to(out.dtype))]

        for fn in (partial(attention, options=o), partial(naive, counts=counts, options=o)):
            errors = [to_numpy(a.double()) - b for a, b in zip(run(fn), want, strict=True)]
            sizes.append([[np.sqrt(np.mean(e**2)), np.abs(e).max()] for e in errors])
    ours, formula = (np.mean(sizes[i::2], axis=0) for i in range(2))  # (out and gradients, kind of error)
    assert (ours <= 2 * formula).all(), ours / formula


@BACKENDS
def test_same_call_same_bits(attention):
    o, inputs = (LocalOptions(chunk_length=4), [to_torch(a, torch.float32) for a in draw(11, 41, (2, 2))])
    state, results = torch.get_rng_state(), []
    for _ in range(2):
        leaves = [t.clone().requires_grad_() for t in inputs]
        out = attention(*leaves, o)
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_what_a_query_sees_is_what_the_counts_say():
    """local_counts, and the gradient of out[i] by v[j]: positive exactly where the count is."""
    real = np.array([True, False, True, True, True, True, False, True, True])
    for o in (LocalOptions(chunk_length=2), LocalOptions(chunk_length=2, causal=False, chunks_after=1, wrap=True)):
        q, k, v = (to_torch(a) for a in draw(12, 9, d_v=1))
        jacobian = torch.autograd.functional.jacobian(
            lambda v, o=o, q=q, k=k: local_attention(q, k, v, o, to_torch(real)), v
        )
        expect_equal("who is seen", to_numpy(jacobian[:, 0, :, 0] > 0), spec.local_counts(real, o) > 0)


# Bad input


def test_options_survive_json_and_are_frozen():
    for o in (LocalOptions(), LocalOptions(7, 2, 1, False, True, 0.5), LocalOptions(np.int64(4), scale=np.float32(2))):
        again = LocalOptions(**json.loads(json.dumps(o.to_dict())))
        assert again == o
        assert hash(again) == hash(o)
    with pytest.raises(FrozenInstanceError):
        LocalOptions().wrap = True


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"chunk_length": 0}, ValueError),
        ({"chunk_length": 4.0}, TypeError),
        ({"chunk_length": True}, TypeError),
        ({"chunks_before": -1}, ValueError),
        ({"chunks_after": None}, TypeError),
        ({"causal": 1}, TypeError),
        ({"wrap": "yes"}, TypeError),
        ({"scale": 0.0}, ValueError),
        ({"scale": float("nan")}, ValueError),
        ({"scale": 1e6}, ValueError),
        ({"scale": "rsqrt_d"}, TypeError),
        ({"within_bucket": True}, TypeError),
    ],
)
def test_wrong_options(changes, error):
    with pytest.raises(error, match=next(iter(changes))):
        LocalOptions(**changes)


WRONG = [
    ({"q": torch.ones(4)}, ValueError, "q must have shape"),
    ({"q": torch.ones(2, 9, 3)}, ValueError, "q, k"),
    ({"k": torch.ones(2, 8, 4)}, ValueError, "q, k"),
    ({"k": torch.ones(9, 4)}, ValueError, "q, k"),
    ({"v": torch.ones(2, 8, 5)}, ValueError, "v"),
    ({"v": torch.ones(2, 9, 0)}, ValueError, "v must have shape"),
    ({"q": torch.full((2, 9, 4), torch.nan)}, ValueError, "q must be finite"),
    ({"k": torch.full((2, 9, 4), -torch.inf)}, ValueError, "k must be finite"),
    ({"v": torch.full((2, 9, 1), torch.nan)}, ValueError, "v must be finite"),
    ({"q": torch.full((2, 9, 4), 2e12)}, ValueError, "q must be finite and smaller"),
    ({"q": torch.ones(2, 9, 4, dtype=torch.int64)}, TypeError, "q.*int64"),
    ({"k": torch.ones(2, 9, 4, dtype=torch.complex64)}, TypeError, "k.*complex64"),
    ({"v": torch.ones(2, 9, 5, dtype=torch.bool)}, TypeError, "v.*bool"),
    ({"q": np.ones((2, 9, 4))}, TypeError, "q must be a torch.Tensor"),
    ({"k": torch.ones(2, 9, 4).double()}, TypeError, "k must have the dtype of q"),
    ({"v": torch.ones(2, 9, 5, device="meta")}, ValueError, "v must be on the device of q"),
    ({"padding_mask": torch.ones(2, 8, dtype=torch.bool)}, ValueError, "padding_mask must broadcast"),
    ({"padding_mask": torch.ones(3, 2, 9, dtype=torch.bool)}, ValueError, "padding_mask must broadcast"),
    ({"padding_mask": torch.ones(2, 9)}, TypeError, "padding_mask must be boolean"),
    ({"padding_mask": [True] * 9}, TypeError, "padding_mask must be a torch.Tensor"),
    ({"padding_mask": torch.ones(9, dtype=torch.bool, device="meta")}, ValueError, "padding_mask must be on"),
    ({"options": {"chunk_length": 4}}, TypeError, "options must be LocalOptions"),
    ({"backend": "fast"}, ValueError, "backend must be one of 'auto'"),
    ({"block_size": 0}, ValueError, "block_size"),
    ({"block_size": 2.5}, TypeError, "block_size"),
]


@pytest.mark.parametrize(("changes", "error", "message"), WRONG)
def test_wrong_arguments(changes, error, message):
    good = {"q": torch.ones(2, 9, 4), "k": torch.ones(2, 9, 4), "v": torch.ones(2, 9, 5), "options": LocalOptions(4)}
    local_attention(**good)
    with pytest.raises(error, match=message):
        local_attention(**(good | changes))


@BACKENDS
def test_products_beyond_float16(attention):
    """q·k = 64 · 300² is beyond 65,504, the largest float16."""
    q = torch.full((1, 4, 64), 300.0, dtype=torch.float16)
    v = torch.arange(4, dtype=torch.float16).view(1, 4, 1)
    out = attention(q, q, v, LocalOptions(chunk_length=4, causal=False))
    assert torch.equal(out, torch.full_like(out, 1.5))


@BACKENDS
def test_the_largest_entries_that_are_allowed(attention):
    """Scores as large as −1e9 · 1e9 · d · 1e6 hide nothing and reveal nothing."""
    q = torch.full((1, 2, 64), 9.9e8, dtype=torch.float64)
    k = q.clone()
    k[:, 0] *= -1
    v = torch.tensor([[[0.0], [1.0]]], dtype=torch.float64)
    out = attention(q, k, v, LocalOptions(chunk_length=2, scale=9e5))
    assert torch.equal(out, v)  # token 0 sees only itself, token 1 prefers itself


@BACKENDS
def test_windows_wider_than_the_sequence(attention):
    q, k, v = (torch.from_numpy(x) for x in draw(0, 10))
    wide = LocalOptions(chunk_length=4, chunks_before=10**9, chunks_after=10**9, causal=False)
    assert torch.equal(attention(q, k, v, wide), attention(q, k, v, LocalOptions(4, 2, 2, causal=False)))


def test_larger_entries_are_refused():
    x = torch.ones(1, 4, 8)
    for name in ("q", "k"):
        inputs = {"q": x, "k": x, "v": x, name: 1e9 * x}
        with pytest.raises(ValueError, match=f"{name} must be finite and smaller"):
            local_attention(**inputs, options=LocalOptions())
