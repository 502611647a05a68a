"""Checks speak in sentences, whatever they are given."""

import importlib

import numpy as np
import pytest

COMPONENTS = (
    "attention", "chunking", "feed_forward", "hashing", "local_attention", "lsh_attention", "model", "positions",
)  # fmt: skip
CHECKS = [
    (component, name)
    for component in COMPONENTS
    for name in dir(importlib.import_module(f"reformer_ref.{component}.checks"))
    if name.startswith("check_") and name != "check_default_n_buckets"
]


@pytest.mark.parametrize(("component", "name"), CHECKS, ids=lambda value: value)
@pytest.mark.parametrize("answer", [None, "text", np.zeros((1, 2, 3, 4, 5, 6, 7))], ids=["none", "text", "seven axes"])
def test_nonsense_is_refused_in_a_sentence(component, name, answer):
    check = getattr(importlib.import_module(f"reformer_ref.{component}.checks"), name)
    with pytest.raises(AssertionError, match=r"\w+ \w+"):
        check(lambda *args, **kwargs: answer)
