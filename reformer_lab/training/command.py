"""``reformer-ref train``: train a ReformerLM on the bytes of a text, in a folder from which it can always go on."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Literal

from reformer_lab.options import ModelOptions, Optional, set_threads

FAST_AXIS = 16  # positions on the fast axis of the axial encoding
MINUTES = 4.7  # the default: the demonstration, ready within five minutes
# A short local window, and a fast axis of 16 positions with most of the width: what stands just before a byte is found
# within tens of steps. With square axes and windows of 64 a short run stops at pairs of bytes.
MODEL = ModelOptions(
    n_layers=2, pattern="local,lsh", d_model=128, preset="strict", n_hashes=1, local_chunk_length=8
)  # fmt: skip
RECIPE = {"learning_rate": 1e-2, "warmup": 20, "schedule": "cosine", "optimizer": "adam"}


@dataclass(frozen=True)
class TrainCommand:
    """Train a byte-level ReformerLM on Shakespeare's plays, or on any file.

    The last tenth of the text is held out; its bits per byte stand beside those of zlib. Metrics and checkpoints go to
    --out; a run that was interrupted, in whatever way, goes on with --resume. See docs/training.md.
    """

    task: Literal["text"] = "text"  # what to train on
    text: Optional[Path] = None  # a file to train on, its bytes are the tokens (default: Shakespeare's plays)
    steps: Optional[int] = None  # number of steps; the same seed then gives the same result
    minutes: Optional[float] = None  # time for the whole command, when no --steps are given (default: 4.7)
    length: int = 4096  # tokens in one training sequence
    batch: int = 1  # sequences in one step, of all processes together
    held_out_windows: int = 16  # held-out sequences of the last evaluation
    seed: int = 0  # of weights, data order, rotations and dropout
    config: Optional[Path] = None  # a ReformerConfig as JSON; it replaces the model options
    model: ModelOptions = field(default_factory=lambda: MODEL)
    recipe: Optional[str] = None  # optimiser, rate and schedule of: paper, enwik8, imagenet64, wmt
    optimizer: Optional[str] = None  # adam or adafactor (default: adam)
    learning_rate: Optional[float] = None  # peak learning rate (default: 0.01)
    warmup: Optional[int] = None  # steps of linear warm-up (default: 20)
    schedule: Optional[str] = None  # learning rate after the warm-up: cosine, rsqrt or constant (default: cosine)
    clip: float = 1.0  # largest norm of the gradient
    accumulate: int = 1  # parts in which each process works through its share of a batch
    precision: str = "32"  # 32; bf16 or fp16 (mixed); 64
    out: Path = Path("runs/text")  # folder for checkpoints and metrics
    resume: bool = False  # go on from the newest good checkpoint in --out, if there is one
    checkpoint_every: int = 0  # a checkpoint after so many steps; 0: none
    checkpoint_minutes: float = 2.0  # a checkpoint after so many minutes; 0: none
    evaluate_every: int = 100  # steps between quick evaluations; 0: none
    processes: int = 1  # processes on this machine (with torchrun: leave it out)
    strategy: str = "ddp"  # what each of several processes holds: the whole model (ddp), or a part of it (fsdp)
    timeout: float = 300.0  # seconds after which a silent process is given up
    device: str = "cpu"  # cpu or cuda
    threads: Optional[int] = None  # CPU threads (default: as PyTorch chooses)
    tensorboard: bool = False  # write events for TensorBoard too
    no_progress: bool = False  # no progress bar

    def run(self, line: str) -> int:
        """Train; the exit code, 130 or 143 after Ctrl-C or SIGTERM, with a checkpoint written."""
        started = time.perf_counter()
        from reformer_ref._arguments import require_int
        from reformer_ref.model.pytorch import ReformerLM

        from reformer_lab.training.files import write_json
        from reformer_lab.training.loop import train
        from reformer_lab.training.processes import StopRequest, make_fabric, naming_lost_processes

        options = self.training_options()
        data = Data(self)
        config = self.model_config()
        device = usable_device(self.device)
        processes = require_int("--processes", self.processes, 1, 4096)
        fabric = make_fabric(device, processes, options.precision, _timeout(self.timeout), self.strategy)
        with naming_lost_processes(fabric):
            fabric.launch()
        if self.threads is not None:
            set_threads(self.threads)
        say = _say if fabric.is_global_zero else lambda *lines, **how: None
        model = ReformerLM(config).to(fabric.device)
        metrics = data.describe(self.text)
        _describe(self, config, sum(p.numel() for p in model.parameters()), metrics, say)
        with StopRequest(lambda line: say(f"\n{line}", flush=True)) as stop:
            result = train(
                model, data.batch_at, data.held_out, options, fabric=fabric, folder=self.out, resume=self.resume,
                about=data.about(), tensorboard=self.tensorboard, progress=not self.no_progress, should_stop=stop,
                report=lambda line: say(line, flush=True), started=started,
            )  # fmt: skip
        if not fabric.is_global_zero:
            return 0
        write_json(self.out / "metrics.json", metrics | _metrics(line, config, options, model, result))
        return _report(self.out, result, stop.exit_code)

    def training_options(self):
        """The `TrainingOptions`: the recipe, with what is given on the command line."""
        from reformer_ref._arguments import require_choice

        from reformer_lab.training.schedule import PRESETS, TrainingOptions

        if self.steps is not None and self.minutes is not None:
            raise ValueError("give either --steps or --minutes, not both")
        recipe = RECIPE | ({} if self.steps is not None else {"minutes": MINUTES})
        if self.recipe is not None:
            recipe |= PRESETS[require_choice("--recipe", self.recipe, tuple(PRESETS))]
        names = {f.name for f in fields(TrainingOptions)} & vars(self).keys()
        return TrainingOptions(**(recipe | {n: getattr(self, n) for n in names if getattr(self, n) is not None}))

    def model_config(self):
        """The ReformerConfig in --config, or the one that the model options describe."""
        from reformer_ref._arguments import require_int
        from reformer_ref.model.config import ReformerConfig

        from reformer_lab.data.text import VOCAB_SIZE

        length = require_int("--length", self.length, 2)
        if self.config is None:
            width = require_int("--d-model", self.model.d_model, 4)
            return self.model.config(
                vocab_size=VOCAB_SIZE, max_length=length, axial_shape=(-(-length // FAST_AXIS), FAST_AXIS),
                axial_dims=(width // 4, width - width // 4), causal=True, seed=self.seed,
            )  # fmt: skip
        try:
            config = ReformerConfig.from_json(_read_config(self.config))
        except (ValueError, TypeError) as error:
            raise type(error)(f"--config {self.config}: {error}") from None
        if config.vocab_size < VOCAB_SIZE or config.max_length < length or not config.causal:
            raise ValueError(
                f"--config {self.config} must have vocab_size 256 or more, max_length of at least --length ({length}) "
                f"and causal true, got {config.vocab_size}, {config.max_length} and {config.causal}"
            )
        return config


def _say(*lines, **how):
    """Print; when the reader has gone (`| head`, a `tee` that Ctrl-C ended), train on without one."""
    try:
        print(*lines, **how)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Data:
    """The text of a run: batches, held-out windows, and what a resumed run must find again."""

    def __init__(self, command):
        import torch

        from reformer_lab.data import text

        self.length = command.length
        self.batch = command.batch
        self.seed = command.seed
        content = text.read_text(command.text, "--text") if command.text else text.shakespeare()
        self.train_part, held_out = text.split(content)
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.held_out = torch.from_numpy(text.held_out_windows(held_out, self.length, command.held_out_windows))
        self.sizes = {"train": self.train_part.size, "held_out": held_out.size}
        self.baselines = {
            "unigram": text.unigram_bits_per_byte(self.train_part, held_out),
            "zlib": text.zlib_bits_per_byte(held_out),
        }
        self.batch_at(0)  # too short a text: say so before the model is built

    def batch_at(self, step):
        """int64 (batch, length)."""
        from reformer_lab.data import text

        return text.batches(self.train_part, self.length, self.batch, self.seed, step)

    def about(self):
        """JSON values: a run that goes on must have the same."""
        about = {"task": "text", "length": self.length, "batch": self.batch, "held_out_windows": len(self.held_out)}
        return {**about, "text": {"bytes": sum(self.sizes.values()), "sha256": self.sha256}}

    def describe(self, path):
        """The head of metrics.json."""
        name = str(path) if path else "Shakespeare's plays"
        return {"task": "text", "text": name, "bytes": self.sizes, "held_out_bits_per_byte": self.baselines}


def _read_config(path):
    from reformer_lab.training.files import open_regular

    try:
        with open_regular(path, 1 << 20) as file:
            return file.read().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"it cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _timeout(seconds):
    from reformer_ref._arguments import require_float

    if require_float("--timeout", seconds, 0.0, 1e6) < 1.0:
        raise ValueError(f"--timeout must be at least 1 second, got {seconds}")
    return seconds


def usable_device(name):
    """The torch device of this name; ValueError if it cannot be used here."""
    import torch

    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise ValueError(f"--device must be cpu or cuda, got {name}")
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from None
    return device


def _describe(command, config, parameters, metrics, say):
    size, baselines = metrics["bytes"], metrics["held_out_bits_per_byte"]
    say(f"text      {metrics['text']}: {size['train']:,} bytes to train on, {size['held_out']:,} held out")
    say(
        f"model     {parameters:,} parameters: {config.n_layers} layers ({', '.join(config.pattern)}), d_model "
        f"{config.d_model}, {config.n_heads} heads, d_ff {config.d_ff}, sequences of {command.length:,} tokens"
    )
    say(f"LSH       {config.lsh.n_hashes} round(s), chunks of {config.lsh.chunk_length}, window {config.lsh.window}")
    say(
        f"baselines {baselines['unigram']:.3f} bits per byte by byte frequencies, "
        f"{baselines['zlib']:.3f} by zlib -9 (held-out part by itself)",
        flush=True,
    )


def _metrics(line, config, options, model, result):
    """What a run leaves behind beside its checkpoints, as JSON values."""
    import torch
    from reformer_ref import __version__

    return {
        "command": line,
        "config": json.loads(config.to_json()),
        "options": asdict(options),
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": result.steps,
        "tokens": result.tokens,
        "seconds": round(result.seconds, 3),
        "interrupted": result.interrupted,
        "replanned": result.replanned,
        "threads": torch.get_num_threads(),
        "versions": {"reformer_ref": __version__, "torch": torch.__version__},
        "evaluations": result.evaluations,
        "curve": result.curve,
    }


def _report(folder, result, exit_code):
    first, last = result.evaluations[0], result.evaluations[-1]
    speed = result.tokens / max(result.curve[-1]["seconds"] if result.curve else math.inf, 1e-9)
    _say(
        f"held out  {first['bits']:.3f} bits per byte before, {last['bits']:.3f} after "
        f"{last['step']} steps ({last['windows']} windows); {result.seconds:.0f} s, {speed:,.0f} tokens/s"
    )
    if result.replanned:
        _say("          (the speed changed, and the number of steps with it: --steps will not repeat this run exactly)")
    _say(f"written   {folder}: checkpoints, metrics.jsonl, metrics.json", flush=True)
    if result.interrupted:
        print(f"reformer-ref: interrupted after {result.steps} steps; go on with --resume", file=sys.stderr)
        return exit_code
    _say(f'try       reformer-ref generate --checkpoint {folder} --prompt "ROMEO"')
    return 0
