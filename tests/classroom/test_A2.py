"""Assignment A2: its answers under every variant, the wrong solutions as plain functions, and its pictures."""

import itertools

import numpy as np
import pytest
from reformer_lab.classroom import cases
from reformer_lab.classroom.answers.chunking import ANSWERS
from reformer_lab.classroom.exercises import chunking as topic
from reformer_lab.classroom.exercises.chunking_pictures import whole_way
from reformer_lab.classroom.variants import CHOICES, Variant
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.lsh_attention.spec import visible_counts

FIELDS = ("sort_ties", "look", "n_look", "look_order", "pad")
ALL_VARIANTS = [
    Variant(**dict(zip(FIELDS, values, strict=True))) for values in itertools.product(*(CHOICES[f] for f in FIELDS))
]


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
        steps = near_to_far if variant.look_order == "nearest_first" else sorted(near_to_far)
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


@pytest.mark.parametrize("name", topic.EXERCISES)
def test_the_answers_are_what_the_definitions_say(name):
    for variant in ALL_VARIANTS:
        for args, (want,) in cases.compute(name, variant, hidden=True) + cases.compute(name, variant, hidden=False):
            assert np.array_equal(want, by_hand(name, variant)(*args))
        topic.EXERCISES[name].identities(ANSWERS[name].reference(variant), variant, np.random.default_rng(1))


def test_visible_pairs_are_those_of_lsh_attention():
    buckets = np.random.default_rng(0).integers(0, 5, 61)
    make = {name: ANSWERS[name].reference(Variant()) for name in ANSWERS}
    chunks = make["A2.chunk"](make["A2.sort"](buckets[None])[0], 8)
    windows, pairs = make["A2.look"](chunks), np.zeros((61, 61), dtype=int)
    seen = make["A2.visible"](buckets, chunks, windows)
    for c, k in np.ndindex(chunks.shape):
        pairs[chunks[c, k], windows[c][seen[c, k]]] += 1
    assert np.array_equal(pairs, visible_counts(buckets[None], LSHOptions(n_hashes=1, chunk_length=8)))


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
