"""The reversible stack of PyTorch as functions on arrays, as the component's checks ask for them.

``uses_saved=False`` makes layers that do not keep what they chose: the checks refuse them.
"""

import numpy as np
import torch
from torch import nn

from reformer_ref.reversible import reversible_stack, reversible_stack_inverse
from reformer_ref.testing import to_numpy


class Tanh(nn.Module):
    """``reversible.checks.TanhLayer`` as a module."""

    def __init__(self, layer):
        super().__init__()
        self.w = nn.Parameter(torch.from_numpy(layer.w.copy()))
        self.b = nn.Parameter(torch.from_numpy(layer.b.copy()))

    def forward(self, x):
        return torch.tanh(x @ self.w + self.b)


class Dropped(nn.Module):
    """dropout(x w), with a mask from ``generator``; None: PyTorch's own dropout."""

    def __init__(self, w, rate, generator=None, uses_saved=False):
        super().__init__()
        self.w, self.rate = nn.Parameter(torch.from_numpy(w.copy())), rate
        self.generator, self.uses_saved = generator, uses_saved

    def forward(self, x, saved=None):
        if self.generator is None:
            return nn.functional.dropout(x @ self.w, self.rate)
        saved = {} if saved is None else saved
        if "mask" not in saved:
            kept = torch.rand(x.shape, generator=self.generator) >= self.rate
            saved["mask"] = kept.to(x.dtype) / (1 - self.rate)
        return saved["mask"] * (x @ self.w)


class Bucketed(nn.Module):
    """x_i · table[bucket of x_i], hashed once if ``uses_saved``, else in backward again."""

    def __init__(self, table, uses_saved=True):
        super().__init__()
        self.table, self.uses_saved = nn.Parameter(torch.from_numpy(table.copy())), uses_saved

    def forward(self, x, saved=None):
        saved = {} if saved is None else saved
        if "buckets" not in saved:
            saved["buckets"] = torch.cat([x, -x], dim=-1).detach().argmax(dim=-1)
        return x * self.table[saved["buckets"]]


def stack_on_arrays(fn):
    """``reversible_stack`` or its inverse as (x1, x2, blocks of ``TanhLayer``) -> two arrays."""

    def stack(x1, x2, blocks):
        return to_numpy(fn(torch.from_numpy(x1), torch.from_numpy(x2), _modules(blocks)))

    return stack


def vjp_on_arrays(reversible=True):
    """Backward as (y1, y2, blocks, d_y1, d_y2) -> (x1, x2, d_x1, d_x2, d_params)."""

    def vjp(y1, y2, blocks, d_y1, d_y2):
        modules = _modules(blocks)
        y1, y2 = torch.from_numpy(y1), torch.from_numpy(y2)
        x1, x2 = to_numpy(reversible_stack_inverse(y1, y2, modules))
        (_, _, *d_x), grads = _gradients(x1, x2, modules, d_y1, d_y2, reversible)
        grads = iter(grads)
        d_params = [tuple({"w": next(grads), "b": next(grads)} for _ in b) for b in blocks]
        return x1, x2, *d_x, d_params

    return vjp


def dropout_on_arrays(with_generator=False, uses_saved=False, reversible=True):
    """Stacks of ``Dropped``, for ``check_dropout_replay``."""

    def fn(x1, x2, weights, rate, d_y1, d_y2, seed):
        generator = torch.Generator().manual_seed(seed) if with_generator else None
        layers = [Dropped(w, rate, generator, uses_saved) for w in weights]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            results, grads = _gradients(x1, x2, [layers], d_y1, d_y2, reversible)
        return *results, np.stack(grads)

    return fn


def buckets_on_arrays(uses_saved=True, reversible=True):
    """Stacks of ``Bucketed``, for ``check_bucket_replay``."""

    def fn(x1, x2, tables, d_y1, d_y2):
        layers = [Bucketed(table, uses_saved) for table in tables]
        results, grads = _gradients(x1, x2, [layers], d_y1, d_y2, reversible)
        return *results, np.stack(grads)

    return fn


def _modules(blocks):
    return [tuple(Tanh(layer) for layer in block) for block in blocks]


def _gradients(x1, x2, blocks, d_y1, d_y2, reversible):
    """((y1, y2, d_x1, d_x2), gradients of the parameters) by autograd, as arrays."""
    x = [torch.from_numpy(np.array(a)).requires_grad_() for a in (x1, x2)]
    params = [p for block in blocks for layer in block for p in layer.parameters()]
    y = reversible_stack(*x, blocks, reversible=reversible)
    d_y = [torch.from_numpy(np.array(d)) for d in (d_y1, d_y2)]
    grads = torch.autograd.grad(y, [*x, *params], d_y)
    return to_numpy((*y, *grads[:2])), to_numpy(grads[2:])
