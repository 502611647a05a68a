"""Pictures of windows: visible pairs by position, how later tokens move a window, and which outputs they change."""

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.patches import Rectangle

from reformer_lab.plots.drawing import OKABE_ITO, Picture, bucket_colours, cell_row, number, styled

ROUNDING = 1e-12  # an output that moves by less has not changed
ZERO = 1e-18  # the height of a change of exactly zero on a logarithmic axis


@styled
def window_patterns(patterns, chunk_length):
    """Visible pairs, one map per entry of ``patterns``: {title: counts int (L, L)}, rows = queries, columns = keys.

    Lines separate chunks of ``chunk_length`` positions; a key seen more than once has its count printed.
    """
    if not patterns or chunk_length < 1:
        raise ValueError(f"patterns must not be empty and chunk_length be at least 1, got {chunk_length}")
    picture = Picture(width=3 * len(patterns) + 0.8, height=3.7)
    axes = picture.subplots(1, len(patterns), squeeze=False)[0]
    numbers = {}
    for ax, (title, counts) in zip(axes, patterns.items(), strict=True):
        counts = np.asarray(counts)
        if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or counts.size == 0:
            raise ValueError(f"patterns must hold counts of shape (L, L), got {counts.shape} for {title!r}")
        length = len(counts)
        ax.imshow(counts > 0, cmap=ListedColormap(["#eeeeee", OKABE_ITO[4]]), vmin=0, vmax=1)
        for border in np.arange(chunk_length, length, chunk_length) - 0.5:
            ax.axhline(border, color="black", linewidth=0.8)
            ax.axvline(border, color="black", linewidth=0.8)
        for i, j in np.argwhere(counts > 1):
            ax.text(j, i, str(counts[i, j]), color="white", ha="center", va="center", fontsize=8)
        ticks = np.arange(0, length, chunk_length * -(-length // (8 * chunk_length)))
        ax.set(title=title, xlabel="position of the key", xticks=ticks, yticks=ticks)
        seen = counts.sum(-1)
        numbers[f"{title}: keys per query"] = f"{seen.min()} to {seen.max()}, mean {number(float(seen.mean()))}"
    axes[0].set_ylabel("position of the query")
    return picture.describe(
        f"Map{'s' * (len(patterns) > 1)} of visible pairs: position of the query (rows) against position of the key "
        f"(columns); dark = seen, black lines between chunks of {chunk_length}. The window of a query depends "
        "on its position only.",
        **numbers,
    )


@styled
def sorted_windows(rows, chunk_length, query):
    """The sorted order of one round, cut into chunks, and the keys that one query sees; a row of cells per entry.

    rows: {title: (order int (L,), buckets int (L,) by position, seen: the positions that ``query`` sees)}. In each cell
    the position and, below it, its bucket.
    """
    if not rows or chunk_length < 1:
        raise ValueError(f"rows must not be empty and chunk_length be at least 1, got {chunk_length}")
    lengths = {len(array) for order, buckets, _ in rows.values() for array in (order, buckets)}
    length = min(lengths)
    if len(lengths) > 1 or not 0 <= query < length:
        raise ValueError(f"rows must hold orders and buckets of one length, and query {query} be in it; got {lengths}")
    n_buckets = 1 + max(int(np.max(buckets)) for _, buckets, _ in rows.values())
    picture = Picture(width=max(5.0, 0.45 * length + 0.5), height=0.4 + 1.05 * len(rows))
    axes = picture.subplots(len(rows), 1, squeeze=False)[:, 0]
    numbers = {}
    for ax, (title, (order, buckets, seen)) in zip(axes, rows.items(), strict=True):
        order = np.asarray(order)
        buckets = np.asarray(buckets)
        seen = np.sort(np.asarray(seen, dtype=int))
        if sorted(order.tolist()) != list(range(length)):
            raise ValueError(f"rows must hold orders of the positions 0 to {length - 1}, got {order} for {title!r}")
        labels = [f"{p}\n({buckets[p]})" for p in order]
        cell_row(ax, labels, bucket_colours(n_buckets)[buckets[order]])
        for slot, p in enumerate(order):
            if p == query or p in seen:
                line = "-" if p == query else (0, (2, 1))
                ax.add_patch(Rectangle((slot + 0.06, 0.05), 0.88, 0.9, fill=False, lw=2.2, ls=line))
                ax.text(slot + 0.5, -0.22, "query" if p == query else "key", ha="center", va="center", fontsize=8)
        for border in np.arange(chunk_length, length, chunk_length):
            ax.plot([border, border], [-0.1, 1.1], color="black", lw=3.5, ls="-", marker="", clip_on=False)
        ax.set_ylim(-0.4, 1.05)
        ax.set_title(title)
        numbers[f"{title}: token {query} sees"] = ", ".join(map(str, seen)) or "no key"
    return picture.describe(
        f"Row{'s' * (len(rows) > 1)} of tokens in sorted order: each cell holds a position and, in brackets and by "
        f"colour, its bucket; bars are the borders between chunks of {chunk_length}. Framed: token {query} (solid) and "
        "the keys that it sees (dashed).",
        **numbers,
    )


@styled
def output_changes(changes, changed):
    """How far each output moved when some tokens were changed, by position; one panel per entry of ``changes``.

    changes: {title: float (L,), the largest change among the numbers of each output}. changed: bool (L,), which tokens
    were changed. Outputs before the first changed token should not move; from it on they may. Logarithmic, with zero at
    the bottom.
    """
    changed = np.asarray(changed)
    if not changes or changed.dtype != bool or changed.ndim != 1 or not changed.any():
        raise ValueError(f"changed must be bool (L,) with a changed token in it, got {changed.dtype} {changed.shape}")
    first = int(np.argmax(changed))
    position = np.arange(len(changed))
    picture = Picture(width=8.5, height=0.9 + 1.6 * len(changes))
    axes = picture.subplots(len(changes), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    numbers, leaks = {}, []
    for ax, (title, change) in zip(axes, changes.items(), strict=True):
        change = np.asarray(change, dtype=float)
        if change.shape != changed.shape or not (change >= 0).all():
            raise ValueError(f"changes must be numbers ≥ 0 of shape {changed.shape}, got {change.shape} for {title!r}")
        moved = (change > ROUNDING) & (position < first)
        groups = (
            ("earlier output, changed", moved, OKABE_ITO[5], "D"),
            ("earlier output, unchanged", ~moved & (position < first), OKABE_ITO[4], "o"),
            ("changed token and later", position >= first, "#666666", "x"),
        )
        for label, chosen, colour, marker in groups:
            height = np.maximum(change[chosen], ZERO)
            ax.vlines(position[chosen], ZERO, height, color=colour, linewidth=1.5)
            (points,) = ax.plot(
                position[chosen], height, ls="", marker=marker, color=colour, label=label, clip_on=False
            )
            points.set_in_layout(False)  # an empty group counts as a point at the corner of the page
        ax.axvspan(first - 0.5, len(changed) - 0.5, color="#eeeeee", zorder=0)
        count = int(moved.sum())
        largest = float(change[:first].max(initial=0.0))
        ax.set(yscale="log", ylabel="change", title=f"{title}: {count} of {first} earlier outputs change")
        leaks += [title] * (count > 0)
        numbers[f"{title}: earlier outputs changed"] = f"{count} of {first}"
        numbers[f"{title}: largest change"] = largest if count else "rounding"
    ticks, names = ((ZERO, 1e-12, 1e-8, 1e-4, 1.0), ("0", r"$10^{-12}$", r"$10^{-8}$", r"$10^{-4}$", "1"))
    axes[0].set(xlim=(-1, len(changed)), ylim=(ZERO, 100), yticks=ticks, yticklabels=names)
    axes[0].minorticks_off()
    axes[-1].set_xlabel("position of the output")
    picture.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    cause = f"the token at position {first} was" if changed.sum() == 1 else f"tokens from position {first} on were"
    point = f"Later tokens change earlier outputs with {' and '.join(leaks)}" if leaks else "No earlier output changes"
    return picture.describe(
        f"Stem chart: position of the output (x) against its largest change (y, logarithmic) after {cause} changed; "
        f"grey: from there on. {point}.",
        **numbers,
    )
