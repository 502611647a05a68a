"""Dense attention, the version to read: the quadratic baseline, by ordinary autograd. Not checked.

``streaming`` computes the same functions for a block of queries at a time.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def normalize_keys(
    x: Float[Tensor, "*batch L d"], norm_eps: float = 1e-6
) -> Float[Tensor, "*batch L d"]:
    """Scale to unit keys k̂ = x / √(‖x‖² + d·norm_eps); a zero vector stays zero.

    The length is computed in float32 at least; the result has the dtype of x.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    square = wide.square().sum(-1, keepdim=True) + x.shape[-1] * norm_eps  # (…, L, 1)
    positive = square > 0
    # The inner ``where`` keeps the gradient of a zero vector finite.
    inverse = torch.where(positive, torch.where(positive, square, 1.0).rsqrt(), 0.0)
    return (x * inverse).to(x.dtype)


def attend(
    q: Float[Tensor, "*batch L_q d"],
    k: Float[Tensor, "*batch L_k d"],
    v: Float[Tensor, "*batch L_k d_v"],
    counts: Bool[Tensor, "..."] | Int[Tensor, "..."],
    scale: float = 1.0,
) -> tuple[Float[Tensor, "*batch L_q d_v"], Float[Tensor, "*batch L_q L_k"]]:
    """Attend with one softmax over everything visible: (out, weights).

    counts: how often each query sees each key, 0 = not at all, broadcast to (…, L_q, L_k). The
    softmax and the weights are float32 at least; ``out`` has the dtype of v.
    """
    # 1. Scores, in float32 at least. A product of float16 numbers could overflow.
    if q.dtype == torch.float16:
        q, k = q.float(), k.float()
    scores = (scale * q) @ k.mT  # (…, L_q, L_k)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    # 2. Hide keys. A query that sees nothing keeps its scores, so that the softmax is finite.
    hidden = counts == 0
    sees_nothing = hidden.all(-1, keepdim=True)  # (…, L_q, 1)
    scores = scores.masked_fill(hidden & ~sees_nothing, -torch.inf)
    # 3. A key that counts m times has m times the weight: m · exp(s) = exp(s + log m).
    if counts.dtype != torch.bool:
        scores = scores + counts.clamp(min=1).to(scores.dtype).log()
    # 4. Softmax; zeros for a query that sees nothing.
    weights = scores.softmax(-1).masked_fill(sees_nothing, 0.0)  # (…, L_q, L_k)
    return weights.to(v.dtype) @ v, weights


def self_as_last_resort(counts: Tensor, first: int = 0) -> Tensor:
    """Apply the self rule: a token sees itself only if nothing else is visible (paper section 2).

    counts: (…, L_q, L), bool or int; row i belongs to the query at position ``first`` + i.
    """
    # 1. Find each query itself among the keys, and hide it.
    query = torch.arange(first, first + counts.shape[-2], device=counts.device)
    is_self = query[:, None] == torch.arange(counts.shape[-1], device=counts.device)
    others = counts.masked_fill(is_self, 0)
    # 2. Show it to queries that see nothing else.
    only_self = (others == 0).all(-1, keepdim=True)  # (…, L_q, 1)
    return torch.where(is_self & only_self, counts, others)


def visible_pairs(
    query_length: int,
    key_length: int,
    causal: bool,
    padding_mask: Bool[Tensor, "*batch L_k"] | None = None,
    *,
    first: int = 0,
    device: torch.device | str | None = None,
) -> Bool[Tensor, "*batch L_q L_k"]:
    """Say which keys each query sees; ``first`` is the position of the first query."""
    device = device if padding_mask is None else padding_mask.device
    visible = torch.ones(query_length, key_length, dtype=torch.bool, device=device)
    if causal:
        visible = visible.tril(first)
    return visible if padding_mask is None else visible & padding_mask[..., None, :]


def regular_attention(
    q: Float[Tensor, "*batch L_q d"],
    k: Float[Tensor, "*batch L_k d"],
    v: Float[Tensor, "*batch L_k d_v"],
    causal: bool = False,
    padding_mask: Bool[Tensor, "..."] | None = None,
    scale: float | str | None = None,
    *,
    first: int = 0,
) -> Float[Tensor, "*batch L_q d_v"]:
    """Attend with separate queries and keys: softmax(q kᵀ / √d) v (paper equation 1).

    Arguments as in ``attention.api``; ``first`` is the position of the first query.
    """
    lengths = q.shape[-2], k.shape[-2]
    visible = visible_pairs(*lengths, causal, padding_mask, first=first, device=q.device)
    return attend(q, k, v, visible, scale_for(scale, q.shape[-1]))[0]


def shared_qk_attention(
    qk: Float[Tensor, "*batch L d"],
    v: Float[Tensor, "*batch L d_v"],
    causal: bool = True,
    padding_mask: Bool[Tensor, "..."] | None = None,
    scale: float | str | None = 1.0,
    norm_eps: float = 1e-6,
) -> Float[Tensor, "*batch L d_v"]:
    """Attend with shared queries and keys: the query is q, the key q / ‖q‖ (paper section 2).

    Arguments as in ``attention.api``.
    """
    return shared_rows(qk, normalize_keys(qk, norm_eps), v, causal, padding_mask, scale)


def shared_rows(q, k, v, causal, padding_mask, scale, *, first=0):
    """The attention of queries q (…, L_q, d) at positions ``first`` …, for unit keys k (…, L, d)."""
    lengths = q.shape[-2], k.shape[-2]
    visible = visible_pairs(*lengths, causal, padding_mask, first=first, device=q.device)
    visible = self_as_last_resort(visible, first)
    return attend(q, k, v, visible, scale_for(scale, q.shape[-1]))[0]


def scale_for(scale: float | str | None, d: int) -> float:
    """The factor of q·k: None and "rsqrt_d" mean 1/√d."""
    return d**-0.5 if scale in (None, "rsqrt_d") else scale
