"""Local attention block by block: the streaming core with the whole sequence as one bucket."""

import torch

from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.lsh_attention.streaming import as_rows, from_rows, stream_attention
from reformer_ref.lsh_attention.windows import Windows


def local_attention(q, k, v, options, padding_mask=None, *, block_size=None):
    """The function of ``local_attention.pytorch``, block by block; not checked."""
    length, d = q.shape[-2:]
    one_bucket = LSHOptions(
        **{**options.to_dict(), "scale": 1.0}, within_bucket=False, count_once=False
    )
    if padding_mask is not None:
        padding_mask = padding_mask.expand(q.shape[:-1]).reshape(-1, length)
    (rows_q, rows_k, rows_v), heads = as_rows(q, k, v)
    zeros = torch.zeros(len(rows_q) // length, 1, length, dtype=torch.int32, device=q.device)
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    windows = Windows(zeros, one_bucket, padding_mask, heads=heads, see_self=True, dtype=dtype)
    scale = options.scale_for(d)
    out, _ = stream_attention(rows_q, rows_k, rows_v, windows, scale, block_size=block_size)
    return from_rows(out, q.shape[:-1], heads)
