"""Angular locality-sensitive hashing: the definition, in NumPy.

A vector is multiplied with a random matrix R of b/2 columns; its bucket is the largest of the b
numbers [xR ; −xR]. Two vectors share a bucket with a probability that falls with the angle between
them, so a bucket holds directions that lie close together (paper section 2, "Locality sensitive
hashing"; Andoni et al. 2015).
"""

import numpy as np
from jaxtyping import Float, Int


def default_n_buckets(length: int, chunk_length: int) -> int | tuple[int, int]:
    """Choose the number of buckets: a pure function of the length and the chunk length.

    About two buckets per chunk, so that a bucket fills half a chunk on average: ``2·max(1, L //
    chunk_length)``. Beyond 128 the number is split into two even factors of about its square root:
    the hash then costs O(L·√n_buckets) instead of O(L·n_buckets). Same numbers as the authors'
    code.
    """
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


def random_rotations(
    rng: np.random.Generator,
    n_hashes: int,
    d: int,
    n_buckets: int | tuple[int, ...],
    n_heads: int | None = None,
) -> Float[np.ndarray, "*heads n_hashes d half_buckets"]:
    """Draw Gaussian matrices R, one per round, from ``rng`` and from nothing else.

    n_buckets: an even int, or a tuple of even factors; half_buckets = Σfactors/2. With n_heads, one
    set of matrices per head.
    """
    heads = () if n_heads is None else (n_heads,)
    return rng.standard_normal((*heads, n_hashes, d, sum(factors_of(n_buckets)) // 2))


def hash_vectors(
    x: Float[np.ndarray, "*batch L d"],
    rotations: Float[np.ndarray, "*heads n_hashes d half_buckets"],
    n_buckets: int | tuple[int, ...],
) -> Int[np.ndarray, "... n_hashes L"]:
    """Hash vectors to buckets in [0, Πfactors): bucket = argmax([xR ; −xR]).

    Only directions matter. The rotations may have leading dimensions that broadcast against those
    of x (one set per head). With a tuple (f0, f1, …) of even factors each factor hashes with its
    own columns of R, and ``bucket = b0 + f0·b1 + f0·f1·b2 + …`` (as in the authors' code). Ties go
    to the lowest bucket. No gradient is defined.
    """
    projected = x[..., None, :, :] @ rotations  # (…, n_hashes, L, Σfactors/2)
    buckets = np.zeros(projected.shape[:-1], dtype=np.int64)
    stride, start = 1, 0
    for factor in factors_of(n_buckets):
        xr = projected[..., start : start + factor // 2]  # (…, n_hashes, L, factor/2)
        buckets += stride * np.argmax(np.concatenate([xr, -xr], axis=-1), axis=-1)
        stride *= factor
        start += factor // 2
    return buckets
