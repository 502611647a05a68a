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
from reformer_ref.model.pytorch import Trunk, check_tokens, initialize, next_tokens, read_out


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
            self.encoder = Trunk(encoder_config)
            self.decoder = Trunk(decoder_config, cross_attention=True)
            width, vocab_size = 2 * decoder_config.d_model, decoder_config.vocab_size
            self.head = None if decoder_config.tie_head else nn.Linear(width, vocab_size)
        initialize(self, decoder_config.seed)

    def forward(
        self, source, target, source_padding_mask=None, target_padding_mask=None, generator=None
    ):
        """Logits (B, L_t, vocab_size): at each position of the target, for the token after it."""
        memory = self.encode(source, source_padding_mask, generator)
        return self.decode(target, memory, source_padding_mask, target_padding_mask, generator)

    def encode(self, source, source_padding_mask=None, generator=None):
        """What the decoder looks at: the memory (B, L_s, 2·d_model). It may be kept for many calls
        of ``decode``.
        """
        mask = self._check("source", source, source_padding_mask, generator)
        return self.encoder(source, mask, generator)

    def decode(
        self, target, memory, source_padding_mask=None, target_padding_mask=None, generator=None
    ):
        """Logits (B, L_t, vocab_size), given the memory of the source and the source's mask."""
        mask = self._check("target", target, target_padding_mask, generator)
        memory_mask = self._check_memory(target, memory, source_padding_mask)
        hidden = self.decoder(target, mask, generator, memory, memory_mask)
        hidden, weight, bias = read_out(hidden, *self.decoder.head_weights(self.head))
        return hidden @ weight + bias

    def loss(
        self, source, target, source_padding_mask=None, target_padding_mask=None, generator=None
    ):
        """Mean cross-entropy in nats of target[:, 1:] given source and prefix, padding not counted.

        Computed in slices of ``decoder_config.loss_slice`` positions. The first token of a target
        is never asked for.
        """
        mask = self._check("target", target, target_padding_mask, generator)
        if target.shape[1] < 2:
            raise ValueError("target must hold at least 2 tokens to predict one, got 1")
        memory = self.encode(source, source_padding_mask, generator)
        memory_mask = self._check_memory(target, memory, source_padding_mask)
        targets = next_tokens(target, mask)
        return self.decoder.loss(self.head, target, targets, mask, generator, memory, memory_mask)

    def _check_memory(self, target, memory, source_padding_mask):
        """The source's mask as (B, L_s); errors if the memory does not go with the target."""
        if require_floating("memory", memory).ndim != 3 or 0 in memory.shape:
            raise ValueError(
                f"memory must have shape (B, L_s, 2·d_model), got {tuple(memory.shape)}"
            )
        shape = (target.shape[0], memory.shape[1], 2 * self.decoder_config.d_model)
        require_shape("memory", memory, shape, "(batch of target, L_s, 2·d_model)")
        weight = self.decoder.embedding.weight
        if memory.dtype != weight.dtype and not torch.is_autocast_enabled(weight.device.type):
            raise TypeError(
                f"memory must have the dtype of the decoder ({weight.dtype}), got {memory.dtype}"
            )
        return require_padding_mask(source_padding_mask, shape[:2], memory.device)

    def _check(self, name, tokens, mask, generator):
        of_source = name == "source"
        config, trunk = (
            (self.encoder_config, self.encoder)
            if of_source
            else (self.decoder_config, self.decoder)
        )
        return check_tokens(
            config, tokens, mask, generator, name=name, device=trunk.embedding.weight.device
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
