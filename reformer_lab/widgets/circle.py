"""Points on the circle under the hash: turn the matrices, change the number of buckets, add rounds."""

import numpy as np
from reformer_ref.hashing import spec

from reformer_lab.plots import hashing as plots
from reformer_lab.plots.drawing import controls

DEGREES = np.array([8, 20, 37, 75, 88, 122, 160, 171, 214, 250, 291, 330])  # where the 12 points lie
NEAR, FAR = 20, 60  # degrees: pairs at most so near, at least so far
FURTHER = 37  # degrees that each round is turned beyond the one before: no two of 4 rounds cut the circle alike
DIRECTIONS = 720  # that the wedges are drawn from


@controls(angle=(0, 180, 5), n_buckets=[2, 4, 8, 16], rounds=(1, plots.MOST_ROUNDS), matrix=["regular", "Gaussian"])
def circle(angle=20, n_buckets=4, rounds=2, matrix="regular"):
    """Buckets of twelve points in the plane, the wedges of each round, and how many pairs share a bucket.

    angle: degrees that the columns of R are turned by. matrix: "regular" has columns of length 1 at equal angles, so
    all wedges are equally wide, and turns each round 37° further; "Gaussian" is drawn as in the Reformer (fixed seed).
    """
    points = _unit(DEGREES)  # (12, 2)
    rotations = _turn(angle) @ _matrices(n_buckets, matrix)[:rounds]  # (rounds, 2, n_buckets/2)
    buckets = spec.hash_vectors(points, rotations, n_buckets)  # (rounds, 12)
    around = _unit((np.arange(DIRECTIONS) + 0.5) * 360 / DIRECTIONS)  # (720, 2)
    ring = spec.hash_vectors(around, rotations, n_buckets)  # (rounds, 720)
    picture = plots.circles(points, buckets, ring, n_buckets)
    i, j = np.triu_indices(len(points), k=1)  # 66 pairs
    together = (buckets[:, i] == buckets[:, j]).any(axis=0)
    apart = np.abs((DEGREES[i] - DEGREES[j] + 180) % 360 - 180)
    near, far = apart <= NEAR, apart >= FAR
    numbers = {
        "pairs that share a bucket in at least one round": f"{together.sum()} of {len(i)}",
        f"pairs within {NEAR}°": f"{together[near].sum()} of {near.sum()}",
        f"pairs beyond {FAR}°": f"{together[far].sum()} of {far.sum()}",
        "buckets with a wedge, per round": ", ".join(f"{len(set(row))} of {n_buckets}" for row in ring.tolist()),
    }
    return picture.describe(picture.caption, **numbers, **picture.numbers)


def _matrices(n_buckets, matrix):
    """The matrices of all rounds before they are turned: (4, 2, n_buckets/2)."""
    if matrix == "Gaussian":
        return spec.random_rotations(np.random.default_rng(0), plots.MOST_ROUNDS, 2, n_buckets)
    columns = np.arange(n_buckets // 2) * 360 / n_buckets
    return np.stack([_unit(columns + FURTHER * h).T for h in range(plots.MOST_ROUNDS)])


def _turn(degrees):
    """The 2 × 2 matrix that turns a column vector by so many degrees."""
    cos, sin = _unit(degrees)
    return np.array([[cos, -sin], [sin, cos]])


def _unit(degrees):
    """(…, 2): the vectors of length 1 at these angles."""
    return np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=-1)
