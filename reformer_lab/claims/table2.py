"""Table 2: the duplication task, trained and evaluated with full attention and with LSH attention of several rounds.

One layer, d_model = d_ff = 256, 4 heads, sequences 0w0w of 1,024 tokens from an alphabet of 127 symbols: the paper's
setting. Every trained model is evaluated on the same fresh sequences with every attention; its rotations are drawn anew
for every step and for every evaluated batch.
"""

from dataclasses import replace
from statistics import fmean

import torch
from reformer_ref._tensors import evaluating
from reformer_ref.model.pytorch import ReformerLM

from reformer_lab.claims.experiment import config_of, options_of, thinned
from reformer_lab.claims.language import carried_over, with_attention
from reformer_lab.claims.table import mean_and_range, row
from reformer_lab.data import duplication
from reformer_lab.training.loop import step_generator

FRESH = 10**6  # the evaluated sequences are those of this seed and beyond, which no training uses


def sub_runs(config):
    """One for every attention and seed, and one for every variant, which changes one thing."""
    runs = {}
    for seed in config["seeds"]:
        for name in config["train"]:
            runs[f"{name}-seed{seed}"] = _settings(config, name, seed)
    for variant, change in config["variants"].items():
        for seed in config["seeds"][: config["variant_seeds"]]:
            runs[f"{variant}-seed{seed}"] = _settings(config, change["train"], seed, change)
    return runs


def _settings(config, attention, seed, change=None):
    change = {"model": {}, "training": {}} | (change or {})
    shared = {name: config[name] for name in ("data", "evaluation", "evaluate", "evaluate_changed")}
    training = {**config["training"], **config["training_of"].get(attention, {}), **change["training"]}
    model = {**config["model"], **change["model"]}
    return {"attention": attention, "seed": seed, "model": model, **shared, "training": training}


def model_config(settings):
    """The ReformerConfig of a sub-run."""
    data = settings["data"]
    config = config_of(
        settings["model"], vocab_size=data["vocab_size"], max_length=data["length"], seed=settings["seed"],
        positions="learned", pattern=("dense",),
    )  # fmt: skip
    return with_attention(config, settings["attention"])


def run(settings, context):
    """Train, then evaluate with every attention: {"steps", "curve", "accuracy": {attention: share}, …}."""
    data, seed, batch = settings["data"], settings["seed"], settings["training"]["batch"]

    def batch_at(step, batch=batch, seed=seed):
        tokens, targets = duplication.batches(data["length"], data["vocab_size"], batch, seed, step)
        return torch.from_numpy(tokens), torch.from_numpy(targets)

    config = model_config(settings)
    model = ReformerLM(config)
    options = options_of(settings)
    quick = batch_at(0, options.quick_windows, FRESH - 1)
    trained = context.train(model, batch_at, list(zip(*quick, strict=True)), options)
    accuracy = {name: evaluate(model, config, name, settings, context) for name in settings["evaluate"]}
    for label, change in settings["evaluate_changed"].items():
        changed = replace(config, lsh=replace(config.lsh, **change["lsh"]))
        accuracy[label] = evaluate(model, changed, change["attention"], settings, context)
    return {
        "steps": trained.steps, "train_seconds": round(trained.seconds, 1), "tokens": trained.tokens,
        "curve": thinned([(e["step"], round(e["bits"], 4)) for e in trained.curve]), "accuracy": accuracy,
    }  # fmt: skip


def evaluate(model, config, name, settings, context):
    """The accuracy of the model with attention ``name`` on fresh sequences: the share of symbols of the second w."""
    data, how = settings["data"], settings["evaluation"]
    other, accuracies = carried_over(model, config, name), []
    with evaluating(other):
        for step in range(how["sequences"] // how["batch"]):
            context.check_stop()
            tokens, targets = duplication.batches(data["length"], data["vocab_size"], how["batch"], FRESH, step)
            logits = other(torch.from_numpy(tokens), generator=step_generator(FRESH, step))
            accuracies.append(duplication.accuracy(logits.argmax(-1).numpy(), targets))
    return sum(accuracies) / len(accuracies)


def summarise(config, results):
    """ "table": {training attention: {evaluation attention: [accuracy of each seed]}}; "variants": likewise."""
    table = {name: _cells(config, results, name) for name in config["train"]}
    variants = {name: _cells(config, results, name) for name in config["variants"]}
    return {"table": table, "variants": variants}


def _cells(config, results, name):
    of_seeds = [results[f"{name}-seed{seed}"] for seed in config["seeds"] if f"{name}-seed{seed}" in results]
    columns = [*config["evaluate"], *config["evaluate_changed"]]
    return {at: [r["accuracy"][at] for r in of_seeds] for at in columns if of_seeds}


def rows(record):
    """A row for every training attention, one for its evaluation with other full attention, one for every variant."""
    config, lines = record["config"], []
    trained = {name: cells for name, cells in record["table"].items() if cells}

    def add(claim, paper, ours):
        lines.append(row(f"Table 2: {claim}: accuracy in %", paper, ours))

    for name, cells in trained.items():
        columns = config["columns"]
        paper = " / ".join(f"{config['paper'][name][at]:g}" for at in columns)
        ours = " / ".join(_percent(cells[at]) for at in columns)
        add(f"duplication, trained with {name}; evaluated with {', '.join(columns)}", paper, ours)
    for name, cells in trained.items():
        ours = f"{_percent(cells['full'])}; {_percent(cells['scaled'])}; {_percent(cells['ordinary'])}"
        paper = f"{config['paper'][name]['full']:g} (which full attention is not said)"
        add(f"trained with {name}; evaluated with full attention: as here; with q·k̂/√d; ordinary", paper, ours)
        changed = config["evaluate_changed"]
        at = ", ".join(["lsh-1", *changed])
        ours = " / ".join(_percent(cells[column]) for column in ("lsh-1", *changed))
        paper = f"{config['paper'][name]['lsh-1']:g} (which window is not said)"
        add(f"trained with {name}; evaluated with {at}", paper, ours)
    for name, cells in record["variants"].items():
        change = config["variants"][name]
        at, same = change["train"], trained.get(change["train"], {})
        if cells and same:
            columns = [column for column in config["columns"] if column != "full" or at == "full"]
            ours = " / ".join(f"{_percent(cells[column])} ({100 * fmean(same[column]):.1f})" for column in columns)
            paper = " / ".join(f"{config['paper'][at][column]:g}" for column in columns)
            claim = f"{change['about']}, trained with {at}; {', '.join(columns)} (in brackets without the change)"
            add(claim, paper, ours)
    return lines


def _percent(accuracies):
    return mean_and_range([100 * accuracy for accuracy in accuracies])
