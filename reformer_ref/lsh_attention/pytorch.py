"""LSH attention, in PyTorch: hash, sort, chunk, attend and undo, several rounds as one softmax, on any device."""

from dataclasses import dataclass

import torch

from reformer_ref.attention.pytorch import normalize_keys
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.lsh_attention.windows import Windows
from reformer_ref.tensors import require_finite, require_floating, require_padding_mask, require_same_kind, require_tensor


def lsh_attention(qk, v, buckets, options, padding_mask=None, *, return_record=False):
    """LSH attention with shared queries and keys: (…, L, d_v) in the dtype of v.

    qk (…, L, d), v (…, L, d_v) floating; buckets int (…, n_hashes, L) without round offsets; padding_mask bool (…, L), True
    = real token. Any L ≥ 1. Padding sorts last and is never seen. A token sees itself only if no round shows it anything
    else; a query to which nothing at all is visible, as happens to padding, gets zeros. Statistics of the softmax are float32 at least. No gradient through buckets, sort, masks or counts.

    return_record: also return an ``AttentionRecord`` (buckets, order, windows, weights per round, the L × L matrix).
    Errors: ValueError for shapes that do not fit, TypeError for wrong dtypes. Source: paper section 2.
    """
    padding_mask = _check(qk, v, buckets, options, padding_mask)
    lead, (length, d) = qk.shape[:-2], qk.shape[-2:]
    flat_mask = None if padding_mask is None else padding_mask.reshape(-1, length)
    windows = Windows.of(buckets.reshape(-1, *buckets.shape[-2:]), options, flat_mask)
    q, v = qk.reshape(-1, length, d), v.reshape(-1, length, v.shape[-1])
    out, total = _attend_rounds(q, v, windows)
    out = out.view(*lead, length, -1)
    if not return_record:
        return out
    with torch.no_grad():
        return out, _record(q, windows, total, lead)


def _attend_rounds(q, v, windows):
    """(out (B, L, d_v), total log-sum-exp (B, L)): every round by itself, merged through its log-sum-exp."""
    o = windows.options
    k = normalize_keys(q, o.norm_eps)
    outs, sums = [], []
    for h in range(o.n_hashes):
        scores, keys = _scores(q, k, windows, h)  # (B, n_chunks, chunk_length, width·chunk_length)
        top = scores.amax(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min).detach()
        weights = torch.exp(scores - top)
        total = weights.sum(-1, keepdim=True)
        empty = total == 0
        total = total.masked_fill(empty, 1.0)
        out = (weights / total).to(v.dtype) @ _rows(v, keys)  # (B, n_chunks, chunk_length, d_v)
        log_sum = (top + total.log()).masked_fill(empty, float("-inf"))
        outs.append(_unsort(out, windows.slot[:, h]))
        sums.append(_unsort(log_sum, windows.slot[:, h]).squeeze(-1))
    sums = torch.stack(sums, 1)  # (B, n_hashes, L)
    top = sums.detach().amax(1, keepdim=True)
    shares = torch.exp(sums - top.clamp(min=torch.finfo(sums.dtype).min))
    mass = shares.sum(1, keepdim=True)
    alone = mass == 0  # (B, 1, L): nothing but, at most, itself
    shares = shares / mass.masked_fill(alone, 1.0)
    out = sum(share[..., None].to(v.dtype) * out for share, out in zip(shares.unbind(1), outs, strict=True))
    if windows.real is not None:
        v = v.masked_fill(~windows.real[..., None], 0)
    out = torch.where(alone.squeeze(1)[..., None], v, out)
    return out, torch.logsumexp(sums, 1)


def _scores(q, k, windows, h):
    """scale · q·k̂ in the windows of round h, −inf where not visible, float32 at least; and the keys' positions."""
    first, last = h * windows.n_chunks, (h + 1) * windows.n_chunks
    keys, _ = windows.keys(first, last)
    scores = _rows(q, windows.queries(first, last)) @ _rows(k, keys).transpose(-1, -2)
    scores = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
    visible, _ = windows.visible(h, first, last)
    return (scores * windows.options.scale_for(q.shape[-1])).masked_fill(~visible, float("-inf")), keys


@dataclass(frozen=True)
class AttentionRecord:
    """Everything that happened in one call of LSH attention; leading "…" as in the inputs.

    buckets (…, n_hashes, L) · order (…, n_hashes, L): positions in sorted order · queries (…, n_hashes, n_chunks,
    chunk_length) and keys (…, n_hashes, n_chunks, width·chunk_length): positions in each chunk and its window, −1 =
    nobody · weights (…, n_hashes, n_chunks, chunk_length, width·chunk_length): share of the one softmax.
    """

    buckets: torch.Tensor
    order: torch.Tensor
    queries: torch.Tensor
    keys: torch.Tensor
    weights: torch.Tensor

    def dense(self):
        """The attention matrix (…, L, L): row i holds the weights with which query i sees each position."""
        length = self.buckets.shape[-1]
        lead = self.weights.shape[:-4]
        dense = self.weights.new_zeros(*lead, (length + 1) * (length + 1))  # one row and column for "nobody"
        cell = (self.queries % (length + 1))[..., None] * (length + 1) + (self.keys % (length + 1))[..., None, :]
        dense.scatter_add_(-1, cell.flatten(len(lead)), self.weights.flatten(len(lead)))
        return dense.view(*lead, length + 1, length + 1)[..., :length, :length]


def _record(q, windows, total, lead):
    """Weights round by round, from the total log-sum-exp: exp(score − total)."""
    o = windows.options
    k, weights, alone = normalize_keys(q, o.norm_eps), [], torch.isneginf(total)
    for h in range(o.n_hashes):
        first, last = h * windows.n_chunks, (h + 1) * windows.n_chunks
        scores, _ = _scores(q, k, windows, h)
        here = windows.queries(first, last).clamp(min=0)
        total_here = _rows(total.masked_fill(alone, 0)[..., None], here)
        share = torch.exp(scores - total_here)
        if h == 0:  # a token that sees only itself: once, in its own chunk of the first round
            _, own = windows.visible(h, first, last)
            middle = torch.zeros(own.shape[-1], dtype=torch.bool, device=own.device)
            middle[o.chunks_before * o.chunk_length : (o.chunks_before + 1) * o.chunk_length] = True
            share = torch.where(own & middle & _rows(alone[..., None], here), 1.0, share)
        weights.append(share)
    last = windows.order.shape[1]
    shape = (*lead, o.n_hashes, windows.n_chunks)
    order = windows.order.reshape(*lead, o.n_hashes, -1)[..., : q.shape[1]]
    return AttentionRecord(
        windows.buckets.view(*lead, *windows.buckets.shape[1:]),
        order,
        windows.order.reshape(*shape, -1),
        windows.keys(0, last)[0].reshape(*shape, -1),
        torch.stack(weights, 1).reshape(*shape, o.chunk_length, -1),
    )


def _rows(x, index):
    """Rows of x (B, L, d) at index (B, …) -> (B, …, d); −1 reads row 0, and the masks see to it."""
    flat = index.flatten(1).clamp(min=0)[..., None].expand(-1, -1, x.shape[-1])
    return x.gather(1, flat).view(*index.shape, x.shape[-1])


def _unsort(x, slot):
    """Sorted rows (B, n_chunks, chunk_length, d) back into the order of positions: (B, L, d)."""
    x = x.flatten(1, 2)
    return x.gather(1, slot[..., None].expand(-1, -1, x.shape[-1]))


def _check(qk, v, buckets, options, padding_mask):
    if not isinstance(options, LSHOptions):
        raise TypeError(f"options must be LSHOptions, got {type(options).__name__}")
    require_floating("qk", qk), require_floating("v", v), require_tensor("buckets", buckets)
    require_same_kind("qk", qk, v=v)
    if qk.ndim < 2 or 0 in qk.shape or v.ndim < 2 or 0 in v.shape:
        raise ValueError(
            f"qk and v must have shape (…, L, d) with every size ≥ 1, got {tuple(qk.shape)} and {tuple(v.shape)}"
        )
    if v.shape[:-1] != qk.shape[:-1]:
        raise ValueError(f"v must have shape {tuple(qk.shape[:-1])} + (d_v,) to go with qk, got {tuple(v.shape)}")
    if buckets.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"buckets must be int64 or int32, got {buckets.dtype}")
    if buckets.device != qk.device:
        raise ValueError(f"buckets must be on the device of qk ({qk.device}), got {buckets.device}")
    want = (*qk.shape[:-2], options.n_hashes, qk.shape[-2])
    if tuple(buckets.shape) != want:
        raise ValueError(f"buckets must have shape {want} = (…, n_hashes, L), got {tuple(buckets.shape)}")
    require_finite("qk", qk), require_finite("v", v)
    return require_padding_mask(padding_mask, qk.shape[:-1], qk.device)
