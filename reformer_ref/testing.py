"""Helpers for checks and tests: compare arrays, differentiate numerically, call PyTorch functions
on NumPy arrays.
"""

from functools import wraps

import numpy as np

from reformer_ref._arguments import as_array


def relative_error(got, want):
    """max |got − want| / max |want| (absolute where ``want`` is all zero). Non-finite differences
    count as infinite.
    """
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
        raise AssertionError(
            f"{what}: got shape {got.shape}, expected {want.shape}. {hint}".strip()
        )
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
    """Raise an AssertionError that shows the first place where two integer or boolean arrays
    differ.
    """
    got, want = as_array("got", got), as_array("want", want)
    if got.shape != want.shape:
        raise AssertionError(
            f"{what}: got shape {got.shape}, expected {want.shape}. {hint}".strip()
        )
    if not np.array_equal(got, want):
        at = tuple(int(i) for i in np.argwhere(got != want)[0])
        raise AssertionError(
            f"{what}: {int((got != want).sum())} of {got.size} entries differ; first at {at}: got {got[at]}, "
            f"expected {want[at]}. {hint}".strip()
        )


def central_difference(fn, x, d_out, step=1e-5):
    """The vector-Jacobian product of ``fn`` at ``x`` with cotangent ``d_out``, by central
    differences (float64).

    One pair of evaluations per entry of ``x``: for small arrays only. Error about step² plus
    rounding / step.
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
    """Decorates a check: whatever the function under test breaks by what it returns becomes an
    AssertionError too.
    """

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


def to_torch(value, dtype=None, device="cpu"):
    """Arrays become tensors (floats in ``dtype``, float64 by default); lists and tuples by item,
    the rest unchanged.
    """
    import torch

    from reformer_ref._tensors import require_device, require_dtype

    dtype = torch.float64 if dtype is None else dtype
    if isinstance(value, np.ndarray):
        require_dtype("dtype", dtype), require_device("device", device)
        try:
            tensor = torch.from_numpy(np.array(value, value.dtype.newbyteorder("="), order="C")).to(
                device
            )
        except TypeError:  # text, objects, long doubles
            raise TypeError(
                f"value must hold numbers that PyTorch knows, got dtype {value.dtype}"
            ) from None
        return tensor.to(dtype) if tensor.is_floating_point() else tensor
    if isinstance(value, (list, tuple)) and any(isinstance(v, np.ndarray) for v in value):
        return type(value)(to_torch(v, dtype, device) for v in value)
    return value


def to_numpy(value):
    """Tensors become arrays; tuples, lists and dicts by item."""
    import torch

    if isinstance(value, torch.Tensor):
        try:
            return value.detach().cpu().resolve_neg().resolve_conj().numpy()
        except (TypeError, RuntimeError):  # bfloat16, sparse, quantized
            what = f"{value.dtype}, {value.layout}, {value.device}"
            raise TypeError(
                f"value must be a dense tensor of a dtype that NumPy knows, got {what}"
            ) from None
    if isinstance(value, (list, tuple)):
        return type(value)(to_numpy(v) for v in value)
    if isinstance(value, dict):
        return {k: to_numpy(v) for k, v in value.items()}
    return value


def as_numpy(fn, dtype=None, device="cpu"):
    """``fn`` on tensors, seen as a function on arrays."""

    def wrapped(*args, **kwargs):
        args = [to_torch(a, dtype, device) for a in args]
        kwargs = {k: to_torch(v, dtype, device) for k, v in kwargs.items()}
        return to_numpy(fn(*args, **kwargs))

    return wrapped


def autograd_vjp(fn, inputs, d_out, dtype=None, device="cpu"):
    """(output, gradients of every array in ``inputs``) of ``fn(*inputs)`` by autograd, as arrays.

    ``d_out`` is the cotangent. Inputs that ``fn`` does not depend on get a zero gradient.
    """
    import torch

    tensors = [to_torch(np.asarray(a), dtype, device).requires_grad_() for a in inputs]
    out = fn(*tensors)
    grads = torch.autograd.grad(
        out, tensors, to_torch(np.asarray(d_out), dtype, device), allow_unused=True
    )
    grads = [torch.zeros_like(t) if g is None else g for g, t in zip(grads, tensors, strict=True)]
    return to_numpy(out), to_numpy(grads)
