"""Drawing tokens from a model: temperature, top-k, top-p, greedy."""

from contextlib import contextmanager

import torch

from reformer_ref.validate import require_float, require_int


@contextmanager
def evaluating(model):
    """Eval mode without gradients; on leaving, every submodule is in the mode in which it was found."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield model
    finally:
        for module, mode in modes:
            module.training = mode


def check_sampling(temperature=1.0, top_k=None, top_p=None):
    """Raise TypeError or ValueError unless temperature ≥ 0, top_k ≥ 1 (or None) and 0 < top_p ≤ 1 (or None)."""
    require_float("temperature", temperature, minimum=0.0)
    if top_k is not None:
        require_int("top_k", top_k)
    if top_p is not None and not 0.0 < require_float("top_p", top_p) <= 1.0:
        raise ValueError(f"top_p must be in (0, 1], got {top_p}")


def token_probabilities(logits, temperature=1.0, top_k=None, top_p=None):
    """The distribution that `sample_token` draws from, float64 (…, V), for logits (…, V).

    Temperature divides the logits; 0 puts everything on the largest (the first one on a tie). Then ``top_k`` keeps the
    k likeliest tokens, then ``top_p`` the fewest of the likeliest that together reach top_p. What is left sums to 1.
    """
    check_sampling(temperature, top_k, top_p)
    logits = logits.double()
    if temperature == 0.0:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).double()
    best = logits.amax(-1, keepdim=True)
    sorted_p, order = torch.softmax((logits - best) / temperature, -1).sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        sorted_p[..., top_k:] = 0.0
        sorted_p = sorted_p / sorted_p.sum(-1, keepdim=True)
    if top_p is not None:
        before = (
            sorted_p.cumsum(-1) - sorted_p
        )  # probability of everything likelier: below top_p, so the first one stays
        sorted_p = sorted_p.masked_fill(before >= top_p, 0.0)
        sorted_p = sorted_p / sorted_p.sum(-1, keepdim=True)
    return torch.zeros_like(sorted_p).scatter(-1, order, sorted_p)


def sample_token(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
    """One token, int64 (…), for logits (…, V). ``generator`` lives on the CPU and must be given if temperature > 0."""
    probabilities = token_probabilities(logits, temperature, top_k, top_p)
    if temperature == 0.0:
        return probabilities.argmax(-1)
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator when temperature > 0, got {type(generator).__name__}")
    flat = probabilities.reshape(-1, probabilities.shape[-1]).cpu()  # (rows, V)
    return torch.multinomial(flat, 1, generator=generator).reshape(logits.shape[:-1]).to(logits.device)


def generate(model, prompt, max_new_tokens, temperature=1.0, top_k=None, top_p=None, generator=None, *, on_token=None):
    """``prompt`` continued by ``max_new_tokens`` tokens, int64 (n,) on the CPU: prompt and continuation.

    Each new token costs one full forward over the last ``model.config.max_length`` tokens. The layers use their fixed
    rotations. ``prompt``: bytes or an int64 tensor (n,), n ≥ 1. ``generator``: a CPU `torch.Generator`; None stands for
    a new one seeded with 0, so the global random state is never read or changed. ``on_token``: called with every new
    token (an int) as soon as it is drawn. The model comes back in the mode in which it was given.
    """
    check_sampling(temperature, top_k, top_p)
    max_new_tokens = require_int("max_new_tokens", max_new_tokens, minimum=0)
    tokens = _prompt_tokens(prompt, model.config.vocab_size)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    device = next(model.parameters()).device
    with evaluating(model):
        for _ in range(max_new_tokens):
            window = tokens[None, -model.config.max_length :].to(device)  # (1, ≤ max_length)
            token = sample_token(model(window)[0, -1], temperature, top_k, top_p, generator)
            tokens = torch.cat([tokens, token[None].cpu()])  # (n + 1,)
            if on_token is not None:
                on_token(int(token))
    return tokens


def _prompt_tokens(prompt, vocab_size):
    if isinstance(prompt, (bytes, bytearray)):
        prompt = torch.tensor(list(prompt), dtype=torch.int64)
    if not isinstance(prompt, torch.Tensor) or prompt.dtype != torch.int64:
        given = prompt.dtype if isinstance(prompt, torch.Tensor) else type(prompt).__name__
        raise TypeError(f"prompt must be bytes or an int64 tensor, got {given}")
    if prompt.ndim != 1 or prompt.numel() == 0:
        raise ValueError(f"prompt must have shape (n,) with n >= 1, got {tuple(prompt.shape)}")
    if int(prompt.min()) < 0 or int(prompt.max()) >= vocab_size:
        raise ValueError(f"prompt must hold tokens in [0, {vocab_size}), got {int(prompt.min())} … {int(prompt.max())}")
    return prompt.detach().cpu()
