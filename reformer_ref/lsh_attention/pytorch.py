"""LSH attention, in PyTorch: hash, sort, chunk, attend and undo, several rounds as one softmax, on
any device.
"""

import math
from dataclasses import dataclass

import torch

from reformer_ref._arguments import require_bool, require_int
from reformer_ref._tensors import (
    has_values,
    require_finite,
    require_floating,
    require_padding_mask,
    require_same_kind,
    require_tensor,
)
from reformer_ref.lsh_attention import streaming
from reformer_ref.lsh_attention.layout import blocks, bucket_layout, unfold_windows
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.lsh_attention.streaming import LARGEST


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
    out = streaming.lsh_attention(qk, v, buckets, options, padding_mask, block_size=block_size)
    if not return_record:
        return out
    with torch.no_grad():
        return out, _record(qk, v, buckets, options, padding_mask)


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


def _record(qk, v, buckets, options, padding_mask):
    """Weights round by round, from the log-sum-exp over all rounds: exp(score − lse)."""
    length, d = qk.shape[-2:]
    q, v = qk.reshape(-1, d), v.reshape(-1, v.shape[-1])
    flat_mask = None if padding_mask is None else padding_mask.reshape(-1, length)
    layout = bucket_layout(
        buckets.reshape(-1, *buckets.shape[-2:]),
        options,
        flat_mask,
        dtype=streaming.accumulation_dtype(qk.dtype),
    )
    inverse, scale = streaming.inverse_length(q, options.norm_eps), options.scale_for(d)
    lse = streaming._forward(q, None, v, inverse, layout, scale, 1 << 62)[1]
    only_self = torch.nn.functional.pad(streaming._only_self(lse, layout)[:, 0], (0, 1))
    shift = torch.nn.functional.pad(
        lse.masked_fill(lse == -math.inf, math.inf), (0, 1), value=math.inf
    )
    rounds = []
    for block in blocks(layout, slice(None), 1 << 62):
        queries, keys = streaming._queries_and_keys(q, None, inverse, layout, block)
        scores = streaming._masked_scores(queries, keys, layout, block, scale)
        weights = torch.exp2(scores - shift[block.query_rows].flatten(0, 1)[..., None])
        if block.round == 0:  # a token that sees only itself: once, in its own chunk
            own_chunk = weights.narrow(
                -1, options.chunks_before * layout.chunk_length, layout.chunk_length
            )
            diagonal = own_chunk.diagonal(dim1=-2, dim2=-1)
            diagonal.masked_fill_(only_self[block.query_rows].flatten(0, 1), 1.0)
        windows = unfold_windows(block.key_rows, options.width)
        rounds.append((block.query_rows.flatten(0, 1), windows, weights))

    def by_round(tensors):
        x = torch.stack(tensors).unflatten(1, (len(layout.key_rows), -1)).transpose(0, 1)
        return x.reshape(*buckets.shape[:-2], *x.shape[1:])  # (…, n_hashes, n_chunks, …)

    queries, keys, weights = (by_round(tensors) for tensors in zip(*rounds, strict=True))
    queries, keys = (torch.where(rows == len(q), -1, rows % length) for rows in (queries, keys))
    order = queries.flatten(-2)[..., :length]
    return AttentionRecord(buckets, order, queries, keys, weights)


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
