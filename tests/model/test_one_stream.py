"""Ordinary residuals, ``streams=1``: x + F(x), the same weights as a reversible model, spec and
decoder alike.
"""

import numpy as np
import pytest
import torch
from reformer_ref.generation import Decoder
from reformer_ref.model import spec
from reformer_ref.model.checks import random_params, small_config
from reformer_ref.model.pytorch import ReformerLM
from reformer_ref.testing import as_numpy, expect_close, relative_error


def config_of(**changes):
    return small_config("strict", {"n_hashes": 2}, pattern=("regular", "lsh"), n_layers=2, **changes)


def test_is_what_the_spec_says():
    config = config_of(streams=1, reversible=False)
    rng = np.random.default_rng(0)
    params, tokens = random_params(rng, config), rng.integers(0, config.vocab_size, (2, 13))
    model = ReformerLM(config).double().eval()
    model.load_state_dict({name: torch.from_numpy(array) for name, array in params.items()})
    expect_close("logits", as_numpy(model)(tokens, None), spec.reformer_lm(params, config, tokens), 1e-12)
    expect_close("loss", as_numpy(model.loss)(tokens), spec.reformer_lm_loss(params, config, tokens), 1e-12)


@torch.no_grad()
def test_is_an_ordinary_transformer_with_the_same_weights():
    model = ReformerLM(config_of(streams=1, reversible=False)).double().eval()
    two = ReformerLM(config_of()).double()
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in two.state_dict().items()}
    tokens = torch.arange(11)[None] % 7
    x = model.backbone.embed(tokens)
    for block in model.backbone.stack.blocks:
        attention, feed_forward = block.layers
        x = x + attention(x)
        x = x + feed_forward(x)
    normal = torch.nn.functional.layer_norm(torch.cat([x, x], -1), [2 * x.shape[-1]], eps=model.config.norm_eps)
    assert relative_error(model(tokens), model.head(normal)) <= 1e-12
    two.load_state_dict(model.state_dict())
    assert relative_error(two.eval()(tokens), model(tokens)) > 1e-2


@torch.no_grad()
def test_is_decoded_token_by_token():
    model = ReformerLM(config_of(streams=1, reversible=False)).double().eval()
    tokens = torch.randint(model.config.vocab_size, (2, 20), generator=torch.Generator().manual_seed(0))
    decoder = Decoder(model)
    out = [decoder.prefill(tokens[:, :5])] + [decoder.step(t) for t in tokens[:, 5:].unbind(1)]
    assert relative_error(torch.stack(out, 1), model(tokens)[:, 4:]) <= 1e-12


def test_cannot_be_reversible():
    with pytest.raises(ValueError, match="streams=1 needs reversible=False"):
        config_of(streams=1)
    with pytest.raises(ValueError, match="streams"):
        config_of(streams=3)
