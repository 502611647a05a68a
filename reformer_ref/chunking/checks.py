"""What any implementation of sorting and chunking must satisfy. Each check takes a function on
NumPy arrays.

The expected values are written out here with Python's own sorting and with plain indices.
"""

from itertools import product

import numpy as np

from reformer_ref.testing import compare_all, expect_equal, in_a_sentence, padding_masks

# (leading axes, n_hashes, L, number of buckets, offset of the bucket numbers): many ties, and
# numbers beyond 2³¹
SORTS = (
    ((), 1, 1, 2, 0),
    ((), 2, 2, 2, 0),
    ((3,), 1, 7, 1, 0),
    ((2, 3), 2, 31, 4, 0),
    ((), 4, 257, 6, 0),
    ((2,), 2, 131, 40, 0),
    ((2,), 3, 37, 5, 2**31 - 3),
    ((2,), 2, 64, 3, 2**40),
    ((), 2, 29, 4, 2**62),
)


@in_a_sentence
def check_sort_by_bucket(fn, seed=0):
    """fn(buckets, padding_mask): the one order by (bucket, position), padding last; no overflow."""
    rng = np.random.default_rng(seed)
    n = 0
    for lead, n_hashes, length, n_buckets, offset in SORTS:
        buckets = offset + rng.integers(0, n_buckets, (*lead, n_hashes, length))
        for side, mask in padding_masks(rng, (*lead, length)).items():
            real = np.ones((*lead, length), dtype=bool) if mask is None else mask
            want = np.empty(buckets.shape, dtype=np.int64)
            for index in np.ndindex(buckets.shape[:-1]):
                numbers = np.where(real[index[:-1]], buckets[index], 2**63 - 1).tolist()
                want[index] = sorted(range(length), key=lambda i, numbers=numbers: (numbers[i], i))
            hint = "Sort by bucket and, within a bucket, by position (a stable sort), padding last."
            label = f"sort_by_bucket of shape {buckets.shape}, buckets from {offset}, {side}"
            expect_equal(label, fn(buckets, mask), want, hint)
            n += 1
    print(f"check_sort_by_bucket: {n} cases, buckets up to 2^62")


@in_a_sentence
def check_undo_sort(fn, seed=0):
    """fn(order) -> slot with order[slot[i]] = i and slot[order[s]] = s."""
    rng = np.random.default_rng(seed)
    shapes = ((1,), (2, 1), (1, 2), (2, 7), (3, 2, 4, 31), (1, 257))
    hint = "slot[order[s]] = s: the inverse, not order itself."
    for shape in shapes:
        order = _orders(rng, shape)
        want = np.empty(shape, dtype=np.int64)
        for index in np.ndindex(shape):
            want[(*index[:-1], order[index])] = index[-1]
        expect_equal(f"undo_sort of shape {shape}", fn(order), want, hint)
    print(f"check_undo_sort: {len(shapes)} cases")


@in_a_sentence
def check_split_chunks(fn, seed=0):
    """fn(order, chunk_length) -> (…, ⌈L / chunk_length⌉, chunk_length), slots beyond the end −1."""
    rng = np.random.default_rng(seed)
    hint = "Slot s is number s % C of chunk s // C; slots beyond the end hold −1."
    cases = [*product(((), (2,), (3, 2)), (1, 2, 7, 8, 9, 31), (1, 2, 7, 8, 9, 64))]
    for lead, length, chunk_length in cases:
        order = _orders(rng, (*lead, length))
        want = np.full((*lead, (length + chunk_length - 1) // chunk_length, chunk_length), -1)
        for s in range(length):
            want[..., s // chunk_length, s % chunk_length] = order[..., s]
        label = f"split_chunks of shape {order.shape}, chunk_length={chunk_length}"
        expect_equal(label, fn(order, chunk_length), want, hint)
    print(f"check_split_chunks: {len(cases)} cases")


@in_a_sentence
def check_look_adjacent(fn, seed=0):
    """fn(chunks, chunks_before, chunks_after, wrap, fill): any number of neighbours."""
    shapes = ((1, 1, 1), (2, 3, 2), (2, 5, 2, 3), (2, 2, 4, 1, 2))
    neighbours = ((0, 0), (1, 0), (0, 1), (1, 1), (2, 1), (3, 6))
    fills = ((False, 0), (False, -1), (True, 0))

    def comparisons():
        rng = np.random.default_rng(seed)
        hint = "Chunk c sees c − before … c + after in this order; only wrap=True goes round."
        for shape, (before, after), (wrap, fill) in product(shapes, neighbours, fills):
            chunks = rng.standard_normal(shape)
            *lead, n_chunks, chunk_length, d = shape
            width = before + 1 + after
            want = np.full((*lead, n_chunks, width, chunk_length, d), float(fill))
            for c, at in product(range(n_chunks), range(width)):
                other = c - before + at
                if wrap or 0 <= other < n_chunks:
                    want[..., c, at, :, :] = chunks[..., other % n_chunks, :, :]
            want = want.reshape(*lead, n_chunks, width * chunk_length, d)
            options = f"before={before}, after={after}, wrap={wrap}, fill={fill}"
            got = fn(chunks, before, after, wrap, fill)
            yield f"look_adjacent of shape {shape}, {options}", got, want, hint
        got = np.asarray(fn(np.arange(12).reshape(3, 4, 1), 1, 0, False, -1))
        want = [-1] * 4 + [0, 1, 2, 3]
        yield "look_adjacent of integers, fill=-1", got[0, :, 0], want, "Integers stay integers."

    compare_all("check_look_adjacent", comparisons(), 0.0)


def _orders(rng, shape):
    return rng.permuted(np.broadcast_to(np.arange(shape[-1]), shape), axis=-1)
