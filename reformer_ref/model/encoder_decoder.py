"""The encoder-decoder Reformer, in PyTorch: a reversible encoder, and a reversible decoder that
looks at it.

Every decoder layer has three halves, self-attention, cross-attention and feed-forward, that change
the two streams in turn. All of them are undone in backward, and the gradient of what the encoder
says is summed over the layers.
"""

import torch
from torch import nn

from reformer_ref._arguments import require_shape
from reformer_ref._tensors import require_floating, require_padding_mask
from reformer_ref.model.config import require_config
from reformer_ref.model.pytorch import (
    ReformerBackbone,
    check_tokens,
    head_inputs,
    initialize,
    next_tokens,
)


class ReformerEncoderDecoder(nn.Module):
    """Sequence to sequence (paper section 5, translation). Spec: ``model.spec.encoder_decoder``.

    encoder_config: not causal; decoder_config: causal; d_model must agree, everything else may
    differ. The head, tied or not, is the decoder's. Initial weights and stored rotations depend on
    ``decoder_config.seed`` alone; the global random state is not touched.

    source int (B, L_s) and target int (B, L_t) are int64 or int32; masks bool of their shapes, True
    = real token: padding on any side changes nothing. generator: a CPU ``torch.Generator`` for
    fresh rotations, None: stored ones. ValueError or TypeError for anything that does not fit.
    """

    def __init__(self, encoder_config, decoder_config):
        super().__init__()
        self.encoder_config, self.decoder_config = _require_pair(encoder_config, decoder_config)
        with torch.random.fork_rng(devices=[]):
            self.encoder = ReformerBackbone(encoder_config)
            self.decoder = ReformerBackbone(decoder_config, cross_attention=True)
            width, vocab_size = 2 * decoder_config.d_model, decoder_config.vocab_size
            self.head = None if decoder_config.tie_head else nn.Linear(width, vocab_size)
        initialize(self, decoder_config.seed)

    def forward(
        self, source, target, source_padding_mask=None, target_padding_mask=None, generator=None
    ):
        """Logits (B, L_t, vocab_size): at each position of the target, for the token after it."""
        encoder_output = self.encode(source, source_padding_mask, generator)
        return self.decode(
            target, encoder_output, source_padding_mask, target_padding_mask, generator
        )

    def encode(self, source, source_padding_mask=None, generator=None):
        """What the decoder looks at: the encoder_output (B, L_s, 2·d_model). It may be kept for many calls
        of ``decode``.
        """
        mask = self._check("source", source, source_padding_mask, generator)
        return self.encoder(source, mask, generator)

    def decode(
        self,
        target,
        encoder_output,
        source_padding_mask=None,
        target_padding_mask=None,
        generator=None,
    ):
        """Logits (B, L_t, vocab_size), given the encoder_output of the source and the source's mask."""
        mask = self._check("target", target, target_padding_mask, generator)
        encoder_mask = self._check_memory(target, encoder_output, source_padding_mask)
        hidden = self.decoder(target, mask, generator, encoder_output, encoder_mask)
        return self.logits(hidden)

    def logits(self, hidden):
        """Logits (…, vocab_size) of hidden (…, 2·d_model), the decoder's output."""
        hidden, weight, bias = head_inputs(hidden, *self.decoder.head_weights(self.head))
        return hidden @ weight + bias

    def loss(
        self, source, target, source_padding_mask=None, target_padding_mask=None, generator=None
    ):
        """Mean cross-entropy in nats of target[:, 1:] given source and prefix, padding not counted.

        Computed in slices of ``decoder_config.loss_chunk`` positions. The first token of a target
        is never asked for.
        """
        mask = self._check("target", target, target_padding_mask, generator)
        if target.shape[1] < 2:
            raise ValueError("target must hold at least 2 tokens to predict one, got 1")
        encoder_output = self.encode(source, source_padding_mask, generator)
        encoder_mask = self._check_memory(target, encoder_output, source_padding_mask)
        targets = next_tokens(target, mask)
        return self.decoder.loss(
            self.head, target, targets, mask, generator, encoder_output, encoder_mask
        )

    def _check_memory(self, target, encoder_output, source_padding_mask):
        """The source's mask as (B, L_s); errors if the encoder_output does not go with the target."""
        if (
            require_floating("encoder_output", encoder_output).ndim != 3
            or 0 in encoder_output.shape
        ):
            raise ValueError(
                f"encoder_output must have shape (B, L_s, 2·d_model), got {tuple(encoder_output.shape)}"
            )
        shape = (target.shape[0], encoder_output.shape[1], 2 * self.decoder_config.d_model)
        require_shape("encoder_output", encoder_output, shape, "(batch of target, L_s, 2·d_model)")
        weight = self.decoder.embedding.weight
        if encoder_output.dtype != weight.dtype and not torch.is_autocast_enabled(
            weight.device.type
        ):
            raise TypeError(
                f"encoder_output must have the dtype of the decoder ({weight.dtype}), got {encoder_output.dtype}"
            )
        return require_padding_mask(source_padding_mask, shape[:2], encoder_output.device)

    def _check(self, name, tokens, mask, generator):
        of_source = name == "source"
        config, backbone = (
            (self.encoder_config, self.encoder)
            if of_source
            else (self.decoder_config, self.decoder)
        )
        return check_tokens(
            config, tokens, mask, generator, name=name, device=backbone.embedding.weight.device
        )


def _require_pair(encoder_config, decoder_config):
    for name, config, causal in (
        ("encoder_config", encoder_config, False),
        ("decoder_config", decoder_config, True),
    ):
        if require_config(config, name).causal != causal:
            raise ValueError(f"{name} must have causal={causal}, got causal={config.causal}")
    if encoder_config.d_model != decoder_config.d_model:
        raise ValueError(
            f"encoder_config and decoder_config must have the same d_model, got {encoder_config.d_model} "
            f"and {decoder_config.d_model}"
        )
    return encoder_config, decoder_config
