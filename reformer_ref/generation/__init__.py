"""From a trained model to new tokens: decoding with and without a cache, sampling, beam search."""

from reformer_ref.generation.api import (
    Decoder,
    Recomputer,
    beam_search,
    cache_unsupported_reason,
    generate,
    sample_token,
    token_probabilities,
)

__all__ = [
    "Decoder",
    "Recomputer",
    "beam_search",
    "cache_unsupported_reason",
    "generate",
    "sample_token",
    "token_probabilities",
]
