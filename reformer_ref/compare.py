"""How two arrays are compared everywhere in this project: one definition of error, one sentence if it is too large."""

from functools import wraps

import numpy as np

from reformer_ref.validate import as_array


def relative_error(got, want):
    """max |got − want| / max |want| (absolute where ``want`` is all zero). Non-finite differences count as infinite."""
    got, want = _numbers("got", got), _numbers("want", want)
    if got.shape != want.shape:
        raise AssertionError(f"shapes differ: got {got.shape}, expected {want.shape}")
    if got.size == 0:
        return 0.0
    with np.errstate(all="ignore"):
        worst = np.max(np.abs(got - want))
    return float(worst / (np.max(np.abs(want)) or 1.0)) if np.isfinite(worst) else float("inf")


def _numbers(name, value):
    """``value`` as float64; TypeError if it holds anything but real numbers."""
    array = as_array(name, value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}")
    with np.errstate(over="ignore"):
        return array.astype(np.float64)


def expect_close(what, got, want, tolerance, hint=""):
    """Return the relative error, or raise an AssertionError that shows where the two differ most."""
    got, want = _numbers("got", got), _numbers("want", want)
    if got.shape != want.shape:
        raise AssertionError(f"{what}: got shape {got.shape}, expected {want.shape}. {hint}".strip())
    error = relative_error(got, want)
    if not error <= tolerance:
        at = np.unravel_index(np.argmax(np.nan_to_num(np.abs(got - want), nan=np.inf)), got.shape)
        at = tuple(int(i) for i in at)
        raise AssertionError(
            f"{what}: relative error {error:.2e} > {tolerance:.0e}; worst at {at}: got {got[at]:.6g}, "
            f"expected {want[at]:.6g}. {hint}".strip()
        )
    return error


def expect_equal(what, got, want, hint=""):
    """Raise an AssertionError that shows the first place where two integer or boolean arrays differ."""
    got, want = as_array("got", got), as_array("want", want)
    if got.shape != want.shape:
        raise AssertionError(f"{what}: got shape {got.shape}, expected {want.shape}. {hint}".strip())
    if not np.array_equal(got, want):
        at = tuple(int(i) for i in np.argwhere(got != want)[0])
        raise AssertionError(
            f"{what}: {int((got != want).sum())} of {got.size} entries differ; first at {at}: got {got[at]}, "
            f"expected {want[at]}. {hint}".strip()
        )


def central_difference(fn, x, d_out, step=1e-5):
    """The vector-Jacobian product of ``fn`` at ``x`` with cotangent ``d_out``, by central differences (float64).

    One pair of evaluations per entry of ``x``: for small arrays only. Error about step² plus rounding / step.
    """
    x = np.array(x, dtype=np.float64)
    grad = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        grad[index] = np.sum((fn(up) - fn(down)) * d_out) / (2 * step)
    return grad


def in_a_sentence(check):
    """Decorates a check: whatever the function under test breaks by what it returns becomes an AssertionError too."""

    @wraps(check)
    def checked(*args, **kwargs):
        try:
            return check(*args, **kwargs)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise AssertionError(
                f"{check.__name__}: the function under test failed, or gave something of another kind or shape than "
                f"the check's docstring says: {type(error).__name__}: {error}"
            ) from error

    return checked
