"""What the tests of the assignments share: notebooks, solutions, wrong solutions, and what an answer loses."""

import contextlib
import io
import json

import numpy as np
import torch
from reformer_lab.classroom import material, release
from reformer_lab.classroom.checks import check
from reformer_lab.classroom.grading import grade
from reformer_lab.classroom.variants import Variant

ALL = release.assignments()
NOTEBOOKS = {name: release.source(name) for name in ALL}
WRONG = {name: json.loads((material.FOLDER / f"wrong/{name}.json").read_text(encoding="utf-8")) for name in ALL}
SEEDS = {"A1": range(12), "A2": (1, 2, 3), "A3": (1, 2, 5), "A4": range(4), "A5": range(5)}


def cells(name):
    """{id: source} of an assignment's source notebook."""
    return {cell.id: cell.source for cell in NOTEBOOKS[name].cells}


def marks(cell):
    return cell.metadata.get("nbgrader", {})


def variants(name):
    """The open variant and some drawn ones."""
    assignment = name.partition("_")[0]
    return [Variant(), *(Variant.draw(seed).only(assignment) for seed in SEEDS[assignment])]


def graded_by(name):
    """{id of an answer cell in code: the names of the exercises that test its function}."""
    tested = {}
    for cell in NOTEBOOKS[name].cells:
        if cell.cell_type == "code" and marks(cell).get("solution"):
            answer = tested.setdefault(cell.id, [])
        elif cell.id.endswith("-check"):
            answer.append(cell.id.removesuffix("-check").replace("-", ".", 1))
    return tested


def function_of(source, variant):
    """The last function that a cell defines."""
    names = {"np": np, "torch": torch, "VARIANT": variant}
    exec(source, names)
    return next(value for value in reversed(names.values()) if callable(value))


def lost(exercise, fn, variant):
    """The graded cells of an exercise that this function loses."""
    failed = []
    for kind, test in (("check", check), ("hidden", grade)):
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                test(exercise, fn, variant)
        except AssertionError:
            failed.append(f"{exercise.replace('.', '-', 1)}-{kind}")
    return failed


def lost_cells(name, answers, variant):
    """The graded cells that answers {id of an answer cell: source} lose."""
    tested = graded_by(name)
    functions = {cell: function_of(source, variant) for cell, source in answers.items()}
    return [lost_cell for cell, fn in functions.items() for e in tested[cell] for lost_cell in lost(e, fn, variant)]
