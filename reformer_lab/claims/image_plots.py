"""Pictures of the claims about images, from their records."""

import numpy as np

from reformer_lab.claims.images import BASELINE, unpacked
from reformer_lab.claims.table import data_name
from reformer_lab.plots.drawing import OKABE_ITO, Picture, styled
from reformer_lab.plots.measured import source

PAPER_BLUE = "#DCE6F2"  # where nothing was given
LOOKS = {"model": ("Reformer", OKABE_ITO[4], ""), BASELINE: (BASELINE, OKABE_ITO[1], "//")}


@styled
def gallery(record):
    """Rows of held-out images: original, what was given, completions by the model, one by the table of neighbours."""
    result = record["runs"][0]["result"]
    kept, levels = result["gallery"], result["levels"]
    originals, samples, others = (unpacked(kept[name]) for name in ("originals", "completions", "by_table"))
    n, count = samples.shape[:2]
    blocks = 2 if n > 4 else 1
    lines, wide = -(-n // blocks), count + 3
    picture = Picture(blocks * (0.62 * wide + 0.3), 0.62 * lines + 0.45)
    grids = picture.add_gridspec(1, blocks, wspace=0.08)
    for block in range(blocks):
        inner = grids[block].subgridspec(lines, wide, wspace=0.05, hspace=0.05)
        for line in range(min(lines, n - block * lines)):
            i = block * lines + line
            cells = [originals[i], originals[i], *samples[i], others[i]]
            for column, pixels in enumerate(cells):
                ax = picture.add_subplot(inner[line, column])
                _show(ax, pixels, levels, given_only=column == 1)
                if line == 0:
                    ax.set_title(_heading(column, count), fontsize=7, loc="center")
    return picture.tell(
        f"A grid of images of {' × '.join(map(str, originals.shape[1:]))} pixels in {levels} levels of grey, from the "
        f"held-out part of {data_name(record)}: beside each original its upper half, which is all "
        f"that is given, {count} lower halves drawn by the Reformer, and one drawn from a table of the frequencies of "
        f"10 neighbouring pixels. The Reformer's go on with the strokes that are given, often to something that was "
        f"meant. " + source(record),
        **{"images": n, "samples of each": count, "temperature": kept["temperature"]},
    )


def _heading(column, count):
    return ["original", "given", *[f"sample {k + 1}" for k in range(count)], "table"][column]


def _show(ax, pixels, levels, given_only):
    """One image, white on black; where nothing is given, a hatched field."""
    height, width = pixels.shape
    ax.imshow(pixels, cmap="gray", vmin=0, vmax=levels - 1, interpolation="nearest")
    if given_only:
        half = height // 2
        ax.fill_between(
            [-0.5, width - 0.5], half - 0.5, height - 0.5, facecolor=PAPER_BLUE, hatch="///", edgecolor="#8899AA", lw=0
        )
    ax.set(xticks=[], yticks=[], xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    ax.spines[:].set_visible(False)


@styled
def bits(record):
    """Bits per pixel of everybody, whole images and lower halves; beside it the loss of the training batches."""
    picture = Picture(9, 3.6)
    left, right = picture.subplots(1, 2, width_ratios=(3, 2))
    numbers, names = {}, list(record["bits"])
    for y, who in enumerate(names):
        label, colour, hatch = LOOKS.get(who, (who, OKABE_ITO[7], ".."))
        entry = record["bits"][who]
        for part, offset, alpha in (("whole", -0.2, 1.0), ("lower", 0.2, 0.55)):
            if entry[part]:
                value = float(np.mean(entry[part]))
                left.barh(y + offset, value, 0.36, color=colour, hatch=hatch, alpha=alpha, edgecolor="white")
                left.text(value, y + offset, f" {value:.3f} {part}", va="center", fontsize=8)
                numbers[f"{label}, {part}"] = value
    left.set(
        yticks=range(len(names)), yticklabels=[LOOKS.get(who, (who,))[0] for who in names], xlabel="bits per pixel"
    )
    left.set_xlim(0, 1.3 * max(max(entry["whole"]) for entry in record["bits"].values()))
    left.invert_yaxis()
    for k, run in enumerate(record["runs"]):
        x, y = zip(*run["result"]["curve"], strict=True)
        label = f"Reformer, training batches, {run['name']}"
        right.plot(x, y, marker="", lw=1.2, label=label, ls=("-", "--", "-.", ":")[k % 4])
    held_out = np.mean(record["bits"][BASELINE]["whole"])
    right.axhline(held_out, color="black", ls=(0, (1, 3)), marker="", label=f"{BASELINE}, held out")
    right.set(xlabel="steps", ylabel="bits per pixel, training", ylim=(0, None))
    right.legend(fontsize=8)
    return picture.tell(
        f"Bar chart: bits per pixel (x) of held-out images of {data_name(record)}, of whole images and of "
        "lower halves whose upper halves are given, for the Reformer, a table counted from many images, and "
        "compressors of the held-out images alone; line chart: the Reformer's loss (y) against steps (x). "
        + source(record),
        **numbers,
    )
