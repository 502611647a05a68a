"""Checkpoints: what was saved comes back, a failing disk loses nothing, the newest good one is
found.
"""

import json
import math
import os

import pytest
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
    extra = {"note": "σ", "list": [1, 2.5, None]}
    path = checkpoint.save(tmp_path / "new/run", model, step=12, training=training, state={"x": 1}, extra=extra)
    loaded, found = checkpoint.load(tmp_path / "new/run")
    assert same(loaded, model)
    assert not loaded.training
    assert loaded.config == CONFIG
    assert (found.path, found.step, found.model, found.state, found.extra) == (path, 12, "ReformerLM", {"x": 1}, extra)
    assert all(torch.equal(found.training[name], t) for name, t in training.items())
    assert path.name == "step-000000012.json"
    assert {path.stat().st_mode & 0o777 for path in path.parent.iterdir()} == {0o644}


def test_an_encoder_decoder_and_float64_come_back_too(tmp_path):
    from dataclasses import replace

    both = replace(CONFIG, causal=False, lsh=None, local=None), CONFIG
    model = ReformerEncoderDecoder(*both).double()
    checkpoint.save(tmp_path, model)
    loaded, found = checkpoint.load(tmp_path)
    assert same(loaded, model)
    assert next(loaded.parameters()).dtype == torch.float64
    assert found.model == "ReformerEncoderDecoder"
    assert found.training is None


def test_models_of_other_kinds_are_read_but_not_built(tmp_path):
    checkpoint.save(tmp_path, torch.nn.Linear(2, 3))
    assert checkpoint.newest(tmp_path)[0].weights["weight"].shape == (3, 2)
    with pytest.raises(checkpoint.CheckpointError, match="model of another kind: 'Linear'"):
        checkpoint.load(tmp_path)


def test_the_newest_two_are_kept_and_nothing_else(tmp_path):
    model = ReformerLM(CONFIG)
    for step in (1, 2, 2, 3):
        checkpoint.save(tmp_path, shifted(model), step=step)
    assert [p.name for p in checkpoint.manifests(tmp_path)] == ["step-000000003.json", "step-000000002.json"]
    assert len(names(tmp_path)) == 4
    assert same(checkpoint.load(tmp_path)[0], model)
    checkpoint.save(tmp_path, shifted(model), step=9, keep=1)
    assert len(names(tmp_path)) == 2


def test_equal_weights_share_their_file(tmp_path):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, ReformerLM(CONFIG), step=step)
    assert len(names(tmp_path)) == 3  # two manifests, one file
    assert checkpoint.load(tmp_path)[1].step == 3


def test_dates_play_no_part(tmp_path):
    model = ReformerLM(CONFIG)
    for step, date in ((1, 4_000_000_000), (2, 1)):  # the clock went back by a century in between
        os.utime(checkpoint.save(tmp_path, shifted(model), step=step), (date, date))
    assert checkpoint.newest(tmp_path)[0].step == 2


@pytest.mark.parametrize("function", ["replace", "fsync", "fdopen"])
@pytest.mark.parametrize("call", range(1, 7))
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
    loaded, found = checkpoint.load(tmp_path)
    assert same(loaded, {1: model, 2: after}[found.step])
    assert ("the checkpoint of step 2 could not be written (No space left on device)" in message) or found.step == 2
    assert len(calls) >= call or found.step == 2
    assert not [name for name in names(tmp_path) if name.endswith(".tmp")]
    checkpoint.save(tmp_path, after, step=3)
    assert same(checkpoint.load(tmp_path)[0], after)
    assert len(checkpoint.manifests(tmp_path)) == 2


def test_what_is_no_json_is_refused_before_anything_is_written(tmp_path):
    for bad in ({"x": math.nan}, {"x": object()}):
        with pytest.raises((ValueError, TypeError)):
            checkpoint.save(tmp_path / "run", ReformerLM(CONFIG), extra=bad)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="step must be at least 0"):
        checkpoint.save(tmp_path / "run", ReformerLM(CONFIG), step=-1)


def test_what_a_crash_left_behind_is_cleared_away(tmp_path):
    for name in (".step-000000002.json.abc.tmp", "model-0123456789abcdef.safetensors"):
        (tmp_path / name).write_bytes(b"cut")
    (tmp_path / "notes.txt").write_text("mine")
    checkpoint.save(tmp_path, ReformerLM(CONFIG), step=3)
    assert len(names(tmp_path)) == 3
    assert "notes.txt" in names(tmp_path)


def test_the_newest_good_one_is_found_and_what_is_skipped_is_said(tmp_path):
    model = ReformerLM(CONFIG)
    first = shifted(ReformerLM(CONFIG), 0.5)
    checkpoint.save(tmp_path, first, step=5)
    path = checkpoint.save(tmp_path, model, step=6)
    digest = json.loads(path.read_text())["files"]["model"]["sha256"][:16]
    data = tmp_path / f"model-{digest}.safetensors"
    data.write_bytes(data.read_bytes()[:-1])
    found, skipped = checkpoint.newest(tmp_path)
    assert found.step == 5
    assert [path for path, _ in skipped] == [path]
    assert "is damaged: it has" in skipped[0][1]
    with pytest.raises(checkpoint.CheckpointError, match="is damaged"):
        checkpoint.load(tmp_path)  # never a silent fallback
    lines = []
    assert same(checkpoint.load(tmp_path, report=lines.append)[0], first)
    assert lines == [f"skipped: {skipped[0][1]}"]
    aside = checkpoint.set_aside(path)
    assert aside.name == "step-000000006.json.damaged"
    assert checkpoint.load(tmp_path)[1].step == 5
    checkpoint.save(tmp_path, shifted(model), step=7)
    assert {aside.name, data.name} <= set(names(tmp_path))  # nothing is lost


def test_folders_without_a_checkpoint(tmp_path):
    (tmp_path / "file").write_text("x")
    for folder, message in (
        (tmp_path, "there is no step-"),
        (tmp_path / "no", "no such folder"),
        (tmp_path / "file", "is no folder"),
    ):
        with pytest.raises(checkpoint.CheckpointError, match=message):
            checkpoint.load(folder)
