"""Made-up submissions of a course, with the marks that they must get: for ``classroom demo`` and for the tests.

Answers come from the course's own sources, wrong solutions and cheats from the data in ``material/``.
"""

import ast
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from reformer_lab.classroom import material
from reformer_lab.classroom.course import assignments, grade_class, set_up

WRONG = material.FOLDER / "wrong"
CHEATS = material.FOLDER / "cheats.json"


@dataclass
class Part:
    """An exercise of a notebook: its answer cell, the function that it defines, its stub, its answer, and its tests."""

    answer: str
    function: str = ""
    stub: str = ""
    reference: str = ""
    tests: dict = field(default_factory=dict)  # {grade id: points}
    by_hand: bool = False


def parts(course, assignment):
    """The exercises of an assignment of a course, in order."""
    notebooks = {kind: _load(course, kind, assignment) for kind in ("source", "release")}
    found = []
    for solved, blank in zip(notebooks["source"]["cells"], notebooks["release"]["cells"], strict=True):
        marks = blank["metadata"].get("nbgrader", {})
        if marks.get("solution"):
            found.append(Part(marks["grade_id"], "", _text(blank), _text(solved), {}, bool(marks.get("grade"))))
            if blank["cell_type"] == "code":
                found[-1].function = [n.name for n in ast.parse(_text(blank)).body if isinstance(n, ast.FunctionDef)][
                    -1
                ]
        elif marks.get("grade"):
            found[-1].tests[marks["grade_id"]] = marks["points"]
    return found


def _load(course, kind, assignment):
    return json.loads(Path(course, kind, assignment, f"{assignment}.ipynb").read_text(encoding="utf-8"))


def _text(cell):
    return "".join(cell["source"])


def full_marks(course, assignment):
    """{grade id: points} of the parts that are graded automatically."""
    return {test: points for part in parts(course, assignment) for test, points in part.tests.items()}


def write(course, student, assignment, answers, change=lambda notebook: None, files=None):
    """Hand in the release notebook with ``answers`` {id of an answer cell: its text}, changed by ``change``.

    files: {name: text} of files beside the notebook. Returns the notebook's path.
    """
    notebook = _load(course, "release", assignment)
    for cell in notebook["cells"]:
        cell["source"] = answers.get(cell["metadata"].get("nbgrader", {}).get("grade_id"), cell["source"])
    changed = change(notebook)
    folder = Path(course, "submitted", student, assignment)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{assignment}.ipynb"
    path.write_text(changed if isinstance(changed, str) else json.dumps(notebook), encoding="utf-8")
    for name, text in (files or {}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return path


def references(course, assignment):
    """{id of an answer cell: the reference answer}."""
    return {part.answer: part.reference for part in parts(course, assignment)}


def wrong_solutions(assignment):
    """The wrong solutions of an assignment: dictionaries with ``name``, ``why``, ``cells`` and ``loses``."""
    path = WRONG / f"{assignment}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def cheats():
    """The cheats: dictionaries with ``name``, ``why`` and what they do; ``cheat`` applies them."""
    return json.loads(CHEATS.read_text(encoding="utf-8"))


def cheat(course, student, assignment, attacks):
    """Hand in the reference answers, with cheats in place of some: ``attacks`` = {id of an answer cell: a cheat}.

    A cheat may have ``answer``, the text of the answer cell; ``first``, a cell at the top; ``tests``, a text for all
    test cells; ``delete``, "tests" or "answers"; ``metadata``, "points" or "ids"; ``text``, of the whole file; and
    ``files``. ``{function}`` and ``{name}`` stand for the exercise's. What has no ``answer`` leaves the stub as it is.
    Returns {grade id: marks} that are due.
    """
    due, answers, files = full_marks(course, assignment), references(course, assignment), {}
    used = {one["name"]: one for one in attacks.values()}.values()
    for part in parts(course, assignment):
        if part.answer in attacks:
            name = part.answer.replace("-", ".", 1)
            text = attacks[part.answer].get("answer", part.stub)
            answers[part.answer] = text.replace("{function}", part.function).replace("{name}", name)
            due |= dict.fromkeys(part.tests, 0)
    first = parts(course, assignment)[0].function

    def change(notebook):
        for one in used:
            _apply(one, notebook, first)
        return next((one["text"] for one in used if "text" in one), None)

    for one in used:
        files |= one.get("files", {})
    write(course, student, assignment, answers, change, files)
    return due


def _apply(one, notebook, function):
    cells = notebook["cells"]
    tests = [
        cell for cell in cells if cell["metadata"].get("nbgrader", {}).get("grade") and cell["cell_type"] == "code"
    ]
    if "tests" in one:
        for cell in tests:
            cell["source"] = one["tests"]
    if one.get("delete") == "tests":
        cells[:] = [cell for cell in cells if cell not in tests]
    if one.get("metadata") == "points":
        for cell in tests:
            cell["metadata"]["nbgrader"] |= {"points": 1000, "locked": False, "solution": True, "checksum": "0"}
    if one.get("metadata") == "ids":
        for cell in tests:
            cell["metadata"]["nbgrader"]["grade_id"] += "-mine"
            cell["id"] = cell["id"][::-1]
    if "first" in one:
        code = {"cell_type": "code", "id": "mine", "metadata": {}, "outputs": [], "execution_count": None}
        cells.insert(0, code | {"source": one["first"].replace("{function}", function)})


def rehearse(course, variant, students=10, names=None, workers=2, progress=None):
    """A whole round with made-up submissions; returns [(student, assignment, due, ``Graded``), …].

    There is one student with the reference answers, one who hands in a blank notebook, two who cheat, and the rest make
    a mistake in each assignment.
    """
    course = Path(course)
    shutil.rmtree(course, ignore_errors=True)
    set_up(course, variant, names)
    due, tricks = {}, [one for one in cheats() if "answer" in one and not one.get("slow")]
    for name in assignments(course):
        mistakes, exercises = (wrong_solutions(name), [p for p in parts(course, name) if not p.by_hand])
        write(course, "reference", name, references(course, name))
        write(course, "blank", name, {})
        due["reference", name], due["blank", name] = (
            full_marks(course, name),
            dict.fromkeys(full_marks(course, name), 0),
        )
        for k in range(students - 4 if mistakes else 0):
            one = mistakes[k % len(mistakes)]
            write(course, f"mistake-{k + 1}", name, references(course, name) | one["cells"])
            due[f"mistake-{k + 1}", name] = full_marks(course, name) | dict.fromkeys(one["loses"], 0)
        for k in range(2):
            attacks = {p.answer: tricks[(k + 2 * i) % len(tricks)] for i, p in enumerate(exercises[k:])}
            due[f"cheat-{k + 1}", name] = cheat(course, f"cheat-{k + 1}", name, attacks)
    graded = grade_class(course, workers=workers, progress=progress)
    return [(one.student, one.assignment, due[one.student, one.assignment], one) for one in graded]
