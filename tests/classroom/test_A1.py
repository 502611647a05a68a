"""A1, angular hashing: answers against the definitions, wrong solutions, the experiment of the notebook."""

import contextlib
import io
import math

import numpy as np
import pytest
from reformer_lab.classroom import cases
from reformer_lab.classroom.answers import answer
from reformer_lab.classroom.checks import check
from reformer_lab.classroom.exercises.hashing_pictures import wedges
from reformer_lab.classroom.grading import grade
from reformer_lab.classroom.variants import CHOICES, Variant
from reformer_ref.hashing import spec
from tests.classroom.harness import cells, variants

VARIANTS = variants("A1_hashing")
CELLS = cells("A1_hashing")


def angle_of_unit_vectors(x, y):
    x, y = (x / np.linalg.norm(x, axis=1, keepdims=True), y / np.linalg.norm(y, axis=1, keepdims=True))
    return np.arccos(np.clip(np.einsum("nd,nd->n", x, y), -1, 1))


def angle_of_chords(x, y):
    x, y = (x / np.linalg.norm(x, axis=1, keepdims=True), y / np.linalg.norm(y, axis=1, keepdims=True))
    return 2 * np.arctan2(np.linalg.norm(x - y, axis=1), np.linalg.norm(x + y, axis=1))


@pytest.mark.parametrize("fn", [angle_of_unit_vectors, angle_of_chords])
def test_other_ways_to_an_angle_lose_nothing(fn):
    for variant in VARIANTS:
        check("A1.angle", fn, variant)
        grade("A1.angle", fn, variant)


def test_wedges_count_rounds_from_0_and_say_where_the_columns_point():
    turns = np.radians([[10, 250], [80, 300]])
    rotations = np.stack([np.cos(turns), np.sin(turns)], axis=1)  # (2, 2, 2)
    around = np.repeat([[0, 1, 2, 3], [3, 2, 1, 0]], 3, axis=1)  # (2, 12)
    picture = wedges(np.eye(2), rotations, np.array([[0, 1], [2, 3]]), around)
    titles = [ax.get_title("center") for ax in picture.axes if ax.get_title("center")]
    assert titles == ["round 0\ncolumns at 10°, 250°", "round 1\ncolumns at 80°, 300°"]
    assert picture.numbers == {"round 0": "0 1", "round 1": "2 3"}
    assert {ax.get_ylabel() for ax in picture.axes} >= {"bucket, round 0", "bucket, round 1"}


def test_ties_are_in_one_visible_case_and_in_many_hidden_ones():
    for variant in VARIANTS:
        for hidden in (False, True):
            ties = 0
            for (x, rotations), _ in cases.compute("A1.hash", variant, hidden):
                xr = np.abs(x @ rotations)  # (n_hashes, L, b/2)
                ties += int(((xr == xr.max(axis=-1, keepdims=True)).sum(axis=-1) > 1).sum())
            assert ties > 20 if hidden else 1 <= ties <= 4


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.literal())
def test_answers_are_what_the_definitions_say_one_number_at_a_time(variant):
    for (scores, factors), (buckets,) in cases.compute("A1.factors", variant, hidden=True):
        for row, bucket in zip(scores.tolist(), buckets.tolist(), strict=True):
            digits, expected, n = [], 0, len(factors)
            for f in factors:
                digits.append(max(range(f), key=lambda k, row=row: row[k]))
                row = row[f:]
            for i, digit in enumerate(digits):
                others = factors[:i] if variant.factor_order == "first_fastest" else factors[i + 1 : n]
                expected += digit * math.prod(others)
            assert bucket == expected
    for (buckets,), (first,) in cases.compute("A1.meeting", variant, hidden=True):
        for i, j in np.ndindex(first.shape):
            rounds = [h for h, row in enumerate(buckets) if row[i] == row[j]]
            assert first[i, j] == min(rounds, default=-1)
    for (theta, miss), (n,) in cases.compute("A1.rounds", variant, hidden=True):
        assert [(theta / math.pi) ** m <= miss for m in range(1, int(n) + 1)] == [False] * (int(n) - 1) + [True]


def test_the_experiment_of_the_notebook_comes_out():
    namespace = {}
    for i in ("setup", "A1-hash", "A1-angle", "A1-measure"):
        exec(CELLS[i], namespace)
    with contextlib.redirect_stdout(io.StringIO()):
        exec(CELLS["experiment"], namespace)
    errors = namespace["distance"]
    assert np.abs(errors).max() < 3
    assert (np.abs(errors) < 1).sum() > len(errors) / 2
    assert (errors > 0).any()
    assert (errors < 0).any()


@pytest.mark.parametrize("hash_order", CHOICES["hash_order"])
@pytest.mark.parametrize("hash_ties", CHOICES["hash_ties"])
@pytest.mark.parametrize("factor_order", CHOICES["factor_order"])
def test_the_definitions_of_a1_agree_with_the_answers(hash_order, hash_ties, factor_order):
    variant = Variant(hash_order=hash_order, hash_ties=hash_ties, factor_order=factor_order)
    x, r = np.array([[1.0, -2.0]]), np.array([[[1.0, 0.0, 2.0], [1.0, 1.0, -1.0]]])
    text, fn = variant.describe("A1.hash"), answer("A1.hash").reference(variant)
    assert f"so the bucket is **{fn(x, r).item()}**" in text
    assert f"the **{hash_ties}** index wins" in text
    zeros = fn(np.zeros((1, 2)), r).item()
    assert zeros == (0 if hash_ties == "lowest" else 5)
    combined = answer("A1.factors").reference(variant)(np.eye(10)[[3]] + np.eye(10)[[4 + 1]], (4, 6))
    assert f"**{combined.item()}** of 24" in variant.describe("A1.factors")


def test_the_answer_at_the_open_variant_is_the_spec():
    fn, rng = answer("A1.hash").reference(Variant()), np.random.default_rng(0)
    for high in (1000, 2):
        x, r = (rng.integers(-high, high, (9, 4)).astype(float), rng.integers(-high, high, (3, 4, 5)).astype(float))
        assert np.array_equal(fn(x, r), spec.hash_vectors(x, r, 10))
