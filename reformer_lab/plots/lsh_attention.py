"""Pictures of LSH attention: visible pairs, how rounds are merged, the weight recalled, and when hashing matters."""

import numpy as np
from matplotlib.patches import Rectangle

from reformer_lab.plots.drawing import OKABE_ITO, WRITTEN_UP_TO, Picture, as_square, entries, heat_map, styled

HIGHLIGHT = OKABE_ITO[5]
OBVIOUS = ("itself", "outside the window")  # reasons that are in the picture and not in the text


@styled
def patterns(matrices, unit="weight"):
    """Small heat maps side by side: {title: matrix (L, L) ≥ 0}, row = query, column = key. unit: of the entries.

    Zeros stay white. Up to 16 tokens the entries are in the cells, weights (floats) in percent.
    """
    matrices = {title: as_square(f"matrices[{title!r}]", m) for title, m in entries("matrices", matrices).items()}
    n = len(matrices)
    length = max(map(len, matrices.values()))
    largest = max(m.max() for m in matrices.values())
    picture = Picture(width=min(1 + 3.6 * n, 10.5), height=0.6 + min(3.2, 10.5 / n))
    axes = picture.subplots(1, n, squeeze=False)[0]
    for ax, (title, matrix) in zip(axes, matrices.items(), strict=True):
        image = heat_map(ax, matrix, largest, 100 if matrix.dtype.kind == "f" else 1)
        ax.set(title=title, xlabel="key")
    axes[0].set_ylabel("query")
    if length > WRITTEN_UP_TO:
        ticks = range(1, largest + 1) if all(m.dtype.kind in "iu" for m in matrices.values()) else None
        picture.colorbar(image, ax=axes, label=unit, shrink=0.7, ticks=ticks)
    numbers = {f"pairs seen, {title}": int(np.count_nonzero(m)) for title, m in matrices.items()}
    caption = f"""Heat maps: {length} queries (rows) by {length} keys (columns); white is hidden, the darker
    the larger the {unit}."""
    return picture.describe(caption, **numbers)


@styled
def sorted_pattern(weights, order, buckets, chunk_length):
    """The same weights twice: in the order of the text, and sorted by bucket with each chunk's window framed.

    weights (L, L), order int (L,): the position in each slot, buckets int (L,), one look-back chunk.
    """
    weights = as_square("weights", weights)
    order = np.asarray(order)
    buckets = np.asarray(buckets)
    length = len(weights)
    if sorted(order.tolist()) != list(range(length)) or buckets.shape != (length,):
        raise ValueError(f"order must hold the positions 0 … {length - 1} once, and buckets {length} numbers")
    if chunk_length < 1:
        raise ValueError(f"chunk_length must be at least 1, got {chunk_length}")
    picture = Picture(width=9.4, height=5)
    left, right = picture.subplots(1, 2)
    for ax, rows, title in ((left, np.arange(length), "in order of the text"), (right, order, "sorted by bucket")):
        heat_map(ax, weights[np.ix_(rows, rows)], factor=None)
        names = [f"{i} (b{buckets[i]})" for i in rows]
        ax.set_yticks(range(length), names, fontsize=8)
        ax.set_xticks(range(length), names, fontsize=8, rotation=90)
        ax.set(title=title, xlabel="key: position (bucket)", ylabel="query: position (bucket)")
    for start in range(0, length, chunk_length):
        low = max(0, start - chunk_length)
        high = min(length, start + chunk_length)
        frame = (low - 0.5, start - 0.5), high - low, high - start
        right.add_patch(Rectangle(*frame, fill=False, edgecolor=HIGHLIGHT, linewidth=2))
    caption = """Heat maps of one attention matrix, query (rows) by key (columns), the darker the more. Left: scattered,
    in the order of the text. Right: rows and columns sorted by bucket; all weight lies within the frames, each
    chunk of queries with its window: the same chunk and the one before."""
    numbers = {"tokens": length, "pairs seen": int(np.count_nonzero(weights)), "chunks": -(-length // chunk_length)}
    return picture.describe(caption, **numbers)


@styled
def weights_by_key(weights, keys=None):
    """Bars: the weight of each key under several rules. weights: {rule: (n_keys,)}; keys: n_keys texts."""
    weights = {name: np.asarray(w, dtype=float) for name, w in entries("weights", weights).items()}
    n = len(next(iter(weights.values())))
    keys = [str(j) for j in range(n)] if keys is None else [str(key) for key in keys]
    if len(keys) != n or any(w.shape != (n,) for w in weights.values()):
        raise ValueError(f"weights and keys must be {n} each, got {len(keys)} keys")
    picture = Picture(width=6.5, height=3)
    ax = picture.add_subplot()
    width = 0.8 / len(weights)
    for at, (name, values) in enumerate(weights.items()):
        x = np.arange(n) + (at - (len(weights) - 1) / 2) * width
        colour, hatch = ((OKABE_ITO[1], ""), (OKABE_ITO[0], "//"), (OKABE_ITO[2], ".."), (OKABE_ITO[6], "x"))[at % 4]
        bars = ax.bar(x, values, width, label=name, color=colour, hatch=hatch)
        ax.bar_label(bars, [f"{100 * value:.0f}" for value in values], fontsize=9, padding=2)
    ax.set_xticks(range(n), keys)
    ax.set(xlabel="key", ylabel="weight", ylim=(0, 1.4 * max(w.max() for w in weights.values())))
    ax.legend(ncols=2, loc="upper left")
    caption = """Bar chart: keys of one query (x) against their weights (y, percent above the bars), one kind of bar
    for each rule."""
    numbers = {f"{name}, {key}": float(w[j]) for name, w in weights.items() for j, key in enumerate(keys)}
    return picture.describe(caption, **numbers)


@styled
def recall(rounds, panels):
    """Line charts: rounds (n,) against the recalled fraction of the dense weight. panels: {title: {name: (n,)}}."""
    rounds = np.asarray(rounds)
    if rounds.ndim != 1 or not len(rounds) or (rounds < 1).any():
        raise ValueError(f"rounds must be numbers of at least 1, got {rounds.tolist()}")
    picture = Picture(width=min(0.8 + 4.6 * len(entries("panels", panels)), 11), height=3.8)
    axes, numbers = picture.subplots(1, len(panels), squeeze=False, sharey=True)[0], {}
    for ax, (title, lines) in zip(axes, panels.items(), strict=True):
        for name, recalled in entries(f"panels[{title!r}]", lines).items():
            recalled = _fractions(f"panels[{title!r}][{name!r}]", recalled, len(rounds))
            ax.plot(rounds, 100 * recalled, label=name)
            for n, value in ((rounds[0], recalled[0]), (rounds[-1], recalled[-1])):
                numbers[f"{name}, {n} round{'s' * bool(n > 1)}"] = float(value)
        ax.set(title=title, xlabel="rounds of hashing", xscale="log", ylim=(0, 103))
        _finish_lines(ax, rounds, "lower right")
    axes[0].set_ylabel("dense weight recalled, percent")
    caption = """Line charts: rounds of hashing (x, logarithmic) against the fraction of the dense attention
    weight on keys that LSH attention sees too, mean over all queries (y). More rounds recall more."""
    return picture.describe(caption, **numbers)


@styled
def active(lengths, fractions, chunk_length):
    """Line chart: lengths (n,) against the fraction of the dense pairs that are seen; fractions: {name: (n,)}."""
    lengths = np.asarray(lengths)
    if lengths.ndim != 1 or len(lengths) < 2 or (lengths < 1).any() or chunk_length < 1:
        raise ValueError(f"lengths must be at least two, all ≥ 1, and chunk_length ≥ 1, got {lengths.tolist()}")
    picture = Picture(width=7.5, height=3.8)
    ax, numbers = picture.add_subplot(), {}
    for name, values in entries("fractions", fractions).items():
        values = _fractions(f"fractions[{name!r}]", values, len(lengths))
        ax.plot(lengths, 100 * values, label=name)
        for at in (0, -1):
            numbers[f"{name}, L = {lengths[at]:,}"] = float(values[at])
    for m in (1, 2):
        ax.axvline(m * chunk_length, color="black", linestyle=":", marker="", linewidth=1)
        ax.text(m * chunk_length, 106, f"{m} chunk{'s' * (m > 1)}", ha="center", fontsize=9)
    ax.set(xlabel="length L in tokens", ylabel="pairs seen, percent of dense", ylim=(0, 104), xscale="log")
    _finish_lines(ax, lengths, "upper right")
    caption = """Line chart: length (x, logarithmic) against the fraction of all pairs of dense attention that
    LSH attention sees (y). At 100 percent it is dense attention. Dotted lines: one and two chunk lengths."""
    return picture.describe(caption, **numbers)


@styled
def query_by_round(weights, dense, query, order, buckets, seen, reasons, chunk_length=None):
    """One query in detail: the matrix, its row framed; its weights; each token in each round with a reason.

    weights, dense (L, L): of LSH and of dense attention. query: the row. order, buckets int (n_hashes, L): sorted
    positions, bucket of each position. seen bool (n_hashes, L) and reasons, n_hashes lists of L texts, by position.
    chunk_length: draws the borders of chunks; None where chunks do not matter.
    """
    weights, dense = as_square("weights", weights), as_square("dense", dense)
    order, buckets, seen = np.asarray(order), np.asarray(buckets), np.asarray(seen, dtype=bool)
    length, n_hashes = len(weights), len(order)
    if dense.shape != weights.shape or not (order.shape == buckets.shape == seen.shape == (n_hashes, length)):
        raise ValueError(f"dense must be {weights.shape}; order, buckets and seen ({n_hashes}, {length})")
    if [len(r) for r in reasons] != [length] * n_hashes or not 0 <= query < length:
        raise ValueError(f"reasons must be {n_hashes} lists of {length} texts, and query one of 0 … {length - 1}")
    picture = Picture(width=10, height=4.3 + 0.95 * n_hashes)
    grid = picture.add_gridspec(2, 2, height_ratios=[4.0, 0.3 + 0.95 * n_hashes])
    matrix = picture.add_subplot(grid[0, 0], title="attention matrix", xlabel="key", ylabel="query")
    heat_map(matrix, weights)
    matrix.add_patch(Rectangle((-0.5, query - 0.5), length, 1, fill=False, edgecolor=HIGHLIGHT, linewidth=2.5))
    _weights_of_row(picture.add_subplot(grid[0, 1]), weights[query], dense[query], query)
    _rounds_with_reasons(picture.add_subplot(grid[1, :]), query, order, buckets, seen, reasons, chunk_length)
    attended = weights[query] > 0
    numbers = {"query": int(query)}
    for h in range(n_hashes):
        keys = {True: [], False: []}
        for j in range(length):
            reason, same = " ".join(reasons[h][j].split()), buckets[h, j] == buckets[h, query]
            if reason not in OBVIOUS:
                keys[bool(seen[h, j])].append(f"{j} ({reason}{', same bucket' * bool(same and seen[h, j])})")
        numbers[f"round {h + 1}"] = f"sees {', '.join(keys[True]) or 'no key'}; hidden {', '.join(keys[False]) or '–'}"
    numbers |= {
        "weights of the query": ", ".join(f"{j}: {100 * weights[query][j]:.0f} %" for j in np.flatnonzero(attended)),
        "dense weight recalled": float(dense[query][attended].sum()),
        "pairs seen by all queries": int(np.count_nonzero(weights)),
    }
    caption = f"""Heat map, top left: {length} queries (rows) by {length} keys (columns), weights in percent, the row
    of query {query} framed. Bar chart, top right: its weights (bars) beside those of dense attention (circles). Below,
    one row for each round: the tokens in sorted order, blue where query {query} attends to them, with the reason."""
    return picture.describe(caption, **numbers)


def _weights_of_row(ax, weights, dense, query):
    at = np.arange(len(weights))
    ax.bar(at, weights, color=OKABE_ITO[1], label="LSH attention")
    ax.plot(at, dense, color="black", linestyle="", marker="o", fillstyle="none", label="dense attention")
    ax.set_xticks(at)
    ax.set(title=f"weights of query {query}", xlabel="key", ylabel="weight")
    ax.set_ylim(0, 1.25 * max(weights.max(), dense.max()))
    ax.legend(loc="upper left", ncols=2, fontsize=9)


def _rounds_with_reasons(ax, query, order, buckets, seen, reasons, chunk_length):
    n_hashes, length = order.shape
    for h, x in np.ndindex(n_hashes, length):
        j = order[h, x]
        colour = OKABE_ITO[1] if seen[h, j] else "#EEEEEE"
        ax.add_patch(Rectangle((x, h), 1, 0.92, facecolor=colour, edgecolor="white"))
        ax.text(x + 0.5, h + 0.17, str(j), ha="center", va="center", fontsize=11, weight="bold")
        ax.text(x + 0.5, h + 0.6, f"bucket {buckets[h, j]}\n{reasons[h][j]}", ha="center", va="center", fontsize=8)
        if j == query:
            ax.add_patch(Rectangle((x + 0.03, h + 0.02), 0.94, 0.88, fill=False, edgecolor=HIGHLIGHT, linewidth=2.5))
    for x in range(0, length + 1, chunk_length or length):
        ax.plot([x, x], [0, n_hashes - 0.08], color="black", linestyle="-", marker="", linewidth=2, clip_on=False)
    ax.set(xlim=(0, length), ylim=(n_hashes, 0), xticks=[])
    ax.set_yticks(np.arange(n_hashes) + 0.46, [f"round {h + 1}" for h in range(n_hashes)])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_title("positions in sorted order, blue: seen" + "; black lines: borders of chunks" * bool(chunk_length))


def _finish_lines(ax, x, place):
    ax.set_xticks(x, [f"{n:,}" for n in x])
    ax.minorticks_off()
    ax.grid(alpha=0.3)
    ax.legend(loc=place, fontsize=9)


def _fractions(name, values, n):
    values = np.asarray(values, dtype=float)
    if values.shape != (n,) or not ((values >= 0) & (values <= 1 + 1e-9)).all():
        raise ValueError(f"{name} must be {n} numbers from 0 to 1, got {values.tolist()!r:.60}")
    return values
