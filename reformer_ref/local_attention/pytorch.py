"""Local attention, the version to read: all chunks at once, by ordinary autograd.

Sizes in the comments: L tokens, n chunks of m tokens, w·m keys in the window of a chunk. Memory
grows with L·w·m; ``streaming`` computes the same function block by block.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from reformer_ref.attention.pytorch import attend
from reformer_ref.chunking.pytorch import gather_rows, look_adjacent, split_chunks, undo_sort
from reformer_ref.local_attention.options import LocalOptions


def local_attention(
    q: Float[Tensor, "*batch L d"],
    k: Float[Tensor, "*batch L d"],
    v: Float[Tensor, "*batch L d_v"],
    options: LocalOptions,
    padding_mask: Bool[Tensor, "..."] | None = None,
) -> Float[Tensor, "*batch L d_v"]:
    """Attend within chunks of the sequence and their neighbours.

    Arguments as in ``local_attention.api``, not checked. The softmax is float32 at least; the
    output has the dtype of v.
    """
    length, d = q.shape[-2:]
    real = torch.ones(q.shape[:-1], dtype=torch.bool, device=q.device)  # (…, L)
    if padding_mask is not None:
        real = padding_mask.expand(real.shape)

    # 1. Move padding behind the real tokens.
    order = torch.sort(~real, dim=-1, stable=True).indices  # (…, L)

    # 2. Cut the sequence into chunks of m positions. Slots beyond the end hold −1.
    queries = split_chunks(order, min(options.chunk_length, length))  # (…, n, m)

    # 3. Each chunk looks at its neighbours.
    before, after = options.chunks_before, options.chunks_after
    keys = look_adjacent(queries[..., None], before, after, options.wrap, fill=-1).squeeze(-1)
    # (…, n, w·m)

    # 4. Which keys each query can attend to, itself included.
    key_is_real = (keys >= 0) & gather_rows(real[..., None], keys).squeeze(-1)
    visible = key_is_real[..., None, :].expand(*queries.shape, -1)  # (…, n, m, w·m)
    if options.causal:
        visible = visible & (keys[..., None, :] <= queries[..., :, None])

    # 5. Softmax within each window.
    rows = [gather_rows(x, positions) for x, positions in ((q, queries), (k, keys), (v, keys))]
    out, _ = attend(*rows, visible, options.scale_for(d))  # (…, n, m, d_v)

    # 6. Undo the sort.
    return out.flatten(-3, -2).take_along_dim(undo_sort(order)[..., None], -2)  # (…, L, d_v)
