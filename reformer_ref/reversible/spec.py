"""Reversible residual stack (paper section 3, "Reversible Transformer"), in NumPy float64.

A block is a pair (F, G) and works on two streams of equal shape:

    y1 = x1 + F(x2)        x2 = y2 - G(y1)
    y2 = x2 + G(y1)        x1 = y1 - F(x2)

Each line changes one stream by a function of the other, so it can be undone without storing
anything. A stack is the flat sequence of its layers F, G, F, G, ..., which change stream 1, stream
2, stream 1, ... in turn. A block with another number of layers than two (a decoder block has three)
just continues the sequence. Earlier: Gomez et al. 2017, RevNet.

A layer is a callable ``layer(x) -> array like x`` with a method ``layer.vjp(x, d_out) -> (d_x,
d_params)``, where ``d_params`` is a dict from parameter name to gradient.
"""

import numpy as np


def reversible_stack(x1, x2, blocks):
    """The output streams (y1, y2) of streams x1, x2 (..., d_model).

    blocks: a sequence of blocks, each a sequence of layers (usually the pair (F, G)).
    """
    streams = [np.asarray(x1, np.float64), np.asarray(x2, np.float64)]
    for k, layer in enumerate(flat(blocks)):
        target, source = k % 2, 1 - k % 2
        streams[target] = streams[target] + layer(streams[source])
    return tuple(streams)


def reversible_stack_inverse(y1, y2, blocks):
    """The inputs (x1, x2) of the stack that gave (y1, y2): the layers in reverse order, subtracted.

    Exact up to rounding, which grows with depth where the layers amplify it.
    """
    streams = [np.asarray(y1, np.float64), np.asarray(y2, np.float64)]
    for k, layer in reversed(list(enumerate(flat(blocks)))):
        target, source = k % 2, 1 - k % 2
        streams[target] = streams[target] - layer(streams[source])
    return tuple(streams)


def reversible_stack_vjp(y1, y2, blocks, d_y1, d_y2):
    """Inputs and gradients of the stack, from its outputs and their gradients alone.

    For y1 = x1 + F(x2): d_x1 = d_y1 and d_x2 = d_y2 + F'(x2)^T d_y1, where d_y2 is the gradient of
    everything that comes after the layer, G included.

    Returns (x1, x2, d_x1, d_x2, d_params); d_params is a list with one tuple per block, holding one
    dict per layer, (dict_f, dict_g) for a pair.
    """
    streams = [np.asarray(y1, np.float64), np.asarray(y2, np.float64)]
    d_streams = [np.asarray(d_y1, np.float64), np.asarray(d_y2, np.float64)]
    d_layers = []
    for k, layer in reversed(list(enumerate(flat(blocks)))):
        target, source = k % 2, 1 - k % 2
        x = streams[source]
        # 1. undo the layer
        streams[target] = streams[target] - layer(x)
        # 2. differentiate it at its input; the stream that it reads collects both gradients
        d_x, d_params = layer.vjp(x, d_streams[target])
        d_streams[source] = d_streams[source] + d_x
        d_layers.insert(0, d_params)
    remaining = iter(d_layers)
    d_blocks = [tuple(next(remaining) for _ in block) for block in blocks]
    return (*streams, *d_streams, d_blocks)


def flat(blocks):
    """All layers of all blocks, in the order in which they are applied."""
    return [layer for block in blocks for layer in block]
