"""Recorded cases: what the visible checks put in and expect, as one ``.npz`` file per assignment, without pickle."""

import importlib.util
import json
from functools import cache
from pathlib import Path

import numpy as np

from reformer_lab.classroom.exercises import exercise

FOLDER = "cases"  # beside the notebook


def visible(name, variant, folder=FOLDER):
    """The visible cases of an exercise: a list of (arguments, expected results), both tuples.

    Where the answers are installed, they are computed afresh, so that an edited file changes no mark. Elsewhere, and if
    they are only shown, they are read from ``folder``: FileNotFoundError if the file is missing, ValueError if it
    belongs to another variant.
    """
    path = Path(folder) / f"{name.partition('.')[0]}.npz"
    if answers_installed() and (exercise(name).graded or not path.is_file()):
        return compute(name, variant, hidden=False)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: keep the folder `{FOLDER}` beside the notebook, as it was handed out."
        )
    with np.load(path, allow_pickle=False) as stored:
        index = json.loads(str(stored["index"]))
        if index["variant"] != variant.to_json():
            raise ValueError(f"{path} belongs to another variant than the one in the notebook's set-up cell.")
        return [(_unpack(args, stored), _unpack(results, stored)) for args, results in index["cases"][name]]


def answers_installed():
    """Whether this is an instructor's machine, or an open course: one that has the answers."""
    return importlib.util.find_spec("reformer_lab.classroom.answers") is not None


@cache
def compute(name, variant, hidden, draw="first"):
    """Cases computed from the answers: a list of (arguments, expected results). Another ``draw``, other numbers."""
    from reformer_lab.classroom.answers import answer

    task = exercise(name)
    key = answer(name)
    cases = key.cases(variant, variant.rng(name, f"{'hidden' if hidden else 'visible'}, {draw} draw"), hidden)
    reference = key.reference(variant)
    return [(tuple(args), task.run(reference, args)) for args in cases]


def record(assignment, variant, folder):
    """Write the visible cases of an assignment ("A1") to ``folder``/A1.npz, the same bytes every time."""
    from reformer_lab.classroom.exercises import names

    arrays, cases = {}, {}
    for name in names(assignment):
        cases[name] = [[_pack(args, arrays), _pack(results, arrays)] for args, results in visible(name, variant)]
    index = json.dumps({"variant": variant.to_json(), "cases": cases})
    Path(folder).mkdir(parents=True, exist_ok=True)
    np.savez(Path(folder) / f"{assignment}.npz", index=np.array(index), **arrays)


def _pack(value, arrays):
    """A description of ``value`` for JSON; its arrays go into ``arrays``."""
    if isinstance(value, (tuple, list)):
        return [_pack(item, arrays) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        arrays[f"a{len(arrays)}"] = np.asarray(value)
        return {"array": f"a{len(arrays) - 1}"}
    return {"value": value}


def _unpack(described, stored):
    if isinstance(described, list):
        return tuple(_unpack(item, stored) for item in described)
    return stored[described["array"]] if "array" in described else described["value"]
