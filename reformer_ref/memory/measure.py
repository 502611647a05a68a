"""How much memory a computation takes: *measured*, *counted* or *predicted*, three figures that are
never confused.

``measure_peak`` runs a function and asks the machine: the CUDA allocator, or on a CPU the resident
memory of the process, with everything in it: kernels' work space, freed memory that the allocator
keeps, code paged in. ``count_peak`` runs it and adds up the live tensors, exactly and the same on
every machine. ``predict_peak`` counts a training step of a whole model on tensors without contents,
so for models and lengths that no machine at hand could run.
"""

import gc
import os
import re
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch

from reformer_ref._arguments import (
    LARGEST_ARRAY,
    require_bool,
    require_choice,
    require_int,
    require_room,
    shown,
)
from reformer_ref.lsh_attention.streaming import SCORES_AT_A_TIME
from reformer_ref.memory.count import BLOCK, Counter, MetaCounter, as_device
from reformer_ref.model.config import require_config
from reformer_ref.model.pytorch import ReformerLM

NOT_COUNTED = (
    "work space inside kernels (sorting, matrix products); what the allocator loses to fragments"
)
NOT_PREDICTED = f"{NOT_COUNTED}; the CUDA context (0.3 to 0.6 GB); the program itself"
PARTS = ("parameters", "gradients", "optimizer", "streams", "working set")
OPTIMIZERS = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD, None: None}
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Peak:
    """The largest amount of memory in use at any moment of a run, in bytes.

    kind: how it was found: "measured (…)", "counted (…)" or "predicted (…)". start_bytes: in use
    before the run; above_start_bytes: what it added at its peak. result: what the function
    returned. parts: (name, bytes) pairs that add up to above_start_bytes; none if measured.
    excludes: what the figure does not hold.
    """

    kind: str
    start_bytes: int
    above_start_bytes: int
    result: object = field(default=None, repr=False)
    parts: tuple = field(default=(), repr=False)
    excludes: str = field(default="", repr=False)

    @property
    def peak_bytes(self):
        """All that was in use at the peak: start_bytes + above_start_bytes."""
        return self.start_bytes + self.above_start_bytes

    def __str__(self):
        return f"{self.above_start_bytes:,} bytes above the start, {self.kind}"


def measure_peak(fn, device=None):
    """Run ``fn()`` and ask the machine for the peak: a ``Peak``.

    device: "cuda" asks PyTorch's CUDA allocator, "cpu" the operating system for the resident memory
    (RSS) of this process; None: "cuda" where there is one. On Linux the high-water mark of the RSS
    is set back first. Elsewhere only the highest since the process began is known: the figure is
    then what ``fn`` added to that, a lower bound, and ``kind`` says so. RSS counts pages and keeps
    some of what was freed: measure large things, in a fresh process. TypeError for what cannot be
    called, ValueError for other devices, RuntimeError where there is no CUDA or the system tells
    nothing.
    """
    _require_callable(fn)
    device = as_device(
        "device", ("cuda" if torch.cuda.is_available() else "cpu") if device is None else device
    )
    require_choice("device", device.type, ("cpu", "cuda"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError('device="cuda": there is no CUDA device here; predict_peak needs none')
    gc.collect()
    start, read, kind = _cuda_meter(device) if device.type == "cuda" else _process_meter()
    result = fn()
    return Peak(f"measured ({kind})", start, max(0, read() - start), result)


def _cuda_meter(device):
    def read():
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)

    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    return (
        torch.cuda.memory_allocated(device),
        read,
        f"CUDA allocator, {torch.cuda.get_device_name(device)}",
    )


def _process_meter():
    """(bytes at the start, function that reads the highest since, name)."""
    _give_back_heap()
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # proc(5): sets the high-water mark back to what is resident now
        return _status("VmRSS"), lambda: _status("VmHWM"), "process RSS"
    except (OSError, ValueError):
        pass
    try:
        import resource
    except ModuleNotFoundError:
        raise RuntimeError(
            f"{sys.platform} does not tell how much memory a process took; count_peak does"
        ) from None

    def read():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
            1 if sys.platform == "darwin" else 1024
        )

    return read(), read, "process RSS beyond its earlier peak, a lower bound"


def _give_back_heap():
    """Return freed memory to the system, else ``fn`` would use it unseen (glibc only)."""
    import ctypes

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def _status(name):
    with open("/proc/self/status") as file:
        found = re.search(rf"^{name}:\s+(\d+) kB$", file.read(), re.MULTILINE)
    if not found:
        raise ValueError(f"/proc/self/status has no {name}")
    return int(found[1]) * 1024


def count_peak(fn, *, on=None):
    """Run ``fn()`` and add up live tensors as they come and go: a ``Peak`` in exact bytes, the same
    on every machine.

    Every storage counts once, however many tensors view it, in whole blocks of 512 bytes, from the
    operation that makes it until its last owner lets go: a variable, a graph of autograd, a
    gradient. What was alive before belongs to start_bytes; where ``fn`` lets some of it go, the
    count falls. parts: what was alive at the peak, by the operation that made it, largest first.
    on: count this device alone ("cpu", "cuda", "cuda:1"); None: all.

    Not seen: memory that a kernel takes and returns within one operation, memory that PyTorch did
    not allocate (NumPy's, mapped files, Python's), other threads, the inside of compiled functions.
    TypeError for what cannot be called and for sparse tensors.
    """
    _require_callable(fn)
    with Counter(on) as counter:
        result = fn()
    parts = {}
    for storage in counter.at_peak():
        parts[str(storage.label)] = parts.get(str(storage.label), 0) + storage.bytes
    parts = sorted(parts.items(), key=lambda part: -part[1])
    if let_go := sum(n for _, n in parts) - counter.peak:
        parts.append(("there before, let go", -let_go))
    return Peak(
        "counted (tensor bytes)", counter.start, counter.peak, result, tuple(parts), NOT_COUNTED
    )


def predict_peak(
    config,
    length,
    device="cuda",
    *,
    batch=1,
    training=True,
    optimizer="adam",
    dtype=torch.float32,
    exact=False,
):
    """What a training step of ``ReformerLM(config)`` on ``batch`` sequences of ``length`` tokens
    will take: a ``Peak``.

    The model is built, run, differentiated and stepped as usual, but on *meta* tensors, which have
    a shape and no contents: nothing is allocated, no GPU needed. Live bytes are counted as by
    `count_peak`. device: "cuda" or "cpu", whose sizes of blocks and loops of the optimizer are
    used. optimizer: "adam", "sgd" (plain) or None. dtype: of weights, streams, gradients and
    optimizer alike. training=False: the loss alone, without gradients. A length beyond
    ``config.max_length`` is predicted for the same model made longer.

    The peak is affine in the length once a sequence outgrows every block and slice. Where a
    prediction would take minutes, it is therefore extrapolated part by part from two shorter
    lengths, and `kind` says so; not if ``exact``.

    parts: parameters (with buffers), gradients, optimizer; streams: tensors of the size of a
    residual stream, (batch, length, d_model), or of two; working set: the rest. All that is alive
    at the peak, when few gradients may exist. ValueError or TypeError for arguments outside this.
    """
    require_config(config)
    length, batch = require_int("length", length, 1, LARGEST_ARRAY), require_int("batch", batch)
    require_room(batch=batch, length=length)
    if length < 2:
        raise ValueError(
            f"length must be at least 2, so that there is a token to predict, got {length}"
        )
    (
        require_choice("device", device, ("cpu", "cuda")),
        require_choice("optimizer", optimizer, tuple(OPTIMIZERS)),
    )
    (
        require_choice("dtype", dtype, DTYPES),
        require_bool("training", training),
        require_bool("exact", exact),
    )
    config = lengthened(config, length)
    run = (device, batch, training, optimizer, dtype)
    name = f"{str(dtype).removeprefix('torch.')}, as on {device}"
    short = _affine_from(config, device)
    if exact or short is None or length <= 4 * short:
        parts = _predict(config, length, *run)
    else:
        low, high = _predict(config, short, *run), _predict(config, 2 * short, *run)
        parts = tuple(
            (part, round(a + (b - a) * (length / short - 1)))
            for (part, a), (_, b) in zip(low, high, strict=True)
        )
        name += f", extrapolated from {short} and {2 * short} tokens"
    return Peak(f"predicted ({name})", 0, sum(n for _, n in parts), config, parts, NOT_PREDICTED)


def lengthened(config, length):
    """``config``, or where ``length`` is beyond its ``max_length`` the same model for sequences of
    that length.
    """
    if require_int("length", length, 1, LARGEST_ARRAY) <= require_config(config).max_length:
        return config
    axes = len(config.axial_shape or ())  # two axes get a new shape, and keep their widths
    return replace(
        config,
        max_length=length,
        axial_shape=None,
        axial_dims=config.axial_dims if axes == 2 else None,
    )


def _affine_from(config, device):
    """A length from which on the peak is affine in the length; None for dense attention all at
    once, which is quick.
    """
    if config.dense_block is None and {"dense", "regular"} & set(config.layers):
        return None
    scores = min(
        o.chunk_length * (o.chunks_before + 1 + o.chunks_after) for o in (config.lsh, config.local)
    )
    slices = (n or 1 for n in (config.ff_chunk, config.loss_chunk, config.dense_block))
    longest = max(
        SCORES_AT_A_TIME[device] // scores, 1 << 16, *slices
    )  # a block of one head, a group of heads, a slice
    return 1 << (longest - 1).bit_length()


@lru_cache(maxsize=256)
def _predict(config, length, device, batch, training, optimizer, dtype):
    """The parts of the peak: (name, bytes) pairs in the order of PARTS."""
    with MetaCounter() as counter, _blocks_as_on(device):
        with torch.device("meta"):
            model = ReformerLM(config).to(dtype).train(training)
            tokens = torch.zeros(batch, length, dtype=torch.int64)
        counter.tag([*model.parameters(), *model.buffers()], "parameters")
        stepper = _optimizer(optimizer if training else None, model, device, counter)
        counter.forget_peak()
        with torch.set_grad_enabled(training):
            loss = model.loss(tokens, None if config.causal else tokens)
        if training:
            loss.backward()
            counter.tag([p.grad for p in model.parameters() if p.grad is not None], "gradients")
        if stepper is not None:
            stepper.step()
    stream = batch * length * config.d_model * dtype.itemsize
    streams = [-(-n * stream // BLOCK) * BLOCK for n in (1, 2)]
    parts = dict.fromkeys(PARTS, 0)
    for storage in counter.at_peak():
        size = "streams" if storage.bytes in streams else "working set"
        parts[storage.label if storage.label in PARTS else size] += storage.bytes
    return tuple(parts.items())


def _optimizer(name, model, device, counter):
    """An optimizer of the model, with the state that it has after its first step; None without a
    name.
    """
    if name is None:
        return None
    # the default on CUDA is to update all parameters in one go, with temporary copies of all of
    # them
    stepper = OPTIMIZERS[name](model.parameters(), lr=1e-3, foreach=device == "cuda")
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    stepper.step()
    stepper.zero_grad(set_to_none=True)
    states = (s for state in stepper.state.values() for s in state.values())
    counter.tag((s for s in states if isinstance(s, torch.Tensor)), "optimizer")
    return stepper


@contextmanager
def _blocks_as_on(device):
    """Attention on meta tensors works in blocks of the size that it chooses on ``device``."""
    before = dict(SCORES_AT_A_TIME)
    SCORES_AT_A_TIME["meta"] = SCORES_AT_A_TIME[device]
    try:
        yield
    finally:
        SCORES_AT_A_TIME.clear()
        SCORES_AT_A_TIME.update(before)


def _require_callable(fn):
    if not callable(fn):
        raise TypeError(
            f"fn must be a function without arguments, got {shown(fn)} ({type(fn).__name__})"
        )
