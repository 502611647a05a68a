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

# (fields of the configuration, preset of LSH attention and its overrides, length, padding)
CASES = (
    ({"pattern": ("local", "lsh"), "n_layers": 3}, ("paper", {"n_hashes": 2}), 23, "none"),
    (
        {"pattern": ("lsh",), "positions": "learned", "tie_head": True},
        ("paper", {"n_buckets": (2, 4)}),
        17,
        "left",
    ),
    ({"pattern": ("lsh", "local"), "positions": "none"}, ("strict", {"n_hashes": 3}), 19, "right"),
    (
        {"pattern": ("dense", "regular"), "positions": "sinusoidal", "activation": "gelu"},
        ("paper", {}),
        13,
        "both",
    ),
    (
        {"pattern": ("lsh",), "causal": False, "d_v": 3},
        ("huggingface", {"n_hashes": 2, "chunks_after": 1}),
        11,
        "left",
    ),
    ({"pattern": ("local", "lsh"), "length_multiple": 8}, ("trax", {"n_hashes": 2}), 18, "none"),
    (
        {"pattern": ("lsh", "dense"), "axial_shape": (2, 5, 3), "n_heads": 1},
        ("lucidrains", {}),
        1,
        "none",
    ),
)


@in_a_sentence
def check_reformer_lm(fn, seed=0, tolerance=1e-12):
    """fn(params, config, tokens, padding_mask) -> logits, against the spec.

    Kinds of attention, presets, positions, heads, and padding on any side: seven small models.
    """
    errors = []
    for case, (fields, (preset, options), length, side) in enumerate(CASES):
        config = small_config(preset, options, **fields)
        rng = np.random.default_rng([seed, case])
        params, tokens, mask = (
            random_params(rng, config),
            rng.integers(0, config.vocab_size, (2, length)),
            None,
        )
        if side != "none":
            mask = _mask(length, side)
        errors.append(
            expect_close(
                f"logits of {config.layers} layers, preset {preset!r}, positions {config.positions!r}, padding {side}",
                fn(params, config, tokens, mask),
                spec.reformer_lm(params, config, tokens, mask),
                tolerance,
                "Attention changes the first stream, feed-forward the second; positions count real tokens only; "
                "the last norm spans both streams.",
            )
        )
    print(f"check_reformer_lm: {len(errors)} cases, worst relative error {max(errors):.1e}")


@in_a_sentence
def check_next_tokens(fn, seed=0):
    """fn(tokens, padding_mask) -> targets: the next real token wherever one follows, −100
    elsewhere.
    """
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
            hint = "Padding is neither asked nor an answer: the target of a token is the next real one."
            expect_equal(f"targets of {length} tokens", fn(tokens, mask), want, hint)
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
    """Weights of a language model by name, as ``model.spec`` reads them: normal, none of them zero,
    norms near 1.
    """
    d, h = config.d_model, config.n_heads
    shapes = {"backbone.embedding.weight": (config.vocab_size, d)}
    if config.positions == "axial":
        tables = zip(config.axial_shape, config.axial_dims, strict=True)
        shapes |= {f"backbone.positions.tables.{i}": shape for i, shape in enumerate(tables)}
    if config.positions == "learned":
        shapes["backbone.positions.table"] = (config.max_length, d)
    for i, kind in enumerate(config.layers):
        first, second = (f"backbone.stack.blocks.{i}.layers.{k}." for k in (0, 1))
        shapes |= {f"{first}{name}.weight": (h * config.d_head, d) for name in ("q", "k")}
        if kind in ("lsh", "dense"):  # the key is the query
            del shapes[f"{first}k.weight"]
        if kind == "lsh":
            shapes[f"{first}rotations"] = (
                h,
                config.lsh.n_hashes,
                config.d_head,
                rotation_width(config),
            )
        shapes |= {
            f"{first}v.weight": (h * config.d_v, d),
            f"{first}out.weight": (d, h * config.d_v),
        }
        shapes |= {f"{second}inner.w1": (d, config.d_ff), f"{second}inner.b1": (config.d_ff,)}
        shapes |= {f"{second}inner.w2": (config.d_ff, d), f"{second}inner.b2": (d,)}
        shapes |= {
            f"{half}norm.{name}": (d,) for half in (first, second) for name in ("weight", "bias")
        }
    shapes |= {f"backbone.norm.{name}": (2 * d,) for name in ("weight", "bias")}
    if not config.tie_head:
        shapes |= {"head.weight": (config.vocab_size, 2 * d), "head.bias": (config.vocab_size,)}
    plain = (
        "embedding",
        "positions",
        "rotations",
    )  # not the matrix of a linear map, whose size is scaled
    params = {}
    for name, shape in shapes.items():
        scale = 1.0 if any(p in name for p in plain) else 0.3 if len(shape) == 1 else d**-0.5
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
