"""The configuration of a whole model: plain values, validated, readable as JSON."""

import json
import math
from dataclasses import asdict, dataclass, fields

from reformer_ref._arguments import (
    LARGEST_ARRAY,
    bucket_factors,
    require_bool,
    require_choice,
    require_float,
    require_int,
    shown,
)
from reformer_ref.hashing.spec import default_n_buckets
from reformer_ref.local_attention.options import LocalOptions
from reformer_ref.lsh_attention.options import LSHOptions

LAYER_KINDS = ("lsh", "local", "dense", "regular")
MOST_LAYERS = 1 << 16


@dataclass(frozen=True)
class ReformerConfig:
    """Everything that determines a model. Fields left None are filled in, so the repr shows what is
    used.

    vocab_size, d_model, n_layers, n_heads; d_head (queries and keys, default d_model / n_heads),
    d_v (default d_head), d_ff (default 4·d_model). pattern: kinds of attention, repeated over the
    layers: "lsh", "local", "dense" (shared queries and keys, everything visible) or "regular"
    (separate ones, for the paper's comparison). max_length: the longest sequence. positions:
    "axial", "learned", "sinusoidal" or "none"; axial_shape: sizes of the axes, product at least
    max_length; axial_dims: their widths, sum d_model. lsh, local: options of the sparse kinds;
    their ``causal`` must agree with ``causal`` here. norm_eps, activation ("relu", "gelu"),
    dropout: as usual; dropout acts on embeddings and on what each half adds. tie_head: the head
    reuses the embedding. reversible: False stores activations instead (same function). streams: 1
    for the residuals of an ordinary Transformer, y = x + F(x), z = y + G(y), with the very same
    parameters (the last norm sees z twice); needs reversible=False. ff_chunk, loss_chunk,
    dense_block: positions worked on at a time, None for all at once. length_multiple: pad sequences
    inside the model to this multiple (only matters with ``wrap``; Hugging Face does). seed: for the
    initial weights and for the rotations that are used when none are drawn afresh.
    """

    vocab_size: int = 256
    d_model: int = 256
    n_layers: int = 6
    n_heads: int = 4
    d_head: int | None = None
    d_v: int | None = None
    d_ff: int | None = None
    pattern: tuple[str, ...] = ("local", "lsh")
    max_length: int = 4096
    positions: str = "axial"
    axial_shape: tuple[int, ...] | None = None
    axial_dims: tuple[int, ...] | None = None
    lsh: LSHOptions | None = None
    local: LocalOptions | None = None
    causal: bool = True
    norm_eps: float = 1e-5
    activation: str = "relu"
    dropout: float = 0.0
    tie_head: bool = False
    reversible: bool = True
    streams: int = 2
    ff_chunk: int | None = None
    loss_chunk: int | None = None
    dense_block: int | None = None
    length_multiple: int = 1
    seed: int = 0

    def __post_init__(self):
        for name in (
            "vocab_size",
            "d_model",
            "n_layers",
            "n_heads",
            "max_length",
            "length_multiple",
        ):
            most = MOST_LAYERS if name == "n_layers" else LARGEST_ARRAY
            self._set(name, require_int(name, getattr(self, name), 1, most))
        self._set("seed", require_int("seed", self.seed, 0, 2**63 - 1))
        for name in ("causal", "tie_head", "reversible"):
            require_bool(name, getattr(self, name))
        self._set("streams", require_int("streams", self.streams, 1, 2))
        if self.streams == 1 and self.reversible:
            raise ValueError(
                "streams=1 needs reversible=False: ordinary residuals cannot be undone"
            )
        for name in ("ff_chunk", "loss_chunk", "dense_block"):
            if getattr(self, name) is not None:
                self._set(name, require_int(name, getattr(self, name)))
        self._set("norm_eps", require_float("norm_eps", self.norm_eps, minimum=0.0))
        self._set("dropout", require_float("dropout", self.dropout, minimum=0.0, below=1.0))
        require_choice("activation", self.activation, ("relu", "gelu"))
        require_choice("positions", self.positions, ("axial", "learned", "sinusoidal", "none"))
        self._fill_widths()
        self._fill_pattern()
        self._fill_positions()
        self._fill_options()

    @property
    def layers(self):
        """The kind of attention of each layer, the pattern repeated: a tuple of n_layers strings."""
        return tuple(self.pattern[i % len(self.pattern)] for i in range(self.n_layers))

    def to_json(self):
        """The configuration as a JSON text; ``from_json`` reads it back to an equal object."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text):
        """Read ``to_json``'s text. ValueError for text that is no JSON object or has unknown
        fields.
        """
        if not isinstance(text, (str, bytes, bytearray)):
            raise TypeError(
                f"text must be the JSON text of a configuration, got {type(text).__name__}"
            )
        try:
            values = json.loads(text)
        except (
            ValueError,
            RecursionError,
        ) as error:  # no JSON, no UTF-8, a number too long, brackets too deep
            raise ValueError(f"the text of the configuration is not valid JSON: {error}") from None
        if not isinstance(values, dict):
            raise ValueError(
                f"the text of the configuration must be a JSON object, got {type(values).__name__}"
            )
        _only_known("configuration", values, cls)
        for name, options in (("lsh", LSHOptions), ("local", LocalOptions)):
            if isinstance(values.get(name), dict):
                _only_known(name, values[name], options)
                values[name] = options(**values[name])
        return cls(**values)

    def _set(self, name, value):
        object.__setattr__(
            self, name, value
        )  # the one place where a frozen field is written: while it is made

    def _fill_widths(self):
        if self.d_head is None:
            if self.d_model % self.n_heads:
                raise ValueError(
                    f"d_model ({self.d_model}) must be divisible by n_heads ({self.n_heads}), or d_head must be given"
                )
            self._set("d_head", self.d_model // self.n_heads)
        self._set("d_v", self.d_head if self.d_v is None else self.d_v)
        self._set("d_ff", 4 * self.d_model if self.d_ff is None else self.d_ff)
        for name in ("d_head", "d_v", "d_ff"):
            self._set(name, require_int(name, getattr(self, name), 1, LARGEST_ARRAY))

    def _fill_pattern(self):
        pattern = (self.pattern,) if isinstance(self.pattern, str) else self.pattern
        if not isinstance(pattern, (tuple, list)) or not pattern:
            raise ValueError(
                f"pattern must be a tuple of layer kinds such as ('local', 'lsh'), got {shown(self.pattern)}"
            )
        for kind in pattern:
            require_choice("pattern", kind, LAYER_KINDS)
        self._set("pattern", tuple(pattern))

    def _fill_positions(self):
        if self.positions == "sinusoidal" and self.d_model % 2:
            raise ValueError(f"d_model must be even for sinusoidal positions, got {self.d_model}")
        if self.positions != "axial":
            if self.axial_shape is not None or self.axial_dims is not None:
                raise ValueError(
                    f'axial_shape and axial_dims go with positions="axial", not with {self.positions!r}'
                )
            return
        if self.axial_shape is None:
            rows = max(1, math.isqrt(self.max_length))
            self._set("axial_shape", (-(-self.max_length // rows), rows))
        shape = tuple(
            require_int("axial_shape", n) for n in _sequence("axial_shape", self.axial_shape)
        )
        if self.axial_dims is None:
            each = self.d_model // len(shape)
            self._set(
                "axial_dims", (*[each] * (len(shape) - 1), self.d_model - each * (len(shape) - 1))
            )
        dims = tuple(require_int("axial_dims", n) for n in _sequence("axial_dims", self.axial_dims))
        if math.prod(shape) < self.max_length:
            raise ValueError(
                f"axial_shape {shown(shape)} holds {shown(math.prod(shape))} positions, max_length is {self.max_length}"
            )
        if len(dims) != len(shape) or sum(dims) != self.d_model:
            raise ValueError(
                f"axial_dims {shown(dims)} must have one width per axis of {shown(shape)} and sum to d_model "
                f"{self.d_model}"
            )
        self._set("axial_shape", shape)
        self._set("axial_dims", dims)

    def _fill_options(self):
        for name, kind in (("lsh", LSHOptions), ("local", LocalOptions)):
            options = getattr(self, name)
            if options is None:
                options = kind(causal=self.causal, chunks_after=0 if self.causal else 1)
                self._set(name, options)
            if not isinstance(options, kind):
                raise TypeError(f"{name} must be {kind.__name__}, got {type(options).__name__}")
            if name in self.pattern and options.causal != self.causal:
                raise ValueError(
                    f"{name}.causal is {options.causal} but causal is {self.causal}; give both the same value"
                )


def require_config(config, name="config"):
    """``config`` if it is a ReformerConfig; TypeError otherwise."""
    if not isinstance(config, ReformerConfig):
        raise TypeError(f"{name} must be a ReformerConfig, got {type(config).__name__}")
    return config


def n_buckets_for(config, length):
    """The number of buckets for a sequence of this length: ``lsh.n_buckets``, or a pure function of
    the length.

    With the strict window the longest length stands for every length, else cutting a sequence would
    change its prefix.
    """
    require_config(config)
    if config.lsh.n_buckets is not None:
        return config.lsh.n_buckets
    length = config.max_length if config.lsh.window == "rank" else length
    return default_n_buckets(length, config.lsh.chunk_length)


def rotation_width(config):
    """Columns that the stored rotations need so that every length up to ``max_length`` finds
    enough.
    """
    if require_config(config).lsh.n_buckets is not None or config.lsh.window == "rank":
        return sum(bucket_factors(n_buckets_for(config, config.max_length))) // 2
    chunk, longest = config.lsh.chunk_length, config.max_length + config.length_multiple - 1
    most = -(-longest // chunk)
    counts = (
        most,
        *(1 << k for k in range(most.bit_length())),
    )  # of chunks: the width falls after powers of 2 only
    return max(sum(bucket_factors(default_n_buckets(n * chunk, chunk))) // 2 for n in counts)


def padding_to_multiple(config, length):
    """Padding added inside the model: up to ``length_multiple``, but none to a sequence that fits
    in one chunk.
    """
    require_config(config), require_int("length", length, 0)
    chunks = [
        getattr(config, kind).chunk_length for kind in ("lsh", "local") if kind in config.layers
    ]
    return 0 if length <= min(chunks, default=length) else -length % config.length_multiple


def _sequence(name, value):
    if not isinstance(value, (tuple, list)) or not value:
        raise ValueError(f"{name} must be a tuple of integers, got {shown(value)}")
    return value


def _only_known(what, values, cls):
    unknown = sorted(set(values) - {f.name for f in fields(cls)})
    if unknown:
        raise ValueError(f"unknown fields in {what}: {', '.join(unknown)[:300]}")
