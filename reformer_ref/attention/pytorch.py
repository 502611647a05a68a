"""Dense attention, in PyTorch: the quadratic baseline, all at once or strip by strip in O(L·strip) memory."""

import torch
from torch.utils.checkpoint import checkpoint

from reformer_ref.tensors import require_floating, require_padding_mask, require_same_kind
from reformer_ref.validate import require_bool, require_float, require_int


def normalize_keys(x, norm_eps=1e-6):
    """Unit keys k̂ = x / √(‖x‖² + d·norm_eps), (…, L, d); a zero vector stays zero. Half precision: length in float32."""
    square = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    square = (square * square).sum(-1, keepdim=True) + x.shape[-1] * require_float("norm_eps", norm_eps, minimum=0.0)
    positive = square > 0
    inverse = torch.where(positive, torch.where(positive, square, 1.0).rsqrt(), 0.0)
    return (x * inverse).to(x.dtype)


def attend(q, k, v, counts, scale=1.0):
    """(out, weights): one softmax over everything visible, as in the spec. counts: bool or integer (…, L_q, L_k).

    Statistics of the softmax are float32 at least; ``out`` has the dtype of v.
    """
    scores = q @ k.transpose(-1, -2)  # (…, L_q, L_k)
    scores = scale * (scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores)
    scores = scores.masked_fill(counts == 0, float("-inf"))
    top = scores.amax(-1, keepdim=True)
    weights = counts * torch.exp(scores - torch.where(top.isfinite(), top, 0.0))
    total = weights.sum(-1, keepdim=True)
    weights = weights / torch.where(total > 0, total, 1.0)
    return weights.to(v.dtype) @ v, weights


def self_as_last_resort(counts):
    """The self rule: a token sees itself only if nothing else is visible to it (paper section 2). counts (…, L, L)."""
    eye = torch.eye(counts.shape[-1], dtype=torch.bool, device=counts.device)
    return _self_as_last_resort(counts, eye)


def visible_pairs(query_length, key_length, causal, padding_mask=None, *, device=None):
    """Dense visibility: bool (…, L_q, L_k). padding_mask bool (…, L_k), True = real token."""
    require_bool("causal", causal)
    if causal and query_length != key_length:
        raise ValueError(f"causal attention needs as many queries as keys, got {query_length} and {key_length}")
    device = device if padding_mask is None else padding_mask.device
    at = torch.arange(max(query_length, key_length), device=device)
    return _visible(at[:query_length], at[:key_length], causal, padding_mask)


def regular_attention(q, k, v, causal=False, padding_mask=None, scale=None, strip=None):
    """Dense attention with queries and keys of their own (equation 1): (…, L_q, d_v).

    q (…, L_q, d), k (…, L_k, d), v (…, L_k, d_v); padding_mask bool (…, L_k), True = real key. scale: None for 1/√d.
    strip: this many queries at a time, also in backward, in O(L_k·strip) memory. Cross-attention is L_q ≠ L_k.
    """
    _require_qkv(q, k, v)
    if require_bool("causal", causal) and q.shape[-2] != k.shape[-2]:
        raise ValueError(f"causal attention needs as many queries as keys, got {q.shape[-2]} and {k.shape[-2]}")
    padding_mask = require_padding_mask(padding_mask, (*k.shape[:-2], k.shape[-2]), k.device)
    at_key = torch.arange(k.shape[-2], device=k.device)

    def strip_of(start, q, k, v):
        at_query = torch.arange(start, start + q.shape[-2], device=q.device)
        return attend(q, k, v, _visible(at_query, at_key, causal, padding_mask), _scale(scale, q.shape[-1]))[0]

    return _by_strips(strip_of, q, k, v, strip)


def shared_qk_attention(qk, v, causal=True, padding_mask=None, scale=1.0, norm_eps=1e-6, strip=None):
    """Dense attention with shared queries and keys: (…, L, d_v).

    qk (…, L, d): the query is q, the key q/‖q‖; v (…, L, d_v); padding_mask bool (…, L), True = real token: padding is
    not seen. A token sees itself only if nothing else is visible to it (paper section 2).
    strip: this many queries at a time, also in backward, in O(L·strip) memory.
    """
    _require_qkv(qk, qk, v, names=("qk", "qk", "v"))
    require_bool("causal", causal)
    padding_mask = require_padding_mask(padding_mask, (*qk.shape[:-2], qk.shape[-2]), qk.device)
    at_key = torch.arange(qk.shape[-2], device=qk.device)

    def strip_of(start, q, k, v):
        at_query = torch.arange(start, start + q.shape[-2], device=q.device)
        visible = _visible(at_query, at_key, causal, padding_mask)
        visible = _self_as_last_resort(visible, at_query[:, None] == at_key)
        return attend(q, k, v, visible, _scale(scale, q.shape[-1]))[0]

    return _by_strips(strip_of, qk, normalize_keys(qk, norm_eps), v, strip)


def _visible(at_query, at_key, causal, padding_mask):
    visible = at_query[:, None] >= at_key if causal else torch.ones_like(at_query[:, None] >= at_key)
    return visible if padding_mask is None else visible & padding_mask[..., None, :]


def _self_as_last_resort(counts, is_self):
    others = counts.masked_fill(is_self, 0)
    alone = others.sum(-1, keepdim=True) == 0
    return torch.where(is_self & alone, counts, others)


def _by_strips(strip_of, q, k, v, strip):
    """``strip_of(start, q_strip, k, v)`` for each strip of queries; scores are recomputed in backward, not stored."""
    if strip is None or require_int("strip", strip) >= q.shape[-2]:
        return strip_of(0, q, k, v)
    recompute = torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v))
    parts = []
    for start in range(0, q.shape[-2], strip):
        inputs = (start, q[..., start : start + strip, :], k, v)
        parts.append(
            checkpoint(strip_of, *inputs, use_reentrant=False, preserve_rng_state=False) if recompute else strip_of(*inputs)
        )
    return torch.cat(parts, dim=-2)


def _scale(scale, d):
    return d**-0.5 if scale is None or scale == "rsqrt_d" else require_float("scale", scale)


def _require_qkv(q, k, v, names=("q", "k", "v")):
    """Floating (…, L_q, d), (…, L_k, d), (…, L_k, d_v) of one dtype and device, no size zero."""
    for name, x in zip(names, (q, k, v), strict=True):
        require_floating(name, x)
        if x.ndim < 2 or 0 in x.shape:
            raise ValueError(f"{name} must have shape (…, L, d) with every size ≥ 1, got {tuple(x.shape)}")
    require_same_kind(names[0], q, **{names[1]: k, names[2]: v})
    if q.shape[-1] != k.shape[-1]:
        raise ValueError(f"{names[1]} must have the d of {names[0]} ({q.shape[-1]}), got {k.shape[-1]}")
    if v.shape[-2] != k.shape[-2] or v.shape[:-2] != k.shape[:-2]:
        raise ValueError(f"v must have a row for each key of {names[1]} {tuple(k.shape)}, got {tuple(v.shape)}")
