"""Figure 5, left: the loss by the number of layers of a Reformer, on real text; memory stays the same."""

from dataclasses import replace

from reformer_ref.memory import predict_peak

from reformer_lab.claims import language
from reformer_lab.claims.full_size import activations
from reformer_lab.claims.table import mean_and_range, on_given, row


def sub_runs(config):
    """One for every depth and seed."""
    return {
        f"layers{depth}-seed{seed}": language.settings_of(config, seed, config["attention"], n_layers=depth)
        for depth in config["layers"]
        for seed in config["seeds"]
    }


def run(settings, context):
    """Train; beside the bits per byte, the predicted peak of a step with and without reversible layers."""
    _, config, _, result = language.train(settings, context)
    data = settings["data"]
    peaks = {
        name: predict_peak(replace(config, reversible=reversible), data["length"], "cpu", batch=data["batch"])
        for name, reversible in (("reversible", True), ("stored", False))
    }
    context.check_stop()
    return {**result, "activations_bytes": {name: activations(peak) for name, peak in peaks.items()}}


def summarise(config, results):
    """ "variants": {depth as text: bits and curves of every seed, predicted bytes of activations}."""
    variants = {}
    for depth in config["layers"]:
        of_seeds = language.of_seeds(config, results, f"layers{depth}")
        if of_seeds:
            activations_bytes = of_seeds[0]["activations_bytes"]
            variants[str(depth)] = {**language.spread_of(of_seeds), "activations_bytes": activations_bytes}
    return {"variants": variants}


def rows(record):
    """The loss by depth; the memory by depth."""
    variants = record["variants"]
    if not variants:
        return []
    bits = "; ".join(f"{depth}: {mean_and_range(v['bits'], '{:.3f}')}" for depth, v in variants.items())
    memory = "; ".join(
        f"{depth}: {v['activations_bytes']['reversible'] / 2**20:.0f} MiB against "
        f"{v['activations_bytes']['stored'] / 2**20:.0f}"
        for depth, v in variants.items()
    )
    loss = f"Figure 5 left{on_given(record)}: held-out bits per byte with {', '.join(variants)} layers"
    paper = "up to 20 layers train, deeper is better (enwik8, 12 layers: 1.05 bits)"
    memory_claim = "Memory of activations by depth, reversible against stored"
    return [
        row(loss, paper, bits),
        row(memory_claim, "independent of the number of layers (table 3)", memory, "predicted"),
    ]
