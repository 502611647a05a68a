"""Who stands in which window, and who may see whom: the integer side of LSH attention.

The sorted orders of all rounds are cut into chunks once; then everything is asked for one block of chunks at a time, so
that nothing of size O(L · chunk_length) need exist. A pair's visibility comes as a float penalty, 0 = visible and
negative = hidden, made of differences and clamps: on a CPU these cost a tenth of comparing integers and filling masks.

A *row* is a token of the flattened batch; the last row, number B·L, is nobody: it fills chunks that are not full. Rows are
ordered by (sequence, position), or, where ``heads`` sequences share memory as (batch, position, head), in that order: so
the heads of a projection need not be copied apart.
"""

from dataclasses import replace

import torch

from reformer_ref.chunking.pytorch import sort_by_bucket, split_chunks, undo_sort

EXACT_FLOAT32 = 1 << 22  # positions up to here, and their halves, are exact in float32


class Windows:
    """The sorted orders of B sequences of length L, and what is needed to say who may see whom.

    buckets: int (B, n_hashes, L). padding_mask: bool (B, L) or None. heads: see above, divides B. see_self: whether a token
    sees itself like any other. dtype: of the penalties.
    """

    def __init__(self, buckets, options, padding_mask=None, *, heads=1, see_self=False, dtype=torch.float32):
        self.batch, _, self.length = buckets.shape
        # chunks longer than the sequence are the sequence
        options = replace(options, chunk_length=min(options.chunk_length, self.length))
        self.options, self.heads, self.see_self = options, heads, see_self
        self.dtype = torch.float64 if self.length > EXACT_FLOAT32 else dtype
        order = sort_by_bucket(buckets, padding_mask)  # (B, n_hashes, L)
        chunks = split_chunks(order, options.chunk_length)  # (B, n_hashes, n_chunks, chunk_length)
        self.n_chunks, self.nobody = chunks.shape[2], self.batch * self.length
        sequence = torch.arange(self.batch, device=order.device).view(-1, 1, 1, 1)
        first = sequence // heads * (heads * self.length) + sequence % heads
        rows = torch.where(chunks < 0, self.nobody, chunks * heads + first).transpose(0, 1)
        self.rows = rows.flatten(1, 2).to(
            torch.int32 if self.nobody < 2**31 else torch.int64
        )  # (n_hashes, B·n_chunks, …)
        self.real = None if padding_mask is None else self._in_rows(padding_mask)
        if padding_mask is not None:  # padding has a bucket of its own
            buckets = buckets.long().masked_fill(~padding_mask[:, None], -1)
        self._tables(buckets, order)

    def _tables(self, buckets, order):
        """What penalties are made of, one number per row (last: nobody): position, bucket, place in the sorted order."""
        o, device = self.options, buckets.device
        far = 2.0 * self.length + 2  # the position of keys that nobody may see, if the position alone decides
        position = torch.arange(self.length, device=device, dtype=self.dtype)
        position = self._in_rows(position.expand(self.batch, self.length))
        hidden = torch.zeros(self.nobody + 1, dtype=self.dtype, device=device)
        hidden[-1] = 1
        if self.real is not None:
            hidden[:-1] = ~self.real
        self.position = torch.cat([position, position.new_full((1,), far)])
        self.key_position = torch.where(hidden > 0, far, self.position) if o.causal else self.position
        self.key_hidden = None if o.causal else hidden
        self.bucket = self.place = None
        if o.within_bucket:  # numbered 0, 1, 2, … in sorted order: small, so exact as floats
            in_order = buckets.gather(-1, order)
            new = (in_order[..., 1:] != in_order[..., :-1]).cumsum(-1)
            rank = torch.nn.functional.pad(new, (1, 0)).to(self.dtype)
            self.bucket = self._per_row(torch.empty_like(rank).scatter_(-1, order, rank))
        if o.count_once and (o.n_hashes > 1 or o.wrap):
            slot = undo_sort(order)
            self.place = self._per_row(slot if o.window == "rank" else slot // o.chunk_length)

    def _in_rows(self, values):
        """values (…, B, L) in the order of rows: (…, B·L)."""
        return values.unflatten(-2, (-1, self.heads)).transpose(-1, -2).flatten(-3)

    def _per_row(self, values):
        """values (B, n_hashes, L) -> (n_hashes, B·L + 1), −1 for nobody."""
        values = self._in_rows(values.to(self.dtype).transpose(0, 1))
        return torch.nn.functional.pad(values, (0, 1), value=-1.0)

    def blocks(self, scores_at_a_time):
        """(round, first, last) for every block of chunks; chunks are numbered b·n_chunks + n."""
        o, total = self.options, self.batch * self.n_chunks
        step = max(1, scores_at_a_time // (o.chunk_length * o.chunk_length * o.width))
        step = -(-total // max(1, -(-total // step)))  # equal blocks
        return [(h, f, min(f + step, total)) for h in range(o.n_hashes) for f in range(0, total, step)]

    def block(self, h, first, last):
        """(queries (n, chunk_length), keys (n, width·chunk_length), rounds of the keys (n, width)): rows, int64."""
        o = self.options
        queries = self.rows[h, first:last].long()
        if o.width == 1:
            return queries, queries, torch.full_like(queries[:, :1], h)
        at = torch.arange(first, last, device=queries.device)
        b, n = at // self.n_chunks, h * self.n_chunks + at % self.n_chunks
        looked_at = n[:, None] + torch.arange(-o.chunks_before, o.chunks_after + 1, device=at.device)  # (n, width)
        ring = looked_at % (o.n_hashes * self.n_chunks)
        rounds = ring // self.n_chunks
        at = (rounds * self.batch + b[:, None]) * self.n_chunks + ring % self.n_chunks
        keys = pick(self.rows.flatten(0, 1), at).long()  # (n, width, chunk_length)
        if not o.wrap:
            outside = looked_at.div(self.n_chunks, rounding_mode="floor") != h
            keys = keys.masked_fill(outside[..., None], self.nobody)
        return queries, keys.flatten(1), rounds

    def penalty(self, h, queries, keys, rounds):
        """(n, chunk_length, width·chunk_length): 0 where query i may see key j, at most −¼ where it may not.

        With ``count_once`` a pair is hidden where an earlier place shows it. The self rule of last resort is not here:
        a token never sees itself unless ``see_self``.
        """
        o = self.options
        i, j = pick(self.position, queries)[..., None], pick(self.key_position, keys)[:, None]
        if o.causal:  # i − j − ½ < 0 hides the key
            penalty = (i - j).sub_(-0.5 if self.see_self else 0.5).clamp_(max=0)
        else:
            penalty = (i - j).abs_().sub_(0.5).clamp_(max=0) if not self.see_self else torch.zeros_like(i - j)
            penalty.sub_(pick(self.key_hidden, keys)[:, None])
        if o.within_bucket:
            bucket_j = pick(self.bucket[h], keys)
            if o.wrap:
                bucket_j = bucket_j.masked_fill((rounds != h).repeat_interleave(o.chunk_length, 1), -2.0)
            penalty.sub_((pick(self.bucket[h], queries)[..., None] - bucket_j[:, None]).abs_())
        if o.window == "rank":
            at = torch.arange(2 * o.chunk_length, device=queries.device, dtype=self.dtype)
            distance = at[: o.chunk_length, None] + o.chunk_length - at  # slot_i − slot_j
            penalty.sub_((distance > o.chunk_length).to(self.dtype))
        if o.count_once and o.wrap:
            penalty.sub_(self._seen_on_ring(h, queries, keys).to(self.dtype))
        elif o.count_once:
            self._hide_seen(penalty, h, queries, keys)
        return penalty

    def _hide_seen(self, penalty, h, queries, keys):
        """Take ¼ from pairs that an earlier round shows too, in place."""
        o = self.options
        low, high = (1, o.chunk_length) if o.window == "rank" else (-o.chunks_after, o.chunks_before)
        middle, half = (low + high) / 2, (high - low) / 2
        for s in range(h):
            place_i, place_j = pick(self.place[s], queries)[..., None], pick(self.place[s], keys)[:, None]
            apart = (place_i.sub(middle) - place_j).abs_().sub_(half).clamp_(min=0)  # 0 inside the window of round s
            if o.within_bucket:
                apart.add_((pick(self.bucket[s], queries)[..., None] - pick(self.bucket[s], keys)[:, None]).abs_())
            penalty.add_(apart.sub_(0.25).clamp_(max=0))

    def _seen_on_ring(self, h, queries, keys):
        """The same with wrap, where a window may reach into other rounds and may hold a key twice: bool, plainly."""
        o, chunks = self.options, self.options.n_hashes * self.n_chunks
        chunk = [self.place[s].long() + s * self.n_chunks for s in range(o.n_hashes)]
        which = torch.arange(keys.shape[1], device=keys.device) // o.chunk_length
        again = torch.zeros(*queries.shape, keys.shape[1], dtype=torch.bool, device=keys.device)
        for s in range(h + 1):
            for number, offset in enumerate(range(-o.chunks_before, o.chunks_after + 1)):
                target = ((chunk[s][queries] + offset) % chunks)[..., None]
                for t in [s] if o.within_bucket else range(o.n_hashes):
                    here = target == chunk[t][keys][:, None]
                    if o.within_bucket:
                        here &= pick(self.bucket[s], queries)[..., None] == pick(self.bucket[s], keys)[:, None]
                    again |= here if s < h else here & (which > number)
        return again


def pick(table, index):
    """table[index] for an index of any shape, several times faster on a CPU."""
    return table.index_select(0, index.flatten()).view(*index.shape, *table.shape[1:])
