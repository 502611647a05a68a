"""Tensors that say they are on CUDA, and hold nothing: to follow the CUDA path of a program without a GPU.

They are PyTorch's *meta* tensors. (Its fake CUDA tensors cannot be differentiated, nor indexed, where PyTorch is built
without CUDA.)
"""

from collections import Counter
from contextlib import contextmanager
from unittest.mock import patch

import torch
from reformer_ref import _kernels
from reformer_ref.memory.count import tensors_in
from torch.utils._python_dispatch import TorchDispatchMode

CUDA = torch.device("cuda", 0)
# Operations that start nothing on a GPU: they allocate, or are views by another name.
FREE = {
    "empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "_unsafe_view", "_reshape_alias",
    "lift_fresh", "detach",
}  # fmt: skip
# Operations whose result the host must wait for.
WAIT = {
    "item", "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "nonzero_static", "masked_select",
    "unique", "_unique2", "unique_dim", "unique_consecutive",
}  # fmt: skip


class Waits(AssertionError):
    """The host would wait for the device."""


class Launches(TorchDispatchMode):
    """Counts the kernels that operations launch, by operation; raises Waits where the host would wait."""

    def __init__(self):
        super().__init__()
        self.by_name = Counter()
        self.inside = False  # an operation: PyTorch itself must see where tensors are

    @property
    def count(self):
        return self.by_name.total()

    @contextmanager
    def counted(self):
        """Counts anew, inside: for one step of many."""
        self.by_name.clear()
        yield self

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before, self.inside = self.inside, True
        try:
            return self._run(func, args, kwargs or {})
        finally:
            self.inside = before

    def _run(self, func, args, kwargs):
        if getattr(kwargs.get("device"), "type", None) == "cuda":
            kwargs = {**kwargs, "device": torch.device("meta")}
        name = func._schema.name.split("::")[1]
        given = [x for x in tensors_in((args, kwargs)) if x.is_meta]
        if given and name in WAIT:
            raise Waits(f"{func} reads a tensor on CUDA")
        result = func(*args, **kwargs)
        made = list(tensors_in(result))
        if given and name in ("_to_copy", "copy_") and not all(x.is_meta for x in made):
            raise Waits(f"{func} copies a tensor from CUDA to the host")
        if func.is_view or name in FREE or not any(x.is_meta for x in [*given, *made]):
            return result
        launches = 1
        if name == "hash_forward":
            launches = len(args[2])  # a kernel for each factor
        elif name == "attention_forward":
            launches = args[3].shape[1]  # a kernel for each round
        elif name == "attention_backward":
            launches = 1 + 2 * args[6].shape[1]
        self.by_name[str(func)] += launches
        return result


@contextmanager
def pretended_cuda():
    """Inside, meta tensors say they are on CUDA, where triton seems to be installed; gives the Launches."""
    launches = Launches()
    true_device, true_is_cuda, true_is_meta = (vars(torch._C.TensorBase)[n] for n in ("device", "is_cuda", "is_meta"))

    def pretends(x):
        return not launches.inside and true_is_meta.__get__(x)

    attributes = {
        "device": property(lambda x: CUDA if pretends(x) else true_device.__get__(x)),
        "is_cuda": property(lambda x: pretends(x) or true_is_cuda.__get__(x)),
        "is_meta": property(lambda x: not pretends(x) and true_is_meta.__get__(x)),
    }
    with (
        patch.multiple(torch.Tensor, create=True, **attributes),
        patch.object(_kernels, "INSTALLED", True),
        patch("torch.cuda._lazy_init"),
        launches,
    ):
        yield launches
