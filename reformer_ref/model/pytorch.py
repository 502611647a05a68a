"""The whole Reformer in PyTorch: a backbone of reversible blocks, and the language model on top.

Tokens are embedded, positions added, and the result starts both residual streams. Layers change the
streams in turn: in each block attention is added to the first stream and a feed-forward layer to the
second. (Blocks of a decoder have a third layer, cross-attention, so in every other block the streams
change places.) Layers normalise their inputs. At the end the streams are concatenated and normalised
(paper section 3).

Dropout stands where the authors' code has it: after the embedding, before positions are added; at
the end of every layer; and after the last norm.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from reformer_ref._tensors import require_finite, require_floating, require_same_kind
from reformer_ref.feed_forward.pytorch import IGNORED
from reformer_ref.model.arguments import check_head, check_targets, check_tokens
from reformer_ref.model.config import ReformerConfig, padding_to_multiple, require_config
from reformer_ref.model.in_place import in_place_layer
from reformer_ref.model.layers import CrossAttention, FeedForwardLayer, SelfAttention
from reformer_ref.model.loss import chunked_cross_entropy, final_norm, logits_of
from reformer_ref.positions import AxialPositions, LearnedPositions, SinusoidalPositions
from reformer_ref.reversible import ReversibleBlock, ReversibleStack
from reformer_ref.reversible.in_place import plain_stack, reversible_loss, unobserved
from reformer_ref.reversible.in_place import reversible_stack as reversible_stack_in_place
from reformer_ref.reversible.pytorch import reversible_stack
from reformer_ref.reversible.sharded import any_sharded, call_blocks, require_gathered

COMPUTED = "what the model computes from its weights"  # in messages, where it is not finite


class ReformerBackbone(nn.Module):
    """Everything between tokens and head.

    There are two ways through reversible layers. As in ``reversible.pytorch``, or, with ``in_place``
    (the default), each layer overwrites the stream that it changes (``model.in_place``): the same
    function in less memory.

    ``observe(pass_name, layer)`` returns a context manager that is entered around a layer's forward
    pass ("forward") and backward pass ("backward") in place, for instance to measure its time.
    """

    in_place = True
    observe = staticmethod(unobserved)

    def __init__(self, config, cross_attention=False):
        super().__init__()
        self.config = config
        # 1. Embeddings of tokens and of positions.
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.positions = None
        if config.positions == "axial":
            self.positions = AxialPositions(config.axial_shape, config.axial_dims)
        elif config.positions == "learned":
            self.positions = LearnedPositions(config.max_length, config.d_model)
        elif config.positions == "sinusoidal":
            self.positions = SinusoidalPositions(config.d_model)
        # 2. Blocks of an attention layer and a feed-forward layer, for a decoder with cross-attention
        #    between them. The index of a layer tells its rotations from those of the others.
        blocks = []
        for index, kind in enumerate(config.layers):
            layers = [SelfAttention(config, kind, index), FeedForwardLayer(config)]
            if cross_attention:
                layers.insert(1, CrossAttention(config))
            blocks.append(ReversibleBlock(*layers))
        self.stack = ReversibleStack(blocks, config.reversible)  # holds them; see _streams
        # 3. The norm of both streams, concatenated.
        self.norm = nn.LayerNorm(2 * config.d_model, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, tokens, padding_mask=None, generator=None, encoder_output=None, encoder_mask=None
    ):
        """What the head is given: (B, L, 2·d_model).

        tokens, padding_mask (B, L). A decoder also gets the output (B, L_s, 2·d_model) and the
        padding mask (B, L_s) of the encoder.
        """
        length = tokens.shape[1]
        tokens, padding_mask = self._pad(tokens, padding_mask)  # to a length L' ≥ L
        # Both residual streams start from the embedded tokens.
        x = self.embed(tokens, padding_mask)  # (B, L', d_model)
        context = self._context(padding_mask, generator, encoder_output, encoder_mask)
        y1, y2 = self._streams(x, context)  # (B, L', d_model) each
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
        """The mean cross-entropy of ``targets`` (B, L) in nats; −100 (IGNORED) is not counted.

        head: an nn.Linear, or None if it is tied to the embedding. Other arguments as in forward.
        """
        tokens, padding_mask = self._pad(tokens, padding_mask)
        targets = F.pad(targets, (0, tokens.shape[1] - targets.shape[1]), value=IGNORED)
        x = self.embed(tokens, padding_mask)  # (B, L, d_model)
        context = self._context(padding_mask, generator, encoder_output, encoder_mask)
        # The loss as a function of both streams: last norm, head and cross-entropy, in chunks of
        # positions. Its dropout rate is that of now, also if backward runs in another mode.
        loss_tensors = (targets, self.norm.weight, self.norm.bias, *self.head_weights(head))
        loss_of_streams = partial(
            chunked_cross_entropy,
            eps=self.norm.eps,
            dropout=self._dropout(),
            chunk_length=self.config.loss_chunk,
        )
        # In place, stack and loss are one function with one backward pass. It may overwrite the
        # streams, because nothing outside has seen them.
        if self._works_in_place() and not any_sharded(self.stack.blocks):
            layers = [in_place_layer(layer) for layer in self.layers()]
            return reversible_loss(
                loss_of_streams, loss_tensors, x, x, layers, *context, observe=self.observe
            )
        y1, y2 = self._streams(x, context)
        return loss_of_streams(y1, y2, *loss_tensors)

    def _streams(self, x, context):
        """Both streams after the last block. All layers are called ``layer(x, *context)``."""
        blocks, reversible = self.stack.blocks, self.stack.reversible
        if any_sharded(blocks):
            return call_blocks(self._sharded_block, x, x, blocks, *context)
        if self.config.streams == 1:
            # An ordinary Transformer, whose result stands for both streams.
            for layer in self.layers():
                x = x + layer(x, *context)
            return x, x
        if self._works_in_place():
            layers = [in_place_layer(layer) for layer in self.layers()]
            return reversible_stack_in_place(x, x, layers, *context, observe=self.observe)
        return reversible_stack(x, x, blocks, *context, reversible=reversible)

    def _works_in_place(self):
        return self.in_place and self.stack.reversible and self.config.streams == 2

    def _sharded_block(self, x1, x2, layers, *context, link):
        """Both streams after one block, of whose weights each process holds a part (FSDP)."""
        if self.config.streams == 1:
            for layer in layers:
                x1 = x1 + layer(x1, *context)
            return x1, x1
        if self.stack.reversible:
            layers = [in_place_layer(layer) for layer in layers]
            return reversible_stack_in_place(
                x1, x2, layers, *context, observe=self.observe, link=link
            )
        return plain_stack(x1, x2, layers, *context, start=link.start, reversible=False)

    def layers(self):
        """All layers of all blocks, in order."""
        return [layer for block in self.stack.blocks for layer in block.layers]

    def embed(self, tokens, padding_mask=None):
        """What both streams start from: (B, L, d_model)."""
        return self.embed_at(tokens, count_positions(tokens, padding_mask))

    def embed_at(self, tokens, positions):
        """Tokens (…) at positions of the same shape, or one that broadcasts to it: (…, d_model)."""
        x = self.dropout(self.embedding(tokens))
        return x if self.positions is None else x + self.positions(positions).to(x.dtype)

    def final_norm(self, y1, y2):
        """Both streams joined and normalised: (…, 2·d_model)."""
        return final_norm(y1, y2, self.norm.weight, self.norm.bias, self.norm.eps, self._dropout())

    def head_weights(self, head):
        """What ``logits_of`` takes: weight (vocab_size, 2·d_model) and bias of the head; or, if it is
        tied, the embedding (vocab_size, d_model), which reads the sum of both streams.
        """
        return (self.embedding.weight,) if head is None else (head.weight, head.bias)

    def _dropout(self):
        return self.dropout.p if self.dropout.training else 0.0

    def _context(self, padding_mask, generator, encoder_output, encoder_mask):
        """What every layer is given besides its stream. Layers ignore what they have no use for."""
        # The random matrices that hash queries (rotations) are stored in the layers, unless a
        # generator is given: then all layers draw theirs from this seed, also in backward.
        seed = None
        if generator is not None:
            seed = torch.randint(2**62, (), generator=generator, device="cpu")
        if encoder_output is None:
            return padding_mask, seed
        return padding_mask, seed, encoder_output, encoder_mask

    def _pad(self, tokens, padding_mask):
        """Tokens and mask padded to ``config.length_multiple``."""
        added = padding_to_multiple(self.config, tokens.shape[1])
        if added == 0:
            return tokens, padding_mask
        if padding_mask is None:
            padding_mask = torch.ones_like(tokens, dtype=torch.bool)
        return F.pad(tokens, (0, added)), F.pad(padding_mask, (0, added))


class ReformerLM(nn.Module):
    """A Reformer language model (paper section 5), causal or, with ``config.causal=False``, masked.

    Initial weights and stored rotations depend on ``config.seed`` alone; the global random state is
    not touched.
    """

    def __init__(self, config: ReformerConfig):
        super().__init__()
        self.config = require_config(config)
        # PyTorch's modules draw initial weights from the global random state: keep it as it was.
        with torch.random.fork_rng(devices=[]):
            self.backbone = ReformerBackbone(config)
            self.head = None
            if not config.tie_head:
                self.head = nn.Linear(2 * config.d_model, config.vocab_size)
        initialize(self, config.seed)

    def forward(
        self,
        tokens: Int[Tensor, "B L"],
        padding_mask: Bool[Tensor, "..."] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "B L vocab_size"]:
        """Compute the logits of tokens.

        Args:
            tokens: int64 or int32, in [0, vocab_size).
            padding_mask: True = real token, broadcast to (B, L). Positions count real tokens only,
                so padding on any side changes nothing. (With ``lsh.wrap``, or without
                ``lsh.n_buckets`` next to a longer row, on CUDA or in a traced model, it may:
                see ``LSHOptions``.)
            generator: a CPU generator that draws fresh rotations for this call; None: the stored
                ones.

        Returns:
            The logits.

        Raises:
            TypeError: for tokens, a mask or a generator of another type.
            ValueError: for those that do not fit the configuration, or weights that are not finite.
        """
        return self.logits(self.hidden(tokens, padding_mask, generator))

    def hidden(
        self,
        tokens: Int[Tensor, "B L"],
        padding_mask: Bool[Tensor, "..."] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "B L two_d_model"]:
        """Compute what the head is given; arguments and errors as in ``forward``."""
        padding_mask = self._check(tokens, padding_mask, generator)
        hidden = self.backbone(tokens, padding_mask, generator)
        return require_finite(COMPUTED, hidden)

    def logits(self, hidden: Float[Tensor, "*batch two_d_model"]) -> Float[Tensor, "*batch V"]:
        """Compute the logits of what ``hidden`` returns."""
        check_head(self.head)
        require_floating("hidden", hidden)
        if hidden.shape[-1:] != (2 * self.config.d_model,):
            shape = tuple(hidden.shape)
            raise ValueError(f"hidden must have shape (…, {2 * self.config.d_model}), got {shape}")
        # Autocast would cast hidden. (There is none for meta tensors.)
        if hidden.is_meta or not torch.is_autocast_enabled(hidden.device.type):
            require_same_kind("the weights", self.backbone.embedding.weight, hidden=hidden)
        return logits_of(hidden, *self.backbone.head_weights(self.head))

    def loss(
        self,
        tokens: Int[Tensor, "B L"],
        targets: Int[Tensor, "B L"] | None = None,
        padding_mask: Bool[Tensor, "..."] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, ""]:
        """Compute the mean cross-entropy in nats, ``config.loss_chunk`` positions at a time.

        It can be differentiated once. Hooks on backbone, stack and last norm do not run, and of the
        head only the weights are read.

        Args:
            tokens: as in ``forward``.
            targets: what each position should say, −100 = not counted; None: the next token (causal
                models). Padding is not counted.
            padding_mask: as in ``forward``.
            generator: as in ``forward``.

        Returns:
            The mean over the positions that count.

        Raises:
            TypeError: as in ``forward``.
            ValueError: as in ``forward``, for targets that do not fit, or where none counts.
        """
        padding_mask = self._check(tokens, padding_mask, generator)
        check_head(self.head)
        if targets is None:
            if not self.config.causal:
                condition = "for a model that is not causal (−100 where nothing is asked)"
                raise ValueError(f"targets must be given {condition}")
            if tokens.shape[1] < 2:
                raise ValueError("tokens must hold at least 2 tokens to predict one, got 1")
            targets = next_tokens(tokens, padding_mask)
        targets = check_targets(self.config, targets, tokens, padding_mask)
        loss = self.backbone.loss(self.head, tokens, targets, padding_mask, generator)
        return require_finite(COMPUTED, loss)

    @classmethod
    def from_huggingface(
        cls,
        model_or_state_dict: Any,
        config: ReformerConfig | None = None,
        *,
        add_head_bias: bool = False,
    ) -> "ReformerLM":
        """Take over the weights of a Reformer of transformers: see ``huggingface.carry_over``."""
        from reformer_ref.huggingface.weights import carry_over

        return carry_over(cls, model_or_state_dict, config, add_head_bias=add_head_bias)

    def _check(self, tokens, padding_mask, generator):
        require_gathered("model", self, self.backbone.stack.blocks)
        device = self.backbone.embedding.weight.device
        return check_tokens(self.config, tokens, padding_mask, generator, device=device)

    def extra_repr(self) -> str:
        return repr(self.config)


def count_positions(tokens, padding_mask=None):
    """Position of each token among the real tokens: int64 (L,), or (B, L) with a mask."""
    if padding_mask is None:
        return torch.arange(tokens.shape[1], device=tokens.device)
    return (padding_mask.long().cumsum(1) - 1).clamp(min=0)


def next_tokens(tokens, padding_mask=None):
    """Targets of a causal model: the next real token, −100 for padding and where none follows."""
    targets = torch.full_like(tokens, IGNORED, dtype=torch.int64)
    if padding_mask is None:
        targets[:, :-1] = tokens[:, 1:]
        return targets
    # Move the real tokens of each row to its front; shift; move the targets back.
    order = torch.sort((~padding_mask).int(), dim=1, stable=True).indices  # (B, L)
    follows = padding_mask.gather(1, order)[:, 1:]  # (B, L − 1)
    following = tokens.gather(1, order)[:, 1:].long().masked_fill(~follows, IGNORED)
    return targets.scatter(1, order[:, :-1], following).masked_fill(~padding_mask, IGNORED)


@torch.no_grad()
def initialize(model, seed):
    """Draw weights from one generator, in the order of ``named_parameters``, then rotations.

    Embeddings and positions N(0, 1), weight matrices N(0, 1 / inputs), biases 0, norms 1.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = {id(p) for m in model.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters()}
    linear = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    for name, p in model.named_parameters():
        if p.is_meta:  # shapes only: there is nothing to draw
            continue
        # Biases and norms.
        if id(p) in norms or p.ndim == 1:
            p.fill_(1.0 if id(p) in norms and name.endswith("weight") else 0.0)
            continue
        # Matrices. nn.Linear stores (outputs, inputs); feed-forward layers and positions do not.
        inputs = p.shape[1] if id(p) in linear else p.shape[0]
        scale = 1.0 if "embedding" in name or "positions" in name else inputs**-0.5
        p.copy_(torch.randn(p.shape, generator=generator, device="cpu") * scale)
    for name, buffer in model.named_buffers():
        if name.endswith("rotations"):
            buffer.copy_(torch.randn(buffer.shape, generator=generator, device="cpu"))
