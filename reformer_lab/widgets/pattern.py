"""Who attends to whom, and why: twelve tokens under LSH attention, six words under dense attention."""

from dataclasses import replace

import numpy as np
from reformer_ref._arguments import clear_errors
from reformer_ref.attention.spec import attend, normalize_keys, self_as_last_resort, visible_pairs
from reformer_ref.chunking.spec import sort_by_bucket, undo_sort
from reformer_ref.hashing.spec import hash_vectors, random_rotations
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.lsh_attention.spec import visible_counts

from reformer_lab.plots.attention import attention_matrices
from reformer_lab.plots.drawing import Choice, Range, controls
from reformer_lab.plots.lsh_attention import who_sees_whom

WORDS = ("the", "cat", "sat", "on", "a", "mat")
SIX = np.array([[1.0, 0.5], [2.0, 1.5], [-0.5, 2.0], [0.5, -1.75], [1.5, 0.0], [1.5, 2.0]])  # two numbers per word
LENGTH, ROUNDS, N_BUCKETS, N_GROUPS = 12, 4, 4, 3


@clear_errors
def tokens(seed=90):
    """Twelve vectors in three groups, (12, 8), and their buckets in four rounds of four, (4, 12)."""
    rng = np.random.default_rng(seed)
    groups = rng.standard_normal((N_GROUPS, 8))
    qk = groups[np.arange(LENGTH) % N_GROUPS] + 0.5 * rng.standard_normal((LENGTH, 8))
    return qk, hash_vectors(qk, random_rotations(rng, ROUNDS, 8, N_BUCKETS), N_BUCKETS)


@controls(
    rounds=Range(1, ROUNDS, 1, start=2),
    chunk_length=Range(1, LENGTH, 1, start=4),
    within_bucket=Choice(True, False),
    count_once=Choice(True, False),
    causal=Choice("none", "causal", "strict", start="causal"),
    query=Range(0, LENGTH - 1, 1, start=9),
)
def pattern(rounds, chunk_length, within_bucket, count_once, causal, query):
    """The pattern of LSH attention on twelve tokens, and whom one query attends to in each round
    and why.

    causal "strict" is the rank window, which stays within a bucket whatever ``within_bucket`` says.
    """
    strict = causal == "strict"
    options = LSHOptions(
        n_hashes=rounds,
        chunk_length=chunk_length,
        causal=causal != "none",
        within_bucket=within_bucket or strict,
        count_once=count_once,
        window="rank" if strict else "chunk",
    )
    qk, buckets = tokens()
    buckets, keys = buckets[:rounds], normalize_keys(qk)
    weights = attend(qk, keys, qk, visible_counts(buckets, options))[1]
    everyone = self_as_last_resort(visible_pairs(LENGTH, LENGTH, options.causal))
    dense = attend(qk, keys, qk, everyone)[1]
    seen, reasons = why(query, buckets, options)
    borders = None if strict else chunk_length
    return who_sees_whom(weights, dense, query, sort_by_bucket(buckets), buckets, seen, reasons, borders)


@clear_errors
def why(query, buckets, options):
    """(seen, reasons): seen bool (n_hashes, L), whom the query attends to in each round; reasons,
    n_hashes lists of L.

    buckets int (n_hashes, L); options without wrap and with one chunk of look-back. What is seen
    comes from ``visible_counts``, a round at a time; the reasons are found here.
    """
    rounds, one_round = range(len(buckets)), replace(options, n_hashes=1)
    places = np.arange(buckets.shape[1])
    shown = np.stack([visible_counts(b[None], one_round)[query] > 0 for b in buckets]) & (places != query)
    before = np.cumsum(shown, axis=0) - shown  # in how many earlier rounds
    seen = shown & ~(options.count_once & (before > 0))
    slot = undo_sort(sort_by_bucket(buckets))
    reasons = [[_reason(query, j, h, shown, seen, slot[h], buckets[h], options) for j in places] for h in rounds]
    if not shown.any():
        seen[0, query], reasons[0][query] = True, "itself:\nno one else"
    return seen, reasons


def _reason(query, j, h, shown, seen, slot, buckets, options):
    """Why the query attends to token j in round h, or why not: a text of at most two short lines."""
    strict = options.window == "rank"
    chunks_back = slot[query] // options.chunk_length - slot[j] // options.chunk_length
    if j == query:
        return "itself"
    if seen[h, j]:
        return "recent in\nits bucket" if strict else ("own chunk", "chunk before")[chunks_back].replace(" b", "\nb")
    if shown[h, j]:
        return f"counted in\nround {np.argmax(shown[:, j]) + 1}"
    if not strict and chunks_back not in (0, 1):
        return "outside\nthe window"
    if options.causal and j > query:
        return "future"
    if buckets[j] != buckets[query]:
        return "other\nbucket"
    return "too old"


@controls(
    scale=Range(0.25, 4.0, 0.25, start=1.0),
    unit_keys=Choice(True, False),
    causal=Choice(True, False),
    self_only_as_last_resort=Choice(True, False),
)
def dense_pattern(scale, unit_keys, causal, self_only_as_last_resort):
    """Dense attention between six words, with each rule of shared-QK attention on or off."""
    counts = visible_pairs(len(WORDS), len(WORDS), causal)
    if self_only_as_last_resort:
        counts = self_as_last_resort(counts)
    keys = normalize_keys(SIX) if unit_keys else SIX
    weights = attend(SIX, keys, SIX, counts, scale)[1]
    picture = attention_matrices({"six words": weights}, WORDS)
    on_itself, on_cat = weights.diagonal().mean(), weights[:, 1].sum() / len(WORDS)
    return picture.tell(picture.caption, **picture.numbers, **{"mean weight on itself": on_itself, "on “cat”": on_cat})
