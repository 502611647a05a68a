"""Pictures of windows and of what later tokens change: the numbers told are the data's; bad shapes
are refused.
"""

import warnings

import numpy as np
import pytest
import torch
from reformer_lab.plots import local_attention as plots
from reformer_lab.plots.drawing import Picture
from reformer_lab.widgets import buckets as explorer
from reformer_lab.widgets.causality import causality
from reformer_ref.local_attention.options import LocalOptions
from reformer_ref.local_attention.spec import local_counts
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.model.config import ReformerConfig
from reformer_ref.model.pytorch import ReformerLM


def is_shown(picture):
    assert isinstance(picture, Picture)
    assert len(picture.caption) > 40
    assert picture.numbers
    with warnings.catch_warnings(action="error"):  # as when parts of a picture find no room
        assert picture.png(dpi=30).startswith(b"\x89PNG")
    return picture.numbers


@pytest.mark.parametrize(
    ("length", "chunk_length", "before", "want"),
    [(24, 6, 1, "1 to 12, mean 8"), (1, 1, 0, "1 to 1, mean 1"), (5, 8, 2, "1 to 5, mean 3")],
)
def test_window_patterns(length, chunk_length, before, want):
    counts = local_counts(np.ones(length, dtype=bool), LocalOptions(chunk_length, before))
    numbers = is_shown(plots.window_patterns({"here": counts, "twice": 2 * counts}, chunk_length))
    assert numbers["here: keys per query"] == want


def test_sorted_windows():
    buckets = np.array([1, 0, 1, 0, 1])
    order = np.argsort(buckets, kind="stable")
    numbers = is_shown(plots.sorted_windows({"a": (order, buckets, [2, 0]), "b": (order, buckets, [])}, 2, 4))
    assert numbers == {"a: token 4 sees": "0, 2", "b: token 4 sees": "no key"}
    is_shown(plots.sorted_windows({"one token": ([0], [0], [0])}, 3, 0))


def test_output_changes():
    change, changed = np.array([0.0, 0.3, 1e-16, 0.2, 5.0, 0.0]), np.arange(6) >= 4
    numbers = is_shown(plots.output_changes({"leaky": change, "tight": 1e-17 * change}, changed))
    assert numbers["leaky: earlier outputs changed"] == "2 of 4"
    assert numbers["leaky: largest change"] == 0.3
    assert numbers["tight: earlier outputs changed"] == "0 of 4"
    assert numbers["tight: largest change"] == "rounding"
    assert is_shown(plots.output_changes({"all": change}, changed | True))["all: earlier outputs changed"] == "0 of 0"


@pytest.mark.parametrize(
    ("name", "draw"),
    [
        ("patterns", lambda: plots.window_patterns({"x": np.ones((3, 4))}, 2)),
        ("patterns", lambda: plots.window_patterns({}, 2)),
        ("chunk_length", lambda: plots.window_patterns({"x": np.ones((3, 3))}, 0)),
        ("rows", lambda: plots.sorted_windows({"x": ([0, 1], [0, 0, 1], [])}, 2, 0)),
        ("rows", lambda: plots.sorted_windows({"x": ([0, 0], [0, 1], [])}, 2, 0)),
        ("query", lambda: plots.sorted_windows({"x": ([0, 1], [0, 1], [])}, 2, 2)),
        ("changed", lambda: plots.output_changes({"x": np.ones(3)}, np.zeros(3, dtype=bool))),
        ("changed", lambda: plots.output_changes({"x": np.ones(3)}, np.ones(3))),
        ("changes", lambda: plots.output_changes({"x": np.ones(4)}, np.ones(3, dtype=bool))),
        ("changes", lambda: plots.output_changes({"x": -np.ones(3)}, np.ones(3, dtype=bool))),
        ("buckets", lambda: explorer.bucket_lists(["a", "b"], np.zeros((1, 3), dtype=int), 2)),
        ("buckets", lambda: explorer.bucket_lists(["a", "b"], np.array([[0, 2]]), 2)),
        ("window", lambda: causality(window="wide")),
        ("token", lambda: causality(token=0)),
        ("text", lambda: explorer.spelling(text=" ")),
        ("by", lambda: explorer.split("a b", "sentences")),
    ],
)
def test_nonsense_is_refused_by_name(name, draw):
    with pytest.raises(ValueError, match=name):
        draw()


def test_causality_tells_the_leak_from_the_strict_window():
    for chunk_length in (2, 4, 8, 16):
        for rounds in (1, 4):
            numbers = causality(window="strict", rounds=rounds, chunk_length=chunk_length).numbers
            assert numbers["strict windows: largest change"] == "rounding"
            assert numbers["pairs lost"] == numbers["gained"] == 0
    for window in ("chunk", "ring"):
        numbers = causality(window=window).numbers
        assert numbers[f"{window} windows: largest change"] > 0.1
        assert numbers["pairs lost"] + numbers["gained"] > 0


def test_spelling_puts_alike_words_together():
    words = explorer.split("hash hashes Hash; king!", "words")
    assert words == ["hash", "hashes", "Hash", ";", "king", "!"]
    x = explorer.embed(words)
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    cosines = x @ x.T
    assert cosines[0, 2] == pytest.approx(1)
    assert cosines[0, 1] > 0.5 > abs(cosines[0, 4])
    numbers = explorer.spelling(text="hash Hash hash", rounds=2).numbers
    assert numbers["pairs together in every round"] == 3
    assert explorer.split("a b", "characters") == ["a", " ", "b"]
    assert is_shown(explorer.rows("hash hashes hashed king"))["tokens"] == 4


def test_collision_rates_count_pairs():
    buckets = np.array([[0, 0, 1], [0, 1, 1]])
    alike = np.array([[True, True, False], [True, True, False], [False, False, True]])
    assert explorer.collision_rates(buckets, alike) == (0.5, 0.25)


def test_buckets_of_a_model_are_those_of_its_layer():
    lsh = LSHOptions.preset("strict", n_hashes=3, n_buckets=4, chunk_length=4)
    shape = {"d_model": 16, "n_layers": 2, "n_heads": 2, "pattern": ("local", "lsh"), "max_length": 128}
    model = ReformerLM(ReformerConfig(**shape, lsh=lsh)).train()
    layer, text = model.backbone.stack.blocks[1].layers[0], "tokens, é"
    got = explorer.buckets_of_model(model, text)
    assert got.shape == (2, 3, 10)  # bytes, not characters
    assert model.training
    assert not layer.q._forward_hooks
    with torch.no_grad():
        x = model.backbone.embed(torch.tensor([list(text.encode())]))
        local, forward = model.backbone.stack.blocks[0].layers
        y1 = x + local(x)
        q = layer.q(layer.norm(x + forward(y1))).unflatten(-1, (2, -1)).transpose(1, 2)
    assert np.array_equal(got, layer.hash(q, range(2))[0].numpy())
    draw = explorer.queries(model, 4)
    for head in (1, 2):
        assert set(is_shown(draw(head=head))) >= {"round 1", "round 3"}
    with pytest.raises(ValueError, match="LSH layer"):
        explorer.buckets_of_model(ReformerLM(ReformerConfig(**shape | {"pattern": ("local",)})), text)
