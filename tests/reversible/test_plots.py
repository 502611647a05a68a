"""The pictures of the reversible stack, and what notebook 06 measures for them."""

import numpy as np
import pytest
from reformer_lab.plots import reversible as plots
from reformer_lab.widgets import reconstruction as lab
from reformer_ref.reversible import adapters, checks
from tests.pictures import drawn, texts

VALUES = {"x1": 2, "x2": 3, "F(x2)": 9, "y1": 11, "G(y1)": 33, "y2": 36}
GRADIENTS = {"y1": 0, "y2": 1, "y1, all": 3, "x1": 3, "x2": 19}


def test_two_streams_show_the_numbers_given():
    picture = plots.two_streams(VALUES, GRADIENTS)
    assert drawn(picture) == {**VALUES, "gradient of x1": 3, "gradient of x2": 19}
    for text in ("x₁ = 2", "F(x₂) = 9", "y₂ = 36", "x₂ = 3\ngradient 19", "gradient 3"):
        assert text in texts(picture)
    for values, gradients, name in (({"x1": 1}, GRADIENTS, "values"), (VALUES, {}, "gradients")):
        with pytest.raises(ValueError, match=name):
            plots.two_streams(values, gradients)


def test_error_by_depth_tells_the_last_and_leaves_out_zeros():
    picture = plots.error_by_depth([1, 4], {"a": [0.0, 1e-6], "b": np.array([1e-3, 20.0])}, "format")
    assert drawn(picture) == {"a, depth 4": 1e-6, "b, depth 4": 20.0}
    assert "nothing left" in texts(picture)
    np.testing.assert_array_equal(picture.axes[0].lines[0].get_ydata(), [np.nan, 1e-6])
    with pytest.raises(ValueError, match="errors of a"):
        plots.error_by_depth([1, 4], {"a": [1.0]}, "format")
    with pytest.raises(ValueError, match="depths"):
        plots.error_by_depth([], {}, "format")


@pytest.mark.parametrize("errors", [[1e-7, 0.0], np.geomspace(1e14, 1e-16, 25)])
def test_error_by_layer(errors):
    assert drawn(plots.error_by_layer(errors, 6e-8, "float32", more=1)) == {
        "error of the input": errors[0],
        "rounding": 6e-8,
        "more": 1,
    }
    with pytest.raises(ValueError, match="errors"):
        plots.error_by_layer([1.0], 6e-8, "float32")


def test_bytes_by_depth():
    numbers = drawn(plots.bytes_by_depth([1, 2, 4], {"ordinary": [100, 200, 400], "reversible": [50, 50, 50]}))
    assert numbers["ordinary, depth 4, bytes"] == 400
    assert numbers["ordinary, bytes for one more block"] == 100
    assert numbers["reversible, bytes for one more block"] == 0
    for depths, counted, name in (([1], {}, "depths"), ([1, 2], {"a": [[1, 2]]}, "counted of a")):
        with pytest.raises(ValueError, match=name):
            plots.bytes_by_depth(depths, counted)


def test_buckets_again_frames_what_changed():
    picture = plots.buckets_again([0, 1, 2], {"a": [0, 1, 2], "b": [0, 3, 1]}, 4)
    assert drawn(picture) == {"tokens": 3, "changed, a": 0, "changed, b": 2}
    assert texts(picture) == ["0", "1", "2"] * 2 + ["0", "≠3", "≠1"]
    with pytest.raises(ValueError, match="again, a"):
        plots.buckets_again([0, 1, 2], {"a": [0]}, 4)
    with pytest.raises(ValueError, match="buckets from 0 to 1"):
        plots.buckets_again([0, 1, 2], {"a": [0, 0, 0]}, 2)


def test_halves_stretch_by_their_gain():
    [(f, _)] = lab.stretching_blocks(1, 1.5, "linear")
    up, down = lab.up_and_down(1, "float64", 1.5, "linear")
    x1, x2 = up[0]
    assert float(f(x2).norm() / x2.norm()) == pytest.approx(1.5, rel=1e-12)
    np.testing.assert_array_equal(up[1][0], x1 + f(x2))
    np.testing.assert_array_equal(down[1][1], up[1][1])
    [(bounded, _)] = lab.stretching_blocks(1, 2.0)
    assert float(bounded(100 * x1).abs().max()) < 1


def test_errors_grow_as_predicted():
    """Within a factor of ten of rounding · growth^(2 · branches), in both formats; bounded branches lose little."""
    for dtype, rounding in (("float64", 2**-53), ("float32", 2**-24)):
        errors, sizes = lab.reconstruction_errors(8, dtype, 1.0, "linear")
        assert errors.shape == sizes.shape == (9,)
        assert errors[-1] == 0
        assert 0.1 < errors[0] / (rounding * lab.growth_per_branch(1.0) ** 32) < 10
        assert lab.reconstruction_errors(8, dtype, 1.0, "bounded")[0][0] < 100 * rounding
    assert lab.growth_per_branch(1.0) == pytest.approx(((1 + 5**0.5) / 2) ** 0.5)


def test_the_explorer_reports_measured_errors():
    numbers = drawn(lab.reconstruction(depth=3, dtype="bfloat16", gain=1.0, branches="linear"))
    assert numbers["error of the input"] == lab.reconstruction_errors(3, "bfloat16", 1.0, "linear")[0][0]
    assert numbers["predicted growth"] == lab.growth_per_branch(1.0)
    static = lab.reconstruction(depth=12, dtype="float32", gain=0.5, branches="linear")
    assert drawn(lab.reconstruction()) == drawn(static)


def test_rehashing_changes_buckets_only_where_there_is_an_error():
    stored, again = lab.buckets_up_and_down(4, "float64", 1.0)
    np.testing.assert_array_equal(stored, again)
    stored, again = lab.buckets_up_and_down(12, "bfloat16", 1.0, "linear")
    assert stored.shape == again.shape == (4, 64)
    assert (stored != again).mean() > 0.1


def test_counts_of_a_step():
    ordinary, reversible = ([lab.step_bytes(n, way) for n in (2, 6)] for way in (False, True))
    assert ordinary[1] > 2.5 * ordinary[0]
    assert reversible[1] < 1.1 * reversible[0]
    forward = lab.step_operations(2, False, backward=False)
    assert forward == 4 * 2 * 2 * 2048 * 16 * 64
    assert lab.step_operations(2, False) == 3 * forward
    assert lab.step_operations(2, True) == 4 * forward


def test_wrong_replays_are_refused():
    checks.check_dropout_replay(adapters.dropout_on_arrays(with_generator=True, uses_saved=True))
    for check, fn in (
        (checks.check_dropout_replay, adapters.dropout_on_arrays(with_generator=True)),
        (checks.check_bucket_replay, adapters.buckets_on_arrays(uses_saved=False)),
    ):
        with pytest.raises(AssertionError, match=r"must use the buckets of forward|must see the dropout masks"):
            check(fn)
