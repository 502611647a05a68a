"""The command line: ``reformer-ref COMMAND``, the same as ``python -m reformer_lab COMMAND``.

Every command is a dataclass: its fields are the options, the comments beside them the help, and ``run(line)`` does the
work. Mistakes of the user end with one line on stderr and exit code 2, a failed run with 1, Ctrl-C with 130. Torch and
the rest are imported by the command that needs them, so that ``--help`` answers at once.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import re
import shlex
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from reformer_lab.benchmarks.command import BenchCommand, MillionCommand
from reformer_lab.claims.command import ReproduceCommand
from reformer_lab.classroom.command import ClassroomCommand
from reformer_lab.options import ModelOptions, Optional, Several, set_threads
from reformer_lab.training.command import TrainCommand

DESCRIPTION = "The Reformer (Kitaev, Kaiser, Levskaya 2020) as something to read, run and trust."
MESSAGE = 1000  # characters of a message; the rest of a name that is longer is left out


@dataclass(frozen=True)
class GenerateCommand:
    """Print a prompt and its continuation, byte by byte, by a model that `train` has written."""

    checkpoint: Path = Path("runs/text")  # folder that `train` wrote
    prompt: str = "ROMEO\n"  # text to continue
    tokens: int = 200  # bytes to add
    temperature: float = 0.8  # 0: always the likeliest byte; 1: as the model believes
    top_k: Optional[int] = None  # draw from the k likeliest bytes only
    top_p: Optional[float] = None  # draw from the likeliest bytes that together reach this probability
    seed: int = 0  # the same seed gives the same text
    no_cache: bool = False  # compute the whole prefix again for every byte: slower, and the same
    progress: bool = False  # a progress bar on stderr
    threads: Optional[int] = None  # CPU threads (default: as PyTorch chooses)

    def run(self, line: str) -> int:
        """Write the prompt and its continuation to stdout."""
        import torch
        from reformer_ref.generation import generate
        from reformer_ref.generation.api import check_sampling

        from reformer_lab.training import checkpoint

        if self.threads is not None:
            set_threads(self.threads)
        check_sampling(self.temperature, self.top_k, self.top_p)
        prompt = self.prompt.encode("utf-8", "surrogateescape")
        if not prompt:
            raise ValueError("--prompt must hold at least one character")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"--seed must be in [0, 2**63), got {self.seed}")
        model, _ = checkpoint.load(self.checkpoint, report=lambda text: print(f"reformer-ref: {text}", file=sys.stderr))
        out = sys.stdout.buffer
        out.write(prompt)

        def write(token):
            out.write(bytes([token]))
            out.flush()

        generator = torch.Generator().manual_seed(self.seed)
        sampling = (self.tokens, self.temperature, self.top_k, self.top_p, generator)
        cache = False if self.no_cache else None
        tokens = generate(model, prompt, *sampling, cache=cache, on_token=write, progress=self.progress)
        out.write(b"\n")
        if len(tokens) < len(prompt) + self.tokens:
            return _fail(f"interrupted after {len(tokens) - len(prompt)} bytes", 130)
        return 0


@dataclass(frozen=True)
class MemoryCommand:
    """Predict the peak memory of a training step, on a GPU or a CPU that need not be there.

    Does it fit, and what would make it fit? By part, by depth, by length; nothing is allocated.
    """

    length: int = 1 << 20  # tokens in one sequence
    budget: str = "16GB"  # memory there is: 16GB is 16·10^9 bytes, 16GiB is 16·2^30
    batch: int = 1  # sequences in one step
    model: ModelOptions = field(default_factory=lambda: ModelOptions(ff_chunk=1 << 14, loss_chunk=1 << 14))
    vocab_size: int = 256  # different tokens
    no_reversible: bool = False  # store the activations of every layer
    optimizer: Literal["adam", "sgd", "none"] = "adam"  # whose state is kept
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"  # of weights, activations and optimizer
    device: Literal["cuda", "cpu"] = "cuda"  # whose sizes of blocks are used
    plot: Optional[Path] = None  # draw the answer here (.png, .svg, .pdf)
    json: Optional[Path] = None  # write the answer here

    def run(self, line: str) -> int:
        """Print the answer, part by part."""
        gc.disable()  # collecting garbage would take a fifth of the time in which PyTorch is loaded
        try:
            return self.answer(line)
        finally:
            gc.enable()

    def answer(self, line: str) -> int:
        """The same, with the garbage collector as it is."""
        from reformer_lab import planner

        question = self.question()
        for path in (self.plot, self.json):
            if path is not None and not path.parent.is_dir():
                raise ValueError(f"there is no folder {path.parent} for {path.name}")
        if self.plot is not None and self.plot.suffix not in (".png", ".svg", ".pdf"):
            raise ValueError(f"--plot must end in .png, .svg or .pdf, got {self.plot.name}")
        print("\n".join(textwrap.fill(text, 100) for text in planner.headline(question).splitlines()), flush=True)
        report = {}
        for name, data in planner.answer(question):
            report[name] = data
            print(f"\n{planner.table(name, data, question)}", flush=True)
        return self.write(report, question, line)

    def question(self):
        """The `MemoryQuestion` that the options describe."""
        from reformer_ref._arguments import require_int

        from reformer_lab.planner import MemoryQuestion, parse_bytes

        length = require_int("--length", self.length, 2)
        config = self.model.config(vocab_size=self.vocab_size, max_length=length, reversible=not self.no_reversible)
        optimizer = None if self.optimizer == "none" else self.optimizer
        batch = require_int("--batch", self.batch)
        return MemoryQuestion(config, length, parse_bytes(self.budget), self.device, batch, optimizer, self.dtype)

    def write(self, report, question, line):
        """The answer as JSON and as a picture, where asked for."""
        import torch
        from reformer_ref.memory.predict import NOT_PREDICTED

        from reformer_lab import planner
        from reformer_lab.benchmarks import record

        names = ("length", "budget", "device", "batch", "optimizer", "dtype")
        asked = {name: getattr(question, name) for name in names} | {"config": json.loads(question.config.to_json())}
        report = {"asked": asked, "excludes": NOT_PREDICTED, **report}
        report["caption"] = planner.caption(report)
        print("\n" + textwrap.fill(f"Not in these figures: {NOT_PREDICTED}.", 100))
        if self.json is not None:
            record.write(self.json, {**record.about(line, torch.get_num_threads()), **report})
            print(f"written {self.json}", file=sys.stderr)
        if self.plot is not None:
            planner.draw(report).savefig(self.plot, dpi=150)
            print(f"{self.plot}: {report['caption']}")
        return 0


@dataclass(frozen=True)
class FiguresCommand:
    """Draw every picture of figures/ again, computed ones from fixed seeds, measured ones from the stored records.

    Captions and numbers go to pictures.json beside them.
    """

    curve: Annotated[Optional[Path], tyro.conf.arg(name="run")] = (
        None  # folder that `train` wrote: first record its curve
    )
    out: Path = Path("figures")  # folder for the pictures

    def run(self, line: str) -> int:
        """Draw them all; before that, record a run's curve if one is named."""
        from reformer_lab.figures import draw_all, record_run

        curve = None if self.curve is None else record_run(self.curve, Path("records"))
        draw_all(self.out, curve)
        return 0


@dataclass(frozen=True)
class WalkthroughCommand:
    """Run the notebooks from the first to the last, each in a kernel of its own, without a browser.

    Write them as HTML pages that need nothing but themselves, or store the outputs in the notebooks.
    """

    notebooks: Path = Path("notebooks")  # folder of the notebooks
    only: Several[str] = None  # beginnings of names, such as 02 (default: all)
    out: Optional[Path] = None  # folder for the pages (default: none are written)
    store: bool = False  # store the outputs in the notebooks
    no_progress: bool = False  # no progress bars

    def run(self, line: str) -> int:
        """Run the notebooks; write pages and store outputs as asked for."""
        from reformer_lab.notebooks import walkthrough

        try:
            paths = walkthrough(self.notebooks, self.out, list(self.only or ()), self.store, not self.no_progress)
        except RuntimeError as error:
            return _fail(error, 1)
        first = f"; begin with {self.out / 'index.html'}" if self.out else ""
        print(f"{len(paths)} notebooks ran without an error{first}")
        return 0


COMMANDS = {
    "train": TrainCommand, "generate": GenerateCommand, "memory": MemoryCommand, "bench": BenchCommand,
    "million": MillionCommand, "classroom": ClassroomCommand, "reproduce": ReproduceCommand,
    "figures": FiguresCommand, "walkthrough": WalkthroughCommand,
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words of the command line without the program's name; by default those of this process.

    Returns:
        The exit code: 0 done, 1 the run failed, 2 a mistake in what was asked, 130 interrupted.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if sys.stdout is None:  # closed, as `>&-` does: there is nowhere to write what every command writes
        return _fail("there is no standard output to write to; give it a file, or /dev/null (>/dev/null)", 1)
    try:
        return parse(argv).run(shlex.join(["reformer-ref", *argv]))
    except (ValueError, TypeError, ModuleNotFoundError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # the reader of our output has gone, for example `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        return _fail(error, getattr(error, "exit_code", 2), of_all=isinstance(error, (ValueError, TypeError)))
    except (FloatingPointError, RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or re.search("allocat|overflow", str(error)):
            first = str(error).partition("\n")[0]
            return _fail(f"out of memory: {first} (`reformer-ref memory` says what fits)", 1)
        if isinstance(error, RuntimeError) and not hasattr(error, "exit_code"):
            raise
        return _fail(error, 1, of_all=isinstance(error, FloatingPointError))
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def parse(argv: list[str]):
    """The command that ``argv`` describes, an instance of one of COMMANDS.

    Raises:
        ValueError: for anything that is no command or option, in one line.
        SystemExit: after ``--help``.
    """
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff)
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            command = tyro.extras.subcommand_cli_from_dict(
                COMMANDS, prog="reformer-ref", description=DESCRIPTION, args=argv, config=config
            )
    except SystemExit as stop:
        if stop.code == 0:
            raise
        raise ValueError(_text_of_box(box.getvalue())) from None
    for name, value in vars(getattr(command, "command", command)).items():
        if value == ():
            raise ValueError(f"{name.replace('_', '-')} must be given at least one value")
    return command


def _text_of_box(text):
    """The message in the box that tyro draws around it, in one line: what stands above its first rule, and the last."""
    lines = [line.strip("│ ") for line in text.splitlines() if line.startswith("│")]
    rules = [i for i, line in enumerate(lines) if set(line) == {"─"}] or [len(lines)]
    return " ".join([*lines[: rules[0]], *(f"({line})" for line in lines[-1:] if "--help" in line)])


def _fail(message, code, of_all=False):
    """Print the message and return the code. of_all: all processes of a run on this machine fail alike; the first
    one says so.
    """
    text = " ".join(str(message).split())
    if not (of_all and os.environ.get("LOCAL_RANK", "0") != "0"):
        print("reformer-ref: " + (text if len(text) <= MESSAGE else text[:MESSAGE] + " …"), file=sys.stderr)
    return code
