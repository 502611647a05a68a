"""Assignment A3: its answers under every variant, the notebook's own solutions, wrong solutions, and its pictures."""

import numpy as np
import torch
from reformer_lab.classroom import cases
from reformer_lab.classroom.answers.lsh_attention import ANSWERS
from reformer_lab.classroom.variants import CHOICES, Variant
from reformer_ref.attention.spec import self_as_last_resort
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.lsh_attention.spec import visible_counts
from tests.classroom.harness import cells, function_of
from tests.classroom.test_assignments import random_variants


def visible_by_hand(variant, order, buckets, m):
    """The definition once more, pair by pair."""
    n_hashes, length = order.shape
    free, table = (
        (-(-length // m) * m - length) * (variant.pad == "start"),
        np.zeros((n_hashes, length, length), bool),
    )
    reach = range(variant.n_look + 1) if variant.look == "back" else range(-variant.n_look, 1)
    earlier = (variant.sort_ties == "earliest_first") == (variant.look == "back")
    for h, i, j in np.ndindex(table.shape):
        s_i, s_j = (order[h].tolist().index(t) + free for t in (i, j))
        table[h, i, j] = (
            buckets[h, i] == buckets[h, j] and s_i // m - s_j // m in reach and i != j and earlier == (j < i)
        )
    return table


def test_what_is_seen_is_what_the_definition_says():
    for variant in (Variant(), *random_variants("A3", 20)):
        for args, (seen,) in cases.compute("A3.seen", variant, hidden=False):
            assert np.array_equal(seen, visible_by_hand(variant, *args))


def test_what_is_seen_is_what_the_room_says_where_it_knows_the_variant():
    for n_look in CHOICES["n_look"]:
        for args, (seen,) in cases.compute("A3.seen", Variant(n_look=n_look), hidden=True):
            options = LSHOptions(len(seen), None, args[2], n_look, count_once=False)
            counts = visible_counts(args[1], options)
            assert np.array_equal(self_as_last_resort(seen.sum(0) + np.eye(len(counts), dtype=int)) > 0, counts > 0)
            assert np.array_equal(seen.sum(0) * (1 - np.eye(len(counts))), np.tril(counts, -1))


def test_the_port_is_the_loops_of_the_notebook_and_merged_it_is_one_softmax():
    for variant in (Variant(), *random_variants("A3", 12)):
        loops = function_of(cells("A3_lsh_attention")["port-loops"], variant)
        merge, one_softmax = (ANSWERS[name].reference(variant) for name in ("A3.merge", "A3.attend"))
        for (q, k, v, order, buckets, m), (o, z) in cases.compute("A3.port", variant, hidden=False):
            for at in np.ndindex(q.shape[:-2]):
                seen = visible_by_hand(variant, order[at], buckets[at], m)
                by_hand = loops(q[at], k[at], v[at], seen)
                assert all(np.allclose(x, y[at], rtol=1e-12) for x, y in zip(by_hand, (o, z), strict=True))
                merged = merge(*map(torch.tensor, (o[at], z[at], v[at]))).numpy()
                assert np.allclose(merged, one_softmax(q[at] @ k[at].T, seen, v[at]), rtol=1e-12)
