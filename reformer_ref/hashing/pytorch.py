"""Angular locality-sensitive hashing, the version to read. Not checked."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reformer_ref.hashing.spec import default_n_buckets, factors_of

__all__ = ["default_n_buckets", "hash_vectors", "random_rotations"]


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

    The numbers are drawn on the generator's device and then moved to ``device``, so a CPU generator
    gives the same rotations everywhere. With n_heads, one set per head.
    """
    heads = () if n_heads is None else (n_heads,)
    shape = (*heads, n_hashes, d, sum(factors_of(n_buckets)) // 2)
    drawn = torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)
    return drawn if device is None else drawn.to(device)


@torch.no_grad()
def hash_vectors(
    x: Float[Tensor, "*batch L d"],
    rotations: Float[Tensor, "*heads n_hashes d half_buckets"],
    n_buckets: int | tuple[int, ...],
) -> Int[Tensor, "... n_hashes L"]:
    """Hash vectors: bucket = argmax([xR ; −xR]), combined over the factors of ``n_buckets``."""
    projected = x[..., None, :, :] @ rotations.to(x)  # (…, n_hashes, L, Σfactors/2)
    buckets, stride, start = 0, 1, 0
    for factor in factors_of(n_buckets):
        xr = projected[..., start : start + factor // 2]  # (…, n_hashes, L, factor/2)
        buckets = buckets + stride * torch.cat([xr, -xr], dim=-1).argmax(-1)
        stride *= factor
        start += factor // 2
    return buckets  # (…, n_hashes, L)
