"""Checks on tensors shared by the PyTorch rooms. Checks that read values are skipped where values do not exist."""

from contextlib import nullcontext

import torch


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
    """TypeError unless ``x`` is a floating-point tensor."""
    if not require_tensor(name, x).is_floating_point():
        raise TypeError(f"{name} must have a floating dtype (float32, float64, bfloat16, float16), got {x.dtype}")
    return x


def require_finite(name, x):
    """ValueError if ``x`` holds NaN or infinity (one pass over the data)."""
    if has_values(x) and not bool(torch.isfinite(x).all()):
        raise ValueError(f"{name} must be finite, got NaN or infinity")
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
