"""Who stands in which window, and who may see whom: the integer side of LSH attention.

The sorted orders of all rounds are cut into chunks once; then everything is asked for one block of
chunks at a time, so that nothing of size O(L · chunk_length) need exist. A pair's visibility comes
as a float penalty, 0 = visible, 1 or more = hidden, that the matrix product of the scores takes in:
on a CPU a tenth of the cost of filling masks.

A *row* is a token of the flattened batch; the last row, number B·L, is nobody: it fills chunks that
are not full. Row = sequence·L + position; with ``heads`` > 1, row = (batch·L + position)·heads +
head, as a projection leaves its heads in memory, so that they need not be copied apart.
"""

from dataclasses import replace

import torch

from reformer_ref._arguments import require_room
from reformer_ref._blocks import block_starts
from reformer_ref.chunking.pytorch import sort_by_bucket, split_chunks, undo_sort

EXACT_FLOAT32 = 1 << 22  # places up to here, and their halves, are exact in float32


class Windows:
    """The sorted orders of B sequences of length L, and what is needed to say who may see whom.

    buckets: int (B, n_hashes, L). padding_mask: bool (B, L) or None. heads: see above, divides B.
    see_self: whether a token sees itself like any other. dtype: of the penalties.
    """

    def __init__(
        self, buckets, options, padding_mask=None, *, heads=1, see_self=False, dtype=torch.float32
    ):
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
        rows = torch.where(chunks < 0, self.nobody, chunks * heads + first)
        self.rows, self.key_rounds = self._look_around(
            rows.to(torch.int32 if self.nobody < 2**31 else torch.int64)
        )
        self.real = None if padding_mask is None else self._in_rows(padding_mask)
        if padding_mask is not None:  # padding has a bucket of its own
            buckets = buckets.long().masked_fill(~padding_mask[:, None], -1)
        self._tables(buckets, order)

    def _look_around(self, rows):
        """Rows (B, n_hashes, n_chunks, chunk_length) with what the outermost chunks look at, (…,
        n_chunks + width − 1, chunk_length): nobody or, on a ring, another round; and the round of
        each, (n_hashes, n_chunks + width − 1).
        """
        o, n = self.options, self.n_chunks
        in_a_round = {
            "n_chunks + chunks_before + chunks_after": n + o.width - 1,
            "chunk_length": o.chunk_length,
        }
        if not torch.compiler.is_compiling():
            require_room(sequences=self.batch, n_hashes=o.n_hashes, **in_a_round)
        chunk = torch.arange(-o.chunks_before, n + o.chunks_after, device=rows.device)
        number = chunk + n * torch.arange(o.n_hashes, device=rows.device)[:, None]
        number = (
            number % (o.n_hashes * n)
            if o.wrap
            else number.masked_fill((chunk < 0) | (chunk >= n), o.n_hashes * n)
        )
        chunks = torch.nn.functional.pad(rows.flatten(1, 2), (0, 0, 0, 1), value=self.nobody)
        return chunks[:, number], number // n

    def _tables(self, buckets, order):
        """What penalties are made of, one number per row (last: nobody): position, bucket, place in
        sorted order.
        """
        o, device = self.options, buckets.device
        far = (
            2.0 * self.length + 2
        )  # the position of keys that nobody may see, if the position alone decides
        position = torch.arange(self.length, device=device, dtype=self.dtype)
        position = self._in_rows(position.expand(self.batch, self.length))
        hidden = torch.zeros(self.nobody + 1, dtype=self.dtype, device=device)
        hidden[-1] = 1
        if self.real is not None:
            hidden[:-1] = ~self.real
        self.position = torch.cat([position, position.new_full((1,), far)])
        self.key_position = (
            torch.where(hidden > 0, far, self.position) if o.causal else self.position
        )
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
        """Every block, all rounds of a sequence in turn: a run of its chunks, or several whole
        sequences.
        """
        per_chunk, n = self.options.chunk_length**2 * self.options.width, self.n_chunks
        step = max(1, scores_at_a_time // per_chunk)
        sequences = max(1, step // n)
        run = -(-n // -(-n // min(step, n)))  # runs of about equal length
        for b in block_starts(self.batch, sequences):  # outside: one sequence may stay in a cache
            for h in range(self.options.n_hashes):
                for first in block_starts(n, run):
                    yield self.block(
                        h, slice(b, min(b + sequences, self.batch)), first, min(first + run, n)
                    )

    def block(self, h, sequences, first, last):
        """The ``Block`` of chunks first … last − 1 in round h of some sequences."""
        looked_at = slice(first, last + self.options.width - 1)
        return Block(
            h, self.rows[sequences, h, looked_at].long(), self.key_rounds[h, looked_at], self
        )

    def penalty(self, block, scratch):
        """(m, chunk_length, width·chunk_length): 0 where query i may see key j, 1 or more where it
        may not.

        With ``count_once`` a pair is hidden where an earlier place shows it. The self rule of last
        resort is not here: a token never sees itself unless ``see_self``. It stands in ``scratch``
        under the name "scores".
        """
        o, h = self.options, block.round
        i, j = self._pairs(block, self.position, self.key_position)
        if o.causal:
            penalty = scratch.pairs("scores", torch.gt if self.see_self else torch.ge, j, i)
        else:
            penalty = scratch.pairs("scores", torch.eq, i, j)
            if self.see_self:
                penalty.zero_()
            penalty.add_(block.spread(pick(self.key_hidden, block.keys))[:, None])
        if o.within_bucket:
            i, j = self._pairs(block, self.bucket[h])
            if o.wrap:
                elsewhere = (block.key_rounds != h)[None, :, None].expand(block.keys.shape)
                j = j.masked_fill(block.spread(elsewhere)[:, None], -2.0)
            penalty.add_(scratch.pairs("pairs", torch.ne, i, j))
        if o.window == "rank":
            at = torch.arange(2 * o.chunk_length, device=penalty.device, dtype=self.dtype)
            distance = at[: o.chunk_length, None] + o.chunk_length - at  # slot_i − slot_j
            penalty.add_((distance > o.chunk_length).to(self.dtype))
        if o.count_once and o.wrap:
            penalty.add_(self._seen_on_ring(block).to(self.dtype))
        elif o.count_once:
            self._hide_seen(penalty, block, scratch)
        return penalty

    def _pairs(self, block, of_query, of_key=None):
        """What a table says of the queries, (m, chunk_length, 1), and of the keys, (m, 1,
        width·chunk_length).
        """
        j = block.spread(pick(of_query if of_key is None else of_key, block.keys))
        return pick(of_query, block.queries).flatten(0, 1)[..., None], j[:, None]

    def _hide_seen(self, penalty, block, scratch):
        """Add 1 for every earlier round that shows the pair too, in place."""
        o = self.options
        low, high = (
            (1, o.chunk_length) if o.window == "rank" else (-o.chunks_after, o.chunks_before)
        )
        for s in range(block.round):
            i, j = self._pairs(block, self.place[s])
            apart = scratch.pairs("seen", torch.sub, i.sub((low + high) / 2), j)
            seen = apart.abs_().le_((high - low) / 2)  # inside the window of round s
            if o.within_bucket:
                i, j = self._pairs(block, self.bucket[s])
                seen.mul_(scratch.pairs("pairs", torch.eq, i, j))
            penalty.add_(seen)

    def _seen_on_ring(self, block):
        """The same with wrap, where a window may reach into other rounds and may hold a key twice:
        bool, plainly.
        """
        o, chunks, again = self.options, self.options.n_hashes * self.n_chunks, False
        chunk = [
            self._pairs(block, self.place[s].long() + s * self.n_chunks) for s in range(o.n_hashes)
        ]
        which = torch.arange(o.width * o.chunk_length, device=block.keys.device) // o.chunk_length
        for s in range(block.round + 1):
            for number, offset in enumerate(range(-o.chunks_before, o.chunks_after + 1)):
                target = (chunk[s][0] + offset) % chunks
                for t in [s] if o.within_bucket else range(o.n_hashes):
                    here = target == chunk[t][1]
                    if o.within_bucket:
                        i, j = self._pairs(block, self.bucket[s])
                        here &= i == j
                    again |= here if s < block.round else here & (which > number)
        return again


class Block:
    """Some chunks of one round with the chunks that they look at, each key's row standing here
    once.

    queries (s, n, chunk_length) and keys (s, n + width − 1, chunk_length): rows, int64, of s
    sequences; m = s·n windows. key_rounds (n + width − 1): the round that each chunk of keys
    belongs to, another one only on a ring.
    """

    def __init__(self, number, keys, key_rounds, windows):
        self.round, self.keys, self.key_rounds, self.width = (
            number,
            keys,
            key_rounds,
            windows.options.width,
        )
        self.before = windows.options.chunks_before
        self.queries = self.own(keys)
        self.readable = keys.clamp(
            max=windows.nobody - 1
        )  # for nobody the last row is read, and its penalty hides it

    def own(self, x):
        """x (s, n + width − 1, chunk_length, …), one per key -> (s, n, chunk_length, …), one per
        query: a view.
        """
        return x.narrow(1, self.before, x.shape[1] - self.width + 1)

    def take(self, x):
        """x (N, …) at the keys: (s, n + width − 1, chunk_length, …)."""
        return pick(x, self.readable)

    def spread(self, x):
        """x (s, n + width − 1, chunk_length, …), one per key -> one per place in a window (m,
        width·chunk_length, …).

        Windows overlap in memory where one sequence stands in the block: nothing is copied then.
        """
        if self.width == 1:
            return x.flatten(0, 1)
        x, (s, n, chunk_length) = x.contiguous(), self.queries.shape
        shape, strides = (s, n, self.width * chunk_length, *x.shape[3:]), x.stride()
        return x.as_strided(shape, strides).flatten(0, 1)

    def fold(self, x):
        """Sums over the places of each key: x (m, width·chunk_length, d) -> (s, n + width − 1,
        chunk_length, d).
        """
        s, n, chunk_length = self.queries.shape
        x = x.view(s, n, self.width, chunk_length, -1)
        if self.width == 1:
            return x[:, :, 0]
        total = x.new_empty(*self.keys.shape, x.shape[-1])
        total[:, :n], total[:, n:] = x[:, :, 0], 0
        for offset in range(1, self.width):
            total[:, offset : offset + n] += x[:, :, offset]
        return total


def pick(table, index):
    """table[index] for an index of any shape, several times faster on a CPU."""
    return table.index_select(0, index.flatten()).view(*index.shape, *table.shape[1:])
