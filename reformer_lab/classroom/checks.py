"""What students call: ``check`` says what is wrong, yours beside the expected; ``inputs`` gives the inputs back."""

import contextlib
import io
import re
import traceback

import numpy as np

from reformer_lab.classroom import cases
from reformer_lab.classroom.exercise import NotYet, mapped
from reformer_lab.classroom.exercises import exercise

LIBRARY = re.compile(
    r"site-packages|dist-packages|reformer_lab.classroom|reformer_ref.(\w+.)?\w+\.py|<__array_function__ internals>"
)
MOST_ENTRIES, WIDEST_ROW, MOST_LISTED = (160, 44, 8)  # beyond these a table gives way to a list and a picture


def check(name, fn, variant):
    """Try a student's function on the visible cases of an exercise; one line if all is well.

    name: "A1.hash". AssertionError with what is wrong: the case, its inputs, the first wrong entry, and yours and the
    expected side by side. Large wrong results also give a picture.
    """
    try:
        line = _check(name, fn, variant)
    except AssertionError as error:
        raise NotYet(str(error)) from None
    print(line)


def _check(name, fn, variant):
    task = exercise(name)
    n_visible = len(cases.visible(name, variant))
    for number, (args, expected) in enumerate(_tried(name, variant), start=1):
        where = f"{name}, case {number} of {n_visible}" if number <= n_visible else f"{name}, further case {number}"
        yours = _run(task, fn, args, where, number)
        for result, got, want in zip(task.results, yours, expected, strict=True):
            message = explain(task, result, got, want, args)
            if message:
                _show(task, got, want)
                raise AssertionError(f"{where}: {message}\n\n{_called_with(task, args, number)}") from None
    return f"✓ {name}: {n_visible} cases as expected{_component_check(name, fn, variant)}"


def written(name, fn, variant):
    """One line if the function of an exercise is no longer the stub, AssertionError if it is; results do not count."""
    args, _ = cases.visible(name, variant)[0]
    try:
        exercise(name).run(fn, args)
    except NotImplementedError:
        raise NotYet(f"{name}: this part is not written yet.") from None
    except Exception:  # whatever is wrong with it, it is written
        pass
    if not callable(fn):
        raise NotYet(f"{name}: this part is not written yet.")
    print(f"{name}: written. Further tests run when this is graded.")


def inputs(name, number, variant):
    """The arguments of visible case ``number`` (from 1) as a tuple, to try a function on."""
    tried = _tried(name, variant)
    if not 1 <= number <= len(tried):
        raise ValueError(f"number must be from 1 to {len(tried)}, got {number}")
    task = exercise(name)
    return mapped(task.hand_out, tried[number - 1][0])


def _tried(name, variant):
    """The visible cases; where the answers are, others like them too, so that knowing results by heart is no use."""
    further = cases.answers_installed() and exercise(name).graded
    again = cases.compute(name, variant, hidden=False, draw="second") if further else []
    return [*cases.visible(name, variant), *again]


def explain(task, result, yours, expected, args=None):
    """None if a result is right; if not, what is wrong with it, in which place (``args``), yours and the expected."""
    yours, expected = np.asarray(yours), np.asarray(expected)
    if message := task.wrong_form(yours, expected):
        short = yours.shape != expected.shape and yours.size + expected.size <= MOST_ENTRIES
        return f"`{result}` {message}." + (f"\n\n{table(task, yours, expected)}" if short else "")
    wrong = task.wrong(yours, expected)
    if not wrong.any():
        return None
    at = tuple(int(i) for i in np.argwhere(wrong)[0])
    got, want = _two_texts(yours[at], expected[at])
    if not at:
        return f"`{result}` is {got}, expected {want}."
    place = f"{result}[{', '.join(map(str, at))}]" + (f" ({task.describe(args, at)})" if task.describe and args else "")
    count = f"{int(wrong.sum()):,} of {wrong.size:,} entries of `{result}` {'is' if wrong.sum() == 1 else 'are'} wrong"
    return f"{count}; the first is {place}: yours {got}, expected {want}.\n\n{table(task, yours, expected, args)}"


def table(task, yours, expected, args=None):
    """Yours and the expected in aligned columns, a star at each wrong entry; of large results the first wrong ones."""
    if yours.shape != expected.shape:
        blocks = [("yours", _rows(yours)), ("expected", _rows(expected))]
        return "\n\n".join("\n".join([name, *_aligned(rows, _width(rows))]) for name, rows in blocks)
    wrong, digits = task.wrong(yours, expected), 4
    if yours.dtype.kind == "f":
        digits = len(_two_texts(yours[wrong][0], expected[wrong][0])[0].lstrip("-0.").replace(".", ""))
    left, right = _rows(yours, max(digits, 4), wrong), _rows(expected, max(digits, 4))
    width = _width(left + right)
    if yours.size + expected.size > MOST_ENTRIES or (width + 2) * yours.shape[-1] > WIDEST_ROW:
        return _listed(task, yours, expected, wrong, args)
    left, right = _aligned(left, width), _aligned(right, width, labels=False)
    wide = max(map(len, left))
    lines = [f"{'yours (* wrong)':<{wide}}   expected"]
    return "\n".join(lines + [f"{mine:<{wide}}   {want}".rstrip() for mine, want in zip(left, right, strict=True)])


def _run(task, fn, args, where, number):
    """The results of the student's function, or an AssertionError that says how it failed."""
    try:
        return task.run(fn, args)
    except NotImplementedError:
        hint = "Replace `raise NotImplementedError()` by your code."
        raise AssertionError(f"{task.name}: this part is not written yet. {hint}") from None
    except AssertionError as error:
        raise AssertionError(f"{error}\n\n{_called_with(task, args, number)}") from None
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if not LIBRARY.search(f.filename)]
        lines = "".join(f"\n  in {f.name}, line {f.lineno}:  {f.line}" for f in frames)
        message = f"{where}: your function raised {type(error).__name__}: {error}{lines}"
        raise AssertionError(f"{message}\n\n{_called_with(task, args, number)}") from None


def _called_with(task, args, number):
    """The inputs of a case, small arrays written out, and how to get them back."""
    lines = ["The inputs were"]
    for name, value in zip(task.arguments, args, strict=True):
        if isinstance(value, np.ndarray) and value.size:
            text = f"{value.dtype} {value.shape}"
            if value.size <= 40:
                written = np.array2string(value, precision=4, suppress_small=True, separator=", ", max_line_width=1000)
                flat = " ".join(written.split()).replace("[ ", "[")
                text += f"  {flat}" if len(flat) <= 72 else "\n      " + written.replace("\n", "\n      ")
        else:
            text = repr(value) if len(repr(value)) <= 100 else f"{type(value).__name__} of {len(value)}"
        lines.append(f"  {name} = {text}")
    names = ", ".join(task.arguments) if len(task.arguments) > 1 else f"({task.arguments[0]},)"
    lines.append(f'To have them again:  {names} = inputs("{task.name}", {number}, VARIANT)')
    return "\n".join(lines)


def _show(task, yours, expected):
    """In a notebook, the picture of where large results differ."""
    with contextlib.suppress(ImportError, NameError):
        if yours.shape == expected.shape and yours.size + expected.size > MOST_ENTRIES:
            from IPython import get_ipython
            from IPython.display import display

            if get_ipython() is not None:
                from reformer_lab.classroom.pictures import differences

                display(differences(yours, expected, task.wrong(yours, expected)))


def _component_check(name, fn, variant):
    """In the open mode, the line of the component's own check, which no drawn variant could pass."""
    if not variant.open or not cases.answers_installed():
        return ""
    from reformer_lab.classroom.answers import answer

    component_check = answer(name).component_check
    out = io.StringIO()
    if component_check is None:
        return ""
    try:
        with contextlib.redirect_stdout(out):
            component_check(fn)
    except AssertionError as error:
        raise AssertionError(
            f"{name}: the cases of this notebook pass, but the package's own check says: {error}"
        ) from None
    return f"; {out.getvalue().strip().splitlines()[-1]}" if out.getvalue().strip() else ""


def _rows(array, digits=4, wrong=None):
    """(label, texts of the entries) of every row of an array, wrong entries with a star."""
    array = np.asarray(array)
    if array.ndim == 0:
        return [("", [_text(array[()], digits)])]
    wrong = np.zeros(array.shape, dtype=bool) if wrong is None else wrong
    rows = []
    for index in np.ndindex(array.shape[:-1]):
        label = f"[{', '.join(map(str, index))}]" if index else ""
        entries = zip(array[index], wrong[index], strict=True)
        rows.append((label, [_text(value, digits) + "*" * bool(star) for value, star in entries]))
    return rows


def _width(rows):
    return max((len(text.rstrip("*")) for _, texts in rows for text in texts), default=1)


def _aligned(rows, width, labels=True):
    """The lines of rows, every entry ``width`` wide with a space for its star."""
    label = max((len(at) for at, _ in rows), default=0) if labels else 0
    lines = [
        "".join(f" {text:>{width + 1}}" if text[-1] == "*" else f" {text:>{width}} " for text in t) for _, t in rows
    ]
    return [f"{at if labels else '':<{label}}{line}" for (at, _), line in zip(rows, lines, strict=True)]


def _text(value, digits):
    return f"{value:.{digits}g}" if isinstance(value, (float, np.floating)) else str(value)


def _two_texts(yours, expected):
    """Two numbers, with as many digits as it takes to tell them apart."""
    for digits in range(4, 18):
        texts = _text(yours, digits), _text(expected, digits)
        if texts[0] != texts[1]:
            break
    return texts


def _listed(task, yours, expected, wrong, args):
    """The first wrong entries, one a line, with what they stand for."""
    places = np.argwhere(wrong)
    rows = [(str([int(i) for i in p]), *_two_texts(yours[tuple(p)], expected[tuple(p)])) for p in places[:MOST_LISTED]]
    rows = [("at", "yours", "expected"), *rows]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  ".join(f"{text:>{w}}" for text, w in zip(row, widths, strict=True)) for row in rows]
    if task.describe and args:
        descriptions = ["", *("   " + task.describe(args, tuple(int(i) for i in p)) for p in places[:MOST_LISTED])]
        lines = [line + words for line, words in zip(lines, descriptions, strict=True)]
    return "\n".join(lines + ([f"… and {len(places) - MOST_LISTED:,} more"] if len(places) > MOST_LISTED else []))
