"""Angular locality-sensitive hashing, in PyTorch: same functions as the spec, on any device, slice
by slice.
"""

import math

import torch

from reformer_ref._blocks import block_starts
from reformer_ref._arguments import bucket_factors, require_int, require_room, require_shape
from reformer_ref._tensors import (
    Scratch,
    require_device,
    require_dtype,
    require_finite,
    require_floating,
    require_generator,
)
from reformer_ref.hashing.spec import default_n_buckets

__all__ = ["default_n_buckets", "hash_vectors", "random_rotations"]

SCORES_AT_A_TIME = 1 << 20  # numbers: 4 MiB of float32; bounds the working memory of the hash


def random_rotations(
    generator, n_hashes, d, n_buckets, n_heads=None, *, dtype=torch.float32, device=None
):
    """Gaussian matrices R, one per round: (n_hashes, d, Σfactors/2), drawn from ``generator`` and
    from nothing else.

    generator: a ``torch.Generator``; the numbers are drawn on its device and then moved to
    ``device``, so a CPU generator gives the same rotations everywhere. n_heads: if given, one set
    per head, shape (n_heads, n_hashes, d, …).
    """
    (
        require_generator("generator", generator),
        require_dtype("dtype", dtype),
        require_device("device", device),
    )
    shape = (
        require_int("n_hashes", n_hashes),
        require_int("d", d),
        sum(bucket_factors(n_buckets)) // 2,
    )
    heads = () if n_heads is None else (require_int("n_heads", n_heads),)
    require_room(n_heads=math.prod(heads), n_hashes=n_hashes, d=d, n_buckets=shape[-1])
    drawn = torch.randn(heads + shape, generator=generator, dtype=dtype, device=generator.device)
    return drawn.to(device) if device is not None else drawn


@torch.no_grad()
def hash_vectors(x, rotations, n_buckets):
    """Buckets of the vectors ``x``: int64 (…, n_hashes, L), values in [0, Πfactors).

    x: floating (…, L, d). rotations: (n_hashes, d, Σfactors/2), or with leading dimensions that
    broadcast against those of x (one set per head); cast to x's dtype and device. n_buckets: an
    even int or a tuple of even factors. Scores are made for a slice of positions at a time and
    never kept. No gradient flows. Errors and source: see the spec.
    """
    factors = bucket_factors(n_buckets)
    _require_numbers("x", x, 2, "(…, L, d)")
    _require_numbers("rotations", rotations, 3, "(…, n_hashes, d, Σfactors/2)")
    width, n_hashes = sum(factors) // 2, rotations.shape[-3]
    require_shape(
        "rotations",
        rotations,
        (*rotations.shape[:-2], x.shape[-1], width),
        "(…, n_hashes, d, Σfactors/2)",
    )
    try:
        lead = torch.broadcast_shapes(x.shape[:-2], rotations.shape[:-3])
    except RuntimeError:
        raise ValueError(
            f"rotations {tuple(rotations.shape)} must broadcast over the leading dimensions of x {tuple(x.shape)}"
        ) from None
    if rotations.is_meta and not x.is_meta:
        raise ValueError(f"rotations must hold numbers, as x does on {x.device}, got a meta tensor")
    buckets = torch.empty(*lead, n_hashes, x.shape[-2], dtype=torch.int64, device=x.device)
    turn = rotations.to(x).transpose(-2, -1).flatten(-3, -2)  # (…, n_hashes·width, d)
    step = max(1, SCORES_AT_A_TIME // (lead.numel() * n_hashes * width))
    for start in block_starts(x.shape[-2], step):
        part = slice(start, start + step)
        # einsum, unlike matmul, repeats neither x for every round nor the rotations for every
        # sequence
        scores = torch.einsum(
            "...wd,...ld->...wl", turn, x[..., part, :]
        )  # (…, n_hashes·width, slice)
        buckets[..., part] = _largest_of_both_signs(
            scores.unflatten(-2, (n_hashes, width)), factors
        )
    return buckets


def _largest_of_both_signs(scores, factors):
    """argmax([s ; −s]) per factor along dimension −2, combined to one number.

    From maxima and comparisons: argmax itself, which finds one number at a time, takes ten times as
    long on a CPU.
    """
    bucket, stride, start = 0, 1, 0
    for factor in factors:
        half = factor // 2
        s = scores[..., start : start + half, :]  # (…, n_hashes, factor/2, slice)
        high, low = s.amax(-2, keepdim=True), s.amin(-2, keepdim=True)
        mirrored = high < -low  # tie: the lower index, s itself
        number = torch.arange(half, dtype=s.dtype, device=s.device)[:, None]
        best = torch.where(mirrored, low, high)
        other = Scratch().pairs("other", torch.ne, s, best)  # 1.0 where s is not the largest
        first = other.mul_(half).add_(number).amin(-2, keepdim=True)
        bucket = bucket + stride * (first + half * mirrored).squeeze(-2).long()
        stride, start = stride * factor, start + half
    return bucket


def _require_numbers(name, x, ndim, meaning):
    if require_floating(name, x).ndim < ndim or 0 in x.shape:
        raise ValueError(
            f"{name} must have shape {meaning} with every size ≥ 1, got {tuple(x.shape)}"
        )
    require_finite(name, x)
