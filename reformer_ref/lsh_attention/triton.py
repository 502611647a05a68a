"""LSH attention as fused CUDA kernels, written in Triton: ``pytorch.py``, one tile at a time.

A *tile* is up to BLOCK consecutive slots of one chunk, in one round of one sequence. Each program of
a kernel owns one tile. It looks up the positions in its slots, gathers their rows of q and v, visits
the tiles of its window one after the other, and writes its result back to the rows it came from. No
sorted copy of q, k or v is made, and nothing of size O(L · chunk_length) is stored.

Rounds are separate launches, one after the other. In one round every position belongs to exactly one
tile, so a program can add to the rows of its tile without interfering with any other: there are no
atomic operations, and two runs give the same bits.

Reading order: ``_visible`` (which keys each query can attend to), ``_forward_kernel`` (a softmax that
is corrected as it goes on, as in flash attention), the two backward kernels (which compute the
weights again), then the Python functions that launch them.

Exponentials and logarithms are taken to the base 2. Half precision enters the matrix products as it
is; everything else is float32.
"""

import math

import torch
import triton
import triton.language as tl

from reformer_ref._kernels import INTERPRETED

LOG2E = math.log2(math.e)
_INTERPRETED = tl.constexpr(INTERPRETED)
_MINUS_INFINITY = tl.constexpr(-math.inf)
_INFINITY = tl.constexpr(math.inf)


# Parts of kernels


@triton.jit
def _narrow(x, dtype: tl.constexpr):
    """x in the dtype of a matrix product, rounded to nearest."""
    if _INTERPRETED and dtype == tl.bfloat16:  # the interpreter would cut off
        bits = x.to(tl.float32).to(tl.uint32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        x = (bits & 0xFFFF0000).to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def _dot(a, b):
    """The matrix product a · b in float32.

    Half precision enters tensor cores as it is. They round float32 to TF32 (11 significant bits of
    24), so each factor of a float32 product is split into a TF32 number and the TF32 rest of it, and
    three products are added (tf32x3): nearly exact, for three times the work.
    """
    if _INTERPRETED:  # which gets products in half precision wrong
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, input_precision="tf32x3")


@triton.jit
def _load_rows(table, positions, stride, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows of a table (L, D) at some positions: (BLOCK, BLOCK_D); zeros for position −1."""
    column = tl.arange(0, BLOCK_D)
    at = table + positions[:, None].to(tl.int64) * stride + column[None, :]
    return tl.load(at, mask=(positions[:, None] >= 0) & (column[None, :] < D), other=0.0)


@triton.jit
def _store_rows(table, positions, stride, rows, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write rows (BLOCK, BLOCK_D) to a table (L, D) at some positions, −1 excepted."""
    column = tl.arange(0, BLOCK_D)
    at = table + positions[:, None].to(tl.int64) * stride + column[None, :]
    tl.store(at, rows, mask=(positions[:, None] >= 0) & (column[None, :] < D))


@triton.jit
def _entries(table, positions):
    """The entries of a table (L,) at some positions; 0 for position −1."""
    return tl.load(table + positions, mask=positions >= 0, other=0)


@triton.jit
def _inverse_length(rows, norm_eps, D: tl.constexpr):
    """1 / √(‖x‖² + D · norm_eps) of each row x; 0 for a zero row."""
    rows = rows.to(tl.float32)
    square = tl.sum(rows * rows, 1) + D * norm_eps
    return tl.where(square > 0, 1.0 / tl.sqrt_rn(tl.where(square > 0, square, 1.0)), 0.0)


@triton.jit
def _chunk_of(number, this_round, n_chunks, N_HASHES: tl.constexpr, WRAP: tl.constexpr):
    """(round, chunk) for a chunk number of this round that may lie beyond its ends.

    With WRAP the chunks of all rounds form one ring; else a chunk beyond the ends has no slots.
    """
    chunk_round = this_round
    if WRAP:
        ring = N_HASHES * n_chunks
        number = this_round * n_chunks + number
        number = ((number % ring) + ring) % ring  # the remainder of a negative number is negative
        chunk_round = number // n_chunks
        number = number % n_chunks
    return chunk_round, number


@triton.jit
def _program(heads, n_chunks, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    """(sequence, its batch and head, chunk, first place in it) of the tile that this program owns."""
    tiles: tl.constexpr = (CHUNK + BLOCK - 1) // BLOCK  # of a chunk
    number = tl.program_id(0)
    sequence = number // (n_chunks * tiles)
    chunk = number % (n_chunks * tiles) // tiles
    start = number % tiles * BLOCK
    sequence = sequence.to(tl.int64)  # offsets in memory go beyond 2³¹
    return sequence, sequence // heads, sequence % heads, chunk, start


@triton.jit
def _tile(order, chunk_round, chunk, start, length, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    """(slots, positions) of the tile that begins at slot ``start`` of a chunk; −1: no position."""
    place = start + tl.arange(0, BLOCK)
    slot = chunk * CHUNK + place
    exists = (place < CHUNK) & (slot >= 0) & (slot < length)
    order = order + chunk_round * length
    return slot, tl.load(order + slot, mask=exists, other=-1)


@triton.jit
def _visible(
    i,
    j,
    slot_i,
    slot_j,
    query_round,
    key_round,
    offset,
    slots,
    buckets,
    mask,
    mask_stride,
    length,
    n_chunks,
    ROUND: tl.constexpr,
    CHUNK: tl.constexpr,
    BEFORE: tl.constexpr,
    AFTER: tl.constexpr,
    N_HASHES: tl.constexpr,
    CAUSAL: tl.constexpr,
    WITHIN_BUCKET: tl.constexpr,
    COUNT_ONCE: tl.constexpr,
    RANK: tl.constexpr,
    WRAP: tl.constexpr,
    SEE_SELF: tl.constexpr,
    HAS_MASK: tl.constexpr,
):
    """Which keys each query can attend to: bool (queries, keys).

    i, j: the positions of a tile of queries and of a tile of keys, slot_i, slot_j their slots.
    offset: the chunk of the keys minus that of the queries. slots, buckets: tables (N_HASHES, L).
    Without WRAP, query_round and key_round are ROUND.
    """
    # 1. Free slots and padding.
    real_i = i >= 0
    real_j = j >= 0
    if HAS_MASK:
        real_j = real_j & (tl.load(mask + j.to(tl.int64) * mask_stride, mask=real_j, other=0) != 0)
        if WITHIN_BUCKET:  # padding has a bucket of its own
            real_i = real_i & (
                tl.load(mask + i.to(tl.int64) * mask_stride, mask=real_i, other=0) != 0
            )
    visible = real_i[:, None] & real_j[None, :]

    # 2. Positions.
    if not SEE_SELF:
        visible = visible & (i[:, None] != j[None, :])
    if CAUSAL:
        visible = visible & (j[None, :] <= i[:, None])

    # 3. Buckets; and for the rank window the distance in slots.
    if WITHIN_BUCKET:
        table = buckets + query_round * length
        visible = visible & (_entries(table, i)[:, None] == _entries(table, j)[None, :])
        if WRAP:
            visible = visible & (query_round == key_round)
    if RANK:
        distance = slot_i[:, None] - slot_j[None, :]
        visible = visible & (distance > 0) & (distance <= CHUNK)

    # 4. Count once: hide a key that an earlier round has shown.
    if COUNT_ONCE and not WRAP:
        for s in tl.static_range(ROUND):
            table = slots + s * length
            earlier_i = _entries(table, i)
            earlier_j = _entries(table, j)
            if RANK:
                distance = earlier_i[:, None] - earlier_j[None, :]
                seen = (distance > 0) & (distance <= CHUNK)
            else:
                distance = (earlier_i // CHUNK)[:, None] - (earlier_j // CHUNK)[None, :]
                seen = (distance >= -AFTER) & (distance <= BEFORE)
            if WITHIN_BUCKET:
                table = buckets + s * length
                seen = seen & (_entries(table, i)[:, None] == _entries(table, j)[None, :])
            visible = visible & (seen == 0)
    # On a ring a window may reach into other rounds, and may show a key several times.
    if COUNT_ONCE and WRAP:
        ring = N_HASHES * n_chunks
        for s in tl.static_range(N_HASHES):
            chunk_i = _entries(slots + s * length, i) // CHUNK
            for t in tl.static_range(N_HASHES):
                chunk_j = _entries(slots + t * length, j) // CHUNK
                ahead = t * n_chunks + chunk_j[None, :] - s * n_chunks - chunk_i[:, None]
                for earlier in tl.static_range(-BEFORE, AFTER + 1):
                    seen = (ahead - earlier) % ring == 0
                    # In this round only the chunks of the window before this one come earlier.
                    seen = seen & ((s < query_round) | ((s == query_round) & (earlier < offset)))
                    if WITHIN_BUCKET:
                        table = buckets + s * length
                        same = _entries(table, i)[:, None] == _entries(table, j)[None, :]
                        seen = seen & same & (s == t)
                    visible = visible & (seen == 0)
    return visible


# Kernels


@triton.jit
def _forward_kernel(
    q,
    k,
    v,
    out,
    partial,
    lse,
    order,
    slots,
    buckets,
    mask,
    q_batch,
    q_head,
    q_row,
    k_batch,
    k_head,
    k_row,
    v_batch,
    v_head,
    v_row,
    out_batch,
    out_head,
    out_row,
    mask_batch,
    mask_head,
    mask_row,
    heads,
    length,
    n_chunks,
    scale,
    norm_eps,
    D: tl.constexpr,
    D_V: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_D_V: tl.constexpr,
    ROUND: tl.constexpr,
    SHARED_QK: tl.constexpr,
    CHUNK: tl.constexpr,
    BEFORE: tl.constexpr,
    AFTER: tl.constexpr,
    N_HASHES: tl.constexpr,
    CAUSAL: tl.constexpr,
    WITHIN_BUCKET: tl.constexpr,
    COUNT_ONCE: tl.constexpr,
    RANK: tl.constexpr,
    WRAP: tl.constexpr,
    SEE_SELF: tl.constexpr,
    HAS_MASK: tl.constexpr,
):
    """One round: softmax over the window of each query, merged with the rounds before.

    q, k, v, out, partial: (batch, heads, L, ·) with the strides given (partial: those of out). lse:
    (batch · heads, L), to the base 2. ``partial`` holds the output of the rounds so far in float32;
    the last round writes ``out`` instead. scale: of q · k, times log2(e).
    """
    # 1. Find this program's tile, and the sequence that it belongs to.
    sequence, batch, head, chunk, start = _program(heads, n_chunks, CHUNK, BLOCK)
    q += batch * q_batch + head * q_head
    k += batch * k_batch + head * k_head
    v += batch * v_batch + head * v_head
    out += batch * out_batch + head * out_head
    partial += batch * out_batch + head * out_head
    mask += batch * mask_batch + head * mask_head
    lse += sequence * length
    order += sequence * N_HASHES * length
    slots += sequence * N_HASHES * length
    buckets += sequence * N_HASHES * length

    # 2. Gather the queries.
    slot_i, i = _tile(order, ROUND, chunk, start, length, CHUNK, BLOCK)
    queries = _load_rows(q, i, q_row, D, BLOCK_D)  # (BLOCK, BLOCK_D)

    # 3. Softmax over the tiles of the window, one after the other.
    row_max = tl.full((BLOCK,), _MINUS_INFINITY, tl.float32)
    row_sum = tl.zeros((BLOCK,), tl.float32)
    weighted = tl.zeros((BLOCK, BLOCK_D_V), tl.float32)  # Σ_j exp2(score_ij − row_max_i) · v_j
    for offset in range(-BEFORE, AFTER + 1):
        key_round, key_chunk = _chunk_of(chunk + offset, ROUND, n_chunks, N_HASHES, WRAP)
        for key_start in range(0, CHUNK, BLOCK):
            slot_j, j = _tile(order, key_round, key_chunk, key_start, length, CHUNK, BLOCK)
            keys = _load_rows(k, j, k_row, D, BLOCK_D)
            if SHARED_QK:
                inverse = _inverse_length(keys, norm_eps, D)
                keys = _narrow(keys.to(tl.float32) * inverse[:, None], queries.dtype)
            values = _load_rows(v, j, v_row, D_V, BLOCK_D_V)
            scores = _dot(queries, tl.trans(keys)) * scale
            visible = _visible(
                i, j, slot_i, slot_j, ROUND, key_round, offset,
                slots, buckets, mask, mask_row, length, n_chunks, ROUND,
                CHUNK, BEFORE, AFTER, N_HASHES, CAUSAL, WITHIN_BUCKET, COUNT_ONCE, RANK, WRAP,
                SEE_SELF, HAS_MASK,
            )  # fmt: skip
            scores = tl.where(visible, scores, _MINUS_INFINITY)
            # The maximum so far may grow: scale down what was summed with the old one.
            new_max = tl.maximum(row_max, tl.max(scores, 1))
            shift = tl.where(new_max == _MINUS_INFINITY, 0.0, new_max)  # −∞ − −∞ would be NaN
            weights = tl.exp2(scores - shift[:, None])
            correction = tl.exp2(row_max - shift)
            row_sum = row_sum * correction + tl.sum(weights, 1)
            product = _dot(_narrow(weights, values.dtype), values)
            weighted = weighted * correction[:, None] + product
            row_max = new_max

    # 4. The output and the log-sum-exp of this round: 0 and −∞ where nothing is visible.
    nothing_visible = row_sum == 0
    row_sum = tl.where(nothing_visible, 1.0, row_sum)
    tile_lse = tl.where(nothing_visible, _MINUS_INFINITY, row_max + tl.log2(row_sum))
    tile_out = weighted / row_sum[:, None]

    # 5. Merge with the rounds before.
    exists = i >= 0
    if ROUND > 0:
        lse_before = tl.load(lse + i, mask=exists, other=_MINUS_INFINITY)
        out_before = _load_rows(partial, i, out_row, D_V, BLOCK_D_V)
        larger = tl.maximum(lse_before, tile_lse)
        shift = tl.where(larger == _MINUS_INFINITY, 0.0, larger)
        weight_before = tl.exp2(lse_before - shift)
        weight_now = tl.exp2(tile_lse - shift)
        both = weight_before + weight_now
        nothing_visible = both == 0
        both = tl.where(nothing_visible, 1.0, both)
        tile_lse = tl.where(nothing_visible, _MINUS_INFINITY, shift + tl.log2(both))
        tile_out = (
            out_before * (weight_before / both)[:, None] + tile_out * (weight_now / both)[:, None]
        )
    tl.store(lse + i, tile_lse, mask=exists)

    # 6. Write. With shared queries and keys, a token that sees nothing else sees itself.
    if ROUND == N_HASHES - 1:
        if SHARED_QK:
            only_self = exists & nothing_visible
            if HAS_MASK:
                only_self &= tl.load(mask + i.to(tl.int64) * mask_row, mask=exists, other=0) != 0
            values_i = _load_rows(v, i, v_row, D_V, BLOCK_D_V).to(tl.float32)
            tile_out = tl.where(only_self[:, None], values_i, tile_out)
        tile_out = _narrow(tile_out, out.dtype.element_ty)
        _store_rows(out, i, out_row, tile_out, D_V, BLOCK_D_V)
    else:
        _store_rows(partial, i, out_row, tile_out, D_V, BLOCK_D_V)


@triton.jit
def _delta_kernel(
    out,
    d_out,
    delta,
    out_batch,
    out_head,
    out_row,
    d_out_batch,
    d_out_head,
    d_out_row,
    heads,
    length,
    D_V: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D_V: tl.constexpr,
):
    """delta_i = out_i · d_out_i, which equals Σ_j weight_ij · d_weight_ij: (batch · heads, L)."""
    tiles = tl.cdiv(length, BLOCK)
    sequence = (tl.program_id(0) // tiles).to(tl.int64)
    batch = sequence // heads
    head = sequence % heads
    out += batch * out_batch + head * out_head
    d_out += batch * d_out_batch + head * d_out_head
    i = tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)
    i = tl.where(i < length, i, -1)
    rows = _load_rows(out, i, out_row, D_V, BLOCK_D_V).to(tl.float32)
    d_rows = _load_rows(d_out, i, d_out_row, D_V, BLOCK_D_V).to(tl.float32)
    tl.store(delta + sequence * length + i, tl.sum(rows * d_rows, 1), mask=i >= 0)


@triton.jit
def _backward_queries_kernel(
    q,
    k,
    v,
    d_out,
    lse,
    delta,
    d_q,
    order,
    slots,
    buckets,
    mask,
    q_batch,
    q_head,
    q_row,
    k_batch,
    k_head,
    k_row,
    v_batch,
    v_head,
    v_row,
    d_out_batch,
    d_out_head,
    d_out_row,
    d_q_batch,
    d_q_head,
    d_q_row,
    mask_batch,
    mask_head,
    mask_row,
    heads,
    length,
    n_chunks,
    scale,
    norm_eps,
    D: tl.constexpr,
    D_V: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_D_V: tl.constexpr,
    ROUND: tl.constexpr,
    SHARED_QK: tl.constexpr,
    CHUNK: tl.constexpr,
    BEFORE: tl.constexpr,
    AFTER: tl.constexpr,
    N_HASHES: tl.constexpr,
    CAUSAL: tl.constexpr,
    WITHIN_BUCKET: tl.constexpr,
    COUNT_ONCE: tl.constexpr,
    RANK: tl.constexpr,
    WRAP: tl.constexpr,
    SEE_SELF: tl.constexpr,
    HAS_MASK: tl.constexpr,
):
    """One round of d_q: what flows back to the rows of a tile as queries.

    The weights are computed again from the scores and the log-sum-exp. d_q: (batch, heads, L, D),
    to which rounds after the first add. scale: of q · k (without log2(e)).
    """
    # 1. Find this program's tile, and the sequence that it belongs to.
    sequence, batch, head, chunk, start = _program(heads, n_chunks, CHUNK, BLOCK)
    q += batch * q_batch + head * q_head
    k += batch * k_batch + head * k_head
    v += batch * v_batch + head * v_head
    d_out += batch * d_out_batch + head * d_out_head
    d_q += batch * d_q_batch + head * d_q_head
    mask += batch * mask_batch + head * mask_head
    lse += sequence * length
    delta += sequence * length
    order += sequence * N_HASHES * length
    slots += sequence * N_HASHES * length
    buckets += sequence * N_HASHES * length
    log2_scale = scale * 1.4426950408889634  # times log2(e)

    # 2. Gather the queries, and the gradients of their outputs.
    slot_i, i = _tile(order, ROUND, chunk, start, length, CHUNK, BLOCK)
    exists = i >= 0
    queries = _load_rows(q, i, q_row, D, BLOCK_D)
    d_outputs = _load_rows(d_out, i, d_out_row, D_V, BLOCK_D_V)
    delta_i = tl.load(delta + i, mask=exists, other=0.0)
    # With an lse of +∞ all weights of a row are 0.
    lse_i = tl.load(lse + i, mask=exists, other=_MINUS_INFINITY)
    lse_i = tl.where(lse_i == _MINUS_INFINITY, _INFINITY, lse_i)

    # 3. Visit the keys in the window.
    sum_q = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    for offset in range(-BEFORE, AFTER + 1):
        key_round, key_chunk = _chunk_of(chunk + offset, ROUND, n_chunks, N_HASHES, WRAP)
        for key_start in range(0, CHUNK, BLOCK):
            slot_j, j = _tile(order, key_round, key_chunk, key_start, length, CHUNK, BLOCK)
            keys = _load_rows(k, j, k_row, D, BLOCK_D)
            if SHARED_QK:
                inverse = _inverse_length(keys, norm_eps, D)
                keys = _narrow(keys.to(tl.float32) * inverse[:, None], queries.dtype)
            values = _load_rows(v, j, v_row, D_V, BLOCK_D_V)
            scores = _dot(queries, tl.trans(keys)) * log2_scale
            visible = _visible(
                i, j, slot_i, slot_j, ROUND, key_round, offset,
                slots, buckets, mask, mask_row, length, n_chunks, ROUND,
                CHUNK, BEFORE, AFTER, N_HASHES, CAUSAL, WITHIN_BUCKET, COUNT_ONCE, RANK, WRAP,
                SEE_SELF, HAS_MASK,
            )  # fmt: skip
            weights = tl.where(visible, tl.exp2(scores - lse_i[:, None]), 0.0)
            d_weights = _dot(d_outputs, tl.trans(values))
            d_scores = weights * (d_weights - delta_i[:, None]) * scale
            sum_q += _dot(_narrow(d_scores, keys.dtype), keys)

    # 4. Add to the rounds before, and write.
    if ROUND > 0:
        sum_q += _load_rows(d_q, i, d_q_row, D, BLOCK_D)
    _store_rows(d_q, i, d_q_row, _narrow(sum_q, d_q.dtype.element_ty), D, BLOCK_D)


@triton.jit
def _backward_keys_kernel(
    q,
    k,
    v,
    d_out,
    lse,
    delta,
    partial_k,
    partial_v,
    d_k,
    d_v,
    order,
    slots,
    buckets,
    mask,
    q_batch,
    q_head,
    q_row,
    k_batch,
    k_head,
    k_row,
    v_batch,
    v_head,
    v_row,
    d_out_batch,
    d_out_head,
    d_out_row,
    d_k_batch,
    d_k_head,
    d_k_row,
    d_v_batch,
    d_v_head,
    d_v_row,
    mask_batch,
    mask_head,
    mask_row,
    heads,
    length,
    n_chunks,
    scale,
    norm_eps,
    D: tl.constexpr,
    D_V: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_D_V: tl.constexpr,
    ROUND: tl.constexpr,
    SHARED_QK: tl.constexpr,
    CHUNK: tl.constexpr,
    BEFORE: tl.constexpr,
    AFTER: tl.constexpr,
    N_HASHES: tl.constexpr,
    CAUSAL: tl.constexpr,
    WITHIN_BUCKET: tl.constexpr,
    COUNT_ONCE: tl.constexpr,
    RANK: tl.constexpr,
    WRAP: tl.constexpr,
    SEE_SELF: tl.constexpr,
    HAS_MASK: tl.constexpr,
):
    """One round of d_k and d_v: what flows back to the rows of a tile as keys and values.

    They get it from the queries whose windows hold the tile, so the loop goes over query chunks.
    With shared queries and keys, d_k is the gradient of both: partial_k already holds d_q. Partial
    sums are float32, with the strides of d_k and d_v, which the last round writes.
    """
    # 1. Find this program's tile, and the sequence that it belongs to.
    sequence, batch, head, chunk, start = _program(heads, n_chunks, CHUNK, BLOCK)
    q += batch * q_batch + head * q_head
    k += batch * k_batch + head * k_head
    v += batch * v_batch + head * v_head
    d_out += batch * d_out_batch + head * d_out_head
    partial_k += batch * d_k_batch + head * d_k_head
    d_k += batch * d_k_batch + head * d_k_head
    partial_v += batch * d_v_batch + head * d_v_head
    d_v += batch * d_v_batch + head * d_v_head
    mask += batch * mask_batch + head * mask_head
    lse += sequence * length
    delta += sequence * length
    order += sequence * N_HASHES * length
    slots += sequence * N_HASHES * length
    buckets += sequence * N_HASHES * length
    log2_scale = scale * 1.4426950408889634  # times log2(e)

    # 2. Gather the keys and values.
    slot_j, j = _tile(order, ROUND, chunk, start, length, CHUNK, BLOCK)
    exists = j >= 0
    keys = _load_rows(k, j, k_row, D, BLOCK_D)
    if SHARED_QK:
        inverse = _inverse_length(keys, norm_eps, D)
        keys = _narrow(keys.to(tl.float32) * inverse[:, None], keys.dtype)
    values = _load_rows(v, j, v_row, D_V, BLOCK_D_V)

    # 3. Visit the queries that look at them: those of the chunks ``offset`` before.
    sum_k = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    sum_v = tl.zeros((BLOCK, BLOCK_D_V), tl.float32)
    for offset in range(-BEFORE, AFTER + 1):
        query_round, query_chunk = _chunk_of(chunk - offset, ROUND, n_chunks, N_HASHES, WRAP)
        for query_start in range(0, CHUNK, BLOCK):
            slot_i, i = _tile(order, query_round, query_chunk, query_start, length, CHUNK, BLOCK)
            queries = _load_rows(q, i, q_row, D, BLOCK_D)
            d_outputs = _load_rows(d_out, i, d_out_row, D_V, BLOCK_D_V)
            delta_i = tl.load(delta + i, mask=i >= 0, other=0.0)
            lse_i = tl.load(lse + i, mask=i >= 0, other=_MINUS_INFINITY)
            lse_i = tl.where(lse_i == _MINUS_INFINITY, _INFINITY, lse_i)
            scores = _dot(queries, tl.trans(keys)) * log2_scale
            visible = _visible(
                i, j, slot_i, slot_j, query_round, ROUND, offset,
                slots, buckets, mask, mask_row, length, n_chunks, ROUND,
                CHUNK, BEFORE, AFTER, N_HASHES, CAUSAL, WITHIN_BUCKET, COUNT_ONCE, RANK, WRAP,
                SEE_SELF, HAS_MASK,
            )  # fmt: skip
            weights = tl.where(visible, tl.exp2(scores - lse_i[:, None]), 0.0)
            sum_v += _dot(tl.trans(_narrow(weights, d_outputs.dtype)), d_outputs)
            d_weights = _dot(d_outputs, tl.trans(values))
            d_scores = weights * (d_weights - delta_i[:, None]) * scale
            sum_k += _dot(tl.trans(_narrow(d_scores, queries.dtype)), queries)

    # 4. Shared queries and keys: back through the normalisation of the keys. A token that sees only
    #    itself passes its gradient on to its own value.
    if SHARED_QK:
        unit = keys.to(tl.float32)
        along = tl.sum(sum_k * unit, 1)
        sum_k = (sum_k - unit * along[:, None]) * inverse[:, None]
        sum_k += _load_rows(partial_k, j, d_k_row, D, BLOCK_D)
        if ROUND == 0:
            only_self = tl.load(lse + j, mask=exists, other=0.0) == _MINUS_INFINITY
            if HAS_MASK:
                only_self &= tl.load(mask + j.to(tl.int64) * mask_row, mask=exists, other=0) != 0
            d_outputs_j = _load_rows(d_out, j, d_out_row, D_V, BLOCK_D_V).to(tl.float32)
            sum_v += tl.where(only_self[:, None], d_outputs_j, 0.0)

    # 5. Add to the rounds before, and write.
    if ROUND > 0:
        sum_v += _load_rows(partial_v, j, d_v_row, D_V, BLOCK_D_V)
    if ROUND == N_HASHES - 1:
        _store_rows(d_k, j, d_k_row, _narrow(sum_k, d_k.dtype.element_ty), D, BLOCK_D)
        _store_rows(d_v, j, d_v_row, _narrow(sum_v, d_v.dtype.element_ty), D_V, BLOCK_D_V)
    else:
        _store_rows(partial_k, j, d_k_row, sum_k, D, BLOCK_D)
        _store_rows(partial_v, j, d_v_row, sum_v, D_V, BLOCK_D_V)


# Launching them


def launch_forward(
    q, k, v, out, partial, lse, order, slots, buckets, mask, options, scale, norm_eps
):
    """Fill ``out`` and ``lse``: see ``fused.attention_forward``. partial: memory for sums in float32."""
    keys = q if k is None else k
    partial = out if partial is None else partial
    grid, sizes, constants = _launch(q, v, order, mask, k is None, options)
    tables = _tables(order, slots, buckets, mask)
    strides = [s for x in (q, keys, v, out) for s in x.stride()[:3]]
    mask_strides = (0, 0, 0) if mask is None else mask.stride()
    for this_round in range(order.shape[1]):
        _forward_kernel[grid](
            q, keys, v, out, partial, lse, *tables,
            *strides, *mask_strides, *sizes, scale * LOG2E, norm_eps,
            ROUND=this_round, **constants,
        )  # fmt: skip


def launch_backward(
    d_out, q, k, v, out, lse, order, slots, buckets, mask, partial_q, partial_v, delta, d_q, d_k,
    d_v, options, scale, norm_eps,
):  # fmt: skip
    """Fill d_q, d_k (where k is not None) and d_v: see ``fused.attention_backward``."""
    keys = q if k is None else k
    partial_q = d_q if partial_q is None else partial_q
    partial_v = d_v if partial_v is None else partial_v
    grid, sizes, constants = _launch(q, v, order, mask, k is None, options, backward=True)
    heads, length, _ = sizes

    # 1. What the gradients of all scores of a query have in common.
    block = constants["BLOCK"]
    _delta_kernel[(len(order) * triton.cdiv(length, block),)](
        out, d_out, delta, *out.stride()[:3], *d_out.stride()[:3], heads, length,
        D_V=constants["D_V"], BLOCK=block, BLOCK_D_V=constants["BLOCK_D_V"],
    )  # fmt: skip

    # 2. Round by round. With shared queries and keys, the second kernel adds its part to that of
    #    the first.
    d_queries = d_q if k is not None else partial_q
    d_keys = d_q if k is None else d_k
    tables = _tables(order, slots, buckets, mask)
    strides = [s for x in (q, keys, v, d_out) for s in x.stride()[:3]]
    q_strides = d_q.stride()[:3]
    v_strides = d_v.stride()[:3]
    mask_strides = (0, 0, 0) if mask is None else mask.stride()
    numbers = *mask_strides, *sizes, scale, norm_eps
    for this_round in range(order.shape[1]):
        constants["ROUND"] = this_round
        _backward_queries_kernel[grid](
            q, keys, v, d_out, lse, delta, d_queries, *tables,
            *strides, *q_strides, *numbers, **constants,
        )  # fmt: skip
        _backward_keys_kernel[grid](
            q, keys, v, d_out, lse, delta, partial_q, partial_v, d_keys, d_v, *tables,
            *strides, *q_strides, *v_strides, *numbers, **constants,
        )  # fmt: skip


def _tables(order, slots, buckets, mask):
    """The tables as the kernels take them: for one that is not read, ``order`` stands in."""
    tables = [order if table is None else table for table in (slots, buckets)]
    return order, *tables, order if mask is None else mask.view(torch.uint8)


def _launch(q, v, order, mask, shared_qk, options, backward=False):
    """The grid, the sizes (heads, L, n_chunks), and the constants a kernel is compiled for.

    backward: for the two kernels of the backward pass.
    """
    chunk_length, before, after, causal, within_bucket, count_once, rank, wrap, see_self = options
    n_sequences, n_hashes, length = order.shape
    d, d_v = q.shape[-1], v.shape[-1]
    n_chunks = triton.cdiv(length, chunk_length)
    block, warps = tile_size(chunk_length, max(d, d_v), q.dtype, backward, rank)
    grid = (n_sequences * n_chunks * triton.cdiv(chunk_length, block),)
    constants = {
        "D": d,
        "D_V": d_v,
        "BLOCK": block,
        "BLOCK_D": max(16, triton.next_power_of_2(d)),
        "BLOCK_D_V": max(16, triton.next_power_of_2(d_v)),
        "SHARED_QK": shared_qk,
        "CHUNK": chunk_length,
        "BEFORE": before,
        "AFTER": after,
        "N_HASHES": n_hashes,
        "CAUSAL": bool(causal),
        "WITHIN_BUCKET": bool(within_bucket),
        "COUNT_ONCE": bool(count_once and (n_hashes > 1 or wrap)),
        "RANK": bool(rank),
        "WRAP": bool(wrap),
        "SEE_SELF": bool(see_self),
        "HAS_MASK": mask is not None,
        "num_warps": warps,
        "num_stages": 1,
    }
    return grid, (q.shape[1], length, n_chunks), constants


def tile_size(chunk_length, d, dtype, backward, rank):
    """(slots in a tile, warps of a program): as many slots as fit the registers.

    The number of slots is a power of two. One more step and the compiler would have to move registers
    to memory: ``python -m reformer_lab.benchmarks.kernels`` shows it, without a GPU.
    """
    if dtype == torch.float32:
        largest, warps = (32, 8) if d <= 64 else (16, 8)
    else:
        many_warps = d > 64 or (rank and backward)
        largest, warps = (32 if backward else 64), (8 if many_warps else 4)
    return min(largest, max(16, triton.next_power_of_2(chunk_length))), warps
