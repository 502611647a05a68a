"""reformer-pytorch, live, in float64: LSH and full attention, outputs and gradients, given the same
rotations.
"""

from itertools import product

import numpy as np
import pytest
import torch
from reformer_ref.attention import pytorch as attention_pytorch
from reformer_ref.attention import spec as attention_spec
from reformer_ref.chunking import spec as chunking_spec
from reformer_ref.hashing.api import hash_vectors
from reformer_ref.lsh_attention import pytorch as lsh_plain
from reformer_ref.lsh_attention import spec as lsh_spec
from reformer_ref.lsh_attention import streaming as lsh_streaming
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.testing import expect_close, expect_equal, relative_error

peer = pytest.importorskip("reformer_pytorch.reformer_pytorch")
pytestmark = pytest.mark.peers

TOLERANCE = 1e-10
# They count duplicates with a logarithm in float32, log(count + 1e-9): good to 1e-7 where a count
# is not 1.
COUNTED = 1e-7
B, L, D, C = 3, 32, 6, 4  # sequences, their length, size of a vector, bucket_size


def random_input(length=L, seed=0):
    """qk, v and a cotangent, each (B, length, D)."""
    generator = torch.Generator().manual_seed(seed)
    qk, v, d_out = torch.randn(3, B, length, D, generator=generator, dtype=torch.float64)
    return qk.requires_grad_(), v.requires_grad_(), d_out


def run_theirs(qk, v, mask=None, seed=3, **settings):
    """(output, buckets without round offsets, rotations). They draw from the global random state,
    restored here.
    """
    layer = peer.LSHAttention(bucket_size=C, **settings).eval()
    per_head = settings.get("random_rotations_per_head", False)
    n_buckets, n_hashes = qk.shape[1] // C, settings["n_hashes"]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        out, _, buckets = layer(qk, v, input_mask=mask)
    generator = torch.Generator().manual_seed(seed)
    shape = (len(qk) if per_head else 1, D, n_hashes, n_buckets // 2)
    rotations = torch.randn(shape, generator=generator, dtype=torch.float64).transpose(1, 2)
    offsets = n_buckets * torch.arange(n_hashes)[:, None]
    return (out, buckets.view(len(qk), n_hashes, -1) - offsets, rotations if per_head else rotations[0])


def options_for(n_hashes, causal, across=True, duplicates=True):
    options = {} if across else {"within_bucket": True}
    options |= {} if duplicates else {"count_once": True}
    return LSHOptions.preset("lucidrains", n_hashes=n_hashes, chunk_length=C, causal=causal, **options)


def expect_same(case, outs, inputs, d_out, tolerance):
    """Outputs and gradients of ours and theirs: the worst relative error."""
    grads = [torch.autograd.grad(out, inputs, d_out, retain_graph=True) for out in outs]
    pairs = zip(("out", "d_qk", "d_v"), *([out.detach(), *g] for out, g in zip(outs, grads, strict=True)), strict=True)
    return max(expect_close(f"{case}: {name}", got, want, tolerance) for name, got, want in pairs)


# Both kinds of buckets, with and without duplicates; but test_their_count_of_duplicates for what is
# not alike.
ALIKE = [c for c in product((1, 2, 4), (True, False), (True, False)) if c[0] == 1 or not c[1] or c[2]]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("n_hashes", "across", "duplicates"), ALIKE)
def test_lsh_attention(causal, n_hashes, across, duplicates):
    worst = 0.0
    for length, per_head in ((2 * C, False), (L, False), (L, True)):
        qk, v, d_out = random_input(length)
        theirs, buckets, rotations = run_theirs(
            qk,
            v,
            n_hashes=n_hashes,
            causal=causal,
            attend_across_buckets=across,
            allow_duplicate_attention=duplicates,
            random_rotations_per_head=per_head,
        )
        expect_equal("buckets", hash_vectors(qk, rotations, length // C), buckets)
        options = options_for(n_hashes, causal, across, duplicates)
        tolerance = TOLERANCE if duplicates or n_hashes == 1 else COUNTED
        for version in (lsh_plain, lsh_streaming):
            ours = version.lsh_attention(qk, v, buckets, options)
            worst = max(worst, expect_same(f"length {length}", (ours, theirs), (qk, v), d_out, tolerance))
        by_spec = lsh_spec.lsh_attention(qk.detach().numpy(), v.detach().numpy(), buckets.numpy(), options)
        expect_close("spec", by_spec, ours.detach(), 1e-12)
    print(f"reformer-pytorch {causal=} {n_hashes=} {across=} {duplicates=}: worst relative error {worst:.1e}")


@pytest.mark.parametrize("causal", [True, False])
def test_full_attention(causal):
    qk, v, d_out = random_input(L - 1)
    theirs, _, _ = peer.FullQKAttention(causal=causal)(qk, v)
    ours = attention_pytorch.shared_qk_attention(qk, v, causal, scale="rsqrt_d", norm_eps=0.0)
    worst = expect_same("full attention", (ours, theirs), (qk, v), d_out, TOLERANCE)
    print(f"reformer-pytorch FullQKAttention {causal=}: worst relative error {worst:.1e}")


# Where they differ, on purpose


def their_counts(buckets, causal):
    """What allow_duplicate_attention=False weighs each pair with: real (L, L). buckets (n_hashes,
    L).

    Each place in which query i meets key j weighs 1 / (count + 1e-9). What is counted is rounds in
    which the chunk of j is that of i or the one before. A pair that meets only because the first
    chunk of a round looks back at the last chunk of the round before is counted zero times, and
    weighs a thousand million times as much.
    """
    slots = chunking_spec.undo_sort(chunking_spec.sort_by_bucket(buckets))  # (n_hashes, L)
    n_hashes, length = slots.shape
    chunk = slots // C + length // C * np.arange(n_hashes)[:, None]  # on the ring of all rounds
    back = (chunk[:, None, :, None] - chunk[None, :, None, :]) % (n_hashes * length // C)  # (n_hashes, n_hashes, L, L)
    meets = (back == 0) | (back == 1)
    counts = meets.sum((0, 1)) / (np.einsum("hhij->ij", meets.astype(int)) + 1e-9)
    counts = np.tril(counts) if causal else counts
    others = counts * (1 - np.eye(length))
    return np.where(others.any(-1, keepdims=True), others, counts)  # self only as a last resort


def attend_densely(qk, v, counts):
    k = attention_spec.normalize_keys(qk, 0.0)
    weights = counts * np.exp(D**-0.5 * qk @ k.swapaxes(-1, -2))
    return weights @ v / weights.sum(-1, keepdims=True)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("n_hashes", [2, 4])
@torch.no_grad()
def test_their_count_of_duplicates(causal, n_hashes):
    """Theirs, with the weights as they count; ours, with the same pairs and each counted once; and
    how far apart.
    """
    qk, v, _ = (x.detach() for x in random_input())
    theirs, buckets, _ = run_theirs(qk, v, n_hashes=n_hashes, causal=causal, allow_duplicate_attention=False)
    ours = lsh_plain.lsh_attention(qk, v, buckets, options_for(n_hashes, causal, duplicates=False))
    counts = np.stack([their_counts(b, causal) for b in buckets.numpy()])
    expect_close("theirs", attend_densely(qk.numpy(), v.numpy(), counts), theirs, 1e-6)
    expect_close("ours", attend_densely(qk.numpy(), v.numpy(), counts > 0), ours, 1e-12)
    missed = torch.from_numpy((counts > 1e6).any(-1))
    assert missed.any()
    assert relative_error(ours[missed], theirs[missed]) > 0.1
    print(f"rows in which they miscount a pair: {missed.double().mean():.0%}")


@torch.no_grad()
def test_padding_takes_places_in_their_chunks():
    """What stands in masked positions is hashed there like a token and moves the borders of chunks;
    here it is not.
    """
    qk, v, _ = random_input()
    real = torch.arange(L).expand(B, -1) < L - 9
    other = torch.where(real[..., None], qk, torch.flip(qk, [1]))
    options = options_for(2, True)
    outs = []
    for x in (qk, other):
        theirs, buckets, _ = run_theirs(x, v, mask=real, n_hashes=2, causal=True)
        outs.append((lsh_plain.lsh_attention(x, v, buckets, options, real)[real], theirs[real]))
    (ours, theirs), (ours_again, theirs_again) = outs
    expect_equal("valid outputs, other padding", ours_again, ours)
    assert relative_error(theirs_again, theirs) > 0.1


def test_length_rule():
    """Theirs must divide by twice the bucket size, ours is free."""
    qk, v, _ = random_input(L - 3)
    with pytest.raises(AssertionError, match="divisible"):
        run_theirs(qk, v, n_hashes=1)
    rotations = torch.randn(1, D, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    out = lsh_plain.lsh_attention(qk, v, hash_vectors(qk, rotations, 8), options_for(1, True))
    assert out.isfinite().all()
