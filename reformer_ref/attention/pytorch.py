"""Dense attention, in PyTorch: the quadratic baseline, all at once or strip by strip in O(L·strip)
memory.

Errors as in the spec; also TypeError or ValueError where tensors differ in dtype or device.
"""

import torch
from torch.utils.checkpoint import checkpoint

from reformer_ref._arguments import (
    require_bool,
    require_float,
    require_int,
    require_room,
    require_shape,
)
from reformer_ref._tensors import (
    has_values,
    require_device,
    require_finite,
    require_floating,
    require_integers,
    require_padding_mask,
    require_same_kind,
    require_tensor,
)


def normalize_keys(x, norm_eps=1e-6):
    """Unit keys k̂ = x / √(‖x‖² + d·norm_eps), (…, L, d); a zero vector stays zero.

    The length is float32 at least; the result has the dtype of x.
    """
    _require_rows("x", x)
    square = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    square = (square * square).sum(-1, keepdim=True) + x.shape[-1] * require_float(
        "norm_eps", norm_eps, minimum=0.0
    )
    positive = square > 0
    inverse = torch.where(positive, torch.where(positive, square, 1.0).rsqrt(), 0.0)
    return (x * inverse).to(x.dtype)


def attend(q, k, v, counts, scale=1.0):
    """(out, weights): one softmax over everything visible, as in the spec. counts bool or int ≥ 0
    (…, L_q, L_k).

    Statistics of the softmax, and the weights, are float32 at least; ``out`` has the dtype of v.
    """
    _require_qkv(q, k, v)
    counts = _require_counts(counts, (*q.shape[:-1], k.shape[-2]), q.device)
    return attend_unchecked(q, k, v, counts, _require_scale(scale, q.dtype))


def self_as_last_resort(counts):
    """The self rule: a token sees itself only if nothing else is visible to it (paper section 2).
    counts (…, L, L).
    """
    counts = _require_counts(counts)
    eye = torch.eye(counts.shape[-1], dtype=torch.bool, device=counts.device)
    return _self_as_last_resort(counts, eye)


def visible_pairs(query_length, key_length, causal, padding_mask=None, *, device=None):
    """Dense visibility: bool (…, L_q, L_k). padding_mask bool (…, L_k), True = real token.

    device: where the result lies if there is no mask; with a mask it lies where the mask does.
    """
    query_length, key_length = (
        require_int("query_length", query_length),
        require_int("key_length", key_length),
    )
    require_room(query_length=query_length, key_length=key_length)
    if require_bool("causal", causal) and query_length != key_length:
        raise ValueError(
            f"causal attention needs as many queries as keys, got {query_length} and {key_length}"
        )
    if padding_mask is not None:
        device = require_tensor("padding_mask", padding_mask).device
        padding_mask = require_padding_mask(
            padding_mask, (*padding_mask.shape[:-1], key_length), device
        )
    else:
        require_device("device", device)
    at = torch.arange(max(query_length, key_length), device=device)
    return _visible(at[:query_length], at[:key_length], causal, padding_mask)


def regular_attention(q, k, v, causal=False, padding_mask=None, scale=None, strip=None):
    """Dense attention with queries and keys of their own (equation 1): (…, L_q, d_v).

    q (…, L_q, d), k (…, L_k, d), v (…, L_k, d_v); padding_mask bool, broadcast to (…, L_k), True =
    real key. Any L_q, L_k ≥ 1; causal needs L_q = L_k. scale: a number; None or "rsqrt_d" for 1/√d.
    strip: this many queries at a time, also in backward, in O(L_k·strip) memory.
    """
    _require_qkv(q, k, v)
    if require_bool("causal", causal) and q.shape[-2] != k.shape[-2]:
        raise ValueError(
            f"causal attention needs as many queries as keys, got {q.shape[-2]} and {k.shape[-2]}"
        )
    padding_mask = require_padding_mask(padding_mask, k.shape[:-1], k.device)
    at_key, scale = torch.arange(k.shape[-2], device=k.device), _scale(scale, q)

    def strip_of(start, q, k, v):
        at_query = torch.arange(start, start + q.shape[-2], device=q.device)
        return attend_unchecked(q, k, v, _visible(at_query, at_key, causal, padding_mask), scale)[0]

    return _by_strips(strip_of, q, k, v, strip)


def shared_qk_attention(
    qk, v, causal=True, padding_mask=None, scale=1.0, norm_eps=1e-6, strip=None
):
    """Dense attention with shared queries and keys: (…, L, d_v).

    qk (…, L, d): the query is q, the key q/‖q‖; v (…, L, d_v); padding_mask bool, broadcast to (…,
    L), True = real token: padding is not seen. A token sees itself only if nothing else is visible
    to it (paper section 2). scale and strip as for ``regular_attention``.
    """
    _require_qkv(qk, qk, v, names=("qk", "qk"))
    require_bool("causal", causal)
    padding_mask = require_padding_mask(padding_mask, qk.shape[:-1], qk.device)
    at_key, scale = torch.arange(qk.shape[-2], device=qk.device), _scale(scale, qk)

    def strip_of(start, q, k, v):
        at_query = torch.arange(start, start + q.shape[-2], device=q.device)
        visible = _visible(at_query, at_key, causal, padding_mask)
        visible = _self_as_last_resort(visible, at_query[:, None] == at_key)
        return attend_unchecked(q, k, v, visible, scale)[0]

    return _by_strips(strip_of, qk, normalize_keys(qk, norm_eps), v, strip)


def attend_unchecked(q, k, v, counts, scale):
    """``attend`` without a look at its arguments, for where they were looked at before."""
    scores = (scale * q) @ k.transpose(
        -1, -2
    )  # (…, L_q, L_k); scaled before the product, which could overflow float16
    scores = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
    hidden = counts == 0
    blind = hidden.all(
        -1, keepdim=True
    )  # sees nothing: keeps its scores, so that nothing is divided by zero
    scores = scores.masked_fill(hidden & ~blind, float("-inf"))
    if counts.dtype != torch.bool:
        scores = (
            scores + counts.clamp(min=1).to(scores.dtype).log()
        )  # m times exp(s) is exp(s + log m)
    weights = torch.softmax(scores, dim=-1).masked_fill(blind, 0.0)
    return weights.to(v.dtype) @ v, weights


def _visible(at_query, at_key, causal, padding_mask):
    visible = (
        at_query[:, None] >= at_key if causal else torch.ones_like(at_query[:, None] >= at_key)
    )
    return visible if padding_mask is None else visible & padding_mask[..., None, :]


def _self_as_last_resort(counts, is_self):
    others = counts.masked_fill(is_self, 0)
    alone = others.sum(-1, keepdim=True) == 0
    return torch.where(is_self & alone, counts, others)


def _by_strips(strip_of, q, k, v, strip):
    """``strip_of(start, q_strip, k, v)`` for each strip of queries; scores are recomputed in
    backward, not stored.
    """
    if strip is None or require_int("strip", strip) >= q.shape[-2]:
        return strip_of(0, q, k, v)
    recompute = torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v))
    parts = []
    for start in range(0, q.shape[-2], strip):
        inputs = (start, q[..., start : start + strip, :], k, v)
        if recompute:
            parts.append(
                checkpoint(strip_of, *inputs, use_reentrant=False, preserve_rng_state=False)
            )
        else:
            parts.append(strip_of(*inputs))
    return torch.cat(parts, dim=-2)


def _scale(scale, q):
    by_dimension = scale is None or (isinstance(scale, str) and scale == "rsqrt_d")
    return q.shape[-1] ** -0.5 if by_dimension else _require_scale(scale, q.dtype)


def _require_scale(scale, dtype):
    """A number that queries can be multiplied by in their own dtype: below 256 in float16, below
    1e6 elsewhere.
    """
    largest = min(torch.finfo(dtype).max ** 0.5, 1e6)
    return require_float("scale", scale, minimum=-largest, below=largest)


def _require_rows(name, x):
    """Floating (…, L, d), every size ≥ 1, every number finite."""
    require_floating(name, x)
    if x.ndim < 2 or 0 in x.shape:
        raise ValueError(
            f"{name} must have shape (…, L, d) with every size ≥ 1, got {tuple(x.shape)}"
        )
    require_finite(name, x)


def _require_qkv(q, k, v, names=("q", "k")):
    """q (…, L_q, d), k (…, L_k, d), v (…, L_k, d_v) of one dtype and device with the same leading
    dimensions.
    """
    for name, x in {names[0]: q, names[1]: k, "v": v}.items():
        _require_rows(name, x)
    require_same_kind(names[0], q, **{names[1]: k, "v": v})
    require_shape(
        names[1], k, (*q.shape[:-2], k.shape[-2], q.shape[-1]), f"(…, L_k, d) to go with {names[0]}"
    )
    require_shape("v", v, (*k.shape[:-1], v.shape[-1]), f"(…, L_k, d_v) to go with {names[1]}")


def _require_counts(counts, shape=None, device=None):
    """Bool or non-negative int, broadcast to ``shape`` on ``device``; without a shape, (…, L, L)."""
    if require_tensor("counts", counts).dtype != torch.bool:
        counts = require_integers("counts", counts, "be boolean or integers")
    elif counts.layout != torch.strided:
        raise TypeError(f"counts must be dense, got {counts.layout}")
    if device is not None and counts.device != device:
        raise ValueError(f"counts must be on the device of q ({device}), got {counts.device}")
    if shape is None and (
        counts.ndim < 2 or counts.shape[-1] != counts.shape[-2] or 0 in counts.shape
    ):
        raise ValueError(
            f"counts must have shape (…, L, L) with every size ≥ 1, got {tuple(counts.shape)}"
        )
    if has_values(counts) and bool((counts < 0).any()):
        raise ValueError(f"counts must not be negative, got {int(counts.min())}")
    try:
        return counts if shape is None else counts.expand(shape)
    except RuntimeError:
        raise ValueError(
            f"counts must broadcast to {tuple(shape)} = (…, L_q, L_k), got {tuple(counts.shape)}"
        ) from None
