"""The folder figures/ is what the command draws; a training run's curve is recorded as it was."""

import json
from pathlib import Path

import pytest
from reformer_lab.figures import computed, draw_all, record_run, recorded
from reformer_lab.plots.drawing import number

FIGURES = Path(__file__).resolve().parents[1] / "figures"
STORED = json.loads((FIGURES / "pictures.json").read_text(encoding="utf-8"))
METRICS = {
    "command": "reformer-ref train --out /some/where/run", "text": "a text",
    "held_out_bits_per_byte": {"zlib": 3.2, "unigram": 4.8},
    "curve": [{"step": 1, "bits": 7.0}, {"step": 2, "bits": 5.0}],
    "evaluations": [{"step": 0, "bits": 8.0}, {"step": 2, "bits": 4.0}],
}  # fmt: skip


def test_every_picture_is_there_and_no_other():
    assert set(STORED) == set(computed()) | set(recorded()) == {path.stem for path in FIGURES.glob("*.png")}


@pytest.mark.parametrize("name", [*computed(), *recorded()])
def test_pictures_are_what_the_code_draws_today(name):
    """Captions and numbers; pixels differ between releases of matplotlib. If this fails: ``make
    figures``.
    """
    picture = (computed() | recorded())[name]()
    assert picture.caption == STORED[name]["caption"]
    assert {label: number(value) for label, value in picture.numbers.items()} == STORED[name]["numbers"]


def test_all_are_drawn_into_a_folder(tmp_path, monkeypatch, capsys):
    few = {name: computed()[name] for name in ("five_strips", "rings")}
    monkeypatch.setattr("reformer_lab.figures.computed", lambda: few)
    monkeypatch.setattr("reformer_lab.figures.recorded", lambda curve: {})
    draw_all(tmp_path / "new")
    assert (tmp_path / "new" / "five_strips.png").read_bytes().startswith(b"\x89PNG")
    captions = json.loads((tmp_path / "new" / "pictures.json").read_text())
    assert captions == {name: STORED[name] for name in few}
    assert captions["rings"]["caption"] in capsys.readouterr().out


def test_a_run_is_recorded(tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps(METRICS))
    curve = record_run(tmp_path, tmp_path / "figures")
    data = json.loads((tmp_path / "figures" / "training_curve.json").read_text())
    assert data["step"] == [1, 2]
    assert data["train_bits_per_byte"] == [7.0, 5.0]
    assert data["held_out_bits_per_byte"] == [8.0, 4.0]
    assert data["command"] == "reformer-ref train --out run"
    assert data == curve


@pytest.mark.parametrize(("text", "words"), [(None, "train one first"), ("{}", "is not what"), ("{", "is not what")])
def test_no_run_and_a_broken_one_are_told(tmp_path, text, words):
    if text is not None:
        (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(ValueError, match=words):
        record_run(tmp_path, tmp_path)
