"""The optimiser of a run, and its state as named tensors that a checkpoint can hold."""

import torch

from reformer_lab.training.checkpoint import CheckpointError


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
    """Give the optimiser the state in a `Checkpoint`; CheckpointError if it is not of this model
    and optimiser.
    """
    tensors, state = dict(found.training or {}), {}
    for index, (name, p) in enumerate(model.named_parameters()):
        mine = {key.rpartition(":")[2]: tensors.pop(key) for key in list(tensors) if key.rpartition(":")[0] == name}
        expected = _fresh_state(optimizer, p) if found.step and p.requires_grad else {}
        if mine.keys() != expected.keys():
            raise CheckpointError(f"{found.path} holds the state of another optimiser, or of none, for {name}")
        for key, want in expected.items():
            t = mine[key]
            if (
                t.shape != want.shape
                or t.dtype != want.dtype
                or not torch.isfinite(t).all()
                or (key == "step" and t < 1)
            ):
                raise CheckpointError(f"{found.path}: the optimiser's {key} of {name} does not fit, or is no number")
        if mine:
            state[index] = mine
    if tensors:
        raise CheckpointError(f"{found.path} holds the state of another optimiser: {sorted(tensors)[:3]}")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _fresh_state(optimizer, p):
    """What the optimiser keeps for a parameter after its first step: {what: tensor}; only shapes
    and dtypes matter.
    """
    like = torch.nn.Parameter(torch.zeros(p.shape, dtype=p.dtype))
    like.grad = torch.zeros_like(like)
    fresh = type(optimizer)([like], lr=0.1)
    fresh.step()
    return {key: torch.as_tensor(t) for key, t in fresh.state[like].items()}
