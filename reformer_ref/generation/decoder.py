"""Decoding a whole model token by token: exactly the logits of ``model(tokens)``.

Where the windows of its layers allow it, from a cache (`Decoder`). Chunk windows have no such
cache: their pattern moves with every token. Models that use them are decoded by computing the full
forward pass again for every token (`Recomputer`): slower, but never another function.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from reformer_ref._arguments import bucket_factors, require_int
from reformer_ref._tensors import evaluating, require_tensor
from reformer_ref.generation.caches import DenseCache, LocalCache, StrictCache
from reformer_ref.local_attention.options import LocalOptions
from reformer_ref.model.arguments import check_tokens
from reformer_ref.model.config import ReformerConfig, n_buckets_for, require_config
from reformer_ref.model.layers import merge_heads
from reformer_ref.model.pytorch import ReformerLM, count_positions
from reformer_ref.reversible.sharded import LOAD_IN_ONE_PROCESS, require_gathered

MOST_ROWS = 1 << 16  # continuations of one prompt


class TokenDecoder:
    """The interface of both decoders; its methods check their arguments."""

    def __init__(self, model: ReformerLM, capacity: int | None = None):
        if not isinstance(model, ReformerLM):
            raise TypeError(f"model must be a ReformerLM, got {type(model).__name__}")
        require_causal(model.config)
        require_gathered("model", model, remedy=LOAD_IN_ONE_PROCESS)
        limit = model.config.max_length
        self.model = model
        self.capacity = limit if capacity is None else require_int("capacity", capacity, 1, limit)
        self.rows = 0  # 0: no prompt was read yet
        self.length = 0  # tokens in the longest row

    def prefill(
        self, tokens: Int[Tensor, "rows L"], padding_mask: Bool[Tensor, "..."] | None = None
    ) -> Float[Tensor, "rows vocab_size"]:
        """Read prompts in parallel.

        Args:
            tokens: one prompt in each row, padded on any side.
            padding_mask: True = real token.

        Returns:
            The logits after the last real token of each row.

        Raises:
            TypeError, ValueError: for tokens or a mask that do not fit, or for a second prompt.
        """
        if self.rows:
            raise ValueError(
                "prefill comes first; this decoder has read a prompt already, make a new one"
            )
        mask = check_tokens(self.model.config, tokens, padding_mask, device=self.device)
        longest = tokens.shape[1]
        if mask is not None:
            lengths = mask.sum(1)
            shortest, longest = (int(n) for n in lengths.aminmax())
            if shortest == 0:
                raise ValueError("padding_mask must leave at least one real token in every row")
        if longest > self.capacity:
            raise ValueError(f"tokens must fit the capacity of {self.capacity}, got {longest}")
        with evaluating(self.model):
            logits = self._read_prompt(tokens, mask)
        self.rows, self.length = len(tokens), longest
        return logits

    def step(self, tokens: Int[Tensor, " rows"]) -> Float[Tensor, "rows vocab_size"]:
        """Read one more token in every row.

        Returns:
            The logits for the next one.

        Raises:
            TypeError, ValueError: for tokens that do not fit, before a prompt, or when full.
        """
        self._require_prompt("step")
        is_tensor = isinstance(tokens, Tensor)
        if not is_tensor or require_tensor("tokens", tokens).shape != (self.rows,):
            given = tuple(tokens.shape) if is_tensor else type(tokens).__name__
            raise ValueError(
                f"tokens must be a tensor ({self.rows},), one token per row, got {given}"
            )
        check_tokens(self.model.config, tokens[:, None], None, device=self.device)
        if self.length >= self.capacity:
            raise ValueError(f"the decoder is full: its capacity is {self.capacity} tokens")
        with evaluating(self.model):
            logits = self._read_token(tokens)
        self.length += 1
        return logits

    def repeat(self, n: int) -> None:
        """Repeat every row n times, one copy after the other: several continuations that share
        what was read so far.
        """
        self._require_prompt("repeat")
        require_int("n", n, 1, MOST_ROWS)
        self._repeat_rows(n)
        self.rows *= n

    @property
    def device(self) -> torch.device:
        """Where the tokens must be."""
        return self.model.backbone.embedding.weight.device

    def _require_prompt(self, name):
        if not self.rows:
            needs = "call prefill first, with at least one token in every row"
            raise ValueError(f"{name} needs a prompt: {needs}")


class Decoder(TokenDecoder):
    """Decode from a cache, in time and memory per token that do not depend on how many tokens came
    before (layers of dense attention excepted).

    Dropout is never applied; the model's stored rotations are used.

    Args:
        model: a causal model without ``cache_unsupported_reason``.
        capacity: the most tokens that a row will hold; None: ``config.max_length``.

    Raises:
        ValueError: for models that have no such cache.
    """

    def __init__(self, model: ReformerLM, capacity: int | None = None):
        super().__init__(model, capacity)
        reason = cache_unsupported_reason(model.config)
        if reason:
            raise ValueError(f"model cannot be decoded from a cache: {reason}")
        self.backbone = model.backbone
        self.caches = []  # one per layer of attention

    def tensors(self) -> list[Tensor]:
        """List everything that is kept between steps."""
        return [x for cache in self.caches for x in cache.tensors().values()]

    def _read_prompt(self, tokens, mask):
        if mask is None:
            mask = torch.ones_like(tokens, dtype=torch.bool)
        positions = count_positions(tokens, mask)  # (rows, L)
        blocks = self.backbone.stack.blocks
        self.caches = [self._cache(block.layers[0], len(tokens)) for block in blocks]

        def attend(layer, cache, x):  # as in training; the cache is filled besides
            q, k, v = layer.project(layer.norm(x))
            buckets = layer.buckets(q, mask)
            cache.fill(q, k, v, buckets, positions, mask)
            return layer.attend(q, k, v, mask, buckets)

        y1, y2 = self._through_blocks(self.backbone.embed(tokens, mask), attend)
        self.positions = mask.sum(1)  # of the next token, (rows,)
        last = torch.where(mask, positions, -1).argmax(1)
        rows = torch.arange(len(tokens), device=tokens.device)
        return self._logits(y1[rows, last], y2[rows, last])

    def _read_token(self, tokens):
        positions = self.positions

        def attend(layer, cache, x):  # x (rows, 1, d_model)
            q, k, v = layer.project(layer.norm(x))
            buckets = layer.buckets(q)
            q, v = q[:, :, 0], v[:, :, 0]  # (rows, heads, d), (rows, heads, d_v)
            k = q if k is None else k[:, :, 0]
            if layer.kind == "lsh":
                buckets = buckets[..., 0]  # (rows, heads, n_hashes)
                out = cache.attend(q, v, buckets)
                cache.append(q, v, buckets, positions)
            elif layer.kind == "local":
                cache.append(k, v, positions)
                out = cache.attend(q, positions)
            else:
                cache.append(k, v, positions)
                out = cache.attend(q, v, positions, self.length + 1)
            return out[:, :, None]  # (rows, heads, 1, d_v)

        x = self.backbone.embed_at(tokens, positions)[:, None]  # (rows, 1, d_model)
        y1, y2 = self._through_blocks(x, attend)
        self.positions = positions + 1
        return self._logits(y1[:, 0], y2[:, 0])

    def _through_blocks(self, x, attend):
        """Both streams after the last block; ``attend(layer, cache, x)`` is the attention of a
        layer, (rows, heads, L, d_v).
        """
        y1 = y2 = x
        for block, cache in zip(self.backbone.stack.blocks, self.caches, strict=True):
            attention, feed_forward = block.layers
            y1 = y1 + attention.out(merge_heads(attend(attention, cache, y2)))
            if self.model.config.streams == 1:  # ordinary residuals: one stream, kept twice
                y1 = y2 = y1 + feed_forward(y1)
            else:
                y2 = y2 + feed_forward(y1)
        return y1, y2

    def _repeat_rows(self, n):
        for cache in self.caches:
            cache.repeat(n)
        self.positions = self.positions.repeat_interleave(n)

    def _cache(self, layer, rows):
        c = self.model.config
        size = (c.d_head, c.d_v, self.capacity, layer.q.weight)
        if layer.kind == "lsh":
            n_buckets = math.prod(bucket_factors(n_buckets_for(c, c.max_length)))
            return StrictCache(rows, c.n_heads, c.lsh, n_buckets, *size)
        if layer.kind == "local":
            return LocalCache(rows, c.n_heads, c.local, *size)
        shared = layer.kind == "dense"
        scale = c.lsh.scale_for(c.d_head) if shared else c.d_head**-0.5
        return DenseCache(rows, c.n_heads, scale, c.lsh.norm_eps, shared, *size)

    def _logits(self, y1, y2):
        return self.model.logits(self.backbone.final_norm(y1, y2))


class Recomputer(TokenDecoder):
    """Decode any causal model by a full forward pass over each row for every token."""

    def _read_prompt(self, tokens, mask):
        self.tokens = list(tokens)  # one tensor (n,) per row
        if mask is not None:
            self.tokens = [row[real] for row, real in zip(tokens, mask, strict=True)]
        return self._logits()

    def _read_token(self, tokens):
        pairs = zip(self.tokens, tokens, strict=True)
        self.tokens = [torch.cat([row, token[None]]) for row, token in pairs]
        return self._logits()

    def _repeat_rows(self, n):
        self.tokens = [row for row in self.tokens for _ in range(n)]

    def _logits(self):
        # each row by itself: with a ring, padding would move its windows
        return torch.stack([self.model(row[None])[0, -1] for row in self.tokens])


def cache_unsupported_reason(config: ReformerConfig) -> str | None:
    """Say why a model of this configuration has no exact cache of fixed size; None if it has one.

    Raises:
        TypeError, ValueError: for anything but the configuration of a causal model.
    """
    require_causal(require_config(config))
    if "lsh" in config.layers and config.lsh.window != "rank":
        return (
            f"its LSH layers use windows of chunks (lsh.window={config.lsh.window!r}), which move "
            'with every token; only the strict window, lsh.window="rank", has a cache. Recompute '
            '(cache=False), or train with the preset "strict"'
        )
    if "local" in config.layers and depends_on_length(config.local):
        return (
            "its local layers wrap around with chunks_before > 1 or chunks_after > 0, so that what "
            "a query sees, and how often, depends on the length"
        )
    return None


def depends_on_length(options: LocalOptions) -> bool:
    """Whether a ring shows a causal local layer more, or the same more often, in shorter
    sequences.
    """
    return options.wrap and (options.chunks_before > 1 or options.chunks_after > 0)


def require_causal(config):
    """Raise a ValueError for a model that looks ahead."""
    if not config.causal:
        raise ValueError(
            "model must be causal to continue a prompt, got one with config.causal=False"
        )
