"""Generation, in NumPy: decoding token by token from what the strict window needs, the distribution
to draw from, and beam search. Not checked.

In the strict window, query i sees key j if in some round they share a bucket and j is among the
``chunk_length`` most recent earlier members of it. So one short queue per round and bucket holds
all that the next token can see. Local attention needs the last chunks alone.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from reformer_ref.attention.spec import attend, normalize_keys
from reformer_ref.local_attention.options import LocalOptions
from reformer_ref.lsh_attention.options import LSHOptions


def lsh_decode(
    qk: Float[np.ndarray, "*batch L d"],
    v: Float[np.ndarray, "*batch L d_v"],
    buckets: Int[np.ndarray, "*batch n_hashes L"],
    options: LSHOptions,
) -> Float[np.ndarray, "*batch L d_v"]:
    """Compute LSH attention in the strict window, one token after the other, from queues.

    The same as ``lsh_attention`` with ``options.window == "rank"``.
    """
    k = normalize_keys(qk, options.norm_eps)
    scale = options.scale_for(qk.shape[-1])
    out = np.empty_like(v)
    for b in np.ndindex(qk.shape[:-2]):
        queues = {}  # (round, bucket) -> positions of its last chunk_length members
        for i in range(qk.shape[-2]):
            my_queues = [queues.setdefault(key, []) for key in enumerate(buckets[b][:, i])]
            visible = [j for queue in my_queues for j in queue]
            if options.count_once:
                visible = sorted(set(visible))
            if visible:
                counts = np.ones((1, len(visible)), int)
                query = qk[b][i : i + 1]
                out[b][i] = attend(query, k[b][visible], v[b][visible], counts, scale)[0]
            else:  # a token sees itself only if it sees nothing else
                out[b][i] = v[b][i]
            for queue in my_queues:
                queue.append(i)
                del queue[: -options.chunk_length]  # the oldest member
    return out


def local_decode(
    q: Float[np.ndarray, "*batch L d"],
    k: Float[np.ndarray, "*batch L d"],
    v: Float[np.ndarray, "*batch L d_v"],
    options: LocalOptions,
) -> Float[np.ndarray, "*batch L d_v"]:
    """Compute causal local attention, one token after the other, from the last chunks."""
    scale = options.scale_for(q.shape[-1])
    out = np.empty_like(v)
    for b in np.ndindex(q.shape[:-2]):
        kept = []  # positions
        for i in range(q.shape[-2]):
            kept.append(i)
            del kept[: -options.chunk_length * (options.chunks_before + 1)]
            first = (i // options.chunk_length - options.chunks_before) * options.chunk_length
            visible = [j for j in kept if j >= first]
            counts = np.ones((1, len(visible)), int)
            out[b][i] = attend(q[b][i : i + 1], k[b][visible], v[b][visible], counts, scale)[0]
    return out


def token_probabilities(
    logits: Float[np.ndarray, "*batch V"],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Float[np.ndarray, "*batch V"]:
    """Compute the distribution that the next token is drawn from; it sums to 1.

    Args:
        logits: of the next token.
        temperature: divides the logits; 0 puts everything on the largest (the first on a tie).
        top_k: then keep the k likeliest tokens.
        top_p: then keep the fewest of the likeliest that together reach top_p (Holtzman et al.
            2020).
    """
    out = np.zeros(logits.shape)
    for b in np.ndindex(logits.shape[:-1]):
        likeliest = np.argsort(-logits[b], kind="stable")
        if temperature == 0:
            out[b][likeliest[0]] = 1.0
            continue
        with np.errstate(over="ignore"):  # a temperature near 0 makes −∞ of all but the largest
            p = np.exp((logits[b] - logits[b].max()) / float(temperature))
        p = p[likeliest][:top_k]
        p = p / p.sum()
        if top_p is not None:
            preceding = np.cumsum(p) - p  # below top_p, so the first token always stays
            p = p[preceding < top_p]
        out[b][likeliest[: len(p)]] = p / p.sum()
    return out


def beam_search(
    log_probabilities: Callable[[tuple[int, ...]], Float[np.ndarray, " V"]],
    vocab_size: int,
    start: int,
    end: int,
    max_new_tokens: int,
    beams: int = 1,
    length_penalty: float = 0.0,
) -> tuple[tuple[int, ...], float]:
    """Find the best output with a beam of ``beams`` prefixes; beams=1 is greedy.

    Each step extends every live prefix by every token and ranks all of them by log-probability (on
    a tie the earlier prefix, then the lower token). Of the best ``beams``, those that end are
    finished; the best ``beams`` that do not end live on. The search is over when ``beams`` outputs
    are finished, or after ``max_new_tokens`` tokens, end included; if nothing is finished then, the
    best live prefix is.

    Args:
        log_probabilities: function of a tuple of tokens, start first: those of the next token.
        vocab_size: number of tokens V.
        start: the token that begins an output.
        end: the token that ends it.
        max_new_tokens: most tokens of an output, the end included.
        beams: live prefixes.
        length_penalty: the score of an output of n tokens, end included, is its log-probability
            divided by ((5 + n) / 6)^length_penalty (Wu et al. 2016, equation 14).

    Returns:
        The tokens between start and end of the output with the highest score (the first one on a
        tie), and the score.
    """
    live = [((start,), 0.0)]
    finished = []  # (tokens, log-probability, length)
    for n in range(1, max_new_tokens + 1):
        extended = []
        for prefix, log_p in live:
            next_log_p = log_probabilities(prefix)
            for token in range(vocab_size):
                if next_log_p[token] > -np.inf:
                    extended.append(((*prefix, token), log_p + next_log_p[token]))
        extended.sort(key=lambda output: -output[1])  # stable
        for tokens, log_p in extended[:beams]:
            if tokens[-1] == end:
                finished.append((tokens[1:-1], log_p, n))
        live = [output for output in extended if output[0][-1] != end][:beams]
        if not live or len(finished) >= beams:
            break
    else:
        if not finished:
            tokens, log_p = live[0]
            finished.append((tokens[1:], log_p, max_new_tokens))
    scored = [(tokens, log_p / ((5 + n) / 6) ** length_penalty) for tokens, log_p, n in finished]
    return max(scored, key=lambda output: output[1])
