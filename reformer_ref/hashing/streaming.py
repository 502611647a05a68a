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
    # Numbers of columns must be exact: half precision counts to 256 or 2048 only.
    wide = torch.promote_types(scores.dtype, torch.float32)
    buckets, stride, start = 0, 1, 0
    for factor in factors:
        columns = factor // 2  # of R; each stands for two buckets
        s = scores[..., start : start + columns, :]  # (…, n_hashes, factor/2, block)
        high = s.amax(-2, keepdim=True)
        low = s.amin(-2, keepdim=True)
        mirrored = high < -low  # on a tie the lower index, s itself, wins
        best = torch.where(mirrored, low, high)
        # The lowest index whose score is the best: every other one gets ``columns`` added to it.
        number = torch.arange(columns, dtype=wide, device=s.device)[:, None]
        differs = s.new_empty(s.shape, dtype=wide)
        torch.ne(s, best, out=differs)  # 0.0 and 1.0: faster than bool
        index = differs.mul_(columns).add_(number).amin(-2, keepdim=True)
        buckets = buckets + stride * (index + columns * mirrored).squeeze(-2).long()
        stride *= factor
        start += columns
    return buckets
