"""What any whole Reformer must satisfy. Each check takes a function on NumPy arrays and random
weights by name.
"""

import numpy as np

from reformer_ref._arguments import clear_errors
from reformer_ref.local_attention.options import LocalOptions
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.model import spec
from reformer_ref.model.config import ReformerConfig, rotation_width
from reformer_ref.testing import expect_close, expect_equal, in_a_sentence

LEARNED = {"pattern": ("lsh",), "positions": "learned", "tie_head": True}
DENSE = {"pattern": ("dense", "regular"), "positions": "sinusoidal", "activation": "gelu"}
AXES = {"pattern": ("lsh", "dense"), "axial_shape": (2, 5, 3), "n_heads": 1}
# (fields of the configuration, preset of LSH attention and its overrides, length, padding)
CASES = (
    ({"pattern": ("local", "lsh"), "n_layers": 3}, ("paper", {"n_hashes": 2}), 23, "none"),
    (LEARNED, ("paper", {"n_buckets": (2, 4)}), 17, "left"),
    ({"pattern": ("lsh", "local"), "positions": "none"}, ("strict", {"n_hashes": 3}), 19, "right"),
    (DENSE, ("paper", {}), 13, "both"),
    (
        {"pattern": ("lsh",), "causal": False, "d_v": 3},
        ("huggingface", {"n_hashes": 2, "chunks_after": 1}),
        11,
        "left",
    ),
    ({"pattern": ("local", "lsh"), "length_multiple": 8}, ("trax", {"n_hashes": 2}), 18, "none"),
    (AXES, ("lucidrains", {}), 1, "none"),
)
LOGITS = (
    "Attention changes the first stream, feed-forward the second; positions count real tokens "
    "only; the last norm spans both streams."
)
TARGETS = "Padding is neither asked nor an answer: the target of a token is the next real one."


@in_a_sentence
def check_reformer_lm(fn, seed=0, tolerance=1e-12):
    """fn(params, config, tokens, padding_mask) -> logits, against the spec.

    Kinds of attention, presets, positions, heads, and padding on any side: seven small models.
    """
    errors = []
    for case, (fields, (preset, options), length, side) in enumerate(CASES):
        config = small_config(preset, options, **fields)
        rng = np.random.default_rng([seed, case])
        params = random_params(rng, config)
        tokens = rng.integers(0, config.vocab_size, (2, length))
        mask = None if side == "none" else _mask(length, side)
        got = fn(params, config, tokens, mask)
        want = spec.reformer_lm(params, config, tokens, mask)
        name = f"logits of {config.layers} layers, {preset}, {config.positions}, padding {side}"
        errors.append(expect_close(name, got, want, tolerance, LOGITS))
    print(f"check_reformer_lm: {len(errors)} cases, worst relative error {max(errors):.1e}")


@in_a_sentence
def check_next_tokens(fn, seed=0):
    """fn(tokens, padding_mask) -> targets: the next real token where one follows, else −100."""
    rng = np.random.default_rng(seed)
    n = 0
    for length in (1, 2, 7):
        tokens = rng.integers(0, 9, (3, length))
        for mask in (None, *(_mask(length, side, 3) for side in ("left", "right", "both"))):
            want = np.full(tokens.shape, -100)
            for b, i in np.ndindex(*tokens.shape):
                later = [j for j in range(i + 1, length) if mask is None or mask[b, j]]
                if later and (mask is None or mask[b, i]):
                    want[b, i] = tokens[b, later[0]]
            expect_equal(f"targets of {length} tokens", fn(tokens, mask), want, TARGETS)
            n += 1
    print(f"check_next_tokens: {n} cases, equal")


@clear_errors
def small_config(preset="paper", options=None, **fields):
    """A small ReformerConfig whose chunks are 4 long, so that 20 tokens already fill several."""
    causal = fields.get("causal", True)
    small = {"vocab_size": 11, "d_model": 12, "n_layers": 2, "n_heads": 2, "max_length": 29}
    return ReformerConfig(
        **{**small, **fields},
        lsh=LSHOptions.preset(preset, chunk_length=4, causal=causal, **(options or {})),
        local=LocalOptions(chunk_length=4, causal=causal, chunks_after=0 if causal else 1),
    )


@clear_errors
def random_params(rng, config):
    """Weights of a language model by name: normal, none of them zero, norms near 1."""
    d, heads = config.d_model, config.n_heads
    norm = {"norm.weight": (d,), "norm.bias": (d,)}
    shapes = {"embedding.weight": (config.vocab_size, d)}
    if config.positions == "axial":
        for i, shape in enumerate(zip(config.axial_shape, config.axial_dims, strict=True)):
            shapes[f"positions.tables.{i}"] = shape
    if config.positions == "learned":
        shapes["positions.table"] = (config.max_length, d)
    for i, kind in enumerate(config.layers):
        attention = {**norm, "q.weight": (heads * config.d_head, d)}
        if kind in ("local", "regular"):  # else the key is the query
            attention["k.weight"] = (heads * config.d_head, d)
        attention["v.weight"] = (heads * config.d_v, d)
        attention["out.weight"] = (d, heads * config.d_v)
        if kind == "lsh":
            width = rotation_width(config)
            attention["rotations"] = (heads, config.lsh.n_hashes, config.d_head, width)
        inner = {"inner.w1": (d, config.d_ff), "inner.b1": (config.d_ff,)}
        inner |= {"inner.w2": (config.d_ff, d), "inner.b2": (d,)}
        for k, layer in enumerate((attention, {**norm, **inner})):
            shapes |= {f"stack.blocks.{i}.layers.{k}.{name}": s for name, s in layer.items()}
    shapes |= {"norm.weight": (2 * d,), "norm.bias": (2 * d,)}
    shapes = {f"backbone.{name}": shape for name, shape in shapes.items()}
    if not config.tie_head:
        shapes |= {"head.weight": (config.vocab_size, 2 * d), "head.bias": (config.vocab_size,)}
    params = {}
    for name, shape in shapes.items():
        scale = 0.3 if len(shape) == 1 else d**-0.5  # of a linear map
        if any(table in name for table in ("embedding", "positions", "rotations")):
            scale = 1.0
        params[name] = float("norm.weight" in name) + scale * rng.standard_normal(shape)
    return params


def _mask(length, side, batch=2):
    """Row b has b + 1 padded positions (as far as length goes) on each side named: bool (batch,
    length).
    """
    at, padded = np.arange(length), np.arange(1, batch + 1)[:, None]
    real = np.ones((batch, length), dtype=bool)
    if side in ("left", "both"):
        real &= at >= padded
    if side in ("right", "both"):
        real &= at < length - padded
    return real
