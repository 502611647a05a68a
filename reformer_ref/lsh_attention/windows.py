"""Who stands in which window, and who may see whom: the integer side of LSH attention, shared by every PyTorch path.

All rounds of one sequence form one row of N = n_hashes · n_chunks chunks. A block is a run of chunks of one round, and
everything here is computed for one block at a time, so that nothing of size O(L · chunk_length) need exist.
"""

from dataclasses import dataclass

import torch

from reformer_ref.chunking.pytorch import sort_by_bucket, split_chunks, undo_sort


@dataclass(frozen=True)
class Windows:
    """The sorted order of B sequences, cut into chunks, and what is needed to say who may see whom."""

    options: object  # LSHOptions
    order: torch.Tensor  # (B, N, chunk_length) positions, −1 where nobody stands
    slot: torch.Tensor  # (B, n_hashes, L) slot of each position in each round
    buckets: torch.Tensor  # (B, n_hashes, L)
    real: torch.Tensor | None  # (B, L) bool, True = real token; None if all are

    @classmethod
    def of(cls, buckets, options, padding_mask=None):
        """From buckets (B, n_hashes, L) and padding_mask (B, L) or None."""
        order = sort_by_bucket(buckets, padding_mask)  # (B, n_hashes, L)
        slot = undo_sort(order)
        chunks = split_chunks(order, options.chunk_length).flatten(1, 2)  # (B, N, chunk_length)
        return cls(options, chunks, slot, buckets, padding_mask)

    @property
    def n_chunks(self):
        """Chunks in one round."""
        return self.order.shape[1] // self.options.n_hashes

    def chunk_of(self, h):
        """(B, L): number, in the row of all chunks, of the chunk in which each position stands in round h."""
        return h * self.n_chunks + self.slot[:, h] // self.options.chunk_length

    def queries(self, first, last):
        """(B, last − first, chunk_length): positions of the queries in chunks first … last − 1."""
        return self.order[:, first:last]

    def keys(self, first, last):
        """(keys, rounds): positions (B, n, width·chunk_length) seen by chunks first … last − 1, −1 = nobody, and the
        round (n, width·chunk_length) that each stands in."""
        o = self.options
        mine = torch.arange(first, last, device=self.order.device)[:, None]
        looked_at = mine + torch.arange(-o.chunks_before, o.chunks_after + 1, device=mine.device)  # (n, width)
        ring = looked_at % self.order.shape[1]
        keys = self.order[:, ring]  # (B, n, width, chunk_length)
        if not o.wrap:
            outside = looked_at.div(self.n_chunks, rounding_mode="floor") != mine.div(self.n_chunks, rounding_mode="floor")
            keys = keys.masked_fill(outside[..., None], -1)
        rounds = (ring // self.n_chunks)[..., None].expand(*ring.shape, o.chunk_length)
        return keys.flatten(2), rounds.flatten(1)

    def visible(self, h, first, last):
        """(others, self): bool (B, n, chunk_length, width·chunk_length) for chunks first … last − 1, all of round h.

        others: key j ≠ i that query i sees here, and, with ``count_once``, has not seen in an earlier place.
        self: places where a query that is no padding meets itself.
        """
        o = self.options
        i, (j, rounds) = self.queries(first, last), self.keys(first, last)
        real_i, real_j = i >= 0, j >= 0
        i, j = i.clamp(min=0), j.clamp(min=0)
        if self.real is not None:
            real_j = real_j & _at(self.real, j)
        seen = real_i[..., None] & real_j[..., None, :]
        own = seen & (i[..., None] == j[..., None, :])
        if o.causal:
            seen = seen & (j[..., None, :] < i[..., None])
        else:
            seen = seen & ~own
        if o.within_bucket:
            bucket_j = torch.where(rounds == h, _at(self.buckets[:, h], j), -1)
            seen = seen & (_at(self.buckets[:, h], i)[..., None] == bucket_j[..., None, :])
        if o.window == "rank":
            at = torch.arange(o.chunk_length, device=i.device)
            distance = at[:, None] + o.chunk_length - torch.arange(2 * o.chunk_length, device=i.device)
            seen = seen & (distance > 0) & (distance <= o.chunk_length)
        if o.count_once:
            again = self._seen_before_on_ring(h, i, j) if o.wrap else self._seen_before(h, i, j)
            seen = seen & ~again if again is not None else seen
        return seen, own

    def _seen_before(self, h, i, j):
        """Pairs that an earlier round shows too. Within a round without wrap, no key stands twice in a window."""
        o, again = self.options, None
        for s in range(h):
            slot_i, slot_j = _at(self.slot[:, s], i)[..., None], _at(self.slot[:, s], j)[..., None, :]
            if o.window == "rank":
                here = (slot_j < slot_i) & (slot_j >= slot_i - o.chunk_length)
            else:
                step = slot_j // o.chunk_length - slot_i // o.chunk_length
                here = (step >= -o.chunks_before) & (step <= o.chunks_after)
            if o.within_bucket:
                here &= _at(self.buckets[:, s], i)[..., None] == _at(self.buckets[:, s], j)[..., None, :]
            again = here if again is None else again | here
        return again

    def _seen_before_on_ring(self, h, i, j):
        """The same with wrap: a window may reach into other rounds, and may hold a key twice."""
        o, n = self.options, self.order.shape[1]
        offsets = range(-o.chunks_before, o.chunks_after + 1)
        offset_of_key = torch.arange(j.shape[-1], device=j.device) // o.chunk_length
        again = torch.zeros(*j.shape[:-1], o.chunk_length, j.shape[-1], dtype=torch.bool, device=j.device)
        chunks_j = [_at(self.chunk_of(s), j)[..., None, :] for s in range(o.n_hashes)]
        for s in range(h + 1):
            chunk_i = _at(self.chunk_of(s), i)[..., None]
            for place, offset in enumerate(offsets):
                for t, chunk_j in enumerate(chunks_j):
                    here = (chunk_i + offset) % n == chunk_j
                    if o.within_bucket and t != s:
                        continue
                    if o.within_bucket:
                        here &= _at(self.buckets[:, s], i)[..., None] == _at(self.buckets[:, s], j)[..., None, :]
                    again |= here if s < h else here & (offset_of_key > place)
        return again


def _at(values, index):
    """values (B, L) at index (B, …) -> (B, …)."""
    return values.gather(1, index.flatten(1)).view(index.shape)
