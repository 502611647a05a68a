"""The options of local attention."""

from dataclasses import asdict, dataclass
from typing import ClassVar

from reformer_ref._arguments import require_bool, require_scale, require_window


@dataclass(frozen=True)
class LocalOptions:
    """What a query may see: its own chunk of positions and its neighbours. Validated when made.

    Attributes:
        chunk_length: positions in a chunk.
        chunks_before: neighbours before the chunk that it sees.
        chunks_after: neighbours after it.
        causal: only keys at the query's position or before it.
        wrap: the first chunk's predecessor is the last chunk (the authors' code); as there, a key
            that occurs twice in a window counts twice.
        scale: logits are scale · q·k, above 0 and below 1e6; None for 1/√d.
    """

    chunk_length: int = 64
    chunks_before: int = 1
    chunks_after: int = 0
    causal: bool = True
    wrap: bool = False
    scale: float | None = None

    # What a layout of chunks asks of options: local attention is one round, and one bucket.
    n_hashes: ClassVar[int] = 1
    within_bucket: ClassVar[bool] = False
    count_once: ClassVar[bool] = False
    window: ClassVar[str] = "chunk"

    def __post_init__(self):
        require_window(self)
        for name in ("causal", "wrap"):
            require_bool(name, getattr(self, name))
        if self.scale is not None:
            require_scale(self, "None for 1/√d")

    @property
    def width(self) -> int:
        """Chunks in one window: before + 1 + after."""
        return self.chunks_before + 1 + self.chunks_after

    def scale_for(self, d: int) -> float:
        """The factor of q·k for vectors of size d."""
        return d**-0.5 if self.scale is None else self.scale

    def to_dict(self) -> dict:
        """Plain values for JSON; ``LocalOptions(**d)`` reads them back."""
        return asdict(self)
