"""The pictures of the whole model: they show what they are given, at extremes too, and refuse what
does not fit.
"""

import numpy as np
import pytest
from reformer_lab.plots import model as plots
from reformer_lab.plots.drawing import Picture

BASELINES = {"byte frequencies": 4.78, "zlib": 3.17}


def drawn(picture):
    """All texts of the picture, after it has been drawn and checked."""
    assert isinstance(picture, Picture)
    assert len(picture.caption) > 40
    assert picture.numbers
    assert picture.png(dpi=40).startswith(b"\x89PNG")
    labels = [text for ax in picture.axes for text in ax.texts]
    assert all(text.get_fontsize() >= 8 for text in labels)
    return [text.get_text() for text in labels]


@pytest.mark.parametrize("layers", [("lsh",), ("local", "lsh"), ("local", "lsh", "dense"), ("regular",) * 40])
def test_data_flow_names_every_layer_that_is_drawn(layers):
    picture = plots.data_flow(layers, 1024, 320_000)
    texts = drawn(picture)
    assert [t for t in texts if t.startswith("F: ")] == [f"F: {kind}" for kind in layers[: 3 if len(layers) < 4 else 2]]
    assert any("38" in text for text in texts) == (len(layers) == 40)
    assert picture.numbers == {"layers": len(layers), "d_model": 1024, "width before the head": 2048}


@pytest.mark.parametrize(
    "models", [{"a": {"x": 1}}, {"a": {"x": 999_999}}, {"a": {"x": 10**13, "y": 0}, "b": {"x": 5, "y": 7}}]
)
def test_parameter_bars_add_up(models):
    picture = plots.parameter_bars(models, bytes_each=2)
    texts = drawn(picture)
    for ax, (name, counts) in zip(picture.axes, models.items(), strict=True):
        assert [bar.get_width() for bar in ax.patches] == list(counts.values())
        assert picture.numbers[f"{name}, all"] == sum(counts.values())
        assert picture.numbers[f"{name}, largest"].startswith(max(counts, key=counts.get))
    assert texts[0] in ("1  = 2 B", "1 M = 2 MB", "10 T = 20 TB")


def test_parameter_bars_of_a_model_without_parameters():
    assert plots.parameter_bars({"empty": {"x": 0}}).numbers["empty, all"] == 0


def test_difference_matrix_prints_every_cell():
    picture = plots.difference_matrix(["a", "b", "c"], [[0, 0.5, 1.25], [0.5, 0, 2], [1.25, 2, 0]])
    assert drawn(picture) == ["0", "0.50", "1.25", "0.50", "0", "2.00", "1.25", "2.00", "0"]
    assert picture.numbers == {"largest": 2.0, "between": "b and c"}
    drawn(plots.difference_matrix(["alone"], [[0.0]]))


def test_reach_counts_positions():
    reached = np.array([[True, False, True], [True, True, True]])
    picture = plots.reach(["local", "dense"], reached)
    assert drawn(picture) == ["0", "·", "2", "0", "1", "2"]
    assert picture.numbers == {"local": "2 of 3", "dense": "3 of 3"}
    drawn(plots.reach(["one"], np.zeros((1, 1), bool)))


def test_learning_curve_shows_curve_and_baselines():
    picture = plots.learning_curve([1, 2, 3], [7.0, 5.0, 4.0], [0, 3], [8.7, 4.2], BASELINES)
    drawn(picture)
    lines = {line.get_label(): list(line.get_ydata()) for line in picture.axes[0].lines}
    assert lines["training batch"] == [7.0, 5.0, 4.0]
    assert lines["held out: 4.20"] == [8.7, 4.2]
    assert lines["zlib: 3.17"] == [3.17, 3.17]
    assert picture.numbers == {"steps": 3, "before": 8.7, "after": 4.2, **BASELINES}
    drawn(plots.learning_curve([1], [90.0], [0], [90.0], {}))


def test_token_bars_mark_what_cannot_be_drawn():
    picture = plots.token_bars(["e", "␣"], {"all": np.array([0.75, 0.25]), "greedy": [1.0, 0.0]})
    assert drawn(picture) == ["0.75", "0.25", "1.00", "–"]
    assert picture.numbers["all: tokens that can be drawn"] == 2
    assert picture.numbers["greedy: tokens that can be drawn"] == 1
    assert picture.numbers["greedy: likeliest"] == 1.0
    drawn(plots.token_bars(list("abcdefghijklmnopqrst"), {str(n): np.full(20, 0.05) for n in range(6)}))


def test_rounds_at_evaluation_shows_draws_and_mean():
    picture = plots.rounds_at_evaluation([1, 8], [[3.0, 2.0], [5.0, 2.5]], "bits per byte", "2 rounds")
    drawn(picture)
    assert picture.axes[0].get_ylabel() == "bits per byte"
    assert list(picture.axes[0].lines[2].get_ydata()) == [4.0, 2.25]
    assert picture.numbers == {"rounds 1": 4.0, "rounds 8": 2.25}
    drawn(plots.rounds_at_evaluation([4], [[0.0]], "accuracy", "1 round"))


@pytest.mark.parametrize(
    ("draw", "name"),
    [
        (lambda: plots.data_flow((), 8, 8), "layers"),
        (lambda: plots.parameter_bars({}), "models"),
        (lambda: plots.parameter_bars({"a": {"x": 1}, "b": {"y": 1}}), "models"),
        (lambda: plots.difference_matrix(["a", "b"], np.zeros((2, 3))), "differences"),
        (lambda: plots.reach(["a"], np.zeros((2, 4), bool)), "reached"),
        (lambda: plots.reach(["a"], np.zeros((1, 4))), "reached"),
        (lambda: plots.learning_curve([1, 2], [3.0], [0], [3.0], {}), "train"),
        (lambda: plots.learning_curve([1], [3.0], [], [], {}), "held_out"),
        (lambda: plots.token_bars(["a"], {"x": [0.5, 0.5]}), "settings"),
        (lambda: plots.token_bars(["a"], {}), "settings"),
        (lambda: plots.rounds_at_evaluation([1, 2], [[3.0]], "bits", "2"), "scores"),
        (lambda: plots.rounds_at_evaluation([], np.zeros((1, 0)), "bits", "2"), "scores"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(draw, name):
    with pytest.raises(ValueError, match=name):
        draw()
