"""The optimiser of a run, and its state as named tensors that a checkpoint can hold."""

import torch

from reformer_ref.checkpoint import CheckpointError


def make_optimizer(model, options):
    """The optimiser of `TrainingOptions` for the parameters of a model."""
    if options.optimizer == "adafactor":
        return torch.optim.Adafactor(model.parameters(), lr=options.learning_rate)
    return torch.optim.Adam(model.parameters(), lr=options.learning_rate, betas=(0.9, options.beta2), eps=1e-9)


def optimizer_tensors(model, optimizer):
    """The optimiser's state as {"<parameter>:<what>": tensor}."""
    names = {p: name for name, p in model.named_parameters()}
    return {f"{names[p]}:{key}": torch.as_tensor(t) for p, state in optimizer.state.items() for key, t in state.items()}


def load_optimizer(model, optimizer, found):
    """Give the optimiser the state in a `Checkpoint`; CheckpointError if it is not of this model and optimiser."""
    tensors, state, kinds = dict(found.training or {}), {}, set()
    for index, (name, p) in enumerate(model.named_parameters()):
        mine = {key.rpartition(":")[2]: t for key, t in tensors.items() if key.rpartition(":")[0] == name}
        for key, t in mine.items():
            fits = t.ndim == 0 or (t.ndim == p.ndim and all(a in (1, b) for a, b in zip(t.shape, p.shape, strict=True)))
            if not fits or not t.is_floating_point() or not torch.isfinite(t).all():
                raise CheckpointError(f"{found.path}: the optimiser's {key} of {name} does not fit, or is no number")
        tensors = {key: t for key, t in tensors.items() if key.rpartition(":")[0] != name}
        if mine:
            state[index] = mine
            kinds.add(frozenset(mine))
    if tensors or (found.step and len(state) == 0):
        raise CheckpointError(f"{found.path} holds the state of another optimiser: {sorted(tensors)[:3]}")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
