"""The answers, under every variant, and the cases they are tried on. Bundles for students leave this folder out."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from reformer_lab.classroom.variants import TOPICS


@dataclass(frozen=True)
class Answer:
    """What an exercise expects.

    reference(variant): a function with the signature that students write, built on the specs where possible.
    cases(variant, rng, hidden): a list of argument lists; the visible ones are few and small, the hidden ones have
    other shapes, dtypes and edge cases. component_check(fn): the component's own check, for the open variant.
    """

    reference: Callable
    cases: Callable
    component_check: Callable | None = None


def answer(name):
    """The ``Answer`` to the exercise of that name, such as "A1.hash"."""
    return importlib.import_module(f"{__name__}.{TOPICS[name.partition('.')[0]]}").ANSWERS[name]
