"""The model's layers, added to a stream and taken away from it in place (`InPlaceLayer`).

Projections and feed-forward work on ``config.ff_chunk`` positions at a time and attention on a few
heads, so that a long sequence needs little memory beyond the streams themselves. A slice is changed
by ``add_``: after ``+=``, Python would copy it onto itself.
"""

import torch
import torch.nn.functional as F
from torch import nn

from reformer_ref._blocks import block_device
from reformer_ref.feed_forward import FeedForward
from reformer_ref.feed_forward.chunked import chunk_ranges
from reformer_ref.feed_forward.pytorch import feed_forward
from reformer_ref.model.layers import FeedForwardLayer, SelfAttention, merge_heads, split_heads
from reformer_ref.reversible.in_place import ModuleLayer

ROWS_AT_A_TIME = 1 << 16  # tokens times heads that attention works on together
ROWS_ON_CUDA = 1 << 18  # few large operations; a million tokens are so many in one head
SUBMODULES = (nn.Linear, nn.LayerNorm, nn.Dropout, FeedForward)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def in_place_layer(layer):
    """The `InPlaceLayer` of a layer of the model."""
    version = None
    if type(layer) is SelfAttention:
        version = InPlaceAttention(layer)
    elif type(layer) is FeedForwardLayer:
        version = InPlaceFeedForward(layer)
    if version is None or not computed_by_its_weights(layer, version.weights):
        return ModuleLayer(layer)
    return version


def computed_by_its_weights(layer, names):
    """Whether the weights of these names, and nothing else, say what the layer computes now.

    The in-place versions read a layer's weights and never call its submodules. They must not stand
    in for it when something else has a say: dropout (its mask spans all positions and heads), a
    submodule of another type or with other options, a weight that is missing, added or shared, a
    hook, or a patched ``forward``.
    """
    for module in layer.modules():
        if module is not layer and type(module) not in SUBMODULES:
            return False
        if "forward" in vars(module):
            return False
        for hooks in HOOKS:
            if getattr(module, hooks):
                return False
        if isinstance(module, nn.Dropout) and module.p and module.training:
            return False
        if isinstance(module, nn.LayerNorm) and module.eps != layer.config.norm_eps:
            return False
        if isinstance(module, FeedForward) and module.activation != layer.config.activation:
            return False
        if isinstance(module, FeedForward) and module.dropout and module.training:
            return False
    return tuple(dict(layer.named_parameters())) == names


class InPlaceFeedForward:
    """A `FeedForwardLayer` in place, one chunk of positions after the other."""

    weights = ("norm.weight", "norm.bias", "inner.w1", "inner.b1", "inner.w2", "inner.b2")

    def __init__(self, module):
        self.module = module

    def add_(self, y, x, context, saved):
        params = dict(self.module.named_parameters())
        for chunk in self._chunks(x):
            y[:, chunk].add_(self._compute(x[:, chunk], params))

    def subtract_(self, y, d_y, x, d_x, params, context, saved):
        params = {name: p.detach().requires_grad_() for name, p in params.items()}
        d_params = zeros_for_sums(params)
        for chunk in self._chunks(x):
            # 1. Compute the chunk again.
            x_chunk = x[:, chunk].detach().requires_grad_()
            with torch.enable_grad():
                out = self._compute(x_chunk, params)
            # 2. Undo it.
            y[:, chunk].sub_(out.detach())
            # 3. Differentiate it.
            d_out = d_y[:, chunk].to(out.dtype)
            d_x_chunk, *d_chunk = torch.autograd.grad(out, (x_chunk, *params.values()), d_out)
            d_x[:, chunk].add_(d_x_chunk)
            for d_param, d in zip(d_params.values(), d_chunk, strict=True):
                d_param += d
        return [], {name: d.to(params[name].dtype) for name, d in d_params.items()}

    def _chunks(self, x):
        return chunk_ranges(x.shape[1], self.module.config.ff_chunk)

    def _compute(self, x, params):
        config = self.module.config
        w1, b1 = params["inner.w1"], params["inner.b1"]
        w2, b2 = params["inner.w2"], params["inner.b2"]
        return feed_forward(layer_norm(x, params, config), w1, b1, w2, b2, config.activation)


class InPlaceAttention:
    """A `SelfAttention` in place: one group of heads after the other, projections in chunks."""

    def __init__(self, module):
        self.module, self.config = module, module.config
        self.inputs = ["q", "v"] if module.k is None else ["q", "k", "v"]
        projections = [f"{name}.weight" for name in (*self.inputs, "out")]
        self.weights = ("norm.weight", "norm.bias", *projections)

    def add_(self, y, x, context, saved):
        params = dict(self.module.named_parameters())
        for heads in self._head_groups(x):
            # 1. Attention of these heads.
            projected = self._project(x, heads, params)
            out = self._attend(projected, heads, context, saved)  # (B, L, heads·d_v)
            # 2. Their part of the output projection, added chunk by chunk.
            weight = params["out.weight"][:, self._columns("v", heads)]
            for chunk in self._chunks(x):
                y[:, chunk].add_(F.linear(out[:, chunk], weight))

    def subtract_(self, y, d_y, x, d_x, params, context, saved):
        d_params = zeros_for_sums(params)
        for heads in self._head_groups(x):
            # 1. Compute attention again, as a function of its projections.
            projected = self._project(x, heads, params)
            for t in projected.values():
                t.requires_grad_()
            with torch.enable_grad():
                out = self._attend(projected, heads, context, saved)
            # 2. Undo it, and differentiate the output projection.
            columns = self._columns("v", heads)
            weight = params["out.weight"][:, columns].detach()
            d_out = torch.empty_like(out)
            for chunk in self._chunks(x):
                out_chunk, d_y_chunk = out[:, chunk].detach(), d_y[:, chunk]
                y[:, chunk].sub_(F.linear(out_chunk, weight))
                d_out[:, chunk] = d_y_chunk @ weight
                d_weight = rows(d_y_chunk).t() @ rows(out_chunk)
                d_params["out.weight"][:, columns].add_(d_weight)
            # 3. Differentiate attention, then the projections.
            d_inputs = torch.autograd.grad(out, tuple(projected.values()), d_out)
            d_projected = dict(zip(projected, d_inputs, strict=True))
            del out, d_out, projected, d_inputs
            self._project_backward(x, d_x, d_projected, heads, params, d_params)
        return [], {name: d.to(params[name].dtype) for name, d in d_params.items()}

    def _attend(self, projected, heads, context, saved):
        padding_mask, rotation_seed = context[:2]
        q, v = split_heads(projected["q"], len(heads)), split_heads(projected["v"], len(heads))
        k = split_heads(projected["k"], len(heads)) if "k" in projected else None
        buckets = self.module.buckets(q, padding_mask, rotation_seed, saved, heads)
        return merge_heads(self.module.attend(q, k, v, padding_mask, buckets))

    def _project(self, x, heads, params):
        """{"q": (B, L, heads·d_head), …}: norm and projections, chunk by chunk, without a graph."""
        projected = {}
        with torch.no_grad():
            for chunk in self._chunks(x):
                normal = layer_norm(x[:, chunk], params, self.config)
                for name in self.inputs:
                    weight = params[f"{name}.weight"][self._columns(name, heads)]
                    out = F.linear(normal, weight)  # (B, chunk, heads·d)
                    if len(out[0]) == x.shape[1]:  # the only chunk
                        projected[name] = out
                        continue
                    if name not in projected:
                        projected[name] = out.new_empty(*x.shape[:2], out.shape[-1])
                    projected[name][:, chunk] = out
        return projected

    def _project_backward(self, x, d_x, d_projected, heads, params, d_params):
        """The gradients of ``_project``, added to d_x and d_params chunk by chunk."""
        norm = {
            name: params[name].detach().requires_grad_() for name in ("norm.weight", "norm.bias")
        }
        for chunk in self._chunks(x):
            # 1. Normalise the chunk again.
            x_chunk = x[:, chunk].detach().requires_grad_()
            with torch.enable_grad():
                normal = layer_norm(x_chunk, norm, self.config)
            # 2. Differentiate the projections.
            d_normal = None
            for name, d in d_projected.items():
                columns, d = self._columns(name, heads), d[:, chunk]
                term = (d @ params[f"{name}.weight"][columns].detach()).to(normal.dtype)
                d_normal = term if d_normal is None else d_normal.add_(term)
                d_weight = rows(d).t() @ rows(normal.detach())
                d_params[f"{name}.weight"][columns].add_(d_weight)
            # 3. Differentiate the norm.
            inputs = (x_chunk, *norm.values())
            d_x_chunk, d_weight, d_bias = torch.autograd.grad(normal, inputs, d_normal)
            d_x[:, chunk].add_(d_x_chunk)
            d_params["norm.weight"] += d_weight
            d_params["norm.bias"] += d_bias

    def _columns(self, name, heads):
        """Where the outputs of these heads are among those of a projection."""
        width = self.config.d_v if name == "v" else self.config.d_head
        return slice(heads.start * width, heads.stop * width)

    def _head_groups(self, x):
        """Heads to work on together: as many as fit a number of rows, at least one."""
        n_heads = self.config.n_heads
        on_cuda = not x.is_cpu and block_device(x.device) == "cuda"
        at_a_time = ROWS_ON_CUDA if on_cuda else ROWS_AT_A_TIME
        step = max(1, at_a_time // (x.shape[0] * x.shape[1]))
        return [range(h, min(h + step, n_heads)) for h in range(0, n_heads, step)]

    def _chunks(self, x):
        return chunk_ranges(x.shape[1], self.config.ff_chunk)


def zeros_for_sums(params):
    """Zeros to add the gradients of chunks to: float32 at least, since the sum may be long."""
    zeros = {}
    for name, p in params.items():
        zeros[name] = torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32))
    return zeros


def layer_norm(x, params, config):
    """The layer's norm with its weights among ``params``."""
    scale, bias = params["norm.weight"], params["norm.bias"]
    return F.layer_norm(x, x.shape[-1:], scale, bias, config.norm_eps)


def rows(x):
    """(B, L, d) -> (B·L, d)"""
    return x.flatten(0, 1)
