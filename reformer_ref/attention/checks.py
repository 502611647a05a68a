"""What any implementation of dense attention must satisfy. Each check takes a function on NumPy
arrays.

The expected values come from formulas written out here for one query and one pair at a time;
gradients are compared with central differences of those formulas and, closely, with the spec.
"""

from functools import partial

import numpy as np

from reformer_ref.attention import spec
from reformer_ref.testing import central_difference, expect_close, expect_equal, in_a_sentence

# (leading axes, L_q, L_k, d, d_v)
SIZES = (
    ((), 1, 1, 1, 1),
    ((), 2, 2, 3, 1),
    ((2,), 13, 13, 4, 3),
    ((2, 3), 7, 7, 2, 5),
    ((), 3, 8, 4, 2),
    ((2,), 8, 1, 3, 4),
)
SMALL = (
    ((), 1, 1, 2, 1),
    ((), 2, 2, 3, 2),
    ((2,), 5, 5, 3, 2),
    ((), 3, 4, 2, 3),
)  # for central differences
SCALES = (None, 1.0, -0.3)
NORM_EPS = (1e-6, 0.0, 0.1)


@in_a_sentence
def check_normalize_keys(fn, seed=0, tolerance=1e-12):
    """fn(x, norm_eps) against the formula, one vector at a time; zero, tiny and huge vectors
    included.
    """
    rng = np.random.default_rng(seed)
    errors = []
    for lead, _, length, d, _ in SIZES:
        x = rng.standard_normal((*lead, length, d)) * 10.0 ** rng.integers(
            -4, 5, (*lead, length, 1)
        )
        x[..., 0, :] = 0
        for norm_eps in NORM_EPS:
            hint = "Divide by √(‖x‖² + d·norm_eps); a zero vector stays zero, also with norm_eps=0."
            what = f"normalize_keys of shape {x.shape}, norm_eps={norm_eps}"
            errors.append(expect_close(what, fn(x, norm_eps), _unit(x, norm_eps), tolerance, hint))
    _report("check_normalize_keys", errors)


@in_a_sentence
def check_normalize_keys_vjp(fn, seed=0, tolerance=1e-12):
    """fn(x, d_out, norm_eps) -> d_x against central differences and the spec."""
    rng = np.random.default_rng(seed)
    report = _Gradients("check_normalize_keys_vjp", tolerance)
    for lead, _, length, d, _ in SMALL:
        x, d_out = rng.standard_normal((2, *lead, length, d))
        for e in NORM_EPS:
            what = f"normalize_keys of shape {x.shape}, norm_eps={e}"
            hint = "The length depends on x too: a change along k̂ itself changes almost nothing."
            want = [spec.normalize_keys_vjp(x, d_out, e)]
            report.compare(
                what, ["d_x"], [fn(x, d_out, e)], want, lambda x, e=e: _unit(x, e), [x], d_out, hint
            )
    report.print()


@in_a_sentence
def check_attend(fn, seed=0, tolerance=1e-12):
    """fn(q, k, v, counts, scale) -> (out, weights): counts 0, 1 and more, rows that see nothing,
    logits of ±5000.
    """
    rng = np.random.default_rng(seed)
    hint = "w_ij ∝ counts_ij · exp(scale · q_i·k_j), one softmax per row; a query with all counts zero gets zeros."
    errors = []
    for lead, length, key_length, d, d_v in SIZES:
        q, k, v = _qkv(rng, lead, length, key_length, d, d_v)
        whole_q, whole_k = (
            rng.integers(-3, 4, a.shape) * 500.0 ** (a is q) for a in (q, k)
        )  # exact logits
        for name, counts in _count_tables(rng, (*lead, length, key_length)).items():
            for case, a, b, scale in (
                ("", q, k, 0.7),
                ("", q, k, -1.0),
                (", huge logits", whole_q, whole_k, 1.0),
            ):
                out, weights = fn(a, b, v, counts, scale)
                want_out, want_weights = _attend_by_row(a, b, v, counts, scale)
                what = f"of attend, q {q.shape}, k {k.shape}, {name}, scale={scale}{case}"
                errors.append(
                    expect_close(f"weights {what}", weights, want_weights, tolerance, hint)
                )
                errors.append(expect_close(f"output {what}", out, want_out, tolerance, hint))
    _report("check_attend", errors)


@in_a_sentence
def check_attend_vjp(fn, seed=0, tolerance=1e-12):
    """fn(q, k, v, counts, d_out, scale) -> (d_q, d_k, d_v) against central differences and the
    spec.
    """
    rng = np.random.default_rng(seed)
    report = _Gradients("check_attend_vjp", tolerance)
    for lead, length, key_length, d, d_v in SMALL:
        qkv, d_out = (
            _qkv(rng, lead, length, key_length, d, d_v),
            rng.standard_normal((*lead, length, d_v)),
        )
        for name, counts in _count_tables(rng, (*lead, length, key_length)).items():
            report.compare(
                f"attend, q {qkv[0].shape}, k {qkv[1].shape}, {name}",
                ("d_q", "d_k", "d_v"),
                fn(*qkv, counts, d_out, 0.7),
                spec.attend_vjp(*qkv, counts, d_out, 0.7),
                lambda *a, counts=counts: _attend_by_row(*a, counts, 0.7)[0],
                qkv,
                d_out,
                "d_s = w (d_w − Σ_j w_j d_w_j); a query that sees nothing has no gradient.",
            )
    report.print()


@in_a_sentence
def check_self_as_last_resort(fn, seed=0):
    """fn(counts) -> counts with the diagonal gone, except in rows that hold nothing else; int and
    bool.
    """
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
            if got.dtype.kind not in "biu":
                raise AssertionError(
                    f"visible_pairs must give booleans or integers, got {got.dtype}"
                )
            got = got.astype(int)
            hint = "Causal: j ≤ i. Padding hides keys (columns), not queries (rows)."
            expect_equal(
                f"visible_pairs of {length} queries, {key_length} keys, {name}", got, want, hint
            )
            n += 1
    print(f"check_visible_pairs: {n} cases")


@in_a_sentence
def check_regular_attention(fn, seed=0, tolerance=1e-12):
    """fn(q, k, v, causal, padding_mask, scale, strip): masks on any side, L_q ≠ L_k, strips of any
    length.
    """
    rng = np.random.default_rng(seed)
    hint = "softmax(scale · q kᵀ) v over the visible keys; scale None is 1/√d; a query that sees nothing gets zeros."
    errors = []
    for lead, length, key_length, d, d_v in SIZES:
        qkv = _qkv(rng, lead, length, key_length, d, d_v)
        for name, causal, mask in _visibilities(rng, lead, length, key_length):
            for scale in SCALES:
                what = (
                    f"regular_attention, q {qkv[0].shape}, k {qkv[1].shape}, {name}, scale={scale}"
                )
                want = _regular(*qkv, causal, mask, scale)
                errors += _every_strip(
                    what, partial(fn, *qkv), (causal, mask, scale), want, tolerance, hint
                )
    _report("check_regular_attention", errors)


@in_a_sentence
def check_regular_attention_vjp(fn, seed=0, tolerance=1e-12):
    """fn(q, k, v, d_out, causal, padding_mask, scale) -> (d_q, d_k, d_v), as for attend."""
    rng = np.random.default_rng(seed)
    report = _Gradients("check_regular_attention_vjp", tolerance)
    for lead, length, key_length, d, d_v in SMALL:
        qkv, d_out = (
            _qkv(rng, lead, length, key_length, d, d_v),
            rng.standard_normal((*lead, length, d_v)),
        )
        for i, (name, *options) in enumerate(_visibilities(rng, lead, length, key_length)):
            options.append(SCALES[i % len(SCALES)])
            report.compare(
                f"regular_attention, q {qkv[0].shape}, k {qkv[1].shape}, {name}, scale={options[-1]}",
                ("d_q", "d_k", "d_v"),
                fn(*qkv, d_out, *options),
                spec.regular_attention_vjp(*qkv, d_out, *options),
                lambda *a, options=options: _regular(*a, *options),
                qkv,
                d_out,
                "A key collects the gradients of all queries that see it, over all strips.",
            )
    report.print()


@in_a_sentence
def check_shared_qk_attention(fn, seed=0, tolerance=1e-12):
    """fn(qk, v, causal, padding_mask, scale, norm_eps, strip): as for regular attention, with the
    self rule.
    """
    rng = np.random.default_rng(seed)
    hint = "The query is q, the key q/√(‖q‖² + d·norm_eps), self is seen only if nothing else is."
    errors = []
    for lead, length, d, d_v in [(s[0], *s[2:]) for s in SIZES if s[1] == s[2]]:
        qk, _, v = _qkv(rng, lead, length, length, d, d_v)
        for i, (name, causal, mask) in enumerate(_visibilities(rng, lead, length, length)):
            for scale in SCALES:
                options = causal, mask, scale, NORM_EPS[i % len(NORM_EPS)]
                what = f"shared_qk_attention, qk {qk.shape}, {name}, scale={scale}, norm_eps={options[-1]}"
                want = _shared(qk, v, *options)
                errors += _every_strip(what, partial(fn, qk, v), options, want, tolerance, hint)
    _report("check_shared_qk_attention", errors)


@in_a_sentence
def check_shared_qk_attention_vjp(fn, seed=0, tolerance=1e-12):
    """fn(qk, v, d_out, causal, padding_mask, scale, norm_eps) -> (d_qk, d_v), as for attend."""
    rng = np.random.default_rng(seed)
    report = _Gradients("check_shared_qk_attention_vjp", tolerance)
    for lead, length, d, d_v in [(s[0], *s[2:]) for s in SMALL if s[1] == s[2]]:
        (qk, _, v), d_out = (
            _qkv(rng, lead, length, length, d, d_v),
            rng.standard_normal((*lead, length, d_v)),
        )
        for i, (name, *options) in enumerate(_visibilities(rng, lead, length, length)):
            options += [SCALES[i % len(SCALES)], NORM_EPS[i // 2 % len(NORM_EPS)]]
            report.compare(
                f"shared_qk_attention, qk {qk.shape}, {name}, scale={options[-2]}, norm_eps={options[-1]}",
                ("d_qk", "d_v"),
                fn(qk, v, d_out, *options),
                spec.shared_qk_attention_vjp(qk, v, d_out, *options),
                lambda *a, options=options: _shared(*a, *options),
                (qk, v),
                d_out,
                "qk receives two gradients, one as the query and one, through the normalisation, as the key.",
            )
    report.print()


class _Gradients:
    """Compares each gradient with central differences (1e-7) and with the spec (``tolerance``), and
    keeps the worst.
    """

    def __init__(self, name, tolerance):
        self.name, self.tolerance, self.errors, self.differences = name, tolerance, [], []

    def compare(self, what, names, got, want, formula, inputs, d_out, hint):
        if len(got) != len(names):
            raise AssertionError(
                f"{what}: got {len(got)} gradients, expected {len(names)}: {', '.join(names)}."
            )
        for i, name in enumerate(names):
            numeric = central_difference(
                lambda a, i=i: formula(*inputs[:i], a, *inputs[i + 1 :]), inputs[i], d_out
            )
            for expected, dust, limit, errors in (
                (numeric, 1e-9, 1e-7, self.differences),
                (want[i], 1e-14, self.tolerance, self.errors),
            ):
                expected = np.where(
                    np.abs(expected) < dust, 0.0, expected
                )  # where all is zero, errors are absolute
                errors.append(expect_close(f"{name} of {what}", got[i], expected, limit, hint))

    def print(self):
        _report(
            self.name, self.errors, f", against central differences {max(self.differences):.1e}"
        )


def _report(name, errors, more=""):
    print(f"{name}: {len(errors)} comparisons, worst relative error {max(errors):.1e}{more}")


def _every_strip(what, fn, options, want, tolerance, hint):
    """Errors of ``fn(*options, strip)`` for no strips, single rows, strips that do not divide L,
    and all of it.
    """
    length = want.shape[-2]
    hint = f"{hint} Strips of queries change nothing."
    return [
        expect_close(f"{what}, strip={s}", fn(*options, s), want, tolerance, hint)
        for s in (None, 1, 3, length, 99)
    ]


def _qkv(rng, lead, length, key_length, d, d_v):
    return [
        rng.standard_normal((*lead, *rows))
        for rows in ((length, d), (key_length, d), (key_length, d_v))
    ]


def _visibilities(rng, lead, length, key_length):
    """(name, causal, padding mask): with masks on either side, in holes, of padding only, and the
    same for all.
    """
    shape = (*lead, key_length)
    at, cut = np.broadcast_to(np.arange(key_length), shape), rng.integers(0, key_length, (*lead, 1))
    masks = {
        "no mask": None,
        "padded right": at <= cut,
        "padded left": at >= cut,
        "padded anywhere": rng.random(shape) < 0.6,
        "padding only": np.zeros(shape, dtype=bool),
    }
    for causal in (False, True)[: 1 + (length == key_length)]:
        for name, mask in masks.items():
            yield f"{name}, causal={causal}", causal, mask


def _count_tables(rng, shape):
    """Tables of counts by name: everything, a part, nothing in row 0, several times, and as
    booleans.
    """
    some = rng.integers(0, 2, shape)
    blind = some.copy()
    blind[..., 0, :] = 0
    several = rng.integers(0, 4, shape)
    return {
        "all ones": np.ones(shape, int),
        "a blind row": blind,
        "counts to 3": several,
        "booleans": some.astype(bool),
    }


def _unit(x, norm_eps):
    out = np.zeros(x.shape)
    for index in np.ndindex(x.shape[:-1]):
        length = np.sqrt(sum(number**2 for number in x[index]) + x.shape[-1] * norm_eps)
        out[index] = x[index] / length if length else 0.0
    return out


def _attend_by_row(q, k, v, counts, scale):
    """(out, weights), one query at a time; a key with count m simply stands m times in the softmax."""
    out, weights = np.zeros((*q.shape[:-1], v.shape[-1])), np.zeros((*q.shape[:-1], k.shape[-2]))
    for index in np.ndindex(q.shape[:-1]):
        seen = np.repeat(np.arange(k.shape[-2]), counts[index])
        if len(seen):
            scores = scale * (k[index[:-1]][seen] @ q[index])
            shares = np.exp(scores - scores.max())
            shares /= shares.sum()
            np.add.at(weights[index], seen, shares)
            out[index] = shares @ v[index[:-1]][seen]
    return out, weights


def _counts_by_pair(lead, length, key_length, causal, mask, self_rule=False):
    counts = np.zeros((*lead, length, key_length), dtype=int)
    for index in np.ndindex(counts.shape[:-1]):
        *at, i = index
        seen = [
            j
            for j in range(key_length)
            if (j <= i or not causal) and (mask is None or mask[(*at, j)])
        ]
        if self_rule:
            seen = [j for j in seen if j != i] or seen
        counts[index][seen] = 1
    return counts


def _regular(q, k, v, causal, mask, scale):
    counts = _counts_by_pair(q.shape[:-2], q.shape[-2], k.shape[-2], causal, mask)
    return _attend_by_row(q, k, v, counts, 1 / np.sqrt(q.shape[-1]) if scale is None else scale)[0]


def _shared(qk, v, causal, mask, scale, norm_eps):
    counts = _counts_by_pair(
        qk.shape[:-2], qk.shape[-2], qk.shape[-2], causal, mask, self_rule=True
    )
    scale = 1 / np.sqrt(qk.shape[-1]) if scale is None else scale
    return _attend_by_row(qk, _unit(qk, norm_eps), v, counts, scale)[0]
