"""A2: the first case of every exercise as a picture, and all steps with the student's functions."""

import matplotlib
import numpy as np
from matplotlib.patches import Rectangle

from reformer_lab.classroom import cases
from reformer_lab.classroom.exercises.chunking import EXERCISES
from reformer_lab.plots.chunking import round_in_rows
from reformer_lab.plots.drawing import Picture, bucket_colours, cell_row, styled


@styled
def whole_way(tokens, buckets, order, slot, chunks, visible, variant):
    """``round_in_rows`` in the words of a variant: the order within a bucket, and the side on which a window lies."""
    back, earliest = variant.look == "back", variant.sort_ties == "earliest_first"
    picture = round_in_rows(tokens, buckets, order, slot, chunks, visible, variant.n_look if back else 0)
    words = {} if back else {"further back": "further ahead", "chunks before": "chunks after"}
    if not earliest:
        words |= {"by (bucket, position)": "by bucket, later first", "bucket, by position": "bucket, later ones first"}

    def adapted(text):
        for usual, adapted_phrase in words.items():
            text = text.replace(usual, adapted_phrase)
        return text

    for text in picture.axes[0].texts:
        text.set_text(adapted(text.get_text()))
    return picture.describe(
        adapted(picture.caption), **{adapted(name): value for name, value in picture.numbers.items()}
    )


def illustrate(name, variant):
    """The first visible case of an exercise as a picture: what goes in and what is expected."""
    args, results = cases.visible(name, variant)[0]
    return PICTURES[name](*args, *results)


def _draw_sort(buckets, order):
    buckets, order = buckets[0], order[0]
    colours = bucket_colours(buckets.max() + 1)
    both = (("tokens", np.arange(len(order))), ("sorted", order))
    rows = [(title, [f"{buckets[i]}, {i}" for i in at], colours[buckets[at]]) for title, at in both]
    caption = (
        "Two rows of cells, one per token, with its bucket (also its colour) and position: as they come, and sorted."
    )
    return _rows_of_cells(rows).describe(caption, buckets=_row(buckets), order=_row(order))


def _draw_chunk(order, chunk_length, chunks):
    caption = (
        "Two rows of cells: the positions in sorted order, and the same in chunks (framed). Each shade is one chunk."
    )
    return _in_chunks(chunks, caption, ("order", order, order), ("chunks", chunks.ravel(), chunks))


def _draw_look(chunks, windows):
    caption = "One row per chunk: its window. Each shade is one chunk, each frame the places of one; −1: padding."
    return _in_chunks(chunks, caption, *((f"window of {c}", row, row) for c, row in enumerate(windows)))


def _draw_visible(buckets, chunks, windows, seen):
    colours, rows = bucket_colours(buckets.max() + 1)[buckets], []
    for c, k in np.ndindex(chunks.shape):
        i, marks = chunks[c, k], np.where(seen[c, k], windows[c], -1)
        labels = [f"{j}" if s or j < 0 else f"({j})" for j, s in zip(windows[c], seen[c, k], strict=True)]
        rows.append((f"{i} in bucket {buckets[i]}" if i >= 0 else "padding", labels, _coloured(marks, colours)))
    caption = (
        "One row per query: its window. Coloured by bucket: a visible key. In brackets: a masked key. −1: padding."
    )
    return _rows_of_cells(rows, chunks.shape[1]).describe(
        caption, buckets=_row(buckets), **{"pairs seen": int(seen.sum())}
    )


def _draw_undo(rows, chunks, out):
    before, after = ([f"{value:g}" for value in values[..., 0].ravel()] for values in (rows, out))
    caption = """Three rows of cells: one number per place, the position in it, the numbers by position.
        Each shade is one chunk."""
    rows_of_cells = (("rows", before, chunks), ("chunks", chunks.ravel(), chunks), ("out", after, np.arange(len(out))))
    return _in_chunks(chunks, caption, *rows_of_cells)


PICTURES = dict(zip(EXERCISES, (_draw_sort, _draw_chunk, _draw_look, _draw_visible, _draw_undo), strict=True))


@styled
def _rows_of_cells(rows, group=0):
    """Rows of cells of one width; ``group`` cells in a frame where a row is full."""
    picture = Picture(8.5, 0.15 + 0.34 * len(rows))
    width = max(len(labels) for _, labels, _ in rows)
    for ax, (title, labels, colours) in zip(picture.subplots(len(rows), squeeze=False)[:, 0], rows, strict=True):
        cell_row(ax, [str(label).replace("-", "−") for label in labels], colours, title)
        ax.set_xlim(-0.05, width + 0.05)
        for start in range(0, len(labels), group) if group and len(labels) == width else ():
            ax.add_patch(Rectangle((start, 0), group, 1, fill=False, linewidth=2, clip_on=False))
    return picture


def _in_chunks(chunks, caption, *rows):
    """Rows of cells, each in the shade of the chunk of its position. rows: (title, labels, positions) each."""
    colours = np.zeros((chunks.max() + 1, 4))
    shades = matplotlib.colormaps["Purples"](np.linspace(0.25, 0.9, len(chunks)))  # none of them a bucket's colour
    for chunk, colour in zip(chunks, shades, strict=True):
        colours[chunk[chunk >= 0]] = colour
    picture = _rows_of_cells([(title, labels, _coloured(at, colours)) for title, labels, at in rows], chunks.shape[1])
    return picture.describe(caption, chunks=" | ".join(map(_row, chunks)))


def _coloured(positions, colours):
    """The colours of positions; grey for padding."""
    return ["#F3F3F3" if i < 0 else tuple(colours[i]) for i in np.ravel(positions)]


def _row(numbers):
    return " ".join(str(n).replace("-", "−") for n in numbers)
