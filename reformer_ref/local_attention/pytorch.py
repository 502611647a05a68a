"""Local attention, in PyTorch: the sequence as one bucket, cut into chunks; any device, any length."""

import torch

from reformer_ref._arguments import require_int
from reformer_ref._tensors import (
    require_finite,
    require_floating,
    require_padding_mask,
    require_same_kind,
)
from reformer_ref.local_attention.options import LocalOptions
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.lsh_attention.pytorch import as_rows, from_rows
from reformer_ref.lsh_attention.streaming import LARGEST, stream_attention
from reformer_ref.lsh_attention.windows import Windows


def local_attention(q, k, v, options, padding_mask=None, *, block_size=None):
    """Chunked local attention: (…, L, d_v) in the dtype of v.

    q, k (…, L, d), v (…, L, d_v) floating; padding_mask bool (…, L), True = real token. Padding is
    sorted behind the real tokens before the sequence is cut into chunks, so without wrap it changes
    nothing wherever it stands. Any L ≥ 1. A query sees itself; one that sees nothing gets zeros.
    Statistics of the softmax are float32 at least. ValueError for shapes, TypeError for dtypes that
    do not fit.
    """
    padding_mask = _check(q, k, v, options, padding_mask)
    if block_size is not None:
        require_int("block_size", block_size)
    length, d = q.shape[-2:]
    one_bucket = LSHOptions(
        **{**options.to_dict(), "scale": 1.0}, within_bucket=False, count_once=False
    )
    flat_mask = None if padding_mask is None else padding_mask.reshape(-1, length)
    (rows_q, rows_k, rows_v), heads = as_rows(q, k, v)
    zeros = torch.zeros(len(rows_q) // length, 1, length, dtype=torch.int32, device=q.device)
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    windows = Windows(zeros, one_bucket, flat_mask, heads=heads, see_self=True, dtype=dtype)
    out, _ = stream_attention(
        rows_q, rows_k, rows_v, windows, options.scale_for(d), block_size=block_size
    )
    return from_rows(out, q.shape[:-1], heads)


def _check(q, k, v, options, padding_mask):
    if not isinstance(options, LocalOptions):
        raise TypeError(f"options must be LocalOptions, got {type(options).__name__}")
    for name, x in (("q", q), ("k", k), ("v", v)):
        require_floating(name, x)
    require_same_kind("q", q, k=k, v=v)
    if (
        q.ndim < 2
        or 0 in q.shape
        or 0 in v.shape
        or q.shape != k.shape
        or v.shape[:-1] != q.shape[:-1]
    ):
        raise ValueError(
            "q, k (…, L, d) and v (…, L, d_v) must agree, every size ≥ 1; got "
            f"{tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
        )
    require_finite("q", q, LARGEST), require_finite("k", k, LARGEST), require_finite("v", v)
    return require_padding_mask(padding_mask, q.shape[:-1], q.device)
