"""Pictures of dense attention: its matrix, its cost as the length grows, and how few keys hold its weight."""

import numpy as np

from reformer_lab.plots.drawing import Picture, as_square, entries, heat_map, styled


@styled
def attention_matrices(matrices, labels=None):
    """Heat maps side by side. matrices: {title: weights (L, L) in [0, 1]}, row = query, column = key; labels: L texts.

    Keys that a query does not see (weight 0) stay white. Up to 16 tokens each cell carries its weight in percent.
    """
    matrices = {title: as_square(f"matrices[{title!r}]", w, 1) for title, w in entries("matrices", matrices).items()}
    length = len(next(iter(matrices.values())))
    labels = [str(i) for i in range(length)] if labels is None else [str(label) for label in labels]
    if len(labels) != length or any(len(w) != length for w in matrices.values()):
        raise ValueError(f"matrices and labels must be of one length, got {length} for the first matrix")
    picture = Picture(width=min(0.8 + 3.9 * len(matrices), 11), height=4.1)
    axes = picture.subplots(1, len(matrices), squeeze=False)[0]
    for ax, (title, weights) in zip(axes, matrices.items(), strict=True):
        image = heat_map(ax, weights, labels=labels)
        ax.set(title=title, xlabel="key")
    axes[0].set_ylabel("query")
    picture.colorbar(image, ax=axes, label="weight", shrink=0.8)
    numbers = {}
    for title, weights in matrices.items():
        numbers[f"{title}: pairs seen"] = int(np.count_nonzero(weights))
        numbers[f"{title}: largest weight"] = float(weights.max())
    caption = f"""Heat map: weights of {length} queries (rows) on {length} keys (columns), in percent, the darker the
    more; white is not seen at all. Each row that sees anything adds up to 1."""
    return picture.describe(caption, **numbers)


@styled
def growth(lengths, panels):
    """Line charts, both axes logarithmic. lengths (n,) > 0; panels: {unit: {name: amounts (n,) > 0}}, a chart each."""
    lengths = np.asarray(lengths)
    if lengths.ndim != 1 or len(lengths) < 2 or (lengths <= 0).any():
        raise ValueError(f"lengths must be at least two numbers above 0, got {lengths.tolist()}")
    picture = Picture(width=min(0.6 + 4.7 * len(entries("panels", panels)), 11), height=3.8)
    axes, numbers = picture.subplots(1, len(panels), squeeze=False)[0], {}
    for ax, (unit, lines) in zip(axes, panels.items(), strict=True):
        for name, amounts in entries(f"panels[{unit!r}]", lines).items():
            amounts = np.asarray(amounts, dtype=float)
            if amounts.shape != lengths.shape or not (amounts > 0).all():
                raise ValueError(f"panels[{unit!r}][{name!r}] must be {len(lengths)} numbers above 0")
            ax.loglog(lengths, amounts, label=name)
            numbers[f"{unit}, {name}, at {lengths[-1]:,}"] = float(amounts[-1])
        ax.set(xlabel="length L in tokens", ylabel=unit)
        ax.set_xticks(lengths, [f"{n:,}" for n in lengths], rotation=0 if len(lengths) <= 5 else 30)
        ax.minorticks_off()
        ax.grid(alpha=0.3)
        ax.legend(fontsize=9)
    caption = """Line charts, both axes logarithmic: length (x) against the cost of attention (y). Four times the length
    is sixteen times as much on a steep line, four times as much on one that is half as steep."""
    return picture.describe(caption, **numbers)


@styled
def weight_of_keys(cumulative, fraction=0.9):
    """Line chart: how much of a query's weight its heaviest keys hold.

    cumulative: {name: (n,)}, the fraction held by the 1, 2, … n heaviest keys, mean over queries; fraction: where the
    curves are read off.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie between 0 and 1, got {fraction}")
    picture = Picture(width=7, height=3.8)
    ax, numbers = picture.add_subplot(), {}
    for name, curve in entries("cumulative", cumulative).items():
        curve = np.asarray(curve, dtype=float)
        rising = curve.ndim == 1 and len(curve) and (np.diff(curve) > -1e-9).all()
        if not rising or not fraction <= curve[-1] <= 1 + 1e-9:
            raise ValueError(f"cumulative[{name!r}] must rise to a number from fraction = {fraction} to 1")
        keys = int(np.argmax(curve >= fraction)) + 1
        (line,) = ax.plot(np.arange(1, len(curve) + 1), curve, label=f"{name}: {keys} keys", markevery=0.15)
        ax.plot([keys, keys], [0, fraction], color=line.get_color(), linestyle=":", marker="", linewidth=1)
        numbers[f"keys for {fraction:.0%}, {name}"] = keys
    ax.axhline(fraction, color="black", linestyle="--", marker="", linewidth=1)
    ax.text(1, fraction + 0.015, f"{fraction:.0%}", va="bottom")
    ax.set(
        xscale="log", ylim=(0, 1.05), xlabel="keys, the heaviest first (logarithmic)", ylabel="fraction of the weight"
    )
    ax.xaxis.set_major_formatter("{x:,.0f}")
    picture.legend(loc="outside upper left", ncols=2, title=f"needed for {fraction:.0%}", alignment="left")
    caption = f"""Line chart: number of keys, the heaviest first (x, logarithmic), against the fraction of a
    query's weight that they hold, mean over all queries (y). Where {fraction:.0%} is reached, a dotted line falls to
    the number of keys."""
    return picture.describe(caption, **numbers)
