"""Hostile calls of the public interface: every name that reformer_ref exports, and the methods of its classes."""

import inspect
import math
import os
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import reformer_ref
import torch
from hypothesis import strategies as st
from reformer_ref import LocalOptions, LSHOptions, ReformerConfig
from reformer_ref._arguments import require_choice, require_int
from reformer_ref.huggingface import files
from reformer_ref.lsh_attention.options import PRESETS
from reformer_ref.model.checks import small_config
from tests.fuzz import harness
from tests.fuzz.harness import Registry, array, fuzz, integers, lead, mask, sizes

DOOR = Registry(reformer_ref)

LENGTHS, WIDTHS = sizes(7), sizes(4)
INT_TYPES = st.sampled_from([np.int64, np.int32, np.uint8, np.int16])
FLOAT_TYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])
SCALES = st.sampled_from([1.0, None, "rsqrt_d", 0.5, 2])
BLOCKS = st.sampled_from([None, 1, 3, 100])
GENERATORS = st.sampled_from([None, np.random.default_rng(0)])
BUCKETS = st.sampled_from([2, 6, (2, 4), [4, 2], np.int64(8)])


def shape_of(x):
    return tuple(x.shape)


# Hashing and chunking


def half_width(n_buckets):
    return int(np.sum(n_buckets)) // 2


@DOOR.add("default_n_buckets")
def _(draw):
    return {"length": draw(sizes(10**6)), "chunk_length": draw(sizes(64))}


@DOOR.add("random_rotations")
def _(draw):
    kwargs = {"generator": np.random.default_rng(0), "n_hashes": draw(WIDTHS), "d": draw(WIDTHS)}
    kwargs |= {"n_buckets": draw(BUCKETS), "n_heads": draw(st.sampled_from([None, 2])), "dtype": draw(FLOAT_TYPES)}
    return {**kwargs, "device": draw(st.sampled_from([None, "cpu", torch.device("cpu")]))}


def buckets_in_range(result, x, rotations, n_buckets):
    assert shape_of(result) == (*x.shape[:-2], rotations.shape[-3], x.shape[-2])
    assert result.min() >= 0
    assert result.max() < np.prod(n_buckets)


@DOOR.add("hash_vectors", check=buckets_in_range)
def _(draw):
    front, d, n_buckets = lead(draw), draw(WIDTHS), draw(BUCKETS)
    per_head = draw(st.sampled_from([(), front]))
    rotations = array(draw, *per_head, draw(WIDTHS), d, half_width(n_buckets))
    return {"x": array(draw, *front, draw(LENGTHS), d), "rotations": rotations, "n_buckets": n_buckets}


@DOOR.add("sort_by_bucket")
def _(draw):
    front, length = lead(draw), draw(LENGTHS)
    buckets = integers(draw, 0, 4, *front, draw(WIDTHS), length, dtype=draw(INT_TYPES))
    return {"buckets": buckets, "padding_mask": mask(draw, *front, length)}


def permutation(draw):
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    length = draw(LENGTHS)
    return rng.permuted(np.broadcast_to(np.arange(length), (*lead(draw), length)).astype(draw(INT_TYPES)), axis=-1)


@DOOR.add("undo_sort")
def _(draw):
    return {"order": permutation(draw)}


@DOOR.add("split_chunks")
def _(draw):
    return {"order": permutation(draw), "chunk_length": draw(sizes(9))}


@DOOR.add("look_adjacent")
def _(draw):
    shape = (*lead(draw), draw(LENGTHS), draw(WIDTHS), draw(WIDTHS))
    chunks = draw(st.sampled_from([array(draw, *shape), integers(draw, 0, 9, *shape, dtype=draw(INT_TYPES))]))
    kwargs = {"chunks": chunks, "chunks_before": draw(sizes(3, 0)), "chunks_after": draw(sizes(3, 0))}
    return {**kwargs, "wrap": draw(st.booleans()), "fill": draw(st.sampled_from([0, 1]))}


# Attention


def out_like_v(result, v, **kwargs):
    out = result[0] if isinstance(result, tuple) else result
    queries = kwargs.get("q", kwargs.get("qk"))
    assert shape_of(out) == (*queries.shape[:-1], v.shape[-1])
    assert out.dtype == v.dtype


def qkv(draw, same_length=False):
    """q (…, L_q, d), k (…, L_k, d), v (…, L_k, d_v)."""
    front, l_k, d = lead(draw), draw(LENGTHS), draw(WIDTHS)
    l_q = l_k if same_length else draw(LENGTHS)
    q, k, v = array(draw, *front, l_q, d), array(draw, *front, l_k, d), array(draw, *front, l_k, draw(WIDTHS))
    return {"q": q, "k": k, "v": v}


def shared_qk(draw):
    """qk (…, L, d), v (…, L, d_v) and a mask."""
    front, length = lead(draw), draw(LENGTHS)
    qk, v = array(draw, *front, length, draw(WIDTHS)), array(draw, *front, length, draw(WIDTHS))
    return {"qk": qk, "v": v, "padding_mask": mask(draw, *front, length)}


@DOOR.add("regular_attention", check=out_like_v)
def _(draw):
    causal = draw(st.booleans())
    kwargs = qkv(draw, same_length=causal)
    padding_mask = mask(draw, *kwargs["k"].shape[:-1])
    return {**kwargs, "causal": causal, "padding_mask": padding_mask, "scale": draw(SCALES), "block_size": draw(BLOCKS)}


@DOOR.add("shared_qk_attention", check=out_like_v)
def _(draw):
    kwargs = {**shared_qk(draw), "causal": draw(st.booleans()), "scale": draw(SCALES), "block_size": draw(BLOCKS)}
    return {**kwargs, "norm_eps": draw(st.sampled_from([1e-6, 0.1, 0, 1]))}


STRANGE_OPTIONS = {
    "options": [
        LSHOptions(chunk_length=2**62),
        LSHOptions(chunks_before=2**40),
        LSHOptions(chunks_after=10**18, causal=False, wrap=True),
        LSHOptions(n_hashes=2**40),
        LSHOptions(n_buckets=2**62),
        LSHOptions(norm_eps=1e308),
        LSHOptions(norm_eps=0.0),
        LSHOptions(scale=1e-300),
        LSHOptions(scale=9.9e5),
        LocalOptions(),
        LocalOptions(chunk_length=2**62),
        LocalOptions(chunks_before=2**40),
        LocalOptions(chunks_after=10**18, causal=False, wrap=True),
        LocalOptions(scale=9.9e5),
        LSHOptions,
        {"n_hashes": 1},
    ]
}
OPTION_WORDS = tuple(LSHOptions.__dataclass_fields__)


def lsh_options(draw):
    name = draw(st.sampled_from(sorted(PRESETS)))
    more = {"n_hashes": draw(sizes(3)), "chunk_length": draw(sizes(4)), "n_buckets": 4}
    if name != "strict":
        more |= {"causal": draw(st.booleans()), "chunks_before": draw(sizes(2, 0)), "chunks_after": draw(sizes(2, 0))}
    return LSHOptions.preset(name, **more, count_once=draw(st.booleans()))


def lsh_arguments(draw):
    kwargs, options = shared_qk(draw), lsh_options(draw)
    *front, length, _ = kwargs["qk"].shape
    buckets = integers(draw, 0, 4, *front, options.n_hashes, length, dtype=draw(st.sampled_from([np.int64, np.int32])))
    return {**kwargs, "buckets": buckets, "options": options}


@DOOR.add("lsh_attention", check=out_like_v, hostile=STRANGE_OPTIONS, words=OPTION_WORDS)
def _(draw):
    kwargs = {**lsh_arguments(draw), "return_record": draw(st.booleans())}
    return {**kwargs, "block_size": draw(st.sampled_from([None, 1, 10, 10**9]))}


@DOOR.add("AttentionRecord", lambda **kwargs: reformer_ref.lsh_attention(**kwargs, return_record=True)[1].dense())
def _(draw):
    return lsh_arguments(draw)


@DOOR.add("LSHOptions", tensors=False)
def _(draw):
    return lsh_options(draw).to_dict()


@DOOR.add("LSHOptions.preset", tensors=False, words=("preset", *OPTION_WORDS))
def _(draw):
    return {"name": draw(st.sampled_from(sorted(PRESETS))), "n_hashes": draw(sizes(3))}


def local_options(draw):
    kwargs = {"chunk_length": draw(sizes(4)), "chunks_before": draw(sizes(2, 0)), "chunks_after": draw(sizes(2, 0))}
    kwargs |= {"causal": draw(st.booleans()), "wrap": draw(st.booleans())}
    return LocalOptions(**kwargs, scale=draw(st.sampled_from([None, 0.5, 1])))


@DOOR.add("local_attention", check=out_like_v, hostile=STRANGE_OPTIONS, words=OPTION_WORDS)
def _(draw):
    kwargs = qkv(draw, same_length=True)
    kwargs |= {"options": local_options(draw), "padding_mask": mask(draw, *kwargs["q"].shape[:-1])}
    return {**kwargs, "block_size": draw(st.sampled_from([None, 1, 10, 10**9]))}


@DOOR.add("LocalOptions", tensors=False)
def _(draw):
    return local_options(draw).to_dict()


# Feed-forward, loss, positions


@DOOR.add("cross_entropy")
def _(draw):
    front, d, vocabulary = (*lead(draw), draw(LENGTHS)), draw(WIDTHS), draw(sizes(5))
    bias = array(draw, vocabulary) if draw(st.booleans()) else None
    targets = integers(draw, 0, vocabulary, *front, dtype=draw(INT_TYPES))
    kwargs = {"hidden": array(draw, *front, d), "weight": array(draw, d, vocabulary), "bias": bias}
    return {**kwargs, "targets": targets, "chunk_length": draw(BLOCKS)}


@DOOR.add("FeedForward", lambda x, **kwargs: reformer_ref.FeedForward(**kwargs)(x), tensors=False)
def _(draw):
    kwargs = {"d_model": draw(WIDTHS), "d_ff": draw(WIDTHS), "activation": draw(st.sampled_from(["relu", "gelu"]))}
    kwargs |= {"dropout": draw(st.sampled_from([0.0, 0.5])), "chunk_length": draw(BLOCKS), "bias": draw(st.booleans())}
    x = torch.from_numpy(array(draw, draw(LENGTHS), kwargs["d_model"]).astype(np.float32).copy())
    return {**kwargs, "generator": draw(st.sampled_from([None, torch.Generator()])), "x": x}


def positions(draw, end):
    return integers(draw, 0, end, *lead(draw), draw(LENGTHS), dtype=draw(INT_TYPES))


def built(module):
    return lambda positions, **kwargs: module(**kwargs)(positions)


@DOOR.add("AxialPositions", built(reformer_ref.AxialPositions))
def _(draw):
    axes = draw(sizes(3))
    shape, dims = tuple(draw(WIDTHS) for _ in range(axes)), tuple(draw(WIDTHS) for _ in range(axes))
    return {"shape": shape, "dims": dims, "generator": draw(GENERATORS), "positions": positions(draw, math.prod(shape))}


@DOOR.add("LearnedPositions", built(reformer_ref.LearnedPositions))
def _(draw):
    kwargs = {"max_length": draw(LENGTHS), "d_model": draw(WIDTHS), "generator": draw(GENERATORS)}
    return {**kwargs, "positions": positions(draw, kwargs["max_length"])}


@DOOR.add("SinusoidalPositions", built(reformer_ref.SinusoidalPositions))
def _(draw):
    return {"d_model": draw(st.sampled_from([2, 4, 6])), "positions": positions(draw, 100)}


# Reversible layers


class Layer(torch.nn.Module):
    """tanh(x · w), plus what else it is given."""

    def __init__(self, w):
        super().__init__()
        self.w = torch.nn.Parameter(torch.as_tensor(w))

    def forward(self, x, *context):
        return torch.tanh(x * self.w.to(x.dtype)) + sum(e.sum().to(x.dtype) for e in context if e is not None)


class Wrong(torch.nn.Module):
    """Returns something of another kind or shape."""

    def __init__(self, out):
        super().__init__()
        self.out = out

    def forward(self, x, *context):
        return self.out


STRANGE_BLOCKS = [[()], [(len, len)], [(Wrong(None),)], [(Wrong(torch.ones(99)),)], [(Wrong("a"),)], "ab", [None]]
STRANGE_BLOCKS += [Layer(1.0), torch.nn.ModuleList(), [torch.nn.ModuleList()], {"f": 1}, [torch.nn.Linear]]
STRANGE_BLOCKS = {"blocks": STRANGE_BLOCKS}


def streams(draw, *names):
    shape = (*lead(draw), draw(LENGTHS), draw(WIDTHS))
    return {name: array(draw, *shape) for name in names}


def blocks(draw):
    layers = [Layer(0.5), Layer(2.0)]
    block = reformer_ref.ReversibleBlock(*layers)
    forms = [[tuple(layers)], [block], [layers, block], torch.nn.ModuleList([block]), [(layers[0],)]]
    return draw(st.sampled_from(forms))


def with_context(function):
    def call(first, second, blocks, context, **kwargs):
        return function(
            first, second, blocks, *(context if isinstance(context, (list, tuple)) else (context,)), **kwargs
        )

    return call


def context(draw):
    return draw(st.sampled_from([(), (None,), (array(draw, 2, 3),)]))


STREAM_WORDS = ("x1", "x2", "y1", "y2")


@DOOR.add("reversible_stack", with_context(reformer_ref.reversible_stack), hostile=STRANGE_BLOCKS, words=STREAM_WORDS)
def _(draw):
    kwargs = {**streams(draw, "first", "second"), "blocks": blocks(draw), "context": context(draw)}
    return {**kwargs, "reversible": draw(st.booleans())}


@DOOR.add("reversible_stack_inverse", with_context(reformer_ref.reversible_stack_inverse), hostile=STRANGE_BLOCKS,
          words=STREAM_WORDS)  # fmt: skip
def _(draw):
    return {**streams(draw, "first", "second"), "blocks": blocks(draw), "context": context(draw)}


def built_stack(x1, x2, **kwargs):
    return reformer_ref.ReversibleStack(**kwargs)(x1, x2)


@DOOR.add("ReversibleStack", built_stack, hostile=STRANGE_BLOCKS)
def _(draw):
    return {"blocks": blocks(draw), "reversible": draw(st.booleans()), **streams(draw, "x1", "x2")}


def built_block(layers, x1, x2):
    return reformer_ref.ReversibleBlock(*(layers if isinstance(layers, list) else [layers]))(x1, x2)


@DOOR.add("ReversibleBlock", built_block, hostile={"layers": [[], [Wrong(None)], [len], [None]]},
          words=("blocks",))  # fmt: skip
def _(draw):
    return {"layers": [Layer(0.5), Layer(2.0)], **streams(draw, "x1", "x2")}


# Models

STRICT = small_config("strict", max_length=16)
TRAX = replace(small_config("huggingface"), local=LocalOptions(chunk_length=4, wrap=True))
ENCODER = small_config(causal=False)
BYTES = ReformerConfig(
    vocab_size=256, d_model=8, n_layers=1, n_heads=1, max_length=16, pattern=("lsh",),
    lsh=LSHOptions.preset("strict", chunk_length=4),
)  # fmt: skip


@cache
def model(config=None):
    return reformer_ref.ReformerLM(config or small_config()).eval()


@cache
def pair():
    return reformer_ref.ReformerEncoderDecoder(ENCODER, small_config()).eval()


def ids(length=7, rows=2):
    return torch.arange(rows * length).reshape(rows, length) % 11


def real(length=7, rows=2):
    return torch.arange(length).expand(rows, length) < length - 1


def seeded():
    return torch.Generator().manual_seed(0)


def fixed(name, call=None, **options):
    """Decorates a recipe that takes no draws: always the same valid call, of objects made anew."""

    def register(valid):
        DOOR.add(name, call, tensors=False, **options)(lambda draw: valid())
        return valid

    return register


@fixed("ReformerConfig")
def _():
    return {name: getattr(small_config(), name) for name in ReformerConfig.__dataclass_fields__}


@fixed("ReformerConfig.from_json")
def _():
    return {"text": small_config().to_json()}


@fixed("ReformerLM")
def _():
    return {"config": small_config()}


@fixed("ReformerLM.forward", lambda **kwargs: model().forward(**kwargs))
def _():
    return {"tokens": ids(), "padding_mask": real(), "generator": seeded()}


@fixed("ReformerLM.hidden", lambda **kwargs: model().hidden(**kwargs))
def _():
    return {"tokens": ids(), "padding_mask": real(), "generator": seeded()}


@fixed("ReformerLM.logits", lambda hidden: model().logits(hidden))
def _():
    return {"hidden": torch.randn((2, 7, 24), generator=seeded())}


@fixed("ReformerLM.loss", lambda **kwargs: model().loss(**kwargs))
def _():
    return {"tokens": ids(), "targets": ids(), "padding_mask": real(), "generator": seeded()}


# the message lists every weight that is wrong
@fixed("ReformerLM.from_huggingface", keep=("model_or_state_dict",))
def _():
    weights = reformer_ref.to_huggingface(model(TRAX))
    return {"model_or_state_dict": weights, "config": TRAX, "add_head_bias": False}


@fixed("to_huggingface")
def _():
    return {"model": model(TRAX)}


@fixed("ReformerEncoderDecoder")
def _():
    return {"encoder_config": ENCODER, "decoder_config": small_config()}


def both():
    return {"source": ids(6), "target": ids(7), "source_padding_mask": real(6), "target_padding_mask": real(7)}


MASKED = {"words": ("padding_mask", "finite")}


@fixed("ReformerEncoderDecoder.forward", lambda **kwargs: pair().forward(**kwargs), **MASKED)
def _():
    return {**both(), "generator": seeded()}


@fixed("ReformerEncoderDecoder.loss", lambda **kwargs: pair().loss(**kwargs), **MASKED)
def _():
    return {**both(), "generator": seeded()}


@fixed("ReformerEncoderDecoder.encode", lambda **kwargs: pair().encode(**kwargs), **MASKED)
def _():
    return {"source": ids(6), "source_padding_mask": real(6), "generator": seeded()}


@fixed("ReformerEncoderDecoder.decode", lambda **kwargs: pair().decode(**kwargs), **MASKED)
def _():
    encoder_output = torch.randn((2, 6, 24), generator=seeded())
    kwargs = {"target": ids(7), "encoder_output": encoder_output, "source_padding_mask": real(6)}
    return {**kwargs, "target_padding_mask": real(7), "generator": seeded()}


# Generation

SAMPLING = {"temperature": 0.7, "top_k": 2, "top_p": 0.9}


@fixed("token_probabilities")
def _():
    return {"logits": torch.tensor([[1.0, 2.0, 3.0]]), **SAMPLING}


@fixed("sample_token")
def _():
    return {"logits": torch.tensor([[1.0, 2.0, 3.0]]), **SAMPLING, "generator": seeded()}


def decoder():
    made = reformer_ref.Decoder(model(STRICT))
    made.prefill(ids(5))
    return made


@fixed("Decoder")
def _():
    return {"model": model(STRICT), "capacity": 8}


@fixed("Decoder.prefill", lambda **kwargs: reformer_ref.Decoder(model(STRICT)).prefill(**kwargs))
def _():
    return {"tokens": ids(), "padding_mask": real()}


@fixed("Decoder.step", lambda tokens: decoder().step(tokens))
def _():
    return {"tokens": torch.tensor([1, 2])}


@fixed("Decoder.repeat", lambda n: decoder().repeat(n))
def _():
    return {"n": 2}


@fixed("generate", keep=("on_token",))
def _():
    kwargs = {"model": model(BYTES), "prompt": b"ab", "max_new_tokens": 2, **SAMPLING, "generator": seeded()}
    return {**kwargs, "samples": 2, "cache": None, "on_token": lambda token: None, "progress": False}


@fixed("beam_search", keep=("check_stop",), words=("padding_mask",))
def _():
    source = torch.tensor([[1, 2, 3], [4, 5, 6]])
    kwargs = {"model": pair(), "source": source, "start": 0, "end": 1, "max_new_tokens": 3}
    kwargs |= {"source_padding_mask": source < 6, "beams": 2, "length_penalty": 0.6}
    return {**kwargs, "check_stop": lambda: None}


# Memory


@fixed("measure_peak", keep=("fn",), also=(RuntimeError,))
def _():
    return {"fn": lambda: 1, "device": "cpu"}


@fixed("count_peak", keep=("fn",))
def _():
    return {"fn": lambda: torch.ones(3), "on": "cpu"}


@fixed("predict_peak")
def _():
    kwargs = {"config": small_config(), "length": 20, "device": "cuda", "batch": 1, "training": True}
    return {**kwargs, "optimizer": "adam", "dtype": torch.float32, "exact": False}


@fixed("Peak")
def _():
    return {
        "kind": "counted",
        "start_bytes": 1,
        "above_start_bytes": 2,
        "result": None,
        "breakdown": (),
        "excludes": "",
    }


# Helpers for comparisons


@DOOR.add("relative_error", tensors=False, also=(AssertionError,), finite=False)
def _(draw):
    shape = (*lead(draw), draw(LENGTHS))
    return {"got": array(draw, *shape), "want": array(draw, *shape)}


EXCEPTIONS = {
    "InPlaceLayer": "a protocol",
    "InPlaceLayer.add_": "a protocol",
    "InPlaceLayer.subtract_": "a protocol",
    "LSHOptions.scale_for": "called inside the attention",
    "LocalOptions.scale_for": "called inside the attention",
    "as_numpy": "takes a function",
    "autograd_vjp": "takes a function",
    "central_difference": "takes a function",
}


@pytest.fixture(autouse=True)
def _nothing_is_fetched(monkeypatch, tmp_path):
    monkeypatch.setattr(files, "_fetch", lambda name: tmp_path)


@pytest.mark.parametrize("target", DOOR.targets, ids=str)
def test_arguments(target, counts):
    """Valid and hostile ones; valid ones alone where annotations are checked, and refuse wrong types before we do."""
    with torch.random.fork_rng():
        fuzz(target, counts, **({"replacements": (0,)} if "REFORMER_CHECK_TYPES" in os.environ else {}))


def public_names():
    """Names that the package exports, and the methods that its classes themselves define or their annotations name."""
    for name in reformer_ref.__all__:
        thing = getattr(reformer_ref, name)
        yield name
        if inspect.isclass(thing):
            methods = [n for n, m in vars(thing).items() if callable(m) or isinstance(m, classmethod | staticmethod)]
            yield from (f"{name}.{method}" for method in methods if takes_arguments(thing, method))


def takes_arguments(thing, method):
    if method.startswith("_"):
        return False
    parameters = inspect.signature(getattr(thing, method)).parameters
    return bool(parameters.keys() - {"self", "cls"})


def test_every_public_name_is_tried():
    tried = {target.name for target in DOOR.targets}
    # forward of a small module is called with the module: positions, FeedForward, reversible blocks
    missing = {n for n in public_names() if n not in tried and n.removesuffix(".forward") not in tried}
    assert missing == EXCEPTIONS.keys()


# The harness itself finds what it is there to find


def forever(n_things):
    while True:
        n_things += 1


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda n_things: [][n_things], "IndexError"),
        (lambda n_things: 1 // (n_things - n_things), "ZeroDivisionError"),
        (lambda n_things: np.zeros(2).reshape(n_things, 7), "ValueError of somebody else"),
        (lambda n_things: require_int("another_name", "x"), "names no argument"),
        (lambda n_things: require_choice("n_things", 3, ("x" * 2000,)), "a message of"),
        (lambda n_things: np.array([np.nan]), "NaN or infinity"),
        (lambda n_things: torch.tensor([np.inf]), "NaN or infinity"),
        (forever, "TimeoutError"),
    ],
)
def test_faults_are_noticed(function, message, monkeypatch):
    monkeypatch.setattr(harness, "SECONDS", 0.2)
    target = harness.Target("toy", function, None, as_tensors=False)
    with pytest.raises(harness.Fault, match=message):
        harness.run_case(target, {"n_things": 3}, ["n_things"])


def test_results_and_refusals_are_told_apart():
    target = harness.Target("toy", lambda value: require_int("value", value), None, as_tensors=False)
    assert harness.run_case(target, {"value": 3}) == "accepted"
    assert harness.run_case(target, {"value": "3"}, ["value"]) == "refused"
    with pytest.raises(harness.Fault, match="a valid call was refused"):
        harness.run_case(target, {"value": "3"})
