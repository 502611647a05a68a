"""The configuration: what it accepts, what it fills in, and that JSON gives back an equal object."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from reformer_ref._arguments import bucket_factors
from reformer_ref.local_attention.options import LocalOptions
from reformer_ref.lsh_attention.options import PRESETS, LSHOptions
from reformer_ref.model.config import LAYER_KINDS, ReformerConfig, n_buckets_for, padding_to_multiple, rotation_width

INTEGERS = ("vocab_size", "d_model", "n_layers", "n_heads", "d_head", "d_v", "d_ff", "max_length", "ff_chunk")
INTEGERS += ("loss_chunk", "dense_block", "length_multiple", "seed")
KINDS = st.lists(st.sampled_from(LAYER_KINDS), min_size=1, max_size=4).map(tuple)
JUNK = st.one_of(
    st.text(max_size=3), st.floats(), st.booleans(), st.lists(st.integers(), max_size=2), st.binary(max_size=2)
)


@st.composite
def configs(draw):
    """Valid configurations of any kind, causal and not."""
    causal, heads = draw(st.booleans()), draw(st.integers(1, 4))
    presets = sorted(set(PRESETS) - ({"strict"} if not causal else set()))
    n_buckets = draw(st.one_of(st.none(), st.sampled_from([2, 6, (4, 6), (2, 2, 8)])))
    shape = draw(st.one_of(st.none(), st.lists(st.integers(1, 40), min_size=1, max_size=3).map(tuple)))
    positions = "axial" if shape else draw(st.sampled_from(["axial", "learned", "sinusoidal", "none"]))
    return ReformerConfig(
        vocab_size=draw(st.integers(1, 300)),
        d_model=heads * draw(st.sampled_from([4, 6, 10])),
        n_heads=heads,
        n_layers=draw(st.integers(1, 5)),
        pattern=draw(KINDS),
        max_length=int(np.prod(shape)) if shape else draw(st.integers(1, 3000)),
        positions=positions,
        axial_shape=shape,
        lsh=LSHOptions.preset(draw(st.sampled_from(presets)), causal=causal, n_buckets=n_buckets, n_hashes=heads),
        local=LocalOptions(causal=causal, chunks_before=draw(st.integers(0, 2))),
        causal=causal,
        dropout=draw(st.floats(0, 0.9)),
        tie_head=draw(st.booleans()),
        ff_chunk=draw(st.one_of(st.none(), st.integers(1, 99))),
        seed=draw(st.integers(0, 2**63 - 1)),
    )


@given(configs())
@settings(deadline=None, max_examples=50)
def test_json_round_trip(config):
    again = ReformerConfig.from_json(config.to_json())
    assert again == config
    assert hash(again) == hash(config)
    assert again.to_json() == config.to_json()


@given(configs(), st.data())
@settings(deadline=None, max_examples=50)
def test_stored_rotations_serve_every_length(config, data):
    length = data.draw(st.integers(1, config.max_length))
    config = dataclasses.replace(config, length_multiple=data.draw(st.integers(1, 500)))
    length += padding_to_multiple(config, length)
    assert sum(bucket_factors(n_buckets_for(config, length))) // 2 <= rotation_width(config)


def test_what_is_left_out_is_filled_in():
    config = ReformerConfig(d_model=48, n_heads=3, n_layers=5, max_length=1000)
    assert (config.d_head, config.d_v, config.d_ff) == (16, 16, 192)
    assert config.layers == ("local", "lsh", "local", "lsh", "local")
    assert config.axial_shape[0] * config.axial_shape[1] >= 1000
    assert sum(config.axial_dims) == 48
    assert config.lsh.causal
    assert config.local.causal
    bidirectional = ReformerConfig(causal=False)
    assert (bidirectional.lsh.causal, bidirectional.lsh.chunks_after) == (False, 1)
    assert (bidirectional.local.causal, bidirectional.local.chunks_after) == (False, 1)
    assert ReformerConfig(pattern="lsh").pattern == ("lsh",)
    assert ReformerConfig(pattern=["lsh", "local"]) == ReformerConfig(pattern=("lsh", "local"))


def test_numpy_integers_become_plain_ones():
    config = ReformerConfig(vocab_size=np.int64(7), d_model=np.int32(8), seed=np.int64(3), ff_chunk=np.int64(2))
    assert ReformerConfig.from_json(config.to_json()) == config
    assert type(json.loads(config.to_json())["ff_chunk"]) is int


def test_number_of_buckets():
    paper = ReformerConfig(max_length=4096, lsh=LSHOptions(chunk_length=32))
    assert [n_buckets_for(paper, n) for n in (1, 31, 64, 1000)] == [2, 2, 4, 62]
    strict = dataclasses.replace(paper, lsh=LSHOptions.preset("strict", chunk_length=32))
    assert n_buckets_for(strict, 1) == n_buckets_for(strict, 4096) == n_buckets_for(paper, 4096)
    fixed = dataclasses.replace(paper, lsh=LSHOptions(n_buckets=(4, 6)))
    assert n_buckets_for(fixed, 1) == (4, 6)
    assert rotation_width(fixed) == 5


def test_length_multiple_spares_what_fits_in_one_chunk():
    config = ReformerConfig(pattern=("lsh",), lsh=LSHOptions(chunk_length=16), length_multiple=32)
    assert [padding_to_multiple(config, n) for n in (1, 16, 17, 32, 33)] == [0, 0, 15, 0, 31]
    dense = dataclasses.replace(config, pattern=("dense",))  # no chunks, so nothing that padding could change
    assert padding_to_multiple(dense, 17) == 0
    # the chunks of a kind that has no layer do not count
    unused = dataclasses.replace(config, local=LocalOptions(chunk_length=4))
    assert padding_to_multiple(unused, 10) == 0


@given(st.sampled_from(INTEGERS), JUNK)
@settings(deadline=None, max_examples=40)
def test_integers_must_be_integers(name, value):
    with pytest.raises(TypeError, match=name):
        ReformerConfig(**{name: value})


@given(st.sampled_from(INTEGERS), st.integers(max_value=-1))
@settings(deadline=None, max_examples=25)
def test_integers_must_not_be_negative(name, value):
    with pytest.raises(ValueError, match=name):
        ReformerConfig(**{name: value})


@given(st.sampled_from(["causal", "tie_head", "reversible"]), st.one_of(JUNK, st.integers(), st.none()))
@settings(deadline=None, max_examples=25)
def test_switches_must_be_booleans(name, value):
    assume(not isinstance(value, bool))
    with pytest.raises(TypeError, match=name):
        ReformerConfig(**{name: value})


@pytest.mark.parametrize(
    ("fields", "error", "says"),
    [
        ({"dropout": 1.0}, ValueError, "dropout"),
        ({"dropout": float("nan")}, ValueError, "dropout"),
        ({"dropout": "0.1"}, TypeError, "dropout"),
        ({"norm_eps": -1e-5}, ValueError, "norm_eps"),
        ({"seed": 2**63}, ValueError, "seed"),
        ({"activation": "tanh"}, ValueError, "activation"),
        ({"positions": "rotary"}, ValueError, "positions"),
        ({"pattern": ()}, ValueError, "pattern"),
        ({"pattern": ("lsh", "global")}, ValueError, "pattern"),
        ({"pattern": 3}, ValueError, "pattern"),
        ({"d_model": 10, "n_heads": 3}, ValueError, "d_head must be given"),
        ({"d_model": 9, "n_heads": 3, "positions": "sinusoidal"}, ValueError, "d_model must be even"),
        ({"d_model": 1, "n_heads": 1}, ValueError, "d_model must be at least 2, one for each axis"),
        ({"d_model": 2, "n_heads": 1, "axial_shape": (16, 16, 16)}, ValueError, "d_model must be at least 3"),
        ({"axial_shape": (4, 4)}, ValueError, "holds 16 positions"),
        ({"axial_shape": 4096}, ValueError, "axial_shape"),
        ({"axial_shape": (64, 64.0)}, TypeError, "axial_shape"),
        ({"axial_dims": (100, 100)}, ValueError, "axial_dims"),
        ({"axial_dims": (256,)}, ValueError, "axial_dims"),
        ({"positions": "learned", "axial_shape": (64, 64)}, ValueError, "go with positions"),
        ({"lsh": {"n_hashes": 2}}, TypeError, "lsh must be LSHOptions"),
        ({"local": LSHOptions()}, TypeError, "local must be LocalOptions"),
        ({"causal": False, "lsh": LSHOptions()}, ValueError, "lsh.causal is True but causal is False"),
        ({"local": LocalOptions(causal=False)}, ValueError, "local.causal is False but causal is True"),
    ],
)
def test_what_does_not_fit_is_refused(fields, error, says):
    with pytest.raises(error, match=says):
        ReformerConfig(**fields)


def test_options_of_kinds_without_a_layer_need_not_agree():
    assert ReformerConfig(pattern=("dense",), local=LocalOptions(causal=False)).layers[0] == "dense"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not valid JSON"),
        ("[1, 2]", "JSON object"),
        ("3", "JSON object"),
        ('{"d_modell": 3, "heads": 1}', "unknown fields in configuration: d_modell, heads"),
        ('{"lsh": {"rounds": 3}}', "unknown fields in lsh: rounds"),
        ('{"local": {"chunk": 3}}', "unknown fields in local: chunk"),
        ('{"dropout": NaN}', "finite"),
    ],
)
def test_bad_json_is_refused(text, says):
    with pytest.raises(ValueError, match=says):
        ReformerConfig.from_json(text)


@pytest.mark.parametrize("text", ['{"d_model": "64"}', '{"lsh": 3}', '{"lsh": {"n_hashes": 1.5}}'])
def test_json_of_wrong_types_is_refused(text):
    with pytest.raises(TypeError):
        ReformerConfig.from_json(text)


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ReformerConfig().d_model = 3
