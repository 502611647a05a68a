"""The hash by the kernel of ``triton.py``, as an operation of PyTorch.

The prediction of memory and the compiler know the operation by its shapes alone. Only running it
imports triton, so this file works where triton is not installed.
"""

import torch
from torch import Tensor

from reformer_ref._kernels import four_axes
from reformer_ref.hashing.spec import factors_of


def hash_vectors(x, rotations, n_buckets):
    """``pytorch.hash_vectors`` by a kernel for each factor; scores are float32 in any precision."""
    batch = torch.broadcast_shapes(x.shape[:-2], rotations.shape[:-3])
    rotations = rotations.to(x).expand(*batch, *rotations.shape[-3:])  # (…, n_hashes, d, width)
    x = four_axes(x.detach().expand(*batch, *x.shape[-2:]))
    rotations = rotations.reshape(*x.shape[:2], *rotations.shape[-3:])
    rotations = rotations if rotations.stride(-1) == 1 else rotations.contiguous()
    buckets = hash_forward(x, rotations, list(factors_of(n_buckets)))
    return buckets.reshape(*batch, *buckets.shape[-2:])


@torch.library.custom_op("reformer_ref::hash_forward", mutates_args=())
def hash_forward(x: Tensor, rotations: Tensor, factors: list[int]) -> Tensor:
    """Buckets (batch, heads, n_hashes, L), int64, of x (batch, heads, L, d).

    rotations: (batch, heads, n_hashes, d, Σfactors/2).
    """
    from reformer_ref.hashing.triton import launch_hash

    buckets = _new_buckets(x, rotations)
    launch_hash(x, rotations, buckets, factors)
    return buckets


@hash_forward.register_fake
def _(x, rotations, factors):
    return _new_buckets(x, rotations)


def _new_buckets(x, rotations):
    *batch, length, _ = x.shape
    return x.new_empty(*batch, rotations.shape[-3], length, dtype=torch.int64)
