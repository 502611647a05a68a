"""Settings shared by all tests. Nothing here seeds or restores random numbers: a test brings its
own generator.
"""

import os
from importlib.util import find_spec

from hypothesis import settings
from tests.fuzz.conftest import pytest_terminal_summary  # noqa: F401 the counts of fuzz cases, at the end of all tests

settings.register_profile("house", deadline=None, print_blob=True, derandomize="CI" in os.environ)
settings.load_profile("house")

if "PYTEST_XDIST_WORKER" in os.environ:  # several workers share the cores: one thread each, children included
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)

# Without the extra `peers` its tests are not collected at all: `pytest -m peers` then fails, and
# never passes empty.
collect_ignore = [] if find_spec("transformers") and find_spec("reformer_pytorch") else ["peers"]
