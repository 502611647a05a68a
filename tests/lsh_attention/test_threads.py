"""Attention with several threads, from several threads and after a fork: the same results."""

import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from reformer_ref.local_attention.options import LocalOptions
from reformer_ref.local_attention.streaming import local_attention
from reformer_ref.lsh_attention.options import PRESETS, LSHOptions
from reformer_ref.lsh_attention.streaming import lsh_attention
from reformer_ref.testing import expect_close


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def results(preset="paper", length=300, dtype=torch.float32):
    """Output and gradients of LSH attention and of local attention; 6 sequences, blocks of 1."""
    generator = torch.Generator().manual_seed(0)
    qk, v, d_out = (torch.randn(2, 3, length, 8, generator=generator).to(dtype) for _ in range(3))
    buckets = torch.randint(0, 6, (2, 3, 2, length), generator=generator)
    leaves = [qk.requires_grad_(), v.requires_grad_()]
    options = LSHOptions.preset(preset, n_hashes=2, chunk_length=16)
    lsh = lsh_attention(*leaves, buckets, options, block_size=2000)
    local = local_attention(qk, qk, v, LocalOptions(16), block_size=2000)
    return [lsh, local, *torch.autograd.grad([lsh, local], leaves, [d_out, d_out])]


@pytest.mark.parametrize("preset", PRESETS)
def test_the_number_of_threads_changes_nothing(preset):
    """Runs agree to the bit; another number of threads may sum in another order."""
    several = [results(preset, dtype=torch.float64) for _ in range(3)]
    torch.set_num_threads(1)
    single = results(preset, dtype=torch.float64)
    for again in several:
        assert all(torch.equal(a, b) for a, b in zip(again, several[0], strict=True))
    for name, a, b in zip(("lsh", "local", "d_qk", "d_v"), several[0], single, strict=True):
        expect_close(name, a.detach(), b.detach(), 1e-13)


def test_calls_from_several_threads_at_once():
    want = results()
    with ThreadPoolExecutor(4) as callers:
        for got in callers.map(lambda _: results(), range(8)):
            assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_inference_mode():
    with torch.inference_mode():
        qk = torch.randn(4, 100, 8)
        out = lsh_attention(qk, qk, torch.zeros(4, 1, 100, dtype=torch.int64), LSHOptions(chunk_length=16))
        assert out.is_inference()


def _in_child(pipe):
    torch.set_num_threads(1)  # as DataLoader does: PyTorch's own operations hang with more, after a fork
    pipe.send([t.detach().numpy() for t in results(dtype=torch.float64)])


def test_a_forked_process_computes_the_same():
    want = results(dtype=torch.float64)
    receiver, sender = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_in_child, args=(sender,))
    child.start()
    arrived = receiver.poll(100)
    got = receiver.recv() if arrived else []
    child.kill()
    child.join()
    assert arrived, "the forked process hangs"
    for a, b in zip(got, want, strict=True):
        expect_close("result of the forked process", a, b.detach(), 1e-13)
