"""Dense attention, in NumPy.

Every attention of this package is a softmax over the keys that a query may see. ``attend`` writes that down once, with
a count per pair: 0 hides a key, 1 shows it, m shows it as often as the softmax would meet it in m places
(paper section 2, equations 1 to 3). What differs between dense, local and LSH attention is only the counts.
"""

import numpy as np

from reformer_ref.validate import require_bool, require_float, require_int


def normalize_keys(x, norm_eps=1e-6):
    """Unit keys k̂ = x / √(‖x‖² + d·norm_eps), float (…, L, d); a zero vector stays zero.

    With shared queries and keys the key is the query's direction (paper section 2, "Shared-QK attention").
    """
    return x * _inverse_length(x, norm_eps)


def normalize_keys_vjp(x, d_out, norm_eps=1e-6):
    """d_x = (d_out − k̂ (k̂·d_out)) / √(‖x‖² + d·norm_eps)."""
    inverse = _inverse_length(x, norm_eps)
    unit = x * inverse
    return inverse * (d_out - unit * np.sum(unit * d_out, axis=-1, keepdims=True))


def attend(q, k, v, counts, scale=1.0):
    """(out, weights): out (…, L_q, d_v), weights (…, L_q, L_k), one softmax over everything visible.

    q (…, L_q, d), k (…, L_k, d), v (…, L_k, d_v), counts ≥ 0 (…, L_q, L_k): w_ij ∝ counts_ij · exp(scale · q_i·k_j).
    A query with all counts zero gets zeros.
    """
    scores = np.where(counts > 0, scale * (q @ np.swapaxes(k, -1, -2)), -np.inf)  # (…, L_q, L_k)
    top = np.max(scores, axis=-1, keepdims=True)
    weights = counts * np.exp(scores - np.where(np.isfinite(top), top, 0.0))
    total = np.sum(weights, axis=-1, keepdims=True)
    weights = weights / np.where(total > 0, total, 1.0)
    return weights @ v, weights


def attend_vjp(q, k, v, counts, d_out, scale=1.0):
    """(d_q, d_k, d_v) of ``attend``'s output: the softmax rule d_s = w ⊙ (d_w − Σ_j w_j d_w_j)."""
    out, weights = attend(q, k, v, counts, scale)
    d_weights = d_out @ np.swapaxes(v, -1, -2)
    d_scores = scale * weights * (d_weights - np.sum(d_out * out, axis=-1, keepdims=True))
    return d_scores @ k, np.swapaxes(d_scores, -1, -2) @ q, np.swapaxes(weights, -1, -2) @ d_out


def self_as_last_resort(counts):
    """The self rule: a token sees itself only if nothing else is visible to it (paper section 2). counts (…, L, L)."""
    eye = np.eye(counts.shape[-1], dtype=bool)
    others = np.where(eye, 0, counts)
    alone = np.sum(others, axis=-1, keepdims=True) == 0
    return np.where(eye & alone, counts, others)


def visible_pairs(query_length, key_length, causal, padding_mask=None):
    """Dense counts: int (…, L_q, L_k), 1 where query i may see key j. padding_mask bool (…, L_k), True = real token."""
    require_bool("causal", causal)
    if causal and query_length != key_length:
        raise ValueError(f"causal attention needs as many queries as keys, got {query_length} and {key_length}")
    visible = np.ones((query_length, key_length), dtype=bool)
    if causal:
        visible = np.tril(visible)
    return (visible if padding_mask is None else visible & np.asarray(padding_mask, bool)[..., None, :]).astype(int)


def regular_attention(q, k, v, causal=False, padding_mask=None, scale=None, strip=None):
    """Dense attention with queries and keys of their own (equation 1): (…, L_q, d_v).

    q (…, L_q, d), k (…, L_k, d), v (…, L_k, d_v); padding_mask bool (…, L_k), True = real key. scale: None for 1/√d.
    strip: this many queries at a time, the same result in O(L·strip) memory. Cross-attention is L_q ≠ L_k, not causal.
    """
    counts = visible_pairs(q.shape[-2], k.shape[-2], causal, padding_mask)
    return _by_strips(q, k, v, counts, _scale(scale, q.shape[-1]), strip)


def regular_attention_vjp(q, k, v, d_out, causal=False, padding_mask=None, scale=None):
    """(d_q, d_k, d_v) for the cotangent d_out (…, L_q, d_v)."""
    counts = visible_pairs(q.shape[-2], k.shape[-2], causal, padding_mask)
    return attend_vjp(q, k, v, counts, d_out, _scale(scale, q.shape[-1]))


def shared_qk_attention(qk, v, causal=True, padding_mask=None, scale=1.0, norm_eps=1e-6, strip=None):
    """Dense attention with shared queries and keys: (…, L, d_v).

    qk (…, L, d): the query is q, the key q/‖q‖; v (…, L, d_v); padding_mask bool (…, L), True = real token: padding is
    not seen. A token sees itself only if nothing else is visible to it (paper section 2).
    """
    counts = _shared_counts(qk, causal, padding_mask)
    return _by_strips(qk, normalize_keys(qk, norm_eps), v, counts, _scale(scale, qk.shape[-1]), strip)


def shared_qk_attention_vjp(qk, v, d_out, causal=True, padding_mask=None, scale=1.0, norm_eps=1e-6):
    """(d_qk, d_v) for the cotangent d_out (…, L, d_v): qk receives its part as a query and its part as a key."""
    counts = _shared_counts(qk, causal, padding_mask)
    scale = _scale(scale, qk.shape[-1])
    d_q, d_k, d_v = attend_vjp(qk, normalize_keys(qk, norm_eps), v, counts, d_out, scale)
    return d_q + normalize_keys_vjp(qk, d_k, norm_eps), d_v


def _shared_counts(qk, causal, padding_mask):
    return self_as_last_resort(visible_pairs(qk.shape[-2], qk.shape[-2], causal, padding_mask))


def _by_strips(q, k, v, counts, scale, strip):
    if not (q.shape[-2] and k.shape[-2]):
        raise ValueError(f"attention needs at least one query and one key, got q {q.shape} and k {k.shape}")
    length = q.shape[-2]
    strip = length if strip is None else require_int("strip", strip)
    parts = [attend(q[..., s : s + strip, :], k, v, counts[..., s : s + strip, :], scale)[0] for s in range(0, length, strip)]
    return np.concatenate(parts, axis=-2)


def _scale(scale, d):
    return d**-0.5 if scale is None or scale == "rsqrt_d" else require_float("scale", scale)


def _inverse_length(x, norm_eps):
    square = np.sum(x * x, axis=-1, keepdims=True) + x.shape[-1] * require_float("norm_eps", norm_eps, minimum=0.0)
    return np.where(square > 0, 1.0 / np.sqrt(np.where(square > 0, square, 1.0)), 0.0)
