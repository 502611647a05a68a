"""Predicted memory: the count of a training step on tensors that have a shape and no contents."""

import gc
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache

import torch
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from reformer_ref._arguments import (
    LARGEST_ARRAY,
    require_bool,
    require_choice,
    require_fits,
    require_int,
)
from reformer_ref._blocks import predicting
from reformer_ref._tensors import FLOATING
from reformer_ref.memory.count import BLOCK, NOT_COUNTED, MetaCounter
from reformer_ref.memory.measure import Peak
from reformer_ref.model.config import ReformerConfig, require_config
from reformer_ref.model.pytorch import ReformerLM

NOT_PREDICTED = f"{NOT_COUNTED}; the CUDA context (0.3 to 0.6 GB); the program itself"
CATEGORIES = ("parameters", "gradients", "optimizer", "streams", "working set")
OPTIMIZERS = ("adam", "sgd", None)


def predict_peak(
    config: ReformerConfig,
    length: int,
    device: str = "cuda",
    *,
    batch: int = 1,
    training: bool = True,
    optimizer: str | None = "adam",
    dtype: torch.dtype = torch.float32,
    exact: bool = False,
) -> Peak:
    """Predict what a training step of ``ReformerLM(config)`` will take.

    The model is built, run, differentiated and stepped as usual, but on *meta* tensors: nothing is
    allocated, and no GPU is needed. Live bytes are counted as by `count_peak`. The time does not
    depend on the length (see ``_blocks``). It hardly depends on the depth: beyond a few layers,
    each layer adds the same bytes to each category, so deep models are extrapolated from two shallow
    ones, and ``kind`` says so.

    Args:
        config: the model.
        length: tokens in a sequence; beyond ``config.max_length`` the same model made longer.
        device: "cuda" or "cpu": whose sizes of blocks, and loops of the optimizer, are used.
        batch: sequences in the step.
        training: False predicts the loss alone, without gradients.
        optimizer: "adam", "sgd" (plain) or None.
        dtype: of weights, streams, gradients and optimizer alike.
        exact: run all layers.

    Returns:
        A Peak. Its breakdown is all that is alive at the peak (when few gradients may exist):
        parameters (with buffers), gradients, optimizer; streams: tensors of the size of a residual
        stream, (batch, length, d_model), or of two; working set: the rest.

    Raises:
        ValueError, TypeError: for arguments outside this.
    """
    require_config(config)
    require_int("length", length, 1, LARGEST_ARRAY)
    require_int("batch", batch)
    require_fits(batch=batch, length=length)
    if length < 2:
        raise ValueError(
            f"length must be at least 2, so that there is a token to predict, got {length}"
        )
    require_choice("device", device, ("cpu", "cuda"))
    require_choice("optimizer", optimizer, OPTIMIZERS)
    require_choice("dtype", dtype, FLOATING)
    require_bool("training", training)
    require_bool("exact", exact)
    config = lengthened(config, length)
    arguments = (length, device, batch, training, optimizer, dtype)
    name = f"{str(dtype).removeprefix('torch.')}, as on {device}"
    depth, period = config.n_layers, len(config.pattern)
    # below this depth the peak may be at another moment of the step
    shallow = (1 if config.reversible else 2) * period + depth % period
    if exact or depth <= shallow + period:
        phases = _predict(config, *arguments)
    else:
        low = _predict(replace(config, n_layers=shallow), *arguments)
        high = _predict(replace(config, n_layers=shallow + period), *arguments)
        periods = (depth - shallow) // period
        phases = [
            {
                category: a[category] + (b[category] - a[category]) * periods
                for category in CATEGORIES
            }
            for a, b in zip(low, high, strict=True)
        ]
        name += f", extrapolated from {shallow} and {shallow + period} layers"
    breakdown = tuple(max(phases, key=lambda phase: sum(phase.values())).items())
    return Peak(
        f"predicted ({name})", 0, sum(n for _, n in breakdown), config, breakdown, NOT_PREDICTED
    )


def lengthened(config: ReformerConfig, length: int) -> ReformerConfig:
    """Return ``config``, or where ``length`` is beyond its ``max_length`` the same model for
    sequences of that length.
    """
    if length <= config.max_length:
        return config
    axes = len(config.axial_shape or ())  # two axes get a new shape, and keep their widths
    return replace(
        config,
        max_length=length,
        axial_shape=None,
        axial_dims=config.axial_dims if axes == 2 else None,
    )


@lru_cache(maxsize=256)
def _predict(config, length, device, batch, training, optimizer, dtype):
    """The breakdown of the peak, {category: bytes} in the order of CATEGORIES, in both phases of a step: the
    loss with its gradients, and the optimizer.
    """
    with MetaCounter() as counter, predicting(device), _without_collector():
        with torch.device("meta"):
            model = ReformerLM(config).to(dtype).train(training)
            tokens = torch.zeros(batch, length, dtype=torch.int64)
        parameters = list(model.parameters())
        counter.tag([*parameters, *model.buffers()], "parameters")
        states = []  # first and second moments of the gradients
        if training and optimizer == "adam":
            states = [[torch.zeros_like(p) for p in parameters] for _ in range(2)]
            counter.tag([*states[0], *states[1]], "optimizer")
        begin = counter.clock
        with torch.set_grad_enabled(training):
            loss = model.loss(tokens, None if config.causal else tokens)
        if training:
            loss.backward()
            counter.tag([p.grad for p in parameters if p.grad is not None], "gradients")
        step = counter.clock
        if training:
            _step(optimizer, parameters, states, foreach=device == "cuda")
    stream = batch * length * config.d_model * dtype.itemsize
    streams = [-(-n * stream // BLOCK) * BLOCK for n in (1, 2)]
    peaks = []
    for phase in ((begin, step), (step, counter.clock)):
        n_bytes = dict.fromkeys(CATEGORIES, 0)
        for storage in counter.alive_at_peak(*phase):
            size = "streams" if storage.bytes in streams else "working set"
            n_bytes[storage.label if storage.label in CATEGORIES else size] += storage.bytes
        peaks.append(n_bytes)
    return peaks


@contextmanager
def _without_collector():
    """Python's garbage collector would walk over all tensors again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@torch.no_grad()
def _step(optimizer, parameters, states, foreach):
    """A step of an optimizer, by PyTorch's own functions: its classes would load the compiler.

    foreach: update all parameters in one go, with temporary copies of all of them: the default on
    CUDA.
    """
    parameters = [p for p in parameters if p.grad is not None]
    grads = [p.grad for p in parameters]
    common = {"foreach": foreach, "lr": 1e-3, "weight_decay": 0, "maximize": False}
    if optimizer == "adam":
        steps = [torch.zeros(()) for _ in parameters]
        adam(
            parameters, grads, *states, [], steps,
            amsgrad=False, beta1=0.9, beta2=0.999, eps=1e-8, **common,
        )  # fmt: skip
    elif optimizer == "sgd":
        sgd(
            parameters,
            grads,
            [None] * len(grads),
            momentum=0,
            dampening=0,
            nesterov=False,
            **common,
        )
