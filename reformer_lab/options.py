"""What the commands share: the type of an option without a default, and the options of a model.

Nothing here imports torch, so that ``--help`` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, TypeVar

import tyro

if TYPE_CHECKING:
    from reformer_ref.model.config import ReformerConfig

T = TypeVar("T")
# --help: no "default: None"
Optional = tyro.conf.DisallowNone[Annotated[T | None, tyro.conf.arg(help_behavior_hint="")]]
Several = Optional[tuple[T, ...]]  # at least one value, see `reformer_lab.cli.parse`


@dataclass(frozen=True)
class ModelOptions:
    """Fields of ReformerConfig and LSHOptions, under their names."""

    n_layers: int = 6  # number of layers
    pattern: str = "lsh"  # kinds of attention, repeated over the layers, such as local,lsh
    d_model: int = 256  # width of each of the two residual streams
    n_heads: int = 4  # attention heads
    d_ff: Optional[int] = None  # width of the feed-forward layers (default: four times d-model)
    dropout: float = 0.0  # dropout probability
    preset: str = "trax"  # LSH attention as in: paper, trax, huggingface, lucidrains, strict
    n_hashes: int = 2  # rounds of hashing
    chunk_length: int = 64  # tokens in one chunk of LSH attention
    local_chunk_length: int = 64  # tokens in one chunk of local attention
    ff_chunk: int = 0  # positions of the feed-forward layers worked on at a time; 0: all
    loss_chunk: int = 0  # positions of the loss worked on at a time; 0: all

    def config(self, **others: object) -> ReformerConfig:
        """Build the configuration; ``others`` are the fields that are no options."""
        from reformer_ref.local_attention.options import LocalOptions
        from reformer_ref.lsh_attention.options import LSHOptions
        from reformer_ref.model.config import ReformerConfig

        return ReformerConfig(
            n_layers=self.n_layers, pattern=tuple(kind.strip() for kind in self.pattern.split(",")),
            d_model=self.d_model, n_heads=self.n_heads, d_ff=self.d_ff, dropout=self.dropout,
            ff_chunk=self.ff_chunk or None, loss_chunk=self.loss_chunk or None,
            lsh=LSHOptions.preset(self.preset, n_hashes=self.n_hashes, chunk_length=self.chunk_length),
            local=LocalOptions(chunk_length=self.local_chunk_length), **others,
        )  # fmt: skip


def set_threads(threads: int | None) -> int:
    """Let PyTorch use so many CPU threads, by default all cores; return the number."""
    import torch
    from reformer_ref._arguments import require_int

    from reformer_lab.benchmarks.record import usable_cores

    threads = usable_cores() if threads is None else require_int("--threads", threads, 1, 4096)
    torch.set_num_threads(threads)
    return threads
