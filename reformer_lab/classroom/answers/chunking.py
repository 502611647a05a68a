"""A2: the answers under every variant, built on the specs of chunking, and the cases."""

import numpy as np
from reformer_ref.chunking import checks, spec

from reformer_lab.classroom.answers import Answer
from reformer_lab.classroom.exercises.chunking import sees_later

TOY = np.array([1, 0, 2, 1, 0, 1, 0, 1, 1, 2])  # buckets of ten tokens: bucket 1 lies across the border of two chunks


def _sort(variant):
    def sort_order(buckets):
        if variant.sort_ties == "earliest_first":
            return spec.sort_by_bucket(buckets)
        return buckets.shape[-1] - 1 - spec.sort_by_bucket(buckets[..., ::-1])  # the same with time turned round

    return sort_order


def _chunk(variant):
    def cut(order, chunk_length):
        if variant.pad == "end":
            return spec.split_chunks(order, chunk_length)
        return spec.split_chunks(order[::-1], chunk_length)[::-1, ::-1]

    return cut


def _look(variant):
    def look(chunks):
        before, after = (variant.n_look, 0) if variant.look == "back" else (0, variant.n_look)
        windows = spec.look_adjacent(chunks[..., None], before, after, fill=-1)[..., 0]
        if variant.look_order == "nearest_first" and variant.look == "back":
            windows = windows.reshape(len(chunks), -1, chunks.shape[1])[:, ::-1].reshape(windows.shape)
        return windows

    return look


def _visible(variant):
    def visible(buckets, chunks, windows):
        seen = np.zeros((*chunks.shape, windows.shape[1]), dtype=bool)
        for c, k in np.ndindex(chunks.shape):
            i = chunks[c, k]
            row = [
                i >= 0 and j >= 0 and buckets[j] == buckets[i] and (j >= i if sees_later(variant) else j <= i)
                for j in windows[c]
            ]
            others = [may and j != i for may, j in zip(row, windows[c], strict=True)]
            seen[c, k] = others if any(others) else row
        return seen

    return visible


def _undo(variant):
    def put_back(rows, chunks):
        place = {int(i): at for at, i in enumerate(chunks.ravel())}
        flat = rows.reshape(chunks.size, -1)
        return np.stack([flat[place[i]] for i in range((chunks >= 0).sum())])

    return put_back


def _cases_of_sort(variant, rng, hidden):
    if not hidden:
        unsigned = np.array([[2, 0, 1, 2, 0], [5, 5, 5, 5, 5]], dtype=np.uint8)
        return [(TOY[None],), (unsigned,), (rng.integers(0, 4, (3, 9)),)]
    few = [rng.integers(0, 6, shape) for shape in ((1, 1), (2, 2), (1, 23), (4, 257), (2, 1030))]
    large = np.array([0, 7, 2**31 + 5, 2**62 + 1])[rng.integers(0, 4, (2, 43))]  # bucket · L is beyond 64 bits
    small = rng.integers(0, 250, (3, 200))
    return [(buckets,) for buckets in (*few, large, small.astype(np.uint8), 8_000_000 * small.astype(np.int32))]


def _cases_of_chunk(variant, rng, hidden):
    sizes = ((7, 3), (8, 4), (5, 8))
    if hidden:
        sizes = ((1, 1), (1, 4), (2, 1), (31, 8), (32, 8), (33, 8), (300, 64), (5, 64))
    cases = [(rng.permutation(length), chunk_length) for length, chunk_length in sizes]
    return cases if hidden else [(_sorted(variant, TOY), 4), *cases]


def _cases_of_look(variant, rng, hidden):
    sizes = ((5, 2), (1, 3))
    if hidden:
        sizes = ((1, 1), (2, 1), (2, 5), (3, 4), (4, 7), (20, 16))
    cases = [(_free(rng, rng.permutation(n * m - m + 1), n, m),) for n, m in sizes]
    return cases if hidden else [(_chunks(variant, TOY, 4),), *cases]


def _cases_of_visible(variant, rng, hidden):
    sizes = ((7, 3, 2), (6, 2, 3))
    if hidden:
        sizes = ((1, 1, 1), (1, 4, 2), (31, 4, 3), (64, 8, 1), (90, 16, 40), (128, 16, 8))
    draws = [(rng.integers(0, n_buckets, length), chunk_length) for length, chunk_length, n_buckets in sizes]
    cases = []
    for buckets, chunk_length in draws if hidden else [(TOY, 4), *draws]:
        chunks = _chunks(variant, buckets, chunk_length)
        cases.append((buckets, chunks, _look(variant)(chunks)))
    return cases


def _cases_of_undo(variant, rng, hidden):
    if hidden:
        sizes, cases = (((1, 1, 1, 1), (1, 1, 4, 2), (12, 3, 4, 5), (31, 4, 8, 16), (200, 4, 64, 3)), [])
    else:
        toy, sizes = _chunks(variant, TOY, 4), ((8, 3, 3, 1),)
        scattered = np.array([[-1, 3, -1, 0], [1, -1, 2, -1]])
        cases = [(np.where(toy < 0, 99.0, 10.0 * toy)[..., None], toy), (rng.integers(1, 99, (2, 4, 2)), scattered)]
    for length, n, m, d in sizes:
        rows = rng.standard_normal((n, m, d)).round(2)
        cases.append((rows.astype(np.float32) if length > 100 else rows, _free(rng, rng.permutation(length), n, m)))
    return cases


def _sorted(variant, buckets):
    return _sort(variant)(buckets[None])[0]


def _chunks(variant, buckets, chunk_length):
    return _chunk(variant)(_sorted(variant, buckets), chunk_length)


def _free(rng, positions, n_chunks, chunk_length):
    """Chunks of these positions in this order, the free places anywhere, the last place among them if any is free."""
    places = np.sort(rng.permutation(max(n_chunks * chunk_length - 1, len(positions)))[: len(positions)])
    flat = np.full(n_chunks * chunk_length, -1)
    flat[places] = positions
    return flat.reshape(n_chunks, chunk_length)


def _check_sort(fn):
    def sort_by_bucket(buckets, padding_mask):
        if padding_mask is not None:
            buckets = np.where(padding_mask[..., None, :], buckets, buckets.max() + 1)  # behind all others
        return fn(buckets.reshape(-1, buckets.shape[-1])).reshape(buckets.shape)

    checks.check_sort_by_bucket(sort_by_bucket)


def _check_chunk(fn):
    def split_chunks(order, chunk_length):
        cut = [fn(row, chunk_length) for row in order.reshape(-1, order.shape[-1])]
        return np.stack(cut).reshape(*order.shape[:-1], -1, chunk_length)

    checks.check_split_chunks(split_chunks)


def _check_undo(fn):
    def undo_sort(order):
        rows = order.reshape(-1, order.shape[-1])
        slots = np.arange(rows.shape[-1])[None, :, None]
        return np.stack([fn(slots, row[None])[:, 0] for row in rows]).reshape(order.shape)

    checks.check_undo_sort(undo_sort)


ANSWERS = {
    "A2.sort": Answer(_sort, _cases_of_sort, _check_sort),
    "A2.chunk": Answer(_chunk, _cases_of_chunk, _check_chunk),
    "A2.look": Answer(_look, _cases_of_look),
    "A2.visible": Answer(_visible, _cases_of_visible),
    "A2.undo": Answer(_undo, _cases_of_undo, _check_undo),
}
