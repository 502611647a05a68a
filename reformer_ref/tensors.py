"""Checks on tensors shared by the PyTorch rooms. Checks that read values are skipped where values do not exist."""

from contextlib import nullcontext

import torch

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def has_values(x):
    """False while tracing (torch.compile, torch.export) and for fake or meta tensors: there is nothing to read."""
    return (
        type(x) in (torch.Tensor, torch.nn.Parameter) and x.device.type != "meta" and not torch.compiler.is_compiling()
    )


def require_tensor(name, x):
    """TypeError unless ``x`` is a tensor."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    return x


def require_floating(name, x):
    """TypeError unless ``x`` is a dense tensor of float32, float64, bfloat16 or float16."""
    if require_tensor(name, x).dtype not in FLOATING or x.layout != torch.strided:
        raise TypeError(
            f"{name} must be dense, of dtype float32, float64, bfloat16 or float16, got {x.dtype}, {x.layout}"
        )
    return x


def require_finite(name, x, largest=float("inf")):
    """ValueError if ``x`` holds NaN, infinity, or anything of size ``largest`` or more (one pass over the data)."""
    if has_values(x) and x.numel():
        low, high = (float(end) for end in x.detach().aminmax())
        if not -largest < low <= high < largest:
            what = "finite" if largest == float("inf") else f"finite and smaller than {largest:g} in size"
            raise ValueError(f"{name} must be {what}, got values from {low:g} to {high:g} (NaN if there is any)")
    return x


def require_same_kind(first_name, first, **others):
    """ValueError unless every tensor in ``others`` has the dtype and the device of ``first``."""
    for name, x in others.items():
        if x.dtype != first.dtype:
            raise TypeError(f"{name} must have the dtype of {first_name} ({first.dtype}), got {x.dtype}")
        if x.device != first.device:
            raise ValueError(f"{name} must be on the device of {first_name} ({first.device}), got {x.device}")


def require_padding_mask(padding_mask, shape, device):
    """``padding_mask`` as a boolean tensor of ``shape`` = (…, L), True = real token; None stays None."""
    if padding_mask is None:
        return None
    require_tensor("padding_mask", padding_mask)
    if padding_mask.dtype != torch.bool:
        raise TypeError(f"padding_mask must be boolean (True = real token), got {padding_mask.dtype}")
    if padding_mask.device != device:
        raise ValueError(f"padding_mask must be on {device}, got {padding_mask.device}")
    try:
        return padding_mask.expand(shape)
    except RuntimeError:
        raise ValueError(
            f"padding_mask must broadcast to {tuple(shape)} = (…, L), got {tuple(padding_mask.shape)}"
        ) from None


def autocast_off(device_type):
    """A context in which operations keep the dtypes of their inputs."""
    return torch.autocast(device_type, enabled=False) if torch.amp.is_autocast_available(device_type) else nullcontext()
