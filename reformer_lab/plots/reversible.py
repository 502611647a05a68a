"""Pictures of the reversible stack: two streams, errors of reconstruction, bytes by depth, buckets hashed again."""

import numpy as np
from matplotlib.patches import Circle, Rectangle

from reformer_lab.plots.drawing import OKABE_ITO, Picture, bucket_colours, cell_row, number, styled

STREAMS = {1: (OKABE_ITO[4], "-"), 2: (OKABE_ITO[5], (0, (5, 2)))}  # colour and dashes
X_F, X_G, END = 3.3, 6.7, 10.0  # where F and G are between the two ends of the streams
VALUES = ("x1", "x2", "F(x2)", "y1", "G(y1)", "y2")
GRADIENTS = ("y1", "y2", "y1, all", "x1", "x2")


@styled
def two_streams(values, gradients):
    """The data flow of one block with the numbers of one entry: forward above, backward below.

    values: numbers by the names of VALUES. gradients: by those of GRADIENTS, where "y1, all" is the gradient of y1
    after the gradient through G has been added. ValueError for other names.
    """
    for name, given, wanted in (("values", values, VALUES), ("gradients", gradients, GRADIENTS)):
        if set(given) != set(wanted):
            raise ValueError(f"{name} must have the names {', '.join(wanted)}, got {', '.join(map(str, given))}")
    picture = Picture(8.5, 4.5)
    above, below = picture.subplots(2, 1)
    v = {name: number(value) for name, value in values.items()}
    d = {name: number(value) for name, value in gradients.items()}
    _lanes(above, "Forward, left to right: add", "+", forward=True)
    _lanes(below, "Backward, right to left: undo a branch, differentiate it, go on", "−", forward=False)
    for ax in (above, below):
        _box(ax, X_F, 0.5, f"F(x₂) = {v['F(x2)']}")
        _box(ax, X_G, 0.5, f"G(y₁) = {v['G(y1)']}")
    for stream, y in ((1, 1.0), (2, 0.0)):
        left, right = (f"x{'₀₁₂'[stream]} = {v[f'x{stream}']}", f"y{'₀₁₂'[stream]} = {v[f'y{stream}']}")
        _box(above, 0, y, left)
        _box(above, END, y, right)
        _box(below, END, y, f"{right}\ngradient {d[f'y{stream}']}")
        _box(below, 0, y, f"{left}\ngradient {d[f'x{stream}']}")
    for ax, sign, left, right in ((above, "+", "x₁", "x₂"), (below, "−", "y₁", "y₂")):
        first, second = (1, 2) if ax is above else (2, 1)
        ax.text(X_F, 1.33, f"{first}.  {left} {sign} F(x₂)", ha="center", va="bottom")
        ax.text(X_G, -0.33, f"{second}.  {right} {sign} G(y₁)", ha="center", va="top")
    below.text((X_F + X_G) / 2, 1.07, f"gradient {d['y1, all']}", ha="center", va="bottom", fontsize=9)
    return picture.describe(
        "Diagram of one reversible block with the numbers of one entry. Above, forward: F of stream 2 is added to "
        "stream 1, then G of the new stream 1 to stream 2. Below, backward: the same boxes in reverse order, "
        "subtracted, give back the inputs, and on the way each stream collects its gradient.",
        **{name: values[name] for name in VALUES},
        **{f"gradient of {name}": gradients[name] for name in ("x1", "x2")},
    )


@styled
def error_by_depth(depths, errors, lines):
    """Reconstruction error of the input against depth: errors {name of a line: (len(depths),)}, relative, logarithmic.

    lines: the property that distinguishes the lines ("number format"). Exact zeros are in the numbers alone.
    """
    depths = _row("depths", depths)
    picture = Picture(7.5, 4.0)
    ax, numbers = picture.add_subplot(), {}
    for name, line in errors.items():
        line = _row(f"errors of {name}", line, len(depths))
        ax.plot(depths, np.where(line > 0, line, np.nan), label=name)
        numbers[f"{name}, depth {int(depths[-1])}"] = float(line[-1])
    ax.set(xlabel="depth (blocks)", ylabel="largest error / largest value", yscale="log", xticks=depths)
    _draw_total_loss(ax)
    picture.legend(loc="outside right upper", title=lines)
    return picture.describe(
        "Line chart: depth in blocks (x) against the relative error of the reconstructed input, logarithmic (y), one "
        f"line for each {lines}. The error begins with rounding, and each branch that is undone may stretch it.",
        **numbers,
    )


@styled
def error_by_layer(errors, rounding, name, **numbers):
    """Reconstruction error after each block: errors (depth + 1,), errors[k] after block k (0: the input).

    rounding: the number format's relative rounding error; name: of the format; numbers: more for the caption.
    """
    errors = _row("errors", errors)
    if len(errors) < 2:
        raise ValueError(f"errors must hold the input's and those after at least one block, got {len(errors)} of them")
    levels = np.arange(len(errors))
    picture = Picture(7.5, 3.8)
    ax = picture.add_subplot()
    ax.plot(levels, np.where(errors > 0, errors, np.nan), label="reconstructed streams")
    ax.axhline(rounding, color="#555555", linestyle=":", label=f"rounding of {name}")
    ax.set(xlabel="after block (0: the input)", ylabel="largest error / largest value", yscale="log")
    ax.set(xlim=(-0.3, len(errors) - 0.7), title="← backward runs from right to left")
    ax.set_ylim(min(rounding, errors[errors > 0].min(initial=rounding)) / 3, 3 * max(rounding, errors.max()))
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.text(1.0, 0.97, "the output: stored, exact ↓", transform=ax.transAxes, ha="right", va="top", fontsize=9)
    _draw_total_loss(ax)
    picture.legend(loc="outside right upper")
    return picture.describe(
        f"Line chart: block (x) against the relative error of the streams reconstructed after it, in {name}, "
        "logarithmic (y). The output, at the right end, is stored and exact; each block that is undone adds rounding "
        "and stretches the error so far.",
        **{"error of the input": float(errors[0]), "rounding": float(rounding)},
        **numbers,
    )


@styled
def bytes_by_depth(depths, counted):
    """Bytes of one training step against depth: counted {name of a line: (len(depths),)}."""
    depths = _row("depths", depths)
    if len(depths) < 2:
        raise ValueError(f"depths must hold at least two depths, got {len(depths)}")
    picture = Picture(7.5, 3.8)
    ax, numbers = picture.add_subplot(), {}
    for name, line in counted.items():
        line = _row(f"counted of {name}", line, len(depths))
        ax.plot(depths, line / 2**20, label=name)
        numbers[f"{name}, depth {int(depths[-1])}, bytes"] = int(line[-1])
        numbers[f"{name}, bytes for one more block"] = round((line[-1] - line[-2]) / (depths[-1] - depths[-2]))
    ax.set(xlabel="depth (blocks)", ylabel="peak of a step (MiB)", xticks=depths)
    ax.set_ylim(bottom=0)
    picture.legend(loc="outside right upper")
    return picture.describe(
        "Line chart: depth in blocks (x) against the counted peak of forward and backward in MiB (y). With ordinary "
        "autograd each block adds its activations; the reversible stack needs no more.",
        **numbers,
    )


@styled
def buckets_again(stored, again, n_buckets):
    """Buckets of forward, stored (n,), and of reconstructed vectors, again {name: (n,)}; changes are framed."""
    stored = _row("stored", stored).astype(int)
    colours, rows, numbers = bucket_colours(n_buckets), {"stored in forward": stored}, {}
    for name, buckets in again.items():
        rows[name] = _row(f"again, {name}", buckets, len(stored)).astype(int)
    if min(r.min() for r in rows.values()) < 0 or max(r.max() for r in rows.values()) >= n_buckets:
        raise ValueError(f"stored and again must hold buckets from 0 to {n_buckets - 1}")
    picture = Picture(9.0, 0.55 * len(rows) + 0.4)
    axes = picture.subplots(len(rows), 1, squeeze=False)[:, 0]
    for ax, (name, buckets) in zip(axes, rows.items(), strict=True):
        changed = np.flatnonzero(buckets != stored)
        labels = [f"≠{b}" if b != s else str(b) for b, s in zip(buckets, stored, strict=True)]
        cell_row(ax, labels, colours[buckets], title=name)
        for x in changed:
            ax.add_patch(Rectangle((x + 0.03, 0.03), 0.94, 0.94, fill=False, edgecolor="black", linewidth=2.2))
        if ax is not axes[0]:
            numbers[f"changed, {name}"] = len(changed)
    return picture.describe(
        "Rows of cells, one for each token, with bucket numbers: as forward stored them, and hashed again from "
        "reconstructed vectors. Framed cells with ≠ fell into another bucket: attention would see other keys, and the "
        "gradient would be that of another function.",
        tokens=len(stored),
        **numbers,
    )


def _lanes(ax, title, sign, forward):
    """The two streams as arrows, and the ways into and out of F and G."""
    for stream, y in ((1, 1.0), (2, 0.0)):
        colour, dashes = STREAMS[stream]
        ends = ((0.0, y), (END - 0.5, y)) if forward else ((END, y), (0.68, y))
        _arrow(ax, *ends, color=colour, linestyle=dashes, linewidth=2)
    for x, source, target, y_from, y_to in ((X_F, 2, 1, 0.0, 1.0), (X_G, 1, 2, 1.0, 0.0)):
        _arrow(ax, (x, y_from), (x, y_to + 0.13 * np.sign(y_from - y_to)), color=STREAMS[source][0], linewidth=1.3)
        ax.plot(x, y_from, marker="o", color=STREAMS[source][0])
        colour = STREAMS[target][0]
        ax.add_patch(Circle((x, y_to), 0.14, facecolor="white", edgecolor=colour, linewidth=1.6, zorder=3))
        ax.text(x, y_to, sign, ha="center", va="center_baseline", zorder=4, fontsize=12)
    ax.set(xlim=(-1.0, END + 1.0), ylim=(-0.62, 1.62), aspect="equal", title=title)
    ax.set_axis_off()


def _arrow(ax, start, end, **line):
    ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0, **line})


def _box(ax, x, y, text):
    box = {"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": "#555555"}
    ax.text(x, y, text, ha="center", va="center", bbox=box, zorder=5)


def _draw_total_loss(ax):
    """A line where the error is as large as the values, if it is within the axes."""
    low, high = ax.get_ylim()
    if high > 0.05:
        ax.axhline(1.0, color="#555555", linewidth=1)
        ax.text(0.01, 1.0, "nothing left", transform=ax.get_yaxis_transform(), va="bottom", fontsize=8)
        ax.set_ylim(low, max(high, 10.0))


def _row(name, values, length=None):
    """``values`` as a one-dimensional array of numbers, of ``length`` if given."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not values.size or (length is not None and len(values) != length):
        wanted = "one-dimensional and not empty" if length is None else f"of shape ({length},)"
        raise ValueError(f"{name} must be {wanted}, got shape {values.shape}")
    return values
