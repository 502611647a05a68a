"""How to train: the options of a run, the authors' settings by name, the rate of a step, and how many steps fit."""

import math
import time
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from reformer_ref._arguments import require_choice, require_float, require_int

STOP_OVER = 20  # steps whose mean loss `stop_below` looks at
TIMED_STEPS = 10  # steps that are timed before a time budget becomes a number of steps
PRECISIONS = ("32", "bf16", "fp16", "64")
OPTIMIZERS = ("adam", "adafactor")

# The authors' trax configurations (reformer_enwik8.gin, reformer_imagenet64.gin, reformer_wmt_ende.gin) give constant ·
# min(step/warmup, 1) / sqrt(max(step, warmup)), so the peak is constant / sqrt(warmup). The paper names its optimiser
# only, Adafactor (section 5); the rates are those of Adafactor's own paper, min(1e-6 · t, 1/sqrt(t)).
PRESETS = {
    "paper": {"optimizer": "adafactor", "learning_rate": 1e-2, "warmup": 10_000, "schedule": "rsqrt"},
    "enwik8": {"learning_rate": 0.03125 * 2000**-0.5, "warmup": 2000, "schedule": "rsqrt"},
    "imagenet64": {"learning_rate": 0.03125 * 8000**-0.5, "warmup": 8000, "schedule": "rsqrt"},
    "wmt": {"learning_rate": 0.088 * 8000**-0.5, "warmup": 8000, "schedule": "rsqrt"},
}


@dataclass(frozen=True)
class TrainingOptions:
    """How to train. Exactly one of ``steps`` and ``minutes`` is given."""

    steps: int | None = None  # a run is then repeated exactly by the same seed on the same number of threads
    minutes: float | None = None  # for all of `train`; the first steps are timed and give the number of steps
    stop_below: float | None = None  # end as soon as the mean loss of the last `STOP_OVER` steps is below so many bits
    # "adam": β 0.9 and ``beta2``, ε 1e-9, as the Transformer and the authors' Reformer are trained; "adafactor" (the
    # paper) keeps sums over rows and columns instead of Adam's second moments
    optimizer: str = "adam"
    learning_rate: float = 2e-3  # the peak, reached after ``warmup`` steps of linear growth
    beta2: float = 0.98
    warmup: int = 20
    schedule: str = "cosine"  # "cosine": down to 0 at the last step; "rsqrt": ∝ 1/√step; "constant"
    clip: float = 1.0  # largest global norm of the gradient
    accumulate: int = 1  # parts in which each process computes the gradient of its share of a batch
    precision: str = "32"  # "32"; "bf16", "fp16": products in half precision, weights in float32; "64": all in float64
    evaluate_every: int = 100  # steps between evaluations on the first ``quick_windows`` held-out windows; 0: none
    quick_windows: int = 4
    checkpoint_every: int = 0  # steps after which a checkpoint is due; 0: not on that account
    checkpoint_minutes: float = 2.0  # minutes after which a checkpoint is due; 0: not on that account
    seed: int = 0

    def __post_init__(self):
        if (self.steps is None) == (self.minutes is None):
            raise ValueError(f"give either steps or minutes, got steps={self.steps} and minutes={self.minutes}")
        if self.steps is not None:
            require_int("steps", self.steps, 1, 10**9)
        elif require_float("minutes", self.minutes, minimum=0.0, below=1e7) == 0.0:
            raise ValueError("minutes must be more than 0, got 0")
        for name in ("learning_rate", "clip"):
            if require_float(name, getattr(self, name), minimum=0.0, below=1e6) == 0.0:
                raise ValueError(f"{name} must be more than 0, got 0")
        if self.stop_below is not None:
            require_float("stop_below", self.stop_below, minimum=0.0)
        require_float("beta2", self.beta2, minimum=0.0, below=1.0)
        require_float("checkpoint_minutes", self.checkpoint_minutes, minimum=0.0, below=1e7)
        for name, choices in (
            ("schedule", ("cosine", "rsqrt", "constant")), ("optimizer", OPTIMIZERS), ("precision", PRECISIONS),
        ):  # fmt: skip
            require_choice(name, getattr(self, name), choices)
        for name in ("warmup", "quick_windows", "accumulate"):
            require_int(name, getattr(self, name), 1, 10**9)
        for name in ("evaluate_every", "checkpoint_every"):
            require_int(name, getattr(self, name), 0, 10**9)
        require_int("seed", self.seed, 0, 2**63 - 1)

    @classmethod
    def preset(cls, name, **overrides):
        """The settings of the ``"paper"``, or of the authors' ``"enwik8"``, ``"imagenet64"``, ``"wmt"`` runs."""
        return cls(**(PRESETS[require_choice("preset", name, tuple(PRESETS))] | overrides))


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


class Plan:
    """The number of steps: as given, or what fits into the time, changed only if the machine turns out otherwise."""

    def __init__(self, options, started, evaluation_seconds, n_held_out, report, state):
        self.timed, self.report = options.minutes is not None, report
        self.total = state.get("total") if self.timed else options.steps
        self.replanned = state.get("replanned", False)
        self.was_finished = state.get("finished", False)
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
            if len(self.clock) > TIMED_STEPS or left < pace:
                self.total = done + max(int(0.95 * left / pace), 0)  # 5 % for a machine that slows down
                self.decided = done, now
                self.report(f"{pace:.2f} s a step: {self.total} steps fit into the time (--steps {self.total})")
            return
        self.decided = (done, now) if self.decided is None else self.decided  # resumed: the number is known already
        if left <= 0 or done == self.total or done - self.decided[0] >= 2 * TIMED_STEPS:
            pace = (now - self.decided[1]) / max(done - self.decided[0], 1)
            fits = done + max(int(left / max(pace, 1e-9)), 0)
            if fits < self.total:
                self.total, self.replanned = fits, True
            elif fits > 1.25 * self.total and done > self.decided[0]:  # the timed steps shared the machine
                self.total, self.replanned = done + int(0.95 * (fits - done)), True
                self.decided = done, now
                self.report(f"{pace:.2f} s a step now: {self.total} steps fit")
