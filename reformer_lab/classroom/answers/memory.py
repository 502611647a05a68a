"""Answers to A5: bytes, operations and the crossover. What the package counts is in ``memory_study``."""

import math

import numpy as np

from reformer_lab.classroom.answers import Answer
from reformer_lab.classroom.exercises.memory import CHUNK, HEADS, VOCAB
from reformer_lab.classroom.exercises.memory_texts import PRODUCTS, SORT


def _peak(variant):
    def peak_bytes(storage, n_bytes, born, died):
        first, last, size = {}, {}, {}
        for s, b, come, go in zip(*(x.tolist() for x in (storage, n_bytes, born, died)), strict=True):
            first[s] = min(come, first.get(s, come))
            last[s] = max(math.inf if go < 0 else go, last.get(s, 0))
            size[s] = -(-b // variant.block_bytes) * variant.block_bytes
        new = [s for s in first if first[s] > 0]
        change = sorted([(first[s], size[s]) for s in new] + [(last[s], -size[s]) for s in new])
        live = peak = moment = 0
        for t, step in change:  # at the same moment, what goes comes first
            live += step
            if live > peak:
                peak, moment = live, t
        return peak, moment

    return peak_bytes


def _scores(variant):
    def score_bytes(length, n_heads, n_hashes, chunk_length):
        n_chunks = -(-length // chunk_length)
        per_chunk = chunk_length * (variant.n_look + 1) * chunk_length
        at_a_time = min(max(1, variant.scores_at_a_time // per_chunk), n_heads * n_chunks)
        numbers = (n_heads * length**2, n_heads * n_hashes * n_chunks * per_chunk, at_a_time * per_chunk)
        return tuple(variant.number_bytes * n for n in numbers)

    return score_bytes


def _step(variant):
    def step_bytes(length, n_layers, d_model, d_ff, vocab_size, reversible):
        per_layer = 3 * d_model**2 + 2 * d_model * d_ff
        weights = (1 if variant.tied else 3) * vocab_size * d_model + n_layers * per_layer
        weights *= 2 + variant.optimizer_states
        kept, work = n_layers * 7 * d_model * length, 2 * d_model * length
        if reversible:
            kept = 2 * d_model * length
            work += max(5 * d_model * length, (2 * d_model + 2 * d_ff) * min(length, variant.ff_chunk))
        return tuple(variant.number_bytes * n for n in (weights, kept, work))

    return step_bytes


def _operations(variant):
    def operations(length, d_head, n_hashes, chunk_length, n_look):
        dense_products, lsh_products = PRODUCTS[variant.operations]
        pairs = length * (length + 1) // 2 if variant.dense_pairs == "half" else length**2
        seen = -(-length // chunk_length) * chunk_length * (n_look + 1) * chunk_length
        hashing = length * 2 * d_head * max(1, length // chunk_length)
        sorting = SORT * length * (length - 1).bit_length()  # ⌈log₂ L⌉, exactly
        return 2 * d_head * dense_products * pairs, n_hashes * (2 * d_head * lsh_products * seen + hashing + sorting)

    return operations


def _crossover(variant):
    def crossover(dense, lsh, chunk_length, longest):
        def pays(chunks):
            return variant.margin * lsh(chunks * chunk_length) < dense(chunks * chunk_length)

        low, high = 0, longest // chunk_length  # it does not pay at low, and does at high
        if high == 0 or not pays(high):
            return 0
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if pays(middle) else (middle, high)
        return high * chunk_length

    return crossover


def _study(variant):
    def study():
        from reformer_lab.classroom.answers.memory_study import study as count

        return count(variant)

    return study


# Cases


def _cases_of_peak(variant, rng, hidden):
    # six tokens of four numbers: x (there before), scores, weights, out = weights x, and the transpose of x
    toy = [[0, 1, 2, 3, 0], [96, 144, 144, 96, 96], [0, 1, 2, 4, 1], [-1, 3, 5, -1, 2]]
    b = variant.block_bytes  # the first view goes last; one storage comes as another one goes
    views = [[9, 9, 4, 7], [3 * b + 1, 3 * b + 1, 2 * b, 5 * b], [1, 2, 3, 5], [6, 3, 5, -1]]
    cases = [tuple(np.array(row) for row in rows) for rows in (toy, views)]
    sizes = ((10, 7),) if not hidden else ((1, 1), (30, 12), (400, 400), (2000, 700), (60, 3))
    for n, n_storages in sizes:
        storage = np.concatenate([rng.permutation(n_storages), rng.integers(0, n_storages, n - n_storages)])
        born = rng.integers(0, n // 2 + 2, n_storages)[storage] + np.where(np.arange(n) < n_storages, 0, 1)
        died = np.where(rng.random(n) < 0.2, -1, born + rng.integers(2, n // 3 + 4, n))
        n_bytes = rng.integers(1, 6 * variant.block_bytes, n_storages)[storage]
        mixed = rng.permutation(n)
        cases.append(tuple(x[mixed] for x in (3 * storage + 5, n_bytes, born, died)))
    if hidden:  # nothing new; one storage under two names, with the last tensor that goes not the last that comes
        cases.append((np.array([4, 4]), np.array([1000, 1000]), np.array([0, 3]), np.array([-1, 9])))
        cases.append((np.array([7, 7, 8]), np.array([10**11, 10**11, 1]), np.array([1, 2, 4]), np.array([6, 3, -1])))
    return cases


def _cases_of_scores(variant, rng, hidden):
    studied = (variant.length, HEADS, variant.n_hashes, CHUNK)
    if not hidden:  # whole chunks, each smaller than a block
        n_chunks, n_heads, n_hashes, c = _draw(rng, (5, 99), (1, 9), (2, 6), (4, 40))
        return [(6, 1, 2, 2), (n_chunks * c, n_heads, n_hashes, c), studied]
    return [
        (1, 1, 1, 1), (5, 3, 2, 8), (1000, 2, 3, 64), (variant.length + 1, 8, 4, 32), (2**20, 8, 4, 128),
        (5000, 1, 1, 1500), (257, 4, 2, 256), (2**17 + 5, 6, 8, 96),
    ]  # fmt: skip


def _cases_of_step(variant, rng, hidden):
    studied = (variant.length, variant.n_layers, variant.d_model, 4 * variant.d_model, VOCAB)
    if not hidden:
        drawn = _draw(rng, (5, 400), (2, 9), (4, 20), (20, 99), (50, 500))
        toy, chunked = (6, 2, 4, 8, 10), (2 * variant.ff_chunk, 1, 8, 64, 10)
        ways = [(*sizes, way) for sizes in (toy, drawn, studied) for way in (False, True)]
        return [*ways, (*chunked, True)]
    odd = [(variant.ff_chunk + 3, 3, 96, 96 * k, 1000, way) for k in (1, 3, 40) for way in (False, True)]
    return [*odd, (1, 1, 1, 1, 1, True), (2**20, 6, 1024, 4096, 256, True), (2**16, 24, 512, 512, 32_000, False)]


def _cases_of_operations(variant, rng, hidden):
    if not hidden:  # none shorter than a chunk
        drawn = _draw(rng, (101, 999), (4, 65), (2, 6), (8, 65), (1, 4))
        return [(8, 2, 1, 4, 1), (100, 16, 2, 32, 2), drawn, (variant.length, 64, variant.n_hashes, CHUNK, 1)]
    return [(1, 1, 1, 1, 1), (3, 8, 2, 64, 1), (4097, 64, 4, 64, 1), (4096, 64, 4, 64, 3), (2**20, 128, 8, 96, 2)]


def _cases_of_crossover(variant, rng, hidden):
    if not hidden:  # near enough for every length in turn
        square, line, c = _draw(rng, (9, 40), (100, 5000), (4, 40))
        toy, measured, never = ((3, 0, 96, 0, 8, 1000), (384, 2, 114_688, 4, 64, 65_536), (2, 2, 500, 0, 16, 4096))
        return [toy, (square, 1, line, 2, c, 900 * c), measured, never]
    far = [(1, 0, *_draw(rng, (10**5, 10**6)), 0, 1, 10**12) for _ in range(2)]
    return [
        *far, (900, 0, 10, 0, 64, 2**20), (variant.margin, 0, 640 * 3, 0, 64, 10**6), (384, 8, 2**19, 16, 48, 10**6),
        (1, 0, 10**9, 0, 4, 10**6), (5, 0, 1000, 0, 32, 31), (200, 3, 10**9, 64, 128, 10**12),
    ]  # fmt: skip


def _draw(rng, *ranges):
    """One int from every range (low, high)."""
    return tuple(int(rng.integers(low, high)) for low, high in ranges)


ANSWERS = {
    "A5.peak": Answer(_peak, _cases_of_peak),
    "A5.scores": Answer(_scores, _cases_of_scores),
    "A5.step": Answer(_step, _cases_of_step),
    "A5.operations": Answer(_operations, _cases_of_operations),
    "A5.crossover": Answer(_crossover, _cases_of_crossover),
    "A5.study": Answer(_study, lambda variant, rng, hidden: [()]),
}
