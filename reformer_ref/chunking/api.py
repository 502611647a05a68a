"""The public functions of chunking: they check their arguments, then call the plain version."""

import torch
from jaxtyping import Bool, Integer
from torch import Tensor

from reformer_ref._arguments import require_bool, require_float, require_int, require_room
from reformer_ref._tensors import (
    has_values,
    require_floating,
    require_integers,
    require_padding_mask,
    require_tensor,
)
from reformer_ref.chunking import pytorch as plain


def sort_by_bucket(
    buckets: Integer[Tensor, "*batch n_hashes L"], padding_mask: Bool[Tensor, "..."] | None = None
) -> Integer[Tensor, "*batch n_hashes L"]:
    """Sort positions by (bucket, position) in every round of hashing (paper section 2, figure 2).

    Args:
        buckets: bucket of every position; leading dimensions are any batch and heads.
        padding_mask: (…, L), True for a real token. Padding is sorted behind every bucket.

    Returns:
        ``order[…, h, s]``, the position in slot s of round h.

    Raises:
        TypeError, ValueError: an argument of another kind or shape.
    """
    buckets = _require_positions("buckets", buckets, 2, "(…, n_hashes, L)")
    shape = (*buckets.shape[:-2], buckets.shape[-1])
    return plain.sort_by_bucket(buckets, require_padding_mask(padding_mask, shape, buckets.device))


def undo_sort(order: Integer[Tensor, "*batch L"]) -> Integer[Tensor, "*batch L"]:
    """Invert the permutation of `sort_by_bucket`.

    Args:
        order: every position from 0 to L − 1, once.

    Returns:
        ``slot[…, i]``, the slot in which position i stands.

    Raises:
        TypeError, ValueError: an argument of another kind or shape, or no permutation.
    """
    order = _require_positions("order", order, 1, "(…, L)")
    length = order.shape[-1]
    if has_values(order):
        positions = torch.arange(length, device=order.device)
        if not torch.equal(order.sort(dim=-1).values, positions.expand(order.shape)):
            raise ValueError(f"order must hold every position from 0 to {length - 1} exactly once")
    return plain.undo_sort(order)


def split_chunks(
    order: Integer[Tensor, "*batch L"], chunk_length: int
) -> Integer[Tensor, "*batch n_chunks chunk_length"]:
    """Cut the sorted order into ⌈L / chunk_length⌉ chunks.

    Args:
        order: positions in sorted order, as `sort_by_bucket` returns them.
        chunk_length: slots of a chunk; need not divide L.

    Returns:
        The positions in each chunk; slots beyond the end hold −1.

    Raises:
        TypeError, ValueError: an argument of another kind or shape.
    """
    order = _require_positions("order", order, 1, "(…, L)")
    chunk_length = require_int("chunk_length", chunk_length)
    if has_values(order):
        n_chunks = -(-order.shape[-1] // chunk_length)
        batch = order.numel() // order.shape[-1]
        require_room(orders=batch, n_chunks=n_chunks, chunk_length=chunk_length)
    return plain.split_chunks(order, chunk_length)


def look_adjacent(
    chunks: Tensor, chunks_before: int, chunks_after: int, wrap: bool = False, fill: float = 0
) -> Tensor:
    """Put each chunk together with its neighbours, the earliest first. Differentiable.

    Args:
        chunks: (…, n_chunks, chunk_length, d), integers or floats.
        chunks_before: neighbours before the chunk.
        chunks_after: neighbours after it.
        wrap: go round at the ends; otherwise ``fill`` takes the place of missing neighbours.
        fill: a number that the dtype of chunks can hold.

    Returns:
        (…, n_chunks, width · chunk_length, d) with width = chunks_before + 1 + chunks_after.

    Raises:
        TypeError, ValueError: an argument of another kind or shape.
    """
    floating = require_tensor("chunks", chunks).is_floating_point()
    if floating:
        require_floating("chunks", chunks)
        largest = torch.finfo(chunks.dtype).max
        fill = require_float("fill", fill, -largest, largest)
    else:
        require_integers("chunks", chunks, "hold integers or floats")
        if chunks.dtype in (torch.uint16, torch.uint32):  # PyTorch can fill neither
            raise TypeError(f"chunks must be signed integers, uint8 or floats, got {chunks.dtype}")
        integers = torch.iinfo(chunks.dtype)
        fill = require_int("fill", fill, integers.min, integers.max)
    if chunks.ndim < 3 or 0 in chunks.shape:
        shape = "(…, n_chunks, chunk_length, d), every size ≥ 1"
        raise ValueError(f"chunks must have shape {shape}, got {tuple(chunks.shape)}")
    before = require_int("chunks_before", chunks_before, 0)
    after = require_int("chunks_after", chunks_after, 0)
    require_bool("wrap", wrap)
    if has_values(chunks):
        require_room(numbers=chunks.numel(), chunks_before_and_after=before + 1 + after)
    return plain.look_adjacent(chunks, before, after, wrap, fill)


def _require_positions(name, x, ndim, meaning):
    x = require_integers(name, x, "hold integers")
    if x.ndim < ndim or 0 in x.shape:
        raise ValueError(
            f"{name} must have shape {meaning} with every size ≥ 1, got {tuple(x.shape)}"
        )
    return x
