"""Chunks really save memory in training, and recompute in backward exactly what forward computed."""

import weakref
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from reformer_ref.feed_forward import FeedForward, cross_entropy, feed_forward
from reformer_ref.feed_forward.chunked import chunked
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()


def draw(*shapes, seed=0, dtype=torch.float64, device="cpu", grad=True):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=generator, dtype=dtype).to(device).requires_grad_(grad) for s in shapes]


def layer(length=23, d_model=3, d_ff=5, **options):
    return draw((2, length, d_model), (d_model, d_ff), (d_ff,), (d_ff, d_model), (d_model,), **options)


def assert_close(got, want, tolerance=1e-12):
    for a, b in zip(got, want, strict=True):
        assert (a - b).abs().max() <= tolerance * b.abs().max()


# Memory


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors made while the mode is on: how many are alive now, and at most at
    once.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._seen = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        known = {t.untyped_storage() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(out):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is not None and storage not in known and storage not in self._seen:
                self._seen.add(storage)
                weakref.finalize(storage, self._freed, storage.nbytes())
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
        return out

    def _freed(self, size):
        self.now -= size


def peak_of_training(fn, tensors):
    """Peak bytes of forward and backward together, beyond the inputs, in multiples of float64."""
    with LiveBytes() as live:
        fn(*tensors).sum().backward()
    return live.peak // 8


def saved_storages(fn, tensors):
    saved = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: saved.setdefault(t.untyped_storage().data_ptr(), t.untyped_storage().nbytes()) and t, lambda t: t
    ):
        out = fn(*tensors)
    parameters = {t.untyped_storage().data_ptr() for t in tensors}
    return {p: n for p, n in saved.items() if p not in parameters}, out


def nats(targets, chunk_length, hidden, weight, bias):
    return cross_entropy(hidden, weight, bias, targets, chunk_length)


def test_feed_forward_saves_nothing_but_its_inputs():
    tensors = layer(length=64, d_ff=512)
    extra, _ = saved_storages(partial(feed_forward, chunk_length=10), tensors)
    assert not extra
    ordinary, _ = saved_storages(feed_forward, tensors)
    assert sum(ordinary.values()) >= 2 * 64 * 512 * 8  # the wide array: what chunks are for


def test_loss_saves_nothing_that_grows_with_the_vocabulary():
    hidden, weight, bias = draw((64, 3), (3, 900), 900)
    targets = torch.arange(64)
    extra, _ = saved_storages(partial(nats, targets, 10), (hidden, weight, bias))
    assert sum(extra.values()) <= 64 * 8 + 8  # the targets and their number
    ordinary, _ = saved_storages(partial(nats, targets, None), (hidden, weight, bias))
    assert sum(ordinary.values()) >= 64 * 900 * 8


@pytest.mark.parametrize("chunk_length", [16, 50])
def test_peak_memory_of_training_follows_the_chunk(chunk_length):
    length, d_model, d_ff = 1000, 4, 256
    tensors = draw((length, d_model), (d_model, d_ff), (d_ff,), (d_ff, d_model), (d_model,))
    whole = peak_of_training(feed_forward, tensors)
    cut = peak_of_training(partial(feed_forward, chunk_length=chunk_length), tensors)
    assert whole > 2 * length * d_ff
    # a few wide arrays of one chunk; outputs, gradients and sums of the inputs' own sizes
    assert cut < 5 * chunk_length * d_ff + 4 * length * d_model + 6 * d_model * d_ff
    assert cut < whole / 5


def test_peak_memory_of_the_loss_follows_the_chunk():
    length, d, vocabulary = 800, 4, 500
    hidden, weight, bias = draw((length, d), (d, vocabulary), vocabulary)
    targets = torch.arange(length) % vocabulary
    whole = peak_of_training(partial(nats, targets, None), (hidden, weight, bias))
    cut = peak_of_training(partial(nats, targets, 20), (hidden, weight, bias))
    assert whole > 2 * length * vocabulary
    assert cut < 6 * 20 * vocabulary + 4 * length * d + 8 * d * vocabulary
    assert cut < whole / 8


# The recompute is the forward again


def by_hand(x, w1, b1, w2, b2, step, dropout):
    """The same chunks by ordinary autograd."""
    chunks = [F.dropout(F.relu(chunk @ w1 + b1), dropout) @ w2 + b2 for chunk in x.split(step, dim=-2)]
    return torch.cat(chunks, dim=-2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("step", [1, 5, 23, 40])
def test_dropout_is_replayed(step, device):
    tensors = layer(device=device)
    d_out = draw((2, 23, 3), seed=9, grad=False, device=device)[0]
    devices = [0] if device == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(3)
        want = by_hand(*tensors, step, 0.5)
        torch.manual_seed(3)
        got = feed_forward(*tensors, chunk_length=step, dropout=0.5)
        torch.rand(1000, device=device)  # the generators move on before the backward pass ...
        before = (torch.get_rng_state(), torch.cuda.get_rng_state() if device == "cuda" else torch.empty(0))
        grads = torch.autograd.grad(got, tensors, d_out)
        after = (torch.get_rng_state(), torch.cuda.get_rng_state() if device == "cuda" else torch.empty(0))
    assert_close([got], [want])
    assert_close(grads, torch.autograd.grad(want, tensors, d_out))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))  # ... and do not notice it
    assert not torch.equal(got, feed_forward(*tensors))


def test_two_forwards_before_one_backward_with_dropout():
    tensors = layer()
    with torch.random.fork_rng():
        torch.manual_seed(4)
        want = [by_hand(*tensors, 6, 0.3) for _ in range(2)]
        torch.manual_seed(4)
        got = [feed_forward(*tensors, chunk_length=6, dropout=0.3) for _ in range(2)]
        assert not torch.equal(*got)
        grads = torch.autograd.grad(got[0].sin().sum() + got[1].cos().sum(), tensors)
    assert_close(grads, torch.autograd.grad(want[0].sin().sum() + want[1].cos().sum(), tensors))


@pytest.mark.parametrize("device", DEVICES)
def test_recompute_runs_in_the_dtypes_of_forward(device):
    tensors = layer(dtype=torch.float32, device=device)
    seen = []

    def fn(x, w1, b1, w2, b2):
        hidden = F.relu(F.linear(x, w1.t(), b1))
        seen.append(hidden.dtype)
        return F.linear(hidden, w2.t(), b2)

    with torch.autocast(device, torch.bfloat16):
        got = chunked(fn, tensors[:1], tensors[1:], 10)
        want = fn(*tensors)
    d_out = torch.ones_like(want)
    grads = torch.autograd.grad(got, tensors, d_out)  # outside autocast
    assert seen == [torch.bfloat16] * 7  # three chunks, the plain formula, three chunks again
    assert got.dtype == torch.bfloat16
    assert_close([got], [want], 1e-2)
    assert all(g.dtype == torch.float32 for g in grads)
    assert_close(grads, torch.autograd.grad(want, tensors, d_out), 1e-2)


def test_backward_under_autocast_equals_ordinary_autograd():
    """Backward was called under autocast, forward was not: the recompute is float32, its gradients
    are as ever.
    """
    x, w = draw((23, 8), (8, 8), dtype=torch.float32)
    seen = []

    def fn(x, w):
        out = x @ w
        seen.append(out.dtype)
        return F.relu(out) @ w

    got, want = chunked(fn, (x,), (w,), 10), fn(x, w)
    with torch.autocast("cpu", torch.bfloat16):
        grads = torch.autograd.grad(got.sum(), (x, w))
        ordinary = torch.autograd.grad(want.sum(), (x, w))
    assert set(seen) == {torch.float32}
    assert_close(grads[:1], ordinary[:1], 1e-6)
    assert_close(grads[1:], ordinary[1:], 1e-2)  # a sum over chunks, each rounded to bfloat16


def test_autocast_leaves_the_weights_usable_afterwards():
    """A cast of a weight made without gradient must not stay in autocast's cache."""
    tensors = layer(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        chunked(lambda x, w: x @ w, tensors[:1], tensors[1:2], 4)
        out = tensors[0] @ tensors[1]
    assert all(g is not None for g in torch.autograd.grad(out.sum(), tensors[:2], allow_unused=True))


def test_loss_under_autocast():
    hidden, weight, bias = draw((2, 11, 8), (8, 30), 30, dtype=torch.float32)
    targets = torch.arange(22).reshape(2, 11)
    with torch.autocast("cpu", torch.bfloat16):
        got, want = (cross_entropy(hidden, weight, bias, targets, n) for n in (4, None))
    assert got.dtype == torch.float32
    assert_close([got], [want], 1e-6)
    tensors = (hidden, weight, bias)
    assert_close(torch.autograd.grad(got, tensors), torch.autograd.grad(want, tensors), 1e-2)


# A good citizen of autograd


def test_gradient_of_any_subset():
    tensors = layer()
    want = torch.autograd.grad(feed_forward(*tensors).sin().sum(), tensors)
    for i, tensor in enumerate(tensors):
        out = feed_forward(*tensors, chunk_length=4).sin().sum()
        assert_close(torch.autograd.grad(out, [tensor]), [want[i]])


@pytest.mark.parametrize("trained", range(5))
def test_frozen_inputs(trained):
    tensors = [t.requires_grad_(i == trained) for i, t in enumerate(layer(grad=False))]
    feed_forward(*tensors, chunk_length=4).sin().sum().backward()
    got = [t.grad for t in tensors]
    assert [g is not None for g in got] == [i == trained for i in range(5)]
    want = torch.autograd.grad(feed_forward(*tensors).sin().sum(), tensors[trained])
    assert_close([got[trained]], want)


def test_accumulation_reuse_and_retained_graph():
    tensors = layer()
    x, *weights = tensors

    def twice(chunk_length):  # the same weights in two layers
        fn = partial(feed_forward, chunk_length=chunk_length)
        return fn(fn(x, *weights), *weights).sin().sum()

    want = torch.autograd.grad(twice(None), tensors)
    out = twice(4)
    out.backward(retain_graph=True)
    out.backward()
    assert_close([t.grad for t in tensors], [2 * g for g in want])


def test_evaluation_mode_still_has_gradients():
    module = FeedForward(3, 5, dropout=0.5, chunk_length=4, generator=torch.Generator().manual_seed(0)).double().eval()
    module(draw((2, 9, 3))[0]).sum().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_forward_mode_follows_the_call_not_the_module():
    """Switching to evaluation between forward and backward changes nothing."""
    module = FeedForward(3, 5, dropout=0.5, chunk_length=4, generator=torch.Generator().manual_seed(0)).double()
    x = draw((9, 3))[0]
    grads = []
    for switch in (False, True):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            out = module.train()(x)
        module.train(not switch)
        grads.append(torch.autograd.grad(out.sum(), [x, *module.parameters()]))
    assert_close(*grads)


def test_without_gradient_nothing_is_recorded():
    tensors = layer()
    with torch.no_grad():
        out = feed_forward(*tensors, chunk_length=4)
    assert out.grad_fn is None
    assert_close([out], [feed_forward(*tensors)])
    with torch.inference_mode():
        assert_close([feed_forward(*tensors, chunk_length=4)], [out])


def test_inputs_changed_in_place_are_noticed():
    tensors = layer()
    out = feed_forward(*tensors, chunk_length=4)
    with torch.no_grad():
        tensors[1].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_second_derivatives_are_refused():
    tensors = layer()
    for out in (feed_forward(*tensors, chunk_length=4), feed_forward(*tensors, chunk_length=4).sin()):
        with pytest.raises(RuntimeError, match="for create_graph give no chunk lengths"):  # no gradient without a graph
            torch.autograd.grad(out.sum(), tensors, create_graph=True)


def test_strided_and_expanded_inputs():
    x, *weights = layer(length=12)
    for view in (lambda x: x.transpose(0, 1), lambda x: x[:, ::3], lambda x: x[:1].expand(4, -1, -1)):
        got, want = (feed_forward(view(x), *weights, chunk_length=n).sin().sum() for n in (5, None))
        assert_close(torch.autograd.grad(got, [x, *weights]), torch.autograd.grad(want, [x, *weights]))


@pytest.mark.parametrize("dim", [0, 1, -2])
def test_chunked_along_any_dimension_with_several_inputs_and_totals(dim):
    tensors = a, b, w = draw((7, 3, 2), (7, 3, 2), (2, 4))
    weigh = torch.arange(4.0, dtype=torch.float64)

    def rows(a, b, w):
        return ((a * b) @ w).sin()

    def sums(a, b, w):
        return rows(a, b, w).sum((0, 1))

    for fn, add in ((rows, False), (sums, True)):
        got, want = chunked(fn, (a, b), (w,), 2, dim=dim, add=add), fn(*tensors)
        assert_close([got], [want])
        got, want = (torch.autograd.grad((out * weigh).sum(), tensors) for out in (got, want))
        assert_close(got, want)


# Compilers


class Loss(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = FeedForward(4, 8, "gelu", 0.1, chunk_length=3, generator=torch.Generator().manual_seed(0))
        self.weight = torch.nn.Parameter(torch.randn(4, 11, generator=torch.Generator().manual_seed(1)))

    def forward(self, x, targets):
        return cross_entropy(self.layer(x), self.weight, None, targets, chunk_length=5)


def example():
    return draw((2, 7, 4), dtype=torch.float32, grad=False)[0], torch.arange(14).reshape(2, 7) % 11


@pytest.mark.parametrize("grad", [False, True])
def test_export(grad):
    model, (x, targets) = Loss().eval(), example()
    with torch.set_grad_enabled(grad):
        for strict in (False, True):
            program = torch.export.export(model, (x, targets), strict=strict)
            assert_close([program.module()(x, targets)], [model(x, targets)], 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("grad", [False, True])
def test_compile_in_one_graph(grad):
    torch.compiler.reset()
    model, (x, targets) = Loss().eval(), example()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.set_grad_enabled(grad):
        got, want = compiled(x, targets), model(x, targets)
    assert_close([got], [want], 1e-6)
    if grad:
        parameters = list(model.parameters())
        assert_close(torch.autograd.grad(got, parameters), torch.autograd.grad(want, parameters), 1e-5)


@pytest.mark.slow
def test_compiled_training_is_chunked_too():
    torch.compiler.reset()
    tensors = layer(length=60, d_ff=512)
    compiled = torch.compile(partial(feed_forward, chunk_length=10, dropout=0.1), fullgraph=True, backend="aot_eager")
    with torch.random.fork_rng():
        extra, out = saved_storages(compiled, tensors)
        torch.autograd.grad(out.sum(), tensors)
    assert sum(extra.values()) < 60 * 512 * 8 / 4


def test_tensors_without_values_give_shapes():
    model = Loss().to("meta")
    x, targets = (t.to("meta") for t in example())
    loss = model(x, targets)
    assert loss.shape == ()
    loss.backward()
    assert all(p.grad.shape == p.shape for p in model.parameters())
