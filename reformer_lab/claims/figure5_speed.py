"""Figure 5, right, and tables 1 and 3: time and memory of attention against length, at a constant number of tokens.

Time is measured, forward and backward, all in turn; for full attention it is that of PyTorch's fused kernel.
Memory is counted; for full attention with the matrix of weights, as the paper writes it. The memory of whole models
(table 3) is predicted, and fitted by powers of the length and of the number of layers.
"""

import json
import time
from statistics import median

import torch
from reformer_ref.attention.api import shared_qk_attention
from reformer_ref.hashing.api import default_n_buckets, hash_vectors, random_rotations
from reformer_ref.lsh_attention.api import lsh_attention
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.memory import count_peak, predict_peak

from reformer_lab.claims.experiment import config_of
from reformer_lab.claims.full_size import activations, operations
from reformer_lab.claims.table import row
from reformer_lab.plots.measured import exponent

MODELS = {  # table 3: attention, reversible, in chunks
    "Transformer": ("separate", False, False),
    "Reversible Transformer": ("separate", True, False),
    "Chunked Reversible Transformer": ("separate", True, True),
    "LSH Transformer": ("lsh", False, False),
    "Reformer": ("lsh", True, True),
}
MEMORY = {  # table 3, in the length and the number of layers
    "Transformer": "l² · layers", "Reversible Transformer": "l²", "Chunked Reversible Transformer": "l²",
    "LSH Transformer": "l · layers", "Reformer": "l",
}  # fmt: skip
TIME = {"separate": "(l · d_ff + l²) · layers", "lsh": "l · layers"}


def sub_runs(config):
    """One for every length; one for table 3."""
    shared = {name: config[name] for name in ("tokens", "heads", "d_head", "attention", "repeats", "lsh")}
    runs = {f"length{length}": {"length": length, **shared} for length in config["lengths"]}
    return {**runs, "table3": {"table3": config["table3"]}}


def run(settings, context):
    """Time and memory at a length, or the predictions of table 3."""
    return table3(settings["table3"], context) if "table3" in settings else attention(settings, context)


def attention(settings, context):
    """{"seconds": {name: [every repeat]}, "bytes": {name: counted peak above the inputs}}."""
    runs = {name: _run(settings, name, "cpu") for name in settings["attention"]}
    seconds = {name: [] for name in runs}
    for repeat in range(settings["repeats"] + 1):
        for name, once in runs.items():
            context.check_stop()
            start = time.perf_counter()
            once()
            if repeat:  # the first one does not count
                seconds[name].append(time.perf_counter() - start)
    counted = {name: count_peak(_run(settings, name, "meta"), on="meta").above_start_bytes for name in runs}
    return {"length": settings["length"], "seconds": seconds, "bytes": counted}


def _run(settings, name, device):
    """A function that does attention ``name`` once, forward and backward; hash and rotations included."""
    length = settings["length"]
    shape = (settings["tokens"] // length, settings["heads"], length, settings["d_head"])
    generator = torch.Generator().manual_seed(0)

    def tensor(wants_gradient):
        x = torch.empty(shape, device="meta") if device == "meta" else torch.randn(shape, generator=generator)
        return x.requires_grad_(wants_gradient)

    qk, v, d_out = tensor(True), tensor(True), tensor(False)

    def attend():
        if name == "full":
            if device == "meta":
                return shared_qk_attention(qk, v)
            return torch.nn.functional.scaled_dot_product_attention(qk, qk, v, is_causal=True)
        rounds = int(name.partition("-")[2])
        options = LSHOptions(n_hashes=rounds, **settings["lsh"])
        n_buckets = default_n_buckets(length, options.chunk_length)
        rotations = random_rotations(generator, rounds, shape[-1], n_buckets, shape[1], device=device)
        return lsh_attention(qk, v, hash_vectors(qk, rotations, n_buckets), options)

    def once():
        qk.grad = v.grad = None
        attend().backward(d_out)

    return once


def table3(settings, context):
    """{model: {"bytes" and "operations": {"lengths": […], "layers": […]}}}, along one axis at the least of the other.

    Bytes of activations are predicted, operations of a training step counted.
    """
    counts = {}
    for name in MODELS:
        counts[name] = {quantity: {"lengths": [], "layers": []} for quantity in ("bytes", "operations")}
        points = [("lengths", length, settings["layers"][0]) for length in settings["lengths"]]
        points += [("layers", settings["lengths"][0], depth) for depth in settings["layers"]]
        for axis, length, layers in points:
            context.check_stop()
            config = _config(settings, name, length, layers)
            peak = predict_peak(config, length, optimizer=None, exact=True)
            counts[name]["bytes"][axis].append(activations(peak))
            counts[name]["operations"][axis].append(_operations(config, length))
    return counts


def _config(settings, name, length, layers):
    attention, reversible, chunked = MODELS[name]
    chunk = settings["slice"] if chunked else None
    return config_of(
        settings["model"], n_layers=layers, pattern=("regular" if attention == "separate" else "lsh",),
        reversible=reversible, max_length=length, ff_chunk=chunk, loss_chunk=chunk, lsh=settings["lsh"],
    )  # fmt: skip


def _operations(config, length):
    return operations({"model": json.loads(config.to_json()), "length": length, "batch": 1})


def summarise(config, results):
    """ "points": medians and bytes per length; "exponents": of seconds and bytes against the length, per sequence."""
    points = [r for name, r in results.items() if name.startswith("length")]
    names, summary = config["attention"], {"points": [], "exponents": {}}
    for point in points:
        medians = {name: median(point["seconds"][name]) for name in names}
        summary["points"].append({"length": point["length"], "seconds": medians, "bytes": point["bytes"]})
    lengths = [point["length"] for point in points]
    for name in names if len(points) > 1 else ():
        summary["exponents"][name] = {}
        for quantity in ("seconds", "bytes"):  # a sequence takes its share of the constant number of tokens
            values = [p[quantity][name] * p["length"] / config["tokens"] for p in summary["points"]]
            summary["exponents"][name][quantity] = _exponent(lengths, values)
    if "table3" in results:
        axes = {axis: config["table3"][axis] for axis in ("lengths", "layers")}
        summary["table3"] = {
            name: {
                quantity: {axis: _exponent(axes[axis], counts[quantity][axis]) for axis in axes}
                for quantity in ("bytes", "operations")
            }
            for name, counts in results["table3"].items()
        }
    return summary


def _exponent(x, y):
    """The exponent of the power law, to six digits, which are the same on every processor."""
    return round(exponent(x, y), 6)


def rows(record):
    """Figure 5, table 1 and table 3."""
    lines, points, fits = [], record["points"], record["exponents"]
    if len(points) > 1:
        first, last = points[0], points[-1]
        grown = ", ".join(f"{n} {last['seconds'][n] / first['seconds'][n]:.2f}×" for n in first["seconds"])
        claim = (
            f"Figure 5 right: time of attention at {last['length']:,} tokens against {first['length']:,}, the same "
            "number of tokens per batch"
        )
        paper = "full grows with the length, LSH stays nearly flat"
        grown += " (full: a fused kernel, without the matrix of weights)"
        lines.append(row(claim, paper, grown))
    for quantity, how, paper in (
        ("seconds", "measured", "l² for full attention, l for LSH attention (times log l for the sort)"),
        ("bytes", "counted", "l² for full attention, l for LSH attention"),
    ):
        if fits:
            ours = ", ".join(f"{name}: l^{fit[quantity]:.2f}" for name, fit in fits.items())
            ours += " (full: with the matrix of weights)" * (quantity == "bytes")
            lines.append(row(f"Table 1: {quantity} of one sequence", paper, ours, how))
    for name, fit in record.get("table3", {}).items():
        for quantity, how, paper in (
            ("bytes", "predicted", MEMORY[name]),
            ("operations", "counted", TIME[MODELS[name][0]]),
        ):
            ours = f"l^{fit[quantity]['lengths']:.2f}, layers^{fit[quantity]['layers']:.2f}"
            lines.append(row(f"Table 3: {quantity} of a {name}", paper, ours, how))
    return lines
