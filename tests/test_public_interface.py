"""The forty names of `reformer_ref`: annotated, documented, tested, used in a notebook; quick to import."""

import ast
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import reformer_ref

ROOT = Path(__file__).resolve().parents[1]
NAMES = reformer_ref.__all__
CLASSES = [n for n in NAMES if inspect.isclass(getattr(reformer_ref, n))]
FUNCTIONS = [n for n in NAMES if n not in CLASSES]

# Names that no test calls, with the reason.
NOT_CALLED = {
    "AttentionRecord": "what lsh_attention returns with return_record=True",
    "Peak": "what the three functions of memory return",
    "InPlaceLayer": "a protocol; tests/model/test_in_place.py tries the layers that follow it",
}
# Names that no notebook uses, with the reason.
NO_LESSON = {}


def run(code):
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_there_are_about_forty():
    assert 35 <= len(NAMES) <= 45
    assert len(set(NAMES)) == len(NAMES)
    assert sorted(NAMES) == NAMES


def own_methods(cls):
    """Public methods that the class itself defines, and how it is made."""
    for name, member in vars(cls).items() if not getattr(cls, "_is_protocol", False) else ():
        if name == "__init__" or (not name.startswith("_") and (inspect.isroutine(member))):
            yield f"{cls.__name__}.{name}", getattr(cls, name)


CALLABLES = [(name, getattr(reformer_ref, name)) for name in FUNCTIONS]
CALLABLES += [pair for name in CLASSES for pair in own_methods(getattr(reformer_ref, name))]


@pytest.mark.parametrize(("name", "function"), CALLABLES, ids=[name for name, _ in CALLABLES])
def test_is_annotated(name, function):
    signature = inspect.signature(function)
    free = [p.name for p in signature.parameters.values() if p.annotation is p.empty and p.name not in ("self", "cls")]
    assert not free, f"{name}: no annotation of {', '.join(free)}"
    assert signature.return_annotation is not signature.empty or name.endswith("__init__"), f"{name}: returns what?"


@pytest.mark.parametrize("name", NAMES)
def test_is_documented(name):
    thing = getattr(reformer_ref, name)
    text = inspect.getdoc(thing) or ""
    assert len(text.splitlines()[0]) > 20, f"{name}: {text!r}"
    if name in FUNCTIONS:
        assert "Args:" in text, f"{name}: no section on its arguments"
        assert "Returns:" in text, f"{name}: no section on what it returns"


@pytest.mark.parametrize(("name", "function"), CALLABLES, ids=[name for name, _ in CALLABLES])
def test_methods_are_documented(name, function):
    assert function.__doc__ or name.rpartition(".")[2] in ("__init__", "extra_repr"), name


def words_in(code):
    """Names, attributes and imported names in Python code."""
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name):
                yield name


def test_every_name_is_tested():
    files = [p for p in (ROOT / "tests").rglob("test_*.py") if p.parent.name != "fuzz" and p != Path(__file__)]
    words = {word for path in files for word in words_in(path.read_text(encoding="utf-8"))}
    assert set(NAMES) - words == NOT_CALLED.keys()


def test_every_name_has_its_lesson():
    words = set()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        for cell in cells:
            if cell["cell_type"] == "code":
                words |= set(words_in(re.sub(r"^[%!].*$", "", "".join(cell["source"]), flags=re.M)))
    assert set(NAMES) - words == NO_LESSON.keys()


@pytest.mark.parametrize("name", ["lsh_attention", "local_attention"])
def test_a_function_may_have_the_name_of_its_package(name):
    """The function is the attribute; the modules of the package can be reached in every way."""
    run(f"""
import reformer_ref
import reformer_ref.{name}.pytorch as under_another_name
from reformer_ref import {name}
from reformer_ref.{name} import pytorch
import reformer_ref.{name}.checks

assert callable({name}) and reformer_ref.{name} is {name}
assert under_another_name is pytorch is reformer_ref.{name}.pytorch
assert pytorch.__name__ == "reformer_ref.{name}.pytorch"
for module in ("spec", "checks", "options"):
    assert getattr(reformer_ref.{name}, module).__name__ == f"reformer_ref.{name}.{{module}}"
""")


def test_importing_it_imports_little_else():
    heavy = "matplotlib IPython ipywidgets lightning lightning_fabric transformers torch._dynamo reformer_lab"
    assert run(f"import reformer_ref, sys; print([m for m in {heavy.split()} if m in sys.modules])").strip() == "[]"


@pytest.mark.slow
def test_importing_it_imports_no_triton():
    assert run("import reformer_ref, sys; print('triton' in sys.modules)").strip() == "False"


def test_importing_it_takes_hardly_longer_than_torch():
    """The least processor time of five runs, torch first and then the rest: at most a fifth as long."""
    code = "import time; a = time.process_time(); import torch; b = time.process_time(); import reformer_ref; "
    runs = [[*map(float, run(code + "print(b - a, time.process_time() - b)").split())] for _ in range(5)]
    torch_alone, ours = map(min, zip(*runs, strict=True))
    assert ours <= 0.2 * torch_alone, runs
