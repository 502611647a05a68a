"""Does it fit, and what would make it fit? ``python -m reformer_ref memory`` as a table and a picture.

Every figure here is predicted (see ``memory.predict_peak``): nothing is allocated, so any model and any length can be asked
for on any machine.
"""

import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from reformer_ref.memory import DTYPES, PARTS, format_bytes, predict_peak
from reformer_ref.model.config import ReformerConfig
from reformer_ref.validate import require_int

DTYPE_NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}
SLICE = 1 << 14  # positions at a time, where slices are proposed
UNITS = {
    "b": 1,
    **{f"{p}b": 1000**n for n, p in enumerate("kmgtp", 1)},
    **{f"{p}ib": 1024**n for n, p in enumerate("kmgtp", 1)},
}
COLOURS = ("#000000", "#D55E00", "#CC79A7", "#0072B2", "#56B4E9")  # Okabe–Ito, in the order of PARTS
HATCHES = ("", "..", "xx", "", "//")


def parse_bytes(text):
    """Bytes in a text: "16GB" is 16·10^9, "16 GiB" is 16·2^30, "1.5e9" is itself. ValueError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?(?:e\d+)?)\s*([a-z]*)\s*", text.lower()) if isinstance(text, str) else None
    if match is None or (match[2] or "b") not in UNITS:
        raise ValueError(f"a size must look like 16GB (16·10^9 bytes) or 16GiB (16·2^30 bytes), got {text!r}")
    size = float(match[1]) * UNITS[match[2] or "b"]
    if not 1 <= size < 1e18:
        raise ValueError(f"a size must be at least 1 byte and below 10^18, got {text!r}")
    return int(size)


@dataclass(frozen=True)
class Question:
    """Does a training step of ``config`` at ``length`` fit in ``budget`` bytes? The rest as in ``predict_peak``."""

    config: ReformerConfig
    length: int
    budget: int
    device: str = "cuda"
    batch: int = 1
    optimizer: str | None = "adam"
    dtype: object = DTYPES[0]

    def __post_init__(self):
        require_int("budget", self.budget)

    def predict(self, length=None, batch=None, dtype=None, n_hashes=None, **changes):
        """The ``Peak`` of the same step with another length, batch, dtype, or with ``changes`` of the configuration."""
        length = self.length if length is None else length
        if n_hashes is not None:
            changes["lsh"] = replace(self.config.lsh, n_hashes=n_hashes)
        if self.config.positions == "axial":
            changes |= {"axial_shape": None, "axial_dims": None}
        config = replace(self.config, max_length=length, **changes)
        return predict_peak(
            config, length, self.device, batch=batch or self.batch, optimizer=self.optimizer, dtype=dtype or self.dtype
        )


def answer(question):
    """Yields (name, plain data), the most asked-for first: "peak", "changes", "longest", "depth", "length"."""
    peak = question.predict()
    yield "peak", _entry("as asked", peak, question)
    if peak.peak_bytes > question.budget:
        yield "changes", [_entry(name, question.predict(**change), question) for name, change in changes(question)]
    yield "longest", longest(question, peak.peak_bytes)
    yield "depth", by_depth(question)
    yield "length", by_length(question)


def changes(question):
    """What to try, as (description, arguments of ``Question.predict``): first what leaves the function as it is."""
    c, same, other = question.config, [], []
    if not c.reversible:
        same.append(("reversible layers", {"reversible": True}))
    if (c.ff_slice or question.length) > SLICE:
        same.append((f"feed-forward, norms and projections {SLICE:,} positions at a time", {"ff_slice": SLICE}))
    if (c.loss_slice or question.length) > SLICE:
        same.append((f"loss {SLICE:,} positions at a time", {"loss_slice": SLICE}))
    if {"dense", "regular"} & set(c.layers):
        pattern = tuple("lsh" if kind in ("dense", "regular") else kind for kind in c.pattern)
        other.append(("LSH attention instead of dense", {"pattern": pattern}))
    if question.batch > 1:
        other.append(("one sequence at a time", {"batch": 1}))
    if c.lsh.n_hashes > 1 and "lsh" in c.layers:
        other.append(("1 round of hashing", {"n_hashes": 1}))
    if question.dtype.itemsize > 2:
        other.append(("bfloat16 throughout", {"dtype": DTYPE_NAMES["bfloat16"]}))
    found = [*same, *other]
    for name, together in (("all of these that compute the same", same), ("all of these", found)):
        if len(together) > 1 and (together is not found or other):
            found = [*found, (name, {key: value for _, change in together for key, value in change.items()})]
    return found


def longest(question, peak_bytes):
    """{"length", "bytes"} of the longest sequence that fits as asked, to about 1 %; length 0 if not even 2 tokens do.

    Bisection, with each cut where a straight line through the ends meets the budget: the peak is nearly one.
    """
    low, high = (2, question.predict(2).peak_bytes), (question.length, peak_bytes)
    if low[1] > question.budget:
        return {"length": 0, "bytes": low[1]}
    while high[1] <= question.budget:
        low, high = high, (2 * high[0], question.predict(2 * high[0]).peak_bytes)
    for _ in range(12):
        if low[1] > 0.99 * question.budget or high[0] - low[0] <= 1:
            break
        share = (question.budget * 0.997 - low[1]) / (high[1] - low[1])
        middle = min(max(low[0] + int(share * (high[0] - low[0])), low[0] + 1), high[0] - 1)
        here = middle, question.predict(middle).peak_bytes
        low, high = (here, high) if here[1] <= question.budget else (low, here)
    return {"length": low[0], "bytes": low[1]}


def by_depth(question):
    """The peak at half, once and twice the number of layers, reversible or not."""
    n = question.config.n_layers
    return [
        _entry(f"{depth} layers{'' if reversible else ', not reversible'}", peak, question)
        | {"layers": depth, "reversible": reversible}
        for depth in sorted({max(1, n // 2), n, 2 * n})
        for reversible in (True, False)
        for peak in [question.predict(n_layers=depth, reversible=reversible)]
    ]


def by_length(question):
    """The peak at an eighth of the length up to twice the length: reversible, not reversible, and with dense attention."""
    lengths = sorted({max(2, int(question.length * share)) for share in (1 / 8, 1 / 4, 1 / 2, 1, 2)})
    ways = {
        "reversible": {"reversible": True},
        "not reversible": {"reversible": False},
        "dense": {"reversible": True, "pattern": ("dense",), "dense_strip": None},
    }
    return [
        {"length": n, **{way: question.predict(n, **change).peak_bytes for way, change in ways.items()}}
        for n in lengths
    ]


def _entry(name, peak, question):
    fits = peak.peak_bytes <= question.budget
    return {"name": name, "bytes": peak.peak_bytes, "parts": dict(peak.parts), "fits": fits, "kind": peak.kind}
