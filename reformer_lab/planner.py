"""Does it fit, and what would make it fit? ``python -m reformer_lab memory``, as a table and a
picture.

Every figure here is predicted (see ``memory.predict_peak``): nothing is allocated, so that any
model and any length can be asked about on any machine. Sizes are decimal, 1 GB = 10^9 bytes, unless
they say GiB.
"""

import json
import re
import sys
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path

from reformer_ref._arguments import LARGEST_ARRAY, clear_errors, require_choice, require_int, shown

DTYPES = ("float32", "bfloat16", "float16", "float64")
SLICE = 1 << 14  # positions at a time, where slices are proposed
LONGEST = 1 << 26  # tokens: where the search for the longest sequence ends
UNITS = {"b": 1, **{f"{p}b": 1000**n for n, p in enumerate("kmgtp", 1)}}
UNITS |= {f"{p}ib": 1024**n for n, p in enumerate("kmgtp", 1)}
# Okabe–Ito colours and hatches of the parts of a bar; colour and marker of the ways to go long
PARTS = {
    "parameters": ("#000000", ""),
    "gradients": ("#D55E00", ".."),
    "optimizer": ("#CC79A7", "xx"),
    "streams": ("#0072B2", ""),
    "working set": ("#56B4E9", "//"),
}
WAYS = {"reversible": ("#0072B2", "o"), "not reversible": ("#D55E00", "s"), "dense": ("#000000", "^")}


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
class Question:
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

        require_config(self.config), require_int("batch", self.batch)
        (require_int("budget", self.budget, 1, 10**18), require_int("length", self.length, 2, LARGEST_ARRAY))
        (require_choice("device", self.device, ("cuda", "cpu")), require_choice("dtype", self.dtype, DTYPES))
        require_choice("optimizer", self.optimizer, ("adam", "sgd", None))

    def predict(self, length=None, batch=None, dtype=None, n_hashes=None, **changes):
        """The ``Peak`` of the same step at another length, batch or dtype, or with ``changes`` of
        the configuration.
        """
        import torch
        from reformer_ref.memory.measure import predict_peak

        length = self.length if length is None else length
        require_choice("dtype", dtype, (*DTYPES, None))
        if n_hashes is not None:
            require_int("n_hashes", n_hashes, 1, 1 << 20)
            changes["lsh"] = replace(self.config.lsh, n_hashes=n_hashes)
        if self.config.positions == "axial":
            changes |= {"axial_shape": None, "axial_dims": None}
        config = replace(self.config, max_length=length, **changes)
        dtype = getattr(torch, dtype or self.dtype)
        run = {
            "batch": self.batch if batch is None else require_int("batch", batch),
            "optimizer": self.optimizer,
            "dtype": dtype,
        }
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
    if not isinstance(question, Question):
        raise TypeError(f"question must be a Question, got {type(question).__name__}")
    peak = question.entry("as asked")
    yield "peak", peak
    if not peak["fits"]:
        yield "changes", [question.entry(name, **change) for name, change in changes(question)]
    yield "longest", longest(question, peak["bytes"])
    yield "depth", by_depth(question)
    yield "length", by_length(question)


@clear_errors
def changes(question):
    """What to try, as (description, arguments of ``Question.predict``); first what computes the
    same function.
    """
    c, same, other = question.config, [], []
    if not c.reversible:
        same.append(("reversible layers", {"reversible": True}))
    if min(c.ff_chunk or question.length, question.length) > SLICE:
        same.append((f"feed-forward and projections in slices of {SLICE}", {"ff_chunk": SLICE}))
    if min(c.loss_chunk or question.length, question.length) > SLICE:
        same.append((f"loss in slices of {SLICE}", {"loss_chunk": SLICE}))
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

    peak_bytes: at the length asked for. A bisection that cuts where a straight line between the
    ends meets the budget, since the peak is nearly one; lengths beyond LONGEST are not looked at.
    """
    budget, peak_bytes = question.budget, require_int("peak_bytes", peak_bytes, 1, 10**30)
    low, high = (2, question.predict(2).peak_bytes), (question.length, peak_bytes)
    if low[1] > budget:
        return {"length": 0, "bytes": low[1]}
    while high[1] <= budget and high[0] < LONGEST:
        further = min(max(high[0] + 1, int(1.1 * high[0] * budget / high[1])), LONGEST)
        low, high = high, (further, question.predict(further).peak_bytes)
    if high[1] <= budget:
        return {"length": high[0], "bytes": high[1]}
    while low[1] < 0.99 * budget and high[0] - low[0] > 1:
        share = (0.997 * budget - low[1]) / (high[1] - low[1])
        middle = min(max(low[0] + int(share * (high[0] - low[0])), low[0] + 1), high[0] - 1)
        here = middle, question.predict(middle).peak_bytes
        low, high = (here, high) if here[1] <= budget else (low, here)
    return {"length": low[0], "bytes": low[1]}


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
    """{"length", and per way of WAYS bytes} from an eighth of the length to twice the length.

    dense: all scores of some heads at once (one head if long), nearly as attention is usually
    written; reversible.
    """
    ways = {
        "reversible": {"reversible": True},
        "not reversible": {"reversible": False},
        "dense": {"reversible": True, "pattern": ("dense",), "dense_block": None},
    }
    lengths = sorted({max(2, question.length * eighths // 8) for eighths in (1, 2, 4, 8, 16)})
    return [{"length": n, **{w: question.predict(n, **c).peak_bytes for w, c in ways.items()}} for n in lengths]


@clear_errors
def headline(question):
    """Two lines: what is asked."""
    c, budget = question.config, question.budget
    lsh = f", {c.lsh.n_hashes} round(s) of hashing, chunks of {c.lsh.chunk_length}" if "lsh" in c.layers else ""
    slices = " and ".join(f"{n:,}" if n else "everything" for n in dict.fromkeys((c.ff_chunk, c.loss_chunk)))
    return (
        f"A training step on {question.batch} × {question.length:,} tokens: {c.n_layers} layers "
        f"({', '.join(dict.fromkeys(c.layers))}{'' if c.reversible else '; not reversible'}), d_model {c.d_model}, "
        f"{c.n_heads} heads, d_ff {c.d_ff}{lsh}, slices of {slices}, {question.dtype}, "
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
    head = f"  {'tokens':>12}" + "".join(f"{way:>17}" for way in WAYS)
    rows = [f"  {r['length']:>12,}" + "".join(f"{format_bytes(r[way]):>17}" for way in WAYS) for r in data]
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

    figure = Figure(figsize=(12, 5), layout="constrained")
    bars, lines = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_bars(bars, report)
    lengths, budget = [row["length"] for row in report["length"]], report["asked"]["budget"]
    for way, (colour, marker) in WAYS.items():
        lines.plot(lengths, [row[way] / 1e9 for row in report["length"]], color=colour, marker=marker, label=way)
    lines.set(xscale="log", yscale="log", xlabel="tokens", ylabel="GB (10^9 bytes)", title="By length, predicted")
    lines.set_xticks(lengths, [f"{n:,}" for n in lengths], rotation=30)
    lines.minorticks_off()
    for axes, line in ((bars, bars.axvline), (lines, lines.axhline)):
        line(budget / 1e9, color="#009E73", ls="--", lw=2, label=f"budget {format_bytes(budget)}", zorder=3)
        axes.spines[["top", "right"]].set_visible(False)
    bars.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3, frameon=False)
    lines.legend(frameon=False)
    return figure


def _draw_bars(axes, report):
    config = report["asked"]["config"]
    asked = config["n_layers"], config["reversible"]
    depths = [entry for entry in report["depth"] if (entry["layers"], entry["reversible"]) != asked]
    entries = [report["peak"], *report.get("changes", []), *depths][::-1]
    rows, left = range(len(entries)), [0.0] * len(entries)
    for part, (colour, hatch) in PARTS.items():
        widths = [entry["parts"][part] / 1e9 for entry in entries]
        axes.barh(rows, widths, left=left, color=colour, hatch=hatch, edgecolor="white", label=part)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    on_white = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    for row, total in zip(rows, left, strict=True):
        axes.text(total, row, f" {format_bytes(total * 1e9)}", va="center", fontsize=9, bbox=on_white, zorder=4)
    names = ["\n".join(textwrap.wrap(entry["name"], 30)) for entry in entries]
    axes.set(yticks=rows, yticklabels=names, xlabel="GB (10^9 bytes)", title="Peak memory, predicted")
    axes.set_xlim(0, 1.15 * max(*left, report["asked"]["budget"] / 1e9))


def add_memory_arguments(parser):
    """Options of the command ``memory``."""
    parser.description = (
        "Predict the peak memory of a training step, on a GPU or a CPU that need not be there: does it fit, and what "
        "would make it fit? By part, by depth, by length; nothing is allocated."
    )
    add = parser.add_argument
    add("--length", type=int, default=1 << 20, help="tokens in one sequence")
    add("--budget", default="16GB", help="memory there is: 16GB is 16·10^9 bytes, 16GiB is 16·2^30")
    add("--batch", type=int, default=1, help="sequences in one step")
    add("--layers", type=int, default=6, help="number of layers")
    add("--pattern", default="lsh", help="kinds of attention, repeated over the layers, such as local,lsh")
    add("--d-model", type=int, default=256, help="width of each of the two residual streams")
    add("--heads", type=int, default=4, help="attention heads")
    add("--d-ff", type=int, help="width of the feed-forward layers (default: four times d-model)")
    add("--preset", default="trax", help="LSH attention as in: paper, trax, huggingface, lucidrains, strict")
    add("--n-hashes", "--rounds", type=int, default=2, help="rounds of hashing")
    add("--chunk-length", type=int, default=64, help="tokens in one chunk of attention")
    add("--slice", type=int, default=SLICE, help="positions of feed-forward and loss worked on at a time, 0: all")
    add("--vocab-size", type=int, default=256, help="different tokens")
    add("--no-reversible", action="store_true", help="store the activations of every layer")
    add("--optimizer", choices=["adam", "sgd", "none"], default="adam", help="whose state is kept")
    add("--dtype", choices=DTYPES, default="float32", help="of weights, activations, gradients and optimizer")
    add("--device", choices=["cuda", "cpu"], default="cuda", help="whose sizes of blocks are used")
    add("--plot", type=Path, metavar="PATH", help="draw the answer here (.png, .svg, .pdf)")
    add("--json", type=Path, metavar="PATH", help="write the answer here")
    parser.set_defaults(run=run_memory, command="reformer-ref memory")


def run_memory(args):
    """``memory``: the answer on stdout; the exit code, 0. ValueError or TypeError for options that
    do not fit.
    """
    question = _question(args)
    for path in (args.plot, args.json):
        if path is not None and not path.parent.is_dir():
            raise ValueError(f"there is no folder {path.parent} for {path.name}")
    if args.plot is not None and args.plot.suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"--plot must end in .png, .svg or .pdf, got {args.plot.name}")
    print("\n".join(textwrap.fill(line, 100) for line in headline(question).splitlines()), flush=True)
    report = {}
    for name, data in answer(question):
        report[name] = data
        print(f"\n{table(name, data, question)}", flush=True)
    return _write(report, question, args)


def _write(report, question, args):
    import torch
    from reformer_ref.memory.measure import NOT_PREDICTED

    from reformer_lab.benchmarks import record

    asked = {name: getattr(question, name) for name in ("length", "budget", "device", "batch", "optimizer", "dtype")}
    report = {"asked": {**asked, "config": json.loads(question.config.to_json())}, "excludes": NOT_PREDICTED, **report}
    report["caption"] = caption(report)
    print("\n" + textwrap.fill(f"Not in these figures: {NOT_PREDICTED}.", 100))
    if args.json is not None:
        record.write(args.json, {**record.about(args.command, torch.get_num_threads()), **report})
        print(f"written {args.json}", file=sys.stderr)
    if args.plot is not None:
        draw(report).savefig(args.plot, dpi=150)
        print(f"{args.plot}: {report['caption']}")
    return 0


def _question(args):
    """The Question that the options describe."""
    from reformer_ref.lsh_attention.options import LSHOptions
    from reformer_ref.model.config import ReformerConfig

    slices = require_int("--slice", args.slice, minimum=0) or None
    config = ReformerConfig(
        vocab_size=args.vocab_size, d_model=args.d_model, n_heads=args.heads, n_layers=args.layers, d_ff=args.d_ff,
        pattern=tuple(kind.strip() for kind in args.pattern.split(",")), reversible=not args.no_reversible,
        max_length=require_int("--length", args.length, minimum=2), ff_chunk=slices, loss_chunk=slices,
        lsh=LSHOptions.preset(args.preset, n_hashes=args.n_hashes, chunk_length=args.chunk_length),
    )  # fmt: skip
    optimizer = None if args.optimizer == "none" else args.optimizer
    batch = require_int("--batch", args.batch)
    return Question(config, args.length, parse_bytes(args.budget), args.device, batch, optimizer, args.dtype)
