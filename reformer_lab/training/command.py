"""``reformer-ref train``: train a ReformerLM on the bytes of a text, in a folder from which it can
always go on.
"""

import hashlib
import json
import math
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

FAST_AXIS = 16  # positions on the fast axis of the axial encoding
MINUTES = 4.7  # when nothing is said: the demonstration, ready within five minutes


def add_train_arguments(parser):
    """Options of the command ``train``."""
    parser.description = (
        "Train a byte-level ReformerLM on Shakespeare's plays, or on any file. The last tenth of the text is held out; "
        "its bits per byte stand beside those of zlib. Metrics and checkpoints go to --out; a run that was "
        "interrupted, in whatever way, goes on with --resume. See docs/training.md."
    )
    add = parser.add_argument_group("data and budget").add_argument
    add("--task", choices=["text"], default="text", help="what to train on")
    add("--text", metavar="PATH", help="a file to train on, its bytes are the tokens (default: Shakespeare's plays)")
    add("--steps", type=int, help="number of steps; the same seed then gives the same result")
    add("--minutes", type=float, help=f"time for the whole command, when no --steps are given (default: {MINUTES})")
    add("--length", type=int, default=4096, help="tokens in one training sequence")
    add("--batch", type=int, default=1, help="sequences in one step, of all processes together")
    add("--held-out-windows", type=int, default=16, help="held-out sequences of the last evaluation")
    add("--seed", type=int, default=0, help="of weights, data order, rotations and dropout")
    add = parser.add_argument_group("model").add_argument
    add("--config", type=Path, metavar="PATH", help="a ReformerConfig as JSON; it replaces the options below")
    add("--layers", type=int, default=2, help="number of layers")
    add("--pattern", default="local,lsh", help="kinds of attention, repeated over the layers")
    add("--d-model", type=int, default=128, help="width of each of the two residual streams")
    add("--heads", type=int, default=4, help="attention heads")
    add("--d-ff", type=int, help="width of the feed-forward layers (default: four times d-model)")
    add("--dropout", type=float, default=0.0, help="dropout probability")
    add("--preset", default="strict", help="LSH attention as in: paper, trax, huggingface, lucidrains, strict")
    add("--n-hashes", type=int, default=1, help="rounds of hashing")
    add("--chunk-length", type=int, default=64, help="tokens in one chunk of LSH attention")
    add("--local-chunk-length", type=int, default=8, help="tokens in one chunk of local attention")
    add = parser.add_argument_group("optimisation").add_argument
    add("--recipe", metavar="NAME", help="optimiser, rate and schedule of: paper, enwik8, imagenet64, wmt")
    add("--optimizer", help="adam or adafactor (default: adam)")
    add("--lr", type=float, help="peak learning rate (default: 0.01)")
    add("--warmup", type=int, help="steps of linear warm-up (default: 20)")
    add("--schedule", help="learning rate after the warm-up: cosine, rsqrt or constant (default: cosine)")
    add("--clip", type=float, default=1.0, help="largest norm of the gradient")
    add("--accumulate", type=int, default=1, help="parts in which each process works through its share of a batch")
    add("--precision", default="32", help="32; bf16 or fp16 (mixed); 64")
    add = parser.add_argument_group("running").add_argument
    add("--out", type=Path, default=Path("runs/text"), help="folder for checkpoints and metrics")
    add("--resume", action="store_true", help="go on from the newest good checkpoint in --out, if there is one")
    add("--checkpoint-every", type=int, default=0, metavar="STEPS", help="a checkpoint after so many steps (0: none)")
    add("--checkpoint-minutes", type=float, default=2.0, metavar="M", help="… and after so many minutes (0: none)")
    add("--evaluate-every", type=int, default=100, help="steps between quick evaluations (0: none)")
    add("--processes", type=int, default=1, help="processes on this machine (with torchrun: leave it out)")
    add("--timeout", type=float, default=300.0, help="seconds after which a silent process is given up")
    add("--device", default="cpu", help="cpu or cuda")
    add("--threads", type=int, help="CPU threads (default: as PyTorch chooses)")
    add("--tensorboard", action="store_true", help="write events for TensorBoard too")
    add("--no-progress", action="store_true", help="no progress bar")
    parser.set_defaults(run=run_train)


def run_train(args):
    """``train``: the exit code; 130 or 143 after Ctrl-C or SIGTERM, with a checkpoint written."""
    started = time.perf_counter()
    import torch

    from reformer_lab.training.loop import train
    from reformer_lab.training.processes import StopRequest, make_fabric, naming_lost_processes

    options, data = training_options(args), Data(args)
    config = model_config(args)
    device = usable_device(args.device)
    fabric = make_fabric(device, _processes(args), options.precision, _timeout(args))
    with naming_lost_processes(fabric):
        fabric.launch()
    set_threads(args.threads)
    say = _say if fabric.is_global_zero else lambda *lines, **how: None
    model = _build(config).to(fabric.device)
    metrics = data.describe(args.text)
    _describe(args, config, sum(p.numel() for p in model.parameters()), metrics, say)
    with StopRequest(lambda line: say(f"\n{line}", flush=True)) as stop:
        result = train(
            model, data.batch_at, data.held_out, options, fabric=fabric, folder=args.out, resume=args.resume,
            about=data.about(), tensorboard=args.tensorboard, progress=not args.no_progress, should_stop=stop,
            report=lambda line: say(line, flush=True), started=started,
        )  # fmt: skip
    if not fabric.is_global_zero:
        return 0
    from reformer_lab.training.files import write_json

    write_json(args.out / "metrics.json", metrics | _metrics(args, config, options, model, result, torch))
    return _report(args, metrics, result, stop.exit_code)


def _say(*lines, **how):
    """Print; when the reader has gone (`| head`, a `tee` that Ctrl-C ended), train on without one."""
    try:
        print(*lines, **how)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def training_options(args):
    """The `TrainingOptions` that the options of ``train`` describe."""
    from reformer_ref._arguments import require_choice

    from reformer_lab.training.schedule import PRESETS, TrainingOptions

    if args.steps is not None and args.minutes is not None:
        raise ValueError("give either --steps or --minutes, not both")
    recipe = {"learning_rate": 1e-2, "warmup": 20, "schedule": "cosine", "optimizer": "adam"}
    if args.recipe is not None:
        recipe |= PRESETS[require_choice("--recipe", args.recipe, tuple(PRESETS))]
    asked = {"learning_rate": args.lr, "warmup": args.warmup, "schedule": args.schedule, "optimizer": args.optimizer}
    return TrainingOptions(
        steps=args.steps, minutes=None if args.steps is not None else MINUTES if args.minutes is None else args.minutes,
        clip=args.clip, accumulate=args.accumulate, precision=args.precision, evaluate_every=args.evaluate_every,
        checkpoint_every=args.checkpoint_every, checkpoint_minutes=args.checkpoint_minutes, seed=args.seed,
        **(recipe | {name: value for name, value in asked.items() if value is not None}),
    )  # fmt: skip


class Data:
    """The text of a run: batches, held-out windows, and what a resumed run must find again."""

    def __init__(self, args):
        import torch

        from reformer_lab.data import text

        self.length, self.batch, self.seed = args.length, args.batch, args.seed
        content = text.read_text(args.text) if args.text else text.shakespeare()
        self.train_part, held_out = text.split(content)
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.held_out = torch.from_numpy(text.held_out_windows(held_out, args.length, args.held_out_windows))
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


def model_config(args):
    """The ReformerConfig in --config, or the one that the options of ``train`` describe."""
    from reformer_ref._arguments import require_int
    from reformer_ref.local_attention.options import LocalOptions
    from reformer_ref.lsh_attention.options import LSHOptions
    from reformer_ref.model.config import ReformerConfig

    from reformer_lab.data.text import VOCAB_SIZE

    length = require_int("--length", args.length, 2)
    if args.config is not None:
        try:
            config = ReformerConfig.from_json(_read_config(args.config))
        except (ValueError, TypeError) as error:
            raise type(error)(f"--config {args.config}: {error}") from None
        if config.vocab_size < VOCAB_SIZE or config.max_length < length or not config.causal:
            raise ValueError(
                f"--config {args.config} must have vocab_size 256 or more, max_length of at least --length ({length}) "
                f"and causal true, got {config.vocab_size}, {config.max_length} and {config.causal}"
            )
        return config
    # A fast axis of 16 positions with most of the width, and a short local window: what stands just
    # before a byte is
    # then found within tens of steps. With square axes and windows of 64 a short run stops at pairs
    # of bytes.
    width = require_int("--d-model", args.d_model, 4)
    lsh = LSHOptions.preset(args.preset, n_hashes=args.n_hashes, chunk_length=args.chunk_length)
    return ReformerConfig(
        vocab_size=VOCAB_SIZE, d_model=width, n_heads=args.heads, n_layers=args.layers,
        pattern=tuple(kind.strip() for kind in args.pattern.split(",")),
        d_ff=args.d_ff, max_length=length, lsh=lsh, local=LocalOptions(chunk_length=args.local_chunk_length),
        axial_shape=(-(-length // FAST_AXIS), FAST_AXIS), axial_dims=(width // 4, width - width // 4), causal=True,
        dropout=args.dropout, seed=args.seed,
    )  # fmt: skip


def _read_config(path):
    from reformer_lab.training.files import open_regular

    try:
        with open_regular(path, 1 << 20) as file:
            return file.read().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"it cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _build(config):
    from reformer_ref.model.pytorch import ReformerLM

    try:
        return ReformerLM(config)
    except (RuntimeError, MemoryError) as error:
        if not (isinstance(error, MemoryError) or "allocate" in str(error)):
            raise
        raise ValueError(f"the model does not fit into memory: {str(error).splitlines()[0]}") from None


def _processes(args):
    from reformer_ref._arguments import require_int

    return require_int("--processes", args.processes, 1, 4096)


def _timeout(args):
    from reformer_ref._arguments import require_float

    if require_float("--timeout", args.timeout, 0.0, 1e6) < 1.0:
        raise ValueError(f"--timeout must be at least 1 second, got {args.timeout}")
    return args.timeout


def set_threads(threads):
    """Let PyTorch use so many CPU threads; None leaves it as it is."""
    if threads is None:
        return
    import torch
    from reformer_ref._arguments import require_int

    torch.set_num_threads(require_int("--threads", threads, 1, 4096))


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


def _describe(args, config, parameters, metrics, say):
    size, baselines = metrics["bytes"], metrics["held_out_bits_per_byte"]
    say(f"text      {metrics['text']}: {size['train']:,} bytes to train on, {size['held_out']:,} held out")
    say(
        f"model     {parameters:,} parameters: {config.n_layers} layers ({', '.join(config.pattern)}), d_model "
        f"{config.d_model}, {config.n_heads} heads, d_ff {config.d_ff}, sequences of {args.length:,} tokens"
    )
    say(f"LSH       {config.lsh.n_hashes} round(s), chunks of {config.lsh.chunk_length}, window {config.lsh.window}")
    say(
        f"baselines {baselines['unigram']:.3f} bits per byte by byte frequencies, "
        f"{baselines['zlib']:.3f} by zlib -9 (held-out part by itself)",
        flush=True,
    )


def _metrics(args, config, options, model, result, torch):
    """What a run leaves behind beside its checkpoints, as JSON values."""
    from reformer_ref import __version__

    return {
        "command": args.command,
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


def _report(args, metrics, result, exit_code):
    first, last = result.evaluations[0], result.evaluations[-1]
    speed = result.tokens / max(result.curve[-1]["seconds"] if result.curve else math.inf, 1e-9)
    _say(
        f"held out  {first['bits']:.3f} bits per byte before, {last['bits']:.3f} after "
        f"{last['step']} steps ({last['windows']} windows); {result.seconds:.0f} s, {speed:,.0f} tokens/s"
    )
    if result.replanned:
        _say("          (the speed changed, and the number of steps with it: --steps will not repeat this run exactly)")
    _say(f"written   {args.out}: checkpoints, metrics.jsonl, metrics.json", flush=True)
    if result.interrupted:
        print(f"reformer-ref: interrupted after {result.steps} steps; go on with --resume", file=sys.stderr)
        return exit_code
    _say(f'try       reformer-ref generate --checkpoint {args.out} --prompt "ROMEO"')
    return 0
