"""Weights of Hugging Face transformers, in and out."""
