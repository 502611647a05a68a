"""The pictures of sorting and chunking: the numbers are those of the data, at both ends; misfits are refused."""

import numpy as np
import pytest
from reformer_lab.plots import chunking as plots
from reformer_lab.plots.drawing import Picture
from reformer_lab.widgets import chunks as explorer
from reformer_ref.chunking.spec import sort_by_bucket, split_chunks, undo_sort
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.lsh_attention.spec import visible_counts
from tests.pictures import ends


def rows(length, chunk_length, n_buckets, seed=0):
    buckets = np.random.default_rng(seed).integers(0, n_buckets, (1, length))
    return explorer.rows_of_round([f"word{i}" for i in range(length)], buckets, chunk_length)


def is_drawn(picture, rendered=True):
    assert isinstance(picture, Picture)
    assert picture.caption
    assert not rendered or picture.png().startswith(b"\x89PNG")
    return picture.numbers


@pytest.mark.parametrize(("length", "chunk_length", "n_buckets"), [(1, 1, 1), (2, 24, 2), (16, 4, 4), (30, 8, 12)])
def test_round_in_rows(length, chunk_length, n_buckets):
    data = rows(length, chunk_length, n_buckets)
    numbers = is_drawn(plots.round_in_rows(**data))
    assert numbers["tokens"] == numbers["tokens back at their position"] == length
    assert sum(map(int, numbers["members of the buckets"].split(", "))) == length
    assert numbers["chunks"] == -(-length // chunk_length)
    assert numbers["slots left free"] == numbers["chunks"] * chunk_length - length
    seen = sum(
        numbers[n] for n in ("keys seen in the same chunk", "keys seen further back", "tokens that see only themselves")
    )
    assert seen == data["visible"].sum()


def test_every_step_adds_a_number():
    data, before = rows(6, 4, 2), set()
    for step in plots.STEPS:
        numbers = set(is_drawn(plots.round_in_rows(**data, upto=step), rendered=False))
        assert before < numbers
        before = numbers


def test_a_missing_undo_can_be_seen():
    data = rows(16, 4, 4)
    picture = plots.round_in_rows(**data | {"slot": data["order"]})
    assert picture.numbers["tokens back at their position"] < 16
    assert "not to their original" in picture.caption
    assert "not to their original" not in plots.round_in_rows(**data).caption


def test_padding_is_not_seen():
    """A padded token is last in the sorted order and sees nothing."""
    buckets, mask = np.array([[1, 0, 1, 0, 0]]), np.array([True, False, True, True, True])
    order = sort_by_bucket(buckets, mask)
    numbers = is_drawn(
        plots.round_in_rows(
            "abcde",
            buckets[0],
            order[0],
            undo_sort(order)[0],
            split_chunks(order, 2)[0],
            visible_counts(buckets, LSHOptions(chunk_length=2), mask),
        )
    )
    assert numbers["positions in sorted order"].endswith(" 1")
    assert numbers["tokens that see only themselves"] == 2


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("tokens", []),
        ("tokens", ["a"] * 15),
        ("buckets", np.zeros(15, dtype=int)),
        ("buckets", np.full(16, -1)),
        ("buckets", np.zeros(16)),
        ("order", np.zeros(16, dtype=int)),
        ("slot", np.arange(1, 17)),
        ("chunks", np.arange(16)),
        ("chunks", np.zeros((4, 4), dtype=int)),
        ("chunks", np.zeros((25, 2), dtype=int)),
        ("visible", np.ones((16, 15))),
        ("upto", "finished"),
    ],
)
def test_misfits_in_the_rows(name, bad):
    argument = "buckets" if name == "tokens" and bad else name
    with pytest.raises(ValueError, match=rf"^{argument} must"):
        plots.round_in_rows(**rows(16, 4, 4) | {name: bad})


@pytest.mark.parametrize("length", [1, 16, 40])
def test_four_matrices(length):
    rng = np.random.default_rng(length)
    qk, buckets = rng.standard_normal((length, 4)), rng.integers(0, 3, (1, length))
    data = explorer.matrices(qk, buckets)
    numbers = is_drawn(plots.four_matrices(**data), rendered=length == 16)
    visible = data["chunked"] > 0
    assert numbers["weight of (a) on pairs visible in (d)"] == pytest.approx(data["dense"][visible].sum() / length)
    assert numbers["visible pairs in (a), (c), (d)"].endswith(f" {visible.sum()}")
    for name, bad in (("dense", np.zeros((length, length + 1))), ("chunked", [0.5]), ("order", np.arange(99))):
        with pytest.raises(ValueError, match=rf"^{name} must have shape"):
            plots.four_matrices(**data | {name: bad})


def test_reached_pairs():
    numbers = is_drawn(plots.reached_pairs([0, 1, 2], [[0.25, 1, 1], [0, 0, 0.5]], ["few", "many"]))
    assert numbers == {"few": "0.250, 1.000, 1.000", "many": "0.000, 0.000, 0.500"}
    is_drawn(plots.reached_pairs([0], [[1.0]], ["one"]))
    with pytest.raises(ValueError, match=r"^fractions must have shape"):
        plots.reached_pairs([0, 1], [[1.0]], ["one"])


def test_looking_further_back_reaches_more():
    buckets = np.random.default_rng(0).integers(0, 3, (1, 96))
    reached = explorer.reached(buckets, 8, range(12))
    assert reached == sorted(reached)
    assert reached[0] < 1 == reached[-1]


def test_the_explorer_at_the_ends_of_its_controls():
    for name in explorer.chunks.controls:
        for value in ends(explorer.chunks, name):
            is_drawn(explorer.chunks(**{name: value}), rendered=False)
    assert explorer.chunks(chunk_length=4).numbers != explorer.chunks().numbers != explorer.chunks(seed=1).numbers
    assert explorer.chunks(chunks_before=0).numbers["keys seen further back"] == 0
    with pytest.raises(ValueError, match="chunk_length"):
        explorer.chunks(chunk_length=0)
