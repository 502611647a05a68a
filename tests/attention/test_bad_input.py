"""The public functions of dense attention refuse bad input with an error that names the argument."""

import numpy as np
import pytest
import torch
from reformer_ref.attention.api import regular_attention, shared_qk_attention

X = torch.ones(2, 5, 3)
V = torch.ones(2, 5, 4)
GOOD = {"q": X, "k": X, "qk": X, "v": V, "padding_mask": torch.ones(2, 5, dtype=torch.bool)}
FUNCTIONS = {regular_attention: ("q", "k", "v", "padding_mask"), shared_qk_attention: ("qk", "v", "padding_mask")}
BAD_FLOATS = [  # for every argument that holds numbers
    *(
        (GOOD["q"].to(dtype), TypeError, "must be dense, of dtype")
        for dtype in (torch.int64, torch.bool, torch.complex64)
    ),
    *((torch.full((2, 5, 3), bad), ValueError, "must be finite") for bad in (torch.nan, torch.inf, -torch.inf)),
    *((torch.ones(shape), ValueError, "must have shape") for shape in ((), (3,), (0, 5, 3), (2, 0, 3), (2, 5, 0))),
    *((bad, TypeError, "must be a torch.Tensor") for bad in (np.ones((2, 5, 3)), [[1.0]], None, "q")),
]
BAD_MASKS = [
    *(
        (torch.ones(2, 5, dtype=dtype), TypeError, "must be boolean")
        for dtype in (torch.int64, torch.uint8, torch.float32)
    ),
    *((torch.ones(s, dtype=torch.bool), ValueError, "must broadcast to") for s in ((3, 5), (2, 4), (0,), (1, 1, 5))),
    (torch.ones(2, 5, dtype=torch.bool, device="meta"), ValueError, "must be on cpu, got meta"),
    ([True] * 5, TypeError, "must be a torch.Tensor"),
]
BAD_OPTIONS = [
    *(("causal", bad, TypeError, "must be True or False") for bad in (1, 0, None, "yes")),
    *(("block_size", bad, ValueError, "must be at least 1") for bad in (0, -1)),
    *(("block_size", bad, TypeError, "must be an integer") for bad in (2.0, "3", True)),
    *(("scale", bad, TypeError, "must be a number") for bad in ("1/d", True, np.ones(2), 1j)),
    *(("scale", bad, ValueError, "must be finite") for bad in (np.nan, np.inf)),
    ("scale", 1e6, ValueError, "must be less than"),
]


def refused(function, error, message, **changes):
    good = {name: GOOD[name] for name in FUNCTIONS[function]}
    function(**good)
    with pytest.raises(error, match=f"^{message}"):
        function(**(good | changes))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_bad_arguments(function):
    for name in FUNCTIONS[function][:-1]:
        for value, error, message in BAD_FLOATS:
            refused(function, error, f"{name} {message}", **{name: value})
    for value, error, message in BAD_MASKS:
        refused(function, error, f"padding_mask {message}", padding_mask=value)
    for name, value, error, message in BAD_OPTIONS:
        refused(function, error, f"{name} {message}", **{name: value})
    function(**{name: GOOD[name] for name in FUNCTIONS[function]}, scale="rsqrt_d")


def test_what_does_not_fit_together():
    """Other leading dimensions are refused, not broadcast."""
    for shape in ((5, 3), (1, 5, 3), (1, 2, 5, 3), (3, 5, 3)):
        for name in "kv":
            refused(regular_attention, ValueError, f"{name} must have shape", **{name: torch.ones(shape)})
        refused(shared_qk_attention, ValueError, "v must have shape", v=torch.ones(shape))
    refused(regular_attention, ValueError, "v must have shape", v=torch.ones(2, 4, 3))
    refused(regular_attention, ValueError, "k must have shape", k=torch.ones(2, 5, 4))
    refused(regular_attention, TypeError, r"k must have the dtype of q \(torch.float32\)", k=X.double())
    refused(shared_qk_attention, TypeError, r"v must have the dtype of qk \(torch.float32\)", v=V.bfloat16())
    refused(regular_attention, ValueError, r"v must be on the device of q \(cpu\), got meta", v=V.to("meta"))
    message = "causal attention needs as many queries as keys, got 4 and 5"
    refused(regular_attention, ValueError, message, q=torch.ones(2, 4, 3), causal=True)
    for bad, error in ((-1e-6, ValueError), (np.nan, ValueError), ("small", TypeError), (None, TypeError)):
        refused(shared_qk_attention, error, "norm_eps must be", norm_eps=bad)


def test_meta_tensors_give_the_shape():
    mask = GOOD["padding_mask"].to("meta")
    assert shared_qk_attention(X.to("meta"), V.to("meta"), padding_mask=mask, block_size=2).shape == V.shape
