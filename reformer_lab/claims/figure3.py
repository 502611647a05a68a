"""Figure 3: shared against separate queries and keys, and reversible against ordinary residuals, on real text.

All four combinations have the same number of parameters (to a thousandth): where queries and keys are shared, the
feed-forward layers are wider by what the second matrix would have held.
"""

from reformer_lab.claims import language
from reformer_lab.claims.table import mean_and_range, on_given, row

VARIANTS = {
    "shared-reversible": ("full", 2), "separate-reversible": ("separate", 2), "shared-ordinary": ("full", 1),
    "separate-ordinary": ("separate", 1),
}  # fmt: skip


def sub_runs(config):
    """One for every combination and seed."""
    runs = {}
    for name, (attention, streams) in VARIANTS.items():
        d_ff = config["model"]["d_ff"] - (config["model"]["d_model"] // 2 if attention == "separate" else 0)
        for seed in config["seeds"]:
            change = {"d_ff": d_ff, "streams": streams, "reversible": streams == 2}
            runs[f"{name}-seed{seed}"] = language.settings_of(config, seed, attention, **change)
    return runs


def run(settings, context):
    """Train; bits per byte of the held-out text at the end and on the way."""
    return language.train(settings, context)[-1]


def summarise(config, results):
    """ "variants": {name: bits and curves of every seed}."""
    variants = {name: language.of_seeds(config, results, name) for name in VARIANTS}
    return {"variants": {name: language.spread_of(f) for name, f in variants.items() if f}}


def rows(record):
    """A row for each of the two comparisons."""
    pairs = (
        ("Figure 3 left: separate queries and keys, then shared ones", "shared no worse, learning slightly faster",
         ("separate-ordinary", "shared-ordinary")),
        ("Figure 3 right: ordinary residuals, then reversible ones", "nearly the same curves",
         ("shared-ordinary", "shared-reversible")),
    )  # fmt: skip
    lines, variants = [], record["variants"]
    for claim, paper, names in pairs:
        if all(name in variants for name in names):
            bits = (mean_and_range(variants[name]["bits"], "{:.3f}") for name in names)
            ours = " then ".join(bits) + " bits per byte held out"
            claim = claim.replace(":", f"{on_given(record)}:")
            lines.append(row(claim, paper, ours))
    return lines
