"""From the streams of the model to logits and to the loss, in chunks of positions."""

import torch
import torch.nn.functional as F

from reformer_ref.feed_forward.chunked import chunked
from reformer_ref.feed_forward.pytorch import IGNORED, cross_entropy_sum


def final_norm(y1, y2, scale, bias, eps, dropout=0.0):
    """Both streams (B, L, d_model) joined and normalised: (B, L, 2·d_model)."""
    joined = torch.cat([y1, y2], dim=-1)
    hidden = F.layer_norm(joined, joined.shape[-1:], scale, bias, eps)
    return F.dropout(hidden, dropout) if dropout else hidden


def logits_of(hidden, weight, bias=None):
    """Logits (…, vocab_size) of hidden (…, 2·d_model).

    weight (vocab_size, 2·d_model) and bias of a head; or, tied, the embedding (vocab_size, d_model)
    alone: it reads the sum of both streams, scaled to logits of variance about 1.
    """
    if bias is None:
        first, second = hidden.chunk(2, dim=-1)
        hidden = (first + second) * (2 * weight.shape[1]) ** -0.5
    return F.linear(hidden, weight, bias)


def chunked_cross_entropy(y1, y2, targets, scale, bias, *head, eps, dropout=0.0, chunk_length=None):
    """Mean nats of targets (B, L), −100 = not counted, given the streams.

    scale, bias: weights of the last norm; head: what ``logits_of`` takes.
    """

    def chunk_sum(y1, y2, targets, scale, bias, *head):
        hidden = final_norm(y1, y2, scale, bias, eps, dropout)  # (B, chunk, 2·d_model)
        return cross_entropy_sum(logits_of(hidden, *head), targets)

    streams, weights = (y1, y2, targets), (scale, bias, *head)
    loss_sum = chunked(chunk_sum, streams, weights, chunk_length, dim=1, add=True, rng=dropout > 0)
    return loss_sum / (targets != IGNORED).sum()
