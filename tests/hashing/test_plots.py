"""The pictures of the hash show the numbers that they were given; the circle explorer counts right."""

import inspect

import numpy as np
import pytest
from reformer_lab.plots import hashing as plots
from reformer_lab.widgets.circle import DEGREES, circle
from reformer_ref.hashing import spec
from tests.pictures import drawn, ends, texts

RNG = np.random.default_rng(0)


def unit(degrees):
    return np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=-1)


def hashed(n_points, n_buckets, n_hashes):
    """points, their buckets, and those of the directions all around."""
    points, rotations = (RNG.standard_normal((n_points, 2)), spec.random_rotations(RNG, n_hashes, 2, n_buckets))
    around = unit(np.arange(360) + 0.5)
    return (points, spec.hash_vectors(points, rotations, n_buckets), spec.hash_vectors(around, rotations, n_buckets))


@pytest.mark.parametrize(("n", "n_buckets"), [(1, 2), (6, 4), (30, 16)])
def test_scores(n, n_buckets):
    xr = RNG.standard_normal((n, n_buckets // 2))
    both = np.concatenate([xr, -xr], -1)
    buckets = both.argmax(-1)
    picture = plots.scores(both, buckets)
    assert drawn(picture) == {"buckets": " ".join(map(str, buckets))}
    assert texts(picture) == [f"{s:.2f}".replace("-", "−") for s in both.ravel()]


@pytest.mark.parametrize(("n", "n_buckets", "n_hashes"), [(1, 2, 1), (12, 8, 2), (40, 64, 4)])
def test_circles(n, n_buckets, n_hashes):
    points, buckets, ring = hashed(n, n_buckets, n_hashes)
    picture = plots.circles(points, buckets, ring, n_buckets)
    want = {f"round {h + 1}": " ".join(map(str, row)) for h, row in enumerate(buckets)}
    assert drawn(picture) == want
    for h in range(n_hashes):  # every direction lies in a wedge of the colour of its bucket, exactly one
        wedges = picture.axes[2 * h].patches
        assert sum(w.theta2 - w.theta1 for w in wedges) == pytest.approx(360)
        colours = plots.bucket_colours(n_buckets)
        for degree in (0, 100, 359):
            inside = [w for w in wedges if (degree + 0.5 - w.theta1) % 360 < w.theta2 - w.theta1]
            assert len(inside) == 1
            np.testing.assert_allclose(inside[0].get_facecolor(), colours[ring[h, degree]])


def test_a_circle_of_one_bucket():
    picture = plots.circles([[1.0, 0.0]], [[1]], [[1, 1, 1]], 2)
    assert drawn(picture) == {"round 1": "1"}
    assert len(picture.axes[0].patches) == 1


def test_two_pairs():
    at = np.array([[10, 30], [10, 120]])
    buckets = np.array([[[0, 0], [1, 1], [2, 2]], [[0, 1], [1, 1], [2, 3]]])
    picture = plots.two_pairs(unit(at), buckets, hashed(1, 4, 3)[2], 4)
    assert drawn(picture) == {"together at 20°": "3 of 3 rounds", "together at 110°": "1 of 3 rounds"}
    titles = [ax.get_title(loc="center") for ax in picture.axes]
    assert titles == [f"both in {b}: together" for b in (0, 1, 2)] + [
        "0 and 1: apart",
        "both in 1: together",
        "2 and 3: apart",
    ]


def test_collision_probability():
    angles = np.arange(0, 181, 15)
    theory = {b: (1 - angles / 180) ** b for b in (1, 2, 3, 4, 5, 6, 7)}
    measured = {b: p + 0.01 for b, p in theory.items()}
    picture = plots.collision_probability(angles, measured, theory, parameter="n_hashes", print_at=(30,))
    numbers = drawn(picture)
    assert numbers.pop("largest distance from theory") == pytest.approx(0.01)
    assert numbers == {f"n_hashes={b} at 30°": p[2] for b, p in measured.items()}
    lines = picture.axes[0].lines
    np.testing.assert_array_equal(lines[0].get_ydata(), theory[1])
    np.testing.assert_array_equal(lines[1].get_ydata(), measured[1])
    assert lines[0].get_color() == lines[1].get_color() != lines[3].get_color()


def test_cost_of_hashing():
    numbers = drawn(plots.cost_of_hashing([64, 128, 4096], [1, 2, 64], [1, 2, 12]))
    assert numbers == {"one factor at 4,096 tokens": 64, "default at 4,096 tokens": 12, "ratio": 64 / 12}
    drawn(plots.cost_of_hashing([64], [1], [1]))


def test_bucket_sizes():
    picture = plots.bucket_sizes({"right": [3, 1, 2, 2], "wrong": [5, 3, 0, 0]})
    assert drawn(picture) == {
        "right, buckets in use": "4 of 4",
        "right, tokens in those": "1 to 3, 2 on average",
        "wrong, buckets in use": "2 of 4",
        "wrong, tokens in those": "3 to 5, 4 on average",
    }
    assert [bar.get_height() for bar in picture.axes[1].patches] == [5, 3, 0, 0]
    assert drawn(plots.bucket_sizes({"none": [0, 0]})) == {"none, buckets in use": "0 of 2"}


BAD = {
    r"both must have shape \(n, n\), got \(4,\)": lambda: plots.scores([1.0, 2.0, 3.0, 4.0], [0]),
    r"buckets must have shape \(1,\), got \(2,\)": lambda: plots.scores([[1.0, -1.0]], [0, 1]),
    "buckets must be integers from 0 to 1": lambda: plots.scores([[1.0, -1.0]], [2]),
    r"points must have shape \(n, 2\)": lambda: plots.circles(np.ones((3, 3)), [[0, 0, 0]], [[0, 1]], 2),
    "points must hold no zero vector": lambda: plots.circles(np.zeros((1, 2)), [[0]], [[0, 1]], 2),
    "buckets must hold 1 to 4 rounds": lambda: plots.circles(np.ones((1, 2)), [[0]] * 5, [[0, 1]] * 5, 2),
    r"ring must have shape \(1, n\), got \(2, 2\)": lambda: plots.circles(np.ones((1, 2)), [[0]], [[0, 1]] * 2, 2),
    "ring must be integers from 0 to 1": lambda: plots.circles(np.ones((1, 2)), [[0]], [[0.0, 1.0]], 2),
    r"pairs must have shape \(n, 2, 2\)": lambda: plots.two_pairs(np.ones((2, 2)), [[[0, 0]]], [[0]], 2),
    r"buckets must have shape \(1, n, 2\)": lambda: plots.two_pairs(np.ones((1, 2, 2)), [[0, 0]], [[0]], 2),
    "measured must have the keys of theory": lambda: plots.collision_probability([1], {2: [1]}, {4: [1]}),
    r"theory must have shape \(2,\), got \(1,\)": lambda: plots.collision_probability([1, 2], {2: [1, 1]}, {2: [1]}),
    r"factorised must have shape \(2,\)": lambda: plots.cost_of_hashing([1, 2], [1, 2], [1]),
    r"sizes must have shape \(2,\), got \(3,\)": lambda: plots.bucket_sizes({"a": [1, 2], "b": [1, 2, 3]}),
    "sizes must hold at least one": lambda: plots.bucket_sizes({}),
}


@pytest.mark.parametrize("message", BAD)
def test_shapes_that_do_not_fit(message):
    with pytest.raises(ValueError, match=f"^{message}"):
        BAD[message]()


def test_circle_counts_the_pairs_that_meet():
    """At 4 buckets of 90°, turned by 20° and 57°: the bucket is the quarter around the turned axis."""
    numbers = circle(angle=20, n_buckets=4, rounds=2).numbers
    rows = [((DEGREES - turned + 45) // 90) % 4 for turned in (20, 57)]
    assert [numbers["round 1"], numbers["round 2"]] == [" ".join(map(str, row)) for row in rows]
    met = {(i, j) for i in range(12) for j in range(i) if any(row[i] == row[j] for row in rows)}
    apart = {pair: abs((DEGREES[pair[0]] - DEGREES[pair[1]] + 180) % 360 - 180) for pair in np.ndindex(12, 12)}
    near, far = ({p for p in met if test(apart[p])} for test in (lambda a: a <= 20, lambda a: a >= 60))
    assert numbers["pairs that share a bucket in at least one round"] == f"{len(met)} of 66"
    assert numbers["pairs within 20°"] == f"{len(near)} of 4"
    assert numbers["pairs beyond 60°"].startswith(f"{len(far)} of ")
    assert numbers["buckets with a wedge, per round"] == "4 of 4, 4 of 4"
    # a column shorter than its neighbours reaches farthest nowhere
    assert circle(n_buckets=16, rounds=1, matrix="Gaussian").numbers["buckets with a wedge, per round"] == "4 of 16"


def test_every_control_of_the_circle_changes_the_numbers():
    start = drawn(circle())
    for name, parameter in inspect.signature(circle).parameters.items():
        for value in ends(circle, name):
            numbers = circle(**{name: value}).numbers
            assert numbers != start or value == parameter.default, (name, value)
    for bad in ({"angle": 181}, {"n_buckets": 3}, {"rounds": 0}, {"matrix": "none"}):
        with pytest.raises(ValueError, match=f"^{next(iter(bad))} must be"):
            circle(**bad)


def test_extremes_of_the_circle_can_be_drawn():
    for n_buckets, rounds in ((2, 1), (16, 4)):
        drawn(circle(angle=180, n_buckets=n_buckets, rounds=rounds, matrix="Gaussian"))
