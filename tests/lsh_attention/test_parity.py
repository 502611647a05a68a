"""Spec, plain and streaming version are one function: outputs, gradients and records, over all presets and
combinations of options.
"""

from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from reformer_ref.attention.spec import attend, normalize_keys
from reformer_ref.lsh_attention import checks, spec
from reformer_ref.lsh_attention.api import lsh_attention, unchecked_lsh_attention
from reformer_ref.lsh_attention.options import PRESETS, LSHOptions
from reformer_ref.testing import as_numpy, autograd_vjp, expect_close, expect_equal, to_numpy, to_torch

BACKENDS = ("plain", "streaming")
DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()
LEADS = ((), (2,), (2, 3))


def gradients(qk, v, buckets, options, d_out, padding_mask, device="cpu", backend="auto"):
    """(d_qk, d_v) by autograd."""
    buckets, padding_mask = to_torch(buckets, device=device), to_torch(padding_mask, device=device)
    return autograd_vjp(
        lambda qk, v: lsh_attention(qk, v, buckets, options, padding_mask, backend=backend),
        (qk, v),
        d_out,
        device=device,
    )[1]


def dense_of_record(qk, v, buckets, options, padding_mask, device="cpu"):
    tensors = [to_torch(a, device=device) for a in (qk, v, buckets)]
    out, record = lsh_attention(*tensors, options, to_torch(padding_mask, device=device), return_record=True)
    return to_numpy((out, record.dense()))


def dense_of_spec(qk, v, buckets, options, padding_mask):
    counts = spec.visible_counts(buckets, options, padding_mask)
    return attend(qk, normalize_keys(qk, options.norm_eps), v, counts, options.scale_for(qk.shape[-1]))


def draw(rng, options, length, lead=(), d=5, d_v=3, n_buckets=4):
    """qk, v, buckets, d_out."""
    qk, v, d_out = (rng.standard_normal((*lead, length, size)) for size in (d, d_v, d_v))
    return qk, v, rng.integers(0, n_buckets, (*lead, options.n_hashes, length)), d_out


def masks(rng, lead, length):
    """None, and padding on the left, on the right, in holes, and over a whole row."""
    left, right, holes = np.ones((3, *lead, length), dtype=bool)
    left[..., : length // 2], right[..., -(-length // 2) :] = False, False
    holes[rng.random(holes.shape) < 0.4] = False
    whole_rows = holes.copy()
    whole_rows.reshape(-1, length)[::2] = False
    return None, left, right, holes, whole_rows


def expect_parity(case, qk, v, buckets, options, d_out, mask):
    """Output ≤ 1e-12 and both gradients, side by side, ≤ 1e-12."""
    want = spec.lsh_attention(qk, v, buckets, options, mask)
    d_want = np.concatenate(spec.lsh_attention_vjp(qk, v, buckets, options, d_out, mask), axis=-1)
    for backend in BACKENDS:
        got = as_numpy(lsh_attention)(qk, v, buckets, options, mask, backend=backend)
        expect_close(f"out, {backend}, {case}", got, want, 1e-12)
        got = np.concatenate(gradients(qk, v, buckets, options, d_out, mask, backend=backend), axis=-1)
        expect_close(f"(d_qk, d_v), {backend}, {case}", got, d_want, 1e-12)


def test_spec_passes_the_checks():
    checks.check_lsh_attention(spec.lsh_attention)
    checks.check_lsh_attention_vjp(spec.lsh_attention_vjp)
    checks.check_attention_record(dense_of_spec)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_pytorch_passes_the_checks(device, backend):
    checks.check_lsh_attention(as_numpy(partial(lsh_attention, backend=backend), device=device))
    checks.check_lsh_attention_vjp(partial(gradients, device=device, backend=backend))


@pytest.mark.parametrize("device", DEVICES)
def test_records_pass_the_checks(device):
    checks.check_attention_record(partial(dense_of_record, device=device))


@pytest.mark.parametrize("name", PRESETS)
def test_a_check_may_be_asked_about_one_preset(name, capsys):
    checks.check_lsh_attention(as_numpy(lsh_attention), LSHOptions.preset(name, n_hashes=4, chunk_length=16), seed=3)
    assert capsys.readouterr().out.startswith("check_lsh_attention: ")


@pytest.mark.parametrize("n_hashes", [1, 2, 4])
@pytest.mark.parametrize("name", PRESETS)
def test_presets(name, n_hashes):
    """Lengths 1, 2, chunk − 1, chunk, chunk + 1, primes and several chunks; every kind of mask; any
    leading axes.
    """
    rng = np.random.default_rng(n_hashes)
    o = LSHOptions.preset(name, n_hashes=n_hashes, chunk_length=4)
    for at, length in enumerate((1, 2, 3, 4, 5, 13, 16, 29)):
        lead = LEADS[at % 3]
        for mask in masks(rng, lead, length):
            kind = "none" if mask is None else mask.astype(int).tolist()
            qk, v, buckets, d_out = draw(rng, o, length, lead)
            expect_parity(f"{name}, L={length}, mask {kind}", qk, v, buckets, o, d_out, mask)


@pytest.mark.parametrize("neighbours", [(1, 0), (1, 1), (2, 0), (0, 0), (0, 2)])
def test_every_combination_of_options(neighbours):
    rng = np.random.default_rng(5)
    for length, n_hashes in ((2, 3), (7, 1), (9, 2), (19, 3)):
        for within, once, wrap, causal in product((False, True), repeat=4):
            o = LSHOptions(
                n_hashes=n_hashes,
                chunk_length=4,
                chunks_before=neighbours[0],
                chunks_after=neighbours[1],
                within_bucket=within,
                count_once=once,
                wrap=wrap,
                causal=causal,
            )
            qk, v, buckets, d_out = draw(rng, o, length, (2,))
            mask = None if rng.random() < 0.5 else rng.random((2, length)) < 0.7
            expect_parity(f"L={length}, {o}", qk, v, buckets, o, d_out, mask)


@pytest.mark.parametrize("count_once", [True, False])
@pytest.mark.parametrize("chunk_length", [1, 3, 7, 50])
def test_strict(chunk_length, count_once):
    rng = np.random.default_rng(6)
    o = LSHOptions.preset("strict", n_hashes=3, chunk_length=chunk_length, count_once=count_once)
    for length in (1, 6, 7, 8, 31):
        for mask in masks(rng, (2,), length):
            qk, v, buckets, d_out = draw(rng, o, length, (2,), n_buckets=2)
            expect_parity(f"L={length}, {o}", qk, v, buckets, o, d_out, mask)


@pytest.mark.parametrize("name", PRESETS)
def test_sharp_softmax_and_zero_vectors(name):
    """Logits in the hundreds, and queries of length zero, whose key is zero too."""
    rng = np.random.default_rng(7)
    o = LSHOptions.preset(name, n_hashes=2, chunk_length=4)
    qk, v, buckets, d_out = draw(rng, o, 17, (2,))
    expect_parity(f"{name}, logits in the hundreds", 100 * qk, v, buckets, o, d_out, None)
    qk[:, ::3] = 0
    expect_parity(f"{name}, zero vectors", qk, v, buckets, o, d_out, None)


def test_numbers_of_one_size():
    """d = 1, d_v = 1, d_v larger than d, huge bucket numbers, a chunk longer than the sequence."""
    rng = np.random.default_rng(8)
    for d, d_v, chunk_length in ((1, 1, 4), (2, 9, 3), (3, 1, 100)):
        o = LSHOptions(n_hashes=2, chunk_length=chunk_length)
        qk, v, buckets, d_out = draw(rng, o, 11, (1, 2), d, d_v)
        expect_parity(f"d={d}, d_v={d_v}", qk, v, buckets * (2**29), o, d_out, None)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_of_the_output_only_where_asked(name, backend):
    """Frozen qk or v: the other gradient is the same; nothing asked for, nothing recorded."""
    rng = np.random.default_rng(9)
    o = LSHOptions.preset(name, n_hashes=2, chunk_length=4)
    qk, v, buckets, d_out = (to_torch(a) for a in draw(rng, o, 14, (2,)))
    assert not lsh_attention(qk, v, buckets, o, backend=backend).requires_grad
    both = [qk.clone().requires_grad_(), v.clone().requires_grad_()]
    want = torch.autograd.grad(lsh_attention(*both, buckets, o, backend=backend), both, d_out)
    for at in range(2):
        inputs = [qk, v]
        inputs[at] = inputs[at].clone().requires_grad_()
        (got,) = torch.autograd.grad(lsh_attention(*inputs, buckets, o, backend=backend), inputs[at], d_out)
        expect_close(("d_qk", "d_v")[at], to_numpy(got), to_numpy(want[at]), 1e-14)


@pytest.mark.parametrize("name", PRESETS)
def test_record(name):
    """The record of a call: buckets, sorted order, positions in chunks, and weights that form one softmax."""
    rng = np.random.default_rng(10)
    length, o = 11, LSHOptions.preset(name, n_hashes=3, chunk_length=4)
    qk, v, buckets, _ = draw(rng, o, length, (2, 2))
    mask = rng.random((2, 2, length)) < 0.8
    tensors = [to_torch(a) for a in (qk, v, buckets)]
    out, record = lsh_attention(*tensors, o, to_torch(mask), return_record=True)
    assert torch.equal(out, lsh_attention(*tensors, o, to_torch(mask)))
    expect_equal("buckets", record.buckets, buckets)
    for at in np.ndindex(2, 2):
        for h in range(3):
            bucket = np.where(mask[at], buckets[at][h], 99)  # padding sorts last, by position
            want = sorted(range(length), key=lambda i, bucket=bucket: (bucket[i], i))
            expect_equal("order", record.order[at][h], want)
            queries = record.queries[at][h].flatten()
            expect_equal("queries", queries, [*want, -1])
    assert record.keys.shape == (2, 2, 3, 3, 8)
    assert record.weights.shape == (2, 2, 3, 3, 4, 8)
    expect_equal("keys of the own chunk", record.keys[..., 4:], record.queries)
    row_sums = record.weights.new_zeros(2, 2, length + 1)  # of each position, over all rounds
    row_sums.scatter_add_(-1, (record.queries % (length + 1)).flatten(2), record.weights.sum(-1).flatten(2))
    seen = spec.visible_counts(buckets, o, mask).any(-1)
    expect_close("weights of a query, over all rounds", row_sums[..., :length], seen.astype(float), 1e-12)
    assert float(row_sums[..., length].abs().max()) == 0  # the row of empty slots
    expect_close("dense", record.dense(), dense_of_spec(qk, v, buckets, o, mask)[1], 1e-12)
    assert not record.weights.requires_grad


def test_record_does_not_disturb_the_gradient():
    rng = np.random.default_rng(11)
    o = LSHOptions(n_hashes=2, chunk_length=4)
    qk, v, buckets, d_out = draw(rng, o, 14)

    def with_record(qk, v):
        return lsh_attention(qk, v, to_torch(buckets), o, return_record=True)[0]

    got = autograd_vjp(with_record, (qk, v), d_out)[1]
    want = spec.lsh_attention_vjp(qk, v, buckets, o, d_out)
    for name, a, b in zip(("d_qk", "d_v"), got, want, strict=True):
        expect_close(name, a, b, 1e-12)


def blocks_and_layouts(fn, inputs, d_out):
    """Output and gradients for several block sizes, and with heads interleaved as a projection
    leaves them.
    """

    def run(arrange, **kwargs):
        leaves = [to_torch(a).requires_grad_() for a in inputs]
        out = fn(*(arrange(t) for t in leaves), **kwargs)
        return to_numpy([out, *torch.autograd.grad(out, leaves, to_torch(d_out))])

    def interleaved(t):  # (…, heads, L, d) that lies in memory as (…, L, heads, d)
        return t.transpose(-3, -2).contiguous().transpose(-3, -2)

    want = run(lambda t: t)
    for block_size in (1, 40, 100, 10**9):
        yield f"block_size={block_size}", run(lambda t: t, backend="streaming", block_size=block_size), want
    for backend in BACKENDS:
        yield f"heads interleaved, {backend}", run(interleaved, backend=backend), want
    yield "heads interleaved, block_size=100", run(interleaved, backend="streaming", block_size=100), want


@pytest.mark.parametrize("name", PRESETS)
def test_block_size_and_layout_change_nothing(name):
    rng = np.random.default_rng(12)
    for lead in ((3,), (2, 3), (2, 2, 3)):
        o = LSHOptions.preset(name, n_hashes=2, chunk_length=4)
        qk, v, buckets, d_out = draw(rng, o, 14, lead)
        mask = rng.random((*lead[:-1], 1, 14)) < 0.8  # one per sequence, for all heads
        fn = partial(lsh_attention, buckets=to_torch(buckets), options=o, padding_mask=to_torch(mask))
        for case, got, want in blocks_and_layouts(fn, (qk, v), d_out):
            for part, a, b in zip(("out", "d_qk", "d_v"), got, want, strict=True):
                expect_close(f"{part}, {case}, leading axes {lead}", a, b, 1e-13)
        heads = [to_torch(x).transpose(-3, -2).contiguous().transpose(-3, -2) for x in (qk, v)]
        record = fn(*heads, return_record=True)[1]
        expect_close("dense, heads interleaved", record.dense(), dense_of_spec(qk, v, buckets, o, mask)[1], 1e-12)
        expect_equal("buckets", record.buckets, buckets)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mask_of_sequences_holds_for_all_heads(backend):
    """As models pass it on: unchecked, (B, 1, L) for rows (B, heads, L)."""
    rng = np.random.default_rng(11)
    options = LSHOptions.preset("paper", n_hashes=2, chunk_length=4)
    for n_sequences in (1, 3):
        qk, v, buckets, _ = (torch.from_numpy(x) for x in draw(rng, options, 20, (n_sequences, 2)))
        mask = torch.from_numpy(rng.random((n_sequences, 1, 20)) < 0.7)
        for_all_heads = mask.expand(-1, 2, -1)
        want = spec.lsh_attention(*to_numpy((qk, v, buckets)), options, to_numpy(for_all_heads))
        for given in (mask, for_all_heads):
            got = unchecked_lsh_attention(qk, v, buckets, options, given, backend=backend)
            expect_close(f"mask of shape {tuple(given.shape)}", got, want, 1e-12)
