"""Dense attention for a block of queries at a time: O(L·block_size) memory instead of O(L²).

Scores are recomputed in backward, not stored. ``block_size=None`` takes all queries at once: the
plain version. Not checked.
"""

import torch
from torch.utils.checkpoint import checkpoint

from reformer_ref.attention import pytorch as plain


def regular_attention(q, k, v, causal=False, padding_mask=None, scale=None, *, block_size=None):
    """The function of ``attention.pytorch``, for ``block_size`` queries at a time."""

    def block(q, first):
        return plain.regular_attention(q, k, v, causal, padding_mask, scale, first=first)

    return _by_blocks(block, q, (k, v), block_size)


def shared_qk_attention(
    qk, v, causal=True, padding_mask=None, scale=1.0, norm_eps=1e-6, *, block_size=None
):
    """The function of ``attention.pytorch``, for ``block_size`` queries at a time."""
    k = plain.normalize_keys(qk, norm_eps)

    def block(q, first):
        return plain.shared_rows(q, k, v, causal, padding_mask, scale, first=first)

    return _by_blocks(block, qk, (k, v), block_size)


def _by_blocks(block, q, keys_and_values, block_size):
    length = q.shape[-2]
    if block_size is None or block_size >= length:
        return block(q, 0)
    needs_grad = any(x.requires_grad for x in (q, *keys_and_values))
    blocks = []
    for first in range(0, length, block_size):
        inputs = q[..., first : first + block_size, :], first
        if torch.is_grad_enabled() and needs_grad:
            options = {"use_reentrant": False, "preserve_rng_state": False}
            blocks.append(checkpoint(block, *inputs, **options))
        else:
            blocks.append(block(*inputs))
    return torch.cat(blocks, dim=-2)
