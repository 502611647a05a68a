"""The reversible stack of PyTorch as functions on arrays, with the halves that the room's checks
ask for.

``bridge.as_numpy`` adapts functions of tensors; a stack takes modules as well. Variants that forget
what must be replayed (``keeps_memo=False``) are here too, for whoever wants to see the checks
refuse them.
"""

import numpy as np
import torch
from torch import nn

from reformer_ref.hashing.api import hash_vectors
from reformer_ref.reversible.pytorch import reversible_stack, reversible_stack_inverse
from reformer_ref.testing import to_numpy


class Tanh(nn.Module):
    """The half of ``reversible.checks.TanhHalf``, as a module."""

    def __init__(self, half):
        super().__init__()
        self.w, self.b = (
            nn.Parameter(torch.from_numpy(np.array(a, dtype=np.float64))) for a in (half.w, half.b)
        )

    def forward(self, x):
        return torch.tanh(x @ self.w + self.b)


class Dropped(nn.Module):
    """h(x) = dropout(x w). generator: of the masks, kept in the memo if ``keeps_memo``; None:
    PyTorch's dropout.
    """

    def __init__(self, w, rate, generator=None, keeps_memo=False):
        super().__init__()
        self.w, self.rate = nn.Parameter(torch.from_numpy(np.array(w))), rate
        self.generator, self.keeps_memo = generator, keeps_memo

    def forward(self, x, memo=None):
        if self.generator is None:
            return nn.functional.dropout(x @ self.w, self.rate)
        memo = {} if memo is None else memo
        if "mask" not in memo:
            kept = torch.rand(x.shape, generator=self.generator) >= self.rate
            memo["mask"] = kept.to(x.dtype) / (1 - self.rate)
        return memo["mask"] * (x @ self.w)


class Bucketed(nn.Module):
    """h(x)_i = x_i · table[bucket of x_i]. keeps_memo: backward uses the buckets of forward; else
    it hashes again.
    """

    def __init__(self, table, keeps_memo=True):
        super().__init__()
        self.table, self.keeps_memo = nn.Parameter(torch.from_numpy(np.array(table))), keeps_memo

    def forward(self, x, memo=None):
        memo = {} if memo is None else memo
        if "buckets" not in memo:
            d = x.shape[-1]
            memo["buckets"] = hash_vectors(x, torch.eye(d, dtype=x.dtype)[None], 2 * d)[0]
        return x * self.table[memo["buckets"]]


def stack_on_arrays(fn):
    """``fn`` = ``reversible_stack`` or its inverse as (x1, x2, blocks of ``TanhHalf``) -> two
    arrays.
    """
    return lambda x1, x2, blocks: to_numpy(fn(*_leaves(x1, x2), _modules(blocks)))


def vjp_on_arrays(reversible=True):
    """Backward of the package's stack as (y1, y2, blocks, d_y1, d_y2) -> (x1, x2, d_x1, d_x2,
    d_params).
    """

    def vjp(y1, y2, blocks, d_y1, d_y2):
        modules = _modules(blocks)
        x = [
            t.detach().requires_grad_() for t in reversible_stack_inverse(*_leaves(y1, y2), modules)
        ]
        (_, _, *d_x), grads = _gradients(x, modules, (d_y1, d_y2), reversible)
        grads = iter(grads)
        return (
            *to_numpy(x),
            *d_x,
            [tuple({"w": next(grads), "b": next(grads)} for _ in block) for block in blocks],
        )

    return vjp


def dropout_on_arrays(own_generator=False, keeps_memo=False, reversible=True):
    """Stacks of ``Dropped``, as ``check_dropout_replay`` wants them."""

    def fn(x1, x2, weights, rate, d_y1, d_y2, seed):
        generator = torch.Generator().manual_seed(seed) if own_generator else None
        halves = [Dropped(w, rate, generator, keeps_memo) for w in weights]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            results, grads = _gradients(_leaves(x1, x2), [halves], (d_y1, d_y2), reversible)
        return *results, np.stack(grads)

    return fn


def buckets_on_arrays(keeps_memo=True, reversible=True):
    """Stacks of ``Bucketed``, as ``check_bucket_replay`` wants them."""

    def fn(x1, x2, tables, d_y1, d_y2):
        halves = [Bucketed(table, keeps_memo) for table in tables]
        results, grads = _gradients(_leaves(x1, x2), [halves], (d_y1, d_y2), reversible)
        return *results, np.stack(grads)

    return fn


def _leaves(*arrays):
    return [torch.from_numpy(np.array(a)).requires_grad_() for a in arrays]


def _modules(blocks):
    return [tuple(Tanh(half) for half in block) for block in blocks]


def _gradients(x, blocks, d_y, reversible):
    """((y1, y2, d_x1, d_x2), gradients of the parameters) by autograd, as arrays."""
    params = [p for block in blocks for half in block for p in half.parameters()]
    y = reversible_stack(*x, blocks, reversible=reversible)
    grads = torch.autograd.grad(y, [*x, *params], [torch.from_numpy(np.array(d)) for d in d_y])
    return to_numpy((*y, *grads[:2])), to_numpy(grads[2:])
