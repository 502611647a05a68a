"""Argument checks shared by every room. Each error names the argument, what was given, and what is
accepted.
"""

import functools
import inspect
import math
from numbers import Integral, Real

import numpy as np

LARGEST_ARRAY = 2**40  # numbers in one array: more than any machine has memory for
LARGEST_NUMBER = (
    1e50  # in the arrays of a specification: the product of six of them is still a float64
)


def shown(value, longest=80):
    """``repr(value)`` for a message: cut off where it is long, and no error of its own."""
    try:
        text = repr(value)
    except Exception:  # an integer of more than 4300 digits, or whatever a foreign class raises
        text = f"one that cannot be shown ({type(value).__name__})"
    return text if len(text) <= longest else f"{text[:longest]} …"


def require_int(name, value, minimum=1, maximum=None):
    """Return ``value`` as an int, or raise: TypeError if it is not an integer, ValueError if it is
    out of range.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {shown(value)} ({type(value).__name__})")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {shown(value)}")
    if maximum is not None and value > maximum:
        raise ValueError(f"{name} must be at most {maximum}, got {shown(value)}")
    return int(value)


def require_bool(name, value):
    """Return ``value`` if it is True or False; TypeError otherwise (1 and "no" are not booleans)."""
    if not isinstance(value, bool):
        raise TypeError(
            f"{name} must be True or False, got {shown(value)} ({type(value).__name__})"
        )
    return value


def require_float(name, value, minimum=None, below=None):
    """Return ``value`` as a finite float with ``minimum <= value < below``."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {shown(value)} ({type(value).__name__})")
    try:
        value = float(value)
    except OverflowError:
        raise ValueError(f"{name} must fit a float, got {shown(value)}") from None
    if value != value or value in (float("inf"), float("-inf")):
        raise ValueError(f"{name} must be finite, got {value}")
    if minimum is not None and value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")
    if below is not None and value >= below:
        raise ValueError(f"{name} must be less than {below}, got {value}")
    return value


def require_choice(name, value, choices):
    """Return ``value`` if it is one of ``choices``."""
    if not any(value is c or (type(value) is type(c) and value == c) for c in choices):
        raise ValueError(
            f"{name} must be one of {', '.join(map(repr, choices))}, got {shown(value)}"
        )
    return value


def bucket_factors(n_buckets):
    """The even factors of ``n_buckets`` (an int or a tuple of ints) as a tuple: 16 -> (16,), (4, 6)
    -> (4, 6).
    """
    factors = n_buckets if isinstance(n_buckets, (tuple, list)) else (n_buckets,)
    if not factors:
        raise ValueError("n_buckets must hold at least one factor, got an empty tuple")
    for factor in factors:
        require_int("n_buckets", factor, minimum=2)
        if factor % 2:
            raise ValueError(
                f"n_buckets must be even (a bucket and its mirror image), got the factor {shown(factor)}"
            )
    if math.prod([int(f) for f in factors]) >= 2**63:
        raise ValueError(
            f"n_buckets must be less than 2⁶³ in all, got the product of {shown(tuple(factors))}"
        )
    return tuple(int(f) for f in factors)


def require_shape(name, array, shape, meaning):
    """ValueError unless ``array.shape`` equals ``shape``; ``meaning`` says what the shape stands
    for.
    """
    if tuple(array.shape) != tuple(shape):
        raise ValueError(
            f"{name} must have shape {tuple(shape)} = {meaning}, got {tuple(array.shape)}"
        )


def require_room(**sizes):
    """ValueError if the product of ``sizes`` is the size of an array that fits into no machine's
    memory.
    """
    if math.prod(list(sizes.values())) >= LARGEST_ARRAY:
        given = " · ".join(shown(int(size)) for size in sizes.values())
        raise ValueError(
            f"{' · '.join(sizes)} must be less than {LARGEST_ARRAY} numbers in all, got {given}"
        )


def as_array(name, value):
    """``value`` as a NumPy array; TypeError if it is none and nothing that can become one, or a
    masked array.
    """
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{name} must be a plain array, got a masked one, whose mask nothing here would heed"
        )
    try:
        return np.asarray(value)
    except Exception as error:  # of NumPy, or of the object's own conversion
        what = f"{type(value).__name__}: {shown(str(error))}"
        raise TypeError(
            f"{name} must be an array or something that NumPy makes one of, got {what}"
        ) from None


def as_floats(name, value, bounded=True, must="hold floating-point numbers"):
    """``value`` as float64 (a copy): TypeError unless floating point; if bounded, ValueError for
    NaN, inf, ≥ 1e50.

    must: what the message asks for.
    """
    array = as_array(name, value)
    if array.dtype.kind != "f":
        raise TypeError(f"{name} must {must}, got dtype {array.dtype}")
    with np.errstate(over="ignore"):  # a longdouble too large for float64 becomes infinite
        array = array.astype(np.float64)
    if bounded and not (np.abs(array) < LARGEST_NUMBER).all():
        what = f"finite and smaller than {LARGEST_NUMBER:g} in size"
        raise ValueError(f"{name} must be {what}, got NaN, infinity or a larger number")
    return array


def as_integers(name, value, must="be integers"):
    """``value`` as int64: TypeError unless it holds integers, ValueError where one is too large for
    int64.
    """
    array = as_array(name, value)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must {must}, got dtype {array.dtype}")
    if array.dtype.kind == "u" and array.size and array.max() >= 2**63:
        raise ValueError(f"{name} must hold integers below 2⁶³, got {array.max()}")
    return array.astype(np.int64)


def as_mask(padding_mask, shape):
    """``padding_mask`` as booleans broadcast to ``shape`` = (…, L), True = real token; None stays
    None.
    """
    if padding_mask is None:
        return None
    padding_mask = as_array("padding_mask", padding_mask)
    if padding_mask.dtype != bool:
        raise TypeError(
            f"padding_mask must be boolean (True = real token), got dtype {padding_mask.dtype}"
        )
    return broadcast("padding_mask", padding_mask, shape, "(…, L)")


def broadcast(name, array, shape, meaning):
    """``array`` broadcast to ``shape``, or a ValueError; ``meaning`` says what the shape stands
    for.
    """
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        raise ValueError(
            f"{name} must broadcast to {tuple(shape)} = {meaning}, got {array.shape}"
        ) from None


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


def clear_errors(function):
    """Decorates a function that shows or tells what it is given: where it fails, the error names
    the arguments.

    A TypeError stays one, everything else becomes a ValueError; what it came from stays its cause.
    For functions whose data has many parts (pictures, reports); those that compute check their
    arguments one by one.
    """
    parameters = inspect.signature(function).parameters

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except UNCLEAR as error:
            bound = [*zip(parameters, args, strict=False), *kwargs.items()]
            given = ", ".join(f"{name} = {_in_short(value)}" for name, value in bound)
            kind, text = (
                TypeError if isinstance(error, TypeError) else ValueError,
                " ".join(str(error).split()),
            )
            raise kind(f"{text[:400]} ({function.__name__} was given {given[:400]})") from error

    return wrapped


def _in_short(value):
    try:
        return f"{type(value).__name__} {tuple(value.shape)}"
    except Exception:  # no array
        return shown(value, 40)
