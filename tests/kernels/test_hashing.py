"""The hash as a kernel chooses the buckets of the specification, near ties excepted."""

import numpy as np
import pytest
import torch
from reformer_ref._kernels import INTERPRETED
from reformer_ref.hashing import fused, pytorch, spec
from reformer_ref.hashing.api import hash_vectors
from reformer_ref.hashing.checks import check_collision_probability, check_hash_vectors

pytestmark = pytest.mark.kernels

DEVICE = "cpu" if INTERPRETED else "cuda"


def by_kernel(dtype):
    """``hash_vectors`` on NumPy arrays, by the kernel, in a precision."""

    def hash_in_numpy(x, rotations, n_buckets):
        x, rotations = (torch.tensor(a, dtype=dtype, device=DEVICE) for a in (x, rotations))
        return hash_vectors(x, rotations, n_buckets, backend="triton").cpu().numpy()

    return hash_in_numpy


# Half precision rounds x and R to 8 and 11 bits; the score x · r is a sum of products that err by twice that.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_the_checks_of_the_hash(dtype, tolerance):
    check_hash_vectors(by_kernel(dtype), tolerance=tolerance)


def test_probabilities():
    check_collision_probability(by_kernel(torch.float32), n_hashes=256)


@pytest.mark.parametrize("n_buckets", [2, 6, 130, 300, (32, 16), (2, 4, 6)], ids=str)
def test_whole_numbers_have_the_buckets_of_the_specification(n_buckets):
    """Their scores are exact, so every tie is one: the lowest bucket wins, also between blocks of columns."""
    rng = np.random.default_rng(0)
    x = rng.integers(-1, 2, (2, 3, 70, 5)).astype(float)
    x[..., 0, :] = 0
    rotations = rng.integers(-1, 2, (3, 2, 5, sum(spec.factors_of(n_buckets)) // 2)).astype(float)
    want = spec.hash_vectors(x, rotations, n_buckets)
    assert np.array_equal(by_kernel(torch.float32)(x, rotations, n_buckets), want)


def test_any_strides():
    """A projection leaves heads side by side, and a model takes the first columns of its rotations."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 65, 3, 16, generator=generator).to(DEVICE).transpose(1, 2)
    rotations = torch.randn(3, 2, 16, 20, generator=generator).to(DEVICE)[..., :12]
    want = pytorch.hash_vectors(x, rotations, (8, 16))
    assert (hash_vectors(x, rotations, (8, 16), backend="triton") == want).float().mean() > 0.99
    by_column = x.transpose(-2, -1).contiguous().transpose(-2, -1)
    got = hash_vectors(by_column, rotations, (8, 16), backend="triton")
    assert torch.equal(got, hash_vectors(x, rotations, (8, 16), backend="triton"))


def test_the_operation_keeps_the_rules_of_pytorch():
    x = torch.randn(1, 2, 9, 4, device=DEVICE)
    rotations = torch.randn(1, 2, 3, 4, 5, device=DEVICE)
    torch.library.opcheck(fused.hash_forward, (x, rotations, [4, 6]))
