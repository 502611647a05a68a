"""Where the kernels run, and where backend "auto" takes them."""

import re

import pytest
import torch
from reformer_ref import _kernels
from reformer_ref._kernels import kernels_chosen, reason_against
from reformer_ref.hashing.api import hash_vectors
from reformer_ref.local_attention.api import local_attention
from reformer_ref.local_attention.options import LocalOptions
from reformer_ref.lsh_attention.api import lsh_attention
from reformer_ref.lsh_attention.options import LSHOptions
from tests.cuda.pretend import pretended_cuda


@pytest.mark.parametrize(
    ("changes", "installed", "reason"),
    [
        ({}, False, r"needs triton; install the extra: pip install 'reformer_ref\[kernels\]'"),
        ({}, True, "needs tensors on CUDA, got cpu .*TRITON_INTERPRET=1"),
        ({"device": "cuda", "dtype": torch.float64}, True, "needs float32, bfloat16 or float16, got torch.float64"),
        ({"device": "cuda", "d": 129}, True, "needs vectors of at most 128 numbers, got 129"),
        ({"device": "cuda", "length": 1 << 30}, True, "needs n_hashes · L below 2³¹, got 2 · 1073741824"),
        ({"device": "cuda"}, True, None),
    ],
    ids=str,
)
def test_where_the_kernels_run(monkeypatch, changes, installed, reason):
    monkeypatch.setattr(_kernels, "INSTALLED", installed)
    monkeypatch.setattr(_kernels, "INTERPRETED", False)
    sizes = {"device": "cpu", "dtype": torch.float32, "d": 16, "length": 5, **changes}
    monkeypatch.setattr(_kernels, "block_device", lambda device: sizes["device"])
    q = torch.empty(1, dtype=sizes["dtype"]).expand(sizes["length"], sizes["d"])
    given = reason_against(q, q, 2)
    if reason is None:
        assert given is None
    else:
        assert re.match(reason, given), given


def test_auto_takes_the_kernels_on_cuda_alone(monkeypatch):
    monkeypatch.setattr(_kernels, "INSTALLED", True)
    monkeypatch.setattr(_kernels, "INTERPRETED", True)
    q = torch.empty(5, 16)
    assert not kernels_chosen(q, q, 1)
    with pretended_cuda():
        on_cuda = torch.empty(5, 16, device="cuda")
        assert kernels_chosen(on_cuda, on_cuda, 1)
        assert not kernels_chosen(on_cuda.double(), on_cuda, 1)
        assert not kernels_chosen(on_cuda, torch.empty(5, 130, device="cuda"), 1)
        monkeypatch.setenv("REFORMER_TRITON", "0")
        assert not kernels_chosen(on_cuda, on_cuda, 1)


@pytest.mark.parametrize("switched_off", [False, True])
def test_auto_in_every_function(monkeypatch, switched_off):
    monkeypatch.setenv("REFORMER_TRITON", "0" if switched_off else "1")
    with pretended_cuda() as launches:
        x = torch.empty(1, 2, 300, 16, device="cuda")
        buckets = hash_vectors(x, torch.empty(2, 16, 4, device="cuda"), 8)
        lsh_attention(x, x, buckets, LSHOptions(n_hashes=2))
        local_attention(x, x, x, LocalOptions())
    by_kernel = {name: n for name, n in launches.by_name.items() if name.startswith("reformer_ref.")}
    expected = {"reformer_ref.hash_forward.default": 1, "reformer_ref.attention_forward.default": 3}
    assert by_kernel == ({} if switched_off else expected)


def test_by_name_where_they_cannot_run(monkeypatch):
    monkeypatch.setattr(_kernels, "INTERPRETED", False)
    x = torch.zeros(1, 2, 30, 16)
    buckets = torch.zeros(1, 2, 2, 30, dtype=torch.int64)
    calls = (
        lambda: hash_vectors(x, torch.ones(2, 16, 4), 8, backend="triton"),
        lambda: lsh_attention(x, x, buckets, LSHOptions(n_hashes=2), backend="triton"),
        lambda: local_attention(x, x, x, LocalOptions(), backend="triton"),
    )
    for call in calls:
        with pytest.raises(ValueError, match=r'backend="triton" needs .*; backend="auto" takes a version that works'):
            call()
