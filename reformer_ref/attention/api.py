"""Dense attention: the public functions, which check their arguments once and pick a version."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from reformer_ref._arguments import require_bool, require_float, require_int, require_shape
from reformer_ref._tensors import (
    require_finite,
    require_padding_mask,
    require_rows,
    require_same_kind,
)
from reformer_ref.attention import streaming


def regular_attention(
    q: Float[Tensor, "*batch L_q d"],
    k: Float[Tensor, "*batch L_k d"],
    v: Float[Tensor, "*batch L_k d_v"],
    causal: bool = False,
    padding_mask: Bool[Tensor, "..."] | None = None,
    scale: float | str | None = None,
    *,
    block_size: int | None = None,
) -> Float[Tensor, "*batch L_q d_v"]:
    """Attend with separate queries and keys: softmax(q kᵀ / √d) v (paper equation 1).

    A query that sees nothing gets zeros. The softmax is float32 at least.

    Args:
        q: queries; finite.
        k: keys; finite.
        v: values; finite, of the dtype of q, as k.
        causal: only keys at the query's position or before it; needs L_q = L_k.
        padding_mask: True = real key; broadcast to (…, L_k).
        scale: the factor of q·k; None or "rsqrt_d" for 1/√d.
        block_size: queries to work on at a time, in O(L_k·block_size) memory, also in backward;
            None: all at once, the plain version.

    Returns:
        The output in the dtype of v.

    Raises:
        TypeError: for a wrong type or dtype.
        ValueError: for shapes that do not fit, another device, NaN or infinity.
    """
    _require_qkv(q, k, v, ("q", "k"))
    if require_bool("causal", causal) and q.shape[-2] != k.shape[-2]:
        given = f"{q.shape[-2]} and {k.shape[-2]}"
        raise ValueError(f"causal attention needs as many queries as keys, got {given}")
    padding_mask = require_padding_mask(padding_mask, k.shape[:-1], k.device)
    _require_scale(scale, q.dtype)
    if block_size is not None:
        require_int("block_size", block_size)
    return streaming.regular_attention(q, k, v, causal, padding_mask, scale, block_size=block_size)


def shared_qk_attention(
    qk: Float[Tensor, "*batch L d"],
    v: Float[Tensor, "*batch L d_v"],
    causal: bool = True,
    padding_mask: Bool[Tensor, "..."] | None = None,
    scale: float | str | None = 1.0,
    norm_eps: float = 1e-6,
    *,
    block_size: int | None = None,
) -> Float[Tensor, "*batch L d_v"]:
    """Attend with shared queries and keys: the query is q, the key q / ‖q‖ (paper section 2).

    A token sees itself only if nothing else is visible to it; a query that sees nothing gets zeros.
    The softmax is float32 at least.

    Args:
        qk: queries, which are also the keys once scaled to length 1; finite.
        v: values; finite, of the dtype of qk.
        causal: only keys at the query's position or before it.
        padding_mask: True = real token; broadcast to (…, L). Padding is not seen.
        scale: the factor of q·k̂; None or "rsqrt_d" for 1/√d.
        norm_eps: keys are k̂ = q / √(‖q‖² + d·norm_eps).
        block_size: as for ``regular_attention``.

    Returns:
        The output in the dtype of v.

    Raises:
        TypeError: for a wrong type or dtype.
        ValueError: for shapes that do not fit, another device, NaN or infinity.
    """
    _require_qkv(qk, qk, v, ("qk", "qk"))
    require_bool("causal", causal)
    padding_mask = require_padding_mask(padding_mask, qk.shape[:-1], qk.device)
    _require_scale(scale, qk.dtype)
    require_float("norm_eps", norm_eps, minimum=0.0)
    if block_size is not None:
        require_int("block_size", block_size)
    return streaming.shared_qk_attention(
        qk, v, causal, padding_mask, scale, norm_eps, block_size=block_size
    )


def _require_qkv(q, k, v, names):
    """q (…, L_q, d), k (…, L_k, d), v (…, L_k, d_v) of one dtype and device, finite."""
    for name, x in zip((*names, "v"), (q, k, v), strict=True):
        require_rows(name, x)
        require_finite(name, x)
    require_same_kind(names[0], q, **{names[1]: k, "v": v})
    shape = (*q.shape[:-2], k.shape[-2], q.shape[-1])
    require_shape(names[1], k, shape, f"(…, L_k, d) to go with {names[0]}")
    require_shape("v", v, (*k.shape[:-1], v.shape[-1]), f"(…, L_k, d_v) to go with {names[1]}")


def _require_scale(scale, dtype):
    """A number that queries can be multiplied by in their own dtype, None, or "rsqrt_d"."""
    if scale is not None and not (isinstance(scale, str) and scale == "rsqrt_d"):
        largest = min(torch.finfo(dtype).max ** 0.5, 1e6)
        require_float("scale", scale, minimum=-largest, below=largest)
