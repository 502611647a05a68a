"""The pages of ``make walkthrough``: everything in themselves; and the drawing helpers that the
notebooks rest on.
"""

import re

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from reformer_lab.notebooks import clean, gallery, run, walkthrough, with_mathml
from reformer_lab.plots.drawing import Picture, bucket_colours, cell_row, controls, number, readable_on, side_by_side
from reformer_ref.hashing import pytorch, spec

PICTURE = """
from reformer_lab.plots.drawing import Picture
picture = Picture(2, 1)
picture.add_subplot().plot([0, 1])
picture.describe("Line chart: nothing (x) against nothing (y), to be looked at by a test.", slope=1.0)
"""


@pytest.fixture
def folder(tmp_path):
    cells = [
        new_markdown_cell("# 00 · A title\n\nA promise with $x^2$.", id="title"),
        new_code_cell("print('<b>' + str(1 + 1))", id="addition"),
        new_code_cell(PICTURE, id="picture"),
        new_code_cell(
            "import ipywidgets\nipywidgets.IntSlider(3)", id="widget", metadata={"tags": ["nbval-ignore-output"]}
        ),
    ]
    nbformat.write(new_notebook(cells=cells), tmp_path / "00_first.ipynb")
    nbformat.write(new_notebook(cells=cells[:2]), tmp_path / "01_second.ipynb")
    return tmp_path


def test_walkthrough_runs_stores_and_writes_pages(folder, capsys):
    walkthrough(folder, out=folder / "pages", store=True, progress=False)
    assert "00_first.ipynb: 3 cells" in capsys.readouterr().out
    stored = nbformat.read(folder / "00_first.ipynb", as_version=4)
    assert stored.cells[1].outputs[0].text == "<b>2\n"
    assert stored.cells[3].outputs == []
    assert "widgets" not in stored.metadata
    page = (folder / "pages" / "00_first.html").read_text()
    assert "&lt;b&gt;2" in page
    assert page.count('alt="Line chart') == 1
    assert "slope = 1" in page
    assert "<math" in page
    index = (folder / "pages" / "index.html").read_text()
    assert index.count("<li>") == 2
    for text in (page, index):
        assert not re.search(r"<script|https?://(?!www\.w3\.org)", text), "a page must not need the network"


def test_a_second_run_stores_the_same(folder):
    walkthrough(folder, only=("01",), store=True, progress=False)
    first = (folder / "01_second.ipynb").read_bytes()
    walkthrough(folder, only=("01",), store=True, progress=False)
    assert (folder / "01_second.ipynb").read_bytes() == first


def test_errors_name_notebook_and_cell(folder):
    path = folder / "02_wrong.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell("1 / 0", id="division")]), path)
    with pytest.raises(RuntimeError, match=r"02_wrong.ipynb, cell division: .*division by zero"):
        run(path)
    with pytest.raises(ValueError, match="no notebook"):
        walkthrough(folder, only=("99",))


def test_formulas_become_mathml_and_code_stays():
    html = with_mathml("a $x_i$ and `$y$` and $$z = \\frac{1}{2}$$ and 5$ or 6$\n```\n$w$\n```")
    assert html.count("<math") == 2
    assert "`$y$`" in html
    assert "```\n$w$\n```" in html


def test_pages_of_unrun_notebooks_say_nothing_wrong(tmp_path):
    notebook = new_notebook(cells=[new_markdown_cell("# T", id="t")])
    gallery([(tmp_path / "x.ipynb", notebook)], tmp_path)
    assert "<h1" in (tmp_path / "x.html").read_text()
    assert clean(notebook).metadata.kernelspec.name == "python3"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        (1234567, "1,234,567"),
        (0.12345, "0.123"),
        (1234.5, "1,230"),
        (True, "yes"),
        (0.0, "0"),
        (2.5e-9, "2.50e-09"),
        ("a", "a"),
    ],
)
def test_numbers_have_three_digits(value, text):
    assert number(value) == text


def test_pictures_must_say_what_they_show():
    with pytest.raises(ValueError, match="caption"):
        Picture().describe(" ")


@pytest.mark.parametrize("n", [1, 2, 8, 9, 100])
def test_colours_of_buckets_differ_and_can_be_written_on(n):
    colours = bucket_colours(n)
    assert len(np.unique(colours, axis=0)) == n
    for colour in colours:
        light = 0.2126 * colour[0] + 0.7152 * colour[1] + 0.0722 * colour[2]
        assert readable_on(colour) == "black" or light < 0.5


def test_a_row_of_cells_wants_a_colour_for_each_label():
    ax = Picture().add_subplot()
    cell_row(ax, ["a", "b"], bucket_colours(2), title="tokens")
    assert [t.get_text() for t in ax.texts] == ["a", "b"]
    with pytest.raises(ValueError, match="colours"):
        cell_row(ax, ["a"], bucket_colours(2))


def test_sources_come_from_the_package():
    html = side_by_side(spec.hash_vectors, pytorch.hash_vectors)
    assert html.count("def hash_vectors") == 2
    assert "reformer_ref/hashing/spec.py" in html


def test_controls_refuse_other_values():
    @controls(rounds=(1, 4), scale=(1.0, 4.0, 0.5), kind=["a", "b"], causal=bool, text=str)
    def draw(rounds=1, scale=1.0, kind="a", causal=True, text="one"):
        return rounds, scale, kind, causal, text

    assert draw() == (1, 1.0, "a", True, "one")
    assert draw(4, scale=2.5, causal=False) == (4, 2.5, "a", False, "one")
    with pytest.raises(ValueError, match=r"rounds must be a whole number from 1 to 4, got 2\.5"):
        draw(rounds=2.5)
    bad = {"rounds": 5, "scale": float("nan"), "kind": "c", "causal": "yes", "text": "x" * 1000}
    for name, value in bad.items():
        with pytest.raises(ValueError, match=name):
            draw(**{name: value})
    with pytest.raises(TypeError, match="controls must describe"):
        controls(other=bool)(lambda rounds=1: rounds)
