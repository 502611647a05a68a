"""Generation: the public functions, which check their arguments once."""

import sys
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from reformer_ref._arguments import (
    LARGEST_ARRAY,
    require_bool,
    require_callable,
    require_choice,
    require_float,
    require_int,
)
from reformer_ref._tensors import has_values, require_floating, require_padding_mask, require_tensor
from reformer_ref.generation import beam
from reformer_ref.generation import pytorch as plain
from reformer_ref.generation.decoder import MOST_ROWS, Decoder, Recomputer, cache_unsupported_reason
from reformer_ref.model.arguments import check_tokens
from reformer_ref.model.encoder_decoder import ReformerEncoderDecoder
from reformer_ref.model.pytorch import ReformerLM

Prompt = bytes | bytearray | Tensor


def generate(
    model: ReformerLM,
    prompt: Prompt | list[Prompt],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    *,
    samples: int | None = None,
    cache: bool | None = None,
    on_token: Callable[[int | list[int]], None] | None = None,
    progress: bool = False,
) -> Tensor | list[Tensor]:
    """Continue a prompt, or several.

    Ctrl-C ends the generation and returns what there is.

    Args:
        model: a causal model; prompt and continuation must fit its ``config.max_length``.
        prompt: bytes or an int64 tensor (n,), n ≥ 1; or a list of prompts of any lengths.
        max_new_tokens: tokens to add.
        temperature: see ``spec.token_probabilities``, as for top_k and top_p.
        top_k: draw from the k likeliest tokens only.
        top_p: draw from the likeliest tokens that together reach top_p only.
        generator: on the CPU; None: a new one seeded with 0, so that the global random state is
            neither read nor changed.
        samples: continuations of each prompt, which share its reading.
        cache: True decodes from a cache of fixed size, False computes the full forward pass for
            every token, None takes the cache where it is exact. All compute ``model(tokens)``.
        on_token: called with every new token, an int, as soon as it is drawn; with a list of ints
            for several rows.
        progress: count the tokens on stderr.

    Returns:
        Prompt and continuation, int64 (n,) on the CPU; (samples, n) with ``samples``; a list of
        these for a list of prompts.

    Raises:
        TypeError: for arguments of the wrong type.
        ValueError: for values that do not fit; with ``cache=True`` also where
            ``cache_unsupported_reason`` has a reason.
    """
    temperature, top_p = check_sampling(temperature, top_k, top_p)
    config = _require_model(model).config
    require_int("max_new_tokens", max_new_tokens, 0, LARGEST_ARRAY)
    copies = 1 if samples is None else require_int("samples", samples, 1, MOST_ROWS)
    require_choice("cache", cache, (True, False, None))
    require_bool("progress", progress)
    if on_token is not None:
        require_callable("on_token", on_token, " of the new token or None")
    several = isinstance(prompt, (list, tuple))
    prompts = [_prompt_tokens(p, config.vocab_size) for p in (prompt if several else [prompt])]
    if not prompts:
        raise ValueError("prompt must not be an empty list")
    longest = max(map(len, prompts)) + max_new_tokens
    if longest > config.max_length:
        limit = f"max_length = {config.max_length}"
        raise ValueError(f"prompt and max_new_tokens must fit {limit}, got {longest} tokens")
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    _require_sampling_generator(generator, temperature)
    reason = cache_unsupported_reason(config)
    if cache and reason:
        raise ValueError(f"cache=True is not possible for this model: {reason}")
    decoder = (Recomputer if reason or cache is False else Decoder)(model, capacity=longest)

    def draw(logits):
        return plain.sample_token(logits, temperature, top_k, top_p, generator)

    new = _new_tokens(decoder, prompts, copies, max_new_tokens, draw, on_token, progress)
    rows = [row for row in prompts for _ in range(copies)]
    rows = [torch.cat(pair) for pair in zip(rows, new, strict=True)]
    if samples is not None:
        rows = [torch.stack(rows[i : i + copies]) for i in range(0, len(rows), copies)]
    return rows if several else rows[0]


def _new_tokens(decoder, prompts, copies, max_new_tokens, draw, on_token, progress):
    """New tokens int64 (prompts·copies, n); n < max_new_tokens only after Ctrl-C."""
    drawn = []
    tokens = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True)
    lengths = torch.tensor([len(p) for p in prompts])
    mask = None  # (prompts, L)
    if int(lengths.min()) < tokens.shape[1]:
        mask = (torch.arange(tokens.shape[1]) < lengths[:, None]).to(decoder.device)
    try:
        for n in range(max_new_tokens):
            if n == 0:
                logits = decoder.prefill(tokens.to(decoder.device), mask)
                logits = logits.repeat_interleave(copies, 0)  # (prompts·copies, vocab_size)
                decoder.repeat(copies)
            else:
                logits = decoder.step(drawn[-1].to(decoder.device))
            drawn.append(draw(logits).cpu())
            if progress:
                end = "\n" if n + 1 == max_new_tokens else ""
                print(f"\r{n + 1}/{max_new_tokens} tokens", end=end, file=sys.stderr, flush=True)
            if on_token is not None:
                on_token(drawn[-1].tolist() if len(drawn[-1]) > 1 else int(drawn[-1]))
    except KeyboardInterrupt:
        pass
    if not drawn:
        return torch.empty(len(prompts) * copies, 0, dtype=torch.int64)
    return torch.stack(drawn, 1)


def beam_search(
    model: ReformerEncoderDecoder,
    source: Int[Tensor, "B L_s"],
    source_padding_mask: Bool[Tensor, "..."] | None = None,
    *,
    start: int,
    end: int,
    max_new_tokens: int,
    beams: int = 1,
    length_penalty: float = 0.0,
    check_stop: Callable[[], None] = lambda: None,
) -> list[tuple[Tensor, float]]:
    """Find for each source the best output, as defined by ``spec.beam_search``.

    The model's stored rotations are used, dropout never.

    Args:
        model: the encoder-decoder.
        source: tokens to encode.
        source_padding_mask: True = real token.
        start: the token that begins a target.
        end: the token that ends it.
        max_new_tokens: most tokens of a target, the end included; the best unfinished output is
            returned where none is finished.
        beams: prefixes that are kept; 1 is greedy.
        length_penalty: see ``spec.beam_search``.
        check_stop: called before every step; what it raises ends the search.

    Returns:
        (tokens, score) for each source; the tokens between start and end, int64 (n,) on the CPU.

    Raises:
        TypeError, ValueError: for arguments that do not fit.
    """
    if not hasattr(model, "decoder_config"):
        raise TypeError(f"model must be a ReformerEncoderDecoder, got {type(model).__name__}")
    config = model.decoder_config
    for name, token in (("start", start), ("end", end)):
        require_int(name, token, 0, config.vocab_size - 1)
    if start == end:
        raise ValueError(f"start and end must be different tokens, got {start} for both")
    require_int("max_new_tokens", max_new_tokens)
    if max_new_tokens > config.max_length:
        limit = f"max_length = {config.max_length}"
        raise ValueError(f"max_new_tokens must be at most {limit}, got {max_new_tokens}")
    require_int("beams", beams, 1, 1024)
    require_float("length_penalty", length_penalty, minimum=0.0, below=1e3)
    require_callable("check_stop", check_stop)
    if hasattr(model, "encoder_config"):
        check_tokens(model.encoder_config, source, None, name="source")
    mask = require_padding_mask(source_padding_mask, source.shape, source.device)
    limits = start, end, max_new_tokens
    return beam.beam_search(model, source, mask, *limits, beams, length_penalty, check_stop)


def token_probabilities(
    logits: Float[Tensor, "*batch V"],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Float[Tensor, "*batch V"]:
    """Compute the distribution that ``sample_token`` draws from.

    Args:
        logits: of the next token.
        temperature: divides the logits; 0 puts everything on the likeliest token.
        top_k: keep the k likeliest tokens only.
        top_p: of these, keep the likeliest that together reach top_p only.

    Returns:
        Probabilities, float64.

    Raises:
        TypeError, ValueError: unless temperature ≥ 0, top_k ≥ 1 or None, 0 < top_p ≤ 1 or None,
            and logits are numbers below infinity, at least one of each token finite.
    """
    temperature, top_p = check_sampling(temperature, top_k, top_p)
    _require_logits(logits)
    return plain.token_probabilities(logits, temperature, top_k, top_p)


def sample_token(
    logits: Float[Tensor, "*batch V"],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "*batch"]:
    """Draw one token for each distribution.

    Args:
        logits: of the next token.
        temperature: as in ``token_probabilities``, like top_k and top_p; 0 draws nothing.
        top_k: draw from the k likeliest tokens only.
        top_p: draw from the likeliest tokens that together reach top_p only.
        generator: on the CPU; required if temperature > 0.

    Returns:
        The tokens.

    Raises:
        TypeError, ValueError: as ``token_probabilities``.
    """
    temperature, top_p = check_sampling(temperature, top_k, top_p)
    _require_logits(logits)
    _require_sampling_generator(generator, temperature)
    if logits.is_meta and temperature > 0:
        raise ValueError("logits must hold values to draw by, got a tensor on the meta device")
    return plain.sample_token(logits, temperature, top_k, top_p, generator)


def check_sampling(
    temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> tuple[float, float | None]:
    """Return temperature and top_p as plain floats; TypeError or ValueError unless temperature ≥ 0,
    top_k ≥ 1 or None and 0 < top_p ≤ 1 or None.
    """
    temperature = require_float("temperature", temperature, minimum=0.0, below=1e30)
    if top_k is not None:
        require_int("top_k", top_k)
    if top_p is not None:
        top_p = require_float("top_p", top_p)
        if not 0.0 < top_p <= 1.0:
            raise ValueError(f"top_p must be in (0, 1], got {top_p}")
    return temperature, top_p


def _require_model(model):
    if not isinstance(model, ReformerLM):
        raise TypeError(f"model must be a ReformerLM, got {type(model).__name__}")
    return model


def _require_sampling_generator(generator, temperature):
    if temperature > 0 and not isinstance(generator, torch.Generator):
        given = type(generator).__name__
        raise TypeError(f"generator must be a torch.Generator when temperature > 0, got {given}")


def _prompt_tokens(prompt, vocab_size):
    if isinstance(prompt, (bytes, bytearray)):
        prompt = torch.tensor(list(prompt), dtype=torch.int64)
    if not isinstance(prompt, Tensor) or prompt.dtype != torch.int64:
        given = prompt.dtype if isinstance(prompt, Tensor) else type(prompt).__name__
        raise TypeError(f"prompt must be bytes or an int64 tensor, got {given}")
    if require_tensor("prompt", prompt).ndim != 1 or prompt.numel() == 0:
        raise ValueError(f"prompt must have shape (n,) with n >= 1, got {tuple(prompt.shape)}")
    low, high = (int(token) for token in prompt.aminmax())
    if low < 0 or high >= vocab_size:
        raise ValueError(f"prompt must hold tokens in [0, {vocab_size}), got {low} to {high}")
    return prompt.cpu()


def _require_logits(logits):
    if require_floating("logits", logits).ndim < 1 or 0 in logits.shape:
        given = tuple(logits.shape)
        raise ValueError(f"logits must have shape (…, V) with every size ≥ 1, got {given}")
    # NaN, +∞, or nothing but −∞
    if has_values(logits) and not bool(logits.amax(-1).isfinite().all()):
        raise ValueError(
            "logits must be numbers below infinity, with a finite one among those of each token"
        )
