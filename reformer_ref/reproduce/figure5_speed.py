"""Figure 5, right, and tables 1 and 3: time and memory of attention against length, at a constant number of tokens.

Time is measured, forward and backward, everybody in turn. Dense attention is PyTorch's own fused kernel, the fastest
there is at hand. Memory is counted; of dense attention, as the paper writes it, with its matrix of weights. The memory
of whole models (table 3) is predicted, and fitted by powers of the length and of the number of layers.
"""

import time
from statistics import median

MODELS = {  # table 3: attention, reversible, in slices
    "Transformer": ("separate", False, False),
    "Reversible Transformer": ("separate", True, False),
    "Chunked Reversible Transformer": ("separate", True, True),
    "LSH Transformer": ("lsh", False, False),
    "Reformer": ("lsh", True, True),
}


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
    from reformer_ref.memory import count_peak

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
    import torch

    from reformer_ref.attention.pytorch import shared_qk_attention
    from reformer_ref.hashing.pytorch import default_n_buckets, hash_vectors, random_rotations
    from reformer_ref.lsh_attention.options import LSHOptions
    from reformer_ref.lsh_attention.pytorch import lsh_attention

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
    """{model: {"lengths": [bytes], "layers": [bytes]}}: predicted bytes of activations, at one depth and one length."""
    found = {}
    for name in MODELS:
        context.check_stop()
        by_length = [_activations(settings, name, length, settings["layers"][0]) for length in settings["lengths"]]
        by_depth = [_activations(settings, name, settings["lengths"][0], depth) for depth in settings["layers"]]
        found[name] = {"lengths": by_length, "layers": by_depth}
    return found


def _activations(settings, name, length, layers):
    from reformer_ref.lsh_attention.options import LSHOptions
    from reformer_ref.memory import predict_peak
    from reformer_ref.model.config import ReformerConfig

    attention, reversible, sliced = MODELS[name]
    config = ReformerConfig(
        n_layers=layers, pattern=("regular" if attention == "separate" else "lsh",), reversible=reversible,
        max_length=length, ff_slice=settings["slice"] if sliced else None,
        loss_slice=settings["slice"] if sliced else None, lsh=LSHOptions(**settings["lsh"]), **settings["model"],
    )  # fmt: skip
    parts = dict(predict_peak(config, length, optimizer=None, exact=True).parts)
    return parts["streams"] + parts["working set"]


def summarise(config, results):
    """ "points": medians and bytes per length; "exponents": of seconds and bytes against the length, per sequence."""
    from reformer_ref.measured_plots import exponent

    points = [r for name, r in results.items() if name.startswith("length")]
    names, found = config["attention"], {"points": [], "exponents": {}}
    for point in points:
        medians = {name: median(point["seconds"][name]) for name in names}
        found["points"].append({"length": point["length"], "seconds": medians, "bytes": point["bytes"]})
    lengths = [point["length"] for point in points]
    if len(points) > 1:
        for name in names:
            # a sequence of length L takes its share of the constant number of tokens
            fits = {
                what: exponent(lengths, [p[what][name] * p["length"] / config["tokens"] for p in found["points"]])
                for what in ("seconds", "bytes")
            }
            found["exponents"][name] = fits
    if "table3" in results:
        at = config["table3"]
        found["table3"] = {
            name: {**values, **{f"{axis}_exponent": exponent(at[axis], values[axis]) for axis in ("lengths", "layers")}}
            for name, values in results["table3"].items()
        }
    return found


def rows(record):
    """Figure 5, table 1 and table 3."""
    found, points, fits = [], record["points"], record["exponents"]
    if len(points) > 1:
        first, last = points[0], points[-1]
        grown = ", ".join(f"{n} {last['seconds'][n] / first['seconds'][n]:.2f}×" for n in first["seconds"])
        what = (
            f"Figure 5 right: time of attention at {last['length']:,} tokens against {first['length']:,}, the same "
            "number of tokens per batch"
        )
        paper = "full grows with the length, LSH stays nearly flat"
        found.append({"claim": what, "paper": paper, "ours": grown, "how": "measured"})
    for what, how, paper in (
        ("seconds", "measured", "l² for full attention, l for LSH attention (times log l for the sort)"),
        ("bytes", "counted", "l² for full attention, l for LSH attention"),
    ):
        if fits:
            ours = ", ".join(f"{name}: l^{fit[what]:.2f}" for name, fit in fits.items())
            found.append({"claim": f"Table 1: {what} of one sequence", "paper": paper, "ours": ours, "how": how})
    paper = {
        "Transformer": "l² · layers", "Reversible Transformer": "l²", "Chunked Reversible Transformer": "l²",
        "LSH Transformer": "l · layers", "Reformer": "l",
    }  # fmt: skip
    for name, fit in record.get("table3", {}).items():
        ours = f"l^{fit['lengths_exponent']:.2f}, layers^{fit['layers_exponent']:.2f}"
        found.append({"claim": f"Table 3: memory of {name}", "paper": paper[name], "ours": ours, "how": "predicted"})
    return found


def pictures(record):
    """Seconds and bytes against the length."""
    from reformer_ref.reproduce import plots

    return {"claim_figure5_speed": lambda: plots.figure5_speed(record)}
