"""What any implementation of dense attention must satisfy. Each check takes a function on NumPy
arrays.

The expected values come from formulas written out here for one query and one pair at a time;
gradients are compared with central differences of those formulas and, closely, with the spec.
"""

import numpy as np

from reformer_ref.attention import spec
from reformer_ref.testing import (
    central_difference,
    compare_all,
    compare_gradients,
    expect_equal,
    in_a_sentence,
    padding_masks,
)

# (leading axes, L_q, L_k, d, d_v)
SIZES = (
    ((), 1, 1, 1, 1),
    ((), 2, 2, 3, 1),
    ((2,), 13, 13, 4, 3),
    ((2, 3), 7, 7, 2, 5),
    ((), 3, 8, 4, 2),
    ((2,), 8, 1, 3, 4),
)
SMALL = (((), 1, 1, 2, 1), ((), 2, 2, 3, 2), ((2,), 5, 5, 3, 2), ((), 3, 4, 2, 3))  # for gradients
SCALES = (None, 1.0, -0.3)
NORM_EPS = (1e-6, 0.0, 0.1)
HINTS = {
    "normalize_keys": "Divide by √(‖x‖² + d·norm_eps); a zero vector stays zero, also with "
    "norm_eps=0. The length depends on x too.",
    "attend": "w_ij ∝ counts_ij · exp(scale · q_i·k_j), one softmax per row; a query with all "
    "counts zero gets zeros, and has no gradient. d_s = w (d_w − Σ_j w_j d_w_j).",
    "regular_attention": "softmax(scale · q kᵀ) v over the visible keys; scale None is 1/√d; a "
    "query that sees nothing gets zeros. A key collects the gradients of all queries that see it.",
    "shared_qk_attention": "The query is q, the key q/√(‖q‖² + d·norm_eps), self is seen only if "
    "nothing else is. qk receives two gradients, as the query and, through the normalisation, as "
    "the key.",
}


@in_a_sentence
def check_normalize_keys(fn, seed=0, tolerance=1e-12):
    """fn(x, norm_eps); zero, tiny and huge vectors included."""
    _check("normalize_keys", fn, seed, tolerance)


@in_a_sentence
def check_normalize_keys_vjp(fn, seed=0, tolerance=1e-12):
    """fn(x, d_out, norm_eps) -> d_x."""
    _check_vjp("normalize_keys", lambda *args: (fn(*args),), ("d_x",), seed, tolerance)


@in_a_sentence
def check_attend(fn, seed=0, tolerance=1e-12):
    """fn(q, k, v, counts, scale) -> (out, weights): counts 0, 1 and more, rows that see nothing,
    logits of ±5000.
    """
    _check("attend", fn, seed, tolerance)


@in_a_sentence
def check_attend_vjp(fn, seed=0, tolerance=1e-12):
    """fn(q, k, v, counts, d_out, scale) -> (d_q, d_k, d_v)."""
    _check_vjp("attend", fn, ("d_q", "d_k", "d_v"), seed, tolerance)


@in_a_sentence
def check_regular_attention(fn, seed=0, tolerance=1e-12):
    """fn(q, k, v, causal, padding_mask, scale): masks on any side, L_q ≠ L_k."""
    _check("regular_attention", fn, seed, tolerance)


@in_a_sentence
def check_regular_attention_vjp(fn, seed=0, tolerance=1e-12):
    """fn(q, k, v, d_out, causal, padding_mask, scale) -> (d_q, d_k, d_v)."""
    _check_vjp("regular_attention", fn, ("d_q", "d_k", "d_v"), seed, tolerance)


@in_a_sentence
def check_shared_qk_attention(fn, seed=0, tolerance=1e-12):
    """fn(qk, v, causal, padding_mask, scale, norm_eps): as regular attention, with the self rule."""
    _check("shared_qk_attention", fn, seed, tolerance)


@in_a_sentence
def check_shared_qk_attention_vjp(fn, seed=0, tolerance=1e-12):
    """fn(qk, v, d_out, causal, padding_mask, scale, norm_eps) -> (d_qk, d_v)."""
    _check_vjp("shared_qk_attention", fn, ("d_qk", "d_v"), seed, tolerance)


@in_a_sentence
def check_self_as_last_resort(fn, seed=0):
    """fn(counts) -> counts without the diagonal, except in rows that hold nothing else."""
    rng = np.random.default_rng(seed)
    n = 0
    for shape in ((1, 1), (2, 2), (3, 5, 5), (2, 2, 7, 7)):
        for name, counts in _count_tables(rng, shape).items():
            want = counts.copy()
            for index in np.ndindex(shape[:-1]):
                if any(count for j, count in enumerate(counts[index]) if j != index[-1]):
                    want[(*index, index[-1])] = 0
            hint = "A token sees itself only if nothing else is visible to it."
            expect_equal(f"self_as_last_resort of shape {shape}, {name}", fn(counts), want, hint)
            n += 1
    print(f"check_self_as_last_resort: {n} cases")


@in_a_sentence
def check_visible_pairs(fn, seed=0):
    """fn(query_length, key_length, causal, padding_mask) -> 1 where query i may see key j, itself
    included.
    """
    rng = np.random.default_rng(seed)
    n = 0
    for lead, length, key_length, _, _ in SIZES:
        for name, causal, mask in _visibilities(rng, lead, length, key_length):
            want = _counts_by_pair(() if mask is None else lead, length, key_length, causal, mask)
            got = np.asarray(fn(length, key_length, causal, mask))
            label = f"visible_pairs of {length} queries, {key_length} keys, {name}"
            if got.dtype.kind not in "biu":
                raise AssertionError(f"{label}: expected booleans or integers, got {got.dtype}")
            hint = "Causal: j ≤ i. Padding hides keys (columns), not queries (rows)."
            expect_equal(label, got.astype(int), want, hint)
            n += 1
    print(f"check_visible_pairs: {n} cases")


def _check(name, fn, seed, tolerance):
    def comparisons():
        for label, inputs, fixed, options in _cases(name, np.random.default_rng(seed), SIZES):
            got = fn(*inputs, *fixed, *options)
            want = FORMULAS[name](*inputs, *fixed, *options)
            if name == "attend":
                yield f"weights, {label}", got[1], want[1], HINTS[name]
                got, want = got[0], want[0]
            yield label, got, want, HINTS[name]

    compare_all(f"check_{name}", comparisons(), tolerance)


def _check_vjp(name, fn, names, seed, tolerance):
    def formula(*args):
        out = FORMULAS[name](*args)
        return out[0] if name == "attend" else out

    def comparisons():
        rng = np.random.default_rng(seed)
        for label, inputs, fixed, options in _cases(name, rng, SMALL):
            d_out = rng.standard_normal(formula(*inputs, *fixed, *options).shape)
            got = fn(*inputs, *fixed, d_out, *options)
            want = getattr(spec, f"{name}_vjp")(*inputs, *fixed, d_out, *options)
            if len(names) == 1:
                want = (want,)
            if len(got) != len(names):
                raise AssertionError(f"{label}: got {len(got)} gradients, expected {names}.")
            for i, gradient in enumerate(names):

                def of_one(x, i=i, args=(*inputs, *fixed, *options)):
                    return formula(*args[:i], x, *args[i + 1 :])

                # Where a gradient is zero its error is absolute: rounding is taken for zero.
                numeric = _without_dust(central_difference(of_one, inputs[i], d_out), 1e-9)
                exact = _without_dust(want[i], 1e-14)
                yield f"{gradient} of {label}", got[i], exact, numeric, HINTS[name]

    compare_gradients(f"check_{name}_vjp", comparisons(), tolerance)


def _without_dust(x, size):
    return np.where(np.abs(x) < size, 0.0, x)


def _cases(name, rng, sizes):
    """(label, inputs to differentiate, fixed inputs, options) of one function."""
    for lead, length, key_length, d, d_v in sizes:
        shapes = ((length, d), (key_length, d), (key_length, d_v))
        q, k, v = (rng.standard_normal((*lead, *shape)) for shape in shapes)
        label = f"{name}, q {q.shape}, k {k.shape}"
        if name == "normalize_keys":
            if sizes is SIZES:
                q = q * 10.0 ** rng.integers(-4, 5, (*lead, length, 1))
                q[..., 0, :] = 0
            for norm_eps in NORM_EPS:
                yield f"{name} of shape {q.shape}, norm_eps={norm_eps}", (q,), (), (norm_eps,)
        elif name == "attend":
            for table, counts in _count_tables(rng, (*lead, length, key_length)).items():
                yield f"{label}, {table}", (q, k, v), (counts,), (0.7,)
                if sizes is SIZES:
                    yield f"{label}, {table}, scale=-1", (q, k, v), (counts,), (-1.0,)
                    large = (rng.integers(-3, 4, x.shape) * s for x, s in ((q, 500.0), (k, 1.0)))
                    yield f"{label}, {table}, huge logits", (*large, v), (counts,), (1.0,)
        elif name == "regular_attention" or length == key_length:
            inputs = (q, v) if name == "shared_qk_attention" else (q, k, v)
            visibilities = _visibilities(rng, lead, length, key_length)
            for i, (visible, causal, mask) in enumerate(visibilities):
                norm_eps = NORM_EPS[i // 2 % len(NORM_EPS)]
                for scale in SCALES if sizes is SIZES else (SCALES[i % len(SCALES)],):
                    options = (causal, mask, scale, norm_eps)[: 4 if len(inputs) == 2 else 3]
                    yield f"{label}, {visible}, options {options[2:]}", inputs, (), options


def _visibilities(rng, lead, length, key_length):
    """(name, causal, padding mask): with masks on either side, in holes, and of padding only."""
    for causal in (False, True)[: 1 + (length == key_length)]:
        for name, mask in padding_masks(rng, (*lead, key_length)).items():
            yield f"{name}, causal={causal}", causal, mask


def _count_tables(rng, shape):
    """Tables of counts: everything, nothing in row 0, several times, and booleans."""
    some = rng.integers(0, 2, shape)
    empty_row = some.copy()
    empty_row[..., 0, :] = 0
    return {
        "all ones": np.ones(shape, int),
        "an empty row": empty_row,
        "counts to 3": rng.integers(0, 4, shape),
        "booleans": some.astype(bool),
    }


def _unit(x, norm_eps):
    out = np.zeros(x.shape)
    for index in np.ndindex(x.shape[:-1]):
        length = np.sqrt(sum(number**2 for number in x[index]) + x.shape[-1] * norm_eps)
        out[index] = x[index] / length if length else 0.0
    return out


def _attend_by_row(q, k, v, counts, scale):
    """(out, weights), one query at a time; a key with count m is m keys of the softmax."""
    out = np.zeros((*q.shape[:-1], v.shape[-1]))
    weights = np.zeros((*q.shape[:-1], k.shape[-2]))
    for index in np.ndindex(q.shape[:-1]):
        keys = np.repeat(np.arange(k.shape[-2]), counts[index])
        if len(keys):
            scores = scale * (k[index[:-1]][keys] @ q[index])
            row = np.exp(scores - scores.max())
            row /= row.sum()
            np.add.at(weights[index], keys, row)
            out[index] = row @ v[index[:-1]][keys]
    return out, weights


def _counts_by_pair(lead, length, key_length, causal, mask, self_rule=False):
    counts = np.zeros((*lead, length, key_length), dtype=int)
    for *batch, i in np.ndindex(counts.shape[:-1]):
        keys = [j for j in range(key_length) if j <= i or not causal]
        if mask is not None:
            keys = [j for j in keys if mask[(*batch, j)]]
        if self_rule:
            keys = [j for j in keys if j != i] or keys
        counts[(*batch, i)][keys] = 1
    return counts


def _regular(q, k, v, causal, mask, scale):
    counts = _counts_by_pair(q.shape[:-2], q.shape[-2], k.shape[-2], causal, mask)
    return _attend_by_row(q, k, v, counts, 1 / np.sqrt(q.shape[-1]) if scale is None else scale)[0]


def _shared(qk, v, causal, mask, scale, norm_eps):
    length, d = qk.shape[-2:]
    counts = _counts_by_pair(qk.shape[:-2], length, length, causal, mask, self_rule=True)
    scale = 1 / np.sqrt(d) if scale is None else scale
    return _attend_by_row(qk, _unit(qk, norm_eps), v, counts, scale)[0]


FORMULAS = {
    "normalize_keys": _unit,
    "attend": _attend_by_row,
    "regular_attention": _regular,
    "shared_qk_attention": _shared,
}
