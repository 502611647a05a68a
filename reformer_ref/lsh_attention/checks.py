"""What any LSH attention must satisfy, put to a function on NumPy arrays.

First come identities that need no specification: small cases whose answer one can see, and changes
that must not matter. Each has a sentence of its own for when it fails. Then the spec is asked, over
lengths that divide nothing, several sequences at once and padding anywhere. ``options``: label to
test; by default every preset and a few more.
"""

from dataclasses import replace

import numpy as np

from reformer_ref.lsh_attention import spec
from reformer_ref.lsh_attention.options import PRESETS, LSHOptions
from reformer_ref.testing import (
    central_difference,
    compare_all,
    compare_gradients,
    expect_equal,
    in_a_sentence,
    padding_masks,
)

OPTIONS = (
    # without "huggingface", which is as "trax"
    *(LSHOptions.preset(p, n_hashes=2, chunk_length=4) for p in PRESETS if p != "huggingface"),
    LSHOptions(n_hashes=3, chunk_length=4, chunks_after=1, causal=False),
    LSHOptions(n_hashes=3, chunk_length=4, count_once=False),
    LSHOptions(n_hashes=2, chunk_length=3, chunks_before=2, chunks_after=1, within_bucket=False),
    LSHOptions(
        n_hashes=2, chunk_length=4, chunks_after=1, causal=False, within_bucket=False, wrap=True
    ),
    LSHOptions(chunk_length=5, chunks_before=0, scale=0.5, norm_eps=0.1),
    LSHOptions.preset("strict", n_hashes=3, chunk_length=2, count_once=False),
)


@in_a_sentence
def check_lsh_attention(fn, options=None, seed=0, tolerance=1e-12):
    """``fn(qk, v, buckets, options, padding_mask) -> out`` satisfies every identity of this file
    and equals the spec.

    qk (…, L, d), v (…, L, d_v), buckets int (…, n_hashes, L), padding_mask bool (…, L) or None, out
    (…, L, d_v). Of the options given, only ``n_hashes`` and ``chunk_length`` are varied.
    """

    def comparisons():
        for o in OPTIONS if options is None else (options,):
            rng = np.random.default_rng(seed)
            for identity in IDENTITIES:
                for label, got, want, hint in identity(fn, o, rng):
                    yield f"{label}, {_name(o)}", got, want, hint
            for label, inputs, mask in _cases(o, rng):
                want = spec.lsh_attention(*inputs, o, mask)
                yield f"{label}, {_name(o)}", fn(*inputs, o, mask), want, COMPARE

    compare_all("check_lsh_attention", comparisons(), tolerance)


@in_a_sentence
def check_lsh_attention_vjp(fn, options=None, seed=0, tolerance=1e-12):
    """``fn(qk, v, buckets, options, d_out, padding_mask) -> (d_qk, d_v)`` equals central
    differences and the spec.
    """

    def comparisons():
        for o in OPTIONS if options is None else (options,):
            rng = np.random.default_rng(seed)
            for label, (qk, v, buckets), mask in _cases(o, rng):
                d_out = rng.standard_normal(v.shape)
                # Side by side, (…, L, d + d_v): where a query sees one key only, d_qk is zero and
                # has no size to compare with.
                got = np.concatenate(fn(qk, v, buckets, o, d_out, mask), axis=-1)
                want = spec.lsh_attention_vjp(qk, v, buckets, o, d_out, mask)
                numeric = None
                if qk.size <= 40 and o.norm_eps > 0:  # else short keys turn too sharply
                    counts = spec.visible_counts(buckets, o, mask)

                    def of_both(x, counts=counts, d=qk.shape[-1], o=o):
                        return _plain(x[..., :d], x[..., d:], counts, o)

                    numeric = central_difference(of_both, np.concatenate([qk, v], axis=-1), d_out)
                label = f"(d_qk, d_v) side by side, {label}, {_name(o)}"
                yield label, got, np.concatenate(want, axis=-1), numeric, GRADIENT

    compare_gradients("check_lsh_attention_vjp", comparisons(), tolerance)


@in_a_sentence
def check_attention_record(fn, options=None, seed=0, tolerance=1e-12):
    """``fn(qk, v, buckets, options, padding_mask) -> (out, dense)``: dense (…, L, L) is the matrix
    that makes out.

    A row sums to one, or to zero where the query sees nothing; an entry is positive exactly where
    the query sees the key; and dense · v = out = the spec's output.
    """
    hint = (
        "Each row of the attention matrix is one softmax over everything the query sees in any "
        "round."
    )

    def comparisons():
        for o in OPTIONS if options is None else (options,):
            rng = np.random.default_rng(seed)
            for label, (qk, v, buckets), mask in _cases(o, rng):
                label = f"{label}, {_name(o)}"
                out, dense = fn(qk, v, buckets, o, mask)
                visible = spec.visible_counts(buckets, o, mask) > 0
                want = spec.lsh_attention(qk, v, buckets, o, mask)
                yield f"out, {label}", out, want, COMPARE
                rows = visible.any(-1).astype(float)
                yield f"row sums of dense, {label}", dense.sum(-1), rows, hint
                yield f"dense · v, {label}", dense @ v, out, hint
                seen = "Who is seen: visible_counts in the spec."
                expect_equal(f"dense > 0, {label}", dense > 0, visible, seen)

    compare_all("check_attention_record", comparisons(), tolerance)


# Identities: each yields (label, got, wanted, hint)


def _self_is_excluded(fn, options, rng):
    o = replace(options, chunk_length=7)
    qk, v, buckets = _draw(rng, 7, o)
    want = fn(qk, v, 0 * buckets, o, None)
    for i in (3, 6):
        changed = v.copy()
        changed[i] += 10.0
        got = fn(qk, changed, 0 * buckets, o, None)
        yield f"out[{i}] after a change of v[{i}]", got[i], want[i], SELF


def _sort_is_undone(fn, options, rng):
    if not options.within_bucket:
        return
    o = replace(options, chunk_length=6)
    qk, v, _ = _draw(rng, 6, o)
    buckets = np.tile([1, 0, 2, 1, 0, 2], (o.n_hashes, 1))
    partner = [0, 1, 2, 0, 1, 2] if o.causal else [3, 4, 5, 0, 1, 2]
    hint = "Undo the sort: the output of a token belongs to its own position."
    yield "pairs of tokens that see only each other", fn(qk, v, buckets, o, None), v[partner], hint


def _causality(fn, options, rng):
    if not options.causal:
        return
    length = 3 * options.chunk_length + 2
    t = length // 2
    qk, v, buckets = _draw(rng, length, options)
    want = fn(qk, v, buckets, options, None)
    qk[t:] = rng.standard_normal(qk[t:].shape)
    v[t:] = rng.standard_normal(v[t:].shape)
    got = fn(qk, v, buckets, options, None)
    hint = "Causal: no key at a later position. Compare original positions, not sorted slots."
    yield f"out[:{t}] after later qk and v changed", got[:t], want[:t], hint


def _only_self(fn, options, rng):
    qk, v, buckets = _draw(rng, 7, options)
    if options.causal:
        yield "out of the first token", fn(qk, v, buckets, options, None)[0], v[0], SELF
    got = fn(qk[:1], v[:1], buckets[:, :1], options, None)
    yield "out of a sequence of one token", got, v[:1], SELF


def _everything_visible_is_dense(fn, options, rng):
    qk, v, buckets = _draw(rng, 9, options)
    o = replace(options, chunk_length=9)
    counts = np.tril(np.ones((9, 9))) if o.causal else np.ones((9, 9))
    hint = (
        "One bucket and one chunk is dense attention: keys k̂ = q / √(‖q‖² + d·norm_eps), logits "
        "scale·q·k̂."
    )
    yield "all in one bucket", fn(qk, v, 0 * buckets, o, None), _plain(qk, v, counts, o), hint


def _one_bucket_is_a_window(fn, options, rng):
    if options.wrap:
        return
    length = max(37, 4 * options.chunk_length + 3)  # long enough for an unstable sort to show
    qk, v, buckets = _draw(rng, length, options)
    i = np.arange(length)[:, None]
    j = np.arange(length)
    step = j // options.chunk_length - i // options.chunk_length
    seen = (step >= -options.chunks_before) & (step <= options.chunks_after)
    if options.window == "rank":
        seen = i - j <= options.chunk_length
    if options.causal:
        seen &= j <= i
    hint = (
        "The sort is stable: within a bucket tokens keep their order. A query sees its own chunk, "
        "chunks_before and chunks_after; with rank windows, the chunk_length most recent members."
    )
    want = _plain(qk, v, seen, options)
    yield "one bucket, many chunks", fn(qk, v, 0 * buckets, options, None), want, hint


def _rounds_form_one_softmax(fn, options, rng):
    if not options.within_bucket or options.wrap:
        return
    length = 12
    rows, columns = np.arange(length) // 4, np.arange(length) % 4  # no pair shares both
    same_row, same_column = ((b[:, None] == b).astype(float) for b in (rows, columns))
    if options.causal:
        same_row, same_column = np.tril(same_row), np.tril(same_column)
    two, three = (replace(options, chunk_length=length, n_hashes=n) for n in (2, 3))
    qk, v, _ = _draw(rng, length, options)
    want = _plain(qk, v, same_row + same_column, options)
    got = fn(qk, v, np.stack([rows, columns]), two, None)
    hint = (
        "Rounds form one softmax: weigh each round's output with exp(its log-sum-exp − that of all "
        "rounds)."
    )
    yield "two rounds that share no pair", got, want, hint
    hint = "count_once: a key counts once however many rounds show it (the paper's N_ij)."
    if not options.count_once:
        want = _plain(qk, v, 2 * same_row + same_column, options)
        hint = "count_once=False: a key shown by two rounds counts twice."
    got = fn(qk, v, np.stack([rows, rows, columns]), three, None)
    yield "a round that comes twice", got, want, hint


def _order_of_rounds(fn, options, rng):
    if options.wrap or options.n_hashes == 1:
        return
    qk, v, buckets = _draw(rng, 3 * options.chunk_length + 2, options)
    got, want = (fn(qk, v, b, options, None) for b in (buckets[::-1], buckets))
    yield "rounds in reverse order", got, want, "Without wrap, no round comes before another."


def _strict_prefix(fn, options, rng):
    if options.window != "rank":
        return
    length = 4 * options.chunk_length + 3
    qk, v, buckets = _draw(rng, length, options)
    want = fn(qk, v, buckets, options, None)
    hint = (
        "window='rank': a token sees the chunk_length most recent earlier members of its bucket, "
        "wherever chunks end."
    )
    for t in (1, options.chunk_length, length // 2, length - 1):
        got = fn(qk[:t], v[:t], buckets[:, :t], options, None)
        yield f"the first {t} tokens alone", got, want[:t], hint
        other = buckets.copy()
        other[:, t:] = rng.integers(0, 3, other[:, t:].shape)
        got = fn(qk, v, other, options, None)
        yield f"out[:{t}] after later buckets changed", got[:t], want[:t], hint


def _padding_never_matters(fn, options, rng):
    length = 3 * options.chunk_length + 2
    qk, v, buckets = _draw(rng, length, options)
    mask = rng.random(length) < 0.7
    hint = "Padding sorts behind all real tokens and is never a key."
    want = fn(qk, v, buckets, options, mask)[mask]
    other_qk, other_v, other_buckets = _draw(rng, length, options)
    qk = np.where(mask[:, None], qk, other_qk)
    v = np.where(mask[:, None], v, other_v)
    got = fn(qk, v, np.where(mask, buckets, other_buckets), options, mask)[mask]
    yield "real tokens after the padded ones changed", got, want, hint
    if options.wrap:  # label stands in the last chunk depends on the length
        return
    want = fn(qk[mask], v[mask], buckets[:, mask], options, None)
    yield "real tokens alone, instead of with padding between them", got, want, hint


def _sequences_are_independent(fn, options, rng):
    qk, v, buckets = _draw(rng, options.chunk_length + 3, options, (2, 3))
    got = fn(qk, v, buckets, options, None)
    want = [fn(qk[i], v[i], buckets[i], options, None) for i in np.ndindex(2, 3)]
    hint = "Leading axes are separate sequences."
    yield "six sequences at once", got, np.reshape(want, got.shape), hint


IDENTITIES = (  # the most telling first
    _self_is_excluded,
    _sort_is_undone,
    _causality,
    _only_self,
    _everything_visible_is_dense,
    _one_bucket_is_a_window,
    _rounds_form_one_softmax,
    _order_of_rounds,
    _strict_prefix,
    _padding_never_matters,
    _sequences_are_independent,
)

SELF = "A token attends to itself only when no round shows it anything else, and then wholly."
COMPARE = "Compare the visible pairs with visible_counts in the spec."
GRADIENT = (
    "qk collects two gradients, as queries and, through the normalisation, as keys. Nothing flows "
    "through buckets."
)


def _plain(qk, v, counts, options):
    """The softmax written out for logits of modest size, with the self rule."""
    keys = qk / np.sqrt(np.sum(qk**2, axis=-1, keepdims=True) + qk.shape[-1] * options.norm_eps)
    scale = qk.shape[-1] ** -0.5 if options.scale == "rsqrt_d" else options.scale
    weights = counts * np.exp(scale * qk @ np.swapaxes(keys, -1, -2))  # (…, L, L)
    others = weights * (1 - np.eye(weights.shape[-1]))
    weights = np.where(others.any(-1, keepdims=True), others, weights)
    row_sum = weights.sum(-1, keepdims=True)
    return weights @ v / np.where(row_sum > 0, row_sum, 1)


def _draw(rng, length, options, lead=(), n_buckets=3):
    """qk (…, L, 4), v (…, L, 3), buckets (…, n_hashes, L)."""
    qk, v = rng.standard_normal((*lead, length, 4)), rng.standard_normal((*lead, length, 3))
    return qk, v, rng.integers(0, n_buckets, (*lead, options.n_hashes, length))


def _cases(options, rng):
    """(label, (qk, v, buckets), padding_mask): lengths that divide nothing, padding anywhere."""
    c = options.chunk_length
    for length in sorted({1, 2, max(1, c - 1), c, c + 1, 3 * c + 2}):
        lead = (2,) if length > 2 else (2, 2)
        for side, mask in padding_masks(rng, (*lead, length)).items():
            inputs = _draw(rng, length, options, () if mask is None else lead)
            yield f"L={length}, {side}", inputs, mask


def _name(options):
    changed = {k: v for k, v in options.to_dict().items() if v != getattr(LSHOptions(), k)}
    return f"LSHOptions({', '.join(f'{k}={v!r}' for k, v in changed.items())})"
