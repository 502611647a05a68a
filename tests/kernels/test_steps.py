"""The five steps of a kernel against the plain version; and the exercises, with right and with wrong answers."""

import re

import pytest
import torch
import triton
import triton.language as tl
from reformer_lab.kernels import exercises, steps
from reformer_lab.kernels.counting import Access, Counts, OperationCounter, counting
from reformer_lab.plots import kernels as plots
from reformer_ref import _kernels
from reformer_ref.chunking.pytorch import sort_by_bucket
from reformer_ref.lsh_attention.api import lsh_attention as public_lsh_attention
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.lsh_attention.pytorch import lsh_attention
from reformer_ref.testing import relative_error
from tests.pictures import drawn

pytestmark = [
    pytest.mark.kernels,
    pytest.mark.skipif(not _kernels.INTERPRETED, reason="needs TRITON_INTERPRET=1: make kernels"),
]


@pytest.fixture(params=[(16, 4, 16), (14, 4, 16), (70, 16, 32)], ids=["16 words", "14 words", "70 tokens"])
def case(request):
    """(qk, v, order, buckets, chunk_length): two rounds."""
    length, chunk_length, d = request.param
    generator = torch.Generator().manual_seed(length)
    qk = torch.randn(length, d, generator=generator)
    v = torch.randn(length, d, generator=generator)
    buckets = torch.randint(0, 4, (2, length), generator=generator, dtype=torch.int32)
    order = sort_by_bucket(buckets, torch.ones(length, dtype=torch.bool)).int()
    return qk, v, order, buckets, chunk_length


def launch(kernel, case, *tables, out, **constants):
    qk, v, _, _, chunk_length = case
    grid = (triton.cdiv(len(qk), chunk_length),)
    kernel[grid](qk, v, out, *tables, len(qk), CHUNK=chunk_length, D=qk.shape[1], **constants)


def close(got, want):
    return relative_error(got.numpy(), want.numpy()) < 1e-6


def test_step_1_sorts_rows(case):
    _, v, order, _, chunk_length = case
    got = torch.full_like(v, torch.nan)
    steps.copy_kernel[(triton.cdiv(len(v), chunk_length),)](v, order[0], got, len(v), CHUNK=chunk_length, D=v.shape[1])
    assert torch.equal(got, v[order[0].long()])


def test_step_2_attends_within_chunks(case):
    qk, v, order, buckets, chunk_length = case
    out = torch.full_like(v, torch.nan)
    launch(steps.chunk_kernel, case, order[0], out=out)
    options = {"chunk_length": chunk_length, "chunks_before": 0, "causal": False, "within_bucket": False}
    assert close(out, lsh_attention(qk, v, buckets[:1], LSHOptions(n_hashes=1, **options)))


def test_step_3_looks_back(case):
    qk, v, order, buckets, chunk_length = case
    out = torch.full_like(v, torch.nan)
    launch(steps.look_back_kernel, case, order[0], out=out)
    options = {"chunk_length": chunk_length, "causal": False, "within_bucket": False}
    assert close(out, lsh_attention(qk, v, buckets[:1], LSHOptions(n_hashes=1, **options)))


def test_step_4_is_one_round_of_the_paper(case):
    qk, v, order, buckets, chunk_length = case
    out = torch.full_like(v, torch.nan)
    launch(steps.causal_kernel, case, order[0], buckets[0], out=out)
    assert close(out, lsh_attention(qk, v, buckets[:1], LSHOptions(n_hashes=1, chunk_length=chunk_length)))


def test_step_5_is_what_the_kernel_of_the_reference_computes_and_nearly_loads(case):
    qk, v, order, buckets, chunk_length = case
    out = torch.full_like(v, torch.nan)
    lse = torch.full((len(v),), torch.nan)
    with counting() as counts:
        for r in range(2):
            launch(steps.rounds_kernel, case, lse, order[r], buckets[r], out=out, ROUND=r, N_HASHES=2)
    options = LSHOptions(n_hashes=2, chunk_length=chunk_length, count_once=False)
    assert close(out, lsh_attention(qk, v, buckets, options))
    with counting() as reference:
        public_lsh_attention(qk, v, buckets, options, backend="triton")
    loads = counts.loads
    assert loads["qk"].bytes == reference.loads["q"].bytes + reference.loads["k"].bytes
    assert loads["v"].bytes == reference.loads["v"].bytes
    assert loads["out"].bytes == reference.loads["partial"].bytes
    assert counts.bytes_written == reference.bytes_written
    assert (counts.launches, counts.programs) == (reference.launches, reference.programs)


def test_rows_of_accesses():
    counts = Counts(accesses=[Access("load", 0, p, "x", torch.arange(4 * p, 4 * p + 4).numpy()) for p in (0, 1, 1)])
    assert counts.rows("load", "x", 3, 4).tolist() == [[1, 0, 0], [0, 2, 0]]
    assert counts.rows("store", "x", 3, 4).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_operations_of_pytorch():
    x = torch.zeros(3, 4)
    with OperationCounter() as counter:
        y = x.t().expand(2, 4, 3) + 1.0  # reads x once, writes twice its size
        y.mul_(2.0)  # reads and writes in place
        torch.empty(100)
    assert counter.operations == 2
    assert counter.bytes_read == 48 + 96
    assert counter.bytes_written == 96 + 96


# Exercises


@triton.jit
def right_look_back(order, chunk, length, CHUNK: tl.constexpr):
    slot = (chunk - 1) * CHUNK + tl.arange(0, CHUNK)
    return tl.load(order + slot, mask=slot >= 0, other=-1)


@triton.jit
def unmasked(order, chunk, length, CHUNK: tl.constexpr):
    return tl.load(order + (chunk - 1) * CHUNK + tl.arange(0, CHUNK))


@triton.jit
def zeros_where_masked(order, chunk, length, CHUNK: tl.constexpr):
    slot = (chunk - 1) * CHUNK + tl.arange(0, CHUNK)
    return tl.load(order + slot, mask=slot >= 0, other=0)


@triton.jit
def same_chunk(order, chunk, length, CHUNK: tl.constexpr):
    slot = chunk * CHUNK + tl.arange(0, CHUNK)
    return tl.load(order + slot, mask=(chunk > 0) & (slot < length), other=-1)


@triton.jit
def ahead(order, chunk, length, CHUNK: tl.constexpr):
    slot = (chunk + 1) * CHUNK + tl.arange(0, CHUNK)
    return tl.load(order + slot)


@triton.jit
def failing(order, chunk, length, CHUNK: tl.constexpr):
    return tl.load(order + tl.arange(0, 3))


@triton.jit
def right_merge(out_a, lse_a, out_b, lse_b):
    larger = tl.maximum(lse_a, lse_b)
    shift = tl.where(larger == -float("inf"), 0.0, larger)
    weight_a = tl.exp(lse_a - shift)
    weight_b = tl.exp(lse_b - shift)
    both = weight_a + weight_b
    lse = shift + tl.log(both)
    both = tl.where(both == 0, 1.0, both)
    return out_a * (weight_a / both)[:, None] + out_b * (weight_b / both)[:, None], lse


@triton.jit
def average(out_a, lse_a, out_b, lse_b):
    return (out_a + out_b) / 2, tl.maximum(lse_a, lse_b)


@triton.jit
def unshifted(out_a, lse_a, out_b, lse_b):
    weight_a = tl.exp(lse_a)
    weight_b = tl.exp(lse_b)
    both = weight_a + weight_b
    lse = tl.log(both)
    both = tl.where(both == 0, 1.0, both)
    return out_a * (weight_a / both)[:, None] + out_b * (weight_b / both)[:, None], lse


@triton.jit
def always_shifted(out_a, lse_a, out_b, lse_b):
    shift = tl.maximum(lse_a, lse_b)
    weight_a = tl.exp(lse_a - shift)
    weight_b = tl.exp(lse_b - shift)
    both = weight_a + weight_b
    return out_a * (weight_a / both)[:, None] + out_b * (weight_b / both)[:, None], shift + tl.log(both)


@triton.jit
def swapped(out_a, lse_a, out_b, lse_b):
    return right_merge(out_b, lse_a, out_a, lse_b)


@triton.jit
def sum_of_lse(out_a, lse_a, out_b, lse_b):
    return right_merge(out_a, lse_a, out_b, lse_b)[0], lse_a + lse_b


def test_right_answers(capsys):
    exercises.check_look_back(right_look_back)
    exercises.check_merge(right_merge)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["Right", "Right"]


@pytest.mark.parametrize(
    ("check", "function", "message"),
    [
        ("look_back", unmasked, r"program 0 reads element \[-4\] of order, which has elements 0 to 13. .* a mask"),
        ("look_back", zeros_where_masked, r"all be −1; got \[0, 0, 0, 0\]. .* where its mask is False"),
        ("look_back", same_chunk, r"chunk 1 must get the positions in slots 0 to 3, which are \[0, 5, 10, 1\]; got"),
        ("look_back", ahead, r"program 2 reads element \[14\]"),
        ("look_back", failing, "the kernel fails"),
        ("look_back", unmasked.fn, "needs the line @triton.jit"),
        ("merge", average, r"weigh the same .*: the lse must be \[1.193\], got \[0.5\]"),
        ("merge", swapped, r"the first round weighs more .*: the output must be"),
        ("merge", sum_of_lse, r"the lse must be \[1.193\], got \[1.0\]"),
        ("merge", always_shifted, "neither round saw anything .* NaN: shift by the larger lse, by 0"),
        ("merge", unshifted, "scores are large .* (NaN|overflows)"),
    ],
)
def test_wrong_answers_are_told_apart(check, function, message, capsys):
    getattr(exercises, f"check_{check}")(function)
    text = capsys.readouterr().out
    assert text.startswith("Not yet: ")
    assert re.search(message, text), text


def test_questions(capsys):
    for question, (right, reasons) in exercises.QUESTIONS.items():
        exercises.check_answer(question, None)
        assert capsys.readouterr().out.startswith("No answer yet")
        for answer in reasons:
            exercises.check_answer(question, answer)
            assert capsys.readouterr().out == f"{'Right' if answer == right else 'No'}. {reasons[answer]}\n"
        with pytest.raises(ValueError, match="answer must be one of a, b, c"):
            exercises.check_answer(question, "d")
    with pytest.raises(ValueError, match="question must be one of mask"):
        exercises.check_answer("no such", "a")


# Pictures


def test_pictures():
    tables = {"reads qk": [[1, 0, 2], [0, 1, 0]], "writes out": [[0, 0, 0], [0, 0, 1]]}
    numbers = drawn(plots.rows_by_program("Message.", tables, ["a", "b", "c"], [2, 0, 1], chunk_length=2))
    assert numbers == {"rows, reads qk": 4, "rows, writes out": 1}
    assert drawn(plots.bytes_moved("Message.", {"kernel": (3, 4), "plain": (0, 0)})) == {"kernel": 7, "plain": 0}
    with pytest.raises(ValueError, match="order must have shape"):
        plots.rows_by_program("Message.", tables, ["a", "b", "c"], [0, 1], chunk_length=2)
