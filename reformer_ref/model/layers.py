"""The halves of the model's reversible blocks: attention of every kind, and feed-forward.

Each half is an ordinary module, ``half(x)``. Self-attention and feed-forward can also be added to a
stream and taken away from it in place (see ``reversible.pytorch``): slice by slice of positions,
and for a few heads at a time, so that a long sequence needs little beyond the streams themselves.
"""

import torch
from torch import nn
from torch.nn import functional as F

from reformer_ref._arguments import bucket_factors, require_choice, require_int
from reformer_ref._tensors import has_values
from reformer_ref.attention.streaming import regular_attention, shared_qk_attention
from reformer_ref.feed_forward.pytorch import FeedForward, feed_forward
from reformer_ref.hashing.pytorch import random_rotations
from reformer_ref.hashing.streaming import hash_vectors
from reformer_ref.local_attention.api import unchecked_local_attention
from reformer_ref.lsh_attention.api import unchecked_lsh_attention
from reformer_ref.model.config import LAYER_KINDS, n_buckets_for, require_config, rotation_width

ROWS_AT_A_TIME = 1 << 16  # tokens times heads that attention works on together, where it may choose


class SelfAttention(nn.Module):
    """The half F: x (B, L, d_model) -> what attention adds. kind: "lsh", "local", "dense" or
    "regular".

    Parameters: norm, q (and k where queries and keys differ), v, out, none with a bias. An "lsh"
    layer holds ``rotations``, used unless the call brings a ``rotation_seed``. Buckets are kept in
    ``memo``: a replay never hashes again.
    """

    keeps_memo = True

    def __init__(self, config, kind, index):
        super().__init__()
        self.config, self.kind = require_config(config), require_choice("kind", kind, LAYER_KINDS)
        self.index = require_int("index", index, 0, 2**62)
        width_qk, width_v = config.n_heads * config.d_head, config.n_heads * config.d_v
        self.norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.q = nn.Linear(config.d_model, width_qk, bias=False)
        if kind in ("local", "regular"):
            self.k = nn.Linear(config.d_model, width_qk, bias=False)
        self.v = nn.Linear(config.d_model, width_v, bias=False)
        self.out = nn.Linear(width_v, config.d_model, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        if kind == "lsh":
            shape = (config.n_heads, config.lsh.n_hashes, config.d_head, rotation_width(config))
            self.register_buffer("rotations", torch.empty(shape))

    def forward(self, x, padding_mask=None, rotation_seed=None, *_, memo=None):
        x, every = self.norm(x), range(self.config.n_heads)
        projected = {name: layer(x) for name, layer in self.inputs().items()}
        out = self.attend(
            projected, every, padding_mask, rotation_seed, {} if memo is None else memo
        )
        return self.dropout(self.out(out))  # (B, L, d_model)

    def in_place(self, *_):
        """Whether ``add_`` and ``subtract_`` compute this half: not with dropout, whose mask spans
        all heads.
        """
        names = {f"{name}.weight" for name in (*self.inputs(), "out", "norm")} | {"norm.bias"}
        return _is_plain(self, names) and self.norm.eps == self.config.norm_eps

    def add_(self, y, x, padding_mask=None, rotation_seed=None, *_, memo):
        """y += half(x), a few heads at a time."""
        params = dict(self.named_parameters())
        for heads in self._groups(x):
            projected = self._project(x, heads, params)
            out = self.attend(projected, heads, padding_mask, rotation_seed, memo)
            weight = params["out.weight"][:, _span(heads, self.config.d_v)]
            for s in _slices(x, self.config.ff_chunk):
                y[:, s] += F.linear(out[:, s], weight)

    def subtract_(self, y, d_y, x, d_x, params, padding_mask=None, rotation_seed=None, *_, memo):
        """y −= half(x), d_x += what flows back from d_y; returns the gradients of ``params`` by
        name.
        """
        grads = {name: torch.zeros_like(p) for name, p in params.items()}
        for heads in self._groups(x):
            projected = self._project(x, heads, params)
            for t in projected.values():
                t.requires_grad_()
            with torch.enable_grad():
                out = self.attend(projected, heads, padding_mask, rotation_seed, memo)
            columns, d_out = _span(heads, self.config.d_v), torch.empty_like(out)
            weight = params["out.weight"][:, columns].detach()
            for s in _slices(x, self.config.ff_chunk):
                y[:, s] -= F.linear(out[:, s].detach(), weight)
                d_out[:, s] = d_y[:, s] @ weight
                grads["out.weight"][:, columns] += d_y[:, s].flatten(0, 1).t() @ out[
                    :, s
                ].detach().flatten(0, 1)
            d_projected = dict(
                zip(
                    projected,
                    torch.autograd.grad(out, tuple(projected.values()), d_out),
                    strict=True,
                )
            )
            del out, d_out, projected
            self._project_back(x, d_x, d_projected, heads, params, grads)
        return grads

    def hash(self, q, heads, rotation_seed=None, padding_mask=None):
        """Buckets (B, heads, n_hashes, L) of q (B, heads, L, d_head), in the smallest integers that
        hold them.

        Padding has no part in their number: the longest sequence of real tokens in the batch
        decides. (A traced model cannot know that length and takes L: give ``lsh.n_buckets`` where a
        compiled model is to see masks.)
        """
        length = q.shape[-2]
        if (
            padding_mask is not None
            and self.config.lsh.n_buckets is None
            and has_values(padding_mask)
        ):
            length = max(1, int(padding_mask.sum(-1).max()))
        n_buckets = n_buckets_for(self.config, length)
        rotations = self.rotations
        if rotation_seed is not None:
            generator = torch.Generator().manual_seed(int(rotation_seed) + self.index)
            shape = (self.config.lsh.n_hashes, self.config.d_head, n_buckets, self.config.n_heads)
            rotations = random_rotations(generator, *shape, device=q.device)
        rotations = rotations[heads.start : heads.stop, ..., : sum(bucket_factors(n_buckets)) // 2]
        return hash_vectors(q, rotations, n_buckets).to(
            _smallest_integer(bucket_factors(n_buckets))
        )

    def attend(self, projected, heads, padding_mask, rotation_seed, memo):
        """Attention of some heads: projected q, k, v (B, L, heads·d) -> (B, L, heads·d_v)."""
        c, n = self.config, len(heads)
        q, k, v = (
            projected[p].unflatten(-1, (n, -1)).transpose(1, 2) if p in projected else None
            for p in "qkv"
        )
        mask = None if padding_mask is None else padding_mask[:, None]
        if self.kind == "lsh":
            if heads not in memo:
                memo[heads] = self.hash(q, heads, rotation_seed, padding_mask)
            out = unchecked_lsh_attention(q, v, memo[heads], c.lsh, mask)
        elif self.kind == "local":
            out = unchecked_local_attention(q, k, v, c.local, mask)
        elif self.kind == "dense":
            out = shared_qk_attention(
                q, v, c.causal, mask, c.lsh.scale, c.lsh.norm_eps, block_size=c.dense_block
            )
        else:
            out = regular_attention(q, k, v, c.causal, mask, block_size=c.dense_block)
        return out.transpose(1, 2).flatten(2)

    def inputs(self):
        """The projections that attention is made of, by name."""
        return {name: getattr(self, name) for name in "qkv" if hasattr(self, name)}

    def _width(self, name):
        return self.config.d_v if name == "v" else self.config.d_head

    def _groups(self, x):
        """Heads to work on together: as many as make up ROWS_AT_A_TIME, at least one."""
        n, step = self.config.n_heads, max(1, ROWS_AT_A_TIME // (x.shape[0] * x.shape[1]))
        return [range(h, min(h + step, n)) for h in range(0, n, step)]

    def _project(self, x, heads, params):
        """{"q": (B, L, heads·d_head), …}: norm and projection, slice by slice, without a graph."""
        projected = {}
        with torch.no_grad():
            for s in _slices(x, self.config.ff_chunk):
                n = F.layer_norm(
                    x[:, s],
                    x.shape[-1:],
                    params["norm.weight"],
                    params["norm.bias"],
                    self.config.norm_eps,
                )
                for name in self.inputs():
                    piece = F.linear(n, params[f"{name}.weight"][_span(heads, self._width(name))])
                    if name not in projected:
                        projected[name] = piece.new_empty(*x.shape[:2], piece.shape[-1])
                    projected[name][:, s] = piece
        return projected

    def _project_back(self, x, d_x, d_projected, heads, params, grads):
        """The gradients of ``_project``: into d_x, into ``grads``; slice by slice."""
        scale, bias = (params[f"norm.{p}"].detach().requires_grad_() for p in ("weight", "bias"))
        for s in _slices(x, self.config.ff_chunk):
            x_here = x[:, s].detach().requires_grad_()
            with torch.enable_grad():
                n = F.layer_norm(x_here, x.shape[-1:], scale, bias, self.config.norm_eps)
            rows, d_n = n.detach().flatten(0, 1), torch.zeros_like(n)
            for name, d in d_projected.items():
                span = _span(heads, self._width(name))
                d_n += d[:, s] @ params[f"{name}.weight"][span].detach()
                grads[f"{name}.weight"][span] += d[:, s].flatten(0, 1).t() @ rows
            d_here, d_scale, d_bias = torch.autograd.grad(n, (x_here, scale, bias), d_n)
            d_x[:, s] += d_here
            grads["norm.weight"] += d_scale
            grads["norm.bias"] += d_bias


class CrossAttention(nn.Module):
    """A half that looks at an encoder, dense and plain: x (B, L, d_model), encoder_output (B, L_s,
    2·d_model) -> like x.

    ``encoder_mask`` bool (B, L_s), True = real token: it hides keys, for every query alike.
    """

    def __init__(self, config):
        super().__init__()
        self.config = require_config(config)
        self.norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.q = nn.Linear(config.d_model, config.n_heads * config.d_head, bias=False)
        self.k = nn.Linear(2 * config.d_model, config.n_heads * config.d_head, bias=False)
        self.v = nn.Linear(2 * config.d_model, config.n_heads * config.d_v, bias=False)
        self.out = nn.Linear(config.n_heads * config.d_v, config.d_model, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x, padding_mask=None, rotation_seed=None, encoder_output=None, encoder_mask=None
    ):
        q, k, v = (
            y.unflatten(-1, (self.config.n_heads, -1)).transpose(1, 2)
            for y in (self.q(self.norm(x)), self.k(encoder_output), self.v(encoder_output))
        )
        mask = None if encoder_mask is None else encoder_mask[:, None]
        out = regular_attention(q, k, v, False, mask, block_size=self.config.dense_block)
        return self.dropout(self.out(out.transpose(1, 2).flatten(2)))


class FeedForwardLayer(nn.Module):
    """The half G: norm and position-wise feed-forward layer, in slices of ``config.ff_chunk``
    positions.
    """

    def __init__(self, config):
        super().__init__()
        self.config = require_config(config)
        self.norm = nn.LayerNorm(config.d_model, eps=config.norm_eps)
        self.inner = FeedForward(
            config.d_model, config.d_ff, config.activation, slice_length=config.ff_chunk
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, *_):
        return self.dropout(self.inner(self.norm(x)))

    def in_place(self, *_):
        """Whether ``add_`` and ``subtract_`` compute this half: not with dropout, whose mask spans
        all positions.
        """
        names = {
            "norm.weight",
            "norm.bias",
            *(f"inner.{name}" for name in ("w1", "b1", "w2", "b2")),
        }
        same = (
            self.norm.eps == self.config.norm_eps
            and self.inner.activation == self.config.activation
        )
        return _is_plain(self, names) and same and not (self.inner.dropout and self.inner.training)

    def add_(self, y, x, *_, memo):
        """y += half(x), slice by slice."""
        params = dict(self.named_parameters())
        for s in _slices(x, self.config.ff_chunk):
            y[:, s] += self._plain(x[:, s], params)

    def subtract_(self, y, d_y, x, d_x, params, *_, memo):
        """y −= half(x), d_x += what flows back from d_y; returns the gradients of ``params`` by
        name.
        """
        params = {name: p.detach().requires_grad_() for name, p in params.items()}
        grads = {name: torch.zeros_like(p) for name, p in params.items()}
        for s in _slices(x, self.config.ff_chunk):
            x_here = x[:, s].detach().requires_grad_()
            with torch.enable_grad():
                out = self._plain(x_here, params)
            y[:, s] -= out.detach()
            d_here, *found = torch.autograd.grad(
                out, (x_here, *params.values()), d_y[:, s].to(out.dtype)
            )
            d_x[:, s] += d_here
            for total, d in zip(grads.values(), found, strict=True):
                total += d
        return grads

    def _plain(self, x, params):
        n = F.layer_norm(
            x, x.shape[-1:], params["norm.weight"], params["norm.bias"], self.config.norm_eps
        )
        return feed_forward(
            n, *(params[f"inner.{p}"] for p in ("w1", "b1", "w2", "b2")), self.config.activation
        )


def _is_plain(half, names):
    """Whether the weights of these names, and nothing else, say what ``half`` computes at the
    moment.

    Not so with dropout, other modules in place of ours, missing, added or shared weights, hooks, or
    a patched forward.
    """
    plain = (type(half), nn.Linear, nn.LayerNorm, nn.Dropout, FeedForward)
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    for m in half.modules():
        if type(m) not in plain or "forward" in vars(m) or any(getattr(m, h) for h in hooks):
            return False
        if isinstance(m, nn.Dropout) and m.p and m.training:
            return False
    return {name for name, _ in half.named_parameters()} == names


def _slices(x, slice_length):
    """Slices of positions of x (B, L, d)."""
    step = slice_length or x.shape[1]
    return [slice(start, start + step) for start in range(0, x.shape[1], step)]


def _span(heads, width):
    return slice(heads.start * width, heads.stop * width)


def _smallest_integer(factors):
    highest = 1
    for factor in factors:
        highest *= factor
    return next(
        (t for t in (torch.int16, torch.int32) if highest - 1 <= torch.iinfo(t).max), torch.int64
    )
