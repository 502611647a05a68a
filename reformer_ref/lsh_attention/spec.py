"""LSH attention: the definition, in NumPy float64.

The spec says which pairs (i, j) are visible, round by round and with plain loops, and writes the
answer into a matrix of counts. The rest is the dense softmax of ``attention.spec.attend`` over that
matrix: one softmax for all rounds (paper section 2, equations 3 to 5). What a real implementation
must not do, keep an L × L matrix, makes this one easy to believe.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

from reformer_ref.attention.spec import (
    attend,
    attend_vjp,
    normalize_keys,
    normalize_keys_vjp,
    self_as_last_resort,
)
from reformer_ref.chunking.spec import look_adjacent, sort_by_bucket, split_chunks, undo_sort
from reformer_ref.lsh_attention.options import LSHOptions


def lsh_attention(
    qk: Float[np.ndarray, "*batch L d"],
    v: Float[np.ndarray, "*batch L d_v"],
    buckets: Int[np.ndarray, "*batch n_hashes L"],
    options: LSHOptions,
    padding_mask: Bool[np.ndarray, "..."] | None = None,
) -> Float[np.ndarray, "*batch L d_v"]:
    """Attend with shared queries and keys to what hashing brings together (paper section 2).

    buckets come without round offsets. padding_mask: True = real token; padding sorts last and is
    never seen. A token sees itself only if no round shows it anything else; a query to which
    nothing at all is visible, as happens to padding, gets zeros. What each option means:
    ``LSHOptions``.
    """
    counts = visible_counts(buckets, options, padding_mask)
    k = normalize_keys(qk, options.norm_eps)
    return attend(qk, k, v, counts, options.scale_for(qk.shape[-1]))[0]


def lsh_attention_vjp(qk, v, buckets, options, d_out, padding_mask=None):
    """(d_qk, d_v) for the cotangent d_out (…, L, d_v).

    Nothing flows through buckets, sort, masks or counts.
    """
    counts = visible_counts(buckets, options, padding_mask)
    k = normalize_keys(qk, options.norm_eps)
    d_q, d_k, d_v = attend_vjp(qk, k, v, counts, d_out, options.scale_for(qk.shape[-1]))
    return d_q + normalize_keys_vjp(qk, d_k, options.norm_eps), d_v


def visible_counts(
    buckets: Int[np.ndarray, "*batch n_hashes L"],
    options: LSHOptions,
    padding_mask: Bool[np.ndarray, "..."] | None = None,
) -> Int[np.ndarray, "*batch L L"]:
    """How often each query may see each key, the self rule applied; 0 = not at all."""
    *batch, _, length = buckets.shape
    real = np.broadcast_to(True if padding_mask is None else padding_mask, (*batch, length))
    counts = np.zeros((*batch, length, length), dtype=np.int64)
    for index in np.ndindex(*batch):
        counts[index] = _counts_of_one(buckets[index], options, real[index])
    return self_as_last_resort(counts)


def _counts_of_one(buckets, options, real):
    """Counts (L, L) of one sequence, self not yet excluded; buckets (n_hashes, L), real (L,)."""
    n_hashes, length = buckets.shape
    chunk_length = min(options.chunk_length, length)  # a longer chunk is the sequence
    order = sort_by_bucket(buckets, real)
    slot = undo_sort(order)
    buckets = np.where(real, buckets, -1)  # padding has a bucket of its own
    keys, key_rounds = _windows(order, chunk_length, options)
    counts = np.zeros((length, length), dtype=np.int64)
    for h in range(n_hashes):
        for i in range(length):
            chunk = slot[h, i] // chunk_length
            j = keys[h, chunk]
            visible = (j >= 0) & real[j]
            if options.causal:
                visible &= j <= i
            if options.within_bucket:
                visible &= (key_rounds[h, chunk] == h) & (buckets[h, j] == buckets[h, i])
            if options.window == "rank":
                distance = slot[h, i] - slot[h, j]
                visible &= ((distance > 0) & (distance <= chunk_length)) | (j == i)
            np.add.at(counts[i], j[visible], 1)
    return np.minimum(counts, 1) if options.count_once else counts


def _windows(order, chunk_length, options):
    """The keys that each chunk looks at, and the round that each comes from.

    Both int (n_hashes, n_chunks, width·chunk_length).
    """
    chunks = split_chunks(order, chunk_length)  # (n_hashes, n_chunks, chunk_length)
    n_hashes, n_chunks, _ = chunks.shape
    rounds = np.broadcast_to(np.arange(n_hashes)[:, None, None], chunks.shape)
    both = np.stack([chunks, rounds], axis=-1)  # (n_hashes, n_chunks, chunk_length, 2)
    if options.wrap:  # all rounds form one ring of chunks
        both = both.reshape(1, n_hashes * n_chunks, chunk_length, 2)
    both = look_adjacent(both, options.chunks_before, options.chunks_after, options.wrap, fill=-1)
    both = both.reshape(n_hashes, n_chunks, -1, 2)
    return both[..., 0], both[..., 1]
