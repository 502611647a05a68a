"""Grading without kernels: hidden tests against odd functions, and submissions in every state."""

import json
import re
import warnings

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from reformer_lab.classroom import course
from reformer_lab.classroom.answers import answer
from reformer_lab.classroom.grading import grade
from reformer_lab.classroom.submissions import REMARKS, read, rebuild
from reformer_lab.classroom.variants import Variant

VARIANT = Variant.draw(3).only("A1")
NAME = "A1.hash"


def reference():
    return answer(NAME).reference(VARIANT)


class Yes(np.ndarray):
    """Claims to equal everything."""

    def __eq__(self, other):
        return np.ones(self.shape, dtype=bool)

    def __ne__(self, other):
        return np.zeros(self.shape, dtype=bool)


def test_the_reference_passes_and_says_so_in_one_line(capsys):
    grade(NAME, reference(), VARIANT)
    assert capsys.readouterr().out.count("\n") == 1


def leave(x, rotations):
    raise SystemExit(0)


def stop(x, rotations):
    raise StopIteration("enough")


def scribble(x, rotations):
    buckets = reference()(x, rotations)
    x[:] = 0
    return buckets


def named(name, value):
    def fn(x, rotations):
        return value(reference()(x, rotations))

    fn.__name__ = name
    return fn


ODD = [
    leave,
    stop,
    scribble,
    named("nothing", lambda right: None),
    named("a_list", lambda right: right.tolist()),
    named("equal_to_everything", lambda right: np.zeros(right.shape, dtype=int).view(Yes)),
    named("objects", lambda right: np.full(right.shape, None)),
    named("floats", lambda right: right.astype(float)),
    named("another_shape", lambda right: right[None]),
    named("off_by_one", lambda right: right + 1),
    named("a_matrix", lambda right: np.asmatrix(right)),
    named("a_masked_array", lambda right: np.ma.masked_all(right.shape, dtype=int)),
]


@pytest.mark.parametrize("fn", ODD, ids=lambda fn: fn.__name__)
def test_odd_functions_get_one_sentence_and_no_marks(fn):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(AssertionError, match=r"^A1\.hash") as error:
            grade(NAME, fn, VARIANT)
    assert len(str(error.value)) < 600


def test_what_is_no_function_gets_no_marks():
    with pytest.raises(AssertionError, match="a function is needed, got ndarray"):
        grade(NAME, np.zeros(3), VARIANT)


def test_messages_keep_hidden_values_to_themselves():
    with pytest.raises(AssertionError) as error:
        grade(NAME, named("wrong", lambda right: right * 0 - 7), VARIANT)
    assert "hidden case 1 of" in str(error.value)
    assert "entries" in str(error.value)
    assert "[" not in str(error.value), "no array is shown"


def test_output_and_warnings_of_a_function_are_thrown_away(capsys):
    def fn(x, rotations):
        print("✓ all is well")
        warnings.warn("careful", stacklevel=1)
        np.log(np.zeros(1))
        return reference()(x, rotations)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        grade(NAME, fn, VARIANT)
    out, err = capsys.readouterr()
    assert "well" not in out
    assert err == ""


def test_an_interrupt_goes_through():
    def fn(x, rotations):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        grade(NAME, fn, VARIANT)


# Submissions


def cell(kind, name, source, **marks):
    make = new_markdown_cell if kind == "markdown" else new_code_cell
    marks = {
        "grade_id": name,
        "grade": False,
        "solution": False,
        "locked": True,
        "schema_version": 3,
        "task": False,
    } | marks
    entry = make(source, metadata={"nbgrader": marks})
    entry["id"] = name
    return entry


STUB = "def f(x):\n    raise NotImplementedError()"
OTHER_STUB = "def g(x):\n    raise NotImplementedError()"


def release():
    test = {"grade": True, "points": 5}
    answer_cell = {"solution": True, "locked": False}
    play = new_code_cell("f(3)")
    play["id"] = "play"
    return new_notebook(
        cells=[
            cell("markdown", "title", "# Toy"),
            cell("code", "setup", "import numpy as np\nVARIANT = 1"),
            cell("code", "T-f", STUB, **answer_cell),
            play,
            cell("code", "T-f-check", "check('T.f', f, VARIANT)", **test),
            cell("code", "T-g", OTHER_STUB, **answer_cell),
            cell("code", "T-g-check", "check('T.g', g, VARIANT)", **test),
            cell("markdown", "T-text", "Write here.", solution=True, locked=False, grade=True, points=5),
        ]
    )


def handed_in(tmp_path, change):
    """The release, changed, written to a file, read and put into the release again; its sources by id, and remarks."""
    notebook = release()
    text = change(notebook)
    path = tmp_path / "T.ipynb"
    path.write_bytes(text if isinstance(text, bytes) else json.dumps(notebook).encode())
    made = rebuild(read(path), release())
    nbformat.validate(made)
    first = made.cells[0]
    remarks = first.source if first.id == REMARKS else ""
    kept = [entry.metadata.nbgrader.grade_id for entry in made.cells if "nbgrader" in entry.metadata]
    assert kept == [entry.metadata.nbgrader.grade_id for entry in release().cells if "nbgrader" in entry.metadata]
    return [entry.source for entry in made.cells if entry.id != REMARKS], remarks


SOURCES = [entry.source for entry in release().cells]
RIGHT = "def f(x):\n    return x"


def put(place, source):
    def change(notebook):
        notebook.cells[place].source = source

    return change


def test_an_honest_submission_is_kept_as_it_is(tmp_path):
    sources, remarks = handed_in(tmp_path, put(2, RIGHT))
    assert sources == [*SOURCES[:2], RIGHT, *SOURCES[3:]]
    assert remarks == ""


def test_texts_and_open_cells_are_the_students_to_change(tmp_path):
    def change(notebook):
        notebook.cells[3].source, notebook.cells[7].source = "f(4)", "Because."

    sources, remarks = handed_in(tmp_path, change)
    assert (sources[3], sources[7], remarks) == ("f(4)", "Because.", "")


def test_texts_hold_no_html_and_an_untouched_one_stays_as_it_is(tmp_path):
    def change(notebook):
        notebook.cells[7].source = "for i<n, a < b <script>alert(1)</script>"
        notebook.cells.append(new_markdown_cell("<!-- <img src=x>"))

    sources, _ = handed_in(tmp_path, change)
    assert not re.search("<[A-Za-z/!]", sources[7] + sources[8])
    assert sources[7].replace("\u200b", "") == "for i<n, a < b <script>alert(1)</script>"


@pytest.mark.parametrize("place", [0, 1, 4, 6])
def test_locked_cells_come_back(tmp_path, place):
    sources, remarks = handed_in(tmp_path, put(place, "VARIANT = 2"))
    assert sources == SOURCES
    assert "was changed; the original was put back" in remarks


@pytest.mark.parametrize("place", [0, 1, 2, 4, 5, 6, 7])
def test_deleted_cells_come_back(tmp_path, place):
    sources, remarks = handed_in(tmp_path, lambda notebook: notebook.cells.pop(place) and None)
    assert sources == SOURCES
    assert "was missing and was put back" in remarks


def test_lost_or_changed_marks_are_found_again_by_the_cells_ids(tmp_path):
    def change(notebook):
        notebook.cells[2].source = RIGHT
        for entry in notebook.cells:
            entry.metadata = {}
        notebook.cells[4].metadata = {"nbgrader": {"grade_id": "mine", "grade": True, "points": 1000}}

    sources, _ = handed_in(tmp_path, change)
    assert sources == [*SOURCES[:2], RIGHT, *SOURCES[3:]]


def test_without_any_ids_cells_are_found_by_what_they_define(tmp_path):
    def change(notebook):
        notebook.cells[2].source = RIGHT
        for place, entry in enumerate(notebook.cells):
            entry.metadata, entry["id"] = {}, f"new-{place}"

    sources, _ = handed_in(tmp_path, change)
    assert sources[:7] == [*SOURCES[:2], RIGHT, *SOURCES[3:7]]


def test_of_several_copies_the_last_is_the_answer(tmp_path):
    def change(notebook):
        copy = cell("code", "T-f", RIGHT, solution=True, locked=False)
        copy["id"] = "copy"
        notebook.cells.insert(3, copy)

    sources, remarks = handed_in(tmp_path, change)
    assert sources == [*SOURCES[:2], STUB, RIGHT, *SOURCES[3:]]
    assert "more than once" in remarks


def test_an_answer_in_a_new_cell_comes_after_the_stub_and_before_its_test(tmp_path):
    def change(notebook):
        notebook.cells[2] = new_code_cell("help_me = 1\n\n\ndef helper(x):\n    return x")

    sources, _ = handed_in(tmp_path, change)
    assert sources[2] == STUB
    assert sources[3].startswith("help_me")


def test_a_cell_that_breaks_a_rule_is_replaced_and_the_others_are_not(tmp_path):
    def change(notebook):
        notebook.cells[2].source = "import os\n" + RIGHT
        notebook.cells.insert(3, new_code_cell("np.load('x')"))
        notebook.cells[6].source = OTHER_STUB + "\n\ny = 1"

    sources, remarks = handed_in(tmp_path, change)
    assert sources[2].startswith("raise RuntimeError('This cell was not run: line 1: `os` cannot be imported")
    assert "# def f(x):" in sources[2], "what was written stays readable"
    assert sources[3].startswith("raise RuntimeError")
    assert OTHER_STUB + "\n\ny = 1" in sources
    assert remarks.count("was not run") == 2
    compile(sources[2], "cell", "exec")


BROKEN = {
    "empty": b"",
    "cut off": b'{"cells": [{"cell_type": "code", "source": ["',
    "not UTF-8": b"\xff\xfe\x00{",
    "a list": b"[1, 2]",
    "no cells": b'{"cells": 3}',
    "deep": b"[" * 100_000,
    "cells of no form": b'{"cells": [null, 3, {"cell_type": "code"}, {"cell_type": 5, "source": 5, "metadata": []}]}',
    "huge numbers": b'{"cells": [' + b"9" * 10_000 + b"]}",
    "half a character": json.dumps({"cells": [{"cell_type": "code", "source": "\ud800"}]}).encode(),
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_broken_files_become_a_blank_notebook_with_a_remark(tmp_path, text):
    sources, remarks = handed_in(tmp_path, lambda notebook: text)
    assert [entry for entry in sources if entry in SOURCES] == SOURCES
    assert "could not be read" in remarks or "was missing" in remarks


def test_huge_cells_and_files(tmp_path):
    sources, remarks = handed_in(tmp_path, put(2, RIGHT + "\n# " + "x" * 60_000))
    assert "at most 50,000 are read" in remarks
    sources, remarks = handed_in(tmp_path, lambda notebook: b" " * 20_000_001)
    assert sources == SOURCES
    assert "more than 20 MB" in remarks

    def many(notebook):
        notebook.cells[2].source = RIGHT
        notebook.cells += [new_code_cell(f"x = {k}") for k in range(1000)]

    sources, remarks = handed_in(tmp_path, many)
    assert RIGHT in sources
    assert "beyond the 500th" in remarks


def test_collect_takes_notebooks_alone_and_says_what_it_leaves(tmp_path):
    where = tmp_path / "course"
    (where / "release" / "A1_hashing").mkdir(parents=True)
    (where / "release" / "A1_hashing" / "A1_hashing.ipynb").write_text("{}")
    inbox = tmp_path / "inbox"
    files = {
        "ada/A1_hashing/A1_hashing.ipynb": "ada",
        "ada/A1_hashing/numpy.py": "bad",
        "ada/A9_other/A9_other.ipynb": "",
        "bo/A1_hashing/A1_hashing (1).ipynb": "bo",
        "cy/A1_hashing/one.ipynb": "",
        "cy/A1_hashing/two.ipynb": "",
        "[x]*/A1_hashing/A1_hashing.ipynb": "",
        "note.txt": "",
    }
    for name, text in files.items():
        (inbox / name).parent.mkdir(parents=True, exist_ok=True)
        (inbox / name).write_text(text)
    (inbox / "di" / "A1_hashing").mkdir(parents=True)
    (inbox / "di" / "A1_hashing" / "A1_hashing.ipynb").symlink_to(inbox / "ada" / "A1_hashing" / "A1_hashing.ipynb")
    notes = course.collect(inbox, where)
    submitted = where / "submitted"
    copied = sorted(path.relative_to(submitted).as_posix() for path in submitted.rglob("*") if path.is_file())
    assert copied == ["ada/A1_hashing/A1_hashing.ipynb", "bo/A1_hashing/A1_hashing.ipynb"]
    assert len(notes) == 4, notes
