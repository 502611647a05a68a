"""LSH attention, in PyTorch: hash, sort, chunk, attend and undo, several rounds as one softmax, on
any device.
"""

import math
from dataclasses import dataclass

import torch

from reformer_ref._arguments import require_bool, require_int
from reformer_ref._tensors import (
    Scratch,
    has_values,
    require_finite,
    require_floating,
    require_padding_mask,
    require_same_kind,
    require_tensor,
)
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.lsh_attention.streaming import (
    LARGEST,
    block_scores,
    inverse_length,
    stream_attention,
)
from reformer_ref.lsh_attention.windows import Windows


def lsh_attention(
    qk, v, buckets, options, padding_mask=None, *, return_record=False, block_size=None
):
    """LSH attention with shared queries and keys: (…, L, d_v) in the dtype of v.

    qk (…, L, d), v (…, L, d_v) floating; buckets int (…, n_hashes, L) without round offsets;
    padding_mask bool (…, L), True = real token. Any L ≥ 1. Padding sorts last and is never seen. A
    token sees itself only if no round shows it anything else; a query to which nothing at all is
    visible, as happens to padding, gets zeros. Statistics of the softmax are float32 at least. No
    gradient through buckets, sort, masks or counts. Memory beyond the tensors of the size of qk and
    v is that of one block of ``block_size`` scores (None: chosen for the device), also in backward.

    return_record: also return an ``AttentionRecord`` (buckets, order, windows, weights per round,
    the L × L matrix). Errors: ValueError for shapes that do not fit, TypeError for wrong dtypes.
    Source: paper section 2.
    """
    padding_mask = _check(qk, v, buckets, options, padding_mask)
    require_bool("return_record", return_record)
    if block_size is not None:
        require_int("block_size", block_size)
    (q, v), heads = as_rows(qk, v)
    length, d = qk.shape[-2:]
    flat_mask = None if padding_mask is None else padding_mask.reshape(-1, length)
    dtype = torch.float64 if qk.dtype == torch.float64 else torch.float32
    windows = Windows(
        buckets.reshape(-1, *buckets.shape[-2:]), options, flat_mask, heads=heads, dtype=dtype
    )
    out, total = stream_attention(
        q, None, v, windows, options.scale_for(d), options.norm_eps, block_size
    )
    out = from_rows(out, qk.shape[:-1], heads)
    if not return_record:
        return out
    with torch.no_grad():
        return out, _record(q, windows, buckets, total)


def as_rows(*tensors):
    """Tensors (…, L, d) as rows (N, d), and the number of heads interleaved in them (1: none).

    Heads that lie in memory as (…, L, heads, d), as a projection leaves them, become rows without a
    copy.
    """
    first = tensors[0]
    if (
        first.ndim > 2
        and not first.is_contiguous()
        and all(x.transpose(-3, -2).is_contiguous() for x in tensors)
    ):
        return [x.transpose(-3, -2).flatten(0, -2) for x in tensors], first.shape[-3]
    return [x.reshape(-1, x.shape[-1]) for x in tensors], 1


def from_rows(rows, shape, heads):
    """Rows (N, d) back to ``shape`` + (d,), shape = (…, L): the inverse of ``as_rows``, without a
    copy.
    """
    if heads == 1:
        return rows.view(*shape, rows.shape[-1])
    return rows.view(*shape[:-2], shape[-1], heads, rows.shape[-1]).transpose(-3, -2)


@dataclass(frozen=True)
class AttentionRecord:
    """Everything that happened in one call of LSH attention; leading "…" as in the inputs.

    buckets (…, n_hashes, L) · order (…, n_hashes, L): positions in sorted order · queries (…,
    n_hashes, n_chunks, chunk_length) and keys (…, n_hashes, n_chunks, width·chunk_length):
    positions in each chunk and its window, −1 = nobody · weights (…, n_hashes, n_chunks,
    chunk_length, width·chunk_length): share of the one softmax.
    """

    buckets: torch.Tensor
    order: torch.Tensor
    queries: torch.Tensor
    keys: torch.Tensor
    weights: torch.Tensor

    def dense(self):
        """The attention matrix (…, L, L): row i holds the weights with which query i sees each
        position.
        """
        length = self.buckets.shape[-1]
        lead = self.weights.shape[:-4]
        dense = self.weights.new_zeros(
            *lead, (length + 1) * (length + 1)
        )  # one row and column for "nobody"
        cell = (self.queries % (length + 1))[..., None] * (length + 1) + (self.keys % (length + 1))[
            ..., None, :
        ]
        dense.scatter_add_(-1, cell.flatten(len(lead)), self.weights.flatten(len(lead)))
        return dense.view(*lead, length + 1, length + 1)[..., :length, :length]


def _record(q, windows, buckets, total):
    """Weights round by round, from the total log-sum-exp: exp(score − total)."""
    o, lead = windows.options, buckets.shape[:-2]
    shift = torch.nn.functional.pad(total, (0, 1), value=math.inf)
    inverse, seen, weights = inverse_length(q, o.norm_eps), [], []
    for h in range(o.n_hashes):
        block = windows.block(h, slice(0, windows.batch), 0, windows.n_chunks)
        scores, _, _ = block_scores(
            q, None, inverse, windows, block, o.scale_for(q.shape[-1]), Scratch()
        )
        queries, keys = block.queries.flatten(0, 1), block.spread(block.keys)
        shares = torch.exp2(
            scores - shift.masked_fill(shift == -math.inf, math.inf)[queries][..., None]
        )
        if h == 0:  # a token that sees only itself: once, in its own chunk of the first round
            real = (
                torch.ones_like(total, dtype=torch.bool) if windows.real is None else windows.real
            )
            alone = torch.nn.functional.pad((total == -math.inf) & real, (0, 1))[queries]
            own = shares.narrow(-1, o.chunks_before * o.chunk_length, o.chunk_length)
            own.diagonal(dim1=-2, dim2=-1).masked_fill_(alone, 1.0)
        seen.append((queries, keys)), weights.append(shares)

    def by_round(parts):
        x = torch.stack(parts).unflatten(1, (windows.batch, windows.n_chunks)).transpose(0, 1)
        return x.reshape(*lead, *x.shape[1:])  # (…, n_hashes, n_chunks, …)

    positions = [by_round(p) for p in zip(*seen, strict=True)]
    queries, keys = (
        torch.where(p == windows.nobody, -1, p // windows.heads % windows.length) for p in positions
    )
    order = queries.flatten(-2)[..., : windows.length]
    return AttentionRecord(buckets, order, queries, keys, by_round(weights))


def _check(qk, v, buckets, options, padding_mask):
    if not isinstance(options, LSHOptions):
        raise TypeError(f"options must be LSHOptions, got {type(options).__name__}")
    require_floating("qk", qk), require_floating("v", v), require_tensor("buckets", buckets)
    require_same_kind("qk", qk, v=v)
    if qk.ndim < 2 or 0 in qk.shape or v.ndim < 2 or 0 in v.shape:
        raise ValueError(
            f"qk and v must have shape (…, L, d) with every size ≥ 1, got {tuple(qk.shape)} and {tuple(v.shape)}"
        )
    if v.shape[:-1] != qk.shape[:-1]:
        raise ValueError(
            f"v must have shape {tuple(qk.shape[:-1])} + (d_v,) to go with qk, got {tuple(v.shape)}"
        )
    if (
        buckets.dtype not in (torch.int64, torch.int32, torch.int16)
        or buckets.layout != torch.strided
    ):
        raise TypeError(
            f"buckets must be int64, int32 or int16, and dense, got {buckets.dtype}, {buckets.layout}"
        )
    if buckets.device != qk.device:
        raise ValueError(f"buckets must be on the device of qk ({qk.device}), got {buckets.device}")
    want = (*qk.shape[:-2], options.n_hashes, qk.shape[-2])
    if tuple(buckets.shape) != want:
        raise ValueError(
            f"buckets must have shape {want} = (…, n_hashes, L), got {tuple(buckets.shape)}"
        )
    if has_values(buckets):
        low, high = (int(b) for b in buckets.aminmax())
        if low < 0 or high == torch.iinfo(torch.int64).max:
            raise ValueError(f"buckets must lie in 0 … 2⁶³ − 2, got {low} … {high}")
    require_finite("qk", qk, LARGEST), require_finite("v", v)
    return require_padding_mask(padding_mask, qk.shape[:-1], qk.device)
