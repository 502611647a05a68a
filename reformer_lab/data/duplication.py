"""The paper's duplication task: sequences 0w0w, in which only the second w can be predicted (section 5, table 2).

w is a sequence of symbols 1 … vocab_size − 1, drawn uniformly for each sequence. A model solves the task if, from the
second 0 on, it attends to the token that followed half a sequence before.
"""

import numpy as np
from reformer_ref._arguments import as_array, require_fits, require_int

NOT_COUNTED = -100  # as `ReformerLM.loss` has it


def batches(length, vocab_size, batch, seed, step):
    """The batch of one step: (tokens, targets), int64 (batch, length) each; a pure function of its arguments.

    length: even, at least 4, so that w has length / 2 − 1 symbols. targets: the next token in the second 0w, −100 in
    the first, where nothing can be predicted, and at the end.
    """
    length = require_int("length", length, 4)
    vocab_size = require_int("vocab_size", vocab_size, 2, 2**62)
    if length % 2:
        raise ValueError(f"length must be even (0w twice), got {length}")
    batch = require_int("batch", batch)
    require_fits(batch=batch, length=length)
    seed = require_int("seed", seed, minimum=0)
    step = require_int("step", step, minimum=0)
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, step])))
    zero_w = np.zeros((batch, length // 2), np.int64)
    zero_w[:, 1:] = rng.integers(1, vocab_size, size=(batch, length // 2 - 1))
    tokens = np.concatenate([zero_w, zero_w], axis=1)  # (batch, length)
    targets = np.full_like(tokens, NOT_COUNTED)
    targets[:, length // 2 : -1] = tokens[:, length // 2 + 1 :]
    return tokens, targets


def accuracy(predicted, targets):
    """The fraction of counted targets that were predicted: int arrays of one shape, targets −100 where not counted."""
    predicted, targets = as_array("predicted", predicted), as_array("targets", targets)
    for name, array in (("predicted", predicted), ("targets", targets)):
        if array.dtype.kind not in "iuf":
            raise TypeError(f"{name} must hold numbers, got dtype {array.dtype}")
    if predicted.shape != targets.shape:
        raise ValueError(f"predicted must have the shape of targets, {targets.shape}, got {predicted.shape}")
    counted = targets != NOT_COUNTED
    if not counted.any():
        raise ValueError("targets must count at least one token, got none")
    return float((predicted == targets)[counted].mean())


def chance(vocab_size):
    """The accuracy of guessing a symbol: 1 / (vocab_size − 1)."""
    return 1.0 / (require_int("vocab_size", vocab_size, 2, 2**62) - 1)
