"""Every notebook as it is stored: run in order, outputs there, small, no trace of a machine,
captions, one title.
"""

import ast
import re
from pathlib import Path

import nbformat
import pytest
from reformer_lab.notebooks import IGNORED, clean

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
LARGEST, LONGEST_CELL, MOST_WORDS, MOST_TOYS = 400_000, 15, 130, 3
TRACES = r"/(?:home|root|tmp|work|usr)/|\b0x[0-9a-f]{6,}|\b\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}\b"


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def prose(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "markdown"]


def tags(cell):
    return cell.metadata.get("tags", [])


def texts(output):
    return [output.get("text", ""), *(v for k, v in output.get("data", {}).items() if k.startswith("text/"))]


def test_there_is_a_notebook_for_every_chapter():
    numbers = [path.stem[:2] for path in NOTEBOOKS if path.stem[:2].isdigit()]
    assert numbers == [f"{i:02d}" for i in range(len(numbers))]
    assert len(numbers) >= 13


def test_is_valid_and_clean(notebook):
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    stored = nbformat.writes(notebook)
    assert nbformat.writes(clean(notebook)) == stored, "store it with: python -m reformer_lab walkthrough --store"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_small(path):
    assert path.stat().st_size <= LARGEST


def test_cells_have_descriptive_names(notebook):
    ids = [cell.id for cell in notebook.cells]
    assert all(re.fullmatch(r"[a-z][a-z0-9-]{2,63}", name) for name in ids), ids
    assert not [name for name in ids if re.fullmatch(r"[0-9a-f]{8}", name)]
    assert len(set(ids)) == len(ids)


def test_was_run_in_order_and_outputs_are_there(notebook):
    cells = code(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        last = ast.parse(cell.source).body[-1]
        shows = isinstance(last, ast.Expr) and IGNORED not in tags(cell) and not cell.id.startswith("setup")
        assert cell.outputs or not shows, f"{cell.id} shows something, but nothing is stored"
        kinds = {output.output_type for output in cell.outputs}
        assert "error" not in kinds, cell.id
        assert not [o for o in cell.outputs if o.get("name") == "stderr"], f"{cell.id} writes to stderr"


def test_cells_are_short(notebook):
    for cell in code(notebook):
        assert len([line for line in cell.source.splitlines() if line.strip()]) <= LONGEST_CELL, cell.id
        assert not cell.source.rstrip().endswith(";"), cell.id


def test_paragraphs_are_short(notebook):
    for cell in prose(notebook):
        text = re.sub(r"<details>.*?</details>|\$\$.*?\$\$|^\|.*$|```.*?```", " ", cell.source, flags=re.S | re.M)
        if re.search(r"^#+ (Summary|Exercises)", cell.source, re.M):
            continue
        assert len(text.split()) <= MOST_WORDS, f"{cell.id}: {len(text.split())} words"


def test_one_title_and_the_parts_of_a_chapter(notebook):
    headings = re.findall(
        r"^(#+) (.+)$", "\n".join(re.sub(r"```.*?```", "", c.source, flags=re.S) for c in prose(notebook)), re.M
    )
    assert [level for level, _ in headings].count("#") == 1
    assert headings[0][0] == "#"
    assert "minutes" in "\n".join(cell.source for cell in prose(notebook)[:3])


@pytest.mark.parametrize(
    "path", [p for p in NOTEBOOKS if p.stem[:2].isdigit() and p.stem[:2] != "00"], ids=lambda p: p.stem
)
def test_chapters_break_something_sum_up_and_ask(path):
    text = "\n".join(cell.source for cell in prose(nbformat.read(path, as_version=4)))
    for heading in ("Break it", "Summary", "Exercises"):
        assert re.search(rf"^## .*{heading}", text, re.M), heading


def test_pictures_have_captions_and_descriptions(notebook):
    for cell in code(notebook):
        for output, after in zip(cell.outputs, [*cell.outputs, {}][1:], strict=True):
            if "image/png" in output.get("data", {}):
                assert len(output.metadata.get("alt", "")) > 40, f"{cell.id}: the picture is not described"
                assert "text/markdown" in after.get("data", {}), f"{cell.id}: the picture has no caption"


def test_widgets_are_tagged_stored_without_output_and_have_a_static_twin(notebook):
    source = "\n".join(cell.source for cell in code(notebook))
    for cell in code(notebook):
        for name in re.findall(r"\bexplore\((\w+)\)", cell.source):
            assert IGNORED in tags(cell), cell.id
            assert not cell.outputs, cell.id
            assert re.search(rf"^(?:\w+ = )?{name}\(", source[: source.index(f"explore({name})")], re.M), (
                f"no static {name}(…)"
            )


def test_shows_no_trace_of_a_machine(notebook):
    printed = [text for cell in code(notebook) for output in cell.outputs for text in texts(output)]
    for text in [*printed, *(cell.source for cell in notebook.cells)]:
        assert not re.search(TRACES, text), re.search(TRACES, text)


def test_defines_nothing_but_the_toy(notebook):
    trees = [ast.parse(cell.source) for cell in code(notebook)]
    defined = [n.name for tree in trees for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    assert len(defined) <= MOST_TOYS, defined


def test_needs_no_network_and_no_other_folder(notebook):
    source = "\n".join(cell.source for cell in code(notebook))
    assert not re.search(r"https?://|requests|urllib|^[!%]", source, re.M)
