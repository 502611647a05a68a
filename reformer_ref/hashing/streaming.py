"""The hash for a block of positions at a time, in bounded memory. Not checked."""

import torch
from torch import Tensor

from reformer_ref._blocks import block_starts
from reformer_ref.hashing.spec import factors_of

SCORES_AT_A_TIME = 1 << 20  # numbers: 4 MiB of float32


@torch.no_grad()
def hash_vectors(x, rotations, n_buckets):
    """The function of ``hashing.pytorch``; scores are made for a block of positions at a time."""
    factors = factors_of(n_buckets)
    n_hashes, _, width = rotations.shape[-3:]
    length = x.shape[-2]
    batch = torch.broadcast_shapes(x.shape[:-2], rotations.shape[:-3])
    columns = rotations.to(x).transpose(-2, -1).flatten(-3, -2)  # (…, n_hashes·width, d)
    buckets = torch.empty(*batch, n_hashes, length, dtype=torch.int64, device=x.device)
    block = max(1, SCORES_AT_A_TIME // (batch.numel() * n_hashes * width))
    for start in block_starts(length, block):
        rows = x[..., start : start + block, :]
        # einsum, unlike matmul, repeats neither x for every round nor R for every sequence
        scores = torch.einsum("...wd,...ld->...wl", columns, rows)  # (…, n_hashes·width, block)
        scores = scores.unflatten(-2, (n_hashes, width))
        buckets[..., start : start + block] = _argmax_of_both_signs(scores, factors)
    return buckets


def _argmax_of_both_signs(scores: Tensor, factors: tuple[int, ...]) -> Tensor:
    """argmax([s ; −s]) per factor along dimension −2, combined to one number.

    From maxima and comparisons: argmax itself takes ten times as long on a CPU.
    """
    buckets, stride, start = 0, 1, 0
    for factor in factors:
        half = factor // 2
        s = scores[..., start : start + half, :]  # (…, n_hashes, factor/2, block)
        high = s.amax(-2, keepdim=True)
        low = s.amin(-2, keepdim=True)
        mirrored = high < -low  # on a tie the lower index, s itself, wins
        best = torch.where(mirrored, low, high)
        # The lowest index whose score is the best: every other one gets ``half`` added to it.
        number = torch.arange(half, dtype=s.dtype, device=s.device)[:, None]
        differs = torch.ne(s, best, out=s.new_empty(s.shape))  # 0.0 and 1.0: faster than bool
        index = differs.mul_(half).add_(number).amin(-2, keepdim=True)
        buckets = buckets + stride * (index + half * mirrored).squeeze(-2).long()
        stride *= factor
        start += half
    return buckets
