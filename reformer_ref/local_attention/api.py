"""Local attention: the public function, which checks its arguments once and picks a version."""

from jaxtyping import Bool, Float
from torch import Tensor

from reformer_ref._arguments import fit_window, require_choice, require_fits, require_int
from reformer_ref._kernels import kernels_chosen, require_kernels
from reformer_ref._tensors import (
    require_finite,
    require_padding_mask,
    require_rows,
    require_same_kind,
)
from reformer_ref.local_attention import pytorch as plain
from reformer_ref.local_attention import streaming
from reformer_ref.local_attention.options import LocalOptions
from reformer_ref.lsh_attention.api import BACKENDS, PLAIN_UP_TO

LARGEST = 1e9  # entries of q and k must be smaller in size


def local_attention(
    q: Float[Tensor, "*batch L d"],
    k: Float[Tensor, "*batch L d"],
    v: Float[Tensor, "*batch L d_v"],
    options: LocalOptions,
    padding_mask: Bool[Tensor, "..."] | None = None,
    *,
    backend: str = "auto",
    block_size: int | None = None,
) -> Float[Tensor, "*batch L d_v"]:
    """Attend within chunks of the sequence and their neighbours (the authors' local layers).

    A query sees itself; one that sees nothing, as happens to padding, gets zeros. The softmax is
    float32 at least. Any length L ≥ 1.

    Args:
        q: queries; finite, below 1e9 in size.
        k: keys, of the shape and dtype of q; finite, below 1e9 in size.
        v: values, of the dtype of q; finite.
        options: label a query may see.
        padding_mask: True = real token; broadcast to (…, L). Padding is moved behind the real
            tokens before chunks are cut, so without ``wrap`` it changes nothing, wherever it is.
        backend: "plain" is ``local_attention.pytorch``, whose memory grows with L·chunk_length;
            "streaming" works block by block, also in backward; "triton" is fused kernels for CUDA,
            with the limits and the exactness of those of ``lsh_attention``; "auto" takes "triton" on
            CUDA wherever it can, else "plain" for calls of up to 2¹⁷ scores, where both take about
            as long, and "streaming" beyond.
        block_size: scores that the streaming version computes at a time; None: as suits the device.

    Returns:
        The output in the dtype of v.

    Raises:
        TypeError: for a wrong type or dtype.
        ValueError: for shapes that do not fit, another device, NaN or infinity, or backend="triton"
            where its kernels do not run.
    """
    if not isinstance(options, LocalOptions):
        raise TypeError(f"options must be LocalOptions, got {type(options).__name__}")
    require_rows("q", q)
    require_rows("k", k)
    require_rows("v", v)
    require_same_kind("q", q, k=k, v=v)
    if q.shape != k.shape or v.shape[:-1] != q.shape[:-1]:
        given = f"{tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
        raise ValueError(f"q, k (…, L, d) and v (…, L, d_v) must agree, got {given}")
    require_finite("q", q, LARGEST)
    require_finite("k", k, LARGEST)
    require_finite("v", v)
    padding_mask = require_padding_mask(padding_mask, q.shape[:-1], q.device)
    require_fits(queries=q[..., 0].numel(), chunks_before_and_after=options.width)
    require_choice("backend", backend, BACKENDS)
    if backend == "triton":
        require_kernels(q, v, options.n_hashes)
    if block_size is not None:
        require_int("block_size", block_size)
    return unchecked_local_attention(
        q, k, v, options, padding_mask, backend=backend, block_size=block_size
    )


def unchecked_local_attention(
    q, k, v, options, padding_mask=None, *, backend="auto", block_size=None
):
    """``local_attention`` without checks, for use inside the package."""
    options = fit_window(options, q.shape[-2])
    if backend == "auto" and not q.is_cpu and kernels_chosen(q, v, options.n_hashes):
        backend = "triton"
    if backend == "triton":
        from reformer_ref.lsh_attention import fused

        return fused.local_attention(q, k, v, options, padding_mask)
    if backend == "auto":
        window = min(options.chunk_length, q.shape[-2]) * options.width
        backend = "plain" if q[..., 0].numel() * window <= PLAIN_UP_TO else "streaming"
    if backend == "plain":
        return plain.local_attention(q, k, v, options, padding_mask)
    return streaming.local_attention(q, k, v, options, padding_mask, block_size=block_size)
