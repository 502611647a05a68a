"""The hash as a CUDA kernel, written in Triton: ``pytorch.py``, one block of positions at a time.

Each program of the kernel owns BLOCK positions of one sequence. It reads their vectors once. For
each round it visits the columns of R in blocks, and keeps the largest and the smallest score so far
with their columns: the scores xR themselves are never stored. A factor is a launch of its own, and
adds its part of the bucket number to what is there.
"""

import triton
import triton.language as tl

from reformer_ref._kernels import INTERPRETED

_INTERPRETED = tl.constexpr(INTERPRETED)
BLOCK = 64  # positions of a program
LARGEST_BLOCK_OF_COLUMNS = 32


@triton.jit
def _hash_kernel(
    x,
    rotations,
    buckets,
    x_batch,
    x_head,
    x_row,
    r_batch,
    r_head,
    r_round,
    r_row,
    heads,
    length,
    first_column,
    stride,
    FIRST_FACTOR: tl.constexpr,
    COLUMNS: tl.constexpr,
    N_HASHES: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """buckets += stride · argmax([xR ; −xR]) over the 2 · COLUMNS columns of one factor.

    x (batch, heads, L, D), rotations (batch, heads, N_HASHES, D, ·): with the strides given.
    buckets: (batch · heads, N_HASHES, L). For the first factor they are written, not added to.
    """
    # 1. Find the sequence and the positions of this program.
    blocks = tl.cdiv(length, BLOCK)
    number = tl.program_id(0)
    sequence = (number // blocks).to(tl.int64)  # offsets in memory go beyond 2³¹
    i = number % blocks * BLOCK + tl.arange(0, BLOCK)
    x += sequence // heads * x_batch + sequence % heads * x_head
    rotations += sequence // heads * r_batch + sequence % heads * r_head + first_column
    buckets += sequence * N_HASHES * length

    # 2. Read the vectors.
    exists = i < length
    k = tl.arange(0, BLOCK_D)
    x += i[:, None].to(tl.int64) * x_row + k[None, :]
    mask = exists[:, None] & (k[None, :] < D)
    vectors = tl.load(x, mask=mask, other=0.0)  # (BLOCK, BLOCK_D)
    if _INTERPRETED:  # which gets products in half precision wrong
        vectors = vectors.to(tl.float32)

    for this_round in range(N_HASHES):
        # 3. The largest and the smallest score x · r, and the columns r that have them.
        largest = tl.full((BLOCK,), float("-inf"), tl.float32)
        smallest = tl.full((BLOCK,), float("inf"), tl.float32)
        largest_at = tl.zeros((BLOCK,), tl.int32)
        smallest_at = tl.zeros((BLOCK,), tl.int32)
        for start in range(0, COLUMNS, BLOCK_COLUMNS):
            column = start + tl.arange(0, BLOCK_COLUMNS)
            r_at = rotations + this_round * r_round + k[:, None] * r_row + column[None, :]
            r_mask = (k[:, None] < D) & (column[None, :] < COLUMNS)
            r = tl.load(r_at, mask=r_mask, other=0.0)  # (BLOCK_D, BLOCK_COLUMNS)
            if _INTERPRETED:
                r = r.to(tl.float32)
            scores = tl.dot(vectors, r, input_precision="ieee")  # (BLOCK, BLOCK_COLUMNS)
            is_column = (column < COLUMNS)[None, :]
            # Of equal scores the lowest column wins: within a block the leftmost, then the earlier.
            high, high_at = tl.max(
                tl.where(is_column, scores, float("-inf")), 1, return_indices=True
            )
            low, low_at = tl.min(tl.where(is_column, scores, float("inf")), 1, return_indices=True)
            largest_at = tl.where(high > largest, start + high_at, largest_at)
            smallest_at = tl.where(low < smallest, start + low_at, smallest_at)
            largest = tl.maximum(largest, high)
            smallest = tl.minimum(smallest, low)

        # 4. argmax over both signs: −x · r is largest where x · r is smallest.
        bucket = tl.where(largest >= -smallest, largest_at, COLUMNS + smallest_at).to(tl.int64)
        bucket *= stride

        # 5. Write, or add to the factors before.
        buckets_at = buckets + this_round * length + i
        if not FIRST_FACTOR:
            bucket += tl.load(buckets_at, mask=exists, other=0)
        tl.store(buckets_at, bucket, mask=exists)


def launch_hash(x, rotations, buckets, factors):
    """Fill ``buckets``: see ``fused.hash_forward``."""
    batch, heads, length, d = x.shape
    grid = (batch * heads * triton.cdiv(length, BLOCK),)
    first_column = 0
    stride = 1
    for factor in factors:
        n_columns = factor // 2
        _hash_kernel[grid](
            x, rotations, buckets, *x.stride()[:3], *rotations.stride()[:4],
            heads, length, first_column, stride,
            FIRST_FACTOR=first_column == 0,
            COLUMNS=n_columns,
            N_HASHES=rotations.shape[2],
            D=d,
            BLOCK=BLOCK,
            BLOCK_D=max(16, triton.next_power_of_2(d)),
            BLOCK_COLUMNS=min(LARGEST_BLOCK_OF_COLUMNS, max(16, triton.next_power_of_2(n_columns))),
            num_warps=8,
            num_stages=1,
        )  # fmt: skip
        first_column += n_columns
        stride *= factor
