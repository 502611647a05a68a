"""Live bytes, case by case: what is made, shared, resized, kept by autograd, let go; and against
PyTorch's profiler.
"""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reformer_ref.lsh_attention.api import lsh_attention
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.memory.count import BLOCK, Counter, count_peak
from reformer_ref.model.config import ReformerConfig
from reformer_ref.model.pytorch import ReformerLM
from torch.profiler import ProfilerActivity, profile

K = 1024  # a float32 tensor of 256·n numbers takes n·K bytes, whole blocks


def floats(kilobytes):
    return torch.ones(256 * kilobytes)


def add_in_place():
    a, b = floats(4), floats(4)
    a += b
    a.mul_(2).exp_()


def write_out():
    a, out = floats(4), floats(8)
    torch.exp(torch.cat([a, a]), out=out)  # the two in one are 8 more


def grow_out():
    torch.exp(floats(4), out=torch.empty(0))


def resize():
    a = floats(2)
    a.resize_(256 * 6)
    a.resize_(256)  # shrinking keeps the storage
    floats(1)


def keep_a_row():
    row = floats(8)[:1]  # a view of one number holds all of them
    return row, floats(1)


def let_go():
    floats(5)
    floats(3)


def two_at_once():
    a = floats(5)
    b = a.view(5, 256).t()[1:]
    del a
    c = floats(3)
    del b
    return c, floats(2)


def saved_by_autograd():
    x = floats(4).requires_grad_()
    y = x.exp().sin().sum()  # exp saves its result, sin its input: the same 4; sin's result is there while it is summed
    del x
    return y


def not_saved():
    x = floats(4).requires_grad_()
    return (x + 1 + 1 + 1).sum()


def there_and_back():
    x = floats(4).requires_grad_()
    x.exp().sum().backward()


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x * x

    @staticmethod
    def backward(ctx, d):
        (x,) = ctx.saved_tensors
        return 3 * x * x * d


def custom_function():
    x = floats(4).requires_grad_()
    Cube.apply(x).sum().backward()


@pytest.mark.parametrize(
    ("fn", "kilobytes"),
    [
        (add_in_place, 8),
        (write_out, 20),
        (grow_out, 8),
        (resize, 7),
        (keep_a_row, 9),
        (let_go, 5),
        (two_at_once, 8),
        (saved_by_autograd, 12.5),
        (not_saved, 12),
        (there_and_back, 13),  # x, exp(x), x.grad; the sum and its gradient take a block each
        (custom_function, 13),  # x, 3·x, 3·x·x; again the two blocks
    ],
)
def test_known_cases(fn, kilobytes):
    assert count_peak(fn).above_start_bytes == kilobytes * K


def test_small_things_take_a_block_and_nothing_takes_none():
    assert count_peak(lambda: torch.ones(1)).above_start_bytes == BLOCK
    assert count_peak(lambda: torch.ones(129)).above_start_bytes == 2 * BLOCK
    assert count_peak(lambda: torch.ones(0)).above_start_bytes == 0


def test_data_from_python_counts_and_from_numpy_does_not():
    assert count_peak(lambda: torch.tensor([1.0] * 256)).above_start_bytes == K
    array = np.ones(2560, np.float32)
    assert count_peak(lambda: torch.from_numpy(array)).above_start_bytes == 0
    assert count_peak(lambda: torch.from_numpy(array) + 1).above_start_bytes == 10 * K


def test_what_was_there_before_does_not_count_but_its_end_does():
    box = [floats(40)]

    def fn():
        part = box[0][:256] * 2
        box.clear()  # 40 fewer
        return part, floats(41), floats(2)

    peak = count_peak(fn)
    assert peak.above_start_bytes == (1 + 41 + 2 - 40) * K
    assert peak.start_bytes >= 40 * K
    assert peak.peak_bytes == peak.start_bytes + peak.above_start_bytes
    assert dict(peak.breakdown)["there before, let go"] == -40 * K


def test_what_only_a_graph_from_before_holds():
    x = floats(4).requires_grad_()
    y = x.exp().sum()  # no variable holds exp(x)

    def fn():
        y.backward()  # the gradient of y takes a block; x.grad comes while exp(x) is still held
        return floats(4)

    assert count_peak(fn).above_start_bytes == 4 * K + BLOCK


def test_parts_add_up_and_name_the_operation():
    peak = count_peak(lambda: (torch.ones(256), torch.zeros(512), torch.ones(256)))
    assert dict(peak.breakdown) == {"aten.ones.default": 2 * K, "aten.zeros.default": 2 * K}
    assert sum(n for _, n in peak.breakdown) == peak.above_start_bytes
    assert [t.numel() for t in peak.result] == [256, 512, 256]
    assert peak.kind.startswith("counted")


def test_only_the_device_asked_for():
    def fn():
        return floats(3), torch.empty(256, device="meta")

    assert count_peak(fn, on="cpu").above_start_bytes == 3 * K
    assert count_peak(fn, on="meta").above_start_bytes == K
    assert count_peak(fn).above_start_bytes == 4 * K


def test_a_second_run_counts_the_same_and_a_failed_one_leaves_nothing_behind():
    with pytest.raises(ZeroDivisionError):
        count_peak(lambda: floats(4) / (1 // 0))
    assert count_peak(add_in_place).above_start_bytes == count_peak(add_in_place).above_start_bytes == 8 * K
    with Counter() as counter:
        kept = floats(1)
    del kept
    assert counter.live == K  # after the end nothing is followed any more


def test_sparse_tensors_are_refused():
    with pytest.raises(TypeError, match=r"strided tensors, got one of layout torch\.sparse_coo"):
        count_peak(lambda: torch.eye(3).to_sparse())


ACTIONS = ["new", "view", "add_", "double", "drop", "out"]


@settings(max_examples=12)
@given(st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 9)), max_size=60))
def test_against_a_ledger_kept_by_hand(program):
    """A random program on variables 0 … 9, and beside it which storage each variable holds."""
    holds, sizes, peak = {}, {}, 0
    for i, (action, a) in enumerate(program):
        if action in ("new", "double"):
            sizes[i] = 2 * sizes.get(holds.get(a), 1) if action == "double" else 1 + a
            peak = max(peak, sizes[i] + sum(sizes[s] for s in set(holds.values())))
            holds[a] = i
        elif action == "view" and a in holds:
            holds[9 - a] = holds[a]
        elif action == "drop":
            holds.pop(a, None)

    def fn():
        variables = {}
        for action, a in program:
            if action == "new":
                variables[a] = floats(1 + a)
            elif action == "double":
                variables[a] = torch.cat([variables[a].flatten()] * 2) if a in variables else floats(2)
            elif action == "view" and a in variables:
                variables[9 - a] = variables[a].view(2, -1)
            elif action == "add_" and a in variables:
                variables[a].add_(1)
            elif action == "out" and a in variables:
                torch.neg(variables[a], out=variables[a])
            elif action == "drop":
                variables.pop(a, None)

    assert count_peak(fn).above_start_bytes == peak * K


def profiled_peak(fn, path):
    """The peak of the CPU allocator's own figures, with what kernels take for themselves."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        fn()
    profiled.export_chrome_trace(str(path))
    events = [event for event in json.loads(path.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    live = np.cumsum([e["args"]["Bytes"] for e in sorted(events, key=lambda e: (e["ts"], e["args"]["Ev Idx"]))])
    return live.max()


def perceptron():
    x, layers = (torch.randn(2000, 128), torch.nn.Sequential(*(torch.nn.Linear(128, 128) for _ in range(4))))
    h = x
    for layer in layers:
        h = torch.relu(layer(h)) + h
    h.square().mean().backward()


def attention():
    q, v = (torch.randn(2, 4096, 32, requires_grad=True) for _ in range(2))
    buckets = torch.randint(0, 64, (2, 2, 4096))
    lsh_attention(q, v, buckets, LSHOptions(n_hashes=2)).square().sum().backward()


def training_steps(reversible):
    def fn():
        config = ReformerConfig(
            d_model=64, n_layers=2, n_heads=2, d_ff=128, max_length=4096, ff_chunk=512, loss_chunk=512,
            lsh=LSHOptions(n_hashes=2), reversible=reversible,
        )  # fmt: skip
        model = ReformerLM(config)
        adam = torch.optim.Adam(model.parameters())
        for _ in range(2):
            adam.zero_grad()
            model.loss(torch.randint(0, 256, (1, 4096))).backward()
            adam.step()

    return fn


@pytest.mark.parametrize(
    "fn",
    [perceptron, attention, training_steps(True), training_steps(False)],
    ids=["perceptron", "lsh_attention", "reversible", "not reversible"],
)
def test_agrees_with_the_profiler_to_one_percent(fn, tmp_path):
    fn()  # what is made once and kept, as workers of autograd
    assert count_peak(fn).above_start_bytes == pytest.approx(profiled_peak(fn, tmp_path / "trace.json"), rel=0.01)
