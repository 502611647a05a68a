"""The eval forward as one compiled graph, and as an exported program."""

import pytest
import torch
from reformer_ref.model.checks import small_config
from reformer_ref.model.encoder_decoder import ReformerEncoderDecoder
from reformer_ref.model.pytorch import ReformerLM
from reformer_ref.testing import expect_close

pytestmark = pytest.mark.slow


def tokens_of(length, seed=0):
    return torch.randint(0, 11, (2, length), generator=torch.Generator().manual_seed(seed))


def causal(**fields):
    return small_config("paper", {"n_hashes": 2}, n_layers=2, pattern=("local", "lsh"), **fields)


@pytest.mark.parametrize("grad", [False, True])
def test_compiles_to_one_graph(grad):
    torch.compiler.reset()
    model, tokens = ReformerLM(causal(dropout=0.1, ff_chunk=5)).eval(), tokens_of(23)
    with torch.set_grad_enabled(grad):
        got = torch.compile(model, fullgraph=True, backend="inductor" if not grad else "aot_eager")(tokens)
        expect_close("compiled logits", got.detach(), model(tokens).detach(), 1e-5)


def test_exports():
    model, tokens, mask = (ReformerLM(causal()).eval(), tokens_of(23), torch.ones(2, 23, dtype=torch.bool))
    mask[0, :4] = False
    for inputs in ((tokens,), (tokens, mask)):
        exported = torch.export.export(model, inputs).module()
        expect_close("exported logits", exported(*inputs).detach(), model(*inputs).detach(), 1e-5)
    expect_close(
        "other tokens", exported(tokens_of(23, 1), mask).detach(), model(tokens_of(23, 1), mask).detach(), 1e-5
    )


def test_encoder_decoder_exports():
    encoder = small_config("paper", {"n_hashes": 2}, causal=False, n_layers=2, pattern=("lsh", "local"))
    model, inputs = ReformerEncoderDecoder(encoder, causal()).eval(), (tokens_of(13), tokens_of(9))
    exported = torch.export.export(model, inputs).module()
    expect_close("exported logits", exported(*inputs).detach(), model(*inputs).detach(), 1e-5)
