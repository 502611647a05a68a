"""Every claim in its smoke version, stopped and gone on with; the table, and the records that it is
made from.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from reformer_lab.claims import NAMES, claim, command, experiment, plots, table
from reformer_lab.claims.command import LOG, PAGE, RECORDS
from reformer_lab.claims.experiment import (
    CONFIGS,
    Context,
    Interrupted,
    finished,
    merged,
    planned,
    read_config,
    run_here,
)
from reformer_lab.claims.language import carried_over, with_attention
from reformer_lab.cli import main, parse
from reformer_ref.model.pytorch import ReformerLM
from reformer_ref.testing import relative_error
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
    pictures = plots.pictures(record)
    assert pictures
    for name_of_picture, draw in pictures.items():
        assert name_of_picture.startswith("claim_")
        assert drawn(draw())
    monkeypatch.setattr(module, "run", None)  # finished sub-runs are not run again
    assert smoke(name, tmp_path) == 0
    assert record_of(name, tmp_path)["runs"] == record["runs"]


@pytest.mark.nightly
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("translation", "images", "fashion")])
def test_each_sub_run_alone_makes_a_record_with_rows_and_pictures(name, tmp_path):
    """Of a claim that was stopped early there is a table and what can be drawn already, whatever
    came first.
    """
    assert smoke(name, tmp_path) == 0
    record, module = record_of(name, tmp_path), claim(name)
    for run in record["runs"]:
        summary = module.summarise(record["config"], {run["name"]: run["result"]})
        (tmp_path / f"{name}.json").write_text(json.dumps({**record, "runs": [run], **summary}))
        assert table.table_rows(tmp_path, (name,))
        assert "| " in table.claims_markdown(tmp_path, (name,))
        for draw in plots.pictures(table.stored(name, tmp_path)).values():
            assert draw().png()


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
    first, second = (record_of("figure5_depth", tmp_path / where) for where in ("one", "two"))
    timed = ("train_seconds", "seconds_per_step")
    for a, b in zip(first["runs"], second["runs"], strict=True):
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
    messages = []
    resumed = run_here(module, "r", settings, Context(tmp_path / "a", report=messages.append))
    assert any("going on after step 2" in line for line in messages)
    straight = run_here(module, "r", settings, Context(tmp_path / "b", report=str))
    for key in ("accuracy", "curve", "steps"):
        assert resumed["result"][key] == straight["result"][key]
    with pytest.raises(ValueError, match="other settings"):
        finished(tmp_path / "a", {**settings, "seed": 5})


def test_a_stopped_sub_run_does_not_go_on_with_other_data(tmp_path):
    module, config = claim("figure5_depth"), read_config("figure5_depth", smoke=True)
    texts = [tmp_path / "one.txt", tmp_path / "two.txt"]
    for number, path in enumerate(texts):
        path.write_bytes(b"a text %d of one's own, " % number * 99)
    first, second = (planned(module, config, path)["layers1-seed0"] for path in texts)
    asked = iter([False, False, True])
    stop = Context(tmp_path / "a", data=texts[0], should_stop=lambda: next(asked), report=str)
    with pytest.raises(Interrupted, match="stopped after 2 steps"):
        run_here(module, "r", first, stop)
    with pytest.raises(ValueError, match=r"of another run.*settings.data_given"):
        run_here(module, "r", second, Context(tmp_path / "a", data=texts[1], report=str))
    assert run_here(module, "r", first, Context(tmp_path / "a", data=texts[0], report=str))["result"]["steps"] == 3


def test_a_record_keeps_the_date_and_machine_of_its_runs(tmp_path):
    assert smoke("figure5_depth", tmp_path, "--only", "layers1") == 0
    before = record_of("figure5_depth", tmp_path)
    path = tmp_path / "figure5_depth" / "layers1-seed0" / "result.json"
    result = json.loads(path.read_text())
    assert {key: before[key] for key in result["about"]} == result["about"]
    result["about"] = {**result["about"], "date": "2020-01-02T03:04:05+00:00"}
    result["about"]["machine"]["threads"] = 77
    path.write_text(json.dumps(result))
    assert smoke("figure5_depth", tmp_path, "--only", "layers1") == 0
    after = record_of("figure5_depth", tmp_path)
    assert (after["date"], after["machine"]["threads"]) == ("2020-01-02T03:04:05+00:00", 77)


def test_a_run_on_data_of_ones_own_leaves_the_official_record_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_bytes(b"a text of one's own, " * 99)
    asked = parse(["reproduce", "figure5_depth", "--data", "text"])
    assert command._Work(asked, "", None, None, {}, 1).out == Path("runs/reproduce/figure5_depth")
    asked = parse(["reproduce", "figure5_depth"])
    assert command._Work(asked, "", None, None, {}, 1).out == RECORDS
    assert smoke("figure5_depth", tmp_path, "--only", "layers1", "--data", "text") == 0
    record = record_of("figure5_depth", tmp_path)
    assert all(" on text" in row["claim"] for row in claim("figure5_depth").rows(record)[:1])


def test_one_sub_run_is_not_run_side_by_side(tmp_path, monkeypatch):
    """``--jobs`` is at most the number of sub-runs asked for, so that one takes all the threads."""
    monkeypatch.setattr(command._Work, "side_by_side", None)
    assert main(["reproduce", "figure5_depth", "--smoke", "--no-progress", "--only", "layers1", "--jobs", "2",
                 "--runs", str(tmp_path)]) == 0  # fmt: skip


def test_curves_are_thinned_with_their_last_point():
    assert experiment.thinned([]) == []
    assert experiment.thinned([(0, 1), (1, 2)]) == [[0, 1], [1, 2]]
    points = [(i, 2 * i) for i in range(1001)]
    assert len(experiment.thinned(points)) <= 201
    assert experiment.thinned(points)[-1] == [1000, 2000]


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
        assert parse(shlex.split(row["command"])[1:]).name in NAMES


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
        given = run["settings"]["data_given"]
        assert given is None or all(given["name"] in row["claim"] for row in claim(name).rows(record))
        assert {**run["settings"], "data_given": None} == json.loads(json.dumps(wanted[run["name"]]))
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
    assert (tmp_path / PAGE).read_text(encoding="utf-8") == table.claims_markdown()
    assert main(["reproduce", "--table", "--out", "nothing"]) == 0
    assert (tmp_path / PAGE).read_text(encoding="utf-8").count("not run yet") == len(NAMES)


def test_numbers_are_written_with_their_spread():
    assert table.mean_and_range([97.0]) == "97.0"
    assert table.mean_and_range([96.0, 98.0]) == "97.0 (96.0 – 98.0)"
    with pytest.raises(ValueError, match="at least one number"):
        table.mean_and_range([])


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
    paper, ours = record["config"]["paper"], record["table"]
    rounds = ("lsh-8", "lsh-4", "lsh-2", "lsh-1")
    cells = [(line, column) for i, line in enumerate(rounds) if i for column in rounds[: i + 1]]
    for line, column in [("full", "full"), *cells]:
        accuracies = ours[line][column]
        assert len(accuracies) >= 3
        assert 100 * sum(accuracies) / len(accuracies) >= paper[line][column] - 3, (line, column, accuracies)


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
    from reformer_lab.plots.measured import read

    record = recorded("headline")
    assert record["peaks"]["recorded"] == read(record["config"]["record"])["peak_rss_bytes"]
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
    for block in other.backbone.stack.blocks:
        assert torch.equal(block.layers[0].k.weight, block.layers[0].q.weight)
    assert relative_error(other(torch.arange(30)[None] % 9), model(torch.arange(30)[None] % 9)) > 1e-2
    with pytest.raises(ValueError, match="no weights for separate"):
        carried_over(model, config, "separate")


@pytest.mark.parametrize("name", ["lsh", "lsh-0", "lsh-x", "dense", "lsh--1"])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match="attention must be"):
        with_attention(small_model("full")[1], name)


# What is damaged, in the way, or asked for by mistake: told in a line, before the work, and nothing
# is lost

ROOT = Path(__file__).resolve().parents[2]
EMPTY, CUT, OTHER = b"", b'{"name": "layers1-seed0", "seco', b"[1, 2]"


@pytest.mark.parametrize(
    "content", [EMPTY, CUT, OTHER, b"\0\xff", b'{"seconds": NaN}', b'{"seconds": -1}', b"[" * 10**5], ids=range(7)
)
@pytest.mark.parametrize("file", ["result.json", "seconds.json"])
def test_damaged_files_of_a_sub_run_are_named(file, content, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(claim("figure5_depth"), "run", None)
    folder = tmp_path / "figure5_depth" / "layers1-seed0"
    folder.mkdir(parents=True)
    (folder / file).write_bytes(content)
    assert smoke("figure5_depth", tmp_path) == 2
    error = capsys.readouterr().err
    assert f"{folder / file} is damaged" in error
    assert "remove it" in error
    assert error.count("\n") == 1
    assert (folder / file).read_bytes() == content


def test_damaged_checkpoints_and_results_of_another_form_are_told(tmp_path, capsys):
    assert smoke("figure5_depth", tmp_path, "--only", "layers1") == 0
    folder = tmp_path / "figure5_depth" / "layers1-seed0"
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps({**result, "result": {}}))
    assert smoke("figure5_depth", tmp_path, "--only", "layers1") == 2
    assert "a result.json of figure5_depth is damaged" in capsys.readouterr().err
    (folder / "result.json").unlink()
    (checkpoint,) = (folder / "checkpoints").glob("*.safetensors")
    checkpoint.write_bytes(checkpoint.read_bytes()[:-9])
    assert smoke("figure5_depth", tmp_path, "--only", "layers1") == 2
    assert f"remove {folder} to begin this sub-run again" in capsys.readouterr().err


@pytest.mark.parametrize("content", [EMPTY, CUT, OTHER, b"{}", b'{"claim": "table2"}'])
@pytest.mark.parametrize("words", [["--list"], ["--table"]])
def test_damaged_records_are_named(words, content, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    RECORDS.mkdir(parents=True)
    (RECORDS / "table2.json").write_bytes(content)
    assert main(["reproduce", *words, "--out", str(RECORDS)]) == 2
    assert f"{RECORDS / 'table2.json'} is damaged" in capsys.readouterr().err
    assert not PAGE.exists()


def test_a_record_without_what_its_table_needs_is_named(tmp_path):
    head = {"claim": "table2", "date": "2026-01-02", "minutes": 1.0, "complete": True, "missing": [], "runs": []}
    (tmp_path / "table2.json").write_text(json.dumps({**head, "config": {}}))
    with pytest.raises(ValueError, match=r"table2.json is damaged, or of another version: KeyError"):
        table.table_rows(tmp_path, ("table2",))


@pytest.mark.parametrize(
    ("words", "message"),
    [(["figure5_depth", "--only", "layers1", "xyz"], "--only xyz"), (["table2", "--data", "here"], "no meaning"),
     (["figure3", "--data", "/dev/zero"], "a pipe or a device"), (["figure3", "--data", "pipe"], "a pipe or a device"),
     (["figure3", "--out", "here"], "--out 'here/figure3.json' cannot be written")],
)  # fmt: skip
def test_mistakes_are_told_before_the_work(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").write_bytes(b"a file")
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(claim(words[0]), "run", None)
    assert main(["reproduce", *words, "--smoke", "--runs", str(tmp_path / "runs")]) == 2
    assert message in capsys.readouterr().err


def test_folders_of_too_many_files_are_refused(tmp_path, monkeypatch):
    for name in "abc":
        (tmp_path / name).touch()
    assert len(experiment.checksum(tmp_path)) == 64
    first = experiment.checksum(tmp_path)
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"2")
    second = experiment.checksum(tmp_path)
    (tmp_path / "b").write_bytes(b"3")  # of the same name and size
    assert len({first, second, experiment.checksum(tmp_path)}) == 3
    monkeypatch.setattr(experiment, "MOST_DATA", 1)
    with pytest.raises(ValueError, match="at most 1 bytes"):
        experiment.checksum(tmp_path)
    monkeypatch.setattr(experiment, "MOST_FILES", 2)
    with pytest.raises(ValueError, match="at most 2 files"):
        experiment.checksum(tmp_path)


def test_other_settings_are_told_before_another_sub_run_is_run(tmp_path, capsys, monkeypatch):
    assert smoke("figure5_depth", tmp_path, "--only", "layers1") == 0
    text = tmp_path / "text"
    text.write_bytes(b"a text of one's own, " * 99)
    monkeypatch.setattr(claim("figure5_depth"), "run", None)
    assert smoke("figure5_depth", tmp_path, "--only", "layers2", "--data", str(text)) == 2
    assert "of a run with other settings" in capsys.readouterr().err


def test_names_that_are_no_utf8_are_recorded_and_printed(tmp_path):
    name = os.fsdecode(b"t\xffxt")
    (tmp_path / name).write_bytes(b"a text of one's own, " * 99)
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "reformer_lab", "reproduce", "figure5_depth", "--smoke", "--no-progress", "--only",
             "layers1", "--runs", str(tmp_path / name) + "s", "--data", str(tmp_path / name)]  # fmt: skip
    words = list(map(os.fsencode, words))
    done = subprocess.run(words, cwd=ROOT, env=strict, capture_output=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    record = json.loads((tmp_path / f"{name}s" / "figure5_depth" / "figure5_depth.json").read_text(encoding="utf-8"))
    assert record["runs"][0]["settings"]["data_given"]["name"] == "t?xt"
    assert b"written" in done.stdout


KILLED_AT_STEP_5 = """
import os, signal, sys
from reformer_lab.cli import main
from reformer_lab.claims import experiment

real, asked = experiment.read_config, iter(range(10**6))
experiment.read_config = lambda *how: experiment.merged(real(*how), {"training": {"steps": 8, "checkpoint_every": 2}})
if "kill" in sys.argv:
    train = experiment.Context.train
    def killed(self, *how, **more):
        self.should_stop = lambda: next(asked) == 5 and os.kill(os.getpid(), signal.SIGKILL)
        return train(self, *how, **more)
    experiment.Context.train = killed
words = "reproduce figure5_depth --smoke --no-progress --threads 1 --runs".split()
sys.exit(main([*words, sys.argv[1]]))
"""


@pytest.mark.slow
def test_killed_in_the_middle_and_started_again_is_the_same(tmp_path):
    def start(folder, *more):
        words = [sys.executable, "-c", KILLED_AT_STEP_5, str(tmp_path / folder), *more]
        return subprocess.run(words, cwd=ROOT, capture_output=True, timeout=300, check=False)

    assert start("killed", "kill").returncode == -signal.SIGKILL
    done = start("killed")
    assert done.returncode == 0
    assert b"going on after step 4" in done.stdout
    assert start("whole").returncode == 0
    timed = ("train_seconds", "seconds_per_step")
    for killed, whole in zip(
        *(record_of("figure5_depth", tmp_path / f)["runs"] for f in ("killed", "whole")), strict=True
    ):
        assert killed["settings"] == whole["settings"]
        assert {k: v for k, v in killed["result"].items() if k not in timed} == {
            k: v for k, v in whole["result"].items() if k not in timed
        }


@pytest.mark.parametrize("settings", [float("-inf"), {"a": float("nan")}, {"a": {1}}])
def test_settings_must_be_json_values(settings, tmp_path):
    with pytest.raises(TypeError, match="settings must be JSON values"):
        finished(tmp_path, settings)
