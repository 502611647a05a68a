"""Pictures of slices: how positions are cut, what peaks were counted, and why means of slices must
not be averaged.
"""

import numpy as np

from reformer_lab.plots.drawing import OKABE_ITO, Picture, number, styled

MB = 1e6
BARS = [OKABE_ITO[i] for i in (4, 0, 2, 6, 1, 5)]
NARROWEST = 0.04  # of the whole width: a thinner slice has no room for its number


@styled
def slice_layout(sizes, width, now=0):
    """Positions (x) against the ``width`` hidden numbers of each (y), cut into slices of which one
    is in memory.

    sizes: the number of positions in each slice; now: the slice in memory. ValueError on empty or
    wrong ones.
    """
    sizes, now = _layout(sizes, width, now)
    picture = Picture(width=7.5, height=2.5)
    _draw_layout(picture.add_subplot(), sizes, width, now)
    return picture.tell(
        f"Map: positions (x) against the {width:,} hidden numbers of each position (y). The positions are cut into "
        f"{_slices(len(sizes))}; of the wide array only the framed slice exists at this moment.",
        **_layout_numbers(sizes, width, now),
    )


@styled
def peak_bars(counted, array_bytes, array_name):
    """Counted peaks as horizontal bars. counted: {name: bytes}; array_bytes: the wide array, a
    dashed line.
    """
    _require_bytes("counted", list(counted.values()))
    _require_bytes("array_bytes", [array_bytes])
    picture = Picture(width=7.5, height=1.3 + 0.42 * len(counted))
    _draw_bars(picture.add_subplot(), counted, array_bytes, array_name)
    return picture.tell(
        f"Bar chart: the counted peak of each way (x, in millions of bytes); the dashed line is {array_name}. "
        "Bars that reach the line hold arrays as large as it is.",
        **_bar_numbers(counted, array_bytes, array_name),
    )


@styled
def slices_and_peaks(sizes, width, counted, array_bytes, now=0):
    """The layout of the slices above, the counted peaks below: arguments as in ``slice_layout`` and
    ``peak_bars``.
    """
    sizes, now = _layout(sizes, width, now)
    _require_bytes("counted", list(counted.values()))
    _require_bytes("array_bytes", [array_bytes])
    picture = Picture(width=7.5, height=4.4)
    above, below = picture.subplots(2, 1, height_ratios=(1, 1.1))
    _draw_layout(above, sizes, width, now)
    _draw_bars(below, counted, array_bytes, "the wide array")
    return picture.tell(
        f"Map: positions (x) against the {width:,} hidden numbers of each (y) in {_slices(len(sizes))}, the framed one "
        "in memory. Bar chart: the counted peak of one training step of the layer (x, in millions of bytes); "
        "the dashed line is the wide array.",
        **_layout_numbers(sizes, width, now) | _bar_numbers(counted, array_bytes, "the wide array"),
    )


@styled
def peak_by_slice(slice_lengths, counted, whole):
    """Slice length (x, powers of two) against the counted peak (y). counted: bytes for each; whole:
    bytes.
    """
    slice_lengths, peaks = np.asarray(slice_lengths), _require_bytes("counted", counted) / MB
    if slice_lengths.shape != peaks.shape:
        raise ValueError(f"counted must hold one peak for each of {slice_lengths.size} slice lengths, got {peaks.size}")
    whole = float(_require_bytes("whole", [whole])[0] / MB)
    picture = Picture(width=7, height=3.2)
    ax = picture.add_subplot()
    ax.axhline(whole, color="black", linestyle="--", label=f"whole: {number(whole)} MB")
    ax.plot(slice_lengths, peaks, label="sliced in forward and backward")
    for x, y in zip(slice_lengths, peaks, strict=True):
        ax.annotate(number(float(y)), (x, y), (-3, 7), textcoords="offset points", ha="center", fontsize=9)
    ax.set_xscale("log", base=2)
    ax.set_xticks(slice_lengths, [f"{n:,}" for n in slice_lengths])
    ax.minorticks_off()
    ax.set(xlabel="positions in a slice", ylabel="counted peak (MB)", ylim=(0, 1.15 * max(whole, peaks.max())))
    ax.legend(loc="center left")
    shown = {f"slices of {n:,} (MB)": float(y) for n, y in zip(slice_lengths, peaks, strict=True)}
    return picture.tell(
        "Line chart: positions in a slice (x, powers of two) against the counted peak of one training step (y, in "
        "millions of bytes). Below some size the peak stops falling: what is left are the output and the "
        "gradients of input and weights.",
        **shown,
        **{"whole (MB)": whole},
    )


@styled
def slice_means(nats, sizes):
    """Nats of each position as bars, cut into slices; the mean, and the wrong one: the mean of the
    slices' means.

    nats (n,); sizes: positions in each slice, n in all.
    """
    nats, (sizes, _) = np.asarray(nats, dtype=float), _layout(sizes, 1, 0)
    if nats.shape != (sizes.sum(),):
        raise ValueError(f"nats must have shape ({sizes.sum()},) = one for each position of sizes, got {nats.shape}")
    means = [float(piece.mean()) for piece in np.split(nats, np.cumsum(sizes)[:-1])]
    right, wrong = float(nats.mean()), float(np.mean(means))
    picture = Picture(width=7.5, height=3.2)
    ax = picture.add_subplot()
    for i, (size, mean) in enumerate(zip(sizes, means, strict=True)):
        x = np.arange(size) + sizes[:i].sum()
        ax.bar(x, nats[x], color=BARS[i % len(BARS)], alpha=0.6, hatch=("", "//")[i % 2], edgecolor="white")
        ax.hlines(mean, x[0] - 0.4, x[-1] + 0.4, color="black", linewidth=1.5)
        ax.text(x.mean(), mean, f"slice {i}: {number(mean)}", ha="center", va="bottom", fontsize=9)
    ax.axhline(right, color=OKABE_ITO[4], linestyle="-", label=f"mean: {number(right)}")
    ax.axhline(wrong, color=OKABE_ITO[5], linestyle="--", label=f"mean of means: {number(wrong)}")
    ax.set(xlabel="position", ylabel="nats", xticks=np.arange(len(nats)), ylim=(0, 1.15 * max(nats.max(), 1e-9)))
    picture.legend(loc="outside right upper")
    return picture.tell(
        "Bar chart: positions (x) against their cross-entropy in nats (y), in slices of unequal size; a short line is "
        "the mean of its slice. The mean of these means (dashed) is not the mean over positions (solid).",
        **{"mean": right, "mean of slice means": wrong, "too large by a factor": wrong / right},
    )


def _draw_layout(ax, sizes, width, now):
    starts, length = np.cumsum(sizes) - sizes, sizes.sum()
    edge = 1.0 if len(sizes) <= 64 else 0.3
    ax.bar(starts, width, sizes, align="edge", color="#E3E3E3", edgecolor="white", linewidth=edge)
    ax.bar(starts[now], width, sizes[now], align="edge", color=OKABE_ITO[1], edgecolor="black", linewidth=1.5)
    for i, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        if size >= NARROWEST * length:
            ax.text(start + size / 2, width / 2, str(i), ha="center", va="center")
    ax.set(xlim=(0, length), ylim=(0, width), xlabel="position", ylabel=f"d_ff = {width:,}", yticks=[])
    ax.set_title(f"in memory: slice {now} of {len(sizes):,}, {sizes[now]:,} of {length:,} positions")


def _draw_bars(ax, counted, array_bytes, array_name):
    peaks = np.array(list(counted.values())) / MB
    bars = ax.barh(range(len(peaks)), peaks, height=0.62, color=[BARS[i % len(BARS)] for i in range(len(peaks))])
    ax.bar_label(bars, [f"{number(float(p))} MB" for p in peaks], padding=4, zorder=5, backgroundcolor="white")
    ax.axvline(array_bytes / MB, color="black", linestyle="--", linewidth=1.2)
    ax.set_yticks(range(len(peaks)), list(counted))
    ax.tick_params(axis="y", length=0)
    ax.invert_yaxis()
    ax.set(xlabel="counted peak (MB)", xlim=(0, 1.18 * max(peaks.max(), array_bytes / MB)))
    ax.set_title(f"dashed: {array_name}, {number(array_bytes / MB)} MB")


def _layout_numbers(sizes, width, now):
    return {
        "positions": sizes.sum(),
        "slices": len(sizes),
        "positions in the last": sizes[-1],
        "numbers in the whole array": sizes.sum() * width,
        "numbers in memory": sizes[now] * width,
    }


def _bar_numbers(counted, array_bytes, array_name):
    shown = {f"{name} (MB)": float(n / MB) for name, n in counted.items()}
    return shown | {f"{array_name} (MB)": float(array_bytes / MB)}


def _slices(n):
    return f"{n:,} slice{'s' if n > 1 else ''}"


def _layout(sizes, width, now):
    """(sizes as an array, now), or ValueError."""
    sizes = np.asarray(sizes)
    if sizes.ndim != 1 or sizes.size == 0 or sizes.dtype.kind not in "iu" or sizes.min() < 1:
        raise ValueError(f"sizes must be whole numbers of positions, at least 1 in each slice, got {sizes.tolist()}")
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    if not 0 <= now < sizes.size:
        raise ValueError(f"now must be one of the slices 0 to {sizes.size - 1}, got {now}")
    return sizes, now


def _require_bytes(name, values):
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or values.size == 0 or not np.all(values > 0):
        raise ValueError(f"{name} must hold positive numbers of bytes, got {values.tolist()}")
    return values
