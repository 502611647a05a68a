"""The pictures of decoding show what they were given."""

import numpy as np
import pytest
from reformer_lab.plots.generation import kept_by_length, rings, seconds_by_length


def test_rings_show_members_and_what_the_query_sees():
    members = np.array([[[4, 1, 2], [3, -1, -1]], [[0, 2, -1], [1, 3, 4]]])
    hidden = np.zeros_like(members, bool)
    hidden[1, 0, 1] = True
    picture = rings(members, [[4, 1], [2, 3]], [0, 0], 5, hidden)
    labels = [t.get_text() for ax in picture.axes for t in ax.texts]
    assert labels == ["4", "1", "2", "3", "0", "2", "1", "3", "4"]
    assert picture.numbers["keys it sees"] == 4
    assert picture.numbers["these keys"] == "0, 1, 2, 4"
    empty = rings(np.full((1, 2, 3), -1), [[0, 0]], [1], 0)
    assert empty.numbers["keys it sees"] == 0
    assert "itself" in empty.numbers_text


def test_lines_show_their_numbers():
    assert kept_by_length([1, 10], {"rings": [5, 5]}).numbers == {"rings": "5, 5"}
    assert seconds_by_length([1, 10], {"cache": [0.001, 0.0015]}).numbers == {"cache": "1 ms, 1.5 ms"}


@pytest.mark.parametrize("draw", [kept_by_length, seconds_by_length])
def test_lines_want_a_number_per_length(draw):
    with pytest.raises(ValueError, match="series"):
        draw([1, 2], {"a": [1]})


def test_shapes_of_rings_must_agree():
    with pytest.raises(ValueError, match="members"):
        rings(np.zeros((1, 2, 3)), np.zeros((2, 2)), [0], 0)
