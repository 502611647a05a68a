"""Pictures of the claim about translation, from its record."""

import textwrap

import numpy as np

from reformer_lab.claims.plots import HOLLOW
from reformer_lab.claims.table import data_name
from reformer_lab.plots.drawing import OKABE_ITO, Picture, styled
from reformer_lab.plots.measured import source

LOOKS = {"reversible": (OKABE_ITO[4], "-", ""), "ordinary": (OKABE_ITO[5], "--", "//")}


@styled
def curves_and_scores(record):
    """Held-out bits per predicted token against steps, reversible and ordinary; BLEU of both and of the baselines."""
    picture, numbers, told = Picture(9.5, 3.8), {}, set()
    left, right = picture.subplots(1, 2)
    for run in record["runs"]:
        kind = run["name"].partition("-")[0]
        colour, dashes, _ = LOOKS[kind]
        looks = {"color": colour, "marker": "o" if kind == "reversible" else "s", "lw": 1.3}
        x, y = zip(*run["result"]["held_out_curve"], strict=True)
        left.plot(x[:-1], y[:-1], ls=dashes, ms=4, label=None if kind in told else kind, **looks)
        left.plot(x[-1:], y[-1:], ls="", ms=6, fillstyle="none", **looks)
        told.add(kind)
        numbers[f"bits per predicted token, {run['name']}"] = run["result"]["bits"]
    left.set(xlabel="steps", ylabel="bits per predicted token, held out", yscale="log", title="Learning")
    left.legend(fontsize=8)
    for y, (who, values) in enumerate(record["bleu"].items()):
        colour, _, hatch = LOOKS.get(who.partition(",")[0], (OKABE_ITO[7], "", ".."))
        value = float(np.mean(values))
        right.barh(y, value, 0.7, color=colour, hatch=hatch, edgecolor="white")
        right.text(value, y, f" {value:.1f}", va="center", fontsize=9)
        numbers[f"BLEU, {who}"] = value
    most = 1.25 * max(numbers[f"BLEU, {who}"] for who in record["bleu"]) or 1.0  # room for the figure after a bar
    right.set(yticks=range(len(record["bleu"])), yticklabels=list(record["bleu"]), xlabel="BLEU", xlim=(0, most))
    right.set_title("Translating")
    right.invert_yaxis()
    return picture.tell(
        f"Line chart, logarithmic in height: bits per predicted token, mean of held-out sentences (y), against steps "
        f"(x), reversible and ordinary models of equal parameters, {data_name(record)}; bar chart: BLEU of "
        f"their translations, and of a learned dictionary and of copying the nearest sentence. "
        + HOLLOW
        + source(record),
        **numbers,
    )


@styled
def examples(record):
    """A few held-out sentences: source, reference, the reversible model's translation, a word-by-word one."""
    result, model = record["runs"][0]["result"], record["runs"][0]["name"].partition("-")[0]
    who = (("source",) * 2, ("reference",) * 2, (result["beams"], model), ("word by word",) * 2)
    shown, right = result["examples"], 0
    picture = Picture(10, 0.3 + 0.98 * len(shown))
    ax = picture.add_subplot()
    for i, example in enumerate(shown):
        right += example[result["beams"]] == example["reference"]
        for k, (key, label) in enumerate(who):
            y = i + 0.14 + 0.21 * k
            text = textwrap.shorten(_writable(example[key]), 118, placeholder=" …").replace("$", r"\$")
            ax.text(0.0, y, label, fontsize=7.5, color="#555555", va="center")
            ax.text(0.11, y, text, fontsize=9, va="center", weight="bold" if k == 2 else "normal")
        ax.axhline(i + 0.92, color="#CCCCCC", lw=0.8, marker="")
    for text in ax.texts:
        text.set_in_layout(False)
    ax.set(xlim=(0, 1), ylim=(len(shown), 0), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    return picture.tell(
        "A table of texts: held-out sentences, their right translations, the model's (bold), and those of a dictionary "
        "that was learned from the same pairs. " + source(record),
        **{"examples": len(shown), "of them translated without a fault": right},
    )


def _writable(text):
    """The text with a dot for every character that the picture's font lacks."""
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont("DejaVu Sans"))
    return "".join(c if c.isprintable() and font.get_char_index(ord(c)) else "·" for c in text)
