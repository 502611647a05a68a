"""A1, angular hashing: definitions for every variant, exercises, and what must hold whatever the variant."""

import numpy as np

from reformer_lab.classroom.exercise import Exercise, by_name, equal, holds

HASH = {
    "positive_first": (
        r"[\,xR\,;\,-xR\,]",
        "first the projections of $x$ on the columns, then those on the opposite directions",
    ),
    "negative_first": (
        r"[\,-xR\,;\,xR\,]",
        "first the projections of $x$ on the opposites of the columns, then those on the columns",
    ),
    "interleaved": (
        r"[\,x r_1,\,-x r_1,\,x r_2,\,-x r_2,\,\dots\,]",
        "the projection on each column $r_i$ of $R$, followed by that on its opposite",
    ),
}
# x = (1, −2) and R = [[1, 0, 2], [1, 1, −1]]: the list, and the index of its largest entry
HASH_TOY = {
    "positive_first": ("(−1, −2, 4, 1, 2, −4)", 2),
    "negative_first": ("(1, 2, −4, −1, −2, 4)", 5),
    "interleaved": ("(−1, 1, −2, 2, 4, −4)", 4),
}


def describe_hash(variant):
    """The hash of this variant in words, as an equation, and by hand for one vector."""
    (scores, words), (toy, bucket) = HASH[variant.hash_order], HASH_TOY[variant.hash_order]
    paper = "" if variant.hash_order == "positive_first" else " The paper uses $[xR; -xR]$ instead."
    return f"""### Definition: the hash of this course

$$h(x) = \\operatorname{{argmax}}\\,{scores}, \\qquad R \\in \\mathbb{{R}}^{{d \\times b/2}}$$

The list has $b$ entries, counted from 0: {words}.{paper}
The bucket $h(x)$ is the index of the largest entry.
If several are equally large, the **{variant.hash_ties}** index wins.

**By hand.** $x = (1, -2)$ and $R = \\begin{{pmatrix}} 1 & 0 & 2 \\\\ 1 & 1 & -1 \\end{{pmatrix}}$ give
$xR = (-1, -2, 4)$. The list is {toy}, so the bucket is **{bucket}**."""


def describe_hash_hints(variant):
    """Hints for the hash; how to find the last maximum only where the last one wins."""
    hint = "`np.argmax` returns the first of several maxima. Is that the one you want?"
    if variant.hash_ties == "highest":
        hint += """ The last maximum of a list is the first maximum
of the reversed list, `a[..., ::-1]`. Convert its index there into an index of `a`."""
    return f"""<details><summary>Hint 1: the shapes</summary>

`x @ rotations` works for a stack of matrices: (L, d) times (n_hashes, d, b/2) gives (n_hashes, L, b/2).
</details>
<details><summary>Hint 2: several maxima</summary>

{hint}
</details>
<details><summary>Hint 3: joining lists</summary>

`np.concatenate([a, b], axis=-1)` concatenates them. `np.stack([a, b], axis=-1)` makes pairs
(a₀, b₀), (a₁, b₁), …; `reshape` turns the pairs into one list.
</details>"""


def describe_factors(variant):
    """How the digits of a factorised bucket make one number in this variant."""
    if variant.factor_order == "first_fastest":
        general, toy = r"b_0 + f_0\,b_1 + f_0 f_1\,b_2 + \dots", "3 + 4 · 1 = **7**"
        words = "The **first** digit has the weight 1, the second the weight $f_0$, the third $f_0 f_1$."
    else:
        general, toy = (r"\dots + f_{n-1} f_{n-2}\,b_{n-3} + f_{n-1}\,b_{n-2} + b_{n-1}", "3 · 6 + 1 = **19**")
        words = (
            "The **last** digit has the weight 1, the one before it that of the last factor, as in a decimal number."
            " For three factors: $f_2 f_1\\,b_0 + f_2\\,b_1 + b_2$."
        )
    return f"""### Definition: one number from several digits

With $n$ factors $(f_0, \\dots, f_{{n-1}})$ and the digits $b_0, \\dots, b_{{n-1}}$, where $0 \\le b_i < f_i$,

$$\\text{{bucket}} = {general}$$

{words}

**By hand.** The factors (4, 6) and the digits $b_0 = 3$, $b_1 = 1$ give the bucket {toy} of 24."""


DESCRIBE = {"A1.hash": describe_hash, "A1.hash-hints": describe_hash_hints, "A1.factors": describe_factors}


def hash_identities(fn, variant, rng):
    """Only directions matter; vectors and rounds are hashed independently; opposite vectors never share a bucket."""
    x, rotations = rng.standard_normal((23, 6)), rng.standard_normal((3, 6, 5))
    buckets = fn(x.copy(), rotations.copy())
    equal(buckets, fn(x * 2.0 ** rng.integers(-9, 10, (23, 1)), rotations.copy()), "Only the direction of x matters.")
    shuffled = rng.permutation(23)
    equal(buckets[:, shuffled], fn(x[shuffled], rotations.copy()), "Each vector is hashed by itself.")
    equal(buckets[::-1], fn(x.copy(), rotations[::-1].copy()), "Each round is hashed by itself.")
    holds((buckets != fn(-x, rotations.copy())).all(), "x and −x never share a bucket.")


def angle_identities(fn, variant, rng):
    """Symmetric, blind to length, 0 for a vector with itself, π for opposite vectors."""
    x, y = rng.standard_normal((2, 200, 7))
    equal(fn(x.copy(), y.copy()), fn(y.copy(), x.copy()), "The angle from x to y is that from y to x.", 1e-12)
    equal(fn(x.copy(), y.copy()), fn(3 * x, y / 7), "Only the directions matter.", 1e-12)
    equal(fn(x.copy(), 5 * x), np.zeros(200), "A vector has the angle 0 with itself, never NaN.", 1e-6)
    equal(fn(x.copy(), -x), np.full(200, np.pi), "Opposite vectors are π apart, never NaN.", 1e-6)


def measure_identities(fn, variant, rng):
    """The order of the rounds and which of two vectors comes first do not matter."""
    theta = rng.uniform(0.3, 2.8, 9)
    (bx, by) = rng.integers(0, 2, (2, 50, 9))
    results = fn(theta.copy(), bx.copy(), by.copy())
    swapped = fn(theta.copy(), by[::-1].copy(), bx[::-1].copy())
    for name, got, want in zip(("fraction", "distance"), results, swapped, strict=True):
        equal(got, want, f"`{name}` changed with the order of the rounds or of the two vectors.", 1e-12)


def rounds_identities(fn, variant, rng):
    """That many rounds are enough, and one round fewer is not."""
    for theta, miss in zip(rng.uniform(0.1, 3.0, 40), rng.uniform(0.001, 0.5, 40), strict=True):
        n, apart = int(fn(float(theta), float(miss))), theta / np.pi
        if n < 1 or apart**n > miss * (1 + 1e-9) or (n > 1 and apart ** (n - 1) <= miss * (1 - 1e-9)):
            raise AssertionError(f"θ = {theta:.3f}, miss = {miss:.3f}: {n} rounds are too few or more than needed.")


def meeting_identities(fn, variant, rng):
    """Symmetric; a token meets itself in round 0; later rounds change nothing for pairs that have met."""
    buckets = rng.integers(0, 5, (4, 17))
    first, fewer = np.asarray(fn(buckets.copy())), np.asarray(fn(buckets[:2].copy()))
    equal(first, first.T, "If i meets j, then j meets i, in the same round.")
    equal(np.diagonal(first), np.zeros(17, int), "A token meets itself in the first round.")
    equal(first[fewer >= 0], fewer[fewer >= 0], "Later rounds do not change who met before.")


def factors_identities(fn, variant, rng):
    """Every combination of digits gets a different bucket."""
    factors = (4, 2, 6)
    digits = np.stack(np.meshgrid(*(np.arange(f) for f in factors), indexing="ij"), axis=-1).reshape(-1, 3)  # (48, 3)
    scores = np.concatenate([np.eye(f)[digit] for f, digit in zip(factors, digits.T, strict=True)], axis=1)  # (48, 12)
    equal(np.sort(fn(scores, factors)), np.arange(48), "48 combinations of digits must give the buckets 0 to 47.")


def name_scores(args, at):
    """The scores of a row, cut where one factor ends and the next begins."""
    scores, factors = args
    ends = np.cumsum(factors)
    groups = (scores[at[0], end - f : end] for f, end in zip(factors, ends, strict=True))
    return "scores " + " | ".join(" ".join(f"{score:g}" for score in group) for group in groups)


EXERCISES = by_name(
    Exercise("A1.hash", ("x", "rotations"), ("buckets",), identities=hash_identities),
    Exercise("A1.angle", ("x", "y"), ("theta",), rtol=1e-7, identities=angle_identities),
    Exercise("A1.measure", ("theta", "bx", "by"), ("fraction", "distance"), rtol=1e-9, identities=measure_identities),
    Exercise("A1.rounds", ("theta", "miss"), ("n",), identities=rounds_identities),
    Exercise("A1.meeting", ("buckets",), ("first",), identities=meeting_identities),
    Exercise("A1.factors", ("scores", "factors"), ("buckets",), identities=factors_identities, describe=name_scores),
)
