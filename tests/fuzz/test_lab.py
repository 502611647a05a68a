"""Hostile calls of the lab where its users call it: training, data, the memory planner, claims, widgets."""

import inspect
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import reformer_lab
import torch
from reformer_lab import claims, planner
from reformer_lab.benchmarks import million
from reformer_lab.claims import experiment, table
from reformer_lab.data import duplication, images, text, translation
from reformer_lab.training import checkpoint, processes
from reformer_lab.training import loop as training
from reformer_lab.training.schedule import TrainingOptions
from reformer_lab.widgets import axial, buckets, causality, chunks, circle, feed_forward, pattern, reconstruction, rings
from reformer_lab.widgets import memory as memory_widget
from reformer_lab.widgets import model as model_widget
from reformer_ref import LSHOptions, ReformerConfig, ReformerLM
from tests.fuzz.harness import Registry, fuzz

LAB = Registry(reformer_lab)
TEMPORARY = tempfile.TemporaryDirectory(prefix="fuzz-lab-")  # removed when Python ends
FOLDER = Path(TEMPORARY.name)
CONFIG = ReformerConfig(
    vocab_size=256, d_model=8, n_layers=1, n_heads=1, max_length=16, pattern=("lsh",),
    lsh=LSHOptions.preset("strict", chunk_length=4),
)  # fmt: skip
TOKENS = torch.arange(16)[None]
PAIRS = [("the red dog sees it", "der rote Hund sieht es"), ("a cat, too", "auch eine Katze"), ("no", "nein")]
BYTES = np.frombuffer(b"some text that is long enough" * 3, np.uint8)
FILE = (" cannot be read", " does not exist", " must ", " is no ", " is damaged ", "text file")  # of a file


def add(function, /, words=(), constant=(), also=(), call=None, **arguments):
    """A target and a valid call of it. constant: arguments that stay as they are; a lambda makes a value each time."""
    name = f"{function.__module__}.{function.__qualname__}".removeprefix("reformer_lab.")
    values = {key: value if callable(value) else lambda value=value: value for key, value in arguments.items()}
    LAB.add(name, call or function, tensors=False, words=words, keep=constant, also=also)(
        lambda draw: {key: make() for key, make in values.items()}
    )


def written(name, content):
    path = FOLDER / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


IDX = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (3, 2, 2)) + bytes(12)
for file in images.IDX_NAMES.values():
    written(f"idx/{file}", IDX)
written("pairs.tsv", "".join(f"{a}\t{b}\n" for a, b in PAIRS).encode())
written("text.txt", b"some text " * 20)
DONE = {"name": "a", "seconds": 1.0, "settings": {"seed": 0}, "result": {"a": 1}, "about": {}}
written("done/result.json", json.dumps(DONE).encode())
GOOD = checkpoint.save(FOLDER / "good", ReformerLM(CONFIG))

# Training
OPTIONS = {
    "steps": 2, "optimizer": "adam", "learning_rate": 1e-3, "beta2": 0.98, "warmup": 2, "schedule": "rsqrt",
    "clip": 1.0, "accumulate": 1, "precision": "32", "evaluate_every": 0, "quick_windows": 1, "checkpoint_every": 0,
    "checkpoint_minutes": 1.0, "seed": 0,
}  # fmt: skip
add(TrainingOptions, words=("steps and minutes",), **OPTIONS)
add(TrainingOptions.preset, words=("preset", *OPTIONS), name="enwik8", steps=3)
add(training.step_generator, seed=1, step=2)
add(training.held_out_bits, words=("tokens",), model=lambda: ReformerLM(CONFIG), windows=TOKENS)
add(training.train, constant=("batch_at", "report"), words=("tokens", "batch"), model=lambda: ReformerLM(CONFIG),
    batch_at=lambda: lambda step: TOKENS, held_out=TOKENS, options=TrainingOptions(steps=1, evaluate_every=0),
    progress=False, about={"a": 1}, report=lambda: str)  # fmt: skip
add(checkpoint.save, also=(OSError,), folder=FOLDER / "saved", model=lambda: ReformerLM(CONFIG), step=3,
    weights=None, training=lambda: {"x": torch.ones(2)}, state={"a": 1})  # fmt: skip
add(checkpoint.load, words=("checkpoint",), folder=FOLDER / "good", report=None)
add(checkpoint.newest, words=("checkpoint",), folder=FOLDER / "good")
add(checkpoint.read, words=("cannot be read", "holds step"), path=GOOD)
add(processes.make_fabric, device="cpu", processes=1, precision="32", timeout=9.0, strategy="ddp")
# Data
add(text.read_text, words=FILE, path=FOLDER / "text.txt")
add(text.split, data=BYTES, held_out=0.1)
add(text.batches, data=BYTES, length=8, batch=2, seed=0, step=1)
add(text.held_out_windows, data=BYTES, length=8, count=2)
add(duplication.batches, length=8, vocab_size=5, batch=2, seed=0, step=1)
add(images.read_idx, words=FILE, path=FOLDER / "idx" / images.IDX_NAMES["train"])
add(images.read_folder, words=FILE, folder=FOLDER / "idx")
add(images.letters, count=1, seed=0, step=0, subset="train")
add(translation.read_pairs, words=FILE, path=FOLDER / "pairs.tsv")
add(translation.split, pairs=PAIRS, held_out=1, seed=0)
add(translation.padded, pairs=PAIRS)
add(translation.Batches, pairs=PAIRS, batch=2, seed=0)
# The memory planner, the benchmarks
QUESTION = planner.MemoryQuestion(config=CONFIG, length=20, budget=10**6)
add(planner.parse_bytes, words=("a size",), text="16GB")
add(planner.format_bytes, n=16384)
add(planner.MemoryQuestion, config=CONFIG, length=20, budget=10**6, device="cuda", batch=1, optimizer="adam",
    dtype="float32")  # fmt: skip
add(planner.answer, call=lambda question: next(planner.answer(question)), question=QUESTION)
add(million.read_tokens, words=("--text",), path=FOLDER / "text.txt", length=16, repeat=True)
# Claims
add(claims.claim, name="table2")
add(experiment.Context, folder=FOLDER / "run", threads=1, data=None, progress=False)
add(experiment.checksum, words=("--data",), path=FOLDER / "pairs.tsv")
add(experiment.finished, folder=FOLDER / "done", settings={"seed": 0})
add(experiment.read_object, words=FILE, constant=("keys", "equal"), path=FOLDER / "done/result.json",
    keys={"name": str}, equal={"name": "a"})  # fmt: skip
add(table.stored, name="table2", folder=FOLDER)
add(table.claims_table, words=("name",), folder=FOLDER, names=("table2", "counts"))
add(table.show, name="table2", number=0, folder=FOLDER)
# Widgets: their pictures take what the controls hold
for picture in (
    axial.axial, buckets.spelling, causality.causality, chunks.chunks, circle.circle, memory_widget.memory,
    model_widget.parameters, model_widget.next_letter, pattern.pattern, pattern.dense_pattern,
    reconstruction.reconstruction, rings.rings, feed_forward.feed_forward_chunks,
):  # fmt: skip
    add(picture, **{name: p.default for name, p in inspect.signature(picture).parameters.items()})


@pytest.mark.parametrize("target", LAB.targets, ids=str)
def test_hostile_arguments(target, counts):
    with torch.random.fork_rng():
        fuzz(target, counts)
