"""How long tensors are cut into blocks, and how a prediction of memory shortens the loops over them.

On *meta* tensors nothing is computed. A loop that leaves nothing behind needs the same memory in all
its iterations but the first, and the last if that is smaller, so ``predict_peak`` runs two or three
of them: its time does not depend on the length.
"""

from contextlib import contextmanager
from contextvars import ContextVar

import torch

_prediction = ContextVar("prediction", default=(None, False))  # type of device, shortened loops


def block_starts(length, step):
    """Return where the blocks of ``step`` out of ``length`` begin: while memory is predicted, only
    the first, the second and a smaller last one. For loops whose iterations leave no tensor behind.
    """
    starts = range(0, length, step)
    # torch.compile cannot follow a context variable, and it predicts nothing.
    if torch.compiler.is_compiling() or not _prediction.get()[1] or len(starts) <= 2:
        return starts
    if length % step == 0:  # the last is like the second
        return starts[:2]
    return (starts[0], starts[1], starts[-1])


def block_device(device):
    """Return the type of the device whose block sizes hold: the predicted one, else ``device``."""
    return device.type if torch.compiler.is_compiling() else _prediction.get()[0] or device.type


@contextmanager
def predicting(device_type, shorten=True):
    """Work in blocks of the size that is chosen on this type of device, in shortened loops."""
    token = _prediction.set((device_type, shorten))
    try:
        yield
    finally:
        _prediction.reset(token)
