"""The kernels against the plain version: on a GPU, or on the CPU by triton's interpreter (`make kernels`).

Errors are those against the plain version in float64, which the other tests hold against the specification. In the
same precision, outputs of the kernels may err at most twice as much as the plain version, gradients three times.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from reformer_ref._kernels import INTERPRETED
from reformer_ref.local_attention.api import local_attention, unchecked_local_attention
from reformer_ref.local_attention.checks import OPTIONS as LOCAL_OPTIONS
from reformer_ref.local_attention.options import LocalOptions
from reformer_ref.lsh_attention import fused
from reformer_ref.lsh_attention.api import lsh_attention, unchecked_lsh_attention
from reformer_ref.lsh_attention.options import PRESETS, LSHOptions
from reformer_ref.model import ReformerConfig, ReformerLM
from reformer_ref.testing import padding_masks, relative_error

pytestmark = pytest.mark.kernels

DEVICE = "cpu" if INTERPRETED else "cuda"
FLOAT32, BFLOAT16, FLOAT16 = torch.float32, torch.bfloat16, torch.float16
# A few units in the last place of the largest number; plain results in half precision err by about half of one.
ROUNDING = {FLOAT32: 4 * 2**-24, BFLOAT16: 2**-9, FLOAT16: 2**-12}


def draw(length, d=16, d_v=16, n_hashes=1, lead=(1, 2), n_buckets=4, seed=0):
    """(qk, k, v, buckets, d_out), of NumPy's numbers, in float64."""
    rng = np.random.default_rng(seed)
    q, k, v, d_out = (torch.from_numpy(rng.standard_normal((*lead, length, n))) for n in (d, d, d_v, d_v))
    return q, k, v, torch.from_numpy(rng.integers(0, n_buckets, (*lead, n_hashes, length))), d_out


def results(attention, inputs, d_out, dtype):
    """(output, gradients side by side) in this precision. (Where a query sees one key only, some gradients are zero,
    and by themselves have no size to compare with.)
    """
    leaves = [x.to(DEVICE, dtype).requires_grad_() for x in inputs]
    out = attention(*leaves)
    gradients = torch.autograd.grad(out, leaves, d_out.to(out))
    assert all(x.dtype == dtype for x in (out, *gradients))
    return [x.detach().double().cpu().numpy() for x in (out, torch.cat(gradients, -1))]


def compare(attention, inputs, d_out, dtype=FLOAT32):
    """``attention(*inputs, backend=…)``: the kernels are as exact as the plain version."""
    inputs = [x.to(dtype).double() for x in inputs]  # the same numbers in every precision
    d_out = d_out.to(dtype).double()
    plain = partial(attention, backend="plain")
    want = results(plain, inputs, d_out, torch.float64)
    usual = results(plain, inputs, d_out, dtype)
    got = results(partial(attention, backend="triton"), inputs, d_out, dtype)
    for name, times, *values in zip(("out", "gradients"), (2, 3), got, usual, want, strict=True):
        error, usual_error = (relative_error(x, values[2]) for x in values[:2])
        limit = times * usual_error + ROUNDING[dtype]
        assert error <= limit, f"{name}: error {error:.2g}, allowed {limit:.2g}"


def compare_lsh(options, length, dtype=FLOAT32, mask=None, n_buckets=4, **sizes):
    qk, _, v, buckets, d_out = draw(length, n_hashes=options.n_hashes, n_buckets=n_buckets, **sizes)
    mask = None if mask is None else torch.as_tensor(mask).to(DEVICE)

    def attention(qk, v, backend):
        return lsh_attention(qk, v, buckets.to(DEVICE), options, mask, backend=backend)

    compare(attention, (qk, v), d_out, dtype)


def compare_local(options, length, dtype=FLOAT32, mask=None, **sizes):
    q, k, v, _, d_out = draw(length, **sizes)
    mask = None if mask is None else torch.as_tensor(mask).to(DEVICE)

    def attention(q, k, v, backend):
        return local_attention(q, k, v, options, mask, backend=backend)

    compare(attention, (q, k, v), d_out, dtype)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16, FLOAT16], ids=["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset(name, dtype):
    compare_lsh(LSHOptions.preset(name, n_hashes=2, chunk_length=16), 41, dtype)


WIDE = {"chunks_after": 1, "causal": False}


@pytest.mark.parametrize(
    "changes",
    [
        {"count_once": False},
        {"within_bucket": False},
        {"within_bucket": False, "count_once": False},
        {"wrap": True},
        {"wrap": True, "within_bucket": False},
        {"wrap": True, "count_once": False},
        {"wrap": True, "within_bucket": False, **WIDE},
        {"wrap": True, "chunks_before": 2, "chunks_after": 1},
        {"chunks_before": 0},
        {"chunks_before": 0, "within_bucket": False, "wrap": True},
        {"chunks_before": 2},
        {"chunks_after": 1},
        {"causal": False},
        {**WIDE},
        {**WIDE, "within_bucket": False},
        {**WIDE, "chunks_before": 2, "count_once": False},
        {"scale": 3.0},
        {"scale": "rsqrt_d", "norm_eps": 0.0},
        {"norm_eps": 0.1, "within_bucket": False},
        {"window": "rank", "count_once": False},
        {"window": "rank", "scale": 0.5, "norm_eps": 0.0},
    ],
    ids=str,
)
def test_every_option(changes):
    compare_lsh(LSHOptions(**{"n_hashes": 2, "chunk_length": 16, **changes}), 45, seed=1)


@pytest.mark.parametrize("side", ["padded right", "padded left", "padded anywhere", "padding only"])
@pytest.mark.parametrize("name", ["paper", "trax", "strict"])
def test_masks(name, side):
    mask = padding_masks(np.random.default_rng(2), (2, 1, 40))[side]
    mask[1] = mask[1] & (side == "padded anywhere")  # elsewhere a row of nothing but padding
    compare_lsh(LSHOptions.preset(name, n_hashes=2, chunk_length=16), 40, mask=mask, lead=(2, 1))


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 31, 33, 61])
def test_lengths(length):
    compare_lsh(LSHOptions(n_hashes=2, chunk_length=16), length)
    compare_lsh(LSHOptions.preset("trax", chunk_length=16), length, BFLOAT16, lead=(1, 1))


@pytest.mark.parametrize("n_hashes", [1, 3, 4, 5, 6, 7, 8])
def test_rounds(n_hashes):
    dtype = FLOAT32 if n_hashes % 2 else BFLOAT16
    compare_lsh(LSHOptions(n_hashes=n_hashes, chunk_length=16), 19, dtype, lead=(1, 1))


def test_rounds_on_a_ring():
    compare_lsh(LSHOptions(n_hashes=4, chunk_length=16, wrap=True, within_bucket=False), 19, lead=(1, 1))
    compare_lsh(LSHOptions.preset("trax", n_hashes=8, chunk_length=16), 19, FLOAT16, lead=(1, 1))


@pytest.mark.parametrize(("d", "d_v"), [(3, 2), (5, 24), (24, 5), (40, 64), (64, 33), (100, 128), (128, 16)])
@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=["float32", "bfloat16"])
def test_sizes_of_heads(d, d_v, dtype):
    compare_lsh(LSHOptions(n_hashes=2, chunk_length=16), 20, dtype, d=d, d_v=d_v, lead=(1, 1))


@pytest.mark.parametrize("chunk_length", [20, 33, 48, 64, 100, 128])
def test_chunks_of_several_tiles(chunk_length):
    length = chunk_length + 3
    compare_lsh(LSHOptions(chunk_length=chunk_length), length, lead=(1, 1), n_buckets=2)
    options = LSHOptions.preset("strict", chunk_length=chunk_length)
    compare_lsh(options, length, BFLOAT16, lead=(1, 1), n_buckets=2)


def test_the_longest_chunks():
    compare_lsh(LSHOptions(chunk_length=256), 259, BFLOAT16, lead=(1, 1), n_buckets=2)


@pytest.mark.parametrize("options", LOCAL_OPTIONS, ids=str)
@pytest.mark.parametrize("side", ["no mask", "padded left", "padded anywhere"])
def test_local_attention(options, side):
    mask = padding_masks(np.random.default_rng(3), (2, 1, 37))[side]
    dtype = FLOAT32 if side == "no mask" else BFLOAT16
    compare_local(replace(options, chunk_length=16), 37, dtype, mask, lead=(2, 1))


@pytest.mark.parametrize("length", [1, 2, 16, 17, 40])
def test_local_attention_of_any_length(length):
    compare_local(LocalOptions(chunk_length=20), length, d=10, d_v=20)


# Memory layouts, axes, subsets


def attend(attention, *inputs, backend="triton"):
    """Run the unchecked version of ``attention``: (out, gradients of all floating inputs)."""
    floats = [x for x in inputs if torch.is_tensor(x) and x.requires_grad]
    out = attention(*inputs, backend=backend)
    return out, *torch.autograd.grad(out.square().sum(), floats)


def test_heads_as_a_projection_leaves_them_are_not_copied():
    options = LSHOptions(chunk_length=16)
    q, k, v, buckets, _ = draw(35, lead=(2, 2))
    buckets = buckets.to(DEVICE)
    inputs = [x.float().to(DEVICE).requires_grad_() for x in (q, k, v)]
    strided = [x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in inputs]
    calls = (unchecked_lsh_attention, (buckets, options)), (unchecked_local_attention, (LocalOptions(),))
    for attention, more in calls:
        keep = (0, 2) if attention is unchecked_lsh_attention else (0, 1, 2)
        want = attend(attention, *(inputs[i] for i in keep), *more)
        got = attend(attention, *(strided[i] for i in keep), *more)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
        # The heads of a token lie side by side: joining them is a view.
        assert got[0].transpose(1, 2).is_contiguous()


def test_any_batch_axes_and_strides():
    options = LSHOptions(chunk_length=16, n_hashes=2)
    qk, _, v, buckets, _ = draw(21, n_hashes=2, lead=(2, 2, 1))
    qk = qk.float().to(DEVICE)
    v = v.float().to(DEVICE)
    buckets = buckets.to(DEVICE)
    mask = torch.rand(2, 1, 1, 21, generator=torch.Generator().manual_seed(0)).to(DEVICE) < 0.8
    want = lsh_attention(qk, v, buckets, options, mask, backend="plain")
    strided = qk.new_zeros(2, 2, 1, 21, 32)[..., ::2].copy_(qk)  # every other number of a row
    transposed = v.mT.contiguous().mT
    got = lsh_attention(strided, transposed, buckets, options, mask, backend="triton")
    assert relative_error(got.cpu(), want.cpu()) < 1e-6
    # Sequences that lie apart, and fewer axes.
    for at in ((0, 0, 0), (1, 1)):
        separate = lsh_attention(qk[at], v[at], buckets[at], options, mask[at[0], 0, 0], backend="triton")
        assert torch.equal(separate, lsh_attention(qk, v, buckets, options, mask, backend="triton")[at])


def test_an_empty_batch_gives_an_empty_result():
    q = torch.zeros(0, 2, 20, 16, device=DEVICE, requires_grad=True)
    buckets = torch.zeros(0, 2, 1, 20, dtype=torch.int64, device=DEVICE)
    for result in (
        attend(unchecked_lsh_attention, q, q, buckets, LSHOptions(chunk_length=16)),
        attend(unchecked_local_attention, q, q, q, LocalOptions(chunk_length=16)),
    ):
        assert all(x.shape == q.shape for x in result)


def test_two_runs_give_the_same_bits():
    options = LSHOptions(chunk_length=16, n_hashes=3)
    qk, _, v, buckets, _ = draw(40, n_hashes=3)
    inputs = [x.bfloat16().to(DEVICE).requires_grad_() for x in (qk, v)]
    first, second = (attend(unchecked_lsh_attention, *inputs, buckets.to(DEVICE), options) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_gradient_of_one_input_alone(name):
    q, k, v, buckets, _ = draw(20)
    inputs = {"q": q, "k": k, "v": v}
    inputs = {n: x.float().to(DEVICE).requires_grad_() for n, x in inputs.items()}
    chosen = {n: x if n == name else x.detach() for n, x in inputs.items()}
    both = attend(unchecked_local_attention, *inputs.values(), LocalOptions(chunk_length=16))
    out, gradient = attend(unchecked_local_attention, *chosen.values(), LocalOptions(chunk_length=16))
    assert torch.equal(out, both[0])
    assert torch.equal(gradient, both[1 + "qkv".index(name)])
    if name != "k":
        more = buckets.to(DEVICE), LSHOptions(chunk_length=16)
        both = attend(unchecked_lsh_attention, inputs["q"], inputs["v"], *more)
        out, gradient = attend(unchecked_lsh_attention, chosen["q"], chosen["v"], *more)
        assert torch.equal(out, both[0])
        assert torch.equal(gradient, both[1 + "qv".index(name)])


# As operations of PyTorch


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
def test_operations_keep_the_rules_of_pytorch(shared):
    """opcheck: the schema names what is written to, and shapes without contents are those of the results."""
    q, k, v, d_out = (torch.randn(1, 20, 2, 16, device=DEVICE).bfloat16().transpose(1, 2) for _ in range(4))
    order = torch.stack([torch.randperm(20) for _ in range(4)]).view(2, 2, 20).int().to(DEVICE)
    slots = order.argsort(-1).int()
    options = LSHOptions(chunk_length=16, n_hashes=2)
    mask = torch.ones(1, 2, 20, dtype=torch.bool, device=DEVICE)
    tables = order, slots, order % 3, mask
    keys = None if shared else k
    partial_v = torch.empty_like(v, dtype=torch.float32)
    settings = fused.kernel_options(options, 20), 1.0, 1e-6
    forward = q, keys, v, *tables, partial_v, *settings
    torch.library.opcheck(fused.attention_forward, forward)
    out, lse = fused.attention_forward(*forward)
    partials = [torch.empty_like(q, dtype=torch.float32) if shared else None for _ in range(2)]
    sums = *partials, torch.empty_like(lse)
    torch.library.opcheck(fused.attention_backward, (d_out, q, keys, v, out, lse, *tables, *sums, *settings))


def small_model(reversible):
    """(model, tokens, padding mask)."""
    config = ReformerConfig(
        vocab_size=16, d_model=16, n_heads=1, n_layers=2, pattern=("lsh", "local"), max_length=40,
        reversible=reversible, lsh=LSHOptions(n_hashes=2, chunk_length=16), local=LocalOptions(chunk_length=16),
    )  # fmt: skip
    tokens = torch.randint(0, 16, (1, 40), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    return ReformerLM(config).to(DEVICE), tokens, torch.arange(40, device=DEVICE)[None] < 37


def training_step(model, loss_of, tokens, mask):
    """The loss and the gradients of all parameters."""
    model.zero_grad()
    loss = loss_of(tokens, padding_mask=mask)
    loss.backward()
    return [loss.detach().cpu(), *(p.grad.cpu() for p in model.parameters())]


def use_backend(monkeypatch, backend):
    """Models attend by this version from now on."""
    for function in (unchecked_lsh_attention, unchecked_local_attention):
        monkeypatch.setattr(f"reformer_ref.model.layers.{function.__name__}", partial(function, backend=backend))


@pytest.mark.parametrize("reversible", [True, False])
def test_a_training_step_of_a_model(monkeypatch, reversible):
    model, *inputs = small_model(reversible)
    steps = []
    for backend in ("streaming", "triton"):
        use_backend(monkeypatch, backend)
        steps.append(training_step(model, model.loss, *inputs))
    for got, want in zip(*steps, strict=True):
        assert relative_error(got, want) < 2e-5


@pytest.mark.parametrize("reversible", [True, False])
def test_a_compiled_training_step(monkeypatch, reversible):
    """The operations are traced by their shapes; ordinary autograd makes one graph of it all."""
    torch.compiler.reset()
    model, *inputs = small_model(reversible)
    use_backend(monkeypatch, "triton")
    compiled = torch.compile(model.loss, fullgraph=not reversible, backend="aot_eager")
    for got, want in zip(
        training_step(model, compiled, *inputs), training_step(model, model.loss, *inputs), strict=True
    ):
        assert relative_error(got, want) < 2e-6
    torch.compiler.reset()
