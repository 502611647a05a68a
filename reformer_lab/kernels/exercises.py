"""Questions and exercises of the notebook on kernels, with checks that say what is wrong."""

import numpy as np
import torch
import triton
import triton.language as tl
from reformer_ref._arguments import short_repr
from reformer_ref.testing import expect
from triton.runtime.errors import InterpreterError

from reformer_lab.kernels.counting import counting

# name of a question: (the right answer, {answer: what is to be said about it})
QUESTIONS = {
    "mask": (
        "b",
        {
            "a": "A kernel knows addresses, not tensors. It has no way to see where a tensor ends.",
            "b": "An address is a number, and the memory behind the tensor belongs to some other tensor.",
            "c": "There are no zeros behind a tensor, and nothing stops the store.",
        },
    ),
    "gather": (
        "a",
        {
            "a": "Sixteen rows of output. Scores, weights and gathered rows never leave the program.",
            "b": "That is what a sorted copy of qk and one of v would take; this kernel makes neither.",
            "c": "The scores are never written: the program that computes them is the only one that needs them.",
        },
    ),
    "look-back": (
        "b",
        {
            "a": "Eight rows are its keys. The queries are gathered before the loop, by a load of their own.",
            "b": "Four as queries, and eight as keys, four of which are the same rows again.",
            "c": "Only its own chunk and the one before.",
        },
    ),
    "mask-out": (
        "b",
        {
            "a": "Which keys are hidden is different for each query, and a tile is loaded for four of them at once.",
            "b": "A tile is loaded whole and its scores computed whole. The mask throws results away, after the work.",
            "c": "A matrix product has no holes: the hardware computes tiles.",
        },
    ),
    "rounds": (
        "b",
        {
            "a": "Scores exist only inside a program, and only while it runs.",
            "b": "An output and one number for each query say all about the rounds before: that is what lse is for.",
            "c": "A query needs its own result of the round before, and no other.",
        },
    ),
    "backward": (
        "c",
        {
            "a": "Possible, but the order of the additions would differ from run to run, and with it the last bits.",
            "b": "That is the memory that a fused kernel avoids. Computing weights again is cheaper than reading them.",
            "c": "Each row is written by one program, which finds all that belongs to it.",
        },
    ),
}


def check_answer(question: str, answer: str | None) -> None:
    """Print whether the answer to a question is right, and why.

    Args:
        question: its name.
        answer: a letter; None: not answered yet.

    Raises:
        ValueError: there is no such question or answer.
    """
    if question not in QUESTIONS:
        raise ValueError(f"question must be one of {', '.join(QUESTIONS)}, got {short_repr(question)}")
    right, reasons = QUESTIONS[question]
    if answer is None:
        print(f"No answer yet: write one of {', '.join(reasons)} in place of None, and run the cell again.")
        return
    if answer not in reasons:
        raise ValueError(f"answer must be one of {', '.join(reasons)}, or None, got {short_repr(answer)}")
    print(f"{'Right' if answer == right else 'No'}. {reasons[answer]}")


# Exercise 1: the positions of the chunk before


LENGTH, CHUNK, D = 14, 4, 2
OUTSIDE = 99  # what lies before and behind the table


@triton.jit
def _look_back_kernel(order, positions, length, CHUNK: tl.constexpr, LOOK_BACK: tl.constexpr):
    chunk = tl.program_id(0)
    result = LOOK_BACK(order, chunk, length, CHUNK)
    tl.store(positions + chunk * CHUNK + tl.arange(0, CHUNK), result)


def check_look_back(function) -> None:
    """Print whether ``function(order, chunk, length, CHUNK)`` gives the positions of the chunk before.

    Args:
        function: a ``triton.jit`` function that returns CHUNK positions, −1 where there is no token.
    """
    _report("every position is right, and nothing outside the table is read.", _expect_look_back, function)


def _expect_look_back(function):
    # 14 positions, with other memory on both sides.
    memory = torch.full((CHUNK + LENGTH + CHUNK,), OUTSIDE, dtype=torch.int32)
    order = memory[CHUNK : CHUNK + LENGTH]
    order.copy_(torch.arange(LENGTH) * 5 % LENGTH)
    n_chunks = -(-LENGTH // CHUNK)
    got = torch.zeros(n_chunks, CHUNK, dtype=torch.int32)
    with counting(accesses=True) as counts:
        _look_back_kernel[(n_chunks,)](order, got, LENGTH, CHUNK=CHUNK, LOOK_BACK=function)

    # 1. Nothing outside the table is read.
    for access in (a for a in counts.accesses if a.kind == "load"):
        outside = [int(n) for n in access.elements if not 0 <= n < LENGTH]
        expect(
            not outside,
            f"program {access.program} reads element {outside[:1]} of order, which has elements 0 to {LENGTH - 1}. "
            "Give the load a mask.",
        )
    # 2. The first chunk has no chunk before it.
    expect(
        bool((got[0] == -1).all()),
        f"the first chunk has no chunk before it, so its positions must all be −1; got {got[0].tolist()}. "
        "What does a load give where its mask is False?",
    )
    # 3. The others get the positions in the slots before theirs.
    for chunk in range(1, n_chunks):
        want = order[(chunk - 1) * CHUNK : chunk * CHUNK]
        expect(
            torch.equal(got[chunk], want),
            f"chunk {chunk} must get the positions in slots {(chunk - 1) * CHUNK} to {chunk * CHUNK - 1}, which are "
            f"{want.tolist()}; got {got[chunk].tolist()}.",
        )


# Exercise 2: the merge of two rounds


@triton.jit
def _merge_kernel(out_a, lse_a, out_b, lse_b, out, lse, ROWS: tl.constexpr, D: tl.constexpr, MERGE: tl.constexpr):
    row = tl.arange(0, ROWS)
    cell = row[:, None] * D + tl.arange(0, D)[None, :]
    merged_out, merged_lse = MERGE(
        tl.load(out_a + cell), tl.load(lse_a + row), tl.load(out_b + cell), tl.load(lse_b + row)
    )
    tl.store(out + cell, merged_out)
    tl.store(lse + row, merged_lse)


INFINITY = float("inf")
# What a row is about: (lse of the first round, of the second)
MERGES = {
    "both rounds weigh the same": (0.5, 0.5),
    "the first round weighs more": (2.0, 0.0),
    "the second round weighs more": (-1.0, 1.5),
    "the first round saw nothing": (-INFINITY, 1.0),
    "the second round saw nothing": (1.0, -INFINITY),
    "neither round saw anything": (-INFINITY, -INFINITY),
    "scores are large": (200.0, 199.0),
    "scores are very negative": (-200.0, -199.0),
}


def check_merge(function) -> None:
    """Print whether ``function(out_a, lse_a, out_b, lse_b)`` merges two rounds into (out, lse).

    Args:
        function: a ``triton.jit`` function of outputs (rows, d) and log-sum-exps (rows,), to the base e. A round that
            saw nothing has output 0 and −∞.
    """
    _report("all eight cases are right, those without a visible key and with large scores included.",
            _expect_merge, function)  # fmt: skip


def _expect_merge(function):
    # 1. Two rounds of eight queries.
    generator = torch.Generator().manual_seed(0)
    lses = torch.tensor(list(MERGES.values()))  # (8, 2)
    outs = torch.randn(2, len(MERGES), D, generator=generator)
    outs[lses.mT == -INFINITY] = 0.0
    got = torch.full((len(MERGES), D), OUTSIDE, dtype=torch.float32)
    got_lse = torch.full((len(MERGES),), OUTSIDE, dtype=torch.float32)
    columns = lses.mT.contiguous()
    _merge_kernel[(1,)](outs[0], columns[0], outs[1], columns[1], got, got_lse, ROWS=len(MERGES), D=D, MERGE=function)

    # 2. One softmax over both, in float64.
    wide = lses.double()
    lse = wide.logsumexp(-1)
    weights = torch.where(lse[:, None] == -INFINITY, 0.0, wide - lse[:, None]).exp()
    out = (weights.mT[..., None] * outs).sum(0)

    # 3. Compare row by row: the first that differs is the simplest.
    for row, case in enumerate(MERGES):
        pair = [round(x, 3) for x in lses[row].tolist()]
        given = f"{case} (lse {pair[0]} and {pair[1]})"
        for name, result, want in (("output", got[row], out[row]), ("lse", got_lse[row], lse[row])):
            numbers = [round(x, 3) for x in result.reshape(-1).tolist()]
            wanted = [round(x, 3) for x in want.reshape(-1).tolist()]
            hint = _hint(result, name)
            expect(
                torch.allclose(result.double(), want, rtol=1e-4, atol=1e-5),
                f"{given}: the {name} must be {wanted}, got {numbers}.{hint}",
            )


def _hint(result, name):
    """What a wrong result of a merge suggests, as a sentence; empty if it is an ordinary number."""
    if result.isnan().any():
        return " −∞ − (−∞), 0 / 0 and ∞ / ∞ are NaN: shift by the larger lse, by 0 where both are −∞."
    if result.isinf().any() and name == "lse":
        return (
            " exp overflows or underflows without a shift: subtract the larger lse first, and add it again at the end."
        )
    return ""


def _report(praise, check, function):
    """Print the outcome of a check in one sentence."""
    if not isinstance(function, triton.runtime.interpreter.InterpretedFunction):
        print("Not yet: the function needs the line @triton.jit above it.")
        return
    try:
        with np.errstate(all="ignore"):  # of the interpreter, which computes in NumPy
            check(function)
    except AssertionError as error:
        print(f"Not yet: {error}")
    except InterpreterError as error:
        print(f"Not yet: the kernel fails: {error}")
    else:
        print(f"Right: {praise}")
