"""The options: validated, frozen, hashable, and read back from JSON; bad input is refused by all
alike.
"""

import json
from dataclasses import FrozenInstanceError, fields, replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reformer_ref.lsh_attention import spec
from reformer_ref.lsh_attention.api import lsh_attention
from reformer_ref.lsh_attention.options import PRESETS, LSHOptions
from reformer_ref.testing import expect_close, to_numpy, to_torch

quick = settings(max_examples=25, deadline=None)
REFUSED = (ValueError, TypeError)
RANK = {"window": "rank"}


# Options


@pytest.mark.parametrize("name", PRESETS)
def test_options_survive_json(name):
    for changes in ({}, {"n_buckets": (4, 6), "scale": 0.5}, {"n_buckets": 8, "norm_eps": 0.25, "n_hashes": 4}):
        o = LSHOptions.preset(name, **changes)
        again = LSHOptions(**json.loads(json.dumps(o.to_dict())))
        assert again == o
        assert hash(again) == hash(o)
        assert again.to_dict().keys() == {f.name for f in fields(o)}


def test_options_are_frozen_and_hashable():
    o = LSHOptions()
    with pytest.raises(FrozenInstanceError):
        o.n_hashes = 2
    assert len({o, LSHOptions(), LSHOptions.preset("paper"), replace(o, n_hashes=2)}) == 2


def test_numbers_become_plain():
    """NumPy scalars and fractions are accepted, and leave no trace in JSON."""
    o = LSHOptions(n_hashes=np.int64(2), n_buckets=[np.int32(4), 6], scale=np.float32(0.5), norm_eps=Fraction(1, 8))
    assert o == LSHOptions(n_hashes=2, n_buckets=(4, 6), scale=0.5, norm_eps=0.125)
    assert [type(v) for v in (o.n_hashes, *o.n_buckets, o.scale, o.norm_eps)] == [int, int, int, float, float]
    assert json.loads(json.dumps(o.to_dict()))["n_buckets"] == [4, 6]
    assert LSHOptions(n_buckets=(8,)).n_buckets == 8


def test_width_and_scale():
    o = LSHOptions(chunks_before=2, chunks_after=1, scale="rsqrt_d")
    assert o.width == 4
    assert o.scale_for(16) == 0.25
    assert LSHOptions(scale=3).scale_for(16) == 3.0


@pytest.mark.parametrize(
    ("changes", "error", "names"),
    [
        ({"n_hashes": 0}, ValueError, "n_hashes"),
        ({"n_hashes": 2.0}, TypeError, "n_hashes"),
        ({"n_hashes": True}, TypeError, "n_hashes"),
        ({"n_buckets": 3}, ValueError, "n_buckets.*even"),
        ({"n_buckets": (4, 5)}, ValueError, "n_buckets.*even"),
        ({"n_buckets": 0}, ValueError, "n_buckets"),
        ({"n_buckets": ()}, ValueError, "n_buckets"),
        ({"n_buckets": "4"}, TypeError, "n_buckets"),
        ({"n_buckets": 4.0}, TypeError, "n_buckets"),
        ({"chunk_length": 0}, ValueError, "chunk_length"),
        ({"chunk_length": None}, TypeError, "chunk_length"),
        ({"chunks_before": -1}, ValueError, "chunks_before"),
        ({"chunks_after": -1}, ValueError, "chunks_after"),
        ({"causal": 1}, TypeError, "causal"),
        ({"within_bucket": "no"}, TypeError, "within_bucket"),
        ({"count_once": None}, TypeError, "count_once"),
        ({"wrap": np.True_}, TypeError, "wrap"),
        ({"window": "ring"}, ValueError, "window"),
        ({"window": ["rank"]}, ValueError, "window"),
        ({"scale": 0}, ValueError, "scale"),
        ({"scale": -1.0}, ValueError, "scale"),
        ({"scale": 1e6}, ValueError, "scale"),
        ({"scale": float("nan")}, ValueError, "scale"),
        ({"scale": float("inf")}, ValueError, "scale"),
        ({"scale": "1/√d"}, ValueError, "scale"),
        ({"scale": None}, TypeError, "scale"),
        ({"scale": True}, TypeError, "scale"),
        ({"norm_eps": -1e-9}, ValueError, "norm_eps"),
        ({"norm_eps": "0"}, TypeError, "norm_eps"),
        (RANK | {"wrap": True}, ValueError, "rank.*wrap"),
        (RANK | {"causal": False}, ValueError, "rank.*causal"),
        (RANK | {"within_bucket": False}, ValueError, "rank.*within_bucket"),
        (RANK | {"chunks_before": 2}, ValueError, "rank.*chunks_before"),
        (RANK | {"chunks_after": 1}, ValueError, "rank.*chunks_after"),
        ({"n_rounds": 2}, TypeError, "n_rounds"),
    ],
)
def test_wrong_options(changes, error, names):
    with pytest.raises(error, match=names):
        LSHOptions(**changes)


def test_wrong_presets():
    for name in ("Paper", None, 3, ["paper"]):
        with pytest.raises(ValueError, match="preset must be one of 'paper', 'trax'"):
            LSHOptions.preset(name)
    with pytest.raises(ValueError, match="rank"):
        LSHOptions.preset("strict", causal=False)
    with pytest.raises(TypeError, match="speed"):
        LSHOptions.preset("trax", speed=2)


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 9),
    st.floats(),
    st.sampled_from(["chunk", "rank", "rsqrt_d", "", "8"]),
    st.lists(st.integers(-2, 8), max_size=3),
    st.tuples(st.integers(0, 8), st.integers(0, 8)),
    st.sampled_from([np.int32(4), np.float32(0.5), np.array(4), np.array([4, 6]), {}, {4}, b"4", 1j, len]),
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from([f.name for f in fields(LSHOptions)]), JUNK, max_size=4))
def test_any_options_are_refused_or_sound(changes):
    """A clear error, or options that hash, survive JSON and run."""
    try:
        o, message = LSHOptions(**changes), None
    except REFUSED as error:
        o, message = None, str(error)
    if o is None:
        assert any(name in message for name in changes)
        return
    assert LSHOptions(**json.loads(json.dumps(o.to_dict()))) == o
    assert hash(o) == hash(replace(o))
    rng = np.random.default_rng(0)
    qk, v, buckets = (rng.standard_normal((5, 3)), rng.standard_normal((5, 2)), rng.integers(0, 4, (o.n_hashes, 5)))
    got = to_numpy(lsh_attention(to_torch(qk), to_torch(v), to_torch(buckets), o))
    assert np.isfinite(got).all()
    if o.scale == "rsqrt_d" or 1e-3 < o.scale < 1e3:
        expect_close(str(o), got, spec.lsh_attention(qk, v, buckets, o), 1e-10)


# Arguments


def good():
    rng = np.random.default_rng(0)
    arrays = (rng.standard_normal((2, 3, 9, 4)), rng.standard_normal((2, 3, 9, 5)), rng.integers(0, 4, (2, 3, 2, 9)))
    return dict(zip(("qk", "v", "buckets"), arrays, strict=True)), LSHOptions(n_hashes=2, chunk_length=4)


def set_one(x, value):
    x = x.copy()
    x[1, 2, 0, 1] = value
    return x


WRONG = {  # what is wrong, the error and what it must name; for both, on arrays
    "qk without d": ({"qk": lambda a: a["qk"][0, 0, 0]}, ValueError, "qk"),
    "qk without L": ({"qk": lambda a: a["qk"][0, 0, 0], "v": lambda a: a["v"][0, 0, 0]}, ValueError, "qk"),
    "an empty sequence": (
        {
            "qk": lambda a: a["qk"][:, :, :0],
            "v": lambda a: a["v"][:, :, :0],
            "buckets": lambda a: a["buckets"][..., :0],
        },
        ValueError,
        "qk and v",
    ),
    "an empty batch": ({name: lambda a, n=name: a[n][:0] for name in ("qk", "v", "buckets")}, ValueError, "qk and v"),
    "d = 0": ({"qk": lambda a: a["qk"][..., :0]}, ValueError, "qk"),
    "d_v = 0": ({"v": lambda a: a["v"][..., :0]}, ValueError, "v"),
    "v of another length": ({"v": lambda a: a["v"][:, :, 1:]}, ValueError, "v must"),
    "v of another batch": ({"v": lambda a: a["v"][:1]}, ValueError, "v must"),
    "v without heads": ({"v": lambda a: a["v"][:, 0]}, ValueError, "v must"),
    "NaN in qk": ({"qk": lambda a: set_one(a["qk"], np.nan)}, ValueError, "qk.*finite"),
    "infinity in v": ({"v": lambda a: set_one(a["v"], -np.inf)}, ValueError, "v.*finite"),
    "qk of integers": ({"qk": lambda a: a["qk"].astype(int)}, TypeError, "qk.*int64"),
    "qk of booleans": ({"qk": lambda a: a["qk"] > 0}, TypeError, "qk.*bool"),
    "complex v": ({"v": lambda a: a["v"] + 1j}, TypeError, "v.*complex128"),
    "buckets of another length": ({"buckets": lambda a: a["buckets"][..., 1:]}, ValueError, "buckets.*n_hashes"),
    "a round too few": ({"buckets": lambda a: a["buckets"][..., :1, :]}, ValueError, "buckets.*n_hashes"),
    "buckets without heads": ({"buckets": lambda a: a["buckets"][:, 0]}, ValueError, "buckets.*n_hashes"),
    "buckets of floats": ({"buckets": lambda a: a["buckets"].astype(float)}, TypeError, "buckets.*float64"),
    "buckets of booleans": ({"buckets": lambda a: a["buckets"] > 0}, TypeError, "buckets.*bool"),
    "negative buckets": ({"buckets": lambda a: a["buckets"] - 1}, ValueError, "buckets"),
    "buckets where padding sorts": ({"buckets": lambda a: a["buckets"] + (2**63 - 4)}, ValueError, "buckets"),
    "mask of another length": ({"padding_mask": lambda a: np.ones((2, 3, 8), dtype=bool)}, ValueError, "padding_mask"),
    "mask with an axis too many": (
        {"padding_mask": lambda a: np.ones((1, 2, 3, 9), dtype=bool)},
        ValueError,
        "padding_mask",
    ),
    "mask of integers": ({"padding_mask": lambda a: np.ones((2, 3, 9), dtype=int)}, TypeError, "padding_mask.*bool"),
    "mask of floats": ({"padding_mask": lambda a: np.zeros((2, 3, 9))}, TypeError, "padding_mask.*bool"),
    "options as a dict": ({"options": lambda a: LSHOptions().to_dict()}, TypeError, "options must be LSHOptions"),
    "no options": ({"options": lambda a: None}, TypeError, "options must be LSHOptions"),
}


@pytest.mark.parametrize("fn", ["spec", "pytorch"])
@pytest.mark.parametrize("what", WRONG)
def test_wrong_arguments(fn, what):
    changes, error, names = WRONG[what]
    arguments, options = good()
    arguments |= {"options": options} | {name: change(arguments) for name, change in changes.items()}
    if fn == "spec":
        call = spec.lsh_attention
    else:
        call = lsh_attention
        arguments = {k: torch.from_numpy(a) if isinstance(a, np.ndarray) else a for k, a in arguments.items()}
    with pytest.raises(error, match=f"(?s){names}"):
        call(**arguments)


def test_wrong_tensors():
    """What only tensors can get wrong: library, dtypes that differ, devices that differ."""
    arguments, options = good()
    good_tensors = {k: torch.from_numpy(a) for k, a in arguments.items()}
    wrong = [
        ({"qk": arguments["qk"]}, TypeError, "qk must be a torch.Tensor, got ndarray"),
        ({"buckets": arguments["buckets"].tolist()}, TypeError, "buckets must be a torch.Tensor, got list"),
        ({"padding_mask": np.ones(9, dtype=bool)}, TypeError, "padding_mask must be a torch.Tensor"),
        ({"v": good_tensors["v"].float()}, TypeError, "v must have the dtype of qk"),
        ({"v": good_tensors["v"].to("meta")}, ValueError, "v must be on the device of qk"),
        ({"buckets": good_tensors["buckets"].to("meta")}, ValueError, "buckets must be on the device of qk"),
        ({"padding_mask": torch.ones(9, dtype=torch.bool, device="meta")}, ValueError, "padding_mask must be on"),
        ({"buckets": good_tensors["buckets"].to(torch.int8)}, TypeError, "buckets must be int64"),
        ({"block_size": 0}, ValueError, "block_size"),
        ({"block_size": 2.5}, TypeError, "block_size"),
    ]
    for changes, error, names in wrong:
        with pytest.raises(error, match=names):
            lsh_attention(**(good_tensors | {"options": options} | changes))


def test_meta_tensors_give_the_shape():
    arguments, options = good()
    tensors = {k: torch.from_numpy(a).to("meta") for k, a in arguments.items()}
    out = lsh_attention(**tensors, options=options)
    assert (out.shape, out.dtype, out.device.type) == ((2, 3, 9, 5), torch.float64, "meta")


@pytest.mark.parametrize(
    ("d_out", "error"),
    [
        (np.ones(5), ValueError),
        (np.ones((2, 3, 9, 1)), ValueError),
        (np.ones((4, 2, 3, 9, 5)), ValueError),
        (np.full((2, 3, 9, 5), np.nan), ValueError),
        (np.ones((2, 3, 9, 5), dtype=int), TypeError),
        (None, TypeError),
    ],
)
def test_wrong_cotangents(d_out, error):
    arguments, options = good()
    with pytest.raises(error, match="d_out"):
        spec.lsh_attention_vjp(**arguments, options=options, d_out=d_out)


SIZES = st.lists(st.sampled_from([0, 1, 2, 3]), max_size=3).map(tuple)


@settings(max_examples=150, deadline=None)
@given(SIZES, SIZES, SIZES, st.none() | SIZES, st.integers(1, 3), st.integers(0, 9))
def test_any_shapes_are_refused_by_both_or_computed_by_both(qk, v, buckets, mask, n_hashes, seed):
    rng = np.random.default_rng(seed)
    o = LSHOptions(n_hashes=n_hashes, chunk_length=2)
    if seed % 2:  # shapes that nearly fit
        v, buckets = (*qk[:-1], 2), (*qk[:-2], n_hashes, *qk[-2:-1])
    arrays = [rng.standard_normal(qk), rng.standard_normal(v), rng.integers(0, 3, buckets)]
    mask = None if mask is None else rng.random(mask) < 0.7
    arrays = [np.asarray(a) for a in arrays]
    try:
        want = spec.lsh_attention(*arrays, o, mask)
    except REFUSED:
        with pytest.raises(REFUSED):
            lsh_attention(*(torch.as_tensor(a) for a in arrays), o, None if mask is None else torch.as_tensor(mask))
        return
    got = lsh_attention(*(torch.as_tensor(a) for a in arrays), o, None if mask is None else torch.as_tensor(mask))
    expect_close("out", to_numpy(got), want, 1e-12)


@quick
@given(st.integers(0, 40), st.sampled_from([np.nan, np.inf, -np.inf]), st.booleans(), st.booleans())
def test_one_bad_number_anywhere(at, value, in_v, padded):
    """NaN and infinity are refused, in padded positions too: 0 · NaN is NaN."""
    arguments, options = good()
    name = "v" if in_v else "qk"
    arguments[name].reshape(-1)[at] = value
    mask = np.arange(9) > 0 if padded else None
    with pytest.raises(ValueError, match=f"{name}.*finite"):
        spec.lsh_attention(**arguments, options=options, padding_mask=mask)
    with pytest.raises(ValueError, match=f"{name}.*finite"):
        lsh_attention(**{k: to_torch(a) for k, a in arguments.items()}, options=options, padding_mask=to_torch(mask))
