"""The exercises of the five assignments: how an answer is called and compared. No answers here; students get this."""

import importlib

from reformer_lab.classroom.variants import TOPICS


def exercise(name):
    """The ``Exercise`` of that name, such as "A1.hash"; ValueError if there is none."""
    assignment = str(name).partition(".")[0]
    if assignment not in TOPICS:
        raise ValueError(f"name must begin with one of {', '.join(TOPICS)}, got {name!r}")
    known = importlib.import_module(f"{__name__}.{TOPICS[assignment]}").EXERCISES
    if name not in known:
        raise ValueError(f"name must be one of {', '.join(known)}, got {name!r}")
    return known[name]


def names(assignment):
    """The names of an assignment's exercises, in their order: names("A1")."""
    return tuple(importlib.import_module(f"{__name__}.{TOPICS[assignment]}").EXERCISES)
