"""The options of local attention."""

from dataclasses import asdict, dataclass

from reformer_ref._arguments import require_bool, require_float, require_int


@dataclass(frozen=True)
class LocalOptions:
    """A query sees its own chunk of ``chunk_length`` positions, ``chunks_before`` and
    ``chunks_after`` neighbours.

    causal: only keys at the query's position or before it. wrap: the first chunk's predecessor is
    the last chunk (the authors' code); as there, a key that stands twice in a window counts twice.
    scale: logits are scale · q·k, above 0 and below 1e6; None for 1/√d. ValueError or TypeError for
    anything else.
    """

    chunk_length: int = 64
    chunks_before: int = 1
    chunks_after: int = 0
    causal: bool = True
    wrap: bool = False
    scale: float | None = None

    def __post_init__(self):
        for name, minimum in (("chunk_length", 1), ("chunks_before", 0), ("chunks_after", 0)):
            object.__setattr__(self, name, require_int(name, getattr(self, name), minimum))
        require_bool("causal", self.causal)
        require_bool("wrap", self.wrap)
        if self.scale is not None:
            object.__setattr__(self, "scale", require_float("scale", self.scale, below=1e6))
            if self.scale <= 0:
                raise ValueError(f"scale must be positive or None for 1/√d, got {self.scale}")

    @property
    def width(self):
        """Chunks in one window: before + 1 + after."""
        return self.chunks_before + 1 + self.chunks_after

    def scale_for(self, d):
        """The factor of q·k for vectors of size d."""
        return d**-0.5 if self.scale is None else self.scale

    def to_dict(self):
        """Plain values for JSON; ``LocalOptions(**d)`` reads them back."""
        return asdict(self)
