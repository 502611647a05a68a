"""Local attention, in PyTorch: the sequence as one bucket, cut into chunks; any device, any length."""

from reformer_ref._arguments import require_int
from reformer_ref._tensors import (
    require_finite,
    require_floating,
    require_padding_mask,
    require_same_kind,
)
from reformer_ref.local_attention import streaming
from reformer_ref.local_attention.options import LocalOptions
from reformer_ref.lsh_attention.streaming import LARGEST


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
    return streaming.local_attention(q, k, v, options, padding_mask, block_size=block_size)


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
