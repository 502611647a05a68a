"""The words that readers had to learn, and that are not used here: identifiers of the code, prose of documents.

A word stays out of the places where its replacement is the standard term. Where the same word means something else
(`top_k`, the lower halves of images, a training run), it is an exception, with its reason.
"""

import ast
import io
import json
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("reformer_ref", "reformer_lab", "examples", "tests")
CODE = sorted(p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py") if p != Path(__file__))
NOTEBOOKS = sorted(
    p for folder in ("notebooks", "assignments", "reformer_lab") for p in (ROOT / folder).rglob("*.ipynb")
)
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

# Identifiers, whole: word -> instead of it
WHOLE = {
    "nobody": "pad_row", "alone": "only_self", "own": "query_chunks", "take": "gather_keys", "pick": "gather_rows",
    "spread": "unfold", "here": "block_out", "share": "block_weight", "mass": "row_sum", "top": "row_max",
    "halves": "layers", "half": "layer", "trunk": "backbone", "memo": "saved", "extras": "context",
    "strip": "chunk or block", "piece": "chunk or block", "room": "component", "house": "package", "floor": "layer",
    "furniture": "files", "ground": "layer", "twins": "the two functions", "told": "a noun", "shown": "a noun",
    "found": "a noun", "what": "a noun", "one": "a noun", "every": "a noun",
}  # fmt: skip
# The same as a part of a name in the reference, and words that mean something else in the lab
PARTS = {
    "nobody", "alone", "own", "here", "share", "mass", "halves", "half", "trunk", "memo", "extras", "strip", "piece",
    "slice", "room", "total", "part", "run",
}  # fmt: skip
EXCEPTIONS = {
    ("tests/data/test_images.py", "top"): "the upper edge of a rectangle, beside left",
    ("tests/test_packaging.py", "extras"): "of a Python package: the standard word for optional dependencies",
}

# Prose: pattern -> instead of it
PROSE = {
    r"\bnobody\b": "padding row, no token",
    r"\bTrunk\b|\btrunk\b": "backbone",
    r"\bmemos?\b": "saved",
    r"\brooms?\b(?! for)": "component",
    r"\bhouse\b": "package",
    r"\bfurniture\b": "files",
    r"\b(?:reversible|one|each|a|two|the) hal(?:f|ves)\b(?! of| the| an)": "layer",
    r"\bwhom\b": "which keys a query can attend to",
    r"shall bring a query together": "should put a query into the same bucket as",
    r"[Ww]ho stands in which": "which",
    r"behind one another": "concatenated",
    r"reaches farthest along": "has the largest projection",
    r"plane at random parts": "a random hyperplane separates",
    r"belongs? into a half": "must F and G not contain",
    r"second derivative, there is none": "cannot be differentiated twice",
}


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def words_of(identifier):
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", identifier).lower().strip("_").split("_")


def defined(tree):
    """Identifiers that the code itself introduces: functions, classes, arguments, variables, attributes."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) if not name.startswith("test_"):  # names of tests are sentences
                yield name, node.lineno
            case ast.ClassDef(name=name) | ast.arg(arg=name):
                yield name, node.lineno
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield name, node.lineno


def coined(identifier, path):
    words = words_of(identifier)
    whole = "_".join(words)
    if (name_of(path), identifier) in EXCEPTIONS:
        return False
    if whole in WHOLE or (whole.endswith("s") and whole[:-1] in WHOLE.keys() - {"what", "one", "every"}):
        return True
    inside = "reformer_ref" in path.parts[len(ROOT.parts) :]
    return inside and any(word in PARTS or word.removesuffix("s") in PARTS for word in words)


def cells(path, kind):
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == kind:
            yield cell.get("id", ""), "".join(cell["source"])


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_identifiers_of_code(path):
    names = {
        f"{name} (line {line})" for name, line in defined(ast.parse(path.read_text("utf-8"))) if coined(name, path)
    }
    assert sorted(names) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_identifiers_of_notebooks(path):
    for cell, source in cells(path, "code"):
        tree = ast.parse(re.sub(r"^[%!].*$", "", source, flags=re.M))
        assert [name for name, _ in defined(tree) if coined(name, path)] == [], cell


def odd(text):
    """(pattern, where it stands) of what is not said here."""
    return [text[max(0, m.start() - 30) : m.end() + 30] for pattern in PROSE for m in re.finditer(pattern, text)]


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_prose_of_documents(path):
    assert odd(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_prose_of_notebooks(path):
    """Text, captions and code."""
    stored = json.loads(path.read_text(encoding="utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in stored]
    for output in (o for cell in stored for o in cell.get("outputs", [])):
        texts += ["".join(v) for k, v in output.get("data", {}).items() if k.startswith("text/")]
        texts += output.get("text", [])
    assert odd("\n".join(texts)) == []


@pytest.mark.parametrize("path", [p for p in CODE if "tests" not in p.parts], ids=name_of)
def test_prose_of_code(path):
    """Comments, docstrings, messages and captions."""
    with tokenize.open(path) as file:
        tokens = list(tokenize.generate_tokens(io.StringIO(file.read()).readline))
    kinds = (tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING))
    assert odd("\n".join(t.string for t in tokens if t.type in kinds)) == []
