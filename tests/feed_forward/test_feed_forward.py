"""Layer norm, feed-forward and cross-entropy: both versions pass the checks, wrong ones fail, bad
input is refused.
"""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from reformer_ref.feed_forward import FeedForward, api, checks, spec
from reformer_ref.testing import as_numpy, autograd_vjp, expect_close, relative_error, to_torch

DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()
quick = settings(max_examples=25, deadline=None)


def layer_norm_gradients(x, scale, bias, d_out, eps, device="cpu"):
    return autograd_vjp(lambda *t: api.layer_norm(*t, eps), (x, scale, bias), d_out, device=device)[1]


def feed_forward_gradients(x, w1, b1, w2, b2, d_out, activation, chunk_length, device="cpu", backend="auto"):
    fn = partial(api.feed_forward, activation=activation, chunk_length=chunk_length, backend=backend)
    return autograd_vjp(fn, (x, w1, b1, w2, b2), d_out, device=device)[1]


def cross_entropy_gradients(hidden, weight, bias, targets, d_loss, chunk_length, device="cpu", backend="auto"):
    targets = torch.from_numpy(targets).to(device)

    def loss(*tensors):
        return api.cross_entropy(*tensors, targets, chunk_length, backend=backend).reshape(1)

    return autograd_vjp(loss, (hidden, weight, bias), [d_loss], device=device)[1]


def test_spec_passes_the_checks():
    for name in ("layer_norm", "feed_forward", "cross_entropy"):
        getattr(checks, f"check_{name}")(getattr(spec, name))
        getattr(checks, f"check_{name}_vjp")(getattr(spec, f"{name}_vjp"))


@pytest.mark.parametrize("backend", ["plain", "chunked"])
@pytest.mark.parametrize("device", DEVICES)
def test_pytorch_passes_the_checks(device, backend):
    checks.check_layer_norm(as_numpy(api.layer_norm, device=device))
    checks.check_feed_forward(as_numpy(partial(api.feed_forward, backend=backend), device=device))
    checks.check_cross_entropy(as_numpy(partial(api.cross_entropy, backend=backend), device=device))
    checks.check_layer_norm_vjp(partial(layer_norm_gradients, device=device))
    checks.check_feed_forward_vjp(partial(feed_forward_gradients, device=device, backend=backend))
    checks.check_cross_entropy_vjp(partial(cross_entropy_gradients, device=device, backend=backend))


def _drops_the_last_chunk(x, w1, b1, w2, b2, activation, chunk_length):
    out = spec.feed_forward(x, w1, b1, w2, b2, activation)
    remainder = x.shape[-2] % chunk_length if chunk_length else 0
    out[..., x.shape[-2] - remainder :, :] = 0
    return out


def _overwrites_sums(x, w1, b1, w2, b2, d_out, activation, chunk_length):
    tail = slice(-(x.shape[-2] % (chunk_length or 1) or x.shape[-2]), None)
    all_of_it = spec.feed_forward_vjp(x, w1, b1, w2, b2, d_out, activation)
    return all_of_it[0], *spec.feed_forward_vjp(x[..., tail, :], w1, b1, w2, b2, d_out[..., tail, :], activation)[1:]


def _averages_the_chunks(hidden, weight, bias, targets, chunk_length):
    hidden, targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    step = chunk_length or len(targets)
    cuts = [slice(i, i + step) for i in range(0, len(targets), step)]
    cuts = [c for c in cuts if (targets[c] != spec.IGNORED).any()]
    return np.mean([spec.cross_entropy(hidden[c], weight, bias, targets[c]) for c in cuts])


@pytest.mark.parametrize(
    ("check", "wrong"),
    [
        ("layer_norm", lambda x, s, b, eps: spec.layer_norm(x, s, b, 0.0) if x.shape[-1] > 1 else b + 0 * x),
        ("layer_norm", lambda x, s, b, eps: s * (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + eps) + b),
        ("layer_norm_vjp", lambda x, s, b, d, eps: (d * s, *spec.layer_norm_vjp(x, s, b, d, eps)[1:])),
        ("feed_forward", _drops_the_last_chunk),
        ("feed_forward", lambda *a: spec.feed_forward(*a[:5], "relu")),
        ("feed_forward_vjp", _overwrites_sums),
        ("feed_forward_vjp", lambda *a: spec.feed_forward_vjp(*a)[:4]),
        ("cross_entropy", _averages_the_chunks),
        ("cross_entropy", lambda h, w, b, t, n: spec.cross_entropy(h, w, b, np.maximum(t, 0), n)),
        ("cross_entropy_vjp", lambda h, w, b, t, d, n: spec.cross_entropy_vjp(h, w, b, t, 1.0, n)),
    ],
)
def test_the_checks_refuse_wrong_variants(check, wrong):
    with pytest.raises(AssertionError, match="expected"), np.errstate(all="ignore"):
        getattr(checks, f"check_{check}")(wrong)


def random_arrays(rng, *shapes):
    return [rng.standard_normal(shape) for shape in shapes]


@pytest.mark.parametrize("chunk_length", [None, 2])
def test_without_biases(chunk_length):
    rng = np.random.default_rng(0)
    x, w1, w2, d_out, weight = random_arrays(rng, (2, 5, 3), (3, 4), (4, 3), (2, 5, 3), (3, 7))
    targets = rng.integers(0, 7, (2, 5))
    got, grads = autograd_vjp(
        lambda x, w1, w2: api.feed_forward(x, w1, None, w2, None, chunk_length=chunk_length), (x, w1, w2), d_out
    )
    d_x, d_w1, d_b1, d_w2, d_b2 = spec.feed_forward_vjp(x, w1, None, w2, None, d_out, chunk_length=chunk_length)
    expect_close("feed_forward", got, spec.feed_forward(x, w1, np.zeros(4), w2, np.zeros(3)), 1e-12)
    assert d_b1 is None
    assert d_b2 is None
    for name, a, b in zip(("d_x", "d_w1", "d_w2"), grads, (d_x, d_w1, d_w2), strict=True):
        expect_close(name, a, b, 1e-12)
    loss, grads = autograd_vjp(
        lambda h, w: api.cross_entropy(h, w, None, torch.from_numpy(targets), chunk_length).reshape(1), (x, weight), [1]
    )
    d_hidden, d_weight, d_bias = spec.cross_entropy_vjp(x, weight, None, targets, chunk_length=chunk_length)
    assert d_bias is None
    expect_close("cross_entropy", loss[0], spec.cross_entropy(x, weight, np.zeros(7), targets), 1e-12)
    expect_close("d_hidden", grads[0], d_hidden, 1e-12)
    expect_close("d_weight", grads[1], d_weight, 1e-12)


@quick
@given(length=st.integers(1, 40), chunk_length=st.integers(1, 50), seed=st.integers(0, 99), gelu=st.booleans())
def test_a_chunk_length_changes_nothing(length, chunk_length, seed, gelu):
    rng = np.random.default_rng(seed)
    inputs = random_arrays(rng, (2, length, 3), (3, 4), 4, (4, 3), 3)
    d_out = rng.standard_normal((2, length, 3))
    activation = "gelu" if gelu else "relu"
    want = spec.feed_forward_vjp(*inputs, d_out, activation)
    for name, got in (
        ("spec", spec.feed_forward_vjp(*inputs, d_out, activation, chunk_length)),
        ("api", feed_forward_gradients(*inputs, d_out, activation, chunk_length)),
    ):
        for a, b in zip(got, want, strict=True):
            expect_close(f"gradients of feed_forward ({name})", a, b, 1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_good_as_the_plain_formula(dtype):
    """Error against the float64 spec at most twice that of the unchunked formula in the same
    precision.
    """
    rng = np.random.default_rng(5)
    inputs = random_arrays(rng, (300, 32), (32, 64), 64, (64, 32), 32)
    inputs = [a / np.sqrt(a.shape[0]) if a.ndim == 2 and a.shape[0] < 300 else a for a in inputs]
    inputs = [to_torch(a, dtype).double().numpy() for a in inputs]  # the same rounded numbers for everyone
    d_out = to_torch(rng.standard_normal((300, 32)), dtype).double().numpy()
    want = [spec.feed_forward(*inputs), *spec.feed_forward_vjp(*inputs, d_out)]

    def run(fn):
        tensors = [to_torch(a, dtype).requires_grad_() for a in inputs]
        out = fn(*tensors)
        return [out, *torch.autograd.grad(out, tensors, to_torch(d_out, dtype))]

    plain = run(lambda x, w1, b1, w2, b2: F.relu(x @ w1 + b1) @ w2 + b2)
    for ours, naive, exact in zip(run(partial(api.feed_forward, chunk_length=7)), plain, want, strict=True):
        assert ours.dtype == dtype
        ours, naive = (relative_error(t.detach().double().numpy(), exact) for t in (ours, naive))
        assert ours <= 2 * naive


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_loss_uses_float32_statistics(dtype):
    rng = np.random.default_rng(6)
    hidden, weight, bias = (to_torch(a, dtype) for a in random_arrays(rng, (500, 16), (16, 100), 100))
    targets = rng.integers(0, 100, 500)
    exact = spec.cross_entropy(*(t.double().numpy() for t in (hidden, weight, bias)), targets)
    ours = api.cross_entropy(hidden, weight, bias, torch.from_numpy(targets), 64)
    naive = F.cross_entropy(hidden @ weight + bias, torch.from_numpy(targets))
    assert ours.dtype == torch.float32
    assert abs(float(ours) - exact) <= 2 * abs(float(naive) - exact)
    assert abs(float(ours) / exact - 1) < 1e-3


def test_a_loss_that_is_not_finite_is_returned_as_it_is():
    hidden, weight, targets = np.full((2, 3), np.nan), np.ones((3, 4)), np.array([0, 1])
    assert np.isnan(spec.cross_entropy(hidden, weight, None, targets))
    for chunk_length in (None, 1):
        assert torch.isnan(
            api.cross_entropy(*to_torch([hidden, weight]), None, torch.from_numpy(targets), chunk_length)
        )


# Bad input


def call_on(function, arrays, **kwargs):
    return function(*(torch.from_numpy(np.asarray(a)) for a in arrays), **kwargs)


SHAPES = {"x": (2, 5, 3), "w1": (3, 4), "b1": (4,), "w2": (4, 3), "b2": (3,)}


@quick
@given(name=st.sampled_from(list(SHAPES)), axis=st.integers(0, 2), data=st.data())
def test_wrong_shapes_are_named(name, axis, data):
    shapes = {k: list(v) for k, v in SHAPES.items()}
    axis %= len(shapes[name])
    if name == "x" and axis != 2:
        shapes[name][axis] = 0  # no tokens, or no rows
    else:
        shapes[name][axis] += data.draw(st.integers(1, 3))
    if name == "x" and data.draw(st.booleans()):
        shapes[name] = [3]
    arrays = [np.ones(s) for s in shapes.values()]
    with pytest.raises(ValueError, match=r"^(x|w1|b1|w2|b2) must have shape"):
        call_on(api.feed_forward, arrays)


@quick
@given(
    name=st.sampled_from(["x", "w1", "b1", "w2", "b2"]), dtype=st.sampled_from(["int64", "bool", "complex128", "uint8"])
)
def test_wrong_dtypes_are_named(name, dtype):
    arrays = [np.ones(s, dtype=dtype if name == k else "float64") for k, s in SHAPES.items()]
    with pytest.raises(TypeError, match=rf"^{name} must"):
        call_on(api.feed_forward, arrays)


@pytest.mark.parametrize("bad", [0, -3, 1.5, "4", True])
def test_bad_chunk_lengths_are_refused(bad):
    arrays, targets = [np.ones(s) for s in SHAPES.values()], np.zeros((2, 5), dtype=int)
    for call in (
        lambda: call_on(api.feed_forward, arrays, chunk_length=bad),
        lambda: call_on(
            partial(api.cross_entropy, bias=None), arrays[:2], targets=torch.from_numpy(targets), chunk_length=bad
        ),
        lambda: FeedForward(4, 8, chunk_length=bad),
    ):
        with pytest.raises((ValueError, TypeError), match="chunk_length must be"):
            call()


def loss(targets, shape=(2, 5, 3)):
    return call_on(api.cross_entropy, (np.ones(shape), np.ones((3, 6)), np.ones(6), targets))


@quick
@given(bad=st.sampled_from([-1, 6, 7, -99, -101, 2**40]), place=st.integers(0, 9))
def test_targets_out_of_range_are_refused(bad, place):
    targets = np.zeros(10, dtype=np.int64)
    targets[place] = bad
    with pytest.raises(ValueError, match=rf"targets must be in \[0, 6\) or -100, got values from .*{bad}"):
        loss(targets.reshape(2, 5))


def test_other_bad_targets_are_refused():
    with pytest.raises(ValueError, match="at least one position that counts"):
        loss(np.full((2, 5), -100))
    for dtype in ("float32", "bool"):
        with pytest.raises(TypeError, match="targets must be integers"):
            loss(np.zeros((2, 5), dtype=dtype))
    with pytest.raises(ValueError, match=r"targets must have shape \(2, 5\)"):
        loss(np.zeros((2, 4), dtype=int))
    with pytest.raises(ValueError, match=r"hidden must have shape .* at least one position"):
        loss(np.zeros((2, 0), dtype=int), shape=(2, 0, 3))


@pytest.mark.parametrize("dtype", ["int32", "int16", "uint8"])
def test_targets_of_any_integer_dtype(dtype):
    """156 as an unsigned byte has the bits of -100, and is a token all the same."""
    value = 156 if dtype == "uint8" else 100
    rng = np.random.default_rng(0)
    hidden, weight = random_arrays(rng, (3, 2), (2, 200))
    targets = np.array([value, 0, value], dtype=dtype)
    want = spec.cross_entropy(hidden, weight, None, targets.astype(int))
    expect_close("spec", spec.cross_entropy(hidden, weight, None, targets), want, 1e-15)
    got = api.cross_entropy(*to_torch([hidden, weight]), None, torch.from_numpy(targets))
    expect_close("pytorch", got.numpy(), want, 1e-12)


def test_mixed_dtypes_and_devices_are_refused():
    x, weights = torch.ones(2, 3), [torch.ones(s) for s in ((3, 4), 4, (4, 3), 3)]
    with pytest.raises(TypeError, match=r"w1 must have the dtype of x \(torch.float64\), got torch.float32"):
        api.feed_forward(x.double(), *weights)
    with pytest.raises(ValueError, match=r"b1 must be on the device of x \(cpu\), got meta"):
        api.feed_forward(x, weights[0], weights[1].to("meta"), *weights[2:])
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match=r"w1 must be on the device of x"):
        api.feed_forward(x, weights[0].to("meta"), *weights[1:])
    with pytest.raises(ValueError, match=r"targets must be on the device of hidden"):
        api.cross_entropy(x, weights[0], None, torch.zeros(2, dtype=torch.int64, device="meta"))
    with pytest.raises(TypeError, match=r"x must be a torch.Tensor, got ndarray"):
        api.layer_norm(np.ones((2, 3)), weights[3], weights[3])
    with pytest.raises(ValueError, match=r"scale must have shape \(3,\)"):
        api.layer_norm(x, weights[1], weights[3])
    with pytest.raises(ValueError, match=r"eps must be at least 0"):
        api.layer_norm(x, weights[3], weights[3], -1e-5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"d_model": 0}, ValueError, "d_model must be at least 1"),
        ({"d_ff": 2.5}, TypeError, "d_ff must be an integer"),
        ({"activation": "swish"}, ValueError, "activation must be one of 'relu', 'gelu', got 'swish'"),
        ({"dropout": 1.0}, ValueError, "dropout must be less than 1"),
        ({"dropout": -0.1}, ValueError, "dropout must be at least 0"),
        ({"dropout": float("nan")}, ValueError, "dropout must be finite"),
        ({"bias": 1}, TypeError, "bias must be True or False"),
    ],
)
def test_module_refuses_bad_options(arguments, error, message):
    with pytest.raises(error, match=message):
        FeedForward(**{"d_model": 4, "d_ff": 8, **arguments})


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("chunk_length", [None, 3])
def test_module(bias, chunk_length):
    before = torch.get_rng_state()
    module = FeedForward(4, 8, "gelu", 0.5, chunk_length, bias, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)
    assert [n for n, _ in module.named_parameters()] == (["w1", "b1", "w2", "b2"] if bias else ["w1", "w2"])
    x = torch.randn(2, 7, 4, generator=torch.Generator().manual_seed(1))
    arrays = [None if p is None else p.detach().numpy() for p in (module.w1, module.b1, module.w2, module.b2)]
    want = spec.feed_forward(x.numpy(), *arrays, "gelu")
    expect_close("module in evaluation", module.eval()(x).detach().numpy(), want, 1e-6)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert relative_error(module.train()(x).detach().numpy(), want) > 1e-2  # dropout is on
    assert "chunk_length" in repr(module)
