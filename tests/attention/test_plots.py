"""Pictures of dense attention show the numbers they are given, at the ends of what they accept, and
refuse the rest.
"""

import numpy as np
import pytest
from reformer_lab.plots import attention as plots
from reformer_lab.plots.drawing import Picture
from reformer_lab.widgets.pattern import SIX, WORDS, dense_pattern
from reformer_ref.attention import spec
from tests.pictures import ends


def causal_weights(qk):
    counts = spec.self_as_last_resort(spec.visible_pairs(len(qk), len(qk), causal=True))
    return spec.attend(qk, spec.normalize_keys(qk), qk, counts)[1]


def expect_picture(picture):
    assert isinstance(picture, Picture)
    assert picture.caption
    assert picture.numbers
    assert picture.png().startswith(b"\x89PNG")
    return picture.numbers


def test_attention_matrices():
    weights = causal_weights(SIX)
    numbers = expect_picture(plots.attention_matrices({"one": weights, "none": np.zeros((6, 6))}, WORDS))
    assert numbers["one: pairs seen"] == 16  # 6 · 5 / 2, and the first token itself
    assert numbers["one: largest weight"] == 1.0
    assert numbers["none: pairs seen"] == 0
    for length in (1, 17, 40):  # one cell; no numbers in cells
        expect_picture(plots.attention_matrices({"": causal_weights(np.ones((length, 2)))}))


@pytest.mark.parametrize(
    ("matrices", "labels"),
    [
        ({}, None),
        ({"a": np.zeros((2, 3))}, None),
        ({"a": np.zeros((0, 0))}, None),
        ({"a": np.full((2, 2), 1.5)}, None),
        ({"a": np.full((2, 2), np.nan)}, None),
        ({"a": np.zeros((2, 2))}, ["one"]),
        ({"a": np.zeros((2, 2)), "b": np.zeros((3, 3))}, None),
    ],
)
def test_attention_matrices_refuses(matrices, labels):
    with pytest.raises(ValueError, match="matrices"):
        plots.attention_matrices(matrices, labels)


def test_growth():
    lengths = np.array([1024, 65536])
    panels = {"bytes": {"matrix": 4 * lengths**2}, "operations": {"all": lengths**2, "few": lengths}}
    numbers = expect_picture(plots.growth(lengths, panels))
    assert numbers["bytes, matrix, at 65,536"] == 4 * 65536**2
    assert numbers["operations, few, at 65,536"] == 65536


@pytest.mark.parametrize(
    ("lengths", "panels", "named"),
    [
        ([1], {"bytes": {"a": [1]}}, "lengths"),
        ([0, 1], {"bytes": {"a": [1, 2]}}, "lengths"),
        ([1, 2], {}, "panels"),
        ([1, 2], {"bytes": {}}, "panels"),
        ([1, 2], {"bytes": {"a": [1]}}, "panels"),
        ([1, 2], {"bytes": {"a": [0, 1]}}, "panels"),
    ],
)
def test_growth_refuses(lengths, panels, named):
    with pytest.raises(ValueError, match=named):
        plots.growth(lengths, panels)


def test_weight_of_keys():
    numbers = expect_picture(plots.weight_of_keys({"even": np.arange(1, 101) / 100, "one": np.ones(100)}))
    assert numbers == {"keys for 90%, even": 90, "keys for 90%, one": 1}
    assert plots.weight_of_keys({"x": [1.0]}, fraction=0.5).numbers == {"keys for 50%, x": 1}


@pytest.mark.parametrize("curve", [[], [0.5, 0.4, 1.0], [0.1, 0.2], [1.1], [[1.0]], [np.nan, 1.0]])
def test_weight_of_keys_refuses(curve):
    with pytest.raises(ValueError, match="cumulative"):
        plots.weight_of_keys({"x": curve})
    with pytest.raises(ValueError, match="fraction"):
        plots.weight_of_keys({"x": [1.0]}, fraction=1.0)


def test_the_explorer_of_six_words():
    """Drawn at both ends of every control, alone; the numbers are those of the spec, and each rule
    changes them.
    """
    static = dense_pattern()
    assert static.numbers["six words: pairs seen"] == 16
    on_itself = causal_weights(SIX).diagonal().mean()
    assert static.numbers["mean weight on itself"] == pytest.approx(on_itself)
    for name in dense_pattern.controls:
        pictures = [dense_pattern(**{name: end}) for end in ends(dense_pattern, name)]
        assert all(expect_picture(picture) for picture in pictures)
        assert len({picture.numbers_text for picture in pictures}) == len(pictures), name
    with pytest.raises(ValueError, match="scale"):
        dense_pattern(scale=-1.0)
