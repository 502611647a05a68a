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
    return {f"{names[p]}:{key}": t for p, state in optimizer.state.items() for key, t in state.items()}


def load_optimizer(model, optimizer, checkpoint):
    """Give a new optimiser the state in a checkpoint; CheckpointError if it is not of this model and optimiser.

    It may change the weights: load those afterwards.
    """
    # A first step, with zeros for gradients, makes the tensors of the state, whatever the optimiser. There are none yet
    # where loss scaling has left out every step so far.
    if checkpoint.training or checkpoint.step > checkpoint.state["skipped"]:
        for p in model.parameters():
            p.grad = torch.zeros_like(p) if p.requires_grad else None
        optimizer.step()
        optimizer.zero_grad()
    # Those of the checkpoint must be like them, and replace them.
    state = optimizer_tensors(model, optimizer)
    check_tensors(f"{checkpoint.path}, as the state of this optimiser,", checkpoint.training, state)
    if any(t < 1 for name, t in checkpoint.training.items() if name.endswith(":step")):
        raise CheckpointError(f"{checkpoint.path}: the optimiser must have done a step")
    for name, t in state.items():
        t.copy_(checkpoint.training[name])
