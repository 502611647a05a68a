"""A training run and its steps: one process or many, metrics, evaluation, checkpoints."""

import json
import math
import time
from dataclasses import asdict, dataclass, field
from functools import partial

import numpy as np
import torch
from reformer_ref import __version__
from reformer_ref._arguments import require_int
from reformer_ref._tensors import NotFinite, evaluating

from reformer_lab.benchmarks.record import peak_rss
from reformer_lab.data.text import bits
from reformer_lab.training import checkpoint
from reformer_lab.training.checkpoint import CheckpointError
from reformer_lab.training.optimizer import load_optimizer, make_optimizer
from reformer_lab.training.run_folder import differences, is_mark
from reformer_lab.training.schedule import STOP_OVER, Plan, learning_rate_at
from reformer_lab.training.strategy import divides, gathered, set_up, whole

FREE = ("checkpoint_every", "checkpoint_minutes")  # options that change no result: a resumed run may have others
STATE = {  # of a run in a checkpoint, with a test of each value; "scaler" is there with fp16 only
    "about": lambda v: isinstance(v, dict),
    "where": lambda v: isinstance(v, dict),
    "metrics": is_mark,
    "timings": is_mark,
    "tokens": lambda v: type(v) is int and v >= 0,
    "seconds": lambda v: type(v) in (int, float) and v >= 0,
    "evaluation_seconds": lambda v: type(v) in (int, float) and v > 0,
    "total": lambda v: v is None or (type(v) is int and v > 0),
    "skipped": lambda v: type(v) is int and v >= 0,
    "replanned": lambda v: isinstance(v, bool),
    "finished": lambda v: isinstance(v, bool),
}
MOST_SKIPPED = 25  # steps in a row that fp16's loss scaling may leave out before this counts as divergence


class NonFiniteLoss(FloatingPointError):
    """Loss or gradient became infinite or NaN; the weights are those before the failing step."""


@dataclass
class TrainingResult:
    """What happened: ``curve`` per step and ``evaluations`` on held-out data, lists of dicts; seconds of wall time."""

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


def step_generator(seed, step):
    """The CPU generator from which the LSH layers draw their rotations in one step."""
    seed = require_int("seed", seed, 0, 2**63 - 1)
    step = require_int("step", step, 0, 2**63 - 1)
    return torch.Generator().manual_seed(_seed_from(seed, step, 1))


def _seed_from(*numbers):
    """A seed in [0, 2⁶³) that depends on all of them."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1


def held_out_nats(model, windows):
    """Mean nats per predicted token of each window, in eval mode; [nan] once numbers overflow."""
    device = next(model.parameters()).device
    try:
        with evaluating(model):
            return [model.loss(*(t[None].to(device) for t in as_tuple(window))).item() for window in windows]
    except NotFinite:
        return [math.nan]


class Run:
    """A model, its data and options, and the state of training; see `loop.train` for the arguments."""

    def __init__(self, model, batch_at, held_out, options, fabric, folder, about, weight_of, report, started):
        self.options, self.fabric, self.folder, self.report = options, fabric, folder, report
        self.batch_at, self.held_out = batch_at, held_out
        self.weight_of = _rows if weight_of is None else weight_of
        self.started = time.perf_counter() if started is None else started
        self.about = {"options": asdict(options), **({} if about is None else about)}
        self.model = model.double() if options.precision == "64" else model
        self.result = TrainingResult()
        self.skipped = 0  # steps in a row that loss scaling left out

    @property
    def step(self):
        """Steps done."""
        return self.result.steps

    @property
    def finished(self):
        """Whether no step is left to do, or none is needed."""
        return self.step == self.plan.total or self.learned

    def begin(self, resume):
        """Find out where to begin; wrap model and optimiser; evaluate untrained weights."""
        _micro_batches(as_tuple(self.batch_at(0)), self.fabric, self.options.accumulate)  # or ValueError, early
        asked = json.dumps(self._asked(), sort_keys=True)
        if self._sum(float(asked != self.fabric.broadcast(asked))):
            raise ValueError("the processes of this run were started with different options or data")
        resumed = together(self.fabric, self._newest) if resume and self.folder is not None else None
        self.optimizer = make_optimizer(self.model, self.options)
        if resumed is not None:
            load_optimizer(self.model, self.optimizer, resumed)
            self.model.load_state_dict(resumed.weights)
        make = partial(make_optimizer, options=self.options)
        self.wrapped, self.wrapped_optimizer, self.optimizer = set_up(self.fabric, self.model, self.optimizer, make)
        self.wrapped.mark_forward_method("loss")
        self.model.train()
        state = {} if resumed is None else resumed.state
        if self.scaler is not None and state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
        self._recall(resumed, state)
        known, quick = state.get("evaluation_seconds"), self.held_out[: self.options.quick_windows]
        self.evaluation_seconds = self._evaluate(quick) if known is None else known
        self.plan = Plan(self.options, self.started, self.evaluation_seconds, len(self.held_out), self.report, state)
        self.learned = self._is_learned()
        self.saved_at = time.perf_counter()

    @property
    def _writes(self):
        return self.folder is not None and self.fabric.is_global_zero

    @property
    def scaler(self):
        """The loss scaler of fp16, None otherwise."""
        return getattr(self.fabric.strategy.precision, "scaler", None)

    def _asked(self):
        """What the run is, as JSON values: all processes must have the same, and so must a resumed run."""
        kind, config = checkpoint.described(self.model)
        return {"reformer_ref": __version__, "model": kind, "config": config, **self.about}

    def _newest(self):
        """The checkpoint to go on from, or None; ValueError if it is not of this run, with every difference."""
        newest = self.folder.newest(self.report)
        if newest is not None:
            self._require_same(newest)
            checkpoint.check_tensors(newest.path, newest.weights, self.model.state_dict())
        return newest

    def _require_same(self, newest):
        wrong = sorted(name for name, is_valid in STATE.items() if not is_valid(newest.state.get(name)))
        if wrong:
            raise CheckpointError(f"{newest.path} holds no run to go on with: {', '.join(wrong)} are missing or wrong")
        asked = self._asked()
        stored = {"reformer_ref": newest.version, "model": newest.model, "config": newest.config}
        stored |= newest.state["about"]
        free = [f"options.{name}" for name in FREE]
        if self.options.schedule != "cosine" and (self.options.steps or 0) >= newest.step:
            free.append("options.steps")  # the steps before are the same however many follow
        lines = [line for name, line in differences(stored, asked) if name not in free]
        if lines:
            raise ValueError(f"{newest.path} is of another run, which cannot go on as this one: {'; '.join(lines)}")
        for _, line in differences(newest.state["where"], self._where()):
            self.report(f"the last bits, and dropout masks, may come out otherwise: {line}")

    def _where(self):
        """What may change the rounding, and nothing else."""
        threads, device = torch.get_num_threads(), self.fabric.device.type
        where = {"torch": torch.__version__, "device": device, "threads": threads, "processes": self.fabric.world_size}
        return where | ({"strategy": "fsdp"} if divides(self.fabric) else {})

    def _recall(self, resumed, state):
        """What happened before the checkpoint, from the lines in the folder."""
        if self._writes:
            lines = self.folder.cut_back(state, 0 if resumed is None else resumed.step)
            seconds = {line["step"]: line["seconds"] for line in lines["timings"]}
            for line in lines["metrics"]:
                line["seconds"] = seconds.get(line["step"], 0.0)
                if "held_out_bits" in line:
                    line["bits"] = line.pop("held_out_bits")
                    self.result.evaluations.append(line)
                else:
                    self.result.curve.append(line)
        if resumed is not None:
            if not self._writes:
                self.result.curve = [{}] * resumed.step  # only its length counts in other processes
            if self.step != resumed.step:
                raise CheckpointError(f"{resumed.path}: the metrics hold {self.step} steps instead of {resumed.step}")
            self.result.tokens, self.skipped = state["tokens"], state["skipped"]
            self.started -= state["seconds"]
            self.report(f"going on after step {resumed.step} ({resumed.path.name})")

    # ---- a step

    def stopped(self, should_stop):
        """Whether any process was asked to stop."""
        asked = float(should_stop is not None and bool(should_stop()))
        self.result.interrupted = self._sum(asked) > 0.0
        return self.result.interrupted

    def _sum(self, value):
        """The sum of a number over all processes."""
        if self.fabric.world_size == 1:
            return value
        value = torch.tensor(value, dtype=torch.float64, device=self.fabric.device)
        return self.fabric.all_reduce(value, reduce_op="sum").item()

    def advance(self):
        """One update and its metrics; evaluation and checkpoint where they are due."""
        options, begun = self.options, time.perf_counter()
        rate = learning_rate_at(self.step, self.plan.total, options)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batch = as_tuple(self.batch_at(self.step))
        loss, norm = self._gradient(batch)
        self._require_finite(loss, norm, rate, batch)
        self.wrapped_optimizer.step()
        now = time.perf_counter()
        tokens = batch[0].numel()
        self.result.tokens += tokens
        norm = norm if math.isfinite(norm) else None  # the loss scaler has left this step out
        line = {"step": self.step + 1, "bits": bits(loss), "learning_rate": rate, "gradient_norm": norm}
        self.result.curve.append({**line, "seconds": now - self.started})
        self.speed, self.learned = tokens / (now - begun), self._is_learned()
        if self._writes:
            self.folder.add("metrics", **line)
            took = {"seconds": now - self.started, "tokens_per_second": round(self.speed, 1), "peak_bytes": _peak()}
            self.folder.add("timings", step=self.step, **took)
        if options.evaluate_every and self.step % options.evaluate_every == 0 and not self.finished:
            self._evaluate(self.held_out[: options.quick_windows])
        self._plan_on()
        if self._due():
            self.save()

    def _gradient(self, batch):
        """(loss in nats, norm of the gradient before clipping), both of all processes together."""
        fabric, options = self.fabric, self.options
        self.wrapped_optimizer.zero_grad(set_to_none=True)
        micro_batches = _micro_batches(batch, fabric, options.accumulate)
        value = 0.0
        for k, micro_batch in enumerate(micro_batches):
            weight = self.weight_of(*micro_batch) / self.weight_of(*batch)
            torch.manual_seed(_seed_from(options.seed, self.step, 2, fabric.global_rank, k))  # for dropout
            with fabric.no_backward_sync(self.wrapped, enabled=k + 1 < len(micro_batches)):
                loss = self._loss(tuple(t.to(fabric.device) for t in micro_batch))
                value += self._sum(weight * loss.item())
                if not math.isfinite(value):  # in one process or more: all of them return
                    return value, math.nan
                fabric.backward(loss * (weight * fabric.world_size))  # processes are averaged, rows are to be summed
        norm = fabric.clip_gradients(
            self.wrapped, self.wrapped_optimizer, max_norm=options.clip, error_if_nonfinite=False
        )
        return value, float(whole(norm))

    def _loss(self, micro_batch):
        """The loss of some rows of a batch, a scalar tensor; NaN if numbers overflowed on the way."""
        try:
            with self.fabric.autocast():
                return self.wrapped.loss(*micro_batch, generator=step_generator(self.options.seed, self.step))
        except NotFinite:
            return torch.tensor(math.nan)

    def _is_learned(self):
        """Whether the loss has been below ``stop_below``; process 0, which knows the whole curve, decides for all."""
        if self.options.stop_below is None:
            return False
        recent = [line["bits"] for line in self.result.curve[-STOP_OVER:] if line]
        done = len(recent) == STOP_OVER and sum(recent) < STOP_OVER * self.options.stop_below
        return self.fabric.broadcast(done)

    def _require_finite(self, loss, norm, rate, batch):
        """NonFiniteLoss unless both are finite; state and batch are written before it is raised."""
        scaled_away = self.scaler is not None and math.isfinite(loss) and not math.isfinite(norm)
        self.skipped = self.skipped + 1 if scaled_away else 0  # the scaler leaves this step out and scales less
        if math.isfinite(loss) and (math.isfinite(norm) or 0 < self.skipped <= MOST_SKIPPED):
            return
        failure = f"the loss is {loss}" if not math.isfinite(loss) else f"the norm of the gradient is {norm}"
        message = (
            f"{failure} at step {self.step + 1} (learning rate {rate:.3g}, clip {self.options.clip:g}); begin again "
            "with a lower learning rate or a longer warm-up"
        )
        self.save()
        if self._writes:
            path = self.folder.keep_batch(self.step + 1, batch, message)
            message += f"; state and batch are kept in {path.parent.parent} ({path.name})"
        self.fabric.barrier()  # a process that ends earlier takes process 0 with it, in the middle of writing
        raise NonFiniteLoss(message)

    def _evaluate(self, windows):
        """Evaluate on held-out windows, each process on some of them; the seconds it took."""
        begun, fabric = time.perf_counter(), self.fabric
        with fabric.autocast():
            # Every process evaluates the same number: where the model is sharded, all of them compute together.
            mine = list(windows[fabric.global_rank :: fabric.world_size])
            missing = -(-len(windows) // fabric.world_size) - len(mine)
            nats = held_out_nats(self.model, mine + list(windows[:missing]))[: len(mine)]
        value = bits(self._sum(sum(nats)) / len(windows))
        if not math.isfinite(value):
            if self.step:
                self.save()
            fabric.barrier()
            raise NonFiniteLoss(f"the held-out loss is {value} after {self.step} steps; try a lower learning rate")
        now = time.perf_counter()
        line = {"step": self.step, "windows": len(windows)}
        self.result.evaluations.append({**line, "bits": value, "seconds": now - self.started})
        if self._writes:
            self.folder.add("metrics", step=self.step, held_out_bits=value, windows=len(windows))
        return now - begun

    def _plan_on(self):
        """Decide, or correct, the number of steps; process 0 does it for all."""
        self.plan.after(self.step)
        if self.plan.timed and self.fabric.world_size > 1:
            self.plan.total = self.fabric.broadcast(self.plan.total)

    # ---- checkpoints

    def _due(self):
        interval, minutes = self.options.checkpoint_every, self.options.checkpoint_minutes
        by_time = minutes and time.perf_counter() - self.saved_at >= 60.0 * minutes
        due = not self.finished and (by_time or (interval and self.step % interval == 0))
        return self.fabric.broadcast(due) if divides(self.fabric) else due  # all gather then; their clocks differ

    def save(self, finished=False):
        """Write a checkpoint of this moment, in the process that writes; all must call it if the model is sharded."""
        if self.folder is None:
            return
        weights, tensors = gathered(self.model, self.optimizer, keep=self._writes)
        if not self._writes:
            return
        state = self.folder.marks() | {
            "about": self.about, "where": self._where(), "tokens": self.result.tokens,
            "seconds": round(time.perf_counter() - self.started, 3), "evaluation_seconds": self.evaluation_seconds,
            "total": self.plan.total, "replanned": self.plan.replanned, "finished": finished,
            "skipped": self.skipped, "scaler": None if self.scaler is None else self.scaler.state_dict(),
        }  # fmt: skip
        files = self.folder.checkpoints
        checkpoint.save(files, self.model, step=self.step, weights=weights, training=tensors, state=state)
        self.saved_at = time.perf_counter()

    def end(self):
        """The last evaluation, on all held-out windows, and the last checkpoint; all processes end together."""
        result = self.result
        done = bool(result.evaluations) and result.evaluations[-1].get("step") == self.step and self.plan.was_finished
        done = self.fabric.broadcast(done)
        if not result.interrupted and not done:
            self._evaluate(self.held_out)
        if not done:
            self.save(finished=not result.interrupted)
        result.replanned = self.plan.replanned
        result.seconds = time.perf_counter() - self.started
        self.fabric.barrier()

    def update(self, bar):
        """Update the progress bar."""
        held_out = self.result.evaluations[-1]["bits"] if self.result.evaluations else math.nan
        loss = self.result.curve[-1]["bits"]
        bar.total = self.plan.total
        bar.set_postfix_str(
            f"{loss:.3f} bits, held out {held_out:.3f}, {self.speed:,.0f} tokens/s, {_peak() / 2**30:.1f} GiB", False
        )
        bar.update()


# ---- helpers


def as_tuple(batch):
    """A batch, or a window, as a tuple of tensors."""
    return tuple(torch.as_tensor(t) for t in (batch if isinstance(batch, tuple) else (batch,)))


def _rows(first, *rest):
    return first.shape[0]


def _micro_batches(batch, fabric, accumulate):
    """The rows of a batch that this process works on, in ``accumulate`` micro-batches of equal size."""
    rows, count = batch[0].shape[0], fabric.world_size * accumulate
    if rows % count:
        raise ValueError(
            f"a batch of {rows} rows cannot be divided by {fabric.world_size} processes × {accumulate} micro-batches; "
            "change --batch"
        )
    size, first = rows // count, fabric.global_rank * accumulate
    return [tuple(t[k * size : (k + 1) * size] for t in batch) for k in range(first, first + accumulate)]


def _peak():
    """Peak memory in bytes: of the GPU if there is one in use, else of this process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    return peak_rss()


def together(fabric, function):
    """What ``function`` returns in process 0, in all of them; its ValueError too, so that none waits for the others."""
    outcome = None, None
    if fabric.is_global_zero:
        try:
            outcome = function(), None
        except ValueError as error:
            outcome = None, error
    value, error = fabric.broadcast(outcome)
    if error is not None:
        raise error
    return value
