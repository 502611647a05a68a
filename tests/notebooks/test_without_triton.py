"""Where triton is not installed, notebook 15 says so in one sentence, and its test is left out."""

import importlib.util
import runpy
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


@pytest.fixture
def without_triton(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "triton" else find_spec(name))
    monkeypatch.setenv("TRITON_INTERPRET", "0")


def test_the_notebook_says_so(without_triton):
    notebook = nbformat.read(NOTEBOOKS / "15_kernel.ipynb", as_version=4)
    first = next(cell.source for cell in notebook.cells if cell.cell_type == "code")
    with pytest.raises(ImportError, match=r"^This notebook needs triton, which exists for Linux alone; read it"):
        exec(first, {})


def test_its_outputs_are_not_compared(without_triton):
    conftest = runpy.run_path(str(NOTEBOOKS / "conftest.py"))
    assert conftest["collect_ignore"] == ["15_kernel.ipynb"]
    assert (NOTEBOOKS / "15_kernel.ipynb").is_file()
    assert "Notebook 15 is not tested here: it needs triton" in conftest["pytest_report_header"]()


def test_where_triton_is_installed_they_are():
    pytest.importorskip("triton")
    assert runpy.run_path(str(NOTEBOOKS / "conftest.py"))["collect_ignore"] == []
