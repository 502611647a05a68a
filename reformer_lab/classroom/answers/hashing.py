"""A1, angular hashing: the answers for every variant, and the cases they are tried on."""

import math

import numpy as np
from reformer_ref.hashing.checks import check_collision_probability

from reformer_lab.classroom.answers import Answer

SAME = [[1.0, 0.2, 0.9], [0.2, -0.9, 1.1], [-1.1, -1.6, 1.8], [2.0, 1.0, 2.0]]


def hash_vectors(variant):
    """fn(x (L, d), rotations (n_hashes, d, b/2)) -> buckets, int (n_hashes, L)."""

    def fn(x, rotations):
        xr = np.einsum("ld,hdk->hlk", x.astype(np.float64), rotations.astype(np.float64))  # (n_hashes, L, b/2)
        lists = {
            "positive_first": np.concatenate([xr, -xr], axis=-1),
            "negative_first": np.concatenate([-xr, xr], axis=-1),
            "interleaved": np.stack([xr, -xr], axis=-1).reshape(*xr.shape[:-1], -1),
        }
        scores = lists[variant.hash_order]  # (n_hashes, L, b)
        if variant.hash_ties == "lowest":
            return np.argmax(scores, axis=-1)
        return scores.shape[-1] - 1 - np.argmax(scores[..., ::-1], axis=-1)

    return fn


def angle(variant):
    """fn(x (n, d), y (n, d)) -> the angles in radians, float (n,)."""

    def fn(x, y):
        cosine = (x * y).sum(axis=-1) / (np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1))
        return np.arccos(np.clip(cosine, -1.0, 1.0))

    return fn


def measure(variant):
    """fn(theta (n,), bx (n_hashes, n), by (n_hashes, n)) -> (share (n,), standard errors from theory (n,))."""

    def fn(theta, bx, by):
        fraction, p = (bx == by).mean(axis=0), 1 - theta / np.pi
        return fraction, (fraction - p) / np.sqrt(p * (1 - p) / len(bx))

    return fn


def rounds_needed(variant):
    """fn(theta, miss) -> the smallest n with (θ/π)ⁿ ≤ miss, an int."""

    def fn(theta, miss):
        n = 1
        while (theta / math.pi) ** n > miss:
            n += 1
        return n

    return fn


def first_meeting(variant):
    """fn(buckets (n_hashes, L)) -> the first round in which i and j share a bucket, −1 if none, int (L, L)."""

    def fn(buckets):
        first = np.full((buckets.shape[1], buckets.shape[1]), -1)
        for h in reversed(range(len(buckets))):
            first[buckets[h][:, None] == buckets[h][None, :]] = h
        return first

    return fn


def factor_buckets(variant):
    """fn(scores (L, Σfactors), factors) -> buckets, int (L,)."""

    def fn(scores, factors):
        digits, start = [], 0
        for factor in factors:
            digits.append(np.argmax(scores[:, start : start + factor], axis=1))
            start += factor
        pairs = list(zip(digits, factors, strict=True))
        bucket = 0
        for digit, factor in reversed(pairs) if variant.factor_order == "first_fastest" else pairs:
            bucket = bucket * factor + digit
        return bucket

    return fn


def hash_cases(variant, rng, hidden):
    """Visible: vectors by hand, equal scores, random vectors. Hidden: float32, one vector, one column, many ties."""
    if not hidden:
        x = np.array([[1.0, -2.0], [3.0, 1.0], [-0.5, 0.2], [-1.0, -1.5]])
        rotations = np.array([[[1.0, 0.0, 2.0], [1.0, 1.0, -1.0]]])
        return [
            [x, rotations],
            [x, rotations[:, :, :1]],
            [np.array([[0.0, 0.0], [1.0, 1.0], [-2.0, 2.0]]), np.array([[[1.0, 0.0], [0.0, 1.0]]])],
            [rng.standard_normal((5, 3)).round(2), rng.standard_normal((2, 3, 2)).round(2)],
            [rng.standard_normal((3, 4)).round(2), rng.standard_normal((3, 4, 8)).round(2)],
        ]
    shapes = [(1, 1, 1, 1), (40, 5, 2, 1), (31, 8, 4, 3), (64, 16, 3, 16)]  # L, d, n_hashes, b/2
    cases = [[rng.standard_normal((n, d)), rng.standard_normal((h, d, k))] for n, d, h, k in shapes]
    small = [[rng.integers(-1, 2, a.shape).astype(np.float32) for a in args] for args in cases]  # exact, many ties
    return cases + small + [[np.zeros((3, 4)), rng.standard_normal((2, 4, 3))]]


def angle_cases(variant, rng, hidden):
    """Angles known by heart, parallel and opposite vectors, random ones; always a large angle beside angles of 0.

    The cosines of the visible x with themselves come out as 1.0000000000000002.
    """
    if not hidden:
        x = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
        y = np.array([[0.0, 3.0], [-2.0, 2.0], [1.0, 0.0], [-0.5, 0.0]])
        same = np.array(SAME)
        return [[x, y], [same, same * [[1.0], [1.0], [1.0], [-1.0]]], [*rng.standard_normal((2, 4, 3)).round(2)]]
    x = rng.standard_normal((60, 9))
    turned = np.where(np.arange(60)[:, None] % 2, -3, 1) * x
    return [[x, turned], [x, 5 * turned], [x, rng.standard_normal((60, 9))], [x[:1, :1], -x[:1, :1]]]


def measure_cases(variant, rng, hidden):
    """Recorded buckets of pairs at angles of their own: two buckets, from 1 round to 300, and the one by hand."""
    by_hand = [np.array([np.pi / 2]), np.array([[0], [1], [1], [0]]), np.array([[0], [1], [0], [0]])]
    cases = [] if hidden else [by_hand]
    for n_hashes, n in ((50, 7), (300, 2), (1, 5)) if hidden else ((4, 3), (8, 5)):
        theta = rng.uniform(0.2, 2.9, n).round(3)
        bx = rng.integers(0, 2, (n_hashes, n))
        cases.append([theta, bx, np.where(rng.random((n_hashes, n)) < theta / np.pi, 1 - bx, bx)])
    return cases


def rounds_cases(variant, rng, hidden):
    """Angles and chances; where (θ/π)ⁿ is the chance exactly, both are powers of ½, which floats hold exactly."""
    right_angle = math.pi / 2
    if not hidden:
        drawn = zip(rng.uniform(0.5, 2.6, 3).round(2), rng.uniform(0.005, 0.3, 3).round(3), strict=True)
        return [
            [right_angle, 0.2],
            [right_angle, 0.25],
            [0.0, 0.1],
            *([float(theta), float(miss)] for theta, miss in drawn),
        ]
    exact = [[right_angle, 0.125], [right_angle, 0.5], [right_angle, 2.0**-29], [right_angle / 2, 2.0**-6]]
    return [*exact, [0.0, 0.01], [right_angle, 0.9], [float(np.radians(175)), 0.001], [1.0, 1e-6]]


def meeting_cases(variant, rng, hidden):
    """Some pairs meet late, some never; hidden: one token, one round, large bucket numbers."""
    if not hidden:
        return [[np.array([[0, 1, 0, 2], [1, 1, 2, 2]])], [rng.integers(0, 3, (1, 5))], [rng.integers(0, 4, (3, 6))]]
    return [
        [rng.integers(0, high, shape)]
        for high, shape in ((2, (3, 1)), (2, (1, 9)), (7, (5, 24)), (10**12, (2, 6)), (1, (2, 4)))
    ]


def factor_cases(variant, rng, hidden):
    """Scores for one, two or three factors, the later ones smaller or larger than the first."""
    all_factors = ((2,), (6, 4, 2), (8, 16), (2, 2, 2, 2)) if hidden else ((4, 6), (4, 2), (6,))
    drawn = [[rng.standard_normal((21 if hidden else 3, sum(f))).round(7 if hidden else 2), f] for f in all_factors]
    if not hidden:
        drawn[0][0][0] = [0.1, -0.4, 0.2, 0.9, -1.3, 0.8, 0.0, -0.2, 0.5, 0.3]  # by hand: the parts 3 and 1
    return drawn


ANSWERS = {
    "A1.hash": Answer(hash_vectors, hash_cases, lambda fn: check_collision_probability(lambda x, r, n: fn(x, r))),
    "A1.angle": Answer(angle, angle_cases),
    "A1.measure": Answer(measure, measure_cases),
    "A1.rounds": Answer(rounds_needed, rounds_cases),
    "A1.meeting": Answer(first_meeting, meeting_cases),
    "A1.factors": Answer(factor_buckets, factor_cases),
}
