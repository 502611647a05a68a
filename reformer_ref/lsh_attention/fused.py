"""LSH and local attention by the kernels of ``triton.py``, as operations of PyTorch.

Autograd, compilation and the prediction of memory know the operations by their shapes alone. Only
running them imports triton, so this file works where triton is not installed.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from reformer_ref._kernels import four_axes
from reformer_ref._tensors import autocast_off


def lsh_attention(qk, v, buckets, options, padding_mask=None):
    """``pytorch.lsh_attention`` by fused kernels: float32, bfloat16 or float16, d up to 128."""
    q = four_axes(qk)
    v = four_axes(v)
    batch, heads, length, d = q.shape
    buckets = buckets.reshape(batch * heads, options.n_hashes, length)
    mask = None if padding_mask is None else padding_mask.expand(qk.shape[:-1])

    # 1. Sort: the position in each slot and, where a key is to be counted once, the slot of each
    #    position.
    sorted_positions = _sort(buckets, mask)
    order = sorted_positions.to(torch.int32)
    slots = None
    if options.count_once and (options.n_hashes > 1 or options.wrap):
        places = torch.arange(length, dtype=torch.int32, device=q.device).expand_as(order)
        slots = torch.empty_like(order).scatter_(-1, sorted_positions, places)
    del sorted_positions

    # 2. Attend.
    buckets = buckets if options.within_bucket else None
    mask = None if mask is None else mask.reshape(batch, heads, length)
    tables = order, slots, buckets, mask
    numbers = kernel_options(options, length)
    out = _Attention.apply(q, None, v, *tables, numbers, options.scale_for(d), options.norm_eps)
    return out.reshape(*qk.shape[:-1], out.shape[-1])


def local_attention(q, k, v, options, padding_mask=None):
    """``local_attention.pytorch.local_attention`` by the same kernels: one round, one bucket."""
    shape = q.shape[:-1]
    q = four_axes(q)
    k = four_axes(k)
    v = four_axes(v)
    batch, heads, length, d = q.shape
    mask = None if padding_mask is None else padding_mask.expand(shape)
    if mask is None:
        order = torch.arange(length, dtype=torch.int32, device=q.device)
        order = order.expand(batch * heads, 1, length).contiguous()
    else:
        # Real tokens first, padding last, each in their order.
        mask = mask.reshape(batch, heads, length)
        order = torch.sort(mask, dim=-1, descending=True, stable=True).indices.to(torch.int32)
        order = order.view(batch * heads, 1, length)
    tables = order, None, None, mask
    numbers = kernel_options(options, length, see_self=True)
    out = _Attention.apply(q, k, v, *tables, numbers, options.scale_for(d), 0.0)
    return out.reshape(*shape, out.shape[-1])


def _sort(buckets, padding_mask):
    """The position in each slot (N, n_hashes, L): sorted by (bucket, position), padding last."""
    if padding_mask is not None:
        real = padding_mask.reshape(len(buckets), 1, buckets.shape[-1])
        # A wider type than that of the buckets, so that no bucket has the number of padding.
        wide = torch.int32 if buckets.dtype == torch.int16 else torch.int64
        buckets = torch.where(real, buckets.to(wide), torch.iinfo(wide).max)
    return torch.sort(buckets, dim=-1, stable=True).indices


def kernel_options(options, length, see_self=False):
    """The options that the kernels are compiled for, as integers."""
    flags = options.causal, options.within_bucket, options.count_once, options.window == "rank"
    chunk_length = min(options.chunk_length, length)
    sizes = chunk_length, options.chunks_before, options.chunks_after
    return [*sizes, *map(int, (*flags, options.wrap, see_self))]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, order, slots, buckets, mask, options, scale, norm_eps):
        tables = order, slots, buckets, mask
        # Sums over several rounds are kept in float32.
        partial = None
        if order.shape[1] > 1 and v.dtype != torch.float32:
            partial = _new_rows(v, torch.float32)
        with autocast_off(q.device.type):
            out, lse = attention_forward(q, k, v, *tables, partial, options, scale, norm_eps)
        ctx.save_for_backward(q, k, v, out, lse, *tables)
        ctx.options, ctx.scale, ctx.norm_eps = options, scale, norm_eps
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, d_out):
        q, k, v, out, lse, *tables = ctx.saved_tensors
        # d_q is a sum over rounds and, with shared queries and keys, over both sides of a pair.
        partial_q = None
        partial_v = None
        if k is None and v.dtype != torch.float32:
            partial_q = _new_rows(q, torch.float32)
            partial_v = _new_rows(v, torch.float32)
        if d_out.stride(-1) != 1:
            d_out = d_out.contiguous()
        with autocast_off(q.device.type):
            d_q, d_k, d_v = attention_backward(
                d_out, q, k, v, out, lse, *tables, partial_q, partial_v, torch.empty_like(lse),
                ctx.options, ctx.scale, ctx.norm_eps,
            )  # fmt: skip
        return d_q, None if k is None else d_k, d_v, *[None] * 7


@torch.library.custom_op("reformer_ref::attention_forward", mutates_args=("partial",))
def attention_forward(
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    order: Tensor,
    slots: Tensor | None,
    buckets: Tensor | None,
    mask: Tensor | None,
    partial: Tensor | None,
    options: list[int],
    scale: float,
    norm_eps: float,
) -> tuple[Tensor, Tensor]:
    """The output (batch, heads, L, d_v) and the log-sum-exp (batch · heads, L), to the base 2.

    q, k, v (batch, heads, L, ·), k None where it is q; order, slots, buckets (batch · heads,
    n_hashes, L); mask (batch, heads, L). partial: memory for the output so far, in float32.
    """
    from reformer_ref.lsh_attention.triton import launch_forward

    out, lse = _forward_results(q, v)
    tables = order, slots, buckets, mask
    launch_forward(q, k, v, out, partial, lse, *tables, options, scale, norm_eps)
    return out, lse


@attention_forward.register_fake
def _(q, k, v, *_):
    return _forward_results(q, v)


def _forward_results(q, v):
    batch, heads, length, _ = q.shape
    return _new_rows(v), q.new_empty(batch * heads, length, dtype=torch.float32)


@torch.library.custom_op(
    "reformer_ref::attention_backward", mutates_args=("partial_q", "partial_v", "delta")
)
def attention_backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    order: Tensor,
    slots: Tensor | None,
    buckets: Tensor | None,
    mask: Tensor | None,
    partial_q: Tensor | None,
    partial_v: Tensor | None,
    delta: Tensor,
    options: list[int],
    scale: float,
    norm_eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k (empty where k is None) and v.

    Arguments as in ``attention_forward``. partial_q, partial_v: memory for sums in float32; delta: for
    a number for each query, like lse. (Memory made outside is seen by whatever counts memory.)
    """
    from reformer_ref.lsh_attention.triton import launch_backward

    gradients = _backward_results(q, k, v)
    tables = order, slots, buckets, mask
    launch_backward(
        d_out, q, k, v, out, lse, *tables, partial_q, partial_v, delta, *gradients,
        options, scale, norm_eps,
    )  # fmt: skip
    return gradients


@attention_backward.register_fake
def _(d_out, q, k, v, *_):
    return _backward_results(q, k, v)


def _backward_results(q, k, v):
    return _new_rows(q), q.new_empty(0) if k is None else _new_rows(q), _new_rows(v)


def _new_rows(x, dtype=None):
    """New memory for a tensor like x (batch, heads, L, d), with the heads of a token side by side."""
    batch, heads, length, d = x.shape
    return x.new_empty(batch, length, heads, d, dtype=dtype).transpose(1, 2)
