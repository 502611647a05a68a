"""Pictures of kernels: which rows each program reads and writes, and how many bytes are moved."""

import matplotlib
import numpy as np

from reformer_lab.plots.drawing import OKABE_ITO, Picture, as_array, entries, number, readable_on, styled


@styled
def rows_by_program(message, tables, tokens, order, chunk_length):
    """Which rows each program of a launch touches, in sorted order. message: the first sentence of the caption.

    tables: {title: how often each program (rows) touches the row of each position (columns), int (programs, L)};
    tokens: L texts; order: int (L,), the position in each slot.
    """
    entries("tables", tables)
    order = as_array("order", order, (len(tokens),))
    tables = {title: as_array(title, table, (None, len(tokens)))[:, order] for title, table in tables.items()}
    largest = max(3, *(table.max() for table in tables.values()))  # 1 has the same colour in all pictures but few
    picture = Picture(8.0, 0.7 + sum(0.45 + 0.22 * len(table) for table in tables.values()))
    axes = np.atleast_1d(picture.subplots(len(tables), 1, sharex=True))
    for ax, (title, table) in zip(axes, tables.items(), strict=True):
        colours = matplotlib.colormaps["cividis_r"].with_extremes(bad="white")
        image = ax.imshow(np.ma.masked_equal(table, 0), cmap=colours, vmin=0, vmax=largest, aspect="auto")
        for (program, slot), times in np.ndenumerate(table):
            if times:
                colour = readable_on(image.to_rgba(float(times)))
                ax.text(slot, program, str(times), ha="center", va="center", fontsize=9, color=colour)
        for edge in range(0, len(tokens) + chunk_length, chunk_length):
            ax.axvline(min(edge, len(tokens)) - 0.5, color="black", linewidth=0.8, zorder=3)
        for program in range(1, len(table)):
            ax.axhline(program - 0.5, color="white", linewidth=1.5)
        ax.set_title(title)
        ax.set_yticks(range(len(table)), [f"program {p}" for p in range(len(table))])
        ax.tick_params(length=0)
        ax.spines[:].set_visible(True)
    axes[-1].set_xticks(range(len(tokens)), [tokens[position] for position in order], rotation=60)
    numbers = {f"rows, {title}": int(table.sum()) for title, table in tables.items()}
    return picture.describe(
        f"{message} Tables: the programs of a launch (rows) against the tokens in sorted order (columns; lines between "
        "chunks). A number says how often the program touches the row of the token; white: never.",
        **numbers,
    )


@styled
def bytes_moved(message, bars):
    """Bytes read and written, a horizontal bar for each name. bars: {name: (read, written)}.

    message: the first sentence of the caption.
    """
    entries("bars", bars)
    picture = Picture(8.0, 1.2 + 0.36 * len(bars))
    ax = picture.add_subplot()
    read, written = np.array(list(bars.values()), dtype=float).reshape(len(bars), 2).T
    place = np.arange(len(bars))
    ax.barh(place, read, color=OKABE_ITO[4], label="read")
    ax.barh(place, written, left=read, color=OKABE_ITO[0], hatch="///", edgecolor="white", label="written")
    for y, (x, y_written) in enumerate(zip(read, written, strict=True)):
        ax.text(x + y_written, y, f" {number(int(x + y_written))}", va="center", fontsize=9)
    ax.set_yticks(place, list(bars))
    ax.set_ylim(len(bars) - 0.4, -0.6)
    ax.set_xlim(0, 1.15 * max((read + written).max(), 1))
    ax.set_xlabel("bytes")
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.legend(loc="upper right")
    return picture.describe(
        f"{message} Bar chart: bytes read (plain) and written (hatched) by each way of computing it (rows); "
        "beside each bar their sum.",
        **{name: int(sum(pair)) for name, pair in bars.items()},
    )
