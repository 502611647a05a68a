"""Releases: no answers, no hidden tests, no outputs; fresh ones equal the committed; the course package suffices."""

import builtins
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import textwrap
import zipfile
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
from reformer_lab.classroom import release
from reformer_lab.classroom.exercises import names
from reformer_lab.classroom.variants import TOPICS, Variant

pytest.importorskip("nbgrader", reason="needs the extra `grading`")

ALL = release.assignments()
COMMITTED = Path(__file__).parents[2] / "assignments"
STUB = "# YOUR CODE HERE\nraise NotImplementedError()"
FENCES = re.compile(r"(?ms)^( *)### BEGIN SOLUTION\n.*?^ *### END SOLUTION$")
HIDDEN = re.compile(r"(?ms)^### BEGIN HIDDEN TESTS\n.*?^### END HIDDEN TESTS$\n?")
# sizes of A5 that are quick to count
VARIANTS = {"open": Variant(), "drawn": replace(Variant.draw(1), length=4096, n_layers=4, n_look=1, n_hashes=2)}


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """{mode: folder of freshly generated releases}."""
    folders = {mode: tmp_path_factory.mktemp("release") for mode in VARIANTS}
    for mode, folder in folders.items():
        release.generate(folder, VARIANTS[mode])
    return folders


@pytest.fixture(scope="module")
def bundled(tmp_path_factory):
    """The folder of a graded course."""
    folder = tmp_path_factory.mktemp("bundle") / "course"
    release.bundle(folder, VARIANTS["drawn"])
    return folder


def cells(notebook):
    return {cell["id"]: cell for cell in notebook.cells}


def grading(cell):
    return cell.metadata.get("nbgrader", {})


def test_there_are_five_assignments():
    assert [name.partition("_")[0] for name in ALL] == list(TOPICS)
    assert [name.partition("_")[2] for name in ALL] == list(TOPICS.values())


@pytest.mark.parametrize("name", ALL)
def test_the_committed_release_is_a_fresh_one(name, released):
    committed, fresh = (folder / name / f"{name}.ipynb" for folder in (COMMITTED, released["open"]))
    assert committed.read_bytes() == fresh.read_bytes(), "python -m reformer_lab classroom generate"
    assert sorted(p.name for p in committed.parent.iterdir()) == [f"{name}.ipynb"]


@pytest.mark.parametrize("mode", VARIANTS)
@pytest.mark.parametrize("name", ALL)
def test_a_release_differs_from_its_source_inside_the_fences_only(name, mode, released):
    source = release.source(name, VARIANTS[mode])
    made = nbformat.read(released[mode] / name / f"{name}.ipynb", as_version=4)
    assert [c["id"] for c in made.cells] == [c["id"] for c in source.cells]
    for before, after in zip(source.cells, made.cells, strict=True):
        stub = STUB if before.cell_type == "code" else "YOUR ANSWER HERE"
        expected = FENCES.sub(lambda match, stub=stub: textwrap.indent(stub, match[1]), before.source)
        assert after.source == HIDDEN.sub("", expected).rstrip("\n"), before["id"]
        if grading(before).get("solution"):
            assert stub.splitlines()[-1] in after.source, before["id"]
        assert not after.get("outputs"), before["id"]
        assert after.get("execution_count") is None
    text = (released[mode] / name / f"{name}.ipynb").read_text(encoding="utf-8")
    for secret in ("BEGIN SOLUTION", "END SOLUTION", "HIDDEN TESTS", "classroom.grading", "classroom.answers"):
        assert secret not in text


@pytest.mark.parametrize("name", ALL)
def test_a_variant_changes_the_set_up_and_the_definitions_alone(name):
    assignment, variant = name.partition("_")[0], Variant.draw(1)
    usual, drawn = cells(release.source(name)), cells(release.source(name, variant))
    stored = cells(nbformat.read(release.SOURCES / name / f"{name}.ipynb", as_version=4))
    assert {i: c.source for i, c in usual.items()} == {i: c.source for i, c in stored.items()}, "definitions are stale"
    described = {i for i, c in usual.items() if c.metadata.get("reformer_ref")}
    assert described
    changed = {i for i in usual if usual[i].source != drawn[i].source}
    assert "setup" in changed
    assert changed - {"setup"} <= described
    assert f"\nVARIANT = {variant.only(assignment).literal()}" in drawn["setup"].source
    assert "\nVARIANT = Variant()" in usual["setup"].source


@pytest.mark.parametrize("name", ALL)
def test_sources_keep_to_the_form(name):
    notebook = release.source(name)
    assert notebook.nbformat_minor >= 5
    assert notebook.metadata.kernelspec.name == "python3"
    points = 0
    for cell in notebook.cells:
        marks, where = grading(cell), f"{name}, cell {cell['id']}"
        points += marks.get("points", 0)
        if marks:
            assert marks["grade_id"] == cell["id"], where
            assert marks["schema_version"] == 3, where
            assert marks["locked"] != marks["solution"], f"{where}: a student could edit it unnoticed"
        plain = HIDDEN.sub("", FENCES.sub("", cell.source))
        if cell.cell_type == "code":
            assert not cell.outputs, where
            assert len(plain.splitlines()) <= 16, where
        else:
            words = re.sub(r"<[^>]+>|\$\$.*?\$\$|\$[^$]*\$|\|", " ", plain, flags=re.DOTALL).split()
            assert len(words) <= 150, (where, len(words))
    headings = [c["id"] for c in notebook.cells if c.cell_type == "markdown" and re.search(r"(?m)^# ", c.source)]
    assert len(headings) == 1
    assert points == 100
    graded = [c for c in notebook.cells if grading(c).get("grade") and not grading(c)["solution"]]
    for cell in graded:
        call = re.match(r'(check|written)\("(\w+)\.(\w+)", (\w+), VARIANT\)', cell.source)
        assert call, cell["id"]
        assert f"{call[2]}.{call[3]}" in names(call[2])
        if cell["id"].endswith("-hidden"):
            assert f'\ngrade("{call[2]}.{call[3]}", {call[4]}, VARIANT)' in HIDDEN.search(cell.source)[0]
        else:
            assert cell["id"].endswith("-check")
            assert call[1] == "check"
            assert "HIDDEN" not in cell.source


def run(notebook):
    """Run set-up, answers and graded cells one after another; the ids of the graded cells that raise."""
    failed, namespace = [], {"__name__": "student"}
    for cell in notebook.cells:
        marks = grading(cell)
        if cell.cell_type != "code" or not (marks.get("grade") or marks.get("solution") or cell["id"] == "setup"):
            continue
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                builtins.exec(cell.source, namespace)
        except Exception:
            failed.append(cell["id"])
    return failed


@pytest.mark.parametrize("mode", VARIANTS)
@pytest.mark.parametrize("name", ALL)
def test_every_graded_cell_passes_with_the_reference_and_fails_on_the_blank_release(name, mode, released):
    source = release.source(name, VARIANTS[mode])
    assert run(source) == []
    blank = nbformat.read(released[mode] / name / f"{name}.ipynb", as_version=4)
    graded = [c["id"] for c in blank.cells if c.cell_type == "code" and grading(c).get("grade")]
    assert len(graded) >= 8
    assert run(blank) == graded


def test_a_bundle_is_the_same_every_time_and_never_mixed(bundled, tmp_path):
    again = release.bundle(tmp_path / "course", VARIANTS["drawn"])
    assert again.read_bytes() == bundled.with_name("course.zip").read_bytes()
    with pytest.raises(FileExistsError):
        release.bundle(tmp_path / "course", VARIANTS["open"])
    with zipfile.ZipFile(again) as archive:
        files = {n.partition("/")[2] for n in archive.namelist()}
    assert files == {p.relative_to(bundled).as_posix() for p in bundled.rglob("*") if p.is_file()}
    for name in ALL:
        assert {f"{name}/{name}.ipynb", f"{name}/cases/{name.partition('_')[0]}.npz"} <= files


def test_a_bundle_gives_no_answer_away(bundled):
    package = bundled / "course_package"
    shipped = {p.relative_to(package).as_posix() for p in package.rglob("*.py")}
    reference = {p for p in shipped if p.startswith("reformer_ref/") and p.count("/") > 1}
    assert all(p.endswith(("/__init__.py", "/options.py", "/config.py")) for p in reference), reference
    for package_file in (p for p in shipped if re.fullmatch(r"reformer_ref/(\w+/)?__init__\.py", p)):
        assert "import" not in (package / package_file).read_text(encoding="utf-8"), package_file
    classroom = {p.removeprefix("reformer_lab/classroom/") for p in shipped if p.startswith("reformer_lab/classroom/")}
    allowed = {"__init__", "exercise", "cases", "checks", "pictures", "variants"}
    assert {p for p in classroom if not p.startswith("exercises/")} == {f"{name}.py" for name in allowed}
    for path in (p for p in bundled.rglob("*") if p.suffix in (".py", ".ipynb", ".md", ".toml")):
        text = path.read_text(encoding="utf-8")
        assert "BEGIN SOLUTION" not in text
        assert "BEGIN HIDDEN" not in text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("from reformer_ref.hashing import checks", r"students would get reformer_ref\.hashing\.\w+, imported through"),
        (
            "from reformer_ref.hashing import hash_vectors",
            "must import hash_vectors from the module of reformer_ref.hash",
        ),
        (
            "from reformer_ref import lsh_options",
            "must import lsh_options from the module of reformer_ref that defines",
        ),
    ],
)
def test_what_would_give_an_answer_away_is_refused(line, message, monkeypatch):
    real = release.source

    def with_import(name, *args):
        notebook = real(name, *args)
        cells(notebook)["setup"].source += f"\n{line}"
        return notebook

    monkeypatch.setattr(release, "source", with_import)
    with pytest.raises(ValueError, match=message):
        release.course_modules(["A1_hashing"])


STUDENT = """
import importlib.util, io, json, os, sys, traceback
from contextlib import redirect_stdout
bundle, sources = sys.argv[1:]
sys.path.insert(0, os.path.join(bundle, "course_package"))
import reformer_ref
assert reformer_ref.__file__.startswith(bundle), reformer_ref.__file__
assert importlib.util.find_spec("reformer_lab.classroom.answers") is None
for name, cells in json.load(open(sources, encoding="utf-8")).items():
    os.chdir(os.path.join(bundle, name))
    namespace, out = {"__name__": "student"}, io.StringIO()
    for cell, code in cells:
        try:
            with redirect_stdout(out):
                exec(code, namespace)
        except Exception:
            print(name, cell)
            traceback.print_exc(file=sys.stdout)
    print(name, out.getvalue().count("✓"), "checks")
"""


def test_the_course_package_suffices_for_every_visible_check_and_picture(bundled, tmp_path):
    """The reference answers, run cell by cell where the full package cannot be imported, from recorded cases alone."""
    sources = {
        name: [
            (c["id"], HIDDEN.sub("", c.source))
            for c in release.source(name, VARIANTS["drawn"]).cells
            if c.cell_type == "code"
        ]
        for name in ALL
    }
    path = tmp_path / "sources.json"
    path.write_text(json.dumps(sources), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-I", "-c", STUDENT, str(bundled), str(path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"},
    )
    expected = [f"{name} {sum(i.endswith('-check') for i, _ in sources[name])} checks" for name in ALL]
    assert done.stdout.splitlines() == expected, done.stdout + done.stderr
