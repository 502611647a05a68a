"""Reversible against ordinary autograd (``reversible=False``) in float64: every way in which people
call backward.
"""

import copy
import gc
import weakref

import pytest
import torch
from reformer_ref.reversible import ReversibleBlock, ReversibleStack, reversible_stack, reversible_stack_inverse
from reformer_ref.testing import expect_close
from torch import nn

D = 6


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Layer(nn.Module):
    """Layer norm, a matrix, tanh, dropout; with an extra it also reads that."""

    def __init__(self, p=0.0):
        super().__init__()
        self.norm, self.linear, self.dropout = nn.LayerNorm(D), nn.Linear(D, D), nn.Dropout(p)

    def forward(self, x, encoder_output=None, mask=None):
        h = self.norm(x) if encoder_output is None else self.norm(x) + x * encoder_output.mean(dim=-2, keepdim=True)
        if mask is not None:
            h = h.masked_fill(mask[..., None], 0)
        return self.dropout(torch.tanh(self.linear(h)))


def pair(depth=3, p=0.0, seed=0, sizes=None):
    """Two equal stacks, reversible and not."""
    torch.manual_seed(seed)
    stack = ReversibleStack([tuple(Layer(p) for _ in range(n)) for n in sizes or [2] * depth])
    other = copy.deepcopy(stack)
    other.reversible = False
    return stack, other


def streams(seed=1, requires_grad=(True, True)):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 5, D, generator=generator).requires_grad_(r) for r in requires_grad]


def scalar(y, seed=2):
    """A scalar that weighs every output differently."""
    generator = torch.Generator().manual_seed(seed)
    return sum((t * torch.randn(t.shape, generator=generator)).sum() for t in y)


def expect_same(got, want, tolerance=1e-12):
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert (a is None) == (b is None), f"tensor {i}: one of the gradients is None"
        if a is not None:
            expect_close(f"tensor {i}", a.detach(), b.detach(), tolerance)


def grads_of(stack, x):
    return [t.grad for t in (*x, *stack.parameters())]


def run_both(pair, use, **kwargs):
    """``use(stack, x)`` on both stacks, from the same random state; all .grad fields must agree
    afterwards.
    """
    results = []
    for stack in pair:
        x = streams(**kwargs)
        torch.manual_seed(3)
        use(stack, x)
        results.append(grads_of(stack, x))
    expect_same(*results)
    return results[0]


def backward(stack, x):
    scalar(stack(*x)).backward()


@pytest.mark.parametrize("sizes", [[1], [2], [3], [2, 2, 2, 2], [3, 3], [2, 1, 3]])
@pytest.mark.parametrize("p", [0.0, 0.5])
def test_blocks_of_any_size_with_dropout(sizes, p):
    grads = run_both(pair(p=p, sizes=sizes), backward)
    assert all(g is not None and g.abs().sum() > 0 for g in grads)


def test_dropout_draws_the_same_masks_and_leaves_the_global_state_alone():
    (stack, other), x = pair(p=0.5), streams()
    torch.manual_seed(3)
    y = stack(*x)
    after_forward = torch.get_rng_state()
    torch.rand(7)  # someone else draws between forward and backward
    before_backward = torch.get_rng_state()
    scalar(y).backward()
    assert torch.equal(torch.get_rng_state(), before_backward)
    torch.manual_seed(3)
    z = other(*x)
    assert torch.equal(torch.get_rng_state(), after_forward)
    expect_same(y, z)


def test_one_input_for_both_streams():
    for_both = []
    for stack in pair():
        x = streams()[0]
        scalar(stack(x, x)).backward()
        for_both.append(grads_of(stack, [x]))
    expect_same(*for_both)


def test_only_one_output_is_used():
    run_both(pair(), lambda stack, x: scalar(stack(*x)[1:]).backward())


def test_two_forwards_before_one_backward():
    def use(stack, x):
        first, second = stack(*x), stack(x[1] * 2, x[0])
        (scalar(first) + scalar(second) * scalar(first, seed=5)).backward()

    run_both(pair(p=0.3), use)


def test_backward_in_the_other_order():
    def use(stack, x):
        first, second = scalar(stack(*x)), scalar(stack(*x))
        second.backward()
        first.backward()

    run_both(pair(p=0.3), use)


def test_gradient_accumulation():
    def use(stack, x):
        for _ in range(3):
            backward(stack, x)

    grads = run_both(pair(p=0.3), use)
    assert grads[0] is not None


def test_backward_twice_through_one_forward():
    def use(stack, x):
        loss = scalar(stack(*x))
        loss.backward(retain_graph=True)
        loss.backward()

    run_both(pair(p=0.3), use)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_changes_between_forward_and_backward(training):
    def use(stack, x):
        stack.train(training)
        loss = scalar(stack(*x))
        stack.train(not training)
        loss.backward()
        assert all(m.training is not training for m in stack.modules())

    run_both(pair(p=0.5), use)


def test_frozen_parameters():
    both = pair()
    for stack in both:
        for name, p in stack.named_parameters():
            p.requires_grad_("linear.weight" not in name and "blocks.0" not in name)
    grads = run_both(both, backward)
    assert grads[2] is None
    assert grads[-1] is not None


@pytest.mark.parametrize("requires_grad", [(True, False), (False, True), (False, False)])
def test_inputs_that_need_no_gradient(requires_grad):
    run_both(pair(), backward, requires_grad=requires_grad)


def test_nothing_but_the_inputs_needs_a_gradient():
    both = pair()
    for stack in both:
        stack.requires_grad_(False)
    run_both(both, backward)


def test_nothing_needs_a_gradient():
    stack, other = pair()
    stack.requires_grad_(False)
    y = stack(*streams(requires_grad=(False, False)))
    assert not y[0].requires_grad
    with torch.inference_mode():
        expect_same(y, other(*streams()))


def test_autograd_grad_on_a_subset():
    for select in (lambda s: list(s.parameters())[3:5], lambda s: list(s.parameters())[-1:], lambda s: []):
        results = []
        for stack in pair(p=0.3):
            x = streams()
            torch.manual_seed(3)
            results.append(torch.autograd.grad(scalar(stack(*x)), [*select(stack), x[1]]))
            assert all(g is None for g in grads_of(stack, x))  # nothing is written on the way
        expect_same(*results)


def test_a_block_used_twice_and_a_shared_weight():
    for_both = []
    for reversible in (True, False):
        torch.manual_seed(0)
        f, g, h = Layer(0.3), Layer(0.3), Layer()
        h.linear.weight = f.linear.weight
        h.norm = nn.Sequential(nn.LayerNorm(D), nn.Linear(D, D), nn.Linear(D, D))
        h.norm[1].weight = h.norm[2].weight
        block = ReversibleBlock(f, g)
        stack = ReversibleStack([block, (h, f), block], reversible)
        x = streams()
        backward(stack, x)
        for_both.append(grads_of(stack, x))
    expect_same(*for_both)


def test_a_parameter_that_the_forward_pass_does_not_use():
    both = pair()
    for stack in both:
        stack.blocks[1].layers[0].spare = nn.Parameter(torch.ones(3))
    assert sum(g is None for g in run_both(both, backward)) == 1


def test_hooks_of_parameters_run_once():
    both = pair()
    for stack in both:
        for p in stack.parameters():
            p.register_hook(lambda g: 3 * g)
    run_both(both, backward)


def test_parameters_that_are_reached_past_their_name():
    """Through a list of the module's own, and in an LSTM, which keeps such a list too."""

    class Listed(nn.Linear):
        def __init__(self):
            super().__init__(D, D)
            self.both = [self.weight, self.bias]

        def forward(self, x):
            return nn.functional.linear(x, *self.both) * self.bias

    class Recurrent(nn.LSTM):
        def forward(self, x):
            return super().forward(x)[0]

    results = []
    for reversible in (True, False):
        torch.manual_seed(0)
        stack = ReversibleStack([(Recurrent(D, D, batch_first=True), Listed())], reversible)
        x = streams()
        backward(stack, x)
        results.append(grads_of(stack, x))
    expect_same(*results)
    assert all(g is not None for g in results[0])


def test_functional_call_with_other_parameters():
    """The parameters of the forward pass count, though the module holds others again when backward
    runs.
    """
    results = []
    for stack in pair(p=0.3):
        weights = {name: (p.detach() + 0.1).requires_grad_() for name, p in stack.named_parameters()}
        torch.manual_seed(3)
        y = torch.func.functional_call(stack, {name: 2 * w for name, w in weights.items()}, tuple(streams()))
        results.append(torch.autograd.grad(scalar(y), list(weights.values())))
    expect_same(*results)


def test_frozen_after_forward():
    def use(stack, x):
        loss = scalar(stack(*x))
        stack.requires_grad_(False)
        loss.backward()
        stack.requires_grad_(True)

    run_both(pair(), use)


def test_weights_changed_before_backward_are_an_error():
    stack, _ = pair()
    loss = scalar(stack(*streams()))
    with torch.no_grad():
        stack.blocks[0].layers[0].linear.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_double_backward_is_an_error():  # not a gradient that silently lacks a graph
    stack, other = pair()
    x = streams()
    with pytest.raises(RuntimeError, match="reversible=False and no chunk lengths"):
        torch.autograd.grad(scalar(stack(*x)), x, create_graph=True)
    assert torch.autograd.grad(scalar(other(*x)), x, create_graph=True)[0].requires_grad


def test_context_collects_gradients_from_every_layer():
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[1, 3:] = True
    for given in ((None, mask), ("output", mask), ("output", None), ("frozen", mask)):
        results = []
        for stack in pair(p=0.3):
            x = streams()
            encoder_output = (
                streams(seed=9)[0].detach()[:, :3].requires_grad_(given[0] == "output") if given[0] else None
            )
            torch.manual_seed(3)
            scalar(stack(*x, encoder_output, given[1])).backward()
            results.append([*grads_of(stack, x), None if encoder_output is None else encoder_output.grad])
        expect_same(*results)
        assert (results[0][-1] is not None) == (given[0] == "output")


class RandomBuckets(nn.Module):
    """Draws a random bucket per token from its own generator in forward; backward must not draw."""

    uses_saved = True

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(4, D))
        self.generator, self.draws = torch.Generator().manual_seed(0), 0

    def forward(self, x, saved):
        if "buckets" not in saved:
            self.draws += 1
            saved["buckets"] = torch.randint(4, x.shape[:-1], generator=self.generator)
        return torch.tanh(x) * self.table[saved["buckets"]]


def test_saved_is_handed_back_in_backward():
    results = []
    for reversible in (True, False):
        torch.manual_seed(0)
        layers = [RandomBuckets() for _ in range(5)]
        stack = ReversibleStack([layers[:2], layers[2:4], (layers[4], Layer(0.2))], reversible)
        x = streams()
        loss = scalar(stack(*x)) + scalar(stack(*x))  # two forwards, two dicts
        loss.backward()
        results.append(grads_of(stack, x))
        assert [h.draws for h in layers] == [2] * 5
        kept = {name for h in layers for name, v in vars(h).items() if isinstance(v, (dict, torch.Tensor))}
        assert kept == {name for name, v in vars(RandomBuckets()).items() if isinstance(v, (dict, torch.Tensor))}
    expect_same(*results)


def test_inverse():
    stack, _ = pair(depth=4)
    x = streams()
    y = stack(*x)
    expect_same(reversible_stack_inverse(*y, stack.blocks), x)
    encoder_output = streams(seed=9)[0]
    expect_same(reversible_stack_inverse(*stack(*x, encoder_output), stack.blocks, encoder_output), x)


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.f, self.g = Layer(), Layer()


def test_every_way_to_write_a_block():
    x, block = streams(), Pair()
    want = reversible_stack(*x, [(block.f, block.g)])
    for blocks in (
        [block],
        ([block.f, block.g],),
        [ReversibleBlock(block.f, block.g)],
        [nn.ModuleList([block.f, block.g])],
        nn.ModuleList([block]),
        [(block.f,), (block.g,)],
    ):
        expect_same(reversible_stack(*x, blocks), want, 0)
    expect_same(ReversibleBlock(block.f, block.g)(*x), want, 0)
    names = dict(ReversibleStack([(Layer(), Layer())]).named_parameters())
    assert "blocks.0.layers.1.linear.weight" in names
    assert "reversible=True" in repr(ReversibleStack([block]))


def saved_bytes(depth, reversible):
    """Distinct bytes that autograd keeps for backward, parameters aside."""
    torch.manual_seed(0)
    stack = ReversibleStack([(Layer(0.1), Layer(0.1)) for _ in range(depth)], reversible)
    parameters, kept = {p.untyped_storage().data_ptr() for p in stack.parameters()}, {}

    def pack(t):
        kept[t.untyped_storage().data_ptr()] = (t, t.untyped_storage().nbytes())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = stack(*streams())
    return sum(size for pointer, (_, size) in kept.items() if pointer not in parameters), y


def test_saved_bytes_do_not_grow_with_depth():
    (two, y), (eight, _) = saved_bytes(2, True), saved_bytes(8, True)
    assert two == eight == sum(t.untyped_storage().nbytes() for t in y)
    assert saved_bytes(8, False)[0] > 3 * saved_bytes(2, False)[0]


class Watched(torch.autograd.Function):
    """The identity; counts how many of its graph nodes are alive at the same time."""

    alive, most = weakref.WeakSet(), 0

    class Token:
        pass

    @staticmethod
    def forward(ctx, x):
        ctx.token = Watched.Token()
        Watched.alive.add(ctx.token)
        Watched.most = max(Watched.most, len(Watched.alive))
        return x.clone()

    @staticmethod
    def backward(ctx, d):
        return d


def most_graphs_alive(depth, reversible):
    class Layer(nn.Linear):
        def forward(self, x):
            return Watched.apply(torch.tanh(super().forward(x)))

    stack = ReversibleStack([(Layer(D, D), Layer(D, D)) for _ in range(depth)], reversible)
    gc.collect()
    Watched.most = 0
    backward(stack, streams())
    return Watched.most


def test_one_recomputed_half_is_alive_at_a_time():
    assert most_graphs_alive(8, True) == most_graphs_alive(2, True) == 1
    assert most_graphs_alive(8, False) == 16


def test_compile_and_export_of_the_eval_forward():
    stack, x = pair(p=0.5)[0].eval(), streams()
    want = stack(*x)
    compiled = torch.compile(stack, fullgraph=True, backend="aot_eager")
    expect_same(compiled(*x), want)
    with torch.no_grad():
        expect_same(compiled(*x), want)
        expect_same(torch.export.export(stack, tuple(x)).module()(*x), want)


def test_compiled_training_leaves_the_stack_to_eager_execution():
    """Compiled apart from each other, forward and recompute would draw different dropout masks
    (inductor does).
    """
    torch.manual_seed(0)
    stack = ReversibleStack([(nn.Dropout(0.5), nn.Dropout(0.5)) for _ in range(2)])
    compiled_ops = []

    def backend(graph, _):
        compiled_ops.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    @torch.compile(backend=backend)
    def step(x1, x2):
        y = stack(2 * x1, 2 * x2)
        loss = scalar(y)
        loss.backward()
        return loss

    x = streams()
    loss = step(*x)
    inner = sum((a * a.grad).sum() for a in x)  # the stack is linear: <d_y, y> = <d_x, x>
    expect_close("<d_x, x>", inner.detach(), loss.detach(), 1e-12)
    assert compiled_ops
    assert not any("dropout" in op for op in compiled_ops)
