"""Which keys each query attends to, and why: twelve tokens in LSH attention, six words in dense attention."""

from dataclasses import replace

import numpy as np
from reformer_ref._arguments import clear_errors
from reformer_ref.attention.spec import attend, normalize_keys, self_as_last_resort, visible_pairs
from reformer_ref.chunking.spec import sort_by_bucket, undo_sort
from reformer_ref.hashing.spec import hash_vectors, random_rotations
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.lsh_attention.spec import visible_counts

from reformer_lab.plots.attention import attention_matrices
from reformer_lab.plots.drawing import controls
from reformer_lab.plots.lsh_attention import query_by_round

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
    rounds=(1, ROUNDS),
    chunk_length=(1, LENGTH),
    within_bucket=bool,
    count_once=bool,
    causal=["none", "causal", "strict"],
    query=(0, LENGTH - 1),
)
def pattern(rounds=2, chunk_length=4, within_bucket=True, count_once=True, causal="causal", query=9):
    """The pattern of LSH attention on twelve tokens, and which keys one query attends to in each round, and why.

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
    dense_counts = self_as_last_resort(visible_pairs(LENGTH, LENGTH, options.causal))
    dense = attend(qk, keys, qk, dense_counts)[1]
    seen, reasons = visibility_reasons(query, buckets, options)
    borders = None if strict else chunk_length
    return query_by_round(weights, dense, query, sort_by_bucket(buckets), buckets, seen, reasons, borders)


@clear_errors
def visibility_reasons(query, buckets, options):
    """(seen, reasons): the keys that the query attends to in each round, bool (n_hashes, L); n_hashes lists of L texts.

    buckets int (n_hashes, L); options without wrap and with one chunk of look-back. ``visible_counts`` decides, one
    round at a time, which keys are visible; the reasons are worked out from buckets and chunks.
    """
    rounds = range(len(buckets))
    single = replace(options, n_hashes=1)
    keys = np.arange(buckets.shape[1])
    visible = np.stack([visible_counts(b[None], single)[query] > 0 for b in buckets]) & (keys != query)
    before = np.cumsum(visible, axis=0) - visible  # in how many earlier rounds
    seen = visible & ~(options.count_once & (before > 0))
    slot = undo_sort(sort_by_bucket(buckets))
    reasons = [[_reason(query, j, h, visible, seen, slot[h], buckets[h], options) for j in keys] for h in rounds]
    if not visible.any():
        seen[0, query], reasons[0][query] = True, "itself:\nno other key"
    return seen, reasons


def _reason(query, j, h, visible, seen, slot, buckets, options):
    """Why the query attends to token j in round h, or why not: a text of at most two short lines."""
    strict = options.window == "rank"
    chunks_back = slot[query] // options.chunk_length - slot[j] // options.chunk_length
    if j == query:
        return "itself"
    if seen[h, j]:
        return "recent in\nits bucket" if strict else ("same chunk", "chunk before")[chunks_back].replace(" b", "\nb")
    if visible[h, j]:
        return f"counted in\nround {np.argmax(visible[:, j]) + 1}"
    if not strict and chunks_back not in (0, 1):
        return "outside\nthe window"
    if options.causal and j > query:
        return "future"
    if buckets[j] != buckets[query]:
        return "other\nbucket"
    return "too old"


@controls(scale=(0.25, 4.0, 0.25), unit_keys=bool, causal=bool, self_only_as_last_resort=bool)
def dense_pattern(scale=1.0, unit_keys=True, causal=True, self_only_as_last_resort=True):
    """Dense attention between six words, with each rule of shared-QK attention on or off."""
    counts = visible_pairs(len(WORDS), len(WORDS), causal)
    if self_only_as_last_resort:
        counts = self_as_last_resort(counts)
    keys = normalize_keys(SIX) if unit_keys else SIX
    weights = attend(SIX, keys, SIX, counts, scale)[1]
    picture = attention_matrices({"six words": weights}, WORDS)
    on_itself = weights.diagonal().mean()
    on_cat = weights[:, 1].sum() / len(WORDS)
    return picture.describe(
        picture.caption, **picture.numbers, **{"mean weight on itself": on_itself, "on “cat”": on_cat}
    )
