"""What the hidden tests call: a student's function against hidden cases and identities.

Messages say what kind of thing is wrong and for which shapes, never a hidden value.
"""

import contextlib
import warnings

import numpy as np

from reformer_lab.classroom import cases
from reformer_lab.classroom.exercise import KINDS, SCALARS
from reformer_lab.classroom.exercises import exercise

PLAIN = {bool, int, float, str, type(None), np.ndarray}


def grade(name, fn, variant):
    """Raise AssertionError unless a student's function passes all hidden cases and identities of an exercise.

    name: "A1.hash". The function gets copies; what it prints is thrown away, and whatever it raises is turned into an
    AssertionError. Results must be of ordinary types: a subclass that claims to equal everything is refused.
    """
    __tracebackhide__ = True
    task = exercise(name)
    if not callable(fn):
        raise AssertionError(f"{name}: a function is needed, got {type(fn).__name__}.")
    hidden = cases.compute(name, variant, hidden=True)
    for number, (args, expected) in enumerate(hidden, start=1):
        where = f"{name}, hidden case {number} of {len(hidden)} ({_shapes(task, args)})"
        with _tried(where):
            results = task.run(fn, args)
        for result, yours, wanted in zip(task.results, results, expected, strict=True):
            wrong = _mistake(task, yours, wanted)
            if wrong:
                raise AssertionError(f"{where}: `{result}` {wrong}.")
    if task.identities is not None:
        with _tried(f"{name}, what must hold whatever the numbers"):
            task.identities(_plain_only(fn), variant, variant.rng(name, "identities"))
    print(f"✓ {name}: all {len(hidden)} hidden cases")


@contextlib.contextmanager
def _tried(where):
    """Turn whatever a student's code raises into an AssertionError with one sentence; throw its output away."""
    __tracebackhide__ = True
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(_Nowhere()), contextlib.redirect_stderr(_Nowhere()):
            warnings.simplefilter("ignore")
            yield
    except KeyboardInterrupt:
        raise
    except AssertionError as error:
        raise AssertionError(f"{where}: {str(error)[:2000]}") from None
    except BaseException as error:
        text = " ".join(str(error)[:500].split())
        raise AssertionError(f"{where}: your function raised {type(error).__name__}: {text}") from None


class _Nowhere:
    """A file that forgets what is written to it."""

    encoding = "utf-8"

    def write(self, text):
        return len(text)

    def flush(self):
        pass


def _plain_only(fn):
    """``fn`` with copies for arguments and results of ordinary types alone, for tests that call it themselves."""

    def plain(*args, **kwargs):
        __tracebackhide__ = True
        return _plain(fn(*map(_copy, args), **{name: _copy(value) for name, value in kwargs.items()}))

    return plain


def _plain(value):
    """A result, functions in it made plain as well; AssertionError if it is of another type than arrays and numbers."""
    if type(value) in (tuple, list):
        return type(value)(map(_plain, value))
    if callable(value):
        return _plain_only(value)
    if type(value) not in PLAIN and type(value) not in SCALARS and not _is_tensor(value):
        raise AssertionError(f"the result must be an array or a number, got {type(value).__name__}.")
    if type(value) is np.ndarray and value.dtype.kind not in KINDS:
        raise AssertionError(f"the result must hold numbers, got dtype {value.dtype}.")
    return value


def _copy(value):
    """A copy of an argument; tensors that require gradients stay themselves, for a graph may depend on them."""
    if type(value) in (tuple, list):
        return type(value)(map(_copy, value))
    if _is_tensor(value):
        return value if value.requires_grad else value.clone()
    return value.copy() if type(value) is np.ndarray else value


def _is_tensor(value):
    return type(value).__module__ == "torch" and type(value).__name__ == "Tensor"


def _mistake(task, yours, expected):
    """What is wrong with a result, without its values; None if nothing is."""
    if message := task.wrong_form(yours, expected):
        return message
    wrong = int(np.sum(task.wrong(yours, expected)))
    return f"is wrong in {wrong:,} of {yours.size:,} entries" if wrong else None


def _shapes(task, args):
    """Arguments in words that give no value away: "x (7, 3) float32, n_buckets"."""
    return ", ".join(
        f"{name} {arg.shape} {arg.dtype}" if isinstance(arg, np.ndarray) else name
        for name, arg in zip(task.arguments, args, strict=True)
    )
