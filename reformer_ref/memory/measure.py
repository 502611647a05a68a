"""Measured memory: what the CUDA allocator or the operating system says that a function took."""

import ctypes
import gc
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch

from reformer_ref._arguments import require_callable, require_choice, short_repr


@dataclass(frozen=True)
class Peak:
    """The largest amount of memory in use at any moment of a run, in bytes.

    Attributes:
        kind: how the figure was found: "measured (…)", "counted (…)" or "predicted (…)".
        start_bytes: what was in use before the run.
        above_start_bytes: what the run added at its peak.
        result: what the function returned.
        breakdown: (name, bytes) pairs that add up to above_start_bytes; empty if measured.
        excludes: what the figure does not include.
    """

    kind: str
    start_bytes: int
    above_start_bytes: int
    result: object = field(default=None, repr=False)
    breakdown: tuple[tuple[str, int], ...] = field(default=(), repr=False)
    excludes: str = field(default="", repr=False)

    @property
    def peak_bytes(self) -> int:
        """All that was in use at the peak: start_bytes + above_start_bytes."""
        return self.start_bytes + self.above_start_bytes

    def __str__(self) -> str:
        return f"{self.above_start_bytes:,} bytes above the start, {self.kind}"


def measure_peak(fn: Callable[[], object], device: str | torch.device | None = None) -> Peak:
    """Run ``fn()`` and ask the machine for the peak of its memory.

    On Linux the high-water mark of the resident memory (RSS) is reset first. Elsewhere only the
    highest RSS since the process began is known: the figure is then what ``fn`` added to that, a
    lower bound, and ``kind`` says so. RSS counts pages and includes some of what was freed: measure
    large things, in a fresh process.

    Args:
        fn: a function without arguments.
        device: "cuda" asks PyTorch's CUDA allocator, "cpu" the operating system for the RSS of this
            process; None: "cuda" where there is one.

    Returns:
        A peak whose ``kind`` is "measured".

    Raises:
        TypeError: ``fn`` cannot be called.
        ValueError: for other devices.
        RuntimeError: there is no CUDA device, or the system does not report memory.
    """
    require_callable("fn", fn, " without arguments")
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = as_device("device", device)
    require_choice("device", device.type, ("cpu", "cuda"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError('device="cuda": there is no CUDA device here; predict_peak needs none')
    gc.collect()
    start, read, kind = _cuda_meter(device) if device.type == "cuda" else _process_meter()
    result = fn()
    return Peak(f"measured ({kind})", start, max(0, read() - start), result)


def peak_rss() -> int:
    """Return the highest resident memory of this process so far, in bytes, libraries and all.

    Raises:
        RuntimeError: the system does not report it.
    """
    try:
        return _process_status("VmHWM")
    except (OSError, ValueError):  # not Linux
        return _usage_peak()


def _cuda_meter(device):
    """(bytes at the start, function that reads the highest since, name)."""

    def read():
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)

    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    name = f"CUDA allocator, {torch.cuda.get_device_name(device)}"
    return torch.cuda.memory_allocated(device), read, name


def _process_meter():
    """(bytes at the start, function that reads the highest since, name)."""
    # return freed memory to the system, else fn would use it unseen (glibc only)
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # proc(5): resets the high-water mark to what is resident now
        return _process_status("VmRSS"), partial(_process_status, "VmHWM"), "process RSS"
    except (OSError, ValueError):
        name = "process RSS beyond its earlier peak, a lower bound"
        return _usage_peak(), _usage_peak, name


def _process_status(name):
    """Bytes that Linux reports under this name."""
    with open("/proc/self/status") as file:
        match = re.search(rf"^{name}:\s+(\d+) kB$", file.read(), re.MULTILINE)
    if not match:
        raise ValueError(f"/proc/self/status has no {name}")
    return int(match[1]) * 1024


def _usage_peak():
    """Highest resident bytes since the process began, where there is getrusage."""
    try:
        import resource
    except ModuleNotFoundError:
        raise RuntimeError(
            f"{sys.platform} does not tell how much memory a process took; count_peak does"
        ) from None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def as_device(name: str, device: object) -> torch.device:
    """Return ``device`` as a torch.device, or raise a TypeError or ValueError."""
    if not isinstance(device, (str, torch.device)):
        raise TypeError(
            f'{name} must be a device such as "cpu" or "cuda:1", got {short_repr(device)}'
        )
    try:
        return torch.device(device)
    except (RuntimeError, ValueError):
        raise ValueError(
            f'{name} must be a device such as "cpu" or "cuda:1", got {short_repr(device)}'
        ) from None
