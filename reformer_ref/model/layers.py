"""The layers of the model's blocks: attention of every kind, and feed-forward.

Each is an ordinary module that normalises its input and returns what is added to a stream. (How
they are added and taken away in place: ``model.in_place``.)
"""

import math

import torch
from torch import nn

from reformer_ref._tensors import has_values
from reformer_ref.attention.streaming import regular_attention, shared_qk_attention
from reformer_ref.feed_forward import FeedForward
from reformer_ref.hashing.api import unchecked_hash_vectors
from reformer_ref.hashing.pytorch import random_rotations
from reformer_ref.hashing.spec import factors_of
from reformer_ref.local_attention.api import unchecked_local_attention
from reformer_ref.lsh_attention.api import unchecked_lsh_attention
from reformer_ref.model.config import n_buckets_for, rotation_width


class SelfAttention(nn.Module):
    """The layer F of a block, of any kind: "lsh", "local", "dense" or "regular".

    No projection has a bias. An "lsh" layer holds ``rotations``, used unless the call brings a
    ``rotation_seed``; its buckets go into ``saved``, so that backward never hashes again.
    """

    uses_saved = True

    def __init__(self, config, kind, index):
        super().__init__()
        self.config, self.kind, self.index = config, kind, index
        width_qk, width_v = config.n_heads * config.d_head, config.n_heads * config.d_v
        self.norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.q = nn.Linear(config.d_model, width_qk, bias=False)
        separate_keys = kind in ("local", "regular")
        self.k = nn.Linear(config.d_model, width_qk, bias=False) if separate_keys else None
        self.v = nn.Linear(config.d_model, width_v, bias=False)
        self.out = nn.Linear(width_v, config.d_model, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        if kind == "lsh":
            shape = (config.n_heads, config.lsh.n_hashes, config.d_head, rotation_width(config))
            self.register_buffer("rotations", torch.empty(shape))

    def forward(self, x, padding_mask=None, rotation_seed=None, *_, saved=None):
        q, k, v = self.project(self.norm(x))  # (B, n_heads, L, d_head) twice, (B, n_heads, L, d_v)
        buckets = self.buckets(q, padding_mask, rotation_seed, saved)  # (B, n_heads, n_hashes, L)
        out = self.attend(q, k, v, padding_mask, buckets)  # (B, n_heads, L, d_v)
        return self.dropout(self.out(merge_heads(out)))  # (B, L, d_model)

    def project(self, x):
        """Queries, keys (None where the queries are the keys) and values of x, normalised."""
        n = self.config.n_heads
        k = None if self.k is None else split_heads(self.k(x), n)
        return split_heads(self.q(x), n), k, split_heads(self.v(x), n)

    def buckets(self, q, padding_mask=None, rotation_seed=None, saved=None, heads=None):
        """The buckets of q, hashed once for each ``saved``; None for kinds that do not hash."""
        if self.kind != "lsh":
            return None
        heads = range(self.config.n_heads) if heads is None else heads
        if saved is None:
            return self.hash(q, heads, padding_mask, rotation_seed)
        if heads not in saved:
            saved[heads] = self.hash(q, heads, padding_mask, rotation_seed)
        return saved[heads]

    def hash(self, q, heads, padding_mask=None, rotation_seed=None):
        """Buckets of q, whose heads are ``heads`` of all, in the smallest sufficient integers.

        Padding has no part in their number: where ``lsh.n_buckets`` is None, the longest sequence
        of real tokens in the batch decides. (Reading that would wait for a GPU. On CUDA, unless
        REFORMER_CHECK_VALUES=1, and in a traced model, L decides.)
        """
        length = q.shape[-2]
        if self.config.lsh.n_buckets is None:
            length = longest_row(padding_mask, length)
        factors = factors_of(n_buckets_for(self.config, length))
        rotations = self.rotations
        if rotation_seed is not None:
            generator = torch.Generator().manual_seed(int(rotation_seed) + self.index)
            shape = (self.config.lsh.n_hashes, self.config.d_head, factors, self.config.n_heads)
            rotations = random_rotations(generator, *shape, device=q.device)
        rotations = rotations[heads.start : heads.stop, ..., : sum(factors) // 2]
        return unchecked_hash_vectors(q, rotations, factors).to(smallest_integer(factors))

    def attend(self, q, k, v, padding_mask=None, buckets=None):
        """The output (B, heads, L, d_v) of some heads, or of all."""
        c = self.config
        mask = None if padding_mask is None else padding_mask[:, None]
        if self.kind == "lsh":
            return unchecked_lsh_attention(q, v, buckets, c.lsh, mask)
        if self.kind == "local":
            return unchecked_local_attention(q, k, v, c.local, mask)
        if self.kind == "dense":
            options = c.lsh.scale, c.lsh.norm_eps
            return shared_qk_attention(q, v, c.causal, mask, *options, block_size=c.dense_block)
        return regular_attention(q, k, v, c.causal, mask, block_size=c.dense_block)


class CrossAttention(nn.Module):
    """A layer that looks at the encoder: every query sees every real position of its output."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.q = nn.Linear(config.d_model, config.n_heads * config.d_head, bias=False)
        self.k = nn.Linear(2 * config.d_model, config.n_heads * config.d_head, bias=False)
        self.v = nn.Linear(2 * config.d_model, config.n_heads * config.d_v, bias=False)
        self.out = nn.Linear(config.n_heads * config.d_v, config.d_model, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, padding_mask, rotation_seed, encoder_output, encoder_mask=None):
        q = split_heads(self.q(self.norm(x)), self.config.n_heads)  # (B, n_heads, L, d_head)
        k = split_heads(self.k(encoder_output), self.config.n_heads)  # (B, n_heads, L_s, d_head)
        v = split_heads(self.v(encoder_output), self.config.n_heads)  # (B, n_heads, L_s, d_v)
        mask = None if encoder_mask is None else encoder_mask[:, None]
        out = regular_attention(q, k, v, False, mask, block_size=self.config.dense_block)
        return self.dropout(self.out(merge_heads(out)))  # (B, L, d_model)


class FeedForwardLayer(nn.Module):
    """The layer G of a block: norm and feed-forward, ``config.ff_chunk`` positions at a time."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.inner = FeedForward(
            config.d_model, config.d_ff, config.activation, chunk_length=config.ff_chunk
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, *_):
        return self.dropout(self.inner(self.norm(x)))  # (B, L, d_model)


def split_heads(x, n_heads):
    """(B, L, n_heads·d) -> (B, n_heads, L, d)"""
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def merge_heads(x):
    """(B, n_heads, L, d) -> (B, L, n_heads·d)"""
    return x.transpose(1, 2).flatten(2)


def longest_row(padding_mask, length):
    """Real tokens in the longest sequence of the batch; ``length`` where values are not read."""
    if padding_mask is None or not has_values(padding_mask):
        return length
    return max(1, int(padding_mask.sum(-1).max()))


def smallest_integer(factors):
    """The smallest integer type that holds the bucket numbers."""
    for dtype in (torch.int16, torch.int32):
        if math.prod(factors) - 1 <= torch.iinfo(dtype).max:
            return dtype
    return torch.int64
