"""Sort, chunk, look at neighbours, undo: both versions pass the checks, wrong ones fail them."""

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
    positions = np.broadcast_to(np.arange(length), order.shape)
    np.testing.assert_array_equal(np.take_along_axis(order, slot, -1), positions)
    np.testing.assert_array_equal(chunks[chunks >= 0].reshape(order.shape), order)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "uint16", "uint32", "int64"])
def test_buckets_of_any_integer_dtype(dtype):
    """The largest number of a narrow dtype is a bucket like any other: padding stands behind it."""
    largest = min(np.iinfo(dtype).max, 2**62)
    buckets = np.array([[largest, 0, largest, 1, largest]], dtype=dtype)
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


def test_shapes_without_numbers():
    """On the meta device only shapes are computed."""
    order = pytorch.sort_by_bucket(torch.zeros(2, 3, 5, dtype=torch.int64, device="meta"))
    assert pytorch.undo_sort(order).shape == (2, 3, 5)
    chunks = pytorch.split_chunks(order, 2)
    assert pytorch.look_adjacent(chunks[..., None], 1, 1).shape == (2, 3, 3, 6, 1)
