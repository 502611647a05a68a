"""LSH attention, in NumPy.

The spec says which pairs (i, j) are visible, round by round and with plain loops, and writes the
answer into a matrix of counts. The rest is the dense softmax of ``attention.spec.attend`` over that
matrix: one softmax for all rounds (paper section 2, equations 3 to 5). What a real implementation
must not do, keep an L × L matrix, makes this one easy to believe.
"""

from dataclasses import replace

import numpy as np

from reformer_ref._arguments import as_array, as_floats, as_mask, require_shape
from reformer_ref.attention.spec import (
    attend,
    attend_vjp,
    normalize_keys,
    normalize_keys_vjp,
    self_as_last_resort,
)
from reformer_ref.chunking.spec import look_adjacent, sort_by_bucket, split_chunks, undo_sort
from reformer_ref.lsh_attention.options import LSHOptions


def lsh_attention(qk, v, buckets, options, padding_mask=None):
    """LSH attention with shared queries and keys: float64 (…, L, d_v).

    qk floating (…, L, d), v floating (…, L, d_v), buckets int (…, n_hashes, L) without round
    offsets, padding_mask bool (…, L), True = real token. Padding sorts last and is never seen. A
    token sees itself only if no round shows it anything else; a query to which nothing at all is
    visible, as happens to padding, gets zeros. ValueError for shapes that do not fit, NaN, infinity
    and negative buckets; TypeError for wrong dtypes. Source: paper section 2; what each option
    means: ``LSHOptions``.
    """
    qk, v, counts = _prepare(qk, v, buckets, options, padding_mask)
    return attend(
        qk, normalize_keys(qk, options.norm_eps), v, counts, options.scale_for(qk.shape[-1])
    )[0]


def lsh_attention_vjp(qk, v, buckets, options, d_out, padding_mask=None):
    """(d_qk, d_v) for the cotangent d_out (…, L, d_v). Nothing flows through buckets, sort, masks
    or counts.
    """
    qk, v, counts = _prepare(qk, v, buckets, options, padding_mask)
    d_out = as_floats("d_out", d_out)
    require_shape("d_out", d_out, v.shape, "(…, L, d_v), the shape of the output")
    scale = options.scale_for(qk.shape[-1])
    d_q, d_k, d_v = attend_vjp(qk, normalize_keys(qk, options.norm_eps), v, counts, d_out, scale)
    return d_q + normalize_keys_vjp(qk, d_k, options.norm_eps), d_v


def visible_counts(buckets, options, padding_mask=None):
    """How often each query may see each key: int (…, L, L), the self rule applied, 0 = not at all."""
    buckets = _bucket_numbers(buckets, options)
    lead, length = buckets.shape[:-2], buckets.shape[-1]
    real = as_mask(True if padding_mask is None else padding_mask, (*lead, length))
    counts = np.zeros((*lead, length, length), dtype=np.int64)
    for index in np.ndindex(lead):
        counts[index] = _counts_of_one(buckets[index], options, real[index])
    return self_as_last_resort(counts)


def _counts_of_one(buckets, options, real):
    """Counts (L, L) of a single sequence, self not yet excluded. buckets (n_hashes, L), real bool
    (L,).
    """
    n_hashes, length = buckets.shape
    options = replace(
        options, chunk_length=min(options.chunk_length, length)
    )  # longer chunks are the sequence
    order = sort_by_bucket(buckets, real)
    slot, buckets = undo_sort(order), np.where(real, buckets, -1)  # padding has a bucket of its own
    keys, key_rounds = _windows(order, options)
    counts = np.zeros((length, length), dtype=np.int64)
    for h in range(n_hashes):
        for i in range(length):
            chunk = slot[h, i] // options.chunk_length
            j, round_of_j = keys[h, chunk], key_rounds[h, chunk]
            seen = (j >= 0) & real[j]
            if options.causal:
                seen &= j <= i
            if options.within_bucket:
                seen &= (round_of_j == h) & (buckets[h, j] == buckets[h, i])
            if options.window == "rank":
                distance = slot[h, i] - slot[h, j]
                seen &= ((distance > 0) & (distance <= options.chunk_length)) | (j == i)
            np.add.at(counts[i], j[seen], 1)
    return np.minimum(counts, 1) if options.count_once else counts


def _windows(order, options):
    """Keys that each chunk looks at, and the round each comes from: int (n_hashes, n_chunks,
    width·chunk_length).
    """
    chunks = split_chunks(order, options.chunk_length)[
        ..., None
    ]  # (n_hashes, n_chunks, chunk_length, 1)
    n_hashes, n_chunks = chunks.shape[:2]
    rounds = np.broadcast_to(np.arange(n_hashes)[:, None, None, None], chunks.shape)
    both = np.concatenate([chunks, rounds], axis=-1)
    if options.wrap:  # all rounds form one ring of chunks
        both = both.reshape(1, n_hashes * n_chunks, options.chunk_length, 2)
    both = look_adjacent(both, options.chunks_before, options.chunks_after, options.wrap, fill=-1)
    both = both.reshape(n_hashes, n_chunks, -1, 2)
    return both[..., 0], both[..., 1]


def _prepare(qk, v, buckets, options, padding_mask):
    qk, v = as_floats("qk", qk), as_floats("v", v)
    if qk.ndim < 2 or 0 in qk.shape or v.ndim < 2 or 0 in v.shape:
        raise ValueError(
            f"qk and v must have shape (…, L, d) with every size ≥ 1, got {qk.shape} and {v.shape}"
        )
    if v.shape[:-1] != qk.shape[:-1]:
        raise ValueError(f"v must have shape {qk.shape[:-1]} + (d_v,) to go with qk, got {v.shape}")
    buckets = _bucket_numbers(buckets, options)
    require_shape(
        "buckets", buckets, (*qk.shape[:-2], options.n_hashes, qk.shape[-2]), "(…, n_hashes, L)"
    )
    return qk, v, visible_counts(buckets, options, padding_mask)


def _bucket_numbers(buckets, options):
    if not isinstance(options, LSHOptions):
        raise TypeError(f"options must be LSHOptions, got {type(options).__name__}")
    buckets = as_array("buckets", buckets)
    if buckets.dtype.kind not in "iu":
        raise TypeError(f"buckets must hold integers, got dtype {buckets.dtype}")
    if buckets.ndim < 2 or 0 in buckets.shape or buckets.shape[-2] != options.n_hashes:
        raise ValueError(
            f"buckets must have shape (…, n_hashes, L) with n_hashes = {options.n_hashes}, L ≥ 1, got {buckets.shape}"
        )
    if buckets.min() < 0 or buckets.max() >= 2**63 - 1:  # the largest int64 is where padding sorts
        raise ValueError(
            f"buckets must lie in [0, 2⁶³ − 1), got {buckets.min()} to {buckets.max()}"
        )
    return buckets
