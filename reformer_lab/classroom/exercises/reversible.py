"""A4, the reversible block: the branches that its functions get, how they are called, and what must hold for them.

Its definitions and its picture stand in ``reversible_texts``.
"""

import numpy as np
import torch
from reformer_ref.testing import expect_close, expect_equal

from reformer_lab.classroom.exercise import Exercise, by_name
from reformer_lab.classroom.exercises.reversible_texts import DESCRIBE as DESCRIBE


def branch(w, kind="tanh"):
    """h(x) = tanh(x w), or x w if linear, for arrays; and h_vjp(x, d_out) -> (d_x, d_w). w: (d_model, d_model)."""

    def h(x):
        return np.tanh(x @ w) if kind == "tanh" else x @ w

    def h_vjp(x, d_out):
        d_sum = d_out * (1 - h(x) ** 2) if kind == "tanh" else d_out
        rows, d_rows = x.reshape(-1, x.shape[-1]), d_sum.reshape(-1, x.shape[-1])
        return d_sum @ w.T, rows.T @ d_rows

    return h, h_vjp


def pairs(weights, kind="tanh"):
    """Blocks (F, G) as the exercises want them. weights: (2 n_blocks, d_model, d_model), for F and G in turn."""
    branches = [branch(w, kind)[0] for w in weights]
    return list(zip(branches[::2], branches[1::2], strict=True))


def torch_pairs(params, order):
    """Blocks (F, G) of functions x -> tanh(x w) on tensors. order: for each block, which two of ``params`` they use."""
    return [tuple((lambda x, w=params[k]: torch.tanh(x @ w)) for k in row) for row in order]


def kept_bytes(run):
    """Bytes of the tensors that autograd keeps while ``run()`` computes; leaves (weights, inputs) are not counted."""
    kept = {}

    def pack(tensor):
        if not tensor.is_leaf:
            kept[tensor.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(tensor.nbytes for tensor in kept.values())


def _call_stack(fn, args):
    a, b, weights, kind = args
    return fn(a, b, pairs(weights, kind))


def _call_backward(fn, args):
    *streams, w_f, w_g, kind = args
    return fn(*streams, *branch(w_f, kind), *branch(w_g, kind))


def _call_dropout(fn, args):
    x, d_out, w, kind, rate, seed = args
    dropped, dropped_vjp = fn(*branch(w, kind), rate, seed)
    once = dropped(x)
    (d_x, d_w) = dropped_vjp(x, d_out)
    return once, dropped(x), d_x, d_w


def _call_torch(fn, args):
    *streams, weights, order = args
    params = [w.clone().requires_grad_() for w in weights]
    d_x1, d_x2, d_params = fn(*streams, torch_pairs(params, order.tolist()), params)
    if len(d_params) != len(params) or any(type(d) is not torch.Tensor for d in d_params):
        raise AssertionError("`d_params` must hold one tensor for every tensor of `params`, in their order.")
    if any(getattr(d, "requires_grad", False) for d in (d_x1, d_x2, *d_params)):
        raise AssertionError("A gradient still has a graph (requires_grad): detach what you keep of a branch.")
    if any(p.grad is not None for p in params):
        raise AssertionError("Your function wrote into `.grad` of the parameters; it must return their gradients.")
    return d_x1, d_x2, torch.stack(list(d_params))


def _random(rng, n_blocks, *shape):
    """Two streams, two more for their gradients, and weights, as arrays."""
    d = shape[-1]
    return rng.standard_normal((4, *shape)), rng.standard_normal((2 * n_blocks, d, d)) / np.sqrt(d)


def _close(subject, got, want):
    for name, a, b in zip(("first", "second"), got, want, strict=True):
        expect_close(f"{subject}, {name} stream", a, b, 1e-9)


def _stack_identities(power):
    """Of forward (power 1) and inverse (−1): two stacks after one another, branches that add nothing."""

    def identities(fn, variant, rng):
        (a, b, *_), weights = _random(rng, 5, 6, 3)
        first, second = (slice(4), slice(4, None))[::power]  # two blocks, and three
        whole = fn(a, b, pairs(weights))
        parts = fn(*fn(a, b, pairs(weights[first])), pairs(weights[second]))
        _close("five blocks against two blocks and three", whole, parts)
        factor = variant.carry ** (5 * power)
        _close("branches that add nothing", fn(a, b, pairs(0 * weights)), (factor * a, factor * b))

    return identities


def _backward_identities(fn, variant, rng):
    streams, weights = _random(rng, 1, 2, 5, 3)
    branches = [function for w in weights for function in branch(w, "linear")]
    x1, x2, d_x1, d_x2, *_ = fn(*streams, *branches)
    y1, y2, d_y1, d_y2 = streams
    left, right = np.sum(d_y1 * y1 + d_y2 * y2), np.sum(d_x1 * x1 + d_x2 * x2)
    expect_close("linear branches, the sum of d_y·y against that of d_x·x", right, left, 1e-9)
    branches = [function for w in weights for function in branch(w)]
    once, twice = fn(*streams, *branches), fn(y1, y2, 2 * d_y1, 2 * d_y2, *branches)
    for name, a, b in zip(("x1", "x2"), once, twice, strict=False):
        expect_close(f"{name}, with twice the gradient", b, a, 1e-9)
    for name, a, b in zip(("d_x1", "d_x2", "d_wf", "d_wg"), once[2:], twice[2:], strict=True):
        expect_close(f"{name}, with twice the gradient", b, 2 * a, 1e-9)


def _dropout_identities(fn, variant, rng):
    w = rng.standard_normal((16, 16))
    seed = int(rng.integers(1000))
    rate = 0.25
    dropped, dropped_vjp = fn(*branch(w, "linear"), rate, seed)
    for shape in ((40, 16), (3, 20, 16), (40, 16)):
        x, d_out = rng.standard_normal((2, *shape))
        out = dropped(x)
        expect_equal("the output, called twice", dropped(x), out, "The same seed and shape give the same mask.")
        d_x, d_w = dropped_vjp(x, d_out)
        expect_close("sum of d_x·x against d_out·out", np.sum(d_x * x), np.sum(d_out * out), 1e-9)
        expect_close("sum of d_w·w against d_out·out", np.sum(d_w * w), np.sum(d_out * out), 1e-9)
        if abs(np.mean(out == 0) - rate) > 0.1:
            raise AssertionError(f"dropout at rate {rate} left {np.mean(out == 0):.2f} of the output at zero")
    other, _ = fn(*branch(w, "linear"), rate, seed + 1)
    if np.array_equal(other(x) == 0, out == 0):
        raise AssertionError("two seeds gave the same mask")


def _torch_identities(fn, variant, rng):
    streams = torch.from_numpy(_random(rng, 2, 5, 3)[0])
    d_x1, d_x2, *_ = fn(*streams, [(lambda z: 0 * z, lambda z: 0 * z)] * 2, [])
    for name, got, d_y in (("d_x1", d_x1, streams[2]), ("d_x2", d_x2, streams[3])):
        expect_close(f"branches that add nothing, {name}", got.numpy(), variant.carry**2 * d_y.numpy(), 1e-9)


BACKWARD = ("y1", "y2", "d_y1", "d_y2")
EXERCISES = by_name(
    Exercise("A4.forward", ("x1", "x2", "weights", "kind"), ("y1", "y2"), 1e-9, _call_stack, _stack_identities(1)),
    Exercise("A4.inverse", ("y1", "y2", "weights", "kind"), ("x1", "x2"), 1e-9, _call_stack, _stack_identities(-1)),
    Exercise(
        "A4.backward",
        arguments=(*BACKWARD, "w_f", "w_g", "kind"),
        results=("x1", "x2", "d_x1", "d_x2", "d_wf", "d_wg"),
        rtol=1e-9,
        call=_call_backward,
        identities=_backward_identities,
    ),
    Exercise(
        "A4.dropout",
        arguments=("x", "d_out", "w", "kind", "rate", "seed"),
        results=("dropped(x)", "dropped(x), called again", "d_x", "d_w"),
        rtol=1e-9,
        call=_call_dropout,
        identities=_dropout_identities,
    ),
    Exercise(
        "A4.torch",
        arguments=(*BACKWARD, "weights", "order"),
        results=("d_x1", "d_x2", "d_params"),
        rtol=1e-9,
        call=_call_torch,
        identities=_torch_identities,
        torch=True,
    ),
)
