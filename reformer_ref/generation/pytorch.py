"""Generation, in PyTorch: decoding token by token that is the training function, and sampling from
it.

With the strict window every output depends on its prefix alone, so a cache of fixed size gives the
very logits of the full forward pass. Chunk windows have no such cache: their pattern moves with
every token. Models that use them are decoded by computing the full forward pass again for every
token: slower, but never another function.
"""

import math

import torch

from reformer_ref._arguments import (
    LARGEST_ARRAY,
    bucket_factors,
    require_bool,
    require_choice,
    require_int,
    require_shape,
    shown,
)
from reformer_ref._tensors import (
    evaluating,
    has_values,
    require_finite,
    require_floating,
    require_integers,
    require_same_kind,
)
from reformer_ref.generation.caches import DenseCache, LocalCache, StrictCache
from reformer_ref.generation.options import (
    check_sampling,
    depends_on_length,
    require_decodable,
    require_strict,
)
from reformer_ref.model.config import n_buckets_for, require_config
from reformer_ref.model.layers import merge_heads
from reformer_ref.model.pytorch import ReformerLM, check_tokens, count_positions

MOST_ROWS = 1 << 16  # continuations of one prompt


@torch.no_grad()
def lsh_decode(qk, v, buckets, options):
    """LSH attention in the strict window, one token after the other from rings: (…, L, d_v).

    Arguments as in ``lsh_attention``, and the same result; ``options.window`` must be "rank".
    Nothing of the past is kept but the last chunk_length members of every bucket.
    """
    require_strict(options)
    (rows, heads, length, d), lead = _rows_and_heads(qk=qk, v=v), qk.shape[:-2]
    q, values = qk.reshape(rows, heads, length, d), v.reshape(rows, heads, length, -1)
    require_shape(
        "buckets",
        require_integers("buckets", buckets),
        (*lead, options.n_hashes, length),
        "(…, n_hashes, L)",
    )
    numbers, buckets = buckets.reshape(rows, heads, options.n_hashes, length).unique(
        return_inverse=True
    )
    sizes = len(numbers), d, values.shape[-1], length  # a ring for each bucket that occurs
    cache, out = StrictCache(rows, heads, options, *sizes, q), torch.empty_like(values)
    for i in range(length):
        position = torch.full((rows,), i, device=q.device)
        out[:, :, i] = cache.attend(q[:, :, i], values[:, :, i], buckets[..., i])
        cache.append(q[:, :, i], values[:, :, i], buckets[..., i], position)
    return out.view(*lead, length, -1)


@torch.no_grad()
def local_decode(q, k, v, options):
    """Causal local attention, one token after the other from the last chunks: (…, L, d_v), as
    ``local_attention``.
    """
    require_decodable(options)
    (rows, heads, length, d), lead = _rows_and_heads(q=q, k=k, v=v), q.shape[:-2]
    require_shape("k", k, q.shape, "(…, L, d)")
    q, k, v = (x.reshape(rows, heads, length, x.shape[-1]) for x in (q, k, v))
    cache, out = LocalCache(rows, heads, options, d, v.shape[-1], length, q), torch.empty_like(v)
    for i in range(length):
        position = torch.full((rows,), i, device=q.device)
        cache.append(k[:, :, i], v[:, :, i], position)
        out[:, :, i] = cache.attend(q[:, :, i], position)
    return out.view(*lead, length, -1)


def token_probabilities(logits, temperature=1.0, top_k=None, top_p=None):
    """The distribution that ``sample_token`` draws from, float64 (…, V), for logits (…, V).

    Temperature divides the logits; 0 puts everything on the largest (the first one on a tie). Then
    ``top_k`` keeps the k likeliest tokens, then ``top_p`` the fewest of the likeliest that together
    reach top_p. What is left sums to 1.
    """
    check_sampling(temperature, top_k, top_p)
    logits, temperature = _require_logits(logits).double(), float(temperature)
    if temperature == 0.0:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).double()
    best = logits.amax(-1, keepdim=True)
    sorted_p, order = torch.softmax((logits - best) / temperature, -1).sort(
        dim=-1, descending=True, stable=True
    )
    if top_k is not None:
        sorted_p[..., top_k:] = 0.0
        sorted_p = sorted_p / sorted_p.sum(-1, keepdim=True)
    if top_p is not None:
        likelier = (
            sorted_p.cumsum(-1) - sorted_p
        )  # together; below top_p, so the first token always stays
        sorted_p = sorted_p.masked_fill(likelier >= top_p, 0.0)
        sorted_p = sorted_p / sorted_p.sum(-1, keepdim=True)
    return torch.zeros_like(sorted_p).scatter(-1, order, sorted_p)


def sample_token(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
    """One token, int64 (…), for logits (…, V). ``generator`` lives on the CPU and must be given if
    temperature > 0.
    """
    probabilities = token_probabilities(logits, temperature, top_k, top_p)
    if temperature == 0.0:
        return probabilities.argmax(-1)
    if not isinstance(generator, torch.Generator):
        raise TypeError(
            f"generator must be a torch.Generator when temperature > 0, got {type(generator).__name__}"
        )
    if logits.is_meta:
        raise ValueError("logits must hold values to draw by, got a tensor on the meta device")
    flat = probabilities.reshape(-1, probabilities.shape[-1]).cpu()  # (rows, V)
    return (
        torch.multinomial(flat, 1, generator=generator).reshape(logits.shape[:-1]).to(logits.device)
    )


class Decoder:
    """Token by token, the logits of ``model(tokens)``; for models whose windows allow it
    (``why_not``).

    ``prefill`` reads the prompts in parallel, each ``step`` one more token of every row, in time
    and memory that do not depend on how many came before (layers of dense attention excepted). Rows
    may have prompts of different lengths. capacity: the most tokens a row will hold, None for
    ``config.max_length``. ValueError for models that have no such cache. Dropout is never applied;
    the model's stored rotations are used.
    """

    def __init__(self, model, capacity=None):
        reason = why_not(_require_model(model).config)
        if reason:
            raise ValueError(f"model cannot be decoded from a cache: {reason}")
        limit = model.config.max_length
        self.model, self.backbone = model, model.backbone
        self.capacity = limit if capacity is None else require_int("capacity", capacity, 1, limit)
        self.positions = None  # tokens read so far, int64 (rows,)
        self.one = model.config.streams == 1  # ordinary residuals: both streams are kept the same

    def prefill(self, tokens, padding_mask=None):
        """Read prompts (rows, L), padded on any side; logits (rows, vocab_size) after the last real
        token of each.
        """
        if self.positions is not None:
            raise ValueError(
                "prefill comes first; this decoder has read a prompt already, make a new one"
            )
        mask = check_tokens(
            self.model.config, tokens, padding_mask, device=self.backbone.embedding.weight.device
        )
        mask = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
        if not bool(mask.any(1).all()):
            raise ValueError("padding_mask must leave at least one real token in every row")
        longest = int(mask.sum(1).max())
        if longest > self.capacity:
            raise ValueError(f"tokens must fit the capacity of {self.capacity}, got {longest}")
        positions = count_positions(tokens, mask)
        with evaluating(self.model):
            self.caches = [self._cache(half, len(tokens)) for half in self._halves()]
            y1 = y2 = self.backbone.embed(tokens, mask)
            for block, cache in zip(self.backbone.stack.blocks, self.caches, strict=True):
                attention, feed_forward = block.layers
                y1 = y1 + self._prompt(attention, cache, y2, positions, mask)
                y2 = (y1 if self.one else y2) + feed_forward(y1)
                y1 = y2 if self.one else y1
            last = torch.where(mask, positions, -1).argmax(1)
            rows = torch.arange(len(tokens), device=tokens.device)
            self.positions, self._longest = mask.sum(1), longest
            return self._logits(y1[rows, last], y2[rows, last])

    def step(self, tokens):
        """Read one more token in every row, int (rows,); logits (rows, vocab_size) for the next
        one.
        """
        if self.positions is None:
            raise ValueError(
                "step needs a prompt: call prefill first, with at least one token in every row"
            )
        _require_one_each(self.model, tokens, len(self.positions))
        if self._longest >= self.capacity:
            raise ValueError(f"the decoder is full: its capacity is {self.capacity} tokens")
        with evaluating(self.model):
            y1 = y2 = self.backbone.embed_at(tokens, self.positions)  # (rows, d_model)
            for block, cache in zip(self.backbone.stack.blocks, self.caches, strict=True):
                attention, feed_forward = block.layers
                y1 = y1 + self._next(attention, cache, y2)
                y2 = (y1 if self.one else y2) + feed_forward(y1[:, None])[:, 0]
                y1 = y2 if self.one else y1
            self.positions, self._longest = self.positions + 1, self._longest + 1
            return self._logits(y1, y2)

    def repeat(self, n):
        """Every row n times, one copy after the other: several continuations that share what was
        read so far.
        """
        if self.positions is None:
            raise ValueError("repeat needs a prompt: call prefill first")
        n = require_int("n", n, 1, MOST_ROWS)
        for cache in self.caches:
            cache.repeat(n)
        self.positions = self.positions.repeat_interleave(n)

    def tensors(self):
        """Everything that is kept between steps."""
        return [x for cache in self.caches for x in cache.tensors().values()]

    def _halves(self):
        return [block.layers[0] for block in self.backbone.stack.blocks]

    def _cache(self, half, rows):
        c, like = self.model.config, half.q.weight
        size = (c.d_head, c.d_v, self.capacity, like)
        if half.kind == "lsh":
            n_buckets = math.prod(bucket_factors(n_buckets_for(c, c.max_length)))
            return StrictCache(rows, c.n_heads, c.lsh, n_buckets, *size)
        if half.kind == "local":
            return LocalCache(rows, c.n_heads, c.local, *size)
        shared = half.kind == "dense"
        scale = c.lsh.scale_for(c.d_head) if shared else c.d_head**-0.5
        return DenseCache(rows, c.n_heads, scale, c.lsh.norm_eps, shared, *size)

    def _prompt(self, half, cache, x, positions, mask):
        """The half on whole prompts, x (rows, L, d_model), by the very code that trains; the cache
        is filled.
        """
        q, k, v = half.project(half.norm(x))
        buckets = half.buckets(q, mask)
        out = half.attend(q, k, v, mask, buckets)
        cache.fill(q, k, v, buckets, positions, mask)
        return half.out(merge_heads(out))

    def _next(self, half, cache, x):
        """The half on the next token of each row, x (rows, d_model)."""
        q, k, v = half.project(half.norm(x)[:, None])  # (rows, heads, 1, d)
        buckets = half.buckets(q)
        q, v = q[:, :, 0], v[:, :, 0]
        k = q if k is None else k[:, :, 0]
        if half.kind == "lsh":
            buckets = buckets[..., 0]  # (rows, heads, n_hashes)
            out = cache.attend(q, v, buckets)
            cache.append(q, v, buckets, self.positions)
        elif half.kind == "local":
            cache.append(k, v, self.positions)
            out = cache.attend(q, self.positions)
        else:
            cache.append(k, v, self.positions)
            out = cache.attend(q, v, self.positions)
        return half.out(out.flatten(1))

    def _logits(self, y1, y2):
        return self.model.logits(self.backbone.final_norm(y1, y2))


class Recomputer:
    """The same as ``Decoder`` for every causal model, by a full forward pass over each row for
    every token.
    """

    def __init__(self, model):
        _require_causal(_require_model(model).config)
        self.model, self.rows = model, None

    def prefill(self, tokens, padding_mask=None):
        """As ``Decoder.prefill``."""
        mask = check_tokens(
            self.model.config,
            tokens,
            padding_mask,
            device=self.model.backbone.embedding.weight.device,
        )
        if mask is not None and not bool(mask.any(1).all()):
            raise ValueError("padding_mask must leave at least one real token in every row")
        self.rows = (
            list(tokens) if mask is None else [t[m] for t, m in zip(tokens, mask, strict=True)]
        )
        return self._logits()

    def step(self, tokens):
        """As ``Decoder.step``."""
        if self.rows is None:
            raise ValueError(
                "step needs a prompt: call prefill first, with at least one token in every row"
            )
        _require_one_each(self.model, tokens, len(self.rows))
        self.rows = [
            torch.cat([row, token[None]]) for row, token in zip(self.rows, tokens, strict=True)
        ]
        return self._logits()

    def repeat(self, n):
        """As ``Decoder.repeat``."""
        if self.rows is None:
            raise ValueError("repeat needs a prompt: call prefill first")
        n = require_int("n", n, 1, MOST_ROWS)
        self.rows = [row for row in self.rows for _ in range(n)]

    def _logits(self):
        with evaluating(
            self.model
        ):  # each row by itself: with a ring, padding would move its windows
            return torch.stack([self.model(row[None])[0, -1] for row in self.rows])


def why_not(config):
    """Why a model of this configuration has no exact cache of fixed size, in words; None if it has."""
    _require_causal(config)
    if "lsh" in config.layers and config.lsh.window != "rank":
        return (
            f"its LSH layers use windows of chunks (lsh.window={config.lsh.window!r}), which move with every token; "
            f"only "
            'the strict window, lsh.window="rank", has a cache. Recompute (cache=False), or train with the preset '
            '"strict"'
        )
    if "local" in config.layers and depends_on_length(config.local):
        return (
            "its local layers wrap around with chunks_before > 1 or chunks_after > 0, so that what a query sees, and "
            "how "
            "often, depends on the length"
        )
    return None


def generate(
    model, prompt, max_new_tokens, temperature=1.0, top_k=None, top_p=None, generator=None, *,
    samples=None, cache=None, on_token=None, progress=False,
):  # fmt: skip
    """``prompt`` continued by ``max_new_tokens`` tokens: int64 (n,) on the CPU, prompt and
    continuation.

    prompt: bytes or an int64 tensor (n,), n ≥ 1; or a list of prompts, of any lengths, which gives
    a list. samples: so many continuations of each prompt, which share its reading: (samples, n)
    instead of (n,). generator: a CPU `torch.Generator`; None stands for a new one seeded with 0, so
    the global random state is never read or changed. cache: True decodes from a cache of fixed size
    (ValueError where ``why_not`` has a reason), False computes the full forward pass for every
    token, None takes the cache where it is exact; the function computed is always
    ``model(tokens)``. on_token: called with every new token as soon as it is drawn (an int; a list
    of ints for several rows). Ctrl-C ends the generation and returns what there is. Prompt and
    continuation must fit ``config.max_length``.
    """
    check_sampling(temperature, top_k, top_p)
    config, many = _require_model(model).config, isinstance(prompt, (list, tuple))
    max_new_tokens = require_int("max_new_tokens", max_new_tokens, 0, LARGEST_ARRAY)
    each = 1 if samples is None else require_int("samples", samples, 1, MOST_ROWS)
    prompts = [_prompt_tokens(p, config.vocab_size) for p in (prompt if many else [prompt])]
    longest = max(map(len, prompts), default=0) + max_new_tokens
    if not prompts or longest > config.max_length:
        raise ValueError(
            f"prompt and max_new_tokens must fit max_length = {config.max_length}, got {longest} tokens"
            if prompts
            else "prompt must not be an empty list"
        )
    require_choice("cache", cache, (True, False, None)), require_bool("progress", progress)
    if on_token is not None and not callable(on_token):
        raise TypeError(
            f"on_token must be a function of the new token or None, got {shown(on_token)}"
        )
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    reason = why_not(config)
    if cache and reason:
        raise ValueError(f"cache=True is not possible for this model: {reason}")
    decoder = Recomputer(model) if reason or cache is False else Decoder(model, capacity=longest)
    rows = [p for p in prompts for _ in range(each)]
    new = _continue(
        decoder,
        prompts,
        each,
        max_new_tokens,
        (temperature, top_k, top_p, generator),
        on_token,
        progress,
    )
    done = [torch.cat([row, n]) for row, n in zip(rows, new, strict=True)]
    done = (
        done
        if samples is None
        else [torch.stack(done[i : i + each]) for i in range(0, len(done), each)]
    )
    return done if many else done[0]


def _continue(decoder, prompts, each, max_new_tokens, how, on_token, progress):
    """New tokens int64 (prompts · each, n), n ≤ max_new_tokens: fewer only after Ctrl-C."""
    from tqdm import tqdm

    drawn, device = [], decoder.model.backbone.embedding.weight.device
    tokens = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True).to(device)
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    mask = torch.arange(tokens.shape[1], device=device) < lengths[:, None]
    try:
        logits = None
        for _ in tqdm(range(max_new_tokens), unit="token", disable=not progress):
            if logits is None:
                logits = decoder.prefill(
                    tokens, None if bool(mask.all()) else mask
                ).repeat_interleave(each, 0)
                if each > 1:
                    decoder.repeat(each)
            else:
                logits = decoder.step(drawn[-1].to(device))
            drawn.append(sample_token(logits, *how).cpu())
            if on_token is not None:
                on_token(drawn[-1].tolist() if len(drawn[-1]) > 1 else int(drawn[-1]))
    except KeyboardInterrupt:
        pass
    return (
        torch.stack(drawn, 1) if drawn else torch.empty(len(prompts) * each, 0, dtype=torch.int64)
    )


def _prompt_tokens(prompt, vocab_size):
    if isinstance(prompt, (bytes, bytearray)):
        prompt = torch.tensor(list(prompt), dtype=torch.int64)
    if not isinstance(prompt, torch.Tensor) or prompt.dtype != torch.int64:
        given = prompt.dtype if isinstance(prompt, torch.Tensor) else type(prompt).__name__
        raise TypeError(f"prompt must be bytes or an int64 tensor, got {given}")
    if prompt.ndim != 1 or prompt.numel() == 0:
        raise ValueError(f"prompt must have shape (n,) with n >= 1, got {tuple(prompt.shape)}")
    if int(prompt.min()) < 0 or int(prompt.max()) >= vocab_size:
        raise ValueError(
            f"prompt must hold tokens in [0, {vocab_size}), got {int(prompt.min())} to {int(prompt.max())}"
        )
    return prompt.cpu()


def _require_causal(config):
    if not require_config(config).causal:
        raise ValueError(
            "model must be causal to continue a prompt, got one with config.causal=False"
        )


def _require_model(model):
    if not isinstance(model, ReformerLM):
        raise TypeError(f"model must be a ReformerLM, got {type(model).__name__}")
    return model


def _require_one_each(model, tokens, rows):
    """TypeError or ValueError unless ``tokens`` (rows,) holds a token for every row."""
    if not isinstance(tokens, torch.Tensor) or tokens.shape != (rows,):
        given = tuple(tokens.shape) if isinstance(tokens, torch.Tensor) else type(tokens).__name__
        raise ValueError(f"tokens must be a tensor ({rows},), one token per row, got {given}")
    check_tokens(model.config, tokens[:, None], None, device=model.backbone.embedding.weight.device)


def _require_logits(logits):
    """``logits`` (…, V), V ≥ 1, numbers below infinity, −∞ where something else is left; TypeError
    or ValueError.
    """
    if require_floating("logits", logits).ndim < 1 or 0 in logits.shape:
        raise ValueError(
            f"logits must have shape (…, V) with every size ≥ 1, got {tuple(logits.shape)}"
        )
    if has_values(logits) and not bool(
        logits.amax(-1).isfinite().all()
    ):  # NaN, +∞, or nothing but −∞
        raise ValueError(
            "logits must be numbers below infinity, with a finite one among those of each token"
        )
    return logits


def _rows_and_heads(**tensors):
    """(rows, heads, L, d) for the first of ``tensors``, queries (…, L, d); the others are (…, L,
    their own size).
    """
    first, x = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if require_floating(name, tensor).ndim < 2 or 0 in tensor.shape:
            raise ValueError(
                f"{name} must have shape (…, L, d) with every size ≥ 1, got {tuple(tensor.shape)}"
            )
        require_shape(
            name, tensor, (*x.shape[:-1], tensor.shape[-1]), f"(…, L, its size) as {first}"
        )
        require_finite(name, tensor)
    require_same_kind(first, x, **tensors)
    heads = x.shape[-3] if x.ndim > 2 else 1
    return x.numel() // (heads * x.shape[-2] * x.shape[-1]), heads, x.shape[-2], x.shape[-1]
