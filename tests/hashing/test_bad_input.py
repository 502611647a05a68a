"""The public functions of hashing refuse bad input with an error that names the argument."""

import numpy as np
import pytest
import torch
from reformer_ref.hashing.api import default_n_buckets, hash_vectors, random_rotations

GOOD = {"x": torch.ones(2, 5, 3), "rotations": torch.ones(4, 3, 6), "n_buckets": 12}
BAD_BUCKETS = [(ValueError, n) for n in (7, (4, 3), 0, -2, (), [4, 0])]
BAD_BUCKETS += [(TypeError, n) for n in (4.0, True, None, "12", (4, 8.0))]
WRONG = [
    *((name, GOOD[name].to(dtype), TypeError, f"{name} must be dense, of dtype")
      for name in ("x", "rotations") for dtype in (torch.int64, torch.bool, torch.complex64, torch.uint8)),
    *((name, torch.full_like(GOOD[name], bad), ValueError, f"{name} must be finite")
      for name in ("x", "rotations") for bad in (torch.nan, torch.inf, -torch.inf)),
    *((name, bad, TypeError, f"{name} must be a torch.Tensor")
      for name in ("x", "rotations") for bad in (np.ones((4, 3, 6)), [[1.0, 2.0, 3.0]], None)),
    *(("x", torch.ones(shape), ValueError, "x must have shape") for shape in ((), (3,), (0, 3), (5, 0), (0, 5, 3))),
    *(("rotations", torch.ones(shape), ValueError, "rotations must have shape")
      for shape in ((), (3, 6), (0, 3, 6), (4, 3, 0), (4, 3, 5), (4, 3, 7), (4, 2, 6), (4, 6, 3))),
    ("n_buckets", (12, 2), ValueError, "rotations must have shape"),
    ("rotations", torch.ones(3, 4, 3, 6), ValueError, r"rotations \(3, 4, 3, 6\) must broadcast"),
    ("rotations", GOOD["rotations"].to("meta"), ValueError, "rotations must hold numbers, as x does on cpu"),
    ("backend", "fast", ValueError, "backend must be one of 'auto'"),
    *(("n_buckets", bad, error, "n_buckets must") for error, bad in BAD_BUCKETS),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "error", "message"), WRONG)
def test_wrong_arguments(name, value, error, message):
    with pytest.raises(error, match=f"^{message}"):
        hash_vectors(**(GOOD | {name: value}))


@pytest.mark.parametrize(("error", "bad"), BAD_BUCKETS)
def test_bad_numbers_of_buckets(error, bad):
    with pytest.raises(error, match=r"^n_buckets must"):
        random_rotations(torch.Generator(), 2, 3, bad)


@pytest.mark.parametrize("bad", [None, 0, "seed", np.random.default_rng(0), torch.Generator])
def test_wrong_generators(bad):
    with pytest.raises(TypeError, match=r"generator must be a torch.Generator"):
        random_rotations(bad, 2, 3, 4)


@pytest.mark.parametrize(
    ("error", "bad"), [(ValueError, 0), (ValueError, -1), (TypeError, 2.0), (TypeError, "2"), (TypeError, True)]
)
def test_bad_sizes(error, bad):
    for name in ("n_hashes", "d", "n_heads"):
        with pytest.raises(error, match=f"^{name} must be"):
            random_rotations(torch.Generator(), **{"n_hashes": 2, "d": 3, "n_buckets": 4, name: bad})
    for name in ("length", "chunk_length"):
        with pytest.raises(error, match=f"^{name} must be"):
            default_n_buckets(**{"length": 100, "chunk_length": 10, name: bad})


def test_bad_dtypes_devices_and_too_much():
    for bad in (torch.int64, torch.complex64, "float32", None):
        with pytest.raises(TypeError, match=r"dtype must be a floating torch.dtype"):
            random_rotations(torch.Generator(), 2, 3, 4, dtype=bad)
    with pytest.raises(ValueError, match="device must be a device that PyTorch finds here"):
        random_rotations(torch.Generator(), 2, 3, 4, device="toaster")
    with pytest.raises(ValueError, match="must be less than 1099511627776 numbers"):
        random_rotations(torch.Generator(), 2**20, 2**20, 4)


@pytest.mark.parametrize("backend", ["plain", "streaming"])
def test_meta_tensors_give_the_shape(backend):
    buckets = hash_vectors(GOOD["x"].to("meta"), GOOD["rotations"], 12, backend=backend)
    assert buckets.is_meta
    assert buckets.shape == (2, 4, 5)
