"""Layer norm, feed-forward and cross-entropy, chunk by chunk, in NumPy float64.

Paper: section 3, "the feed-forward layers [...] computations are completely independent across
positions in a sequence, so the computation can be split into c chunks", with the same remark for
the log-probabilities of a large vocabulary. A chunk changes how much is in memory at once, never a
value. Gradients are written by hand.
"""

import math

import numpy as np

IGNORED = -100  # a target with this value takes no part in the loss

_erf = np.vectorize(math.erf, otypes=[np.float64])


def relu(z):
    """max(z, 0)"""
    return np.maximum(z, 0)


def relu_slope(z):
    """The derivative of ``relu``, 0 at 0."""
    return (z > 0).astype(np.float64)


def gelu(z):
    """z · Φ(z), with the distribution function Φ of a standard normal."""
    return z * _normal_cdf(z)


def gelu_slope(z):
    """The derivative of ``gelu``."""
    return _normal_cdf(z) + z * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)


def _normal_cdf(z):
    return (1 + _erf(z / math.sqrt(2))) / 2


ACTIVATIONS = {"relu": relu, "gelu": gelu}
SLOPES = {"relu": relu_slope, "gelu": gelu_slope}


def layer_norm(x, scale, bias, eps=1e-5):
    """scale · (x - mean) / √(variance + eps) + bias, over the last axis (arXiv:1607.06450).

    x (…, d), scale (d), bias (d) -> (…, d).
    """
    normal, _ = _normalise(x, eps)
    return scale * normal + bias


def layer_norm_vjp(x, scale, bias, d_out, eps=1e-5):
    """Gradients (d_x, d_scale, d_bias) of Σ d_out · layer_norm(x, scale, bias)."""
    normal, deviation = _normalise(x, eps)
    d_normal = d_out * scale
    # mean and deviation take away the components of d_normal along 1 and along the normalised row
    along_one = d_normal.mean(-1, keepdims=True)
    along_row = normal * (d_normal * normal).mean(-1, keepdims=True)
    d_x = (d_normal - along_one - along_row) / deviation
    leading = tuple(range(normal.ndim - 1))
    return d_x, (d_out * normal).sum(leading), d_out.sum(leading)


def feed_forward(x, w1, b1, w2, b2, activation="relu", chunk_length=None):
    """activation(x w1 + b1) w2 + b2 at every position, ``chunk_length`` positions at a time.

    Vaswani et al. 2017, equation 2. x (…, L, d_model), w1 (d_model, d_ff), b1 (d_ff), w2 (d_ff,
    d_model), b2 (d_model) -> (…, L, d_model). A bias may be None.
    """
    b1 = 0.0 if b1 is None else b1
    b2 = 0.0 if b2 is None else b2
    out = np.empty(x.shape)
    for chunk in _chunks(x.shape[-2], chunk_length):
        # (…, chunk, d_ff): the wide array, alive for one chunk only
        hidden = ACTIVATIONS[activation](x[..., chunk, :] @ w1 + b1)
        out[..., chunk, :] = hidden @ w2 + b2
    return out


def feed_forward_vjp(x, w1, b1, w2, b2, d_out, activation="relu", chunk_length=None):
    """Gradients (d_x, d_w1, d_b1, d_w2, d_b2) of Σ d_out · feed_forward(…).

    Each chunk is recomputed by itself. The gradient of a bias that is None is None.
    """
    d_x, d_w1, d_w2 = np.zeros(x.shape), np.zeros(w1.shape), np.zeros(w2.shape)
    d_b1, d_b2 = np.zeros(w1.shape[1]), np.zeros(w2.shape[1])
    for chunk in _chunks(x.shape[-2], chunk_length):
        # 1. the chunk again
        x_chunk = x[..., chunk, :]
        z = x_chunk @ w1 + (0.0 if b1 is None else b1)  # (…, chunk, d_ff)
        # 2. backwards through the second matrix, the activation, the first matrix
        d_out_chunk = d_out[..., chunk, :]
        d_z = (d_out_chunk @ w2.T) * SLOPES[activation](z)
        d_x[..., chunk, :] = d_z @ w1.T
        # 3. parameters collect the gradients of all chunks
        d_w1 += _rows(x_chunk).T @ _rows(d_z)
        d_b1 += _rows(d_z).sum(0)
        d_w2 += _rows(ACTIVATIONS[activation](z)).T @ _rows(d_out_chunk)
        d_b2 += _rows(d_out_chunk).sum(0)
    return d_x, d_w1, None if b1 is None else d_b1, d_w2, None if b2 is None else d_b2


def cross_entropy(hidden, weight, bias, targets, chunk_length=None):
    """Mean over the counted positions of log Σ_v exp(z_v) - z_target, in nats.

    The logits are z = hidden · weight + bias. hidden (…, d), weight (d, V), bias (V) or None,
    targets (…) integers in [0, V), or IGNORED = -100 where a position does not count -> float. The
    (N, V) logits exist for ``chunk_length`` positions at a time.
    """
    hidden = _rows(hidden)
    targets = targets.reshape(-1)
    loss_sum = 0.0
    for chunk in _chunks(len(hidden), chunk_length):
        logits = hidden[chunk] @ weight + (0.0 if bias is None else bias)  # (chunk, V)
        lse = _log_sum_exp(logits)
        for row, target in enumerate(targets[chunk]):
            if target != IGNORED:
                loss_sum += lse[row, 0] - logits[row, target]
    return loss_sum / (targets != IGNORED).sum()


def cross_entropy_vjp(hidden, weight, bias, targets, d_loss=1.0, chunk_length=None):
    """Gradients (d_hidden, d_weight, d_bias) of d_loss · cross_entropy(…).

    d_logits = (softmax - one-hot) / number of counted positions; 0 where a position does not count.
    """
    shape = hidden.shape
    hidden = _rows(hidden)
    targets = targets.reshape(-1)
    counted = targets != IGNORED
    d_hidden = np.zeros(hidden.shape)
    d_weight = np.zeros(weight.shape)
    d_bias = 0.0
    for chunk in _chunks(len(hidden), chunk_length):
        logits = hidden[chunk] @ weight + (0.0 if bias is None else bias)  # (chunk, V)
        d_logits = np.exp(logits - _log_sum_exp(logits))
        for row, target in enumerate(targets[chunk]):
            if target != IGNORED:
                d_logits[row, target] -= 1
        d_logits = np.where(counted[chunk, None], d_logits * d_loss / counted.sum(), 0)
        d_hidden[chunk] = d_logits @ weight.T
        d_weight += hidden[chunk].T @ d_logits
        d_bias = d_bias + d_logits.sum(0)
    return d_hidden.reshape(shape), d_weight, None if bias is None else d_bias


def _chunks(length, chunk_length):
    """The slices that cut ``length`` positions into chunks; the last may be shorter."""
    step = chunk_length or length
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def _rows(array):
    return array.reshape(-1, array.shape[-1])  # (…, n) -> (product, n)


def _log_sum_exp(logits):
    row_max = logits.max(-1, keepdims=True)  # taken out first, so that no exponential overflows
    return row_max + np.log(np.exp(logits - row_max).sum(-1, keepdims=True))


def _normalise(x, eps):
    deviation = np.sqrt(x.var(-1, keepdims=True) + eps)
    return (x - x.mean(-1, keepdims=True)) / deviation, deviation
