"""What any local attention must satisfy, put to a function on NumPy arrays.

``options``: what to test; by default causal and not, one and several neighbours, with and without
wrap.
"""

import numpy as np

from reformer_ref.local_attention import spec
from reformer_ref.local_attention.options import LocalOptions
from reformer_ref.testing import (
    central_difference,
    compare_all,
    compare_gradients,
    in_a_sentence,
    padding_masks,
)

OPTIONS = (
    LocalOptions(chunk_length=4),
    LocalOptions(chunk_length=4, chunks_after=1, causal=False),
    LocalOptions(chunk_length=3, chunks_before=2, chunks_after=1),
    LocalOptions(chunk_length=5, chunks_before=0, causal=False, scale=1.5),
    LocalOptions(chunk_length=4, wrap=True),
    LocalOptions(chunk_length=3, chunks_after=1, causal=False, wrap=True, scale=0.3),
)
COMPARE = "Compare with local_counts in the spec."
GRADIENT = "A key's gradient is the sum over all windows that show it."


@in_a_sentence
def check_local_attention(fn, options=None, seed=0, tolerance=1e-12):
    """``fn(q, k, v, options, padding_mask) -> out`` equals a formula of positions, keeps its
    promises, equals the spec.

    q, k (…, L, d), v (…, L, d_v), padding_mask bool (…, L) or None, out (…, L, d_v).
    """

    def comparisons():
        for o in OPTIONS if options is None else (options,):
            rng = np.random.default_rng(seed)
            for identity in IDENTITIES:
                for label, got, want, hint in identity(fn, o, rng):
                    yield f"{label}, {o}", got, want, hint
            for label, inputs, mask in _cases(o, rng):
                want = spec.local_attention(*inputs, o, mask)
                yield f"{label}, {o}", fn(*inputs, o, mask), want, COMPARE

    compare_all("check_local_attention", comparisons(), tolerance)


@in_a_sentence
def check_local_attention_vjp(fn, options=None, seed=0, tolerance=1e-12):
    """``fn(q, k, v, options, d_out, padding_mask) -> (d_q, d_k, d_v)`` equals central differences
    and the spec.
    """

    def comparisons():
        for o in OPTIONS if options is None else (options,):
            rng = np.random.default_rng(seed)
            for label, inputs, mask in _cases(o, rng):
                d_out = rng.standard_normal(inputs[2].shape)
                # Side by side, (…, L, 2 d + d_v): where a query sees one key only, d_q and d_k are
                # zero and have no size to compare with.
                got = np.concatenate(fn(*inputs, o, d_out, mask), axis=-1)
                want = np.concatenate(spec.local_attention_vjp(*inputs, o, d_out, mask), axis=-1)
                numeric = None
                if inputs[0].size <= 24:
                    splits = np.cumsum([x.shape[-1] for x in inputs[:2]])

                    def of_all(x, splits=splits, o=o, mask=mask):
                        return spec.local_attention(*np.split(x, splits, axis=-1), o, mask)

                    numeric = central_difference(of_all, np.concatenate(inputs, axis=-1), d_out)
                yield f"(d_q, d_k, d_v) side by side, {label}, {o}", got, want, numeric, GRADIENT

    compare_gradients("check_local_attention_vjp", comparisons(), tolerance)


# Identities: each yields (label, got, wanted, hint)


def _window_of_positions(fn, options, rng):
    """From chunk numbers alone: position i stands in chunk i // chunk_length."""
    hint = (
        "A query sees its own chunk, chunks_before and chunks_after, itself included; with wrap "
        "the chunks form a ring."
    )
    for length in (1, 2, options.chunk_length, 3 * options.chunk_length + 2):
        q, k, v = _draw(rng, length)
        n_chunks = -(-length // options.chunk_length)
        i = np.arange(length)[:, None]
        j = np.arange(length)
        counts = np.zeros((length, length))
        for offset in range(-options.chunks_before, options.chunks_after + 1):
            step = j // options.chunk_length - i // options.chunk_length - offset
            counts += (step % n_chunks if options.wrap else step) == 0
        if options.causal:
            counts = np.tril(counts)
        weights = counts * np.exp(options.scale_for(q.shape[-1]) * (q @ k.T))
        want = weights @ v / weights.sum(-1, keepdims=True)
        yield f"L={length} by chunk numbers", fn(q, k, v, options, None), want, hint


def _causality(fn, options, rng):
    if not options.causal:
        return
    length = 3 * options.chunk_length + 2
    t = length // 2
    inputs = _draw(rng, length)
    want = fn(*inputs, options, None)
    for x in inputs:
        x[t:] = rng.standard_normal(x[t:].shape)
    hint = "Causal: no later key."
    got = fn(*inputs, options, None)
    yield f"out[:{t}] after later tokens changed", got[:t], want[:t], hint
    if not options.wrap:
        got = fn(*(x[:t] for x in inputs), options, None)
        yield f"the first {t} tokens alone", got, want[:t], hint


def _padding_never_matters(fn, options, rng):
    length = 3 * options.chunk_length + 2
    inputs = _draw(rng, length)
    mask = rng.random(length) < 0.7
    hint = "Padding moves behind all real tokens before chunks are cut, and is never a key."
    want = fn(*inputs, options, mask)[mask]
    other = [np.where(mask[:, None], x, rng.standard_normal(x.shape)) for x in inputs]
    got = fn(*other, options, mask)[mask]
    yield "real tokens after the padded ones changed", got, want, hint
    if not options.wrap:  # with it, label the first chunk sees depends on the length
        without = fn(*(x[mask] for x in inputs), options, None)
        yield "real tokens alone, instead of with padding between them", want, without, hint


def _sequences_are_independent(fn, options, rng):
    inputs = _draw(rng, options.chunk_length + 3, (2, 3))
    got = fn(*inputs, options, None)
    want = [fn(*(x[i] for x in inputs), options, None) for i in np.ndindex(2, 3)]
    hint = "Leading axes are separate sequences."
    yield "six sequences at once", got, np.reshape(want, got.shape), hint


IDENTITIES = (_window_of_positions, _causality, _padding_never_matters, _sequences_are_independent)


def _draw(rng, length, lead=()):
    """q and k (…, L, 4), v (…, L, 3)."""
    return [rng.standard_normal((*lead, length, d)) for d in (4, 4, 3)]


def _cases(options, rng):
    """(label, (q, k, v), padding_mask): lengths that divide nothing, padding anywhere."""
    c = options.chunk_length
    for length in sorted({1, 2, max(1, c - 1), c, c + 1, 3 * c + 2}):
        lead = (2,) if length > 2 else (2, 2)
        for side, mask in padding_masks(rng, (*lead, length)).items():
            yield f"L={length}, {side}", _draw(rng, length, () if mask is None else lead), mask
