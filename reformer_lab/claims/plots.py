"""Pictures of the claims, from their records; nothing is computed here but means."""

import textwrap
from functools import partial

import numpy as np

from reformer_lab.claims.images import BASELINE, unpacked
from reformer_lab.claims.table import data_name
from reformer_lab.data.duplication import chance
from reformer_lab.plots.drawing import OKABE_ITO, Picture, readable_on, styled
from reformer_lab.plots.measured import source

HOLLOW = "Hollow: at the end, on all that is held out; the lines are of a part of it. "
MARKERS, DASHES = ("osD^vPX*", ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (8, 2))))


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
    for y, line in enumerate(lines):  # the range over the seeds, below our means
        for x, column in enumerate(columns):
            values = [100 * fraction for fraction in record["table"][line].get(column, [])]
            if len(values) > 1:
                text = f"{min(values):.1f} – {max(values):.1f}"
                colour = readable_on(colours(_mean(values) / 100))
                axes[1].text(x, y + 0.3, text, ha="center", va="center", fontsize=7, color=colour)
    axes[0].set_ylabel("trained with")
    for name, line in zip(lines, ours, strict=True):
        numbers[f"trained with {name}"] = " / ".join(f"{value:.1f}" for value in line)
    seeds = len(config["seeds"])
    return picture.describe(
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
    ax.axhline(-np.log2(chance(config["data"]["vocab_size"])), color="black", ls=(0, (1, 3)), marker="", label="chance")
    ax.set(xlabel="steps", ylabel="bits per symbol", title="Learning to duplicate", ylim=(0, None))
    ax.legend(fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    return picture.describe(
        "Line chart: steps (x) against the training loss in bits per symbol of the second w, a line for every run. All "
        "stay at chance for a while, then learn. " + source(record),
        **numbers,
    )


def _lines(ax, variants, numbers, order=(), unit="bits per byte"):
    """Learning curves of every variant {name: {"curves", "bits"}}: mean over seeds, a band from least to most.

    order: names that fix the colours, of panels side by side. The last evaluation is on more windows than those on the
    way, so that no line leads to it.
    """
    order = list(order or variants)
    for name, variant in variants.items():
        i = order.index(name)
        colour = OKABE_ITO[(4, 5, 2, 6, 0, 1)[i % 6]]
        steps = [step for step, _ in variant["curves"][0]][1:]  # without the untrained model
        values = np.array([[bits for _, bits in curve][1:] for curve in variant["curves"]])
        look = {"color": colour, "marker": MARKERS[i % 8], "lw": 1.3}
        ax.plot(steps[:-1], values.mean(0)[:-1], ls=DASHES[i % 8], ms=3, label=name, **look)
        ax.plot(steps[-1:], values.mean(0)[-1:], ls="", ms=6, fillstyle="none", **look)
        ax.fill_between(steps[:-1], values.min(0)[:-1], values.max(0)[:-1], color=colour, alpha=0.15, lw=0)
        numbers[name] = f"{_mean(variant['bits']):.3f} {unit}"
    ax.set(xlabel="steps", ylabel=f"{unit}, held out")
    ax.legend(fontsize=8)


def _zoom(ax, variants):
    """The y axis from below the best to above what all have reached after a quarter of the steps."""
    early = [curve[max(1, len(curve) // 4)][1] for v in variants.values() for curve in v["curves"]]
    least = min(min(bits for _, bits in curve) for v in variants.values() for curve in v["curves"])
    highest = max(early)
    ax.set_ylim(least - 0.08 * (highest - least) - 1e-3, highest + 1e-3)


@styled
def figure3(record):
    """Learning curves: shared against separate queries and keys; reversible against ordinary residuals."""
    picture, numbers, variants = Picture(9, 3.8), {}, record["variants"]
    axes = picture.subplots(1, 2, sharey=True)
    for ax, title, names in (
        (axes[0], "Queries and keys", ("separate-ordinary", "shared-ordinary")),
        (axes[1], "Residuals", ("shared-ordinary", "shared-reversible", "separate-ordinary", "separate-reversible")),
    ):
        compared = {name: variants[name] for name in names if name in variants}
        if compared:
            _lines(ax, compared, numbers, order=variants)
        ax.set_title(title)
    _zoom(axes[0], variants)
    return picture.describe(
        "Two line charts: steps (x) against held-out bits per byte (y), mean and range over the seeds, of models with "
        "equal numbers of parameters: separate against shared queries and keys, ordinary against reversible residuals. "
        + HOLLOW
        + source(record),
        **numbers,
    )


@styled
def figure4(record):
    """Learning curves by rounds of training; final loss by rounds of evaluation."""
    picture, numbers, variants = Picture(9, 4), {}, record["variants"]
    left, right = picture.subplots(1, 2)
    _lines(left, variants, numbers)
    _zoom(left, variants)
    left.set_title("Trained with")
    names = record["config"]["evaluate"]
    for i, (name, variant) in enumerate(variants.items()):
        colour = OKABE_ITO[(4, 5, 2, 6, 0, 1)[i % 6]]
        values = [_mean(variant["evaluated"][at]) for at in names]
        right.plot(range(len(names)), values, color=colour, ls=DASHES[i % 8], marker=MARKERS[i % 8], label=name)
        numbers[f"{name}, evaluated with {names[0]}"] = f"{values[0]:.3f}"
    right.set(xticks=range(len(names)), xticklabels=names, xlabel="evaluated with", ylabel="bits per byte, held out")
    right.set_title("Evaluated with other attention")
    return picture.describe(
        "Two line charts: held-out bits per byte (y) against steps (x) for models trained with full attention and with "
        "1 to 8 rounds; and at the end against the attention of evaluation (x), a line for each of training. "
        + HOLLOW
        + source(record),
        **numbers,
    )


@styled
def figure5_depth(record):
    """Learning curves by depth; predicted bytes of activations by depth."""
    picture, numbers, variants = Picture(9, 3.8), {}, record["variants"]
    left, right = picture.subplots(1, 2)
    _lines(left, {f"{depth} layers": v for depth, v in variants.items()}, numbers)
    _zoom(left, variants)
    left.set_title("Loss by depth")
    depths = [int(depth) for depth in variants]
    for name, label in (("stored", "activations stored"), ("reversible", "reversible")):
        values = [v["activations_bytes"][name] / 2**20 for v in variants.values()]
        right.plot(depths, values, label=label)
        numbers[f"{label}, {depths[-1]} layers"] = f"{values[-1]:.0f} MiB"
    right.set(xlabel="layers", ylabel="MiB", title="Activations of a training step, predicted", ylim=(0, None))
    right.legend(fontsize=9)
    return picture.describe(
        "Two line charts: steps (x) against held-out bits per byte (y) of models of 1 to many layers; layers (x) "
        "against predicted bytes of activations (y) of one training step, reversible and not. "
        + HOLLOW
        + source(record),
        **numbers,
    )


@styled
def counts(record):
    """Collisions by angle, attention recalled by rounds, error of the gradient by depth."""
    picture, numbers = Picture(10, 3.6), {}
    left, middle, right = picture.subplots(1, 3)
    if "collisions" in record:
        c = record["collisions"]
        for i, (rounds, fractions) in enumerate(c["any"].items()):
            colour = OKABE_ITO[(4, 5, 2, 6)[i % 4]]
            left.plot(c["angles"], c["expected"][rounds], color=colour, ls=DASHES[i % 4], marker="")
            left.plot(c["angles"], fractions, color=colour, ls="", marker=MARKERS[i])
            left.plot([], [], color=colour, ls=DASHES[i % 4], marker=MARKERS[i], label=rounds)
            numbers[f"collide at {c['angles'][1]}° in {rounds} rounds"] = f"{100 * fractions[1]:.1f} %"
        left.legend(title="rounds", fontsize=8)
    left.set(xlabel="angle, degrees", ylabel="chance of a common bucket", title="Collisions", ylim=(0, 1.03))
    if "recall" in record:
        r = record["recall"]
        rounds = [int(n) for n in r["mass"]]
        middle.plot(rounds, [100 * x for x in r["mass"].values()], label="weight of full attention")
        middle.plot(rounds, [100 * x for x in r["pairs"].values()], label="pairs that are shown")
        middle.legend(fontsize=8)
        numbers |= {f"weight recalled in {n} rounds": f"{100 * x:.1f} %" for n, x in r["mass"].items()}
    middle.set(xlabel="rounds", ylabel="%", title="Attention recalled", ylim=(0, 103))
    if "reconstruction" in record:
        e = record["reconstruction"]
        for name, errors in e["gradients"].items():
            right.plot(e["depths"], errors, label=name)
            numbers[f"gradient, {name}, {e['depths'][-1]} layers"] = f"{errors[-1]:.1e}"
        right.legend(fontsize=8)
    right.set(xscale="log", yscale="log", xlabel="layers", ylabel="relative error", title="Gradient, reversible")
    return picture.describe(
        "Three line charts: the chance that two vectors share a bucket in any of several rounds against their angle "
        "(markers measured, lines expected from one round); the share of full attention's weight, and of the pairs, "
        "that LSH attention shows, against the rounds, in a trained model; the relative error of the gradient of a "
        "reversible model against its depth, by number format. " + source(record),
        **numbers,
    )


@styled
def figure5_speed(record):
    """Seconds per batch of a constant number of tokens, and counted bytes, against the length."""
    from matplotlib.ticker import LogLocator

    picture, numbers, points = Picture(9, 4), {}, record["points"]
    left, right = picture.subplots(1, 2)
    lengths = [point["length"] for point in points]
    for i, name in enumerate(record["config"]["attention"]):
        look = {"color": "#000000" if name == "full" else OKABE_ITO[(4, 5, 2, 6)[i % 4]], "marker": MARKERS[i]}
        seconds, counted = ([point[key][name] for point in points] for key in ("seconds", "bytes"))
        label = "full (time: fused kernel; memory: with the matrix of weights)" if name == "full" else name
        left.plot(lengths, seconds, ls=DASHES[i % 8], label=label, **look)
        right.plot(lengths, [b / 2**20 for b in counted], ls=DASHES[i % 8], **look)
        if i == len(record["config"]["attention"]) - 1:
            right.annotate("the LSH lines lie on each other", (lengths[-1], counted[-1] / 2**20), (0, 6),
                           textcoords="offset points", ha="right", fontsize=9)  # fmt: skip
        if name in record["exponents"]:
            fit = record["exponents"][name]
            numbers[name] = f"time of a sequence l^{fit['seconds']:.2f}, memory l^{fit['bytes']:.2f}"
    for ax, ylabel, title in ((left, "seconds", "Time, forward and backward"), (right, "MiB", "Memory, counted")):
        ax.set(xscale="log", yscale="log", xlabel="tokens in a sequence", ylabel=ylabel, title=title)
        ax.set_xticks(lengths, [f"{n:,}" for n in lengths], rotation=30)
        ax.minorticks_off()
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
        ax.grid(axis="y", color="0.9")
    picture.legend(loc="outside lower center", ncols=4, fontsize=9)
    return picture.describe(
        f"Two line charts on logarithmic axes: tokens in one sequence (x) against seconds, and counted peak memory, of "
        f"attention over {record['config']['tokens']:,} tokens in all, forward and backward. LSH attention stays "
        "nearly flat, full attention grows with the length; its time is that of a fused kernel, its memory that of the "
        "paper's formula, with the matrix of weights. " + source(record),
        **numbers,
    )


@styled
def headline(record):
    """Peaks of a training step on a million tokens as bars against the budget."""
    runs = record["runs"]
    picture, numbers = Picture(8, 1.4 + 0.6 * len(runs)), {}
    ax, budget = picture.add_subplot(), record["config"]["budget_bytes"] / 1e9
    names = {"recorded": "CPU, measured", "cuda": "CUDA, measured"}
    labels = [names.get(run["name"], f"CUDA, {run['name'].replace('-', ', ')}") for run in runs]
    values = [run["result"]["peak_bytes"] / 1e9 for run in runs]
    hatches = ["" if run["name"] in names else "//" for run in runs]
    ax.barh(labels, values, 0.6, color=OKABE_ITO[1], edgecolor="white", hatch=hatches)
    for y, (label, value) in enumerate(zip(labels, values, strict=True)):
        ax.text(value, y, f" {value:.2f} GB", va="center", fontsize=9)
        numbers[label] = f"{value:.2f} GB"
    ax.axvline(budget, color=OKABE_ITO[5], ls="--", marker="", label=f"{budget:g} GB")
    ax.set(xlabel="GB (10⁹ bytes)", title=f"A training step on {record['config']['length']:,} tokens, peak memory")
    ax.set_xlim(0, 1.15 * max(budget, *values))
    ax.invert_yaxis()
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return picture.describe(
        "Bars: peak memory of one training step on one sequence, measured (plain) and predicted (hatched), against the "
        "announced 16 GB (dashed). The small model has 6 layers and d_model 256, the large one 12 and 512. "
        + source(record),
        **numbers,
    )


@styled
def long_text(record):
    """Bits per byte of the end of a text against the context, beside a compressor, and by themselves."""
    picture, numbers, points = Picture(9, 3.8), {}, record["contexts"]
    left, right = picture.subplots(1, 2)
    lengths, bits = [p["context"] for p in points], [_mean(p["bits"]) for p in points]
    result = record["runs"][0]["result"]
    left.axhline(result["unigram"], color="black", ls="--", marker="", label="frequencies of bytes")
    left.axhline(result["zlib"], color="black", ls=":", marker="", label="zlib -9, the end by itself")
    for length, value in zip(lengths, bits, strict=True):
        numbers[f"{length:,} bytes of context"] = f"{value:.3f}"
    for ax, title in ((left, "The end of a text"), (right, "The same, enlarged")):
        ax.plot(lengths, bits, color=OKABE_ITO[4], label="this model")
        ax.set(xscale="log", xlabel="bytes of context, at least", ylabel="bits per byte", title=title)
        ax.set_xticks(lengths, [f"{n:,}" for n in lengths], rotation=30, ha="right")
        ax.minorticks_off()
    left.set_ylim(0, None)
    left.legend(fontsize=9, loc="lower left")
    return picture.describe(
        f"Two line charts: bytes of context (x, logarithmic) against bits per byte (y) of the last "
        f"{result['held_out_bytes']:,} bytes of a text, by a model that was trained on windows of all before them, "
        f"and in its last {record['config']['data']['whole_steps']} steps on all of it as one sequence. "
        + source(record),
        **numbers,
    )


@styled
def full_size(record):
    """Predicted days of the paper's models, as points on a logarithmic axis."""
    days, sizes = record["days"], record["config"]["sizes"]
    picture, numbers = Picture(9, 1.4 + 0.5 * len(days)), {}
    ax = picture.add_subplot()
    labels = [sizes[name]["what"].partition(":")[0] for name in days]
    ax.plot(list(days.values()), labels, ls="", marker="D", ms=8, color=OKABE_ITO[4])  # no bars: there is no zero
    for y, (name, value) in enumerate(days.items()):
        ax.text(value, y, f"    {value:,.0f} days for {sizes[name]['steps']:,} steps", va="center", fontsize=9)
        numbers[sizes[name]["what"]] = f"{value:,.0f} days"
    ax.set(xscale="log", xlabel="days on this machine, predicted", title="The paper's sizes, trained here")
    if days:
        ax.set_xlim(min(days.values()) / 3, 30 * max(days.values()))
    ax.invert_yaxis()
    return picture.describe(
        "Points on a logarithmic axis: days that training the paper's models would take on this machine, predicted "
        "from counted operations and a pace. The pace: " + source(record),
        **numbers,
    )


# Images

PAPER_BLUE = "#DCE6F2"  # where nothing was given
IMAGE_LOOKS = {"model": ("Reformer", OKABE_ITO[4], ""), BASELINE: (BASELINE, OKABE_ITO[1], "//")}


@styled
def images_gallery(record):
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
                _draw_image(ax, pixels, levels, given_only=column == 1)
                if line == 0:
                    ax.set_title(_image_heading(column, count), fontsize=7, loc="center")
    return picture.describe(
        f"A grid of images of {' × '.join(map(str, originals.shape[1:]))} pixels in {levels} levels of grey, from the "
        f"held-out part of {data_name(record)}: beside each original its upper half, which is all "
        f"that is given, {count} lower halves drawn by the Reformer, and one drawn from a table of the frequencies of "
        f"10 neighbouring pixels. The Reformer's go on with the strokes that are given, often to something that was "
        f"meant. " + source(record),
        **{"images": n, "samples of each": count, "temperature": kept["temperature"]},
    )


def _image_heading(column, count):
    return ["original", "given", *[f"sample {k + 1}" for k in range(count)], "table"][column]


def _draw_image(ax, pixels, levels, given_only):
    """One image, white on black; where nothing is given, a hatched field."""
    height, width = pixels.shape
    ax.imshow(pixels, cmap="gray", vmin=0, vmax=levels - 1, interpolation="nearest")
    if given_only:
        middle_row = height // 2
        ax.fill_between(
            [-0.5, width - 0.5],
            middle_row - 0.5,
            height - 0.5,
            facecolor=PAPER_BLUE,
            hatch="///",
            edgecolor="#8899AA",
            lw=0,
        )
    ax.set(xticks=[], yticks=[], xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    ax.spines[:].set_visible(False)


@styled
def images_bits(record):
    """Bits per pixel of the model and the baselines, whole images and lower halves; the loss in training."""
    picture = Picture(9, 3.6)
    left, right = picture.subplots(1, 2, width_ratios=(3, 2))
    numbers, names = {}, list(record["bits"])
    for y, who in enumerate(names):
        label, colour, hatch = IMAGE_LOOKS.get(who, (who, OKABE_ITO[7], ".."))
        entry = record["bits"][who]
        for part, offset, alpha in (("whole", -0.2, 1.0), ("lower", 0.2, 0.55)):
            if entry[part]:
                value = float(np.mean(entry[part]))
                left.barh(y + offset, value, 0.36, color=colour, hatch=hatch, alpha=alpha, edgecolor="white")
                left.text(value, y + offset, f" {value:.3f} {part}", va="center", fontsize=8)
                numbers[f"{label}, {part}"] = value
    left.set(
        yticks=range(len(names)),
        yticklabels=[IMAGE_LOOKS.get(who, (who,))[0] for who in names],
        xlabel="bits per pixel",
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
    return picture.describe(
        f"Bar chart: bits per pixel (x) of held-out images of {data_name(record)}, of whole images and of "
        "lower halves whose upper halves are given, for the Reformer, a table counted from many images, and "
        "compressors of the held-out images alone; line chart: the Reformer's loss (y) against steps (x). "
        + source(record),
        **numbers,
    )


# Translation

TRANSLATION_LOOKS = {"reversible": (OKABE_ITO[4], "-", ""), "ordinary": (OKABE_ITO[5], "--", "//")}


@styled
def translation(record):
    """Held-out bits per predicted token against steps, reversible and ordinary; BLEU of both and of the baselines."""
    picture = Picture(9.5, 3.8)
    numbers = {}
    labelled = set()
    left, right = picture.subplots(1, 2)
    for run in record["runs"]:
        kind = run["name"].partition("-")[0]
        colour, dashes, _ = TRANSLATION_LOOKS[kind]
        looks = {"color": colour, "marker": "o" if kind == "reversible" else "s", "lw": 1.3}
        x, y = zip(*run["result"]["held_out_curve"], strict=True)
        left.plot(x[:-1], y[:-1], ls=dashes, ms=4, label=None if kind in labelled else kind, **looks)
        left.plot(x[-1:], y[-1:], ls="", ms=6, fillstyle="none", **looks)
        labelled.add(kind)
        numbers[f"bits per predicted token, {run['name']}"] = run["result"]["bits"]
    left.set(xlabel="steps", ylabel="bits per predicted token, held out", yscale="log", title="Learning")
    left.legend(fontsize=8)
    for y, (who, values) in enumerate(record["bleu"].items()):
        colour, _, hatch = TRANSLATION_LOOKS.get(who.partition(",")[0], (OKABE_ITO[7], "", ".."))
        value = float(np.mean(values))
        right.barh(y, value, 0.7, color=colour, hatch=hatch, edgecolor="white")
        right.text(value, y, f" {value:.1f}", va="center", fontsize=9)
        numbers[f"BLEU, {who}"] = value
    most = 1.25 * max(numbers[f"BLEU, {who}"] for who in record["bleu"]) or 1.0  # space for the number
    right.set(yticks=range(len(record["bleu"])), yticklabels=list(record["bleu"]), xlabel="BLEU", xlim=(0, most))
    right.set_title("Translating")
    right.invert_yaxis()
    return picture.describe(
        f"Line chart, logarithmic in height: bits per predicted token, mean of held-out sentences (y), against steps "
        f"(x), reversible and ordinary models of equal parameters, {data_name(record)}; bar chart: BLEU of "
        f"their translations, and of a learned dictionary and of copying the nearest sentence. "
        + HOLLOW
        + source(record),
        **numbers,
    )


@styled
def translation_examples(record):
    """A few held-out sentences: source, reference, the reversible model's translation, a word-by-word one."""
    result, model = record["runs"][0]["result"], record["runs"][0]["name"].partition("-")[0]
    who = (("source",) * 2, ("reference",) * 2, (result["beams"], model), ("word by word",) * 2)
    sentences, right = result["examples"], 0
    picture = Picture(10, 0.3 + 0.98 * len(sentences))
    ax = picture.add_subplot()
    for i, example in enumerate(sentences):
        right += example[result["beams"]] == example["reference"]
        for k, (key, label) in enumerate(who):
            y = i + 0.14 + 0.21 * k
            text = textwrap.shorten(_writable(example[key]), 118, placeholder=" …").replace("$", r"\$")
            ax.text(0.0, y, label, fontsize=7.5, color="#555555", va="center")
            ax.text(0.11, y, text, fontsize=9, va="center", weight="bold" if k == 2 else "normal")
        ax.axhline(i + 0.92, color="#CCCCCC", lw=0.8, marker="")
    for text in ax.texts:
        text.set_in_layout(False)
    ax.set(xlim=(0, 1), ylim=(len(sentences), 0), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    return picture.describe(
        "A table of texts: held-out sentences, their right translations, the model's (bold), and those of a dictionary "
        "that was learned from the same pairs. " + source(record),
        **{"examples": len(sentences), "of them translated without a fault": right},
    )


def _writable(text):
    """The text with a dot for every character that the picture's font lacks."""
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont("DejaVu Sans"))
    return "".join(c if c.isprintable() and font.get_char_index(ord(c)) else "·" for c in text)


PICTURES = {
    "table2": {"table2": table2, "table2_curves": table2_curves}, "counts": {"counts": counts},
    "figure3": {"figure3": figure3}, "figure4": {"figure4": figure4}, "figure5_depth": {"figure5_depth": figure5_depth},
    "figure5_speed": {"figure5_speed": figure5_speed}, "headline": {"headline": headline},
    "full_size": {"full_size": full_size}, "long_text": {"long_text": long_text},
    "images": {"images_gallery": images_gallery, "images_bits": images_bits},
    "fashion": {"fashion_gallery": images_gallery, "fashion_bits": images_bits},
    "translation": {"translation": translation, "translation_examples": translation_examples},
}  # fmt: skip


def pictures(record):
    """{name: function that draws it} of all pictures of a record, by the name of its claim."""
    if record["claim"] == "figure5_speed" and not record["points"]:
        return {}
    return {f"claim_{name}": partial(draw, record) for name, draw in PICTURES[record["claim"]].items()}
