"""The pictures of sorting and chunking: caption and numbers tell what was given, at both ends;
misfits are refused.
"""

import numpy as np
import pytest
from reformer_lab.plots import chunking as plots
from reformer_lab.plots.drawing import Picture
from reformer_lab.widgets import chunks as explorer
from reformer_ref.chunking.spec import sort_by_bucket, split_chunks, undo_sort
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.lsh_attention.spec import visible_counts


def strips(length, chunk_length, n_buckets, seed=0):
    buckets = np.random.default_rng(seed).integers(0, n_buckets, (1, length))
    return explorer.strips([f"word{i}" for i in range(length)], buckets, chunk_length)


def is_drawn(picture, rendered=True):
    assert isinstance(picture, Picture)
    assert picture.caption
    assert not rendered or picture.png().startswith(b"\x89PNG")
    return picture.numbers


@pytest.mark.parametrize(("length", "chunk_length", "n_buckets"), [(1, 1, 1), (2, 24, 2), (16, 4, 4), (30, 8, 12)])
def test_five_strips(length, chunk_length, n_buckets):
    data = strips(length, chunk_length, n_buckets)
    told = is_drawn(plots.five_strips(**data))
    assert told["tokens"] == told["tokens back at their place"] == length
    assert sum(map(int, told["members of the buckets"].split(", "))) == length
    assert told["chunks"] == -(-length // chunk_length)
    assert told["places left free"] == told["chunks"] * chunk_length - length
    seen = sum(
        told[n] for n in ("keys seen in the own chunk", "keys seen further back", "tokens that see only themselves")
    )
    assert seen == data["visible"].sum()


def test_every_step_adds_a_number():
    data, before = strips(6, 4, 2), set()
    for step in plots.STEPS:
        told = set(is_drawn(plots.five_strips(**data, upto=step), rendered=False))
        assert before < told
        before = told


def test_a_missing_undo_can_be_seen():
    data = strips(16, 4, 4)
    picture = plots.five_strips(**data | {"slot": data["order"]})
    assert picture.numbers["tokens back at their place"] < 16
    assert "not to where" in picture.caption
    assert "not to where" not in plots.five_strips(**data).caption


def test_padding_that_nobody_sees():
    """A padded token stands last and sees nothing."""
    buckets, mask = np.array([[1, 0, 1, 0, 0]]), np.array([True, False, True, True, True])
    order = sort_by_bucket(buckets, mask)
    told = is_drawn(
        plots.five_strips(
            "abcde",
            buckets[0],
            order[0],
            undo_sort(order)[0],
            split_chunks(order, 2)[0],
            visible_counts(buckets, LSHOptions(chunk_length=2), mask),
        )
    )
    assert told["positions in sorted order"].endswith(" 1")
    assert told["tokens that see only themselves"] == 2


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
def test_misfits_in_the_strips(name, bad):
    argument = "buckets" if name == "tokens" and bad else name
    with pytest.raises(ValueError, match=rf"^{argument} must"):
        plots.five_strips(**strips(16, 4, 4) | {name: bad})


@pytest.mark.parametrize("length", [1, 16, 40])
def test_four_matrices(length):
    rng = np.random.default_rng(length)
    qk, buckets = rng.standard_normal((length, 4)), rng.integers(0, 3, (1, length))
    data = explorer.matrices(qk, buckets)
    told = is_drawn(plots.four_matrices(**data), rendered=length == 16)
    visible = data["chunked"] > 0
    assert told["weight of (a) on pairs visible in (d)"] == pytest.approx(data["dense"][visible].sum() / length)
    assert told["visible pairs in (a), (c), (d)"].endswith(f" {visible.sum()}")
    for name, bad in (("dense", np.zeros((length, length + 1))), ("chunked", [0.5]), ("order", np.arange(99))):
        with pytest.raises(ValueError, match=rf"^{name} must have shape"):
            plots.four_matrices(**data | {name: bad})


def test_reached_pairs():
    told = is_drawn(plots.reached_pairs([0, 1, 2], [[0.25, 1, 1], [0, 0, 0.5]], ["few", "many"]))
    assert told == {"few": "0.250, 1.000, 1.000", "many": "0.000, 0.000, 0.500"}
    is_drawn(plots.reached_pairs([0], [[1.0]], ["one"]))
    with pytest.raises(ValueError, match=r"^shares must have shape"):
        plots.reached_pairs([0, 1], [[1.0]], ["one"])


def test_looking_further_back_reaches_more():
    buckets = np.random.default_rng(0).integers(0, 3, (1, 96))
    shares = explorer.reached(buckets, 8, range(12))
    assert shares == sorted(shares)
    assert shares[0] < 1 == shares[-1]


def test_the_explorer_at_the_ends_of_its_controls():
    ends = {name: control.ends for name, control in explorer.chunks.controls.items()}
    for name, values in ends.items():
        for value in values:
            is_drawn(explorer.chunks(**{name: value}), rendered=False)
    assert explorer.chunks(chunk_length=4).numbers != explorer.chunks().numbers != explorer.chunks(seed=1).numbers
    assert explorer.chunks(chunks_before=0).numbers["keys seen further back"] == 0
    with pytest.raises(ValueError, match="chunk_length"):
        explorer.chunks(chunk_length=0)
