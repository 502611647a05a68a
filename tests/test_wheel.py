"""The wheel, installed in a clean environment and used from another folder.

Dependencies are not downloaded again: the environment sees, by links, exactly those installed distributions that the
wheel's metadata asks for, and nothing else.
"""

import os
import re
import shutil
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


def run(*command, cwd, **environment):
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(command, cwd=cwd, env=clean | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from the files that git tracks, so that neither a leftover nor an ignored file gets in."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in filter(None, run("git", "ls-files", "-z", cwd=ROOT).split("\0")):
        if name.startswith(("reformer_", "pyproject", "README", "LICENSE")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    run(sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--quiet", "-w", str(out),
        cwd=source)  # fmt: skip
    (built,) = out.glob("*.whl")
    return built


def asked_for(requirements, extra):
    """Those requirements (text) that hold here and for the extra."""
    parsed = map(Requirement, requirements or [])
    return [r for r in parsed if r.marker is None or r.marker.evaluate({"extra": extra})]


def closure(requirements):
    """The installed distributions that the requirements need."""
    distributions, queue = {}, list(requirements)
    while queue:
        requirement = queue.pop()
        if requirement.name in distributions and not requirement.extras:
            continue
        distribution = distributions[requirement.name] = metadata.distribution(requirement.name)
        assert requirement.specifier.contains(distribution.version.split("+")[0], prereleases=True), requirement
        for extra in ("", *requirement.extras):
            queue += asked_for(distribution.requires, extra)
    return distributions.values()


def environment(folder, wheel, extra):
    """A virtual environment with the wheel and, by links, what its metadata asks for: without or with an extra."""
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    run(sys.executable, "-m", "pip", f"--python={folder}/bin/python", "install", "--no-deps", "--quiet", str(wheel),
        cwd=folder)  # fmt: skip
    (installed,) = metadata.distributions(path=[str(site)])
    for distribution in closure(asked_for(installed.requires, extra)):
        for package in {file.parts[0] for file in distribution.files if file.parts[0] not in ("..", "__pycache__")}:
            if not (site / package).exists():
                (site / package).symlink_to(distribution.locate_file(package))
    return folder / "bin"


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    return tmp_path_factory.mktemp("elsewhere")


def test_core_alone(wheel, tmp_path, elsewhere):
    """Import, every check, and the first example of the README; of the lab's packages there is none."""
    python = str(environment(tmp_path / "venv", wheel, extra="") / "python")
    shutil.copyfile(ROOT / "tests/all_checks.py", elsewhere / "all_checks.py")
    assert "checks passed" in run(python, "all_checks.py", cwd=elsewhere)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (first, *_) = re.findall(r"```python\n(.*?)```", readme, re.S)
    report = """
import importlib.util, reformer_ref
print(reformer_ref.__file__)
print([p for p in ("matplotlib", "IPython", "tqdm", "tyro") if importlib.util.find_spec(p) is not None])
"""
    file, others = run(python, "-c", first + report, cwd=elsewhere).splitlines()[-2:]
    assert str(tmp_path) in file
    assert others == "[]"


def test_the_whole_lab(wheel, tmp_path, elsewhere):
    """The command explains itself, and reads the data that travel with the package."""
    command = str(environment(tmp_path / "venv", wheel, extra="lab") / "reformer-ref")
    assert "usage" in run(command, "--help", cwd=elsewhere).lower()
    assert "--length" in run(command, "memory", "--help", cwd=elsewhere)
    assert "table2" in run(command, "reproduce", "--list", cwd=elsewhere)
    assert list(elsewhere.rglob("*.json")) == []
