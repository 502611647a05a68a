"""Bad input: a ValueError or TypeError that names the argument."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reformer_ref.reversible import ReversibleBlock, ReversibleStack, reversible_stack, reversible_stack_inverse
from torch import nn

BLOCK = (nn.Tanh(), nn.Tanh())
dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.complex64])
shapes = st.lists(st.integers(0, 3), max_size=3)


@settings(max_examples=50)
@given(shapes, shapes, dtypes, dtypes, st.sampled_from(["cpu", "meta"]), st.booleans())
def test_streams(shape1, shape2, dtype1, dtype2, device, grad):
    x1, x2 = torch.ones(shape1, dtype=dtype1), torch.ones(shape2, dtype=dtype2, device=device)
    if grad and x1.is_floating_point():
        x1.requires_grad_()
    for call in (reversible_stack, reversible_stack_inverse):
        names = "x1 and x2" if call is reversible_stack else "y1 and y2"
        if not (x1.is_floating_point() and x2.is_floating_point()):
            with pytest.raises(TypeError, match=f"{names[0]}[12] must have a floating-point dtype"):
                call(x1, x2, [BLOCK])
        elif (shape1, dtype1, x1.device) != (shape2, dtype2, x2.device):
            with pytest.raises(ValueError, match=f"{names} must have the same (shape|dtype|device)"):
                call(x1, x2, [BLOCK])
        else:
            y = call(x1, x2, [BLOCK])
            assert {(t.shape, t.dtype) for t in y} == {(x1.shape, x1.dtype)}
            assert not x1.requires_grad or y[0].requires_grad


@pytest.mark.parametrize("bad", [None, [[1.0]], 1.0])
def test_streams_that_are_no_tensors(bad):
    with pytest.raises(TypeError, match="x2 must be a tensor"):
        reversible_stack(torch.ones(2, 3), bad, [BLOCK])


@pytest.mark.parametrize(
    ("blocks", "error", "message"),
    [
        ([], ValueError, "blocks must hold at least one block"),
        ([()], ValueError, "at least one layer"),
        ([nn.ModuleList()], ValueError, "at least one layer"),
        (None, TypeError, "blocks must be a sequence"),
        (nn.Tanh(), TypeError, "blocks must be a sequence"),
        (ReversibleBlock(*BLOCK), TypeError, "blocks must be a sequence"),
        (BLOCK, TypeError, "blocks must hold ReversibleBlock"),
        ([(nn.Tanh(), torch.tanh)], TypeError, "must be an nn.Module"),
        ([(nn.Tanh(), None)], TypeError, "must be an nn.Module"),
    ],
)
def test_blocks(blocks, error, message):
    x = torch.ones(2, 3)
    for call in (
        lambda: reversible_stack(x, x, blocks),
        lambda: reversible_stack_inverse(x, x, blocks),
        lambda: ReversibleStack(blocks),
    ):
        with pytest.raises(error, match=message):
            call()


def test_modules():
    with pytest.raises(ValueError, match="at least one layer"):
        ReversibleBlock()
    with pytest.raises(TypeError, match="must be an nn"):
        ReversibleBlock(torch.tanh, nn.Tanh())
    with pytest.raises(TypeError, match="reversible must be True or False"):
        ReversibleStack([BLOCK], reversible=1)


@pytest.mark.parametrize("reversible", [True, False])
@pytest.mark.parametrize("bad", [nn.Linear(3, 1), nn.Linear(3, 4), nn.LSTM(3, 3)])
def test_a_layer_that_returns_something_else(bad, reversible):
    x = torch.ones(2, 3, requires_grad=True)  # one column would broadcast silently
    with pytest.raises(ValueError, match=f"{type(bad).__name__} must return a tensor of its input's shape"):
        reversible_stack(x, x, [(nn.Tanh(), bad)], reversible=reversible)


def test_context():
    x = torch.ones(2, 3)
    with pytest.raises(TypeError, match="context must be tensors or None"):
        reversible_stack(x, x, [BLOCK], [x])
