"""How much memory a computation takes: *measured*, *counted* or *predicted*, three figures that are never confused.

``measure_peak`` runs a function and asks the machine: the CUDA allocator, or on a CPU the process's resident memory, with
everything in it: kernels' work space, freed memory that the allocator keeps, code paged in. ``count_peak`` runs it and
adds up the live tensors, exactly and the same on every machine. ``predict_peak`` counts a training step of a whole model
on tensors without contents, so for models and lengths that no machine at hand could run.
"""

import gc
import os
import re
import sys
import weakref
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from torch.utils._python_dispatch import TorchDispatchMode  # the place that PyTorch's own "Extending PyTorch" names

from reformer_ref.lsh_attention.streaming import SCORES_AT_A_TIME
from reformer_ref.model.config import ReformerConfig
from reformer_ref.model.pytorch import ReformerLM
from reformer_ref.validate import require_bool, require_choice, require_int

BLOCK = 512  # bytes: the CUDA allocator gives memory out in these
NOT_COUNTED = (
    "kernels' own work space (sorting, matrix products), the allocator's rounding and fragmentation beyond 512 bytes"
)
NOT_PREDICTED = f"{NOT_COUNTED}, the CUDA context (some 0.3 to 0.6 GB), checks of inputs for NaN, whatever else runs"
PARTS = ("parameters", "gradients", "optimizer", "streams", "working set")
UNITS = {f"{prefix}{end}": base**power for power, prefix in enumerate(["", "K", "M", "G", "T", "P"])
         for base, end in ((1000, "B"), (1024, "iB")) if prefix or end == "B"}  # fmt: skip


@dataclass(frozen=True)
class Peak:
    """The largest amount of memory in use at any moment of a run, in bytes.

    kind: how it was found, "measured (…)", "counted (…)" or "predicted (…)". start_bytes: in use before;
    above_start_bytes: what the run added at its peak; peak_bytes: the sum. result: what the function returned.
    parts: (name, bytes) pairs, largest first where there is no other order, that add up to above_start_bytes; empty if
    measured. excludes: what the figure does not hold.
    """

    kind: str
    start_bytes: int
    above_start_bytes: int
    result: object = field(default=None, repr=False)
    parts: tuple = field(default=(), repr=False)
    excludes: str = field(default="", repr=False)

    @property
    def peak_bytes(self):
        """start_bytes + above_start_bytes."""
        return self.start_bytes + self.above_start_bytes

    def __str__(self):
        return f"{format_bytes(self.above_start_bytes)} above its start, {self.kind}"


def measure_peak(fn, device=None):
    """Run ``fn()`` and ask the machine for the peak: a ``Peak``.

    device: "cuda" asks PyTorch's CUDA allocator; "cpu" the operating system for the resident memory of this process (RSS);
    None: "cuda" where there is one. On Linux the high-water mark of the RSS is set back first. Elsewhere only the
    peak since the process began is known: the figure is then what ``fn`` added to the highest peak before it, hence a
    lower bound, and ``kind`` says so. RSS moves by pages and keeps some memory that was freed: measure large things, in
    a fresh process. RuntimeError where the system offers neither, TypeError for what cannot be called.
    """
    _require_callable(fn)
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device is None else device)
    require_choice("device", device.type, ("cpu", "cuda"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError('device="cuda": there is no CUDA device here; predict_peak needs none')
    gc.collect()
    start, read, kind = _cuda_meter(device) if device.type == "cuda" else _process_meter()
    result = fn()
    return Peak(f"measured ({kind})", start, max(0, read() - start), result)


def _cuda_meter(device):
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)

    def read():
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)

    return torch.cuda.memory_allocated(device), read, f"CUDA allocator, {torch.cuda.get_device_name(device)}"


def _process_meter():
    try:
        _trim_heap()
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # proc(5): sets the high-water mark back to what is resident now
        return _status("VmRSS"), lambda: _status("VmHWM"), "process RSS"
    except (OSError, ValueError):
        try:
            import resource
        except ModuleNotFoundError:
            raise RuntimeError(
                f"the memory of a process cannot be measured on {sys.platform}; count_peak can"
            ) from None
    unit = 1 if sys.platform == "darwin" else 1024

    def read():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    return read(), read, "process RSS beyond its earlier peak, a lower bound"


def _trim_heap():
    """Give freed memory back to the system, else ``fn`` would use it unseen (glibc only)."""
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
    """Run ``fn()`` and add up live tensors as they come and go: a ``Peak`` of exact bytes, the same on every machine.

    Every storage counts once, however many tensors view it, in whole blocks of 512 bytes, from the operation that makes
    it until its last owner lets go: a variable, a graph of autograd, a gradient. Tensors alive before belong to
    start_bytes; where ``fn`` lets one go, the count falls. parts: what was alive at the peak by the operation that made
    it. on: count only this device ("cpu", "cuda:1"); None: all.

    Not seen: memory that kernels take and return within one operation, the C++ heap, memory that PyTorch did not allocate
    (NumPy's, mapped files), other threads, the inside of compiled functions. TypeError for sparse tensors.
    """
    _require_callable(fn)
    counter = _Counter(on)
    with counter:
        result = fn()
    parts = {}
    for storage in counter.at_peak():
        parts[storage.label] = parts.get(storage.label, 0) + storage.bytes
    parts = sorted(((str(label), n) for label, n in parts.items()), key=lambda part: -part[1])
    if counter.peak != sum(n for _, n in parts):
        parts.append(("alive before, let go", counter.peak - sum(n for _, n in parts)))
    return Peak("counted (tensor bytes)", counter.start, counter.peak, result, tuple(parts), NOT_COUNTED)


class _Storage(weakref.ref):
    """Watches one storage: its size in blocks, who made it, when it came (−1: before the start) and went."""

    __slots__ = ("born", "bytes", "died", "key", "label")


class _Counter(TorchDispatchMode):
    """Sees every operation below autograd, backward included, and knows which storages are alive."""

    def __init__(self, on=None):
        super().__init__()
        self.on = None if on is None else torch.device(on)
        self.alive, self.seen = {}, []  # address -> _Storage; all that came after the start
        self.start = self.live = self.peak = self.clock = self.peak_at = 0

    def __enter__(self):
        gc.collect()
        for thing in gc.get_objects():  # isinstance would ask the thing itself, which lazy modules answer by loading
            if issubclass(type(thing), torch.Tensor) and thing.layout is torch.strided:
                self._see(thing, None)
        return super().__enter__()

    def __exit__(self, *error):
        self.alive.clear()  # whatever dies from now on is not our business
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        # torch.tensor([...]) fills a storage unseen and hands it to this operation first
        label = func if func is torch.ops.aten.lift_fresh.default else None
        for tensor in _tensors((args, kwargs)):
            self._see(tensor, label)
        result = func(*args, **kwargs)
        for tensor in _tensors(result):
            self._see(tensor, func)
        return result

    def tag(self, tensors, label):
        """Call the storages of ``tensors`` by this name from now on."""
        for tensor in tensors:
            storage = self.alive.get(tensor.untyped_storage()._cdata)
            if storage is not None:
                storage.label = label

    def forget_peak(self):
        """Look for the peak from here on."""
        self.peak, self.peak_at = self.live, self.clock

    def at_peak(self):
        """The storages that came after the start and were alive at the peak."""
        return [s for s in self.seen if s.born <= self.peak_at < s.died]

    def _see(self, tensor, label):
        """A tensor in the hands of an operation. label: what made it, None: it was there already."""
        if tensor.layout is not torch.strided:
            raise TypeError(f"count_peak follows strided tensors, got one of layout {tensor.layout}")
        if self.on is not None and self.on not in (tensor.device, torch.device(tensor.device.type)):
            return
        storage = tensor.untyped_storage()
        known = self.alive.get(storage._cdata)
        size = -(-storage.nbytes() // BLOCK) * BLOCK
        if known is not None and known.bytes == size:
            return
        if known is not None:  # resized in place
            label = known.label if label is None else label
            self._gone(known)
        if not storage.resizable():  # not allocated by PyTorch
            size = 0
        watch = _Storage(storage, self._gone)
        watch.bytes, watch.label, watch.key, watch.born, watch.died = size, label, storage._cdata, -1, float("inf")
        self.alive[watch.key] = watch
        if label is None:
            self.start += size
            return
        self.clock += 1
        watch.born = self.clock
        self.seen.append(watch)
        self.live += size
        if self.live > self.peak:
            self.forget_peak()

    def _gone(self, watch):
        if self.alive.get(watch.key) is not watch:
            return
        del self.alive[watch.key]
        self.clock += 1
        watch.died = self.clock
        self.live -= watch.bytes


class _MetaCounter(_Counter):
    """The same for meta tensors, where nothing is computed: what an operation returns is worked out once.

    PyTorch takes up to a millisecond to find the shape of a result, and a long sequence is a hundred thousand equal steps.
    """

    def __init__(self):
        super().__init__("meta")
        self.returns = {}  # (operation, shapes and values of its arguments) -> what it returns

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.is_view:  # no new storage
            return func(*args, **kwargs)
        key = None if torch.Tag.inplace_view in func.tags else _signature((func, args, kwargs))
        made = self.returns.get(key)
        if made is None:
            result = super().__torch_dispatch__(func, types, args, kwargs)
            if key is not None:
                self.returns[key] = self._made(result, args[0] if args else None, func._schema.is_mutable)
            return result
        kind, made = made
        results = [
            args[0] if m is ... else m and torch.empty_strided(m[0], m[1], dtype=m[2], device="meta") for m in made
        ]
        for tensor in _tensors(results):
            self._see(tensor, func)
        return kind(results) if kind else results[0]

    def _made(self, result, first, is_mutable):
        """(tuple, list or None for a single one; for each result its shape, … for the first argument, None for None)."""
        made, kind = [], type(result) if isinstance(result, (tuple, list)) else None
        for r in result if kind else (result,):
            if r is None or r is first:
                made.append(r if r is None else ...)
            elif isinstance(r, torch.Tensor) and r.is_meta and not is_mutable:
                made.append((r.shape, r.stride(), r.dtype))
            else:
                return None
        return kind, made


def _signature(value):
    """What the shapes of an operation's results depend on, hashable; None for what is unknown or no meta tensor."""
    if isinstance(value, torch.Tensor):
        return (value.shape, value.stride(), value.dtype) if value.is_meta else None
    if isinstance(value, dict):
        value = tuple(value.items())
    if isinstance(value, (tuple, list)):
        items = tuple(map(_signature, value))
        return None if None in items else items
    return type(value), value


def _require_callable(fn):
    if not callable(fn):
        raise TypeError(f"fn must be a function without arguments, got {fn!r} ({type(fn).__name__})")


def _tensors(value):
    """All tensors in nested tuples, lists and dicts."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))


OPTIMIZERS = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD, None: None}
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def predict_peak(
    config, length, device="cuda", *, batch=1, training=True, optimizer="adam", dtype=torch.float32, exact=False
):
    """What a training step of ``ReformerLM(config)`` on ``batch`` sequences of ``length`` tokens will take: a ``Peak``.

    The model is built, run, differentiated and stepped as usual, but on *meta* tensors, which have shapes and no contents:
    nothing is allocated and no GPU is needed. Live bytes are counted as by `count_peak`. device: "cuda" or "cpu", whose
    block sizes and optimizer loops are used. optimizer: "adam", "sgd" (plain) or None; dtype: of weights, streams,
    gradients and optimizer alike. training=False: the loss alone, without gradients. A length beyond
    ``config.max_length`` is predicted for the same model made longer.

    A peak is affine in the length once a sequence outgrows every block and slice. Where a prediction would take minutes it
    is therefore extrapolated, part by part, from two shorter lengths, and `kind` says so; ``exact`` forbids it.

    parts: parameters (with buffers), gradients, optimizer; streams: tensors of the size of a residual stream, (batch,
    length, d_model), or of two; working set: the rest. Those alive at the peak moment, so gradients may be few.
    ValueError or TypeError for arguments outside this.
    """
    if not isinstance(config, ReformerConfig):
        raise TypeError(f"config must be a ReformerConfig, got {type(config).__name__}")
    length, batch = require_int("length", length), require_int("batch", batch)
    if require_bool("training", training) and length < 2:
        raise ValueError("length must be at least 2, to predict one token, got 1")
    require_choice("device", device, ("cpu", "cuda")), require_choice("optimizer", optimizer, tuple(OPTIMIZERS))
    require_choice("dtype", dtype, DTYPES), require_bool("exact", exact)
    config = lengthened(config, length)
    run = (device, batch, training, optimizer, dtype)
    short = _affine_from(config, device)
    name = f"{str(dtype).removeprefix('torch.')}, as on {device}"
    if exact or short is None or length <= 4 * short:
        parts, kind = _predict(config, length, *run), f"predicted ({name})"
    else:
        low, high = _predict(config, short, *run), _predict(config, 2 * short, *run)
        share = (length - short) / short
        parts = tuple((part, round(a + (b - a) * share)) for (part, a), (_, b) in zip(low, high, strict=True))
        kind = f"predicted ({name}, extrapolated from {short} and {2 * short} tokens)"
    return Peak(kind, 0, sum(n for _, n in parts), config, parts, NOT_PREDICTED)


def lengthened(config, length):
    """``config``, or where ``length`` is beyond its ``max_length`` the same model for sequences of that length."""
    if length <= config.max_length:
        return config
    axes = len(config.axial_shape or ())
    return replace(config, max_length=length, axial_shape=None, axial_dims=config.axial_dims if axes == 2 else None)


def _affine_from(config, device):
    """A length from which on the peak is affine in the length; None for dense attention all at once, which is quick."""
    if config.dense_strip is None and {"dense", "regular"} & set(config.layers):
        return None
    scores = min(o.chunk_length * (o.chunks_before + 1 + o.chunks_after) for o in (config.lsh, config.local))
    slices = (n or 1 for n in (config.ff_slice, config.loss_slice, config.dense_strip))
    longest = max(SCORES_AT_A_TIME[device] // scores, 1 << 16, *slices)  # a block of one head, some heads, a slice
    return 1 << (longest - 1).bit_length()


@lru_cache(maxsize=256)
def _predict(config, length, device, batch, training, optimizer, dtype):
    """The parts of the peak, (name, bytes) in the order of PARTS."""
    counter = _MetaCounter()
    with counter, _blocks_as_on(device):
        with torch.device("meta"):
            model = ReformerLM(config).to(dtype).train(training)
            tokens = torch.zeros(batch, length, dtype=torch.int64)
        counter.tag([*model.parameters(), *model.buffers()], "parameters")
        stepper = _optimizer(optimizer if training else None, model, device, counter)
        counter.forget_peak()
        with torch.set_grad_enabled(training):
            loss = model.loss(tokens)
        if training:
            loss.backward()
            counter.tag([p.grad for p in model.parameters() if p.grad is not None], "gradients")
        if stepper is not None:
            stepper.step()
    stream = batch * length * config.d_model * dtype.itemsize
    stream = [-(-n * stream // BLOCK) * BLOCK for n in (1, 2)]
    parts = dict.fromkeys(PARTS, 0)
    for storage in counter.at_peak():
        default = "streams" if storage.bytes in stream else "working set"
        parts[storage.label if storage.label in PARTS else default] += storage.bytes
    return tuple(parts.items())


def _optimizer(name, model, device, counter):
    """An optimizer of the model, with the state that it has after its first step."""
    if name is None:
        return None
    # on CUDA the default is to update all parameters at once, with temporary copies of all of them
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
    before = SCORES_AT_A_TIME.get("meta")
    SCORES_AT_A_TIME["meta"] = SCORES_AT_A_TIME[device]
    try:
        yield
    finally:
        SCORES_AT_A_TIME.pop("meta")
        if before is not None:
            SCORES_AT_A_TIME["meta"] = before


def format_bytes(n):
    """Three digits and a decimal unit: 16384 -> "16.4 kB"; 1 GB = 10^9 bytes."""
    n, unit = float(n), 0
    while abs(n) >= 999.5 and unit < 5:
        n, unit = n / 1000, unit + 1
    return f"{n:.0f} B" if unit == 0 else f"{n:#.3g}".rstrip(".") + " " + ("kB", "MB", "GB", "TB", "PB")[unit - 1]


def parse_bytes(text):
    """Bytes in a text such as "16GB" (decimal: 16·10^9), "16 GiB" (binary: 16·2^30), "1.5e9"; ValueError for others."""
    match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([A-Za-z]*)\s*", text if isinstance(text, str) else "")
    units = {unit.lower(): size for unit, size in UNITS.items()}
    try:
        size = float(match[1]) * units[match[2].lower() or "b"]
    except (TypeError, KeyError, ValueError):
        raise ValueError(f"a size must look like 16GB (16·10^9 bytes) or 16GiB (16·2^30), got {text!r}") from None
    if not 1 <= size < float("inf"):
        raise ValueError(f"a size must be at least one byte and finite, got {text!r}")
    return int(size)
