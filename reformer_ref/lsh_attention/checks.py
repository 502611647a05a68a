"""What any LSH attention must satisfy, put to a function on NumPy arrays.

First come identities that need no specification: small cases whose answer one can see, and changes
that must not matter. Each has a sentence of its own for when it fails. Then the spec is asked, over
lengths that divide nothing, several sequences at once and padding anywhere. ``options``: what to
test; by default every preset and a few more.
"""

from dataclasses import replace

import numpy as np

from reformer_ref.lsh_attention import spec
from reformer_ref.lsh_attention.options import PRESETS, LSHOptions
from reformer_ref.testing import central_difference, expect_close, expect_equal, in_a_sentence

OPTIONS = (
    *(
        LSHOptions.preset(name, n_hashes=2, chunk_length=4)
        for name in PRESETS
        if name != "huggingface"
    ),  # as "trax"
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
    errors = []
    for o in OPTIONS if options is None else (options,):
        rng = np.random.default_rng(seed)
        for identity in IDENTITIES:
            for what, got, want, hint in identity(fn, o, rng):
                errors.append(expect_close(f"{what}, {_name(o)}", got, want, tolerance, hint))
        for what, inputs, mask in _cases(o, rng):
            got, want = fn(*inputs, o, mask), spec.lsh_attention(*inputs, o, mask)
            errors.append(expect_close(f"{what}, {_name(o)}", got, want, tolerance, COMPARE))
    print(f"check_lsh_attention: {len(errors)} cases, worst relative error {max(errors):.1e}")


@in_a_sentence
def check_lsh_attention_vjp(fn, options=None, seed=0, tolerance=1e-12):
    """``fn(qk, v, buckets, options, d_out, padding_mask) -> (d_qk, d_v)`` equals central
    differences and the spec.
    """
    n, worst, worst_difference = 0, 0.0, 0.0
    for o in OPTIONS if options is None else (options,):
        rng = np.random.default_rng(seed)
        for what, (qk, v, buckets), mask in _cases(o, rng):
            what, d_out = (
                f"(d_qk, d_v) side by side, {what}, {_name(o)}",
                rng.standard_normal(v.shape),
            )
            # side by side: where a query sees one key only, d_qk is zero and has no size to compare
            # with
            got = np.concatenate(fn(qk, v, buckets, o, d_out, mask), axis=-1)  # (…, L, d + d_v)
            want = np.concatenate(spec.lsh_attention_vjp(qk, v, buckets, o, d_out, mask), axis=-1)
            if (
                qk.size <= 40 and o.norm_eps > 0
            ):  # without it the direction of a short key turns too sharply
                counts, d = spec.visible_counts(buckets, o, mask), qk.shape[-1]

                def of_both(x, counts=counts, d=d, o=o):
                    return _plain(x[..., :d], x[..., d:], counts, o)

                numeric = central_difference(of_both, np.concatenate([qk, v], axis=-1), d_out)
                worst_difference = max(
                    worst_difference, expect_close(what, got, numeric, 1e-7, GRADIENT)
                )
            worst, n = max(worst, expect_close(what, got, want, tolerance, GRADIENT)), n + 1
    print(
        f"check_lsh_attention_vjp: {n} cases, worst relative error {worst:.1e}, "
        f"against central differences {worst_difference:.1e}"
    )


@in_a_sentence
def check_attention_record(fn, options=None, seed=0, tolerance=1e-12):
    """``fn(qk, v, buckets, options, padding_mask) -> (out, dense)``: dense (…, L, L) is the matrix
    that makes out.

    A row sums to one, or to zero where the query sees nothing; an entry is positive exactly where
    the query sees the key; and dense · v = out = the spec's output.
    """
    n, worst = 0, 0.0
    for o in OPTIONS if options is None else (options,):
        rng = np.random.default_rng(seed)
        for what, (qk, v, buckets), mask in _cases(o, rng):
            what = f"{what}, {_name(o)}"
            out, dense = fn(qk, v, buckets, o, mask)
            visible = spec.visible_counts(buckets, o, mask) > 0
            hint = "Each row of the attention matrix is one softmax over everything the query sees in any round."
            rows = visible.any(-1).astype(float)
            errors = [
                expect_close(
                    f"out, {what}",
                    out,
                    spec.lsh_attention(qk, v, buckets, o, mask),
                    tolerance,
                    COMPARE,
                ),
                expect_close(f"row sums of dense, {what}", dense.sum(-1), rows, tolerance, hint),
                expect_close(f"dense · v, {what}", dense @ v, out, tolerance, hint),
            ]
            expect_equal(
                f"dense > 0, {what}", dense > 0, visible, "Who is seen: visible_counts in the spec."
            )
            n, worst = n + 1, max(worst, *errors)
    print(f"check_attention_record: {n} cases, worst relative error {worst:.1e}")


# Identities: each yields (what, got, wanted, hint)


def _self_is_excluded(fn, options, rng):
    o = replace(options, chunk_length=7)
    qk, v, buckets = _draw(rng, 7, o)
    before = fn(qk, v, 0 * buckets, o, None)
    for i in (3, 6):
        changed = v.copy()
        changed[i] += 10.0
        yield (
            f"out[{i}] after a change of v[{i}]",
            fn(qk, changed, 0 * buckets, o, None)[i],
            before[i],
            SELF,
        )


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
    qk, v, buckets = _draw(rng, length, options)
    want, t = fn(qk, v, buckets, options, None), length // 2
    qk[t:], v[t:] = rng.standard_normal(qk[t:].shape), rng.standard_normal(v[t:].shape)
    hint = "Causal: no key at a later position. Compare original positions, not places in the sorted order."
    yield (
        f"out[:{t}] after later qk and v changed",
        fn(qk, v, buckets, options, None)[:t],
        want[:t],
        hint,
    )


def _alone_sees_itself(fn, options, rng):
    qk, v, buckets = _draw(rng, 7, options)
    if options.causal:
        yield "out of the first token", fn(qk, v, buckets, options, None)[0], v[0], SELF
    yield (
        "out of a sequence of one token",
        fn(qk[:1], v[:1], buckets[:, :1], options, None),
        v[:1],
        SELF,
    )


def _everything_visible_is_dense(fn, options, rng):
    qk, v, buckets = _draw(rng, 9, options)
    o = replace(options, chunk_length=9)
    counts = np.tril(np.ones((9, 9))) if o.causal else np.ones((9, 9))
    hint = "One bucket and one chunk is dense attention: keys k̂ = q / √(‖q‖² + d·norm_eps), logits scale·q·k̂."
    yield "all in one bucket", fn(qk, v, 0 * buckets, o, None), _plain(qk, v, counts, o), hint


def _one_bucket_is_a_window(fn, options, rng):
    if options.wrap:
        return
    length = max(37, 4 * options.chunk_length + 3)  # long enough for an unstable sort to show
    qk, v, buckets = _draw(rng, length, options)
    i, j = np.arange(length)[:, None], np.arange(length)
    step = j // options.chunk_length - i // options.chunk_length
    seen = (step >= -options.chunks_before) & (step <= options.chunks_after)
    if options.window == "rank":
        seen = i - j <= options.chunk_length
    if options.causal:
        seen &= j <= i
    hint = (
        "The sort is stable: within a bucket tokens keep their order. A query sees its own chunk, chunks_before and "
        "chunks_after; with rank windows, the chunk_length most recent members."
    )
    yield (
        "one bucket, many chunks",
        fn(qk, v, 0 * buckets, options, None),
        _plain(qk, v, seen, options),
        hint,
    )


def _rounds_form_one_softmax(fn, options, rng):
    if not options.within_bucket or options.wrap:
        return
    length = 12
    rows, columns = np.arange(length) // 4, np.arange(length) % 4  # no pair shares both
    together = [(b[:, None] == b).astype(float) for b in (rows, columns)]
    if options.causal:
        together = [np.tril(t) for t in together]
    two, three = (replace(options, chunk_length=length, n_hashes=n) for n in (2, 3))
    qk, v, _ = _draw(rng, length, options)
    want = _plain(qk, v, together[0] + together[1], options)
    hint = "Rounds form one softmax: weigh each round's output with its share of the total, exp(its log-sum-exp − total)."
    yield (
        "two rounds that share no pair",
        fn(qk, v, np.stack([rows, columns]), two, None),
        want,
        hint,
    )
    if options.count_once:
        hint = "count_once: a key counts once however many rounds show it (the paper's N_ij)."
    else:
        want = _plain(qk, v, 2 * together[0] + together[1], options)
        hint = "count_once=False: a key shown by two rounds counts twice."
    yield (
        "a round that comes twice",
        fn(qk, v, np.stack([rows, rows, columns]), three, None),
        want,
        hint,
    )


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
    hint = "window='rank': a token sees the chunk_length most recent earlier members of its bucket, wherever chunks end."
    for t in (1, options.chunk_length, length // 2, length - 1):
        yield (
            f"the first {t} tokens alone",
            fn(qk[:t], v[:t], buckets[:, :t], options, None),
            want[:t],
            hint,
        )
        other = buckets.copy()
        other[:, t:] = rng.integers(0, 3, other[:, t:].shape)
        yield (
            f"out[:{t}] after later buckets changed",
            fn(qk, v, other, options, None)[:t],
            want[:t],
            hint,
        )


def _padding_never_matters(fn, options, rng):
    length = 3 * options.chunk_length + 2
    qk, v, buckets = _draw(rng, length, options)
    mask = rng.random(length) < 0.7
    want, hint = (
        fn(qk, v, buckets, options, mask)[mask],
        "Padding sorts behind all real tokens and is never a key.",
    )
    other = _draw(rng, length, options)
    qk, v = (np.where(mask[:, None], a, b) for a, b in zip((qk, v), other, strict=False))
    got = fn(qk, v, np.where(mask, buckets, other[2]), options, mask)[mask]
    yield "real tokens after the padded ones changed", got, want, hint
    if options.wrap:  # what stands in the last chunk depends on the length
        return
    want = fn(qk[mask], v[mask], buckets[:, mask], options, None)
    yield "real tokens alone, instead of with padding between them", got, want, hint


def _sequences_are_independent(fn, options, rng):
    qk, v, buckets = _draw(rng, options.chunk_length + 3, options, (2, 3))
    got = fn(qk, v, buckets, options, None)
    one_by_one = [fn(qk[i], v[i], buckets[i], options, None) for i in np.ndindex(2, 3)]
    yield (
        "six sequences at once",
        got,
        np.reshape(one_by_one, got.shape),
        "Leading axes are separate sequences.",
    )


IDENTITIES = (  # the most telling first
    _self_is_excluded,
    _sort_is_undone,
    _causality,
    _alone_sees_itself,
    _everything_visible_is_dense,
    _one_bucket_is_a_window,
    _rounds_form_one_softmax,
    _order_of_rounds,
    _strict_prefix,
    _padding_never_matters,
    _sequences_are_independent,
)

SELF = "A token attends to itself only when no round shows it anything else, and then wholly."
COMPARE = "Compare who sees whom with visible_counts in the spec."
GRADIENT = "qk collects two gradients, as queries and, through the normalisation, as keys. Nothing flows through buckets."


def _plain(qk, v, counts, options):
    """The softmax written out for logits of modest size, oneself left out unless there is nothing
    else.
    """
    keys = qk / np.sqrt(np.sum(qk**2, axis=-1, keepdims=True) + qk.shape[-1] * options.norm_eps)
    scale = qk.shape[-1] ** -0.5 if options.scale == "rsqrt_d" else options.scale
    weights = counts * np.exp(scale * qk @ np.swapaxes(keys, -1, -2))  # (…, L, L)
    others = weights * (1 - np.eye(weights.shape[-1]))
    weights = np.where(others.any(-1, keepdims=True), others, weights)
    total = weights.sum(-1, keepdims=True)
    return weights @ v / np.where(total > 0, total, 1)


def _draw(rng, length, options, lead=(), n_buckets=3):
    """qk (…, L, 4), v (…, L, 3), buckets (…, n_hashes, L)."""
    qk, v = rng.standard_normal((*lead, length, 4)), rng.standard_normal((*lead, length, 3))
    return qk, v, rng.integers(0, n_buckets, (*lead, options.n_hashes, length))


def _cases(options, rng):
    """(what, (qk, v, buckets), padding_mask): lengths that divide nothing, padding on any side and
    in holes.
    """
    c = options.chunk_length
    for length in sorted({1, 2, max(1, c - 1), c, c + 1, 3 * c + 2}):
        yield f"L={length}", _draw(rng, length, options), None
        lead = (2,) if length > 2 else (2, 2)
        left, right = (
            np.arange(length) >= min(2, length - 1),
            np.arange(length) < max(1, length - 2),
        )
        for side, mask in (
            ("left", left),
            ("right", right),
            ("random", rng.random((*lead, length)) < 0.6),
        ):
            mask = np.array(np.broadcast_to(mask, (*lead, length)))
            yield f"L={length}, {side} padding", _draw(rng, length, options, lead), mask
    yield "nothing but padding", _draw(rng, 5, options), np.zeros(5, dtype=bool)


def _name(options):
    changed = {k: v for k, v in options.to_dict().items() if v != getattr(LSHOptions(), k)}
    return f"LSHOptions({', '.join(f'{k}={v!r}' for k, v in changed.items())})"
