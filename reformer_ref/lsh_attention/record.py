"""A record of one call of LSH attention, for pictures and tests."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class AttentionRecord:
    """What one call of LSH attention did.

    Attributes:
        buckets: the bucket numbers of the call.
        order: the positions in sorted order, in each round.
        queries: the position in each slot of each chunk, −1 in slots beyond the end.
        keys: the positions in the window of each chunk, −1 where there is none.
        weights: the attention weights; those of one query, over all rounds, are one softmax.
    """

    buckets: Int[Tensor, "*batch n_hashes L"]
    order: Int[Tensor, "*batch n_hashes L"]
    queries: Int[Tensor, "*batch n_hashes n_chunks chunk_length"]
    keys: Int[Tensor, "*batch n_hashes n_chunks window"]
    weights: Float[Tensor, "*batch n_hashes n_chunks chunk_length window"]

    def dense(self) -> Float[Tensor, "*batch L L"]:
        """The attention matrix: row i holds the weights with which query i sees each position."""
        length = self.buckets.shape[-1]
        batch = self.weights.shape[:-4]
        rows = self.queries.remainder(length + 1)[..., :, None]  # −1 becomes row and column L
        columns = self.keys.remainder(length + 1)[..., None, :]
        cells = (rows * (length + 1) + columns).flatten(len(batch))
        matrix = self.weights.new_zeros(*batch, (length + 1) ** 2)
        matrix.scatter_add_(-1, cells, self.weights.flatten(len(batch)))
        return matrix.view(*batch, length + 1, length + 1)[..., :length, :length]


@torch.no_grad()
def record_of_call(
    buckets: Tensor,
    order: Tensor,
    queries: Tensor,
    keys: Tensor,
    weights: Tensor,
    only_self: Bool[Tensor, "*batch L"],
    chunks_before: int,
) -> AttentionRecord:
    """Make the record of merged weights: clear those of free slots, apply the self rule."""
    weights = weights.masked_fill(queries[..., None] < 0, 0.0)
    # A token that sees only itself does so in the first round.
    first = queries[..., 0, :, :].flatten(-2)  # (…, n·m)
    sees_self = only_self.gather(-1, first.clamp(min=0)) & (first >= 0)
    chunk_length = queries.shape[-1]
    query_chunk = weights[..., 0, :, :, :].narrow(-1, chunks_before * chunk_length, chunk_length)
    diagonal = query_chunk.diagonal(dim1=-2, dim2=-1)  # (…, n, m), a view
    diagonal.masked_fill_(sees_self.view_as(diagonal), 1.0)
    return AttentionRecord(buckets, order, queries, keys, weights)
