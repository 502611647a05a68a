"""What any decoder must satisfy: checks of a function on NumPy arrays."""

import numpy as np

from reformer_ref.generation import spec
from reformer_ref.local_attention.options import LocalOptions
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.testing import expect_close, in_a_sentence

FILTERS = ((None, None), (1, None), (3, None), (50, None), (None, 0.5), (None, 1.0), (4, 0.7))


@in_a_sentence
def check_lsh_decode(fn, seed=0, tolerance=1e-12):
    """``fn(qk, v, buckets, options)``: decoding in the strict window equals the attention of the
    whole sequence.
    """
    rng = np.random.default_rng(seed)
    cases, worst = 0, 0.0
    for n_hashes in (1, 2, 4):
        for length, chunk_length, n_buckets in ((1, 4, 2), (23, 4, 4), (70, 8, 2)):
            for count_once in (True, False):
                options = LSHOptions.preset(
                    "strict", n_hashes=n_hashes, chunk_length=chunk_length, count_once=count_once
                )
                qk, v = rng.normal(size=(2, 2, length, 6)), rng.normal(size=(2, 2, length, 5))
                buckets = rng.integers(n_buckets, size=(2, 2, n_hashes, length))
                want = spec.lsh_decode(qk, v, buckets, options)
                case = (
                    f"outputs of {length} tokens, {n_hashes} rounds, rings of {chunk_length}, "
                    f"count_once={count_once}"
                )
                error = expect_close(case, fn(qk, v, buckets, options), want, tolerance)
                worst = max(worst, error)
                cases += 1
    print(f"check_lsh_decode: {cases} cases, worst relative error {worst:.1e}")


@in_a_sentence
def check_local_decode(fn, seed=0, tolerance=1e-12):
    """``fn(q, k, v, options)``: decoding from the last chunks equals local attention of the whole
    sequence.
    """
    rng = np.random.default_rng(seed)
    cases, worst = 0, 0.0
    for length, chunk_length, chunks_before in ((1, 4, 1), (23, 4, 1), (40, 8, 0), (37, 5, 2)):
        options = LocalOptions(chunk_length=chunk_length, chunks_before=chunks_before)
        q, k, v = (rng.normal(size=(2, 2, length, 6)) for _ in range(3))
        case = f"outputs of {length} tokens, chunks of {chunk_length}, {chunks_before} before"
        want = spec.local_decode(q, k, v, options)
        worst = max(worst, expect_close(case, fn(q, k, v, options), want, tolerance))
        cases += 1
    print(f"check_local_decode: {cases} cases, worst relative error {worst:.1e}")


@in_a_sentence
def check_token_probabilities(fn, seed=0, tolerance=1e-12):
    """``fn(logits, temperature, top_k, top_p)``: the distribution that the next token is drawn
    from.
    """
    rng = np.random.default_rng(seed)
    cases, worst = 0, 0.0
    for temperature in (0.0, 0.3, 1.0, 5.0):
        for top_k, top_p in FILTERS:
            logits = rng.normal(size=(3, 9)) * 3
            want = spec.token_probabilities(logits, temperature, top_k, top_p)
            case = f"probabilities for temperature={temperature}, top_k={top_k}, top_p={top_p}"
            got = fn(logits, temperature, top_k, top_p)
            worst = max(worst, expect_close(case, got, want, tolerance))
            cases += 1
    print(f"check_token_probabilities: {cases} cases, worst relative error {worst:.1e}")
