"""One training loop for every task: one process or many, metrics, evaluation, checkpoints, and an exact resume.

Everything random is a function of (seed, step): the batch, the hash rotations, and (with the number of the process) the
dropout masks. So a run that was killed goes on from its last checkpoint as if nothing had happened, to the last bit,
and PyTorch's global random state is as before when `train` returns.
"""

import contextlib
import sys

import numpy as np
import torch
from reformer_ref._arguments import require_bool, short_repr
from tqdm.auto import tqdm

from reformer_lab.data.text import bits
from reformer_lab.training.processes import make_fabric, naming_lost_processes
from reformer_lab.training.run import NonFiniteLoss, Run, TrainingResult, held_out_nats, step_generator, together
from reformer_lab.training.run_folder import RunFolder
from reformer_lab.training.schedule import TrainingOptions

__all__ = ["NonFiniteLoss", "TrainingResult", "held_out_bits", "step_generator", "train"]


def held_out_bits(model, windows):
    """Mean bits per predicted token over ``windows``, int64 (n, L), one by one, in eval mode with the fixed rotations.

    Each window starts afresh, so its first tokens are predicted with little context; the very first is not counted.
    """
    _require_model(model)
    _require_windows("windows", windows)
    return bits(sum(held_out_nats(model, windows)) / len(windows))


def train(
    model, batch_at, held_out, options, *, fabric=None, folder=None, resume=False, about=None, weight_of=None,
    tensorboard=False, progress=True, should_stop=None, report=print, started=None,
):  # fmt: skip
    """Train ``model`` in place.

    Args:
        model: a module with ``loss(*batch, generator=…)``, the mean cross-entropy in nats per predicted token. Every
            parameter that requires a gradient gets one in every step.
        batch_at: function of the step that returns the batch of all processes together: int64 tokens (batch, L), or a
            tuple of tensors with ``batch`` rows each; always the same for the same step.
        held_out: int64 windows (n, L), or a list of tuples of tensors without the batch dimension. All are used at the
            end, the first ``quick_windows`` before that.
        options: `TrainingOptions`.
        fabric: from `make_fabric`, launched; by default this process alone, on the model's device.
        folder: where metrics and checkpoints go (see `run_folder`); None: nowhere.
        resume: go on from the newest good checkpoint in ``folder``.
        about: JSON values that a resumed run must share, such as a description of the data.
        weight_of: function of the tensors of some rows that returns the number of tokens predicted in them; by default
            all rows count the same.
        tensorboard: write events for TensorBoard too.
        progress: whether to draw a progress bar.
        should_stop: function called before every step in every process; where it returns True in one of them, all stop
            with a checkpoint.
        report: function of a line of text, called where something is decided.
        started: `time.perf_counter()` at which the time budget began; now, by default.

    Returns:
        A `TrainingResult`.

    Raises:
        NonFiniteLoss: loss or gradient are infinite or NaN. The state before that step, and the batch, are in
            ``folder``.
        LostProcess: another process has ended.
        CheckpointNotWritten: the disk is full, or the folder was moved.
        ValueError: the folder holds another run; it says what differs.
    """
    _require_model(model)
    _require_windows("held_out", held_out)
    if not isinstance(options, TrainingOptions):
        raise TypeError(f"options must be TrainingOptions, got {short_repr(options)}")
    if about is not None and not isinstance(about, dict):
        raise TypeError(f"about must be a dict of JSON values or None, got {short_repr(about)}")
    for name, function in (("batch_at", batch_at), ("report", report)):
        if not callable(function):
            raise TypeError(f"{name} must be a function, got {short_repr(function)}")
    for name, value in (("resume", resume), ("tensorboard", tensorboard), ("progress", progress)):
        require_bool(name, value)
    device = next(model.parameters()).device
    fabric = make_fabric(device, 1, options.precision) if fabric is None else fabric
    with contextlib.ExitStack() as stack:
        stack.enter_context(naming_lost_processes(fabric))
        stack.enter_context(torch.random.fork_rng([fabric.device] if fabric.device.type == "cuda" else []))
        if folder is not None:
            folder = RunFolder(folder, resume, tensorboard)
            together(fabric, lambda: stack.enter_context(folder) and None)
        report = report if fabric.is_global_zero else lambda line: None
        run = Run(model, batch_at, held_out, options, fabric, folder, about, weight_of, report, started)
        run.begin(resume)
        terminal = sys.stderr is not None and sys.stderr.isatty()
        interval = 0.5 if terminal else 20.0  # seconds; a log file needs fewer lines than a terminal
        hidden = not progress or not fabric.is_global_zero or sys.stderr is None
        bar = tqdm(total=run.plan.total, initial=run.step, unit="step", disable=hidden, mininterval=interval)
        with contextlib.closing(bar):
            while not run.finished and not run.stopped(should_stop):
                run.advance()
                run.update(bar)
        run.end()
    return run.result


def _require_model(model):
    if not isinstance(model, torch.nn.Module) or not callable(getattr(model, "loss", None)):
        raise TypeError(f"model must be a module with a method `loss`, got {short_repr(model)}")
    if next(model.parameters(), None) is None:
        raise ValueError("model must have parameters to train, got none")


def _require_windows(name, windows):
    if isinstance(windows, np.ndarray) and windows.dtype.kind in "iu":
        windows = torch.as_tensor(windows)
    is_tensor = isinstance(windows, torch.Tensor) and windows.layout == torch.strided and windows.ndim == 2
    is_tensor = is_tensor and not windows.is_meta
    is_list = isinstance(windows, (list, tuple)) and all(
        torch.is_tensor(t) for window in windows for t in (window if isinstance(window, tuple) else (window,))
    )
    if not (is_tensor or is_list):
        raise TypeError(f"{name} must be integers (n, L) or a list of tuples of tensors, got {short_repr(windows)}")
    if len(windows) == 0:
        raise ValueError(f"{name} must hold at least one window, got none")
