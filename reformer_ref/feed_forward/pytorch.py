"""Layer norm, feed-forward and cross-entropy in PyTorch, chunk by chunk, with ordinary autograd.

Autograd keeps what it needs of every chunk until backward, so these chunks save memory in inference
only. ``feed_forward.chunked`` has the versions that save it in training too.
"""

import torch
import torch.nn.functional as F

IGNORED = -100  # a target with this value takes no part in the loss
ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu}


def layer_norm(x, scale, bias, eps=1e-5):
    """scale · (x - mean) / √(variance + eps) + bias, over the last axis."""
    return F.layer_norm(x, x.shape[-1:], scale, bias, eps)


def feed_forward(x, w1, b1, w2, b2, activation="relu", chunk_length=None, dropout=0.0):
    """activation(x w1 + b1) w2 + b2 at every position of x (…, L, d_model)."""
    outputs = []
    for x_chunk in x.split(chunk_length or x.shape[-2], dim=-2):  # (…, chunk, d_model)
        # the wide array, alive for one chunk only (where autograd does not keep it)
        hidden = ACTIVATIONS[activation](F.linear(x_chunk, w1.t(), b1))  # (…, chunk, d_ff)
        if dropout:
            hidden = F.dropout(hidden, dropout)
        outputs.append(F.linear(hidden, w2.t(), b2))  # (…, chunk, d_model)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-2)  # (…, L, d_model)


def cross_entropy(hidden, weight, bias, targets, chunk_length=None):
    """Mean over the counted positions of log Σ_v exp(z_v) - z_target, logits z = hidden · weight + bias."""
    hidden = hidden.reshape(-1, hidden.shape[-1])  # (N, d)
    targets = targets.reshape(-1)  # (N)
    loss_sum = 0.0
    n = chunk_length or len(hidden)
    for hidden_chunk, targets_chunk in zip(hidden.split(n), targets.split(n), strict=True):
        logits = F.linear(hidden_chunk, weight.t(), bias)  # (chunk, V)
        loss_sum = loss_sum + cross_entropy_sum(logits, targets_chunk)
    return loss_sum / (targets != IGNORED).sum()


def cross_entropy_sum(logits, targets):
    """Sum over the counted positions, in float32 at least: logits (…, V), targets (…) -> scalar."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(
        logits.flatten(0, -2), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )
