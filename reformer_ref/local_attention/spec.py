"""Local attention: the definition, in NumPy float64.

A matrix of counts says which keys each query sees; the dense softmax of ``attention.spec.attend``
does the rest.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

from reformer_ref.attention.spec import attend, attend_vjp
from reformer_ref.chunking.spec import look_adjacent, split_chunks
from reformer_ref.local_attention.options import LocalOptions


def local_attention(
    q: Float[np.ndarray, "*batch L d"],
    k: Float[np.ndarray, "*batch L d"],
    v: Float[np.ndarray, "*batch L d_v"],
    options: LocalOptions,
    padding_mask: Bool[np.ndarray, "..."] | None = None,
) -> Float[np.ndarray, "*batch L d_v"]:
    """Attend within chunks of the sequence and their neighbours (the authors' local layers).

    padding_mask: True = real token. Padding is sorted behind the real tokens before the sequence is
    cut into chunks, so without ``wrap`` it changes nothing, wherever it is. Any L ≥ 1. A query sees
    itself; one that sees nothing gets zeros.
    """
    counts = _all_counts(q.shape[:-1], options, padding_mask)
    return attend(q, k, v, counts, options.scale_for(q.shape[-1]))[0]


def local_attention_vjp(q, k, v, options, d_out, padding_mask=None):
    """(d_q, d_k, d_v) for the cotangent d_out (…, L, d_v)."""
    counts = _all_counts(q.shape[:-1], options, padding_mask)
    return attend_vjp(q, k, v, counts, d_out, options.scale_for(q.shape[-1]))


def local_counts(real: Bool[np.ndarray, "L"], options: LocalOptions) -> Int[np.ndarray, "L L"]:
    """How often each query of one sequence sees each key. real: True = real token."""
    length = len(real)
    real_first = np.argsort(~real, kind="stable")
    # A chunk longer than the sequence is the sequence.
    chunks = split_chunks(real_first, min(options.chunk_length, length))[..., None]
    keys = look_adjacent(chunks, options.chunks_before, options.chunks_after, options.wrap, fill=-1)
    counts = np.zeros((length, length), dtype=np.int64)
    for queries, window in zip(chunks[..., 0], keys[..., 0], strict=True):
        window = window[(window >= 0) & real[window]]
        for i in queries[queries >= 0]:
            visible = window[window <= i] if options.causal else window
            np.add.at(counts[i], visible, 1)
    return counts


def _all_counts(shape, options, padding_mask):
    """Counts (…, L, L) for every sequence; shape = (…, L)."""
    real = np.broadcast_to(True if padding_mask is None else padding_mask, shape)
    counts = np.zeros((*shape, shape[-1]), dtype=np.int64)
    for index in np.ndindex(shape[:-1]):
        counts[index] = local_counts(real[index], options)
    return counts
