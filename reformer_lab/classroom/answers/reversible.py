"""A4, the reversible block: its answers under any variant, built on the spec, and the cases."""

import numpy as np
import torch
from reformer_ref.reversible import adapters, checks, spec

from reformer_lab.classroom.answers import Answer
from reformer_lab.classroom.exercises.reversible import branch


class _Scaled:
    """u -> after · h(before · u) as the spec wants a layer, from functions h and h_vjp."""

    def __init__(self, h, h_vjp, after, before):
        self.h, self.h_vjp, self.after, self.before = h, h_vjp, after, before

    def __call__(self, u):
        return self.after * self.h(self.before * u)

    def vjp(self, u, d_out):
        d_z, d_params = self.h_vjp(self.before * u, self.after * d_out)
        return self.before * d_z, d_params


def _as_spec(variant, f, g, f_vjp=None, g_vjp=None):
    """The block of a variant as one of the spec, with outputs y₁/c, y₂/c for c = carry; turned where G comes first.

    y₁ = c·x₁ ± F(x₂) is y₁/c = x₁ ± F(x₂)/c, a line of the spec, and so is y₂/c = x₂ ± G(c · y₁/c)/c.
    """
    c, s = variant.carry, variant.sign
    first, second = ((f, f_vjp), (g, g_vjp)) if variant.coupling == "f_then_g" else ((g, g_vjp), (f, f_vjp))
    return [(_Scaled(*first, s / c, 1.0), _Scaled(*second, s / c, c))]


def _turn(variant, *streams):
    """Pairs of streams by name as pairs by the order in which they change, or back."""
    return streams if variant.coupling == "f_then_g" else tuple(streams[k ^ 1] for k in range(len(streams)))


def _forward(variant):
    def forward(x1, x2, blocks):
        for f, g in blocks:
            y = spec.reversible_stack(*_turn(variant, x1, x2), _as_spec(variant, f, g))
            x1, x2 = (variant.carry * stream for stream in _turn(variant, *y))
        return x1, x2

    return forward


def _inverse(variant):
    def inverse(y1, y2, blocks):
        for f, g in reversed(blocks):
            y = _turn(variant, y1 / variant.carry, y2 / variant.carry)
            y1, y2 = _turn(variant, *spec.reversible_stack_inverse(*y, _as_spec(variant, f, g)))
        return y1, y2

    return inverse


def _backward(variant):
    def backward(y1, y2, d_y1, d_y2, f, f_vjp, g, g_vjp):
        y = _turn(variant, y1 / variant.carry, y2 / variant.carry)
        d_y = _turn(variant, variant.carry * d_y1, variant.carry * d_y2)
        *streams, d_params = spec.reversible_stack_vjp(*y, _as_spec(variant, f, g, f_vjp, g_vjp), *d_y)
        return *_turn(variant, *streams), *_turn(variant, *d_params[0])

    return backward


def _dropout(variant):
    def with_dropout(h, h_vjp, rate, seed):
        def mask(shape):
            u = np.random.default_rng(seed).random(shape)
            return np.where(u >= rate if variant.keep == "high" else u < 1 - rate, 1 / (1 - rate), 0.0)

        return lambda x: mask(x.shape) * h(x), lambda x, d_out: h_vjp(x, mask(x.shape) * d_out)

    return with_dropout


def _torch(variant):
    """By ordinary autograd: inputs found as in exercise 2, then forward with everything stored."""

    def stack_backward(y1, y2, d_y1, d_y2, blocks, params):
        c, s, first = variant.carry, variant.sign, 0 if variant.coupling == "f_then_g" else 1
        branches = [(k, block[k]) for block in blocks for k in (first, 1 - first)]
        streams = [y1, y2]
        with torch.no_grad():
            for k, h in reversed(branches):
                streams[k] = (streams[k] - s * h(streams[1 - k])) / c
        x = [stream.requires_grad_() for stream in streams]
        streams = list(x)
        for k, h in branches:
            streams[k] = c * streams[k] + s * h(streams[1 - k])
        d_x1, d_x2, *d_params = torch.autograd.grad(streams, [*x, *params], [d_y1, d_y2], allow_unused=True)
        return (d_x1, d_x2, [torch.zeros_like(p) if d is None else d for p, d in zip(params, d_params, strict=True)])

    return stack_backward


def _cases(variant, rng, hidden, n_streams=2):
    """(streams, weights, kind): first whole numbers, which can be followed by hand."""
    sizes = ((1, (1, 1)), (2, (7, 3)), (4, (2, 5, 3)), (6, (1, 4)), (8, (3, 1, 2, 2)))
    if not hidden:
        weights = np.array([[[1.0, 2.0], [0.0, 1.0]], [[0.0, 1.0], [-1.0, 1.0]]])
        yield *rng.integers(-2, 3, (n_streams, 2, 2)).astype(np.float64), weights, "linear"
        sizes = ((2, (3, 2)), (3, (2, 3)))
    for n_blocks, shape in sizes:
        yield (*rng.standard_normal((n_streams, *shape)), _weights(rng, 2 * n_blocks, shape[-1]), "tanh")


def _forward_cases(variant, rng, hidden):
    yield from _cases(variant, rng, hidden)
    if hidden:  # float32, whole numbers: every step of forward is exact
        streams, weights = rng.integers(-2, 3, (2, 4, 3)), rng.integers(-1, 2, (4, 3, 3))
        yield *streams.astype(np.float32), weights.astype(np.float32), "linear"


def _backward_cases(variant, rng, hidden):
    for *streams, weights, kind in _cases(variant, rng, hidden, n_streams=4):
        yield *streams, *weights[:2], kind


def _dropout_cases(variant, rng, hidden):
    sizes = (((1, 1), 0.0), ((5, 4), 0.75), ((2, 3, 4), 0.4), ((2, 1, 3, 5), 0.1))
    if not hidden:  # a layer that returns its input shows the mask
        yield (np.arange(1.0, 9.0).reshape(2, 4), np.ones((2, 4)), np.eye(4), "linear", 0.5, int(rng.integers(1, 100)))
        sizes = (((3, 4), 0.4),)
    for shape, rate in sizes:
        x, d_out = rng.standard_normal((2, *shape))
        yield x, d_out, *_weights(rng, 1, shape[-1]), "tanh", rate, int(rng.integers(1, 10_000))


def _torch_cases(variant, rng, hidden):
    orders, shape = ([[0, 1]], [[0, 1], [2, 3]]), (3, 2)
    if hidden:  # weights that several halves share, or none uses
        orders, shape = (([[0, 1], [2, 3], [4, 5]], [[0, 0]], [[0, 1], [1, 0], [0, 1]], [[0, 2], [2, 4]]), (2, 4, 3))
    for order in orders:
        yield (*rng.standard_normal((4, *shape)), _weights(rng, np.max(order) + 1, shape[-1]), np.array(order))


def _weights(rng, n, d):
    return rng.standard_normal((n, d, d)) / np.sqrt(d)


def _paired(blocks):
    """The branches of the component's checks in pairs; a branch that adds nothing completes an odd number."""
    branches = [branch for block in blocks for branch in block]
    branches += [_Scaled(lambda x: 0 * x, lambda x, d_out: (0 * x, {}), 1.0, 1.0)] * (len(branches) % 2)
    return list(zip(branches[::2], branches[1::2], strict=True))


def _like(blocks, d_branches):
    rest = iter(d_branches)
    return [tuple(next(rest) for _ in block) for block in blocks]


def _check_stack(component_check):
    return lambda fn: component_check(lambda a, b, blocks: fn(a, b, _paired(blocks)))


def _check_backward(fn):
    def vjp(y1, y2, blocks, d_y1, d_y2):
        d_branches = []
        for f, g in reversed(_paired(blocks)):
            y1, y2, d_y1, d_y2, *d_params = fn(y1, y2, d_y1, d_y2, f, f.vjp, g, g.vjp)
            d_branches[:0] = d_params
        return y1, y2, d_y1, d_y2, _like(blocks, d_branches)

    checks.check_reversible_vjp(vjp)


def _check_dropout(fn):
    def run(x1, x2, weights, rate, d_y1, d_y2, seed):
        block = [_Scaled(*fn(*branch(w, "linear"), rate, 100 * seed + k), 1.0, 1.0) for k, w in enumerate(weights)]
        y = spec.reversible_stack(x1, x2, [block])
        _, _, d_x1, d_x2, (d_weights,) = spec.reversible_stack_vjp(*y, [block], d_y1, d_y2)
        return *y, d_x1, d_x2, np.stack(d_weights)

    checks.check_dropout_replay(run)


def _check_torch(fn):
    def vjp(y1, y2, blocks, d_y1, d_y2):
        modules = [[adapters.Tanh(branch) for branch in block] for block in blocks]
        params = [p for block in modules for module in block for p in (module.w, module.b)]
        d_x1, d_x2, d_params = fn(*map(torch.from_numpy, (y1, y2, d_y1, d_y2)), _paired(modules), params)
        d_branches = [{"w": w, "b": b} for w, b in zip(d_params[::2], d_params[1::2], strict=True)]
        return *spec.reversible_stack_inverse(y1, y2, blocks), d_x1, d_x2, _like(blocks, d_branches)

    checks.check_reversible_vjp(vjp)


ANSWERS = {
    "A4.forward": Answer(_forward, _forward_cases, _check_stack(checks.check_reversible_stack)),
    "A4.inverse": Answer(_inverse, _cases, _check_stack(checks.check_reversible_inverse)),
    "A4.backward": Answer(_backward, _backward_cases, _check_backward),
    "A4.dropout": Answer(_dropout, _dropout_cases, _check_dropout),
    "A4.torch": Answer(_torch, _torch_cases, _check_torch),
}
