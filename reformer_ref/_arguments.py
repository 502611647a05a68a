"""Argument checks of the public functions. Each error names the argument, what was given, and what
is accepted.
"""

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from numbers import Integral, Real
from typing import Any

import numpy as np

LARGEST_ARRAY = 2**40  # numbers in one array: more than any machine has memory for
LARGEST_INT = 2**63 - 1  # what an int64 holds
LARGEST_NUMBER = 1e50  # in an array of floats: the product of six of them is still a float64


def short_repr(value: Any, longest: int = 80) -> str:
    """``repr(value)`` for a message: cut off where it is long, and no error of its own."""
    try:
        text = repr(value)
    except Exception:  # an integer of more than 4300 digits, or whatever a foreign class raises
        text = f"one that cannot be shown ({type(value).__name__})"
    return text if len(text) <= longest else f"{text[:longest]} …"


def require_int(name: str, value: Any, minimum: int = 1, maximum: int = LARGEST_INT) -> int:
    """``value`` as an int: TypeError unless an integer, ValueError if out of range."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(
            f"{name} must be an integer, got {short_repr(value)} ({type(value).__name__})"
        )
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {short_repr(value)}")
    if value > maximum:
        raise ValueError(f"{name} must be at most {maximum}, got {short_repr(value)}")
    return int(value)


def require_bool(name: str, value: Any) -> bool:
    """``value`` if it is True or False; TypeError otherwise (1 and "no" are not booleans)."""
    if not isinstance(value, bool):
        given = f"{short_repr(value)} ({type(value).__name__})"
        raise TypeError(f"{name} must be True or False, got {given}")
    return value


def require_callable(name: str, value: Any, signature: str = "") -> Any:
    """``value`` if it can be called; TypeError otherwise."""
    if not callable(value):
        given = f"{short_repr(value)} ({type(value).__name__})"
        raise TypeError(f"{name} must be a function{signature}, got {given}")
    return value


def require_float(
    name: str, value: Any, minimum: float | None = None, below: float | None = None
) -> float:
    """``value`` as a finite float with ``minimum <= value < below``."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(
            f"{name} must be a number, got {short_repr(value)} ({type(value).__name__})"
        )
    try:
        value = float(value)
    except OverflowError:
        raise ValueError(f"{name} must fit a float, got {short_repr(value)}") from None
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    if minimum is not None and value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")
    if below is not None and value >= below:
        raise ValueError(f"{name} must be less than {below}, got {value}")
    return value


def require_choice(name: str, value: Any, choices: Sequence) -> Any:
    """``value`` if it is one of ``choices``."""
    for choice in choices:
        if value is choice or (type(value) is type(choice) and value == choice):
            return value
    accepted = ", ".join(map(repr, choices))
    raise ValueError(f"{name} must be one of {accepted}, got {short_repr(value)}")


def bucket_factors(n_buckets: Any) -> tuple[int, ...]:
    """The even factors of ``n_buckets`` as a tuple: 16 -> (16,), (4, 6) -> (4, 6)."""
    factors = n_buckets if isinstance(n_buckets, (tuple, list)) else (n_buckets,)
    if not factors:
        raise ValueError("n_buckets must hold at least one factor, got an empty tuple")
    for factor in factors:
        if require_int("n_buckets", factor, minimum=2) % 2:
            given = f"the factor {short_repr(factor)}"
            raise ValueError(f"n_buckets must be even (buckets and mirror images), got {given}")
    factors = tuple(int(factor) for factor in factors)
    if math.prod(factors) >= 2**63:
        given = f"the product of {short_repr(factors)}"
        raise ValueError(f"n_buckets must be less than 2⁶³ in all, got {given}")
    return factors


def require_window(options: Any) -> None:
    """Check the sizes that local and LSH attention share, and make them plain integers."""
    for name, minimum in (("chunk_length", 1), ("chunks_before", 0), ("chunks_after", 0)):
        object.__setattr__(options, name, require_int(name, getattr(options, name), minimum))


def fit_window(options: Any, length: int) -> Any:
    """The options without neighbours that no sequence of ``length`` has."""
    n_chunks = -(-length // options.chunk_length)
    neighbours = max(1, n_chunks - 1)
    if options.wrap or max(options.chunks_before, options.chunks_after) <= neighbours:
        return options
    before = min(options.chunks_before, neighbours)
    after = min(options.chunks_after, neighbours)
    return replace(options, chunks_before=before, chunks_after=after)


def require_scale(options: Any, otherwise: str) -> None:
    """Check that ``options.scale`` is a positive number, and make it a plain float."""
    scale = require_float("scale", options.scale, below=1e6)
    if scale <= 0:
        raise ValueError(f"scale must be positive or {otherwise}, got {scale}")
    object.__setattr__(options, "scale", scale)


def require_shape(name: str, array: Any, shape: Sequence[int], meaning: str) -> None:
    """ValueError unless ``array.shape`` is ``shape``; ``meaning`` says what that stands for."""
    if tuple(array.shape) != tuple(shape):
        want = f"{tuple(shape)} = {meaning}"
        raise ValueError(f"{name} must have shape {want}, got {tuple(array.shape)}")


def require_fits(**sizes: int) -> None:
    """ValueError if an array of these sizes fits into no machine's memory."""
    product = 1
    for size in sizes.values():  # torch.compile cannot follow math.prod of them
        product *= size
    if product >= LARGEST_ARRAY:
        given = " · ".join(short_repr(int(size)) for size in sizes.values())
        names = " · ".join(sizes)
        raise ValueError(f"{names} must be less than {LARGEST_ARRAY} numbers, got {given}")


def as_array(name: str, value: Any) -> np.ndarray:
    """``value`` as a NumPy array; TypeError if nothing that can become one, or a masked array."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} must be a plain array, got a masked one")
    try:
        return np.asarray(value)
    except Exception as error:  # of NumPy, or of the object's own conversion
        given = f"{type(value).__name__}: {short_repr(str(error))}"
        raise TypeError(f"{name} must be an array or convertible to one, got {given}") from None


def as_floats(
    name: str, value: Any, bounded: bool = True, must: str = "hold floating-point numbers"
) -> np.ndarray:
    """``value`` as float64 (a copy): TypeError unless floating point; if bounded, ValueError for
    NaN, infinity or anything as large as 1e50.
    """
    array = as_array(name, value)
    if array.dtype.kind != "f":
        raise TypeError(f"{name} must {must}, got dtype {array.dtype}")
    with np.errstate(over="ignore"):  # a longdouble too large for float64 becomes infinite
        array = array.astype(np.float64)
    if bounded and not (np.abs(array) < LARGEST_NUMBER).all():
        accepted = f"finite and smaller than {LARGEST_NUMBER:g} in size"
        raise ValueError(f"{name} must be {accepted}, got NaN, infinity or a larger number")
    return array


def as_integers(name: str, value: Any, must: str = "be integers") -> np.ndarray:
    """``value`` as int64: TypeError unless integers, ValueError if too large for int64."""
    array = as_array(name, value)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must {must}, got dtype {array.dtype}")
    if array.dtype.kind == "u" and array.size and array.max() >= 2**63:
        raise ValueError(f"{name} must hold integers below 2⁶³, got {array.max()}")
    return array.astype(np.int64)


UNCLEAR = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
    Warning,
)


def clear_errors(function: Callable) -> Callable:
    """Decorate a function so that, where it fails, the error names the arguments.

    A TypeError stays one, everything else becomes a ValueError with its cause. For functions whose
    data has many parts (pictures, reports); those that compute check their arguments one by one.
    """
    parameters = inspect.signature(function).parameters

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except UNCLEAR as error:
            bound = [*zip(parameters, args, strict=False), *kwargs.items()]
            given = ", ".join(f"{name} = {_in_short(value)}" for name, value in bound)
            kind = TypeError if isinstance(error, TypeError) else ValueError
            text = " ".join(str(error).split())[:400]
            raise kind(f"{text} ({function.__name__} was given {given[:400]})") from error

    return wrapped


def _in_short(value):
    try:
        return f"{type(value).__name__} {tuple(value.shape)}"
    except Exception:  # no array
        return short_repr(value, 40)
