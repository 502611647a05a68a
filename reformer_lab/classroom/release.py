"""Releases: what students get, made from the sources by nbgrader's own machinery.

Open mode: the notebooks as they are, without solutions and hidden tests; students install the package. Graded mode: the
same in a drawn variant, as a folder and a zip with the recorded cases and a copy of the package that holds what the
notebooks import, and none of the files that would give the answers away.
"""

import ast
import importlib.util
import re
import shutil
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path

import reformer_ref

from reformer_lab.classroom import cases, material
from reformer_lab.classroom.variants import TOPICS, Variant

SOURCES = material.FOLDER / "source"
RELEASES = Path("assignments")  # of the folder one works in
PACKAGES = ("reformer_ref", "reformer_lab")

# Modules that students never get: all of a component but its options, and the instructor's half of the classroom.
STUDENTS = "exercise|exercises|cases|checks|pictures|variants"
WITHHELD = re.compile(rf"reformer_ref\.\w+\.(?!(options|config)$).*|reformer_lab\.classroom\.(?!({STUDENTS})(\.|$)).*")
COURSE_PACKAGE = "The part of reformer_ref that the assignments need."
START = """# How to start

Run all commands in the folder of this file. On Windows write `course\\Scripts\\` for `course/bin/`.

1. Python 3.11 or newer; once: `python -m venv course`, then `course/bin/pip install ./course_package`.
2. `course/bin/jupyter lab` (Windows: `course\\Scripts\\jupyter lab`), and open a notebook of a folder below. Leave the
   folder `cases` beside it.
3. Hand in the notebook under the name it has.
"""
PYPROJECT = """[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "reformer_ref"
version = "{}"
license = "Apache-2.0"
requires-python = "{}"
dependencies = {!r}

[tool.setuptools.packages.find]
include = ["reformer_ref*", "reformer_lab*"]
"""


def assignments(sources=SOURCES):
    """The names of all assignments, such as "A1_hashing", in order."""
    names = sorted(path.stem for path in Path(sources).glob("*/*.ipynb") if path.stem == path.parent.name)
    if not names:
        raise FileNotFoundError(f"no assignments in {sources}")
    return names


def source(name, variant=None, sources=SOURCES):
    """The source notebook of an assignment in a variant, solutions and hidden tests included.

    What a variant changes: the line ``VARIANT = …`` of the set-up cell, and the definitions.
    """
    import nbformat

    notebook = nbformat.read(Path(sources) / name / f"{name}.ipynb", as_version=4)
    variant = (variant or Variant()).only(name.partition("_")[0])
    for cell in notebook.cells:
        if cell["id"] == "setup" and not variant.open:
            literal = f"VARIANT = {variant.literal()}"
            cell.source, count = re.subn(r"(?m)^VARIANT = Variant\(\).*$", literal, cell.source)
            if count != 1:
                raise ValueError(f"{name}: the set-up cell must have one line `VARIANT = Variant()`, found {count}")
        key = cell.metadata.get("reformer_ref", {}).get("describe")
        if key:
            cell.source = variant.describe(key)
    return notebook


def write_sources(folder, variant=None, names=None):
    """Write the sources in a variant as nbgrader wants them: ``folder``/A1_hashing/A1_hashing.ipynb, …"""
    import nbformat

    for name in names or assignments():
        (Path(folder) / name).mkdir(parents=True, exist_ok=True)
        nbformat.write(source(name, variant), Path(folder) / name / f"{name}.ipynb")


def generate(folder=RELEASES, variant=None, names=None):
    """Write the release notebooks of a variant to ``folder``/A1_hashing/A1_hashing.ipynb, …, the same bytes every time.

    nbgrader's converter runs in a temporary course, without a database; nothing else is left behind.
    """
    from nbgrader.converters import GenerateAssignment
    from nbgrader.coursedir import CourseDirectory
    from traitlets.config import Config

    names = names or assignments()
    with tempfile.TemporaryDirectory() as root:
        write_sources(Path(root) / "source", variant, names)
        config = Config()
        config.CourseDirectory.root = root
        config.SaveCells.enabled = False
        config.GenerateAssignment.no_database = True
        for name in names:
            config.CourseDirectory.assignment_id = name
            GenerateAssignment(coursedir=CourseDirectory(config=config), config=config).start()
            made = Path(root) / "release" / name / f"{name}.ipynb"
            (Path(folder) / name).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(made, Path(folder) / name / f"{name}.ipynb")


def bundle(folder, variant, names=None):
    """Write what students of a graded course get to ``folder`` and to ``folder``.zip; returns the path of the zip.

    ``folder`` must not exist yet, so that nothing of another variant stays in it.
    """
    folder = Path(folder)
    names = names or assignments()
    folder.mkdir(parents=True)
    generate(folder, variant, names)
    for name in names:
        assignment = name.partition("_")[0]
        cases.record(assignment, variant.only(assignment), folder / name / cases.FOLDER)
    write_course_package(folder / "course_package", names)
    (folder / "START.md").write_text(START, encoding="utf-8")
    packed = folder.with_name(f"{folder.name}.zip")
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            entry = zipfile.ZipInfo(path.relative_to(folder.parent).as_posix())  # dated 1980: the same bytes every time
            entry.external_attr, entry.compress_type = 0o644 << 16, zipfile.ZIP_DEFLATED
            archive.writestr(entry, path.read_bytes())
    return packed


def write_course_package(folder, names=None):
    """Write the part of the packages that the release notebooks import to ``folder``, ready for ``pip install``.

    ``__init__.py`` files of reformer_ref are written anew, without what the originals import.
    """
    modules, libraries = course_modules(names)
    for module in sorted(modules):
        path = _path_of(module)
        target = Path(folder) / path.relative_to(_folder_of(module.partition(".")[0]).parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        if not _is_rewritten(module):
            shutil.copyfile(path, target)
        elif module == "reformer_ref":
            target.write_text(
                f'"""{COURSE_PACKAGE}"""\n\n__version__ = "{reformer_ref.__version__}"\n', encoding="utf-8"
            )
        else:
            target.write_text(f'"""{COURSE_PACKAGE}"""\n', encoding="utf-8")
    project = metadata.distribution("reformer_ref")
    wanted = libraries | {"jupyterlab", "matplotlib"}
    needs = sorted({n.partition(";")[0].strip() for n in project.requires if re.match(r"[\w.-]+", n)[0] in wanted})
    text = PYPROJECT.format(reformer_ref.__version__, project.metadata["Requires-Python"], needs)
    (Path(folder) / "pyproject.toml").write_text(text, encoding="utf-8")
    (Path(folder) / "LICENSE").write_text(_license(), encoding="utf-8")


def course_modules(names=None):
    """(modules of the packages, other libraries) that the notebooks import, directly and through each other.

    ValueError with the chain of imports if that leads to a file that gives an answer away. Imports inside of functions
    that lead to such a file are passed over: those functions are for instructors, or look first whether it is there.
    """
    start = {*PACKAGES, "reformer_lab.classroom.pictures"}
    for name in names or assignments():
        start.add(f"reformer_lab.classroom.exercises.{TOPICS[name.partition('_')[0]]}")
        for cell in source(name).cells:
            if cell.cell_type == "code":
                start |= {module for module, _ in _imports(_without_fences(cell.source), "a notebook")}
    libraries = {module.partition(".")[0] for module in start if not _path_of(module)}
    chains = {module: module for module in start if _path_of(module)}
    waiting = list(chains)
    while waiting:
        module = waiting.pop()
        if WITHHELD.fullmatch(module):
            raise ValueError(f"students would get {module}, imported through {chains[module]}")
        packages = {(".".join(module.split(".")[:n]), True) for n in range(1, module.count(".") + 1)}
        for other, always in _imports_of(module) | packages:
            if _path_of(other) is None:
                libraries.add(other.partition(".")[0])
            elif other not in chains and (always or not _leads_to_withheld(other)):
                chains[other] = f"{chains[module]} → {other}"
                waiting.append(other)
    return set(chains), libraries


def _leads_to_withheld(module, visited=frozenset()):
    """Whether a module, or what it imports at once, is withheld from students."""
    if WITHHELD.fullmatch(module):
        return True
    if _path_of(module) is None or module in visited:
        return False
    return any(_leads_to_withheld(other, visited | {module}) for other, always in _imports_of(module) if always)


def _is_rewritten(module):
    """Whether students get an ``__init__.py`` without imports in place of this module: for packages of reformer_ref."""
    return module.partition(".")[0] == "reformer_ref" and _path_of(module).name == "__init__.py"


def _without_fences(text):
    """The code of a cell without its hidden tests; instructors alone have what these import."""
    return re.sub(r"(?ms)^### BEGIN HIDDEN TESTS.*?^### END HIDDEN TESTS", "", text)


def _path_of(module):
    """The file of a module of these packages, or None."""
    package, *inner = module.split(".")
    if package not in PACKAGES:
        return None
    path = _folder_of(package).joinpath(*inner)
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


def _license():
    """The text of the licence; what a build leaves in a checkout describes the package, too, but without it."""
    installed = metadata.distributions(name="reformer_ref")
    return next(filter(None, (distribution.read_text("licenses/LICENSE") for distribution in installed)))


def _folder_of(package):
    return Path(importlib.util.find_spec(package).origin).parent


def _imports_of(module):
    """``_imports`` of a module's file as students get it."""
    return set() if _is_rewritten(module) else _imports(_path_of(module).read_text(encoding="utf-8"), module)


def _imports(code, importer):
    """{(module, whether it is imported with the file itself, not inside of a function)}.

    ValueError for a name from a package of reformer_ref, whose ``__init__.py`` students do not get.
    """
    tree = ast.parse(code)
    imported = set()
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {(alias.name, id(node) not in inside) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:  # `from a import b`: b may be a module of its own
                inner = f"{node.module}.{alias.name}"
                module = inner if _path_of(inner) else node.module
                at_once = id(node) not in inside
                if at_once and _path_of(module) and _is_rewritten(module) and alias.name != "__version__":
                    raise ValueError(f"{importer} must import {alias.name} from the module of {module} that defines it")
                imported.add((module, at_once))
    return imported
