"""What a decoder keeps of the past, layer by layer: enough for the next token, in fixed memory.

A *row* is one sequence of the batch; rows may have different lengths. Every cache keeps keys and
values in a table of fixed size. Not checked.
"""

import torch

from reformer_ref.attention.pytorch import attend, normalize_keys
from reformer_ref.chunking.pytorch import sort_by_bucket


class Cache:
    """A table of keys k (rows, heads, size, d) and values v (rows, heads, size, d_v)."""

    def __init__(self, rows, heads, size, d, d_v, like):
        self.k = like.new_zeros(rows, heads, size, d)
        self.v = like.new_zeros(rows, heads, size, d_v)

    def tensors(self):
        """Names and tensors of everything that is kept."""
        return {name: x for name, x in vars(self).items() if isinstance(x, torch.Tensor)}

    def repeat(self, n):
        """Repeat every row n times, one copy after the other."""
        for name, x in self.tensors().items():
            setattr(self, name, x.repeat_interleave(n, 0))

    def _write(self, entries, k, v):
        """Write one token of each row, k (rows, heads, d) and v (rows, heads, d_v), into all of
        ``entries`` (rows, heads or 1, n).
        """
        entries = entries.expand(*k.shape[:2], -1)  # (rows, heads, n)
        for table, token in ((self.k, k), (self.v, v)):
            index = entries[..., None].expand(*entries.shape, token.shape[-1])
            table.scatter_(2, index, token[:, :, None].expand_as(index))

    def _fill(self, positions, token_index, k, v):
        """Write a prompt, k (rows, heads, L, d) and v (rows, heads, L, d_v): entry i is the token
        at ``positions[…, i]`` (rows, heads or 1, n), anything where that is negative.

        token_index (rows, L): which token of the prompt is at a position.
        """
        tokens = token_index.gather(1, positions.clamp(min=0).flatten(1)).view(positions.shape)
        tokens = tokens.expand(*k.shape[:2], -1)  # (rows, heads, n)
        n = tokens.shape[-1]
        self.k[:, :, :n] = gather_entries(k, tokens)
        self.v[:, :, :n] = gather_entries(v, tokens)


class StrictCache(Cache):
    """LSH attention in the strict window: per row, head and round a ring for each bucket, of its
    last ``chunk_length`` members.

    Rings hold positions. Keys and values are stored once per position, in ``capacity`` entries, or,
    where that is less, once per round, in the order of the rings.
    """

    def __init__(self, rows, heads, options, n_buckets, d, d_v, capacity, like):
        self.options = options
        ring_size = n_buckets * options.chunk_length
        self.by_position = capacity <= options.n_hashes * ring_size
        size = capacity if self.by_position else options.n_hashes * ring_size
        super().__init__(rows, heads, size, d, d_v, like)
        shape = (rows, heads, options.n_hashes)
        self.members = like.new_full((*shape, ring_size), -1, dtype=torch.int32)  # −1: empty
        self.counts = like.new_zeros((*shape, n_buckets), dtype=torch.int32)

    def append(self, q, v, buckets, positions):
        """Add one token to each row: q (rows, heads, d), v (rows, heads, d_v), buckets (rows,
        heads, n_hashes), positions (rows,).
        """
        chunk_length = self.options.chunk_length
        bucket = buckets.long()[..., None]  # (rows, heads, n_hashes, 1)
        count = self.counts.gather(-1, bucket)
        ring_index = bucket * chunk_length + count % chunk_length  # replaces the oldest member
        self.members.scatter_(-1, ring_index, positions.int().view(-1, 1, 1, 1).expand_as(count))
        self.counts.scatter_add_(-1, bucket, torch.ones_like(count))
        entries = positions.view(-1, 1, 1) if self.by_position else self._round_entries(ring_index)
        self._write(entries, normalize_keys(q, self.options.norm_eps), v)

    def attend(self, q, v, buckets):
        """Attention of the next token of each row, (rows, heads, d_v), from its q, v and buckets."""
        o = self.options
        # 1. The rings of its buckets, one per round.
        ring = torch.arange(o.chunk_length, device=q.device)
        ring_index = buckets.long()[..., None] * o.chunk_length + ring
        members = self.members.gather(-1, ring_index)  # (rows, heads, n_hashes, chunk_length)
        visible = members >= 0
        # 2. With count_once, a key counts in the first round that shows it.
        if o.count_once:
            for r in range(1, o.n_hashes):
                earlier = members[:, :, :r].flatten(2)  # (rows, heads, r·chunk_length)
                seen = members[:, :, r, :, None] == earlier[:, :, None]
                visible[:, :, r] &= ~seen.any(-1)
        # 3. Attention over all rounds at once; a token sees itself only if it sees nothing else.
        by_position = members.clamp(min=0).long().flatten(2)
        entries = by_position if self.by_position else self._round_entries(ring_index)
        keys = gather_entries(self.k, entries)
        values = gather_entries(self.v, entries)
        visible = visible.flatten(2)  # (rows, heads, n_hashes·chunk_length)
        return attend_one(q, keys, values, visible, o.scale_for(q.shape[-1]), only_self=v)

    def fill(self, q, k, v, buckets, positions, mask):
        """Add a whole prompt: q (rows, heads, L, d), v (rows, heads, L, d_v), buckets (rows, heads,
        n_hashes, L), positions and mask (rows, L).
        """
        chunk_length, ring_size = self.options.chunk_length, self.members.shape[-1]
        buckets = buckets.long()
        rank, counts = bucket_ranks(buckets, mask, self.counts.shape[-1])
        self.counts.copy_(counts)
        # The last members of every bucket go into its ring, all others into an extra entry.
        is_recent = rank >= counts.gather(-1, buckets) - chunk_length
        ring_index = buckets * chunk_length + rank % chunk_length
        ring_index = torch.where(is_recent & mask[:, None, None], ring_index, ring_size)
        members = self.members.new_full((*self.members.shape[:3], ring_size + 1), -1)
        members.scatter_(-1, ring_index, positions[:, None, None].expand_as(ring_index).int())
        self.members.copy_(members[..., :-1])
        token_index = index_by_position(positions, mask)
        wanted = self.members.flatten(2).long()
        if self.by_position:
            wanted = all_positions(token_index, self.k.shape[2])
        self._fill(wanted, token_index, normalize_keys(q, self.options.norm_eps), v)

    def _round_entries(self, ring_index):
        """Entries of the table, (rows, heads, n_hashes·n), for ring_index (rows, heads, n_hashes,
        n).
        """
        rounds = torch.arange(self.options.n_hashes, device=ring_index.device)
        return (ring_index + (rounds * self.members.shape[-1])[:, None]).flatten(2)


class LocalCache(Cache):
    """Local attention: a ring of the last ``chunks_before`` + 1 chunks of every row."""

    def __init__(self, rows, heads, options, d, d_v, capacity, like):
        self.options = options
        size = min(options.chunk_length * (options.chunks_before + 1), capacity)
        super().__init__(rows, heads, size, d, d_v, like)

    def append(self, k, v, positions):
        """Add one token to each row: k (rows, heads, d), v (rows, heads, d_v), positions (rows,)."""
        ring_index = positions % self.k.shape[2]
        self._write(ring_index.view(-1, 1, 1), k, v)

    def attend(self, q, positions):
        """Attention of the tokens at ``positions``, which were appended before: (rows, heads, d_v)."""
        o = self.options
        key_position = self._positions(positions)  # (rows, size)
        first = (positions // o.chunk_length - o.chunks_before) * o.chunk_length
        visible = (key_position >= 0) & (key_position >= first[:, None])
        return attend_one(q, self.k, self.v, visible[:, None], o.scale_for(q.shape[-1]))

    def fill(self, q, k, v, buckets, positions, mask):
        """Add a whole prompt: k (rows, heads, L, d), v (rows, heads, L, d_v)."""
        wanted = self._positions(mask.sum(1) - 1)[:, None]  # (rows, 1, size)
        self._fill(wanted, index_by_position(positions, mask), k, v)

    def _positions(self, last):
        """Position of every entry, (rows, size), if ``last`` (rows,) is the latest; negative:
        empty.
        """
        size = self.k.shape[2]
        entry = torch.arange(size, device=last.device)
        return last[:, None] - (last[:, None] - entry) % size


class DenseCache(Cache):
    """Dense attention: all positions. The only cache whose work grows with the length."""

    def __init__(self, rows, heads, scale, norm_eps, shared, d, d_v, capacity, like):
        self.scale, self.norm_eps, self.shared = scale, norm_eps, shared
        super().__init__(rows, heads, capacity, d, d_v, like)

    def append(self, k, v, positions):
        """Add one token to each row; k is q where queries are keys."""
        self._write(positions.view(-1, 1, 1), self._keys(k), v)

    def attend(self, q, v, positions, longest):
        """Attention of the tokens at ``positions``, which were appended before: (rows, heads, d_v).

        longest: entries in use in the longest row.
        """
        key_position = torch.arange(longest, device=q.device)
        last = positions[:, None]
        visible = key_position < last if self.shared else key_position <= last  # (rows, longest)
        only_self = v if self.shared else None
        keys, values = self.k[:, :, :longest], self.v[:, :, :longest]
        return attend_one(q, keys, values, visible[:, None], self.scale, only_self)

    def fill(self, q, k, v, buckets, positions, mask):
        """Add a whole prompt."""
        token_index = index_by_position(positions, mask)
        wanted = all_positions(token_index, self.k.shape[2])
        self._fill(wanted, token_index, self._keys(q if self.shared else k), v)

    def _keys(self, x):
        return normalize_keys(x, self.norm_eps) if self.shared else x


def attend_one(q, k, v, visible, scale, only_self=None):
    """Attention of one query per row and head: (rows, heads, d_v).

    q (rows, heads, d), k (rows, heads, n, d), v (rows, heads, n, d_v), visible bool (rows, heads or
    1, n). Where nothing is visible: ``only_self`` (rows, heads, d_v), else zeros.
    """
    out, _ = attend(q[..., None, :], k, v, visible[..., None, :], scale)
    out = out.squeeze(-2)
    if only_self is None:
        return out
    return torch.where(visible.any(-1, keepdim=True), out, only_self)


def gather_entries(table, entries):
    """table (rows, heads, size, d) at ``entries`` (rows, heads, n): (rows, heads, n, d)."""
    return table.gather(2, entries[..., None].expand(*entries.shape, table.shape[-1]))


def bucket_ranks(buckets, mask, n_buckets):
    """(rank, counts): how many earlier real tokens share a token's bucket, (rows, heads, n_hashes,
    L); members of each bucket, (rows, heads, n_hashes, n_buckets).
    """
    # In sorted order, the rank is the distance to the first slot of the bucket.
    order = sort_by_bucket(buckets, mask[:, None].expand(*buckets.shape[:2], -1))
    sorted_buckets = buckets.gather(-1, order)
    slot = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    changes = sorted_buckets[..., 1:] != sorted_buckets[..., :-1]
    is_first = torch.nn.functional.pad(changes, (1, 0), value=True)
    first_slot = torch.where(is_first, slot, 0).cummax(-1).values
    rank = torch.empty_like(slot).scatter_(-1, order, slot - first_slot)
    ones = mask[:, None, None].expand(buckets.shape).int()
    counts = ones.new_zeros(*buckets.shape[:3], n_buckets).scatter_add_(-1, buckets, ones)
    return rank, counts


def index_by_position(positions, mask):
    """Index of the real token at each position: int64 (rows, L), 0 where there is none."""
    rows, length = positions.shape
    index = torch.arange(length, device=positions.device).expand_as(positions)
    out = positions.new_zeros(rows, length + 1)  # the last column is for padding
    return out.scatter_(1, torch.where(mask, positions, length), index)[:, :-1]


def all_positions(token_index, size):
    """Positions 0, 1, 2, … of a padded prompt that fit into a table: (rows, 1, n)."""
    n = min(token_index.shape[1], size)
    return torch.arange(n, device=token_index.device).expand(len(token_index), 1, n)
