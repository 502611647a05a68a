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
class Question:
    """An exercise of a notebook: its answer cell, the function that it defines, its stub, its answer, and its tests."""

    answer: str
    stub: str
    reference: str
    function: str = ""
    tests: dict = field(default_factory=dict)  # {grade id: points}
    by_hand: bool = False


def questions(course, assignment):
    """The exercises of an assignment of a course, in order."""
    source, release = (_load(course, kind, assignment)["cells"] for kind in ("source", "release"))
    result = []
    for solved, blank in zip(source, release, strict=True):
        marks = blank["metadata"].get("nbgrader", {})
        if marks.get("solution"):
            by_hand = bool(marks.get("grade"))
            result.append(Question(marks["grade_id"], _text(blank), _text(solved), by_hand=by_hand))
            if blank["cell_type"] == "code":
                functions = [node.name for node in ast.parse(_text(blank)).body if isinstance(node, ast.FunctionDef)]
                result[-1].function = functions[-1]
        elif marks.get("grade"):
            result[-1].tests[marks["grade_id"]] = marks["points"]
    return result


def _load(course, kind, assignment):
    return json.loads(Path(course, kind, assignment, f"{assignment}.ipynb").read_text(encoding="utf-8"))


def _text(cell):
    return "".join(cell["source"])


def full_marks(course, assignment):
    """{grade id: points} of the parts that are graded automatically."""
    return {test: points for question in questions(course, assignment) for test, points in question.tests.items()}


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
    return {question.answer: question.reference for question in questions(course, assignment)}


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
    due = full_marks(course, assignment)
    answers = references(course, assignment)
    files = {}
    asked = questions(course, assignment)
    for question in asked:
        if question.answer in attacks:
            name = question.answer.replace("-", ".", 1)
            text = attacks[question.answer].get("answer", question.stub)
            answers[question.answer] = text.replace("{function}", question.function).replace("{name}", name)
            due |= dict.fromkeys(question.tests, 0)
    distinct = {trick["name"]: trick for trick in attacks.values()}.values()

    def change(notebook):
        for trick in distinct:
            _apply(trick, notebook, asked[0].function)
        return next((trick["text"] for trick in distinct if "text" in trick), None)

    for trick in distinct:
        files |= trick.get("files", {})
    write(course, student, assignment, answers, change, files)
    return due


def _apply(trick, notebook, function):
    cells = notebook["cells"]
    tests = [c for c in cells if c["metadata"].get("nbgrader", {}).get("grade") and c["cell_type"] == "code"]
    if "tests" in trick:
        for cell in tests:
            cell["source"] = trick["tests"]
    if trick.get("delete") == "tests":
        cells[:] = [cell for cell in cells if cell not in tests]
    if trick.get("metadata") == "points":
        for cell in tests:
            cell["metadata"]["nbgrader"] |= {"points": 1000, "locked": False, "solution": True, "checksum": "0"}
    if trick.get("metadata") == "ids":
        for cell in tests:
            cell["metadata"]["nbgrader"]["grade_id"] += "-mine"
            cell["id"] = cell["id"][::-1]
    if "first" in trick:
        code = {"cell_type": "code", "id": "mine", "metadata": {}, "outputs": [], "execution_count": None}
        cells.insert(0, code | {"source": trick["first"].replace("{function}", function)})


def rehearse(course, variant, students=10, names=None, workers=2, progress=None):
    """A whole round with made-up submissions; returns [(student, assignment, due, ``Graded``), …].

    There is one student with the reference answers, one who hands in a blank notebook, two who cheat, and the rest make
    a mistake in each assignment.
    """
    course = Path(course)
    shutil.rmtree(course, ignore_errors=True)
    set_up(course, variant, names)
    due, tricks = {}, [trick for trick in cheats() if "answer" in trick and not trick.get("slow")]
    for name in assignments(course):
        full = full_marks(course, name)
        answers = references(course, name)
        write(course, "reference", name, answers)
        write(course, "blank", name, {})
        due["reference", name], due["blank", name] = full, dict.fromkeys(full, 0)
        mistakes = wrong_solutions(name)
        for k in range(students - 4 if mistakes else 0):
            mistake = mistakes[k % len(mistakes)]
            write(course, f"mistake-{k + 1}", name, answers | mistake["cells"])
            due[f"mistake-{k + 1}", name] = full | dict.fromkeys(mistake["loses"], 0)
        by_machine = [question.answer for question in questions(course, name) if not question.by_hand]
        for k in range(2):
            attacks = {answer: tricks[(k + 2 * i) % len(tricks)] for i, answer in enumerate(by_machine[k:])}
            due[f"cheat-{k + 1}", name] = cheat(course, f"cheat-{k + 1}", name, attacks)
    graded = grade_class(course, workers=workers, progress=progress)
    return [(g.student, g.assignment, due[g.student, g.assignment], g) for g in graded]
