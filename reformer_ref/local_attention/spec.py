"""Local attention, in NumPy: a matrix of counts says who sees whom, the dense softmax does the
rest.
"""

import numpy as np

from reformer_ref._arguments import as_array, as_floats, as_mask, require_shape
from reformer_ref.attention.spec import attend, attend_vjp
from reformer_ref.chunking.spec import look_adjacent, split_chunks
from reformer_ref.local_attention.options import LocalOptions


def local_attention(q, k, v, options, padding_mask=None):
    """Chunked local attention: float64 (…, L, d_v).

    q, k floating (…, L, d), v floating (…, L, d_v), padding_mask bool (…, L), True = real token.
    Padding is sorted behind the real tokens before the sequence is cut into chunks, so without
    ``wrap`` it changes nothing, wherever it stands. Any L ≥ 1. A query sees itself; one that sees
    nothing gets zeros. ValueError for shapes that do not fit, NaN and infinity, TypeError for wrong
    dtypes. Source: the local layers of the authors' model (DESIGN: visibility); what each option
    means: ``LocalOptions``.
    """
    q, k, v, counts = _prepare(q, k, v, options, padding_mask)
    return attend(q, k, v, counts, options.scale_for(q.shape[-1]))[0]


def local_attention_vjp(q, k, v, options, d_out, padding_mask=None):
    """(d_q, d_k, d_v) for the cotangent d_out (…, L, d_v)."""
    q, k, v, counts = _prepare(q, k, v, options, padding_mask)
    d_out = as_floats("d_out", d_out)
    require_shape("d_out", d_out, v.shape, "(…, L, d_v), the shape of the output")
    return attend_vjp(q, k, v, counts, d_out, options.scale_for(q.shape[-1]))


def local_counts(real, options):
    """How often each query sees each key: int (L, L) for one sequence; real bool (L,), True = real
    token.
    """
    _require_options(options)
    real = as_array("real", real)
    if real.dtype != bool or real.ndim != 1 or real.size == 0:
        raise TypeError(
            f"real must be booleans of shape (L,), L ≥ 1, got {real.dtype} {real.shape}"
        )
    length = len(real)
    real_first = np.argsort(~real, kind="stable")
    chunks = split_chunks(real_first, min(options.chunk_length, length))[
        ..., None
    ]  # longer chunks are the sequence
    keys = look_adjacent(chunks, options.chunks_before, options.chunks_after, options.wrap, fill=-1)
    counts = np.zeros((length, length), dtype=np.int64)
    for queries, seen in zip(chunks[..., 0], keys[..., 0], strict=True):
        seen = seen[(seen >= 0) & real[seen]]
        for i in queries[queries >= 0]:
            np.add.at(counts[i], seen[seen <= i] if options.causal else seen, 1)
    return counts


def _prepare(q, k, v, options, padding_mask):
    _require_options(options)
    q, k, v = as_floats("q", q), as_floats("k", k), as_floats("v", v)
    if (
        q.ndim < 2
        or 0 in q.shape
        or 0 in v.shape
        or q.shape != k.shape
        or v.shape[:-1] != q.shape[:-1]
    ):
        raise ValueError(
            f"q, k (…, L, d) and v (…, L, d_v) must agree, every size ≥ 1; got {q.shape}, {k.shape} and {v.shape}"
        )
    real = as_mask(True if padding_mask is None else padding_mask, q.shape[:-1])
    counts = np.zeros((*q.shape[:-1], q.shape[-2]), dtype=np.int64)
    for index in np.ndindex(q.shape[:-2]):
        counts[index] = local_counts(real[index], options)
    return q, k, v, counts


def _require_options(options):
    if not isinstance(options, LocalOptions):
        raise TypeError(f"options must be LocalOptions, got {type(options).__name__}")
