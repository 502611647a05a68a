"""Pictures of positions: the grid of an axial encoding, parameters compared, and which positions are similar."""

import numpy as np
from matplotlib.patches import Rectangle

from reformer_lab.plots.drawing import OKABE_ITO, STYLE, Picture, as_array, entries, number, readable_on, styled

ROW, COLUMN = OKABE_ITO[5], OKABE_ITO[2]


@styled
def index_grid(coordinates, shape, chosen=None):
    """Each position as a number in its cell of the n1 × n2 grid.

    coordinates (L, 2) integers: the row of each of two tables that position j uses; shape (n1, n2); chosen: a position
    whose two rows are framed. Positions with the same two rows share a cell.
    """
    coordinates, cells = _cells(coordinates, shape, chosen)
    n1, n2 = shape
    picture = Picture(width=min(8.0, 1.6 + 0.55 * n2), height=min(7.0, 1.3 + 0.42 * n1))
    _draw_grid(picture.add_subplot(), cells, coordinates, shape, chosen)
    crowded = sum(len(js) for js in cells.values() if len(js) > 1)
    return picture.describe(
        f"Map: rows of the second table (x) against rows of the first (y); a cell holds the position with these "
        f"two rows. {_remark(cells, shape, crowded)}",
        **_grid_numbers(cells, coordinates, shape, chosen),
    )


@styled
def grid_and_parameters(coordinates, shape, chosen, parameters):
    """The grid with one position framed (or none: chosen=None), and beside it the parameters of the tables.

    coordinates, shape, chosen: as in ``index_grid``; parameters: {name: count}.
    """
    coordinates, cells = _cells(coordinates, shape, chosen)
    picture = Picture(width=8.5, height=max(3.0, 1.3 + 0.34 * shape[0]))
    left, right = picture.subplots(1, 2, width_ratios=(2.6, 1))
    _draw_grid(left, cells, coordinates, shape, chosen)
    names, counts = _parameters(parameters)
    bars = right.bar(range(len(names)), counts, color=[OKABE_ITO[4], OKABE_ITO[0]], width=0.6)
    right.bar_label(bars, [number(n) for n in counts], padding=2)
    right.set_xticks(range(len(names)), names)
    right.set(ylabel="learned numbers", ylim=(0, 1.12 * max(counts)), xlim=(-0.6, len(names) - 0.4))
    return picture.describe(
        "Map: rows of the second table (x) against rows of the first (y), positions in the cells; frames mark the two "
        "rows that the chosen position takes. Bar chart: learned numbers (y) of the tables compared (x).",
        **_grid_numbers(cells, coordinates, shape, chosen) | dict(zip(names, counts, strict=True)),
    )


@styled
def parameter_bars(parameters):
    """How many numbers each encoding learns, as horizontal bars on a logarithmic axis. parameters: {name: count}."""
    names, counts = _parameters(parameters)
    picture = Picture(width=7.5, height=1.1 + 0.42 * len(names))
    ax = picture.add_subplot()
    colours = [OKABE_ITO[i % len(OKABE_ITO)] for i in (4, *[0] * (len(names) - 1))]
    bars = ax.barh(range(len(names)), counts, height=0.62, color=colours, log=True)
    ax.bar_label(bars, [number(n) for n in counts], padding=4)
    ax.set_yticks(range(len(names)), names)
    ax.tick_params(axis="y", length=0)
    ax.invert_yaxis()
    ax.set(xlabel="learned numbers (logarithmic)", xlim=(min(counts) / 20, max(counts) * 20))
    return picture.describe(
        "Bar chart: learned numbers (x, logarithmic) of each encoding of positions (y). "
        "Two short tables need a small fraction of one long one.",
        **dict(zip(names, counts, strict=True)),
    )


@styled
def similarity_maps(similarities, row_length=None):
    """Cosine similarity between the vectors of all positions, one map each. similarities: {name: (L, L)}.

    row_length: of the grid; thin lines separate its rows.
    """
    similarities = {
        name: as_array(f"similarities[{name!r}]", s, (None, len(s)))
        for name, s in entries("similarities", similarities).items()
    }
    picture = Picture(width=0.9 + 2.7 * len(similarities), height=3.2)
    axes = np.atleast_1d(picture.subplots(1, len(similarities), sharey=True))
    for ax, (name, s) in zip(axes, similarities.items(), strict=True):
        image = ax.imshow(s, vmin=-1, vmax=1, cmap="cividis")
        for edge in range(row_length, len(s), row_length) if row_length else ():
            ax.axhline(edge - 0.5, color="white", linewidth=0.6)
            ax.axvline(edge - 0.5, color="white", linewidth=0.6)
        ax.set(title=name, xlabel="position k")
    axes[0].set_ylabel("position j")
    picture.colorbar(image, ax=list(axes), label="cosine similarity", shrink=0.8)
    numbers = {}
    for name, s in similarities.items():
        for k in sorted({1, row_length, row_length + 1}) if row_length else (1,):
            if k < len(s):
                numbers[f"{name}: 0 and {k}"] = float(s[0, k])
    return picture.describe(
        "Heat maps: position k (x) against position j (y), colour is the cosine similarity of their vectors; one "
        "map for each encoding. Positions that share a row of a table are similar.",
        **numbers,
    )


def _draw_grid(ax, cells, coordinates, shape, chosen):
    n1, n2 = shape
    last = max(len(coordinates) - 1, 1)
    size = 9 if n2 <= 12 and n1 <= 12 else 8
    first = np.full(shape, np.nan)
    for cell, js in cells.items():
        first[cell] = js[0]
    image = ax.imshow(first, vmin=0, vmax=last, cmap=STYLE["image.cmap"], aspect="auto")
    for r in range(n1):
        for c in range(n2):
            js = cells.get((r, c), [])
            colour = readable_on(image.cmap(js[0] / last)) if js else "black"
            ax.text(c, r, "\n".join(map(str, js)) or "–", ha="center", va="center", color=colour, fontsize=size)
    ax.set_xticks(np.arange(n2 + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(n1 + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="white", linewidth=1.5)
    ax.tick_params(which="both", length=0)
    ax.spines[:].set_visible(False)
    ax.set_xticks(range(n2), [str(c) for c in range(n2)])
    ax.set_yticks(range(n1), [str(r) for r in range(n1)])
    ax.set(xlabel="row of table 2", ylabel="row of table 1")
    if chosen is not None:
        r, c = (int(x) for x in coordinates[chosen])
        frame = {"fill": False, "linewidth": 3, "clip_on": False, "zorder": 4}
        ax.add_patch(Rectangle((-0.5, r - 0.5), n2, 1, edgecolor=ROW, **frame))
        ax.add_patch(Rectangle((c - 0.5, -0.5), 1, n1, edgecolor=COLUMN, linestyle="--", **frame))
        ax.set_title(f"position {chosen}: row {r} of table 1, row {c} of table 2")


def _remark(cells, shape, crowded):
    if crowded:
        return f"{crowded} positions share their cell with another position: they have the same vector."
    free = shape[0] * shape[1] - len(cells)
    waiting = f" {free} cells are left for longer sequences." if free else ""
    return f"A line of cells shares a row of the first table, a column a row of the second.{waiting}"


def _grid_numbers(cells, coordinates, shape, chosen):
    numbers = {"positions": len(coordinates), "cells": shape[0] * shape[1], "different pairs of rows": len(cells)}
    if chosen is not None:
        r, c = (int(x) for x in coordinates[chosen])
        numbers |= {"position": chosen, "row of table 1": r, "row of table 2": c}
    return numbers


def _cells(coordinates, shape, chosen):
    """(coordinates as an array, {(row, column): positions there}), or ValueError."""
    coordinates = np.asarray(coordinates)
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(f"shape must be (n1, n2), both at least 1, got {tuple(shape)}")
    if coordinates.ndim != 2 or coordinates.shape[1] != 2 or len(coordinates) == 0:
        raise ValueError(f"coordinates must have shape (L, 2), got {coordinates.shape}")
    if coordinates.dtype.kind not in "iu" or coordinates.min() < 0 or np.any(coordinates >= np.array(shape)):
        raise ValueError(f"coordinates must be rows of tables with {shape[0]} and {shape[1]} rows")
    if chosen is not None and not 0 <= chosen < len(coordinates):
        raise ValueError(f"chosen must be a position from 0 to {len(coordinates) - 1}, or None, got {chosen}")
    cells = {}
    for j, (r, c) in enumerate(coordinates.tolist()):
        cells.setdefault((r, c), []).append(j)
    return coordinates, cells


def _parameters(parameters):
    if not parameters or min(parameters.values()) < 1:
        raise ValueError(f"parameters must hold a positive number for each name, got {parameters}")
    return list(parameters), [int(n) for n in parameters.values()]
