"""The stepper of sorting and chunking: one sentence in one round of LSH attention, step by step."""

import numpy as np
from reformer_ref._arguments import clear_errors
from reformer_ref.attention.spec import attend, normalize_keys, self_as_last_resort, visible_pairs
from reformer_ref.chunking.spec import sort_by_bucket, split_chunks, undo_sort
from reformer_ref.hashing.spec import hash_vectors, random_rotations
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.lsh_attention.spec import visible_counts

from reformer_lab.plots.chunking import round_in_rows
from reformer_lab.plots.drawing import controls

SENTENCE = "the cat saw the dog and the dog saw the cat but the bird saw both"
D, N_BUCKETS, SEED = 16, 4, 9


@clear_errors
def sentence_vectors(seed=SEED):
    """(tokens, qk (16, d), buckets (1, 16)) of ``SENTENCE``: a random direction for each word, noise at each position.

    The seed draws the directions, the noise and the rotations, and with them the buckets.
    """
    rng = np.random.default_rng(seed)
    tokens = SENTENCE.split()
    words = sorted(set(tokens))
    directions = rng.standard_normal((len(words), D))
    qk = directions[[words.index(t) for t in tokens]] + 0.3 * rng.standard_normal((len(tokens), D))
    return tokens, qk, hash_vectors(qk, random_rotations(rng, 1, D, N_BUCKETS), N_BUCKETS)


@clear_errors
def rows_of_round(tokens, buckets, chunk_length=4, chunks_before=1):
    """The arguments of ``round_in_rows`` for one round of causal attention within buckets; buckets int (1, L)."""
    order = sort_by_bucket(buckets)
    options = LSHOptions(n_hashes=1, chunk_length=chunk_length, chunks_before=chunks_before)
    return {
        "tokens": tokens,
        "buckets": buckets[0],
        "order": order[0],
        "slot": undo_sort(order)[0],
        "chunks": split_chunks(order, chunk_length)[0],
        "visible": visible_counts(buckets, options),
        "chunks_before": chunks_before,
    }


@clear_errors
def matrices(qk, buckets, chunk_length=4, chunks_before=1):
    """The arguments of ``four_matrices``: attention in both directions; qk (L, d), buckets int (1, L)."""
    length = len(qk)
    if np.shape(buckets) != (1, length):
        raise ValueError(f"buckets must have shape (1, {length}), one for each row of qk, got {np.shape(buckets)}")
    dense_counts = self_as_last_resort(visible_pairs(length, length, causal=False))
    bucket = LSHOptions(n_hashes=1, chunk_length=length, chunks_before=0, causal=False)
    window = LSHOptions(n_hashes=1, chunk_length=chunk_length, chunks_before=chunks_before, causal=False)
    counts = dense_counts, visible_counts(buckets, bucket), visible_counts(buckets, window)
    dense, bucketed, chunked = (attend(qk, normalize_keys(qk), qk, c)[1] for c in counts)
    return {
        "dense": dense,
        "bucketed": bucketed,
        "chunked": chunked,
        "buckets": buckets[0],
        "order": sort_by_bucket(buckets)[0],
        "chunk_length": chunk_length,
        "chunks_before": chunks_before,
    }


@clear_errors
def reached(buckets, chunk_length, chunks_back):
    """Fraction of the causal pairs of one bucket inside a window, for each number of chunks back; buckets (1, L)."""
    earlier = np.tril(buckets[0][:, None] == buckets[0], -1)
    options = [LSHOptions(n_hashes=1, chunk_length=chunk_length, chunks_before=before) for before in chunks_back]
    return [float((visible_counts(buckets, o) * earlier).sum() / max(1, earlier.sum())) for o in options]


@controls(
    step=["1 hashed", "2 sorted", "3 chunked", "4 attended", "5 undone"],
    chunk_length=(1, 8),
    chunks_before=(0, 3),
    seed=(0, 20),
)
def chunks(step="4 attended", chunk_length=3, chunks_before=1, seed=SEED):
    """One round of LSH attention on one sentence up to a step, row by row."""
    tokens, _, buckets = sentence_vectors(seed)
    name = step.split()[1]
    picture = round_in_rows(**rows_of_round(tokens, buckets, chunk_length, chunks_before), upto=name)
    if name not in ("attended", "undone"):
        return picture
    (fraction,) = reached(buckets, chunk_length, [chunks_before])
    return picture.describe(picture.caption, **picture.numbers, **{"fraction of earlier members reached": fraction})
