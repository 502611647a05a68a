"""The checks of the rooms reject what they are there to reject.

Each fault that implementations of the Reformer are known for is built into an implementation that
is otherwise right; the check that must notice rejects it with a sentence that says where to look,
and accepts the same code without it.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from reformer_ref.attention.spec import attend, attend_vjp, normalize_keys, normalize_keys_vjp
from reformer_ref.chunking import checks as chunking_checks
from reformer_ref.chunking import spec as chunking
from reformer_ref.local_attention import checks as local_checks
from reformer_ref.local_attention import spec as local
from reformer_ref.local_attention.options import LocalOptions
from reformer_ref.lsh_attention import checks, spec
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.reversible import checks as reversible_checks
from reformer_ref.reversible import reversible_stack
from reformer_ref.testing import to_numpy, to_torch
from torch import nn


def rejects(check, wrong, message, *args, **kwargs):
    """The check raises AssertionError, and says ``message`` (a regular expression)."""
    with pytest.raises(AssertionError, match=message):
        check(wrong, *args, **kwargs)


# LSH attention as an implementation computes it: sort, chunk, look at neighbours, attend, undo,
# merge rounds


def lsh_attention(qk, v, buckets, options, padding_mask, fault=None, dtype=np.float64):
    """All options, in loops; ``fault`` names the one thing that is wrong."""
    real = np.broadcast_to(True if padding_mask is None else padding_mask, qk.shape[:-1])
    out = np.empty(v.shape)
    for at in np.ndindex(qk.shape[:-2]):
        out[at] = one_sequence(qk[at].astype(dtype), v[at].astype(dtype), buckets[at], options, real[at], fault)
    return out


def one_sequence(qk, v, buckets, o, real, fault):
    """qk (L, d), v (L, d_v), buckets (n_hashes, L), real (L,) -> (L, d_v)."""
    length, rng = len(qk), np.random.default_rng(0)
    real = np.ones_like(real) if fault == "padding is a key" else real
    buckets = np.where(real, buckets, -1)
    tie = rng.permutation(length) if fault == "unstable sort" else np.arange(length)
    orders = [sorted(range(length), key=lambda i, b=b: (not real[i], b[i], tie[i])) for b in buckets]
    starts = range(0, length, o.chunk_length)
    chunks = [
        [(h, s, order[s]) for s in range(length)[a:][: o.chunk_length]]
        for h, order in enumerate(orders)
        for a in starts
    ]
    rounds, seen = [[] for _ in qk], [set() for _ in qk]
    for c, chunk in enumerate(chunks):
        window = look(chunks, c, len(starts), o, fault)
        for h, slot, i in chunk:
            shown = [j for t, s, j in window if real[j] and sees(i, h, slot, j, t, s, buckets, o, fault)]
            if o.count_once and fault != "N_ij dropped":
                shown = [j for j in dict.fromkeys(shown) if j not in seen[i]]
            seen[i].update(shown)
            keep_self = fault in ("self not excluded", "self by a penalty")
            if shown := [j for j in shown if j != i or keep_self]:
                rounds[slot if fault == "sort not undone" else i].append(one_round(qk, v, i, shown, o, fault))
    return np.stack([merge(rounds[i], v[i] if i in seen[i] else 0 * v[i], fault) for i in range(length)])


def look(chunks, c, n_chunks, o, fault):
    """[(round, slot, position)] in the window of chunk number c."""
    window, before = ([], o.chunks_before + {"one chunk too few": -1, "one chunk too many": 1}.get(fault, 0))
    for place in range(c - before, c + o.chunks_after + 1):
        if o.wrap or place // n_chunks == c // n_chunks:
            window += chunks[place % len(chunks)]
    return window


def sees(i, h, slot, j, round_of_j, slot_of_j, buckets, o, fault):
    if o.causal and (slot_of_j > slot if fault == "causal by slots" else j > i):
        return False
    if o.within_bucket and (round_of_j != h or buckets[h, j] != buckets[h, i]):
        return False
    return o.window == "chunk" or 0 < slot - slot_of_j <= o.chunk_length or j == i


def one_round(qk, v, i, shown, o, fault):
    """(log-sum-exp, output) of query i over the keys shown."""
    keys = qk[shown]
    if fault != "keys not normalised":
        keys = keys / np.sqrt(np.sum(keys**2, axis=-1, keepdims=True) + qk.shape[-1] * o.norm_eps)
    logits = (keys @ qk[i]) * qk.dtype.type(o.scale_for(qk.shape[-1]))
    if fault == "self by a penalty":
        logits[np.equal(shown, i)] -= 1e5
    log_sum = np.logaddexp.reduce(logits)
    return log_sum, np.exp(logits - log_sum) @ v[shown]


def merge(rounds, alone, fault):
    """One softmax from several; ``alone``: the answer of a token to which no round shows anything
    else.
    """
    if not rounds:
        return alone
    log_sums, outs = map(np.stack, zip(*rounds, strict=True))
    if fault == "rounds averaged":
        return outs.mean(axis=0)
    return np.exp(log_sums - np.logaddexp.reduce(log_sums)) @ outs


def test_the_right_implementation_passes():
    checks.check_lsh_attention(lsh_attention)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("unstable sort", "The sort is stable"),
        ("sort not undone", "Undo the sort|its own position"),
        ("one chunk too few", "chunks_before"),
        ("one chunk too many", "chunks_before"),
        ("rounds averaged", "Rounds form one softmax.*log-sum-exp"),
        ("N_ij dropped", "count_once: a key counts once"),
        ("self not excluded", "attends to itself only when"),
        ("keys not normalised", "keys k̂ = q / √"),
        ("padding is a key", "Padding sorts behind all real tokens and is never a key"),
    ],
)
@pytest.mark.parametrize("options", [None, LSHOptions(n_hashes=2, chunk_length=4)], ids=["all options", "paper"])
def test_a_fault_is_named(fault, message, options):
    if options is not None:
        checks.check_lsh_attention(lsh_attention, options)
    rejects(checks.check_lsh_attention, partial(lsh_attention, fault=fault), message, options)


def test_causal_by_slots():
    """Within one bucket slots and positions have the same order; across buckets they do not."""
    trax = LSHOptions.preset("trax", n_hashes=2, chunk_length=4)
    checks.check_lsh_attention(lsh_attention, trax)
    wrong = partial(lsh_attention, fault="causal by slots")
    rejects(checks.check_lsh_attention, wrong, "Compare original positions", trax)
    rejects(checks.check_lsh_attention, wrong, "Compare original positions")
    checks.check_lsh_attention(wrong, LSHOptions(n_hashes=2, chunk_length=4))


def test_self_by_a_penalty_in_float32():
    """−1e5 on self: exact in float64, but in float32 a token that sees only itself is wrong by up
    to a per cent.
    """
    right, wrong = (partial(lsh_attention, dtype=np.float32, fault=f) for f in (None, "self by a penalty"))
    checks.check_lsh_attention(right, tolerance=1e-5)
    rejects(checks.check_lsh_attention, wrong, "attends to itself only when", tolerance=1e-5)
    several_rounds = LSHOptions.preset("trax", n_hashes=4, chunk_length=4)
    rejects(checks.check_lsh_attention, wrong, "attends to itself only when", several_rounds, tolerance=1e-5)


@pytest.mark.parametrize(
    "field", [f for f in LSHOptions().to_dict() if f not in ("n_buckets", "n_hashes", "chunk_length")]
)
def test_no_option_may_be_ignored(field):
    def ignores(qk, v, buckets, options, padding_mask):
        default = "chunk" if field == "window" else getattr(LSHOptions(), field)
        return spec.lsh_attention(qk, v, buckets, replace(options, **{field: default}), padding_mask)

    rejects(checks.check_lsh_attention, ignores, field)


def test_sequences_may_not_share_buckets():
    """One bucket table for the whole batch, as when a cache holds one entry per module."""

    def shares(qk, v, buckets, options, padding_mask):
        first = buckets[(0,) * (buckets.ndim - 2)]
        return spec.lsh_attention(qk, v, np.array(np.broadcast_to(first, buckets.shape)), options, padding_mask)

    rejects(checks.check_lsh_attention, shares, "Leading axes are separate sequences")


# Gradients and records of LSH attention


def lsh_attention_vjp(qk, v, buckets, o, d_out, padding_mask, fault=None):
    counts = spec.visible_counts(buckets, o, padding_mask)
    counts = np.minimum(counts, 1) if fault == "counts forgotten" else counts
    keys, scale = normalize_keys(qk, o.norm_eps), o.scale_for(qk.shape[-1])
    d_q, d_k, d_v = attend_vjp(qk, keys, v, counts, d_out, scale)
    if fault == "softmax rule without its sum":
        _, weights = attend(qk, keys, v, counts, scale)
        d_q = scale * (weights * (d_out @ np.swapaxes(v, -1, -2))) @ keys
    if fault == "no gradient through keys":
        d_k = 0 * d_k
    elif fault == "length of the key a constant":
        return d_q + d_k * np.linalg.norm(keys, axis=-1, keepdims=True) / np.linalg.norm(
            qk, axis=-1, keepdims=True
        ), d_v
    if fault == "no gradient through queries":
        d_q = 0 * d_q
    return d_q + normalize_keys_vjp(qk, d_k, o.norm_eps), d_v


def test_gradients():
    checks.check_lsh_attention_vjp(lsh_attention_vjp)
    for fault in (
        "counts forgotten",
        "softmax rule without its sum",
        "no gradient through keys",
        "length of the key a constant",
        "no gradient through queries",
    ):
        rejects(checks.check_lsh_attention_vjp, partial(lsh_attention_vjp, fault=fault), "two gradients")


def test_records():
    def record(qk, v, buckets, o, padding_mask, fault=None):
        counts = spec.visible_counts(buckets, o, padding_mask)
        out, dense = attend(qk, normalize_keys(qk, o.norm_eps), v, counts, o.scale_for(qk.shape[-1]))
        if fault == "rounds not merged":
            dense = dense * o.n_hashes
        elif fault == "transposed":
            dense = np.swapaxes(dense, -1, -2)
        elif fault == "uniform":
            dense = (counts > 0) / np.maximum((counts > 0).sum(-1, keepdims=True), 1)
        elif fault == "a trace of everything":
            dense = dense + 1e-15
        return out, dense

    checks.check_attention_record(record)
    rejects(checks.check_attention_record, partial(record, fault="rounds not merged"), "row sums of dense.*one softmax")
    rejects(checks.check_attention_record, partial(record, fault="transposed"), "row sums of dense")
    rejects(checks.check_attention_record, partial(record, fault="uniform"), "dense · v")
    rejects(checks.check_attention_record, partial(record, fault="a trace of everything"), "Who is seen")


# Chunking and local attention


def test_chunking():
    noise = np.random.default_rng(0).permutation(300)

    def unstable(buckets, padding_mask):
        return np.lexsort((np.broadcast_to(noise[: buckets.shape[-1]], buckets.shape), buckets), axis=-1)

    def too_far(chunks, before, after, wrap, fill):
        return chunking.look_adjacent(chunks, before + 1, after, wrap, fill)[..., chunks.shape[-2] :, :][..., ::-1, :]

    chunking_checks.check_sort_by_bucket(chunking.sort_by_bucket)
    rejects(chunking_checks.check_sort_by_bucket, unstable, "stable sort")
    chunking_checks.check_undo_sort(chunking.undo_sort)
    rejects(chunking_checks.check_undo_sort, lambda order: order, "the inverse")
    chunking_checks.check_look_adjacent(chunking.look_adjacent)
    rejects(chunking_checks.check_look_adjacent, too_far, "look_adjacent")


LOCAL_FAULTS = {
    "one chunk too far": lambda o, m: (replace(o, chunks_before=o.chunks_before + 1), m),
    "one chunk short": lambda o, m: (replace(o, chunks_before=max(0, o.chunks_before - 1)), m),
    "padding is a key": lambda o, m: (o, None),
    "wrap forgotten": lambda o, m: (replace(o, wrap=False), m),
    "always wraps": lambda o, m: (replace(o, wrap=True), m),
    "scale forgotten": lambda o, m: (replace(o, scale=1.0), m),
    "causality forgotten": lambda o, m: (replace(o, causal=False), m),
}


@pytest.mark.parametrize("fault", LOCAL_FAULTS)
def test_local_attention(fault):
    def wrong(q, k, v, options, padding_mask):
        return local.local_attention(q, k, v, *LOCAL_FAULTS[fault](options, padding_mask))

    def wrong_vjp(q, k, v, options, d_out, padding_mask):
        options, padding_mask = LOCAL_FAULTS[fault](options, padding_mask)
        return local.local_attention_vjp(q, k, v, options, d_out, padding_mask)

    local_checks.check_local_attention(local.local_attention)
    rejects(
        local_checks.check_local_attention, wrong, "Padding stands behind" if "padding" in fault else "A query sees"
    )
    rejects(local_checks.check_local_attention_vjp, wrong_vjp, "gradient")


def test_local_attention_that_excludes_self():
    def wrong(q, k, v, options, padding_mask):
        out = local.local_attention(q, k, v, options, padding_mask)
        if q.ndim > 2 or padding_mask is not None:
            return out
        counts = local.local_counts(np.ones(q.shape[-2], dtype=bool), options) * (1 - np.eye(q.shape[-2], dtype=int))
        return np.where(counts.any(-1, keepdims=True), attend(q, k, v, counts, options.scale_for(q.shape[-1]))[0], out)

    rejects(local_checks.check_local_attention, wrong, "itself included")
    rejects(local_checks.check_local_attention, wrong, "itself included", LocalOptions(chunk_length=3))


def test_local_gradient_that_counts_a_key_once():
    """The gradient of a key that several windows show, taken from the last of them alone."""

    def wrong(q, k, v, options, d_out, padding_mask):
        d_q, _, d_v = local.local_attention_vjp(q, k, v, options, d_out, padding_mask)
        last = d_out.copy()
        last[..., : -options.chunk_length, :] = 0
        return d_q, local.local_attention_vjp(q, k, v, options, last, padding_mask)[1], d_v

    rejects(local_checks.check_local_attention_vjp, wrong, "the sum over all windows")


# The reversible stack, with halves that do not replay


class Bucket(nn.Module):
    """x_i · table[bucket(x_i)], hashed once, or, with ``rehash``, again from what backward
    reconstructs.
    """

    uses_saved = True

    def __init__(self, table, rehash):
        super().__init__()
        self.table, self.rehash = nn.Parameter(torch.from_numpy(table)), rehash

    def forward(self, x, saved):
        if self.rehash or "buckets" not in saved:
            saved["buckets"] = torch.cat([x, -x], dim=-1).detach().argmax(dim=-1)
        return x * self.table[saved["buckets"]]


class Dropped(nn.Module):
    """dropout(x w), with noise from the global generator, which is replayed, or from one that
    nobody puts back.
    """

    def __init__(self, w, rate, generator=None):
        super().__init__()
        self.w, self.rate, self.generator = nn.Parameter(torch.from_numpy(w)), rate, generator

    def forward(self, x):
        kept = torch.rand(x.shape, generator=self.generator, dtype=x.dtype) >= self.rate
        return kept.to(x.dtype) / (1 - self.rate) * (x @ self.w)


def through_stack(x1, x2, halves, d_y1, d_y2):
    """(y1, y2, d_x1, d_x2, gradients of the parameters, stacked)."""
    leaves = [to_torch(x).requires_grad_() for x in (x1, x2)]
    y = reversible_stack(*leaves, [halves])
    params = [p for half in halves for p in half.parameters()]
    grads = torch.autograd.grad(y, [*leaves, *params], [to_torch(d) for d in (d_y1, d_y2)])
    return to_numpy((*y, *grads[:2], torch.stack(grads[2:])))


@pytest.mark.parametrize("seed", range(3))
def test_hashing_again_in_backward(seed):
    def stack(x1, x2, tables, d_y1, d_y2, rehash=False):
        return through_stack(x1, x2, [Bucket(t, rehash) for t in tables], d_y1, d_y2)

    reversible_checks.check_bucket_replay(stack, seed)
    rejects(reversible_checks.check_bucket_replay, partial(stack, rehash=True), "not exact enough to hash again", seed)


@pytest.mark.parametrize("seed", range(3))
def test_dropout_not_replayed(seed):
    def stack(x1, x2, weights, rate, d_y1, d_y2, seed, replayed=True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            generator = None if replayed else torch.Generator().manual_seed(seed)
            return through_stack(x1, x2, [Dropped(w, rate, generator) for w in weights], d_y1, d_y2)

    reversible_checks.check_dropout_replay(stack, seed)
    rejects(reversible_checks.check_dropout_replay, partial(stack, replayed=False), "restore the random state", seed)
