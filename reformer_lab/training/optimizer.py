"""The optimiser of a run, and its state as named tensors that a checkpoint can hold."""

import torch

from reformer_lab.training.checkpoint import CheckpointError, check_tensors


def make_optimizer(model, options):
    """The optimiser of `TrainingOptions` for the parameters of a model."""
    if options.optimizer == "adafactor":
        return torch.optim.Adafactor(model.parameters(), lr=options.learning_rate)
    return torch.optim.Adam(model.parameters(), lr=options.learning_rate, betas=(0.9, options.beta2), eps=1e-9)


def optimizer_tensors(model, optimizer):
    """The optimiser's state as {"<parameter>:<key>": tensor}."""
    names = {p: name for name, p in model.named_parameters()}
    return {f"{names[p]}:{key}": torch.as_tensor(t) for p, state in optimizer.state.items() for key, t in state.items()}


def load_optimizer(model, optimizer, checkpoint):
    """Give the optimiser the state in a checkpoint; CheckpointError if it is not of this model and optimiser."""
    trained = [(index, name, p) for index, (name, p) in enumerate(model.named_parameters()) if p.requires_grad]
    fresh = {index: _fresh_state(optimizer, p) for index, _, p in trained} if checkpoint.step else {}
    expected = {f"{name}:{key}": t for index, name, _ in trained for key, t in fresh.get(index, {}).items()}
    check_tensors(f"{checkpoint.path}, as the state of this optimiser,", checkpoint.training, expected)
    if any(t < 1 for name, t in checkpoint.training.items() if name.endswith(":step")):
        raise CheckpointError(f"{checkpoint.path}: the optimiser must have done a step")
    state = {
        index: {key: checkpoint.training[f"{name}:{key}"] for key in fresh.get(index, {})} for index, name, _ in trained
    }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _fresh_state(optimizer, p):
    """What the optimiser keeps for a parameter after its first step: {key: tensor}, for shapes and dtypes alone."""
    like = torch.nn.Parameter(torch.zeros(p.shape, dtype=p.dtype))
    like.grad = torch.zeros_like(like)
    fresh = type(optimizer)([like], lr=0.1)
    fresh.step()
    return {key: torch.as_tensor(t) for key, t in fresh.state[like].items()}
