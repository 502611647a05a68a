"""A3, LSH attention with several rounds: the exercises, and identities that every right answer satisfies."""

import numpy as np
import torch

from reformer_lab.classroom.exercise import Exercise, by_name, holds
from reformer_lab.classroom.exercises.chunking import sees_later
from reformer_lab.classroom.exercises.lsh_attention_texts import DESCRIBE, PICTURES, illustrate

__all__ = ["DESCRIBE", "EXERCISES", "PICTURES", "draw_rounds", "illustrate"]

SMALL, LONG, MOST_CALLS = (256, 2048, 6000)  # lengths at which calls to PyTorch are counted; more calls end the test
PORT = ("q", "k", "v", "order", "buckets", "chunk_length")


def _logits_identities(fn, variant, rng):
    q = rng.standard_normal((9, 5))
    logits = np.asarray(fn(q))
    by_scale = rng.uniform(0.5, 3.0, 9)
    scaled = np.asarray(fn(q * by_scale[:, None]))
    holds(np.allclose(scaled, logits * by_scale[:, None]), "A key must not depend on the length of its vector.")
    holds(np.allclose(fn(q[:, ::-1]), logits), "All coordinates must count alike.")


def _seen_identities(fn, variant, rng):
    order, buckets = draw_rounds(rng, (3, 29), 4, variant.sort_ties)
    seen = np.asarray(fn(order, buckets, 29))
    i = np.arange(29)
    side = i > i[:, None] if sees_later(variant) else i < i[:, None]
    want = (buckets[:, :, None] == buckets[:, None]) & side
    holds(np.array_equal(seen, want), "If one chunk holds all tokens, only buckets and positions may decide.")
    holds(
        np.array_equal(fn(order[::-1], buckets[::-1], 5), np.asarray(fn(order, buckets, 5))[::-1]),
        "Rounds must not depend on each other.",
    )


def _attend_identities(fn, variant, rng):
    logits = rng.standard_normal((11, 11))
    v = rng.standard_normal((11, 3))
    seen = rng.random((3, 11, 11)) < 0.2
    seen &= ~np.eye(11, dtype=bool)
    out = np.asarray(fn(logits, seen, v))
    holds(np.allclose(fn(logits, seen, np.ones((11, 1))), 1), "The weights of every query must add up to 1.")
    holds(
        np.allclose(fn(logits + 50.0 * np.arange(11)[:, None], seen, v), out),
        "The same number added to all logits of a query must change nothing.",
    )
    holds(np.allclose(fn(logits, seen[::-1], v), out), "The order of rounds must not matter.")


def _merge_identities(fn, variant, rng):
    o, z, v = (torch.tensor(rng.standard_normal(s)) for s in ((4, 6, 2), (4, 6), (6, 2)))
    z[:, 0] = z[0, 1] = -torch.inf  # token 0 sees nothing in any round, token 1 nothing in the first
    leaves = [t.requires_grad_() for t in (o.masked_fill((z == -torch.inf)[..., None], 0.0), z, v)]
    out = fn(*leaves)
    holds(torch.allclose(fn(o.flip(0), z.flip(0), v), out), "The order of rounds must not matter.")
    holds(out.requires_grad, "No gradient flows through your function.")
    d_o, d_z, d_v = torch.autograd.grad(out.sum(), leaves, allow_unused=True, materialize_grads=True)
    holds(all(d.isfinite().all() for d in (d_o, d_z, d_v)), "Gradients must be finite where z is −∞, too.")
    holds(
        torch.allclose(d_v.sum(-1), torch.tensor([2.0] + [0.0] * 5, dtype=d_v.dtype)),
        "Only a token that sees nothing in any round may pass a gradient to its own value.",
    )


def _port_identities(fn, variant, rng):
    q, k, v = (torch.tensor(x) for x in rng.standard_normal((3, 2, 3, 26, 4)))
    order, buckets = map(torch.tensor, draw_rounds(rng, (2, 3, 2, 26), 4, variant.sort_ties))
    o, z = fn(q, k, v, order, buckets, 4)
    for at in ((0, 2), (1, 1)):
        single = fn(*(x[at] for x in (q, k, v, order, buckets)), 4)
        holds(
            all(torch.allclose(a, b[at]) for a, b in zip(single, (o, z), strict=True)),
            "Leading axes are separate sequences: each must give the result that it gives by itself.",
        )
    single_precision = fn(q.float(), k.float(), v.float(), order, buckets, 4)
    holds(all(x.dtype == torch.float32 for x in single_precision), "float32 in must be float32 out.")
    holds(
        all(torch.allclose(a.double(), b, atol=1e-4) for a, b in zip(single_precision, (o, z), strict=True)),
        "In float32 the result must be that of float64 up to rounding.",
    )


def _call_gradient(fn, args):
    """Gradients of a weighted sum of o and of the finite z; arguments: those of A3.port, and the weights."""
    *tensors, order, buckets, chunk_length, d_o, d_z = args
    leaves = [t.clone().requires_grad_() for t in tensors]
    o, z = fn(*leaves, order, buckets, chunk_length)
    finite = z.isfinite()
    loss = (o * d_o).sum() + (z[finite] * d_z[finite]).sum()
    if not loss.requires_grad:
        raise AssertionError("A3.gradient: no gradient flows through your function; stay with operations of PyTorch.")
    return torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)


def _call_scale(fn, args):
    """o and z of every 64th of ``LONG`` positions; AssertionError if calls grow with the length or tensors too much."""
    sort_ties, seed = args
    calls, largest = {}, 0

    class Counting(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            calls[length] += 1
            if calls[length] > min(MOST_CALLS, calls.get(SMALL, MOST_CALLS) + 40 * (length > SMALL)):
                raise AssertionError(
                    f"A3.scale: more than {calls[length] - 1:,} calls of PyTorch for {length:,} positions"
                    + f", but {calls[SMALL]:,} for {SMALL}" * (length > SMALL)
                    + ". There is a loop over positions or chunks: work on all of them at once."
                )
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel())
            return result

    for length in (SMALL, LONG):
        calls[length], rng = 0, np.random.default_rng(seed)
        q, k, v = (torch.tensor(x) for x in rng.standard_normal((3, length, 4)))
        rounds = map(torch.tensor, draw_rounds(rng, (2, length), length // 8, sort_ties))
        with Counting():
            o, z = fn(q, k, v, *rounds, 8)
    if largest > LONG * LONG // 4:
        raise AssertionError(
            f"A3.scale: for {LONG:,} positions there was a tensor of {largest:,} numbers; L × L is {LONG**2:,}. "
            "Compare each query with the keys of its window alone."
        )
    return o[:, ::64], z[:, ::64]


def draw_rounds(rng, shape, n_buckets, sort_ties):
    """(order, buckets), int (…, n_hashes, L): random buckets, half of them those of round 1, and the order of each."""
    buckets = rng.integers(0, n_buckets, shape)
    buckets = np.where(rng.random(shape) < 0.5, buckets[..., :1, :], buckets)
    sign = 1 if sort_ties == "earliest_first" else -1
    return np.argsort(buckets * shape[-1] + sign * np.arange(shape[-1]), axis=-1), buckets


EXERCISES = by_name(
    Exercise("A3.logits", ("q",), ("logits",), rtol=1e-9, identities=_logits_identities),
    Exercise("A3.seen", ("order", "buckets", "chunk_length"), ("seen",), identities=_seen_identities),
    Exercise("A3.attend", ("logits", "seen", "v"), ("out",), rtol=1e-9, identities=_attend_identities),
    Exercise("A3.merge", ("o", "z", "v"), ("out",), rtol=1e-9, identities=_merge_identities, torch=True),
    Exercise("A3.port", PORT, ("o", "z"), rtol=1e-9, identities=_port_identities, torch=True),
    Exercise("A3.gradient", (*PORT, "d_o", "d_z"), ("d_q", "d_k", "d_v"), rtol=1e-9, call=_call_gradient, torch=True),
    Exercise("A3.scale", ("sort_ties", "seed"), ("o", "z"), rtol=1e-9, call=_call_scale, torch=True),
)
