"""Dense attention: the definition, in NumPy float64.

Every attention of this package is a softmax over the keys that a query may see. ``attend`` writes
that down once, with a count per pair: 0 hides a key, 1 shows it, m shows it as often as the softmax
would meet it in m places (paper section 2, equations 1 to 3). What differs between dense, local and
LSH attention is only the counts.
"""

import numpy as np
from jaxtyping import Bool, Float, Int


def normalize_keys(
    x: Float[np.ndarray, "*batch L d"], norm_eps: float = 1e-6
) -> Float[np.ndarray, "*batch L d"]:
    """Scale to unit keys k̂ = x / √(‖x‖² + d·norm_eps); a zero vector stays zero.

    With shared queries and keys the key is the query's direction (paper section 2, "Shared-QK
    attention").
    """
    return x * _inverse_length(x, norm_eps)


def normalize_keys_vjp(x, d_out, norm_eps=1e-6):
    """d_x = (d_out − k̂ (k̂·d_out)) / √(‖x‖² + d·norm_eps)."""
    inverse = _inverse_length(x, norm_eps)
    unit = x * inverse
    return inverse * (d_out - unit * np.sum(unit * d_out, axis=-1, keepdims=True))


def _inverse_length(x, norm_eps):
    square = np.sum(x * x, axis=-1, keepdims=True) + x.shape[-1] * norm_eps
    return np.where(square > 0, 1.0 / np.sqrt(np.where(square > 0, square, 1.0)), 0.0)


def attend(
    q: Float[np.ndarray, "*batch L_q d"],
    k: Float[np.ndarray, "*batch L_k d"],
    v: Float[np.ndarray, "*batch L_k d_v"],
    counts: Bool[np.ndarray, "..."] | Int[np.ndarray, "..."],
    scale: float = 1.0,
) -> tuple[Float[np.ndarray, "*batch L_q d_v"], Float[np.ndarray, "*batch L_q L_k"]]:
    """Attend with one softmax over everything visible: (out, weights).

    w_ij ∝ counts_ij · exp(scale · q_i·k_j), counts broadcast to (…, L_q, L_k). A query with all
    counts zero gets zeros.
    """
    scores = scale * (q @ np.swapaxes(k, -1, -2))  # (…, L_q, L_k)
    scores = np.where(counts, scores, -np.inf)
    row_max = np.max(scores, axis=-1, keepdims=True)
    weights = counts * np.exp(scores - np.where(np.isfinite(row_max), row_max, 0.0))
    row_sum = np.sum(weights, axis=-1, keepdims=True)
    weights = weights / np.where(row_sum > 0, row_sum, 1.0)
    return weights @ v, weights


def attend_vjp(q, k, v, counts, d_out, scale=1.0):
    """(d_q, d_k, d_v) of ``attend``'s output: the softmax rule d_s = w ⊙ (d_w − Σ_j w_j d_w_j)."""
    out, weights = attend(q, k, v, counts, scale)
    d_weights = d_out @ np.swapaxes(v, -1, -2)
    d_scores = scale * weights * (d_weights - np.sum(d_out * out, axis=-1, keepdims=True))
    return d_scores @ k, np.swapaxes(d_scores, -1, -2) @ q, np.swapaxes(weights, -1, -2) @ d_out


def self_as_last_resort(counts: np.ndarray) -> np.ndarray:
    """Apply the self rule to counts (…, L, L): a token sees itself only if nothing else is visible
    to it (paper section 2).
    """
    eye = np.eye(counts.shape[-1], dtype=bool)
    others = np.where(eye, 0, counts)
    only_self = np.sum(others, axis=-1, keepdims=True) == 0
    return np.where(eye & only_self, counts, others)


def visible_pairs(
    query_length: int,
    key_length: int,
    causal: bool,
    padding_mask: Bool[np.ndarray, "*batch L_k"] | None = None,
) -> Int[np.ndarray, "*batch L_q L_k"]:
    """Dense counts: 1 where query i may see key j. padding_mask: True = real token."""
    visible = np.ones((query_length, key_length), dtype=int)
    if causal:
        visible = np.tril(visible)
    return visible if padding_mask is None else visible * padding_mask[..., None, :]


def regular_attention(
    q: Float[np.ndarray, "*batch L_q d"],
    k: Float[np.ndarray, "*batch L_k d"],
    v: Float[np.ndarray, "*batch L_k d_v"],
    causal: bool = False,
    padding_mask: Bool[np.ndarray, "..."] | None = None,
    scale: float | str | None = None,
) -> Float[np.ndarray, "*batch L_q d_v"]:
    """Attend with separate queries and keys: softmax(scale · q kᵀ) v (equation 1).

    padding_mask: True = real key, broadcast to (…, L_k). causal needs L_q = L_k. scale: None or
    "rsqrt_d" for 1/√d. A query that sees nothing gets zeros.
    """
    counts = visible_pairs(q.shape[-2], k.shape[-2], causal, padding_mask)
    return attend(q, k, v, counts, scale_for(scale, q.shape[-1]))[0]


def regular_attention_vjp(q, k, v, d_out, causal=False, padding_mask=None, scale=None):
    """(d_q, d_k, d_v) for the cotangent d_out (…, L_q, d_v)."""
    counts = visible_pairs(q.shape[-2], k.shape[-2], causal, padding_mask)
    return attend_vjp(q, k, v, counts, d_out, scale_for(scale, q.shape[-1]))


def shared_qk_attention(
    qk: Float[np.ndarray, "*batch L d"],
    v: Float[np.ndarray, "*batch L d_v"],
    causal: bool = True,
    padding_mask: Bool[np.ndarray, "..."] | None = None,
    scale: float | str | None = 1.0,
    norm_eps: float = 1e-6,
) -> Float[np.ndarray, "*batch L d_v"]:
    """Attend with shared queries and keys: the query is q, the key q/‖q‖ (paper section 2).

    padding_mask: True = real token, broadcast to (…, L); padding is not seen. A token sees itself
    only if nothing else is visible to it. scale as for ``regular_attention``.
    """
    counts = _shared_counts(qk.shape[-2], causal, padding_mask)
    k = normalize_keys(qk, norm_eps)
    return attend(qk, k, v, counts, scale_for(scale, qk.shape[-1]))[0]


def shared_qk_attention_vjp(qk, v, d_out, causal=True, padding_mask=None, scale=1.0, norm_eps=1e-6):
    """(d_qk, d_v) for the cotangent d_out (…, L, d_v).

    qk receives its part as a query and its part as a key.
    """
    counts = _shared_counts(qk.shape[-2], causal, padding_mask)
    k = normalize_keys(qk, norm_eps)
    d_q, d_k, d_v = attend_vjp(qk, k, v, counts, d_out, scale_for(scale, qk.shape[-1]))
    return d_q + normalize_keys_vjp(qk, d_k, norm_eps), d_v


def _shared_counts(length, causal, padding_mask):
    return self_as_last_resort(visible_pairs(length, length, causal, padding_mask))


def scale_for(scale, d):
    """The factor of q·k: None and "rsqrt_d" mean 1/√d."""
    return d**-0.5 if scale is None or scale == "rsqrt_d" else scale
