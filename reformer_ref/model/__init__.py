"""The whole Reformer: language model, encoder-decoder, and their configuration."""

from reformer_ref.model.config import ReformerConfig
from reformer_ref.model.encoder_decoder import ReformerEncoderDecoder
from reformer_ref.model.pytorch import ReformerLM

__all__ = ["ReformerConfig", "ReformerEncoderDecoder", "ReformerLM"]
