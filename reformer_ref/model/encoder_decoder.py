"""The encoder-decoder Reformer: a reversible encoder, and a reversible decoder that looks at it.

Every decoder block has three layers, self-attention, cross-attention and feed-forward, that change
the two streams in turn. All of them are undone in backward, and the gradient of the encoder's
output is summed over the layers.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from reformer_ref._arguments import require_shape
from reformer_ref._tensors import require_finite, require_floating, require_padding_mask
from reformer_ref.model.arguments import check_head, check_targets, check_tokens
from reformer_ref.model.config import ReformerConfig, require_config
from reformer_ref.model.loss import logits_of
from reformer_ref.model.pytorch import COMPUTED, ReformerBackbone, initialize, next_tokens
from reformer_ref.reversible.sharded import require_gathered


class ReformerEncoderDecoder(nn.Module):
    """Sequence to sequence (paper section 5, translation).

    The head, tied or not, is the decoder's. Initial weights and stored rotations depend on
    ``decoder_config.seed`` alone; the global random state is not touched.

    In all methods source (B, L_s) and target (B, L_t) are int64 or int32; masks are of their
    shapes, True = real token, padding as in ``ReformerLM.forward``. generator: a CPU generator for
    fresh rotations; None: stored ones. TypeError or ValueError for anything that does not fit, and
    for weights that are not finite.

    Args:
        encoder_config: not causal.
        decoder_config: causal, of the same d_model; everything else may differ.
    """

    def __init__(self, encoder_config: ReformerConfig, decoder_config: ReformerConfig):
        super().__init__()
        if require_config(encoder_config, "encoder_config").causal:
            raise ValueError("encoder_config must have causal=False, got causal=True")
        if not require_config(decoder_config, "decoder_config").causal:
            raise ValueError("decoder_config must have causal=True, got causal=False")
        if encoder_config.d_model != decoder_config.d_model:
            given = f"{encoder_config.d_model} and {decoder_config.d_model}"
            requirement = "encoder_config and decoder_config must have the same d_model"
            raise ValueError(f"{requirement}, got {given}")
        self.encoder_config, self.decoder_config = encoder_config, decoder_config
        with torch.random.fork_rng(devices=[]):
            self.encoder = ReformerBackbone(encoder_config)
            self.decoder = ReformerBackbone(decoder_config, cross_attention=True)
            self.head = None
            if not decoder_config.tie_head:
                self.head = nn.Linear(2 * decoder_config.d_model, decoder_config.vocab_size)
        initialize(self, decoder_config.seed)

    def forward(
        self,
        source: Int[Tensor, "B L_s"],
        target: Int[Tensor, "B L_t"],
        source_padding_mask: Bool[Tensor, "..."] | None = None,
        target_padding_mask: Bool[Tensor, "..."] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "B L_t vocab_size"]:
        """Compute the logits: at each position of the target, for the token after it."""
        encoder_output = self.encode(source, source_padding_mask, generator)
        return self.decode(
            target, encoder_output, source_padding_mask, target_padding_mask, generator
        )

    def encode(
        self,
        source: Int[Tensor, "B L_s"],
        source_padding_mask: Bool[Tensor, "..."] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "B L_s two_d_model"]:
        """Compute what the decoder looks at; it may be kept for many calls of ``decode``."""
        mask = self._check("source", source, source_padding_mask, generator)
        return require_finite(COMPUTED, self.encoder(source, mask, generator))

    def decode(
        self,
        target: Int[Tensor, "B L_t"],
        encoder_output: Float[Tensor, "B L_s two_d_model"],
        source_padding_mask: Bool[Tensor, "..."] | None = None,
        target_padding_mask: Bool[Tensor, "..."] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "B L_t vocab_size"]:
        """Compute the logits, given the encoder's output and the source's mask."""
        mask = self._check("target", target, target_padding_mask, generator)
        encoder_mask = self._check_encoder_output(target, encoder_output, source_padding_mask)
        check_head(self.head)
        hidden = self.decoder(target, mask, generator, encoder_output, encoder_mask)
        return logits_of(require_finite(COMPUTED, hidden), *self.decoder.head_weights(self.head))

    def loss(
        self,
        source: Int[Tensor, "B L_s"],
        target: Int[Tensor, "B L_t"],
        source_padding_mask: Bool[Tensor, "..."] | None = None,
        target_padding_mask: Bool[Tensor, "..."] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, ""]:
        """Compute the mean nats of target[:, 1:] given source and prefix, padding not counted."""
        mask = self._check("target", target, target_padding_mask, generator)
        check_head(self.head)
        if target.shape[1] < 2:
            raise ValueError("target must hold at least 2 tokens to predict one, got 1")
        encoder_output = self.encode(source, source_padding_mask, generator)
        encoder_mask = self._check_encoder_output(target, encoder_output, source_padding_mask)
        targets = check_targets(self.decoder_config, next_tokens(target, mask), target, mask)
        loss = self.decoder.loss(
            self.head, target, targets, mask, generator, encoder_output, encoder_mask
        )
        return require_finite(COMPUTED, loss)

    def _check(self, name, tokens, padding_mask, generator):
        blocks = [*self.encoder.stack.blocks, *self.decoder.stack.blocks]
        require_gathered("model", self, blocks)
        config = self.encoder_config if name == "source" else self.decoder_config
        device = self.decoder.embedding.weight.device
        return check_tokens(config, tokens, padding_mask, generator, name=name, device=device)

    def _check_encoder_output(self, target, encoder_output, source_padding_mask):
        """The source's mask as (B, L_s); errors if the output does not go with the target."""
        if (
            require_floating("encoder_output", encoder_output).ndim != 3
            or 0 in encoder_output.shape
        ):
            given = tuple(encoder_output.shape)
            raise ValueError(f"encoder_output must have shape (B, L_s, 2·d_model), got {given}")
        shape = (target.shape[0], encoder_output.shape[1], 2 * self.decoder_config.d_model)
        meaning = "(batch of target, L_s, 2·d_model)"
        require_shape("encoder_output", encoder_output, shape, meaning)
        weight = self.decoder.embedding.weight
        kind = weight.device.type
        autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        if encoder_output.dtype != weight.dtype and not autocast:
            accepted = f"the dtype of the decoder ({weight.dtype})"
            raise TypeError(f"encoder_output must have {accepted}, got {encoder_output.dtype}")
        return require_padding_mask(source_padding_mask, shape[:2], encoder_output.device)
