"""Hashing: the public functions, which check their arguments once and pick a version."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reformer_ref._arguments import (
    bucket_factors,
    require_choice,
    require_fits,
    require_int,
    require_shape,
)
from reformer_ref._kernels import kernels_chosen, require_kernels
from reformer_ref._tensors import (
    require_device,
    require_dtype,
    require_finite,
    require_floating,
    require_generator,
)
from reformer_ref.hashing import pytorch as plain
from reformer_ref.hashing import spec, streaming

BACKENDS = ("auto", "plain", "streaming", "triton")
PLAIN_UP_TO = 1 << 12  # scores x·R up to which "auto" takes "plain"


def default_n_buckets(length: int, chunk_length: int) -> int | tuple[int, int]:
    """Choose the number of buckets: about two per chunk, so that a bucket fills half a chunk.

    Beyond 128 the number is split into two even factors of about its square root: the hash then
    costs O(L·√n_buckets) instead of O(L·n_buckets). Same numbers as the authors' code.

    Args:
        length: tokens in the sequence, ≥ 1.
        chunk_length: tokens in a chunk, ≥ 1.

    Returns:
        An even int, or a tuple of two even ints whose product is the number of buckets.

    Raises:
        TypeError: for anything but integers.
        ValueError: for numbers below 1.
    """
    require_int("length", length)
    require_int("chunk_length", chunk_length)
    return spec.default_n_buckets(int(length), int(chunk_length))


def random_rotations(
    generator: torch.Generator,
    n_hashes: int,
    d: int,
    n_buckets: int | tuple[int, ...],
    n_heads: int | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Float[Tensor, "*heads n_hashes d half_buckets"]:
    """Draw Gaussian matrices R, one per round, from ``generator`` and from nothing else.

    Args:
        generator: the numbers are drawn on its device and then moved to ``device``, so that a CPU
            generator gives the same rotations everywhere.
        n_hashes: rounds of hashing.
        d: size of the vectors to be hashed.
        n_buckets: an even int, or a tuple of even factors.
        n_heads: if given, one set of matrices per head.
        dtype: float32, float64, bfloat16 or float16.
        device: where the result lies; None: on the generator's device.

    Returns:
        (n_hashes, d, Σfactors/2), with n_heads in front if it is given.

    Raises:
        TypeError: for a wrong type.
        ValueError: for sizes below 1, odd factors, or more numbers than any memory holds.
    """
    require_generator("generator", generator)
    require_dtype("dtype", dtype)
    require_device("device", device)
    sizes = {"n_hashes": require_int("n_hashes", n_hashes), "d": require_int("d", d)}
    if n_heads is not None:
        sizes["n_heads"] = require_int("n_heads", n_heads)
    factors = bucket_factors(n_buckets)
    require_fits(**sizes, n_buckets=sum(factors) // 2)
    return plain.random_rotations(
        generator, n_hashes, d, factors, n_heads, dtype=dtype, device=device
    )


def hash_vectors(
    x: Float[Tensor, "*batch L d"],
    rotations: Float[Tensor, "*heads n_hashes d half_buckets"],
    n_buckets: int | tuple[int, ...],
    *,
    backend: str = "auto",
) -> Int[Tensor, "... n_hashes L"]:
    """Hash vectors to buckets: bucket = argmax([xR ; −xR]), the lowest index on a tie.

    Only the direction of a vector matters. No gradient flows. Source: paper section 2, "Locality
    sensitive hashing"; factors as in the authors' code.

    Args:
        x: vectors; finite.
        rotations: one matrix per round; leading dimensions broadcast against those of x (one set
            per head). Cast to the dtype and device of x; finite.
        n_buckets: an even int, or a tuple (f0, f1, …) of even factors: each hashes with its own
            columns of R, and bucket = b0 + f0·b1 + f0·f1·b2 + ….
        backend: "plain" is ``hashing.pytorch``, whose memory grows with L·n_buckets; "streaming"
            works on a block of positions at a time; "triton" is a kernel for CUDA (see
            ``lsh_attention``). "auto" takes "triton" on CUDA wherever it can, else "plain" for up
            to 2¹² scores and "streaming" beyond, each where it is the faster one.

    Returns:
        int64 bucket numbers in [0, Πfactors).

    Raises:
        TypeError: for a wrong type or dtype.
        ValueError: for shapes that do not fit, odd factors, NaN or infinity, or backend="triton"
            where its kernel does not run.
    """
    factors = bucket_factors(n_buckets)
    _require_numbers("x", x, 2, "(…, L, d)")
    meaning = "(…, n_hashes, d, Σfactors/2)"
    _require_numbers("rotations", rotations, 3, meaning)
    want = (*rotations.shape[:-2], x.shape[-1], sum(factors) // 2)
    require_shape("rotations", rotations, want, meaning)
    try:
        torch.broadcast_shapes(x.shape[:-2], rotations.shape[:-3])
    except RuntimeError:
        given = f"rotations {tuple(rotations.shape)}"
        of_x = f"the leading dimensions of x {tuple(x.shape)}"
        raise ValueError(f"{given} must broadcast over {of_x}") from None
    if rotations.is_meta and not x.is_meta:
        raise ValueError(f"rotations must hold numbers, as x does on {x.device}, got a meta tensor")
    require_choice("backend", backend, BACKENDS)
    if backend == "triton":
        require_kernels(x, x, rotations.shape[-3])
    return unchecked_hash_vectors(x, rotations, factors, backend=backend)


def unchecked_hash_vectors(x, rotations, n_buckets, *, backend="auto"):
    """``hash_vectors`` without checks, for use inside the package."""
    if backend == "auto" and not x.is_cpu and kernels_chosen(x, x, rotations.shape[-3]):
        backend = "triton"
    if backend == "triton":
        from reformer_ref.hashing import fused

        return fused.hash_vectors(x, rotations, n_buckets)
    if backend == "auto":
        scores = x[..., 0].numel() * rotations.shape[-3] * rotations.shape[-1]
        backend = "plain" if scores <= PLAIN_UP_TO else "streaming"
    version = plain if backend == "plain" else streaming
    return version.hash_vectors(x, rotations, n_buckets)


def _require_numbers(name, x, ndim, meaning):
    if require_floating(name, x).ndim < ndim or 0 in x.shape:
        given = tuple(x.shape)
        raise ValueError(f"{name} must have shape {meaning} with every size ≥ 1, got {given}")
    require_finite(name, x)
