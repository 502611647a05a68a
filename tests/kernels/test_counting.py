"""Counts of interpreted kernels against counts by hand."""

import pytest
import torch
import triton
import triton.language as tl
from reformer_lab.kernels import counting as module
from reformer_lab.kernels.counting import Traffic, counting
from reformer_ref import _kernels
from reformer_ref.lsh_attention.api import lsh_attention
from reformer_ref.lsh_attention.options import LSHOptions
from triton.runtime import interpreter

pytestmark = [
    pytest.mark.kernels,
    pytest.mark.skipif(not _kernels.INTERPRETED, reason="needs TRITON_INTERPRET=1: make kernels"),
]


@triton.jit
def copy_kernel(source, target, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + i, tl.load(source + i, mask=i < n, other=0.0), mask=i < n)


@triton.jit
def dot_kernel(a, b, c, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    m = tl.arange(0, M)[:, None]
    n = tl.arange(0, N)[None, :]
    left = tl.load(a + m * K + tl.arange(0, K)[None, :])
    right = tl.load(b + tl.arange(0, K)[:, None] * N + n)
    tl.store(c + m * N + n, tl.dot(left, right))


@triton.jit
def atomic_kernel(target):
    tl.atomic_add(target, 1)
    tl.atomic_cas(target, 1, 2)


def test_a_copy_of_five_elements_by_three_programs():
    source = torch.arange(10.0)
    target = torch.zeros(5)
    with counting(accesses=True) as counts:
        copy_kernel[(3,)](source[2:], target, 5, BLOCK=2)
    assert target.tolist() == [2, 3, 4, 5, 6]
    assert (counts.launches, counts.programs) == (1, 3)
    assert counts.loads == {"source": Traffic(operations=3, elements=5, bytes=20)}
    assert counts.stores == {"target": Traffic(operations=3, elements=5, bytes=20)}
    assert (counts.bytes_read, counts.bytes_written) == (20, 20)
    assert (counts.dots, counts.dot_operations, counts.atomics) == (0, 0, 0)
    seen = [(a.kind, a.launch, a.program, a.argument, a.elements.tolist()) for a in counts.accesses]
    assert seen == [
        (kind, 0, program, name, elements)
        for program, elements in enumerate(([0, 1], [2, 3], [4]))
        for kind, name in (("load", "source"), ("store", "target"))
    ]


def test_two_arguments_that_are_one_tensor_and_a_load_whose_mask_lets_nothing_through():
    x = torch.zeros(4, dtype=torch.float16)
    with counting() as counts:
        copy_kernel[(1,)](x, x, 3, BLOCK=4)
        copy_kernel[(1,)](x, x, 0, BLOCK=4)
    assert counts.launches == 2
    assert counts.loads == {"source": Traffic(2, 3, 6)}
    assert counts.stores == {"target": Traffic(2, 3, 6)}
    assert counts.accesses == []


def test_a_matrix_product():
    a = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
    b = torch.randn(32, 64, generator=torch.Generator().manual_seed(1))
    c = torch.zeros(16, 64)
    with counting() as counts:
        dot_kernel[(1,)](a, b, c, M=16, N=64, K=32)
    torch.testing.assert_close(c, a @ b)
    assert (counts.dots, counts.dot_operations) == (1, 2 * 16 * 64 * 32)
    assert counts.loads == {"a": Traffic(1, 512, 2048), "b": Traffic(1, 2048, 8192)}
    assert counts.stores == {"c": Traffic(1, 1024, 4096)}


def test_atomic_operations():
    with counting() as counts:
        atomic_kernel[(2,)](torch.zeros(1, dtype=torch.int32))
    assert counts.atomics == 4


def test_lsh_attention_forward_and_backward():
    """64 tokens in chunks of 16, two rounds: the bytes of q, v, out and lse by hand."""
    length, d, chunk = 64, 16, 16
    qk = torch.randn(2, length, d, generator=torch.Generator().manual_seed(0)).requires_grad_()
    v = torch.randn(2, length, d, generator=torch.Generator().manual_seed(1)).requires_grad_()
    buckets = torch.randint(0, 4, (2, 2, length), generator=torch.Generator().manual_seed(2))
    options = LSHOptions(n_hashes=2, chunk_length=chunk)
    with counting() as forward:
        out = lsh_attention(qk, v, buckets, options, backend="triton")
    table = 2 * length * d * 4  # bytes of q, or of v
    keys = 2 * (2 * length - chunk) * d * 4  # of two chunks for every chunk, but one for the first
    chunks = 2 * length // chunk
    assert forward.launches == 2
    assert forward.programs == 2 * chunks
    assert forward.loads["q"].bytes == 2 * table
    assert forward.loads["k"].bytes == 2 * keys
    assert forward.loads["v"].bytes == 2 * keys + table  # and of tokens that see only themselves
    assert forward.stores["lse"].elements == 2 * 2 * length
    assert forward.stores["partial"].bytes == table
    assert forward.stores["out"].bytes == table
    assert forward.dot_operations == 2 * chunks * 2 * 2 * (2 * chunk * chunk * d)
    with counting() as backward:
        out.sum().backward()
    assert backward.launches == 1 + 2 * 2
    assert backward.atomics == 0
    # Two chunks for every chunk: 2 products of scores and 1 of d_q, then 2 and those of d_k and d_v.
    assert backward.dot_operations == 2 * chunks * 2 * 7 * (2 * chunk * chunk * d)


def test_methods_are_restored_even_after_an_error():
    names = (*module.POINTER_METHODS, *module.ACCESS_METHODS, *module.OTHER_METHODS)
    builder = interpreter.InterpreterBuilder
    before = [getattr(builder, name) for name in names] + [interpreter.GridExecutor.__call__]
    with pytest.raises(KeyError), counting():
        raise KeyError
    assert [getattr(builder, name) for name in names] + [interpreter.GridExecutor.__call__] == before


def test_refuses_what_it_cannot_count(monkeypatch):
    with pytest.raises(TypeError, match="accesses must be"), counting(accesses="yes"):
        pass
    with monkeypatch.context() as patch:
        patch.delattr(interpreter.InterpreterBuilder, "create_dot")
        with pytest.raises(RuntimeError, match=r"written for .* 3\.6.* has no create_dot"), counting():
            pass
    monkeypatch.setattr(_kernels, "INTERPRETED", False)
    with pytest.raises(RuntimeError, match="set TRITON_INTERPRET=1 before"), counting():
        pass
