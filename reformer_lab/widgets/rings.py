"""The rings of a decoder after some tokens: which keys the next token sees, and why."""

import numpy as np
from reformer_ref.hashing.spec import hash_vectors, random_rotations

from reformer_lab.plots.drawing import controls
from reformer_lab.plots.generation import rings as draw_rings

LONGEST, D = 80, 8


@controls(tokens_read=(0, LONGEST - 1), rounds=(1, 3), n_buckets=[2, 4, 8], chunk_length=(1, 8), counted_once=bool)
def rings(tokens_read=40, rounds=2, n_buckets=4, chunk_length=4, counted_once=True):
    """Rings of one head after ``tokens_read`` tokens of a seeded random walk, and the query of the next token."""
    rng = np.random.default_rng(0)
    walk = np.cumsum(rng.standard_normal((LONGEST, D)), axis=0) * 0.4 + rng.standard_normal((LONGEST, D))
    buckets = hash_vectors(walk, random_rotations(rng, 3, D, n_buckets), n_buckets)[:rounds]  # (rounds, LONGEST)
    members = np.full((rounds, n_buckets, chunk_length), -1)
    counts = np.zeros((rounds, n_buckets), int)
    for i in range(tokens_read):
        for h, b in enumerate(buckets[:, i]):
            members[h, b, counts[h, b] % chunk_length] = i
            counts[h, b] += 1
    hidden = np.zeros(members.shape, bool)
    if counted_once:
        for h in range(1, rounds):
            earlier = [members[s, buckets[s, tokens_read]] for s in range(h)]
            hidden[h, buckets[h, tokens_read]] = np.isin(members[h, buckets[h, tokens_read]], np.concatenate(earlier))
    hidden &= members >= 0
    return draw_rings(members, counts, buckets[:, tokens_read], tokens_read, hidden)
