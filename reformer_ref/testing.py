"""Helpers for checks and tests: compare arrays, differentiate numerically, call PyTorch functions
on NumPy arrays.
"""

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

import numpy as np

from reformer_ref._arguments import as_array, require_callable, require_shape


def relative_error(got: Any, want: Any) -> float:
    """Compute max |got − want| / max |want|, absolute where ``want`` is all zero.

    Args:
        got: numbers, as an array or whatever NumPy makes one of.
        want: as many.

    Returns:
        The error; infinite where a difference is not finite.

    Raises:
        AssertionError: the shapes differ.
        TypeError: one of them holds anything but real numbers.
    """
    got, want = _numbers("got", got), _numbers("want", want)
    expect(got.shape == want.shape, f"shapes differ: got {got.shape}, expected {want.shape}")
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


def expect(condition: Any, message: str) -> None:
    """Raise an AssertionError with ``message`` unless the condition holds."""
    if not condition:
        raise AssertionError(message)


def expect_close(label: str, got: Any, want: Any, tolerance: float, hint: str = "") -> float:
    """Return the relative error, or raise an AssertionError that says where it is largest."""
    got, want = _numbers("got", got), _numbers("want", want)
    _expect_shape(label, got, want, hint)
    error = relative_error(got, want)
    if not error <= tolerance:
        difference = np.nan_to_num(np.abs(got - want), nan=np.inf)
        at = tuple(int(i) for i in np.unravel_index(np.argmax(difference), got.shape))
        raise AssertionError(
            f"{label}: relative error {error:.2e} > {tolerance:.0e}; worst at {at}: "
            f"got {got[at]:.6g}, expected {want[at]:.6g}. {hint}".strip()
        )
    return error


def expect_equal(label: str, got: Any, want: Any, hint: str = "") -> None:
    """Raise an AssertionError that says where two integer or boolean arrays first differ."""
    got, want = as_array("got", got), as_array("want", want)
    _expect_shape(label, got, want, hint)
    if not np.array_equal(got, want):
        at = tuple(int(i) for i in np.argwhere(got != want)[0])
        raise AssertionError(
            f"{label}: {int((got != want).sum())} of {got.size} entries differ; first at {at}: "
            f"got {got[at]}, expected {want[at]}. {hint}".strip()
        )


def _expect_shape(label, got, want, hint):
    text = f"{label}: got shape {got.shape}, expected {want.shape}. {hint}"
    expect(got.shape == want.shape, text.strip())


def compare_all(name: str, comparisons: Iterable[tuple], tolerance: float) -> None:
    """Expect every (label, got, want, hint) to be close, and print how many there were."""
    errors = [
        expect_close(label, got, want, tolerance, hint) for label, got, want, hint in comparisons
    ]
    print(f"{name}: {len(errors)} cases, worst relative error {max(errors):.1e}")


def compare_gradients(name: str, comparisons: Iterable[tuple], tolerance: float) -> None:
    """Expect every (label, got, want, numeric, hint) to be close: to the gradient ``want``, and to
    the central differences ``numeric`` within 1e-7, unless they are None.
    """
    errors, differences = [], []
    for label, got, want, numeric, hint in comparisons:
        if numeric is not None:
            differences.append(expect_close(label, got, numeric, 1e-7, hint))
        errors.append(expect_close(label, got, want, tolerance, hint))
    print(
        f"{name}: {len(errors)} cases, worst relative error {max(errors):.1e}, "
        f"against central differences {max(differences):.1e}"
    )


def padding_masks(rng: np.random.Generator, shape: tuple[int, ...]) -> dict:
    """Draw masks (True = real token) by name: none, on either side, in holes, nothing but padding."""
    position = np.broadcast_to(np.arange(shape[-1]), shape)
    cut = rng.integers(0, shape[-1], (*shape[:-1], 1))
    return {
        "no mask": None,
        "padded right": position <= cut,
        "padded left": position >= cut,
        "padded anywhere": rng.random(shape) < 0.6,
        "padding only": np.zeros(shape, dtype=bool),
    }


def central_difference(
    fn: Callable, x: np.ndarray, d_out: np.ndarray | float, step: float = 1e-5
) -> np.ndarray:
    """Differentiate ``fn`` at ``x`` by central differences: the gradient of Σ d_out · fn(x).

    One pair of evaluations per entry of ``x``: for small arrays only.

    Args:
        fn: takes and returns an array.
        x: where to differentiate.
        d_out: the cotangent, of the shape of fn(x).
        step: the error is about step² plus rounding / step.

    Returns:
        The gradient, of the shape of ``x``.

    Raises:
        TypeError: ``fn`` is no function.
    """
    require_callable("fn", fn)
    x = np.array(x, dtype=np.float64)
    grad = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        grad[index] = np.sum((fn(up) - fn(down)) * d_out) / (2 * step)
    return grad


def in_a_sentence(check: Callable) -> Callable:
    """Decorate a check: an error of the function under test becomes an AssertionError too."""

    @wraps(check)
    def checked(*args, **kwargs):
        try:
            return check(*args, **kwargs)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise AssertionError(
                f"{check.__name__}: the function under test failed, or returned another kind or "
                f"shape than the check's docstring says: {type(error).__name__}: {error}"
            ) from error

    return checked


def to_torch(value: Any, dtype: Any = None, device: Any = "cpu") -> Any:
    """Turn arrays into tensors, floats into ``dtype`` (float64 by default); lists by item."""
    import torch

    from reformer_ref._tensors import require_device, require_dtype

    dtype = torch.float64 if dtype is None else dtype
    if isinstance(value, np.ndarray):
        require_dtype("dtype", dtype)
        require_device("device", device)
        native = np.array(value, value.dtype.newbyteorder("="), order="C")
        try:
            tensor = torch.from_numpy(native).to(device)
        except TypeError:  # text, objects, long doubles
            given = value.dtype
            raise TypeError(f"value must hold numbers that PyTorch knows, got {given}") from None
        return tensor.to(dtype) if tensor.is_floating_point() else tensor
    if isinstance(value, (list, tuple)) and any(isinstance(v, np.ndarray) for v in value):
        return type(value)(to_torch(v, dtype, device) for v in value)
    return value


def to_numpy(value: Any) -> Any:
    """Turn tensors into arrays; tuples, lists and dicts by item."""
    import torch

    if isinstance(value, torch.Tensor):
        try:
            return value.detach().cpu().resolve_neg().resolve_conj().numpy()
        except (TypeError, RuntimeError):  # bfloat16, sparse, quantized
            given = f"{value.dtype}, {value.layout}, {value.device}"
            raise TypeError(
                f"value must be a dense tensor of a dtype that NumPy knows, got {given}"
            ) from None
    if isinstance(value, (list, tuple)):
        return type(value)(to_numpy(v) for v in value)
    if isinstance(value, dict):
        return {k: to_numpy(v) for k, v in value.items()}
    return value


def as_numpy(fn: Callable, dtype: Any = None, device: Any = "cpu") -> Callable:
    """Wrap a function on tensors as a function on arrays.

    Args:
        fn: takes tensors (or lists of them) among its arguments, and returns any.
        dtype: of the tensors that floating arrays become; None: float64.
        device: of the tensors.

    Returns:
        The same function on arrays.

    Raises:
        TypeError: ``fn`` is no function.
    """
    require_callable("fn", fn)

    def wrapped(*args, **kwargs):
        args = [to_torch(a, dtype, device) for a in args]
        kwargs = {k: to_torch(v, dtype, device) for k, v in kwargs.items()}
        return to_numpy(fn(*args, **kwargs))

    return wrapped


def autograd_vjp(
    fn: Callable, inputs: Iterable, d_out: Any, dtype: Any = None, device: Any = "cpu"
) -> tuple:
    """Run ``fn(*inputs)`` and differentiate it by autograd.

    Args:
        fn: a function on tensors that returns one tensor.
        inputs: floating-point arrays.
        d_out: the cotangent, of the shape of the output.
        dtype: to compute in; None: float64.
        device: to compute on.

    Returns:
        The output, and the gradients of every input: zero where ``fn`` does not depend on it.

    Raises:
        TypeError: ``fn`` is no function or returns anything but a floating-point tensor, or inputs
            or cotangent are no numbers.
        ValueError: ``d_out`` is not of the shape of the output.
    """
    import torch

    from reformer_ref._tensors import require_floating

    require_callable("fn", fn)
    tensors = [to_torch(_numbers("inputs", a), dtype, device).requires_grad_() for a in inputs]
    d_out = to_torch(_numbers("d_out", d_out), dtype, device)
    out = require_floating("the result of fn", fn(*tensors))
    require_shape("d_out", d_out, out.shape, "the shape of the result of fn")
    grads = [torch.zeros_like(t) for t in tensors]
    if out.requires_grad:
        partial = torch.autograd.grad(out, tensors, d_out.to(out), allow_unused=True)
        grads = [zero if g is None else g for g, zero in zip(partial, grads, strict=True)]
    return to_numpy(out), to_numpy(grads)
