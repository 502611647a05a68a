"""Dense attention, in NumPy.

Every attention of this package is a softmax over the keys that a query may see. ``attend`` writes
that down once, with a count per pair: 0 hides a key, 1 shows it, m shows it as often as the softmax
would meet it in m places (paper section 2, equations 1 to 3). What differs between dense, local and
LSH attention is only the counts.

Errors, in every function: TypeError for a wrong dtype, ValueError for shapes that do not fit, NaN
and infinity.
"""

import numpy as np

from reformer_ref._arguments import (
    as_array,
    as_floats,
    as_mask,
    broadcast,
    require_bool,
    require_float,
    require_int,
    require_room,
    require_shape,
)

LARGEST_SCALE = 1e6  # the size of the factor of q·k must be smaller


def normalize_keys(x, norm_eps=1e-6):
    """Unit keys k̂ = x / √(‖x‖² + d·norm_eps), float64 (…, L, d); a zero vector stays zero.

    With shared queries and keys the key is the query's direction (paper section 2, "Shared-QK
    attention").
    """
    x = _floats("x", x)
    return x * _inverse_length(x, norm_eps)


def normalize_keys_vjp(x, d_out, norm_eps=1e-6):
    """d_x = (d_out − k̂ (k̂·d_out)) / √(‖x‖² + d·norm_eps)."""
    x = _floats("x", x)
    d_out = _floats("d_out", d_out, x.shape)
    inverse = _inverse_length(x, norm_eps)
    unit = x * inverse
    return inverse * (d_out - unit * np.sum(unit * d_out, axis=-1, keepdims=True))


def attend(q, k, v, counts, scale=1.0):
    """(out, weights): out (…, L_q, d_v), weights (…, L_q, L_k), one softmax over everything
    visible.

    q (…, L_q, d), k (…, L_k, d), v (…, L_k, d_v), counts bool or int ≥ 0, broadcast to (…, L_q,
    L_k): w_ij ∝ counts_ij · exp(scale · q_i·k_j). A query with all counts zero gets zeros.
    """
    q, k, v = _qkv(q, k, v)
    counts = _counts(counts, (*q.shape[:-1], k.shape[-2]))
    scores = np.where(
        counts > 0, _factor(scale) * (q @ np.swapaxes(k, -1, -2)), -np.inf
    )  # (…, L_q, L_k)
    top = np.max(scores, axis=-1, keepdims=True)
    weights = counts * np.exp(scores - np.where(np.isfinite(top), top, 0.0))
    total = np.sum(weights, axis=-1, keepdims=True)
    weights = weights / np.where(total > 0, total, 1.0)
    return weights @ v, weights


def attend_vjp(q, k, v, counts, d_out, scale=1.0):
    """(d_q, d_k, d_v) of ``attend``'s output: the softmax rule d_s = w ⊙ (d_w − Σ_j w_j d_w_j)."""
    q, k, v = _qkv(q, k, v)
    out, weights = attend(q, k, v, counts, scale)
    d_out, scale = _floats("d_out", d_out, out.shape), _factor(scale)
    d_weights = d_out @ np.swapaxes(v, -1, -2)
    d_scores = scale * weights * (d_weights - np.sum(d_out * out, axis=-1, keepdims=True))
    return d_scores @ k, np.swapaxes(d_scores, -1, -2) @ q, np.swapaxes(weights, -1, -2) @ d_out


def self_as_last_resort(counts):
    """The self rule: a token sees itself only if nothing else is visible to it (paper section 2).
    counts (…, L, L).
    """
    counts = _counts(counts)
    eye = np.eye(counts.shape[-1], dtype=bool)
    others = np.where(eye, 0, counts)
    alone = np.sum(others, axis=-1, keepdims=True) == 0
    return np.where(eye & alone, counts, others)


def visible_pairs(query_length, key_length, causal, padding_mask=None):
    """Dense counts: int (…, L_q, L_k), 1 where query i may see key j. padding_mask bool (…, L_k),
    True = real token.
    """
    shape = require_int("query_length", query_length), require_int("key_length", key_length)
    require_room(query_length=query_length, key_length=key_length)
    if require_bool("causal", causal) and query_length != key_length:
        raise ValueError(
            f"causal attention needs as many queries as keys, got {query_length} and {key_length}"
        )
    visible = np.tril(np.ones(shape, dtype=int)) if causal else np.ones(shape, dtype=int)
    if padding_mask is None:
        return visible
    padding_mask = as_array("padding_mask", padding_mask)
    return visible * as_mask(padding_mask, (*padding_mask.shape[:-1], key_length))[..., None, :]


def regular_attention(q, k, v, causal=False, padding_mask=None, scale=None, strip=None):
    """Dense attention with queries and keys of their own (equation 1): float64 (…, L_q, d_v).

    q (…, L_q, d), k (…, L_k, d), v (…, L_k, d_v); padding_mask bool, broadcast to (…, L_k), True =
    real key. Any L_q, L_k ≥ 1; causal needs L_q = L_k. scale: a number; None or "rsqrt_d" for 1/√d.
    strip: this many queries at a time, the same result in O(L_k·strip) memory.
    """
    q, k, v = _qkv(q, k, v)
    counts = visible_pairs(q.shape[-2], k.shape[-2], causal, as_mask(padding_mask, k.shape[:-1]))
    return _by_strips(q, k, v, counts, _scale(scale, q.shape[-1]), strip)


def regular_attention_vjp(q, k, v, d_out, causal=False, padding_mask=None, scale=None):
    """(d_q, d_k, d_v) for the cotangent d_out (…, L_q, d_v)."""
    q, k, v = _qkv(q, k, v)
    counts = visible_pairs(q.shape[-2], k.shape[-2], causal, as_mask(padding_mask, k.shape[:-1]))
    return attend_vjp(q, k, v, counts, d_out, _scale(scale, q.shape[-1]))


def shared_qk_attention(
    qk, v, causal=True, padding_mask=None, scale=1.0, norm_eps=1e-6, strip=None
):
    """Dense attention with shared queries and keys: float64 (…, L, d_v).

    qk (…, L, d): the query is q, the key q/‖q‖; v (…, L, d_v); padding_mask bool, broadcast to (…,
    L), True = real token: padding is not seen. A token sees itself only if nothing else is visible
    to it (paper section 2). scale and strip as for ``regular_attention``.
    """
    qk, k, v, counts = _shared(qk, v, causal, padding_mask, norm_eps)
    return _by_strips(qk, k, v, counts, _scale(scale, qk.shape[-1]), strip)


def shared_qk_attention_vjp(qk, v, d_out, causal=True, padding_mask=None, scale=1.0, norm_eps=1e-6):
    """(d_qk, d_v) for the cotangent d_out (…, L, d_v): qk receives its part as a query and its part
    as a key.
    """
    qk, k, v, counts = _shared(qk, v, causal, padding_mask, norm_eps)
    d_q, d_k, d_v = attend_vjp(qk, k, v, counts, d_out, _scale(scale, qk.shape[-1]))
    return d_q + normalize_keys_vjp(qk, d_k, norm_eps), d_v


def _shared(qk, v, causal, padding_mask, norm_eps):
    """(query, key, v, counts) of shared-QK attention."""
    qk, _, v = _qkv(qk, qk, v, names=("qk", "qk"))
    visible = visible_pairs(
        qk.shape[-2], qk.shape[-2], causal, as_mask(padding_mask, qk.shape[:-1])
    )
    return qk, normalize_keys(qk, norm_eps), v, self_as_last_resort(visible)


def _by_strips(q, k, v, counts, scale, strip):
    length = q.shape[-2]
    strip = length if strip is None else require_int("strip", strip)
    cuts = [slice(start, start + strip) for start in range(0, length, strip)]
    return np.concatenate(
        [attend(q[..., c, :], k, v, counts[..., c, :], scale)[0] for c in cuts], axis=-2
    )


def _scale(scale, d):
    by_dimension = scale is None or (isinstance(scale, str) and scale == "rsqrt_d")
    return d**-0.5 if by_dimension else _factor(scale)


def _factor(scale):
    return require_float("scale", scale, minimum=-LARGEST_SCALE, below=LARGEST_SCALE)


def _inverse_length(x, norm_eps):
    square = np.sum(x * x, axis=-1, keepdims=True) + x.shape[-1] * require_float(
        "norm_eps", norm_eps, minimum=0.0
    )
    return np.where(square > 0, 1.0 / np.sqrt(np.where(square > 0, square, 1.0)), 0.0)


def _floats(name, x, shape=None):
    """``x`` as float64 (…, L, d), or of this very shape; every size ≥ 1, every number finite."""
    x = as_floats(name, x)
    if shape is not None:
        require_shape(name, x, shape, "(…, L, d)")
    if x.ndim < 2 or 0 in x.shape:
        raise ValueError(f"{name} must have shape (…, L, d) with every size ≥ 1, got {x.shape}")
    return x


def _qkv(q, k, v, names=("q", "k")):
    """q (…, L_q, d), k (…, L_k, d), v (…, L_k, d_v) with the same leading dimensions."""
    q, k, v = _floats(names[0], q), _floats(names[1], k), _floats("v", v)
    require_shape(
        names[1], k, (*q.shape[:-2], k.shape[-2], q.shape[-1]), f"(…, L_k, d) to go with {names[0]}"
    )
    require_shape("v", v, (*k.shape[:-1], v.shape[-1]), f"(…, L_k, d_v) to go with {names[1]}")
    return q, k, v


def _counts(counts, shape=None):
    """Bool or non-negative int, broadcast to ``shape``; without one, (…, L, L)."""
    counts = as_array("counts", counts)
    if counts.dtype.kind not in "biu":
        raise TypeError(f"counts must be boolean or integer, got dtype {counts.dtype}")
    if shape is None and (
        counts.ndim < 2 or counts.shape[-1] != counts.shape[-2] or 0 in counts.shape
    ):
        raise ValueError(
            f"counts must have shape (…, L, L) with every size ≥ 1, got {counts.shape}"
        )
    if (counts < 0).any():
        raise ValueError(f"counts must not be negative, got {counts.min()}")
    return counts if shape is None else broadcast("counts", counts, shape, "(…, L_q, L_k)")
