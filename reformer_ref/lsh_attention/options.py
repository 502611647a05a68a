"""The options of LSH attention, and the named combinations that reproduce the paper and the code
people use.
"""

from dataclasses import asdict, dataclass
from typing import Any

from reformer_ref._arguments import (
    bucket_factors,
    require_bool,
    require_choice,
    require_float,
    require_int,
    require_scale,
    require_window,
)

# Only what differs from the defaults, which are the paper's.
AUTHORS = {"within_bucket": False, "count_once": False, "wrap": True}
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "trax": AUTHORS,
    "huggingface": AUTHORS,
    "lucidrains": {**AUTHORS, "scale": "rsqrt_d", "norm_eps": 0.0},
    "strict": {"window": "rank"},
}
FIXED_BY_RANK = {
    "causal": True,
    "within_bucket": True,
    "wrap": False,
    "chunks_before": 1,
    "chunks_after": 0,
}


@dataclass(frozen=True)
class LSHOptions:
    """What a query may see, and how it is counted. Defaults: the attention of the paper.

    Validated when made: ValueError or TypeError for any value outside this, and for "rank" with
    options that contradict it.

    Attributes:
        n_hashes: rounds of hashing.
        n_buckets: an even int, a tuple of even factors, or None for ``default_n_buckets(L,
            chunk_length)``. With None, L is in a model the most real tokens of any row in the batch
            (compiled or exported: the padded length), so a shorter row may be hashed into more
            buckets than by itself; a number given here makes padding exact.
        chunk_length: slots of the sorted sequence in a chunk.
        chunks_before: a query sees its own chunk, and so many chunks before it …
        chunks_after: … and after it.
        causal: only keys at the query's position or before it.
        within_bucket: only keys of the query's own bucket (paper equation 4); False: everything in
            the window.
        count_once: the union over rounds, each key once (the paper's N_ij); False: a key seen in m
            rounds counts m times.
        window: "chunk" (paper) or "rank": the ``chunk_length`` most recent earlier members of the
            query's bucket. With "rank" every output depends on its prefix alone, also through the
            pattern.
        wrap: all rounds form one ring, and the first chunk of a round sees the last chunk of the
            round before (the authors' last code and the ports). What stands in that chunk depends
            on the length, padding included: with wrap, and only with wrap, a different amount of
            padding is a different window.
        scale: logits are scale · q·k̂; a number above 0 and below 1e6, or "rsqrt_d" for 1/√d.
        norm_eps: keys are k̂ = q / √(‖q‖² + d·norm_eps).
    """

    n_hashes: int = 1
    n_buckets: int | tuple[int, ...] | None = None
    chunk_length: int = 64
    chunks_before: int = 1
    chunks_after: int = 0
    causal: bool = True
    within_bucket: bool = True
    count_once: bool = True
    window: str = "chunk"
    wrap: bool = False
    scale: float | str = 1.0
    norm_eps: float = 1e-6

    def __post_init__(self):
        object.__setattr__(self, "n_hashes", require_int("n_hashes", self.n_hashes))
        if self.n_buckets is not None:
            factors = bucket_factors(self.n_buckets)
            object.__setattr__(self, "n_buckets", factors if len(factors) > 1 else factors[0])
        require_window(self)
        for name in ("causal", "within_bucket", "count_once", "wrap"):
            require_bool(name, getattr(self, name))
        require_choice("window", self.window, ("chunk", "rank"))
        if isinstance(self.scale, str):
            require_choice("scale", self.scale, ("rsqrt_d",))
        else:
            require_scale(self, '"rsqrt_d"')
        object.__setattr__(self, "norm_eps", require_float("norm_eps", self.norm_eps, minimum=0.0))
        if self.window == "rank":
            given = {name: getattr(self, name) for name in FIXED_BY_RANK}
            if given != FIXED_BY_RANK:
                wrong = dict(given.items() - FIXED_BY_RANK.items())
                raise ValueError(f'window="rank" needs {FIXED_BY_RANK}, got {wrong}')

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "LSHOptions":
        """The options of "paper", "trax", "huggingface", "lucidrains" or "strict", with changes."""
        require_choice("preset", name, tuple(PRESETS))
        return cls(**{**PRESETS[name], **overrides})

    @property
    def width(self) -> int:
        """Chunks in one window: before + 1 + after."""
        return self.chunks_before + 1 + self.chunks_after

    def scale_for(self, d: int) -> float:
        """The factor of q·k̂ for vectors of size d."""
        return d**-0.5 if isinstance(self.scale, str) else self.scale  # "rsqrt_d"

    def to_dict(self) -> dict:
        """Plain values for JSON; ``LSHOptions(**d)`` reads them back."""
        return asdict(self)
