"""The headline: sequences of a million tokens within 16 GB, from the announcement of the paper.

Measured on a CPU by ``reformer-ref million`` (the record reformer_lab/records/million.json), predicted for CUDA for the
same model and for a larger one, and measured there where a GPU is at hand.
"""

import time

import torch
from reformer_ref.memory import measure_peak, predict_peak
from reformer_ref.model.pytorch import ReformerLM

from reformer_lab.claims.experiment import config_of
from reformer_lab.claims.table import row
from reformer_lab.plots.measured import read
from reformer_lab.training.loop import step_generator


def sub_runs(config):
    """The recorded run, a prediction for every model, and a measurement if there is a GPU."""
    runs = {"recorded": {"record": config["record"], "date": read(config["record"])["date"]}}
    runs |= {f"predicted-{name}": {"length": config["length"], **model} for name, model in config["models"].items()}
    if _has_gpu():
        runs["cuda"] = {"length": config["length"], "gpu": True, **config["models"][config["measured"]]}
    return runs


def _has_gpu():
    return torch.cuda.is_available()


def run(settings, context):
    """Peak bytes, and what else is known."""
    if "record" in settings:
        return recorded(settings["record"])
    return measured(settings, context) if "gpu" in settings else predicted(settings)


def recorded(name):
    """What ``reformer-ref million`` measured on a CPU."""
    data = read(name)
    return {
        "peak_bytes": data["peak_rss_bytes"], "seconds": data["steps"][-1]["seconds"],
        "length": data["text"]["used_bytes"], "text": data["text"]["name"], "command_of_record": data["command"],
        "date_of_record": data["date"], "machine_of_record": data["machine"], "parameters": data["parameters"],
    }  # fmt: skip


def _config(settings):
    return config_of(settings["model"], vocab_size=256, max_length=settings["length"], lsh=settings["lsh"])


def predicted(settings):
    """The predicted peak of a training step with Adam on CUDA."""
    peak = predict_peak(_config(settings), settings["length"])
    return {"peak_bytes": peak.above_start_bytes, "parts": dict(peak.breakdown), "kind": peak.kind}


def measured(settings, context):
    """One training step with Adam on the GPU."""

    def step():
        model = ReformerLM(_config(settings)).cuda()
        optimizer = torch.optim.Adam(model.parameters())
        tokens = torch.randint(256, (1, settings["length"]), generator=torch.Generator().manual_seed(0)).cuda()
        torch.cuda.synchronize()
        start = time.perf_counter()
        model.loss(tokens, generator=step_generator(0, 0)).backward()
        optimizer.step()
        torch.cuda.synchronize()
        return time.perf_counter() - start

    context.check_stop()
    peak = measure_peak(step, "cuda")
    return {"peak_bytes": peak.peak_bytes, "seconds": peak.result, "gpu": torch.cuda.get_device_name()}


def summarise(config, results):
    """ "peaks": bytes by sub-run."""
    return {"peaks": {name: result["peak_bytes"] for name, result in results.items()}}


def rows(record):
    """A row for every way in which it was found out."""
    lines, paper = [], "up to 1 million words with 16 GB, on a single accelerator (announcement)"
    for entry in record["runs"]:
        name, result = entry["name"], entry["result"]
        gb = f"{result['peak_bytes'] / 1e9:.2f} GB"
        if name == "recorded":
            claim = (
                f"{result['length']:,} tokens (bytes of {result['text']}) as one sequence, a training step on a CPU, "
                "whole process; of the record of `reformer-ref million`"
            )
            lines.append(row(claim, paper, f"{gb}, {result['seconds']:.0f} s"))
        elif name == "cuda":
            claim = f"{record['config']['length']:,} tokens as one sequence, a training step on {result['gpu']}"
            lines.append(row(claim, paper, f"{gb}, {result['seconds']:.1f} s"))
        else:
            model = entry["settings"]["model"]
            claim = (
                f"{record['config']['length']:,} tokens as one sequence, a training step on CUDA, {model['n_layers']} "
                f"layers, d_model {model['d_model']}"
            )
            lines.append(row(claim, paper, gb, "predicted"))
    return lines
