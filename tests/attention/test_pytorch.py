"""What only the PyTorch version has: blocks that save memory, half precision, autocast; and parity
at larger sizes.
"""

import weakref
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reformer_ref.attention import api, pytorch, spec
from reformer_ref.testing import autograd_vjp, expect_close, relative_error, to_torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

quick = settings(max_examples=25, deadline=None)


@quick
@given(
    length=st.sampled_from([1, 2, 3, 17, 31, 64, 101]),
    heads=st.sampled_from([(), (1,), (2, 2)]),
    block_size=st.sampled_from([None, 1, 7, 16, 64]),
    causal=st.booleans(),
    share_mask=st.booleans(),
    seed=st.integers(0, 999),
)
def test_parity_with_the_spec(length, heads, block_size, causal, share_mask, seed):
    """Outputs and gradients; the mask may be one for all heads, or none may be real."""
    rng = np.random.default_rng(seed)
    q, k, v, d_out = (rng.standard_normal((*heads, length, d)) for d in (4, 4, 3, 3))
    mask = rng.random((length,) if share_mask else (*heads, length)) < rng.random()
    tensor_mask = torch.from_numpy(mask)
    for name, inputs in (("regular_attention", (q, k, v)), ("shared_qk_attention", (q, v))):
        fn = partial(getattr(api, name), causal=causal, padding_mask=tensor_mask, block_size=block_size)
        out, grads = autograd_vjp(fn, inputs, d_out)
        expect_close(name, out, getattr(spec, name)(*inputs, causal=causal, padding_mask=mask), 1e-12)
        want = getattr(spec, f"{name}_vjp")(*inputs, d_out, causal=causal, padding_mask=mask)
        for a, b in zip(grads, want, strict=True):
            expect_close(f"gradient of {name}", a, np.where(np.abs(b) < 1e-14, 0, b), 1e-12)


def test_zero_vectors_have_finite_gradients():
    """A vector of length zero has no direction; its gradient as a key is zero, or finite with
    norm_eps > 0.
    """
    rng = np.random.default_rng(0)
    qk, v, d_out = rng.standard_normal((3, 6, 4))
    qk[2] = 0
    for norm_eps in (0.0, 1e-6):
        _, got = autograd_vjp(lambda qk, v, e=norm_eps: api.shared_qk_attention(qk, v, norm_eps=e), (qk, v), d_out)
        for a, b in zip(got, spec.shared_qk_attention_vjp(qk, v, d_out, norm_eps=norm_eps), strict=True):
            assert np.isfinite(a).all()
            expect_close(f"gradient with norm_eps={norm_eps}", a, b, 1e-12)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("padding", [1, 7, 64])
def test_padding_changes_nothing(side, padding):
    rng = np.random.default_rng(0)
    qk, k, v = rng.standard_normal((3, 2, 19, 4))
    pads = ((0, 0), (padding, 0) if side == "left" else (0, padding), (0, 0))
    real = np.pad(np.ones((2, 19), bool), pads[:2])
    for causal in (False, True):
        for name, inputs in (("regular_attention", (qk, k, v)), ("shared_qk_attention", (qk, v))):
            want = getattr(spec, name)(*inputs, causal=causal)
            padded = [np.pad(a, pads, constant_values=9.0) for a in inputs]
            for version, convert in ((spec, np.asarray), (api, torch.from_numpy)):
                got = getattr(version, name)(*map(convert, padded), causal=causal, padding_mask=convert(real))
                got = np.asarray(got)[:, padding:] if side == "left" else np.asarray(got)[:, :19]
                expect_close(f"{name}, {padding} padded", got, want, 1e-13)


# Half precision


def in_half(arrays, dtype):
    """Tensors in ``dtype``, and the same rounded numbers in float64."""
    tensors = [to_torch(a, dtype) for a in arrays]
    return tensors, [t.double().numpy() for t in tensors]


def plain_regular(q, k, v, hidden):
    return torch.softmax((q @ k.mT * q.shape[-1] ** -0.5).masked_fill(hidden, -torch.inf), -1) @ v


def plain_shared(qk, v, hidden):
    k = qk / (qk * qk).sum(-1, keepdim=True).sqrt()
    return torch.softmax((qk @ k.mT).masked_fill(hidden, -torch.inf), -1) @ v


@pytest.mark.parametrize("block_size", [None, 16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["regular_attention", "shared_qk_attention"])
def test_half_precision_is_as_good_as_the_plain_formula(name, dtype, block_size):
    """Error against the float64 spec at most twice that of the textbook formula in the same
    precision.
    """
    rng = np.random.default_rng(3)
    n = 3 if name == "regular_attention" else 2
    inputs, exact = in_half(rng.standard_normal((n, 4, 100, 32)), dtype)
    (d_out,), (exact_d_out,) = in_half(rng.standard_normal((1, 4, 100, 32)), dtype)
    hidden = ~torch.ones(100, 100, dtype=torch.bool).tril()
    if n == 2:
        hidden[1:].fill_diagonal_(False)
        hidden = hidden | torch.eye(100, dtype=torch.bool) & (torch.arange(100) > 0)
    want = [getattr(spec, name)(*exact, causal=True)]
    want += getattr(spec, f"{name}_vjp")(*exact, exact_d_out, causal=True)

    def run(fn):
        leaves = [t.clone().requires_grad_() for t in inputs]
        out = fn(*leaves)
        return [out, *torch.autograd.grad(out, leaves, d_out)]

    ours = run(partial(getattr(api, name), causal=True, block_size=block_size))
    naive = run(partial(plain_regular if n == 3 else plain_shared, hidden=hidden))
    for a, b, exactly in zip(ours, naive, want, strict=True):
        assert a.dtype == dtype
        error, plain = (relative_error(t.detach().double().numpy(), exactly) for t in (a, b))
        assert error <= 2 * plain


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_statistics_are_float32(dtype):
    """2000 equal weights: a sum in half precision would stop growing; logits that leave float16
    stay finite.
    """
    q, k, v = torch.zeros(1, 8), torch.zeros(2000, 8), torch.ones(2000, 1)
    out, weights = pytorch.attend(*(t.to(dtype) for t in (q, k, v)), torch.ones(1, 2000, dtype=torch.bool))
    assert weights.dtype == torch.float32
    assert out.dtype == dtype
    torch.testing.assert_close(weights.sum(-1), torch.ones(1))
    big = torch.full((3, 64), 60.0, dtype=dtype)  # q·k = 230,400, /√d = 28,800: only the second fits into float16
    assert api.regular_attention(big, big, big).isfinite().all()
    tiny, huge = (torch.full((1, 64), 1e-4, dtype=torch.float16), torch.full((1, 64), 2e3, dtype=torch.float16))
    for x in (tiny, huge):  # x² leaves the range of float16
        length = pytorch.normalize_keys(x, 0.0).float().norm()
        assert abs(float(length) - 1) < 1e-3


@pytest.mark.parametrize("name", ["regular_attention", "shared_qk_attention"])
def test_autocast_and_blocks(name):
    """Blocks are recomputed in backward under the autocast state of forward: the same numbers as
    without blocks.
    """
    rng = np.random.default_rng(4)
    inputs = [to_torch(a, torch.float32) for a in rng.standard_normal((3, 2, 33, 8))]
    inputs = inputs if name == "regular_attention" else inputs[1:]
    results = []
    for block_size in (None, 8):
        leaves = [t.clone().requires_grad_() for t in inputs]
        with torch.autocast("cpu", torch.bfloat16):
            out = getattr(api, name)(*leaves, causal=True, block_size=block_size)
        results.append([out, *torch.autograd.grad(out.float().square().sum(), leaves)])
    for whole, blocks in zip(*results, strict=True):
        assert whole.dtype == blocks.dtype
        expect_close(name, blocks.detach().float().numpy(), whole.detach().float().numpy(), 2e-2)
    exact = getattr(spec, name)(*(t.double().numpy() for t in inputs), causal=True)
    assert relative_error(results[1][0].detach().float().numpy(), exact) < 2e-2


# Memory


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operations make inside the block: alive now, and at
    most.
    """

    def __enter__(self):
        self.now = self.peak = 0
        self.known = set()
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage):
        key = storage.data_ptr()
        if key not in self.known:
            self.known.add(key)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._remove, key, storage.nbytes())

    def _remove(self, key, nbytes):
        self.known.discard(key)
        self.now -= nbytes


def memory_of(name, length, block_size, d=8):
    """(bytes kept for backward, peak bytes of forward and backward) in float32, padding mask
    included.
    """
    rng = np.random.default_rng(0)
    n = 3 if name == "regular_attention" else 2
    inputs = [to_torch(a, torch.float32).requires_grad_() for a in rng.standard_normal((n, length, d))]
    mask = torch.from_numpy(rng.random(length) < 0.9)
    with LiveBytes() as counted:
        out = getattr(api, name)(*inputs, causal=True, padding_mask=mask, block_size=block_size)
        kept = counted.now
        torch.autograd.grad(out, inputs, torch.ones_like(out))
        return kept, counted.peak


@pytest.mark.parametrize("name", ["regular_attention", "shared_qk_attention"])
def test_blocks_save_memory_in_forward_and_backward(name):
    """O(L²) whole; O(L·block_size) in blocks, of which only O(L) is kept between forward and backward."""
    (whole_kept, whole_peak), (kept, peak) = memory_of(name, 512, None), memory_of(name, 512, 16)
    assert whole_kept >= 4 * 512 * 512
    assert kept <= 40 * 4 * 512 * 8  # a few arrays of the size of the inputs
    assert peak <= whole_peak / 8
    (twice_whole_kept, twice_whole_peak), (twice_kept, twice_peak) = (
        memory_of(name, 1024, None),
        memory_of(name, 1024, 16),
    )
    assert twice_whole_kept > 3.5 * whole_kept
    assert twice_whole_peak > 3.5 * whole_peak
    assert twice_kept < 2.2 * kept
    assert twice_peak < 2.2 * peak


@pytest.mark.parametrize("name", ["regular_attention", "shared_qk_attention"])
def test_blocks_keep_no_scores(name):
    """The same from autograd's side: nothing that is saved for backward is as large as block_size × L."""
    inputs = [torch.randn(256, 4, generator=torch.Generator().manual_seed(i), requires_grad=True) for i in range(3)]
    inputs = inputs if name == "regular_attention" else inputs[1:]
    largest = {}
    for block_size in (None, 32):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t):
            getattr(api, name)(*inputs, causal=True, block_size=block_size)
        largest[block_size] = max(sizes, default=0)
    assert largest[None] == 256 * 256
    assert largest[32] <= 256 * 4


def test_without_gradients_nothing_is_recomputed():
    qk = torch.randn(64, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    with torch.no_grad():
        out = api.shared_qk_attention(qk, qk, block_size=5)
    assert not out.requires_grad
    assert not api.shared_qk_attention(qk.detach(), qk.detach(), block_size=5).requires_grad
    frozen = api.shared_qk_attention(qk.detach(), qk, block_size=5)
    torch.testing.assert_close(frozen, out)
    (d_v,) = torch.autograd.grad(frozen.sum(), qk)
    torch.testing.assert_close(d_v.sum(), torch.tensor(64.0 * 4))


def test_products_beyond_float16():
    """q·k = 64 · 300² is beyond 65,504, the largest float16."""
    q = torch.full((1, 4, 64), 300.0, dtype=torch.float16)
    v = torch.arange(4, dtype=torch.float16).view(1, 4, 1)
    assert torch.equal(api.regular_attention(q, q, v), torch.full((1, 4, 1), 1.5, dtype=torch.float16))
    assert api.shared_qk_attention(10 * q, v, scale=100.0).isfinite().all()
