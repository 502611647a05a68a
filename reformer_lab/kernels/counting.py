"""Count what Triton kernels do while Triton's interpreter runs them on the CPU, and what PyTorch's operations do.

    with counting() as counts:
        kernel[grid](…)
    counts.bytes_read, counts.bytes_written, counts.loads["q"].elements

The interpreter performs every load, store and matrix product of a kernel by a method of one class. ``counting`` puts a
counter around these methods and takes it away again. It counts what a kernel asks for: a GPU may answer a load from
its cache. Nothing is estimated. ``OperationCounter`` is the same for PyTorch without a kernel.
"""

import functools
from collections import defaultdict
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from unittest import mock

import numpy as np
from reformer_ref._arguments import require_bool
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

UNKNOWN = "unknown"  # the argument, where an address was not computed from an argument of the kernel
POINTER_METHODS = ("create_addptr", "create_splat", "create_broadcast", "create_expand_dims", "create_reshape")
ACCESS_METHODS = ("create_masked_load", "create_masked_store", "create_atomic_rmw", "create_atomic_cas")
OTHER_METHODS = ("create_dot", "set_grid_idx")


@dataclass
class Traffic:
    """Loads or stores through one argument of a kernel.

    Attributes:
        operations: loads or stores, each of a whole block of addresses.
        elements: addresses that the masks let through.
        bytes: the size of these elements.
    """

    operations: int = 0
    elements: int = 0
    bytes: int = 0


@dataclass
class Access:
    """One load or store: by which program of which launch, through which argument, and to which of its elements.

    Attributes:
        kind: "load" or "store".
        launch: number of the launch, from 0.
        program: number of the program in its launch, from 0.
        argument: name of the kernel's argument.
        elements: distances from the pointer that was passed, in elements; those that the mask lets through.
    """

    kind: str
    launch: int
    program: int
    argument: str
    elements: np.ndarray


@dataclass
class Counts:
    """What kernels did.

    Attributes:
        launches: kernels launched.
        programs: programs run, over all launches.
        loads: ``Traffic`` of loads, by the name of the argument that the address was computed from.
        stores: the same for stores.
        dots: matrix products.
        dot_operations: multiplications and additions in them, 2 · m · n · k each.
        atomics: atomic operations, which are in neither ``loads`` nor ``stores``.
        accesses: every single load and store, if asked for.
    """

    launches: int = 0
    programs: int = 0
    loads: dict[str, Traffic] = field(default_factory=lambda: defaultdict(Traffic))
    stores: dict[str, Traffic] = field(default_factory=lambda: defaultdict(Traffic))
    dots: int = 0
    dot_operations: int = 0
    atomics: int = 0
    accesses: list[Access] = field(default_factory=list)

    @property
    def bytes_read(self) -> int:
        """Bytes of all loads."""
        return sum(traffic.bytes for traffic in self.loads.values())

    @property
    def bytes_written(self) -> int:
        """Bytes of all stores."""
        return sum(traffic.bytes for traffic in self.stores.values())

    def rows(self, kind: str, argument: str, length: int, d: int, launch: int = 0) -> np.ndarray:
        """How often each program loads or stores each row of a table (length, d): int (programs, length).

        Args:
            kind: "load" or "store".
            argument: name of the kernel's argument, a pointer to a contiguous table.
            length: number of rows.
            d: elements of a row.
            launch: number of the launch, from 0.
        """
        chosen = [a for a in self.accesses if (a.kind, a.argument, a.launch) == (kind, argument, launch)]
        programs = 1 + max((a.program for a in self.accesses if a.launch == launch), default=-1)
        times = np.zeros((programs, length), dtype=int)
        for access in chosen:
            times[access.program, np.unique(access.elements // d)] += 1
        return times


@contextmanager
def counting(accesses: bool = False):
    """Count loads, stores, matrix products, programs and launches of interpreted Triton kernels.

    Args:
        accesses: whether to keep every load and store in ``Counts.accesses``, with its addresses.

    Yields:
        ``Counts``, which grow with every kernel that runs inside the ``with`` block.

    Raises:
        ImportError: triton is not installed.
        RuntimeError: kernels are compiled, not interpreted; or this release of triton has another interpreter.
    """
    require_bool("accesses", accesses)
    interpreter = _interpreter()
    builder = interpreter.InterpreterBuilder
    counter = _Counter(accesses)
    wrappers = {
        "create_masked_load": counter.of_loads,
        "create_masked_store": counter.of_stores,
        "create_dot": counter.of_dots,
        "create_atomic_rmw": counter.of_atomics,
        "create_atomic_cas": counter.of_atomics,
        "set_grid_idx": counter.of_programs,
    }
    wrappers |= dict.fromkeys(POINTER_METHODS, _keep_argument)
    launch = counter.of_launches(interpreter.GridExecutor.__call__)
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(interpreter.GridExecutor, "__call__", launch))
        for name, wrapper in wrappers.items():
            stack.enter_context(mock.patch.object(builder, name, wrapper(getattr(builder, name))))
        yield counter.counts


class _Counter:
    """Wrappers of the interpreter's methods that count in ``counts``."""

    def __init__(self, accesses):
        self.counts = Counts()
        self.accesses = accesses
        self.program = -1  # the number of the running program in its launch

    def of_launches(self, launch):
        @functools.wraps(launch)
        def counted(executor, *args, **kwargs):
            grid = executor.grid

            # The interpreter hands all arguments of a kernel to a grid that is a function: give every pointer the name
            # of its argument, and remember the address.
            def named_grid(arguments):
                for name, argument in arguments.items():
                    handle = getattr(argument, "handle", None)
                    if handle is not None and argument.dtype.is_ptr():
                        handle.set_attr("argument", (name, int(handle.data.flat[0])))
                return grid(arguments) if callable(grid) else grid

            self.counts.launches += 1
            self.program = -1
            with mock.patch.object(executor, "grid", named_grid):
                return launch(executor, *args, **kwargs)

        return counted

    def of_programs(self, set_program):
        @functools.wraps(set_program)
        def counted(builder, *args, **kwargs):
            self.counts.programs += 1
            self.program += 1
            return set_program(builder, *args, **kwargs)

        return counted

    def of_loads(self, load):
        @functools.wraps(load)
        def counted(builder, pointers, mask, *args, **kwargs):
            self._count("load", self.counts.loads, pointers, mask)
            return load(builder, pointers, mask, *args, **kwargs)

        return counted

    def of_stores(self, store):
        @functools.wraps(store)
        def counted(builder, pointers, value, mask, *args, **kwargs):
            self._count("store", self.counts.stores, pointers, mask)
            return store(builder, pointers, value, mask, *args, **kwargs)

        return counted

    def _count(self, kind, table, pointers, mask):
        name, start = pointers.attr.get("argument", (UNKNOWN, 0))
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        addresses = pointers.data[np.broadcast_to(mask.data, pointers.data.shape)]
        table[name].operations += 1
        table[name].elements += addresses.size
        table[name].bytes += addresses.size * size
        if self.accesses:
            elements = (addresses.astype(np.int64) - start) // size
            launch = self.counts.launches - 1
            self.counts.accesses.append(Access(kind, launch, self.program, name, elements))

    def of_dots(self, dot):
        @functools.wraps(dot)
        def counted(builder, a, b, *args, **kwargs):  # (m, k) · (k, n)
            self.counts.dots += 1
            self.counts.dot_operations += 2 * a.data.size * b.data.shape[-1]
            return dot(builder, a, b, *args, **kwargs)

        return counted

    def of_atomics(self, method):
        @functools.wraps(method)
        def counted(builder, *args, **kwargs):
            self.counts.atomics += 1
            return method(builder, *args, **kwargs)

        return counted


def _keep_argument(method):
    """The method of the interpreter; an address that it computes from a pointer keeps the name of its argument."""

    @functools.wraps(method)
    def named(builder, *args, **kwargs):
        result = method(builder, *args, **kwargs)
        for handle in args:
            attributes = getattr(handle, "attr", {})
            if "argument" in attributes:
                result.set_attr("argument", attributes["argument"])
        return result

    return named


class OperationCounter(TorchDispatchMode):
    """Count the operations of PyTorch, and what they read and write.

    Each operation reads the elements of its inputs once and writes those of its results once; views do neither. (A
    matrix product that does not fit the caches reads more.) Operations of other libraries are not counted.

    Attributes:
        operations: number of operations, views excepted.
        bytes_read: bytes of their inputs.
        bytes_written: bytes of their results.
    """

    def __init__(self):
        super().__init__()
        self.operations = 0
        self.bytes_read = 0
        self.bytes_written = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run an operation, and count it."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func._overloadpacket.__name__
        if (
            func.namespace == "aten"
            and not func.is_view
            and not name.startswith(("empty", "new_empty", "_unsafe_view"))
        ):
            self.operations += 1
            self.bytes_read += _bytes((args, kwargs))
            self.bytes_written += _bytes(result)
        return result


def _bytes(tensors):
    """The size of all tensors; what is expanded is in memory once."""
    total = 0
    for tensor in tree_leaves(tensors):
        if isinstance(tensor, Tensor):
            sizes = [n for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride != 0]
            total += int(np.prod(sizes, dtype=np.int64)) * tensor.element_size()
    return total


def _interpreter():
    """Triton's interpreter; ImportError or RuntimeError if kernels cannot be counted."""
    try:
        import triton
        from triton.runtime import interpreter
    except ImportError:
        raise ImportError("counting needs triton (Linux): pip install 'reformer_ref[kernels]'") from None

    from reformer_ref._kernels import INTERPRETED

    if not INTERPRETED:
        raise RuntimeError(
            "counting needs interpreted kernels: set TRITON_INTERPRET=1 before Python imports triton and reformer_ref"
        )
    methods = (*POINTER_METHODS, *ACCESS_METHODS, *OTHER_METHODS)
    builder = getattr(interpreter, "InterpreterBuilder", None)
    missing = [name for name in methods if not hasattr(builder, name)]
    missing += [] if hasattr(interpreter, "GridExecutor") else ["GridExecutor"]
    if missing:
        raise RuntimeError(
            f"counting was written for the interpreter of triton 3.6; that of triton {triton.__version__} has no "
            f"{', '.join(missing)}"
        )
    return interpreter
