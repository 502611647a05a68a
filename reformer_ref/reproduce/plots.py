"""Pictures of the claims, from their records; nothing is computed here but means."""

import numpy as np

from reformer_ref.drawing import OKABE_ITO, Picture, number, readable_on, styled
from reformer_ref.measured_plots import source

MARKERS, DASHES = "osD^vPX*", ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))


def _mean(values):
    return float(np.mean(values)) if len(values) else float("nan")


@styled
def table2(record):
    """Two tables of cells side by side: the paper's accuracies, ours."""
    import matplotlib

    picture = Picture(9, 3.4)
    axes, numbers, config = picture.subplots(1, 2, sharey=True), {}, record["config"]
    columns, lines = config["columns"], config["train"]
    paper = [[config["paper"][line][column] for column in columns] for line in lines]
    ours = [[100 * _mean(record["table"][line].get(column, [])) for column in columns] for line in lines]
    colours = matplotlib.colormaps["cividis"]
    for ax, cells, title in zip(axes, (paper, ours), ("The paper's", "Ours"), strict=True):
        ax.imshow(np.nan_to_num(cells), cmap=colours, vmin=0, vmax=100, aspect="auto")
        for y, line in enumerate(cells):
            for x, value in enumerate(line):
                text = "–" if np.isnan(value) else f"{value:.1f}"
                ax.text(x, y, text, ha="center", va="center", color=readable_on(colours(np.nan_to_num(value) / 100)))
        ax.set(xticks=range(len(columns)), xticklabels=columns, yticks=range(len(lines)), yticklabels=lines)
        ax.set(title=title, xlabel="evaluated with")
        ax.spines[:].set_visible(False)
    axes[0].set_ylabel("trained with")
    for name, line in zip(lines, ours, strict=True):
        numbers[f"trained with {name}"] = " / ".join(f"{value:.1f}" for value in line)
    seeds = len(config["seeds"])
    return picture.tell(
        f"Two tables of coloured cells: accuracy in percent on the second half of 0w0w, sequences of "
        f"{config['data']['length']:,} tokens, by the attention of training (rows) and of evaluation (columns), the "
        f"paper's Table 2 and ours (mean of {seeds} seed{'s' * (seeds > 1)}). " + source(record),
        **numbers,
    )


@styled
def table2_curves(record):
    """Loss against steps of every training run."""
    picture, numbers = Picture(7.5, 3.8), {}
    ax, config = picture.add_subplot(), record["config"]
    for i, name in enumerate(config["train"]):
        label = name
        for run in record["runs"]:
            if run["name"].rpartition("-seed")[0] == name:
                x, y = zip(*run["result"]["curve"], strict=True)
                ax.plot(x, y, color=OKABE_ITO[(4, 5, 2, 6)[i % 4]], ls=DASHES[i % 4], marker="", label=label, lw=1.2)
                label = None
                numbers.setdefault(f"steps, {name}", []).append(run["result"]["steps"])
    numbers = {name: ", ".join(f"{n:,}" for n in steps) for name, steps in numbers.items()}
    ax.axhline(np.log2(config["data"]["vocab_size"] - 1), color="black", ls=(0, (1, 3)), marker="", label="chance")
    ax.set(xlabel="steps", ylabel="bits per symbol", title="Learning to duplicate", ylim=(0, None))
    ax.legend(fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    return picture.tell(
        "Line chart: steps (x) against the training loss in bits per symbol of the second w, a line for every run. All "
        "stay at chance for a while, then learn within a few hundred steps. " + source(record),
        **numbers,
    )


__all__ = ["number", "table2", "table2_curves"]
