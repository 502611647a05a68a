"""What a decoder keeps of the past, layer by layer: enough for the next token, and no more than
fits in fixed memory.

A *row* is one sequence of the batch; rows may have different lengths. Every cache keeps keys and
values in a table of fixed size and knows at which position of its row each entry stands. Tables are
made once; nothing grows.
"""

import torch

from reformer_ref.attention.pytorch import attend
from reformer_ref.chunking.pytorch import sort_by_bucket
from reformer_ref.lsh_attention.streaming import inverse_length


class _Table:
    """Keys (rows, heads, size, d) and values (rows, heads, size, d_v) of a layer."""

    def __init__(self, rows, heads, size, d, d_v, like):
        self.k, self.v = (
            like.new_zeros(rows, heads, size, d),
            like.new_zeros(rows, heads, size, d_v),
        )

    def _write(self, at, k, v):
        """k (rows, heads, d), v (rows, heads, d_v) into the entries ``at`` (rows, heads or 1, n),
        each of them.
        """
        shape = (*k.shape[:2], at.shape[-1])
        for table, new in ((self.k, k), (self.v, v)):
            index = at.expand(shape)[..., None].expand(*shape, new.shape[-1])
            table.scatter_(2, index, new[:, :, None].expand_as(index))

    def _read_all(self, wanted, token_at, k, v):
        """Fill the table: entry i gets what stands at position wanted[…, i] (rows, heads or 1,
        size), if ≥ 0.

        k (rows, heads, L, d), v (rows, heads, L, d_v); token_at (rows, positions): which of the L
        stands there.
        """
        shape = (*k.shape[:2], wanted.shape[-1])
        index = (
            token_at.gather(1, wanted.clamp(min=0).flatten(1))
            .view(wanted.shape)
            .expand(shape)[..., None]
        )
        for table, x in ((self.k, k), (self.v, v)):
            table[:, :, : shape[-1]] = x.gather(2, index.expand(*shape, x.shape[-1]))

    def tensors(self):
        """Names and tensors of everything that is kept."""
        return {name: x for name, x in vars(self).items() if isinstance(x, torch.Tensor)}

    def repeat(self, n):
        """Every row n times, one copy after the other."""
        for name, x in self.tensors().items():
            setattr(self, name, x.repeat_interleave(n, 0))


class StrictCache(_Table):
    """LSH attention in the strict window: per row, head and round, the last ``chunk_length``
    members of every bucket.

    Rings hold positions. Keys and values stand once per position, in ``capacity`` entries, or,
    where that is less, in the rings themselves, once per round.
    """

    def __init__(self, rows, heads, options, n_buckets, d, d_v, capacity, like):
        self.options, self.n_rings = options, n_buckets
        ring = n_buckets * options.chunk_length
        self.by_position = capacity <= options.n_hashes * ring
        super().__init__(
            rows, heads, capacity if self.by_position else options.n_hashes * ring, d, d_v, like
        )
        shape = (rows, heads, options.n_hashes)
        self.members = like.new_full(
            (*shape, ring), -1, dtype=torch.int32
        )  # positions; −1: nobody yet
        self.counts = like.new_zeros((*shape, n_buckets), dtype=torch.int32)

    def append(self, q, v, buckets, positions):
        """One token more in each row: q (rows, heads, d), v, buckets (rows, heads, n_hashes),
        positions (rows,).
        """
        bucket = buckets.long()[..., None]
        count = self.counts.gather(-1, bucket)
        place = (
            bucket * self.options.chunk_length + count % self.options.chunk_length
        )  # the oldest member gives way
        self.members.scatter_(-1, place, positions.int().view(-1, 1, 1, 1).expand_as(place))
        self.counts.scatter_add_(-1, bucket, torch.ones_like(count))
        self._write(
            positions.view(-1, 1, 1) if self.by_position else self._entries(place).flatten(2),
            unit_keys(q, self.options.norm_eps),
            v,
        )

    def attend(self, q, v, buckets):
        """What the next token of each row sees: (rows, heads, d_v). q (rows, heads, d), v and
        buckets are its own.
        """
        o = self.options
        ring = torch.arange(o.chunk_length, device=q.device)
        place = (
            buckets.long()[..., None] * o.chunk_length + ring
        )  # (rows, heads, n_hashes, chunk_length)
        members = self.members.gather(-1, place)
        visible = members >= 0
        if o.count_once:
            for h in range(1, o.n_hashes):  # a key counts in the first round that shows it
                before = members[:, :, :h].flatten(2)[:, :, None]
                visible[:, :, h] &= ~(members[:, :, h, :, None] == before).any(-1)
        entries = (
            members.clamp(min=0).long() if self.by_position else self._entries(place)
        ).flatten(2)
        return attend_one(q, self, entries, visible.flatten(2), o.scale_for(q.shape[-1]), alone=v)

    def fill(self, q, k, v, buckets, positions, mask):
        """Everything of the prompt: q (rows, heads, L, d), buckets (rows, heads, n_hashes, L),
        positions (rows, L).
        """
        o, real = self.options, mask[:, None, None].expand(buckets.shape)
        rank, total = _ranks(buckets.long(), mask, self.n_rings)
        self.counts.copy_(total)
        latest = real & (rank >= total.gather(-1, buckets.long()) - o.chunk_length)
        nowhere = self.members.shape[-1]
        place = torch.where(
            latest, buckets.long() * o.chunk_length + rank % o.chunk_length, nowhere
        )
        members = self.members.new_full((*self.members.shape[:3], nowhere + 1), -1)
        members.scatter_(-1, place, positions[:, None, None].expand(place.shape).int())
        self.members.copy_(members[..., :-1])
        token_at = _token_at(positions, mask)
        wanted = (
            _all_positions(token_at, self) if self.by_position else self.members.flatten(2).long()
        )
        self._read_all(wanted, token_at, unit_keys(q, o.norm_eps), v)

    def _entries(self, place):
        """Entries of the table for places in the rings (rows, heads, n_hashes, n), one run of rings
        per round.
        """
        rounds = torch.arange(self.options.n_hashes, device=place.device)
        return place + (rounds * self.members.shape[-1])[:, None]


class LocalCache(_Table):
    """Local attention: the last ``chunks_before`` + 1 chunks of every row."""

    def __init__(self, rows, heads, options, d, d_v, capacity, like):
        self.options = options
        super().__init__(
            rows,
            heads,
            min(options.chunk_length * (options.chunks_before + 1), capacity),
            d,
            d_v,
            like,
        )

    def append(self, k, v, positions):
        """One token more in each row: k (rows, heads, d), v (rows, heads, d_v), positions (rows,)."""
        self._write((positions % self.k.shape[2]).view(-1, 1, 1), k, v)

    def attend(self, q, positions):
        """What the token at ``positions`` (rows,), appended before, sees: (rows, heads, d_v)."""
        o = self.options
        stands, first = (
            self._stands(positions),
            (positions // o.chunk_length - o.chunks_before) * o.chunk_length,
        )
        visible = (stands >= 0) & (stands >= first[:, None])
        return attend_one(
            q, self, None, visible[:, None].expand(*q.shape[:2], -1), o.scale_for(q.shape[-1])
        )

    def fill(self, q, k, v, buckets, positions, mask):
        """Everything of the prompt: k (rows, heads, L, d), v (rows, heads, L, d_v), positions
        (rows, L).
        """
        self._read_all(self._stands(mask.sum(1) - 1)[:, None], _token_at(positions, mask), k, v)

    def _stands(self, last):
        """Position of every entry, (rows, size), when ``last`` (rows,) is the latest; negative:
        nothing yet.
        """
        size = self.k.shape[2]
        entry = torch.arange(size, device=last.device)
        return last[:, None] - (last[:, None] - entry) % size


class DenseCache(_Table):
    """Dense attention: everything. The only cache whose work grows with the length."""

    def __init__(self, rows, heads, scale, norm_eps, shared, d, d_v, capacity, like):
        self.scale, self.norm_eps, self.shared = scale, norm_eps, shared
        super().__init__(rows, heads, capacity, d, d_v, like)

    def append(self, k, v, positions):
        """One token more in each row; k is q where queries are keys."""
        self._write(positions.view(-1, 1, 1), self._keys(k), v)

    def attend(self, q, v, positions):
        """What the token at ``positions`` (rows,), appended before, sees: (rows, heads, d_v)."""
        longest = int(positions.max()) + 1
        stands = torch.arange(longest, device=q.device)
        visible = (stands < positions[:, None]) if self.shared else (stands <= positions[:, None])
        visible = visible[:, None].expand(*q.shape[:2], -1)
        return attend_one(
            q, self, slice(longest), visible, self.scale, alone=v if self.shared else None
        )

    def fill(self, q, k, v, buckets, positions, mask):
        """Everything of the prompt."""
        token_at = _token_at(positions, mask)
        self._read_all(
            _all_positions(token_at, self), token_at, self._keys(q if self.shared else k), v
        )

    def _keys(self, x):
        return unit_keys(x, self.norm_eps) if self.shared else x


def unit_keys(x, norm_eps):
    """x (…, d) at length one, as in the streaming core: x / √(‖x‖² + d·norm_eps)."""
    inverse = inverse_length(x.reshape(-1, x.shape[-1]), norm_eps)
    return (x * inverse.view(*x.shape[:-1], 1)).to(x.dtype)


def attend_one(q, table, entries, visible, scale, alone=None):
    """One query per row and head: (rows, heads, d_v).

    q (rows, heads, d); entries of the table: None for all, a slice, or int64 (rows, heads, n);
    visible bool (rows, heads, n). Where nothing is visible: ``alone`` (rows, heads, d_v), else
    zeros.
    """
    if isinstance(entries, torch.Tensor):
        k, v = (
            x.gather(2, entries[..., None].expand(*entries.shape, x.shape[-1]))
            for x in (table.k, table.v)
        )
    else:
        k, v = (x if entries is None else x[:, :, entries] for x in (table.k, table.v))
    out, _ = attend(q[..., None, :], k, v, visible[..., None, :], scale)
    out = out.squeeze(-2)
    return out if alone is None else torch.where(visible.any(-1, keepdim=True), out, alone)


def _ranks(buckets, mask, n_buckets):
    """How many earlier real tokens share a token's bucket, (rows, heads, n_hashes, L); members of
    each bucket.
    """
    order = sort_by_bucket(buckets, mask[:, None].expand(*buckets.shape[:2], -1))
    sorted_buckets = buckets.gather(-1, order)
    slot = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    new = torch.nn.functional.pad(
        sorted_buckets[..., 1:] != sorted_buckets[..., :-1], (1, 0), value=True
    )
    first = torch.where(new, slot, 0).cummax(-1).values
    rank = torch.empty_like(slot).scatter_(-1, order, slot - first)
    ones = mask[:, None, None].expand(buckets.shape).int()
    total = ones.new_zeros(*buckets.shape[:3], n_buckets).scatter_add_(-1, buckets, ones)
    return rank, total


def _token_at(positions, mask):
    """Index of the real token at each position: int64 (rows, L), 0 where there is none."""
    at = torch.arange(positions.shape[1], device=positions.device).expand_as(positions)
    out = positions.new_zeros(positions.shape[0], positions.shape[1] + 1)
    return out.scatter_(1, torch.where(mask, positions, positions.shape[1]), at)[:, :-1]


def _all_positions(token_at, table):
    """Positions 0, 1, 2, … of a padded prompt that have an entry in the table: (rows, 1, n)."""
    n = min(token_at.shape[1], table.k.shape[2])
    return torch.arange(n, device=token_at.device).expand(len(token_at), 1, n)
