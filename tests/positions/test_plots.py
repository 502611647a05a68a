"""Pictures of positions tell what they were given; what the explorer adds is right."""

import numpy as np
import pytest
from reformer_lab.plots import positions as plots
from reformer_lab.plots.drawing import Picture
from reformer_lab.widgets.axial import axial, cosine_similarity, learned_numbers, rows_in_use


def numbers_of(picture):
    assert isinstance(picture, Picture)
    assert len(picture.caption) > 40
    assert picture.png(dpi=30).startswith(b"\x89PNG")
    return picture.numbers


@pytest.mark.parametrize(("shape", "length"), [((1, 1), 1), ((4, 6), 24), ((4, 6), 20), ((12, 16), 192), ((16, 1), 3)])
def test_grid(shape, length):
    coordinates, chosen = rows_in_use(shape, length), length - 1
    assert coordinates.tolist() == [list(divmod(j, shape[1])) for j in range(length)]
    numbers = numbers_of(plots.index_grid(coordinates, shape, chosen))
    assert numbers["different pairs of rows"] == numbers["positions"] == length
    assert (numbers["row of table 1"], numbers["row of table 2"]) == divmod(chosen, shape[1])
    numbers = numbers_of(plots.grid_and_parameters(coordinates, shape, None, {"axial": 5, "one table": 10**9}))
    assert numbers["one table"] == 10**9
    assert "position" not in numbers


def test_positions_in_one_cell_are_told():
    j = np.arange(24)
    picture = plots.index_grid(np.stack([j % 4, j % 6], axis=-1), (4, 6))
    assert numbers_of(picture)["different pairs of rows"] == 12
    assert "24 positions share their cell" in picture.caption


def test_parameters_and_similarities():
    assert numbers_of(plots.parameter_bars({"one table": 268_435_456, "axial": 262_144}))["axial"] == 262_144
    numbers = numbers_of(plots.similarity_maps({"a": np.eye(8), "b": np.full((8, 8), 0.5)}, row_length=3))
    assert numbers == {
        "a: 0 and 1": 0,
        "a: 0 and 3": 0,
        "a: 0 and 4": 0,
        "b: 0 and 1": 0.5,
        "b: 0 and 3": 0.5,
        "b: 0 and 4": 0.5,
    }
    assert numbers_of(plots.similarity_maps({"one": np.ones((1, 1))})) == {}


@pytest.mark.parametrize(
    ("draw", "name"),
    [
        (lambda: plots.index_grid([[0, 0]], (0, 1)), "shape"),
        (lambda: plots.index_grid([[0, 0]], (2, 2, 2)), "shape"),
        (lambda: plots.index_grid([0, 0], (2, 2)), "coordinates"),
        (lambda: plots.index_grid([[0, 2]], (2, 2)), "coordinates"),
        (lambda: plots.index_grid([[0.0, 1.0]], (2, 2)), "coordinates"),
        (lambda: plots.index_grid([[0, 1]], (2, 2), 1), "chosen"),
        (lambda: plots.grid_and_parameters([[0, 1]], (2, 2), 0, {}), "parameters"),
        (lambda: plots.parameter_bars({"a": 0}), "parameters"),
        (lambda: plots.similarity_maps({}), "similarities"),
        (lambda: plots.similarity_maps({"a": np.ones((2, 3))}), r"similarities\['a'\]"),
    ],
)
def test_bad_input_is_named(draw, name):
    with pytest.raises(ValueError, match=f"^{name} must"):
        draw()


def test_learned_numbers_are_those_of_the_modules():
    assert learned_numbers((1024, 1024), (128, 128)) == 262_144
    assert learned_numbers((1 << 20,), (256,)) == 268_435_456


def test_cosines():
    np.testing.assert_allclose(cosine_similarity(np.array([[2.0, 0], [3, 3]])), [[1, 0.5**0.5], [0.5**0.5, 1]])


def test_a_position_beyond_the_tables_is_said_to_have_none():
    picture = axial(n1=2, n2=3, position=6)
    assert picture.caption.startswith("There is no position 6: 2 · 3 = 6 positions are served.")
    assert "row of table 1" not in picture.numbers
    assert axial(n1=2, n2=3, position=5).numbers["row of table 2"] == 2
