"""Variants: what a seed draws, how it is written down, and that no package code fits a drawn one."""

import dataclasses

import pytest
from reformer_lab.classroom import cases
from reformer_lab.classroom.answers import answer
from reformer_lab.classroom.exercises import exercise
from reformer_lab.classroom.variants import CHOICES, TOPICS, UNUSUAL, USES, Variant

SEEDS = range(200)
DRAWN = [Variant.draw(seed) for seed in SEEDS]


def test_the_open_variant_takes_the_first_choice_of_every_field():
    fields = [field.name for field in dataclasses.fields(Variant)]
    assert fields == list(CHOICES)
    assert {name: choices[0] for name, choices in CHOICES.items()} == dataclasses.asdict(Variant())
    assert Variant().open
    assert not any(variant.open for variant in DRAWN)
    assert {name for used in USES.values() for name in used} == set(CHOICES)


def test_a_seed_draws_one_variant_and_many_seeds_draw_many():
    assert [Variant.draw(seed) for seed in SEEDS] == DRAWN
    for assignment, fewest in {"A1": 6, "A2": 10, "A3": 10, "A4": 15, "A5": 100}.items():
        assert len({variant.only(assignment) for variant in DRAWN}) >= fewest, assignment
    for name, choices in CHOICES.items():
        assert {getattr(variant, name) for variant in DRAWN} >= set(choices[1:]), name


@pytest.mark.parametrize("assignment", TOPICS)
def test_two_conventions_of_every_assignment_are_unusual(assignment):
    usual = Variant()
    for variant in DRAWN:
        differ = [name for name in USES[assignment] if getattr(variant, name) != getattr(usual, name)]
        assert len(differ) >= 2, (variant, differ)
        narrowed = variant.only(assignment)
        assert {n for n in CHOICES if getattr(narrowed, n) != getattr(usual, n)} == set(differ)
    for group in UNUSUAL:
        assert all(any(getattr(variant, name) != getattr(usual, name) for name in group) for variant in DRAWN), group


def test_json_and_literal_give_the_variant_back():
    for variant in (Variant(), *DRAWN[:20]):
        assert Variant.from_json(variant.to_json()) == variant
        assert eval(variant.literal(), {"Variant": Variant}) == variant
        assert max(map(len, variant.literal().splitlines())) <= 115


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Variant(hash_order="other"), "hash_order must be one of 'positive_first', "),
        (lambda: Variant(n_look=True), "n_look must be one of 1, 2, 3, got True"),
        (lambda: Variant.draw(-1), "seed must be at least 0, got -1"),
        (lambda: Variant.draw("7"), "seed must be an integer, got '7'"),
        (lambda: Variant.from_json('{"sign": 1}'), "must have exactly the fields hash_order, "),
        (lambda: Variant.from_json("[]"), "must have exactly the fields"),
        (lambda: Variant().describe("A1.other"), "must be one of A1.hash, A1.hash-hints, A1.factors, got 'A1.other'"),
        (lambda: exercise("A9.hash"), "name must begin with one of A1, A2, "),
        (lambda: exercise("A1.other"), "name must be one of A1.hash, "),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises((ValueError, TypeError)) as error:
        make()
    assert message in str(error.value)


def test_generators_differ_by_variant_name_and_part():
    numbers = [
        variant.rng(name, purpose).integers(2**60)
        for variant in (Variant(), DRAWN[0])
        for name in ("A1.hash", "A1.angle")
        for purpose in ("visible", "hidden")
    ]
    assert len(set(numbers)) == 8
    assert Variant().rng("A1.hash", "visible").integers(2**60) == numbers[0]


def package_loses(name, variant, hidden):
    """Whether the package's own conventions fail some case of an exercise."""
    task, usual = exercise(name), answer(name).reference(Variant())
    for args, expected in cases.compute.__wrapped__(name, variant, hidden):
        try:
            results = task.run(usual, args)
        except Exception:
            return True
        if any(a.shape != b.shape or task.wrong(a, b).any() for a, b in zip(results, expected, strict=True)):
            return True
    return False


# What the package has a function for, or a convention of; and of how many of these it loses visible and hidden tests
ASKED = {
    "A1": (("hash",), 1),
    "A2": (("sort", "chunk", "look"), 2),
    "A3": (("logits", "seen", "attend"), 2),
    "A4": (("forward", "inverse", "backward", "torch"), 4),
    "A5": (("peak", "scores", "step", "operations", "crossover"), 5),
}


@pytest.mark.parametrize("assignment", TOPICS)
def test_the_packages_own_conventions_lose_marks(assignment):
    exercises, fewest = ASKED[assignment]
    for variant in {Variant.draw(seed).only(assignment) for seed in range(25)}:
        for hidden in (False, True):
            losing = [name for name in exercises if package_loses(f"{assignment}.{name}", variant, hidden)]
            assert len(losing) >= fewest, (variant, losing)
