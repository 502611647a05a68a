"""Checks on tensors. Those that read values are skipped where values do not exist, or on CUDA."""

import math
import os
import sys
from contextlib import contextmanager, nullcontext
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from reformer_ref._arguments import short_repr

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
FLOATING_NAMES = "float32, float64, bfloat16 or float16"
INTEGERS = (
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.uint32,
)


def has_values(x: Tensor) -> bool:
    """Whether checks may read the numbers of ``x``.

    False while tracing and for fake or meta tensors, which hold none, and on CUDA, where reading
    waits for the device, unless the environment says REFORMER_CHECK_VALUES=1.
    """
    return (
        type(x) in (Tensor, torch.nn.Parameter)
        and x.device.type != "meta"
        and (x.device.type != "cuda" or os.environ.get("REFORMER_CHECK_VALUES") == "1")
        and not torch.compiler.is_compiling()
    )


def require_tensor(name: str, x: Any) -> Tensor:
    """TypeError unless ``x`` is a dense tensor: neither sparse nor nested nor quantized."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if x.layout != torch.strided or x.is_nested or x.is_quantized:
        given = "a nested one; pad it" if x.is_nested else f"one of {x.dtype}, {x.layout}"
        raise TypeError(f"{name} must be a dense tensor, got {given}")
    return x


def require_floating(name: str, x: Any) -> Tensor:
    """TypeError unless ``x`` is a dense tensor of float32, float64, bfloat16 or float16."""
    if require_tensor(name, x).dtype not in FLOATING:
        raise TypeError(f"{name} must be dense, of dtype {FLOATING_NAMES}, got {x.dtype}")
    return x


def require_rows(name: str, x: Any) -> Tensor:
    """TypeError unless ``x`` is a floating tensor, ValueError unless (…, L, d), every size ≥ 1."""
    if require_floating(name, x).ndim < 2 or 0 in x.shape:
        given = tuple(x.shape)
        raise ValueError(f"{name} must have shape (…, L, d) with every size ≥ 1, got {given}")
    return x


def require_integers(name: str, x: Any, must: str = "be integers") -> Tensor:
    """``x`` as int64; TypeError unless it is a dense tensor of integers that int64 can hold."""
    if require_tensor(name, x).dtype not in INTEGERS:
        raise TypeError(f"{name} must {must}, dense, and not uint64, got {x.dtype}")
    return x.long()


def require_dtype(name: str, dtype: Any) -> torch.dtype:
    """TypeError unless ``dtype`` is float32, float64, bfloat16 or float16."""
    if not isinstance(dtype, torch.dtype) or dtype not in FLOATING:
        accepted = f"a floating torch.dtype ({FLOATING_NAMES})"
        raise TypeError(f"{name} must be {accepted}, got {short_repr(dtype)}")
    return dtype


def require_generator(name: str, generator: Any) -> torch.Generator:
    """TypeError unless ``generator`` is a torch.Generator."""
    if not isinstance(generator, torch.Generator):
        given = f"{type(generator).__name__}; try torch.Generator().manual_seed(0)"
        raise TypeError(f"{name} must be a torch.Generator, got {given}")
    return generator


def require_device(name: str, device: Any) -> Any:
    """ValueError unless tensors can be put on ``device``, or it is None (the default device)."""
    try:
        if device is not None and not torch.compiler.is_compiling():
            torch.empty(0, device=device)
    except Exception as error:  # RuntimeError, TypeError, AssertionError: each device has its own
        given = f"{short_repr(device)} ({short_repr(str(error))})"
        raise ValueError(
            f"{name} must be a device that PyTorch finds here, such as 'cpu', got {given}"
        ) from None
    return device


class NotFinite(ValueError, FloatingPointError):
    """Numbers that overflowed, or NaN: a mistake in an argument, or training that diverged."""


def require_finite(name: str, x: Tensor, largest: float = math.inf) -> Tensor:
    """NotFinite, a ValueError, if ``x`` holds NaN, infinity, or anything of size ``largest``."""
    if has_values(x) and x.numel():
        low, high = torch.stack(x.detach().aminmax()).tolist()
        if not -largest < low <= high < largest:
            accepted = "finite"
            if largest < math.inf:
                accepted = f"finite and smaller than {largest:g} in size"
            given = f"values from {low:g} to {high:g} (NaN if there is any)"
            raise NotFinite(f"{name} must be {accepted}, got {given}")
    return x


def require_same_kind(first_name: str, first: Tensor, **others: Tensor) -> None:
    """Error unless every tensor in ``others`` has the dtype and the device of ``first``."""
    for name, x in others.items():
        if x.dtype != first.dtype:
            want = f"the dtype of {first_name} ({first.dtype})"
            raise TypeError(f"{name} must have {want}, got {x.dtype}")
        if x.device != first.device:
            want = f"the device of {first_name} ({first.device})"
            raise ValueError(f"{name} must be on {want}, got {x.device}")


def require_padding_mask(padding_mask: Any, shape: tuple[int, ...], device: Any) -> Tensor | None:
    """``padding_mask`` expanded to ``shape`` = (…, L), True = real token; None stays None."""
    if padding_mask is None:
        return None
    if require_tensor("padding_mask", padding_mask).dtype != torch.bool:
        given = padding_mask.dtype
        raise TypeError(f"padding_mask must be boolean (True = real token), got {given}")
    if padding_mask.device != device:
        raise ValueError(f"padding_mask must be on {device}, got {padding_mask.device}")
    try:
        return padding_mask.expand(shape)
    except RuntimeError:
        want = f"{tuple(shape)} = (…, L)"
        given = tuple(padding_mask.shape)
        raise ValueError(f"padding_mask must broadcast to {want}, got {given}") from None


def autocast_off(device_type: str):
    """A context in which operations keep the dtypes of their inputs."""
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


@contextmanager
def evaluating(model: torch.nn.Module):
    """Eval mode without gradients; on leaving, every submodule is in its mode of before."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        with torch.no_grad():
            yield model
    finally:
        for module in training:
            module.training = True


def never_compiled(function):
    """Do what `torch.compiler.disable` does, but only where something is compiled.

    Used at import, it would load the compiler, which takes as long as importing torch.
    """

    @wraps(function)
    def call(*args, **kwargs):
        if "torch._dynamo" in sys.modules:
            return torch.compiler.disable(function)(*args, **kwargs)
        return function(*args, **kwargs)

    return call
