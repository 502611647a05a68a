"""The eval forward as one compiled graph, and as an exported program; compiled training steps."""

import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from reformer_ref.model.checks import small_config
from reformer_ref.model.encoder_decoder import ReformerEncoderDecoder
from reformer_ref.model.pytorch import ReformerLM
from reformer_ref.testing import expect_close, relative_error

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


BREAKS = 8  # in the graph of a reversible model: its two passes over the stack are not traced


def by_loss(model, tokens, mask):
    return model.loss(tokens, padding_mask=mask)


def by_logits(model, tokens, mask):
    logits = model(tokens, padding_mask=mask)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def trained(compute, config, dtype, masked, lengths=(23, 23, 17)):
    """The losses of some steps of Adam, and the weights after them."""
    model = ReformerLM(config).to(dtype).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    with torch.random.fork_rng():
        torch.manual_seed(5)  # of dropout
        for step, length in enumerate(lengths):
            mask = torch.ones(2, length, dtype=torch.bool) if masked else None
            if masked:
                mask[0, -4:] = False
            optimizer.zero_grad()
            loss = compute(model, tokens_of(length, step), mask)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    return torch.stack(losses), torch.cat([p.detach().flatten() for p in model.parameters()])


def compare_training(compute, config, dtype, masked=False, **options):
    """Compiled as eager, over three steps of two lengths that divide nothing."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    want = trained(compute, config, dtype, masked)
    got = trained(torch.compile(compute, **options), config, dtype, masked)
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-12}[dtype]  # Adam divides by the size of a gradient
    for name, a, b in zip(("losses", "weights"), got, want, strict=True):
        assert relative_error(a, b) < tolerance, name
    return sum(torch._dynamo.utils.counters["graph_break"].values())


@pytest.mark.parametrize(
    ("compute", "fields", "masked"),
    [
        (by_logits, {"dropout": 0.1}, False),
        (by_loss, {"dropout": 0.1, "ff_chunk": 5, "loss_chunk": 7}, True),
        (by_loss, {"pattern": ("dense", "regular"), "dense_block": 5}, True),
    ],
    ids=["logits, dropout", "chunks, dropout, mask", "full attention, mask"],
)
def test_a_training_step_without_reversible_layers_is_one_graph(compute, fields, masked):
    config = small_config("paper", {"n_hashes": 2}, **{"n_layers": 2, "pattern": ("local", "lsh"), **fields})
    config = replace(config, reversible=False)
    assert compare_training(compute, config, torch.float64, masked, fullgraph=True, backend="aot_eager") == 0


def test_a_training_step_of_a_reversible_model():
    """The stack runs as it is; what is around it is compiled."""
    breaks = compare_training(by_loss, causal(dropout=0.1), torch.float64, backend="aot_eager")
    assert 0 < breaks <= BREAKS * 2  # for each of two lengths


@pytest.mark.nightly
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("reversible", [False, True])
def test_a_training_step_by_inductor(dtype, reversible, monkeypatch):
    monkeypatch.setattr(torch._inductor.config, "fallback_random", True)  # the masks of dropout as without it
    config = replace(causal(dropout=0.1, ff_chunk=5), reversible=reversible)
    compare_training(by_loss, config, dtype, fullgraph=not reversible, backend="inductor")
