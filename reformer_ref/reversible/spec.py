"""Reversible residual stack (Reformer paper, section 3, "Reversible Transformer"; Gomez et al.
2017, RevNet), in NumPy.

A block is a pair (F, G) and works on two streams of equal shape:

    y1 = x1 + F(x2)        x2 = y2 - G(y1)
    y2 = x2 + G(y1)        x1 = y1 - F(x2)

Each line is a *half* step: one stream is changed by a function of the other, so the line can be
undone without storing anything. A stack is the flat sequence of its halves, changing stream 1,
stream 2, stream 1, ... in turn. A block with another number of halves than two (a decoder layer
with three sublayers) just continues the sequence.

A half is a callable ``h(x) -> array like x`` with a method ``h.vjp(x, d_out) -> (d_x, d_params)``,
where ``d_params`` is a dict from parameter name to gradient.
"""

from reformer_ref._arguments import as_floats, shown


def reversible_stack(x1, x2, blocks):
    """The two output streams of a stack of reversible blocks.

    Args:
        x1, x2: (..., d_model) float arrays of equal shape, the two streams.
        blocks: sequence of blocks, each a sequence of halves (usually the pair (F, G)).

    Returns:
        (y1, y2), each (..., d_model): the streams in their original roles.

    Raises:
        ValueError: shapes differ, NaN or infinity, no blocks or a block without halves, a half that
        returns another
            shape.
        TypeError: not real floating-point arrays, or a half that is not a callable with a ``vjp``
        method.
    """
    streams = _streams(("x1", x1), ("x2", x2))
    for k, half in enumerate(_halves(blocks)):
        target, source = k % 2, 1 - k % 2
        streams[target] = streams[target] + _call(half, streams[source])
    return tuple(streams)


def reversible_stack_inverse(y1, y2, blocks):
    """The inputs (x1, x2) of the stack that gave (y1, y2): the halves in reverse order, subtracted.

    Exact up to rounding, which grows with depth where the halves amplify it. Arguments, result and
    errors as in `reversible_stack`.
    """
    streams = _streams(("y1", y1), ("y2", y2))
    for k, half in reversed(list(enumerate(_halves(blocks)))):
        target, source = k % 2, 1 - k % 2
        streams[target] = streams[target] - _call(half, streams[source])
    return tuple(streams)


def reversible_stack_vjp(y1, y2, blocks, d_y1, d_y2):
    """Inputs and gradients of the stack from its outputs alone: undo one half, differentiate it, go
    on to the previous.

    For y1 = x1 + F(x2): d_x1 = d_y1 and d_x2 = d_y2 + F'(x2)^T d_y1, where d_y2 is the gradient of
    everything that comes after the half, G included.

    Args:
        y1, y2: (..., d_model) outputs of `reversible_stack`.
        blocks: as in `reversible_stack`.
        d_y1, d_y2: (..., d_model) gradients of a scalar with respect to y1 and y2.

    Returns:
        (x1, x2, d_x1, d_x2, d_params): reconstructed inputs, their gradients, and the parameters'
        gradients as a list with one tuple per block holding one dict per half, (dict_f, dict_g) for
        a pair.
    """
    streams = _streams(("y1", y1), ("y2", y2))
    d_streams = _streams(("d_y1", d_y1), ("d_y2", d_y2))
    if d_streams[0].shape != streams[0].shape:
        raise ValueError(
            f"d_y1 and d_y2 must have the shape of y1, {streams[0].shape}, got {d_streams[0].shape}"
        )
    halves = _halves(blocks)
    d_halves = [None] * len(halves)
    for k, half in reversed(list(enumerate(halves))):
        target, source = k % 2, 1 - k % 2
        x = streams[source]
        streams[target] = streams[target] - _call(half, x)
        d_x, d_halves[k] = _call_vjp(half, x, d_streams[target])
        d_streams[source] = d_streams[source] + d_x
    remaining = iter(d_halves)
    d_params = [tuple(next(remaining) for _ in block) for block in blocks]
    return (*streams, *d_streams, d_params)


def _halves(blocks):
    """All halves of all blocks, in the order in which they are applied."""
    if not isinstance(blocks, (list, tuple)) or not all(
        isinstance(block, (list, tuple)) for block in blocks
    ):
        what = "a sequence of pairs (f, g) or of longer sequences of halves"
        raise TypeError(f"blocks must be {what}, got {shown(blocks)}")
    if not blocks or not all(blocks):
        raise ValueError("blocks must hold at least one block, and each block at least one half")
    halves = [half for block in blocks for half in block]
    for half in halves:
        if isinstance(half, type) or not callable(half) or not callable(getattr(half, "vjp", None)):
            raise TypeError(f"blocks must hold callables with a vjp method, got {shown(half)}")
    return halves


def _call(half, x):
    out = as_floats("blocks: what a half returns", half(x))
    if out.shape != x.shape:
        raise ValueError(
            f"blocks: a half must return the shape of its input, {x.shape}, got {out.shape}"
        )
    return out


def _call_vjp(half, x, d_out):
    """(d_x, d_params) of a half."""
    found = half.vjp(x, d_out)
    if not isinstance(found, tuple) or len(found) != 2:
        raise TypeError(f"blocks: vjp must return (d_x, d_params), got {shown(found)}")
    d_x, d_params = as_floats("blocks: the d_x that vjp returns", found[0]), found[1]
    if d_x.shape != x.shape:
        raise ValueError(
            f"blocks: vjp must return a d_x of the shape of x, {x.shape}, got {d_x.shape}"
        )
    return d_x, d_params


def _streams(first, second):
    """The two streams as a list of float64 arrays; ``first`` and ``second`` are (name, array)."""
    a, b = (as_floats(name, x, must="be a floating-point array") for name, x in (first, second))
    if a.shape != b.shape:
        raise ValueError(
            f"{first[0]} and {second[0]} must have the same shape, got {a.shape} and {b.shape}"
        )
    return [a, b]
