"""Angular locality-sensitive hashing, in NumPy.

A vector is multiplied with a random matrix R of b/2 columns; its bucket is the largest of the b
numbers [xR ; −xR]. Two vectors share a bucket with a probability that falls with the angle between
them, so a bucket holds directions that lie close together (paper section 2, "Locality sensitive
hashing"; Andoni et al. 2015).
"""

import math

import numpy as np

from reformer_ref._arguments import (
    as_floats,
    bucket_factors,
    require_int,
    require_room,
    require_shape,
)


def default_n_buckets(length, chunk_length):
    """The number of buckets used when none is given: a pure function of the length and the chunk
    length.

    About two buckets per chunk, so that a bucket fills half a chunk on average: ``2·max(1, L //
    chunk_length)``. Beyond 128 the number is split into two even factors of about its square root:
    the hash then costs O(L·√n_buckets) instead of O(L·n_buckets). Same numbers as the authors'
    code.

    Returns an int, or a tuple of two even ints whose product is the number of buckets.
    """
    length, chunk_length = require_int("length", length), require_int("chunk_length", chunk_length)
    n_buckets = 2 * max(1, length // chunk_length)
    if n_buckets <= 128:
        return n_buckets
    first = 1
    while first * first < n_buckets:  # the smallest power of two that is at least √n_buckets
        first *= 2
    return first, 2 * (n_buckets // (2 * first))


def factors_of(n_buckets):
    """The factors of a number of buckets as a tuple: 16 -> (16,), (4, 6) -> (4, 6)."""
    return tuple(n_buckets) if isinstance(n_buckets, (tuple, list)) else (n_buckets,)


def random_rotations(rng, n_hashes, d, n_buckets, n_heads=None):
    """Gaussian matrices R, one per round: float64 (n_hashes, d, Σfactors/2), drawn from ``rng`` and
    from nothing else.

    rng: a ``numpy.random.Generator``. n_buckets: an even int, or a tuple of even factors. n_heads:
    if given, one set per head, shape (n_heads, n_hashes, d, Σfactors/2).
    """
    if not isinstance(rng, np.random.Generator):
        raise TypeError(
            f"rng must be a numpy.random.Generator, got {type(rng).__name__}; try numpy.random.default_rng(0)"
        )
    shape = (
        require_int("n_hashes", n_hashes),
        require_int("d", d),
        sum(bucket_factors(n_buckets)) // 2,
    )
    heads = () if n_heads is None else (require_int("n_heads", n_heads),)
    require_room(n_heads=math.prod(heads), n_hashes=n_hashes, d=d, n_buckets=shape[-1])
    return rng.standard_normal(heads + shape)


def hash_vectors(x, rotations, n_buckets):
    """Buckets of the vectors ``x``: int64 (…, n_hashes, L), values in [0, Πfactors).

    x: float (…, L, d); only directions matter. rotations: (n_hashes, d, Σfactors/2), or with
    leading dimensions that broadcast against those of x (one set per head). n_buckets: an even int,
    or a tuple (f0, f1, …) of even factors: each factor hashes with its own columns of R and
    ``bucket = b0 + f0·b1 + f0·f1·b2 + …``.

    Ties go to the lowest bucket. No gradient is defined. TypeError for a wrong dtype; ValueError
    for NaN or infinity, for odd factors and for shapes that do not fit. Source: paper section 2;
    factors as in the authors' code.
    """
    factors = bucket_factors(n_buckets)
    x = _floats("x", x, 2, "(…, L, d)")
    rotations = _floats("rotations", rotations, 3, "(…, n_hashes, d, Σfactors/2)")
    shape = (*rotations.shape[:-2], x.shape[-1], sum(factors) // 2)
    require_shape("rotations", rotations, shape, "(…, n_hashes, d, Σfactors/2)")
    try:
        np.broadcast_shapes(x.shape[:-2], rotations.shape[:-3])
    except (ValueError, RuntimeError):  # the latter for more than 32 dimensions
        raise ValueError(
            f"rotations {rotations.shape} must broadcast over the leading dimensions of x {x.shape}"
        ) from None
    scores = x[..., None, :, :] @ rotations  # (…, n_hashes, L, Σfactors/2)
    buckets, stride, start = np.zeros(scores.shape[:-1], dtype=np.int64), 1, 0
    for factor in factors:
        xr = scores[..., start : start + factor // 2]  # (…, n_hashes, L, factor/2)
        buckets += stride * np.argmax(np.concatenate([xr, -xr], axis=-1), axis=-1)
        stride, start = stride * factor, start + factor // 2
    return buckets


def _floats(name, x, ndim, meaning):
    x = as_floats(name, x)
    if x.ndim < ndim or 0 in x.shape:
        raise ValueError(f"{name} must have shape {meaning} with every size ≥ 1, got {x.shape}")
    return x
