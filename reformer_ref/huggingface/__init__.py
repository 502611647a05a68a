"""Weights of Hugging Face transformers, in and out."""

from reformer_ref.huggingface.weights import config_from_huggingface, to_huggingface

__all__ = ["config_from_huggingface", "to_huggingface"]
