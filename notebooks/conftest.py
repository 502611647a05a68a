"""Which notebooks can be tested on this machine."""

from importlib.util import find_spec

HAS_TRITON = find_spec("triton") is not None
collect_ignore = [] if HAS_TRITON else ["15_kernel.ipynb"]


def pytest_report_header():
    """Say which notebook is left out, and why."""
    return (
        None if HAS_TRITON else "Notebook 15 is not tested here: it needs triton, which is published for Linux alone."
    )
