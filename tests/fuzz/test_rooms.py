"""Hostile calls of every public function of the component rooms and of the modules at the ground."""

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from reformer_ref import _arguments as validate
from reformer_ref import _replay as replay
from reformer_ref import _tensors as tensors
from reformer_ref import testing as bridge
from reformer_ref import testing as compare
from reformer_ref.attention import pytorch as attention_torch
from reformer_ref.attention import spec as attention_spec
from reformer_ref.chunking import pytorch as chunking_torch
from reformer_ref.chunking import spec as chunking_spec
from reformer_ref.feed_forward import pytorch as feed_forward_torch
from reformer_ref.feed_forward import spec as feed_forward_spec
from reformer_ref.hashing import pytorch as hashing_torch
from reformer_ref.hashing import spec as hashing_spec
from reformer_ref.local_attention import pytorch as local_torch
from reformer_ref.local_attention import spec as local_spec
from reformer_ref.local_attention.options import LocalOptions
from reformer_ref.lsh_attention import pytorch as lsh_torch
from reformer_ref.lsh_attention import spec as lsh_spec
from reformer_ref.lsh_attention.options import PRESETS, LSHOptions
from reformer_ref.positions import pytorch as positions_torch
from reformer_ref.positions import spec as positions_spec
from reformer_ref.reversible import pytorch as reversible_torch
from reformer_ref.reversible import spec as reversible_spec
from tests.fuzz import harness
from tests.fuzz.harness import PACKAGE, Registry, array, assert_covered, fuzz, integers, lead, mask, sizes

ATTENTION, HASHING, CHUNKING, LSH, LOCAL = (Registry() for _ in range(5))
FEED_FORWARD, REVERSIBLE, POSITIONS, GROUND = (Registry() for _ in range(4))

LENGTHS = sizes(7)
WIDTHS = sizes(4)
SCALES = st.sampled_from([1.0, None, "rsqrt_d", 0.5, 2])
OF_OWN_SCALE = st.sampled_from([1.0, 0.25, 2])
EPS = st.sampled_from([1e-6, 0.1, 0, 1])


def shape_of(x):
    return tuple(x.shape)


# attention


def qkv(draw, same_length=False):
    """q (…, L_q, d), k (…, L_k, d), v (…, L_k, d_v) as a dict."""
    front, l_k, d = lead(draw), draw(LENGTHS), draw(WIDTHS)
    l_q = l_k if same_length else draw(LENGTHS)
    return {
        "q": array(draw, *front, l_q, d),
        "k": array(draw, *front, l_k, d),
        "v": array(draw, *front, l_k, draw(WIDTHS)),
    }


def out_like_v(result, **kwargs):
    queries = kwargs.get("q", kwargs.get("qk"))
    out = result[0] if isinstance(result, tuple) else result
    assert shape_of(out) == (*queries.shape[:-1], kwargs["v"].shape[-1])
    if isinstance(out, torch.Tensor):
        assert out.dtype == kwargs["v"].dtype


def like_inputs(result, **kwargs):
    inputs = [v for name, v in kwargs.items() if name in ("q", "k", "qk", "v", "x") and v is not None]
    outputs = result if isinstance(result, tuple) else (result,)
    assert [shape_of(r) for r in outputs] == [shape_of(v) for v in inputs]


@ATTENTION.add(attention_spec.normalize_keys, attention_torch.normalize_keys, check=like_inputs)
def _(draw):
    return {"x": array(draw, *lead(draw), draw(LENGTHS), draw(WIDTHS)), "norm_eps": draw(EPS)}


@ATTENTION.add(attention_spec.normalize_keys_vjp, check=like_inputs)
def _(draw):
    shape = (*lead(draw), draw(LENGTHS), draw(WIDTHS))
    return {"x": array(draw, *shape), "d_out": array(draw, *shape), "norm_eps": draw(EPS)}


def attend_arguments(draw):
    kwargs = qkv(draw)
    lengths = kwargs["q"].shape[-2], kwargs["k"].shape[-2]
    shape = draw(st.sampled_from([lengths, (*kwargs["q"].shape[:-1], lengths[1]), (1, lengths[1])]))
    counts = integers(draw, 0, 3, *shape)
    return kwargs, draw(st.sampled_from([counts, counts > 0, counts.astype(np.uint8)]))


@ATTENTION.add(attention_spec.attend, attention_torch.attend, check=out_like_v)
def _(draw):
    kwargs, counts = attend_arguments(draw)
    return {**kwargs, "counts": counts, "scale": draw(OF_OWN_SCALE)}


@ATTENTION.add(attention_spec.attend_vjp, check=like_inputs)
def _(draw):
    kwargs, counts = attend_arguments(draw)
    d_out = array(draw, *kwargs["q"].shape[:-1], kwargs["v"].shape[-1])
    return {**kwargs, "counts": counts, "d_out": d_out, "scale": draw(OF_OWN_SCALE)}


@ATTENTION.add(attention_spec.self_as_last_resort, attention_torch.self_as_last_resort)
def _(draw):
    length = draw(LENGTHS)
    return {"counts": integers(draw, 0, 3, *lead(draw), length, length)}


@ATTENTION.add(attention_spec.visible_pairs, attention_torch.visible_pairs)
def _(draw):
    l_q, causal = draw(LENGTHS), draw(st.booleans())
    l_k = l_q if causal else draw(LENGTHS)
    padding_mask = mask(draw, *lead(draw), l_k)
    return {"query_length": l_q, "key_length": l_k, "causal": causal, "padding_mask": padding_mask}


@ATTENTION.add(("attention.pytorch.visible_pairs with device", attention_torch.visible_pairs))
def _(draw):
    return {"query_length": draw(LENGTHS), "key_length": 3, "causal": False, "padding_mask": None, "device": "cpu"}


STRIPS = st.sampled_from([None, 1, 3, 100])


@ATTENTION.add(attention_spec.regular_attention, attention_torch.regular_attention, check=out_like_v)
def _(draw):
    causal = draw(st.booleans())
    kwargs = qkv(draw, same_length=causal)
    padding_mask = mask(draw, *kwargs["k"].shape[:-1])
    return {**kwargs, "causal": causal, "padding_mask": padding_mask, "scale": draw(SCALES), "strip": draw(STRIPS)}


@ATTENTION.add(attention_spec.regular_attention_vjp, check=like_inputs)
def _(draw):
    causal = draw(st.booleans())
    kwargs = qkv(draw, same_length=causal)
    d_out = array(draw, *kwargs["q"].shape[:-1], kwargs["v"].shape[-1])
    padding_mask = mask(draw, *kwargs["k"].shape[:-1])
    return {**kwargs, "d_out": d_out, "causal": causal, "padding_mask": padding_mask, "scale": draw(SCALES)}


def shared(draw):
    front, length = lead(draw), draw(LENGTHS)
    qk, v = array(draw, *front, length, draw(WIDTHS)), array(draw, *front, length, draw(WIDTHS))
    return {"qk": qk, "v": v}, mask(draw, *front, length)


@ATTENTION.add(attention_spec.shared_qk_attention, attention_torch.shared_qk_attention, check=out_like_v)
def _(draw):
    kwargs, padding_mask = shared(draw)
    kwargs |= {"causal": draw(st.booleans()), "padding_mask": padding_mask, "scale": draw(SCALES)}
    return {**kwargs, "norm_eps": draw(EPS), "strip": draw(STRIPS)}


@ATTENTION.add(attention_spec.shared_qk_attention_vjp, check=like_inputs)
def _(draw):
    kwargs, padding_mask = shared(draw)
    kwargs |= {"d_out": array(draw, *kwargs["v"].shape), "causal": draw(st.booleans()), "padding_mask": padding_mask}
    return {**kwargs, "scale": draw(SCALES), "norm_eps": draw(EPS)}


# hashing

BUCKETS = st.sampled_from([2, 6, (2, 4), [4, 2], np.int64(8)])


def half_width(n_buckets):
    return sum(validate.bucket_factors(n_buckets)) // 2


@HASHING.add(hashing_spec.default_n_buckets)
def _(draw):
    return {"length": draw(sizes(10**6)), "chunk_length": draw(sizes(64))}


@HASHING.add(hashing_spec.random_rotations)
def _(draw):
    kwargs = {"rng": np.random.default_rng(0), "n_hashes": draw(WIDTHS), "d": draw(WIDTHS), "n_buckets": draw(BUCKETS)}
    return {**kwargs, "n_heads": draw(st.sampled_from([None, 2]))}


@HASHING.add(hashing_torch.random_rotations)
def _(draw):
    kwargs = {"generator": np.random.default_rng(0), "n_hashes": draw(WIDTHS), "d": draw(WIDTHS)}
    kwargs |= {"n_buckets": draw(BUCKETS), "n_heads": draw(st.sampled_from([None, 2]))}
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]))
    return {**kwargs, "dtype": dtype, "device": draw(st.sampled_from([None, "cpu", torch.device("cpu")]))}


def buckets_in_range(result, x, rotations, n_buckets):
    assert result.shape[-1] == x.shape[-2]
    assert result.shape[-2] == rotations.shape[-3]
    assert result.min() >= 0
    assert result.max() < np.prod(validate.bucket_factors(n_buckets))


@HASHING.add(hashing_spec.hash_vectors, hashing_torch.hash_vectors, check=buckets_in_range)
def _(draw):
    front, d, n_buckets = lead(draw), draw(WIDTHS), draw(BUCKETS)
    heads = draw(st.sampled_from([(), front]))
    rotations = array(draw, *heads, draw(WIDTHS), d, half_width(n_buckets))
    return {"x": array(draw, *front, draw(LENGTHS), d), "rotations": rotations, "n_buckets": n_buckets}


# chunking

INT_TYPES = st.sampled_from([np.int64, np.int32, np.uint8, np.int16])


@CHUNKING.add(chunking_spec.sort_by_bucket, chunking_torch.sort_by_bucket)
def _(draw):
    front, length = lead(draw), draw(LENGTHS)
    buckets = integers(draw, 0, 4, *front, draw(WIDTHS), length, dtype=draw(INT_TYPES))
    return {"buckets": buckets, "padding_mask": mask(draw, *front, length)}


def permutation(draw):
    length = draw(LENGTHS)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    order = np.broadcast_to(np.arange(length), (*lead(draw), length)).astype(draw(INT_TYPES))
    return rng.permuted(order, axis=-1)


@CHUNKING.add(chunking_spec.undo_sort, chunking_torch.undo_sort)
def _(draw):
    return {"order": permutation(draw)}


@CHUNKING.add(chunking_spec.split_chunks, chunking_torch.split_chunks)
def _(draw):
    return {"order": permutation(draw), "chunk_length": draw(sizes(9))}


@CHUNKING.add(chunking_spec.look_adjacent, chunking_torch.look_adjacent)
def _(draw):
    shape = (*lead(draw), draw(LENGTHS), draw(WIDTHS), draw(WIDTHS))
    chunks = draw(st.sampled_from([array(draw, *shape), integers(draw, 0, 9, *shape, dtype=draw(INT_TYPES))]))
    kwargs = {"chunks": chunks, "chunks_before": draw(sizes(3, 0)), "chunks_after": draw(sizes(3, 0))}
    return {**kwargs, "wrap": draw(st.booleans()), "fill": draw(st.sampled_from([0, 1]))}


# lsh_attention


def lsh_options(draw):
    name = draw(st.sampled_from(sorted(PRESETS)))
    more = {"n_hashes": draw(sizes(3)), "chunk_length": draw(sizes(4)), "n_buckets": 4}
    if name != "strict":
        more |= {"causal": draw(st.booleans()), "chunks_before": draw(sizes(2, 0)), "chunks_after": draw(sizes(2, 0))}
    return LSHOptions.preset(name, **more, count_once=draw(st.booleans()))


def lsh_arguments(draw):
    kwargs, padding_mask = shared(draw)
    options = lsh_options(draw)
    *front, length, _ = kwargs["qk"].shape
    buckets = integers(draw, 0, 4, *front, options.n_hashes, length, dtype=draw(st.sampled_from([np.int64, np.int32])))
    return {**kwargs, "buckets": buckets, "options": options}, padding_mask


STRANGE_OPTIONS = {
    "options": [
        LSHOptions(chunk_length=2**70),
        LSHOptions(chunks_before=2**40),
        LSHOptions(chunks_after=10**30, causal=False, wrap=True),
        LSHOptions(n_hashes=2**40),
        LSHOptions(n_buckets=2**62),
        LSHOptions(norm_eps=1e308),
        LSHOptions(norm_eps=0.0),
        LSHOptions(scale=1e-300),
        LSHOptions(scale=9.9e5),
        LocalOptions(),
        LocalOptions(chunk_length=2**70),
        LocalOptions(chunks_before=2**40),
        LocalOptions(chunks_after=10**30, causal=False, wrap=True),
        LocalOptions(scale=9.9e5),
        LSHOptions,
        {"n_hashes": 1},
    ]
}
OPTION_WORDS = tuple(LSHOptions.__dataclass_fields__)


@LSH.add(lsh_spec.lsh_attention, lsh_torch.lsh_attention, check=out_like_v, hostile=STRANGE_OPTIONS, words=OPTION_WORDS)
def _(draw):
    kwargs, padding_mask = lsh_arguments(draw)
    return {**kwargs, "padding_mask": padding_mask}


@LSH.add(("lsh_attention.pytorch.AttentionRecord", lambda **kwargs: lsh_torch.lsh_attention(**kwargs)[1].dense()))
def _(draw):
    kwargs, padding_mask = lsh_arguments(draw)
    kwargs |= {"padding_mask": padding_mask, "return_record": True, "block_size": draw(st.sampled_from([None, 1, 10]))}
    return kwargs


@LSH.add(
    ("lsh_attention.pytorch.lsh_attention in blocks", lsh_torch.lsh_attention),
    hostile=STRANGE_OPTIONS,
    words=OPTION_WORDS,
)
def _(draw):
    kwargs, padding_mask = lsh_arguments(draw)
    kwargs |= {"padding_mask": padding_mask, "return_record": draw(st.booleans())}
    return {**kwargs, "block_size": draw(st.sampled_from([None, 1, 10, 10**9]))}


@LSH.add(lsh_spec.lsh_attention_vjp, check=like_inputs, hostile=STRANGE_OPTIONS, words=OPTION_WORDS)
def _(draw):
    kwargs, padding_mask = lsh_arguments(draw)
    return {**kwargs, "d_out": array(draw, *kwargs["v"].shape), "padding_mask": padding_mask}


@LSH.add(lsh_spec.visible_counts, hostile=STRANGE_OPTIONS, words=OPTION_WORDS)
def _(draw):
    kwargs, padding_mask = lsh_arguments(draw)
    return {"buckets": kwargs["buckets"], "options": kwargs["options"], "padding_mask": padding_mask}


@LSH.add(LSHOptions)
def _(draw):
    return lsh_options(draw).to_dict()


@LSH.add(("lsh_attention.options.LSHOptions.preset", LSHOptions.preset), words=("preset", *OPTION_WORDS))
def _(draw):
    return {"name": draw(st.sampled_from(sorted(PRESETS))), "n_hashes": draw(sizes(3))}


# local_attention


def local_options(draw):
    kwargs = {"chunk_length": draw(sizes(4)), "chunks_before": draw(sizes(2, 0)), "chunks_after": draw(sizes(2, 0))}
    kwargs |= {"causal": draw(st.booleans()), "wrap": draw(st.booleans())}
    return LocalOptions(**kwargs, scale=draw(st.sampled_from([None, 0.5, 1])))


def local_arguments(draw):
    kwargs = qkv(draw, same_length=True)
    return {**kwargs, "options": local_options(draw)}, mask(draw, *kwargs["q"].shape[:-1])


@LOCAL.add(local_spec.local_attention, check=out_like_v, hostile=STRANGE_OPTIONS, words=OPTION_WORDS)
def _(draw):
    kwargs, padding_mask = local_arguments(draw)
    return {**kwargs, "padding_mask": padding_mask}


@LOCAL.add(local_torch.local_attention, check=out_like_v, hostile=STRANGE_OPTIONS, words=OPTION_WORDS)
def _(draw):
    kwargs, padding_mask = local_arguments(draw)
    return {**kwargs, "padding_mask": padding_mask, "block_size": draw(st.sampled_from([None, 1, 10, 10**9]))}


@LOCAL.add(local_spec.local_attention_vjp, check=like_inputs, hostile=STRANGE_OPTIONS, words=OPTION_WORDS)
def _(draw):
    kwargs, padding_mask = local_arguments(draw)
    d_out = array(draw, *kwargs["v"].shape)
    return {**kwargs, "d_out": d_out, "padding_mask": padding_mask}


@LOCAL.add(local_spec.local_counts, hostile=STRANGE_OPTIONS, words=OPTION_WORDS)
def _(draw):
    return {"real": integers(draw, 0, 2, draw(LENGTHS), dtype=bool), "options": local_options(draw)}


@LOCAL.add(LocalOptions)
def _(draw):
    return local_options(draw).to_dict()


# feed_forward

NORM_EPS = st.sampled_from([1e-5, 0.1, 1])
SLICES = st.sampled_from([None, 1, 3, 100])
ACTIVATIONS = st.sampled_from(["relu", "gelu"])


@FEED_FORWARD.add(feed_forward_spec.layer_norm, feed_forward_torch.layer_norm, check=like_inputs)
def _(draw):
    d = draw(WIDTHS)
    x = array(draw, *lead(draw), draw(LENGTHS), d)
    return {"x": x, "scale": array(draw, d), "bias": array(draw, d), "eps": draw(NORM_EPS)}


@FEED_FORWARD.add(feed_forward_spec.layer_norm_vjp)
def _(draw):
    d = draw(WIDTHS)
    x = array(draw, *lead(draw), draw(LENGTHS), d)
    d_out = array(draw, *x.shape)
    return {"x": x, "scale": array(draw, d), "bias": array(draw, d), "d_out": d_out, "eps": draw(NORM_EPS)}


def feed_forward_arguments(draw):
    d_model, d_ff = draw(WIDTHS), draw(WIDTHS)
    with_bias = draw(st.booleans())
    return {
        "x": array(draw, *lead(draw), draw(LENGTHS), d_model),
        "w1": array(draw, d_model, d_ff),
        "b1": array(draw, d_ff) if with_bias else None,
        "w2": array(draw, d_ff, d_model),
        "b2": array(draw, d_model) if with_bias else None,
    }


@FEED_FORWARD.add(feed_forward_spec.feed_forward)
def _(draw):
    return {**feed_forward_arguments(draw), "activation": draw(ACTIVATIONS), "slice_length": draw(SLICES)}


@FEED_FORWARD.add(feed_forward_torch.feed_forward)
def _(draw):
    kwargs = {**feed_forward_arguments(draw), "activation": draw(ACTIVATIONS), "slice_length": draw(SLICES)}
    return {**kwargs, "dropout": draw(st.sampled_from([0.0, 0.5, 0]))}


@FEED_FORWARD.add(feed_forward_spec.feed_forward_vjp)
def _(draw):
    kwargs = feed_forward_arguments(draw)
    kwargs["d_out"] = array(draw, *kwargs["x"].shape)
    return {**kwargs, "activation": draw(ACTIVATIONS), "slice_length": draw(SLICES)}


def cross_entropy_arguments(draw):
    front, d, vocabulary = (*lead(draw), draw(LENGTHS)), draw(WIDTHS), draw(sizes(5))
    return {
        "hidden": array(draw, *front, d),
        "weight": array(draw, d, vocabulary),
        "bias": array(draw, vocabulary) if draw(st.booleans()) else None,
        "targets": integers(draw, 0, vocabulary, *front, dtype=draw(INT_TYPES)),
    }


@FEED_FORWARD.add(feed_forward_spec.cross_entropy, feed_forward_torch.cross_entropy)
def _(draw):
    return {**cross_entropy_arguments(draw), "slice_length": draw(SLICES)}


@FEED_FORWARD.add(feed_forward_spec.cross_entropy_vjp)
def _(draw):
    d_loss = draw(st.sampled_from([1.0, 2, -0.5]))
    return {**cross_entropy_arguments(draw), "d_loss": d_loss, "slice_length": draw(SLICES)}


@FEED_FORWARD.add(feed_forward_torch.require_targets, keep=("shape", "vocabulary", "device"))
def _(draw):
    shape = (*lead(draw), draw(LENGTHS))
    targets = integers(draw, 0, 5, *shape, dtype=draw(INT_TYPES))
    return {"targets": targets, "shape": shape, "vocabulary": 5, "device": torch.device("cpu")}


@FEED_FORWARD.add(feed_forward_torch.sliced, keep=("fn", "params", "dim"))
def _(draw):
    d, total = draw(WIDTHS), draw(st.booleans())

    def fn(x, w):
        return (x * w).sum() if total else x * w

    kwargs = {"fn": fn, "x": array(draw, *lead(draw), draw(LENGTHS), d), "params": (array(draw, d),)}
    return {**kwargs, "slice_length": draw(SLICES), "dim": -2, "total": total, "rng": draw(st.booleans())}


def built_feed_forward(x, **kwargs):
    return feed_forward_torch.FeedForward(**kwargs)(x)


@FEED_FORWARD.add(("feed_forward.pytorch.FeedForward", built_feed_forward))
def _(draw):
    kwargs = {"d_model": draw(WIDTHS), "d_ff": draw(WIDTHS), "activation": draw(ACTIVATIONS)}
    kwargs |= {"dropout": draw(st.sampled_from([0.0, 0.5])), "slice_length": draw(SLICES), "bias": draw(st.booleans())}
    generator = draw(st.sampled_from([None, np.random.default_rng(0)]))
    x = torch.from_numpy(array(draw, draw(LENGTHS), kwargs["d_model"]).astype(np.float32))
    return {**kwargs, "generator": generator, "x": x}


# reversible


class Half(torch.nn.Module):
    """tanh(x · w), plus an extra if there is one."""

    def __init__(self, w):
        super().__init__()
        self.w = torch.nn.Parameter(torch.as_tensor(w))

    def forward(self, x, *extras):
        return torch.tanh(x * self.w.to(x.dtype)) + sum(e.sum().to(x.dtype) for e in extras if e is not None)


class Wrong(torch.nn.Module):
    """Returns something of another kind or shape."""

    def __init__(self, out):
        super().__init__()
        self.out = out

    def forward(self, x, *extras):
        return self.out


def streams(draw, *names):
    shape = (*lead(draw), draw(LENGTHS), draw(WIDTHS))
    return {name: array(draw, *shape) for name in names}


class SpecHalf:
    """tanh(w · x)."""

    def __init__(self, w):
        self.w = w

    def __call__(self, x):
        return np.tanh(self.w * x)

    def vjp(self, x, d_out):
        d_sum = d_out * (1 - self(x) ** 2)
        return self.w * d_sum, {"w": np.sum(x * d_sum)}


def spec_blocks(draw):
    half = [SpecHalf(0.5), SpecHalf(-0.25)]
    return draw(st.sampled_from([[tuple(half)], [half, half], [(half[0],)], ((half[0], half[1], half[0]),)]))


def torch_blocks(draw):
    halves = [Half(0.5), Half(2.0)]
    block = reversible_torch.ReversibleBlock(*halves)
    return draw(
        st.sampled_from([[tuple(halves)], [block], [halves, block], torch.nn.ModuleList([block]), [(halves[0],)]])
    )


class NoVjp:
    """Callable, but not to be differentiated."""

    def __call__(self, x):
        return x


class OddHalf(NoVjp):
    """Returns, and differentiates to, whatever it is told."""

    def __init__(self, out, d_x=None):
        self.out, self.d_x = out, d_x

    def __call__(self, x):
        return x if self.out is None else self.out

    def vjp(self, x, d_out):
        return self.d_x


ODD_SPEC_BLOCKS = [[()], [(len, len)], [(NoVjp(), NoVjp())], [(OddHalf("a"),)], [(OddHalf(np.ones(99)),)]]
ODD_SPEC_BLOCKS += [[(OddHalf(None, None),)], [(OddHalf(None, (np.ones(99), {})),)], [(OddHalf(None, ("a", {})),)]]
ODD_SPEC_BLOCKS += [[(OddHalf(None, (None, {})),)], [(OddHalf(None, 3),)], "ab", [[SpecHalf]]]
ODD_TORCH_BLOCKS = [[()], [(len, len)], [(Wrong(None),)], [(Wrong(torch.ones(99)),)], [(Wrong("a"),)], "ab", [None]]
ODD_TORCH_BLOCKS += [Half(1.0), torch.nn.ModuleList(), [torch.nn.ModuleList()], {"f": 1}, [torch.nn.Linear]]


@REVERSIBLE.add(reversible_spec.reversible_stack, hostile={"blocks": ODD_SPEC_BLOCKS})
def _(draw):
    kwargs = streams(draw, "x1", "x2")
    return {**kwargs, "blocks": spec_blocks(draw)}


@REVERSIBLE.add(reversible_spec.reversible_stack_inverse, hostile={"blocks": ODD_SPEC_BLOCKS})
def _(draw):
    kwargs = streams(draw, "y1", "y2")
    return {**kwargs, "blocks": spec_blocks(draw)}


@REVERSIBLE.add(reversible_spec.reversible_stack_vjp, hostile={"blocks": ODD_SPEC_BLOCKS})
def _(draw):
    kwargs = streams(draw, "y1", "y2", "d_y1", "d_y2")
    return {**kwargs, "blocks": spec_blocks(draw)}


def with_extras(function):
    def call(blocks, extras, reversible=None, **kwargs):
        more = {} if reversible is None else {"reversible": reversible}
        extras = extras if isinstance(extras, (list, tuple)) else (extras,)
        return function(*kwargs.values(), blocks, *extras, **more)

    return call


REVERSIBLES = [("reversible.pytorch.reversible_stack", with_extras(reversible_torch.reversible_stack))]


@REVERSIBLE.add(*REVERSIBLES, hostile={"blocks": ODD_TORCH_BLOCKS})
def _(draw):
    kwargs = {**streams(draw, "x1", "x2"), "blocks": torch_blocks(draw)}
    extras = draw(st.sampled_from([(), (None,), (array(draw, 2, 3),)]))
    return {**kwargs, "extras": extras, "reversible": draw(st.booleans())}


@REVERSIBLE.add(
    ("reversible.pytorch.reversible_stack_inverse", with_extras(reversible_torch.reversible_stack_inverse)),
    hostile={"blocks": ODD_TORCH_BLOCKS},
)
def _(draw):
    extras = draw(st.sampled_from([(), (None,), (array(draw, 2, 3),)]))
    return {**streams(draw, "y1", "y2"), "blocks": torch_blocks(draw), "extras": extras}


@REVERSIBLE.add(reversible_torch.reversible_loss, keep=("head",), hostile={"blocks": ODD_TORCH_BLOCKS})
def _(draw):
    kwargs = streams(draw, "x1", "x2")
    head_tensors = draw(st.sampled_from([(), (array(draw, kwargs["x1"].shape[-1]),), (None,)]))

    def head(y1, y2, weight=None, *_):
        return (y1 + y2).sum() if weight is None else ((y1 + y2) * weight).sum()

    kwargs = {"head": head, **kwargs, "blocks": torch_blocks(draw)}
    return {**kwargs, "head_tensors": head_tensors, "reversible": draw(st.booleans())}


def built_stack(x1, x2, **kwargs):
    return reversible_torch.ReversibleStack(**kwargs)(x1, x2)


@REVERSIBLE.add(("reversible.pytorch.ReversibleStack", built_stack), hostile={"blocks": ODD_TORCH_BLOCKS})
def _(draw):
    return {"blocks": torch_blocks(draw), "reversible": draw(st.booleans()), **streams(draw, "x1", "x2")}


def built_block(halves, x1, x2):
    return reversible_torch.ReversibleBlock(*(halves if isinstance(halves, list) else [halves]))(x1, x2)


@REVERSIBLE.add(
    ("reversible.pytorch.ReversibleBlock", built_block),
    hostile={"halves": [[], [Wrong(None)], [len], [None]]},
    words=("blocks",),
)
def _(draw):
    return {"halves": [Half(0.5), Half(2.0)], **streams(draw, "x1", "x2")}


# positions


def tables(draw):
    return [array(draw, draw(WIDTHS), draw(WIDTHS)) for _ in range(draw(sizes(3)))]


def positions(draw, end):
    return integers(draw, 0, end, *lead(draw), draw(LENGTHS), dtype=draw(INT_TYPES))


@POSITIONS.add(positions_spec.axial_positions, positions_torch.axial_positions)
def _(draw):
    found = tables(draw)
    return {"tables": found, "positions": positions(draw, np.prod([len(t) for t in found]))}


@POSITIONS.add(positions_spec.axial_positions_vjp)
def _(draw):
    found = tables(draw)
    where = positions(draw, np.prod([len(t) for t in found]))
    return {"tables": found, "positions": where, "d_out": array(draw, *where.shape, sum(t.shape[1] for t in found))}


@POSITIONS.add(positions_spec.learned_positions, positions_torch.learned_positions)
def _(draw):
    table = array(draw, draw(LENGTHS), draw(WIDTHS))
    return {"table": table, "positions": positions(draw, len(table))}


@POSITIONS.add(positions_spec.learned_positions_vjp)
def _(draw):
    table = array(draw, draw(LENGTHS), draw(WIDTHS))
    where = positions(draw, len(table))
    return {"table": table, "positions": where, "d_out": array(draw, *where.shape, table.shape[1])}


@POSITIONS.add(positions_spec.sinusoidal_positions)
def _(draw):
    return {"positions": positions(draw, 100), "d_model": draw(st.sampled_from([2, 4, 6]))}


@POSITIONS.add(positions_torch.sinusoidal_positions)
def _(draw):
    dtype = draw(st.sampled_from([None, torch.float32, torch.float64, torch.bfloat16]))
    return {"positions": positions(draw, 100), "d_model": draw(st.sampled_from([2, 4, 6])), "dtype": dtype}


def built(module):
    return lambda positions, **kwargs: module(**kwargs)(positions)


@POSITIONS.add(("positions.pytorch.AxialPositions", built(positions_torch.AxialPositions)))
def _(draw):
    axes = draw(sizes(3))
    shape, dims = (tuple(draw(WIDTHS) for _ in range(axes)) for _ in range(2))
    generator = draw(st.sampled_from([None, np.random.default_rng(0)]))
    return {"shape": shape, "dims": dims, "generator": generator, "positions": positions(draw, np.prod(shape))}


@POSITIONS.add(("positions.pytorch.LearnedPositions", built(positions_torch.LearnedPositions)))
def _(draw):
    max_length = draw(LENGTHS)
    generator = draw(st.sampled_from([None, np.random.default_rng(0)]))
    kwargs = {"max_length": max_length, "d_model": draw(WIDTHS), "generator": generator}
    return {**kwargs, "positions": positions(draw, max_length)}


@POSITIONS.add(("positions.pytorch.SinusoidalPositions", built(positions_torch.SinusoidalPositions)))
def _(draw):
    return {"d_model": draw(st.sampled_from([2, 4, 6])), "positions": positions(draw, 100)}


# the ground: what takes a caller's values


@GROUND.add(validate.require_int, keep=("name", "minimum", "maximum"), words=("n_things",))
def _(draw):
    return {"name": "n_things", "value": draw(sizes(9)), "minimum": 1, "maximum": draw(st.sampled_from([None, 9]))}


@GROUND.add(validate.require_bool, keep=("name",), words=("n_things",))
def _(draw):
    return {"name": "n_things", "value": draw(st.booleans())}


@GROUND.add(validate.require_float, keep=("name", "minimum", "below"), words=("n_things",))
def _(draw):
    return {"name": "n_things", "value": draw(st.sampled_from([0.5, 1, 2])), "minimum": 0.0, "below": 3.0}


@GROUND.add(validate.require_choice, keep=("name", "choices"), words=("n_things",))
def _(draw):
    choices = ("a", 2, None)
    return {"name": "n_things", "value": draw(st.sampled_from(choices)), "choices": choices}


@GROUND.add(validate.bucket_factors)
def _(draw):
    return {"n_buckets": draw(BUCKETS)}


@GROUND.add(tensors.require_tensor, tensors.require_floating, keep=("name",), words=("n_things",))
def _(draw):
    return {"name": "n_things", "x": array(draw, draw(LENGTHS))}


@GROUND.add(tensors.require_padding_mask, keep=("shape", "device"))
def _(draw):
    shape = (*lead(draw), draw(LENGTHS))
    return {"padding_mask": mask(draw, *shape), "shape": shape, "device": torch.device("cpu")}


@GROUND.add(compare.relative_error, also=(AssertionError,), finite=False)
def _(draw):
    shape = (*lead(draw), draw(LENGTHS))
    return {"got": array(draw, *shape), "want": array(draw, *shape)}


@GROUND.add(compare.expect_equal, keep=("what",), also=(AssertionError,))
def _(draw):
    x = integers(draw, 0, 9, *lead(draw), draw(LENGTHS))
    return {"what": "x", "got": x, "want": x}


@GROUND.add(compare.expect_close, keep=("what", "tolerance"), also=(AssertionError,))
def _(draw):
    x = array(draw, *lead(draw), draw(LENGTHS))
    return {"what": "x", "got": x, "want": x, "tolerance": 1e-12}


@GROUND.add(replay.Replay)
def _(draw):
    return {"module": None}


@GROUND.add(("replay.Replay of inputs", lambda inputs, module, rng: replay.Replay(inputs, module=module, rng=rng)))
def _(draw):
    return {"inputs": draw(st.sampled_from(["cpu", None])), "module": Half(1.0), "rng": draw(st.booleans())}


@GROUND.add(bridge.to_torch, keep=("device",))
def _(draw):
    return {"value": array(draw, 3), "dtype": torch.float64, "device": "cpu"}


@GROUND.add(bridge.to_numpy)
def _(draw):
    return {"value": torch.from_numpy(np.ones(draw(LENGTHS)))}


ALL = Registry()
ALL.targets = [
    target
    for registry in (ATTENTION, HASHING, CHUNKING, LSH, LOCAL, FEED_FORWARD, REVERSIBLE, POSITIONS, GROUND)
    for target in registry.targets
]


@pytest.mark.parametrize("target", ALL.targets, ids=str)
def test_hostile_arguments(target, counts):
    fuzz(target, counts)


# Every public function and class is here, or there is a reason

ROOMS = {spec.parent.name for spec in PACKAGE.glob("*/spec.py")} - {"model", "generation"}  # those: test_above.py
OTHERS = {"__init__", "checks", "plots"}  # checks take functions, and are tested by wrong ones; plots: test_above.py
MODULES = {
    f"reformer_ref.{room}.{path.stem}"
    for room in ROOMS
    for path in (PACKAGE / room).glob("*.py")
    if path.stem not in OTHERS
} | {f"reformer_ref.{name}" for name in ("validate", "tensors", "compare", "bridge", "replay")}

BEHIND = "behind a function that looks at its arguments, which is here"
HELPER = "the rooms' own helper: its arguments are not a caller's"
EXCEPTIONS = {
    "attention.pytorch.attend_unchecked": BEHIND,
    "feed_forward.pytorch.total_nats": BEHIND,
    **dict.fromkeys((f"lsh_attention.pytorch.{name}" for name in ("as_rows", "from_rows")), BEHIND),
    **dict.fromkeys((f"lsh_attention.windows.{name}" for name in ("Windows", "Block", "pick")), BEHIND),
    **dict.fromkeys(
        (f"lsh_attention.streaming.{name}" for name in ("stream_attention", "block_scores", "inverse_length")), BEHIND
    ),
    **dict.fromkeys(
        (f"validate.{name}" for name in ("shown", "require_shape", "require_room", "as_array", "as_floats")), HELPER
    ),
    **dict.fromkeys((f"validate.{name}" for name in ("as_integers", "as_mask", "broadcast")), HELPER),
    **dict.fromkeys(
        (f"tensors.require_{name}" for name in ("integers", "dtype", "generator", "device", "finite", "same_kind")),
        HELPER,
    ),
    "tensors.NotFinite": "an error",
    **dict.fromkeys((f"tensors.{name}" for name in ("has_values", "autocast_off", "evaluating", "Scratch")), HELPER),
    **dict.fromkeys(
        (f"reversible.adapters.{name}" for name in ("Tanh", "Dropped", "Bucketed", "stack_on_arrays")),
        "between checks and the stack, which is here",
    ),
    **dict.fromkeys(
        (f"reversible.adapters.{name}_on_arrays" for name in ("vjp", "dropout", "buckets")),
        "between checks and the stack, which is here",
    ),
    "validate.clear_errors": "takes a function",
    "compare.central_difference": "takes a function",
    "compare.in_a_sentence": "takes a function",
    "bridge.as_numpy": "takes a function",
    "bridge.autograd_vjp": "takes a function",
}


def test_nothing_is_missing():
    assert_covered(ALL, MODULES, EXCEPTIONS)


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
        (lambda n_things: validate.require_int("another_name", "x"), "names no argument"),
        (lambda n_things: validate.require_choice("n_things", 3, ("x" * 2000,)), "a message of"),
        (lambda n_things: np.array([np.nan]), "NaN or infinity"),
        (lambda n_things: torch.tensor([np.inf]), "NaN or infinity"),
        (forever, "TimeoutError"),
    ],
)
def test_faults_are_found(function, message, monkeypatch):
    monkeypatch.setattr(harness, "SECONDS", 0.2)
    target = harness.Target("toy", function, None, as_tensors=False)
    with pytest.raises(harness.Fault, match=message):
        harness.run_case(target, {"n_things": 3}, ["n_things"])


def test_results_and_refusals_are_told_apart():
    target = harness.Target("toy", lambda value: validate.require_int("value", value), None, as_tensors=False)
    assert harness.run_case(target, {"value": 3}) == "accepted"
    assert harness.run_case(target, {"value": "3"}, ["value"]) == "refused"
    with pytest.raises(harness.Fault, match="a valid call was refused"):
        harness.run_case(target, {"value": "3"})
