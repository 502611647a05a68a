"""Settings shared by all tests. Nothing here seeds or restores random numbers: a test brings its
own generator.
"""

import os
from importlib.util import find_spec

from hypothesis import settings

if "REFORMER_CHECK_TYPES" in os.environ:  # annotations are checked at every call; before anything imports the package
    from jaxtyping import install_import_hook

    # an int is a float, as for type checkers
    install_import_hook("reformer_ref", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

from tests.fuzz.conftest import pytest_terminal_summary  # noqa: F401 the counts of fuzz cases, at the end of all tests

settings.register_profile("reformer", deadline=None, print_blob=True, derandomize="CI" in os.environ)
settings.load_profile("reformer")

if "PYTEST_XDIST_WORKER" in os.environ:  # several workers share the cores: one thread each, children included
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)

# Without the extra `peers`, or `kernels`, its tests are not collected at all: `pytest -m peers` then
# fails, and never passes empty.
collect_ignore = [] if find_spec("transformers") and find_spec("reformer_pytorch") else ["peers"]
collect_ignore += [] if find_spec("triton") else ["kernels"]
