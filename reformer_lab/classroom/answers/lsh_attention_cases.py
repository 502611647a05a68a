"""Assignment A3: the cases that answers are tried on, visible ones and hidden ones, for every variant."""

import numpy as np

from reformer_lab.classroom.exercises.chunking import sees_later
from reformer_lab.classroom.exercises.lsh_attention import draw_rounds


def logits(variant, rng, hidden):
    """Visible: vectors in the plane, random ones. Hidden: one token, one coordinate, zero vectors, tiny and huge."""
    if not hidden:
        plane = np.array([[3.0, 4.0], [-1.0, 0.5], [0.5, -2.0], [-2.0, -1.5]])
        return [[plane], [rng.standard_normal((5, 3)).round(2)]]
    q = rng.standard_normal((23, 6))
    return [
        [q],
        [q[:1]],
        [q[:, :1]],
        [q * (np.arange(23) % 4 > 0)[:, None]],
        [q * 10.0 ** rng.integers(-6, 7, (23, 1))],
    ]


def seen(variant, rng, hidden):
    """Lengths that chunks divide and do not; few buckets, so that windows matter. Hidden: one token, one round."""
    n = variant.n_hashes
    sizes = [(n, 8, 2, 2), (1, 11, 2, 1), (n, 7, 3, 2)]  # n_hashes, length, chunk_length, buckets
    if hidden:
        sizes = [
            (1, 1, 1, 1),
            (n, 1, 4, 3),
            (n, 30, 2, 2),
            (n + 1, 41, 4, 3),
            (1, 24, 24, 5),
            (n, 24, 50, 2),
            (2, 33, 1, 1),
        ]
    return [[*draw_rounds(rng, size[:2], size[3], variant.sort_ties), size[2]] for size in sizes]


def attend(variant, rng, hidden):
    """Visible: the identity as values, so that weights come out. Hidden: logits of thousands, nothing visible."""
    n, cases = variant.n_hashes, []
    for length, scale in ((19, 1.0), (19, 3000.0), (1, 1.0), (7, 1e5)) if hidden else ((5, 1.0), (4, 1.0), (6, 3.0)):
        seen = rng.random((n, length, length)) < (0.15 if hidden else 0.45)
        seen &= np.tri(length, k=-1, dtype=bool).T if sees_later(variant) else np.tri(length, k=-1, dtype=bool)
        if length > 3:  # a token sees a key in the last round only, another also sees a second key in all rounds
            few, more, other_key, other = (0, 1, 2, 3) if sees_later(variant) else (2, 3, 0, 1)
            seen[:, [few, more]] = False
            seen[-1, [few, more], other_key] = seen[:, more, other] = True
        v = rng.standard_normal((length, 2)).round(2) if cases else np.eye(length)
        cases.append([scale * rng.standard_normal((length, length)).round(2), seen, v])
    return cases + [[cases[0][0], np.zeros_like(cases[0][1]), cases[0][2]]] * hidden


def merge(variant, rng, hidden):
    """o, z and v, some z −∞ as where a round shows nothing. Hidden: leading axes, z of thousands, one round."""
    n = variant.n_hashes
    if not hidden:
        z = rng.standard_normal((3, 4)).round(2)
        z[0, 1] = z[:, 2] = -np.inf
        o = np.repeat(np.eye(3)[:, None], 4, axis=1) * np.isfinite(z)[..., None]  # round h puts out the unit vector h
        cases = [[o, z, np.zeros((4, 3))]]
        sizes = (((n, 3, 2), 1.0), ((2, n, 3, 1), 5.0))
    else:
        cases, sizes = ([], (((n, 17, 3), 1.0), ((2, 3, n, 9, 4), 3000.0), ((1, 5, 2), 1.0), ((2, n, 1, 1), 100.0)))
    for shape, scale in sizes:
        z = (scale * rng.standard_normal(shape[:-1])).round(2)
        z[rng.random(z.shape) < 0.3] = -np.inf
        z[..., -1] = -np.inf
        o = np.where(np.isfinite(z)[..., None], rng.standard_normal(shape).round(2), 0.0)
        cases.append([o, z, rng.standard_normal((*shape[:-3], *shape[-2:])).round(2)])
    return cases


def port(variant, rng, hidden):
    """Few buckets, so that rounds meet. Hidden: two leading axes, one token, chunks beyond the length, large logits."""
    n = variant.n_hashes  # leading axes, n_hashes, length, d, d_v, chunk_length, buckets, factor of q
    sizes = [((), n, 6, 2, 6, 2, 2, 1.0), ((2,), n, 11, 2, 1, 2, 1, 1.0), ((), n, 12, 2, 2, 3, 2, 1.0)]
    if hidden:
        sizes = [((2, 3), n, 29, 5, 3, 4, 3, 1.0), ((), n, 1, 2, 3, 4, 2, 1.0), ((2,), 1, 24, 3, 2, 2, 2, 1.0)]
        sizes += [((3,), n, 10, 3, 2, 16, 2, 1.0), ((), n, 41, 4, 4, 2, 2, 900.0), ((1, 2), 2, 33, 2, 1, 1, 1, 1.0)]
    cases = []
    for lead, n_hashes, length, d, d_v, chunk_length, n_buckets, factor in sizes:
        q, k = rng.standard_normal((2, *lead, length, d)).round(2)
        v = rng.standard_normal((*lead, length, d_v)).round(2) if cases or hidden else np.eye(length)
        order, buckets = draw_rounds(rng, (*lead, n_hashes, length), n_buckets, variant.sort_ties)
        cases.append([factor * q, k, v, order, buckets, chunk_length])
    return cases


def gradient(variant, rng, hidden):
    """The cases of the port, with the weights of the sum whose gradient is asked for."""
    cases = []
    for q, k, v, order, buckets, m in port(variant, rng, hidden):
        d_o = rng.standard_normal((*order.shape, v.shape[-1])).round(2)
        cases.append([q, k, v, order, buckets, m, d_o, rng.standard_normal(order.shape).round(2)])
    return cases


def scale(variant, rng, hidden):
    """A seed: the inputs are drawn by the exercise."""
    return [[variant.sort_ties, int(rng.integers(1000))]]
