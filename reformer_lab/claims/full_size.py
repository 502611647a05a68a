"""What the paper's own sizes take: the bytes of its introduction, and how long its models would train here.

Operations of a training step are counted, by PyTorch's own formulas, on tensors that have a shape and no contents. The
days are predicted: so many operations at the pace that a small model of the same attention is measured at.
"""

import time
from statistics import median

import torch
from reformer_ref.memory.count import Operations
from reformer_ref.model.encoder_decoder import ReformerEncoderDecoder
from reformer_ref.model.pytorch import ReformerLM

from reformer_lab.claims.experiment import config_of
from reformer_lab.claims.table import row

SECONDS_PER_DAY = 86400


def sub_runs(config):
    """One for the bytes, one for the pace of each attention, one for each size."""
    pace, runs = config["pace"], {"bytes": {"bytes": config["bytes"]}}
    for name, change in pace["attention"].items():
        model = {**pace["model"], **change, "pattern": [name]}
        runs[f"pace-{name}"] = {"model": model, "batch": 1, **{k: pace[k] for k in ("length", "repeats")}}
    return runs | {f"size-{name}": size for name, size in config["sizes"].items()}


def run(settings, context):
    """Bytes of tensors, or operations of a training step with, for the pace, its seconds."""
    if "bytes" in settings:
        return {"bytes": {name: _bytes(tensor["shape"]) for name, tensor in settings["bytes"].items()}}
    context.check_stop()
    result = {"operations": operations(settings)}
    return result | ({"seconds": _seconds(settings, context)} if "repeats" in settings else {})


def _bytes(shape):
    return torch.empty(shape, dtype=torch.float32, device="meta").nbytes


def operations(settings):
    """Operations of the matrix products of a training step, recomputed ones included: two for a multiply-add.

    settings: "model" (fields of ReformerConfig), "length", "batch", "encoder_decoder" (optional).
    """
    loss = _step(settings, "meta")
    with Operations() as counter:
        loss().backward()
    return settings["batch"] * counter.count


def activations(peak):
    """Bytes of a predicted peak (see `memory.predict_peak`) that are no weights, gradients or optimizer's states."""
    return sum(dict(peak.breakdown)[part] for part in ("streams", "working set"))


def _step(settings, device):
    """A function that gives the loss of one sequence of tokens; built on a device, its weights are drawn on the CPU."""

    def config(**more):
        return config_of({**settings["model"], **more}, max_length=settings["length"])

    with torch.device(device):
        tokens = torch.zeros(1, settings["length"], dtype=torch.int64)
        if settings.get("encoder_decoder"):
            model = ReformerEncoderDecoder(config(causal=False), config())
            return lambda: model.loss(tokens, tokens)
        model = ReformerLM(config())
    return lambda: model.loss(tokens)


def _seconds(settings, context):
    """Seconds of so many training steps, after one that does not count."""
    loss, seconds = _step(settings, "cpu"), []
    for _ in range(settings["repeats"] + 1):
        context.check_stop()
        start = time.perf_counter()
        loss().backward()
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def summarise(config, results):
    """ "bytes" by name; "pace": operations a second by attention; "days" by size, where its pace is known."""
    summary = {"bytes": results.get("bytes", {}).get("bytes", {}), "pace": {}, "days": {}}
    for name in config["pace"]["attention"]:
        if f"pace-{name}" in results:
            measured = results[f"pace-{name}"]
            done = measured["operations"]
            summary["pace"][name] = done / median(measured["seconds"])
    for name, size in config["sizes"].items():
        if f"size-{name}" in results and size["pace"] in summary["pace"]:
            seconds = size["steps"] * results[f"size-{name}"]["operations"] / summary["pace"][size["pace"]]
            summary["days"][name] = seconds / SECONDS_PER_DAY
    return summary


def rows(record):
    """A row for every number of bytes, and for every size."""
    config, lines = record["config"], []
    for name, count in record["bytes"].items():
        paper = config["bytes"][name]["paper"]
        ours = f"{count / 1e9:.2f} GB ({count / 2**30:.2f} GiB) in float32"
        lines.append(row(f"Memory: {name}", paper, ours, "counted"))
    steps = {run["name"]: run["result"] for run in record["runs"]}
    threads, cores = (record["machine"][key] for key in ("threads", "cores"))
    for name, days in record["days"].items():
        size, done = config["sizes"][name], steps[f"size-{name}"]["operations"]
        ours = (
            f"not run: {done:.1e} operations a step (counted); {size['steps']:,} steps take {days:,.0f} days at "
            f"{record['pace'][size['pace']] / 1e9:.0f} · 10⁹ a second (measured, {threads} of {cores} cores)"
        )
        claim = f"The paper's size: {size['what']}"
        lines.append(row(claim, size.get("paper", ""), ours, "predicted"))
    return lines
