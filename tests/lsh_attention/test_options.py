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
from reformer_ref import _tensors
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
    generator = torch.Generator().manual_seed(0)
    qk, v = (torch.randn(2, 3, 9, d, generator=generator, dtype=torch.float64) for d in (4, 5))
    buckets = torch.randint(0, 4, (2, 3, 2, 9), generator=generator)
    return {"qk": qk, "v": v, "buckets": buckets, "options": LSHOptions(n_hashes=2, chunk_length=4)}


def with_one(x, value):
    x = x.clone()
    x[1, 2, 0, 1] = value
    return x


QK, V, BUCKETS, OPTIONS = good().values()
WRONG = [
    ({"qk": QK[0, 0, 0]}, ValueError, "qk must have shape"),
    ({"qk": QK[:, :, :0], "v": V[:, :, :0], "buckets": BUCKETS[..., :0]}, ValueError, "qk must have shape"),
    ({"qk": QK[:0], "v": V[:0], "buckets": BUCKETS[:0]}, ValueError, "qk must have shape"),
    ({"qk": QK[..., :0]}, ValueError, "qk must have shape"),
    ({"v": V[..., :0]}, ValueError, "v must have shape"),
    ({"v": V[:, :, 1:]}, ValueError, "v must have shape"),
    ({"v": V[:1]}, ValueError, "v must have shape"),
    ({"v": V[:, 0]}, ValueError, "v must have shape"),
    ({"qk": with_one(QK, torch.nan)}, ValueError, "qk must be finite"),
    ({"qk": with_one(QK, 1e12)}, ValueError, "qk must be finite and smaller"),
    ({"v": with_one(V, -torch.inf)}, ValueError, "v must be finite"),
    ({"qk": QK.long()}, TypeError, "qk.*int64"),
    ({"qk": QK > 0}, TypeError, "qk.*bool"),
    ({"qk": QK.numpy()}, TypeError, "qk must be a torch.Tensor, got ndarray"),
    ({"v": V + 1j}, TypeError, "v.*complex128"),
    ({"v": V.float()}, TypeError, "v must have the dtype of qk"),
    ({"v": V.to("meta")}, ValueError, "v must be on the device of qk"),
    ({"buckets": BUCKETS[..., 1:]}, ValueError, "buckets.*n_hashes"),
    ({"buckets": BUCKETS[..., :1, :]}, ValueError, "buckets.*n_hashes"),
    ({"buckets": BUCKETS[:, 0]}, ValueError, "buckets.*n_hashes"),
    ({"buckets": BUCKETS.double()}, TypeError, "buckets must be int64.*float64"),
    ({"buckets": BUCKETS > 0}, TypeError, "buckets must be int64.*bool"),
    ({"buckets": BUCKETS.to(torch.int8)}, TypeError, "buckets must be int64.*int8"),
    ({"buckets": BUCKETS.tolist()}, TypeError, "buckets must be a torch.Tensor, got list"),
    ({"buckets": BUCKETS.to("meta")}, ValueError, "buckets must be on the device of qk"),
    ({"buckets": BUCKETS - 1}, ValueError, "buckets must lie in"),
    ({"buckets": BUCKETS + (2**63 - 4)}, ValueError, "buckets must lie in"),
    ({"padding_mask": torch.ones(2, 3, 8, dtype=torch.bool)}, ValueError, "padding_mask must broadcast"),
    ({"padding_mask": torch.ones(1, 2, 3, 9, dtype=torch.bool)}, ValueError, "padding_mask must broadcast"),
    ({"padding_mask": torch.ones(2, 3, 9)}, TypeError, "padding_mask must be boolean"),
    ({"padding_mask": np.ones(9, dtype=bool)}, TypeError, "padding_mask must be a torch.Tensor"),
    ({"padding_mask": torch.ones(9, dtype=torch.bool, device="meta")}, ValueError, "padding_mask must be on"),
    ({"options": LSHOptions().to_dict()}, TypeError, "options must be LSHOptions"),
    ({"options": None}, TypeError, "options must be LSHOptions"),
    ({"return_record": 1}, TypeError, "return_record must be True or False"),
    ({"backend": "fast"}, ValueError, "backend must be one of 'auto', 'plain', 'streaming'"),
    ({"block_size": 0}, ValueError, "block_size"),
    ({"block_size": 2.5}, TypeError, "block_size"),
]


@pytest.mark.parametrize(("changes", "error", "message"), WRONG)
def test_wrong_arguments(changes, error, message):
    with pytest.raises(error, match=message):
        lsh_attention(**(good() | changes))


@pytest.mark.parametrize("backend", ["plain", "streaming"])
def test_meta_tensors_give_the_shape(backend):
    tensors = {name: good()[name].to("meta") for name in ("qk", "v", "buckets")}
    out = lsh_attention(**tensors, options=OPTIONS, backend=backend)
    assert (out.shape, out.dtype, out.device.type) == ((2, 3, 9, 5), torch.float64, "meta")


def test_values_are_not_read_on_cuda(monkeypatch):
    """Reading waits for the device; REFORMER_CHECK_VALUES=1 asks for it."""

    class OnCuda(torch.Tensor):
        device = torch.device("cuda")

    monkeypatch.setattr(_tensors, "Tensor", OnCuda)
    x = torch.ones(2).as_subclass(OnCuda)
    monkeypatch.delenv("REFORMER_CHECK_VALUES", raising=False)
    assert not _tensors.has_values(x)
    monkeypatch.setenv("REFORMER_CHECK_VALUES", "1")
    assert _tensors.has_values(x)


@quick
@given(st.integers(0, 40), st.sampled_from([np.nan, np.inf, -np.inf]), st.booleans(), st.booleans())
def test_one_bad_number_anywhere(at, value, in_v, padded):
    """NaN and infinity are refused, in padded positions too: 0 · NaN is NaN."""
    arguments, name = good(), "v" if in_v else "qk"
    arguments[name].reshape(-1)[at] = value
    mask = torch.arange(9) > 0 if padded else None
    with pytest.raises(ValueError, match=f"{name}.*finite"):
        lsh_attention(**arguments, padding_mask=mask)
