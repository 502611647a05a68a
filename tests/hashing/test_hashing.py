"""The hash: all versions pass the checks, wrong variants fail them, and what only the PyTorch
version has.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reformer_ref._arguments import bucket_factors
from reformer_ref.hashing import api, checks, pytorch, spec, streaming
from reformer_ref.testing import as_numpy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()
quick = settings(max_examples=40, deadline=None)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_spec_passes_the_checks():
    checks.check_default_n_buckets(spec.default_n_buckets)
    checks.check_random_rotations(spec.random_rotations)
    checks.check_hash_vectors(spec.hash_vectors)
    checks.check_collision_probability(spec.hash_vectors)


@pytest.mark.parametrize("device", DEVICES)
def test_pytorch_passes_the_checks(device):
    checks.check_default_n_buckets(pytorch.default_n_buckets)
    checks.check_random_rotations(as_numpy(pytorch.random_rotations), seeded)
    checks.check_default_n_buckets(api.default_n_buckets)
    checks.check_random_rotations(as_numpy(api.random_rotations), seeded)
    for version in (pytorch, streaming):
        checks.check_hash_vectors(as_numpy(version.hash_vectors, device=device))
        checks.check_collision_probability(as_numpy(version.hash_vectors, device=device))


@pytest.mark.parametrize("name", ["default_n_buckets", "random_rotations", "hash_vectors", "collision_probability"])
def test_the_checks_say_what_they_did(name, capsys):
    getattr(checks, f"check_{name}")(getattr(spec, "hash_vectors" if name[0] == "c" else name))
    line = capsys.readouterr().out
    assert line.startswith(f"check_{name}: ")
    assert line.count("\n") == 1


# Wrong variants


def hash_with(scores_of=lambda xr: np.concatenate([xr, -xr], -1), last=False):
    """The formula with one part exchanged."""

    def wrong(x, rotations, n_buckets):
        scores, buckets, start, stride = x[..., None, :, :] @ rotations, 0, 0, 1
        for factor in bucket_factors(n_buckets):
            both = scores_of(scores[..., start : start + factor // 2])
            best = both.shape[-1] - 1 - np.argmax(both[..., ::-1], -1) if last else np.argmax(both, -1)
            buckets, start, stride = buckets + stride * best, start + factor // 2, stride * factor
        return buckets

    return wrong


def first_factor_slowest(x, rotations, n_buckets):
    """bucket = f1·b0 + b1 instead of b0 + f0·b1."""
    buckets, start = 0, 0
    for factor in bucket_factors(n_buckets):
        columns = rotations[..., start : start + factor // 2]
        buckets, start = (buckets * factor + spec.hash_vectors(x, columns, factor), start + factor // 2)
    return buckets


def same_columns_for_every_factor(x, rotations, n_buckets):
    buckets, stride = 0, 1
    for factor in bucket_factors(n_buckets):
        buckets = buckets + stride * spec.hash_vectors(x, rotations[..., : factor // 2], factor)
        stride *= factor
    return buckets


def one_rotation_for_all_heads(x, rotations, n_buckets):
    first = rotations.reshape(-1, *rotations.shape[-3:])[0]
    return spec.hash_vectors(x, np.broadcast_to(first, rotations.shape), n_buckets)


def global_rotations(rng, n_hashes, d, n_buckets, n_heads=None):
    shape = spec.random_rotations(rng, n_hashes, d, n_buckets, n_heads).shape
    return np.random.standard_normal(shape)  # noqa: NPY002


def reseeds_the_global_state(rng, *sizes):
    np.random.seed(0)  # noqa: NPY002
    return spec.random_rotations(rng, *sizes)


def one_set(rng, n_hashes, d, n_buckets, n_heads=None, heads=False):
    """The same rotations for every round, or for every head."""
    if heads and n_heads:
        return np.broadcast_to(
            spec.random_rotations(rng, n_hashes, d, n_buckets),
            (n_heads, n_hashes, d, sum(bucket_factors(n_buckets)) // 2),
        )
    r = spec.random_rotations(rng, n_hashes, d, n_buckets, n_heads)
    return r if heads else np.broadcast_to(r[..., :1, :, :], r.shape)


WRONG = {
    "highest index on a tie": ("hash_vectors", hash_with(last=True)),
    "negative half first": ("hash_vectors", hash_with(lambda xr: np.concatenate([-xr, xr], -1))),
    "no negative half": ("hash_vectors", hash_with(lambda xr: xr)),
    "absolute values": ("hash_vectors", hash_with(lambda xr: np.abs(np.concatenate([xr, -xr], -1)))),
    "depends on the length": ("hash_vectors", hash_with(lambda xr: np.concatenate([xr, 1 - xr], -1))),
    "first factor slowest": ("hash_vectors", first_factor_slowest),
    "columns shared by factors": ("hash_vectors", same_columns_for_every_factor),
    "heads share rotations": ("hash_vectors", one_rotation_for_all_heads),
    "floats": ("hash_vectors", lambda *a: spec.hash_vectors(*a).astype(float)),
    "rounds behind positions": ("hash_vectors", lambda *a: np.swapaxes(spec.hash_vectors(*a), -1, -2)),
    "rounds offset": (
        "hash_vectors",
        lambda x, r, n: spec.hash_vectors(x, r, n) + np.arange(r.shape[-3])[:, None] * math.prod(bucket_factors(n)),
    ),
    "one bucket": ("collision_probability", hash_with(lambda xr: xr)),
    "buckets at random": (
        "collision_probability",
        lambda x, r, n: np.random.default_rng(0).integers(0, n, (r.shape[-3], len(x))),
    ),
    "first round for all": (
        "collision_probability",
        lambda x, r, n: np.repeat(spec.hash_vectors(x, r[:1], n), len(r), 0),
    ),
    "not even": ("default_n_buckets", lambda length, chunk: max(2, length // chunk)),
    "never factorised": ("default_n_buckets", lambda length, chunk: 2 * max(1, length // chunk)),
    "of the length alone": ("default_n_buckets", lambda length, chunk: spec.default_n_buckets(length, 64)),
    "one bucket per chunk": (
        "default_n_buckets",
        lambda length, chunk: spec.default_n_buckets(max(1, length // 2), chunk),
    ),
    "uniform": ("random_rotations", lambda g, *a: g.random(spec.random_rotations(g, *a).shape)),
    "half as wide": ("random_rotations", lambda *a: spec.random_rotations(*a) / 2),
    "as wide but uniform": (
        "random_rotations",
        lambda g, *a: 12**0.5 * (g.random(spec.random_rotations(g, *a).shape) - 0.5),
    ),
    "too many columns": ("random_rotations", lambda *a: np.concatenate([spec.random_rotations(*a)] * 2, -1)),
    "global state": ("random_rotations", global_rotations),
    "global seed": ("random_rotations", reseeds_the_global_state),
    "a seed of its own": ("random_rotations", lambda g, *a: spec.random_rotations(np.random.default_rng(0), *a)),
    "one set for all rounds": ("random_rotations", one_set),
    "one set for all heads": ("random_rotations", lambda *a: one_set(*a, heads=True)),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_the_checks_refuse(wrong):
    name, fn = WRONG[wrong]
    state = np.random.get_state()  # noqa: NPY002
    try:
        with pytest.raises(AssertionError, match="expected"):
            getattr(checks, f"check_{name}")(fn)
    finally:
        np.random.set_state(state)  # noqa: NPY002


# Parity, precision, blocks, memory


@quick
@given(
    lead=st.sampled_from([(), (1,), (3,), (2, 3)]),
    heads=st.booleans(),
    length=st.sampled_from([1, 2, 5, 31, 64]),
    n_buckets=st.sampled_from([2, 6, 16, (2, 2), (4, 6), (4, 4, 2)]),
    whole_numbers=st.booleans(),
    seed=st.integers(0, 999),
)
def test_parity_with_the_spec(lead, heads, length, n_buckets, whole_numbers, seed):
    """Equal buckets; with small whole numbers every score is exact and many are tied."""
    rng = np.random.default_rng(seed)
    rotations = spec.random_rotations(rng, 2, 4, n_buckets, lead[-1] if heads and lead else None)
    x = rng.standard_normal((*lead, length, 4))
    if whole_numbers:
        x, rotations = np.rint(x), np.rint(rotations)
    for backend in ("auto", "plain", "streaming"):
        got = api.hash_vectors(torch.from_numpy(x), torch.from_numpy(rotations), n_buckets, backend=backend)
        assert got.dtype == torch.int64
        np.testing.assert_array_equal(got.numpy(), spec.hash_vectors(x, rotations, n_buckets))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 4e-3), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("version", [pytorch, streaming], ids=["plain", "streaming"])
def test_lower_precision_differs_only_at_near_ties(version, dtype, tolerance):
    """200,000 scores in each precision: a bucket differs only where two scores are closer than
    rounding.
    """
    checks.check_hash_vectors(as_numpy(version.hash_vectors, dtype), tolerance=tolerance)
    rng = np.random.default_rng(0)
    x, rotations = rng.standard_normal((5000, 16)), rng.standard_normal((2, 16, 20))
    x, rotations = (torch.from_numpy(a).to(dtype) for a in (x, rotations))
    got = version.hash_vectors(x, rotations, (16, 24))
    x, rotations = x.double().numpy(), rotations.double().numpy()
    n_close = checks._expect_buckets(str(dtype), got.numpy(), x, rotations, (16, 24), tolerance)
    assert n_close < 200
    if dtype != torch.float32:
        assert n_close > 0
        with pytest.raises(AssertionError, match="expected"):
            checks._expect_buckets(str(dtype), got.numpy(), x, rotations, (16, 24), 0.0)


@pytest.mark.parametrize("at_a_time", [1, 100, 5000])
def test_blocks_change_nothing(monkeypatch, at_a_time):
    rng = np.random.default_rng(1)
    cases = []
    for lead, heads, n_buckets in (((), None, 16), ((2, 3), None, (4, 6)), ((2, 3), 3, 8)):
        x = torch.from_numpy(rng.standard_normal((*lead, 37, 5)))
        rotations = torch.from_numpy(spec.random_rotations(rng, 2, 5, n_buckets, heads))
        cases.append((x, rotations, n_buckets))
    whole = [pytorch.hash_vectors(*case) for case in cases]
    monkeypatch.setattr(streaming, "SCORES_AT_A_TIME", at_a_time)
    for case, want in zip(cases, whole, strict=True):
        assert torch.equal(streaming.hash_vectors(*case), want)


class LargestTensor(TorchDispatchMode):
    """The number of entries of the largest storage that any operation makes."""

    def __enter__(self):
        self.entries = 0
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [
            t.untyped_storage().nbytes() // t.element_size() for t in tree_leaves(out) if isinstance(t, torch.Tensor)
        ]
        self.entries = max([self.entries, *sizes])
        return out


@pytest.mark.parametrize("lead", [(), (4, 8), (300, 2)])
def test_scores_are_never_whole(monkeypatch, lead):
    """Neither the scores nor copies of the rotations outgrow the block, however long or many the
    sequences.
    """
    monkeypatch.setattr(streaming, "SCORES_AT_A_TIME", 1 << 16)
    x = torch.randn(*lead, 4096 // math.prod(lead or (1,)), 4, generator=seeded(0))
    rotations = torch.randn(*lead[-1:], 4, 4, 16, generator=seeded(1))
    with LargestTensor() as largest:
        buckets = streaming.hash_vectors(x, rotations, 32)
    assert largest.entries <= max(1 << 16, 2 * buckets.numel())
    assert buckets.numel() * 16 > 2 * (1 << 16)  # the whole table of scores would have been larger


def test_same_seed_same_result_and_global_states_untouched():
    numpy_state, torch_state = repr(np.random.get_state()), torch.get_rng_state()  # noqa: NPY002
    x = torch.randn(2, 50, 8, generator=seeded(0))
    first, again = (
        pytorch.hash_vectors(x, pytorch.random_rotations(seeded(3), 4, 8, (8, 4)), (8, 4)) for _ in range(2)
    )
    assert torch.equal(first, again)
    other = pytorch.hash_vectors(x, pytorch.random_rotations(seeded(4), 4, 8, (8, 4)), (8, 4))
    assert not torch.equal(first, other)
    a, b = (spec.random_rotations(np.random.default_rng(3), 2, 3, 4) for _ in range(2))
    np.testing.assert_array_equal(a, b)
    assert repr(np.random.get_state()) == numpy_state  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_rotations_of_any_dtype():
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        rotations = pytorch.random_rotations(seeded(0), 2, 3, 4, dtype=dtype)
        assert rotations.dtype == dtype
        buckets = pytorch.hash_vectors(torch.ones(5, 3), rotations, 4)  # cast to the dtype of x
        assert buckets.shape == (2, 5)
    assert pytorch.random_rotations(seeded(0), 2, 3, 4, device="meta").is_meta


def test_no_gradient_flows():
    x = torch.randn(6, 4, generator=seeded(0), requires_grad=True)
    rotations = torch.randn(2, 4, 3, generator=seeded(1), requires_grad=True)
    buckets = pytorch.hash_vectors(x, rotations, 6)
    assert not buckets.requires_grad
    assert torch.equal(buckets, pytorch.hash_vectors(x.detach(), rotations.detach(), 6))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n_buckets", [512, (600, 4), 8192])
def test_bucket_numbers_are_exact_in_half_precision(dtype, n_buckets):
    """bfloat16 counts to 256 and float16 to 2048 without gaps; bucket numbers go further."""
    x = torch.randn(60, 8, generator=seeded(0)).to(dtype)
    rotations = pytorch.random_rotations(seeded(1), 2, 8, n_buckets, dtype=dtype)
    assert torch.equal(streaming.hash_vectors(x, rotations, n_buckets), pytorch.hash_vectors(x, rotations, n_buckets))
