"""The whole Reformer, in NumPy: what a language model and an encoder-decoder compute, from tokens
to logits.

Tokens are embedded, positions added, and the result stands in both residual streams. Each layer
adds attention to one stream as a function of the other, then a feed-forward layer the other way
round; at the end the streams are joined and normalised, and a linear map makes the logits (paper
section 3, "Reversible Transformer", and section 5).

``params`` is a dict of arrays under the names of the PyTorch model's ``state_dict``, the stored
``rotations`` included; a matrix of a linear map is (outputs, inputs) there. Nothing is random here,
no dropout and rotations as given, and nothing is done in slices.
"""

import numpy as np

from reformer_ref._arguments import as_integers, as_mask, bucket_factors, clear_errors
from reformer_ref.attention.spec import regular_attention, shared_qk_attention
from reformer_ref.feed_forward.spec import IGNORED, cross_entropy, feed_forward, layer_norm
from reformer_ref.hashing.spec import hash_vectors
from reformer_ref.local_attention.spec import local_attention
from reformer_ref.lsh_attention.spec import lsh_attention
from reformer_ref.model.config import n_buckets_for, padding_to_multiple, require_config
from reformer_ref.positions.spec import axial_positions, learned_positions, sinusoidal_positions


@clear_errors
def reformer_lm(params, config, tokens, padding_mask=None):
    """Logits of a language model: float64 (B, L, vocab_size).

    tokens int (B, L) in [0, vocab_size); padding_mask bool (B, L), True = real token. What stands
    where the mask is False changes nothing elsewhere. ValueError or TypeError for tokens, a mask or
    params that do not fit ``config``.
    """
    hidden, weight, bias = _hidden_and_head(params, config, tokens, padding_mask)
    return hidden @ weight + bias


@clear_errors
def reformer_lm_loss(params, config, tokens, targets=None, padding_mask=None):
    """Mean cross-entropy in nats over the predicted tokens: float.

    targets: int (B, L), what each position should say, −100 = not counted; padding is never
    counted. None: the next real token, for causal models.
    """
    if targets is None and not config.causal:
        raise ValueError(
            "targets must be given for a model that is not causal (−100 where nothing is asked)"
        )
    hidden, weight, bias = _hidden_and_head(params, config, tokens, padding_mask)
    if targets is None:
        targets = next_tokens(tokens, padding_mask)
    elif padding_mask is not None:
        targets = np.where(padding_mask, targets, IGNORED)
    return cross_entropy(hidden, weight, bias, targets)


@clear_errors
def encoder_decoder(
    params,
    encoder_config,
    decoder_config,
    source,
    target,
    source_padding_mask=None,
    target_padding_mask=None,
):
    """Logits (B, L_t, vocab_size of the decoder): every decoder layer has a third half, that looks
    at the encoder.

    source int (B, L_s), target int (B, L_t), masks as in ``reformer_lm``. The encoder sees the
    whole source, the decoder its prefix of the target. Source: paper section 5, the translation
    experiments.
    """
    source, source_real = _check_tokens("source", encoder_config, source, source_padding_mask)
    target, target_real = _check_tokens("target", decoder_config, target, target_padding_mask)
    encoder_output = _backbone(
        _part(params, "encoder"), encoder_config, source, source_real
    )  # (B, L_s, 2·d_model)
    hidden = _backbone(
        _part(params, "decoder"), decoder_config, target, target_real, encoder_output, source_real
    )
    hidden, weight, bias = _head(
        _part(params, "decoder"), _part(params, "head"), decoder_config, hidden
    )
    return hidden @ weight + bias


def count_positions(tokens, padding_mask=None):
    """Position of each token among the real tokens: int64 (L,), or (B, L) with a mask."""
    tokens, mask = _rows(tokens, padding_mask)
    return (
        np.arange(tokens.shape[1]) if mask is None else np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    )


def next_tokens(tokens, padding_mask=None):
    """Targets of a causal model: the next real token, −100 at the end, for padding, and where none
    follows.
    """
    tokens, padding_mask = _rows(tokens, padding_mask)
    targets = np.full(tokens.shape, IGNORED)
    for row, real in enumerate(
        np.broadcast_to(True if padding_mask is None else padding_mask, targets.shape)
    ):
        at = np.flatnonzero(real)
        targets[row, at[:-1]] = tokens[row][at[1:]]
    return targets


def _rows(tokens, padding_mask, name="tokens"):
    """Tokens int64 (B, L) and the mask of their shape, or None."""
    tokens = as_integers(name, tokens)
    if tokens.ndim != 2 or 0 in tokens.shape:
        raise ValueError(f"{name} must be (B, L), both at least 1, got {tokens.shape}")
    return tokens, as_mask(padding_mask, tokens.shape)


def _hidden_and_head(params, config, tokens, padding_mask):
    """(hidden, weight (…, vocab_size), bias) of a language model."""
    tokens, real = _check_tokens("tokens", config, tokens, padding_mask)
    backbone = _part(params, "backbone")
    return _head(backbone, _part(params, "head"), config, _backbone(backbone, config, tokens, real))


def _backbone(p, config, tokens, real, encoder_output=None, encoder_real=None):
    """Everything between tokens and head: tokens (B, L) -> (B, L, 2·d_model)."""
    length, added = tokens.shape[1], padding_to_multiple(config, tokens.shape[1])
    if added:
        real = np.pad(np.ones(tokens.shape, bool) if real is None else real, ((0, 0), (0, added)))
        tokens = np.pad(tokens, ((0, 0), (0, added)))
    x = p["embedding.weight"][tokens] + _positions(
        p, config, count_positions(tokens, real)
    )  # (B, L, d_model)
    streams = [x, x]
    for k, half in enumerate(_halves(p, config, real, encoder_output, encoder_real)):
        target, source = k % 2, 1 - k % 2  # y1 = x1 + F(x2), y2 = x2 + G(y1), and so on
        streams[target] = streams[target] + half(streams[source])
        streams[source] = streams[
            source if config.streams == 2 else target
        ]  # 1: ordinary residuals, x + F(x)
    return _norm(p, config, np.concatenate(streams, axis=-1))[:, :length]


def _halves(p, config, real, encoder_output, encoder_real):
    """The functions of one stream, in order: self-attention, cross-attention if there is a encoder_output,
    feed-forward.
    """
    for index, kind in enumerate(config.layers):
        names = [
            f"stack.blocks.{index}.layers.{k}" for k in range(2 if encoder_output is None else 3)
        ]
        first, *middle, last = (_part(p, name) for name in names)
        yield lambda x, p=first, kind=kind: _self_attention(
            p, config, kind, _norm(p, config, x), real
        )
        for q in middle:
            yield lambda x, p=q: _cross_attention(
                p, config, _norm(p, config, x), encoder_output, encoder_real
            )
        weights = [last[f"inner.{name}"] for name in ("w1", "b1", "w2", "b2")]
        yield lambda x, p=last, weights=weights: feed_forward(
            _norm(p, config, x), *weights, config.activation
        )


def _self_attention(p, config, kind, x, real):
    """x (B, L, d_model), normalised -> (B, L, d_model)."""
    q, v = (
        _heads(x @ p[f"{name}.weight"].T, config) for name in "qv"
    )  # (B, n_heads, L, d_head or d_v)
    k = _heads(x @ p["k.weight"].T, config) if kind in ("local", "regular") else None
    mask = (
        None if real is None else np.broadcast_to(real[:, None], q.shape[:-1])
    )  # one for all heads
    if kind == "lsh":
        length = (
            x.shape[1] if real is None else max(1, int(real.sum(-1).max()))
        )  # padding has no part in it
        n_buckets = n_buckets_for(config, length)
        width = sum(bucket_factors(n_buckets)) // 2
        rotations = p["rotations"][..., :width]  # (n_heads, n_hashes, d_head, Σfactors/2)
        out = lsh_attention(q, v, hash_vectors(q, rotations, n_buckets), config.lsh, mask)
    elif kind == "local":
        out = local_attention(q, k, v, config.local, mask)
    elif kind == "dense":
        out = shared_qk_attention(q, v, config.causal, mask, config.lsh.scale, config.lsh.norm_eps)
    else:
        out = regular_attention(q, k, v, config.causal, mask)
    return _joined(out) @ p["out.weight"].T


def _cross_attention(p, config, x, encoder_output, encoder_real):
    """Every query of x (B, L_t, d_model) sees every real position of encoder_output (B, L_s, 2·d_model)."""
    q, k, v = (
        _heads(y @ p[f"{name}.weight"].T, config)
        for name, y in (("q", x), ("k", encoder_output), ("v", encoder_output))
    )
    mask = None if encoder_real is None else encoder_real[:, None]
    return _joined(regular_attention(q, k, v, False, mask)) @ p["out.weight"].T


def _positions(p, config, positions):
    if config.positions == "axial":
        return axial_positions(
            [p[f"positions.tables.{i}"] for i in range(len(config.axial_shape))], positions
        )
    if config.positions == "learned":
        return learned_positions(p["positions.table"], positions)
    return (
        sinusoidal_positions(positions, config.d_model) if config.positions == "sinusoidal" else 0.0
    )


def _head(backbone, head, config, hidden):
    """Tied: both streams are read with the embedding, scaled to logits of variance about 1."""
    if not config.tie_head:
        return hidden, head["weight"].T, head["bias"]
    first, second = np.split(hidden, 2, axis=-1)
    return (
        (first + second) / np.sqrt(2 * config.d_model),
        backbone["embedding.weight"].T,
        np.zeros(config.vocab_size),
    )


def _norm(p, config, x):
    return layer_norm(x, p["norm.weight"], p["norm.bias"], config.norm_eps)


def _heads(x, config):
    return np.swapaxes(
        x.reshape(*x.shape[:2], config.n_heads, -1), 1, 2
    )  # (B, L, n_heads·d) -> (B, n_heads, L, d)


def _joined(x):
    return np.swapaxes(x, 1, 2).reshape(
        x.shape[0], x.shape[2], -1
    )  # (B, n_heads, L, d) -> (B, L, n_heads·d)


class _Weights(dict):
    """The weights of one part of the model, float64, by the rest of their names."""

    def __missing__(self, name):
        raise ValueError(
            f"params must hold every weight of the model; one that ends in {name!r} is missing"
        )


def _part(params, name):
    start = name + "."
    return _Weights(
        (k[len(start) :], np.asarray(v, np.float64))
        for k, v in params.items()
        if k.startswith(start)
    )


def _check_tokens(name, config, tokens, padding_mask):
    tokens, padding_mask = _rows(tokens, padding_mask, name)
    if tokens.shape[1] > require_config(config).max_length:
        raise ValueError(
            f"{name} must be (B, L) with 1 ≤ L ≤ max_length = {config.max_length}, got {tokens.shape}"
        )
    if tokens.min() < 0 or tokens.max() >= config.vocab_size:
        raise ValueError(
            f"{name} must lie in [0, {config.vocab_size}), got {tokens.min()} … {tokens.max()}"
        )
    return tokens, padding_mask
