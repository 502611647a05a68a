"""Pictures of chunks: how positions are cut, the counted peaks, and why means of chunks must not be averaged."""

import numpy as np

from reformer_lab.plots.drawing import OKABE_ITO, Picture, number, styled

MB = 1e6
BARS = [OKABE_ITO[i] for i in (4, 0, 2, 6, 1, 5)]
NARROWEST = 0.04  # of the whole width: a number does not fit into a narrower chunk


@styled
def chunk_layout(sizes, width, current=0):
    """Positions (x) against the ``width`` hidden numbers of each (y), cut into chunks of which one is in memory.

    sizes: the number of positions in each chunk; current: the chunk in memory.
    """
    sizes, current = _layout(sizes, width, current)
    picture = Picture(width=7.5, height=2.5)
    _draw_layout(picture.add_subplot(), sizes, width, current)
    return picture.describe(
        f"Map: positions (x) against the {width:,} hidden numbers of each position (y). The positions are cut into "
        f"{_chunks(len(sizes))}; of the wide array only the framed chunk exists at this moment.",
        **_layout_numbers(sizes, width, current),
    )


@styled
def peak_bars(counted, array_bytes, array_name):
    """Counted peaks as horizontal bars. counted: {name: bytes}; array_bytes: the wide array, a dashed line."""
    _require_bytes("counted", list(counted.values()))
    _require_bytes("array_bytes", [array_bytes])
    picture = Picture(width=7.5, height=1.3 + 0.42 * len(counted))
    _draw_bars(picture.add_subplot(), counted, array_bytes, array_name)
    return picture.describe(
        f"Bar chart: the counted peak of each way (x, in millions of bytes); the dashed line is {array_name}. "
        "Bars that reach the line hold arrays as large as it is.",
        **_bar_numbers(counted, array_bytes, array_name),
    )


@styled
def chunks_and_peaks(sizes, width, counted, array_bytes, current=0):
    """The layout of the chunks above, the counted peaks below: arguments as in ``chunk_layout`` and ``peak_bars``."""
    sizes, current = _layout(sizes, width, current)
    _require_bytes("counted", list(counted.values()))
    _require_bytes("array_bytes", [array_bytes])
    picture = Picture(width=7.5, height=4.4)
    above, below = picture.subplots(2, 1, height_ratios=(1, 1.1))
    _draw_layout(above, sizes, width, current)
    _draw_bars(below, counted, array_bytes, "the wide array")
    return picture.describe(
        f"Map: positions (x) against the {width:,} hidden numbers of each (y) in {_chunks(len(sizes))}, the framed one "
        "in memory. Bar chart: the counted peak of one training step of the layer (x, in millions of bytes); "
        "the dashed line is the wide array.",
        **_layout_numbers(sizes, width, current) | _bar_numbers(counted, array_bytes, "the wide array"),
    )


@styled
def peak_by_chunk_length(chunk_lengths, counted, whole):
    """Chunk length (x, powers of two) against the counted peak (y). counted: bytes for each; whole: bytes."""
    chunk_lengths = np.asarray(chunk_lengths)
    peaks = _require_bytes("counted", counted) / MB
    if chunk_lengths.shape != peaks.shape:
        raise ValueError(f"counted must hold one peak for each of {chunk_lengths.size} chunk lengths, got {peaks.size}")
    whole = float(_require_bytes("whole", [whole])[0] / MB)
    picture = Picture(width=7, height=3.2)
    ax = picture.add_subplot()
    ax.axhline(whole, color="black", linestyle="--", label=f"whole: {number(whole)} MB")
    ax.plot(chunk_lengths, peaks, label="chunked in forward and backward")
    for x, y in zip(chunk_lengths, peaks, strict=True):
        ax.annotate(number(float(y)), (x, y), (-3, 7), textcoords="offset points", ha="center", fontsize=9)
    ax.set_xscale("log", base=2)
    ax.set_xticks(chunk_lengths, [f"{n:,}" for n in chunk_lengths])
    ax.minorticks_off()
    ax.set(xlabel="positions in a chunk", ylabel="counted peak (MB)", ylim=(0, 1.15 * max(whole, peaks.max())))
    ax.legend(loc="center left")
    numbers = {f"chunks of {n:,} (MB)": float(y) for n, y in zip(chunk_lengths, peaks, strict=True)}
    return picture.describe(
        "Line chart: positions in a chunk (x, powers of two) against the counted peak of one training step (y, in "
        "millions of bytes). Below some size the peak stops falling: what is left are the output and the "
        "gradients of input and weights.",
        **numbers,
        **{"whole (MB)": whole},
    )


@styled
def chunk_means(nats, sizes):
    """Nats of each position as bars, cut into chunks; the mean, and the wrong mean: that of the chunks' means.

    nats (n,); sizes: positions in each chunk, n in all.
    """
    nats = np.asarray(nats, dtype=float)
    (sizes, _) = _layout(sizes, 1, 0)
    if nats.shape != (sizes.sum(),):
        raise ValueError(f"nats must have shape ({sizes.sum()},) = one for each position of sizes, got {nats.shape}")
    means = [float(chunk.mean()) for chunk in np.split(nats, np.cumsum(sizes)[:-1])]
    right, wrong = float(nats.mean()), float(np.mean(means))
    picture = Picture(width=7.5, height=3.2)
    ax = picture.add_subplot()
    for i, (size, mean) in enumerate(zip(sizes, means, strict=True)):
        x = np.arange(size) + sizes[:i].sum()
        ax.bar(x, nats[x], color=BARS[i % len(BARS)], alpha=0.6, hatch=("", "//")[i % 2], edgecolor="white")
        ax.hlines(mean, x[0] - 0.4, x[-1] + 0.4, color="black", linewidth=1.5)
        ax.text(x.mean(), mean, f"chunk {i}: {number(mean)}", ha="center", va="bottom", fontsize=9)
    ax.axhline(right, color=OKABE_ITO[4], linestyle="-", label=f"mean: {number(right)}")
    ax.axhline(wrong, color=OKABE_ITO[5], linestyle="--", label=f"mean of means: {number(wrong)}")
    ax.set(xlabel="position", ylabel="nats", xticks=np.arange(len(nats)), ylim=(0, 1.15 * max(nats.max(), 1e-9)))
    picture.legend(loc="outside right upper")
    return picture.describe(
        "Bar chart: positions (x) against their cross-entropy in nats (y), in chunks of unequal size; a short line is "
        "the mean of its chunk. The mean of these means (dashed) is not the mean over positions (solid).",
        **{"mean": right, "mean of chunk means": wrong, "too large by a factor": wrong / right},
    )


def _draw_layout(ax, sizes, width, current):
    starts = np.cumsum(sizes) - sizes
    length = sizes.sum()
    edge = 1.0 if len(sizes) <= 64 else 0.3
    ax.bar(starts, width, sizes, align="edge", color="#E3E3E3", edgecolor="white", linewidth=edge)
    ax.bar(starts[current], width, sizes[current], align="edge", color=OKABE_ITO[1], edgecolor="black", linewidth=1.5)
    for i, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        if size >= NARROWEST * length:
            ax.text(start + size / 2, width / 2, str(i), ha="center", va="center")
    ax.set(xlim=(0, length), ylim=(0, width), xlabel="position", ylabel=f"d_ff = {width:,}", yticks=[])
    ax.set_title(f"in memory: chunk {current} of {len(sizes):,}, {sizes[current]:,} of {length:,} positions")


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


def _layout_numbers(sizes, width, current):
    return {
        "positions": sizes.sum(),
        "chunks": len(sizes),
        "positions in the last": sizes[-1],
        "numbers in the whole array": sizes.sum() * width,
        "numbers in memory": sizes[current] * width,
    }


def _bar_numbers(counted, array_bytes, array_name):
    return {f"{name} (MB)": float(n / MB) for name, n in counted.items()} | {
        f"{array_name} (MB)": float(array_bytes / MB)
    }


def _chunks(n):
    return f"{n:,} chunk{'s' if n > 1 else ''}"


def _layout(sizes, width, current):
    """(sizes as an array, current), or ValueError."""
    sizes = np.asarray(sizes)
    if sizes.ndim != 1 or sizes.size == 0 or sizes.dtype.kind not in "iu" or sizes.min() < 1:
        raise ValueError(f"sizes must be whole numbers of positions, at least 1 in each chunk, got {sizes.tolist()}")
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    if not 0 <= current < sizes.size:
        raise ValueError(f"current must be one of the chunks 0 to {sizes.size - 1}, got {current}")
    return sizes, current


def _require_bytes(name, values):
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or values.size == 0 or not np.all(values > 0):
        raise ValueError(f"{name} must hold positive numbers of bytes, got {values.tolist()}")
    return values
