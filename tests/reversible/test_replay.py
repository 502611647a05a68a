"""Random-number and autocast state: put back for the recomputation, invisible outside, right dtypes
and gradients.
"""

import contextlib
import copy
import threading

import pytest
import torch
from reformer_ref._replay import Replay
from reformer_ref.reversible import ReversibleStack
from reformer_ref.testing import expect_close, relative_error
from torch import nn

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def autocast_state():
    return [
        (torch.is_autocast_enabled(t), torch.get_autocast_dtype(t), torch.is_autocast_cache_enabled())
        for t in ("cpu", "cuda")
    ]


def test_random_numbers_are_replayed_and_the_outside_state_comes_back():
    replay = Replay(torch.ones(2))
    want = torch.rand(5), torch.rand(5)
    before = torch.get_rng_state()
    for _ in range(2):  # a replay can be used again
        with replay.restored():
            assert torch.equal(torch.rand(5), want[0])
            assert torch.equal(torch.rand(5), want[1])
        assert torch.equal(torch.get_rng_state(), before)
    with contextlib.suppress(KeyError), replay.restored():
        raise KeyError(torch.rand(1))
    assert torch.equal(torch.get_rng_state(), before)


def test_without_random_numbers():
    replay = Replay(torch.ones(1), rng=False)
    state = torch.get_rng_state()
    with replay.restored():
        torch.rand(3)
    assert not torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("inside", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("outside", [None, torch.bfloat16])
def test_autocast_is_entered_as_it_was(inside, outside):
    a, b = torch.ones(2, 2), torch.ones(2, 2)
    with torch.autocast("cpu", inside, enabled=inside is not None):
        replay = Replay(a, None, torch.ones(1, device="meta"))
        want = (a @ b).dtype
    with torch.autocast("cpu", outside, enabled=outside is not None):
        state = autocast_state()
        for context in (replay.restored, replay.uncached_autocast):
            with context():
                assert (a @ b).dtype == want
                assert inside is None or not torch.is_autocast_cache_enabled()
            assert autocast_state() == state


def test_another_thread_may_use_it():
    with torch.autocast("cpu", torch.bfloat16):
        replay = Replay(torch.ones(1))
    want, got = torch.rand(3), []

    def work():
        with replay.restored():
            got.extend([torch.rand(3), (torch.ones(2, 2) @ torch.ones(2, 2)).dtype])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert torch.equal(got[0], want)
    assert got[1] == torch.bfloat16


def test_training_mode_of_submodules():
    module = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout()))
    module[1].eval()
    replay = Replay(torch.ones(1), module=module)
    module[0].eval()
    module[1][0].train()
    with replay.restored():
        assert [m.training for m in module.modules()] == [True, True, False, False]
    assert [m.training for m in module.modules()] == [True, False, False, True]


class Probe(nn.Module):
    """A half that writes down the dtypes that it computes in."""

    def __init__(self, d, seen):
        super().__init__()
        self.norm, self.linear, self.seen = nn.LayerNorm(d), nn.Linear(d, d), seen

    def forward(self, x):
        h = self.linear(self.norm(x))
        self.seen.append((x.dtype, h.dtype, torch.is_grad_enabled()))
        if torch.is_autocast_enabled("cpu") and not self.seen[-1][-1]:
            assert not torch.is_autocast_cache_enabled()
        return torch.tanh(h)


def probe_stack(seen, d=16):
    torch.manual_seed(0)
    return ReversibleStack([(Probe(d, seen), Probe(d, seen)) for _ in range(3)])


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backward_inside", [True, False])
def test_recompute_runs_in_the_dtypes_of_forward(dtype, backward_inside):
    """Forward under ``dtype`` (None: no autocast); backward inside another autocast context, or in
    none.
    """
    seen = []
    stack, x = probe_stack(seen), torch.randn(2, 4, 16)
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        y = stack(x.clone().requires_grad_(), x)
    forward, seen[:] = [s[:2] for s in seen], []
    assert {t.dtype for t in y} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16, enabled=backward_inside):
        (y[0].sum() + y[1].square().sum()).backward()
    assert [s[:2] for s in reversed(seen)] == forward == [(torch.float32, dtype or torch.float32)] * 6
    assert all(grad_enabled for *_, grad_enabled in seen)


def test_gradients_under_autocast_equal_those_of_ordinary_autograd():
    grads = {}
    for reversible in (True, False):
        stack = probe_stack([])
        stack.reversible = reversible
        x = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y1, y2 = stack(x, 0.5 * x)
            loss = (y1.sin() + y2).square().sum()
        loss.backward()
        grads[reversible] = [x.grad, *(p.grad for p in stack.parameters())]
    for got, want in zip(grads[True], grads[False], strict=True):
        assert got.dtype == want.dtype == torch.float32
        assert relative_error(got, want) < 2**-8  # one unit of bfloat16


@pytest.mark.parametrize("where", ["before", "after", "both"])
def test_a_weight_used_in_the_stack_and_beside_it(where):
    """The stack's casts must not stay in the autocast cache, where they would cut later uses off
    from the weight.
    """
    grads = {}
    for reversible in (True, False):
        torch.manual_seed(0)
        linear = nn.Linear(8, 8)
        stack = ReversibleStack([(linear, nn.Tanh()), (nn.Tanh(), linear)], reversible)
        x = torch.randn(3, 8)
        with torch.autocast("cpu", torch.bfloat16):
            a = linear(x) if where != "after" else x
            y1, y2 = stack(a.float(), x)
            b = linear(y1) if where != "before" else y1
            (b.float().square() + y2).sum().backward()
        grads[reversible] = linear.weight.grad
    assert relative_error(grads[True], grads[False]) < 2**-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_streams_keep_their_dtype(dtype):
    """Halves that return another dtype than that of the streams."""

    class Other(nn.Module):
        def forward(self, x):
            return torch.tanh(x).to(torch.bfloat16 if x.dtype == torch.float32 else torch.float32)

    x = torch.randn(4, 8, dtype=dtype, requires_grad=True)
    for reversible in (True, False):
        y = ReversibleStack([(Other(), Other())], reversible)(x, x)
        assert {t.dtype for t in y} == {dtype}
        (grad,) = torch.autograd.grad(y[0].sum() + y[1].sum(), x)
        assert grad.dtype == dtype


def test_shapes_alone_propagate_through_forward_and_backward():
    """Fake tensors, as used to predict memory; those on CUDA have no generator where there is no
    CUDA.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        stack = ReversibleStack([(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)), nn.Linear(8, 8))])
        x = torch.empty(4, 8, requires_grad=True)
        y1, y2 = stack(x, x)
        (y1 + y2).sum().backward()
        assert x.grad.shape == x.shape
        cuda = torch.empty(4, 8, device="cuda")
        with Replay(cuda).restored():
            assert torch.dropout(cuda, 0.5, True).device.type == "cuda"


@needs_cuda
def test_dropout_and_autocast_on_cuda():
    torch.manual_seed(0)
    first = ReversibleStack([(nn.Sequential(nn.Linear(32, 32), nn.Dropout(0.5)), nn.Tanh()) for _ in range(3)]).cuda()
    for dtype, tolerance in ((None, 1e-12), (torch.bfloat16, 2**-6)):
        grads = []
        for reversible in (True, False):
            stack = copy.deepcopy(first).double() if dtype is None else copy.deepcopy(first)
            stack.reversible = reversible
            x = torch.linspace(-1, 1, 64 * 32, device="cuda", dtype=torch.float64 if dtype is None else torch.float32)
            x = x.view(64, 32).requires_grad_()
            torch.manual_seed(3)
            with torch.autocast("cuda", dtype, enabled=dtype is not None):
                y1, y2 = stack(x, x)
            state = torch.cuda.get_rng_state()
            (y1.sin() + y2).sum().backward()
            assert torch.equal(torch.cuda.get_rng_state(), state)
            grads.append([g.cpu() for g in (x.grad, *(p.grad for p in stack.parameters()))])
        for got, want in zip(*grads, strict=True):
            expect_close("gradient", got, want, tolerance)
