"""Sort and chunk, the PyTorch version: the functions of the spec, on any device. Not checked."""

import torch
from jaxtyping import Bool, Integer
from torch import Tensor


@torch.no_grad()
def sort_by_bucket(
    buckets: Integer[Tensor, "*batch n_hashes L"], padding_mask: Bool[Tensor, "..."] | None = None
) -> Integer[Tensor, "*batch n_hashes L"]:
    """Sort positions by (bucket, position), padding last: ``order[…, h, s]`` is the position in
    slot s of round h.

    A stable sort by bucket is a sort by (bucket, position): no product of the two is formed, so
    nothing overflows.
    """
    buckets = buckets.long()
    if padding_mask is not None:
        buckets = buckets.masked_fill(~padding_mask[..., None, :], torch.iinfo(torch.int64).max)
    return torch.sort(buckets, dim=-1, stable=True).indices  # (…, n_hashes, L)


@torch.no_grad()
def undo_sort(order: Integer[Tensor, "*batch L"]) -> Integer[Tensor, "*batch L"]:
    """Invert the permutation: ``slot[…, i]`` is the slot in which position i stands."""
    slots = torch.arange(order.shape[-1], device=order.device).expand(order.shape)
    return torch.empty_like(slots).scatter_(-1, order.long(), slots)  # (…, L)


@torch.no_grad()
def split_chunks(
    order: Integer[Tensor, "*batch L"], chunk_length: int
) -> Integer[Tensor, "*batch n_chunks chunk_length"]:
    """Cut the sorted order into ⌈L / chunk_length⌉ chunks; slots beyond the end hold −1."""
    n_chunks = -(-order.shape[-1] // chunk_length)
    missing = n_chunks * chunk_length - order.shape[-1]
    padded = torch.nn.functional.pad(order.long(), (0, missing), value=-1)
    return padded.unflatten(-1, (n_chunks, chunk_length))  # (…, n_chunks, chunk_length)


def look_adjacent(
    chunks: Tensor, chunks_before: int, chunks_after: int, wrap: bool = False, fill: int | float = 0
) -> Tensor:
    """Put each chunk together with its neighbours, the earliest first.

    Args:
        chunks: (…, n_chunks, chunk_length, d) numbers of any dtype.
        chunks_before: neighbours before the chunk.
        chunks_after: neighbours after it.
        wrap: go round at the ends.
        fill: what stands in the place of missing neighbours otherwise.

    Returns:
        (…, n_chunks, width·chunk_length, d), width = before + 1 + after. Differentiable.
    """
    chunk = torch.arange(chunks.shape[-3], device=chunks.device)
    neighbours = []
    for offset in range(-chunks_before, chunks_after + 1):
        neighbour = torch.roll(chunks, -offset, dims=-3)
        if offset and not wrap:
            outside = (chunk + offset < 0) | (chunk + offset >= len(chunk))
            neighbour = neighbour.masked_fill(outside[:, None, None], fill)
        neighbours.append(neighbour)
    return torch.cat(neighbours, dim=-2)


def gather_rows(x: Tensor, positions: Tensor) -> Tensor:
    """The rows of x (…, L, d) at positions (…, any): (…, any, d). A position −1 gives row 0."""
    *batch, length, d = x.shape
    rows = x.reshape(-1, d)  # all sequences, one after the other
    first = torch.arange(0, len(rows), length, device=x.device)  # the first row of each sequence
    first = first.view(*batch, *[1] * (positions.ndim - len(batch)))
    return torch.nn.functional.embedding(positions.clamp(min=0) + first, rows)
