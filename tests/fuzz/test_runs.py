"""Hostile arguments for what trains and keeps: options, schedules, checkpoints, the loop itself."""

import tempfile
from pathlib import Path

import pytest
import torch
from reformer_lab.training import checkpoint, processes, schedule
from reformer_lab.training import loop as training
from reformer_lab.training.schedule import TrainingOptions
from reformer_ref.model.config import ReformerConfig
from reformer_ref.model.pytorch import ReformerLM
from tests.fuzz.harness import Registry, fuzz

RUNS = Registry()
FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-runs-"))
CONFIG = ReformerConfig(vocab_size=16, d_model=8, n_heads=2, n_layers=1, d_ff=8, max_length=16, pattern=("local",))
TOKENS = torch.arange(16)[None]
OPTIONS = {
    "steps": 2, "optimizer": "adam", "learning_rate": 1e-3, "beta2": 0.98, "warmup": 2, "schedule": "rsqrt",
    "clip": 1.0, "accumulate": 1, "precision": "32", "evaluate_every": 0, "quick_windows": 1, "checkpoint_every": 0,
    "checkpoint_minutes": 1.0, "seed": 0,
}  # fmt: skip


def add(function, name=None, **how):
    def of(make):
        RUNS.add(function if name is None else (name, function), tensors=False, **how)(lambda draw: make())
        return make

    return of


@add(TrainingOptions, words=("steps and minutes",))
def _():
    return dict(OPTIONS)


@add(TrainingOptions.preset, "schedule.TrainingOptions.preset", words=("preset", *OPTIONS))
def _():
    return {"name": "enwik8", "steps": 3}


@add(schedule.learning_rate_at)
def _():
    return {"step": 3, "total": 9, "options": TrainingOptions(steps=9)}


@add(training.step_generator)
def _():
    return {"seed": 1, "step": 2}


@add(training.held_out_bits, words=("tokens",))
def _():
    return {"model": ReformerLM(CONFIG), "windows": TOKENS}


@add(training.train, keep=("batch_at", "report"), words=("tokens", "batch"))
def _():
    return {
        "model": ReformerLM(CONFIG), "batch_at": lambda step: TOKENS, "held_out": TOKENS,
        "options": TrainingOptions(steps=1, evaluate_every=0), "progress": False, "about": {"a": 1}, "report": str,
    }  # fmt: skip


@add(checkpoint.save, also=(OSError,))
def _():
    return {"folder": FOLDER / "saved", "model": ReformerLM(CONFIG), "step": 3, "training": {"x": torch.ones(2)},
            "state": {"a": 1}, "extra": [1], "keep": 2}  # fmt: skip


checkpoint.save(FOLDER / "good", ReformerLM(CONFIG))


@add(checkpoint.load, words=("checkpoint",))
def _():
    return {"folder": FOLDER / "good", "report": None}


@add(checkpoint.newest, words=("checkpoint",))
def _():
    return {"folder": FOLDER / "good"}


@add(checkpoint.read, words=("cannot be read", "holds step"))
def _():
    return {"path": FOLDER / "good/step-000000000.json"}


@add(processes.make_fabric)
def _():
    return {"device": "cpu", "processes": 1, "precision": "32", "timeout": 9.0}


@pytest.mark.parametrize("target", RUNS.targets, ids=str)
def test_hostile_arguments(target, counts):
    fuzz(target, counts)
