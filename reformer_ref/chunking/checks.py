"""What any implementation of sorting and chunking must satisfy. Each check takes a function on
NumPy arrays.

The expected values are written out here with Python's own sorting and with plain indices.
"""

import numpy as np

from reformer_ref.testing import expect_close, expect_equal, in_a_sentence

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
    """fn(buckets, padding_mask): the one order by (bucket, position), padding last; masks on any
    side; no overflow.
    """
    rng = np.random.default_rng(seed)
    n = 0
    for lead, n_hashes, length, n_buckets, offset in SORTS:
        buckets = offset + rng.integers(0, n_buckets, (*lead, n_hashes, length))
        for side, mask in _masks(rng, (*lead, length)).items():
            real = np.ones((*lead, length), dtype=bool) if mask is None else mask
            want = np.empty(buckets.shape, dtype=np.int64)
            for index in np.ndindex(buckets.shape[:-1]):
                b, r = buckets[index], real[index[:-1]]
                want[index] = sorted(
                    range(length), key=lambda i, b=b, r=r: (not r[i], b[i] if r[i] else 0, i)
                )
            hint = "Sort by bucket and, within a bucket, by position (a stable sort), padding behind every bucket."
            what = f"sort_by_bucket of shape {buckets.shape}, buckets from {offset}, {side}"
            expect_equal(what, fn(buckets, mask), want, hint)
            n += 1
    print(f"check_sort_by_bucket: {n} cases, buckets up to 2^62")


@in_a_sentence
def check_undo_sort(fn, seed=0):
    """fn(order) -> slot with order[slot[i]] = i and slot[order[s]] = s."""
    rng = np.random.default_rng(seed)
    shapes = ((1,), (2, 1), (1, 2), (2, 7), (3, 2, 4, 31), (1, 257))
    for shape in shapes:
        order = rng.permuted(np.broadcast_to(np.arange(shape[-1]), shape), axis=-1)
        want = np.empty(shape, dtype=np.int64)
        for index in np.ndindex(shape):
            want[(*index[:-1], order[index])] = index[-1]
        expect_equal(
            f"undo_sort of shape {shape}",
            fn(order),
            want,
            "slot[order[s]] = s: the inverse, not order itself.",
        )
    print(f"check_undo_sort: {len(shapes)} cases")


@in_a_sentence
def check_split_chunks(fn, seed=0):
    """fn(order, chunk_length) -> (…, ⌈L / chunk_length⌉, chunk_length), free places −1; any length."""
    rng = np.random.default_rng(seed)
    n = 0
    for lead in ((), (2,), (3, 2)):
        for length in (1, 2, 7, 8, 9, 31):
            for chunk_length in (1, 2, 7, 8, 9, 64):
                order = rng.permuted(np.broadcast_to(np.arange(length), (*lead, length)), axis=-1)
                n_chunks = (length + chunk_length - 1) // chunk_length
                want = np.full((*lead, n_chunks, chunk_length), -1)
                for s in range(length):
                    want[..., s // chunk_length, s % chunk_length] = order[..., s]
                what = f"split_chunks of shape {order.shape}, chunk_length={chunk_length}"
                expect_equal(
                    what,
                    fn(order, chunk_length),
                    want,
                    "Slot s is place s % C of chunk s // C; free places hold −1.",
                )
                n += 1
    print(f"check_split_chunks: {n} cases")


@in_a_sentence
def check_look_adjacent(fn, seed=0):
    """fn(chunks, chunks_before, chunks_after, wrap, fill): any number of neighbours, also more than
    there are.
    """
    rng = np.random.default_rng(seed)
    n = 0
    for shape in ((1, 1, 1), (2, 3, 2), (2, 5, 2, 3), (2, 2, 4, 1, 2)):
        for before, after in ((0, 0), (1, 0), (0, 1), (1, 1), (2, 1), (3, 6)):
            for wrap, fill in ((False, 0), (False, -1), (True, 0)):
                chunks, n_chunks = rng.standard_normal(shape), shape[-3]
                want = np.full(
                    (*shape[:-2], (before + 1 + after) * shape[-2], shape[-1]), float(fill)
                )
                for c in range(n_chunks):
                    for place in range(before + 1 + after):
                        other = c - before + place
                        if wrap or 0 <= other < n_chunks:
                            mine = slice(place * shape[-2], (place + 1) * shape[-2])
                            want[..., c, mine, :] = chunks[..., other % n_chunks, :, :]
                what = f"look_adjacent of shape {shape}, before={before}, after={after}, wrap={wrap}, fill={fill}"
                hint = "Chunk c sees c − before … c + after in this order; beyond the ends only wrap=True goes round."
                expect_close(what, fn(chunks, before, after, wrap, fill), want, 0.0, hint)
                n += 1
    whole = np.arange(12).reshape(3, 4, 1)
    got = np.asarray(fn(whole, 1, 0, False, -1))
    expect_equal(
        "look_adjacent of integers, fill=-1",
        got[0, :, 0],
        [-1] * 4 + [0, 1, 2, 3],
        "Whole numbers stay whole.",
    )
    print(f"check_look_adjacent: {n + 1} cases")


def _masks(rng, shape):
    """Padding masks (True = real token) of one shape by name: none, on either side, in holes,
    nothing but padding.
    """
    at, length = np.broadcast_to(np.arange(shape[-1]), shape), shape[-1]
    cut = rng.integers(0, length, (*shape[:-1], 1))
    return {
        "no mask": None,
        "padded right": at <= cut,
        "padded left": at >= cut,
        "padded anywhere": rng.random(shape) < 0.6,
        "padding only": np.zeros(shape, dtype=bool),
    }
