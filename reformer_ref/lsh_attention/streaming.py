"""LSH attention block by block: ``pytorch.py`` without tensors of size O(L · chunk_length).

All rounds form one softmax. The forward pass merges blocks into it with a running log-sum-exp (lse)
for each query. The backward pass recomputes the weights of a block, exp(score − lse), from the
inputs, the output and the lse, as flash attention does (Dao et al. 2022, section 3.1).

Exponentials and logarithms are taken to the base 2: on a CPU exp2 is ten times as fast as exp, and
as exact.
"""

import math
from contextlib import contextmanager

import torch
from torch.autograd.function import once_differentiable

from reformer_ref._blocks import block_device, block_starts
from reformer_ref._tensors import autocast_off
from reformer_ref.lsh_attention.layout import (
    blocks,
    bucket_layout,
    fold_windows,
    gather_rows,
    hidden_pairs,
    per_query,
    query_chunks,
    unfold_windows,
)

LOG2E = math.log2(math.e)
HIDE = 1e28  # subtracted from hidden scores: beyond any score, and finite, so that no NaN can arise

_BLOCK_SIZES = {"cpu": 1 << 19, "cuda": 1 << 25}  # a cache; a small part of a GPU's memory
_block_size_override = None


def lsh_attention(qk, v, buckets, options, padding_mask=None, *, block_size=None):
    """``pytorch.lsh_attention`` block by block.

    block_size: scores computed at a time; None: as suits the device.
    """
    (q, v), heads = as_rows(qk, v)
    length, d = qk.shape[-2:]
    layout = bucket_layout(
        buckets.reshape(-1, *buckets.shape[-2:]),
        options,
        None if padding_mask is None else padding_mask.expand(qk.shape[:-1]).reshape(-1, length),
        heads=heads,
        dtype=accumulation_dtype(qk.dtype),
    )
    inverse = inverse_length(q, options.norm_eps)
    out = attend_in_blocks(q, None, v, inverse, layout, options.scale_for(d), block_size)
    return from_rows(out, qk.shape[:-1], heads)


def as_rows(*tensors):
    """Tensors (…, L, d) as rows (N, d), and the number of heads interleaved in them (1: none).

    Heads that lie in memory as (…, L, heads, d), as a projection leaves them, are not copied.
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
    """The inverse of ``as_rows``, also without a copy: rows (N, d) to (*shape, d)."""
    if heads == 1:
        return rows.view(*shape, rows.shape[-1])
    return rows.view(*shape[:-2], shape[-1], heads, rows.shape[-1]).transpose(-3, -2)


def inverse_length(q, norm_eps):
    """1 / √(‖q‖² + d·norm_eps) of each row, (N,); 0 for a zero vector; float32 at least."""
    with torch.no_grad():
        norm = torch.linalg.vector_norm(q, dim=-1, dtype=accumulation_dtype(q.dtype))
        square = norm.square() + q.shape[-1] * norm_eps
        return torch.where(square > 0, square.rsqrt(), 0)


def accumulation_dtype(dtype):
    """The dtype of scores and sums: float32 for half precision, else ``dtype`` itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def block_size_for(device_type):
    """Scores computed at a time on this type of device."""
    return _block_size_override or _BLOCK_SIZES.get(device_type, 1 << 22)


@contextmanager
def use_block_size(block_size):
    """Inside, calls that name no block size take this one: to predict one device on another."""
    global _block_size_override
    before, _block_size_override = _block_size_override, block_size
    try:
        yield
    finally:
        _block_size_override = before


def attend_in_blocks(q, k, v, inverse, layout, scale, block_size=None):
    """Attention over the windows of ``layout``: (N, d_v), for rows q (N, d), k (N, d), v (N, d_v).

    With k = None queries and keys are shared: the keys are q · ``inverse``, and a token that sees
    nothing else sees itself. block_size: see ``lsh_attention``.
    """
    block_size = block_size or block_size_for(block_device(q.device))
    return _Attention.apply(q, k, v, inverse, layout, scale, block_size)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, inverse, layout, scale, block_size):
        with autocast_off(q.device.type):
            out, lse = _forward(q, k, v, inverse, layout, scale, block_size)
        ctx.save_for_backward(q, k, v, inverse, out, lse)
        ctx.layout, ctx.scale, ctx.block_size = layout, scale, block_size
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, d_out):
        with autocast_off(d_out.device.type):
            d_q, d_k, d_v = _backward(
                *ctx.saved_tensors, d_out.contiguous(), ctx.layout, ctx.scale, ctx.block_size
            )
        return d_q, d_k, d_v, None, None, None, None


def _forward(q, k, v, inverse, layout, scale, block_size):
    """(out (N, d_v), lse (N,)); lse to the base 2, −inf where nothing is visible."""
    wide = accumulation_dtype(v.dtype)
    out = v.new_empty(len(v) + 1, v.shape[1], dtype=wide)  # the last row is the padding row
    lse = v.new_empty(len(v) + 1, dtype=wide)

    for block in blocks(layout, block_size):
        # 1. Gather queries, keys and values.
        queries, keys = _queries_and_keys(q, k, inverse, layout, block)
        values = unfold_windows(gather_rows(v, block.readable), layout.options.width)

        # 2. Scores of all pairs in the window.
        scores = _masked_scores(queries, keys, layout, block, scale)  # (m, chunk, window)

        # 3. Softmax of this block.
        row_max = scores.amax(-1, keepdim=True)
        weights = scores.sub_(row_max).exp2_()
        row_sum = weights.sum(-1, keepdim=True)
        nothing_visible = row_max < -HIDE / 2
        block_lse = row_sum.log2().add_(row_max).masked_fill_(nothing_visible, -math.inf)
        block_out = torch.bmm(weights.to(v.dtype), values).to(wide)  # (m, chunk, d_v)
        block_out.div_(row_sum.masked_fill_(nothing_visible, math.inf))

        # 4. Merge it with the softmax of the rounds before.
        rows = block.query_rows.flatten()
        block_out, block_lse = block_out.flatten(0, 1), block_lse.flatten()
        if block.round > 0:
            lse_before = lse.index_select(0, rows)
            block_weight = torch.sigmoid((block_lse - lse_before) * math.log(2))
            block_weight.nan_to_num_()  # NaN: nothing visible, neither here nor before
            block_out = out.index_select(0, rows).lerp_(block_out, block_weight[:, None])
            block_lse = torch.logaddexp2(lse_before, block_lse)
        out.index_copy_(0, rows, block_out)
        lse.index_copy_(0, rows, block_lse)

    out, lse = out[:-1].to(v.dtype), lse[:-1]
    if k is None:
        out.addcmul_(v, _only_self(lse, layout).to(v.dtype))
    return out, lse


def _backward(q, k, v, inverse, out, lse, d_out, layout, scale, block_size):
    """(d_q, d_k, d_v), all (N, …); d_k is None where queries and keys are shared."""
    options, wide = layout.options, lse.dtype
    d_q = q.new_zeros(len(q) + 1, q.shape[1], dtype=wide)
    d_k = None if k is None else torch.zeros_like(d_q)
    d_v = v.new_zeros(len(v) + 1, v.shape[1], dtype=wide)
    # Σ_j w_ij · d_w_ij, which is d_out_i · out_i; a block of rows at a time.
    delta = out.new_zeros(len(out) + 1, dtype=wide)  # 0 for the padding row
    for start in block_starts(len(out), 1 << 13):
        rows = slice(start, min(start + (1 << 13), len(out)))
        torch.sum(d_out[rows] * out[rows], -1, dtype=wide, out=delta[rows])
    # With an lse of +inf all weights of a row are 0: nothing is visible, or it is the padding row.
    shift = lse.masked_fill(lse == -math.inf, math.inf)
    shift = torch.nn.functional.pad(shift, (0, 1), value=math.inf)

    for block in blocks(layout, block_size):
        # 1. Gather what the forward pass gathered, and the gradient of its output.
        queries, keys = _queries_and_keys(q, k, inverse, layout, block)
        values = unfold_windows(gather_rows(v, block.readable), options.width)
        query_rows = query_chunks(block.readable, options)
        d_block = gather_rows(d_out, query_rows).flatten(0, 1)  # (m, chunk, d_v)

        # 2. Recompute the weights.
        scores = _masked_scores(queries, keys, layout, block, scale)  # (m, chunk, window)
        weights = scores.sub_(per_query(block, shift)).exp2_()

        # 3. The gradient of the values, which stand in several windows.
        key_rows = block.key_rows.flatten()
        d_values = torch.bmm(weights.to(v.dtype).mT, d_block).to(wide)  # (m, window, d_v)
        d_values = fold_windows(d_values, block)  # (s, n + width − 1, chunk, d_v)
        d_v.index_add_(0, key_rows, d_values.flatten(0, 2))
        del d_values

        # 4. The gradient of the scores.
        d_scores = torch.bmm(d_block, values.mT).to(wide)  # (m, chunk, window)
        d_scores.sub_(per_query(block, delta)).mul_(weights)
        if scale != 1:
            d_scores.mul_(scale)
        d_scores = d_scores.to(q.dtype)
        del scores, weights

        # 5. The gradients of queries and keys.
        d_queries = torch.bmm(d_scores, unfold_windows(keys, options.width)).to(wide)
        d_keys = fold_windows(torch.bmm(d_scores.mT, queries).to(wide), block)
        if k is not None:
            d_q.index_add_(0, block.query_rows.flatten(), d_queries.flatten(0, 1))
            d_k.index_add_(0, key_rows, d_keys.flatten(0, 2))
        else:  # one table, and the queries are among the keys
            inverses = gather_rows(inverse, block.readable)
            d_shared = _through_normalization(d_keys, keys, inverses)
            query_chunks(d_shared, options).add_(d_queries.view(*block.query_rows.shape, -1))
            d_q.index_add_(0, key_rows, d_shared.flatten(0, 2))

    d_q, d_v = d_q[:-1], d_v[:-1]
    if k is None:
        d_v.addcmul_(d_out, _only_self(lse, layout).to(d_out.dtype))
    else:
        d_k = d_k[:-1].to(k.dtype)
    return d_q.to(q.dtype), d_k, d_v.to(v.dtype)


def _queries_and_keys(q, k, inverse, layout, block):
    """queries (m, chunk_length, d); keys (s, n + width − 1, chunk_length, d), each once."""
    if k is not None:
        query_rows = query_chunks(block.readable, layout.options)
        return gather_rows(q, query_rows).flatten(0, 1), gather_rows(k, block.readable)
    rows = gather_rows(q, block.readable)
    queries = query_chunks(rows, layout.options).flatten(0, 1)
    keys = (rows * gather_rows(inverse, block.readable)[..., None]).to(q.dtype)
    return queries, keys


def _masked_scores(queries, keys, layout, block, scale):
    """log2(e) · scale · q·k for all pairs of a window, far below where hidden; float32 at least."""
    hidden = hidden_pairs(layout, block)  # (m, chunk_length, window)
    keys = unfold_windows(keys, layout.options.width).mT  # (m, d, window)
    # Product, scale and mask in one pass, in the memory of the mask.
    if hidden.dtype == queries.dtype:
        return hidden.baddbmm_(queries, keys, beta=-HIDE, alpha=scale * LOG2E)
    if queries.dtype == torch.float16:  # whose largest number is 65504
        queries, keys = queries.float(), keys.float()
    scores = torch.bmm(queries, keys).to(accumulation_dtype(queries.dtype)).mul_(scale * LOG2E)
    return scores.add_(hidden.to(scores.dtype), alpha=-HIDE)


def _through_normalization(d_keys, keys, inverse):
    """The gradient of q from that of k̂ = q · inverse, in the memory of d_keys."""
    along = (d_keys * keys).sum(-1, keepdim=True)
    return d_keys.addcmul_(keys, along, value=-1).mul_(inverse[..., None])


def _only_self(lse, layout):
    """Rows that, by the self rule, see nothing but themselves: bool (N, 1)."""
    nothing_else = lse == -math.inf
    if layout.real is not None:
        nothing_else = nothing_else & layout.real
    return nothing_else[:, None]
