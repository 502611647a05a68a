"""Pictures of sorting and chunking: the two halves of the paper's figure 2, and what looking back is good for."""

import numpy as np
from matplotlib.patches import FancyBboxPatch, PathPatch, Polygon, Rectangle
from matplotlib.path import Path

from reformer_ref.drawing import Picture, bucket_colours, readable_on, styled

STEPS = ("tokens", "hashed", "sorted", "chunked", "attended", "undone")
SUBTITLES = (
    "in their order",
    "bucket numbers",
    "by (bucket, position)",
    "the keys",
    "the queries, looking up",
    "order as before",
)
BELOW = (0.08, 0.52, 0.26, 0.62, 0.52, 0.32)  # inches of space below each strip
CELL, LEFT, MARGIN = 0.37, 1.56, 0.12  # height of a cell, width of the titles, margin, in inches
INK, PALE = "#333333", "#F3F3F3"


@styled
def five_strips(tokens, buckets, order, slot, chunks, visible, chunks_before=1, upto="undone"):
    """Tokens, hashed, sorted, chunked, attended, and undone: one round of LSH attention, strip by strip (figure 2, left).

    tokens: L short texts; buckets, order (slot → position), slot (position → slot): int (L,); chunks: int (n_chunks,
    chunk_length), positions in sorted order, −1 = nobody, at most 48 places in all; visible: (L, L), above 0 where
    query i sees key j; chunks_before: how far a window is shaded. upto: the last strip to fill, one of ``STEPS``.
    """
    tokens = [str(token) for token in tokens]
    buckets, order, slot, chunks, visible = _fitting(len(tokens), buckets, order, slot, chunks, visible)
    if upto not in STEPS:
        raise ValueError(f"upto must be one of {', '.join(STEPS)}, got {upto!r}")
    n_chunks, chunk_length = chunks.shape
    gap = min(0.35, 3 / n_chunks)
    units = chunks.size + gap * (n_chunks - 1)
    width = max(9.0, LEFT + MARGIN + 0.36 * units)
    picture, ax, bottom = _page(width, STEPS.index(upto))
    wide = (width - LEFT - MARGIN) / units
    place = np.arange(chunks.size)
    cut = LEFT + wide * (place + 0.5 + gap * (place // chunk_length))  # middles of cells in strips cut into chunks
    whole = LEFT + wide * (np.arange(len(tokens)) + 0.5 + (units - len(tokens)) / 2)
    colours = bucket_colours(int(buckets.max()) + 1)[buckets]
    who, keys = chunks.ravel(), [f"{b}, {i}" for i, b in enumerate(buckets)]
    last = STEPS.index(upto)

    def row(step, middles, positions, labels, small, white=False):
        if STEPS.index(step) > last:
            positions = np.full_like(positions, -2)
        _cells(ax, middles, bottom[step], wide, positions, labels, small, ["white"] * len(tokens) if white else colours)

    everyone = np.arange(len(tokens))
    row("tokens", whole, everyone, tokens, [str(i) for i in everyone], white=True)
    row("hashed", whole, everyone, [str(b) for b in buckets], None)
    row("sorted", whole, order, tokens, keys)
    row("chunked", cut, who, tokens, keys)
    row("attended", cut, who, tokens, keys)
    row("undone", whole, order[slot], tokens, keys)
    if last >= STEPS.index("sorted"):
        _curves(ax, whole[order], whole, bottom["hashed"], bottom["sorted"] + CELL, colours[order])
    if last >= STEPS.index("chunked"):
        _frames(ax, cut, bottom["chunked"], wide, chunks, named=True)
    if last >= STEPS.index("attended"):
        _frames(ax, cut, bottom["attended"], wide, chunks, named=False)
        _windows(ax, cut, bottom, wide, chunks, chunks_before)
        _looks(ax, cut, bottom, who, visible, chunk_length, colours)
    if last >= STEPS.index("undone"):
        _curves(ax, cut[slot], whole, bottom["attended"], bottom["undone"] + CELL, colours[order[slot]])
    return picture.tell(_caption(last), **_numbers(last, buckets, chunks, order, slot, visible))


@styled
def four_matrices(dense, bucketed, chunked, buckets, order, chunk_length, chunks_before=1):
    """Four attention matrices of one sequence (figure 2, right): original order, sorted, same bucket only, in windows.

    dense, bucketed, chunked: weights (L, L) in the original order, 0 where a key is not visible: all pairs, the pairs of
    one bucket, those of them inside the window of chunks. buckets, order (slot → position): int (L,).
    """
    matrices = [np.asarray(m, dtype=float) for m in (dense, bucketed, chunked)]
    length = len(np.asarray(buckets))
    for name, matrix in zip(("dense", "bucketed", "chunked"), matrices, strict=True):
        _shape(name, matrix, (length, length))
    buckets, order = _integers("buckets", buckets, (length,)), _permutation("order", order, length)
    dense, bucketed, chunked = matrices
    here = np.ix_(order, order)
    panels = {
        "(a) all pairs,\noriginal order": dense,
        "(b) the same,\nsorted by bucket": dense[here],
        "(c) pairs of one\nbucket only": bucketed[here],
        "(d) of these, pairs\nin the windows": chunked[here],
    }
    picture = Picture(9.5, 3.3)
    axes = picture.subplots(1, 4)
    top = max(float(m.max()) for m in matrices) or 1.0
    for ax, (title, weights) in zip(axes, panels.items(), strict=True):
        shown = np.ma.masked_equal(weights, 0)
        image = ax.imshow(shown, cmap="cividis_r", vmin=0, vmax=top, interpolation="nearest")
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("key: position" if ax is axes[0] else "key: bucket")
        ax.spines[:].set_visible(True)
        if ax is not axes[0]:
            _bucket_blocks(ax, buckets[order])
    axes[0].set_ylabel("query: position")
    axes[0].set(xticks=range(0, length, max(1, length // 4)), yticks=range(0, length, max(1, length // 4)))
    _window_blocks(axes[3], length, chunk_length, chunks_before)
    picture.colorbar(image, ax=axes, label="attention weight", fraction=0.02, pad=0.01)
    same = buckets[:, None] == buckets
    return picture.tell(
        "Four heat maps of attention weights, queries from top to bottom against keys from left to right; white: not visible. "
        "Sorting moves the pairs of one bucket into squares on the diagonal, and windows of two neighbouring chunks cut "
        "squares of unequal size into pieces of equal size.",
        **{
            "weight of (a) on pairs of one bucket": float(dense[same].sum() / length),
            "weight of (a) on pairs visible in (d)": float(dense[chunked > 0].sum() / length),
            "pairs with weight in (a), (c), (d)": ", ".join(str(int((m > 0).sum())) for m in matrices),
        },
    )


@styled
def reached_pairs(chunks_back, shares, names):
    """The share of same-bucket pairs that a window reaches (y) against how many chunks it looks back (x).

    chunks_back: int (n,); shares: (lines, n), from 0 to 1; names: what each line stands for.
    """
    chunks_back, shares = np.asarray(chunks_back), np.asarray(shares, dtype=float)
    _shape("shares", shares, (len(names), len(chunks_back)))
    picture = Picture(7, 3.4)
    ax = picture.add_subplot()
    for share, name in zip(shares, names, strict=True):
        ax.plot(chunks_back, share, label=name)
    ax.set(xlabel="chunks looked back", ylabel="share of pairs reached", xticks=chunks_back, ylim=(0, 1.05))
    ax.grid(axis="y", color="#DDDDDD")
    ax.legend(title="members of a bucket", loc="center left", bbox_to_anchor=(1.01, 0.5))
    return picture.tell(
        "Line chart: share of the pairs of one bucket that stand in one window (y) against the number of chunks looked "
        "back (x). One chunk back is enough while buckets are smaller than a chunk.",
        **{name: ", ".join(f"{s:.3f}" for s in share) for name, share in zip(names, shares, strict=True)},
    )


def _page(width, last):
    """An empty page in inches, the titles of the strips, and the y of the bottom of each."""
    height = 2 * MARGIN + sum(BELOW) + CELL * len(STEPS) - 0.1
    picture = Picture(width, height)
    picture.set_layout_engine("none")
    ax = picture.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
    ax.set_axis_off()
    y, bottom = height - MARGIN, {}
    for step, (name, subtitle, below) in enumerate(zip(STEPS, SUBTITLES, BELOW, strict=True)):
        y -= CELL
        bottom[name] = y
        ink = INK if step <= last else "#9A9A9A"
        ax.text(MARGIN, y + 0.66 * CELL, name, fontsize=11, fontweight="bold", va="center", color=ink)
        ax.text(MARGIN, y + 0.2 * CELL, subtitle, fontsize=8, va="center", color=ink)
        y -= below
    x, y = LEFT, MARGIN + 0.02
    ax.text(x, y, "small: bucket, position", fontsize=8, va="center", color=INK)
    for at, style, text in (
        (1.7, "-", "sees in its own chunk"),
        (3.75, "--", "sees further back"),
        (5.5, ":", "only itself"),
    ):
        ax.plot([x + at, x + at + 0.4], [y, y], color=INK, linestyle=style, linewidth=1.6, marker="")
        ax.text(x + at + 0.48, y, text, fontsize=8, va="center", color=INK)
    return picture, ax, bottom


def _cells(ax, middles, bottom, wide, positions, labels, small, colours):
    """One strip; positions −1: nobody stands there, −2: not yet filled."""
    longest = max(1, int(wide * 72 / 4.7))  # characters of 9 points that fit
    for x, i in zip(middles, positions, strict=True):
        box = {"xy": (x - wide / 2, bottom), "width": wide, "height": CELL}
        if i < 0:
            ax.add_patch(Rectangle(**box, facecolor=PALE, edgecolor="white", linewidth=1.2))
            if i == -1:
                ax.text(x, bottom + CELL / 2, "−1", fontsize=9, ha="center", va="center", color="#666666")
            continue
        ax.add_patch(Rectangle(**box, facecolor=colours[i], edgecolor="#999999" if small else "white", linewidth=0.8))
        ink, middle = readable_on(colours[i]), {"ha": "center", "va": "center"}
        if small is None:
            ax.text(x, bottom + 0.48 * CELL, labels[i], fontsize=13, fontweight="bold", color=ink, **middle)
            continue
        label = labels[i] if len(labels[i]) <= longest else labels[i][: longest - 1] + "…"
        ax.text(x, bottom + 0.67 * CELL, label, fontsize=9.5, color=ink, **middle)
        ax.text(x, bottom + 0.24 * CELL, small[i], fontsize=8, color=ink, **middle)


def _curves(ax, from_x, to_x, top, low, colours, **style):
    """An S from (from_x, top) down to (to_x, low) for each colour."""
    codes, middle = [Path.MOVETO, *[Path.CURVE4] * 3], (top + low) / 2
    for x, z, colour in zip(from_x, to_x, colours, strict=True):
        path = Path([(x, top), (x, middle), (z, middle), (z, low)], codes)
        ink = (*(0.78 * np.asarray(colour)[:3]), 1.0)
        ax.add_patch(
            PathPatch(path, facecolor="none", edgecolor=ink, linewidth=1.8, capstyle="round", zorder=2, **style)
        )


def _frames(ax, cut, bottom, wide, chunks, named):
    """A thick border around each chunk, and its number above."""
    n_chunks, chunk_length = chunks.shape
    for c in range(n_chunks):
        x = cut[c * chunk_length] - wide / 2
        box = FancyBboxPatch((x, bottom), wide * chunk_length, CELL, boxstyle="round,pad=0.01,rounding_size=0.05")
        box.set(facecolor="none", edgecolor="black", linewidth=2.2, zorder=3)
        ax.add_patch(box)
        if named:
            text = f"chunk {c}" if wide * chunk_length > 0.6 else str(c)
            middle = x + wide * chunk_length / 2
            ax.text(middle, bottom + CELL + 0.11, text, fontsize=8, ha="center", va="center", color=INK)


def _windows(ax, cut, bottom, wide, chunks, chunks_before):
    """A shade from each chunk of queries up to the chunks of keys that it looks at."""
    n_chunks, chunk_length = chunks.shape
    low, high = bottom["attended"] + CELL, bottom["chunked"]
    for c in range(n_chunks):
        left, right = cut[c * chunk_length] - wide / 2, cut[(c + 1) * chunk_length - 1] + wide / 2
        first = cut[max(0, c - chunks_before) * chunk_length] - wide / 2
        corners = [(left, low), (right, low), (right, high), (first, high)]
        ax.add_patch(Polygon(corners, closed=True, facecolor="#000000", alpha=0.06, edgecolor="none", zorder=0))


def _looks(ax, cut, bottom, who, visible, chunk_length, colours):
    """A line from each query up to every key that it sees."""
    at = {int(i): s for s, i in enumerate(who) if i >= 0}
    low, high = bottom["attended"] + CELL, bottom["chunked"]
    for i, j in np.argwhere(visible > 0):
        own = at[i] // chunk_length == at[j] // chunk_length
        style = ":" if i == j else "-" if own else "--"
        _curves(ax, [cut[at[j]]], [cut[at[i]]], high, low, [colours[i]], linestyle=style)


def _bucket_blocks(ax, sorted_buckets):
    """A square around each bucket, and its number at both axes."""
    numbers, first, count = np.unique(sorted_buckets, return_index=True, return_counts=True)
    for start, size in zip(first, count, strict=True):
        ax.add_patch(Rectangle((start - 0.5, start - 0.5), size, size, fill=False, edgecolor="#D55E00", linewidth=1.6))
    ax.set_xticks(first + count / 2 - 0.5, numbers)
    ax.set_yticks(first + count / 2 - 0.5, numbers)


def _window_blocks(ax, length, chunk_length, chunks_before):
    """The keys that each chunk of queries looks at."""
    for start in range(0, length, chunk_length):
        first, stop = max(0, start - chunks_before * chunk_length), min(length, start + chunk_length)
        box = Rectangle((first - 0.5, start - 0.5), stop - first, stop - start, fill=False)
        box.set(edgecolor="black", linewidth=1.2, linestyle="--")
        ax.add_patch(box)


def _caption(last):
    """What the strips up to this one show."""
    parts = (
        "Strips of cells, one cell per token, from top to bottom one round of LSH attention. The tokens",
        "get a bucket number each",
        "are sorted by bucket and, within a bucket, by position",
        "are cut into chunks of equal length",
        "look for members of their bucket at earlier positions, in their own chunk and in the chunks before",
        "go back to where they came from",
    )
    return parts[0] + (" " + "; ".join(parts[1 : last + 1]) if last else " in their order") + "."


def _numbers(last, buckets, chunks, order, slot, visible):
    """The numbers that the strips up to ``last`` show."""
    length, real = len(buckets), chunks.ravel() >= 0
    chunk_of = np.empty(length, dtype=int)
    chunk_of[chunks.ravel()[real]] = np.flatnonzero(real) // chunks.shape[1]
    seen, own = visible > 0, chunk_of[:, None] == chunk_of
    alone = np.diagonal(seen)
    told = (
        {"tokens": length},
        {"members of the buckets": ", ".join(map(str, np.bincount(buckets)))},
        {"positions in sorted order": " ".join(map(str, order))},
        {"chunks": len(chunks), "places left free": int((~real).sum())},
        {
            "keys seen in the own chunk": int((seen & own).sum() - alone.sum()),
            "keys seen further back": int((seen & ~own).sum()),
            "tokens that see only themselves": int(alone.sum()),
        },
        {"tokens back at their place": int((order[slot] == np.arange(length)).sum())},
    )
    return {name: value for part in told[: last + 1] for name, value in part.items()}


def _fitting(length, buckets, order, slot, chunks, visible):
    """The arrays of ``five_strips``, or a ValueError that names the one that does not fit."""
    if length < 1:
        raise ValueError("tokens must hold at least one text, got none")
    buckets, chunks = _integers("buckets", buckets, (length,)), np.asarray(chunks)
    if buckets.min() < 0:
        raise ValueError(f"buckets must not be negative, got {buckets.min()}")
    if chunks.ndim != 2 or not length <= chunks.size <= 48:
        raise ValueError(f"chunks must be (n_chunks, chunk_length) with {length} to 48 places, got {chunks.shape}")
    if sorted(chunks[chunks >= 0].tolist()) != list(range(length)):
        raise ValueError(f"chunks must hold each of the {length} positions once, and −1 where nobody stands")
    visible = np.asarray(visible)
    _shape("visible", visible, (length, length))
    return buckets, _permutation("order", order, length), _permutation("slot", slot, length), chunks, visible


def _permutation(name, array, length):
    array = _integers(name, array, (length,))
    if sorted(array.tolist()) != list(range(length)):
        raise ValueError(f"{name} must hold every position from 0 to {length - 1} once, got {array.tolist()}")
    return array


def _integers(name, array, shape):
    array = np.asarray(array)
    _shape(name, array, shape)
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name} must hold integers, got dtype {array.dtype}")
    return array


def _shape(name, array, shape):
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
