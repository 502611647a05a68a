"""The NumPy model and the PyTorch model are one function: logits and loss, float64."""

import numpy as np
import pytest
import torch
from reformer_ref.hashing.api import random_rotations
from reformer_ref.model import checks, spec
from reformer_ref.model.checks import random_params, small_config
from reformer_ref.model.config import n_buckets_for
from reformer_ref.model.pytorch import ReformerLM, count_positions, next_tokens
from reformer_ref.testing import as_numpy, expect_close

TOLERANCE = 1e-12
LENGTHS = (1, 2, 3, 4, 5, 13, 29)  # chunks are 4 long: 1, 2, chunk ± 1, primes, max_length
PRESETS = {  # preset and options of LSH attention, causal
    "paper": ("paper", {"n_hashes": 3}, True),
    "paper, both directions": ("paper", {"n_hashes": 2, "chunks_after": 1}, False),
    "factorised": ("paper", {"n_hashes": 2, "n_buckets": (2, 4)}, True),
    "trax": ("trax", {"n_hashes": 2}, True),
    "huggingface": ("huggingface", {"n_hashes": 2}, False),
    "lucidrains": ("lucidrains", {"n_hashes": 2, "chunks_after": 1}, False),
    "strict": ("strict", {"n_hashes": 2}, True),
}


def model_with(params, config):
    model = ReformerLM(config).double().eval()
    model.load_state_dict({name: torch.from_numpy(array) for name, array in params.items()})
    return model


def pytorch_lm(params, config, tokens, padding_mask=None):
    return as_numpy(model_with(params, config))(tokens, padding_mask)


def pytorch_loss(params, config, tokens, targets=None, padding_mask=None):
    return as_numpy(model_with(params, config).loss)(tokens, targets, padding_mask)


def any_mask(rng, shape):
    """Random, so padding in the middle too; at least two real tokens where there are two."""
    mask = rng.random(shape) < 0.6
    mask[:, [0, shape[1] // 2]] = True
    return mask


def test_checks_pass():
    checks.check_reformer_lm(pytorch_lm)
    checks.check_reformer_lm(spec.reformer_lm)
    checks.check_next_tokens(as_numpy(next_tokens))
    checks.check_next_tokens(spec.next_tokens)


@pytest.mark.parametrize("side", ["no padding", "padding"])
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_at_many_lengths(preset, side):
    name, options, causal = PRESETS[preset]
    config = small_config(name, options, causal=causal, pattern=("local", "lsh"), n_layers=3, ff_chunk=3, loss_chunk=5)
    for length in LENGTHS:
        rng = np.random.default_rng(length)
        params, tokens = random_params(rng, config), rng.integers(0, config.vocab_size, (2, length))
        mask = any_mask(rng, tokens.shape) if side == "padding" else None
        got, want = (lm(params, config, tokens, mask) for lm in (pytorch_lm, spec.reformer_lm))
        expect_close(f"logits, {preset}, {length} tokens", got, want, TOLERANCE)


@pytest.mark.parametrize("tie_head", [False, True])
@pytest.mark.parametrize("positions", ["axial", "learned", "sinusoidal", "none"])
@pytest.mark.parametrize("pattern", [("local",), ("dense", "lsh"), ("regular", "local", "dense")], ids="-".join)
def test_patterns_positions_and_heads(pattern, positions, tie_head):
    shape = (3, 2, 5) if positions == "axial" else None
    widths = {"d_head": 5, "d_v": 3, "d_ff": 7, "n_layers": 3}
    others = {"dense_block": 4, "activation": "gelu", "norm_eps": 1e-3, "tie_head": tie_head, "axial_shape": shape}
    options = {"n_hashes": 2, "scale": "rsqrt_d"}
    config = small_config("paper", options, pattern=pattern, positions=positions, **widths, **others)
    rng = np.random.default_rng(len(positions))
    params, tokens = random_params(rng, config), rng.integers(0, config.vocab_size, (2, 17))
    for mask in (None, any_mask(rng, tokens.shape)):
        for targets in (None, np.where(rng.random(tokens.shape) < 0.5, tokens, -100)):
            got, want = (loss(params, config, tokens, targets, mask) for loss in (pytorch_loss, spec.reformer_lm_loss))
            expect_close(f"loss of {pattern}", got, want, TOLERANCE)
        got, want = (lm(params, config, tokens, mask) for lm in (pytorch_lm, spec.reformer_lm))
        expect_close(f"logits of {pattern}", got, want, TOLERANCE)


@pytest.mark.parametrize("multiple", [4, 12, 64])
def test_padding_inside_the_model(multiple):
    """To a multiple larger than max_length too: the stored rotations must still be wide enough."""
    config = small_config("trax", {"n_hashes": 2}, pattern=("lsh", "local"), length_multiple=multiple)
    rng = np.random.default_rng(multiple)
    params = random_params(rng, config)
    for length in (3, 4, 7, 24, 29):
        tokens = rng.integers(0, config.vocab_size, (2, length))
        for mask in (None, any_mask(rng, tokens.shape)):
            got, want = (lm(params, config, tokens, mask) for lm in (pytorch_lm, spec.reformer_lm))
            expect_close(f"logits of {length} tokens padded to {multiple}", got, want, TOLERANCE)
            got, want = (loss(params, config, tokens, None, mask) for loss in (pytorch_loss, spec.reformer_lm_loss))
            expect_close(f"loss of {length} tokens padded to {multiple}", got, want, TOLERANCE)


def test_fresh_rotations_are_rotations_like_any_other():
    """What a generator draws, written into the spec's ``rotations``, gives the same logits."""
    config = small_config("paper", {"n_hashes": 3}, pattern=("lsh",), n_layers=3)
    rng = np.random.default_rng(0)
    params, tokens = random_params(rng, config), rng.integers(0, config.vocab_size, (2, 23))
    model = model_with(params, config)
    got = model(torch.from_numpy(tokens), generator=torch.Generator().manual_seed(5)).detach().numpy()
    seed = int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(5)))
    for layer in range(config.n_layers):
        generator = torch.Generator().manual_seed(seed + layer)
        drawn = random_rotations(generator, 3, config.d_head, n_buckets_for(config, 23), config.n_heads)
        params[f"backbone.stack.blocks.{layer}.layers.0.rotations"] = drawn.numpy()
    expect_close("logits with fresh rotations", got, spec.reformer_lm(params, config, tokens), TOLERANCE)


def test_names_and_shapes_are_those_of_the_state_dict():
    for fields, (preset, options), _, _ in checks.CASES:
        config = small_config(preset, options, **fields)
        want = {name: tuple(w.shape) for name, w in ReformerLM(config).state_dict().items()}
        assert {name: w.shape for name, w in random_params(np.random.default_rng(0), config).items()} == want


def test_positions_count_real_tokens():
    mask = np.array([[0, 0, 1, 1, 0, 1], [1, 1, 1, 1, 1, 0]], dtype=bool)
    want = [[0, 0, 0, 1, 1, 2], [0, 1, 2, 3, 4, 4]]
    for fn in (spec.count_positions, as_numpy(count_positions)):
        assert fn(np.zeros((2, 6), dtype=np.int64), mask).tolist() == want
        assert fn(np.zeros((2, 6), dtype=np.int64)).tolist() == [0, 1, 2, 3, 4, 5]


def test_tokens_behind_the_mask_do_not_matter():
    """The tokens behind the mask may be anything, with wrap too."""
    for preset in ("paper", "trax"):
        config = small_config(preset, {"n_hashes": 2}, n_layers=3)
        rng = np.random.default_rng(2)
        params, tokens, mask = (random_params(rng, config), rng.integers(0, 11, (2, 21)), any_mask(rng, (2, 21)))
        other = np.where(mask, tokens, rng.integers(0, 11, (2, 21)))
        for lm in (spec.reformer_lm, pytorch_lm):
            a, b = (lm(params, config, t, mask)[mask] for t in (tokens, other))
            expect_close("logits of real tokens", a, b, 1e-13)
