"""The PyTorch version passes the same checks as the spec, reversible or not."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from reformer_ref.bridge import to_numpy
from reformer_ref.reversible import checks
from reformer_ref.reversible.pytorch import reversible_stack, reversible_stack_inverse


class Tanh(nn.Module):
    def __init__(self, half):
        super().__init__()
        self.w = nn.Parameter(torch.from_numpy(half.w))
        self.b = nn.Parameter(torch.from_numpy(half.b))

    def forward(self, x):
        return torch.tanh(x @ self.w + self.b)


class Drop(nn.Module):
    def __init__(self, weight, rate):
        super().__init__()
        self.w, self.dropout = nn.Parameter(torch.from_numpy(weight)), nn.Dropout(rate)

    def forward(self, x):
        return self.dropout(x @ self.w)


class Bucket(nn.Module):
    keeps_memo = True

    def __init__(self, table):
        super().__init__()
        self.table = nn.Parameter(torch.from_numpy(table))

    def forward(self, x, memo):
        if "buckets" not in memo:
            memo["buckets"] = torch.from_numpy(np.argmax(torch.cat([x, -x], -1).detach().numpy(), -1))
        return x * self.table[memo["buckets"]]


def leaves(*arrays):
    return [torch.from_numpy(a).requires_grad_() for a in arrays]


def gradients(x, blocks, d_y, reversible):
    """(y1, y2, d_x1, d_x2, gradients of the parameters) by autograd, as arrays."""
    params = [p for block in blocks for half in block for p in half.parameters()]
    y = reversible_stack(*x, blocks, reversible=reversible)
    grads = torch.autograd.grad(y, [*x, *params], [torch.from_numpy(d) for d in d_y])
    return to_numpy((*y, *grads[:2])), to_numpy(grads[2:])


def stack(x1, x2, blocks, reversible):
    blocks = [tuple(map(Tanh, block)) for block in blocks]
    return to_numpy(reversible_stack(*leaves(x1, x2), blocks, reversible=reversible))


def inverse(y1, y2, blocks):
    return to_numpy(reversible_stack_inverse(*leaves(y1, y2), [tuple(map(Tanh, block)) for block in blocks]))


def vjp(y1, y2, blocks, d_y1, d_y2, reversible):
    x1, x2 = inverse(y1, y2, blocks)
    blocks = [tuple(map(Tanh, block)) for block in blocks]
    (_, _, d_x1, d_x2), grads = gradients(leaves(x1, x2), blocks, (d_y1, d_y2), reversible)
    grads = iter(grads)
    return x1, x2, d_x1, d_x2, [tuple({"w": next(grads), "b": next(grads)} for _ in block) for block in blocks]


def dropout(x1, x2, weights, rate, d_y1, d_y2, seed, reversible):
    torch.manual_seed(seed)
    blocks = [[Drop(w, rate) for w in weights]]
    results, grads = gradients(leaves(x1, x2), blocks, (d_y1, d_y2), reversible)
    return *results, np.stack(grads)


def buckets(x1, x2, tables, d_y1, d_y2, reversible):
    results, grads = gradients(leaves(x1, x2), [list(map(Bucket, tables))], (d_y1, d_y2), reversible)
    return *results, np.stack(grads)


@pytest.mark.parametrize("reversible", [True, False])
def test_checks_accept_pytorch(reversible):
    checks.check_reversible_stack(partial(stack, reversible=reversible))
    checks.check_reversible_inverse(inverse)
    checks.check_reversible_vjp(partial(vjp, reversible=reversible))
    checks.check_dropout_replay(partial(dropout, reversible=reversible))
    checks.check_bucket_replay(partial(buckets, reversible=reversible))
