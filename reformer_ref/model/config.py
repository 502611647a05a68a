"""The configuration of a whole model: plain values, validated once, readable as JSON."""

import json
import math
from dataclasses import asdict, dataclass, fields

from reformer_ref._arguments import (
    LARGEST_ARRAY,
    require_bool,
    require_choice,
    require_float,
    require_int,
    short_repr,
)
from reformer_ref.hashing.spec import default_n_buckets, factors_of
from reformer_ref.local_attention.options import LocalOptions
from reformer_ref.lsh_attention.options import LSHOptions

LAYER_KINDS = ("lsh", "local", "dense", "regular")
MOST_LAYERS = 1 << 16
RANGES = {"n_layers": (1, MOST_LAYERS), "streams": (1, 2), "seed": (0, 2**63 - 1)}
OPTIONAL = ("ff_chunk", "loss_chunk", "dense_block")


@dataclass(frozen=True)
class ReformerConfig:
    """Everything that determines a model; fields left None are filled in, so the repr shows them.

    Attributes:
        vocab_size: number of different tokens.
        d_model: width of each residual stream.
        n_layers: number of layers, each attention and feed-forward.
        n_heads: attention heads.
        d_head: width of queries and keys per head; None: d_model / n_heads.
        d_v: width of values per head; None: d_head.
        d_ff: width of the feed-forward layers; None: 4·d_model.
        pattern: kinds of attention, repeated over the layers: "lsh", "local", "dense" (shared
            queries and keys, everything visible) or "regular" (separate ones, for comparison).
        max_length: the longest sequence.
        positions: "axial", "learned", "sinusoidal" or "none".
        axial_shape: sizes of the axes, product at least max_length; None: about square.
        axial_dims: widths of the axes, sum d_model; None: equal parts.
        lsh: options of LSH attention; None: the paper's. Its ``causal`` must agree with causal.
        local: options of local attention; None: one chunk before. Likewise.
        causal: whether a token sees only the tokens before it.
        norm_eps: epsilon of every layer norm.
        activation: "relu" or "gelu" (the exact one).
        dropout: rate at the embeddings, at what each layer adds, and before the head.
        tie_head: the head reuses the embedding.
        reversible: False stores activations instead; the function is the same.
        streams: 2, or 1 for the residuals of an ordinary Transformer, y = x + F(x), z = y + G(y),
            with the same parameters (the last norm sees z twice); needs reversible=False.
        ff_chunk: positions of projections and feed-forward worked on at a time; None: all.
        loss_chunk: positions of the loss worked on at a time; None: all.
        dense_block: queries of dense attention worked on at a time; None: all.
        length_multiple: pad sequences inside the model to this multiple (matters with ``lsh.wrap``
            only; Hugging Face does).
        seed: of the initial weights, and of the rotations used when none are drawn afresh.
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
        for f in fields(self):
            value = getattr(self, f.name)
            if f.type is bool:
                require_bool(f.name, value)
            elif f.type is int or (f.name in OPTIONAL and value is not None):
                least, most = RANGES.get(f.name, (1, LARGEST_ARRAY))
                self._set(f.name, require_int(f.name, value, least, most))
        self._set("norm_eps", require_float("norm_eps", self.norm_eps, minimum=0.0))
        self._set("dropout", require_float("dropout", self.dropout, minimum=0.0, below=1.0))
        require_choice("activation", self.activation, ("relu", "gelu"))
        require_choice("positions", self.positions, ("axial", "learned", "sinusoidal", "none"))
        if self.streams == 1 and self.reversible:
            requirement = "streams=1 needs reversible=False"
            raise ValueError(f"{requirement}: ordinary residuals cannot be undone")
        pattern = (self.pattern,) if isinstance(self.pattern, str) else self.pattern
        self._set("pattern", _tuple("pattern", pattern, "layer kinds such as ('local', 'lsh')"))
        for kind in self.pattern:
            require_choice("pattern", kind, LAYER_KINDS)
        self._fill_widths()
        self._fill_axes()
        self._fill_options("lsh", LSHOptions)
        self._fill_options("local", LocalOptions)

    @property
    def layers(self) -> tuple[str, ...]:
        """The kind of attention of each layer: the pattern repeated."""
        return tuple([self.pattern[i % len(self.pattern)] for i in range(self.n_layers)])

    def to_json(self) -> str:
        """Write the configuration as JSON; ``from_json`` reads it back to an equal object."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str | bytes) -> "ReformerConfig":
        """Read ``to_json``'s text.

        Args:
            text: a JSON object with the fields of the class; those left out have their defaults.

        Returns:
            The configuration.

        Raises:
            TypeError: for anything but text, or fields of a wrong type.
            ValueError: for text that is no JSON object, unknown fields, or values out of range.
        """
        if not isinstance(text, (str, bytes, bytearray)):
            given = type(text).__name__
            raise TypeError(f"text must be the JSON text of a configuration, got {given}")
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, brackets too deep
            raise ValueError(f"the text of the configuration is not valid JSON: {error}") from None
        if not isinstance(values, dict):
            given = type(values).__name__
            raise ValueError(f"the text of the configuration must be a JSON object, got {given}")
        _require_known("configuration", values, cls)
        for name, options in (("lsh", LSHOptions), ("local", LocalOptions)):
            if isinstance(values.get(name), dict):
                _require_known(name, values[name], options)
                values[name] = options(**values[name])
        return cls(**values)

    def _set(self, name, value):
        object.__setattr__(self, name, value)  # a frozen field is written while it is made only

    def _fill_widths(self):
        if self.d_head is None and self.d_model % self.n_heads:
            sizes = f"d_model ({self.d_model}) must be divisible by n_heads ({self.n_heads})"
            raise ValueError(f"{sizes}, or d_head must be given")
        defaults = {
            "d_head": self.d_model // self.n_heads,
            "d_v": self.d_head or self.d_model // self.n_heads,
            "d_ff": 4 * self.d_model,
        }
        for name, default in defaults.items():
            value = default if getattr(self, name) is None else getattr(self, name)
            self._set(name, require_int(name, value, 1, LARGEST_ARRAY))

    def _fill_axes(self):
        if self.positions == "sinusoidal" and self.d_model % 2:
            raise ValueError(f"d_model must be even for sinusoidal positions, got {self.d_model}")
        if self.positions != "axial":
            if self.axial_shape is not None or self.axial_dims is not None:
                requirement = 'axial_shape and axial_dims go with positions="axial"'
                raise ValueError(f"{requirement}, not with {self.positions!r}")
            return
        rows = max(1, math.isqrt(self.max_length))
        shape = self.axial_shape
        shape = (-(-self.max_length // rows), rows) if shape is None else shape
        shape = _tuple("axial_shape", shape, "integers")
        dims = self.axial_dims
        if dims is None and self.d_model < len(shape):
            requirement = f"d_model must be at least {len(shape)}, one for each axis of axial_shape"
            raise ValueError(f"{requirement}, or positions not axial, got d_model {self.d_model}")
        width, rest = divmod(self.d_model, len(shape))
        dims = (*[width] * (len(shape) - 1), width + rest) if dims is None else dims
        dims = _tuple("axial_dims", dims, "integers")
        self._set("axial_shape", tuple([require_int("axial_shape", n) for n in shape]))
        self._set("axial_dims", tuple([require_int("axial_dims", n) for n in dims]))
        if math.prod(shape) < self.max_length:
            given = (
                f"axial_shape {short_repr(shape)} holds {short_repr(math.prod(shape))} positions"
            )
            raise ValueError(f"{given}, max_length is {self.max_length}")
        if len(dims) != len(shape) or sum(dims) != self.d_model:
            requirement = (
                f"one width per axis of {short_repr(shape)} and sum to d_model {self.d_model}"
            )
            raise ValueError(f"axial_dims {short_repr(dims)} must have {requirement}")

    def _fill_options(self, name, kind):
        options = getattr(self, name)
        if options is None:
            options = kind(causal=self.causal, chunks_after=0 if self.causal else 1)
            self._set(name, options)
        if not isinstance(options, kind):
            raise TypeError(f"{name} must be {kind.__name__}, got {type(options).__name__}")
        if name in self.pattern and options.causal != self.causal:
            given = f"{name}.causal is {options.causal} but causal is {self.causal}"
            raise ValueError(f"{given}; give both the same value")


def require_config(config, name="config"):
    """``config`` if it is a ReformerConfig; TypeError otherwise."""
    if not isinstance(config, ReformerConfig):
        raise TypeError(f"{name} must be a ReformerConfig, got {type(config).__name__}")
    return config


def n_buckets_for(config, length):
    """The number of buckets for this length: ``lsh.n_buckets``, or a pure function of the length.

    With the strict window the longest length stands for every length, else cutting a sequence would
    change its prefix.
    """
    if config.lsh.n_buckets is not None:
        return config.lsh.n_buckets
    length = config.max_length if config.lsh.window == "rank" else length
    return default_n_buckets(length, config.lsh.chunk_length)


def rotation_width(config):
    """Columns that the stored rotations need to serve every length up to ``max_length``."""
    if config.lsh.n_buckets is not None or config.lsh.window == "rank":
        return sum(factors_of(n_buckets_for(config, config.max_length))) // 2
    chunk, longest = config.lsh.chunk_length, config.max_length + config.length_multiple - 1
    most = -(-longest // chunk)
    # numbers of chunks: the width falls after powers of 2 only
    counts = (most, *(1 << k for k in range(most.bit_length())))
    return max(sum(factors_of(default_n_buckets(n * chunk, chunk))) // 2 for n in counts)


def padding_to_multiple(config, length):
    """Padding added inside the model, up to ``length_multiple``; none if one chunk holds it all."""
    if config.length_multiple == 1:
        return 0
    kinds = [kind for kind in ("lsh", "local") if kind in config.layers]
    shortest = min([getattr(config, kind).chunk_length for kind in kinds], default=length)
    return 0 if length <= shortest else -length % config.length_multiple


def _tuple(name, value, of):
    if not isinstance(value, (tuple, list)) or not value:
        raise ValueError(f"{name} must be a tuple of {of}, got {short_repr(value)}")
    return tuple(value)


def _require_known(name, values, cls):
    unknown = sorted(set(values) - {f.name for f in fields(cls)})
    if unknown:
        raise ValueError(f"unknown fields in {name}: {', '.join(unknown)[:300]}")
