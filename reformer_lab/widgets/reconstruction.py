"""How well a reversible stack finds its inputs again: the widget of notebook 06, and what that
notebook measures.

The errors are rounding errors, and still the same on every machine: ``StretchHalf`` uses only
operations whose rounding is prescribed (no matrix products, no tanh).
"""

import math

import numpy as np
import torch
from reformer_ref._arguments import clear_errors, require_bool, require_choice, require_int
from reformer_ref.feed_forward.pytorch import FeedForward
from reformer_ref.hashing.api import hash_vectors, random_rotations
from reformer_ref.memory.measure import count_peak
from reformer_ref.reversible.pytorch import ReversibleStack, reversible_stack, reversible_stack_inverse
from reformer_ref.testing import relative_error
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode  # as PyTorch's notes on extending it name it

from reformer_lab.plots import reversible as plots
from reformer_lab.plots.drawing import Choice, Range, controls

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}
HALVES = ("bounded", "linear")
DEEPEST = 1 << 10  # blocks
WIDTH = 32  # d_model of the stacks whose reconstruction is measured


class StretchHalf(nn.Module):
    """h(x) = gain · P x, where P moves the features round and turns some signs: lengths grow by
    ``gain``, exactly.

    bounded: u / (1 + |u|) of that, which stretches no difference by more than ``gain`` and never
    exceeds 1.
    """

    def __init__(self, gain, shift, signs, bounded):
        super().__init__()
        self.gain, self.shift, self.signs, self.bounded = gain, shift, signs, bounded

    def forward(self, x):
        u = self.gain * (x.roll(self.shift, -1) * self.signs.to(x.dtype))
        return u / (1 + u.abs()) if self.bounded else u


@clear_errors
def stretching_blocks(depth, gain, halves="bounded", seed=0):
    """``depth`` blocks of two ``StretchHalf``; halves: "bounded" or "linear"."""
    require_int("depth", depth, 1, DEEPEST), require_choice("halves", halves, HALVES)
    rng = np.random.default_rng(seed)
    signs = torch.from_numpy(rng.choice([-1.0, 1.0], (2 * depth, WIDTH)))
    shifts = rng.integers(1, WIDTH, 2 * depth).tolist()
    both = [StretchHalf(gain, shift, s, halves == "bounded") for shift, s in zip(shifts, signs, strict=True)]
    return list(zip(both[::2], both[1::2], strict=True))


@clear_errors
@torch.no_grad()
def up_and_down(depth, dtype="float32", gain=0.5, halves="bounded", length=64):
    """The pairs of streams (length, WIDTH) before every block and after the last, and the same
    found from the last.

    Two lists of depth + 1 pairs, computed in ``dtype`` from uniform numbers in [−1, 1).
    """
    blocks = stretching_blocks(depth, gain, halves)
    start = torch.from_numpy(2 * np.random.default_rng(1).random((2, length, WIDTH)) - 1).to(DTYPES[dtype])
    up = [tuple(start)]
    for block in blocks:
        up.append(reversible_stack(*up[-1], [block]))
    down = [up[-1]]
    for block in reversed(blocks):
        down.insert(0, reversible_stack_inverse(*down[0], [block]))
    return up, down


@clear_errors
def reconstruction_errors(depth, dtype="float32", gain=0.5, halves="bounded"):
    """(errors, sizes), each (depth + 1,): the relative error of the streams found again after every
    block, and their root mean square."""
    ways = up_and_down(depth, dtype, gain, halves)
    up, down = (torch.stack([torch.stack(pair) for pair in way]).double().numpy() for way in ways)
    errors = np.array([relative_error(found, true) for found, true in zip(down, up, strict=True)])
    return errors, np.sqrt(np.mean(up**2, axis=(1, 2, 3)))


@clear_errors
def growth_per_half(gain):
    """Predicted growth of the streams' length in one linear half, if what is added points anywhere.

    x_{k+1} = x_{k−1} + gain · P x_k then has the squared length n_{k+1} = n_{k−1} + gain² n_k:
    Fibonacci, for gain 1.
    """
    return math.sqrt((gain**2 + math.sqrt(gain**4 + 4)) / 2)


@controls(
    depth=Range(1, 24, 1, start=12),
    dtype=Choice(*DTYPES, start="float32"),
    gain=Range(0.1, 2.0, 0.1, start=0.5),
    halves=Choice(*HALVES, start="linear"),
)
def reconstruction(depth, dtype, gain, halves):
    """Picture of the error of every layer's reconstruction, measured on the package's stack."""
    errors, sizes = reconstruction_errors(depth, dtype, gain, halves)
    digits = max(0.0, -math.log10(errors[0])) if errors[0] else math.inf
    numbers = {
        "decimal digits left": round(digits, 1),
        "growth of the streams in one half": float((sizes[-1] / sizes[0]) ** (1 / (2 * depth))),
    }
    if halves == "linear":
        numbers["predicted growth"] = growth_per_half(gain)
    return plots.error_by_layer(errors, torch.finfo(DTYPES[dtype]).eps / 2, dtype, **numbers)


@clear_errors
def buckets_up_and_down(depth, dtype, gain, halves="bounded", length=64, n_hashes=4, n_buckets=8):
    """Buckets (n_hashes, length) of stream 2 at the input, and of the same found again from the
    output.

    Hashed in float64 with rotations of whole numbers, so that the hash itself does not round.
    """
    generator = torch.Generator().manual_seed(0)
    rotations = (16 * random_rotations(generator, n_hashes, WIDTH, n_buckets, dtype=torch.float64)).round()
    up, down = up_and_down(depth, dtype, gain, halves, length)
    return tuple(hash_vectors(way[0][1].double(), rotations, n_buckets).numpy() for way in (up, down))


@clear_errors
def feed_forward_stack(depth, reversible, d_model=16, d_ff=64):
    """A stack of blocks whose halves are layer norm and a feed-forward layer, in float32."""
    require_int("depth", depth, 1, DEEPEST)
    generator = torch.Generator().manual_seed(0)
    layers = [FeedForward(d_model, d_ff, generator=generator) for _ in range(2 * depth)]
    halves = [nn.Sequential(nn.LayerNorm(d_model), layer) for layer in layers]
    return ReversibleStack(list(zip(halves[::2], halves[1::2], strict=True)), reversible)


@clear_errors
def training_step(depth, reversible, length=2048, d_model=16, backward=True):
    """A function without arguments that runs such a stack forward on (length, d_model), and
    backward.
    """
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

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            a, b = args[-2:]
            self.total += 2 * a.numel() * b.shape[-1]
        return func(*args, **(kwargs or {}))


@clear_errors
def step_operations(depth, reversible, backward=True):
    """Counted multiplications and additions of all matrix products in ``training_step``."""
    step = training_step(depth, reversible, backward=backward)
    with ProductCounter() as counter:
        step()
    return counter.total


# The package's stack as functions on NumPy arrays, as the checks of the room want them
