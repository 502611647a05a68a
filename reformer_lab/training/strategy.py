"""How the processes of a run divide the work: whole weights in each of them (DDP), or a part in each (FSDP)."""

import sys

from reformer_ref import ReversibleBlock
from reformer_ref._arguments import short_repr
from torch import nn

from reformer_lab.training.optimizer import optimizer_tensors

STRATEGIES = ("ddp", "fsdp")


def shard(model: nn.Module, mesh=None, reshard_after_forward: bool | int = True) -> nn.Module:
    """Shard a model over the processes: each keeps a part of weights, gradients and optimiser state (FSDP2).

    ``fully_shard`` is applied to every reversible block and to the model, and ``loss`` counts as a forward pass. The
    weights of a block are gathered while it works, in forward and in backward. Make the optimiser afterwards.

    Args:
        model: ReformerLM, ReformerEncoderDecoder, or any module with a method ``loss`` and `ReversibleBlock` inside.
        mesh: the ``DeviceMesh`` of the processes; None: all of them.
        reshard_after_forward: as in ``fully_shard``.

    Returns:
        The same model.

    Raises:
        TypeError: model is no module, or has no ``loss``.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    if not isinstance(model, nn.Module) or not callable(getattr(model, "loss", None)):
        raise TypeError(f"model must be a module with a method `loss`, got {short_repr(model)}")
    blocks = [module for module in model.modules() if isinstance(module, ReversibleBlock)]
    for module in (*blocks, model):
        fully_shard(module, mesh=mesh, reshard_after_forward=reshard_after_forward)
    register_fsdp_forward_method(model, "loss")
    return model


def divides(fabric):
    """Whether `set_up` shards the model."""
    from lightning_fabric.strategies import ModelParallelStrategy

    return isinstance(fabric.strategy, ModelParallelStrategy)


def set_up(fabric, model, optimizer, make):
    """Model and optimiser as Fabric wraps them, and the optimiser inside; ``make(model)`` makes one like it.

    ``optimizer`` is that of the whole model. Where the model gets sharded here, a new one gets the parts of its state.
    """
    if not divides(fabric):
        return *fabric.setup(model, optimizer), optimizer
    if type(optimizer).__name__ != "Adam":
        raise ValueError(f"strategy fsdp needs optimizer adam, got {type(optimizer).__name__.lower()}")
    from torch.distributed.tensor import distribute_tensor

    before = dict(model.named_parameters())
    wrapped = fabric.setup_module(model)
    sharded = make(model)
    for name, p in model.named_parameters():
        for key, t in optimizer.state.get(before[name], {}).items():
            is_divided = t.shape == p.shape  # not the number of steps
            sharded.state[p][key] = distribute_tensor(t, p.device_mesh, p.placements) if is_divided else t
    return wrapped, fabric.setup_optimizers(sharded), sharded


def gathered(model, optimizer, keep=True):
    """The state dict of the model and the tensors of the optimiser, whole; {} twice where ``keep`` is False.

    Where the model is sharded, every process must call it.
    """
    weights = model.state_dict()  # first: it puts parts in the place of weights that are still gathered
    both = weights, optimizer_tensors(model, optimizer)
    return tuple(_gathered(tensors, keep) for tensors in both)


def _gathered(tensors, keep):
    kept = {}
    for name, t in tensors.items():
        t = whole(t)
        if keep:
            kept[name] = t.cpu()
    return kept


def whole(t):
    """A tensor gathered from all processes if it is sharded (all must call it), else the tensor itself."""
    dtensor = sys.modules.get("torch.distributed.tensor")
    return t.full_tensor() if dtensor is not None and isinstance(t, dtensor.DTensor) else t
