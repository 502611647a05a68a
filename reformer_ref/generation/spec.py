"""Generation, in NumPy: decoding token by token from what the strict window needs, and the
distribution to draw from.

With the strict window, query i sees key j if in some round they share the bucket and j is among the
``chunk_length`` most recent earlier members of that bucket. So all that the next token can ever ask
for stands in one short queue per round and bucket. Local attention needs the last chunks alone.
"""

import numpy as np

from reformer_ref._arguments import as_array, as_floats, as_integers, require_shape
from reformer_ref.attention.spec import attend, normalize_keys
from reformer_ref.generation.options import (
    check_beams,
    check_sampling,
    require_decodable,
    require_strict,
)


def lsh_decode(qk, v, buckets, options):
    """LSH attention in the strict window, one token after the other from queues: float64 (…, L,
    d_v).

    Arguments as in ``lsh_attention`` (qk (…, L, d), v (…, L, d_v), buckets int (…, n_hashes, L)),
    and the same result. ValueError unless ``options.window`` is "rank". Source: DESIGN, "Strict
    causality".
    """
    require_strict(options)
    qk, v, buckets = as_floats("qk", qk), as_floats("v", v), as_integers("buckets", buckets)
    _require_rows(qk=qk, v=v)
    require_shape("v", v, (*qk.shape[:-1], v.shape[-1]), "(…, L, d_v)")
    require_shape(
        "buckets", buckets, (*qk.shape[:-2], options.n_hashes, qk.shape[-2]), "(…, n_hashes, L)"
    )
    k, out = normalize_keys(qk, options.norm_eps), np.empty_like(v)
    for at in np.ndindex(qk.shape[:-2]):
        queues = {}  # (round, bucket) -> positions of its last chunk_length members
        for i in range(qk.shape[-2]):
            mine = [queues.setdefault((h, b), []) for h, b in enumerate(buckets[at][:, i])]
            seen = [j for queue in mine for j in queue]
            seen = sorted(set(seen)) if options.count_once else seen
            one = qk[at][i : i + 1], k[at][seen], v[at][seen], np.ones((1, len(seen)), int)
            out[at][i] = attend(*one, options.scale_for(qk.shape[-1]))[0] if seen else v[at][i]
            for queue in mine:
                queue.append(i)
                del queue[: -options.chunk_length]  # the oldest member gives way
    return out


def local_decode(q, k, v, options):
    """Causal local attention, one token after the other from the last chunks: float64 (…, L, d_v),
    as ``local_attention``.

    ValueError for options that are not causal.
    """
    require_decodable(options)
    q, k, v = as_floats("q", q), as_floats("k", k), as_floats("v", v)
    _require_rows(q=q, v=v)
    require_shape("k", k, q.shape, "(…, L, d)")
    require_shape("v", v, (*q.shape[:-1], v.shape[-1]), "(…, L, d_v)")
    out = np.empty_like(v)
    for at in np.ndindex(q.shape[:-2]):
        kept = []  # positions
        for i in range(q.shape[-2]):
            kept.append(i)
            del kept[: -options.chunk_length * (options.chunks_before + 1)]
            first = (i // options.chunk_length - options.chunks_before) * options.chunk_length
            seen = [j for j in kept if j >= first]
            one = q[at][i : i + 1], k[at][seen], v[at][seen], np.ones((1, len(seen)), int)
            out[at][i] = attend(*one, options.scale_for(q.shape[-1]))[0]
    return out


def token_probabilities(logits, temperature=1.0, top_k=None, top_p=None):
    """The distribution that the next token is drawn from: float64 (…, V), for logits (…, V).

    Temperature divides the logits; 0 puts everything on the largest (the first one on a tie). Then
    ``top_k`` keeps the k likeliest tokens, then ``top_p`` the fewest of the likeliest that together
    reach top_p (Holtzman et al. 2020). What is left sums to 1. TypeError or ValueError unless
    temperature ≥ 0, top_k ≥ 1 or None, 0 < top_p ≤ 1 or None.
    """
    check_sampling(temperature, top_k, top_p)
    logits, temperature = _logits(logits), float(temperature)
    out = np.zeros_like(logits)
    for at in np.ndindex(logits.shape[:-1]):
        likeliest = np.argsort(-logits[at], kind="stable")
        if temperature == 0:
            out[at][likeliest[0]] = 1.0
            continue
        with np.errstate(
            over="ignore"
        ):  # a temperature near 0 makes −∞ of what is below the largest
            p = np.exp((logits[at] - logits[at].max()) / temperature)
        p = p[likeliest][:top_k] / p[likeliest][:top_k].sum()
        if top_p is not None:
            likelier = np.cumsum(p) - p  # together; below top_p, so the first token always stays
            p = p[likelier < top_p]
        out[at][likeliest[: len(p)]] = p / p.sum()
    return out


def beam_search(
    log_probabilities, vocab_size, start, end, max_new_tokens, beams=1, length_penalty=0.0
):
    """(tokens, score) of the best output that a beam of so many prefixes finds; tokens: a tuple,
    without start and end.

    log_probabilities: function of a tuple of tokens, start first -> float64 (vocab_size,), those of
    the next token. Each step extends every living prefix by every token and ranks all of them by
    log-probability (on a tie the earlier prefix, then the lower token). Of the best ``beams``,
    those that end are finished; the best ``beams`` that do not end live on. The search is over when
    ``beams`` outputs are finished, or after ``max_new_tokens`` tokens, end included; if nothing is
    finished then, the best living prefix is. The best output is the finished one with the highest
    score: its log-probability divided by ((5 + n) / 6)^length_penalty, n its tokens with the end
    (Wu et al. 2016, equation 14; the first found on a tie). beams=1 is greedy. ValueError or
    TypeError as ``check_beams``.
    """
    check_beams(vocab_size, start, end, max_new_tokens, beams, length_penalty)
    if not callable(log_probabilities):
        raise TypeError(
            f"log_probabilities must be a function, got {type(log_probabilities).__name__}"
        )
    living, finished = [((start,), 0.0)], []
    for n in range(1, max_new_tokens + 1):
        grown = [
            ((*prefix, token), score + more)
            for prefix, score in living
            for token, more in enumerate(_of_next(log_probabilities(prefix), vocab_size))
            if more > -np.inf
        ]
        grown.sort(key=lambda one: -one[1])  # stable
        finished += [
            (prefix[1:-1], score, n) for prefix, score in grown[:beams] if prefix[-1] == end
        ]
        living = [(prefix, score) for prefix, score in grown if prefix[-1] != end][:beams]
        if not living or len(finished) >= beams:
            break
    else:
        finished = finished or [(living[0][0][1:], living[0][1], max_new_tokens)]
    scored = [(tokens, score / ((5 + n) / 6) ** length_penalty) for tokens, score, n in finished]
    return max(scored, key=lambda one: one[1])


def _of_next(log_p, vocab_size):
    """What a function says of the next token, as float64 (vocab_size,); −∞ is allowed."""
    log_p = as_floats("log_probabilities", log_p, bounded=False)
    require_shape("log_probabilities", log_p, (vocab_size,), "(vocab_size,)")
    if not (log_p < np.inf).all():  # NaN or +∞
        raise ValueError("log_probabilities must give numbers below infinity, got NaN or infinity")
    return log_p


def _logits(logits):
    """Logits as float64: −∞, what must not be drawn, is allowed where something else is left."""
    logits = as_array("logits", logits)
    if logits.dtype.kind != "f" or logits.ndim < 1 or 0 in logits.shape:
        raise TypeError(
            f"logits must be floating-point numbers (…, V), V ≥ 1, got {logits.dtype} {logits.shape}"
        )
    if not np.isfinite(logits.max(-1)).all():  # NaN, +∞, or nothing but −∞
        raise ValueError(
            "logits must be numbers below infinity, with a finite one among those of each token"
        )
    return logits.astype(np.float64)


def _require_rows(**arrays):
    for name, x in arrays.items():
        if x.ndim < 2 or 0 in x.shape:
            raise ValueError(f"{name} must have shape (…, L, d) with every size ≥ 1, got {x.shape}")
