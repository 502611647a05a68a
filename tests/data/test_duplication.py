"""The duplication task: what a sequence is, which symbols are asked for, and that it depends on
(seed, step) alone.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reformer_lab.data import duplication


@given(
    half_length=st.integers(2, 40), vocab_size=st.integers(2, 200), batch=st.integers(1, 5), seed=st.integers(0, 2**40)
)
@settings(max_examples=40)
def test_sequences_are_0w0w(half_length, vocab_size, batch, seed):
    tokens, targets = duplication.batches(2 * half_length, vocab_size, batch, seed, 3)
    assert tokens.shape == targets.shape == (batch, 2 * half_length)
    assert tokens.dtype == targets.dtype == np.int64
    np.testing.assert_array_equal(tokens[:, :half_length], tokens[:, half_length:])
    assert not tokens[:, 0].any()
    assert tokens[:, 1:half_length].min() >= 1
    assert tokens.max() < vocab_size
    # the symbols of the second w, no more
    np.testing.assert_array_equal(targets[:, half_length:-1], tokens[:, half_length + 1 :])
    assert (np.delete(targets, np.s_[half_length : 2 * half_length - 1], axis=1) == -100).all()


def test_the_paper_asks_for_511_symbols_of_127():
    tokens, targets = duplication.batches(1024, 128, 4, 0, 0)
    assert (targets != -100).sum() == 4 * 511
    assert set(np.unique(tokens)) == set(range(128))
    assert duplication.chance(128) == pytest.approx(1 / 127)


def test_batches_are_a_function_of_seed_and_step_alone():
    first, again = (duplication.batches(64, 9, 2, 5, 7) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[0], duplication.batches(64, 9, 2, 5, 8)[0])
    assert not np.array_equal(first[0], duplication.batches(64, 9, 2, 6, 7)[0])


def test_accuracy_counts_what_is_asked_for():
    targets = np.array([[-100, 1, 2, -100]])
    assert duplication.accuracy(np.array([[9, 1, 3, 9]]), targets) == 0.5
    with pytest.raises(ValueError, match="shape of targets"):
        duplication.accuracy(np.zeros((1, 3)), targets)
    with pytest.raises(ValueError, match="at least one token"):
        duplication.accuracy(np.zeros(2), np.full(2, -100))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [((5, 9, 1, 0, 0), ValueError), ((2, 9, 1, 0, 0), ValueError), ((8, 1, 1, 0, 0), ValueError),
     ((8, 9, 0, 0, 0), ValueError), ((8, 9, 1, -1, 0), ValueError), ((8, 9, 1, 0, -1), ValueError),
     ((8.0, 9, 1, 0, 0), TypeError), ((8, 9, True, 0, 0), TypeError)],
)  # fmt: skip
def test_batches_refuse(arguments, error):
    with pytest.raises(error):
        duplication.batches(*arguments)
