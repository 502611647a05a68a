"""What any local attention must satisfy, put to a function on NumPy arrays.

``options``: what to test; by default causal and not, one and several neighbours, with and without
wrap.
"""

import numpy as np

from reformer_ref.local_attention import spec
from reformer_ref.local_attention.options import LocalOptions
from reformer_ref.testing import central_difference, expect_close, in_a_sentence

OPTIONS = (
    LocalOptions(chunk_length=4),
    LocalOptions(chunk_length=4, chunks_after=1, causal=False),
    LocalOptions(chunk_length=3, chunks_before=2, chunks_after=1),
    LocalOptions(chunk_length=5, chunks_before=0, causal=False, scale=1.5),
    LocalOptions(chunk_length=4, wrap=True),
    LocalOptions(
        chunk_length=3, chunks_before=1, chunks_after=1, causal=False, wrap=True, scale=0.3
    ),
)


@in_a_sentence
def check_local_attention(fn, options=None, seed=0, tolerance=1e-12):
    """``fn(q, k, v, options, padding_mask) -> out`` equals a formula of positions, keeps its
    promises, equals the spec.

    q, k (…, L, d), v (…, L, d_v), padding_mask bool (…, L) or None, out (…, L, d_v).
    """
    errors = []
    for o in OPTIONS if options is None else (options,):
        rng = np.random.default_rng(seed)
        for identity in (
            _window_of_positions,
            _causality,
            _padding_never_matters,
            _sequences_are_independent,
        ):
            for what, got, want, hint in identity(fn, o, rng):
                errors.append(expect_close(f"{what}, {o}", got, want, tolerance, hint))
        for what, inputs, mask in _cases(o, rng):
            got, want = fn(*inputs, o, mask), spec.local_attention(*inputs, o, mask)
            errors.append(
                expect_close(
                    f"{what}, {o}", got, want, tolerance, "Compare with local_counts in the spec."
                )
            )
    print(f"check_local_attention: {len(errors)} cases, worst relative error {max(errors):.1e}")


@in_a_sentence
def check_local_attention_vjp(fn, options=None, seed=0, tolerance=1e-12):
    """``fn(q, k, v, options, d_out, padding_mask) -> (d_q, d_k, d_v)`` equals central differences
    and the spec.
    """
    n, worst, worst_difference = 0, 0.0, 0.0
    hint = "A key's gradient is the sum over all windows that show it."
    for o in OPTIONS if options is None else (options,):
        rng = np.random.default_rng(seed)
        for what, inputs, mask in _cases(o, rng):
            what, d_out = (
                f"(d_q, d_k, d_v) side by side, {what}, {o}",
                rng.standard_normal(inputs[2].shape),
            )
            # side by side: where a query sees one key only, d_q and d_k are zero and have no size
            # to compare with
            got = np.concatenate(fn(*inputs, o, d_out, mask), axis=-1)  # (…, L, 2 d + d_v)
            want = np.concatenate(spec.local_attention_vjp(*inputs, o, d_out, mask), axis=-1)
            if inputs[0].size <= 24:
                splits = np.cumsum([x.shape[-1] for x in inputs[:2]])

                def of_all(x, splits=splits, o=o, mask=mask):
                    return spec.local_attention(*np.split(x, splits, axis=-1), o, mask)

                numeric = central_difference(of_all, np.concatenate(inputs, axis=-1), d_out)
                worst_difference = max(
                    worst_difference, expect_close(what, got, numeric, 1e-7, hint)
                )
            worst, n = max(worst, expect_close(what, got, want, tolerance, hint)), n + 1
    print(
        f"check_local_attention_vjp: {n} cases, worst relative error {worst:.1e}, "
        f"against central differences {worst_difference:.1e}"
    )


# Identities: each yields (what, got, wanted, hint)


def _window_of_positions(fn, options, rng):
    """From chunk numbers alone: position i stands in chunk i // chunk_length."""
    hint = "A query sees its own chunk, chunks_before and chunks_after, itself included; with wrap the chunks form a ring."
    for length in (1, 2, options.chunk_length, 3 * options.chunk_length + 2):
        q, k, v = _draw(rng, length)
        n_chunks = -(-length // options.chunk_length)
        i, j = np.arange(length)[:, None], np.arange(length)
        counts = np.zeros((length, length))
        for offset in range(-options.chunks_before, options.chunks_after + 1):
            step = j // options.chunk_length - i // options.chunk_length - offset
            counts += (step % n_chunks if options.wrap else step) == 0
        weights = (
            counts
            * (j <= i if options.causal else 1)
            * np.exp(options.scale_for(q.shape[-1]) * (q @ k.T))
        )
        want = weights @ v / weights.sum(-1, keepdims=True)
        yield f"L={length} by chunk numbers", fn(q, k, v, options, None), want, hint


def _causality(fn, options, rng):
    if not options.causal:
        return
    length = 3 * options.chunk_length + 2
    inputs = _draw(rng, length)
    want, t = fn(*inputs, options, None), length // 2
    for x in inputs:
        x[t:] = rng.standard_normal(x[t:].shape)
    yield (
        f"out[:{t}] after later tokens changed",
        fn(*inputs, options, None)[:t],
        want[:t],
        "Causal: no later key.",
    )
    if not options.wrap:
        yield (
            f"the first {t} tokens alone",
            fn(*(x[:t] for x in inputs), options, None),
            want[:t],
            "Causal: no later key.",
        )


def _padding_never_matters(fn, options, rng):
    length = 3 * options.chunk_length + 2
    inputs, mask = _draw(rng, length), rng.random(length) < 0.7
    hint = "Padding stands behind all real tokens before chunks are cut, and is never a key."
    want = fn(*inputs, options, mask)[mask]
    other = [np.where(mask[:, None], x, rng.standard_normal(x.shape)) for x in inputs]
    yield "real tokens after the padded ones changed", fn(*other, options, mask)[mask], want, hint
    if not options.wrap:  # with it, what the first chunk sees depends on the length
        alone = fn(*(x[mask] for x in inputs), options, None)
        yield "real tokens alone, instead of with padding between them", want, alone, hint


def _sequences_are_independent(fn, options, rng):
    inputs = _draw(rng, options.chunk_length + 3, (2, 3))
    got = fn(*inputs, options, None)
    one_by_one = [fn(*(x[i] for x in inputs), options, None) for i in np.ndindex(2, 3)]
    yield (
        "six sequences at once",
        got,
        np.reshape(one_by_one, got.shape),
        "Leading axes are separate sequences.",
    )


def _draw(rng, length, lead=()):
    """q and k (…, L, 4), v (…, L, 3)."""
    return [rng.standard_normal((*lead, length, d)) for d in (4, 4, 3)]


def _cases(options, rng):
    """(what, (q, k, v), padding_mask): lengths that divide nothing, padding on any side and in
    holes.
    """
    c = options.chunk_length
    for length in sorted({1, 2, max(1, c - 1), c, c + 1, 3 * c + 2}):
        yield f"L={length}", _draw(rng, length), None
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
            yield f"L={length}, {side} padding", _draw(rng, length, lead), mask
    yield "nothing but padding", _draw(rng, 5), np.zeros(5, dtype=bool)
