"""Sort and chunk, in NumPy.

Buckets differ in size, so they cannot be batched as they are. Sorting the tokens by bucket, and by
position within a bucket, and cutting the sorted sequence into chunks of equal length gives batches
of equal shape; a chunk that also looks at its neighbour sees a bucket that was cut in two (paper
section 2, "LSH attention", figure 2 b and 2 c).

Errors, in every function: TypeError for a wrong dtype, ValueError for shapes that do not fit.
"""

import numpy as np

from reformer_ref._arguments import (
    as_array,
    as_integers,
    as_mask,
    require_bool,
    require_float,
    require_int,
    require_room,
)


def sort_by_bucket(buckets, padding_mask=None):
    """The sorted order: int64 (…, n_hashes, L); ``order[…, h, s]`` is the position that stands in
    slot s of round h.

    buckets: int (…, n_hashes, L). padding_mask: bool (…, L), True = real token; padding sorts
    behind every bucket, by position. The sort key (bucket, position) is unique, so there is one
    order; nothing is multiplied, so nothing overflows.
    """
    buckets = _integers("buckets", buckets, 2, "(…, n_hashes, L)")
    if padding_mask is not None:
        real = as_mask(padding_mask, (*buckets.shape[:-2], buckets.shape[-1]))
        buckets = np.where(real[..., None, :], buckets, np.iinfo(np.int64).max)
    return np.argsort(buckets, axis=-1, kind="stable")


def undo_sort(order):
    """The inverse permutation: int64 (…, n_hashes, L); ``slot[…, h, i]`` is the slot in which
    position i stands.

    order: int (…, n_hashes, L), or any (…, L). ValueError unless it holds every position 0 … L − 1
    exactly once.
    """
    order = _integers("order", order, 1, "(…, L)")
    slots = np.broadcast_to(np.arange(order.shape[-1]), order.shape)
    if not np.array_equal(np.sort(order, axis=-1), slots):
        raise ValueError(
            f"order must hold every position from 0 to {order.shape[-1] - 1} exactly once"
        )
    slot = np.empty_like(order)
    np.put_along_axis(slot, order, slots, axis=-1)
    return slot


def split_chunks(order, chunk_length):
    """Cut the sorted order into chunks: int64 (…, n_chunks, chunk_length), n_chunks = ⌈L /
    chunk_length⌉.

    order: int (…, L). The free places of the last chunk hold −1: nobody stands there, whatever the
    length.
    """
    order = _integers("order", order, 1, "(…, L)")
    chunk_length = require_int("chunk_length", chunk_length)
    n_chunks = -(-order.shape[-1] // chunk_length)
    require_room(orders=order.size // order.shape[-1], n_chunks=n_chunks, chunk_length=chunk_length)
    padded = np.full((*order.shape[:-1], n_chunks * chunk_length), -1, dtype=np.int64)
    padded[..., : order.shape[-1]] = order
    return padded.reshape(*order.shape[:-1], n_chunks, chunk_length)


def look_adjacent(chunks, chunks_before, chunks_after, wrap=False, fill=0):
    """Each chunk together with its neighbours: (…, n_chunks, width·chunk_length, d), width = before
    + 1 + after.

    chunks: (…, n_chunks, chunk_length, d). Neighbours come in order, the earliest first. At the
    ends ``wrap`` goes round (the first chunk's predecessor is the last chunk, as in the authors'
    code); otherwise ``fill`` stands there, a number that the dtype of chunks can hold.
    """
    chunks = as_array("chunks", chunks)
    if chunks.dtype.kind not in "iuf":
        raise TypeError(f"chunks must hold integers or floats, got dtype {chunks.dtype}")
    if chunks.ndim < 3 or 0 in chunks.shape:
        raise ValueError(
            f"chunks must have shape (…, n_chunks, chunk_length, d), every size ≥ 1, got {chunks.shape}"
        )
    if chunks.dtype.kind == "f":
        limit = float(np.finfo(chunks.dtype).max)
        require_float("fill", fill, -limit, limit)
    else:
        require_int("fill", fill, np.iinfo(chunks.dtype).min, np.iinfo(chunks.dtype).max)
    before, after = (
        require_int("chunks_before", chunks_before, 0),
        require_int("chunks_after", chunks_after, 0),
    )
    (
        require_bool("wrap", wrap),
        require_room(numbers=chunks.size, chunks_before_and_after=before + 1 + after),
    )
    n_chunks, looks = chunks.shape[-3], []
    for offset in range(-before, after + 1):
        neighbour = np.roll(chunks, -offset, axis=-3)
        outside = (np.arange(n_chunks) + offset < 0) | (np.arange(n_chunks) + offset >= n_chunks)
        looks.append(
            neighbour
            if wrap
            else np.where(outside[:, None, None], chunks.dtype.type(fill), neighbour)
        )
    return np.concatenate(looks, axis=-2)


def _integers(name, array, ndim, meaning):
    array = as_integers(name, array, "hold integers")
    if array.ndim < ndim or 0 in array.shape:
        raise ValueError(f"{name} must have shape {meaning} with every size ≥ 1, got {array.shape}")
    return array
