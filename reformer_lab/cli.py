"""The command line, ``python -m reformer_lab COMMAND``, also installed as ``reformer-ref``: train,
generate, memory, bench, million, classroom, reproduce, figures, walkthrough.

Mistakes of the user end with one line on stderr and exit code 2, a failed run with 1, Ctrl-C with
130. Torch and the rest are imported by the command that needs them, so that ``--help`` answers at
once.
"""

import argparse
import os
import shlex
import sys
from pathlib import Path

from reformer_lab.benchmarks.command import add_bench_arguments
from reformer_lab.benchmarks.million import add_million_arguments
from reformer_lab.claims.command import add_reproduce_arguments
from reformer_lab.classroom.command import add_classroom_arguments
from reformer_lab.planner import add_memory_arguments
from reformer_lab.training.command import add_train_arguments, set_threads

DESCRIPTION = "The Reformer (Kitaev, Kaiser, Levskaya 2020) as something to read, run and trust."


def main(argv=None):
    """Run one command; the exit code: 0 done, 1 the run failed, 2 a mistake in what was asked, 130
    interrupted.
    """
    try:
        argv = sys.argv[1:] if argv is None else list(argv)
        args = build_parser().parse_args(argv)
        args.command = shlex.join(["reformer-ref", *argv])
        return args.run(args)
    except (ValueError, TypeError, ModuleNotFoundError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # the reader of our output has gone, for example `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        return _fail(error, getattr(error, "exit_code", 2))
    except (FloatingPointError, RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or "allocate" in str(error):
            first = str(error).partition("\n")[0]
            return _fail(f"out of memory: {first} (`reformer-ref memory` says what fits)", 1)
        if isinstance(error, RuntimeError) and not hasattr(error, "exit_code"):
            raise
        return _fail(error, 1)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _fail(message, code):
    print("reformer-ref: " + _one_line(message), file=sys.stderr)
    return code


def _one_line(message):
    """A message without line breaks, cut where somebody has given a name of thousands of
    characters.
    """
    text = " ".join(str(message).split())
    return text if len(text) <= 1000 else text[:1000] + " …"


class _Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default to every option that has one."""

    def _get_help_string(self, action):
        return action.help if action.default in (None, False) else super()._get_help_string(action)


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: {_one_line(message)} (see {self.prog} --help)\n")


def build_parser():
    """The parser of all commands."""
    parser = _Parser(prog="reformer-ref", description=DESCRIPTION)
    commands = parser.add_subparsers(title="commands", metavar="command", required=True)
    _add_generate(commands)
    _add_figures(commands)
    _add_walkthrough(commands)
    for name, add_arguments, help_text in (
        ("train", add_train_arguments, "train a ReformerLM on the bytes of a text"),
        ("memory", add_memory_arguments, "say whether a training step fits a budget, and what would make it fit"),
        ("bench", add_bench_arguments, "measure this package and its peers side by side"),
        ("classroom", add_classroom_arguments, "make assignments and courses, and grade them"),
        ("million", add_million_arguments, "train a step on a text as one sequence of a million bytes"),
        ("reproduce", add_reproduce_arguments, "run a claim of the paper again"),
    ):
        add_arguments(commands.add_parser(name, help=help_text, formatter_class=_Defaults))
    return parser


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
        "stored records, and write captions and numbers to figures/pictures.json.",
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
    from reformer_lab.notebooks import walkthrough

    try:
        paths = walkthrough(args.notebooks, args.out, args.only, args.store, not args.no_progress)
    except RuntimeError as error:
        return _fail(error, 1)
    done = f"; begin with {args.out / 'index.html'}" if args.out else ""
    print(f"{len(paths)} notebooks ran without an error{done}")
    return 0


def run_generate(args):
    """``generate``: prompt and continuation on stdout."""
    import torch
    from reformer_ref.generation.options import check_sampling
    from reformer_ref.generation.pytorch import generate

    from reformer_lab.training import checkpoint

    set_threads(args.threads)
    check_sampling(args.temperature, args.top_k, args.top_p)
    prompt = args.prompt.encode("utf-8", "surrogateescape")
    if not prompt:
        raise ValueError("--prompt must hold at least one character")
    if not 0 <= args.seed < 2**63:
        raise ValueError(f"--seed must be in [0, 2**63), got {args.seed}")
    model, _ = checkpoint.load(args.checkpoint, report=lambda line: print(f"reformer-ref: {line}", file=sys.stderr))
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
    from reformer_lab.figures import draw_all, record_run

    if args.folder is not None:
        record_run(args.folder, args.out)
    draw_all(args.out)
    return 0
