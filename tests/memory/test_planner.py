"""Does it fit: sizes, the search for the longest sequence, what is tried, the table and the
picture.
"""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reformer_lab import cli, planner
from reformer_lab.planner import MemoryQuestion, changes, format_bytes, longest, parse_bytes
from reformer_lab.plots.measured import PART_STYLES
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.memory.count import MetaCounter
from reformer_ref.memory.predict import CATEGORIES
from reformer_ref.model.config import ReformerConfig

SMALL = ["--length", "4096", "--n-layers", "2", "--d-model", "32", "--n-heads", "2", "--d-ff", "64", "--device", "cpu"]


def ask(*words):
    """The exit code of the command."""
    return cli.main(["memory", *SMALL, *words])


def question(budget="1GB", **changes):
    values = {"d_model": 32, "n_heads": 2, "n_layers": 2, "pattern": ("lsh",), "max_length": 8192, "ff_chunk": 512}
    return MemoryQuestion(ReformerConfig(**{**values, **changes}), 8192, parse_bytes(budget), "cpu")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("16GB", 16 * 10**9),
        ("16 GiB", 16 * 2**30),
        ("1.5e9", 1500000000),
        ("512mib", 2**29),
        ("7", 7),
        (" 2.5 kB ", 2500),
    ],
)
def test_sizes_are_read(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "16 parrots", "-1GB", "0GB", "1e30GB", "nan", "1.2.3GB", "16G", 16, None])
def test_sizes_that_are_none(text):
    with pytest.raises(ValueError, match="a size must"):
        parse_bytes(text)


@given(st.text(max_size=8))
def test_any_text_is_a_size_or_a_clear_error(text):
    try:
        size = parse_bytes(text)
    except ValueError as error:
        size = 1 if str(error).startswith("a size must") else 0
    assert size >= 1


def test_sizes_are_written():
    sizes = (0, 512, 16384, 999_499, 999_600, 8_110_000_000, 16_500_000_000_000, 10**17)
    written = ["0 B", "512 B", "16.4 kB", "999 kB", "1.00 MB", "8.11 GB", "16.5 TB", "100 PB"]
    assert [format_bytes(n) for n in sizes] == written


@pytest.mark.parametrize("budget", ["20MB", "100MB"])
def test_the_longest_sequence_fits_and_a_longer_one_does_not(budget):
    q = question(budget)
    entry = longest(q, q.predict().peak_bytes)
    assert entry["bytes"] == q.predict(entry["length"]).peak_bytes <= q.budget
    assert q.predict(entry["length"] * 102 // 100 + 1).peak_bytes > q.budget


def test_the_longest_sequence_at_the_ends(monkeypatch):
    q = question("10kB")
    assert longest(q, q.predict().peak_bytes)["length"] == 0
    monkeypatch.setattr(planner, "LONGEST", 20000)
    q = question("900TB")
    assert longest(q, q.predict().peak_bytes)["length"] == 20000


def test_what_is_tried_helps_and_says_what_it_is():
    q = MemoryQuestion(
        ReformerConfig(
            d_model=16, n_heads=1, n_layers=2, pattern=("dense", "lsh"), max_length=17000, reversible=False,
            lsh=LSHOptions(n_hashes=2),
        ),
        17000, 10**9, "cpu", batch=2,
    )  # fmt: skip
    options = dict(changes(q))
    assert list(options) == [
        "reversible layers",
        "feed-forward and projections in chunks of 16384",
        "loss in chunks of 16384",
        "those so far, which compute the same",
        "LSH attention instead of dense",
        "one sequence at a time",
        "one round of hashing",
        "bfloat16 for everything",
        "all of these",
    ]
    assert options["all of these"] == {
        "reversible": True, "ff_chunk": 16384, "loss_chunk": 16384, "pattern": ("lsh", "lsh"), "batch": 1,
        "n_hashes": 1, "dtype": "bfloat16",
    }  # fmt: skip
    as_asked = q.predict().peak_bytes
    sizes = {name: q.predict(**change).peak_bytes for name, change in options.items()}
    assert sizes["LSH attention instead of dense"] < 0.5 * as_asked
    assert sizes["one sequence at a time"] < 0.6 * as_asked
    assert sizes["all of these"] == min(sizes.values())
    assert changes(question()) == [("bfloat16 for everything", {"dtype": "bfloat16"})]


def test_every_part_has_a_style():
    assert tuple(PART_STYLES) == CATEGORIES


def test_a_million_tokens_take_few_operations(monkeypatch):
    """The time of an answer is that of its operations, at some 15 µs each: 5 seconds with all imports, on an idle
    machine.
    """
    operations = [0]
    dispatch = MetaCounter.__torch_dispatch__

    def counted(*arguments):
        operations[0] += 1
        return dispatch(*arguments)

    monkeypatch.setattr(MetaCounter, "__torch_dispatch__", counted)
    q = cli.parse(["memory"]).question()
    assert q.length == 1 << 20
    report = dict(planner.answer(q))
    assert list(report) == ["peak", "longest", "depth", "length"]
    assert 0.99 * q.budget <= report["longest"]["bytes"] <= q.budget
    assert operations[0] < 150_000


def test_it_fits(capsys, tmp_path):
    assert ask("--budget", "60MB", "--plot", str(tmp_path / "a.png"), "--json", str(tmp_path / "a.json")) == 0
    out = capsys.readouterr().out
    assert "IT FITS" in out
    assert "60.0 MB = 0.06 GiB" in out
    assert "predicted" in out
    assert "What would make it fit" not in out
    report = json.loads((tmp_path / "a.json").read_text())
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert sum(report["peak"]["parts"].values()) == report["peak"]["bytes"]
    assert [row["length"] for row in report["length"]] == [2048, 4096, 8192]
    at_once = report["length"][-1]
    assert at_once["reversible"] < at_once["not reversible"] < at_once["dense"]
    assert [(e["layers"], e["reversible"]) for e in report["depth"]][:2] == [(1, True), (1, False)]
    assert report["longest"]["length"] > 4096
    assert report["caption"].startswith("Left: stacked bars")
    assert report["asked"]["config"]["n_layers"] == 2


def test_it_does_not_fit(capsys, tmp_path):
    assert ask("--budget", "12MB", "--no-reversible", "--plot", str(tmp_path / "a.svg")) == 0
    out = capsys.readouterr().out
    assert "IT DOES NOT FIT" in out
    assert "What would make it fit" in out
    assert "reversible layers" in out
    picture = (tmp_path / "a.svg").read_text()
    assert "<svg" in picture


def test_the_picture_shows_every_number_and_the_budget():
    q = question("1MB", reversible=False)
    report = dict(planner.answer(q))
    report["asked"] = {"length": q.length, "budget": q.budget, "config": json.loads(q.config.to_json())}
    bars, lines = planner.draw(report).axes
    labels = {text.get_text().strip() for text in bars.texts}
    entries = [
        report["peak"],
        *report["changes"],
        *(e for e in report["depth"] if (e["layers"], e["reversible"]) != (2, False)),
    ]
    assert labels == {format_bytes(entry["bytes"]) for entry in entries}
    assert len(bars.get_yticklabels()) == len(entries)
    names = [text.get_text() for text in lines.get_legend().get_texts()]
    assert names == ["reversible", "not reversible", "dense", "budget 1.00 MB"]
    assert [len(line.get_xdata()) for line in lines.get_lines()[:3]] == [3, 3, 3]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--budget", "much"], "a size must look like"),
        (["--length", "1"], "--length must be at least 2"),
        (["--batch", "0"], "--batch must be at least 1"),
        (["--ff-chunk", "-1"], "ff_chunk must be at least 1"),
        (["--d-model", "33"], "d_model"),
        (["--pattern", "lsh,other"], "pattern must be one of"),
        (["--preset", "mine"], "preset must be one of"),
        (["--plot", "nowhere/a.png"], "there is no folder nowhere"),
        (["--plot", "a.txt"], "--plot must end in"),
    ],
)
def test_mistakes_are_one_clear_line(words, message, capsys):
    assert ask(*words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)
