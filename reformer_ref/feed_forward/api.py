"""Position-wise layers: the public functions, which check their arguments once, and the module."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from reformer_ref._arguments import (
    require_bool,
    require_choice,
    require_fits,
    require_float,
    require_int,
    require_shape,
)
from reformer_ref._tensors import (
    has_values,
    require_floating,
    require_generator,
    require_integers,
    require_same_kind,
)
from reformer_ref.feed_forward import chunked
from reformer_ref.feed_forward import pytorch as plain
from reformer_ref.feed_forward.pytorch import ACTIVATIONS, IGNORED

BACKENDS = {"auto": chunked, "plain": plain, "chunked": chunked}
SMALLEST_EPS = 1e-30  # of a layer norm: less is zero in float32, and 0 / 0 where a row is constant


def layer_norm(
    x: Float[Tensor, "*batch d"],
    scale: Float[Tensor, " d"],
    bias: Float[Tensor, " d"],
    eps: float = 1e-5,
) -> Float[Tensor, "*batch d"]:
    """Normalise the last axis: scale · (x - mean) / √(variance + eps) + bias.

    Source: Ba et al. 2016, arXiv:1607.06450.

    Args:
        x: at least one row.
        scale: factor of each feature.
        bias: added to each feature.
        eps: ≥ 0; above 0 where a row of x may hold equal numbers.

    Returns:
        Of the shape of x.

    Raises:
        TypeError: for a wrong type or dtype.
        ValueError: for shapes that do not fit, another device, or an eps that is too small.
    """
    _require_same_kind("x", x, scale=scale, bias=bias)
    eps = require_float("eps", eps, minimum=0.0)
    _require_positions("x", x, 1, "(…, d)")
    require_shape("scale", scale, x.shape[-1:], "(d)")
    require_shape("bias", bias, x.shape[-1:], "(d)")
    if eps < SMALLEST_EPS and has_values(x) and not bool(x.var(-1, correction=0).all()):
        accepted = "above 0 (and above 1e-30 in float32) where a row of x holds equal numbers"
        raise ValueError(f"eps must be {accepted}, got {eps}")
    return plain.layer_norm(x, scale, bias, eps)


def feed_forward(
    x: Float[Tensor, "*batch L d_model"],
    w1: Float[Tensor, "d_model d_ff"],
    b1: Float[Tensor, " d_ff"] | None,
    w2: Float[Tensor, "d_ff d_model"],
    b2: Float[Tensor, " d_model"] | None,
    activation: str = "relu",
    chunk_length: int | None = None,
    dropout: float = 0.0,
    *,
    backend: str = "auto",
) -> Float[Tensor, "*batch L d_model"]:
    """Compute activation(x w1 + b1) w2 + b2 at every position, chunk by chunk.

    Source: Vaswani et al. 2017, equation 2; in chunks: paper section 3.

    Args:
        x: at least one position.
        w1: first matrix.
        b1: its bias, or None.
        w2: second matrix.
        b2: its bias, or None.
        activation: "relu" or "gelu" (the exact one).
        chunk_length: positions worked on at a time, need not divide L; None: all at once.
        dropout: rate at the hidden activations, 0 in evaluation.
        backend: "plain" is ``feed_forward.pytorch``; "chunked", which "auto" takes, needs the
            memory of one chunk in training too, and cannot be differentiated twice.

    Returns:
        Of the shape of x.

    Raises:
        TypeError: for a wrong type, or mixed dtypes outside autocast.
        ValueError: for shapes that do not fit, another device, or no position.
    """
    require_choice("activation", activation, tuple(ACTIVATIONS))
    dropout = require_float("dropout", dropout, minimum=0.0, below=1.0)
    _require_same_kind("x", x, w1=w1, b1=b1, w2=w2, b2=b2)
    _require_positions("x", x, 2, "(…, L, d_model)")
    d_model, d_ff = x.shape[-1], w1.shape[-1] if w1.ndim else 0
    require_shape("w1", w1, (d_model, d_ff), "(d_model, d_ff)")
    require_shape("w2", w2, (d_ff, d_model), "(d_ff, d_model)")
    if b1 is not None:
        require_shape("b1", b1, (d_ff,), "(d_ff)")
    if b2 is not None:
        require_shape("b2", b2, (d_model,), "(d_model)")
    if chunk_length is not None:
        chunk_length = require_int("chunk_length", chunk_length)
    version = BACKENDS[require_choice("backend", backend, tuple(BACKENDS))]
    return version.feed_forward(x, w1, b1, w2, b2, activation, chunk_length, dropout)


def cross_entropy(
    hidden: Float[Tensor, "*batch d"],
    weight: Float[Tensor, "d V"],
    bias: Float[Tensor, " V"] | None,
    targets: Int[Tensor, "*batch"],
    chunk_length: int | None = None,
    *,
    backend: str = "auto",
) -> Float[Tensor, ""]:
    """Compute the mean of log Σ_v exp(z_v) - z_target in nats, logits z = hidden · weight + bias.

    The (N, V) logits exist for one chunk of positions at a time (paper section 3).

    Args:
        hidden: at least one position.
        weight: matrix of the logits.
        bias: its bias, or None.
        targets: in [0, V), or IGNORED = -100 where a position does not count.
        chunk_length: positions worked on at a time; None: all at once.
        backend: as in ``feed_forward``.

    Returns:
        A scalar, float32 for inputs in half precision.

    Raises:
        TypeError: for a wrong type, or mixed dtypes outside autocast.
        ValueError: for shapes that do not fit, another device, targets out of range, or none that
            counts. Values are not read on CUDA, unless REFORMER_CHECK_VALUES=1.
    """
    _require_same_kind("hidden", hidden, weight=weight, bias=bias)
    _require_positions("hidden", hidden, 1, "(…, d)")
    vocab_size = weight.shape[-1] if weight.ndim else 0
    require_shape("weight", weight, (hidden.shape[-1], vocab_size), "(d, V)")
    if bias is not None:
        require_shape("bias", bias, (vocab_size,), "(V)")
    targets = require_targets(targets, hidden.shape[:-1], vocab_size, hidden.device)
    if chunk_length is not None:
        chunk_length = require_int("chunk_length", chunk_length)
    version = BACKENDS[require_choice("backend", backend, tuple(BACKENDS))]
    return version.cross_entropy(hidden, weight, bias, targets, chunk_length)


class FeedForward(nn.Module):
    """The feed-forward layer w2(dropout(activation(w1 x))) with its parameters.

    Weights start normal with variance 1 / inputs, biases at zero.

    Args:
        d_model: width of inputs and outputs.
        d_ff: width of the hidden activations.
        activation: "relu" or "gelu".
        dropout: rate at the hidden activations, in training.
        chunk_length: positions worked on at a time; None: all at once.
        bias: whether there are biases; without, ``b1`` and ``b2`` are None.
        generator: draws the weights; None: torch's global one.
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        activation: str = "relu",
        dropout: float = 0.0,
        chunk_length: int | None = None,
        bias: bool = True,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.d_model = require_int("d_model", d_model)
        self.d_ff = require_int("d_ff", d_ff)
        self.activation = require_choice("activation", activation, tuple(ACTIVATIONS))
        self.dropout = require_float("dropout", dropout, minimum=0.0, below=1.0)
        self.chunk_length = chunk_length
        if chunk_length is not None:
            self.chunk_length = require_int("chunk_length", chunk_length)
        require_bool("bias", bias)
        require_fits(d_model=d_model, d_ff=d_ff)
        if generator is not None:
            require_generator("generator", generator)
        self.w1 = nn.Parameter(torch.randn(d_model, d_ff, generator=generator) * d_model**-0.5)
        self.b1 = nn.Parameter(torch.zeros(d_ff)) if bias else None
        self.w2 = nn.Parameter(torch.randn(d_ff, d_model, generator=generator) * d_ff**-0.5)
        self.b2 = nn.Parameter(torch.zeros(d_model)) if bias else None

    def forward(self, x: Float[Tensor, "*batch L d_model"]) -> Float[Tensor, "*batch L d_model"]:
        """The layer at every position of x."""
        dropout = self.dropout if self.training else 0.0
        weights = self.w1, self.b1, self.w2, self.b2
        return feed_forward(x, *weights, self.activation, self.chunk_length, dropout)

    def extra_repr(self) -> str:
        return (
            f"{self.d_model}, {self.d_ff}, activation={self.activation!r}, dropout={self.dropout}, "
            f"chunk_length={self.chunk_length}, bias={self.b1 is not None}"
        )


def require_targets(targets, shape, vocab_size, device):
    """``targets`` as int64, if they have this shape and lie in [0, vocab_size) or are IGNORED."""
    targets = require_integers("targets", targets)
    if targets.device != device:
        raise ValueError(
            f"targets must be on the device of hidden ({device}), got {targets.device}"
        )
    require_shape("targets", targets, shape, "hidden without its last axis")
    if has_values(targets):
        counted = targets[targets != IGNORED]
        if not len(counted):
            accepted = f"at least one position that counts, got only {IGNORED}"
            raise ValueError(f"targets must hold {accepted}")
        low, high = (int(value) for value in counted.aminmax())
        if low < 0 or high >= vocab_size:
            accepted = f"[0, {vocab_size}) or {IGNORED}, got values from {low} to {high}"
            raise ValueError(f"targets must be in {accepted}")
    return targets


def _require_same_kind(first_name, first, **others):
    """Floating-point tensors on one device and, outside autocast, of one dtype; None is skipped."""
    require_floating(first_name, first)
    autocast = torch.amp.is_autocast_available(first.device.type) and torch.is_autocast_enabled(
        first.device.type
    )
    for name, tensor in others.items():
        if tensor is not None:
            require_floating(name, tensor)
            if not autocast or tensor.device != first.device:
                require_same_kind(first_name, first, **{name: tensor})


def _require_positions(name, tensor, least, shape):
    if tensor.ndim < least or tensor.numel() == 0:
        accepted = f"shape {shape} and hold at least one position"
        raise ValueError(f"{name} must have {accepted}, got {tuple(tensor.shape)}")
