"""Pictures of the hash: its scores, its wedges on the circle, the paper's figure 1, probabilities, bucket sizes."""

import itertools

import matplotlib
import numpy as np
from matplotlib.patches import Rectangle, Wedge

from reformer_lab.plots.drawing import Picture, as_array, bucket_colours, cell_row, number, readable_on, styled

MOST_ROUNDS = 4  # circles side by side


@styled
def scores(both, buckets):
    """The numbers [xR ; −xR] of each vector as a table, the largest of each row in the colour of its bucket.

    both: (n, n_buckets) scores. buckets: (n,) ints, the column that the hash chose.
    """
    both = as_array("both", both, (None, None))
    n, n_buckets = both.shape
    buckets = _buckets("buckets", buckets, (n,), n_buckets)
    picture = Picture(width=1.6 + 0.85 * n_buckets, height=0.9 + 0.36 * n)
    ax = picture.add_subplot()
    colours = bucket_colours(n_buckets)
    for row, column in np.ndindex(n, n_buckets):
        won = column == buckets[row]
        colour = colours[column] if won else "#EEEEEE"
        ax.add_patch(
            Rectangle((column, row), 1, 1, facecolor=colour, edgecolor="black" if won else "white", zorder=1 + won)
        )
        text = f"{both[row, column]:.2f}".replace("-", "−")
        style = {"color": readable_on(colour), "weight": "bold" if won else "normal", "zorder": 3}
        ax.text(column + 0.5, row + 0.5, text, ha="center", va="center", **style)
    ax.set(xlim=(0, n_buckets), ylim=(n, 0), xlabel="bucket: n-th of the numbers [xR ; −xR]", ylabel="vector")
    ax.set_xticks(np.arange(n_buckets) + 0.5, range(n_buckets))
    ax.set_yticks(np.arange(n) + 0.5, _names(n))
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    caption = f"""Table: the {n_buckets} scores (columns) of {n} vectors (rows). The largest score of a row, framed and
        coloured, is the bucket of the vector."""
    return picture.describe(caption, buckets=_listed(buckets))


@styled
def circles(points, buckets, ring, n_buckets):
    """One circle per round, cut into its wedges, and below them the bucket of each point in each round.

    points: (n, 2), drawn where their directions meet the unit circle. buckets: (n_hashes, n) ints, 1 to 4 rounds. ring:
    (n_hashes, m) ints, the buckets of m directions at the angles 2π(j + ½)/m; the wedges are drawn from them.
    """
    points = _directions("points", points, (None, 2))
    buckets = _buckets("buckets", buckets, (None, len(points)), n_buckets)
    rounds = len(buckets)
    if rounds > MOST_ROUNDS:
        raise ValueError(f"buckets must hold 1 to {MOST_ROUNDS} rounds to be drawn side by side, got {rounds}")
    ring = _buckets("ring", ring, (rounds, None), n_buckets)
    size = min(3.0, 9 / rounds)
    names = _names(len(points))
    colours = bucket_colours(n_buckets)
    picture = Picture(width=9, height=size + 0.3 * (rounds + 1) + 0.5)
    grid = picture.add_gridspec(rounds + 2, rounds, height_ratios=[size] + [0.3] * (rounds + 1))
    for h in range(rounds):
        ax = picture.add_subplot(grid[0, h])
        _circle(ax, points, ring[h], colours, names)
        ax.set_title(f"round {h + 1}", loc="center")
        row = picture.add_subplot(grid[h + 2, :])
        cell_row(row, [str(b) for b in buckets[h]], colours[buckets[h]], title=f"bucket, round {h + 1}")
    cell_row(picture.add_subplot(grid[1, :]), names, ["white"] * len(points), title="point")
    caption = f"""Circles: the plane cut into wedges by the hash, one circle per round, the number of its bucket in each
        wedge; below, the bucket of each of the {len(points)} points. A point belongs to the wedge that its direction
        lies in."""
    return picture.describe(caption, **{f"round {h + 1}": _listed(row) for h, row in enumerate(buckets)})


@styled
def two_pairs(pairs, buckets, ring, n_buckets):
    """The paper's figure 1: do two points share a bucket? One row per pair, one circle per round.

    pairs: (n_pairs, 2, 2), the points x and y of each pair. buckets: (n_pairs, n_hashes, 2) ints.
    ring: (n_hashes, m) ints, the buckets of m directions at the angles 2π(j + ½)/m.
    """
    pairs = _directions("pairs", pairs, (None, 2, 2))
    buckets = _buckets("buckets", buckets, (len(pairs), None, 2), n_buckets)
    rounds, colours, numbers = buckets.shape[1], bucket_colours(n_buckets), {}
    ring = _buckets("ring", ring, (rounds, None), n_buckets)
    picture = Picture(width=2.5 * rounds + 0.8, height=2.8 * len(pairs))
    axes = picture.subplots(len(pairs), rounds, squeeze=False)
    for p, (x, y) in enumerate(pairs):
        angle = np.degrees(np.arccos(np.clip(x @ y, -1, 1)))
        for h, ax in enumerate(axes[p]):
            _circle(ax, pairs[p], ring[h], colours, ["x", "y"])
            b, c = buckets[p, h]
            ax.set_title(f"both in {b}: together" if b == c else f"{b} and {c}: apart", loc="center")
            if p == 0:
                ax.text(0, 1.75, f"round {h + 1}", ha="center", weight="bold")
        axes[p, 0].text(-1.4, 0, f"{angle:.0f}° between", rotation=90, ha="center", va="center")
        numbers[f"together at {angle:.0f}°"] = f"{int((buckets[p, :, 0] == buckets[p, :, 1]).sum())} of {rounds} rounds"
    caption = f"""Circles: {len(pairs)} pairs of points (rows) under {rounds} random matrices (columns), as figure 1
        of the paper; here the points are fixed and the wedges change. The smaller the angle, the more often a pair
        shares a bucket."""
    return picture.describe(caption, **numbers)


@styled
def collision_probability(angles, measured, theory, parameter="n_buckets", print_at=(30, 90)):
    """Probability that two vectors share a bucket, against the angle between them: markers measured, lines theory.

    angles: (n,) degrees. measured, theory: {value: (n,) probabilities}, a curve for each value of ``parameter``,
    n_buckets or n_hashes. print_at: the angles whose measured probabilities are printed (the nearest of ``angles``).
    """
    angles = as_array("angles", angles, (None,))
    if set(measured) != set(theory) or not theory:
        raise ValueError(
            f"measured must have the keys of theory, {list(theory)}, and at least one, got {list(measured)}"
        )
    picture, numbers, off = Picture(width=7, height=3.8), {}, []
    ax = picture.add_subplot()
    styles = itertools.cycle(matplotlib.rcParams["axes.prop_cycle"])
    for (key, curve), style in zip(theory.items(), styles, strict=False):
        curve, seen = (as_array(name, p, angles.shape) for name, p in (("theory", curve), ("measured", measured[key])))
        ax.plot(angles, curve, **style | {"marker": ""})
        ax.plot(angles, seen, **style | {"linestyle": ""})
        ax.plot([], [], label=f"{parameter} = {key}", **style)
        numbers |= {f"{parameter}={key} at {angles[i]:g}°": float(seen[i]) for i in _nearest(angles, print_at)}
        off.append(np.abs(seen - curve).max())
    ax.set(xlim=(0, 180), ylim=(-0.03, 1.03), xticks=range(0, 181, 30))
    ax.set(xlabel="angle between the two vectors, degrees", ylabel="probability of sharing a bucket")
    ax.legend(title="lines: theory, markers: measured")
    caption = f"""Line chart: probability of sharing a bucket (y) against the angle (x), for {len(theory)} values
        of {parameter}. It falls with the angle, and the markers lie on the lines."""
    return picture.describe(caption, **numbers, **{"largest distance from theory": float(max(off))})


@styled
def cost_of_hashing(lengths, plain, factorised):
    """Scores per token, one matrix against two factors, against the length; both axes logarithmic.

    lengths: (n,) tokens. plain, factorised: (n,) numbers of columns of R, Π factors / 2 and Σ factors / 2.
    """
    lengths = as_array("lengths", lengths, (None,))
    plain, split = (as_array(k, v, lengths.shape) for k, v in (("plain", plain), ("factorised", factorised)))
    picture = Picture(width=7, height=3.3)
    ax = picture.add_subplot()
    ax.plot(lengths, plain, label="one factor: Π f / 2", markevery=4)
    ax.plot(lengths, split, label="default_n_buckets: Σ f / 2", markevery=4)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    ax.set(xlabel="length L, tokens", ylabel="scores per token")
    ax.legend()
    caption = """Line chart: scores that the hash makes per token and round (y) against the length (x), both
        logarithmic. One factor makes the cost grow with the length; two factors hold it near the square root of the
        number of buckets."""
    end = f"at {int(lengths[-1]):,} tokens"
    numbers = {
        f"one factor {end}": int(plain[-1]),
        f"default {end}": int(split[-1]),
        "ratio": float(plain[-1] / split[-1]),
    }
    return picture.describe(caption, **numbers)


@styled
def bucket_sizes(sizes):
    """How many tokens each bucket holds, one row of bars per variant. sizes: {name: (n_buckets,) counts}."""
    if not sizes:
        raise ValueError("sizes must hold at least one variant, got none")
    first = as_array("sizes", next(iter(sizes.values())), (None,))
    picture, numbers = Picture(width=7, height=0.6 + 1.5 * len(sizes)), {}
    axes = picture.subplots(len(sizes), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for ax, (name, counts) in zip(axes, sizes.items(), strict=True):
        counts = as_array("sizes", counts, first.shape).astype(np.int64)
        ax.bar(range(len(counts)), counts, color=bucket_colours(len(counts)), edgecolor="black", linewidth=0.5)
        ax.set(title=name, ylabel="tokens")
        used = counts[counts > 0]
        numbers[f"{name}, buckets in use"] = f"{len(used)} of {len(counts)}"
        if len(used):
            numbers[f"{name}, tokens in those"] = f"{used.min()} to {used.max()}, {number(used.mean())} on average"
    axes[-1].set(xlabel="bucket", xticks=range(len(first)))
    caption = f"""Bar chart: tokens (y) in each of {len(first)} buckets (x) for {" and ".join(sizes)}."""
    return picture.describe(caption, **numbers)


def _circle(ax, points, ring, colours, names):
    """Wedges from the buckets all around, points on the rim: points (n, 2) of length 1; ring (m,)."""
    for start, stop, bucket in _wedges(ring):
        ax.add_patch(Wedge((0, 0), 1, start, stop, facecolor=colours[bucket], edgecolor="white", linewidth=1))
        wide = stop - start > 30
        if stop - start >= 9:  # the number does not fit into a narrower wedge
            angle, radius = np.radians((start + stop) / 2), 0.55 if wide else 0.78
            x, y = radius * np.cos(angle), radius * np.sin(angle)
            style = {"color": readable_on(colours[bucket]), "fontsize": 8 + 2 * wide}
            ax.text(x, y, bucket, ha="center", va="center", **style)
    ax.plot(*points.T, "o", color="white", markeredgecolor="black", linestyle="", zorder=3)
    for point, name in zip(points, names, strict=True):
        ax.text(*(1.16 * point), name, ha="center", va="center", fontsize=9)
    ax.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), aspect="equal")
    ax.axis("off")


def _wedges(ring):
    """Intervals of equal buckets around the circle: [(first degree, last degree, bucket)]."""
    starts = np.flatnonzero(ring != np.roll(ring, 1))
    step = 360 / len(ring)
    if not len(starts):
        return [(0.0, 360.0, int(ring[0]))]
    stops = [*starts[1:], starts[0] + len(ring)]
    return [(a * step, b * step, int(ring[a])) for a, b in zip(starts, stops, strict=True)]


def _nearest(angles, wanted):
    return sorted({int(np.abs(angles - angle).argmin()) for angle in wanted})


def _names(n):
    return [chr(ord("a") + i) if n <= 26 else str(i) for i in range(n)]


def _listed(buckets):
    return " ".join(map(number, buckets))


def _buckets(name, value, shape, n_buckets):
    value = as_array(name, value, shape)
    if value.dtype.kind not in "iu" or value.min() < 0 or value.max() >= n_buckets:
        raise ValueError(
            f"{name} must be integers from 0 to {n_buckets - 1}, got {value.dtype}, {value.min()} … {value.max()}"
        )
    return value


def _directions(name, value, shape):
    value = as_array(name, value, shape)
    lengths = np.linalg.norm(value, axis=-1, keepdims=True)
    if not lengths.all():
        raise ValueError(f"{name} must hold no zero vector: it has no direction to be drawn at")
    return value / lengths
