"""LSH attention as a Triton kernel, in five steps: from a copy of rows to rounds that are merged as they come.

Every kernel is launched with a program for each chunk. All tables are float32 and contiguous: qk, v and out (L, D), lse
(L,); order and buckets are int32 (L,), for the round that is computed. CHUNK and D must be powers of two. The
kernels for every case, with padding, heads, half precision and gradients, are in ``reformer_ref.lsh_attention.triton``.

A *position* is the place of a token in the sequence, a *slot* its place in the sorted order; position −1 is no token.
"""

import triton
import triton.language as tl

NORM_EPS = tl.constexpr(1e-6)


# What every step needs


@triton.jit
def chunk_positions(order, chunk, length, CHUNK: tl.constexpr):
    """The positions in the slots of a chunk; −1 in slots before the first and after the last."""
    slot = chunk * CHUNK + tl.arange(0, CHUNK)
    exists = (slot >= 0) & (slot < length)
    return tl.load(order + slot, mask=exists, other=-1)


@triton.jit
def load_rows(table, positions, D: tl.constexpr):
    """The rows of a table (L, D) at some positions: (CHUNK, D); zeros for position −1."""
    exists = positions >= 0
    column = tl.arange(0, D)
    address = table + positions[:, None] * D + column[None, :]
    return tl.load(address, mask=exists[:, None], other=0.0)


@triton.jit
def store_rows(table, positions, rows, D: tl.constexpr):
    """Write rows (CHUNK, D) to a table (L, D) at some positions, but not for position −1."""
    exists = positions >= 0
    column = tl.arange(0, D)
    address = table + positions[:, None] * D + column[None, :]
    tl.store(address, rows, mask=exists[:, None])


@triton.jit
def unit_rows(rows, D: tl.constexpr):
    """Rows scaled to length 1: keys."""
    square = tl.sum(rows * rows, 1) + D * NORM_EPS
    return rows / tl.sqrt(square)[:, None]


# Step 1


@triton.jit
def copy_kernel(table, order, sorted_table, length, CHUNK: tl.constexpr, D: tl.constexpr):
    """Step 1: sorted_table[slot] = table[order[slot]], a chunk of slots in every program."""
    # 1. The slots that this program works on. The last chunk may have more slots than tokens.
    chunk = tl.program_id(0)
    slot = chunk * CHUNK + tl.arange(0, CHUNK)  # (CHUNK,)
    exists = slot < length

    # 2. The positions in these slots.
    position = tl.load(order + slot, mask=exists, other=0)  # (CHUNK,)

    # 3. A pointer is the address of element 0; adding n gives the address of element n.
    column = tl.arange(0, D)
    source = table + position[:, None] * D + column[None, :]  # (CHUNK, D)
    target = sorted_table + slot[:, None] * D + column[None, :]

    # 4. Read and write. Where the mask is False, neither happens.
    rows = tl.load(source, mask=exists[:, None])
    tl.store(target, rows, mask=exists[:, None])


# Step 2


@triton.jit
def chunk_kernel(qk, v, out, order, length, CHUNK: tl.constexpr, D: tl.constexpr):
    """Step 2: each query attends to the other tokens of its chunk, of which there must be at least one."""
    # 1. Gather the rows of this chunk from where they are.
    i = chunk_positions(order, tl.program_id(0), length, CHUNK)
    queries = load_rows(qk, i, D)  # (CHUNK, D)
    keys = unit_rows(queries, D)
    values = load_rows(v, i, D)

    # 2. Scores. A query sees neither itself nor a slot without a token.
    scores = tl.dot(queries, tl.trans(keys))  # (CHUNK, CHUNK)
    visible = (i[None, :] >= 0) & (i[:, None] != i[None, :])
    scores = tl.where(visible, scores, -float("inf"))

    # 3. Softmax.
    row_max = tl.max(scores, 1)
    weights = tl.exp(scores - row_max[:, None])
    row_sum = tl.sum(weights, 1)

    # 4. The output goes back to the positions that the queries came from: the sort is undone.
    chunk_out = tl.dot(weights, values) / row_sum[:, None]
    store_rows(out, i, chunk_out, D)


# Step 3


@triton.jit
def look_back_kernel(qk, v, out, order, length, CHUNK: tl.constexpr, D: tl.constexpr):
    """Step 3: each query attends to its chunk and to the chunk before, one tile of keys at a time."""
    # 1. Gather the queries.
    chunk = tl.program_id(0)
    i = chunk_positions(order, chunk, length, CHUNK)
    queries = load_rows(qk, i, D)

    # 2. A softmax that is corrected as it goes on: nothing has been seen yet.
    row_max = tl.full((CHUNK,), -float("inf"), tl.float32)
    row_sum = tl.zeros((CHUNK,), tl.float32)
    weighted = tl.zeros((CHUNK, D), tl.float32)  # the sum of weight · value
    for offset in range(-1, 1):
        # 3. Gather a tile of keys and values: the chunk before, then the query's own.
        j = chunk_positions(order, chunk + offset, length, CHUNK)
        keys = unit_rows(load_rows(qk, j, D), D)
        values = load_rows(v, j, D)

        # 4. Scores.
        scores = tl.dot(queries, tl.trans(keys))
        visible = (j[None, :] >= 0) & (i[:, None] != j[None, :])
        scores = tl.where(visible, scores, -float("inf"))

        # 5. If this tile has a larger score, scale down what was summed with the old maximum.
        new_max = tl.maximum(row_max, tl.max(scores, 1))
        shift = tl.where(new_max == -float("inf"), 0.0, new_max)  # −∞ − −∞ would be NaN
        correction = tl.exp(row_max - shift)
        weights = tl.exp(scores - shift[:, None])
        row_sum = row_sum * correction + tl.sum(weights, 1)
        weighted = weighted * correction[:, None] + tl.dot(weights, values)
        row_max = new_max

    # 6. Divide once, at the end, and write.
    store_rows(out, i, weighted / row_sum[:, None], D)


# Step 4


@triton.jit
def attend_to_window(qk, v, order, buckets, chunk, i, length, CHUNK: tl.constexpr, D: tl.constexpr):
    """Step 3 with the rules of step 4: (output, lse) of the queries at positions i of a chunk.

    lse is the logarithm of the sum of exponentials; 0 and −∞ for a query that sees nothing.
    """
    # 1. Gather the queries, and their buckets.
    queries = load_rows(qk, i, D)
    bucket_i = tl.load(buckets + i, mask=i >= 0, other=0)
    row_max = tl.full((CHUNK,), -float("inf"), tl.float32)
    row_sum = tl.zeros((CHUNK,), tl.float32)
    weighted = tl.zeros((CHUNK, D), tl.float32)
    for offset in range(-1, 1):
        # 2. Gather a tile of keys and values.
        j = chunk_positions(order, chunk + offset, length, CHUNK)
        keys = unit_rows(load_rows(qk, j, D), D)
        values = load_rows(v, j, D)
        bucket_j = tl.load(buckets + j, mask=j >= 0, other=0)

        # 3. Scores. New: earlier tokens of the same bucket only.
        scores = tl.dot(queries, tl.trans(keys))
        visible = (j[None, :] >= 0) & (j[None, :] < i[:, None])
        visible = visible & (bucket_i[:, None] == bucket_j[None, :])
        scores = tl.where(visible, scores, -float("inf"))

        # 4. The corrected softmax.
        new_max = tl.maximum(row_max, tl.max(scores, 1))
        shift = tl.where(new_max == -float("inf"), 0.0, new_max)
        correction = tl.exp(row_max - shift)
        weights = tl.exp(scores - shift[:, None])
        row_sum = row_sum * correction + tl.sum(weights, 1)
        weighted = weighted * correction[:, None] + tl.dot(weights, values)
        row_max = new_max

    # 5. New: a query that has seen nothing has a sum of 0.
    sees_nothing = row_sum == 0
    row_sum = tl.where(sees_nothing, 1.0, row_sum)
    lse = tl.where(sees_nothing, -float("inf"), row_max + tl.log(row_sum))
    return weighted / row_sum[:, None], lse


@triton.jit
def causal_kernel(qk, v, out, order, buckets, length, CHUNK: tl.constexpr, D: tl.constexpr):
    """Step 4: earlier tokens of the same bucket; a token that sees no other token sees itself."""
    # 1. Attend.
    chunk = tl.program_id(0)
    i = chunk_positions(order, chunk, length, CHUNK)
    chunk_out, lse = attend_to_window(qk, v, order, buckets, chunk, i, length, CHUNK, D)

    # 2. Weight 1 for itself, and so its output is its value.
    only_self = lse == -float("inf")
    chunk_out = tl.where(only_self[:, None], load_rows(v, i, D), chunk_out)
    store_rows(out, i, chunk_out, D)


# Step 5


@triton.jit
def rounds_kernel(
    qk, v, out, lse, order, buckets, length, CHUNK: tl.constexpr, D: tl.constexpr, ROUND: tl.constexpr,
    N_HASHES: tl.constexpr,
):  # fmt: skip
    """Step 5: one round, merged with the rounds before, which have left their result in out and lse."""
    # 1. Attend within this round.
    chunk = tl.program_id(0)
    i = chunk_positions(order, chunk, length, CHUNK)
    exists = i >= 0
    chunk_out, chunk_lse = attend_to_window(qk, v, order, buckets, chunk, i, length, CHUNK, D)

    # 2. Merge: each side weighs as much as its sum of exponentials.
    if ROUND > 0:
        out_before = load_rows(out, i, D)
        lse_before = tl.load(lse + i, mask=exists, other=-float("inf"))
        larger = tl.maximum(lse_before, chunk_lse)
        shift = tl.where(larger == -float("inf"), 0.0, larger)
        weight_before = tl.exp(lse_before - shift)
        weight_now = tl.exp(chunk_lse - shift)
        both = weight_before + weight_now
        sees_nothing = both == 0
        both = tl.where(sees_nothing, 1.0, both)
        chunk_out = out_before * (weight_before / both)[:, None] + chunk_out * (weight_now / both)[:, None]
        chunk_lse = tl.where(sees_nothing, -float("inf"), shift + tl.log(both))

    # 3. A token sees itself if no round has shown it another token: known after the last round.
    if ROUND == N_HASHES - 1:
        only_self = chunk_lse == -float("inf")
        chunk_out = tl.where(only_self[:, None], load_rows(v, i, D), chunk_out)

    # 4. Write. In one round every position belongs to one program, so no other program writes here.
    store_rows(out, i, chunk_out, D)
    tl.store(lse + i, chunk_lse, mask=exists)
