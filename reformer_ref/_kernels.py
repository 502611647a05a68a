"""Where the kernels written in Triton run, and the shapes that they take."""

import os
from importlib.util import find_spec

import torch

from reformer_ref._blocks import block_device

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LARGEST_HEAD = 128
INSTALLED = find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # kernels run on the CPU, to test them


def kernels_chosen(q, v, n_hashes):
    """Whether backend "auto" computes these tensors with kernels: on CUDA, wherever it can, unless
    the environment says REFORMER_TRITON=0. (Calls on a CPU should not even ask.)
    """
    if block_device(q.device) != "cuda" or switched_off():
        return False
    return reason_against(q, v, n_hashes) is None


def switched_off():
    """Whether the environment says REFORMER_TRITON=0."""
    return os.environ.get("REFORMER_TRITON") == "0"


def reason_against(q, v, n_hashes):
    """Why the kernels cannot compute with these tensors (…, L, d); None where they can."""
    device = block_device(q.device)
    d = max(q.shape[-1], v.shape[-1])
    if not (INSTALLED or q.is_meta):
        return "needs triton; install the extra: pip install 'reformer_ref[kernels]'"
    if device != "cuda" and not (INTERPRETED and device == "cpu"):
        return (
            f"needs tensors on CUDA, got {q.device} (the interpreter of triton computes on a CPU, "
            "slowly: set TRITON_INTERPRET=1 before Python starts)"
        )
    if q.is_cuda and torch.cuda.is_available() and _capability(q.device) < 8:
        return "needs a GPU of compute capability 8.0 or more (A100, RTX 30, or newer)"
    if q.dtype not in DTYPES:
        return f"needs float32, bfloat16 or float16, got {q.dtype}"
    if d > LARGEST_HEAD:
        return f"needs vectors of at most {LARGEST_HEAD} numbers, got {d}"
    if n_hashes * q.shape[-2] >= 1 << 31:
        return f"needs n_hashes · L below 2³¹, got {n_hashes} · {q.shape[-2]}"
    return None


def require_kernels(q, v, n_hashes):
    """ValueError where the kernels cannot compute with these tensors."""
    reason = reason_against(q, v, n_hashes)
    if reason is not None:
        raise ValueError(f'backend="triton" {reason}; backend="auto" takes a version that works')


def _capability(device):
    return torch.cuda.get_device_properties(device).major


def four_axes(x):
    """x (…, L, d) as (batch, heads, L, d), its rows contiguous; a copy only where it must be."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    if x.ndim < 4:
        return x[(None,) * (4 - x.ndim)]
    return x.flatten(0, -4)
