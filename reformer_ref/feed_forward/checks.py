"""What any layer norm, feed-forward and cross-entropy must satisfy. Each check takes a function on
NumPy arrays.

The expected values come from formulas written out here for one row or one position at a time;
gradients are compared with central differences of those formulas and, closely, with the spec
differentiated all at once.
"""

import math

import numpy as np

from reformer_ref.feed_forward import spec
from reformer_ref.testing import central_difference, expect_close, in_a_sentence

# (leading axes, L, chunk lengths): chunks that divide L, that do not, that are longer than L, none
LENGTHS = (((), 1, (None, 1, 6)), ((2,), 7, (None, 1, 3, 5, 7, 12)), ((2, 3), 13, (None, 2, 4, 13)))
CHUNKS = (
    "Is every chunk computed, the last and shorter one too, and are sums taken over all of them?"
)


@in_a_sentence
def check_layer_norm(fn, seed=0, tolerance=1e-12):
    """fn(x, scale, bias, eps) against the formula, one row at a time; constant rows included."""
    errors = []
    for x, scale, bias, eps in _layer_norm_cases(seed):
        errors.append(
            expect_close(
                f"layer_norm of shape {x.shape}, eps={eps}",
                fn(x, scale, bias, eps),
                _by_row_layer_norm(x, scale, bias, eps),
                tolerance,
                "The variance divides by d (not d - 1), and eps stands under the root.",
            )
        )
    print(f"check_layer_norm: {len(errors)} cases, worst relative error {max(errors):.1e}")


@in_a_sentence
def check_layer_norm_vjp(fn, seed=0, tolerance=1e-12):
    """fn(x, scale, bias, d_out, eps) -> (d_x, d_scale, d_bias) against central differences and the
    spec.
    """
    rng = np.random.default_rng(seed + 1)
    report = _GradientReport("check_layer_norm_vjp", tolerance)
    for x, scale, bias, eps in _layer_norm_cases(seed):
        if np.any(np.ptp(x, axis=-1) == 0):
            continue  # constant rows: curvature 1 / √eps is too sharp for a difference quotient
        d_out = rng.standard_normal(x.shape)
        report.compare(
            f"layer_norm of shape {x.shape}, eps={eps}",
            ("d_x", "d_scale", "d_bias"),
            fn(x, scale, bias, d_out, eps),
            spec.layer_norm_vjp(x, scale, bias, d_out, eps),
            lambda x, scale, bias, eps=eps: _by_row_layer_norm(x, scale, bias, eps),
            (x, scale, bias),
            d_out,
            "Mean and variance depend on x as well.",
        )
    report.print()


@in_a_sentence
def check_feed_forward(fn, seed=0, tolerance=1e-12):
    """fn(x, w1, b1, w2, b2, activation, chunk_length) against the formula, one position at a time."""
    errors = []
    for arrays, activation, chunk_lengths in _feed_forward_cases(seed):
        want = _by_position_feed_forward(*arrays, activation)
        for chunk_length in chunk_lengths:
            case = f"feed_forward of shape {want.shape}, {activation}, chunk_length={chunk_length}"
            errors.append(
                expect_close(case, fn(*arrays, activation, chunk_length), want, tolerance, CHUNKS)
            )
    print(f"check_feed_forward: {len(errors)} cases, worst relative error {max(errors):.1e}")


@in_a_sentence
def check_feed_forward_vjp(fn, seed=0, tolerance=1e-12):
    """fn(x, w1, b1, w2, b2, d_out, activation, chunk_length) -> five gradients, as for layer norm."""
    rng = np.random.default_rng(seed + 1)
    report = _GradientReport("check_feed_forward_vjp", tolerance)
    for arrays, activation, chunk_lengths in _feed_forward_cases(seed):
        d_out = rng.standard_normal(arrays[0].shape)
        want = spec.feed_forward_vjp(*arrays, d_out, activation)
        for chunk_length in chunk_lengths:
            report.compare(
                f"feed_forward of shape {d_out.shape}, {activation}, chunk_length={chunk_length}",
                ("d_x", "d_w1", "d_b1", "d_w2", "d_b2"),
                fn(*arrays, d_out, activation, chunk_length),
                want,
                lambda *a, activation=activation: _by_position_feed_forward(*a, activation),
                arrays,
                d_out,
                CHUNKS,
            )
    report.print()


@in_a_sentence
def check_cross_entropy(fn, seed=0, tolerance=1e-12):
    """fn(hidden, weight, bias, targets, chunk_length) against the formula; ignored targets and huge
    logits included.
    """
    hint = f"Divide by the number of counted positions once, over all chunks. {CHUNKS}"
    errors = []
    for arrays, targets, chunk_lengths in _cross_entropy_cases(seed):
        want = _by_position_cross_entropy(*arrays, targets)
        for chunk_length in chunk_lengths:
            case = f"cross_entropy of targets of shape {targets.shape}, chunk_length={chunk_length}"
            errors.append(
                expect_close(case, fn(*arrays, targets, chunk_length), want, tolerance, hint)
            )
    print(f"check_cross_entropy: {len(errors)} cases, worst relative error {max(errors):.1e}")


@in_a_sentence
def check_cross_entropy_vjp(fn, seed=0, tolerance=1e-12):
    """fn(hidden, weight, bias, targets, d_loss, chunk_length) -> (d_hidden, d_weight, d_bias), as
    for layer norm.
    """
    report = _GradientReport("check_cross_entropy_vjp", tolerance)
    for arrays, targets, chunk_lengths in _cross_entropy_cases(seed, huge=False):
        for d_loss, chunk_length in zip(
            (1.0, -2.5, 0.7, 3.0, 0.1, 1.5), chunk_lengths, strict=False
        ):
            report.compare(
                f"cross_entropy of targets of shape {targets.shape}, d_loss={d_loss}, chunk_length={chunk_length}",
                ("d_hidden", "d_weight", "d_bias"),
                fn(*arrays, targets, d_loss, chunk_length),
                spec.cross_entropy_vjp(*arrays, targets, d_loss),
                lambda *a, targets=targets: _by_position_cross_entropy(*a, targets),
                arrays,
                d_loss,
                f"An ignored position has gradient zero. {CHUNKS}",
            )
    report.print()


class _GradientReport:
    """Compares each gradient with central differences (1e-7) and with the spec (``tolerance``), and
    keeps the worst.
    """

    def __init__(self, name, tolerance):
        self.name, self.tolerance = name, tolerance
        self.n, self.worst, self.worst_difference = 0, 0.0, 0.0

    def compare(self, case, names, got, spec_grads, formula, inputs, d_out, hint):
        if len(got) != len(names):
            raise AssertionError(
                f"{case}: got {len(got)} gradients, expected {len(names)}: {', '.join(names)}."
            )
        for i, name in enumerate(names):
            numeric = central_difference(
                lambda a, i=i: formula(*inputs[:i], a, *inputs[i + 1 :]), inputs[i], d_out
            )
            error = expect_close(
                f"{name} of {case}, against central differences", got[i], numeric, 1e-7, hint
            )
            self.worst_difference = max(self.worst_difference, error)
            self.worst = max(
                self.worst,
                expect_close(f"{name} of {case}", got[i], spec_grads[i], self.tolerance, hint),
            )
        self.n += 1

    def print(self):
        print(
            f"{self.name}: {self.n} cases, worst relative error {self.worst:.1e}, "
            f"against central differences {self.worst_difference:.1e}"
        )


def _layer_norm_cases(seed):
    rng = np.random.default_rng(seed)
    for shape, eps in (
        ((5,), 1e-5),
        ((1, 2), 1e-3),
        ((7, 11), 1e-12),
        ((2, 3, 8), 1e-5),
        ((3, 1), 1e-5),
    ):
        yield 2 + 3 * rng.standard_normal(shape), *rng.standard_normal((2, shape[-1])), eps


def _by_row_layer_norm(x, scale, bias, eps):
    out = np.empty_like(x)
    for index in np.ndindex(x.shape[:-1]):
        mean = sum(x[index]) / x.shape[-1]
        variance = sum((x[index] - mean) ** 2) / x.shape[-1]
        out[index] = scale * (x[index] - mean) / math.sqrt(variance + eps) + bias
    return out


def _feed_forward_cases(seed):
    rng = np.random.default_rng(seed)
    for activation in ("relu", "gelu"):
        for lead, length, chunk_lengths in LENGTHS:
            d_model, d_ff = 3, 5
            while True:  # until no activation sits so close to the kink of relu that a difference quotient straddles it
                x, w1, b1, w2, b2 = (
                    rng.standard_normal(s)
                    for s in (
                        (*lead, length, d_model),
                        (d_model, d_ff),
                        d_ff,
                        (d_ff, d_model),
                        d_model,
                    )
                )
                if np.abs(x @ w1 + b1).min() > 1e-3:
                    break
            yield (x, w1, b1, w2, b2), activation, chunk_lengths


def _by_position_feed_forward(x, w1, b1, w2, b2, activation):
    out = np.empty_like(x)
    for index in np.ndindex(x.shape[:-1]):
        z = x[index] @ w1 + b1
        if activation == "relu":
            hidden = [max(value, 0.0) for value in z]
        else:
            hidden = [value * math.erfc(-value / math.sqrt(2)) / 2 for value in z]
        out[index] = np.array(hidden) @ w2 + b2
    return out


def _cross_entropy_cases(seed, huge=True):
    rng = np.random.default_rng(seed)
    for lead, length, chunk_lengths in LENGTHS:
        for scale in (1.0, 1e3) if huge else (1.0,):
            hidden = scale * rng.standard_normal((*lead, length, 3))
            weight, bias = rng.standard_normal((3, 6)), rng.standard_normal(6)
            targets = rng.integers(0, 6, (*lead, length))
            if length > 1:
                # chunks differ in how many of their positions are counted
                targets[..., [0, 2, 3, 6]] = spec.IGNORED
            yield (hidden, weight, bias), targets, chunk_lengths


def _by_position_cross_entropy(hidden, weight, bias, targets):
    nats = []
    for index in np.ndindex(targets.shape):
        if targets[index] != spec.IGNORED:
            logits = hidden[index] @ weight + bias
            nats.append(np.logaddexp.reduce(logits) - logits[targets[index]])
    return math.fsum(nats) / len(nats)
