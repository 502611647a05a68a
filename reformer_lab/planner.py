"""Does it fit, and what would make it fit? ``python -m reformer_lab memory``, as a table and a
picture.

Every figure here is predicted (see ``memory.predict_peak``): nothing is allocated, so that any
model and any length can be asked about on any machine. Sizes are decimal, 1 GB = 10^9 bytes, unless
they say GiB.
"""

import re
import sys
import textwrap
import time
from dataclasses import dataclass, replace

from reformer_ref._arguments import LARGEST_ARRAY, clear_errors, require_choice, require_int, shown

DTYPES = ("float32", "bfloat16", "float16", "float64")
CHUNK = 1 << 14  # positions at a time, where chunks are proposed
LONGEST = 1 << 26  # tokens: where the search for the longest sequence ends
UNITS = {"b": 1, **{f"{p}b": 1000**n for n, p in enumerate("kmgtp", 1)}}
UNITS |= {f"{p}ib": 1024**n for n, p in enumerate("kmgtp", 1)}
VARIANTS = ("reversible", "not reversible", "dense")  # compared by length


@clear_errors
def format_bytes(n):
    """Three digits and a decimal unit: 16384 -> "16.4 kB"."""
    n, unit = float(n), 0
    while abs(n) >= 999.5 and unit < 5:
        n, unit = n / 1000, unit + 1
    return f"{n:.0f} B" if unit == 0 else f"{n:#.3g}".rstrip(".") + " " + ("kB", "MB", "GB", "TB", "PB")[unit - 1]


def parse_bytes(text):
    """Bytes in a text: "16GB" is 16·10^9, "16 GiB" is 16·2^30, "1.5e9" is itself. ValueError for
    anything else.
    """
    match = (
        re.fullmatch(r"\s*(\d+(?:\.\d*)?(?:e\d\d?)?)\s*([a-z]*)\s*", text.lower()) if isinstance(text, str) else None
    )
    if match is None or (match[2] or "b") not in UNITS:
        raise ValueError(f"a size must look like 16GB (16·10^9 bytes) or 16GiB (16·2^30 bytes), got {shown(text)}")
    size = float(match[1]) * UNITS[match[2] or "b"]
    if not 1 <= size < 1e18:
        raise ValueError(f"a size must be at least 1 byte and below 10^18, got {shown(text)}")
    return int(size)


@dataclass(frozen=True)
class MemoryQuestion:
    """Does a training step of ``config`` at ``length`` fit in ``budget`` bytes? The rest as in
    ``predict_peak``.

    dtype: by name, "float32" and so on.
    """

    config: object
    length: int
    budget: int
    device: str = "cuda"
    batch: int = 1
    optimizer: str | None = "adam"
    dtype: str = "float32"

    def __post_init__(self):
        from reformer_ref.model.config import require_config

        require_config(self.config)
        require_int("length", self.length, 2, LARGEST_ARRAY)
        require_int("budget", self.budget, 1, 10**18)
        require_int("batch", self.batch)
        require_choice("device", self.device, ("cuda", "cpu"))
        require_choice("optimizer", self.optimizer, ("adam", "sgd", None))
        require_choice("dtype", self.dtype, DTYPES)

    def predict(self, length=None, batch=None, dtype=None, n_hashes=None, **changes):
        """The ``Peak`` of the same step at another length, batch or dtype, or with ``changes`` of
        the configuration.
        """
        import torch
        from reformer_ref.memory import predict_peak

        length = self.length if length is None else length
        batch = self.batch if batch is None else batch
        dtype = self.dtype if dtype is None else require_choice("dtype", dtype, DTYPES)
        if n_hashes is not None:
            changes["lsh"] = replace(self.config.lsh, n_hashes=n_hashes)
        if self.config.positions == "axial":
            changes |= {"axial_shape": None, "axial_dims": None}
        config = replace(self.config, max_length=length, **changes)
        run = {"batch": batch, "optimizer": self.optimizer, "dtype": getattr(torch, dtype)}
        return predict_peak(config, length, self.device, **run)

    def entry(self, name, **changes):
        """What ``predict`` says, as plain data."""
        peak = self.predict(**changes)
        fits = peak.peak_bytes <= self.budget
        return {"name": name, "bytes": peak.peak_bytes, "fits": fits, "parts": dict(peak.parts), "kind": peak.kind}


def answer(question):
    """Yields (name, plain data), what was asked first: "peak", "changes", "longest", "depth",
    "length".
    """
    if not isinstance(question, MemoryQuestion):
        raise TypeError(f"question must be a MemoryQuestion, got {type(question).__name__}")
    start = time.monotonic()
    peak = question.entry("as asked")
    yield "peak", peak
    parts = {
        "changes": lambda: [question.entry(name, **change) for name, change in changes(question)],
        "longest": lambda: longest(question, peak["bytes"]),
        "depth": lambda: by_depth(question),
        "length": lambda: by_length(question),
    }
    if peak["fits"]:
        del parts["changes"]
    for name, predict in parts.items():
        if time.monotonic() - start > 1:
            print(f"predicting: {name} …", file=sys.stderr, flush=True)
        yield name, predict()


@clear_errors
def changes(question):
    """What to try, as (description, arguments of ``MemoryQuestion.predict``); first what computes the
    same function.
    """
    c, same, other = question.config, [], []
    if not c.reversible:
        same.append(("reversible layers", {"reversible": True}))
    if min(c.ff_chunk or question.length, question.length) > CHUNK:
        same.append((f"feed-forward and projections in chunks of {CHUNK}", {"ff_chunk": CHUNK}))
    if min(c.loss_chunk or question.length, question.length) > CHUNK:
        same.append((f"loss in chunks of {CHUNK}", {"loss_chunk": CHUNK}))
    if {"dense", "regular"} & set(c.layers):
        pattern = tuple("lsh" if kind in ("dense", "regular") else kind for kind in c.pattern)
        other.append(("LSH attention instead of dense", {"pattern": pattern}))
    if question.batch > 1:
        other.append(("one sequence at a time", {"batch": 1}))
    if c.lsh.n_hashes > 1 and "lsh" in c.layers:
        other.append(("one round of hashing", {"n_hashes": 1}))
    if question.dtype in ("float32", "float64"):
        other.append(("bfloat16 for everything", {"dtype": "bfloat16"}))
    together = []
    if len(same) > 1 and other:
        together.append(("those so far, which compute the same", {k: v for _, d in same for k, v in d.items()}))
    if len(same + other) > 1:
        together.append(("all of these", {k: v for _, d in same + other for k, v in d.items()}))
    return [*same, *together[:-1], *other, *together[-1:]]


@clear_errors
def longest(question, peak_bytes):
    """{"length", "bytes"}: the longest sequence that fits as asked, to about 1 %; length 0 if not
    even 2 tokens do.

    peak_bytes: at the length asked for. The peak is nearly affine in the length: from that length and its double or
    half, each guess is where the straight line through two lengths meets the budget. Lengths beyond LONGEST are not
    looked at.
    """
    budget, peak_bytes = question.budget, require_int("peak_bytes", peak_bytes, 1, 10**30)
    known = {question.length: peak_bytes}  # length: bytes
    while True:
        low = max((n for n, size in known.items() if size <= budget), default=None)
        high = min((n for n, size in known.items() if size > budget), default=None)
        if low is None:
            if high == 2:
                return {"length": 0, "bytes": known[2]}
            guess = max(high // 2, 2)
        elif low == LONGEST or known[low] >= 0.99 * budget or high == low + 1:
            return {"length": low, "bytes": known[low]}
        elif len(known) == 1:
            guess = 2 * low
        else:
            a, b = (low, high) if high else sorted(known)[-2:]
            slope = max(1, known[b] - known[a]) / (b - a)
            guess = max(low + 1, low + int((0.997 * budget - known[low]) / slope))
            guess = min(guess, high - 1) if high else min(guess, 16 * low)
        guess = min(guess, LONGEST)
        known[guess] = question.predict(guess).peak_bytes


@clear_errors
def by_depth(question):
    """Entries for half, once and twice the number of layers, reversible and not."""
    n = question.config.n_layers
    return [
        question.entry(
            f"{depth} layer(s){'' if reversible else ', not reversible'}", n_layers=depth, reversible=reversible
        )
        | {"layers": depth, "reversible": reversible}
        for depth in sorted({max(1, n // 2), n, 2 * n})
        for reversible in (True, False)
    ]


@clear_errors
def by_length(question):
    """{"length", and bytes for each of VARIANTS} for half, once and twice the length.

    dense: all scores of some heads at once (one head if long), nearly as attention is usually
    written; reversible.
    """
    variants = {
        "reversible": {"reversible": True},
        "not reversible": {"reversible": False},
        "dense": {"reversible": True, "pattern": ("dense",), "dense_block": None},
    }
    lengths = sorted({max(2, question.length // 2), question.length, 2 * question.length})
    return [{"length": n, **{v: question.predict(n, **c).peak_bytes for v, c in variants.items()}} for n in lengths]


@clear_errors
def headline(question):
    """Two lines: what is asked."""
    c, budget = question.config, question.budget
    lsh = f", {c.lsh.n_hashes} round(s) of hashing, chunks of {c.lsh.chunk_length}" if "lsh" in c.layers else ""
    chunks = " and ".join(f"{n:,}" if n else "everything" for n in dict.fromkeys((c.ff_chunk, c.loss_chunk)))
    return (
        f"A training step on {question.batch} × {question.length:,} tokens: {c.n_layers} layers "
        f"({', '.join(dict.fromkeys(c.layers))}{'' if c.reversible else '; not reversible'}), d_model {c.d_model}, "
        f"{c.n_heads} heads, d_ff {c.d_ff}{lsh}, chunks of {chunks}, {question.dtype}, "
        f"{question.optimizer or 'no optimizer'}, blocks as on {question.device}.\n"
        f"Budget {format_bytes(budget)} = {budget / 2**30:.2f} GiB (1 GB = 10^9 bytes, 1 GiB = 2^30). All figures are "
        "predicted, none is measured."
    )


@clear_errors
def table(name, data, question):
    """One part of the answer, in text."""
    budget = question.budget

    def row(text, n):
        return f"  {text:<50} {format_bytes(n):>8}  {'fits' if n <= budget else 'does not fit'}"

    if name == "peak":
        lines = [f"  {part:<50} {format_bytes(n):>8}  {n / data['bytes']:4.0%}" for part, n in data["parts"].items()]
        verdict = "IT FITS" if data["fits"] else "IT DOES NOT FIT"
        total = f"  {'together':<50} {format_bytes(data['bytes']):>8}  {data['bytes'] / budget:4.0%} of the budget"
        return "\n".join([f"{verdict}. At the peak:", *lines, total])
    if name == "changes":
        rows = [row(entry["name"], entry["bytes"]) for entry in data] or ["  nothing that is known here"]
        return "\n".join(["What would make it fit:", *rows])
    if name == "longest":
        if data["length"] == 0:
            return f"No length fits: 2 tokens already take {format_bytes(data['bytes'])}."
        least = "at least " if data["length"] >= LONGEST else ""
        return (
            f"The longest sequence that fits as asked: {least}{data['length']:,} tokens, {format_bytes(data['bytes'])}."
        )
    if name == "depth":
        return "\n".join(["By depth:", *(row(entry["name"], entry["bytes"]) for entry in data)])
    head = f"  {'tokens':>12}" + "".join(f"{name:>17}" for name in VARIANTS)
    rows = [f"  {r['length']:>12,}" + "".join(f"{format_bytes(r[name]):>17}" for name in VARIANTS) for r in data]
    return "\n".join(["By length (dense: reversible, all scores of some heads at once):", head, *rows])


@clear_errors
def caption(report):
    """What the picture shows, in words and numbers."""
    asked, last = report["asked"], report["length"][-1]
    return (
        f"Left: stacked bars, predicted peak memory of a training step by part; {asked['length']:,} tokens take as "
        f"asked {format_bytes(report['peak']['bytes'])}, the budget is {format_bytes(asked['budget'])}. Right: lines "
        f"on logarithmic axes, predicted peak against length; at {last['length']:,} tokens reversible "
        f"{format_bytes(last['reversible'])}, not reversible {format_bytes(last['not reversible'])}, dense attention "
        f"{format_bytes(last['dense'])}."
    )


@clear_errors
def draw(report):
    """A matplotlib Figure of the answer: bars by part, lines by length, the budget in both."""
    from matplotlib.figure import Figure

    from reformer_lab.plots.drawing import OKABE_ITO
    from reformer_lab.plots.measured import draw_parts

    figure = Figure(figsize=(12, 5), layout="constrained")
    bars, lines = figure.subplots(1, 2, width_ratios=(3, 2))
    asked = report["asked"]["config"]["n_layers"], report["asked"]["config"]["reversible"]
    depths = [entry for entry in report["depth"] if (entry["layers"], entry["reversible"]) != asked]
    entries = [report["peak"], *report.get("changes", []), *depths]
    widest = draw_parts(bars, {entry["name"]: entry["parts"] for entry in entries})
    names = ["\n".join(textwrap.wrap(entry["name"], 30)) for entry in entries]
    budget = report["asked"]["budget"]
    bars.set(yticks=range(len(names)), yticklabels=names, xlabel="GB (10^9 bytes)", title="Peak memory, predicted")
    bars.set_xlim(0, 1.15 * max(widest, budget / 1e9))
    lengths = [row["length"] for row in report["length"]]
    styles = zip(VARIANTS, (OKABE_ITO[4], OKABE_ITO[5], "black"), "os^", strict=True)
    for name, colour, marker in styles:
        lines.plot(lengths, [row[name] / 1e9 for row in report["length"]], color=colour, marker=marker, label=name)
    lines.set(xscale="log", yscale="log", xlabel="tokens", ylabel="GB (10^9 bytes)", title="By length, predicted")
    lines.set_xticks(lengths, [f"{n:,}" for n in lengths], rotation=30)
    lines.minorticks_off()
    for axes, line in ((bars, bars.axvline), (lines, lines.axhline)):
        line(budget / 1e9, color=OKABE_ITO[2], ls="--", lw=2, label=f"budget {format_bytes(budget)}", zorder=3)
        axes.spines[["top", "right"]].set_visible(False)
    bars.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3, frameon=False)
    lines.legend(frameon=False)
    return figure
