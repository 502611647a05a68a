"""Generation, in NumPy: decoding token by token from what the strict window needs, and the distribution to draw from.

With the strict window, query i sees key j if in some round they share the bucket and j is among the ``chunk_length``
most recent earlier members of that bucket. So all that the next token can ever ask for stands in one short queue per
round and bucket. Local attention needs the last chunks alone.
"""

import numpy as np

from reformer_ref.attention.spec import normalize_keys
from reformer_ref.local_attention.options import LocalOptions
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.validate import require_float, require_int, require_shape


def lsh_decode(qk, v, buckets, options):
    """LSH attention in the strict window, one token after the other from queues: float64 (…, L, d_v).

    Arguments as in ``lsh_attention`` (qk (…, L, d), v (…, L, d_v), buckets int (…, n_hashes, L)), and the same result.
    ValueError unless ``options.window`` is "rank". Source: DESIGN, "Strict causality".
    """
    _require_strict(options)
    qk, v, buckets = np.asarray(qk, np.float64), np.asarray(v, np.float64), np.asarray(buckets)
    require_shape("v", v, (*qk.shape[:-1], v.shape[-1]), "(…, L, d_v)")
    require_shape("buckets", buckets, (*qk.shape[:-2], options.n_hashes, qk.shape[-2]), "(…, n_hashes, L)")
    k, out = normalize_keys(qk, options.norm_eps), np.empty_like(v)
    for at in np.ndindex(qk.shape[:-2]):
        queues = {}  # (round, bucket) -> positions of its last chunk_length members
        for i in range(qk.shape[-2]):
            mine = [queues.setdefault((h, b), []) for h, b in enumerate(buckets[at][:, i])]
            seen = [j for queue in mine for j in queue]
            seen = sorted(set(seen)) if options.count_once else seen
            out[at][i] = _softmax_sum(qk[at][i], k[at][seen], v[at][seen], options) if seen else v[at][i]
            for queue in mine:
                queue.append(i)
                del queue[: -options.chunk_length]  # the oldest member gives way
    return out


def local_decode(q, k, v, options):
    """Causal local attention, one token after the other from the last chunks: float64 (…, L, d_v), as
    ``local_attention``.

    ValueError for options that are not causal.
    """
    _require_local(options)
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
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
            out[at][i] = _softmax_sum(q[at][i], k[at][seen], v[at][seen], options)
    return out


def token_probabilities(logits, temperature=1.0, top_k=None, top_p=None):
    """The distribution that the next token is drawn from: float64 (…, V), for logits (…, V).

    Temperature divides the logits; 0 puts everything on the largest (the first one on a tie). Then ``top_k`` keeps the
    k likeliest tokens, then ``top_p`` the fewest of the likeliest that together reach top_p (Holtzman et al. 2020).
    What is left sums to 1. TypeError or ValueError unless temperature ≥ 0, top_k ≥ 1 or None, 0 < top_p ≤ 1 or None.
    """
    _check_sampling(temperature, top_k, top_p)
    logits = np.asarray(logits, np.float64)
    out = np.zeros_like(logits)
    for at in np.ndindex(logits.shape[:-1]):
        likeliest = np.argsort(-logits[at], kind="stable")
        if temperature == 0:
            out[at][likeliest[0]] = 1.0
            continue
        p = np.exp((logits[at] - logits[at].max()) / temperature)
        p = p[likeliest][:top_k] / p[likeliest][:top_k].sum()
        if top_p is not None:
            likelier = np.cumsum(p) - p  # together; below top_p, so the first token always stays
            p = p[likelier < top_p]
        out[at][likeliest[: len(p)]] = p / p.sum()
    return out


def _softmax_sum(q, k, v, options):
    """softmax(scale · k q) v for one query: q (d,), k (n, d), v (n, d_v) -> (d_v,)."""
    logits = options.scale_for(len(q)) * (k @ q)
    weights = np.exp(logits - logits.max())
    return weights / weights.sum() @ v


def _check_sampling(temperature, top_k, top_p):
    require_float("temperature", temperature, minimum=0.0)
    if top_k is not None:
        require_int("top_k", top_k)
    if top_p is not None and not 0.0 < require_float("top_p", top_p) <= 1.0:
        raise ValueError(f"top_p must be in (0, 1], got {top_p}")


def _require_strict(options):
    if not isinstance(options, LSHOptions):
        raise TypeError(f"options must be LSHOptions, got {type(options).__name__}")
    if options.window != "rank":
        raise ValueError(f'options.window must be "rank", the strict window, got {options.window!r}')


def _require_local(options):
    if not isinstance(options, LocalOptions):
        raise TypeError(f"options must be LocalOptions, got {type(options).__name__}")
    if not options.causal or (options.wrap and (options.chunks_before > 1 or options.chunks_after > 0)):
        raise ValueError("options must be causal, and without wrap if chunks_before > 1 or chunks_after > 0")
