"""The options of ``reformer-ref bench`` and ``reformer-ref million``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from reformer_lab.options import ModelOptions, Optional, Several

Case = Literal["attention", "rounds", "step", "crossover", "gemm", "all", "decoding"]


@dataclass(frozen=True)
class BenchCommand:
    """Measure this package, the ports that people use and dense attention side by side, each in its own process.

    Prints medians and ratios, and writes every timing, the peak memory, machine and versions as JSON.
    """

    case: tyro.conf.Positional[tuple[Case, ...]]  # what to measure
    length: Several[int] = None  # tokens (for gemm: matrices), instead of the case's own
    n_hashes: Several[int] = None  # rounds of hashing, instead of the case's own
    n_layers: Several[int] = None  # layers, instead of the case's own (step only)
    only: Several[str] = None  # contenders by name, or "ours" (default: all that are installed)
    repeats: Optional[int] = None  # timed runs of each contender, after one that does not count (default: 5)
    threads: Optional[int] = None  # CPU threads of each process (default: all cores)
    limit: float = 300.0  # seconds that one run may take
    device: Literal["cpu", "cuda"] = "cpu"  # cuda: times are CUDA events, memory is what PyTorch's allocator counted
    quick: bool = False  # a look in a minute: short lengths, one repeat, no record without --out
    out: Optional[Path] = None  # folder for bench_CASE.json, or the file itself (default: records)

    def run(self, line: str) -> int:
        """Measure; the exit code."""
        from reformer_lab.benchmarks import decoding, run

        if "decoding" not in self.case:
            return run.run(self, line)
        if self.case != ("decoding",):
            raise ValueError("decoding is measured in a run of its own: name no other case beside it")
        return decoding.run(self, line)


@dataclass(frozen=True)
class MillionCommand:
    """Train a ReformerLM for a step, or a few, on a text as one sequence, by default of 2^20 bytes.

    Prints the loss, the time of every part and the peak memory of the whole process.
    """

    text: Path  # the text; any file will do, its bytes are the tokens
    repeat_text: bool = False  # begin again where the text is shorter than the sequence
    length: int = 1 << 20  # bytes in the sequence, from the beginning of the text
    model: ModelOptions = field(default_factory=lambda: ModelOptions(ff_chunk=4096, loss_chunk=4096))
    steps: int = 1  # training steps, all on the same sequence
    learning_rate: float = 1e-3  # of Adam
    seed: int = 0  # of weights and rotations
    threads: Optional[int] = None  # CPU threads (default: all cores)
    loss_after: bool = False  # also the loss after the last step: one more forward pass
    no_progress: bool = False  # no progress bar
    out: Path = Path("records/million.json")  # where the record goes

    def run(self, line: str) -> int:
        """Train; write the record."""
        from reformer_lab.benchmarks.million import run

        return run(self, line)
