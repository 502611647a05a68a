"""The helpers for checks and tests, given what they cannot take."""

import numpy as np
import pytest
import torch
from reformer_ref.testing import as_numpy, autograd_vjp, central_difference


@pytest.mark.parametrize("fn", [3, None, "sin", torch.zeros(2)])
def test_what_cannot_be_called_is_refused_at_once(fn):
    for use in (as_numpy, lambda fn: autograd_vjp(fn, [np.zeros(3)], np.zeros(3))):
        with pytest.raises(TypeError, match="fn must be a function, got"):
            use(fn)
    with pytest.raises(TypeError, match="fn must be a function, got"):
        central_difference(fn, np.zeros(3), 1.0)


@pytest.mark.parametrize(
    ("fn", "inputs", "d_out", "error", "says"),
    [
        (torch.sin, [np.zeros(3)], np.zeros(2), ValueError, r"d_out must have shape \(3,\) = .*, got \(2,\)"),
        (torch.sum, [np.zeros(3)], np.zeros(3), ValueError, r"d_out must have shape \(\)"),
        (torch.sin, [np.zeros(3)], "text", TypeError, "d_out must hold real numbers"),
        (torch.sin, [np.zeros(3, dtype=complex)], np.zeros(3), TypeError, "inputs must hold real numbers"),
        (lambda x: (x, x), [np.zeros(3)], np.zeros(3), TypeError, "the result of fn must be a torch.Tensor, got tuple"),
        (torch.argmax, [np.zeros(3)], np.zeros(()), TypeError, "the result of fn must be dense, of dtype"),
    ],
)
def test_autograd_vjp_names_what_does_not_fit(fn, inputs, d_out, error, says):
    with pytest.raises(error, match=says):
        autograd_vjp(fn, inputs, d_out)


def test_autograd_vjp_takes_whole_numbers_and_functions_that_depend_on_nothing():
    out, (d_x, d_y) = autograd_vjp(lambda x, y: 3 * x, [np.arange(3), np.ones(2)], np.arange(3))
    assert (out.tolist(), d_x.tolist(), d_y.tolist()) == ([0, 3, 6], [0, 3, 6], [0, 0])
    assert autograd_vjp(lambda x: x.detach(), [np.ones(2)], np.ones(2))[1][0].tolist() == [0, 0]
