"""``make figures``: the pictures of the README and of the paper's sections 2 and 3, from real data, and what they show.

Computed pictures come from the explorers at the values where their sliders start, so from fixed seeds; measured ones
from the records in ``reformer_lab/records``. All captions and numbers are written to ``figures/pictures.json``.
"""

import json
import os
from pathlib import Path

from reformer_ref._arguments import UNCLEAR, short_repr


def computed():
    """{name: function that draws it} of the pictures that are computed when they are drawn."""
    from reformer_lab.plots.chunking import four_matrices
    from reformer_lab.widgets import (
        axial,
        buckets,
        causality,
        chunks,
        circle,
        feed_forward,
        memory,
        pattern,
        reconstruction,
        rings,
    )

    def matrices():
        _, qk, hashed = chunks.sentence_vectors()
        return four_matrices(**chunks.matrices(qk, hashed))

    return {
        "five_strips": lambda: chunks.chunks(step="5 undone"),
        "four_matrices": matrices,
        "angular_hashing": circle.circle,
        "attention_pattern": pattern.pattern,
        "causal_pattern": causality.causality,
        "reconstruction": reconstruction.reconstruction,
        "feed_forward_slices": feed_forward.feed_forward_chunks,
        "axial_positions": axial.axial,
        "buckets_of_words": buckets.spelling,
        "rings": rings.rings,
        "memory_by_part": memory.memory,
    }


def recorded(curve=None):
    """{name: function that draws it} of the pictures of what was measured before; ``curve``: see `record_run`."""
    from reformer_lab.plots import measured as plots
    from reformer_lab.plots.model import learning_curve

    attention = [plots.read("bench_attention"), plots.read("bench_attention_65536")]
    steps = [plots.read("bench_step"), plots.read("bench_step_65536")]
    million = [plots.read(name) for name in ("million_16384", "million_65536", "million_262144", "million")]
    run = plots.read("training_curve") if curve is None else curve
    names = ("step", "train_bits_per_byte", "held_out_step", "held_out_bits_per_byte")
    baselines = {"zlib -9": run["zlib"], "byte frequencies": run["unigram"]}
    return {
        "speed_attention": lambda: plots.attention_by_length(attention),
        "speed_crossover": lambda: plots.crossover(plots.read("bench_crossover")),
        "speed_rounds": lambda: plots.attention_by_rounds(plots.read("bench_rounds")),
        "speed_share": lambda: plots.matmul_rate(attention),
        "speed_step": lambda: plots.training_step(steps),
        "speed_million": lambda: plots.million_steps(million),
        "training_curve": lambda: learning_curve(*(run[name] for name in names), baselines),
    } | claims()


def claims():
    """{name: function that draws it} of the pictures of the paper's claims, of those that have been recorded."""
    from reformer_lab.claims import NAMES
    from reformer_lab.claims.plots import pictures
    from reformer_lab.claims.table import stored

    records = [record for name in NAMES if (record := stored(name))]
    return {name: draw for record in records for name, draw in pictures(record).items()}


def draw_all(out, curve=None):
    """Draw every picture as PNG into the folder ``out``; captions and numbers go to ``out/pictures.json``."""
    from reformer_lab.benchmarks.record import write
    from reformer_lab.plots.drawing import number

    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    captions = {}
    for name, draw in (computed() | recorded(curve)).items():
        picture = draw()
        (out / f"{name}.png").write_bytes(picture.png(dpi=150))
        numbers = {label: number(value) for label, value in picture.numbers.items()}
        captions[name] = {"caption": picture.caption, "numbers": numbers}
        print(f"{out / name}.png: {picture.caption}", flush=True)
    write(out / "pictures.json", captions)


def record_run(folder, out):
    """Write what the picture of a training run shows, from its metrics.json, to ``out/training_curve.json``.

    Returns:
        The record. ValueError if there is no run in ``folder``, or it is not what ``train`` writes.
    """
    from reformer_lab.benchmarks.record import write

    path = Path(folder) / "metrics.json"
    if not os.path.isfile(path):
        name = short_repr(str(folder))
        raise ValueError(
            f"no recorded run in the folder {name} (metrics.json); train one first: reformer-ref train --out {name}"
        )
    try:
        curve = curve_data(json.loads(path.read_bytes()))
    except UNCLEAR as error:
        raise ValueError(f"{path} is not what `train` writes: {error!r}") from None
    write(Path(out) / "training_curve.json", curve)
    return curve


def curve_data(metrics):
    """Bits per byte of a run, step by step, and of what needs no training, from its metrics."""
    from reformer_lab.benchmarks.record import without_folders

    held_out, evaluations = metrics["held_out_bits_per_byte"], metrics["evaluations"]
    return {
        "command": without_folders(metrics["command"]),
        "text": metrics["text"],
        "step": [int(point["step"]) for point in metrics["curve"]],
        "train_bits_per_byte": [round(float(point["bits"]), 4) for point in metrics["curve"]],
        "held_out_step": [int(point["step"]) for point in evaluations],
        "held_out_bits_per_byte": [round(float(point["bits"]), 4) for point in evaluations],
        "zlib": round(float(held_out["zlib"]), 4),
        "unigram": round(float(held_out["unigram"]), 4),
    }
