"""Explorer of memory: what a training step takes at its peak, by part, and whether it fits in 16 GB.

Four bars take four predictions, of about half a second each at a million tokens; a slider may take half a second in
all. So it reads points that ``memory.predict_peak`` predicted beforehand (``python -m reformer_lab.widgets.memory``
writes them to reformer_lab/records), and goes in straight lines where the peak is one: over the number of layers, and
over the length beyond 2^19 tokens. Every figure is the one that ``reformer-ref memory`` predicts for the same question,
to about 1 %.
"""

import json
from functools import lru_cache
from itertools import product

from reformer_ref._arguments import clear_errors, require_int
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.memory.predict import CATEGORIES, NOT_PREDICTED, predict_peak
from reformer_ref.model.config import ReformerConfig

from reformer_lab import records
from reformer_lab.benchmarks import record
from reformer_lab.planner import CHUNK, format_bytes
from reformer_lab.plots.drawing import controls
from reformer_lab.plots.measured import memory_bars

POINTS = records.FOLDER / "memory_points.json"
BUDGET = 16 * 10**9
LENGTHS, DEPTHS = (tuple(2**k for k in range(12, 20)), (2, 3))  # predicted; all else lies on straight lines
HEADS, ROUNDS = (1, 2, 4, 8), (1, 2, 4)


@clear_errors
def config_of(length, layers, heads, rounds, reversible):
    """The model that the explorer asks about, which is that of ``python -m reformer_lab memory``: a
    ReformerConfig.
    """
    return ReformerConfig(
        vocab_size=256, d_model=256, n_heads=heads, n_layers=layers, pattern=("lsh",), max_length=length,
        reversible=reversible, ff_chunk=CHUNK, loss_chunk=CHUNK, lsh=LSHOptions.preset("trax", n_hashes=rounds),
    )  # fmt: skip


@clear_errors
def peak_parts(length, layers, heads, rounds, reversible):
    """{part: bytes} at the peak of a training step on one sequence, as on CUDA, in float32 with
    Adam.

    length: from 4,096 tokens to 2^19 a power of two, beyond that any; layers ≥ 2; 1, 2, 4 or 8
    heads; 1, 2 or 4 rounds. ValueError for anything else.
    """
    require_int("length", length)
    require_int("layers", layers, DEPTHS[0])
    if length <= LENGTHS[-1]:
        if length not in LENGTHS:
            raise ValueError(f"length must be one of {', '.join(map(str, LENGTHS))} or longer, got {length}")
        return dict(zip(CATEGORIES, _at(length, layers, heads, rounds, reversible), strict=True))
    short, long = LENGTHS[-2:]
    low, high = (_at(n, layers, heads, rounds, reversible) for n in (short, long))
    return dict(zip(CATEGORIES, _line(short, low, long, high, length), strict=True))


@controls(length=[*LENGTHS, 2**20], layers=(2, 24), heads=[*HEADS], rounds=[*ROUNDS], reversible=bool)
def memory(length=2**20, layers=6, heads=4, rounds=2, reversible=True):
    """A training step as chosen; the other way round, twice as deep and twice as long; and the
    budget of 16 GB.
    """
    ways = {
        "as chosen": (length, layers, reversible),
        "not reversible" if reversible else "reversible": (length, layers, not reversible),
        "twice the layers": (length, 2 * layers, reversible),
        "twice the length": (2 * length, layers, reversible),
    }
    rows = {name: peak_parts(n, depth, heads, rounds, way) for name, (n, depth, way) in ways.items()}
    picture = memory_bars(rows, BUDGET)
    chosen = rows["as chosen"]
    sizes = {part: format_bytes(size) for part, size in chosen.items()}
    return picture.describe(
        f"Stacked bars: predicted peak memory (x, GB) of a training step on {length:,} tokens, by part, for "
        f"{layers} layers{'' if reversible else ', not reversible'}, {heads} heads, {rounds} rounds; below it what one "
        "change would do; dashed: 16 GB. Nothing here is measured.",
        **sizes, together=format_bytes(sum(chosen.values())),
        **{"share of 16 GB": f"{100 * sum(chosen.values()) / BUDGET:.3g} %"},
        **{f"{name} fits": sum(parts.values()) <= BUDGET for name, parts in rows.items()},
    )  # fmt: skip


@clear_errors
def train_steps(config, length, steps=2):
    """Make a model and train it for some steps of Adam on zeros: the work that memory is counted
    of.

    Two steps, because Adam keeps its state only from the end of the first.
    """
    import torch
    from reformer_ref.model.pytorch import ReformerLM

    steps = require_int("steps", steps, 1, 1000)
    model = ReformerLM(config)
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        model.loss(torch.zeros(1, length, dtype=torch.int64)).backward()
        optimizer.step()


def write_points(path=POINTS, lengths=LENGTHS, heads=HEADS, rounds=ROUNDS):
    """Predict every point and write the record: minutes."""
    from tqdm import tqdm

    entries = []
    for n_heads, n_rounds, way in tqdm(list(product(heads, rounds, (True, False)))):
        parts = [
            [
                [size for _, size in predict_peak(config_of(n, depth, n_heads, n_rounds, way), n).breakdown]
                for depth in DEPTHS
            ]
            for n in lengths
        ]
        entries.append({"heads": n_heads, "rounds": n_rounds, "reversible": way, "bytes": parts})
    head = record.about("python -m reformer_lab.widgets.memory", 1)
    note = f"predicted peak bytes of a training step by length, depth and part; without {NOT_PREDICTED}"
    axes = {"lengths": lengths, "layers": DEPTHS, "parts": list(CATEGORIES)}
    record.write(path, {**head, "note": note, **axes, "points": entries})


@lru_cache(maxsize=1)
def _points():
    if not POINTS.is_file():
        raise ValueError(
            "reformer_lab/records/memory_points.json is not there: run `python -m reformer_lab.widgets.memory`"
        )
    entries = json.loads(POINTS.read_text(encoding="utf-8"))["points"]
    return {(e["heads"], e["rounds"], e["reversible"]): e["bytes"] for e in entries}


def _at(length, layers, heads, rounds, reversible):
    """Bytes by part at a predicted length, on the straight line through the predicted depths."""
    points = _points()
    if (heads, rounds, reversible) not in points:
        raise ValueError(f"heads must be one of {HEADS}, rounds one of {ROUNDS}, got {heads} and {rounds}")
    shallow, deep = points[heads, rounds, reversible][LENGTHS.index(length)]
    return _line(DEPTHS[0], shallow, DEPTHS[1], deep, layers)


def _line(x0, y0, x1, y1, x):
    """The straight line through (x0, y0) and (x1, y1) at x, for every entry; never below 0."""
    return [max(0, round(a + (b - a) * (x - x0) / (x1 - x0))) for a, b in zip(y0, y1, strict=True)]


if __name__ == "__main__":
    write_points()
