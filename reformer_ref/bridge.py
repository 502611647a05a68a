"""From a PyTorch function to one that takes and returns NumPy arrays, so that one set of checks serves both."""

import numpy as np
import torch

from reformer_ref.tensors import require_device, require_dtype


def to_torch(value, dtype=torch.float64, device="cpu"):
    """Arrays become tensors (floats in ``dtype``); everything else passes unchanged, lists and tuples by item."""
    if isinstance(value, np.ndarray):
        require_dtype("dtype", dtype), require_device("device", device)
        try:
            tensor = torch.from_numpy(np.array(value, value.dtype.newbyteorder("="), order="C")).to(device)
        except TypeError:  # text, objects, long doubles
            raise TypeError(f"value must hold numbers that PyTorch knows, got dtype {value.dtype}") from None
        return tensor.to(dtype) if tensor.is_floating_point() else tensor
    if isinstance(value, (list, tuple)) and any(isinstance(v, np.ndarray) for v in value):
        return type(value)(to_torch(v, dtype, device) for v in value)
    return value


def to_numpy(value):
    """Tensors become arrays; tuples, lists and dicts by item."""
    if isinstance(value, torch.Tensor):
        try:
            return value.detach().cpu().resolve_neg().resolve_conj().numpy()
        except (TypeError, RuntimeError):  # bfloat16, sparse, quantized
            what = f"{value.dtype}, {value.layout}, {value.device}"
            raise TypeError(f"value must be a dense tensor of a dtype that NumPy knows, got {what}") from None
    if isinstance(value, (list, tuple)):
        return type(value)(to_numpy(v) for v in value)
    if isinstance(value, dict):
        return {k: to_numpy(v) for k, v in value.items()}
    return value


def as_numpy(fn, dtype=torch.float64, device="cpu"):
    """``fn`` on tensors, seen as a function on arrays."""

    def wrapped(*args, **kwargs):
        args = [to_torch(a, dtype, device) for a in args]
        kwargs = {k: to_torch(v, dtype, device) for k, v in kwargs.items()}
        return to_numpy(fn(*args, **kwargs))

    return wrapped


def autograd_vjp(fn, inputs, d_out, dtype=torch.float64, device="cpu"):
    """(output, gradients of every array in ``inputs``) of ``fn(*inputs)`` by autograd, as arrays.

    ``d_out`` is the cotangent. Inputs that ``fn`` does not depend on get a zero gradient.
    """
    tensors = [to_torch(np.asarray(a), dtype, device).requires_grad_() for a in inputs]
    out = fn(*tensors)
    grads = torch.autograd.grad(out, tensors, to_torch(np.asarray(d_out), dtype, device), allow_unused=True)
    grads = [torch.zeros_like(t) if g is None else g for g, t in zip(grads, tensors, strict=True)]
    return to_numpy(out), to_numpy(grads)
