"""What an exercise is, how a student's function is called, and how its result is compared with the expected one."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

KINDS = {"b": "booleans", "i": "integers", "u": "integers", "f": "floats", "U": "text"}


def holds(condition, sentence):
    """AssertionError with the sentence unless the condition is true; unlike ``assert``, under ``python -O`` too."""
    if not condition:
        raise AssertionError(sentence)


def equal(got, want, sentence, tolerance=0.0):
    """AssertionError with the sentence unless two arrays have one shape and entries that differ by at most this."""
    got, want = np.asarray(got), np.asarray(want)
    holds(got.shape == want.shape and np.all(np.abs(got - want) <= tolerance), sentence)


def by_name(*exercises):
    """{name: exercise}, in this order."""
    return {exercise.name: exercise for exercise in exercises}


class NotYet(AssertionError):
    """What a check raises: a notebook shows its sentences alone, not the way through this package."""

    def _render_traceback_(self):
        return [f"✗ {self}"]


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    name: "A1.hash". arguments: names of the recorded arguments: arrays, ints, floats, texts, booleans, None, or tuples
    of them. results: names of the results; with more than one, the function returns a tuple. rtol: the largest error as
    a fraction of the largest expected number; 0 if results must be equal. call(fn, args): how to call the function; as
    ``fn(*args)`` if None. identities(fn, variant, rng): what holds for every right answer; AssertionError with a
    sentence if not. torch: whether arrays become tensors. describe(args, at): the meaning of the entry at an index.
    graded: False for recorded data that the notebook only shows.
    """

    name: str
    arguments: tuple[str, ...]
    results: tuple[str, ...] = ("result",)
    rtol: float = 0.0
    call: Callable | None = None
    identities: Callable | None = None
    torch: bool = False
    describe: Callable | None = None
    graded: bool = True

    def run(self, fn, args):
        """The student's results as a tuple of NumPy arrays; AssertionError for a changed argument or an odd type.

        What the function itself raises is passed on. It works on copies, so ``args`` stay what they are.
        """
        given = mapped(self.hand_out, tuple(args))
        result = fn(*given) if self.call is None else self.call(fn, given)
        for name, before, after in zip(self.arguments, args, given, strict=True):
            if not _same(before, after):
                raise AssertionError(f"{self.name}: your function changed its argument `{name}`. Work on a copy of it.")
        if len(self.results) == 1:
            return (self._plain(self.results[0], result),)
        if type(result) not in (tuple, list) or len(result) != len(self.results):
            got = f"{len(result)} things" if type(result) in (tuple, list) else f"a {type(result).__name__}"
            raise AssertionError(
                f"{self.name}: expected {len(self.results)} results ({', '.join(self.results)}) as a tuple, got {got}."
            )
        return tuple(self._plain(name, item) for name, item in zip(self.results, result, strict=True))

    @staticmethod
    def wrong_form(yours, expected):
        """What is wrong with the shape or the kind of numbers of a result, or None."""
        if yours.shape != expected.shape:
            return f"has shape {yours.shape}, expected {expected.shape}"
        kinds = KINDS[yours.dtype.kind], KINDS[expected.dtype.kind]
        return None if kinds[0] == kinds[1] else f"holds {kinds[0]} ({yours.dtype}), expected {kinds[1]}"

    def wrong(self, yours, expected):
        """Where two arrays of one shape differ by more than is allowed: booleans."""
        yours, expected = np.asarray(yours), np.asarray(expected)
        if not self.rtol or expected.dtype.kind != "f":
            return yours != expected
        finite = np.abs(expected[np.isfinite(expected)])
        scale = float(finite.max(initial=0.0)) or 1.0
        with np.errstate(invalid="ignore"):
            near = np.abs(yours - expected) <= self.rtol * scale
        return ~(near | (yours == expected))

    def hand_out(self, value):
        """A copy of an argument as a student's function gets it: an array, or a tensor in exercises with PyTorch."""
        if not isinstance(value, np.ndarray):
            return value
        if not self.torch or value.dtype.kind not in "biuf":
            return value.copy()
        import torch

        return torch.from_numpy(value.copy())

    def _plain(self, name, value):
        """A NumPy array of a value of an ordinary type; nothing that could lie about itself in a comparison."""
        if type(value).__module__ == "torch" and type(value).__name__ in ("Tensor", "Parameter"):
            value = value.detach().cpu().numpy()
        if type(value) is not np.ndarray and type(value) not in (bool, int, float, str) and type(value) not in SCALARS:
            hint = ""
            if value is None:
                hint = " Is a `return` missing?"
            elif isinstance(value, (list, tuple)):
                hint = " np.array(…) makes an array of it."
            kind = "tensor" if self.torch else "NumPy array or number"
            got = "None" if value is None else type(value).__name__
            raise AssertionError(f"{self.name}: `{name}` must be a {kind}, got {got}.{hint}")
        value = np.asarray(value)
        if value.dtype.kind not in KINDS:
            raise AssertionError(f"{self.name}: `{name}` must hold real numbers, got dtype {value.dtype}.")
        return value


SCALARS = frozenset(np.sctypeDict.values()) - {np.object_, np.void}


def mapped(fn, value):
    """``fn`` of every leaf of nested tuples."""
    return tuple(mapped(fn, item) for item in value) if isinstance(value, (tuple, list)) else fn(value)


def _same(before, after):
    if isinstance(before, (tuple, list)):
        return all(_same(b, a) for b, a in zip(before, after, strict=True))
    if isinstance(before, np.ndarray):
        after = np.asarray(after)
        return before.shape == after.shape and np.array_equal(before, after, equal_nan=before.dtype.kind == "f")
    return True
