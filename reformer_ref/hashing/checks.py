"""What any implementation of the hash must satisfy. Each check takes a function on NumPy arrays.

The expected buckets come from a formula written out here for one vector at a time, the expected
probabilities from geometry, the expected numbers of buckets from a record of the authors' code.
"""

import math
from itertools import product

import numpy as np

from reformer_ref.hashing import spec
from reformer_ref.testing import expect, expect_equal, in_a_sentence

# (leading axes of x, leading axes of the rotations, n_hashes, L, d, n_buckets): rotations for all,
# or one set per head
CASES = (
    ((), (), 1, 1, 1, 2),
    ((), (), 3, 2, 4, 6),
    ((2,), (), 2, 17, 8, 16),
    ((2, 3), (), 1, 5, 3, (2, 2)),
    ((2, 3), (3,), 2, 13, 5, (4, 6)),
    ((3,), (3,), 4, 31, 16, (4, 4, 2)),
    ((2, 1), (2, 3), 2, 7, 6, (16, 8)),
    ((), (2,), 2, 7, 6, 64),
)
# Recorded from the authors' code, for chunks of 64 tokens.
AUTHORS = {
    2: 2,
    64: 2,
    512: 16,
    520: 16,
    1024: 32,
    4096: 128,
    16384: (32, 16),
    65536: (64, 32),
    524288: (128, 128),
}


@in_a_sentence
def check_default_n_buckets(fn):
    """fn(length, chunk_length): the authors' recorded numbers; even factors; a pure function of L
    // chunk_length.
    """
    for length, want in AUTHORS.items():
        got = fn(length, 64)
        text = f"default_n_buckets({length}, 64): got {got}, expected {want}, as by the authors."
        expect(got == want, text)
    lengths = (1, 3, 63, 64, 65, 8191, 8256, 40_000, 2**20)
    cases = [*product(lengths, (1, 4, 37, 64))]
    for length, chunk_length in cases:
        got = fn(length, chunk_length)
        label = f"default_n_buckets({length}, {chunk_length}): got {got}, expected"
        factors = spec.factors_of(got)
        expect(all(factor % 2 == 0 for factor in factors), f"{label} even factors.")
        most = 2 * max(1, length // chunk_length)
        in_all = f"{most // 2} to {most} buckets in all, about two per chunk."
        expect(most / 2 <= math.prod(factors) <= most, f"{label} {in_all}")
        doubled = fn(2 * length, 2 * chunk_length)
        expect(doubled == got, f"{label} {doubled}, as for twice both: a function of their ratio.")
    print(f"check_default_n_buckets: {len(AUTHORS)} recorded numbers and {len(cases)} others")


@in_a_sentence
def check_random_rotations(fn, make_generator=np.random.default_rng, seed=0):
    """fn(generator, n_hashes, d, n_buckets, n_heads): shape, standard normal, drawn from the
    generator alone.

    make_generator(seed) gives a fresh generator of the kind that ``fn`` takes.
    """
    shapes = {
        (1, 1, 2, None): (1, 1, 1),
        (2, 3, (4, 6), None): (2, 3, 5),
        (3, 5, (2, 4, 8), 2): (2, 3, 5, 7),
        (4, 32, 64, 3): (3, 4, 32, 32),
    }
    global_state = repr(np.random.get_state())  # noqa: NPY002 (it is read here, never used)
    for sizes, want in shapes.items():
        r, again = (np.asarray(fn(make_generator(seed), *sizes)) for _ in range(2))
        text = f"random_rotations{sizes}: got shape {r.shape}, expected {want} = (…, Σfactors/2)."
        expect(r.shape == want, text)
        hint = "The same generator state must give the same numbers."
        expect_equal("random_rotations, called twice", again, r, hint)
    untouched = repr(np.random.get_state()) == global_state  # noqa: NPY002
    expect(untouched, "random_rotations: expected NumPy's global random state untouched.")
    generator = make_generator(seed)
    one_generator = [np.asarray(fn(generator, *sizes)) for _ in range(2)]
    others = {
        "two calls with one generator": one_generator,
        "two seeds": (r, np.asarray(fn(make_generator(seed + 1), *sizes))),
        "two heads": (r[0], r[1]),
        "two rounds": (r[0, 0], r[0, 1]),
    }
    for label, (a, b) in others.items():
        text = f"random_rotations: {label} gave the same numbers, expected independent ones."
        expect(not np.array_equal(a, b), text)
    # Moments of the normal distribution, with their standard deviations over r.size samples.
    for power, (want, variance) in enumerate(((0, 1), (1, 2), (0, 15), (3, 96)), start=1):
        got = np.mean(r.astype(np.float64) ** power)
        error = math.sqrt(variance / r.size)
        text = f"random_rotations: mean of r^{power} is {got:.4f}, expected {want} ± {error:.4f}."
        expect(abs(got - want) <= 4 * error, text)
    moments = f"four moments of {r.size} numbers within 4 standard errors"
    print(f"check_random_rotations: {len(shapes)} shapes, {moments}")


@in_a_sentence
def check_hash_vectors(fn, seed=0, tolerance=1e-12):
    """fn(x, rotations, n_buckets) against the formula, one vector at a time; ties; vectors of any
    length.

    A bucket may differ from the expected one only if its score is as large but for ``tolerance``,
    relative to the longest column of R: for float32 give 1e-6. On exact ties the lowest bucket
    wins.
    """
    rng = np.random.default_rng(seed)
    n_close = 0
    for lead, rotation_lead, n_hashes, length, d, n_buckets in CASES:
        x = rng.standard_normal((*lead, length, d))
        rotations = spec.random_rotations(rng, n_hashes, d, n_buckets, *rotation_lead[-1:])
        if len(rotation_lead) > 1:
            rotations = np.stack([rotations, rotations[::-1]])
        label = f"hash_vectors of x {x.shape}, rotations {rotations.shape}, n_buckets={n_buckets}"
        got = np.asarray(fn(x, rotations, n_buckets))
        n_close += _expect_buckets(label, got, x, rotations, n_buckets, tolerance)
        powers = 2.0 ** rng.integers(-8, 9, (*x.shape[:-1], 1))  # exact in every precision
        hint = "Only the direction of a vector matters, not its length."
        expect_equal(f"{label}, lengths changed", fn(x * powers, rotations, n_buckets), got, hint)
        # Small whole numbers: every score is exact, and many are equal.
        x, rotations = (rng.integers(-1, 2, a.shape).astype(np.float64) for a in (x, rotations))
        x[..., 0, :] = 0
        got = fn(x, rotations, n_buckets)
        _expect_buckets(f"{label}, with ties", got, x, rotations, n_buckets, 0.0)
    x = np.array([[1, 1, 0], [-1, 0, -1], [1, -1, 0], [-1, 1, 0], [0, 0, -1], [0, 0, 0.0]])
    identity = np.eye(3)[None]
    hint = "bucket = argmax([xR ; −xR]), the lowest index on a tie."
    expect_equal("hash_vectors with R = 1", fn(x, identity, 6), [[0, 3, 0, 1, 5, 0]], hint)
    hint = "bucket = b0 + f0·b1, each factor with its own columns of R."
    got = fn(x, identity, (4, 2))
    expect_equal("hash_vectors with R = 1, factors (4, 2)", got, [[0, 6, 0, 1, 4, 0]], hint)
    n = 3 * len(CASES) + 2
    print(f"check_hash_vectors: {n} cases, {n_close} buckets other than the spec's (near ties)")


@in_a_sentence
def check_collision_probability(fn, seed=0, n_hashes=4096):
    """fn = hash_vectors: two buckets are shared with probability 1 − θ/π, more buckets less the
    larger the angle θ.
    """
    rng = np.random.default_rng(seed)
    angles = np.pi * np.array([0.0, 0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0])
    d = 8
    axis, other = np.linalg.qr(rng.standard_normal((d, d)))[0][:2]
    x = np.cos(angles)[:, None] * axis + np.sin(angles)[:, None] * other  # (angles, d)
    x *= np.exp(rng.standard_normal((len(x), 1)))
    x[-1] = -2 * x[0]  # θ = π without rounding
    for n_buckets in (2, 8, 32):
        rotations = spec.random_rotations(rng, n_hashes, d, n_buckets)
        buckets = np.asarray(fn(x, rotations, n_buckets))  # (n_hashes, angles)
        shared = np.mean(buckets == buckets[:, :1], axis=0)
        label = f"n_buckets={n_buckets}: probabilities {shared.round(3)}, expected"
        expect(shared[-1] == 0, f"{label} 0 for opposite vectors: they never share a bucket.")
        falls = np.all(np.diff(shared) <= 4 / math.sqrt(n_hashes))
        expect(falls, f"{label} falling with the angle.")
        if n_buckets == 2:
            want = 1 - angles / np.pi
            standard_error = np.sqrt(want * (1 - want) / n_hashes)
            errors = (np.abs(shared - want)[1:-1] / standard_error[1:-1]).max()
            text = f"1 − θ/π = {want.round(3)} ± {standard_error.max():.3f}."
            expect(errors <= 4, f"{label} {text}")
    worst = f"at most {errors:.1f} standard errors from 1 − θ/π"
    print(f"check_collision_probability: {len(angles)} angles, {worst}")


def _expect_buckets(label, got, x, rotations, n_buckets, tolerance):
    """How many buckets differ from the formula's; AssertionError unless those are near ties."""
    got = np.asarray(got)
    lead = np.broadcast_shapes(x.shape[:-2], rotations.shape[:-3])
    want = np.zeros((*lead, rotations.shape[-3], x.shape[-2]), dtype=np.int64)
    fits = got.dtype.kind in "iu" and got.shape == want.shape
    text = (
        f"{label}: got {got.dtype} {got.shape}, expected integers {want.shape} = (…, n_hashes, L)."
    )
    expect(fits, text)
    x = np.broadcast_to(x, lead + x.shape[-2:])
    rotations = np.broadcast_to(rotations, lead + rotations.shape[-3:])
    near = np.zeros(want.shape, dtype=bool)
    for index in np.ndindex(want.shape):
        *batch, h, i = index
        vector, r = x[(*batch, i)], rotations[(*batch, h)]
        xr = vector @ r  # (Σfactors/2,)
        slack = tolerance * np.linalg.norm(vector) * np.linalg.norm(r, axis=0).max()
        start, stride, rest = 0, 1, int(got[index])
        near[index] = True
        for factor in spec.factors_of(n_buckets):
            columns = xr[start : start + factor // 2]
            scores = [*columns, *-columns]
            want[index] += stride * scores.index(max(scores))
            near[index] &= max(scores) - scores[rest % factor] <= slack
            start += factor // 2
            stride *= factor
            rest //= factor
        near[index] &= rest == 0
    hint = (
        "bucket = argmax([xR ; −xR]) on unnormalised vectors, the lowest index on a tie; b0 + "
        "f0·b1 + f0·f1·b2 …"
    )
    expect_equal(label, got, np.where(near, got, want) if tolerance else want, hint)
    return int((got != want).sum())
