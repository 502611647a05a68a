"""Pictures of sorting and chunking: both sides of the paper's figure 2, and the benefit of looking back."""

import matplotlib
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.patches import FancyBboxPatch, PathPatch, Polygon, Rectangle
from matplotlib.path import Path

from reformer_lab.plots.drawing import Picture, as_array, bucket_colours, readable_on, styled

ROWS = (  # name, subtitle, inches of space below it, its words of the caption
    ("tokens", "in their order", 0.08, "The tokens"),
    ("hashed", "bucket numbers", 0.52, " get a bucket number each"),
    ("sorted", "by (bucket, position)", 0.26, ", are sorted by bucket and, within a bucket, by position"),
    ("chunked", "the keys", 0.66, ", are cut into chunks of equal length"),
    ("attended", "the queries, looking up", 0.52, ", see keys of their own chunk and of the chunks before"),
    ("undone", "order as before", 0.3, ", and go back to their original positions"),
)
STEPS = tuple(name for name, *_ in ROWS)
CELL, LEFT, MARGIN = 0.37, 1.56, 0.1  # height of a cell, width of the titles, margin, in inches
INK = "#333333"
WEIGHTS = ListedColormap(matplotlib.colormaps["YlGnBu"](np.linspace(0.08, 1, 256)))  # its palest is not quite white


@styled
def round_in_rows(tokens, buckets, order, slot, chunks, visible, chunks_before=1, upto="undone"):
    """Tokens, hashed, sorted, chunked, attended, undone: one round of LSH attention, row by row (figure 2 left).

    tokens: L short texts; buckets, order (slot → position), slot (position → slot): int (L,); chunks: int (n_chunks,
    chunk_length), positions in sorted order, −1 = padding, at most 48 slots in all; visible: (L, L), above 0 where
    query i sees key j; chunks_before: how far a window is shaded. upto: the last row to fill, one of ``STEPS``.
    """
    tokens = [str(token) for token in tokens]
    chunks = np.asarray(chunks)
    length = len(tokens)
    if length < 1:
        raise ValueError("tokens must hold at least one text, got none")
    if upto not in STEPS:
        raise ValueError(f"upto must be one of {', '.join(STEPS)}, got {upto!r}")
    buckets = _integers("buckets", buckets, length)
    order = _integers("order", order, length, once=True)
    slot = _integers("slot", slot, length, once=True)
    visible = as_array("visible", visible, (length, length))
    if chunks.ndim != 2 or not length <= chunks.size <= 48:
        raise ValueError(f"chunks must be (n_chunks, chunk_length) with {length} to 48 slots, got {chunks.shape}")
    _integers("chunks", chunks[chunks != -1], length, once=True)
    last = STEPS.index(upto)
    page = _Page(tokens, buckets, chunks, last)
    page.cells("tokens", page.whole, np.arange(length))
    page.cells("hashed", page.whole, np.arange(length))
    page.cells("sorted", page.whole, order)
    page.cells("chunked", page.cut, chunks.ravel())
    page.cells("attended", page.cut, chunks.ravel())
    page.cells("undone", page.whole, order[slot])
    if last >= STEPS.index("sorted"):
        page.curves("hashed", page.whole[order], "sorted", page.whole, order)
    for name in STEPS[3 : last + 1][:2]:  # chunked and attended
        page.frames(name)
    if last >= STEPS.index("attended"):
        page.looks(visible, chunks_before)
    if last >= STEPS.index("undone"):
        page.curves("attended", page.cut[slot], "undone", page.whole, order[slot])
    steps = "".join(words for *_, words in ROWS[: last + 1]) + (" in their order." if last == 0 else ".")
    if last == len(STEPS) - 1 and (order[slot] != np.arange(length)).any():
        steps = steps.replace("go back to their original", "go back, but not to their original")
    caption = f"Rows of cells, one cell per token; from top to bottom one round of LSH attention. {steps}"
    return page.picture.describe(caption, **_numbers(last, buckets, chunks, order, slot, visible))


@styled
def four_matrices(dense, bucketed, chunked, buckets, order, chunk_length, chunks_before=1):
    """Four attention matrices of one sequence (figure 2 right): original order, sorted, same bucket only, in windows.

    dense, bucketed, chunked: weights (L, L) in the original order, 0 where a key is not visible: all pairs, the pairs
    of one bucket, those of them inside the window of chunks. buckets, order (slot → position): int (L,).
    """
    length = len(np.asarray(buckets))
    buckets = _integers("buckets", buckets, length)
    order = _integers("order", order, length, once=True)
    named = {"dense": dense, "bucketed": bucketed, "chunked": chunked}
    dense, bucketed, chunked = (as_array(name, m, (length, length)) for name, m in named.items())
    panels = {
        "(a) all pairs,\noriginal order": dense,
        "(b) the same,\nsorted by bucket": dense,
        "(c) pairs of one\nbucket only": bucketed,
        "(d) of these, pairs\nin the windows": chunked,
    }
    picture = Picture(9.5, 2.9)
    axes = picture.subplots(1, 4)
    largest = max(float(m.max()) for m in (dense, bucketed, chunked)) or 1.0
    for ax, (title, weights) in zip(axes, panels.items(), strict=True):
        visible = np.ma.masked_equal(weights if ax is axes[0] else weights[np.ix_(order, order)], 0)
        image = ax.imshow(visible, cmap=WEIGHTS, vmin=0, vmax=largest, interpolation="nearest")
        ax.set_title(title, fontsize=10)
        ax.spines[:].set_visible(True)
    ticks = range(0, length, max(1, length // 4))
    axes[0].set(xlabel="key: position", ylabel="query: position", xticks=ticks, yticks=ticks)
    numbers, first, size = np.unique(buckets[order], return_index=True, return_counts=True)
    for ax in axes[1:]:
        ax.set(xlabel="key: bucket", ylabel="query: bucket" if ax is axes[1] else None)
        ax.set_xticks(first + size / 2 - 0.5, numbers)
        ax.set_yticks(first + size / 2 - 0.5, numbers)
        for start, n in zip(first - 0.5, size, strict=True):
            ax.add_patch(Rectangle((start, start), n, n, fill=False, edgecolor="#D55E00", linewidth=1.6))
    for start in range(0, length, chunk_length):
        left = max(0, start - chunks_before * chunk_length)
        stop = min(length, start + chunk_length)
        corner, sides = (left - 0.5, start - 0.5), (stop - left, stop - start)
        axes[3].add_patch(Rectangle(corner, *sides, fill=False, linewidth=1.2, linestyle="--"))
    picture.colorbar(image, ax=axes, label="attention weight", fraction=0.02, pad=0.01, shrink=0.72)
    same = buckets[:, None] == buckets
    return picture.describe(
        "Four heat maps of attention weights, queries from top to bottom, keys from left to right; white: not visible. "
        "Sorting moves the pairs of one bucket into squares of unequal size on the diagonal (solid); windows of equal "
        "size (dashed) cover most of them.",
        **{
            "weight of (a) on pairs of one bucket": float(dense[same].sum() / length),
            "weight of (a) on pairs visible in (d)": float(dense[chunked > 0].sum() / length),
            "visible pairs in (a), (c), (d)": ", ".join(str(int((m > 0).sum())) for m in (dense, bucketed, chunked)),
        },
    )


@styled
def reached_pairs(chunks_back, fractions, names):
    """The fraction of same-bucket pairs inside a window (y) against how many chunks it looks back (x).

    chunks_back: int (n,); fractions: (lines, n), from 0 to 1; names: of the lines.
    """
    fractions = as_array("fractions", fractions, (len(names), len(chunks_back)))
    picture = Picture(7.5, 3.2)
    ax = picture.add_subplot()
    for line, name in zip(fractions, names, strict=True):
        ax.plot(chunks_back, line, label=name)
    ax.set(xlabel="chunks looked back", ylabel="fraction of pairs reached", xticks=chunks_back, ylim=(0, 1.05))
    ax.grid(axis="y", color="#DDDDDD")
    ax.legend(title="members of a bucket", loc="center left", bbox_to_anchor=(1.01, 0.5))
    return picture.describe(
        "Line chart: fraction of the pairs of one bucket that are in one window (y) against the number of chunks "
        "looked back (x). One chunk back is enough while buckets are no larger than a chunk.",
        **{name: ", ".join(f"{s:.3f}" for s in line) for name, line in zip(names, fractions, strict=True)},
    )


class _Page:
    """The page of ``round_in_rows``, in inches: titles at the left; methods that draw cells, curves and frames."""

    def __init__(self, tokens, buckets, chunks, last):
        self.tokens, self.chunks, self.last, self.buckets = tokens, chunks, last, buckets
        self.colours = bucket_colours(int(buckets.max()) + 1)[buckets]
        n_chunks, chunk_length = chunks.shape
        gap = min(0.35, 3 / n_chunks)
        units = chunks.size + gap * (n_chunks - 1)
        narrowest = 0.074 * max(5, len(f"{buckets.max()}, {len(tokens) - 1}"))  # the sort key of 8 points fits
        width = max(9.0, LEFT + MARGIN + narrowest * units)
        height = MARGIN + sum(CELL + below for _, _, below, _ in ROWS)
        self.wide = (width - LEFT - MARGIN) / units
        slots = np.arange(chunks.size)
        # the middles of the cells, in rows that are cut into chunks and in those that are whole
        self.cut = LEFT + self.wide * (slots + 0.5 + gap * (slots // chunk_length))
        self.whole = LEFT + self.wide * (np.arange(len(tokens)) + 0.5 + (units - len(tokens)) / 2)
        self.picture = Picture(width, height)
        self.picture.set_layout_engine("none")
        self.ax = self.picture.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
        self.ax.set_axis_off()
        self.bottom, y = {}, height - MARGIN
        for step, (name, subtitle, below, _) in enumerate(ROWS):
            y -= CELL
            self.bottom[name], ink = y, INK if step <= last else "#8A8A8A"
            self.text(MARGIN, y + 0.66 * CELL, name, ha="left", color=ink, fontsize=11, weight="bold")
            self.text(MARGIN, y + 0.2 * CELL, subtitle, ha="left", color=ink)
            y -= below
        self.text(LEFT, 0.13, "small: bucket, position", ha="left")
        for x, line, text in (
            (3.4, "-", "sees in its chunk"),
            (5.5, "--", "sees further back"),
            (7.4, ":", "itself only"),
        ):
            self.ax.plot([x, x + 0.4], [0.13, 0.13], color=INK, linestyle=line, linewidth=1.4, marker="")
            self.text(x + 0.48, 0.13, text, ha="left")

    def text(self, x, y, text, **style):
        """A text with its middle at (x, y), unless ``style`` says otherwise."""
        self.ax.text(x, y, text, **{"fontsize": 8, "ha": "center", "va": "center", "color": INK, **style})

    def cells(self, name, middles, positions):
        """One row; empty where it is not yet filled, −1 in padding."""
        longest = max(1, int(self.wide * 72 / 6))  # characters of 9 points that fit
        low = self.bottom[name]
        for x, i in zip(middles, positions, strict=True):
            empty = i < 0 or STEPS.index(name) > self.last
            colour = "#F3F3F3" if empty else "white" if name == "tokens" else self.colours[i]
            box = Rectangle((x - self.wide / 2, low), self.wide, CELL, facecolor=colour, linewidth=0.8)
            box.set_edgecolor("white" if empty else "#777777")
            self.ax.add_patch(box)
            ink = readable_on(colour)
            if empty:
                self.text(x, low + CELL / 2, "−1" if STEPS.index(name) <= self.last else "", fontsize=9)
            elif name == "hashed":
                self.text(x, low + 0.47 * CELL, str(self.buckets[i]), fontsize=13, weight="bold", color=ink)
            else:
                word = self.tokens[i] if len(self.tokens[i]) <= longest else self.tokens[i][: longest - 1] + "…"
                self.text(x, low + 0.67 * CELL, word, fontsize=9.5, color=ink)
                small = str(i) if name == "tokens" else f"{self.buckets[i]}, {i}"
                self.text(x, low + 0.23 * CELL, small, color=ink)

    def curves(self, upper, from_x, lower, to_x, positions, straight=0.0, **style):
        """From (from_x, bottom of the row above) to (to_x, top of the row below), in the colours of positions."""
        high, low = self.bottom[upper], self.bottom[lower] + CELL
        for x, z, i in zip(from_x, to_x, positions, strict=True):
            middle, bend = (high + low) / 2, straight * (z - x) / 2
            points = [(x, high), (x + bend, middle), (z - bend, middle), (z, low)]
            path = Path(points, [Path.MOVETO, *[Path.CURVE4] * 3])
            look = {"linewidth": 1.8, "capstyle": "round"} | style
            self.ax.add_patch(PathPatch(path, facecolor="none", edgecolor=0.75 * self.colours[i][:3], **look))

    def edges(self, chunk):
        """(left, right) of a chunk."""
        size = self.chunks.shape[1]
        return self.cut[chunk * size] - self.wide / 2, self.cut[(chunk + 1) * size - 1] + self.wide / 2

    def frames(self, name):
        """A thick border around each chunk; above the keys its number."""
        for c in range(len(self.chunks)):
            (left, right), low = self.edges(c), self.bottom[name]
            box = FancyBboxPatch((left, low), right - left, CELL, boxstyle="round,pad=0.01,rounding_size=0.05")
            box.set(facecolor="none", edgecolor="black", linewidth=2.2, zorder=3)
            self.ax.add_patch(box)
            if name == "chunked":
                text = f"chunk {c}" if right - left > 0.6 else str(c)
                self.text((left + right) / 2, low + CELL + 0.11, text)

    def looks(self, visible, chunks_before):
        """A line from each query up to each key that it sees, and a shade over the window of each chunk."""
        low, high = self.bottom["attended"] + CELL, self.bottom["chunked"]
        size = self.chunks.shape[1]
        for c in range(len(self.chunks)):
            (left, right), (first, _) = self.edges(c), self.edges(max(0, c - chunks_before))
            corners = [(left, low), (right, low), (right, high), (first, high)]
            self.ax.add_patch(Polygon(corners, facecolor="black", alpha=0.06, edgecolor="none", zorder=0))
        slot = {int(i): s for s, i in enumerate(self.chunks.ravel())}
        for i, j in np.argwhere(visible > 0):
            query, key = slot[i], slot[j]
            style = ":" if i == j else "-" if query // size == key // size else (0, (4, 1.5))
            look = {"linestyle": style, "linewidth": 1.3, "straight": 0.6}
            self.curves("chunked", [self.cut[key]], "attended", [self.cut[query]], [i], **look)


def _numbers(last, buckets, chunks, order, slot, visible):
    """The numbers of the rows up to ``last``."""
    seen, chunk_of = visible > 0, np.argsort(order) // chunks.shape[1]
    same_chunk, only_self = chunk_of[:, None] == chunk_of, int(np.trace(seen))
    numbers = (
        {"tokens": len(buckets)},
        {"members of the buckets": ", ".join(map(str, np.bincount(buckets)))},
        {"positions in sorted order": " ".join(map(str, order))},
        {"chunks": len(chunks), "slots left free": int((chunks < 0).sum())},
        {
            "keys seen in the same chunk": int((seen & same_chunk).sum()) - only_self,
            "keys seen further back": int((seen & ~same_chunk).sum()),
            "tokens that see only themselves": only_self,
        },
        {"tokens back at their position": int((order[slot] == np.arange(len(order))).sum())},
    )
    return {name: value for row in numbers[: last + 1] for name, value in row.items()}


def _integers(name, array, length, once=False):
    """``array``, which must be integer (L,), from 0; with ``once`` each position once."""
    array, wanted = as_array(name, array, (length,)), "each position once" if once else "integers from 0"
    if array.dtype.kind not in "iu" or array.min() < 0 or (once and np.unique(array).tolist() != list(range(length))):
        raise ValueError(f"{name} must hold {wanted}, got {array.tolist()}")
    return array
