"""Assignment A2: its answers under every variant, the wrong solutions as plain functions, and its
pictures.
"""

import itertools
import json

import numpy as np
import pytest
from reformer_lab.classroom import cases, material
from reformer_lab.classroom.answers.chunking import ANSWERS
from reformer_lab.classroom.checks import check
from reformer_lab.classroom.exercises import chunking as topic
from reformer_lab.classroom.exercises.chunking_pictures import illustrate, whole_way
from reformer_lab.classroom.grading import grade
from reformer_lab.classroom.variants import CHOICES, Variant
from reformer_ref.chunking import spec
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.lsh_attention.spec import visible_counts

FIELDS = ("sort_ties", "look", "n_look", "look_order", "pad")
EVERY = [
    Variant(**dict(zip(FIELDS, values, strict=True))) for values in itertools.product(*(CHOICES[f] for f in FIELDS))
]
WRONG = json.loads((material.FOLDER / "wrong/A2_chunking.json").read_text())


def by_hand(name, variant):
    """The definitions once more, in plain Python."""
    earliest, back = variant.sort_ties == "earliest_first", variant.look == "back"

    def sort(buckets):
        return [sorted(range(len(row)), key=lambda i: (int(row[i]), i if earliest else -i)) for row in buckets]

    def chunk(order, chunk_length):
        row, free = list(order), -len(order) % chunk_length
        row = row + [-1] * free if variant.pad == "end" else [-1] * free + row
        return [row[start : start + chunk_length] for start in range(0, len(row), chunk_length)]

    def look(chunks):
        near_to_far = [-step if back else step for step in range(variant.n_look + 1)]
        steps = near_to_far if variant.look_order == "own_first" else sorted(near_to_far)
        held = dict(enumerate(chunks.tolist()))
        return [[i for step in steps for i in held.get(c + step, [-1] * chunks.shape[1])] for c in held]

    def visible(buckets, chunks, windows):
        side = (lambda j, i: j <= i) if earliest == back else (lambda j, i: j >= i)
        seen = np.zeros((*chunks.shape, windows.shape[1]), dtype=bool)
        for (c, k), i in np.ndenumerate(chunks):
            mates = [j for j in windows[c] if i >= 0 and j >= 0 and buckets[j] == buckets[i] and side(j, i)]
            seen[c, k] = np.isin(windows[c], mates if mates == [i] else [j for j in mates if j != i])
        return seen

    def undo(rows, chunks):
        return np.stack([rows[chunks == i][0] for i in range((chunks >= 0).sum())])

    return {"sort": sort, "chunk": chunk, "look": look, "visible": visible, "undo": undo}[name.partition(".")[2]]


def lost(cells, variant):
    """The graded cells that these answer cells lose."""
    graded = []
    for cell, source in cells.items():
        names = {"np": np, "VARIANT": variant}
        exec(source, names)
        fn = list(names.values())[-1]
        for part, run in (("check", check), ("hidden", grade)):
            try:
                run(cell.replace("-", "."), fn, variant)
            except Exception:
                graded.append(f"{cell}-{part}")
    return graded


@pytest.mark.parametrize("name", topic.EXERCISES)
def test_the_answers_are_what_the_definitions_say(name):
    for variant in EVERY:
        for args, (want,) in cases.compute(name, variant, hidden=True) + cases.compute(name, variant, hidden=False):
            assert np.array_equal(want, by_hand(name, variant)(*args))
        topic.EXERCISES[name].identities(ANSWERS[name].reference(variant), variant, np.random.default_rng(1))


@pytest.mark.parametrize("name", topic.EXERCISES)
def test_the_answers_pass_the_check_and_the_check_of_the_room(name, capsys):
    check(name, ANSWERS[name].reference(Variant()), Variant())
    assert (ANSWERS[name].room_check is None) != ("; check_" in capsys.readouterr().out)


def test_visible_pairs_are_those_of_lsh_attention():
    buckets = np.random.default_rng(0).integers(0, 5, 61)
    make = {name: ANSWERS[name].reference(Variant()) for name in ANSWERS}
    chunks = make["A2.chunk"](make["A2.sort"](buckets[None])[0], 8)
    windows, pairs = make["A2.look"](chunks), np.zeros((61, 61), dtype=int)
    seen = make["A2.visible"](buckets, chunks, windows)
    for c, k in np.ndindex(chunks.shape):
        pairs[chunks[c, k], windows[c][seen[c, k]]] += 1
    assert np.array_equal(pairs, visible_counts(buckets[None], LSHOptions(n_hashes=1, chunk_length=8)))


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong["name"])
def test_wrong_solutions_lose_what_they_should(wrong):
    for variant in [Variant(), *(Variant.draw(seed).only("A2") for seed in (1, 2, 3))]:
        assert lost(wrong["cells"], variant) == wrong["loses"]


def test_the_functions_of_the_package_do_not_solve_a_drawn_variant():
    package = {
        "A2.sort": spec.sort_by_bucket,
        "A2.chunk": spec.split_chunks,
        "A2.look": lambda chunks: spec.look_adjacent(chunks[..., None], 1, 0, fill=-1)[..., 0],
    }
    for seed in range(50):
        variant, failed = Variant.draw(seed).only("A2"), 0
        for name, fn in package.items():
            try:
                grade(name, fn, variant)
            except AssertionError:
                failed += 1
        assert failed >= 2, variant


def test_definitions_are_short_and_tell_the_variants_apart():
    told = {variant: tuple(describe(variant) for describe in topic.DESCRIBE.values()) for variant in EVERY}
    assert all(len(text.split()) <= 130 for texts in told.values() for text in texts)
    same = sum(v.look == "ahead" and v.look_order == "own_first" for v in EVERY)  # in this case both orders are one
    assert len(set(told.values())) >= len(EVERY) - same


@pytest.mark.parametrize("look", CHOICES["look"])
@pytest.mark.parametrize("sort_ties", CHOICES["sort_ties"])
def test_the_whole_way_speaks_of_the_variant(look, sort_ties):
    variant, buckets = Variant(look=look, sort_ties=sort_ties), np.array([0, 1, 0, 1])
    order = ANSWERS["A2.sort"].reference(variant)(buckets[None])[0]
    picture = whole_way("abcd", buckets, order, np.argsort(order), order.reshape(2, 2), np.eye(4), variant)
    said = " ".join([picture.caption, picture.numbers_text, *(text.get_text() for text in picture.axes[0].texts)])
    for word, where in (
        ("chunks before", "back"),
        ("further back", "back"),
        ("chunks after", "ahead"),
        ("further ahead", "ahead"),
    ):
        assert (word in said) == (where == look), word
    assert ("later" in said) == ("position)" not in said) == (sort_ties == "latest_first")


def test_pictures_show_the_first_case_of_every_variant():
    for variant in EVERY[5::20]:
        for name in topic.EXERCISES:
            picture = illustrate(name, variant)
            assert picture.caption
            assert picture.png().startswith(b"\x89PNG")
