"""Checks of what the whole models are given, made once per call."""

import torch
from torch import nn

from reformer_ref._arguments import require_shape
from reformer_ref._tensors import has_values, require_padding_mask, require_tensor
from reformer_ref.feed_forward.api import require_targets
from reformer_ref.feed_forward.pytorch import IGNORED


def check_tokens(config, tokens, padding_mask, generator=None, *, name="tokens", device=None):
    """The mask expanded to the shape of tokens; an error if the arguments do not fit ``config``."""
    _require_token_integers(name, tokens, device)
    if tokens.ndim != 2 or 0 in tokens.shape:
        given = tuple(tokens.shape)
        raise ValueError(f"{name} must have shape (batch, length) with both ≥ 1, got {given}")
    length = tokens.shape[1]
    if length > config.max_length:
        most = f"max_length = {config.max_length}"
        raise ValueError(f"{name} must be at most {most} long, got {length}")
    if has_values(tokens):
        low, high = torch.stack(tokens.aminmax()).tolist()
        if low < 0 or high >= config.vocab_size:
            accepted = f"0 … {config.vocab_size - 1}"
            raise ValueError(f"{name} must lie in {accepted}, got {low} … {high}")
    if generator is not None and not isinstance(generator, torch.Generator):
        given = type(generator).__name__
        raise TypeError(f"generator must be a torch.Generator or None, got {given}")
    if generator is not None and generator.device.type != "cpu":
        accepted = "on the CPU, to draw the same everywhere"
        raise ValueError(f"generator must be {accepted}, got one on {generator.device}")
    return require_padding_mask(padding_mask, tokens.shape, tokens.device)


def check_targets(config, targets, tokens, padding_mask):
    """``targets`` as int64, IGNORED at padding; an error if they do not go with tokens."""
    _require_token_integers("targets", targets, tokens.device)
    require_shape("targets", targets, tokens.shape, "(batch, length) of tokens")
    if padding_mask is not None:
        targets = targets.masked_fill(~padding_mask, IGNORED)
    return require_targets(targets, tokens.shape, config.vocab_size, tokens.device)


def check_head(head):
    """TypeError unless the head's weights say what it computes: only they are read, in chunks."""
    if head is None:
        return
    plain = isinstance(head, nn.Linear) and type(head).forward is nn.Linear.forward
    if not plain or head.bias is None or head._forward_hooks or head._forward_pre_hooks:
        accepted = (
            "an nn.Linear with a bias and without hooks: only its weights are read, in chunks"
        )
        raise TypeError(f"head must be {accepted}")


def _require_token_integers(name, tokens, device):
    if require_tensor(name, tokens).dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name} must be int64 or int32, got {tokens.dtype}")
    if device is not None and tokens.device != device:
        raise ValueError(f"{name} must be on {device}, got {tokens.device}")
