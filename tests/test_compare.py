"""Checks speak in sentences, whatever they are given."""

import importlib

import numpy as np
import pytest

ROOMS = ["attention", "chunking", "feed_forward", "hashing", "local_attention", "lsh_attention", "model", "positions"]
CHECKS = [(room, name) for room in ROOMS for name in dir(importlib.import_module(f"reformer_ref.{room}.checks"))
          if name.startswith("check_") and name != "check_default_n_buckets"]  # fmt: skip


@pytest.mark.parametrize(("room", "name"), CHECKS, ids=lambda value: value)
@pytest.mark.parametrize("answer", [None, "text", np.zeros((1, 2, 3, 4, 5, 6, 7))], ids=["none", "text", "seven axes"])
def test_nonsense_is_refused_in_a_sentence(room, name, answer):
    check = getattr(importlib.import_module(f"reformer_ref.{room}.checks"), name)
    with pytest.raises(AssertionError, match=r"\w+ \w+"):
        check(lambda *args, **kwargs: answer)
