"""Counted memory: which tensors are alive, operation by operation.

PyTorch names the class to build on in its notes on extending it, though its module begins with an
underscore.
"""

import gc
import math
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import ClassVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from reformer_ref._arguments import require_callable
from reformer_ref.memory.measure import Peak, as_device

BLOCK = 512  # bytes: the CUDA allocator gives memory out in these
NOT_COUNTED = (
    "work space inside kernels (sorting, matrix products); what the allocator loses to fragments"
)


def count_peak(fn: Callable[[], object], *, on: str | torch.device | None = None) -> Peak:
    """Run ``fn()`` and add up live tensors as they come and go: exact bytes, the same on every
    machine.

    Every storage counts once, however many tensors view it, in whole blocks of 512 bytes, from the
    operation that makes it until its last owner lets go: a variable, a graph of autograd, a
    gradient. What was alive before belongs to start_bytes; where ``fn`` frees some of it, the count
    falls. Not seen: memory that a kernel takes and returns within one operation, memory that
    PyTorch did not allocate (NumPy's, mapped files, Python's), other threads, the inside of
    compiled functions.

    Args:
        fn: a function without arguments.
        on: count this device alone ("cpu", "cuda", "cuda:1"); None: all.

    Returns:
        A Peak whose breakdown is what was alive at the peak, by the operation that made it, largest
        first.

    Raises:
        TypeError: ``fn`` cannot be called, or makes sparse tensors.
    """
    require_callable("fn", fn, " without arguments")
    with Counter(on) as counter:
        result = fn()
    sizes: dict[str, int] = {}
    for storage in counter.at_peak():
        sizes[str(storage.label)] = sizes.get(str(storage.label), 0) + storage.bytes
    breakdown = sorted(sizes.items(), key=lambda entry: -entry[1])
    if freed := sum(sizes.values()) - counter.peak:
        breakdown.append(("there before, let go", -freed))
    return Peak(
        "counted (tensor bytes)", counter.start, counter.peak, result, tuple(breakdown), NOT_COUNTED
    )


class Storage(weakref.ref):
    """Watches a storage: its bytes, what made it, and when it came and went by the counter's clock
    (0: before).
    """

    __slots__ = ("born", "bytes", "died", "key", "label")


def storage_bytes(storage):
    """Return the bytes of a storage in whole blocks; 0 for memory that is not PyTorch's."""
    return -(-storage.nbytes() // BLOCK) * BLOCK if storage.resizable() else 0


class Counter(TorchDispatchMode):
    """While active, sees every operation below autograd, backward included, and knows which
    storages are alive.

    A storage counts once, however many tensors view it, in whole blocks, from the operation that
    makes it until its last owner lets go. start: bytes alive before, as far as Python reaches;
    live, peak: bytes above that, now and at most. on: the device to count on, None for all.
    """

    def __init__(self, on=None):
        super().__init__()
        self.on = None if on is None else as_device("on", on)
        self.alive, self.seen = {}, []  # address -> Storage; all that came after the start
        self.start = self.live = self.peak = self.clock = self.peak_at = 0

    @classmethod
    def _should_skip_dynamo(cls):
        return False  # else PyTorch would pass every operation through its compiler

    def __enter__(self):
        gc.collect()
        # By type: isinstance asks the object itself, and lazy modules answer by loading.
        for thing in gc.get_objects():
            if issubclass(type(thing), torch.Tensor):
                # sparse and lazy tensors have no storage
                with suppress(NotImplementedError, RuntimeError, TypeError, ValueError):
                    self.see(thing, None)
        return super().__enter__()

    def __exit__(self, *error):
        self.alive.clear()  # what dies from now on is not counted
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        # torch.tensor([...]) fills a storage unseen and hands it to this operation first
        label = func if func is torch.ops.aten.lift_fresh.default else None
        for tensor in tensors_in((args, kwargs)):
            self.see(tensor, label)
        result = func(*args, **kwargs)
        for tensor in tensors_in(result):
            self.see(tensor, func)
        return result

    def see(self, tensor, label):
        """Count the storage of ``tensor`` unless it is known. label: what made it; None: it was
        there already.
        """
        if tensor.layout is not torch.strided:
            raise TypeError(
                f"memory is counted for strided tensors, got one of layout {tensor.layout}"
            )
        if self.on is not None and self.on not in (tensor.device, torch.device(tensor.device.type)):
            return
        storage = tensor.untyped_storage()
        size = storage_bytes(storage)
        known = self.alive.get(storage._cdata)
        if known is not None:
            if known.bytes == size:
                return
            label = known.label if label is None else label  # resized in place
            self._gone(known)
        self._watch(storage, size, label)

    def _watch(self, storage, size, label):
        watch = Storage(storage, self._gone)
        watch.bytes = size
        watch.label = label
        watch.key = storage._cdata
        watch.born = 0
        watch.died = math.inf
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
        if self.alive.get(watch.key) is watch:
            del self.alive[watch.key]
            self.clock += 1
            watch.died = self.clock
            self.live -= watch.bytes

    def forget_peak(self):
        """Look for the peak from this moment on."""
        self.peak, self.peak_at = self.live, self.clock

    def tag(self, tensors, label):
        """Call the storages of ``tensors`` by this name from now on."""
        for tensor in tensors:
            watch = self.alive.get(tensor.untyped_storage()._cdata)
            if watch is not None:
                watch.label = label

    def alive_at_peak(self, start, end):
        """The storages that were alive at the peak between two times of the clock."""
        changes = [(watch.born, watch.bytes) for watch in self.seen]
        changes += [(watch.died, -watch.bytes) for watch in self.seen if watch.died <= end]
        live = 0
        peak, peak_at = -1, start
        for clock, change in sorted(changes):
            if clock > end:
                break
            live += change
            if clock <= start or live > peak:  # until start: what is alive there
                peak, peak_at = live, max(clock, start)
        return [watch for watch in self.seen if watch.born <= peak_at < watch.died]

    def at_peak(self):
        """The storages that came after the start and were alive at the peak."""
        return [watch for watch in self.seen if watch.born <= self.peak_at < watch.died]


class Operations(TorchDispatchMode):
    """While active, adds up the floating-point operations of matrix products, two for a
    multiply-add: ``count``.

    By PyTorch's own formulas; its FlopCounterMode hooks into modules, which ``autograd.grad`` in a
    backward pass, as reversible layers have it, does not allow.
    """

    def __init__(self):
        from torch.utils.flop_counter import flop_registry  # it imports triton, which takes long

        super().__init__()
        self.formulas = flop_registry
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if formula := self.formulas.get(func._overloadpacket):
            self.count += formula(*args, **kwargs, out_val=result)
        return result


class MetaCounter(Counter):
    """Count meta tensors, of which nothing is computed: the shapes that an operation returns are
    worked out once and remembered.

    PyTorch takes up to a millisecond to find the shape of a result, and a model repeats the same
    operations in every layer, head and block.
    """

    # (operation, shapes and values of its arguments) -> what it returns
    _remembered: ClassVar[dict] = {}
    _MOST_REMEMBERED = 1 << 18

    def __init__(self):
        super().__init__("meta")

    def __enter__(self):
        return TorchDispatchMode.__enter__(self)  # nothing was there before: no search for it

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.is_view:  # no new storage
            return func(*args, **kwargs)
        key = _signature(func, args, kwargs)
        returns = None if key is None else self._remembered.get(key)
        if returns is None:
            result = super().__torch_dispatch__(func, types, args, kwargs)
            if key is not None and key == _signature(func, args, kwargs):  # nothing was resized
                if len(self._remembered) >= self._MOST_REMEMBERED:
                    self._remembered.clear()
                target = kwargs.get("out", args[0] if args else None)
                self._remembered[key] = _returns(result, target, func._schema.is_mutable)
            return result
        kind, made = returns
        results = [self._make(entry, func, args, kwargs) for entry in made]
        return kind(results) if kind else results[0]

    def _make(self, entry, func, args, kwargs):
        """Make a result again: for … the argument that was written to, else a new tensor."""
        if entry is None:
            return None
        if entry is ...:
            return kwargs.get("out", args[0] if args else None)
        shape, stride, dtype, size = entry
        tensor = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
        self._watch(tensor.untyped_storage(), size, func)
        return tensor


def tensors_in(value):
    """All tensors in nested tuples, lists and dicts, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        yield from tensors_in(tuple(value.values()))


def _signature(func, args, kwargs):
    """Return what the shapes of an operation's results depend on, hashable; None if a tensor in it
    is no meta tensor or if the operation may change the shape of its arguments.
    """
    if torch.Tag.inplace_view in func.tags:
        return None
    key = [func]
    values = [*args, *kwargs, *kwargs.values()] if kwargs else list(args)
    for value in values:
        kind = value.__class__
        if kind is torch.Tensor or kind is torch.nn.Parameter:
            if not value.is_meta:
                return None
            key += (value.shape, value.stride(), value.dtype)
        elif isinstance(value, torch.Tensor):  # a subclass may do anything
            return None
        elif kind is tuple or kind is list:
            key.append(len(value))
            values += value  # the loop goes on over them
        else:
            key += (kind, value)  # the kind: 1 and True are equal
    return tuple(key)


def _returns(result, target, is_mutable):
    """Return (tuple, list or None for a single result; for each result its shape, strides, dtype
    and bytes, … for the argument written to, or None for None); None for what cannot be made again.
    """
    made, kind = [], type(result) if isinstance(result, (tuple, list)) else None
    for r in result if kind else (result,):
        if r is None or r is target:
            made.append(r if r is None else ...)
        elif isinstance(r, torch.Tensor) and r.is_meta and not is_mutable:
            made.append((r.shape, r.stride(), r.dtype, storage_bytes(r.untyped_storage())))
        else:
            return None
    return kind, made
