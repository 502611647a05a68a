"""Positions: spec and PyTorch pass the same checks, wrong variants do not, and bad input is refused by name."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reformer_ref.positions import api, checks, pytorch, spec
from reformer_ref.positions.modules import AxialPositions, LearnedPositions, SinusoidalPositions
from reformer_ref.testing import as_numpy, autograd_vjp, expect_close

DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()
quick = settings(max_examples=25, deadline=None)


def axial_gradients(device):
    def fn(tables, positions, d_out):
        positions = torch.from_numpy(positions).to(device)
        return autograd_vjp(lambda *t: pytorch.axial_positions(t, positions), tables, d_out, device=device)[1]

    return fn


def test_spec_passes_the_checks():
    checks.check_axial_positions(spec.axial_positions)
    checks.check_axial_positions_vjp(spec.axial_positions_vjp)
    checks.check_learned_positions(spec.learned_positions)
    checks.check_sinusoidal_positions(spec.sinusoidal_positions)


@pytest.mark.parametrize("device", DEVICES)
def test_pytorch_passes_the_checks(device):
    checks.check_axial_positions(as_numpy(pytorch.axial_positions, device=device))
    checks.check_axial_positions_vjp(axial_gradients(device))
    checks.check_axial_positions(as_numpy(api.axial_positions, device=device))
    checks.check_learned_positions(as_numpy(api.learned_positions, device=device))
    checks.check_learned_positions(as_numpy(pytorch.learned_positions, device=device))
    checks.check_sinusoidal_positions(
        as_numpy(
            lambda positions, d_model: pytorch.sinusoidal_positions(positions, d_model, torch.float64), device=device
        )
    )


def test_learned_gradients_agree():
    rng = np.random.default_rng(3)
    table, positions, d_out = (
        rng.standard_normal((6, 3)),
        np.array([[5, 0, 5], [2, 2, 2]]),
        rng.standard_normal((2, 3, 3)),
    )
    got = autograd_vjp(lambda t: pytorch.learned_positions(t, torch.from_numpy(positions)), [table], d_out)[1][0]
    want = spec.learned_positions_vjp(table, positions, d_out)
    expect_close("d_table", got, want, 1e-12)
    assert not want[[1, 3, 4]].any()  # rows that no position used


def test_sinusoidal_versions_agree():
    positions = np.arange(0, 2000, 7)
    got = pytorch.sinusoidal_positions(torch.from_numpy(positions), 12, torch.float64)
    expect_close("sinusoidal_positions", got, spec.sinusoidal_positions(positions, 12), 1e-12)


def test_sinusoidal_positions_stay_accurate_at_a_million_in_float32():
    positions = np.array([1_000_003])
    got = pytorch.sinusoidal_positions(torch.from_numpy(positions), 16, torch.float32)
    expect_close("sinusoidal_positions", got, spec.sinusoidal_positions(positions, 16), 1e-7)


@pytest.mark.parametrize(
    ("check", "wrong"),
    [
        ("axial_positions", lambda t, p: spec.axial_positions(t[::-1], p)[..., ::-1]),
        ("axial_positions", lambda t, p: spec.axial_positions(t, (p + 1) % np.prod([len(x) for x in t]))),
        ("axial_positions_vjp", lambda t, p, d: [g / len(g) for g in spec.axial_positions_vjp(t, p, d)]),
        ("axial_positions_vjp", lambda t, p, d: spec.axial_positions_vjp(t, p, d)[:1]),
        ("learned_positions", lambda t, p: t[p - 1]),
        ("sinusoidal_positions", lambda p, d: np.roll(spec.sinusoidal_positions(p, d), 1, axis=-1)),
        ("sinusoidal_positions", lambda p, d: spec.sinusoidal_positions(p, d)[..., ::-1]),
    ],
)
def test_the_checks_refuse_wrong_variants(check, wrong):
    with pytest.raises(AssertionError, match=r"expected"):
        getattr(checks, f"check_{check}")(wrong)


@quick
@given(axes=st.lists(st.integers(1, 9), min_size=1, max_size=4), data=st.data())
def test_every_length_up_to_the_product_works(axes, data):
    product = int(np.prod(axes))
    length = data.draw(st.integers(1, product))
    tables = [np.arange(n, dtype=float)[:, None] for n in axes]  # each row holds its own coordinate
    digits = spec.axial_positions(tables, np.arange(length))
    assert digits.shape == (length, len(axes))
    np.testing.assert_array_equal(np.ravel_multi_index(digits.T.astype(int), axes), np.arange(length))
    np.testing.assert_array_equal(as_numpy(pytorch.axial_positions)(tables, np.arange(length)), digits)


@quick
@given(st.sampled_from([-1, -7, 6, 7, 10**12]), st.integers(0, 5))
def test_positions_out_of_range_are_refused(bad, place):
    positions, table = torch.arange(6), torch.ones(6, 2)
    positions[place] = bad
    for call in (
        lambda: api.axial_positions([table[:3], table[:2]], positions),
        lambda: api.learned_positions(table, positions),
    ):
        with pytest.raises(ValueError, match=r"positions must be in \[0, 6\), got values from"):
            call()
    if bad < 0:
        with pytest.raises(ValueError, match=r"positions must be in"):
            api.sinusoidal_positions(positions, 4)


TABLE, SOME = torch.ones(4, 2), torch.arange(2)
WRONG = [
    *((TypeError, "positions must be integers", api.axial_positions, [TABLE], torch.zeros(3, dtype=dtype))
      for dtype in (torch.float32, torch.float64, torch.bool, torch.complex64)),
    (TypeError, "positions must be integers", api.learned_positions, TABLE, torch.zeros(3)),
    (TypeError, "positions must be integers", api.sinusoidal_positions, torch.zeros(3), 4),
    (TypeError, "positions must be a torch.Tensor, got list", api.learned_positions, TABLE, [0, 1]),
    (ValueError, "positions must hold at least one", api.axial_positions, [TABLE], SOME[:0]),
    *((ValueError, "tables must be", api.axial_positions, bad, SOME)
      for bad in ([], None, [torch.ones(3)], [torch.ones(0, 2)])),
    (TypeError, "tables must be dense, of dtype", api.axial_positions, [TABLE.long()], SOME),
    (TypeError, "tables must have the dtype of the first", api.axial_positions, [TABLE, TABLE.double()], SOME),
    *((ValueError, "d_model must be", api.sinusoidal_positions, SOME, odd) for odd in (1, 7)),
    (TypeError, "dtype must be a floating torch.dtype", api.sinusoidal_positions, SOME, 4, torch.int64),
]  # fmt: skip


@pytest.mark.parametrize(("error", "message", "function", "arguments"), [(*w[:3], w[3:]) for w in WRONG])
def test_wrong_arguments(error, message, function, arguments):
    with pytest.raises(error, match=f"^{message}"):
        function(*arguments)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_any_integer_dtype_serves(dtype):
    table = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([3, 100, 7], dtype=dtype)
    torch.testing.assert_close(pytorch.learned_positions(table, positions), table[[3, 100, 7]], rtol=0, atol=0)
    torch.testing.assert_close(pytorch.axial_positions([table, table], positions)[:, 2:], table[[3, 100, 7]])


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: AxialPositions((4, 2), (3,)), ValueError, "one entry per axis"),
        (lambda: AxialPositions(8, 3), ValueError, "one entry per axis"),
        (lambda: AxialPositions((), ()), ValueError, "at least one axis"),
        (lambda: AxialPositions((4, 0), (3, 1)), ValueError, "shape must be at least 1"),
        (lambda: AxialPositions((4, 2), (3, 1.5)), TypeError, "dims must be an integer"),
        (lambda: LearnedPositions(0, 4), ValueError, "max_length must be at least 1"),
        (lambda: LearnedPositions(4, True), TypeError, "d_model must be an integer"),
        (lambda: SinusoidalPositions(5), ValueError, "d_model must be even"),
    ],
)
def test_modules_refuse_bad_sizes(build, error, message):
    with pytest.raises(error, match=message):
        build()


MODULES = {
    "axial": lambda generator: AxialPositions((4, 8, 2), (3, 5, 8), generator),
    "learned": lambda generator: LearnedPositions(64, 16, generator),
    "sinusoidal": lambda generator: SinusoidalPositions(16),
}


@pytest.fixture(params=MODULES)
def module(request):
    return MODULES[request.param](torch.Generator().manual_seed(1))


def test_modules(module):
    assert module.max_length in (64, None)
    assert module.d_model == 16
    positions = torch.arange(60).reshape(3, 20)
    out = module(positions)
    assert out.shape == (3, 20, 16)
    assert out.dtype == torch.float32
    assert module.bfloat16()(positions).dtype == torch.bfloat16  # the result follows the module ...
    assert module.double()(positions).dtype == torch.float64
    assert module.state_dict().keys() == dict(module.named_parameters()).keys()  # ... without a trace in checkpoints
    assert "16" in repr(module) or "dims=(3, 5, 8)" in repr(module)


@pytest.mark.parametrize("kind", MODULES)
def test_modules_draw_from_the_given_generator_only(kind):
    before = torch.get_rng_state()
    first, second = (MODULES[kind](torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q)


def test_tables_start_standard_normal():
    big = LearnedPositions(200, 50, torch.Generator().manual_seed(0)).table.detach()
    assert abs(float(big.mean())) < 0.05
    assert abs(float(big.std()) - 1) < 0.05


def test_export_and_tensors_without_values(module):
    positions = torch.arange(20)
    want = module(positions)
    program = torch.export.export(module, (positions,), strict=False)
    torch.testing.assert_close(program.module()(positions), want, rtol=0, atol=0)
    assert module.to("meta")(positions.to("meta")).shape == want.shape
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert SinusoidalPositions(16)(mode.from_tensor(positions)).shape == (20, 16)


@pytest.mark.slow
def test_compile_in_one_graph(module):
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(torch.arange(20)), module(torch.arange(20)), rtol=0, atol=0)


def test_axial_positions_never_build_the_grid():
    """A million places, a hundred asked for: nothing of the size of the product is saved or
    returned.
    """
    module = AxialPositions((1024, 1024), (8, 8), torch.Generator().manual_seed(0))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        module(torch.arange(999_900, 1_000_000)).sum().backward()
    assert max(saved) <= 1024 * 8
