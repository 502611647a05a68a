"""The hash refuses bad input with a ValueError or TypeError that names the argument, in both
versions.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reformer_ref.hashing import pytorch, spec

quick = settings(max_examples=40, deadline=None)
VERSIONS = [(spec, np.asarray), (pytorch, lambda a: torch.from_numpy(np.array(a)))]
X, R = np.ones((2, 5, 3)), np.ones((4, 3, 6))


def refused(error, match, x=X, rotations=R, n_buckets=12):
    for version, convert in VERSIONS:
        with pytest.raises(error, match=f"^{match}"):
            version.hash_vectors(convert(x), convert(rotations), n_buckets)


@pytest.mark.parametrize("dtype", ["int64", "bool", "complex64", "uint8"])
def test_wrong_dtypes(dtype):
    refused(TypeError, "x must", x=X.astype(dtype))
    refused(TypeError, "rotations must", rotations=R.astype(dtype))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite(bad):
    for name, good in (("x", X), ("rotations", R)):
        array = good.copy()
        array[1, 2, 1] = bad
        refused(ValueError, f"{name} must be finite", **{name: array})


@pytest.mark.parametrize(
    ("error", "bad"),
    [(ValueError, n) for n in (7, (4, 3), 0, -2, (), [4, 0])]
    + [(TypeError, n) for n in (4.0, True, None, "12", (4, 8.0))],
)
def test_bad_numbers_of_buckets(error, bad):
    refused(error, "n_buckets must", n_buckets=bad)
    for version, generator in ((spec, np.random.default_rng(0)), (pytorch, torch.Generator())):
        with pytest.raises(error, match=r"^n_buckets must"):
            version.random_rotations(generator, 2, 3, bad)


def test_wrong_shapes():
    for shape in ((), (3,), (0, 3), (5, 0), (0, 5, 3)):
        refused(ValueError, "x must have shape", x=np.ones(shape))
    for shape in ((), (3, 6), (0, 3, 6), (4, 3, 0), (4, 3, 5), (4, 3, 7), (4, 2, 6), (4, 6, 3)):
        refused(ValueError, "rotations must have shape", rotations=np.ones(shape))
    refused(ValueError, "rotations must have shape", n_buckets=(12, 2))
    refused(ValueError, r"rotations \(3, 4, 3, 6\) must broadcast", rotations=np.ones((3, 4, 3, 6)))


@quick
@given(data=st.data())
def test_any_shapes_are_hashed_alike_or_refused_alike(data):
    sizes = st.lists(st.integers(0, 3), max_size=2)
    x_shape = [*data.draw(sizes), data.draw(st.integers(0, 4)), data.draw(st.integers(2, 3))]
    r_shape = [
        *data.draw(sizes),
        data.draw(st.integers(0, 2)),
        data.draw(st.integers(2, 3)),
        data.draw(st.integers(1, 2)),
    ]
    x, rotations = np.ones(x_shape), np.arange(1.0, 1 + np.prod(r_shape)).reshape(r_shape)

    def run(version, convert):
        try:
            return np.asarray(version.hash_vectors(convert(x), convert(rotations), 4))
        except ValueError as error:
            return error

    ours, fast = (run(*version) for version in VERSIONS)
    if isinstance(ours, ValueError):
        assert isinstance(fast, ValueError)
        assert str(ours).startswith(("x must", "rotations"))
        assert str(fast).startswith(("x must", "rotations"))
    else:
        np.testing.assert_array_equal(fast, ours)


@pytest.mark.parametrize("bad", [None, 0, "seed", np.random.default_rng, torch.Generator])
def test_wrong_generators(bad):
    with pytest.raises(TypeError, match=r"rng must be a numpy.random.Generator"):
        spec.random_rotations(bad, 2, 3, 4)
    with pytest.raises(TypeError, match=r"generator must be a torch.Generator"):
        pytorch.random_rotations(bad, 2, 3, 4)


def test_generators_of_the_other_library():
    with pytest.raises(TypeError, match=r"rng must be a numpy.random.Generator, got Generator"):
        spec.random_rotations(torch.Generator(), 2, 3, 4)
    with pytest.raises(TypeError, match=r"generator must be a torch.Generator, got Generator"):
        pytorch.random_rotations(np.random.default_rng(0), 2, 3, 4)


@pytest.mark.parametrize(
    ("error", "bad"), [(ValueError, 0), (ValueError, -1), (TypeError, 2.0), (TypeError, "2"), (TypeError, True)]
)
def test_bad_sizes(error, bad):
    for version, generator in ((spec, np.random.default_rng(0)), (pytorch, torch.Generator())):
        for name in ("n_hashes", "d", "n_heads"):
            with pytest.raises(error, match=f"^{name} must be"):
                version.random_rotations(generator, **{"n_hashes": 2, "d": 3, "n_buckets": 4, name: bad})
    for name in ("length", "chunk_length"):
        with pytest.raises(error, match=f"^{name} must be"):
            spec.default_n_buckets(**{"length": 100, "chunk_length": 10, name: bad})


def test_arguments_of_another_kind_or_place():
    x, rotations = torch.ones(5, 3), torch.ones(4, 3, 6)
    for bad in (np.ones((5, 3)), [[1.0, 2.0, 3.0]], None):
        with pytest.raises(TypeError, match=r"x must be a torch.Tensor"):
            pytorch.hash_vectors(bad, rotations, 12)
    with pytest.raises(TypeError, match=r"rotations must be a torch.Tensor"):
        pytorch.hash_vectors(x, np.ones((4, 3, 6)), 12)
    for bad in (None, "text", [["a"]]):
        with pytest.raises(TypeError, match="x must hold floating-point numbers"):
            spec.hash_vectors(bad, R, 12)
    with pytest.raises(ValueError, match="rotations must hold numbers, as x does on cpu, got a meta tensor"):
        pytorch.hash_vectors(x, rotations.to("meta"), 12)
    buckets = pytorch.hash_vectors(x.to("meta"), rotations, 12)  # shapes only
    assert buckets.is_meta
    assert buckets.shape == (4, 5)
    for bad in (torch.int64, torch.complex64, "float32", None):
        with pytest.raises(TypeError, match=r"dtype must be a floating torch.dtype"):
            pytorch.random_rotations(torch.Generator(), 2, 3, 4, dtype=bad)
