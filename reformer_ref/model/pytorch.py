"""The whole Reformer, in PyTorch: halves of reversible blocks, a backbone of them, and the language
model on top.

Tokens are embedded, positions added, and the result stands in both residual streams. Each layer
adds attention to the first stream and a feed-forward layer to the second; at the end the streams
are joined and normalised (paper section 3).
"""

import torch
from torch import nn

from reformer_ref._arguments import require_bool, require_int, require_shape
from reformer_ref._tensors import has_values, require_floating, require_padding_mask, require_tensor
from reformer_ref.feed_forward.pytorch import IGNORED, require_targets, sliced, total_nats
from reformer_ref.model.config import padding_to_multiple, require_config
from reformer_ref.model.layers import CrossAttention, FeedForwardLayer, SelfAttention
from reformer_ref.positions.modules import AxialPositions, LearnedPositions, SinusoidalPositions
from reformer_ref.reversible.pytorch import ReversibleBlock, ReversibleStack, reversible_loss


class ResidualStack(nn.Module):
    """The residuals of an ordinary Transformer over the same blocks: y = x + F(x), z = y + G(y),
    all of it stored.
    """

    def __init__(self, blocks):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x, _, *extras):
        """(z, z) from x (B, L, d_model), given twice as to a `ReversibleStack`."""
        for block in self.blocks:
            for half in block.layers:
                x = x + half(x, *extras)
        return x, x


class ReformerBackbone(nn.Module):
    """Everything between tokens and head: tokens (B, L) -> (B, L, 2·d_model), both streams joined
    and normalised.
    """

    def __init__(self, config, cross_attention=False):
        super().__init__()
        self.config = require_config(config)
        require_bool("cross_attention", cross_attention)
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.positions = {
            "axial": lambda: AxialPositions(config.axial_shape, config.axial_dims),
            "learned": lambda: LearnedPositions(config.max_length, config.d_model),
            "sinusoidal": lambda: SinusoidalPositions(config.d_model),
            "none": lambda: None,
        }[config.positions]()
        blocks = []
        for index, kind in enumerate(config.layers):
            middle = [CrossAttention(config)] if cross_attention else []
            blocks.append(
                ReversibleBlock(
                    SelfAttention(config, kind, index), *middle, FeedForwardLayer(config)
                )
            )
        self.stack = (
            ReversibleStack(blocks, config.reversible)
            if config.streams == 2
            else ResidualStack(blocks)
        )
        self.norm = nn.LayerNorm(2 * config.d_model, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, tokens, padding_mask=None, generator=None, encoder_output=None, encoder_mask=None
    ):
        length = tokens.shape[1]
        tokens, padding_mask = self._to_multiple(tokens, padding_mask)
        x = self.embed(tokens, padding_mask)
        y1, y2 = self.stack(
            x, x, *self._extras(padding_mask, generator, encoder_output, encoder_mask)
        )
        return self.final_norm(y1, y2)[:, :length]  # (B, L, 2·d_model)

    def loss(
        self,
        head,
        tokens,
        targets,
        padding_mask=None,
        generator=None,
        encoder_output=None,
        encoder_mask=None,
    ):
        """Mean nats of ``targets`` (B, L), −100 = not counted, in slices; head None: tied to the
        embedding.
        """
        tokens, padding_mask = self._to_multiple(tokens, padding_mask)
        targets = nn.functional.pad(targets, (0, tokens.shape[1] - targets.shape[1]), value=IGNORED)
        x = self.embed(tokens, padding_mask)
        extras = self._extras(padding_mask, generator, encoder_output, encoder_mask)
        weights = (self.norm.weight, self.norm.bias, *self.head_weights(head))
        count, dropout = (
            (targets != IGNORED).sum(),
            self._dropout(),
        )  # as it is now, also when backward replays it

        def nats(y1, y2, targets, scale, bias, *head):
            def of_slice(y1, y2, targets, scale, bias, *head):
                hidden, weight, head_bias = head_inputs(
                    self._final_norm(y1, y2, scale, bias, dropout), *head
                )
                return total_nats(hidden, targets, weight, head_bias)

            slice_length = self.config.loss_chunk
            return (
                sliced(
                    of_slice,
                    (y1, y2, targets),
                    (scale, bias, *head),
                    slice_length,
                    dim=1,
                    total=True,
                )
                / count
            )

        if self.config.streams == 1:
            return nats(*self.stack(x, x, *extras), targets, *weights)
        return reversible_loss(
            nats,
            x,
            x,
            self.stack.blocks,
            *extras,
            head_tensors=(targets, *weights),
            reversible=self.stack.reversible,
        )

    def embed(self, tokens, padding_mask=None):
        """What both streams start from: (B, L, d_model)."""
        return self.embed_at(tokens, count_positions(tokens, padding_mask))

    def embed_at(self, tokens, positions):
        """Tokens (…) at given positions, int64 of the same shape or broadcast to it: (…, d_model)."""
        x = self.dropout(self.embedding(tokens))
        return x if self.positions is None else x + self.positions(positions).to(x.dtype)

    def head_weights(self, head):
        """What ``head_inputs`` takes: weight and bias of the head, or the embedding alone if there is
        none (tied).
        """
        if head is None:
            return (self.embedding.weight,)
        hooked = isinstance(head, nn.Linear) and (head._forward_hooks or head._forward_pre_hooks)
        if (
            not isinstance(head, nn.Linear)
            or type(head).forward is not nn.Linear.forward
            or hooked
            or head.bias is None
        ):
            raise TypeError(
                "head must be an nn.Linear with a bias and without hooks: only its weights are read, in slices"
            )
        return head.weight, head.bias

    def final_norm(self, y1, y2):
        """Both streams side by side, normalised: (B, L, 2·d_model)."""
        return self._final_norm(y1, y2, self.norm.weight, self.norm.bias, self._dropout())

    def _dropout(self):
        return self.dropout.p if self.dropout.training else 0.0

    def _final_norm(self, y1, y2, scale, bias, dropout):
        both = torch.cat([y1, y2], dim=-1)
        joined = nn.functional.layer_norm(both, both.shape[-1:], scale, bias, self.norm.eps)
        return nn.functional.dropout(joined, dropout) if dropout else joined

    def _extras(self, padding_mask, generator, encoder_output, encoder_mask):
        seed = (
            None
            if generator is None
            else torch.randint(2**62, (), generator=generator, device="cpu")
        )
        return (
            (padding_mask, seed)
            if encoder_output is None
            else (padding_mask, seed, encoder_output, encoder_mask)
        )

    def _to_multiple(self, tokens, padding_mask):
        short = padding_to_multiple(self.config, tokens.shape[1])
        if not short:
            return tokens, padding_mask
        real = torch.ones_like(tokens, dtype=torch.bool) if padding_mask is None else padding_mask
        return nn.functional.pad(tokens, (0, short)), nn.functional.pad(real, (0, short))


class ReformerLM(nn.Module):
    """A Reformer language model (paper section 5), causal or, with ``config.causal=False``, masked.

    Initial weights and stored rotations depend on ``config.seed`` alone; the global random state is
    not touched.
    """

    def __init__(self, config):
        super().__init__()
        self.config = require_config(config)
        with torch.random.fork_rng(devices=[]):
            self.backbone = ReformerBackbone(config)
            self.head = (
                None if config.tie_head else nn.Linear(2 * config.d_model, config.vocab_size)
            )
        initialize(self, config.seed)

    def forward(self, tokens, padding_mask=None, generator=None):
        """Logits (B, L, vocab_size) of tokens (B, L), int64 or int32.

        padding_mask: bool (B, L), True = real token; positions count real tokens only, so padding
        on any side changes nothing (with ``lsh.wrap``: see ``LSHOptions``). Where ``lsh.n_buckets``
        is None, the longest sequence of the batch decides for all. generator: a CPU
        ``torch.Generator`` from which fresh rotations are drawn for this call; None uses the stored
        ones. ValueError or TypeError for tokens that do not fit the configuration.
        """
        return self.logits(self.hidden(tokens, padding_mask, generator))

    def logits(self, hidden):
        """Logits (…, vocab_size) of hidden (…, 2·d_model), as ``hidden`` returns it."""
        hidden, weight, bias = head_inputs(hidden, *self.backbone.head_weights(self.head))
        return hidden @ weight + bias

    def hidden(self, tokens, padding_mask=None, generator=None):
        """What the head sees: (B, L, 2·d_model)."""
        return self.backbone(tokens, self._check(tokens, padding_mask, generator), generator)

    def loss(self, tokens, targets=None, padding_mask=None, generator=None):
        """Mean cross-entropy in nats over the predicted tokens, computed in slices of
        ``config.loss_chunk`` positions.

        targets: int (B, L), what each position should say, −100 = not counted; None: the next token
        (causal models), padding not counted. Each loss can be differentiated once. Hooks on backbone,
        stack and norm do not run.
        """
        padding_mask = self._check(tokens, padding_mask, generator)
        if targets is None:
            if not self.config.causal:
                raise ValueError(
                    "targets must be given for a model that is not causal (−100 where nothing is asked)"
                )
            if tokens.shape[1] < 2:
                raise ValueError("tokens must hold at least 2 tokens to predict one, got 1")
            targets = next_tokens(tokens, padding_mask)
        else:
            _require_integers("targets", targets, tokens.device)
            require_shape("targets", targets, tokens.shape, "(batch, length) of tokens")
            targets = (
                targets if padding_mask is None else targets.masked_fill(~padding_mask, IGNORED)
            )
        targets = require_targets(targets, tokens.shape, self.config.vocab_size, tokens.device)
        return self.backbone.loss(self.head, tokens, targets, padding_mask, generator)

    @classmethod
    def from_huggingface(cls, model_or_state_dict, config=None, *, add_head_bias=False):
        """A model with the weights of a Reformer of transformers, and equal logits: see
        ``huggingface.carry_over``.
        """
        from reformer_ref.huggingface.weights import carry_over

        return carry_over(cls, model_or_state_dict, config, add_head_bias=add_head_bias)

    def _check(self, tokens, padding_mask, generator):
        return check_tokens(
            self.config,
            tokens,
            padding_mask,
            generator,
            device=self.backbone.embedding.weight.device,
        )

    def extra_repr(self):
        return repr(self.config)


def head_inputs(hidden, weight, bias=None):
    """(hidden, weight (d, vocab_size), bias): what the logits are made of. hidden (…, 2·d_model)
    from the backbone.

    weight (vocab_size, 2·d_model) and bias of a head; or the embedding (vocab_size, d_model) alone,
    tied: it reads both streams, scaled to logits of variance about 1.
    """
    if require_floating("weight", weight).ndim != 2:
        raise ValueError(f"weight must have shape (vocab_size, width), got {tuple(weight.shape)}")
    width = (1 if bias is not None else 2) * weight.shape[1]
    if require_floating("hidden", hidden).ndim < 1 or hidden.shape[-1] != width:
        raise ValueError(
            f"hidden must have shape (…, {width}), as weight wants it, got {tuple(hidden.shape)}"
        )
    if bias is not None:
        require_shape("bias", require_floating("bias", bias), weight.shape[:1], "(vocab_size)")
        return hidden, weight.t(), bias
    first, second = hidden.chunk(2, dim=-1)
    return (
        (first + second) * (2 * weight.shape[1]) ** -0.5,
        weight.t(),
        weight.new_zeros(weight.shape[0]),
    )


def count_positions(tokens, padding_mask=None):
    """Position of each token among the real tokens: int64 (L,), or (B, L) with a mask."""
    padding_mask = _require_rows(tokens, padding_mask)
    if padding_mask is None:
        return torch.arange(tokens.shape[1], device=tokens.device)
    return (padding_mask.long().cumsum(1) - 1).clamp(min=0)


def next_tokens(tokens, padding_mask=None):
    """Targets of a causal model: the next real token, −100 at the end, for padding, and where none
    follows.
    """
    padding_mask = _require_rows(tokens, padding_mask)
    _require_integers("tokens", tokens, None)
    targets = torch.full_like(tokens, IGNORED, dtype=torch.int64)
    if padding_mask is None:
        targets[:, :-1] = tokens[:, 1:]
        return targets
    order = torch.sort((~padding_mask).int(), dim=1, stable=True).indices  # real tokens first
    follows = padding_mask.gather(1, order)[:, 1:]
    following = tokens.gather(1, order)[:, 1:].long().masked_fill(~follows, IGNORED)
    return targets.scatter(1, order[:, :-1], following).masked_fill(~padding_mask, IGNORED)


@torch.no_grad()
def initialize(model, seed):
    """Weights from one generator, in the order of ``named_parameters``, then rotations.

    Embeddings and positions N(0, 1), weight matrices N(0, 1 / inputs), biases 0, norms 1.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    generator = torch.Generator().manual_seed(require_int("seed", seed, 0, 2**63 - 1))
    norms = {id(p) for m in model.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters()}
    linear = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    for name, p in model.named_parameters():
        if p.is_meta:  # shapes only: there is nothing to draw
            continue
        if id(p) in norms or p.ndim == 1:
            p.fill_(1.0 if id(p) in norms and name.endswith("weight") else 0.0)
            continue
        table = "embedding" in name or "positions" in name
        inputs = 1 if table else p.shape[1] if id(p) in linear else p.shape[0]
        p.copy_(torch.randn(p.shape, generator=generator, device="cpu") * inputs**-0.5)
    for name, buffer in model.named_buffers():
        if name.endswith("rotations"):
            buffer.copy_(torch.randn(buffer.shape, generator=generator, device="cpu"))


def check_tokens(config, tokens, padding_mask, generator=None, *, name="tokens", device=None):
    """The mask expanded to tokens' shape; TypeError or ValueError if tokens, mask or generator do
    not fit.
    """
    require_config(config)
    _require_integers(name, tokens, device)
    if tokens.ndim != 2 or 0 in tokens.shape:
        raise ValueError(
            f"{name} must have shape (batch, length) with both ≥ 1, got {tuple(tokens.shape)}"
        )
    if tokens.shape[1] > config.max_length:
        raise ValueError(
            f"{name} must be at most max_length = {config.max_length} long, got {tokens.shape[1]}"
        )
    if has_values(tokens) and not bool(((tokens >= 0) & (tokens < config.vocab_size)).all()):
        low, high = (int(value) for value in tokens.aminmax())
        raise ValueError(f"{name} must lie in 0 … {config.vocab_size - 1}, got {low} … {high}")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(
            f"generator must be a torch.Generator or None, got {type(generator).__name__}"
        )
    if generator is not None and generator.device.type != "cpu":
        raise ValueError(
            f"generator must be on the CPU, to draw the same everywhere, got one on {generator.device}"
        )
    return require_padding_mask(padding_mask, tokens.shape, tokens.device)


def _require_integers(name, tokens, device):
    """TypeError or ValueError unless ``tokens`` is int64 or int32, on ``device`` if one is given."""
    if (
        require_tensor(name, tokens).dtype not in (torch.int64, torch.int32)
        or tokens.layout != torch.strided
    ):
        raise TypeError(
            f"{name} must be int64 or int32, dense, got {tokens.dtype}, {tokens.layout}"
        )
    if device is not None and tokens.device != device:
        raise ValueError(f"{name} must be on {device}, got {tokens.device}")


def _require_rows(tokens, padding_mask):
    """The mask expanded to the shape of ``tokens`` (B, L); TypeError or ValueError if the two do
    not fit.
    """
    if require_tensor("tokens", tokens).ndim != 2:
        raise ValueError(f"tokens must have shape (batch, length), got {tuple(tokens.shape)}")
    return require_padding_mask(padding_mask, tokens.shape, tokens.device)
