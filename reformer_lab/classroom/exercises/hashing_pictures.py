"""Assignment A1: the circle that a student's hash cuts up, with the columns of its matrices."""

import numpy as np

from reformer_lab.plots import hashing as plots
from reformer_lab.plots.drawing import styled


@styled
def wedges(points, rotations, buckets, ring):
    """``plots.circles`` with rounds counted from 0, as in code, and the columns of every round as arrows.

    points: (n, 2). rotations: (n_hashes, 2, b/2). buckets: (n_hashes, n) ints. ring: (n_hashes, m) ints, the buckets of
    m directions all around.
    """
    picture = plots.circles(points, buckets, ring, 2 * rotations.shape[-1])
    for ax in picture.axes:
        h = (ax.get_title("center") or ax.get_ylabel()).rpartition("round ")[2]
        if ax.get_title("center"):
            columns = rotations[int(h) - 1].T  # (b/2, 2)
            turned = np.degrees(np.arctan2(columns[:, 1], columns[:, 0])) % 360
            directions = ", ".join(f"{degrees:.0f}°" for degrees in turned)
            ax.set_title(f"round {int(h) - 1}\ncolumns at {directions}", loc="center", fontsize=10)
            for x, y in 0.42 * columns / np.linalg.norm(columns, axis=1, keepdims=True):
                ax.annotate("", (x, y), (0, 0), arrowprops={"arrowstyle": "-|>", "color": "black", "linewidth": 1.3})
        elif h.isdigit():
            ax.yaxis.label.set_text(f"bucket, round {int(h) - 1}")
    bucket_rows = {f"round {h}": row for h, row in enumerate(picture.numbers.values())}
    return picture.describe(f"{picture.caption} Arrows: the columns of R, in the order of the title.", **bucket_rows)
