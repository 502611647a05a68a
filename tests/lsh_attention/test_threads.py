"""Attention on several threads: the same bits, and nothing left changed behind it."""

import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from reformer_ref._threads import for_each
from reformer_ref.local_attention.options import LocalOptions
from reformer_ref.local_attention.streaming import local_attention
from reformer_ref.lsh_attention.options import PRESETS, LSHOptions
from reformer_ref.lsh_attention.streaming import lsh_attention
from reformer_ref.memory.count import Counter


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("preset", PRESETS)
def test_one_and_several_threads_give_the_same_bits(preset, dtype):
    several = [results(preset, dtype=dtype) for _ in range(3)]
    torch.set_num_threads(1)
    alone = results(preset, dtype=dtype)
    for again in several:
        assert all(torch.equal(a, b) for a, b in zip(again, alone, strict=True))


def test_work_is_spread_over_threads_and_settings_stay():
    seen = set()
    together = threading.Barrier(2, timeout=60)

    def work(item):
        together.wait()  # only passed if two items are at work at once
        seen.add((threading.get_ident(), torch.get_num_threads(), torch.is_grad_enabled()))

    for_each(work, range(4), torch.zeros(1))
    assert len({thread for thread, _, _ in seen}) == 2
    assert {(threads, grad) for _, threads, grad in seen} == {(1, False)}
    assert torch.get_num_threads() == 2
    assert torch.is_grad_enabled()
    with ThreadPoolExecutor(1) as new:
        assert new.submit(torch.get_num_threads).result() == 2


def test_threads_that_are_not_asked_for_are_not_used():
    here = threading.get_ident()
    seen = []

    def work(item):
        seen.append(threading.get_ident())

    for_each(work, range(1), torch.zeros(1))
    for_each(work, range(3), torch.zeros(1, device="meta"))
    with Counter("cpu"):  # which sees the operations of its own thread only
        for_each(work, range(3), torch.zeros(1))
    torch.set_num_threads(1)
    for_each(work, range(3), torch.zeros(1))
    assert seen == 10 * [here]


def test_an_exception_reaches_the_caller_and_the_next_call_works():
    def work(item):
        if item == 1:
            raise KeyError(item)

    with pytest.raises(KeyError):
        for_each(work, range(50), torch.zeros(1))
    want = results()
    assert all(torch.equal(a, b) for a, b in zip(results(), want, strict=True))


def test_calls_from_several_threads_at_once():
    want = results()
    with ThreadPoolExecutor(4) as callers:
        for got in callers.map(lambda _: results(), range(8)):
            assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_inference_mode_reaches_the_threads():
    with torch.inference_mode():
        qk = torch.randn(4, 100, 8)
        out = lsh_attention(qk, qk, torch.zeros(4, 1, 100, dtype=torch.int64), LSHOptions(chunk_length=16))
        assert out.is_inference()


def _in_child(pipe):
    threads = set()
    together = threading.Barrier(2, timeout=60)

    def work(item):
        together.wait()
        threads.add(threading.get_ident())

    for_each(work, range(4), torch.zeros(1))
    torch.set_num_threads(1)  # as DataLoader does: PyTorch's own operations hang with more, after a fork
    pipe.send((len(threads), [t.detach().numpy() for t in results()]))


def test_a_forked_process_makes_threads_of_its_own():
    want = results()
    receiver, sender = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_in_child, args=(sender,))
    child.start()
    arrived = receiver.poll(100)
    threads, got = receiver.recv() if arrived else (0, [])
    child.kill()
    child.join()
    assert arrived, "the forked process hangs"
    assert threads == 2
    assert all(torch.equal(torch.from_numpy(a), b.detach()) for a, b in zip(got, want, strict=True))
