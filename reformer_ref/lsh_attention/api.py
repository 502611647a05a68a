"""LSH attention: the public function, which checks its arguments once and picks a version."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from reformer_ref._arguments import (
    fit_window,
    require_bool,
    require_choice,
    require_fits,
    require_int,
)
from reformer_ref._kernels import kernels_chosen, require_kernels
from reformer_ref._tensors import (
    has_values,
    require_finite,
    require_padding_mask,
    require_rows,
    require_same_kind,
    require_tensor,
)
from reformer_ref.lsh_attention import pytorch as plain
from reformer_ref.lsh_attention import streaming
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.lsh_attention.record import AttentionRecord

BACKENDS = ("auto", "plain", "streaming", "triton")
# Scores, over all sequences and rounds, up to which "auto" takes "plain" on a CPU. On one CPU core "plain" is
# the faster one up to about 2¹⁴; at 2¹⁷ either takes a few milliseconds, then "streaming" wins.
PLAIN_UP_TO = 1 << 17
LARGEST = 1e12  # entries of qk must be smaller in size


def lsh_attention(
    qk: Float[Tensor, "*batch L d"],
    v: Float[Tensor, "*batch L d_v"],
    buckets: Int[Tensor, "*batch n_hashes L"],
    options: LSHOptions,
    padding_mask: Bool[Tensor, "..."] | None = None,
    *,
    return_record: bool = False,
    backend: str = "auto",
    block_size: int | None = None,
) -> Float[Tensor, "*batch L d_v"] | tuple[Float[Tensor, "*batch L d_v"], AttentionRecord]:
    """Attend with shared queries and keys to the keys that hashing brings together.

    A token sees itself only if no round shows it anything else; a query to which nothing at all is
    visible, as happens to padding, gets zeros. The softmax is float32 at least. No gradient flows
    through buckets, sort, masks or counts. Any length L ≥ 1. Source: paper section 2.

    Args:
        qk: queries, which are also the keys once scaled to length 1; finite, below 1e12 in size.
        v: values, of the dtype of qk; finite.
        buckets: bucket numbers ≥ 0 without round offsets, int64, int32 or int16.
        options: label a query may see, and how it is counted.
        padding_mask: True = real token; broadcast to (…, L). Padding sorts last and is never seen.
        return_record: also return an ``AttentionRecord`` of the call, from the plain version.
        backend: "plain" is ``lsh_attention.pytorch``, whose memory grows with L·chunk_length;
            "streaming" works block by block, also in backward; "triton" is fused kernels for CUDA,
            in float32 (products in three TF32 parts, nearly as exact), bfloat16 or float16, for d
            and d_v up to 128 (extra ``kernels``). "auto" takes "triton" on CUDA wherever it can,
            unless the environment says REFORMER_TRITON=0; else "plain" for calls of up to 2¹⁷
            scores (two heads, 256 tokens and two rounds), and "streaming" beyond.
        block_size: scores that the streaming version computes at a time; None: as suits the device.

    Returns:
        The output in the dtype of v; with ``return_record`` also the record.

    Raises:
        TypeError: for a wrong type or dtype.
        ValueError: for shapes that do not fit, another device, NaN or infinity, a negative bucket,
            or backend="triton" where its kernels do not run. Values are not read on CUDA, unless
            the environment says REFORMER_CHECK_VALUES=1.
    """
    if not isinstance(options, LSHOptions):
        raise TypeError(f"options must be LSHOptions, got {type(options).__name__}")
    require_rows("qk", qk)
    require_rows("v", v)
    require_same_kind("qk", qk, v=v)
    if v.shape[:-1] != qk.shape[:-1]:
        want = f"{tuple(qk.shape[:-1])} + (d_v,)"
        raise ValueError(f"v must have shape {want} to go with qk, got {tuple(v.shape)}")
    _require_buckets(buckets, qk, options.n_hashes)
    require_finite("qk", qk, LARGEST)
    require_finite("v", v)
    if padding_mask is not None:
        padding_mask = require_padding_mask(padding_mask, qk.shape[:-1], qk.device)
    rows = qk[..., 0].numel() * options.n_hashes
    require_fits(queries_of_all_rounds=rows, chunks_before_and_after=options.width)
    require_choice("backend", backend, BACKENDS)
    if backend == "triton":
        require_kernels(qk, v, options.n_hashes)
    if block_size is not None:
        require_int("block_size", block_size)
    if require_bool("return_record", return_record):
        options = fit_window(options, qk.shape[-2])
        return plain.lsh_attention(qk, v, buckets, options, padding_mask, return_record=True)
    return unchecked_lsh_attention(
        qk, v, buckets, options, padding_mask, backend=backend, block_size=block_size
    )


def unchecked_lsh_attention(
    qk, v, buckets, options, padding_mask=None, *, backend="auto", block_size=None
):
    """``lsh_attention`` without checks and without a record, for use inside the package."""
    options = fit_window(options, qk.shape[-2])
    if backend == "auto" and not qk.is_cpu and kernels_chosen(qk, v, options.n_hashes):
        backend = "triton"
    if backend == "triton":
        from reformer_ref.lsh_attention import fused

        return fused.lsh_attention(qk, v, buckets, options, padding_mask)
    if backend == "auto":
        length = qk.shape[-2]
        window = min(options.chunk_length, length) * options.width
        scores = qk[..., 0].numel() * options.n_hashes * window
        backend = "plain" if scores <= PLAIN_UP_TO else "streaming"
    if backend == "plain":
        return plain.lsh_attention(qk, v, buckets, options, padding_mask)
    return streaming.lsh_attention(qk, v, buckets, options, padding_mask, block_size=block_size)


def _require_buckets(buckets, qk, n_hashes):
    kinds = torch.int64, torch.int32, torch.int16
    if require_tensor("buckets", buckets).dtype not in kinds or buckets.layout != torch.strided:
        given = f"{buckets.dtype}, {buckets.layout}"
        raise TypeError(f"buckets must be int64, int32 or int16, and dense, got {given}")
    if buckets.device != qk.device:
        raise ValueError(f"buckets must be on the device of qk ({qk.device}), got {buckets.device}")
    want = (*qk.shape[:-2], n_hashes, qk.shape[-2])
    if buckets.shape != want:
        given = tuple(buckets.shape)
        raise ValueError(f"buckets must have shape {want} = (…, n_hashes, L), got {given}")
    if has_values(buckets):
        low, high = torch.stack(buckets.aminmax()).tolist()
        if low < 0 or high == torch.iinfo(torch.int64).max:  # which is where padding sorts
            raise ValueError(f"buckets must lie in 0 … 2⁶³ − 2, got {low} … {high}")
