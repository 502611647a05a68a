"""The streaming core of LSH and local attention: block by block, nothing of size O(L · chunk) kept.

Forward merges blocks into one softmax with a running log-sum-exp per query. Since all rounds form
one softmax, backward needs no state per round: with the total log-sum-exp, a pair's weight is
exp(score − total), recomputed block by block from (q, k, v, out, total, order), as in flash
attention.

Exponentials are taken to the base 2: exp2 is several times faster than exp on a CPU, and as exact.
"""

import math

import torch
from torch.autograd.function import once_differentiable

from reformer_ref._tensors import Scratch, autocast_off
from reformer_ref.lsh_attention.windows import Windows, pick

LOG2E = math.log2(math.e)
HIDE = 1e28  # taken from hidden scores: more than any score (see LARGEST), and finite, so that no NaN can arise
LARGEST = 1e12  # entries of queries and keys must be smaller
SCORES_AT_A_TIME = {
    "cpu": 1 << 19,
    "cuda": 1 << 25,
}  # a cache's worth; a small part of a GPU's memory


def stream_attention(q, k, v, windows, scale, norm_eps=0.0, block_size=None):
    """(out (N, d_v), total (N,)) for rows q (N, d), k (N, d) or None for shared q, v (N, d_v); N =
    batch · L.

    total: base-2 log-sum-exp of everything visible, −inf where nothing is. Without k, keys are q
    normalised with ``norm_eps`` and a token that sees nothing else sees itself. block_size: scores
    computed at a time.
    """
    block_size = block_size or SCORES_AT_A_TIME.get(q.device.type, 1 << 22)
    inverse = None if k is not None else inverse_length(q, norm_eps)
    tensors = [t for t in (q, k, v) if t is not None]
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return _Stream.apply(q, k, v, inverse, windows, scale, block_size)
    with autocast_off(q.device.type):
        return _forward(q, k, v, inverse, windows, scale, block_size)


class _Stream(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, inverse, windows, scale, block_size):
        with autocast_off(q.device.type):
            out, total = _forward(q, k, v, inverse, windows, scale, block_size)
        ctx.save_for_backward(q, k, v, inverse, out, total)
        ctx.windows, ctx.scale, ctx.block_size = windows, scale, block_size
        ctx.mark_non_differentiable(total)
        return out, total

    @staticmethod
    @once_differentiable
    def backward(ctx, d_out, _):
        q, k, v, inverse, out, total = ctx.saved_tensors
        with autocast_off(q.device.type):
            grads = _backward(
                q,
                k,
                v,
                inverse,
                out,
                total,
                d_out.contiguous(),
                ctx.windows,
                ctx.scale,
                ctx.block_size,
            )
        return *grads, None, None, None, None


def _forward(q, k, v, inverse, windows, scale, block_size):
    wide = torch.float32 if v.dtype in (torch.float16, torch.bfloat16) else v.dtype
    out = v.new_empty(
        len(v) + 1, v.shape[1], dtype=wide
    )  # filled by the first round; the last row is nobody's
    total, scratch = v.new_empty(len(v) + 1, dtype=wide), Scratch()
    for block in windows.blocks(block_size):
        scores, _, _ = block_scores(q, k, inverse, windows, block, scale, scratch)
        top = scores.amax(-1, keepdim=True)
        mass = scores.sub_(top).exp2_().sum(-1, keepdim=True)
        empty = top < -HIDE / 2
        here = scratch.bmm("out", scores.to(v.dtype), block.spread(block.take(v))).to(
            wide
        )  # (m, chunk_length, d_v)
        here = here.div_(mass.masked_fill_(empty, math.inf)).flatten(0, 1)
        log_sum = mass.log2_().add_(top).masked_fill_(empty, -math.inf).flatten()
        rows = block.queries.flatten()
        if block.round == 0:
            out.index_copy_(0, rows, here)
            total.index_copy_(0, rows, log_sum)
            continue
        before = total.index_select(0, rows)
        share = torch.sigmoid(
            (log_sum - before) * math.log(2)
        ).nan_to_num_()  # of this block; NaN: nothing visible yet
        out.index_copy_(0, rows, out.index_select(0, rows).lerp_(here, share[:, None]))
        total.index_copy_(0, rows, torch.logaddexp2(before, log_sum))
    out, total = out[:-1].to(v.dtype), total[:-1]
    if k is None:
        out.addcmul_(v, _alone(total, windows).to(v.dtype))
    return out, total


def _backward(q, k, v, inverse, out, total, d_out, windows, scale, block_size):
    wide = total.dtype
    d_q, d_v = (x.new_zeros(len(x) + 1, x.shape[1], dtype=wide) for x in (q, v))
    d_k = None if k is None else torch.zeros_like(d_q)
    delta = torch.cat(
        [
            (a * b).sum(-1, dtype=wide)
            for a, b in zip(d_out.split(1 << 13), out.split(1 << 13), strict=True)
        ]
    )
    delta = torch.nn.functional.pad(delta, (0, 1))  # Σ_j w_ij d_w_ij, and 0 for nobody
    shift = torch.nn.functional.pad(
        total.masked_fill(total == -math.inf, math.inf), (0, 1), value=math.inf
    )
    scratch = Scratch()
    for block in windows.blocks(block_size):
        scores, q_here, k_here = block_scores(q, k, inverse, windows, block, scale, scratch)
        queries, keys = block.queries.flatten(0, 1), block.keys.flatten()
        weights = scores.sub_(
            pick(shift, queries)[..., None]
        ).exp2_()  # 0 where a query sees nothing
        d_here, v_here = (
            pick(d_out, block.own(block.readable).flatten(0, 1)),
            block.spread(block.take(v)),
        )
        d_v_here = scratch.bmm("of keys", weights.to(v.dtype).transpose(1, 2), d_here).to(wide)
        d_v.index_add_(0, keys, block.fold(d_v_here).flatten(0, 2))
        d_scores = scratch.bmm("d_scores", d_here, v_here.transpose(1, 2)).to(wide)
        d_scores = d_scores.sub_(pick(delta, queries)[..., None]).mul_(weights)
        d_scores = (d_scores if scale == 1 else d_scores.mul_(scale)).to(q.dtype)
        d_q_here = scratch.bmm("of queries", d_scores, block.spread(k_here)).to(wide)
        d_k_here = block.fold(scratch.bmm("of keys", d_scores.transpose(1, 2), q_here).to(wide))
        if k is None:  # through k̂ = q · inverse; queries stand among the keys
            along = (d_k_here * k_here).sum(-1, keepdim=True)
            d_k_here.addcmul_(k_here, along, value=-1).mul_(block.take(inverse)[..., None])
            block.own(d_k_here).add_(d_q_here.view(*block.queries.shape, -1))
        else:
            d_q.index_add_(0, queries.flatten(), d_q_here.flatten(0, 1))
        (d_q if k is None else d_k).index_add_(0, keys, d_k_here.flatten(0, 2))
    d_v = d_v[:-1]
    if k is None:
        d_v.addcmul_(d_out, _alone(total, windows).to(d_out.dtype))
    d_k = None if k is None else d_k[:-1].to(k.dtype)
    return d_q[:-1].to(q.dtype), d_k, d_v.to(v.dtype)


def block_scores(q, k, inverse, windows, block, scale, scratch):
    """Of one block: scores · log2 e, hidden pairs far below; queries (m, chunk_length, d); keys,
    one row for each.

    The scores may stand in ``scratch`` under the name "scores".
    """
    if k is None:
        rows = block.take(q)  # (s, n + width − 1, chunk_length, d)
        q_here, k_here = (
            block.own(rows).flatten(0, 1),
            (rows * block.take(inverse)[..., None]).to(q.dtype),
        )
    else:
        q_here, k_here = pick(q, block.own(block.readable).flatten(0, 1)), block.take(k)
    penalty, keys = windows.penalty(block, scratch), block.spread(k_here).transpose(1, 2)
    if penalty.dtype == q.dtype:
        return penalty.baddbmm_(q_here, keys, beta=-HIDE, alpha=scale * LOG2E), q_here, k_here
    if q.dtype == torch.float16:  # its largest number is 65504
        dots = torch.bmm(q_here.float(), keys.float()).mul_(scale * LOG2E)
    else:
        dots = (
            torch.bmm(q_here, keys)
            .to(torch.float32 if q.dtype == torch.bfloat16 else q.dtype)
            .mul_(scale * LOG2E)
        )
    return dots.add_(penalty.to(dots.dtype), alpha=-HIDE), q_here, k_here


def _alone(total, windows):
    """Rows that see nothing but themselves, by the self rule: bool (N, 1)."""
    alone = total == -math.inf
    return (alone if windows.real is None else alone & windows.real)[:, None]


def inverse_length(q, norm_eps):
    """1 / √(‖q‖² + d·norm_eps) per row, (N,), 0 for a zero vector; squared in float32 at least."""
    with torch.no_grad():
        wide = torch.float32 if q.dtype in (torch.float16, torch.bfloat16) else q.dtype
        square = torch.linalg.vector_norm(q, dim=-1, dtype=wide).square() + q.shape[-1] * norm_eps
        return torch.where(square > 0, square.rsqrt(), 0)


def lsh_attention(qk, v, buckets, options, padding_mask=None, *, block_size=None):
    """The function of ``lsh_attention.pytorch``, block by block; not checked."""
    (q, v), heads = as_rows(qk, v)
    length, d = qk.shape[-2:]
    if padding_mask is not None:
        padding_mask = padding_mask.expand(qk.shape[:-1]).reshape(-1, length)
    dtype = torch.float64 if qk.dtype == torch.float64 else torch.float32
    rounds = buckets.reshape(-1, *buckets.shape[-2:])
    windows = Windows(rounds, options, padding_mask, heads=heads, dtype=dtype)
    scale = options.scale_for(d)
    out, _ = stream_attention(q, None, v, windows, scale, options.norm_eps, block_size)
    return from_rows(out, qk.shape[:-1], heads)


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
    """Rows (N, d) back to ``shape`` + (d,), shape = (…, L): the inverse of ``as_rows``."""
    if heads == 1:
        return rows.view(*shape, rows.shape[-1])
    return rows.view(*shape[:-2], shape[-1], heads, rows.shape[-1]).transpose(-3, -2)
