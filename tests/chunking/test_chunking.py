"""Sort, chunk, look at neighbours, undo: both versions pass the checks, wrong ones fail them, bad
input is refused.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reformer_ref.chunking import checks, pytorch, spec
from reformer_ref.testing import as_numpy, autograd_vjp, central_difference, expect_close

DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()
NAMES = ("sort_by_bucket", "undo_sort", "split_chunks", "look_adjacent")
VERSIONS = [(spec, np.asarray), (pytorch, lambda a: torch.from_numpy(np.array(a)))]
quick = settings(max_examples=40, deadline=None)


@pytest.mark.parametrize("name", NAMES)
def test_both_versions_pass_the_checks(name, capsys):
    getattr(checks, f"check_{name}")(getattr(spec, name))
    line = capsys.readouterr().out
    assert line.startswith(f"check_{name}: ")
    assert line.count("\n") == 1
    for device in DEVICES:
        getattr(checks, f"check_{name}")(as_numpy(getattr(pytorch, name), device=device))


# Wrong variants


def sort_with(key, padding_last=True):
    """Sort by ``key(buckets, position)``, smallest first, the later position first on a tie."""

    def wrong(buckets, mask):
        position = np.broadcast_to(np.arange(buckets.shape[-1]), buckets.shape)
        padding = np.zeros(buckets.shape, bool) if mask is None else np.broadcast_to(~mask[..., None, :], buckets.shape)
        return np.lexsort((-position, key(buckets, position), padding if padding_last else ~padding), axis=-1)

    return wrong


def product(buckets, position):
    """The ports' key: overflows for large bucket numbers."""
    return buckets * buckets.shape[-1] + position


def one_mask_for_all(buckets, mask):
    return spec.sort_by_bucket(buckets, mask if mask is None else mask.reshape(-1, mask.shape[-1])[0])


def split_with(change):
    return lambda order, chunk_length: change(spec.split_chunks(order, chunk_length))


def drops_the_rest(order, chunk_length):
    n_chunks = max(1, order.shape[-1] // chunk_length)
    return spec.split_chunks(order[..., : n_chunks * chunk_length], chunk_length)


def look_with(neighbour):
    """Chunk c sees ``neighbour(c, offset, n_chunks, wrap)`` for each offset; outside 0 … n_chunks −
    1 is the fill.
    """

    def wrong(chunks, before, after, wrap, fill):
        n, looks = chunks.shape[-3], []
        for offset in range(-before, after + 1):
            other = np.array([neighbour(c, offset, n, wrap) for c in range(n)])
            outside = (other < 0) | (other >= n)
            looks.append(np.where(outside[:, None, None], fill, chunks[..., np.clip(other, 0, n - 1), :, :]))
        return np.concatenate(looks, axis=-2)

    return wrong


WRONG = {
    "unstable": ("sort_by_bucket", sort_with(lambda buckets, position: buckets)),
    "positions only": ("sort_by_bucket", sort_with(lambda buckets, position: position)),
    "product overflows int64": ("sort_by_bucket", sort_with(product)),
    "product overflows int32": ("sort_by_bucket", sort_with(lambda b, p: product(b, p).astype(np.int32))),
    "key in float32": ("sort_by_bucket", sort_with(lambda b, p: product(b, p).astype(np.float32))),
    "padding first": ("sort_by_bucket", sort_with(product, padding_last=False)),
    "mask ignored": ("sort_by_bucket", lambda buckets, mask: spec.sort_by_bucket(buckets)),
    "one mask for all": ("sort_by_bucket", one_mask_for_all),
    "missing undo": ("undo_sort", lambda order: order),
    "undone twice": ("undo_sort", lambda order: spec.undo_sort(spec.undo_sort(order))),
    "backwards": ("undo_sort", lambda order: spec.undo_sort(order)[..., ::-1]),
    "free places hold 0": ("split_chunks", split_with(lambda chunks: np.maximum(chunks, 0))),
    "free places hold the last": ("split_chunks", split_with(lambda c: np.where(c < 0, c.max(), c))),
    "the rest dropped": ("split_chunks", drops_the_rest),
    "dealt like cards": ("split_chunks", split_with(lambda c: np.swapaxes(c, -1, -2).reshape(c.shape))),
    "look-back off by one": ("look_adjacent", look_with(lambda c, o, n, w: (c + o - 1) % n if w else c + o - (o < 0))),
    "always wraps": ("look_adjacent", look_with(lambda c, o, n, w: (c + o) % n)),
    "never wraps": ("look_adjacent", look_with(lambda c, o, n, w: c + o)),
    "first chunk repeated": (
        "look_adjacent",
        look_with(lambda c, o, n, w: (c + o) % n if w else min(max(c + o, 0), n - 1)),
    ),
    "before and after swapped": ("look_adjacent", look_with(lambda c, o, n, w: (c - o) % n if w else c - o)),
    "always filled with 0": ("look_adjacent", lambda c, b, a, w, f: spec.look_adjacent(c, b, a, w, 0)),
    "latest first": ("look_adjacent", lambda c, b, a, w, f: spec.look_adjacent(c, b, a, w, f)[..., ::-1, :]),
    "whole numbers become floats": ("look_adjacent", lambda c, *a: spec.look_adjacent(c / 1.0 + 1e-9, *a)),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_the_checks_refuse(wrong):
    name, fn = WRONG[wrong]
    with pytest.raises(AssertionError, match="expected"):
        getattr(checks, f"check_{name}")(fn)


# Parity


@quick
@given(
    lead=st.sampled_from([(), (1,), (2, 3)]),
    length=st.sampled_from([1, 2, 7, 31, 64, 97]),
    n_hashes=st.integers(1, 3),
    chunk_length=st.sampled_from([1, 2, 6, 7, 8, 31, 32, 100]),
    n_buckets=st.sampled_from([1, 2, 9]),
    offset=st.sampled_from([0, 2**31 - 4, 2**40, 2**62]),
    seed=st.integers(0, 999),
)
def test_parity_of_the_whole_way(lead, length, n_hashes, chunk_length, n_buckets, offset, seed):
    """Sort, undo and chunk: equal results, and back again; offset · n_hashes · length is far beyond
    2^63.
    """
    rng = np.random.default_rng(seed)
    buckets = offset + rng.integers(0, n_buckets, (*lead, n_hashes, length))
    mask = rng.random((*lead, length)) < 0.8
    results = []
    for version, convert in VERSIONS:
        order = version.sort_by_bucket(convert(buckets), convert(mask))
        slot, chunks = version.undo_sort(order), version.split_chunks(order, chunk_length)
        results.append([np.asarray(a) for a in (order, slot, chunks)])
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype == np.int64
        np.testing.assert_array_equal(a, b)
    order, slot, chunks = results[0]
    everyone = np.broadcast_to(np.arange(length), order.shape)
    np.testing.assert_array_equal(np.take_along_axis(order, slot, -1), everyone)
    np.testing.assert_array_equal(chunks[chunks >= 0].reshape(order.shape), order)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "uint16", "uint32", "int64"])
def test_buckets_of_any_integer_dtype(dtype):
    """The largest number of a narrow dtype is a bucket like any other: padding stands behind it."""
    top = min(np.iinfo(dtype).max, 2**62)
    buckets = np.array([[top, 0, top, 1, top]], dtype=dtype)
    mask = np.array([False, True, True, True, True])
    for version, convert in VERSIONS:
        order = version.sort_by_bucket(convert(buckets), convert(mask))
        np.testing.assert_array_equal(np.asarray(order), [[1, 3, 2, 4, 0]])
        slot = np.asarray(version.undo_sort(convert(np.asarray(order).astype(dtype))))
        assert slot.dtype == np.int64
        np.testing.assert_array_equal(slot, [[4, 0, 2, 1, 3]])
        chunks = np.asarray(version.split_chunks(convert(np.asarray(order).astype(dtype)), 3))
        np.testing.assert_array_equal(chunks, [[[1, 3, 2], [4, 0, -1]]])


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize(("before", "after"), [(0, 0), (1, 0), (1, 1), (2, 4)])
def test_look_adjacent_is_differentiable(before, after, wrap):
    rng = np.random.default_rng(0)
    chunks = rng.standard_normal((2, 3, 2, 2))
    d_out = rng.standard_normal((2, 3, (before + 1 + after) * 2, 2))
    _, (grad,) = autograd_vjp(lambda c: pytorch.look_adjacent(c, before, after, wrap, 5), [chunks], d_out)
    numeric = central_difference(lambda c: spec.look_adjacent(c, before, after, wrap, 5), chunks, d_out)
    expect_close("gradient of look_adjacent", grad, numeric, 1e-7)


def test_look_adjacent_keeps_the_dtype():
    for dtype in ("float32", "float16", "int64", "int32", "uint8"):
        for version, convert in VERSIONS:
            got = version.look_adjacent(convert(np.ones((2, 3, 1), dtype=dtype)), 1, 0, fill=7)
            assert str(got.dtype).removeprefix("torch.") == dtype
            np.testing.assert_array_equal(np.asarray(got)[0, :, 0], [7] * 3 + [1] * 3)


# Bad input


def refused(name, error, match, array, *arguments, **options):
    for version, convert in VERSIONS:
        with pytest.raises(error, match=f"^{match}"):
            getattr(version, name)(convert(array), *arguments, **options)


@pytest.mark.parametrize(
    ("name", "argument", "good", "more"),
    [
        ("sort_by_bucket", "buckets", np.zeros((2, 3, 5), dtype=int), ()),
        ("undo_sort", "order", np.zeros((2, 5), dtype=int), ()),
        ("split_chunks", "order", np.zeros((2, 5), dtype=int), (2,)),
    ],
)
def test_bad_integers(name, argument, good, more):
    for dtype in ("float64", "float16", "bool", "complex64"):
        refused(name, TypeError, f"{argument} must hold integers", good.astype(dtype), *more)
    for shape in ((), (0,), (2, 3, 0), (0, 3, 5), *[(5,)] * (argument == "buckets")):
        refused(name, ValueError, f"{argument} must have shape", np.zeros(shape, dtype=int), *more)
    with pytest.raises(TypeError, match=f"{argument} must be a torch.Tensor"):
        getattr(pytorch, name)(good, *more)
    with pytest.raises(TypeError, match=f"{argument} must hold integers"):
        getattr(spec, name)("text", *more)


@quick
@given(order=st.lists(st.integers(-3, 6), min_size=1, max_size=5), batch=st.booleans())
def test_only_permutations_can_be_undone(order, batch):
    order = np.array([list(range(len(order))), order] if batch else order)
    if sorted(order.reshape(-1)[-order.shape[-1] :]) == list(range(order.shape[-1])):
        for version, convert in VERSIONS:
            undo = np.asarray(version.undo_sort(convert(order)))
            assert (np.take_along_axis(order, undo, -1) == np.arange(order.shape[-1])).all()
    else:
        refused("undo_sort", ValueError, "order must hold every position from 0 to .* exactly once", order)


def test_bad_masks():
    buckets = np.zeros((2, 3, 5), dtype=int)
    for dtype in ("int64", "float64", "uint8"):
        for version, convert in VERSIONS:
            with pytest.raises(TypeError, match="padding_mask must be boolean"):
                version.sort_by_bucket(convert(buckets), convert(np.ones((2, 5), dtype=dtype)))
    for shape in ((3, 5), (2, 4), (2, 3, 5), (0,), (2, 1, 5)):
        for version, convert in VERSIONS:
            with pytest.raises(ValueError, match=r"padding_mask must broadcast to \(2, 5\)"):
                version.sort_by_bucket(convert(buckets), convert(np.ones(shape, dtype=bool)))
    with pytest.raises(TypeError, match=r"padding_mask must be a torch.Tensor"):
        pytorch.sort_by_bucket(torch.from_numpy(buckets), np.ones((2, 5), dtype=bool))
    with pytest.raises(ValueError, match=r"padding_mask must be on cpu, got meta"):
        pytorch.sort_by_bucket(torch.from_numpy(buckets), torch.ones(2, 5, dtype=torch.bool, device="meta"))


@quick
@given(
    name=st.sampled_from(["chunk_length", "chunks_before", "chunks_after", "wrap"]),
    bad=st.sampled_from([-1, 1.0, "1", None, True, np.float64(2), [1]]),
)
def test_bad_options(name, bad):
    error = ValueError if isinstance(bad, int) and not isinstance(bad, bool) and name != "wrap" else TypeError
    if name == "chunk_length":
        refused("split_chunks", error, "chunk_length must be", np.arange(5), bad)
        refused("split_chunks", ValueError, "chunk_length must be at least 1", np.arange(5), 0)
    elif not (name == "wrap" and bad is True):
        options = {"chunks_before": 1, "chunks_after": 0, "wrap": False, name: bad}
        refused("look_adjacent", error, f"{name} must be", np.ones((2, 3, 1)), **options)


def test_bad_chunks_and_fills():
    for dtype in ("bool", "complex128"):
        refused("look_adjacent", TypeError, "chunks must hold integers or floats", np.ones((2, 3, 1), dtype), 1, 0)
    for shape in ((), (3, 1), (0, 3, 1), (2, 0, 1), (2, 3, 0), (0, 2, 3, 1)):
        refused("look_adjacent", ValueError, "chunks must have shape", np.ones(shape), 1, 0)
    for dtype, bad, error in (
        ("float64", "0", TypeError),
        ("float64", None, TypeError),
        ("float64", np.nan, ValueError),
        ("float16", 1e6, ValueError),
        ("int64", 0.5, TypeError),
        ("int64", 2**63, ValueError),
        ("uint8", -1, ValueError),
    ):
        refused("look_adjacent", error, "fill must be", np.ones((2, 3, 1), dtype), 1, 0, False, bad)
    with pytest.raises(TypeError, match=r"chunks must be a torch.Tensor"):
        pytorch.look_adjacent([[[1.0]]], 1, 0)


def test_shapes_without_numbers():
    """On the meta device only shapes are computed."""
    order = pytorch.sort_by_bucket(torch.zeros(2, 3, 5, dtype=torch.int64, device="meta"))
    assert pytorch.undo_sort(order).shape == (2, 3, 5)
    chunks = pytorch.split_chunks(order, 2)
    assert pytorch.look_adjacent(chunks[..., None], 1, 1).shape == (2, 3, 3, 6, 1)
