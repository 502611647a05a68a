"""All assignments: solutions of the notebooks, wrong solutions, definitions, and pictures of the first cases."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from reformer_lab.classroom.exercises import chunking_pictures, lsh_attention_texts, names
from reformer_lab.classroom.policy import broken_rules
from reformer_lab.classroom.variants import CHOICES, USES, Variant
from tests.classroom.harness import ALL, NOTEBOOKS, WRONG, cells, graded_by, lost_cells, marks, variants

ANSWERS = [(name, cell) for name in ALL for cell in graded_by(name)]
MISTAKES = [(name, wrong) for name in ALL for wrong in WRONG[name]]


def random_variants(assignment, n):
    """Variants of any choices for the fields of an assignment."""
    rng = np.random.default_rng(n)
    return [Variant(**{f: CHOICES[f][rng.integers(len(CHOICES[f]))] for f in USES[assignment]}) for _ in range(n)]


@pytest.mark.parametrize(("name", "cell"), ANSWERS, ids=[cell for _, cell in ANSWERS])
def test_solutions_obey_the_rules_and_lose_nothing(name, cell):
    solution = cells(name)[cell]
    assert broken_rules(solution) == []
    for variant in [*variants(name), *random_variants(name[:2], 6)]:
        assert lost_cells(name, {cell: solution}, variant) == [], variant


@pytest.mark.parametrize(("name", "wrong"), MISTAKES, ids=[wrong["name"] for _, wrong in MISTAKES])
def test_wrong_solutions_lose_exactly_what_they_should(name, wrong):
    assert not any(map(broken_rules, wrong["cells"].values()))
    for variant in variants(name):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # NumPy warns of some mistakes
            assert sorted(lost_cells(name, wrong["cells"], variant)) == sorted(wrong["loses"]), variant


@pytest.mark.parametrize("name", ALL)
def test_wrong_solutions_are_enough(name):
    wrong = WRONG[name]
    assert len({mistake["name"] for mistake in wrong}) == len(wrong) >= 6
    assert all(set(mistake) == {"name", "why", "cells", "loses"} and mistake["loses"] for mistake in wrong)
    assert {cell for mistake in wrong for cell in mistake["cells"]} == set(graded_by(name))
    graded = {c.id for c in NOTEBOOKS[name].cells if c.cell_type == "code" and marks(c).get("grade")}
    assert {cell for mistake in wrong for cell in mistake["loses"]} == graded
    assert any(all(cell.endswith("-hidden") for cell in mistake["loses"]) for mistake in wrong), "all fail the check"
    exercises = [exercise for tested in graded_by(name).values() for exercise in tested]
    assert [f"{e.replace('.', '-', 1)}-{kind}" for e in exercises for kind in ("check", "hidden")] == [
        cell.id for cell in NOTEBOOKS[name].cells if cell.id in graded
    ]
    assert set(exercises) == set(names(name[:2])) - {"A5.study"}


def in_the_text(variant):
    """A variant without the fields that change no definition: sizes, and ahead the order of a window."""
    orders = {"look_order": "by_place"} if variant.look == "ahead" else {}
    return replace(variant, length=8192, d_model=256, n_layers=6, n_hashes=2, **orders)


@pytest.mark.parametrize("name", ALL)
def test_definitions_are_short_and_tell_the_variants_apart(name):
    keys = [c.metadata["reformer_ref"]["describe"] for c in NOTEBOOKS[name].cells if "reformer_ref" in c.metadata]
    texts = {v: tuple(map(v.describe, keys)) for v in random_variants(name[:2], 60)}
    longest = max(len(text.split()) for written in texts.values() for text in written)
    assert longest <= (160 if name == "A5_memory" else 130)
    assert len(set(texts.values())) >= len(set(map(in_the_text, texts)))


@pytest.mark.parametrize(("assignment", "module"), [("A2", chunking_pictures), ("A3", lsh_attention_texts)])
def test_pictures_show_the_first_case(assignment, module):
    for variant in (Variant(), *random_variants(assignment, 1)):
        for exercise in module.PICTURES:
            picture = module.illustrate(exercise, variant)
            assert picture.caption
            assert picture.png().startswith(b"\x89PNG")
