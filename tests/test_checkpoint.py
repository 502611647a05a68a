"""Checkpoints: what was saved comes back, a failing disk loses nothing, the newest good one is read."""

import math
import os

import pytest
import safetensors.torch
import torch
from reformer_lab.training import checkpoint, files
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.model.config import ReformerConfig
from reformer_ref.model.encoder_decoder import ReformerEncoderDecoder
from reformer_ref.model.pytorch import ReformerLM

CONFIG = ReformerConfig(
    vocab_size=32, d_model=16, n_heads=2, n_layers=2, d_ff=32, max_length=64,
    lsh=LSHOptions.preset("strict", chunk_length=8),
)  # fmt: skip


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def shifted(model, by=1.0):
    with torch.no_grad():
        for p in model.parameters():
            p.add_(by)
    return model


def same(model, other):
    a, b = model.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_what_is_saved_comes_back(tmp_path):
    model, training = (ReformerLM(CONFIG), {"a:exp_avg": torch.arange(3.0), "a:step": torch.tensor(7.0)})
    state = {"note": 'σ "sha256":"', "list": [1, 2.5, None]}
    path = checkpoint.save(tmp_path / "new/run", model, step=12, training=training, state=state)
    loaded, saved = checkpoint.load(tmp_path / "new/run")
    assert same(loaded, model)
    assert not loaded.training
    assert loaded.config == CONFIG
    assert (saved.path, saved.step, saved.model, saved.state) == (path, 12, "ReformerLM", state)
    assert saved.training.keys() == training.keys()
    assert all(torch.equal(saved.training[name], t) for name, t in training.items())
    assert names(path.parent) == ["step-000000012.safetensors"]
    assert {path.stat().st_mode & 0o777 for path in path.parent.iterdir()} == {0o644}


def test_an_encoder_decoder_and_float64_come_back_too(tmp_path):
    from dataclasses import replace

    both = replace(CONFIG, causal=False, lsh=None, local=None), CONFIG
    model = ReformerEncoderDecoder(*both).double()
    checkpoint.save(tmp_path, model)
    loaded, saved = checkpoint.load(tmp_path)
    assert same(loaded, model)
    assert next(loaded.parameters()).dtype == torch.float64
    assert saved.model == "ReformerEncoderDecoder"
    assert saved.training == {}


def test_models_of_other_kinds_are_read_but_not_built(tmp_path):
    checkpoint.save(tmp_path, torch.nn.Linear(2, 3))
    assert checkpoint.newest(tmp_path)[0].weights["weight"].shape == (3, 2)
    with pytest.raises(checkpoint.CheckpointError, match="model of another kind: 'Linear'"):
        checkpoint.load(tmp_path)


def test_the_newest_two_are_kept_and_nothing_else(tmp_path):
    model = ReformerLM(CONFIG)
    for step in (1, 2, 2, 3):
        checkpoint.save(tmp_path, shifted(model), step=step)
    assert names(tmp_path) == ["step-000000002.safetensors", "step-000000003.safetensors"]
    assert [path.name for path in checkpoint.paths(tmp_path)] == names(tmp_path)[::-1]
    assert same(checkpoint.load(tmp_path)[0], model)


def test_a_step_before_the_newest_is_kept_too(tmp_path):
    for step in (7, 8, 2, 3):
        checkpoint.save(tmp_path, torch.nn.Linear(2, 3), step=step)
    assert [int(name[5:14]) for name in names(tmp_path)] == [2, 3, 7, 8]


def test_an_earlier_format_is_named_with_what_to_do(tmp_path):
    path = tmp_path / "step-000000001.safetensors"
    path.write_bytes(
        safetensors.torch.save({"model/a": torch.ones(1)}, {"format": "3", "manifest": "{}", "sha256": ""})
    )
    with pytest.raises(
        checkpoint.CheckpointError, match=r"has format '3', this version reads format 4: use the release"
    ):
        checkpoint.read(path)


def test_tensors_that_share_memory_are_saved(tmp_path):
    model = torch.nn.Linear(3, 3)
    model.tied = model.weight
    path = checkpoint.save(tmp_path, model, training={"view": model.weight[1:]})
    saved = checkpoint.read(path)
    assert torch.equal(saved.weights["tied"], saved.weights["weight"])
    assert torch.equal(saved.training["view"], model.weight[1:])


def test_dates_play_no_part(tmp_path):
    model = ReformerLM(CONFIG)
    for step, date in ((1, 4_000_000_000), (2, 1)):  # the clock went back by a century in between
        os.utime(checkpoint.save(tmp_path, shifted(model), step=step), (date, date))
    assert checkpoint.newest(tmp_path)[0].step == 2


@pytest.mark.parametrize("function", ["replace", "fsync", "fdopen"])
@pytest.mark.parametrize("call", range(1, 4))
def test_a_disk_that_fails_at_any_call_leaves_the_previous_checkpoint(tmp_path, monkeypatch, function, call):
    model = ReformerLM(CONFIG)
    checkpoint.save(tmp_path, model, step=1, training={"a": torch.ones(3)})
    real, calls = getattr(files.os, function), []

    def failing(*args, **kwargs):
        calls.append(args)
        if len(calls) == call:
            raise OSError(28, "No space left on device")
        return real(*args, **kwargs)

    monkeypatch.setattr(files.os, function, failing)
    after = shifted(ReformerLM(CONFIG))
    message = ""
    try:
        checkpoint.save(tmp_path, after, step=2, training={"a": torch.zeros(3)})
    except checkpoint.CheckpointNotWritten as error:
        message = str(error)
    monkeypatch.undo()
    loaded, saved = checkpoint.load(tmp_path)
    assert same(loaded, {1: model, 2: after}[saved.step])
    assert ("the checkpoint of step 2 could not be written (No space left on device)" in message) or saved.step == 2
    assert len(calls) >= call or saved.step == 2
    assert not [name for name in names(tmp_path) if name.endswith(".tmp")]
    checkpoint.save(tmp_path, after, step=3)
    assert same(checkpoint.load(tmp_path)[0], after)
    assert len(checkpoint.paths(tmp_path)) == 2


def test_what_is_no_json_is_refused_before_anything_is_written(tmp_path):
    for bad in ({"x": math.nan}, {"x": object()}):
        with pytest.raises((ValueError, TypeError)):
            checkpoint.save(tmp_path / "run", ReformerLM(CONFIG), state=bad)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="step must be at least 0"):
        checkpoint.save(tmp_path / "run", ReformerLM(CONFIG), step=-1)


def test_what_a_crash_left_behind_is_cleared_away(tmp_path):
    (tmp_path / ".step-000000002.safetensors.abc.tmp").write_bytes(b"cut")
    (tmp_path / "notes.txt").write_text("mine")
    checkpoint.save(tmp_path, ReformerLM(CONFIG), step=3)
    assert names(tmp_path) == ["notes.txt", "step-000000003.safetensors"]


def test_the_newest_good_one_is_read_and_damaged_ones_are_reported(tmp_path):
    model = ReformerLM(CONFIG)
    first = shifted(ReformerLM(CONFIG), 0.5)
    checkpoint.save(tmp_path, first, step=5)
    path = checkpoint.save(tmp_path, model, step=6)
    path.write_bytes(path.read_bytes()[:-1])
    newest, damaged = checkpoint.newest(tmp_path)
    assert newest.step == 5
    assert [path for path, _ in damaged] == [path]
    assert "is damaged" in damaged[0][1]
    with pytest.raises(checkpoint.CheckpointError, match="is damaged"):
        checkpoint.load(tmp_path)  # never a silent fallback
    lines = []
    assert same(checkpoint.load(tmp_path, report=lines.append)[0], first)
    assert lines == [f"skipped: {damaged[0][1]}"]
    aside = path.rename(f"{path}.damaged")  # as a run does before it goes on
    assert checkpoint.load(tmp_path)[1].step == 5
    checkpoint.save(tmp_path, shifted(model), step=7)
    assert aside.name in names(tmp_path)  # nothing is lost


def test_folders_without_a_checkpoint(tmp_path):
    (tmp_path / "file").write_text("x")
    for folder, message in (
        (tmp_path, "there is no step-"),
        (tmp_path / "no", "no such folder"),
        (tmp_path / "file", "is not a folder"),
    ):
        with pytest.raises(checkpoint.CheckpointError, match=message):
            checkpoint.load(folder)
