"""Which keys each chunk can attend to: the integer side of LSH attention, as plain tensors.

A *row* is one token of the flattened batch: row = sequence·L + position. With ``heads`` > 1 it is
(batch·L + position)·heads + head, the order in which a projection leaves its heads in memory, so
that heads need not be copied apart. Row N = B·L is the padding row: it fills the slots of chunks
that are not full, and nothing attends to it.

The keys that query i can attend to in round r stand in consecutive slots of the sorted order,
first[r, i] … last[r, i]. This one fact covers buckets, chunk windows and rank windows.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from reformer_ref._blocks import block_starts
from reformer_ref.chunking.pytorch import sort_by_bucket, split_chunks, undo_sort

EXACT_FLOAT32 = 1 << 22  # slots up to here, and their halves, are exact in float32


@dataclass
class Layout:
    """The sorted and chunked rows of B sequences of length L, and a table entry for each row.

    Tables hold float numbers, because comparisons of floats are several times faster on a CPU.
    """

    options: object  # LSHOptions or LocalOptions
    chunk_length: int  # at most L
    see_self: bool  # whether a token attends to itself as to any other
    key_rows: Tensor  # int (B, n_hashes, n_chunks + width − 1, chunk_length)
    key_rounds: Tensor  # int (n_hashes, n_chunks + width − 1): the round that a chunk comes from
    position: Tensor  # (N + 1,)
    key_position: Tensor  # (N + 1,): ``beyond`` for padding
    beyond: float  # larger than any position
    slot: Tensor | None  # (n_hashes, N + 1)
    first: Tensor | None  # (n_hashes, N + 1)
    last: Tensor | None  # (n_hashes, N + 1)
    real: Tensor | None  # bool (N,): no padding


@dataclass
class Block:
    """Consecutive chunks of one round in s sequences, with the chunks that they attend to."""

    round: int
    query_rows: Tensor  # int64 (s, n, chunk_length)
    key_rows: Tensor  # int64 (s, n + width − 1, chunk_length): each key once
    key_rounds: Tensor  # int (n + width − 1)
    readable: Tensor  # key_rows, with the last row for the padding row, which the mask hides


def bucket_layout(
    buckets, options, padding_mask=None, *, heads=1, see_self=False, dtype=torch.float32
):
    """The ``Layout`` of buckets (B, n_hashes, L), padding_mask bool (B, L), tables of ``dtype``."""
    n_sequences, n_hashes, length = buckets.shape
    n_rows = n_sequences * length
    if length > EXACT_FLOAT32:
        dtype = torch.float64

    def in_row_order(values):  # (…, B, L) -> (…, N)
        return values.unflatten(-2, (-1, heads)).transpose(-1, -2).flatten(-3)

    # 1. Sort by bucket, padding last, and cut the order into chunks.
    chunk_length = min(options.chunk_length, length)
    order = sort_by_bucket(buckets, padding_mask)  # (B, n_hashes, L)
    chunks = split_chunks(order, chunk_length)  # (B, n_hashes, n_chunks, chunk_length)

    # 2. Number the rows: positions become rows, free slots the padding row.
    sequence = torch.arange(n_sequences, device=order.device).view(-1, 1, 1, 1)
    first_row = sequence // heads * (heads * length) + sequence % heads
    rows = torch.where(chunks < 0, n_rows, chunks * heads + first_row)
    rows = rows.to(torch.int32 if n_rows < 2**31 else torch.int64)
    key_rows, key_rounds = _with_neighbours(rows, options, n_rows)

    # 3. Tables of positions. Keys that are padding stand beyond every query.
    beyond = 2.0 * length + 2
    position = torch.arange(length, device=order.device, dtype=dtype)
    position = in_row_order(position.expand(n_sequences, length))
    key_position = position
    real = None
    if padding_mask is not None:
        real = in_row_order(padding_mask)
        key_position = position.masked_fill(~real, beyond)
        # Padding is a bucket of its own.
        buckets = buckets.long().masked_fill(~padding_mask[:, None], -1)
    position = F.pad(position, (0, 1), value=beyond)
    key_position = F.pad(key_position, (0, 1), value=beyond)

    # 4. Tables of slots, where the window alone does not say which keys are visible.
    slot = first = last = None
    if options.within_bucket or (options.count_once and (n_hashes > 1 or options.wrap)):
        slot = undo_sort(order)
        first, last = _visible_slots(slot, order, buckets, options, chunk_length)
        if options.within_bucket and padding_mask is not None:
            last = last.masked_fill(~padding_mask[:, None], -1)  # padding attends to nothing
        slot, first, last = (
            F.pad(in_row_order(table.transpose(0, 1).to(dtype)), (0, 1), value=padding_entry)
            for table, padding_entry in ((slot, beyond), (first, -1.0), (last, -1.0))
        )
    return Layout(
        options,
        chunk_length,
        see_self,
        key_rows,
        key_rounds,
        position,
        key_position,
        beyond,
        slot,
        first,
        last,
        real,
    )


def _with_neighbours(rows, options, padding_row):
    """Add to the chunks of each round those that its outermost chunks look at.

    rows (B, n_hashes, n_chunks, chunk_length) -> key_rows and key_rounds of the layout. The added
    chunks hold the padding row or, on a ring, belong to the neighbouring rounds.
    """
    n_hashes, n_chunks = rows.shape[1:3]
    device = rows.device
    chunk = torch.arange(-options.chunks_before, n_chunks + options.chunks_after, device=device)
    # The number of each chunk, counted through all rounds.
    number = chunk + n_chunks * torch.arange(n_hashes, device=device)[:, None]
    if options.wrap:
        number = number % (n_hashes * n_chunks)
    else:
        outside = (chunk < 0) | (chunk >= n_chunks)
        number = number.masked_fill(outside, n_hashes * n_chunks)  # the chunk of padding rows
    chunks = F.pad(rows.flatten(1, 2), (0, 0, 0, 1), value=padding_row)
    return chunks[:, number], number // n_chunks


def _visible_slots(slot, order, buckets, options, chunk_length):
    """The first and last slot that each position can see in each round, int (B, n_hashes, L).

    On a ring they are those of the bucket, wherever the window ends.
    """
    length = slot.shape[-1]
    first = torch.zeros_like(slot)
    last = torch.full_like(slot, length - 1)
    if options.within_bucket:
        in_order = buckets.gather(-1, order)
        slots = torch.arange(length, device=slot.device)
        changes = in_order[..., 1:] != in_order[..., :-1]
        starts = F.pad(changes, (1, 0), value=True)
        start = torch.where(starts, slots, 0).cummax(-1).values  # of the bucket in each slot
        first = start.gather(-1, slot)
        if options.causal:
            last = slot - 1  # buckets are sorted by position
        else:
            ends = F.pad(changes, (0, 1), value=True)
            end = torch.where(ends, slots, length).flip(-1).cummin(-1).values.flip(-1)
            last = end.gather(-1, slot)
    if options.window == "rank":
        first = torch.maximum(first, slot - chunk_length)
    elif not options.wrap:
        chunk = slot // chunk_length
        first = torch.maximum(first, (chunk - options.chunks_before) * chunk_length)
        last = torch.minimum(last, (chunk + options.chunks_after + 1) * chunk_length - 1)
    return first, last


def blocks(layout, block_size):
    """Every ``Block``: as many chunks as make up ``block_size`` scores, at least one.

    Sequences are outermost, so that what one sequence needs can stay in a cache.
    """
    options = layout.options
    n_sequences, n_hashes, n_key_chunks, chunk_length = layout.key_rows.shape
    n_chunks = n_key_chunks - options.width + 1
    chunks_at_once = max(1, block_size // (chunk_length**2 * options.width))
    sequences_at_once = max(1, chunks_at_once // n_chunks)
    n_blocks = -(-n_chunks // min(chunks_at_once, n_chunks))  # of one round of a sequence
    step = -(-n_chunks // n_blocks)  # blocks of about equal length
    for first in block_starts(n_sequences, sequences_at_once):
        for r in range(n_hashes):
            for start in block_starts(n_chunks, step):
                end = min(start + step, n_chunks) + options.width - 1
                key_rows = layout.key_rows[first : first + sequences_at_once, r, start:end].long()
                yield Block(
                    r,
                    query_chunks(key_rows, options),
                    key_rows,
                    layout.key_rounds[r, start:end],
                    key_rows.clamp(max=layout.position.numel() - 2),
                )


def hidden_pairs(layout, block):
    """0 where query i may attend to key j, 1 or more where not: (m, chunk_length, window) floats.

    m = s·n chunks of queries; window = width·chunk_length. Token i itself is hidden, unless
    ``see_self``: the self rule concerns all rounds together.
    """
    options, r = layout.options, block.round
    slots = None
    if layout.slot is not None:
        slots = per_key(block, layout.slot[r], options)
        if options.wrap:  # keys of other rounds are not in this round's bucket
            same_round = unfold_windows(
                (block.key_rounds == r)[None, :, None].expand(block.key_rows.shape), options.width
            )
            slots = slots.masked_fill(~same_round[:, None], layout.beyond)

    # 1. The keys that position rules out. Within a bucket, slots are in the order of positions.
    if options.within_bucket and options.causal:
        hidden = _in_range(layout, block, r, slots, torch.gt)
    elif options.causal:
        later = torch.gt if layout.see_self else torch.ge
        i = per_query(block, layout.position)
        j = per_key(block, layout.key_position, options)
        hidden = compare(later, j, i)
    else:
        i = per_query(block, layout.position)
        j = per_key(block, layout.key_position, options)
        padding = compare(torch.gt, j, torch.full_like(i, layout.beyond - 1))
        hidden = padding if layout.see_self else compare(torch.eq, j, i).add_(padding)

    # 2. The keys of other buckets.
    if options.within_bucket and not options.causal:
        hidden.add_(_in_range(layout, block, r, slots, torch.gt))

    # 3. The keys that an earlier round has shown already.
    if options.count_once and options.wrap:
        hidden.add_(_seen_on_ring(layout, block))
    elif options.count_once:
        for earlier in range(r):
            slots = per_key(block, layout.slot[earlier], options)
            hidden.add_(_in_range(layout, block, earlier, slots, torch.le))
    return hidden


def _in_range(layout, block, r, slots, op):
    """1 where |slot of j − centre| ``op`` radius of what i can see in round r, else 0.

    torch.le: j is in the range; torch.gt: it is not.
    """
    first, last = per_query(block, layout.first[r]), per_query(block, layout.last[r])
    distance = slots - (first + last) / 2
    inside = distance.abs_()
    return compare(op, inside, (last - first) / 2, out=inside)


def _seen_on_ring(layout, block):
    """The pairs seen before on a ring: bool (m, chunk_length, window).

    A window may reach into other rounds and may hold a key twice.
    """
    options = layout.options
    n_hashes, n_key_chunks = layout.key_rounds.shape
    n_chunks = n_key_chunks - options.width + 1

    def chunk(slots, r):  # its number over all rounds
        return slots.long() // layout.chunk_length + r * n_chunks

    query_chunk = [chunk(per_query(block, layout.slot[r]), r) for r in range(n_hashes)]
    key_chunk = [chunk(per_key(block, layout.slot[r], options), r) for r in range(n_hashes)]
    window = torch.arange(options.width * layout.chunk_length, device=block.key_rows.device)
    place = window // layout.chunk_length  # of key j's chunk in the window
    seen = False
    for r in range(block.round + 1):
        for at, offset in enumerate(range(-options.chunks_before, options.chunks_after + 1)):
            looked_at = (query_chunk[r] + offset) % (n_hashes * n_chunks)
            for key_round in [r] if options.within_bucket else range(n_hashes):
                in_window = looked_at == key_chunk[key_round]
                if options.within_bucket:  # buckets are the same where their first slots are
                    i, j = layout.first[r], layout.first[r]
                    in_window &= per_query(block, i) == per_key(block, j, options)
                # In this round only the places before its own come earlier.
                seen |= in_window if r < block.round else in_window & (place > at)
    return seen


def compare(op, a, b, out=None):
    """``op(a, b)``, broadcast, as 1.0 and 0.0: on a CPU seven times faster than as bool."""
    if torch.compiler.is_compiling():
        return op(a, b).to(a.dtype)
    if out is None:
        out = a.new_empty(torch.broadcast_shapes(a.shape, b.shape))
    return op(a, b, out=out)


def gather_rows(table, rows):
    """table[rows] for rows of any shape; several times faster so on a CPU."""
    return table.index_select(0, rows.flatten()).view(*rows.shape, *table.shape[1:])


def per_query(block, table):
    """The entries of the queries: (m, chunk_length, 1)."""
    return gather_rows(table, block.query_rows).flatten(0, 1)[..., None]


def per_key(block, table, options):
    """The entries of the keys: (m, 1, window)."""
    return unfold_windows(gather_rows(table, block.key_rows), options.width)[:, None]


def query_chunks(x, options, dim=1):
    """The chunks of the queries among those of the keys: (s, n + width − 1, …) -> (s, n, …)."""
    return x.narrow(dim, options.chunks_before, x.shape[dim] - options.width + 1)


def unfold_windows(x, width):
    """Each chunk with its neighbours: (s, n + width − 1, chunk_length, …) -> (s·n, window, …).

    Windows overlap in memory: where s = 1, nothing is copied.
    """
    if width == 1:
        return x.flatten(0, 1)
    x = x.contiguous()
    s, n_key_chunks, chunk_length = x.shape[:3]
    shape = (s, n_key_chunks - width + 1, width * chunk_length, *x.shape[3:])
    return x.as_strided(shape, x.stride()).flatten(0, 1)


def fold_windows(x, block):
    """The adjoint of ``unfold_windows``: (m, window, d) -> (s, n + width − 1, chunk_length, d)."""
    s, n, chunk_length = block.query_rows.shape
    x = x.view(s, n, -1, chunk_length, x.shape[-1])
    if x.shape[2] == 1:
        return x[:, :, 0]
    folded = x.new_empty(*block.key_rows.shape, x.shape[-1])
    folded[:, :n] = x[:, :, 0]
    folded[:, n:] = 0
    for offset in range(1, x.shape[2]):
        folded[:, offset : offset + n] += x[:, :, offset]
    return folded
