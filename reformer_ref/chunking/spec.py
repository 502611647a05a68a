"""Sort and chunk: the definition, in NumPy.

Buckets differ in size, so they cannot be batched as they are. Sorting the tokens by bucket, and by
position within a bucket, and cutting the sorted sequence into chunks of equal length gives batches
of equal shape; a chunk that also looks at its neighbour sees a bucket that was cut in two (paper
section 2, "LSH attention", figure 2 b and 2 c).
"""

import numpy as np
from jaxtyping import Bool, Integer


def sort_by_bucket(
    buckets: Integer[np.ndarray, "*batch n_hashes L"],
    padding_mask: Bool[np.ndarray, "*batch L"] | None = None,
) -> Integer[np.ndarray, "*batch n_hashes L"]:
    """Sort positions: ``order[…, h, s]`` is the position in slot s of round h.

    padding_mask: True = real token; padding sorts behind every bucket, by position. The sort key
    (bucket, position) is unique, so there is one order; nothing is multiplied, so nothing
    overflows.
    """
    if padding_mask is not None:
        last = np.iinfo(np.int64).max
        buckets = np.where(padding_mask[..., None, :], buckets.astype(np.int64), last)
    return np.argsort(buckets, axis=-1, kind="stable")


def undo_sort(order: Integer[np.ndarray, "*batch L"]) -> Integer[np.ndarray, "*batch L"]:
    """Invert the permutation: ``slot[…, i]`` is the slot in which position i stands."""
    return np.argsort(order, axis=-1)


def split_chunks(
    order: Integer[np.ndarray, "*batch L"], chunk_length: int
) -> Integer[np.ndarray, "*batch n_chunks chunk_length"]:
    """Cut the sorted order into ⌈L / chunk_length⌉ chunks; slots beyond the end hold −1."""
    *batch, length = order.shape
    n_chunks = -(-length // chunk_length)
    padded = np.full((*batch, n_chunks * chunk_length), -1, dtype=np.int64)
    padded[..., :length] = order
    return padded.reshape(*batch, n_chunks, chunk_length)


def look_adjacent(
    chunks: np.ndarray,
    chunks_before: int,
    chunks_after: int,
    wrap: bool = False,
    fill: int | float = 0,
) -> np.ndarray:
    """Put each chunk together with its neighbours, the earliest first.

    (…, n_chunks, chunk_length, d) -> (…, n_chunks, width·chunk_length, d), width = before + 1 +
    after. At the ends ``wrap`` goes round (the first chunk's predecessor is the last chunk, as in
    the authors' code); otherwise ``fill`` takes the place of missing neighbours.
    """
    chunk = np.arange(chunks.shape[-3])
    neighbours = []
    for offset in range(-chunks_before, chunks_after + 1):
        neighbour = np.roll(chunks, -offset, axis=-3)
        if not wrap:
            outside = (chunk + offset < 0) | (chunk + offset >= len(chunk))
            neighbour[..., outside, :, :] = fill
        neighbours.append(neighbour)
    return np.concatenate(neighbours, axis=-2)
