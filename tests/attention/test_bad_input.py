"""Dense attention refuses bad input with a ValueError or TypeError that names the argument, in both
versions.
"""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reformer_ref.attention import pytorch, spec
from reformer_ref.testing import expect_close

quick = settings(max_examples=50, deadline=None)

GOOD = {
    "q": np.ones((2, 5, 3)),
    "k": np.ones((2, 5, 3)),
    "qk": np.ones((2, 5, 3)),
    "x": np.ones((2, 5, 3)),
    "v": np.ones((2, 5, 4)),
    "counts": np.ones((2, 5, 5), dtype=int),
    "padding_mask": np.ones((2, 5), dtype=bool),
}
ARGUMENTS = {
    "normalize_keys": ("x",),
    "attend": ("q", "k", "v", "counts"),
    "regular_attention": ("q", "k", "v", "padding_mask"),
    "shared_qk_attention": ("qk", "v", "padding_mask"),
    "self_as_last_resort": ("counts",),
}


def calls(name, changes, **options):
    """The function of both versions, called with good arguments but for ``changes``."""
    arguments = {a: GOOD[a] for a in ARGUMENTS[name]} | changes
    yield lambda: getattr(spec, name)(**arguments, **options)
    tensors = {a: torch.from_numpy(np.array(x)) for a, x in arguments.items()}
    yield lambda: getattr(pytorch, name)(**tensors, **options)


def refused(name, error, match, changes, **options):
    for call in calls(name, changes, **options):
        with pytest.raises(error, match=f"^{match}"):
            call()


FLOATS = [(name, a) for name, arguments in ARGUMENTS.items() for a in arguments if GOOD[a].dtype == float]
TABLES = [(name, a) for name, arguments in ARGUMENTS.items() for a in arguments if GOOD[a].dtype != float]


@pytest.mark.parametrize(("name", "argument"), FLOATS)
def test_bad_arrays_of_numbers(name, argument):
    good = GOOD[argument]
    for dtype in ("int64", "bool", "complex128", "uint8"):
        refused(name, TypeError, f"{argument} must", {argument: good.astype(dtype)})
    for bad in (np.nan, np.inf, -np.inf):
        x = good.copy()
        x[1, 2, 0] = bad
        refused(name, ValueError, f"{argument} must be finite", {argument: x})
    for shape in ((), (3,), (0, 5, 3), (2, 0, 3), (2, 5, 0)):
        refused(name, ValueError, f"{argument} must have shape", {argument: np.ones(shape)})


@pytest.mark.parametrize("shape", [(5, 3), (1, 5, 3), (1, 2, 5, 3), (3, 5, 3)])
def test_rows_that_do_not_fit_together(shape):
    """Other leading dimensions are refused, not broadcast."""
    x = np.ones(shape)
    for name in ("attend", "regular_attention"):
        refused(name, ValueError, "k must have shape", {"k": x})
        refused(name, ValueError, "v must have shape", {"v": x})
    refused("shared_qk_attention", ValueError, "v must have shape", {"v": x})
    refused("regular_attention", ValueError, "v must have shape", {"v": np.ones((2, 4, 3))})
    refused("regular_attention", ValueError, "k must have shape", {"k": np.ones((2, 5, 4))})


@pytest.mark.parametrize(("name", "argument"), TABLES)
def test_bad_tables(name, argument):
    dtypes, shapes = {
        ("attend", "counts"): (["float64", "complex128"], [(3, 5, 5), (2, 5, 4), (1, 2, 5, 5)]),
        ("self_as_last_resort", "counts"): (["float64", "complex128"], [(2, 5, 4), (5,), (0, 5, 5), (2, 0, 0)]),
    }.get((name, argument), (["float64", "int64", "uint8"], [(3, 5), (2, 4), (2, 6), (0,), (1, 1, 5)]))
    for dtype in dtypes:
        refused(name, TypeError, f"{argument} must be boolean", {argument: GOOD[argument].astype(dtype)})
    for shape in shapes:
        refused(name, ValueError, f"{argument} must", {argument: np.ones(shape, dtype=GOOD[argument].dtype)})
    if argument == "counts":
        negative = GOOD["counts"] - 3 * (np.arange(5) == 2)
        refused(name, ValueError, "counts must not be negative, got -2", {"counts": negative})


@pytest.mark.parametrize("name", ["regular_attention", "shared_qk_attention"])
def test_bad_options(name):
    for bad in (1, 0, None, "yes"):
        refused(name, TypeError, "causal must be True or False", {}, causal=bad)
    for bad in (0, -1):
        refused(name, ValueError, "strip must be at least 1", {}, strip=bad)
    for bad in (2.0, "3", True):
        refused(name, TypeError, "strip must be an integer", {}, strip=bad)
    for bad in ("1/d", True, np.ones(2), 1j):
        refused(name, TypeError, "scale must be a number", {}, scale=bad)
    for bad in (np.nan, np.inf):
        refused(name, ValueError, "scale must be finite", {}, scale=bad)
    for call in calls(name, {}, scale="rsqrt_d"):
        call()


def test_other_bad_options():
    for bad, error in ((-1e-6, ValueError), (np.nan, ValueError), ("small", TypeError), (None, TypeError)):
        refused("normalize_keys", error, "norm_eps must be", {}, norm_eps=bad)
        refused("shared_qk_attention", error, "norm_eps must be", {}, norm_eps=bad)
    refused(
        "regular_attention",
        ValueError,
        "causal attention needs as many queries as keys, got 4 and 5",
        {"q": np.ones((2, 4, 3))},
        causal=True,
    )
    refused("attend", TypeError, "scale must be a number", {}, scale=None)
    for version, convert in ((spec, np.asarray), (pytorch, torch.from_numpy)):
        with pytest.raises(ValueError, match="as many queries as keys, got 2 and 3"):
            version.visible_pairs(2, 3, True)
        with pytest.raises(ValueError, match="key_length must be at least 1"):
            version.visible_pairs(2, 0, False)
        with pytest.raises(TypeError, match="query_length must be an integer"):
            version.visible_pairs(2.0, 2, False)
        with pytest.raises(ValueError, match=r"padding_mask must broadcast to \(2, 5\)"):
            version.visible_pairs(5, 5, False, convert(np.ones((2, 4), dtype=bool)))
        with pytest.raises(TypeError, match="padding_mask must be boolean"):
            version.visible_pairs(5, 5, False, convert(np.ones((2, 5))))


def test_bad_cotangents():
    x, v = GOOD["x"], GOOD["v"]
    for shape, call in (
        (x.shape, lambda d_out: spec.normalize_keys_vjp(x, d_out)),
        (v.shape, lambda d_out: spec.attend_vjp(x, x, v, GOOD["counts"], d_out)),
        (v.shape, lambda d_out: spec.regular_attention_vjp(x, x, v, d_out)),
        (v.shape, lambda d_out: spec.shared_qk_attention_vjp(x, v, d_out)),
    ):
        call(np.ones(shape))
        for wrong in ((2, 5, 7), (5, 4), (1, 1, 1)):
            with pytest.raises(ValueError, match="d_out must have shape"):
                call(np.ones(wrong))
        with pytest.raises(TypeError, match="d_out must hold floating-point numbers"):
            call(np.ones(shape, dtype=int))
        with pytest.raises(ValueError, match="d_out must be finite"):
            call(np.full(shape, np.nan))


def test_tensors_of_other_kinds_and_places():
    q, v, mask = torch.ones(2, 5, 3), torch.ones(2, 5, 4), torch.ones(2, 5, dtype=torch.bool)
    for bad in (np.ones((2, 5, 3)), [[1.0]], None, "q"):
        with pytest.raises(TypeError, match=r"q must be a torch.Tensor"):
            pytorch.regular_attention(bad, q, v)
        with pytest.raises(TypeError, match=r"x must be a torch.Tensor"):
            pytorch.normalize_keys(bad)
    with pytest.raises(TypeError, match=r"counts must be a torch.Tensor"):
        pytorch.self_as_last_resort(np.ones((2, 2)))
    with pytest.raises(TypeError, match=r"padding_mask must be a torch.Tensor"):
        pytorch.shared_qk_attention(q, v, padding_mask=[True] * 5)
    with pytest.raises(TypeError, match=r"padding_mask must be a torch.Tensor"):
        pytorch.visible_pairs(5, 5, False, np.ones((2, 5), dtype=bool))
    for dtype in (torch.float64, torch.bfloat16):
        with pytest.raises(TypeError, match=r"k must have the dtype of q \(torch.float32\)"):
            pytorch.regular_attention(q, q.to(dtype), v)
        with pytest.raises(TypeError, match=r"v must have the dtype of qk \(torch.float32\)"):
            pytorch.shared_qk_attention(q, v.to(dtype))
    with pytest.raises(ValueError, match=r"v must be on the device of q \(cpu\), got meta"):
        pytorch.regular_attention(q, q, v.to("meta"))
    with pytest.raises(ValueError, match=r"padding_mask must be on cpu, got meta"):
        pytorch.shared_qk_attention(q, v, padding_mask=mask.to("meta"))
    with pytest.raises(ValueError, match=r"counts must be on the device of q \(cpu\), got meta"):
        pytorch.attend(q, q, v, torch.ones(5, 5, dtype=torch.bool, device="meta"))
    out = pytorch.shared_qk_attention(q.to("meta"), v.to("meta"), padding_mask=mask.to("meta"), strip=2)
    assert out.shape == v.shape


def test_arrays_of_no_numbers():
    for bad in (None, "text", [["a"]], object()):
        with pytest.raises(TypeError, match=r"(q|k) must hold floating-point numbers"):
            spec.regular_attention(GOOD["q"], bad, GOOD["v"])


@st.composite
def nearly_fitting(draw):
    """Shapes of q, k, v and a mask that fit, with one size changed, one added or one dropped in
    some of them.
    """
    lead = draw(st.sampled_from([(), (2,), (1,), (2, 1)]))
    length, key_length, d, d_v = (draw(st.integers(1, 4)) for _ in range(4))
    fitting = [(*lead, length, d), (*lead, key_length, d), (*lead, key_length, d_v), (*lead, key_length)]
    change = draw(st.sampled_from(["nothing", "size", "add", "drop"]))
    which = draw(st.integers(0, 3))
    shape = list(fitting[which])
    at = draw(st.integers(0, len(shape) - 1))
    if change == "size":
        shape[at] = draw(st.integers(0, 4))
    elif change == "add":
        shape.insert(at, draw(st.integers(0, 2)))
    elif change == "drop":
        del shape[at]
    fitting[which] = tuple(shape)
    return fitting


@quick
@given(shapes=nearly_fitting(), causal=st.booleans(), seed=st.integers(0, 9))
def test_any_shapes_are_computed_alike_or_refused_alike(shapes, causal, seed):
    """Both versions accept the same shapes, with the same result; what they refuse, they refuse
    with a ValueError.
    """
    rng = np.random.default_rng(seed)
    q, k, v = (rng.standard_normal(shape) for shape in shapes[:3])
    mask = rng.random(shapes[3]) < 0.7
    for name, inputs in (("regular_attention", (q, k, v)), ("shared_qk_attention", (k, v))):

        def run(version, convert, name=name, inputs=inputs):
            try:
                arrays = map(convert, inputs)
                return np.asarray(getattr(version, name)(*arrays, causal=causal, padding_mask=convert(mask)))
            except ValueError as error:
                return error

        ours, fast = run(spec, np.asarray), run(pytorch, lambda a: torch.from_numpy(np.array(a)))
        if isinstance(ours, ValueError):
            assert isinstance(fast, ValueError)
            assert all(re.match(r"(q|qk|k|v|padding_mask) must|causal attention needs", str(e)) for e in (ours, fast))
        else:
            assert ours.shape == (*inputs[0].shape[:-1], v.shape[-1])
            expect_close(name, fast, ours, 1e-12)
