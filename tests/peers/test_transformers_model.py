"""Whole models of transformers with their weights carried over: logits and gradients in float64,
and bad weights.
"""

import re

import pytest
import torch
from reformer_ref.huggingface.weights import config_from_huggingface, weight_names
from reformer_ref.model.config import ReformerConfig
from reformer_ref.model.pytorch import ReformerLM
from reformer_ref.testing import expect_close, expect_equal, relative_error
from torch.nn.functional import cross_entropy

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peers

TOLERANCE = 1e-10
PATTERNS = (["local", "lsh"], ["lsh", "lsh"], ["local", "local"], ["lsh", "local", "local", "lsh"])
VARIANTS = {
    "factorised buckets": {"num_buckets": [4, 4]},
    "learned positions": {"axial_pos_embds": False, "num_buckets": 8},
    "gelu, 4 rounds": {"hidden_act": "gelu", "num_hashes": 4, "num_buckets": [2, 4, 2]},
    "unequal chunks": {"lsh_attn_chunk_length": 6, "lsh_num_chunks_before": 2},
    "not causal": {"is_decoder": False, "lsh_num_chunks_after": 1, "local_num_chunks_after": 1},
}


def hf_model(dtype=torch.float64, training=False, **changes):
    """A small model with random weights and biases, sequences of up to 64 tokens, no dropout."""
    values = {
        "attn_layers": ["local", "lsh"],
        "vocab_size": 13,
        "hidden_size": 8,
        "num_attention_heads": 3,
        "attention_head_size": 4,
        "feed_forward_size": 10,
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [3, 5],
        "max_position_embeddings": 64,
        "num_hashes": 2,
        "num_buckets": [4, 4],
        "hash_seed": 5,
        "lsh_attn_chunk_length": 4,
        "local_attn_chunk_length": 4,
        "is_decoder": True,
        "hidden_dropout_prob": 0.0,
        "lsh_attention_probs_dropout_prob": 0.0,
        "local_attention_probs_dropout_prob": 0.0,
    }
    config = transformers.ReformerConfig(**(values | changes))
    with torch.random.fork_rng():
        kind = transformers.ReformerModelWithLMHead if config.is_decoder else transformers.ReformerForMaskedLM
        model = kind(config).to(dtype).train(training)
    generator = torch.Generator().manual_seed(7)
    for p in model.parameters():
        p.data = (0.5 * torch.randn(p.shape, generator=generator)).to(dtype)
    return model


def random_tokens(length, n=2, seed=1):
    return torch.randint(13, (n, length), generator=torch.Generator().manual_seed(seed))


def logits_of(model, tokens, mask=None):
    """Their logits; they write to the global random state, which a test leaves as it was."""
    with torch.random.fork_rng():
        return model(tokens, attention_mask=None if mask is None else mask.long(), use_cache=False).logits


@pytest.mark.parametrize("pattern", PATTERNS, ids=",".join)
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_logits(pattern, variant):
    """Lengths that the chunk lengths divide, and others, which both pad inside; up to a chunk, and
    padded batches.
    """
    theirs = hf_model(attn_layers=pattern, **VARIANTS[variant])
    ours = ReformerLM.from_huggingface(theirs)
    assert (ours.backbone.embedding.weight.dtype, ours.training) == (torch.float64, False)
    worst = 0.0
    for length in (1, 3, 4, 5, 6, 7, 12, 23, 37, 48, 60):
        tokens = random_tokens(length)
        worst = max(worst, expect_close(f"length {length}", ours(tokens), logits_of(theirs, tokens), TOLERANCE))
        real = torch.arange(length) < torch.tensor([[length], [max(1, length - 5)]])
        got, want = ours(tokens, real)[real], logits_of(theirs, tokens, real)[real]
        worst = max(worst, expect_close(f"length {length}, padded", got, want, TOLERANCE))
    print(f"transformers model {pattern}, {variant}: worst relative error {worst:.1e}")


@pytest.mark.parametrize("pattern", PATTERNS, ids=",".join)
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_of_the_loss(pattern, variant):
    """Training mode, reversible on both sides. Their rule of length: the product of the axial
    shape, in full chunks.
    """
    changes = VARIANTS[variant] | ({"axial_pos_shape": [6, 8]} if variant == "unequal chunks" else {})
    theirs = hf_model(attn_layers=pattern, training=True, **changes)
    ours = ReformerLM.from_huggingface(theirs)
    assert ours.training
    assert ours.config.reversible
    tokens = random_tokens(48 if variant == "unequal chunks" else 64)
    real = torch.ones_like(tokens, dtype=torch.bool)
    real[1, -9:] = False
    targets = random_tokens(tokens.shape[1], seed=2).masked_fill(~real, -100)
    with torch.random.fork_rng():
        loss = cross_entropy(
            theirs(tokens, attention_mask=real.long(), use_cache=False).logits.transpose(1, 2), targets
        )
        loss.backward()
    our_loss = ours.loss(tokens, targets, padding_mask=real)
    our_loss.backward()
    worst = expect_close("loss", our_loss.detach(), loss.detach(), TOLERANCE)
    gradients, parameters = dict(theirs.named_parameters()), dict(ours.named_parameters())
    for name, our_name in weight_names(ours.config).items():
        want, got = gradients[name].grad, parameters[our_name].grad
        want = want.T if our_name.endswith((".w1", ".w2")) else want.reshape(got.shape)
        worst = max(worst, expect_close(our_name, got, want, TOLERANCE))
    print(f"transformers training {pattern}, {variant}: worst relative error {worst:.1e}")


def test_one_seed_for_all_layers_and_the_global_state_untouched():
    theirs = hf_model(attn_layers=["lsh", "local", "lsh"])
    before = torch.random.get_rng_state()
    ours = ReformerLM.from_huggingface(theirs)
    assert torch.equal(torch.random.get_rng_state(), before)
    first, last = (ours.backbone.stack.blocks[i].layers[0].rotations for i in (0, 2))
    drawn = torch.randn(3, 4, 2, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    expect_equal("rotations of the first layer", first, drawn.transpose(1, 2))
    expect_equal("rotations of the last layer", last, first)


def test_without_a_seed_rotations_are_those_of_the_configuration():
    """They draw new ones in each call; with them the logits change, here they stay."""
    theirs = hf_model(hash_seed=None, attn_layers=["lsh", "lsh"])
    ours, again = ReformerLM.from_huggingface(theirs), ReformerLM.from_huggingface(theirs)
    tokens = random_tokens(60)
    with torch.no_grad():
        expect_equal("logits", ours(tokens), again(tokens))
        assert relative_error(logits_of(theirs, tokens), ours(tokens)) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_is_kept(dtype):
    """One round: with more, their −1e5 in float32 spoils each row that sees only itself by up to 1
    %.
    """
    theirs = hf_model(dtype, num_hashes=1)
    ours = ReformerLM.from_huggingface(theirs)
    assert {t.dtype for t in ours.state_dict().values()} == {dtype}
    if dtype == torch.float32:
        tokens = random_tokens(60)
        with torch.no_grad():
            expect_close("logits", ours(tokens), logits_of(theirs, tokens), 1e-4)


def test_state_dict_needs_a_configuration_and_gives_the_same_weights():
    theirs = hf_model(hash_seed=None)
    with pytest.raises(TypeError, match="config must be a ReformerConfig, got NoneType"):
        ReformerLM.from_huggingface(theirs.state_dict())
    ours = ReformerLM.from_huggingface(theirs.state_dict(), config_from_huggingface(theirs.config))
    assert not ours.training
    for name, want in ReformerLM.from_huggingface(theirs).state_dict().items():
        expect_equal(name, ours.state_dict()[name], want)


def test_weights_are_copies():
    theirs = hf_model()
    ours = ReformerLM.from_huggingface(theirs)
    before = ours.head.weight.clone()
    theirs.lm_head.decoder.weight.data.zero_()
    expect_equal("head.weight", ours.head.weight.detach(), before.detach())


def test_subclass_gives_its_own_kind():
    class Mine(ReformerLM):
        pass

    assert type(Mine.from_huggingface(hf_model())) is Mine


@torch.no_grad()
def test_bias_of_the_head_is_a_choice():
    """transformers 5 keeps ``lm_head.bias`` and does not add it; transformers 4 did, as
    ``lm_head.decoder.bias``.
    """
    theirs, tokens = hf_model(), random_tokens(16)
    bias = theirs.lm_head.bias.data
    assert bias.abs().max() > 0.1
    without = ReformerLM.from_huggingface(theirs)
    expect_close("logits", without(tokens), logits_of(theirs, tokens), TOLERANCE)
    expect_equal("head.bias", without.head.bias, torch.zeros(13))
    expect_equal("added", ReformerLM.from_huggingface(theirs, add_head_bias=True).head.bias, bias)
    linked = theirs.state_dict() | {"lm_head.decoder.bias": bias + 1}
    expect_equal("linked", ReformerLM.from_huggingface(linked, without.config).head.bias, bias + 1)
    gone = theirs.state_dict()
    del gone["lm_head.bias"]  # as after resize_token_embeddings
    expect_equal("gone", ReformerLM.from_huggingface(gone, without.config).head.bias, torch.zeros(13))


# What does not fit


def test_everything_wrong_with_the_weights_is_told_at_once():
    theirs = hf_model()
    weights, config = theirs.state_dict(), config_from_huggingface(theirs.config)
    layer = "reformer.encoder.layers.1"
    del weights[f"{layer}.attention.self_attention.query_key.weight"]
    weights[f"{layer}.attention.self_attention.query.weight"] = torch.zeros(12, 8)
    weights["lm_head.decoder.weight"] = torch.zeros(13, 8, dtype=torch.float64)
    weights["lm_head.bias"] = torch.zeros(14, dtype=torch.float64)
    weights["reformer.encoder.layer_norm.bias"] = torch.zeros(16)
    weights[f"{layer}.feed_forward.dense.dense.weight"] = weights[f"{layer}.feed_forward.dense.dense.weight"].T
    weights["reformer.embeddings.word_embeddings.weight"] = [1, 2]
    weights["reformer.embeddings.position_embeddings.weights.0"] = torch.zeros(8, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="do not fit") as caught:
        ReformerLM.from_huggingface(weights, config)
    report = str(caught.value).splitlines()[1:]
    assert [line.strip() for line in report] == [
        f"missing: {layer}.attention.self_attention.query_key.weight (12, 8)",
        f"unknown: {layer}.attention.self_attention.query.weight",
        "not a tensor: reformer.embeddings.word_embeddings.weight (list)",
        "shape of reformer.embeddings.position_embeddings.weights.0: must be (8, 1, 3), got (8, 3)",
        f"shape of {layer}.feed_forward.dense.dense.weight: must be (10, 8), got (8, 10)",
        "dtype of reformer.encoder.layer_norm.bias: must be torch.float64 as of the others, got torch.float32",
        "shape of lm_head.bias: must be (13,), got (14,)",
        "shape of lm_head.decoder.weight: must be (13, 16), got (13, 8)",
    ]


def test_constants_of_early_versions_are_no_weights():
    theirs = hf_model()
    name = "reformer.encoder.layers.1.attention.self_attention.self_mask_value_float16"
    weights = theirs.state_dict() | {name: torch.tensor(-1e3)}
    config = config_from_huggingface(theirs.config)
    ours, plain = (ReformerLM.from_huggingface(w, config).state_dict() for w in (weights, theirs.state_dict()))
    assert ours.keys() == plain.keys()
    assert all(torch.equal(ours[key], plain[key]) for key in plain)


@pytest.mark.parametrize("source", [None, 3, b"google/reformer-enwik8", torch.nn.Linear(2, 2)])
def test_what_is_no_model_is_told(source):
    with pytest.raises(TypeError, match="model_or_state_dict must be a"):
        ReformerLM.from_huggingface(source, ReformerConfig())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pattern": ("dense",)}, 'pattern must hold "lsh" and "local" only'),
        ({"positions": "none"}, 'positions must be "axial" or "learned", got .none.'),
        ({"tie_head": True}, "tie_head must be False"),
    ],
)
def test_a_configuration_without_counterpart_is_told(changes, words):
    with pytest.raises(ValueError, match=words):
        ReformerLM.from_huggingface({}, ReformerConfig(**changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_act": "gelu_new"}, 'hidden_act must be "relu" or "gelu", got .gelu_new.'),
        ({"attn_layers": ["lsh", "full"]}, "attn_layers must hold"),
        ({"attn_layers": []}, "at least one layer"),
    ],
)
def test_a_foreign_configuration_without_counterpart_is_told(changes, words):
    with pytest.raises(ValueError, match=words):
        config_from_huggingface(transformers.ReformerConfig(**changes))


def test_a_seed_without_a_number_of_buckets_is_told():
    """They choose the number of buckets, and with it the rotations, from the first batch; and then
    never again.
    """
    theirs = hf_model(num_buckets=None)
    with pytest.raises(ValueError, match="must be given, because the rotations depend on it"):
        ReformerLM.from_huggingface(theirs)
    logits_of(theirs, random_tokens(12))
    chosen = theirs.config.num_buckets
    logits_of(theirs, random_tokens(60))
    assert theirs.config.num_buckets == chosen == 4
    with torch.no_grad():  # now there is a number
        tokens = random_tokens(60)
        got, want = ReformerLM.from_huggingface(theirs)(tokens), logits_of(theirs, tokens)
        expect_close("logits", got, want, TOLERANCE)
    assert ReformerLM.from_huggingface(hf_model(num_buckets=None, hash_seed=None)).config.lsh.n_buckets is None


# Where they differ, on purpose


@torch.no_grad()
def test_padding_on_the_left_changes_their_outputs_and_not_ours():
    """Positions count real tokens here; there padding moves every token to another position."""
    theirs = hf_model(attn_layers=["local"])  # causal and local: padding must not matter at all
    ours, tokens = ReformerLM.from_huggingface(theirs), random_tokens(24)
    padded = torch.cat([torch.zeros(2, 8, dtype=torch.int64), tokens], dim=1)
    real = torch.arange(32).expand(2, -1) >= 8
    expect_close("left padding", ours(padded, real)[:, 8:], ours(tokens), 1e-13)
    assert relative_error(logits_of(theirs, padded, real)[:, 8:], logits_of(theirs, tokens)) > 0.1


def test_names_cover_both_models():
    """Every weight of both sides has its partner, but for the bias of the head, and the rotations,
    which are drawn.
    """
    for changes in ({}, {"axial_pos_embds": False}):
        theirs = hf_model(**changes)
        names = weight_names(config_from_huggingface(theirs.config))
        ours = ReformerLM.from_huggingface(theirs).state_dict()
        assert set(names) == set(theirs.state_dict()) - {"lm_head.bias"}
        assert set(names.values()) == {n for n in ours if not re.search(r"rotations$|^head\.bias$", n)}
