"""The whole Reformer in NumPy: language model and encoder-decoder, from tokens to logits.

Tokens are embedded, positions added, and the result starts both residual streams. Each block adds
attention to one stream as a function of the other, then a feed-forward layer the other way round;
at the end the streams are joined and normalised, and a linear map makes the logits (paper section
3, "Reversible Transformer", and section 5).

``params`` is a dict of float64 arrays under the names of the PyTorch model's ``state_dict``, the
stored ``rotations`` included; a matrix of a linear map is (outputs, inputs) there. Nothing is
random here, no dropout and rotations as given, and nothing is done in chunks.
"""

from itertools import pairwise

import numpy as np

from reformer_ref.attention.spec import regular_attention, shared_qk_attention
from reformer_ref.feed_forward.spec import IGNORED, cross_entropy, feed_forward, layer_norm
from reformer_ref.hashing.spec import factors_of, hash_vectors
from reformer_ref.local_attention.spec import local_attention
from reformer_ref.lsh_attention.spec import lsh_attention
from reformer_ref.model.config import n_buckets_for, padding_to_multiple
from reformer_ref.positions.spec import axial_positions, learned_positions, sinusoidal_positions


def reformer_lm(params, config, tokens, padding_mask=None):
    """Logits (B, L, vocab_size) of a language model.

    tokens int (B, L) in [0, vocab_size); padding_mask bool (B, L), True = real token. Tokens where
    the mask is False change nothing elsewhere.
    """
    hidden = backbone(weights_of(params, "backbone"), config, tokens, padding_mask)
    weight, bias, hidden = head(params, "backbone", config, hidden)
    return hidden @ weight + bias


def reformer_lm_loss(params, config, tokens, targets=None, padding_mask=None):
    """Mean cross-entropy in nats over the predicted tokens: float.

    targets: int (B, L), what each position should say, −100 = not counted; padding is never
    counted. None: the next real token, for causal models.
    """
    if targets is None:
        targets = next_tokens(tokens, padding_mask)
    elif padding_mask is not None:
        targets = np.where(padding_mask, targets, IGNORED)
    hidden = backbone(weights_of(params, "backbone"), config, tokens, padding_mask)
    weight, bias, hidden = head(params, "backbone", config, hidden)
    return cross_entropy(hidden, weight, bias, targets)


def encoder_decoder(
    params,
    encoder_config,
    decoder_config,
    source,
    target,
    source_padding_mask=None,
    target_padding_mask=None,
):
    """Logits (B, L_t, vocab_size) of a decoder that looks at the encoder.

    source int (B, L_s), target int (B, L_t), masks as in ``reformer_lm``. The encoder sees the
    whole source, the decoder its prefix of the target. Source: paper section 5, the translation
    experiments.
    """
    encoder, decoder = weights_of(params, "encoder"), weights_of(params, "decoder")
    output = backbone(encoder, encoder_config, source, source_padding_mask)  # (B, L_s, 2·d_model)
    hidden = backbone(
        decoder, decoder_config, target, target_padding_mask, output, source_padding_mask
    )
    weight, bias, hidden = head(params, "decoder", decoder_config, hidden)
    return hidden @ weight + bias


def backbone(p, config, tokens, padding_mask, encoder_output=None, encoder_mask=None):
    """Everything between tokens and head: tokens (B, L) -> (B, L, 2·d_model)."""
    length = tokens.shape[1]
    added = padding_to_multiple(config, length)
    if added:
        if padding_mask is None:
            padding_mask = np.ones(tokens.shape, bool)
        padding_mask = np.pad(padding_mask, ((0, 0), (0, added)))
        tokens = np.pad(tokens, ((0, 0), (0, added)))
    # 1. embed the tokens, add their positions
    x = p["embedding.weight"][tokens]  # (B, L, d_model)
    x = x + position_vectors(p, config, count_positions(tokens, padding_mask))
    # 2. blocks: y1 = x1 + F(x2), y2 = x2 + G(y1), and so on
    streams = [x, x]
    k = 0
    for index, kind in enumerate(config.layers):
        n_layers = 2 if encoder_output is None else 3
        for i in range(n_layers):
            target, source = k % 2, 1 - k % 2
            layer = weights_of(p, f"stack.blocks.{index}.layers.{i}")
            normal = norm(layer, config, streams[source])
            if i == 0:
                out = self_attention(layer, config, kind, normal, padding_mask)
            elif i == n_layers - 1:
                weights = [layer[f"inner.{name}"] for name in ("w1", "b1", "w2", "b2")]
                out = feed_forward(normal, *weights, config.activation)
            else:
                out = cross_attention(layer, config, normal, encoder_output, encoder_mask)
            streams[target] = streams[target] + out
            if config.streams == 1:  # ordinary residuals: x + F(x)
                streams[source] = streams[target]
            k += 1
    # 3. join the streams
    return norm(p, config, np.concatenate(streams, axis=-1))[:, :length]


def self_attention(p, config, kind, x, padding_mask):
    """x (B, L, d_model), normalised -> (B, L, d_model)."""
    q = split_heads(x @ p["q.weight"].T, config)  # (B, n_heads, L, d_head)
    v = split_heads(x @ p["v.weight"].T, config)  # (B, n_heads, L, d_v)
    mask = None
    if padding_mask is not None:
        mask = np.broadcast_to(padding_mask[:, None], q.shape[:-1])  # the same for all heads
    if kind == "lsh":
        # padding has no part in the number of buckets
        length = x.shape[1] if padding_mask is None else max(1, int(padding_mask.sum(-1).max()))
        n_buckets = n_buckets_for(config, length)
        width = sum(factors_of(n_buckets)) // 2
        rotations = p["rotations"][..., :width]  # (n_heads, n_hashes, d_head, Σfactors/2)
        out = lsh_attention(q, v, hash_vectors(q, rotations, n_buckets), config.lsh, mask)
    elif kind == "dense":
        out = shared_qk_attention(q, v, config.causal, mask, config.lsh.scale, config.lsh.norm_eps)
    else:
        k = split_heads(x @ p["k.weight"].T, config)  # (B, n_heads, L, d_head)
        if kind == "local":
            out = local_attention(q, k, v, config.local, mask)
        else:
            out = regular_attention(q, k, v, config.causal, mask)
    return merge_heads(out) @ p["out.weight"].T


def cross_attention(p, config, x, encoder_output, encoder_mask):
    """Every query of x (B, L_t, d_model) sees every real position of encoder_output."""
    q = split_heads(x @ p["q.weight"].T, config)  # (B, n_heads, L_t, d_head)
    k = split_heads(encoder_output @ p["k.weight"].T, config)  # (B, n_heads, L_s, d_head)
    v = split_heads(encoder_output @ p["v.weight"].T, config)  # (B, n_heads, L_s, d_v)
    mask = None if encoder_mask is None else encoder_mask[:, None]
    return merge_heads(regular_attention(q, k, v, False, mask)) @ p["out.weight"].T


def position_vectors(p, config, positions):
    """Vectors (…, d_model) of positions (…)."""
    if config.positions == "axial":
        tables = [p[f"positions.tables.{i}"] for i in range(len(config.axial_shape))]
        return axial_positions(tables, positions)
    if config.positions == "learned":
        return learned_positions(p["positions.table"], positions)
    if config.positions == "sinusoidal":
        return sinusoidal_positions(positions, config.d_model)
    return 0.0


def head(params, tied_to, config, hidden):
    """(weight (…, vocab_size), bias, hidden): the logits are hidden · weight + bias.

    A tied head reads both streams with the embedding, scaled to logits of variance about 1.
    """
    if not config.tie_head:
        return params["head.weight"].T, params["head.bias"], hidden
    first, second = np.split(hidden, 2, axis=-1)
    embedding = params[f"{tied_to}.embedding.weight"]
    return embedding.T, np.zeros(config.vocab_size), (first + second) / np.sqrt(2 * config.d_model)


def count_positions(tokens, padding_mask=None):
    """Position of each token among the real tokens: int64 (L,), or (B, L) with a mask."""
    if padding_mask is None:
        return np.arange(tokens.shape[1])
    return np.maximum(np.cumsum(padding_mask, axis=1) - 1, 0)


def next_tokens(tokens, padding_mask=None):
    """Targets of a causal model: the next real token, −100 for padding and where none follows."""
    targets = np.full(tokens.shape, IGNORED)
    for row in range(len(tokens)):
        real = np.arange(tokens.shape[1])
        if padding_mask is not None:
            real = np.flatnonzero(padding_mask[row])
        for position, following in pairwise(real):
            targets[row, position] = tokens[row, following]
    return targets


def norm(p, config, x):
    """The layer norm of a layer whose weights are ``p``."""
    return layer_norm(x, p["norm.weight"], p["norm.bias"], config.norm_eps)


def split_heads(x, config):
    """(B, L, n_heads·d) -> (B, n_heads, L, d)"""
    return np.swapaxes(x.reshape(*x.shape[:2], config.n_heads, -1), 1, 2)


def merge_heads(x):
    """(B, n_heads, L, d) -> (B, L, n_heads·d)"""
    return np.swapaxes(x, 1, 2).reshape(x.shape[0], x.shape[2], -1)


def weights_of(params, name):
    """The weights of one module, by the rest of their names."""
    start = name + "."
    return {k[len(start) :]: v for k, v in params.items() if k.startswith(start)}
