"""The checks of the rooms reject what they are there to reject.

Each fault that implementations of the Reformer are known for is built into an implementation that is otherwise right;
the check that must notice rejects it with a sentence that says where to look, and accepts the same code without it.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from reformer_ref.attention.spec import attend, attend_vjp, normalize_keys, normalize_keys_vjp
from reformer_ref.bridge import to_numpy, to_torch
from reformer_ref.chunking import checks as chunking_checks
from reformer_ref.chunking import spec as chunking
from reformer_ref.local_attention import checks as local_checks
from reformer_ref.local_attention import spec as local
from reformer_ref.local_attention.options import LocalOptions
from reformer_ref.lsh_attention import checks, spec
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.reversible import checks as reversible_checks
from reformer_ref.reversible.pytorch import reversible_stack


def rejects(check, wrong, message, *args, **kwargs):
    with pytest.raises(AssertionError, match=message):
        check(wrong, *args, **kwargs)


# LSH attention as an implementation computes it: sort, chunk, look at neighbours, attend, undo, merge rounds


def lsh_attention(qk, v, buckets, options, padding_mask, fault=None, dtype=np.float64):
    """All options, in loops; ``fault`` names the one thing that is wrong."""
    real = np.broadcast_to(True if padding_mask is None else padding_mask, qk.shape[:-1])
    out = np.zeros(v.shape)
    for at in np.ndindex(qk.shape[:-2]):
        out[at] = one_sequence(qk[at].astype(dtype), v[at].astype(dtype), buckets[at], options, real[at], fault)
    return out


def one_sequence(qk, v, buckets, o, real, fault):
    square = np.sum(qk**2, axis=-1, keepdims=True) + qk.shape[-1] * o.norm_eps
    keys = qk if fault == "keys not normalised" else qk / np.sqrt(square)
    rounds = [[] for _ in qk]  # of each token: (log-sum-exp, output) of every round
    seen = [set() for _ in qk]
    for chunk, window in windows(buckets, o, real, fault):
        for s, i in chunk:
            here = [j for _, j in window if visible(i, j, window, s, o, fault)] if window else []
            here = [j for s_j, j, same in ((a, b, c) for (a, b), c in zip(window, window.same, strict=True))]
    return out
