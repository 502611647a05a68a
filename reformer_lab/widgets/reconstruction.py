"""How exactly a reversible stack reconstructs its inputs: the widget of notebook 06, and the notebook's measurements.

The errors are rounding errors, and still the same on every machine: ``Stretch`` uses only operations whose rounding is
prescribed (no matrix products, no tanh).
"""

import math

import numpy as np
import torch
from reformer_ref._arguments import clear_errors, require_bool, require_choice, require_int
from reformer_ref.feed_forward import FeedForward
from reformer_ref.hashing.api import hash_vectors, random_rotations
from reformer_ref.memory import count_peak
from reformer_ref.reversible import ReversibleStack, reversible_stack, reversible_stack_inverse
from reformer_ref.testing import relative_error
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode  # as PyTorch's notes on extending it name it

from reformer_lab.plots import reversible as plots
from reformer_lab.plots.drawing import controls

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}
BRANCHES = ("bounded", "linear")
DEEPEST = 1 << 10  # blocks
WIDTH = 32  # d_model of the stacks whose reconstruction is measured


class Stretch(nn.Module):
    """A residual branch, gain · P x, where P rotates the features and flips some signs: it scales lengths by ``gain``.

    bounded: u / (1 + |u|) of that, which stretches no difference by more than ``gain`` and never exceeds 1.
    """

    def __init__(self, gain, shift, signs, bounded):
        super().__init__()
        self.gain, self.shift, self.signs, self.bounded = gain, shift, signs, bounded

    def forward(self, x):
        u = self.gain * (x.roll(self.shift, -1) * self.signs.to(x.dtype))
        return u / (1 + u.abs()) if self.bounded else u


@clear_errors
def stretching_blocks(depth, gain, branches="bounded", seed=0):
    """``depth`` blocks of two ``Stretch`` branches, "bounded" or "linear"."""
    require_int("depth", depth, 1, DEEPEST)
    require_choice("branches", branches, BRANCHES)
    rng = np.random.default_rng(seed)
    signs = torch.from_numpy(rng.choice([-1.0, 1.0], (2 * depth, WIDTH)))
    shifts = rng.integers(1, WIDTH, 2 * depth).tolist()
    both = [Stretch(gain, shift, s, branches == "bounded") for shift, s in zip(shifts, signs, strict=True)]
    return list(zip(both[::2], both[1::2], strict=True))


@clear_errors
@torch.no_grad()
def up_and_down(depth, dtype="float32", gain=0.5, branches="bounded", length=64):
    """The pairs of streams (length, WIDTH) before each block and after the last, and reconstructed from the last.

    Two lists of depth + 1 pairs, computed in ``dtype`` from uniform numbers in [−1, 1).
    """
    blocks = stretching_blocks(depth, gain, branches)
    start = torch.from_numpy(2 * np.random.default_rng(1).random((2, length, WIDTH)) - 1).to(DTYPES[dtype])
    up = [tuple(start)]
    for block in blocks:
        up.append(reversible_stack(*up[-1], [block]))
    down = [up[-1]]
    for block in reversed(blocks):
        down.insert(0, reversible_stack_inverse(*down[0], [block]))
    return up, down


@clear_errors
def reconstruction_errors(depth, dtype="float32", gain=0.5, branches="bounded"):
    """(errors, sizes), each (depth + 1,): relative error of the streams reconstructed after every block; their RMS."""
    ways = up_and_down(depth, dtype, gain, branches)
    up, down = (torch.stack([torch.stack(pair) for pair in way]).double().numpy() for way in ways)
    errors = np.array([relative_error(got, want) for got, want in zip(down, up, strict=True)])
    return errors, np.sqrt(np.mean(up**2, axis=(1, 2, 3)))


@clear_errors
def growth_per_branch(gain):
    """Predicted growth of the streams' length in one linear branch, if the added vector points in a random direction.

    x_{k+1} = x_{k−1} + gain · P x_k then has the squared length n_{k+1} = n_{k−1} + gain² n_k:
    Fibonacci, for gain 1.
    """
    return math.sqrt((gain**2 + math.sqrt(gain**4 + 4)) / 2)


@controls(depth=(1, 24), dtype=[*DTYPES], gain=(0.1, 2.0, 0.1), branches=[*BRANCHES])
def reconstruction(depth=12, dtype="float32", gain=0.5, branches="linear"):
    """Picture of the error of every layer's reconstruction, measured on the package's stack."""
    errors, sizes = reconstruction_errors(depth, dtype, gain, branches)
    digits = max(0.0, -math.log10(errors[0])) if errors[0] else math.inf
    numbers = {
        "decimal digits left": round(digits, 1),
        "growth of the streams in one branch": float((sizes[-1] / sizes[0]) ** (1 / (2 * depth))),
    }
    if branches == "linear":
        numbers["predicted growth"] = growth_per_branch(gain)
    return plots.error_by_layer(errors, torch.finfo(DTYPES[dtype]).eps / 2, dtype, **numbers)


@clear_errors
def buckets_up_and_down(depth, dtype, gain, branches="bounded", length=64, n_hashes=4, n_buckets=8):
    """Buckets (n_hashes, length) of stream 2 at the input, and of its reconstruction from the output.

    Hashed in float64 with rotations of whole numbers, so that the hash itself does not round.
    """
    generator = torch.Generator().manual_seed(0)
    rotations = (16 * random_rotations(generator, n_hashes, WIDTH, n_buckets, dtype=torch.float64)).round()
    up, down = up_and_down(depth, dtype, gain, branches, length)
    return tuple(hash_vectors(way[0][1].double(), rotations, n_buckets).numpy() for way in (up, down))


@clear_errors
def feed_forward_stack(depth, reversible, d_model=16, d_ff=64):
    """A stack of blocks whose branches are layer norm and a feed-forward layer, in float32."""
    require_int("depth", depth, 1, DEEPEST)
    generator = torch.Generator().manual_seed(0)
    layers = [FeedForward(d_model, d_ff, generator=generator) for _ in range(2 * depth)]
    branches = [nn.Sequential(nn.LayerNorm(d_model), layer) for layer in layers]
    return ReversibleStack(list(zip(branches[::2], branches[1::2], strict=True)), reversible)


@clear_errors
def training_step(depth, reversible, length=2048, d_model=16, backward=True):
    """A function without arguments that runs such a stack forward on (length, d_model), and backward."""
    require_bool("backward", backward)
    stack = feed_forward_stack(depth, reversible, d_model)
    x1, x2 = (torch.zeros(length, d_model, requires_grad=True) for _ in range(2))

    def step():
        y1, y2 = stack(x1, x2)
        if backward:
            (y1 + y2).sum().backward()

    return step


@clear_errors
def step_bytes(depth, reversible):
    """Counted peak of ``training_step`` in bytes."""
    return count_peak(training_step(depth, reversible)).above_start_bytes


class ProductCounter(TorchDispatchMode):
    """Counts the multiplications and additions of matrix products while active, backward included."""

    operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            a, b = args[-2:]
            self.operations += 2 * a.numel() * b.shape[-1]
        return func(*args, **(kwargs or {}))


@clear_errors
def step_operations(depth, reversible, backward=True):
    """Counted multiplications and additions of all matrix products in ``training_step``."""
    step = training_step(depth, reversible, backward=backward)
    with ProductCounter() as counter:
        step()
    return counter.operations
