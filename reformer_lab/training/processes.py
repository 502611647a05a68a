"""One process or many: Lightning Fabric as training uses it, signals that end a run, processes that are gone."""

import contextlib
import os
import signal
import time
from datetime import timedelta

import torch
import torch.distributed
from reformer_ref._arguments import require_choice, require_float, require_int
from reformer_ref._tensors import require_device

from reformer_lab.training.strategy import STRATEGIES, shard

FABRIC_PRECISION = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed", "64": "32-true"}  # "64": model.double()
_LOST = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "timed out", "socket", "tcpstore")


class LostProcess(RuntimeError):
    """Another process of the run has ended, or does not answer."""

    exit_code = 1


def make_fabric(device="cpu", processes=1, precision="32", timeout=300.0, strategy="ddp"):
    """Make a Lightning Fabric for ``processes`` processes on this machine, or for those that torchrun has started.

    With more than one process and no torchrun, ``fabric.launch()`` starts the others with the command line of this one.

    Args:
        device: "cpu" (gloo) or "cuda" (nccl, a GPU for each process).
        processes: their number on this machine.
        precision: as in `TrainingOptions`.
        timeout: seconds after which a process that does not answer is given up; one that has died is noticed at once.
        strategy: of several processes: "ddp", each holds the whole model; or "fsdp", each holds a part of it (`shard`).
    """
    try:
        from lightning_fabric import Fabric
        from lightning_fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
        from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy
    except ModuleNotFoundError:
        raise ModuleNotFoundError("training needs Lightning Fabric: pip install 'reformer_ref[lab]'") from None
    processes = require_int("processes", processes, 1, 4096)
    timeout = require_float("timeout", timeout, 0.001, 1e6)
    require_choice("precision", precision, tuple(FABRIC_PRECISION))
    require_choice("strategy", strategy, STRATEGIES)
    if device is None:
        raise TypeError("device must be 'cpu' or 'cuda', got None")
    device = torch.device(require_device("device", device))
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'cpu' or 'cuda', got {device}")
    under_torchrun = torch.distributed.is_torchelastic_launched()
    local = int(os.environ["LOCAL_WORLD_SIZE"]) if under_torchrun else processes
    hosts = int(os.environ["WORLD_SIZE"]) // local if under_torchrun else 1
    if processes not in (1, local):
        raise ValueError(f"torchrun has started {local} processes, not {processes}; leave --processes to it")
    if precision == "fp16" and device.type != "cuda":
        raise ValueError(f"precision fp16 needs a GPU (--device cuda), got {device.type}; use bf16 on a CPU")
    if strategy == "fsdp" and local * hosts == 1:
        raise ValueError("strategy fsdp divides the model among processes and needs 2 or more, got 1 (--processes)")
    if strategy == "fsdp" and precision == "fp16":
        raise ValueError("precision fp16 needs strategy ddp, got fsdp; use bf16")
    options = {"accelerator": device.type, "precision": FABRIC_PRECISION[precision]}
    if local * hosts == 1:
        return Fabric(devices=[device.index or 0] if device.type == "cuda" else 1, **options)
    backend = "nccl" if device.type == "cuda" else "gloo"
    how = {"process_group_backend": backend, "timeout": timedelta(seconds=timeout)}
    if strategy == "fsdp":
        sizes = {"data_parallel_size": local * hosts, "tensor_parallel_size": 1}
        strategy = ModelParallelStrategy(lambda model, mesh: shard(model, mesh["data_parallel"]), **sizes, **how)
    else:
        strategy = DDPStrategy(**how)
    environment = TorchElasticEnvironment() if under_torchrun else LightningEnvironment()
    return Fabric(devices=local, num_nodes=hosts, strategy=strategy, plugins=[environment], **options)


@contextlib.contextmanager
def naming_lost_processes(fabric):
    """Turn errors of collective operations into `LostProcess`: another process failed, not this one."""
    try:
        yield
    except RuntimeError as error:
        text = str(error).lower()
        distributed = isinstance(error, torch.distributed.DistError) or any(word in text for word in _LOST)
        if fabric.world_size == 1 or not distributed:
            raise
        raise LostProcess(
            f"another process of this run has ended or does not answer (there were {fabric.world_size}); start all of "
            "them again with --resume to go on from the last checkpoint"
        ) from error


class StopRequest:
    """A context manager in which Ctrl-C, SIGTERM and SIGHUP ask for an orderly end; call it to learn whether one did.

    The first signal is remembered and reported to ``say``; a second one, at least a second later, interrupts at once.
    ``exit_code`` is 128 plus the number of the signal, as shells have it.
    """

    def __init__(self, say):
        self.say, self.number, self._since, self._before = say, None, 0.0, {}

    def __call__(self):
        return self.number is not None

    @property
    def exit_code(self):
        return 128 + (self.number or signal.SIGINT)

    def __enter__(self):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number, frame):
        if self.number is not None:
            if time.monotonic() - self._since > 1.0:  # torchrun and Slurm each send one; count both as one
                raise KeyboardInterrupt
            return
        self.number, self._since = number, time.monotonic()
        self.say("stopping after this step, with a checkpoint; once more to drop what came after the last one")
