"""Pictures of memory and speed from recorded, counted or predicted figures; drawing them measures nothing.

Records are the files ``reformer_lab/records/*.json`` of the commands ``bench`` and ``million``. Each caption drawn from
them names the command, the machine and the date that the record gives.
"""

import json
import os
import shlex
from pathlib import Path

import numpy as np
from reformer_ref._arguments import as_array, clear_errors, short_repr

from reformer_lab import records
from reformer_lab.planner import format_bytes
from reformer_lab.plots.drawing import OKABE_ITO, Picture, number, styled

DATA = records.FOLDER
# label, colour, marker and line of each contender, in the order of a legend
LOOKS = {
    "ours-trax": ("reformer_ref, trax", OKABE_ITO[4], "o", "-"),
    "ours-paper": ("reformer_ref, paper", OKABE_ITO[1], "s", "-"),
    "ours-strict": ("reformer_ref, strict", OKABE_ITO[2], "D", "-"),
    "ours": ("reformer_ref", OKABE_ITO[4], "o", "-"),
    "reformer-pytorch": ("reformer-pytorch", OKABE_ITO[5], "^", "--"),
    "huggingface": ("transformers", OKABE_ITO[6], "v", "--"),
    "dense": ("dense", "#000000", "P", ":"),
    "matmul": ("matrix products alone", OKABE_ITO[7], "x", "-."),
}
HATCHES = {"ours": "", "reformer-pytorch": "//", "huggingface": ".."}
WORK = {  # phases of a training step, as ``million`` times them: colour and hatch
    "forward, lsh attention": (OKABE_ITO[4], ""),
    "backward, lsh attention": (OKABE_ITO[1], "//"),
    "forward, feed-forward": (OKABE_ITO[5], ""),
    "backward, feed-forward": (OKABE_ITO[0], "xx"),
    "embedding, loss, optimiser": (OKABE_ITO[7], ".."),
}
PART_STYLES = {  # the parts of a predicted peak: colour and hatch
    "parameters": ("black", ""),
    "gradients": (OKABE_ITO[5], ".."),
    "optimizer": (OKABE_ITO[6], "xx"),
    "streams": (OKABE_ITO[4], ""),
    "working set": (OKABE_ITO[1], "//"),
}
MIB, GIB = 2**20, 2**30


def read(name):
    """The record ``reformer_lab/records/name.json``, a dict; ValueError if there is none of this name."""
    if not isinstance(name, str):
        raise TypeError(f"name must be that of a record in reformer_lab/records, got {short_repr(name)}")
    path = DATA / f"{name}.json"
    if Path(name).name != name or not os.path.isfile(path):
        names = ", ".join(sorted(p.stem for p in DATA.glob("*.json"))) or "none"
        raise ValueError(f"name must be a record in reformer_lab/records, got {short_repr(name)}; there are {names}")
    return json.loads(path.read_text(encoding="utf-8"))


def recorded(name):
    """``read(name)``, or None where this was not measured yet."""
    return read(name) if (DATA / f"{name}.json").is_file() else None


@clear_errors
def source(*records):
    """How records were measured, in a sentence: commands, machine, date."""
    if not records:
        raise ValueError("records must be at least one, got none")
    commands, machines, dates = [], [], []
    for record in records:
        words = shlex.split(record["command"])
        if "--out" in words:  # not part of the measurement
            del words[words.index("--out") : words.index("--out") + 2]
        words = [word for word in words if word != "--no-progress"]
        commands.append(" ".join(word.rpartition("/")[2] for word in words))
        m = record["machine"]
        threads = f"{m['threads']} thread{'s' * (m['threads'] > 1)}"
        machines.append(f"{m['cpu']}, {m['cores']} cores, {threads}, {m['system']}")
        dates.append(record["date"][:10])
    commands, machines, dates = (list(dict.fromkeys(texts)) for texts in (commands, machines, dates))
    return f"Measured by “{'”, “'.join(commands)}” on {'; '.join(machines)}; {', '.join(dates)}."


@clear_errors
def medians(records, quantity="median", **where):
    """{contender: (lengths, values)}, by length, of all contenders that finished.

    quantity: "median" (seconds) or "above_start_bytes"; where: values that a point must have, such as n_hashes=4.
    """
    values = {}
    for record in records:
        for point in record["points"]:
            if all(point[name] == value for name, value in where.items()):
                for result in point["results"]:
                    if result["status"] == "ok":
                        values.setdefault(result["contender"], {})[point["length"]] = result[quantity]
    return {
        name: tuple(np.array(x) for x in zip(*sorted(values[name].items()), strict=True))
        for name in LOOKS
        if name in values
    }


def exponent(x, y):
    """p of the power law y ∝ x^p that fits best: the slope of a straight line through log x, log y."""
    x, y = (as_array(name, value) for name, value in (("x", x), ("y", y)))
    if x.dtype.kind not in "iuf" or y.dtype.kind not in "iuf":
        raise TypeError(f"x and y must hold numbers, got {x.dtype} and {y.dtype}")
    x, y = x.astype(float), y.astype(float)
    if x.shape != y.shape or x.ndim != 1 or len(x) < 2 or not (np.isfinite(x + y) & (x > 0) & (y > 0)).all():
        raise ValueError(f"x and y must be two equally long rows of positive numbers, got shapes {x.shape}, {y.shape}")
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


@styled
def attention_by_length(records):
    """Seconds, and memory above the inputs, against the length, for all contenders."""
    picture = Picture(9, 4.4)
    left, right = picture.subplots(1, 2)
    numbers = {}
    seconds = medians(records, n_hashes=4)
    memory = medians(records, "above_start_bytes", n_hashes=4)
    for name, (lengths, values) in seconds.items():
        label, colour, marker, line = LOOKS[name]
        left.plot(lengths, values, color=colour, marker=marker, ls=line, label=label)
        numbers[f"{label} at {lengths[-1]:,} tokens"] = f"{number(values[-1])} s"
        if name != "matmul":
            right.plot(lengths, memory[name][1] / MIB, color=colour, marker=marker, ls=line)
            numbers[f"{label} at {lengths[-1]:,} tokens"] += f", {number(memory[name][1][-1] / MIB)} MiB"
    _axes(left, "tokens", "seconds", "Forward and backward", _all_lengths(seconds))
    _axes(right, "tokens", "MiB above the inputs", "Peak memory", _all_lengths(seconds))
    picture.legend(loc="outside lower center", ncols=4, fontsize=9)
    return picture.describe(
        "Two line charts on logarithmic axes: tokens (x) against seconds, and against peak memory above the inputs, of "
        "causal attention with 8 heads of 64 and 4 rounds, forward and backward. LSH grows with the length, dense "
        "attention in time with its square. " + source(*records),
        **numbers,
    )


@styled
def matmul_rate(records):
    """How much of the machine's rate of batched matrix products our attention reaches, against the length."""
    picture = Picture(7, 3.6)
    ax = picture.add_subplot()
    numbers = {}
    seconds = medians(records, n_hashes=4)
    if "matmul" not in seconds:
        raise ValueError("records must hold the contender matmul, to which rates refer")
    at = seconds["matmul"][0]
    matmul = dict(zip(*seconds["matmul"], strict=True))
    flops = {p["length"]: p["flops"] for r in records for p in r["points"]}
    for name, (lengths, values) in seconds.items():
        if name.startswith("ours"):
            label, colour, marker, line = LOOKS[name]
            percent = [100 * matmul[n] / value for n, value in zip(lengths, values, strict=True)]
            ax.plot(lengths, percent, color=colour, marker=marker, ls=line, label=label)
            numbers[f"{label} at {lengths[-1]:,} tokens"] = f"{number(percent[-1])} %"
    _axes(ax, "tokens", "% of the rate", "Fraction of the matrix-product rate", at, log_y=False)
    ax.set_ylim(0, 100)
    ax.legend()
    rate = flops[at[-1]] / matmul[at[-1]] / 1e9
    return picture.describe(
        "Line chart: tokens (x, logarithmic) against the time of the bare matrix products of plain windows in percent "
        "of the time of our attention; the rest is hashing, sorting, gathering and the softmax. " + source(*records),
        **numbers,
        **{"matrix products alone": f"{number(rate)} GFLOP/s"},
    )


@styled
def attention_by_rounds(record):
    """Seconds against the number of rounds, for all contenders, at the single length of the record."""
    picture = Picture(7, 3.8)
    ax, numbers = picture.add_subplot(), {}
    rounds = sorted({p["n_hashes"] for p in record["points"]})
    length = record["points"][0]["length"]
    times = {n: medians([record], n_hashes=n) for n in rounds}
    for name in times[rounds[0]]:
        label, colour, marker, line = LOOKS[name]
        measured = [n for n in rounds if name in times[n]]
        seconds = [times[n][name][1][0] for n in measured]
        ax.plot(measured, seconds, color=colour, marker=marker, ls=line, label=label)
        numbers[f"{label}, {measured[-1]} rounds"] = f"{number(seconds[-1])} s"
    _axes(ax, "rounds of hashing", "seconds", f"Attention, {length:,} tokens", rounds)
    ax.legend(fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    return picture.describe(
        f"Line chart on logarithmic axes: rounds of hashing (x) against seconds of forward and backward at {length:,} "
        "tokens. Each round costs about the same. " + source(record),
        **numbers,
    )


@styled
def crossover(record):
    """How many times as fast as dense attention, against the length, for each number of rounds in the record."""
    picture = Picture(7, 3.6)
    ax, numbers = picture.add_subplot(), {}
    for i, rounds in enumerate(sorted({p["n_hashes"] for p in record["points"]})):
        seconds = medians([record], n_hashes=rounds)
        (lengths, ours), (_, dense) = seconds["ours-trax"], seconds["dense"]
        label = f"{rounds} round{'s' * (rounds > 1)}"
        ax.plot(lengths, dense / ours, color=OKABE_ITO[(4, 5, 2, 6)[i % 4]], marker="os^D"[i % 4], label=label)
        first = next((int(n) for n, a, b in zip(lengths, ours, dense, strict=True) if b > a), "none measured")
        numbers[f"{label}: first length where LSH is faster"] = first
        numbers[f"{label}: times as fast at {lengths[-1]:,} tokens"] = float(dense[-1] / ours[-1])
    ax.axhline(1, color="black", ls=":", label="as fast as dense")
    _axes(ax, "tokens", "times as fast as dense", "Crossover of LSH and dense attention", lengths)
    ax.set_yscale("log", base=2)
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.legend()
    return picture.describe(
        "Line chart on logarithmic axes: tokens (x) against the time of dense attention over that of LSH attention; "
        "above the dotted line LSH is faster. " + source(record),
        **numbers,
    )


@styled
def training_step(records):
    """Seconds and peak memory of a whole training step, as bars, for each point of the records."""
    picture = Picture(9, 3.8)
    axes, numbers = picture.subplots(1, 2), {}
    points = sorted((p for record in records for p in record["points"]), key=lambda p: (p["length"], p["n_layers"]))
    for i, name in enumerate(HATCHES):
        for at, point in enumerate(points):
            result = next((r for r in point["results"] if r["contender"] == name and r["status"] == "ok"), None)
            if result is None:
                continue
            label, colour, *_ = LOOKS[name]
            heights = result["median"], result["above_start_bytes"] / GIB
            for ax, height in zip(axes, heights, strict=True):
                in_legend = label if at == 0 and ax is axes[0] else None
                x = at + 0.28 * (i - 1)
                ax.bar(x, height, 0.26, color=colour, hatch=HATCHES[name], edgecolor="white", label=in_legend)
                ax.text(x, height, number(height), ha="center", va="bottom", fontsize=8)
            numbers[f"{label}, {point['length']:,} tokens"] = f"{number(heights[0])} s, {number(heights[1])} GiB"
    if not numbers:
        raise ValueError(f"records must hold a step of one of {', '.join(HATCHES)} that has finished, got none")
    names = [f"{p['length']:,} tokens\n{p['n_layers']} layers" for p in points]
    for ax, ylabel, title in zip(axes, ("seconds", "GiB"), ("One training step", "Its peak memory"), strict=True):
        ax.set(xticks=range(len(points)), xticklabels=names, ylabel=ylabel, title=title)
        ax.margins(y=0.12)
    picture.legend(loc="outside lower center", ncols=3, fontsize=9)
    return picture.describe(
        "Two bar charts: seconds, and peak memory in GiB, of one training step (forward, loss, "
        "backward, Adam) of a small language model, d_model 256, 4 heads, 2 rounds. " + source(*records),
        **numbers,
    )


@styled
def million_steps(records):
    """Time per token by phase of the step, and the peak of the whole process, for sequences of growing length."""
    records = sorted(records, key=lambda r: r["text"]["used_bytes"])
    picture, numbers = Picture(9, 4), {}
    left, right = picture.subplots(1, 2, width_ratios=(3, 2))
    names = [f"{r['text']['used_bytes']:,}" for r in records]
    bottom = np.zeros(len(records))
    for phase, (colour, hatch) in WORK.items():
        heights = np.array([_microseconds(r, phase) for r in records])
        left.bar(names, heights, 0.7, bottom, color=colour, hatch=hatch, edgecolor="white", label=phase)
        bottom += heights
    peaks = [r["peak_rss_bytes"] / GIB for r in records]
    right.bar(names, peaks, 0.7, color=OKABE_ITO[2])
    for ax, values in ((left, bottom), (right, peaks)):
        for x, value in enumerate(values):
            ax.text(x, value, number(float(value)), ha="center", va="bottom", fontsize=9)
        ax.margins(y=0.1)
        ax.tick_params(axis="x", rotation=20)
    left.set(xlabel="tokens in one sequence", ylabel="µs per token", title="A training step, time per token")
    right.set(xlabel="tokens in one sequence", ylabel="GiB", title="Peak of the process")
    picture.legend(loc="outside lower center", ncols=3, fontsize=9)
    for name, micro, peak in zip(names, bottom, peaks, strict=True):
        numbers[f"{name} tokens"] = f"{number(float(micro))} µs per token, {number(peak)} GiB"
    return picture.describe(
        "Stacked bars: tokens in one sequence (x) against microseconds per token of one training step, by phase of the "
        "step; bars beside them: peak memory of the whole process. The time of a token hardly depends on how long its "
        "sequence is. " + source(*records),
        **numbers,
    )


@styled
def attention_on_gpu(prediction, measurement=None):
    """Time of LSH and dense attention on a GPU against the length: the record ``roofline``, and points of
    ``gpu_attention`` where it exists.
    """
    picture = Picture(7, 3.8)
    ax, numbers = picture.add_subplot(), {}
    entries = [p for p in prediction["predictions"] if (p["preset"], p["dtype"]) == ("trax", "bfloat16")]
    lengths = [p["length"] for p in entries]
    milliseconds = {
        key: 1e3 * np.array([p[key] for p in entries]) for key in ("seconds", "seconds_with_caches", "dense_seconds")
    }
    both = milliseconds["seconds_with_caches"], milliseconds["seconds"]
    ax.fill_between(lengths, *both, color=OKABE_ITO[1], alpha=0.6, label="LSH, predicted")
    ax.plot(lengths, milliseconds["dense_seconds"], color="black", ls="--", marker="", label="dense, predicted")
    for n in (16384, 65536):
        entry = next(p for p in entries if p["length"] == n)
        times = f"{entry['times_dense']:.1f} to {entry['times_dense_with_caches']:.1f}"
        numbers[f"{n:,} tokens, predicted"] = f"{times} × as fast as dense"
    origin = f"No time was measured. Predicted by “{prediction['command']}”."
    if measurement is not None:
        for name, (colour, marker) in {"triton": (OKABE_ITO[4], "o"), "dense": ("black", "s")}.items():
            by_length = {
                n: e for n in lengths for e in measurement["entries"] if e["name"] == f"{name}, {n} tokens, bfloat16"
            }
            points = {n: 1e3 * e["median_seconds"] for n, e in by_length.items() if e["status"] == "ok"}
            ax.plot(points.keys(), points.values(), marker, color=colour, ls="", label=f"{name}, measured")
            numbers |= {f"{name}, {n:,} tokens, measured": f"{number(ms)} ms" for n, ms in points.items()}
        origin = f"Measured on {measurement['gpu']['name']}. {source(measurement)}"
    _axes(ax, "tokens", "milliseconds", "Attention on an H200, forward and backward", lengths)
    ax.legend()
    return picture.describe(
        "Line chart on logarithmic axes: tokens (x) against milliseconds of attention, forward and backward, 8 heads "
        "of 64, 4 rounds, bfloat16. The band: LSH attention with hash and sort, from the case that every load comes "
        "from memory down to the case that caches keep all they can. " + origin,
        **numbers,
    )


def draw_parts(ax, rows):
    """Draw a stacked bar for each of ``rows`` {name: {part: bytes}} from top to bottom, its sum beside it; returns the
    widest sum in GB.
    """
    at = np.arange(len(rows))
    left = np.zeros(len(rows))
    for part, (colour, hatch) in PART_STYLES.items():
        widths = np.array([parts[part] for parts in rows.values()]) / 1e9
        ax.barh(at, widths, 0.7, left, color=colour, hatch=hatch, edgecolor="white", label=part)
        left += widths
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # the line of a budget may run through
    for y, gigabytes in zip(at, left, strict=True):
        ax.text(
            gigabytes + 0.005 * left.max(),
            y,
            format_bytes(gigabytes * 1e9),
            va="center",
            fontsize=9,
            zorder=4,
            bbox=box,
        )
    ax.invert_yaxis()
    return left.max()


@styled
def memory_bars(rows, budget=None, kind="predicted"):
    """Stacked bars of bytes: rows {name: {category: bytes}}, keys as in ``memory.predict.CATEGORIES``; budget: bytes.

    kind: "predicted", "counted" or "measured". A budget far beyond all bars is named, not drawn.
    """
    if not rows or any(set(parts) != set(PART_STYLES) for parts in rows.values()):
        raise ValueError(f"rows must map names to bytes for each of {', '.join(PART_STYLES)}, got {rows!r:.200}")
    picture = Picture(9, 1.6 + 0.5 * len(rows))
    ax = picture.add_subplot()
    at = np.arange(len(rows))
    widest, title = draw_parts(ax, rows), f"Peak memory, {kind}"
    if budget is not None and budget / 1e9 <= 8 * widest:
        ax.axvline(budget / 1e9, color=OKABE_ITO[2], ls="--", lw=2, label=f"budget {format_bytes(budget)}")
        widest = max(widest, budget / 1e9)
    elif budget is not None:
        title += f"; the budget of {format_bytes(budget)} lies far to the right"
    ax.set(yticks=at, yticklabels=rows, xlabel="GB (10⁹ bytes)", title=title, xlim=(0, 1.14 * widest))
    picture.legend(loc="outside lower center", ncols=6, fontsize=9)
    numbers = {name: format_bytes(sum(parts.values())) for name, parts in rows.items()}
    line = "" if budget is None else f" against a budget of {format_bytes(budget)}"
    return picture.describe(
        f"Stacked bars: peak memory of a training step (x, GB), {kind}, by category, one bar for each model{line}.",
        **numbers,
    )


@styled
def memory_lines(x, lines, xlabel, kind="predicted", budget=None, log=True):
    """Lines of bytes: x (n,), lines {name: bytes (n,)}. Logarithmic axes come with fitted exponents."""
    picture = Picture(7, 3.8)
    ax, numbers = picture.add_subplot(), {}
    for name, values in lines.items():
        power = f", exponent {exponent(x, values):.2f}" if log else ""
        ax.plot(x, np.asarray(values) / 1e9, label=name + power)
        numbers[f"{name}, {x[-1]:,} {xlabel}"] = format_bytes(values[-1]) + power
    if budget is not None:
        ax.axhline(budget / 1e9, color="black", ls=(0, (1, 3)), marker="", label=f"budget {format_bytes(budget)}")
    _axes(ax, xlabel, "GB (10⁹ bytes)", f"Memory, {kind}", x, log_y=log)
    if not log:
        ax.set(xscale="linear", ylim=(0, None))
        ax.set_xticks(list(x))
    ax.legend(fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    meaning = "is a power law; its slope is the exponent" if log else "adds the same each time"
    return picture.describe(
        f"Line chart on {'logarithmic' if log else 'linear'} axes: {xlabel} (x) against bytes, {kind}. A straight line "
        f"{meaning}.",
        **numbers,
    )


@styled
def memory_over_time(lines, kind="counted"):
    """Live bytes, operation by operation: lines {name: bytes (n,)}, each stretched over the same width."""
    picture = Picture(8, 3.4)
    ax, numbers = picture.add_subplot(), {}
    for name, live in lines.items():
        live = np.asarray(live, dtype=float)
        if live.ndim != 1 or not live.size:
            raise ValueError(f"lines must map names to rows of bytes, got shape {live.shape} for {name}")
        ax.plot(np.linspace(0, 100, live.size), live / 1e6, marker="", label=name)
        numbers[f"peak, {name}"] = format_bytes(live.max())
    ax.set(xlabel="% of the operations of the run", ylabel="MB (10⁶ bytes)", title=f"Live tensors over time, {kind}")
    ax.legend()
    return picture.describe(
        f"Line chart: operations of a run, forward then backward, in percent (x) against live bytes, {kind}. "
        "The peak of each line is the figure that counts.",
        **numbers,
    )


def _axes(ax, xlabel, ylabel, title, ticks, log_y=True):
    """Logarithmic axes with the measured values, and no others, as ticks of x."""
    ax.set(xscale="log", yscale="log" if log_y else "linear", xlabel=xlabel, ylabel=ylabel, title=title)
    ticks = [int(t) for t in ticks]
    ax.set_xticks(ticks, [f"{t:,}" for t in ticks], rotation=30 if max(ticks) > 999 else 0)
    ax.minorticks_off()
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
    ax.grid(axis="y", color="0.9")


def _all_lengths(series):
    return sorted({int(n) for lengths, _ in series.values() for n in lengths})


def _microseconds(record, phase):
    """Microseconds per token of a phase of WORK; all others count as its last one."""
    seconds = record["steps"][-1]["parts"]
    other = sum(s for name, s in seconds.items() if name not in WORK) if phase == [*WORK][-1] else 0.0
    return 1e6 * seconds.get(phase, other) / record["text"]["used_bytes"]
