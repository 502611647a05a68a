"""Checks on tensors shared by the PyTorch rooms. Checks that read values are skipped where values
do not exist.
"""

import math
import os
from contextlib import contextmanager, nullcontext

import torch

from reformer_ref._arguments import shown

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTEGERS = (
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.uint32,
)


def has_values(x):
    """Whether checks may read the numbers of ``x``.

    False while tracing and for fake or meta tensors, which hold none, and on CUDA, where reading
    waits for the device, unless the environment says REFORMER_CHECK_VALUES=1.
    """
    return (
        type(x) in (torch.Tensor, torch.nn.Parameter)
        and x.device.type != "meta"
        and (x.device.type != "cuda" or os.environ.get("REFORMER_CHECK_VALUES") == "1")
        and not torch.compiler.is_compiling()
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


def require_rows(name, x):
    """TypeError unless ``x`` is a floating tensor, ValueError unless (…, L, d), every size ≥ 1."""
    if require_floating(name, x).ndim < 2 or 0 in x.shape:
        given = tuple(x.shape)
        raise ValueError(f"{name} must have shape (…, L, d) with every size ≥ 1, got {given}")
    return x


def require_integers(name, x, must="be integers"):
    """``x`` as int64; TypeError unless it is a dense tensor of integers that int64 can hold: not
    uint64.

    must: what the message asks for.
    """
    if require_tensor(name, x).dtype not in INTEGERS or x.layout != torch.strided:
        raise TypeError(f"{name} must {must}, dense, and not uint64, got {x.dtype}, {x.layout}")
    return x.long()


def require_dtype(name, dtype):
    """TypeError unless ``dtype`` is float32, float64, bfloat16 or float16."""
    if not isinstance(dtype, torch.dtype) or dtype not in FLOATING:
        what = "float32, float64, bfloat16 or float16"
        raise TypeError(f"{name} must be a floating torch.dtype ({what}), got {shown(dtype)}")
    return dtype


def require_generator(name, generator):
    """TypeError unless ``generator`` is a torch.Generator."""
    if not isinstance(generator, torch.Generator):
        what = f"{type(generator).__name__}; try torch.Generator().manual_seed(0)"
        raise TypeError(f"{name} must be a torch.Generator, got {what}")
    return generator


def require_device(name, device):
    """ValueError unless tensors can be put on ``device``, or it is None (the default device)."""
    try:
        if device is not None and not torch.compiler.is_compiling():
            torch.empty(0, device=device)
    except Exception as error:  # RuntimeError, TypeError, AssertionError: each device has its own
        what = f"{shown(device)} ({shown(str(error))})"
        raise ValueError(
            f"{name} must be a device that PyTorch finds here, such as 'cpu', got {what}"
        ) from None
    return device


class NotFinite(ValueError, FloatingPointError):
    """Numbers that overflowed, or none: a mistake in an argument, or training that diverged."""


def require_finite(name, x, largest=float("inf")):
    """NotFinite, a ValueError, if ``x`` holds NaN, infinity, or anything of size ``largest`` or
    more (one pass).
    """
    if has_values(x) and x.numel():
        low, high = (float(end) for end in x.detach().aminmax())
        if not -largest < low <= high < largest:
            what = (
                "finite"
                if largest == float("inf")
                else f"finite and smaller than {largest:g} in size"
            )
            raise NotFinite(
                f"{name} must be {what}, got values from {low:g} to {high:g} (NaN if there is any)"
            )
    return x


def require_same_kind(first_name, first, **others):
    """ValueError unless every tensor in ``others`` has the dtype and the device of ``first``."""
    for name, x in others.items():
        if x.dtype != first.dtype:
            raise TypeError(
                f"{name} must have the dtype of {first_name} ({first.dtype}), got {x.dtype}"
            )
        if x.device != first.device:
            raise ValueError(
                f"{name} must be on the device of {first_name} ({first.device}), got {x.device}"
            )


def require_padding_mask(padding_mask, shape, device):
    """``padding_mask`` as a boolean tensor of ``shape`` = (…, L), True = real token; None stays
    None.
    """
    if padding_mask is None:
        return None
    require_tensor("padding_mask", padding_mask)
    if padding_mask.dtype != torch.bool:
        raise TypeError(
            f"padding_mask must be boolean (True = real token), got {padding_mask.dtype}"
        )
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
    return (
        torch.autocast(device_type, enabled=False)
        if torch.amp.is_autocast_available(device_type)
        else nullcontext()
    )


@contextmanager
def evaluating(model):
    """Eval mode without gradients; on leaving, every submodule is in the mode in which it was
    found.
    """
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        with torch.no_grad():
            yield model
    finally:
        for module in training:
            module.training = True


class Scratch:
    """Tensors that one block after the other writes into, by name: fresh memory costs a page fault
    for every 4 KiB.

    What stands under a name lasts until the name is used again.
    """

    def __init__(self):
        self._kept = {}

    def empty(self, name, shape, like):
        """A tensor of ``shape`` to write into, of the dtype and device of ``like``."""
        n, kept = math.prod(shape), self._kept.get(name)
        if kept is None or kept.numel() < n or kept.dtype != like.dtype:
            self._kept[name] = kept = like.new_empty(n)
        return kept[:n].view(shape)

    def pairs(self, name, op, a, b):
        """op(a, b), broadcast, in the dtype of a: of comparisons 1.0 and 0.0, on a CPU seven times
        faster than bool.
        """
        if torch.compiler.is_compiling():  # which makes its own buffers
            return op(a, b).to(a.dtype)
        return op(a, b, out=self.empty(name, torch.broadcast_shapes(a.shape, b.shape), a))

    def bmm(self, name, a, b):
        """The batched matrix product a @ b."""
        if torch.compiler.is_compiling():
            return torch.bmm(a, b)
        return torch.bmm(a, b, out=self.empty(name, (*a.shape[:2], b.shape[2]), a))
