"""Layer norm, feed-forward and cross-entropy, slice by slice, in NumPy float64 with gradients by
hand.

Paper: section 3, "the feed-forward layers [...] computations are completely independent across
positions in a sequence, so the computation can be split into c chunks", with the same remark for
the log-probabilities of a large vocabulary. A slice changes how much is in memory at once, never a
value.
"""

import math

import numpy as np

from reformer_ref._arguments import (
    as_floats,
    as_integers,
    require_choice,
    require_float,
    require_int,
    require_shape,
)

IGNORED = -100  # a target with this value takes no part in the loss

as_in_pytorch = np.errstate(
    over="ignore", invalid="ignore"
)  # NaN and infinity go through without a warning
_erf = np.vectorize(math.erf, otypes=[np.float64])


def _normal_cdf(z):
    return (1 + _erf(z / math.sqrt(2))) / 2


# name -> (value, slope)
ACTIVATIONS = {
    "relu": (lambda z: np.maximum(z, 0), lambda z: (z > 0).astype(np.float64)),
    "gelu": (
        lambda z: z * _normal_cdf(z),
        lambda z: _normal_cdf(z) + z * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi),
    ),
}


@as_in_pytorch
def layer_norm(x, scale, bias, eps=1e-5):
    """scale · (x - mean) / √(variance + eps) + bias, over the last axis (Ba et al. 2016,
    arXiv:1607.06450).

    x (…, d), scale (d), bias (d) -> (…, d). ValueError on other shapes, TypeError if not floating
    point.
    """
    normal, _, scale, bias = _normalised(x, scale, bias, eps)
    return scale * normal + bias


@as_in_pytorch
def layer_norm_vjp(x, scale, bias, d_out, eps=1e-5):
    """Gradients (d_x, d_scale, d_bias) of Σ d_out · layer_norm(x, scale, bias)."""
    normal, deviation, scale, _ = _normalised(x, scale, bias, eps)
    d_out = _floats("d_out", d_out)
    require_shape("d_out", d_out, normal.shape, "(…, d)")
    d_normal = d_out * scale
    # Mean and deviation take away the parts of d_normal along 1 and along the normalised row.
    along_one = d_normal.mean(-1, keepdims=True)
    along_row = normal * (d_normal * normal).mean(-1, keepdims=True)
    leading = tuple(range(normal.ndim - 1))
    return (
        (d_normal - along_one - along_row) / deviation,
        (d_out * normal).sum(leading),
        d_out.sum(leading),
    )


@as_in_pytorch
def feed_forward(x, w1, b1, w2, b2, activation="relu", slice_length=None):
    """activation(x w1 + b1) w2 + b2 at every position, ``slice_length`` positions at a time.

    Vaswani et al. 2017, equation 2. x (…, L, d_model), w1 (d_model, d_ff), b1 (d_ff), w2 (d_ff,
    d_model), b2 (d_model) -> (…, L, d_model). A bias may be None; activation is "relu" or "gelu"
    (the exact one); slice_length ≥ 1 need not divide L, None means all at once. ValueError on other
    shapes or an empty sequence, TypeError if not floating point.
    """
    x, w1, b1, w2, b2, act, _ = _feed_forward_arguments(x, w1, b1, w2, b2, activation)
    out = np.empty_like(x)
    for s in _slices(x.shape[-2], slice_length):
        hidden = act(
            x[..., s, :] @ w1 + b1
        )  # (…, slice, d_ff): the wide array, alive for one slice only
        out[..., s, :] = hidden @ w2 + b2
    return out


@as_in_pytorch
def feed_forward_vjp(x, w1, b1, w2, b2, d_out, activation="relu", slice_length=None):
    """Gradients (d_x, d_w1, d_b1, d_w2, d_b2) of Σ d_out · feed_forward(…); each slice is
    recomputed by itself.

    The gradient of a bias that is None is None.
    """
    given_b1, given_b2 = b1 is not None, b2 is not None
    x, w1, b1, w2, b2, act, slope = _feed_forward_arguments(x, w1, b1, w2, b2, activation)
    d_out = _floats("d_out", d_out)
    require_shape("d_out", d_out, x.shape, "(…, L, d_model)")
    d_x, d_w1, d_b1, d_w2, d_b2 = (np.zeros_like(a) for a in (x, w1, b1, w2, b2))
    for s in _slices(x.shape[-2], slice_length):
        x_s, d_out_s = x[..., s, :], d_out[..., s, :]
        z = x_s @ w1 + b1  # (…, slice, d_ff)
        d_z = (d_out_s @ w2.T) * slope(z)
        d_x[..., s, :] = d_z @ w1.T
        d_w1 += _rows(x_s).T @ _rows(d_z)
        d_b1 += _rows(d_z).sum(0)
        d_w2 += _rows(act(z)).T @ _rows(d_out_s)
        d_b2 += _rows(d_out_s).sum(0)
    return d_x, d_w1, d_b1 if given_b1 else None, d_w2, d_b2 if given_b2 else None


@as_in_pytorch
def cross_entropy(hidden, weight, bias, targets, slice_length=None):
    """Mean over the counted positions of log Σ_v exp(z_v) - z_target in nats, with logits z =
    hidden · weight + bias.

    hidden (…, d), weight (d, V), bias (V) or None, targets (…) integers in [0, V), or IGNORED =
    -100 where a position does not count -> float. The (N, V) logits exist for ``slice_length``
    positions at a time. ValueError on other shapes, targets out of range, or when no position
    counts; TypeError on other dtypes.
    """
    hidden, weight, bias, targets = _cross_entropy_arguments(hidden, weight, bias, targets)
    counted = targets != IGNORED
    total = 0.0
    for s in _slices(len(hidden), slice_length):
        logits = hidden[s] @ weight + bias  # (slice, V)
        nats = (
            _log_sum_exp(logits)[:, 0]
            - logits[np.arange(len(logits)), np.where(counted[s], targets[s], 0)]
        )
        total += nats[counted[s]].sum()
    return total / counted.sum()


@as_in_pytorch
def cross_entropy_vjp(hidden, weight, bias, targets, d_loss=1.0, slice_length=None):
    """Gradients (d_hidden, d_weight, d_bias) of d_loss · cross_entropy(…): d_logits = (softmax -
    one-hot) / count.
    """
    given_bias = bias is not None
    shape = _floats("hidden", hidden).shape
    hidden, weight, bias, targets = _cross_entropy_arguments(hidden, weight, bias, targets)
    d_loss, counted = require_float("d_loss", d_loss), targets != IGNORED
    d_hidden, d_weight, d_bias = (np.zeros_like(a) for a in (hidden, weight, bias))
    for s in _slices(len(hidden), slice_length):
        logits = hidden[s] @ weight + bias  # (slice, V)
        d_logits = np.exp(logits - _log_sum_exp(logits))
        d_logits[np.arange(len(logits)), np.where(counted[s], targets[s], 0)] -= 1
        d_logits = np.where(counted[s, None], d_logits * d_loss / counted.sum(), 0)
        d_hidden[s] = d_logits @ weight.T
        d_weight += hidden[s].T @ d_logits
        d_bias += d_logits.sum(0)
    return d_hidden.reshape(shape), d_weight, d_bias if given_bias else None


def _slices(length, slice_length):
    """The slices of ``slice_length`` positions that cover ``length`` positions; the last may be
    shorter.
    """
    step = length if slice_length is None else require_int("slice_length", slice_length)
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def _rows(array):
    return array.reshape(-1, array.shape[-1])  # (…, n) -> (product, n)


def _log_sum_exp(logits):
    top = logits.max(-1, keepdims=True)  # taken out first, so that no exponential overflows
    return top + np.log(np.exp(logits - top).sum(-1, keepdims=True))


def _normalised(x, scale, bias, eps):
    x, scale, bias = _floats("x", x), _floats("scale", scale), _floats("bias", bias)
    eps = require_float("eps", eps, minimum=0.0)
    _require_positions("x", x, at_least=1)
    for name, array in (("scale", scale), ("bias", bias)):
        require_shape(name, array, x.shape[-1:], "(d)")
    deviation = np.sqrt(x.var(-1, keepdims=True) + eps)
    if not deviation.all():
        raise ValueError("eps must be above 0 where a row of x holds equal numbers")
    return (x - x.mean(-1, keepdims=True)) / deviation, deviation, scale, bias


def _feed_forward_arguments(x, w1, b1, w2, b2, activation):
    require_choice("activation", activation, tuple(ACTIVATIONS))
    x, w1, w2 = _floats("x", x), _floats("w1", w1), _floats("w2", w2)
    _require_positions("x", x, at_least=2)
    d_model, d_ff = x.shape[-1], w1.shape[-1] if w1.ndim else 0
    b1 = np.zeros(d_ff) if b1 is None else _floats("b1", b1)
    b2 = np.zeros(d_model) if b2 is None else _floats("b2", b2)
    require_shape("w1", w1, (d_model, d_ff), "(d_model, d_ff)")
    require_shape("b1", b1, (d_ff,), "(d_ff)")
    require_shape("w2", w2, (d_ff, d_model), "(d_ff, d_model)")
    require_shape("b2", b2, (d_model,), "(d_model)")
    return x, w1, b1, w2, b2, *ACTIVATIONS[activation]


def _cross_entropy_arguments(hidden, weight, bias, targets):
    hidden, weight, targets = (
        _floats("hidden", hidden),
        _floats("weight", weight),
        as_integers("targets", targets),
    )
    _require_positions("hidden", hidden, at_least=1)
    vocabulary = weight.shape[-1] if weight.ndim else 0
    bias = np.zeros(vocabulary) if bias is None else _floats("bias", bias)
    require_shape("weight", weight, (hidden.shape[-1], vocabulary), "(d, V)")
    require_shape("bias", bias, (vocabulary,), "(V)")
    require_shape("targets", targets, hidden.shape[:-1], "hidden without its last axis")
    counted = targets[targets != IGNORED]
    if counted.size == 0:
        raise ValueError(f"targets must hold at least one position that counts, got only {IGNORED}")
    if counted.min() < 0 or counted.max() >= vocabulary:
        raise ValueError(
            f"targets must be in [0, {vocabulary}) or {IGNORED}, got values from {counted.min()} to {counted.max()}"
        )
    return _rows(hidden), weight, bias, targets.reshape(-1)


def _floats(name, value):
    return as_floats(
        name, value, bounded=False, must="be floating point"
    )  # a loss that is not finite is told as it is


def _require_positions(name, array, at_least):
    if array.ndim < at_least or array.size == 0:
        shape = "(…, L, d_model)" if at_least == 2 else "(…, d)"
        raise ValueError(
            f"{name} must have shape {shape} and hold at least one position, got {array.shape}"
        )
