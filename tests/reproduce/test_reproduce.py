"""Every claim in its smoke version, stopped and gone on with; the table, and the records that it is made from."""

import json
import shlex
from pathlib import Path

import pytest
import torch

from reformer_ref.cli import build_parser, main
from reformer_ref.compare import relative_error
from reformer_ref.model.pytorch import ReformerLM
from reformer_ref.reproduce import table
from reformer_ref.reproduce.attention_names import carried_over, with_attention
from reformer_ref.reproduce.claims import NAMES, claim
from reformer_ref.reproduce.command import FIGURES, LOG, PAGE
from reformer_ref.reproduce.experiment import (
    CONFIGS,
    Context,
    Interrupted,
    finished,
    merged,
    planned,
    read_config,
    run_here,
)
from tests.pictures import drawn

RECORDED = [name for name in NAMES if table.stored(name)]


def smoke(name, folder, *more):
    return main(["reproduce", name, "--smoke", "--no-progress", "--threads", "1", "--runs", str(folder), *more])


def record_of(name, folder):
    return json.loads((folder / name / f"{name}.json").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_smoke_version_runs_records_and_draws(name, tmp_path, monkeypatch):
    if name == "translation":
        pytest.importorskip("sacrebleu", reason="needs the extra `reproduce`")
    assert smoke(name, tmp_path) == 0
    record, module = record_of(name, tmp_path), claim(name)
    assert record["complete"]
    assert record["smoke"]
    assert record["config"] == read_config(name, smoke=True)
    rows = module.rows(record)
    assert rows
    assert all(row.keys() == {"claim", "paper", "ours", "how"} and row["how"] in table.HOW for row in rows)
    pictures = module.pictures(record)
    assert pictures
    for what, draw in pictures.items():
        assert what.startswith("claim_")
        assert drawn(draw())
    monkeypatch.setattr(module, "run", None)  # finished sub-runs are not run again
    assert smoke(name, tmp_path) == 0
    assert record_of(name, tmp_path)["runs"] == record["runs"]


def test_a_part_makes_a_record_of_what_is_there(tmp_path, capsys):
    assert smoke("figure5_depth", tmp_path, "--only", "layers2") == 0
    record = record_of("figure5_depth", tmp_path)
    assert not record["complete"]
    assert record["missing"] == ["layers1-seed0"]
    assert "Figure 5 left: held-out bits per byte with 2 layers" in capsys.readouterr().out


@pytest.mark.slow
def test_sub_runs_side_by_side_give_the_same(tmp_path):
    assert smoke("figure5_depth", tmp_path / "one") == 0
    assert smoke("figure5_depth", tmp_path / "two", "--jobs", "2") == 0
    one, two = (record_of("figure5_depth", tmp_path / where) for where in ("one", "two"))
    timed = ("train_seconds", "seconds_per_step")
    for a, b in zip(one["runs"], two["runs"], strict=True):
        assert a["settings"] == b["settings"]
        assert {k: v for k, v in a["result"].items() if k not in timed} == {
            k: v for k, v in b["result"].items() if k not in timed
        }


@pytest.mark.slow
def test_a_failing_sub_run_is_named(tmp_path, capsys):
    (tmp_path / "short").write_bytes(b"abc")
    code = smoke("figure5_depth", tmp_path, "--jobs", "2", "--data", str(tmp_path / "short"))
    assert code == 1
    assert "layers1-seed0 failed" in capsys.readouterr().err
    assert "fewer than one window" in (tmp_path / "figure5_depth" / "layers1-seed0" / LOG).read_text()


def test_a_sub_run_goes_on_from_the_step_where_it_was_stopped(tmp_path):
    module, config = claim("table2"), read_config("table2", smoke=True)
    settings = planned(module, config)["lsh-2-seed0"]
    asked = iter([False, False, True])
    with pytest.raises(Interrupted, match="stopped after 2 steps"):
        run_here(module, "r", settings, Context(tmp_path / "a", should_stop=lambda: next(asked), report=str))
    assert finished(tmp_path / "a", settings) is None
    told = []
    resumed = run_here(module, "r", settings, Context(tmp_path / "a", report=told.append))
    assert any("going on after step 2" in line for line in told)
    straight = run_here(module, "r", settings, Context(tmp_path / "b", report=str))
    for what in ("accuracy", "curve", "steps"):
        assert resumed["result"][what] == straight["result"][what]
    with pytest.raises(ValueError, match="other settings"):
        finished(tmp_path / "a", {**settings, "seed": 5})


@pytest.mark.parametrize(
    ("words", "message"),
    [(["nothing"], "name must be one of"), (["table2", "--only", "xyz"], "table2 has the runs"),
     (["headline", "--seeds", "1"], "no meaning"), (["table2", "--seeds", "1", "1"], "different numbers"),
     (["table2", "--jobs", "0"], "--jobs"), (["figure5_speed", "--jobs", "2"], "leave out --jobs"),
     (["figure3", "--data", "/no/such/file"], "cannot be read")],
)  # fmt: skip
def test_mistakes_are_told_in_a_line(words, message, capsys, tmp_path):
    assert main(["reproduce", *words, "--smoke", "--runs", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_list_names_every_claim(capsys, tmp_path):
    assert main(["reproduce", "--list", "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(NAMES)
    assert all("(predicted)" in line for line in lines)


# The table, and what it is made from


def test_every_claim_has_a_configuration_and_no_other_is_there():
    assert {path.stem for path in CONFIGS.glob("*.json")} == set(NAMES)
    for name in NAMES:
        config = read_config(name)
        assert config["how"] in table.HOW
        assert config["minutes"] > 0
        assert claim(name).sub_runs(config)


def test_every_row_has_a_command_that_exists():
    for row in table.table_rows():
        args = build_parser().parse_args(shlex.split(row["command"])[1:])
        assert args.name in NAMES


@pytest.mark.parametrize("name", RECORDED)
def test_records_match_their_configuration(name):
    """What was recorded is what the command would run today."""
    record = table.stored(name)
    assert not record["smoke"]
    assert record["claim"] == name
    assert record["config"] == read_config(name)
    assert shlex.split(record["command"])[:3] == ["reformer-ref", "reproduce", name]
    wanted = planned(claim(name), record["config"])
    for run in record["runs"]:
        settings = {**run["settings"], "data_given": None}  # a file of the user's changes no configuration
        assert settings == json.loads(json.dumps(wanted[run["name"]]))
    results = {run["name"]: run["result"] for run in record["runs"]}
    summary = claim(name).summarise(record["config"], results)
    assert {k: record[k] for k in summary} == json.loads(json.dumps(summary))


def test_table_reads_what_is_recorded_and_says_what_is_not(tmp_path):
    rows = table.table_rows(tmp_path)
    assert len(rows) == len(NAMES)
    assert {row["ours"] for row in rows} == {"not run yet"}
    smoke("headline", tmp_path)
    (tmp_path / "headline" / "headline.json").rename(tmp_path / "headline.json")
    rows = table.table_rows(tmp_path, ("headline", "table2"))
    assert [row["how"] for row in rows] == ["measured", "predicted", "predicted", "measured"]
    page = table.claims_table(tmp_path)
    assert page.count("<tr>") == 1 + 3 + len(NAMES) - 1
    assert all(f"<code>reformer-ref reproduce {name}</code>" in page for name in NAMES)


def test_the_page_of_the_documentation_is_what_the_records_say():
    page = Path(__file__).resolve().parents[2] / PAGE
    assert page.read_text(encoding="utf-8") == table.claims_markdown()


def test_the_page_is_written_from_the_records(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", "--table"]) == 0
    text = (tmp_path / PAGE).read_text(encoding="utf-8")
    assert text == table.claims_markdown(tmp_path / FIGURES)
    assert text.count("not run yet") == len(NAMES)


def test_figures_are_read_from_the_standard_place():
    assert (Path(__file__).resolve().parents[2] / FIGURES) == table.DATA


def test_numbers_are_written_with_their_spread():
    assert table.spread([97.0]) == "97.0"
    assert table.spread([96.0, 98.0]) == "97.0 (96.0 – 98.0)"
    assert table.percent(0.9987) == "99.9 %"
    with pytest.raises(ValueError, match="at least one number"):
        table.spread([])


def test_merging_goes_into_dicts_and_replaces_lists():
    base = {"a": {"x": 1, "y": [1, 2]}, "b": 3}
    assert merged(base, {"a": {"y": [9]}, "c": 4}) == {"a": {"x": 1, "y": [9]}, "b": 3, "c": 4}
    assert base == {"a": {"x": 1, "y": [1, 2]}, "b": 3}


# What came out, where it has been recorded, beside the paper and the baselines


def recorded(name):
    record = table.stored(name)
    if record is None or not record["complete"]:
        pytest.skip(f"{name} has not been recorded whole")
    return record


def test_table2_is_the_papers_where_lsh_models_are_evaluated_with_as_many_rounds_or_more():
    record = recorded("table2")
    paper, found = record["config"]["paper"], record["table"]
    rounds = ("lsh-8", "lsh-4", "lsh-2", "lsh-1")
    cells = [(line, column) for i, line in enumerate(rounds) if i for column in rounds[: i + 1]]
    for line, column in [("full", "full"), *cells]:
        shares = found[line][column]
        assert len(shares) >= 3
        assert 100 * sum(shares) / len(shares) >= paper[line][column] - 3, (line, column, shares)


@pytest.mark.parametrize("name", ["images", "fashion"])
def test_images_are_predicted_better_than_by_the_baselines(name):
    bits = recorded(name)["bits"]
    for who in bits.keys() - {"model"}:
        assert max(bits["model"]["whole"]) < min(bits[who]["whole"])
        assert not bits[who]["lower"] or max(bits["model"]["lower"]) < min(bits[who]["lower"])


def test_translations_are_better_than_the_baselines():
    bleu = recorded("translation")["bleu"]
    least = min(min(scores) for who, scores in bleu.items() if "," in who)  # "reversible, greedy" and so on
    assert least > max(bleu["word by word"] + bleu["nearest sentence"])


def test_time_and_memory_grow_as_the_tables_of_the_paper_say():
    record = recorded("figure5_speed")
    for name, fit in record["exponents"].items():
        low, high = (1.8, 2.1) if name == "full" else (0.85, 1.15)
        assert low <= fit["bytes"] <= high, name
        assert fit["seconds"] >= 1.6 if name == "full" else fit["seconds"] <= 1.25, name
    memory = {name: fit["bytes"] for name, fit in record["table3"].items()}
    assert all(
        (fit["layers"] < 0.1) == (name not in ("Transformer", "LSH Transformer")) for name, fit in memory.items()
    )
    assert memory["Reformer"]["lengths"] < 1.1
    assert memory["Transformer"]["lengths"] > 1.5
    assert all(fit["operations"]["layers"] > 0.7 for fit in record["table3"].values())


def test_a_million_tokens_take_less_than_16_gb():
    record = recorded("headline")
    assert all(peak <= record["config"]["budget_bytes"] for peak in record["peaks"].values())


# Attention by name


def small_model(attention):
    from reformer_ref.lsh_attention.options import LSHOptions
    from reformer_ref.model.config import ReformerConfig

    lsh = LSHOptions(chunk_length=64, n_buckets=2, within_bucket=False)
    config = ReformerConfig(vocab_size=9, d_model=16, n_layers=2, n_heads=2, max_length=32, lsh=lsh)
    config = with_attention(config, attention)
    return ReformerLM(config).double().eval(), config


@torch.no_grad()
def test_windows_that_hold_everything_are_full_attention():
    model, config = small_model("full")
    tokens = torch.arange(30)[None] % 9
    for name in ("lsh-1", "lsh-3"):  # one chunk of 64 holds all, and each key is counted once
        assert relative_error(carried_over(model, config, name)(tokens), model(tokens)) <= 1e-12
    back = carried_over(*small_model("lsh-2"), "full")(tokens)
    assert relative_error(back, model(tokens)) <= 1e-12  # the same seed, the same weights


@torch.no_grad()
def test_ordinary_attention_takes_its_keys_from_the_queries():
    model, config = small_model("full")
    other = carried_over(model, config, "ordinary")
    for block in other.trunk.stack.blocks:
        assert torch.equal(block.halves[0].k.weight, block.halves[0].q.weight)
    assert relative_error(other(torch.arange(30)[None] % 9), model(torch.arange(30)[None] % 9)) > 1e-2
    with pytest.raises(ValueError, match="no weights for separate"):
        carried_over(model, config, "separate")


@pytest.mark.parametrize("name", ["lsh", "lsh-0", "lsh-x", "dense", "lsh--1"])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match="attention must be"):
        with_attention(small_model("full")[1], name)
