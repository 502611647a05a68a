"""A model's parameters by component, and the distribution that its next token is drawn from."""

import numpy as np
import torch
from reformer_ref._arguments import clear_errors
from reformer_ref.generation.spec import token_probabilities
from reformer_ref.model.config import ReformerConfig
from reformer_ref.model.pytorch import ReformerLM

from reformer_lab.plots.drawing import controls
from reformer_lab.plots.model import parameter_bars, token_bars

COMPONENTS = {  # a word in a parameter's name: the component that it belongs to
    "embedding": "embedding", "positions": "positions", "layers.0": "attention F", "layers.1": "feed-forward G",
    "backbone.norm": "last norm", "head": "head",
}  # fmt: skip
LETTERS = ("e", "a", "i", "␣", "o", "r", "u", "y")
LOGITS = np.array([2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -2.0])


@clear_errors
def parameter_counts(config):
    """{component: number of parameters} of a model of this configuration, which is never given values."""
    with torch.device("meta"):
        model = ReformerLM(config)
    counts = dict.fromkeys(COMPONENTS.values(), 0)
    for name, p in model.named_parameters():
        counts[next(component for key, component in COMPONENTS.items() if key in name)] += p.numel()
    return counts


@controls(
    d_model=[256, 512, 1024],
    layers=(1, 24),
    vocabulary=[256, 32000],
    longest=[1024, 65536, 1048576],
    positions=["axial", "learned"],
)
def parameters(d_model=512, layers=6, vocabulary=256, longest=65536, positions="axial"):
    """The parameters of a whole model, by component."""
    size = {"d_model": d_model, "n_layers": layers, "n_heads": 8, "vocab_size": vocabulary, "max_length": longest}
    return parameter_bars({f"{positions} positions": parameter_counts(ReformerConfig(positions=positions, **size))})


@controls(temperature=(0.0, 2.0, 0.1), top_k=(1, 8), top_p=(0.05, 1.0, 0.05))
def next_letter(temperature=1.0, top_k=8, top_p=0.8):
    """Probabilities of eight letters with fixed logits, before and after temperature, top-k and top-p."""
    name = f"temperature {temperature:g}, k = {top_k}, p = {top_p:g}"
    drawn = token_probabilities(LOGITS, temperature, top_k, top_p)
    return token_bars(LETTERS, {"of the model": token_probabilities(LOGITS), name: drawn})
