"""Which tensors are alive, operation by operation: the counters behind ``memory.count_peak`` and
``predict_peak``.

PyTorch names the class to build on in its notes on extending it, though its module begins with an
underscore.
"""

import gc
import math
import weakref
from contextlib import suppress

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from reformer_ref._arguments import shown

BLOCK = 512  # bytes: the CUDA allocator gives memory out in these


class Storage(weakref.ref):
    """Watches a storage: its bytes, what made it, and when it came and went by the counter's clock
    (0: before).
    """

    __slots__ = ("born", "bytes", "died", "key", "label")


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

    def __enter__(self):
        gc.collect()
        for thing in (
            gc.get_objects()
        ):  # by type: isinstance asks the thing itself, and lazy modules answer by loading
            if issubclass(type(thing), torch.Tensor):
                with suppress(
                    NotImplementedError, RuntimeError, TypeError, ValueError
                ):  # no storage: sparse, lazy
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
        size = (
            -(-storage.nbytes() // BLOCK) * BLOCK if storage.resizable() else 0
        )  # 0: not PyTorch's, NumPy's perhaps
        known = self.alive.get(storage._cdata)
        if known is not None:
            if known.bytes == size:
                return
            label = known.label if label is None else label  # resized in place
            self._gone(known)
        watch = Storage(storage, self._gone)
        watch.bytes, watch.label, watch.key, watch.born, watch.died = (
            size,
            label,
            storage._cdata,
            0,
            math.inf,
        )
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
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if formula := flop_registry.get(func._overloadpacket):
            self.count += formula(*args, **kwargs, out_val=result)
        return result


def as_device(name, device):
    """``device`` as a torch.device; TypeError or ValueError for what is none."""
    if not isinstance(device, (str, torch.device)):
        raise TypeError(f'{name} must be a device such as "cpu" or "cuda:1", got {shown(device)}')
    try:
        return torch.device(device)
    except (RuntimeError, ValueError):
        raise ValueError(
            f'{name} must be a device such as "cpu" or "cuda:1", got {shown(device)}'
        ) from None


class MetaCounter(Counter):
    """The same for meta tensors, where nothing is computed: what an operation returns is worked out
    once.

    PyTorch takes up to a millisecond to find the shape of a result, and a long sequence is 100,000
    equal operations.
    """

    def __init__(self):
        super().__init__("meta")
        self.returns = {}  # (operation, shapes and values of its arguments) -> what it returns

    def __enter__(self):
        return TorchDispatchMode.__enter__(
            self
        )  # all that it counts is made inside: no search for what was there

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.is_view:  # no new storage
            return func(*args, **kwargs)
        key = None if torch.Tag.inplace_view in func.tags else _signature((func, args, kwargs))
        made = self.returns.get(key)
        if made is None:
            result = super().__torch_dispatch__(func, types, args, kwargs)
            if key is not None:
                self.returns[key] = _made(
                    result, args[0] if args else None, func._schema.is_mutable
                )
            return result
        kind, made = made
        results = [
            args[0]
            if m is ...
            else m and torch.empty_strided(m[0], m[1], dtype=m[2], device="meta")
            for m in made
        ]
        for tensor in tensors_in(results):
            self.see(tensor, func)
        return kind(results) if kind else results[0]


def tensors_in(value):
    """All tensors in nested tuples, lists and dicts, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        yield from tensors_in(tuple(value.values()))


def _signature(value):
    """What the shapes of an operation's results depend on, hashable; None if a tensor in it is no
    meta tensor.
    """
    if isinstance(value, torch.Tensor):
        return (value.shape, value.stride(), value.dtype) if value.is_meta else None
    if isinstance(value, dict):
        value = tuple(value.items())
    if isinstance(value, (tuple, list)):
        items = tuple(map(_signature, value))
        return None if None in items else items
    return type(value), value


def _made(result, first, is_mutable):
    """(tuple, list or None for a single result; per result its shape, … for the first argument, or
    None for None).
    """
    made, kind = [], type(result) if isinstance(result, (tuple, list)) else None
    for r in result if kind else (result,):
        if r is None or r is first:
            made.append(r if r is None else ...)
        elif isinstance(r, torch.Tensor) and r.is_meta and not is_mutable:
            made.append((r.shape, r.stride(), r.dtype))
        else:
            return None
    return kind, made
