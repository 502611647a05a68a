"""Figure 4: the loss by the number of rounds of hashing, in training and in evaluation, on real text."""

from reformer_lab.claims import language
from reformer_lab.claims.table import mean_and_range, on_given, row


def sub_runs(config):
    """One for every attention and seed."""
    return {
        f"{name}-seed{seed}": {**language.settings_of(config, seed, name), "evaluate": config["evaluate"]}
        for name in config["train"]
        for seed in config["seeds"]
    }


def run(settings, context):
    """Train, then evaluate with every number of rounds."""
    model, config, windows, result = language.train(settings, context)
    names = settings["evaluate"]
    evaluated = {name: language.bits_with(model, config, name, windows, context) for name in names}
    return {**result, "evaluated": evaluated}


def summarise(config, results):
    """ "variants": {training attention: bits, curves, and "evaluated": {attention: [bits of each seed]}}."""
    variants = {}
    for name in config["train"]:
        of_seeds = language.of_seeds(config, results, name)
        if of_seeds:
            evaluated = {at: [r["evaluated"][at] for r in of_seeds] for at in config["evaluate"]}
            variants[name] = {**language.spread_of(of_seeds), "evaluated": evaluated}
    return {"variants": variants}


def rows(record):
    """One row: the loss of every training attention, evaluated as trained."""
    variants = record["variants"]
    if not variants:
        return []
    ours = "; ".join(f"{name}: {mean_and_range(v['bits'], '{:.3f}')}" for name, v in variants.items())
    claim = f"Figure 4{on_given(record)}: held-out bits per byte, trained and evaluated with {', '.join(variants)}"
    paper = "more rounds, lower loss; 8 rounds almost as full attention"
    return [row(claim, paper, ours)]
