"""A training step under torch.compile: loss, gradients and updates are those of eager execution.

The backend "aot_eager" traces forward and backward as every backend does, and leaves out the generated code, so it
needs no C++ compiler. It draws the random numbers of eager execution; "inductor" does with ``fallback_random``.
"""

import logging
import shutil

import pytest
import torch
import torch._dynamo
import torch._inductor.config
from reformer_ref.feed_forward.chunked import feed_forward
from reformer_ref.lsh_attention import api
from reformer_ref.lsh_attention.options import PRESETS
from reformer_ref.model.checks import small_config
from reformer_ref.model.encoder_decoder import ReformerEncoderDecoder
from reformer_ref.model.pytorch import ReformerLM
from reformer_ref.testing import expect_close

pytestmark = pytest.mark.slow
nightly = pytest.mark.nightly
FLOAT32, FLOAT64 = torch.float32, torch.float64
TOLERANCE = {FLOAT32: 2e-5, FLOAT64: 1e-12}
CHUNKS = {"ff_chunk": 5, "loss_chunk": 7, "dense_block": 6}
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler (g++)")
inductor = pytest.param("inductor", marks=[nightly, needs_compiler])


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    logging.getLogger("torch.__trace").propagate = False  # pytest would keep all that the compiler writes down
    with torch._inductor.config.patch(fallback_random=True):
        yield
    torch.compiler.reset()


@pytest.fixture
def streaming(monkeypatch):
    """LSH attention block by block, which calls of this size would not choose."""
    monkeypatch.setattr(api, "PLAIN_UP_TO", 0)


def make(pattern, dtype=FLOAT64, preset="paper", **fields):
    fields = {"dropout": 0.2, "reversible": False, "n_layers": len(pattern), **fields}
    return ReformerLM(small_config(preset, {"n_hashes": 2}, pattern=pattern, **fields)).to(dtype)


def batch(length, seed=0):
    """(tokens, padding mask); neither the chunks nor anything else divides the lengths that are asked for."""
    tokens = torch.randint(0, 11, (2, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones(2, length, dtype=torch.bool)
    mask[0, :4] = False
    return tokens, mask


def step(model, loss_of, *inputs):
    """The loss and the gradients of all parameters."""
    model.zero_grad()
    torch.manual_seed(3)
    loss = loss_of(*inputs)
    loss.backward()
    gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}
    return {"loss": loss.detach(), **gradients}


def expect_same_steps(model, compiled, eager, *all_inputs):
    dtype = next(model.parameters()).dtype
    for inputs in all_inputs:
        got = step(model, compiled, *inputs)
        for name, want in step(model, eager, *inputs).items():
            expect_close(name, got[name], want, TOLERANCE[dtype])


def by_loss(model):
    return lambda tokens, mask=None: model.loss(tokens, padding_mask=mask)


def check(model, backend, lengths=(23, 17), **options):
    eager = by_loss(model)
    compiled = torch.compile(eager, fullgraph=not model.config.reversible, backend=backend, **options)
    expect_same_steps(model, compiled, eager, *map(batch, lengths))


def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("backend", ["aot_eager", inductor])
@pytest.mark.parametrize(
    ("kind", "dtype", "lengths", "fields"),
    [
        ("lsh", FLOAT64, (23, 17), {}),
        ("local", FLOAT32, (23,), CHUNKS),
        ("dense", FLOAT64, (23,), CHUNKS),
        ("regular", FLOAT32, (23, 17), {"dropout": 0.0}),
        pytest.param("local", FLOAT64, (17, 29), {}, marks=nightly),
        pytest.param("dense", FLOAT32, (17, 29), {}, marks=nightly),
    ],
)
def test_every_kind_is_one_graph(kind, dtype, lengths, fields, backend):
    """At a second length it is compiled again."""
    check(make((kind,), dtype, **fields), backend, lengths)
    assert graphs() == len(lengths)


@pytest.mark.parametrize("backend", ["aot_eager", inductor])
def test_streaming_is_one_graph(streaming, backend):
    check(make(("lsh",), FLOAT32, **CHUNKS), backend, (23,))


@nightly
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset(name, dropout, dtype, request):
    if dropout:
        request.getfixturevalue("streaming")
    check(make(("lsh", "local"), dtype, name, dropout=dropout), "aot_eager", (29, 13, 1))


@nightly
@pytest.mark.parametrize("fields", [{"streams": 1}, {"tie_head": True}, {"positions": "learned"}], ids=str)
def test_other_models(fields):
    check(make(("lsh", "local"), **fields), "aot_eager")


@nightly
def test_a_graph_for_every_length(streaming):
    """With ``dynamic=True`` the length is still compiled in: it says how many chunks there are."""
    check(make(("local", "lsh")), "aot_eager", (23, 17, 29), dynamic=True)


def cross_entropy_of_logits(model):
    def loss(tokens, mask):
        logits = model(tokens, mask)[:, :-1].flatten(0, 1)
        return torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten())

    return loss


def test_logits_and_a_loss_outside():
    model = make(("regular",))
    eager = cross_entropy_of_logits(model)
    expect_same_steps(model, torch.compile(eager, fullgraph=True, backend="aot_eager"), eager, batch(23))


@nightly
def test_encoder_decoder():
    encoder = small_config("paper", {"n_hashes": 2, "chunks_after": 1}, causal=False, n_layers=1, reversible=False)
    decoder = make(("lsh",)).config
    model = ReformerEncoderDecoder(encoder, decoder).double()

    def eager(source, mask, target):
        return model.loss(source, target, source_padding_mask=mask)

    compiled = torch.compile(eager, fullgraph=True, backend="aot_eager")
    expect_same_steps(model, compiled, eager, (*batch(13), batch(17)[0]))


@pytest.mark.parametrize("backend", ["aot_eager", inductor])
@pytest.mark.parametrize("n_layers", [2, pytest.param(1, marks=nightly), pytest.param(3, marks=nightly)])
def test_reversible_layers_run_between_the_graphs(n_layers, backend):
    """The stack recomputes itself, with the same random numbers, which it can in eager execution alone. Around it are
    four graphs, two before it and two after it, however many layers there are.
    """
    check(make(("lsh", "local"), reversible=True, n_layers=n_layers, **CHUNKS), backend, (23,))
    assert graphs() == 4


@pytest.mark.parametrize(("kind", "options"), [("AdamW", {}), ("SGD", {"momentum": 0.9})], ids=["AdamW", "SGD"])
def test_steps_of_an_optimizer(kind, options):
    """Three steps; with SGD the update is compiled too. (Compiled, AdamW corrects its averages in float32.)"""
    weights = []
    for compiled in (True, False):
        model = make(("regular",), FLOAT64)
        optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.01, **options)
        loss_of, update = by_loss(model), optimizer.step
        if compiled:
            loss_of = torch.compile(loss_of, fullgraph=True, backend="aot_eager")
            if kind == "SGD":
                update = torch.compile(update, backend="aot_eager")
        losses = []
        torch.manual_seed(5)  # of dropout
        for _ in range(3):
            optimizer.zero_grad()
            loss = loss_of(*batch(23))
            loss.backward()
            update()
            losses.append(loss.item())
        assert len(set(losses)) == 3
        weights.append(dict(model.named_parameters()))
    for name, want in weights[1].items():
        expect_close(name, weights[0][name].detach(), want.detach(), 1e-12)


@nightly
@needs_compiler
@pytest.mark.parametrize("chunk_length", [4, None])
def test_random_numbers_of_inductor_are_those_of_its_backward(chunk_length):
    """Without ``fallback_random`` they are not those of eager execution, but the gradients are those of the loss."""
    generator = torch.Generator().manual_seed(0)
    shapes = (11, 4), (4, 6), (6,), (6, 4), (4,)
    tensors = [torch.randn(shape, generator=generator, dtype=FLOAT64).requires_grad_() for shape in shapes]
    directions = [torch.randn(shape, generator=generator, dtype=FLOAT64) for shape in shapes]
    weight = torch.randn(11, 4, generator=generator, dtype=FLOAT64)

    def eager(*tensors):
        return (weight * feed_forward(*tensors, "gelu", chunk_length, dropout=0.3)).sum()

    compiled = torch.compile(eager, fullgraph=True, backend="inductor")

    def loss(fn, distance=0.0):
        torch.manual_seed(5)
        return fn(*[(t + distance * d).detach().requires_grad_() for t, d in zip(tensors, directions, strict=True)])

    with torch._inductor.config.patch(fallback_random=False):
        torch.manual_seed(5)
        gradients = torch.autograd.grad(compiled(*tensors), tensors)
        slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
        expect_close("slope", slope, (loss(compiled, 1e-6) - loss(compiled, -1e-6)).detach() / 2e-6, 1e-6)
    assert loss(compiled) != loss(eager)
