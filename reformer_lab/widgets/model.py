"""A model's parameters by part, and the distribution that its next token is drawn from."""

import numpy as np
import torch
from reformer_ref._arguments import clear_errors
from reformer_ref.generation.spec import token_probabilities
from reformer_ref.model.config import ReformerConfig
from reformer_ref.model.pytorch import ReformerLM

from reformer_lab.plots.drawing import Choice, Range, controls
from reformer_lab.plots.model import parameter_bars, token_bars

PARTS = {  # what a parameter's name holds: the part that it belongs to
    "embedding": "embedding", "positions": "positions", "layers.0": "attention F", "layers.1": "feed-forward G",
    "backbone.norm": "last norm", "head": "head",
}  # fmt: skip
LETTERS = ("e", "a", "i", "␣", "o", "r", "u", "y")
LOGITS = np.array([2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -2.0])


@clear_errors
def parts_of(config):
    """{part: how many numbers} of a model of this configuration, which is never given values."""
    with torch.device("meta"):
        model = ReformerLM(config)
    counts = dict.fromkeys(PARTS.values(), 0)
    for name, p in model.named_parameters():
        counts[next(part for key, part in PARTS.items() if key in name)] += p.numel()
    return counts


@controls(
    d_model=Choice(256, 512, 1024, start=512),
    layers=Range(1, 24, 1, start=6),
    vocabulary=Choice(256, 32000),
    longest=Choice(1024, 65536, 1048576, start=65536),
    positions=Choice("axial", "learned"),
)
def parameters(d_model, layers, vocabulary, longest, positions):
    """The parameters of a whole model, by part."""
    size = {"d_model": d_model, "n_layers": layers, "n_heads": 8, "vocab_size": vocabulary, "max_length": longest}
    return parameter_bars({f"{positions} positions": parts_of(ReformerConfig(positions=positions, **size))})


@controls(
    temperature=Range(0.0, 2.0, 0.1, start=1.0), top_k=Range(1, 8, 1, start=8), top_p=Range(0.05, 1.0, 0.05, start=0.8)
)
def next_letter(temperature, top_k, top_p):
    """Probabilities of eight letters with literal logits, as the model says and as they are drawn."""
    name = f"temperature {temperature:g}, k = {top_k}, p = {top_p:g}"
    drawn = token_probabilities(LOGITS, temperature, top_k, top_p)
    return token_bars(LETTERS, {"as the model says": token_probabilities(LOGITS), name: drawn})
