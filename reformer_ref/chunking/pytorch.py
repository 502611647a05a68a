"""Sort and chunk, in PyTorch: same functions as the spec, on any device."""

import torch

from reformer_ref._arguments import require_bool, require_float, require_int, require_room
from reformer_ref._tensors import (
    has_values,
    require_floating,
    require_integers,
    require_padding_mask,
    require_tensor,
)


@torch.no_grad()
def sort_by_bucket(buckets, padding_mask=None):
    """The sorted order: int64 (…, n_hashes, L); ``order[…, h, s]`` is the position that stands in
    slot s of round h.

    buckets: integer (…, n_hashes, L). padding_mask: bool (…, L), True = real token; padding sorts
    behind every bucket. A stable sort by bucket is a sort by (bucket, position): no product of the
    two is formed, so nothing overflows.
    """
    buckets = _integers("buckets", buckets, 2, "(…, n_hashes, L)")
    if padding_mask is not None:
        shape = (*buckets.shape[:-2], buckets.shape[-1])
        padding_mask = require_padding_mask(padding_mask, shape, buckets.device)
        buckets = buckets.masked_fill(~padding_mask[..., None, :], torch.iinfo(torch.int64).max)
    return torch.sort(buckets, dim=-1, stable=True).indices


@torch.no_grad()
def undo_sort(order):
    """The inverse permutation: int64 (…, n_hashes, L); ``slot[…, h, i]`` is the slot in which
    position i stands.

    order: integer (…, n_hashes, L), or any (…, L). ValueError unless it holds every position 0 … L
    − 1 exactly once.
    """
    order = _integers("order", order, 1, "(…, L)")
    slots = torch.arange(order.shape[-1], device=order.device).expand(order.shape)
    inside = (order >= 0) & (order < order.shape[-1])
    slot = torch.full_like(order, -1).scatter_(-1, torch.where(inside, order, 0), slots)
    if has_values(order) and not bool((inside & (slot >= 0)).all()):
        raise ValueError(
            f"order must hold every position from 0 to {order.shape[-1] - 1} exactly once"
        )
    return slot


@torch.no_grad()
def split_chunks(order, chunk_length):
    """Cut the sorted order into chunks: int64 (…, n_chunks, chunk_length), n_chunks = ⌈L /
    chunk_length⌉.

    order: integer (…, L). The free places of the last chunk hold −1.
    """
    order = _integers("order", order, 1, "(…, L)")
    chunk_length = require_int("chunk_length", chunk_length)
    n_chunks = -(-order.shape[-1] // chunk_length)
    if has_values(order):
        require_room(
            orders=order.numel() // order.shape[-1], n_chunks=n_chunks, chunk_length=chunk_length
        )
    padded = torch.nn.functional.pad(
        order, (0, n_chunks * chunk_length - order.shape[-1]), value=-1
    )
    return padded.unflatten(-1, (n_chunks, chunk_length))  # (…, n_chunks, chunk_length)


def look_adjacent(chunks, chunks_before, chunks_after, wrap=False, fill=0):
    """Each chunk together with its neighbours: (…, n_chunks, width·chunk_length, d), width = before
    + 1 + after.

    chunks: (…, n_chunks, chunk_length, d). At the ends ``wrap`` goes round; otherwise ``fill``
    stands there, a number that the dtype of chunks can hold. Differentiable.
    """
    floating = require_tensor("chunks", chunks).is_floating_point()
    require_floating("chunks", chunks) if floating else require_integers(
        "chunks", chunks, "hold integers or floats"
    )
    if chunks.dtype in (torch.uint16, torch.uint32):  # PyTorch can fill neither
        raise TypeError(f"chunks must be signed integers, uint8 or floats, got {chunks.dtype}")
    if chunks.ndim < 3 or 0 in chunks.shape:
        shape = tuple(chunks.shape)
        raise ValueError(
            f"chunks must have shape (…, n_chunks, chunk_length, d), every size ≥ 1, got {shape}"
        )
    if floating:
        limit = torch.finfo(chunks.dtype).max
        fill = require_float("fill", fill, -limit, limit)
    else:
        require_int("fill", fill, torch.iinfo(chunks.dtype).min, torch.iinfo(chunks.dtype).max)
    before, after = (
        require_int("chunks_before", chunks_before, 0),
        require_int("chunks_after", chunks_after, 0),
    )
    require_bool("wrap", wrap)
    if has_values(chunks):
        require_room(numbers=chunks.numel(), chunks_before_and_after=before + 1 + after)
    at = torch.arange(chunks.shape[-3], device=chunks.device)
    looks = []
    for offset in range(-before, after + 1):
        neighbour = torch.roll(chunks, -offset, dims=-3)
        if not wrap and offset:
            outside = (at + offset < 0) | (at + offset >= chunks.shape[-3])
            neighbour = neighbour.masked_fill(outside[:, None, None], fill)
        looks.append(neighbour)
    return torch.cat(looks, dim=-2)


def _integers(name, x, ndim, meaning):
    """``x`` as int64."""
    x = require_integers(name, x, "hold integers")
    if x.ndim < ndim or 0 in x.shape:
        raise ValueError(
            f"{name} must have shape {meaning} with every size ≥ 1, got {tuple(x.shape)}"
        )
    return x
