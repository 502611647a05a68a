"""Argument checks shared by every room. Each error names the argument, what was given, and what is accepted."""

import math
from numbers import Integral, Real


def require_int(name, value, minimum=1, maximum=None):
    """Return ``value`` as an int, or raise: TypeError if it is not an integer, ValueError if it is out of range."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer, got {value!r} ({type(value).__name__})")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")
    if maximum is not None and value > maximum:
        raise ValueError(f"{name} must be at most {maximum}, got {value}")
    return int(value)


def require_bool(name, value):
    """Return ``value`` if it is True or False; TypeError otherwise (1 and "no" are not booleans)."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r} ({type(value).__name__})")
    return value


def require_float(name, value, minimum=None, below=None):
    """Return ``value`` as a finite float with ``minimum <= value < below``."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r} ({type(value).__name__})")
    try:
        value = float(value)
    except OverflowError:
        raise ValueError(f"{name} must fit a float, got a number of {len(str(value))} digits") from None
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
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def bucket_factors(n_buckets):
    """The even factors of ``n_buckets`` (an int or a tuple of ints) as a tuple: 16 -> (16,), (4, 6) -> (4, 6)."""
    factors = n_buckets if isinstance(n_buckets, (tuple, list)) else (n_buckets,)
    if not factors:
        raise ValueError("n_buckets must hold at least one factor, got an empty tuple")
    for factor in factors:
        require_int("n_buckets", factor, minimum=2)
        if factor % 2:
            raise ValueError(f"n_buckets must be even (a bucket and its mirror image), got the factor {factor}")
    if math.prod([int(f) for f in factors]) >= 2**63:
        raise ValueError(f"n_buckets must be less than 2⁶³ in all, got the product of {tuple(factors)}")
    return tuple(int(f) for f in factors)


def require_shape(name, array, shape, meaning):
    """ValueError unless ``array.shape`` equals ``shape``; ``meaning`` says what the shape stands for."""
    if tuple(array.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)} = {meaning}, got {tuple(array.shape)}")
