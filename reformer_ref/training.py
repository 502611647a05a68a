"""One training loop for every task: Adam, warm-up, clipping, held-out evaluation, a number of steps or of minutes.

Nothing here touches a global random state. The batch of a step and the hash rotations of a step are functions of
(seed, step) alone; dropout, where a model has any, draws from PyTorch's own state, which the caller may seed.
"""

import math
import sys
import time
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

import numpy as np
import torch
from tqdm.auto import tqdm

from reformer_ref.data.text import bits
from reformer_ref.tensors import evaluating
from reformer_ref.validate import require_choice, require_float, require_int

ADAM_BETAS = (0.9, 0.98)  # as the Transformer and the Reformer are trained; 0.98 follows a short run faster than 0.999
TIMED_STEPS = 10  # steps that are timed before a time budget becomes a number of steps


class NonFiniteLoss(FloatingPointError):
    """Loss or gradient became infinite or not a number; the weights are those before the failing step."""


@dataclass(frozen=True)
class TrainingOptions:
    """How to train. Exactly one of ``steps`` and ``minutes`` is given.

    steps           number of steps; a run is then repeated exactly by the same seed on the same number of threads
    minutes         time budget for all of `train`; the first `TIMED_STEPS` steps are timed and give the number of steps
    learning_rate   peak value, reached after ``warmup`` steps of linear growth
    schedule        "cosine": down to 0 at the last step; "rsqrt": ∝ 1/√step; "constant"
    clip            largest global norm of the gradient
    evaluate_every  steps between two evaluations on the first ``quick_windows`` held-out windows; 0: never in between
    """

    steps: int | None = None
    minutes: float | None = None
    learning_rate: float = 2e-3
    warmup: int = 20
    schedule: str = "cosine"
    clip: float = 1.0
    evaluate_every: int = 100
    quick_windows: int = 4
    seed: int = 0

    def __post_init__(self):
        if (self.steps is None) == (self.minutes is None):
            raise ValueError(f"give either steps or minutes, got steps={self.steps} and minutes={self.minutes}")
        if self.steps is not None:
            require_int("steps", self.steps)
        elif require_float("minutes", self.minutes, minimum=0.0) == 0.0:
            raise ValueError("minutes must be more than 0, got 0")
        for name in ("learning_rate", "clip"):
            if require_float(name, getattr(self, name), minimum=0.0, below=1e6) == 0.0:
                raise ValueError(f"{name} must be more than 0, got 0")
        require_choice("schedule", self.schedule, ("cosine", "rsqrt", "constant"))
        for name, least in (("warmup", 1), ("evaluate_every", 0), ("quick_windows", 1), ("seed", 0)):
            require_int(name, getattr(self, name), minimum=least)


@dataclass
class TrainingResult:
    """What happened: ``curve`` per step, ``evaluations`` on held-out text, lists of dicts; seconds of wall time."""

    curve: list = field(default_factory=list)
    evaluations: list = field(default_factory=list)
    seconds: float = 0.0
    tokens: int = 0
    interrupted: bool = False
    replanned: bool = False

    @property
    def steps(self):
        """Steps done."""
        return len(self.curve)


def learning_rate_at(step, total, options):
    """The learning rate of step 0, 1, …; ``total`` is the number of steps, None while it is not known yet."""
    if step < options.warmup:
        return options.learning_rate * (step + 1) / options.warmup
    if options.schedule == "rsqrt":
        return options.learning_rate * math.sqrt(options.warmup / (step + 1))
    if options.schedule == "constant" or total is None:
        return options.learning_rate
    progress = min((step + 1 - options.warmup) / max(total + 1 - options.warmup, 1), 1.0)
    return options.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))


def step_generator(seed, step):
    """The CPU generator from which the LSH layers draw their rotations in one step."""
    state = int(np.random.SeedSequence([seed, step, 1]).generate_state(1, np.uint64)[0])
    return torch.Generator().manual_seed(state >> 1)


def held_out_bits(model, windows):
    """Mean bits per predicted token over ``windows``, int64 (n, L), one by one, in eval mode with the fixed rotations.

    Each window starts afresh, so its first bytes are predicted with little context; its very first byte is not counted.
    """
    device = next(model.parameters()).device
    with evaluating(model):
        losses = [model.loss(window[None].to(device)).item() for window in torch.as_tensor(windows)]
    return bits(sum(losses) / len(losses))


def train(model, batch_at, held_out, options, *, progress=True, should_stop=None, report=print, started=None):
    """Train ``model`` in place and return a `TrainingResult`.

    model        has ``loss(tokens, generator)``: mean cross-entropy in nats per predicted token
    batch_at     step -> int64 tokens (batch, L)
    held_out     int64 windows (n, L); all are used at the end, the first ``quick_windows`` before that
    should_stop  called before every step; true: stop now, without the last evaluation
    report       called with a line of text where something is decided (the number of steps)
    started      `time.perf_counter()` at which the time budget began; now, by default

    Raises NonFiniteLoss (a FloatingPointError) if the loss or the gradient is infinite or not a number.
    """
    started = time.perf_counter() if started is None else started
    device = next(model.parameters()).device
    optimizer = torch.optim.Adam(model.parameters(), lr=options.learning_rate, betas=ADAM_BETAS, eps=1e-9)
    result = TrainingResult()
    evaluation_seconds = _evaluate(model, held_out[: options.quick_windows], result, started)
    plan = _Plan(options, started, evaluation_seconds, len(held_out), report)
    often = 0.5 if sys.stderr.isatty() else 20.0  # seconds; a log file needs fewer lines than a terminal
    model.train()
    with tqdm(total=plan.total, unit="step", disable=not progress, mininterval=often, dynamic_ncols=True) as bar:
        while plan.total is None or result.steps < plan.total:
            if should_stop is not None and should_stop():
                result.interrupted = True
                break
            step, begun = result.steps, time.perf_counter()
            rate = learning_rate_at(step, plan.total, options)
            tokens = torch.as_tensor(batch_at(step)).to(device)  # (batch, L)
            loss = _one_step(model, optimizer, tokens, rate, step, options)
            now = time.perf_counter()
            result.tokens += tokens.numel()
            result.curve.append(
                {"step": step + 1, "bits_per_byte": bits(loss), "learning_rate": rate, "seconds": now - started}
            )
            if options.evaluate_every and result.steps % options.evaluate_every == 0 and result.steps != plan.total:
                _evaluate(model, held_out[: options.quick_windows], result, started)
            plan.after(result.steps)
            _show(bar, plan, result, tokens.numel() / (now - begun))
    result.replanned = plan.replanned
    if not result.interrupted:
        _evaluate(model, held_out, result, started)
    result.seconds = time.perf_counter() - started
    return result


def _one_step(model, optimizer, tokens, rate, step, options):
    """One update; the loss in nats before it."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss = model.loss(tokens, generator=step_generator(options.seed, step))
    value = loss.item()
    norm = math.nan
    if math.isfinite(value):
        loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip))
    if not math.isfinite(norm):
        what = f"the loss is {value}" if not math.isfinite(value) else f"the norm of the gradient is {norm}"
        raise NonFiniteLoss(
            f"{what} at step {step + 1} (learning rate {rate:.3g}, clip {options.clip:g}); "
            "try a lower learning rate or a longer warm-up"
        )
    optimizer.step()
    return value


def _evaluate(model, windows, result, started):
    """Append one evaluation to ``result``; the seconds it took."""
    begun = time.perf_counter()
    value = held_out_bits(model, windows)
    if not math.isfinite(value):
        raise NonFiniteLoss(f"the held-out loss is {value} after {result.steps} steps; try a lower learning rate")
    now = time.perf_counter()
    result.evaluations.append(
        {"step": result.steps, "bits_per_byte": value, "windows": len(windows), "seconds": now - started}
    )
    return now - begun


def _show(bar, plan, result, speed):
    bar.total = plan.total
    shown = f"{result.curve[-1]['bits_per_byte']:.3f} bits/byte, {speed:,.0f} tokens/s"
    bar.set_postfix_str(f"{shown}, held out {result.evaluations[-1]['bits_per_byte']:.3f}", refresh=False)
    bar.update()


class _Plan:
    """The number of steps: as given, or what fits into the time, changed only if the machine turns out otherwise."""

    def __init__(self, options, started, evaluation_seconds, n_held_out, report):
        self.timed, self.report = options.minutes is not None, report
        self.total, self.replanned = options.steps, False
        per_window = evaluation_seconds / min(options.quick_windows, n_held_out)
        budget = 60.0 * options.minutes if self.timed else math.inf
        self.deadline = started + budget - per_window * n_held_out  # the last evaluation belongs to the budget
        self.between = evaluation_seconds / options.evaluate_every if options.evaluate_every else 0.0  # per step
        self.clock = [time.perf_counter()]  # when training began, and when each timed step ended
        self.decided = None  # (steps, time) when the number was decided

    def after(self, done):
        """Step number ``done`` has ended: decide, or correct, the number of steps."""
        now = time.perf_counter()
        left = self.deadline - now
        if not self.timed:
            return
        if self.total is None:
            self.clock.append(now)
            pace = median(b - a for a, b in pairwise(self.clock)) + self.between
            if done >= TIMED_STEPS or left < pace:
                self.total = done + max(int(0.95 * left / pace), 0)  # 5 % for a machine that slows down
                self.decided = done, now
                self.report(f"{pace:.2f} s a step: {self.total} steps fit into the time (--steps {self.total})")
        elif left <= 0 or done == self.total or done - self.decided[0] >= 2 * TIMED_STEPS:
            pace = (now - self.decided[1]) / (done - self.decided[0])
            fits = done + max(int(left / pace), 0)
            if fits < self.total:
                self.total, self.replanned = fits, True
            elif fits > 1.25 * self.total:  # the timed steps shared the machine with something else
                self.total, self.replanned = done + int(0.95 * (fits - done)), True
                self.decided = done, now
                self.report(f"{pace:.2f} s a step now: {self.total} steps fit")
