"""Local attention block by block: the streaming core, with the sequence as the only bucket."""

import torch

from reformer_ref.lsh_attention.layout import bucket_layout
from reformer_ref.lsh_attention.streaming import (
    accumulation_dtype,
    as_rows,
    attend_in_blocks,
    from_rows,
)


def local_attention(q, k, v, options, padding_mask=None, *, block_size=None):
    """``pytorch.local_attention`` block by block.

    block_size: scores computed at a time; None: as suits the device.
    """
    length, d = q.shape[-2:]
    (q_rows, k_rows, v_rows), heads = as_rows(q, k, v)
    layout = bucket_layout(
        q.new_zeros(len(q_rows) // length, 1, length, dtype=torch.int32),
        options,
        None if padding_mask is None else padding_mask.expand(q.shape[:-1]).reshape(-1, length),
        heads=heads,
        see_self=True,
        dtype=accumulation_dtype(q.dtype),
    )
    out = attend_in_blocks(q_rows, k_rows, v_rows, None, layout, options.scale_for(d), block_size)
    return from_rows(out, q.shape[:-1], heads)
