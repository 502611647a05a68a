"""The command line, ``python -m reformer_ref COMMAND``, also installed as ``reformer-ref``: train, generate, memory,
bench, million, figures, walkthrough.

Mistakes of the user end with one line on stderr and exit code 2, a failed run with 1, Ctrl-C with 130. Torch and the
rest are imported by the command that needs them, so that ``--help`` answers at once.
"""

import argparse
import contextlib
import json
import math
import os
import shlex
import signal
import sys
import time
from pathlib import Path

from reformer_ref.bench import add_bench_arguments
from reformer_ref.million import add_million_arguments
from reformer_ref.planner import add_memory_arguments

FAST_AXIS = 16  # positions on the fast axis of the axial encoding
DESCRIPTION = "The Reformer (Kitaev, Kaiser, Levskaya 2020) as something to read, run and trust."


def main(argv=None):
    """Run one command; the exit code: 0 done, 1 the run failed, 2 a mistake in what was asked, 130 interrupted."""
    try:
        argv = sys.argv[1:] if argv is None else list(argv)
        args = build_parser().parse_args(argv)
        args.command = shlex.join(["reformer-ref", *argv])
        return args.run(args)
    except (ValueError, TypeError, ModuleNotFoundError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # the reader of our output has gone, for example `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        return _fail(error, 2)
    except FloatingPointError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _fail(message, code):
    print("reformer-ref: " + " ".join(str(message).split()), file=sys.stderr)
    return code


class _Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default to every option that has one."""

    def _get_help_string(self, action):
        return action.help if action.default in (None, False) else super()._get_help_string(action)


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def build_parser():
    """The parser of all commands."""
    parser = _Parser(prog="reformer-ref", description=DESCRIPTION)
    commands = parser.add_subparsers(title="commands", metavar="command", required=True)
    _add_train(commands)
    _add_generate(commands)
    _add_figures(commands)
    _add_walkthrough(commands)
    for name, add_arguments, help_text in (
        ("memory", add_memory_arguments, "say whether a training step fits a budget, and what would make it fit"),
        ("bench", add_bench_arguments, "measure this package and its peers side by side"),
        ("million", add_million_arguments, "train a step on a text as one sequence of a million bytes"),
    ):
        add_arguments(commands.add_parser(name, help=help_text, formatter_class=_Defaults))
    return parser


def _add_train(commands):
    parser = commands.add_parser(
        "train",
        help="train a ReformerLM on the bytes of a text",
        description="Train a byte-level ReformerLM on Shakespeare's plays, or on any file, and write a checkpoint and "
        "metrics.json. The last tenth of the text is held out; its bits per byte stand beside those of zlib.",
        formatter_class=_Defaults,
    )
    add = parser.add_argument
    add("--task", choices=["text"], default="text", help="what to train on")
    add("--text", metavar="PATH", help="a file to train on, its bytes are the tokens (default: Shakespeare's plays)")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--steps", type=int, help="number of steps; the same seed then gives the same result")
    budget.add_argument(
        "--minutes", type=float, help="time for the whole command, when no --steps are given (default: 4.7)"
    )
    add("--length", type=int, default=4096, help="tokens in one training sequence")
    add("--batch", type=int, default=1, help="sequences in one step")
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
    add("--lr", type=float, default=1e-2, help="peak learning rate")
    add("--warmup", type=int, default=20, help="steps of linear warm-up")
    add("--schedule", default="cosine", help="learning rate after the warm-up: cosine, rsqrt or constant")
    add("--clip", type=float, default=1.0, help="largest norm of the gradient")
    add("--evaluate-every", type=int, default=100, help="steps between quick evaluations (0: none)")
    add("--held-out-windows", type=int, default=16, help="held-out sequences of the last evaluation")
    add("--seed", type=int, default=0, help="of weights, data order, rotations and dropout")
    add("--threads", type=int, help="CPU threads (default: as PyTorch chooses)")
    add("--device", default="cpu", help="cpu or cuda")
    add("--out", type=Path, default=Path("runs/text"), help="folder for checkpoint and metrics")
    add("--no-progress", action="store_true", help="no progress bar")
    parser.set_defaults(run=run_train)


def _add_generate(commands):
    parser = commands.add_parser(
        "generate",
        help="continue a prompt with a trained model",
        description="Print a prompt and its continuation, byte by byte, by a model that `train` has written.",
        formatter_class=_Defaults,
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, default=Path("runs/text"), help="folder that `train` wrote")
    add("--prompt", default="ROMEO\n", help="text to continue")
    add("--tokens", type=int, default=200, help="bytes to add")
    add("--temperature", type=float, default=0.8, help="0: always the likeliest byte; 1: as the model believes")
    add("--top-k", type=int, help="draw from the k likeliest bytes only")
    add("--top-p", type=float, help="draw from the likeliest bytes that together reach this probability")
    add("--seed", type=int, default=0, help="the same seed gives the same text")
    add("--no-cache", action="store_true", help="compute the whole prefix again for every byte: slower, and the same")
    add("--progress", action="store_true", help="a progress bar on stderr")
    add("--threads", type=int, help="CPU threads (default: as PyTorch chooses)")
    parser.set_defaults(run=run_generate)


def _add_figures(commands):
    parser = commands.add_parser(
        "figures",
        help="draw the figures",
        description="Draw every picture of figures/ again, computed ones from fixed seeds, measured ones from the "
        "records in figures/data, and write captions and numbers to figures/data/pictures.json.",
        formatter_class=_Defaults,
    )
    parser.add_argument(
        "--run", dest="folder", type=Path, help="folder that `train` wrote: first record its training curve"
    )
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder for the pictures")
    parser.set_defaults(run=run_figures)


def _add_walkthrough(commands):
    parser = commands.add_parser(
        "walkthrough",
        help="run the notebooks, without a browser",
        description="Run the notebooks from the first to the last, each in a kernel of its own; write them as HTML "
        "pages that need nothing but themselves, or store the outputs in the notebooks.",
        formatter_class=_Defaults,
    )
    add = parser.add_argument
    add("--notebooks", type=Path, default=Path("notebooks"), help="folder of the notebooks")
    add("--only", nargs="+", metavar="NAME", default=[], help="beginnings of names, such as 02 (default: all)")
    add("--out", type=Path, help="folder for the pages (default: none are written)")
    add("--store", action="store_true", help="store the outputs in the notebooks")
    add("--no-progress", action="store_true", help="no progress bars")
    parser.set_defaults(run=run_walkthrough)


def run_walkthrough(args):
    """``walkthrough``: every notebook run; pages and stored outputs as asked for."""
    from reformer_ref.notebooks import walkthrough

    try:
        paths = walkthrough(args.notebooks, args.out, args.only, args.store, not args.no_progress)
    except RuntimeError as error:
        return _fail(error, 1)
    done = f"; begin with {args.out / 'index.html'}" if args.out else ""
    print(f"{len(paths)} notebooks ran without an error{done}")
    return 0


def run_train(args):
    """``train``: text in, checkpoint and metrics out."""
    started = time.perf_counter()
    import torch

    from reformer_ref import checkpoint, training
    from reformer_ref.data import text
    from reformer_ref.model.pytorch import ReformerLM

    _set_threads(args.threads)
    minutes = None if args.steps is not None else 4.7 if args.minutes is None else args.minutes
    options = training.TrainingOptions(
        steps=args.steps, minutes=minutes, learning_rate=args.lr, warmup=args.warmup, schedule=args.schedule,
        clip=args.clip, evaluate_every=args.evaluate_every, seed=args.seed,
    )  # fmt: skip
    config = model_config(args, text.VOCAB_SIZE)
    data = text.read_text(args.text) if args.text else text.shakespeare()
    train_part, held_out_part = text.split(data)
    held_out = torch.from_numpy(text.held_out_windows(held_out_part, args.length, args.held_out_windows))
    text.batches(
        train_part, args.length, args.batch, args.seed, 0
    )  # too short a text: say so before the model is built
    device = _device(args.device)
    _check_writable(args.out)

    metrics = {
        "task": "text",
        "text": str(args.text) if args.text else "Shakespeare's plays",
        "bytes": {"train": train_part.size, "held_out": held_out_part.size},
        "held_out_bits_per_byte": {
            "unigram": text.unigram_bits_per_byte(train_part, held_out_part),
            "zlib": text.zlib_bits_per_byte(held_out_part),
        },
    }
    model = ReformerLM(config).to(device)
    parameters = sum(p.numel() for p in model.parameters())
    _describe(args, config, parameters, metrics)
    with _stop_on_interrupt() as should_stop, torch.random.fork_rng(enabled=config.dropout > 0):
        if config.dropout > 0:
            torch.manual_seed(args.seed)  # dropout masks come from PyTorch's own state, put back by fork_rng
        result = training.train(
            model, lambda step: text.batches(train_part, args.length, args.batch, args.seed, step), held_out, options,
            progress=not args.no_progress, should_stop=should_stop, started=started,
        )  # fmt: skip
        metrics |= _metrics(args, config, options, parameters, result, torch)
        checkpoint.save(args.out, model, config, extra={"task": "text", "steps": result.steps})
        checkpoint.write_json(args.out / "metrics.json", metrics)
    return _report(args, metrics, result)


def model_config(args, vocab_size):
    """The ReformerConfig that the options of ``train`` describe."""
    from reformer_ref.local_attention.options import LocalOptions
    from reformer_ref.lsh_attention.options import LSHOptions
    from reformer_ref.model.config import ReformerConfig

    # A fast axis of 16 positions with most of the width, and a short local window: what stands just before a byte is
    # then found within tens of steps. With square axes and windows of 64 a short run stops at pairs of bytes.
    axial_shape = (-(-args.length // FAST_AXIS), FAST_AXIS)
    axial_dims = (args.d_model // 4, args.d_model - args.d_model // 4)
    lsh = LSHOptions.preset(args.preset, n_hashes=args.n_hashes, chunk_length=args.chunk_length)
    return ReformerConfig(
        vocab_size=vocab_size, d_model=args.d_model, n_heads=args.heads, n_layers=args.layers,
        pattern=tuple(kind.strip() for kind in args.pattern.split(",")),
        d_ff=args.d_ff, max_length=args.length, lsh=lsh, local=LocalOptions(chunk_length=args.local_chunk_length),
        axial_shape=axial_shape, axial_dims=axial_dims, causal=True, dropout=args.dropout, seed=args.seed,
    )  # fmt: skip


def run_generate(args):
    """``generate``: prompt and continuation on stdout."""
    import torch

    from reformer_ref import checkpoint
    from reformer_ref.generation.options import check_sampling
    from reformer_ref.generation.pytorch import generate

    _set_threads(args.threads)
    check_sampling(args.temperature, args.top_k, args.top_p)
    prompt = args.prompt.encode("utf-8", "surrogateescape")
    if not prompt:
        raise ValueError("--prompt must hold at least one character")
    if not 0 <= args.seed < 2**63:
        raise ValueError(f"--seed must be in [0, 2**63), got {args.seed}")
    model, _ = checkpoint.load(args.checkpoint)
    out = sys.stdout.buffer
    out.write(prompt)

    def show(token):
        out.write(bytes([token]))
        out.flush()

    generator = torch.Generator().manual_seed(args.seed)
    how = (args.tokens, args.temperature, args.top_k, args.top_p, generator)
    cache = False if args.no_cache else None
    done = generate(model, prompt, *how, cache=cache, on_token=show, progress=args.progress)
    out.write(b"\n")
    if len(done) < len(prompt) + args.tokens:
        return _fail(f"interrupted after {len(done) - len(prompt)} bytes", 130)
    return 0


def run_figures(args):
    """``figures``: every picture drawn again; before that, a run's curve recorded if one is named."""
    from reformer_ref.figures import draw_all, record_run

    if args.folder is not None:
        record_run(args.folder, args.out)
    draw_all(args.out)
    return 0


@contextlib.contextmanager
def _stop_on_interrupt():
    """Yields a function that says whether Ctrl-C has been pressed; a second Ctrl-C interrupts at once."""
    pressed = []

    def handle(number, frame):
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)
        print("\nstopping after this step; Ctrl-C again to drop the run", file=sys.stderr)

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def _set_threads(threads):
    if threads is None:
        return
    import torch

    if threads < 1:
        raise ValueError(f"--threads must be at least 1, got {threads}")
    torch.set_num_threads(threads)


def _device(name):
    import torch

    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from None
    return device


def _check_writable(folder):
    """Fail now, not after minutes of training."""
    probe = folder / ".probe"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise ValueError(f"cannot write to --out {folder}: {error.strerror or error}") from None


def _describe(args, config, parameters, metrics):
    size, baselines = metrics["bytes"], metrics["held_out_bits_per_byte"]
    print(f"text      {metrics['text']}: {size['train']:,} bytes to train on, {size['held_out']:,} held out")
    print(
        f"model     {parameters:,} parameters: {config.n_layers} layers ({', '.join(config.pattern)}), d_model "
        f"{config.d_model}, {config.n_heads} heads, d_ff {config.d_ff}, sequences of {args.length:,} tokens"
    )
    print(f"LSH       {args.preset}: {config.lsh.n_hashes} round(s), chunks of {config.lsh.chunk_length}")
    print(
        f"baselines {baselines['unigram']:.3f} bits per byte by byte frequencies, "
        f"{baselines['zlib']:.3f} by zlib -9 (held-out part by itself)",
        flush=True,
    )


def _metrics(args, config, options, parameters, result, torch):
    """What a run leaves behind beside its weights, as JSON values."""
    from dataclasses import asdict

    from reformer_ref import __version__

    return {
        "command": args.command,
        "config": json.loads(config.to_json()),
        "options": asdict(options),
        "parameters": parameters,
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


def _report(args, metrics, result):
    first, last = result.evaluations[0], result.evaluations[-1]
    speed = result.tokens / max(result.curve[-1]["seconds"] if result.curve else math.inf, 1e-9)
    print(
        f"held out  {first['bits_per_byte']:.3f} bits per byte before, {last['bits_per_byte']:.3f} after "
        f"{last['step']} steps ({last['windows']} windows); {result.seconds:.0f} s, {speed:,.0f} tokens/s"
    )
    if result.replanned:
        print(
            "          (the speed changed, and the number of steps with it: --steps will not repeat this run exactly)"
        )
    print(f"written   {args.out}: checkpoint.json, weights, metrics.json", flush=True)
    if result.interrupted:
        return _fail(
            f"interrupted after {result.steps} steps; the checkpoint in {args.out} holds what was learned", 130
        )
    print(f'try       reformer-ref generate --checkpoint {args.out} --prompt "ROMEO"')
    return 0
