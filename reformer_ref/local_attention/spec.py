"""Local attention, in NumPy: a matrix of counts says who sees whom, the dense softmax does the rest."""

import numpy as np

from reformer_ref.attention.spec import attend, attend_vjp
from reformer_ref.chunking.spec import look_adjacent, split_chunks
from reformer_ref.local_attention.options import LocalOptions


def local_attention(q, k, v, options, padding_mask=None):
    """Chunked local attention: float64 (…, L, d_v).

    q, k (…, L, d), v (…, L, d_v), padding_mask bool (…, L), True = real token. Padding is sorted behind the real tokens before the sequence is
    cut into chunks, so it changes nothing wherever it stands. Any L ≥ 1. A query sees itself; one that sees nothing gets 0.
    Source: the local layers of the authors' model (DESIGN: visibility); what each option means: ``LocalOptions``.
    """
    q, k, v, counts = _prepare(q, k, v, options, padding_mask)
    return attend(q, k, v, counts, options.scale_for(q.shape[-1]))[0]


def local_attention_vjp(q, k, v, options, d_out, padding_mask=None):
    """(d_q, d_k, d_v) for the cotangent d_out (…, L, d_v)."""
    q, k, v, counts = _prepare(q, k, v, options, padding_mask)
    return attend_vjp(q, k, v, counts, d_out, options.scale_for(q.shape[-1]))


def local_counts(real, options):
    """How often each query sees each key: int (L, L) for one sequence; real bool (L,), True = real token."""
    length = len(real)
    chunks = split_chunks(np.argsort(~real, kind="stable"), options.chunk_length)[..., None]  # real tokens first
    keys = look_adjacent(chunks, options.chunks_before, options.chunks_after, options.wrap, fill=-1)
    counts = np.zeros((length, length), dtype=np.int64)
    for queries, seen in zip(chunks[..., 0], keys[..., 0], strict=True):
        seen = seen[(seen >= 0) & real[seen]]
        for i in queries[queries >= 0]:
            np.add.at(counts[i], seen[seen <= i] if options.causal else seen, 1)
    return counts


def _prepare(q, k, v, options, padding_mask):
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    if not isinstance(options, LocalOptions):
        raise TypeError(f"options must be LocalOptions, got {type(options).__name__}")
    if q.ndim < 2 or 0 in q.shape or 0 in v.shape or q.shape != k.shape or v.shape[:-1] != q.shape[:-1]:
        raise ValueError(
            f"q, k (…, L, d) and v (…, L, d_v) must agree, every size ≥ 1; got {q.shape}, {k.shape} and {v.shape}"
        )
    if not all(np.isfinite(x).all() for x in (q, k, v)):
        raise ValueError("q, k and v must be finite, got NaN or infinity")
    if padding_mask is not None and np.asarray(padding_mask).dtype != bool:
        raise TypeError(f"padding_mask must be boolean (True = real token), got {np.asarray(padding_mask).dtype}")
    real = np.broadcast_to(True if padding_mask is None else padding_mask, q.shape[:-1])
    counts = np.zeros((*q.shape[:-1], q.shape[-2]), dtype=np.int64)
    for index in np.ndindex(q.shape[:-2]):
        counts[index] = local_counts(real[index], options)
    return q, k, v, counts
