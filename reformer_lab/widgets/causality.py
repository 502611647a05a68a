"""Explorer: change one token, and see which outputs before it change too."""

import numpy as np
from reformer_ref.hashing.spec import hash_vectors, random_rotations
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.lsh_attention.spec import lsh_attention, visible_counts

from reformer_lab.plots.drawing import controls
from reformer_lab.plots.local_attention import output_changes

LENGTH, D_HEAD, SEED = 48, 16, 3
PRESETS = {"chunk": "paper", "strict": "strict", "ring": "trax"}


@controls(window=[*PRESETS], token=(1, LENGTH - 1), rounds=(1, 4), chunk_length=[2, 4, 8, 16], n_buckets=[2, 4, 8, 16])
def causality(window="chunk", token=44, rounds=1, chunk_length=4, n_buckets=4):
    """How far each of 48 outputs moves when one token turns to its opposite, and so into another bucket.

    window: "chunk" (preset paper), "strict", or "ring" (preset trax). token: the position that changes. Computed by the
    spec on seeded random vectors, before and after with the same rotations and the same number of buckets.
    """
    rng = np.random.default_rng(SEED)
    qk, v = rng.standard_normal((2, LENGTH, D_HEAD))
    rotations = random_rotations(rng, rounds, D_HEAD, n_buckets)
    options = LSHOptions.preset(PRESETS[window], n_hashes=rounds, n_buckets=n_buckets, chunk_length=chunk_length)
    opposite = np.where(np.arange(LENGTH) == token, -1.0, 1.0)[:, None]
    outs, counts = [], []
    for x in (qk, opposite * qk):
        buckets = hash_vectors(x, rotations, n_buckets)  # (rounds, L)
        outs.append(lsh_attention(x, v, buckets, options))
        counts.append(visible_counts(buckets, options)[:token] > 0)
    picture = output_changes({f"{window} windows": np.abs(outs[1] - outs[0]).max(-1)}, np.arange(LENGTH) == token)
    pairs = {"pairs seen before": counts[0], "pairs lost": counts[0] & ~counts[1], "gained": counts[1] & ~counts[0]}
    return picture.describe(picture.caption, **picture.numbers, **{name: int(p.sum()) for name, p in pairs.items()})
