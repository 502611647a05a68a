"""Pictures of LSH attention, and the explorer: what they show is what the spec and PyTorch compute."""

from itertools import product

import numpy as np
import pytest
import torch
from reformer_lab.plots import lsh_attention as plots
from reformer_lab.plots.drawing import Picture
from reformer_lab.widgets.pattern import LENGTH, pattern, tokens, visibility_reasons
from reformer_ref.lsh_attention.api import lsh_attention
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.lsh_attention.spec import visible_counts
from tests.pictures import ends


def expect_picture(picture):
    assert isinstance(picture, Picture)
    assert picture.caption
    assert picture.numbers
    assert picture.png(dpi=40).startswith(b"\x89PNG")
    return picture.numbers


def record(options):
    """(weights (12, 12), order, buckets) of the explorer's tokens, from the PyTorch version."""
    qk, buckets = tokens()
    buckets = buckets[: options.n_hashes]
    _, record = lsh_attention(*map(torch.tensor, (qk, qk, buckets)), options, return_record=True)
    return record.dense(), record.order, buckets


def test_patterns():
    weights = record(LSHOptions(chunk_length=4))[0]
    numbers = expect_picture(plots.patterns({"weights": weights, "counts": np.eye(12, dtype=int)}))
    assert numbers == {"pairs seen, weights": int((weights > 0).sum()), "pairs seen, counts": 12}
    for n, length in ((1, 1), (4, 17), (5, 32)):
        expect_picture(plots.patterns({str(i): np.zeros((length, length)) for i in range(n)}))


def test_sorted_pattern():
    for chunk_length in (1, 4, 12, 99):
        weights, order, buckets = record(LSHOptions(chunk_length=chunk_length))
        numbers = expect_picture(plots.sorted_pattern(weights, order[0], buckets[0], chunk_length))
        assert numbers["pairs seen"] == int((weights > 0).sum())
        assert numbers["chunks"] == -(-12 // chunk_length)


def test_weights_by_key():
    numbers = expect_picture(plots.weights_by_key({"once": [0.25, 0.75], "twice": [0.5, 0.5]}, ["A", "B"]))
    assert numbers == {"once, A": 0.25, "once, B": 0.75, "twice, A": 0.5, "twice, B": 0.5}
    expect_picture(plots.weights_by_key({"one": [1.0]}))


def test_recall_and_active():
    numbers = expect_picture(plots.recall([1, 2, 8], {"": {"few": [0.1, 0.2, 0.5]}, "more": {"many": [0.0, 1.0, 1.0]}}))
    assert numbers == {"few, 1 round": 0.1, "few, 8 rounds": 0.5, "many, 1 round": 0.0, "many, 8 rounds": 1.0}
    expect_picture(plots.recall([1], {"one": {"a": [1.0]}}))
    numbers = expect_picture(plots.active([32, 1024], {"paper": [1.0, 0.1]}, 64))
    assert numbers == {"paper, L = 32": 1.0, "paper, L = 1,024": 0.1}


BAD = {
    "matrices": lambda: plots.patterns({"a": np.zeros((2, 3))}),
    "dict": lambda: plots.patterns({}),
    "finite": lambda: plots.patterns({"a": np.full((2, 2), np.nan)}),
    "order": lambda: plots.sorted_pattern(np.zeros((2, 2)), [0, 0], [1, 1], 2),
    "chunk_length": lambda: plots.sorted_pattern(np.zeros((2, 2)), [0, 1], [1, 1], 0),
    "keys": lambda: plots.weights_by_key({"a": [1.0]}, ["A", "B"]),
    "rounds": lambda: plots.recall([0], {"a": {"b": [1.0]}}),
    "panels": lambda: plots.recall([1], {"a": {"b": [1.0, 1.0]}}),
    "fractions": lambda: plots.active([1, 2], {"a": [0.1, 1.2]}, 4),
    "lengths": lambda: plots.active([1], {"a": [0.1]}, 4),
    "reasons": lambda: plots.query_by_round(np.eye(2), np.eye(2), 2, [[0, 1]], [[0, 0]], [[1, 0]], [["", ""]]),
    "dense": lambda: plots.query_by_round(np.eye(2), np.eye(3), 0, [[0, 1]], [[0, 0]], [[1, 0]], [["", ""]]),
}


@pytest.mark.parametrize("named", BAD)
def test_refused(named):
    with pytest.raises(ValueError, match=named):
        BAD[named]()


@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize("within", [True, False])
@pytest.mark.parametrize("causal", ["none", "causal", "strict"])
def test_reasons_agree_with_the_pattern(causal, within, once):
    """Over all rounds, a query attends to exactly those whom the spec shows it, each once or once
    per round.
    """
    for rounds, chunk_length in product((1, 2, 4), (1, 4, 12)):
        strict = causal == "strict"
        options = LSHOptions(
            n_hashes=rounds,
            chunk_length=chunk_length,
            causal=causal != "none",
            within_bucket=within or strict,
            count_once=once,
            window="rank" if strict else "chunk",
        )
        buckets = tokens()[1][:rounds]
        counts = visible_counts(buckets, options)
        for query in range(LENGTH):
            seen, reasons = visibility_reasons(query, buckets, options)
            only_self = counts[query, query] > 0
            assert only_self or np.array_equal(seen.sum(0), counts[query])
            assert not only_self or np.flatnonzero(seen.any(0)).tolist() == [query]
            given = np.array([[r.split()[0] in ("same", "chunk", "recent", "itself:") for r in row] for row in reasons])
            assert np.array_equal(given, seen)


def test_every_control_of_the_explorer_changes_the_numbers():
    """Both ends of every control; the weights are those of the PyTorch version."""
    weights, _, _ = record(LSHOptions(n_hashes=2, chunk_length=4))
    static = pattern()
    assert static.numbers["pairs seen by all queries"] == int((weights > 0).sum())
    percent = ", ".join(f"{j}: {100 * w:.0f} %" for j, w in enumerate(weights[9].tolist()) if w > 0)
    assert static.numbers["weights of the query"] == percent
    for name in pattern.controls:
        pictures = [pattern(**{name: end}) for end in ends(pattern, name)]
        assert all(p.caption for p in pictures)
        assert len({p.numbers_text for p in pictures}) == len(ends(pattern, name)), name
    everything = {"rounds": 4, "chunk_length": 12, "within_bucket": False, "count_once": False, "causal": "none"}
    assert expect_picture(pattern(**everything, query=0))["pairs seen by all queries"] == LENGTH * (LENGTH - 1)
    with pytest.raises(ValueError, match="query"):
        pattern(query=12)
