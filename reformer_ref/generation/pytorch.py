"""Decoding and sampling, the version to read. Not checked.

With the strict window every output depends on its prefix alone, so a cache of fixed size gives what
the attention of the whole sequence gives.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reformer_ref.generation.caches import LocalCache, StrictCache
from reformer_ref.local_attention.options import LocalOptions
from reformer_ref.lsh_attention.options import LSHOptions


@torch.no_grad()
def lsh_decode(
    qk: Float[Tensor, "*batch L d"],
    v: Float[Tensor, "*batch L d_v"],
    buckets: Int[Tensor, "*batch n_hashes L"],
    options: LSHOptions,
) -> Float[Tensor, "*batch L d_v"]:
    """Compute LSH attention in the strict window token by token, from rings.

    Nothing of the past is kept but the last chunk_length members of every bucket.
    """
    length, d = qk.shape[-2:]
    q = qk.reshape(-1, 1, length, d)  # (rows, 1 head, L, d)
    values = v.reshape(-1, 1, length, v.shape[-1])
    # A ring for each bucket that occurs.
    numbers, buckets = buckets.unique(return_inverse=True)
    buckets = buckets.reshape(-1, 1, options.n_hashes, length)
    rows, d_v = len(q), v.shape[-1]
    cache = StrictCache(rows, 1, options, len(numbers), d, d_v, length, q)
    out = torch.empty_like(values)
    for i in range(length):
        token = q[:, :, i], values[:, :, i], buckets[..., i]
        out[:, :, i] = cache.attend(*token)
        cache.append(*token, torch.full((rows,), i, device=q.device))
    return out.view(v.shape)


@torch.no_grad()
def local_decode(
    q: Float[Tensor, "*batch L d"],
    k: Float[Tensor, "*batch L d"],
    v: Float[Tensor, "*batch L d_v"],
    options: LocalOptions,
) -> Float[Tensor, "*batch L d_v"]:
    """Compute causal local attention token by token, from the last chunks."""
    q, k, values = (x.reshape(-1, 1, *x.shape[-2:]) for x in (q, k, v))  # (rows, 1 head, L, …)
    rows, _, length, d = q.shape
    cache = LocalCache(rows, 1, options, d, v.shape[-1], length, q)
    out = torch.empty_like(values)
    for i in range(length):
        position = torch.full((rows,), i, device=q.device)
        cache.append(k[:, :, i], values[:, :, i], position)
        out[:, :, i] = cache.attend(q[:, :, i], position)
    return out.view(v.shape)


def token_probabilities(
    logits: Float[Tensor, "*batch V"],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Float[Tensor, "*batch V"]:
    """Compute the distribution that ``sample_token`` draws from, in float64."""
    logits = logits.double()
    if temperature == 0:  # all on the largest, the first one on a tie
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).double()
    # 1. Softmax, the likeliest token first.
    largest = logits.amax(-1, keepdim=True)
    probabilities = torch.softmax((logits - largest) / temperature, -1)
    p, order = probabilities.sort(dim=-1, descending=True, stable=True)  # (…, V)
    # 2. Keep the k likeliest.
    if top_k is not None:
        p[..., top_k:] = 0.0
        p = p / p.sum(-1, keepdim=True)
    # 3. Keep the fewest that together reach top_p: those whose predecessors do not.
    if top_p is not None:
        preceding = p.cumsum(-1) - p
        p = p.masked_fill(preceding >= top_p, 0.0)
        p = p / p.sum(-1, keepdim=True)
    # 4. Back into the order of the vocabulary.
    return torch.zeros_like(p).scatter(-1, order, p)


def sample_token(
    logits: Float[Tensor, "*batch V"],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "*batch"]:
    """Draw one token for each distribution, with a generator on the CPU; temperature 0 takes the
    likeliest.
    """
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = token_probabilities(logits, temperature, top_k, top_p)
    rows = probabilities.reshape(-1, probabilities.shape[-1]).cpu()  # (rows, V)
    tokens = torch.multinomial(rows, 1, generator=generator)  # (rows, 1)
    return tokens.reshape(logits.shape[:-1]).to(logits.device)
