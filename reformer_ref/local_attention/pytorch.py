"""Local attention, in PyTorch: the sequence as one bucket, cut into chunks; any device, any length."""

import torch

from reformer_ref.local_attention.options import LocalOptions
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.lsh_attention.windows import Windows
from reformer_ref.tensors import require_finite, require_floating, require_padding_mask, require_same_kind


def local_attention(q, k, v, options, padding_mask=None):
    """Chunked local attention: (…, L, d_v) in the dtype of v.

    q, k (…, L, d), v (…, L, d_v) floating; padding_mask bool (…, L), True = real token. Padding is sorted behind the
    real tokens before the sequence is cut into chunks, so it changes nothing wherever it stands. Any L ≥ 1. A query sees
    itself; one that sees nothing gets zeros. Statistics of the softmax are float32 at least. ValueError for shapes, TypeError for dtypes that do not fit.
    """
    padding_mask = _check(q, k, v, options, padding_mask)
    lead, length = q.shape[:-2], q.shape[-2]
    q, k, v = (x.reshape(-1, length, x.shape[-1]) for x in (q, k, v))
    windows = one_bucket(q, options, None if padding_mask is None else padding_mask.reshape(-1, length))
    keys, _ = windows.keys(0, windows.n_chunks)
    others, own = windows.visible(0, 0, windows.n_chunks)
    scores = _rows(q, windows.order) @ _rows(k, keys).transpose(-1, -2)  # (B, n_chunks, chunk_length, width·chunk_length)
    scores = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
    visible = others | own
    weights = (scores * options.scale_for(q.shape[-1])).masked_fill(~visible, torch.finfo(scores.dtype).min).softmax(-1)
    out = weights.masked_fill(~visible, 0).to(v.dtype) @ _rows(v, keys)
    out = out.flatten(1, 2).gather(1, windows.slot[:, 0, :, None].expand(-1, -1, v.shape[-1]))
    return out.view(*lead, length, -1)


def one_bucket(q, options, padding_mask):
    """The windows of local attention: those of LSH attention in one round with a single bucket. q (B, L, d)."""
    lsh = LSHOptions(
        chunk_length=options.chunk_length,
        chunks_before=options.chunks_before,
        chunks_after=options.chunks_after,
        causal=options.causal,
        wrap=options.wrap,
        within_bucket=False,
        count_once=False,
    )
    return Windows.of(torch.zeros(q.shape[0], 1, q.shape[1], dtype=torch.int64, device=q.device), lsh, padding_mask)


def _rows(x, index):
    flat = index.flatten(1).clamp(min=0)[..., None].expand(-1, -1, x.shape[-1])
    return x.gather(1, flat).view(*index.shape, x.shape[-1])


def _check(q, k, v, options, padding_mask):
    if not isinstance(options, LocalOptions):
        raise TypeError(f"options must be LocalOptions, got {type(options).__name__}")
    for name, x in (("q", q), ("k", k), ("v", v)):
        require_floating(name, x)
        require_finite(name, x)
    require_same_kind("q", q, k=k, v=v)
    if q.ndim < 2 or 0 in q.shape or 0 in v.shape or q.shape != k.shape or v.shape[:-1] != q.shape[:-1]:
        raise ValueError(
            "q, k (…, L, d) and v (…, L, d_v) must agree, every size ≥ 1; got "
            f"{tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
        )
    return require_padding_mask(padding_mask, q.shape[:-1], q.device)
