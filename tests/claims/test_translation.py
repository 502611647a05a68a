"""The claim about translation: equal beginnings, what is counted, and texts from the search."""

import importlib.util
import json

import pytest
import torch
from reformer_lab.claims import plots, translation
from reformer_lab.claims.experiment import Context, Interrupted, make_record, planned, read_config, run_here
from reformer_lab.data import translation as pairs
from reformer_ref.model.encoder_decoder import ReformerEncoderDecoder
from tests.pictures import drawn, texts

needs_bleu = pytest.mark.skipif(importlib.util.find_spec("sacrebleu") is None, reason="needs the extra `reproduce`")
BASE = dict.fromkeys(translation.BASELINES, 9.0)
SETTINGS = translation.sub_runs(read_config("translation", smoke=True))


def test_both_models_begin_alike_and_are_not_the_same_function():
    models = {kind: translation.build(SETTINGS[f"{kind}-seed0"]) for kind in translation.STREAMS}
    weights = [dict(model.named_parameters()) for model in models.values()]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(p, weights[1][name]) for name, p in weights[0].items())
    assert models["reversible"].encoder_config.reversible
    assert models["ordinary"].decoder_config.streams == 1
    batch = tuple(map(torch.from_numpy, pairs.padded([("a cat", "eine Katze"), ("dogs", "Hunde")])))
    with torch.no_grad():
        first, second = (model.double().loss(*batch).item() for model in models.values())
    assert abs(first - second) > 1e-3


def test_padding_changes_no_loss_and_weights_count_predictions():
    model = translation.build(SETTINGS["reversible-seed0"]).double()
    texts = [("a cat", "eine Katze"), ("two dogs and a bird", "zwei Hunde und ein Vogel"), ("no", "nein")]
    together = tuple(map(torch.from_numpy, pairs.padded(texts)))
    total = weight = 0.0
    with torch.no_grad():
        for text in texts:
            padded = tuple(map(torch.from_numpy, pairs.padded([text])))
            n = translation.predicted(*padded)
            assert n == len(text[1].encode()) + 1  # its bytes and the end
            total, weight = total + n * model.loss(*padded).item(), weight + n
        assert weight == translation.predicted(*together)
        assert model.loss(*together).item() == pytest.approx(total / weight, rel=1e-10)


def test_data_is_split_and_fits():
    how = SETTINGS["reversible-seed0"]["data"]
    train, held_out = translation.data({**how, "pairs": 200, "max_length": 60})
    assert len(held_out) == 2
    assert 20 < len(train) < 198
    assert not {source for source, _ in train} & {source for source, _ in held_out}
    assert max(len(side) for pair in train for side in pairs.to_tokens(*pair)) <= 60


def test_a_file_of_ones_own_is_read(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"word {i}\tWort {i}\n" for i in range(9)) + "long\t" + "x" * 300, encoding="utf-8")
    how = SETTINGS["reversible-seed0"]["data"]
    train, held_out = translation.data(how, path)
    assert len(train) + len(held_out) == 9
    path.write_text("a\tb\nc\td\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"more than 2 pairs of at most 198 bytes a side, got 2 of 2"):
        translation.data(how, path)


def test_translations_stand_in_the_order_of_their_sources():
    """Sentences are searched by length, a few at a time; each comes out as if it were alone."""
    model, settings = translation.build(SETTINGS["reversible-seed0"]), SETTINGS["reversible-seed0"]
    settings = {**settings, "data": {**settings["data"], "max_length": 12}}
    some = [("long enough", "x"), ("b", "x"), ("medium", "x"), ("a", "x"), ("longer still", "x")]
    got = translation.translate(model, some, settings, Context(None), beams=2, together=2)
    separately = [translation.translate(model, [pair], settings, Context(None), 2)[0] for pair in some]
    assert got == separately
    with pytest.raises(Interrupted):
        translation.translate(model, some, settings, Context(None, should_stop=lambda: True), 1)


def test_missing_sacrebleu_is_told_before_the_training(tmp_path, monkeypatch):
    def missing():
        raise ModuleNotFoundError("pip install 'reformer_ref[lab]'")

    monkeypatch.setattr(pairs, "sacrebleu_module", missing)
    with pytest.raises(ModuleNotFoundError):
        translation.run(SETTINGS["reversible-seed0"], Context(tmp_path))
    assert not list(tmp_path.iterdir())


@needs_bleu
def test_the_claim_on_a_users_file(tmp_path):
    path = tmp_path / "own.tsv"
    path.write_text("".join(f"{'ab' * i} cd{i}.\t水{'xy' * i} z{i}.\n" for i in range(8)), encoding="utf-8")
    config = read_config("translation", smoke=True)
    config["data"]["max_length"] = 30
    runs = planned(translation, config, path)
    done = [run_here(translation, n, s, Context(tmp_path / n, data=path, report=str)) for n, s in runs.items()]
    record = make_record("translation", translation, config, runs, done, "reformer-ref reproduce translation", True)
    record = json.loads(json.dumps(record))
    assert set(record["bleu"]) == {
        "reversible, greedy", "reversible, 2 beams", "ordinary, greedy", "ordinary, 2 beams", *translation.BASELINES,
    }  # fmt: skip
    parameters = {run["result"]["parameters"] for run in record["runs"]}
    assert parameters == {sum(p.numel() for p in translation.build(SETTINGS["reversible-seed0"]).parameters())}
    assert all("own.tsv" in row["claim"] for row in translation.rows(record))
    assert "BLEU, word by word" in drawn(plots.translation(record))
    page = plots.translation_examples(record)
    assert drawn(page)["examples"] == 2
    assert any("·" in text for text in texts(page))  # no glyph for 水, and no warning


def test_exact_and_bleu_are_gathered_by_model():
    result = {"bits": 1.0, "bleu": {"greedy": 50.0, **BASE}, "exact": {"greedy": 0.5, **BASE}}
    got = translation.summarise({}, {"reversible-seed0": result, "reversible-seed1": result, "ordinary-seed0": result})
    assert got["bleu"] == {"reversible, greedy": [50.0, 50.0], "ordinary, greedy": [50.0], **{b: [9.0] for b in BASE}}
    assert list(got["bleu"])[-2:] == list(BASE)
    assert got["bits"] == {"reversible": [1.0, 1.0], "ordinary": [1.0]}


def test_the_full_configuration_builds():
    settings = translation.sub_runs(read_config("translation"))
    assert set(settings) == {"reversible-seed0", "ordinary-seed0"}
    assert isinstance(translation.build(settings["ordinary-seed0"]), ReformerEncoderDecoder)
    train, held_out = translation.data({**settings["ordinary-seed0"]["data"], "pairs": 500, "held_out": 20})
    assert len(train) > 400
    assert len(held_out) == 20
