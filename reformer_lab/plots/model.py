"""Pictures of the whole model: data flow, parameters by component, presets compared, reach, and training."""

import numpy as np
from matplotlib.patches import FancyBboxPatch

from reformer_lab.plots.drawing import OKABE_ITO, Picture, cell_row, readable_on, styled

ORANGE, SKY, GREEN, YELLOW, BLUE, RED = OKABE_ITO[:6]
HATCHES = ("", "//", "..", "xx")


@styled
def data_flow(layers, d_model, vocab_size):
    """Diagram of a model. layers: kinds of attention, one for each layer; beyond three, two are drawn."""
    layers = tuple(layers)
    if not layers:
        raise ValueError("layers must name at least one kind of attention, got none")
    drawn = layers if len(layers) <= 3 else layers[:2]
    units = 7.05 + 2.9 * len(drawn) + (len(layers) > len(drawn))
    picture = Picture(width=0.78 * units, height=3.0)
    ax = picture.add_subplot()
    _box(ax, 0.0, 1.0, "tokens\n(B, L)", "white")
    _box(ax, 1.6, 1.0, f"embedding\n+ positions\n(B, L, {d_model})", SKY, height=1.0)
    _arrow(ax, (0.6, 1.0), (0.95, 1.0))
    for y, name in ((2.0, "x₁"), (0.0, "x₂")):
        _arrow(ax, (2.25, 1.0), (2.75, y))
        ax.text(2.8, y + 0.17, name, ha="center", fontsize=10)
    x = 2.75
    for index, kind in enumerate(drawn):
        x = _layer(ax, x, index, kind)
    if len(layers) > len(drawn):
        ax.text(x + 0.5, 1.0, f"… {len(layers) - len(drawn)}\nmore …", ha="center", va="center")
        x += 1.0
        for y in (0.0, 2.0):
            ax.plot([x - 1.0, x], [y, y], color="black", lw=1.2, ls=":", marker="")
    for y in (0.0, 2.0):
        _arrow(ax, (x, y), (x + 0.5, 1.0))
    _box(ax, x + 1.15, 1.0, f"concatenate,\nnorm\n(B, L, {2 * d_model})", YELLOW)
    _arrow(ax, (x + 1.8, 1.0), (x + 2.15, 1.0))
    _box(ax, x + 2.85, 1.0, f"head\n(B, L, {vocab_size})", SKY)
    ax.set(xlim=(-0.7, x + 3.6), ylim=(-0.3, 2.6))
    ax.axis("off")
    caption = (
        "Diagram of the model from tokens (left) to logits (right): two residual streams of the same width run side by "
        "side; in each layer attention F reads the lower one and is added to the upper, then feed-forward G reads the "
        "upper one and is added to the lower. They are concatenated only after the last layer."
    )
    return picture.describe(caption, layers=len(layers), d_model=d_model, **{"width before the head": 2 * d_model})


def _layer(ax, x, index, kind):
    """Draw one layer between both streams, from x on; returns where it ends."""
    end = x + 2.9
    for y in (0.0, 2.0):
        ax.plot([x, end], [y, y], color="black", lw=1.2, ls="-", marker="")
    _box(ax, x + 0.8, 1.0, f"F: {kind}", ORANGE)
    _arrow(ax, (x + 0.8, 0.0), (x + 0.8, 0.65))
    _arrow(ax, (x + 0.8, 1.35), (x + 0.8, 1.86))
    _box(ax, x + 2.2, 1.0, "G: feed-\nforward", GREEN)
    _arrow(ax, (x + 2.2, 2.0), (x + 2.2, 1.35))
    _arrow(ax, (x + 2.2, 0.65), (x + 2.2, 0.14))
    for at, y in ((x + 0.8, 2.0), (x + 2.2, 0.0)):
        ax.plot(at, y, marker="o", ms=13, color="white", mec="black", ls="")
        ax.text(at, y - 0.01, "+", ha="center", va="center", fontsize=11)
    ax.text(x + 1.5, 2.32, f"layer {index + 1}", ha="center", fontsize=10)
    return end


def _box(ax, x, y, text, colour, height=0.7):
    style = {"boxstyle": "round,pad=0.02", "facecolor": colour, "edgecolor": "black"}
    ax.add_patch(FancyBboxPatch((x - 0.6, y - height / 2), 1.2, height, **style))
    ax.text(x, y, text, ha="center", va="center", fontsize=9, color=readable_on(colour))


def _arrow(ax, start, end):
    ax.annotate(
        "", end, start, arrowprops={"arrowstyle": "-|>", "color": "black", "lw": 1.2, "shrinkA": 0, "shrinkB": 0}
    )


@styled
def parameter_bars(models, bytes_each=4):
    """Bars of the numbers in each component. models: {name: {component: count}}, all of the same components."""
    components = list(next(iter(models.values()), {}))
    if not components or any(list(counts) != components for counts in models.values()):
        raise ValueError(
            f"models must all have the same components, at least one, got {[list(m) for m in models.values()]}"
        )
    picture = Picture(width=max(6.5, 4.5 * len(models)), height=1.3 + 0.42 * len(components))
    longest, numbers = max(1, *(n for counts in models.values() for n in counts.values())), {}
    axes = picture.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for ax, (name, counts), hatch in zip(axes, models.items(), HATCHES * len(models), strict=False):
        count = sum(counts.values())
        ax.barh(components, list(counts.values()), color=SKY, edgecolor="black", linewidth=0.6, hatch=hatch)
        for y, n in enumerate(counts.values()):
            ax.text(n + 0.015 * longest, y, f"{_short(n)} = {_short(n * bytes_each)}B", va="center", fontsize=9)
        ax.set(title=f"{name}: {_short(count)} numbers", xlabel="numbers", xlim=(0, 1.45 * longest))
        ax.xaxis.set_major_formatter(lambda n, _: _short(n))
        ax.locator_params(axis="x", nbins=5)
        largest = max(counts, key=counts.get)
        numbers |= {f"{name}, all": int(count), f"{name}, largest": f"{largest} {counts[largest] / max(1, count):.0%}"}
    axes[0].invert_yaxis()  # one axis for all
    caption = (
        "Bar chart: components of the model (rows) against how many numbers each holds (x), the bytes beside the bar "
        f"at {bytes_each} bytes a number."
    )
    return picture.describe(caption, **numbers)


def _short(n):
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= 0.9995 * factor:  # 999,999 is 1 M, not 1e+03 k
            return f"{n / factor:.3g} {letter}"
    return f"{n:g} "


@styled
def difference_matrix(names, differences):
    """Heat map of differences (n, n), not negative, between variants of these names."""
    differences = np.asarray(differences, dtype=float)
    if differences.shape != (len(names), len(names)):
        raise ValueError(f"differences must have shape {(len(names), len(names))}, got {differences.shape}")
    picture = Picture(width=1.8 + 1.05 * len(names), height=1.2 + 0.55 * len(names))
    ax = picture.add_subplot()
    image = ax.imshow(differences, aspect="auto", vmin=0)
    for (row, column), value in np.ndenumerate(differences):
        colour = readable_on(image.cmap(image.norm(value)))
        ax.text(column, row, f"{value:.2f}" if value else "0", ha="center", va="center", color=colour, fontsize=10)
    ax.set(xticks=range(len(names)), yticks=range(len(names)), xticklabels=names, yticklabels=names)
    ax.spines[:].set_visible(False)
    picture.colorbar(image, label="largest |difference|")
    row, column = np.unravel_index(differences.argmax(), differences.shape)
    caption = (
        "Heat map: preset (rows) against preset (columns), in each cell the largest difference between their logits "
        "for the same weights and tokens. Zero off the diagonal: two names for one function."
    )
    return picture.describe(caption, largest=float(differences.max()), between=f"{names[row]} and {names[column]}")


@styled
def reach(names, reached):
    """Rows of positions, one for each name. reached: bool (n, L), whether the output there depends on token 0."""
    reached = np.asarray(reached)
    if reached.ndim != 2 or len(reached) != len(names) or reached.dtype != bool:
        raise ValueError(f"reached must be boolean of shape ({len(names)}, L), got {reached.dtype} {reached.shape}")
    picture = Picture(width=min(11, 2.2 + 0.33 * reached.shape[1]), height=0.6 + 0.5 * len(names))
    for ax, name, row in zip(np.atleast_1d(picture.subplots(len(names), 1)), names, reached, strict=True):
        labels = [str(j) if changes else "·" for j, changes in enumerate(row)]
        cell_row(ax, labels, [ORANGE if changes else "#e8e8e8" for changes in row], name)
    caption = (
        "Rows of cells: positions from left to right, one row for each model. A cell is orange and shows its position "
        "where the logits change when the token at position 0 does, grey with a dot where they stay."
    )
    return picture.describe(
        caption, **{name: f"{int(row.sum())} of {len(row)}" for name, row in zip(names, reached, strict=True)}
    )


@styled
def learning_curve(step, train, held_out_step, held_out, baselines):
    """Bits per byte: train (n,) at step (n,), held_out (m,) at held_out_step (m,), baselines {name: bits}, up to 3."""
    for name, x, y in (("train", step, train), ("held_out", held_out_step, held_out)):
        if np.ndim(y) != 1 or np.shape(x) != np.shape(y) or not len(y):
            raise ValueError(f"{name} must be one number for each of its steps, got {np.shape(y)} for {np.shape(x)}")
    picture = Picture(width=7.5, height=3.8)
    ax = picture.add_subplot()
    ax.plot(step, train, color=SKY, lw=1, ls="-", marker="", label="training batch")
    ax.plot(held_out_step, held_out, color=BLUE, ls="-", marker="o", ms=4, label=f"held out: {held_out[-1]:.2f}")
    for (name, value), dashes in zip(baselines.items(), ((0, (6, 3)), ":", "-."), strict=False):
        ax.axhline(value, color=RED, ls=dashes, lw=1.4, marker="", label=f"{name}: {value:.2f}")
    ax.set(xlabel="training step", ylabel="bits per byte", ylim=(0, 1.05 * max(8.0, np.max(train), np.max(held_out))))
    ax.legend()
    caption = (
        "Line chart: training step (x) against bits per byte (y), of each training batch and of held-out text, beside "
        "baselines without training (dashed and dotted lines)."
    )
    numbers = {"steps": int(np.max(step)), "before": float(held_out[0]), "after": float(held_out[-1])}
    return picture.describe(caption, **numbers, **{name: float(value) for name, value in baselines.items()})


@styled
def token_bars(labels, settings):
    """Bars of probabilities. labels: n names of tokens; settings: {name: probabilities (n,)}, one panel for each."""
    settings = {name: np.asarray(p, dtype=float) for name, p in settings.items()}
    for name, p in settings.items():
        if p.shape != (len(labels),):
            raise ValueError(f"settings must hold {len(labels)} probabilities each, {name!r} has shape {p.shape}")
    if not settings or not len(labels):
        raise ValueError("settings and labels must hold at least one entry each")
    picture = Picture(width=max(4.5, 2.9 * len(settings)), height=1.3 + 0.27 * len(labels))
    axes = np.atleast_1d(picture.subplots(1, len(settings), sharey=True))
    numbers, widest = {}, max(float(p.max()) for p in settings.values()) or 1.0
    for ax, (name, p), hatch in zip(axes, settings.items(), HATCHES * len(settings), strict=False):
        ax.barh(range(len(labels)), p, color=SKY, edgecolor="black", linewidth=0.6, hatch=hatch)
        for y, value in enumerate(p):
            ax.text(value + 0.03 * widest, y, f"{value:.2f}" if value else "–", va="center", fontsize=9)
        ax.set(title=name, xlabel="probability", xlim=(0, 1.3 * widest), yticks=range(len(labels)))
        ax.set_yticklabels(labels, family="monospace")
        ax.tick_params(axis="y", length=0)
        ax.locator_params(axis="x", nbins=4)
        numbers |= {f"{name}: tokens that can be drawn": int((p > 0).sum()), f"{name}: likeliest": float(p.max())}
    axes[0].invert_yaxis()
    caption = (
        "Bar charts: next token (rows) against the probability with which it is drawn (x), one panel for each setting. "
        "A dash marks tokens that cannot be drawn."
    )
    return picture.describe(caption, **numbers)


@styled
def rounds_at_evaluation(rounds, scores, measure, trained_with):
    """A score against the rounds of hashing. scores (n draws of rotations, k rounds); measure: the score's name."""
    scores = np.asarray(scores, dtype=float)
    if scores.ndim != 2 or not len(scores) or scores.shape[1] != len(rounds) or not len(rounds):
        raise ValueError(f"scores must have shape (draws, {len(rounds)}), got {scores.shape}")
    picture = Picture(width=6, height=3.4)
    ax = picture.add_subplot()
    mean = scores.mean(axis=0)
    for row in scores:
        ax.plot(range(len(rounds)), row, color="#777777", ls="", marker="x", ms=6)
    ax.plot(range(len(rounds)), mean, color=BLUE, ls="-", marker="o", label="mean")
    ax.plot([], [], color="#777777", ls="", marker="x", label="one draw of rotations")
    ax.set(xticks=range(len(rounds)), xticklabels=rounds, xlabel="rounds of hashing at evaluation", ylabel=measure)
    ax.margins(x=0.08, y=0.15)
    ax.legend()
    caption = (
        f"Line chart: rounds of hashing at evaluation (x) against {measure} (y) for one set of weights, trained with "
        f"{trained_with}; crosses are single draws of rotations, the line is their mean."
    )
    return picture.describe(caption, **{f"rounds {n}": float(value) for n, value in zip(rounds, mean, strict=True)})
