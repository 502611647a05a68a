"""A5, memory and the crossover: answers against the package's counters, the notebook, wrong
solutions.
"""

import json
import math

import nbformat
import numpy as np
import pytest
import torch
from reformer_lab.classroom import material
from reformer_lab.classroom.answers import answer
from reformer_lab.classroom.checks import check
from reformer_lab.classroom.exercises import memory
from reformer_lab.classroom.grading import grade
from reformer_lab.classroom.policy import broken_rules
from reformer_lab.classroom.variants import Variant
from reformer_ref.attention.api import shared_qk_attention
from reformer_ref.hashing.api import hash_vectors
from reformer_ref.lsh_attention.api import lsh_attention
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.lsh_attention.windows import Windows
from reformer_ref.memory.count import Counter
from reformer_ref.model.config import ReformerConfig
from reformer_ref.model.pytorch import ReformerLM
from torch.utils.flop_counter import FlopCounterMode

FOLDER = material.FOLDER
VARIANTS = [Variant(), *(Variant.draw(seed).only("A5") for seed in range(5))]
WRONG = json.loads((FOLDER / "wrong" / "A5_memory.json").read_text(encoding="utf-8"))
NOTEBOOK = nbformat.read(FOLDER / "source" / "A5_memory" / "A5_memory.ipynb", as_version=4)
CELLS = {cell.id: cell.source for cell in NOTEBOOK.cells}
FUNCTIONS = {"peak": "peak_bytes", "scores": "score_bytes", "step": "step_bytes"}
FUNCTIONS |= {"operations": "operations", "crossover": "crossover"}


@pytest.fixture(params=range(len(VARIANTS)))
def variant(request):
    return VARIANTS[request.param]


def reference(part, variant):
    return answer(f"A5.{part}").reference(variant)


def written(part, source, variant):
    """The function that an answer cell defines."""
    there = {"np": np, "VARIANT": variant}
    exec(source, there)
    return there[FUNCTIONS[part]]


def lost(part, fn, variant):
    """The graded cells that fail with this function."""
    cells = set()
    for kind, test in (("check", check), ("hidden", grade)):
        try:
            test(f"A5.{part}", fn, variant)
        except AssertionError:
            cells.add(f"A5-{part}-{kind}")
    return cells


def test_peak_is_that_of_the_packages_counter():
    x = torch.randn(60, 20, requires_grad=True)
    with Counter("cpu") as counter:
        (torch.softmax(x @ x.T, -1) @ x).square().sum().backward()
    end = [-1 if math.isinf(s.died) else s.died for s in counter.seen]
    rows = (range(len(counter.seen)), [s.bytes for s in counter.seen], [s.born for s in counter.seen], end)
    peak, moment = reference("peak", Variant())(*(np.array(row) for row in rows))
    assert (peak, moment) == (counter.peak, counter.peak_at)


def test_scores_are_those_of_the_packages_windows(variant):
    for length, n_heads, n_hashes, c in [(1000, 2, 3, 64), (97, 4, 2, 8), (variant.length, 2, 1, 64)]:
        width = 1 + variant.n_look
        options = LSHOptions.preset("trax", n_hashes=n_hashes, chunk_length=c, chunks_before=variant.n_look)
        windows = Windows(torch.zeros(n_heads, n_hashes, length, dtype=torch.int64), options)
        blocks = [block.queries.numel() * width * c for block in windows.blocks(variant.scores_at_a_time)]
        dense, chunked, streamed = reference("scores", variant)(length, n_heads, n_hashes, c)
        assert dense == n_heads * length**2 * variant.number_bytes
        assert chunked == sum(blocks) * variant.number_bytes
        assert streamed / 2 < max(blocks) * variant.number_bytes <= streamed  # the package makes blocks equally long


@pytest.mark.parametrize("tied", [False, True])
def test_weights_are_those_of_a_model(tied):
    variant = Variant(tied=tied)
    with torch.device("meta"):
        model = ReformerLM(ReformerConfig(vocab_size=999, d_model=128, n_layers=3, pattern=("lsh",), tie_head=tied))
    weights, _, _ = reference("step", variant)(64, 3, 128, 512, 999, True)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "position" not in name]
    assert weights == 4 * 4 * sum(p.numel() for p in matrices)


def test_operations_are_those_that_pytorch_counts(variant):
    length, d, n_hashes, c, n_look = 500, 16, 2, 32, 2
    in_place = {torch.ops.aten.baddbmm_: lambda scores, a, b, **_: 2 * math.prod(a) * b[-1]}
    qk, v = (torch.empty(1, length, d, device="meta", requires_grad=True) for _ in "qv")
    buckets = torch.empty(1, n_hashes, length, dtype=torch.int64, device="meta")
    options = LSHOptions.preset("trax", n_hashes=n_hashes, chunk_length=c, chunks_before=n_look)
    attend = {
        "dense": lambda: shared_qk_attention(qk, v),
        "lsh": lambda: lsh_attention(qk, v, buckets, options, backend="streaming"),
    }
    found = {}
    for name, fn in attend.items():
        with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
            out = fn()
            if variant.operations == "training":
                out.sum().backward()
        found[name] = counter.get_total_flops()
    n_buckets = 2 * (length // c)
    with FlopCounterMode(display=False) as counter:
        hash_vectors(qk.detach(), torch.empty(n_hashes, d, n_buckets // 2, device="meta"), n_buckets)
    dense, lsh = reference("operations", variant)(length, d, n_hashes, c, n_look)
    assert lsh == found["lsh"] + counter.get_total_flops() + n_hashes * 4 * length * 9
    assert dense == found["dense"] * (1 if variant.dense_pairs == "all" else (length + 1) / (2 * length))


def test_crossover_is_the_first_of_all_lengths(variant):
    rng = np.random.default_rng(0)
    for _ in range(30):
        costs = [int(n) for n in (rng.integers(1, 20), rng.integers(0, 3), rng.integers(1, 3000), rng.integers(0, 9))]
        c, longest = (int(n) for n in (rng.integers(4, 40), rng.integers(1, 30_000)))
        dense, lsh = memory.cost_functions(*costs)
        lengths = list(range(c, longest + 1, c))[: memory.ASKED]
        paying = [n for n in lengths if variant.margin * lsh(n) < dense(n)]
        expected = paying[0] if paying else 0
        assert (
            reference("crossover", variant)(*memory.cost_functions(*costs), c, lengths[-1] if lengths else 1)
            == expected
        )


def test_solutions_of_the_notebook_lose_nothing(variant):
    for part in FUNCTIONS:
        assert broken_rules(CELLS[f"A5-{part}"]) == []
        assert lost(part, written(part, CELLS[f"A5-{part}"], variant), variant) == set()


def test_lists_of_numpy_numbers_are_as_good_as_tuples_of_ints():
    for part in ("peak", "scores", "step", "operations"):
        fn = reference(part, Variant())
        assert lost(part, lambda *args, fn=fn: [np.int64(n) for n in fn(*args)], Variant()) == set()


@pytest.mark.parametrize("part", FUNCTIONS)
def test_the_conventions_of_the_package_do_not_do_in_drawn_variants(part):
    packages_own = reference(part, Variant())
    for variant in (Variant.draw(seed).only("A5") for seed in range(12)):
        assert lost(part, packages_own, variant) == {f"A5-{part}-check", f"A5-{part}-hidden"}


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong["name"])
def test_wrong_solutions_lose_exactly_what_they_should(wrong):
    ((cell, source),) = wrong["cells"].items()
    assert broken_rules(source) == []
    part = cell.removeprefix("A5-")
    for variant in VARIANTS:
        assert lost(part, written(part, source, variant), variant) == set(wrong["loses"]), variant


def test_wrong_solutions_are_enough():
    assert len(WRONG) >= 6
    assert any(len(wrong["loses"]) == 1 for wrong in WRONG)
    assert {next(iter(wrong["cells"])) for wrong in WRONG} == {f"A5-{part}" for part in FUNCTIONS}


def test_points_and_definitions_of_the_notebook():
    graded = {c.id: c.metadata.nbgrader for c in NOTEBOOK.cells if c.metadata.get("nbgrader", {}).get("grade")}
    by_hand = [cell["points"] for cell in graded.values() if cell["solution"]]
    assert sum(cell["points"] for cell in graded.values()) == 100
    assert by_hand == [4] * 8
    table = CELLS["aims"].split("| **together**")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
    assert sum(int(points) for *_, points in rows[1:]) == 100
    described = {c.metadata.reformer_ref.describe: c.source for c in NOTEBOOK.cells if "reformer_ref" in c.metadata}
    assert described == {key: Variant().describe(key) for key in memory.DESCRIBE}


def test_the_study_counts_what_the_texts_say():
    study = memory.study(Variant())
    dense, _, streamed = reference("scores", Variant())(8192, memory.HEADS, 2, memory.CHUNK)
    sizes = list(study["attention"]["dense"].values())
    assert sizes[:3] == [dense] * 3  # three tensors of the size of all scores
    assert sizes[3:5] == [8192**2] * 2  # two tables of booleans
    assert sum(sizes[:5]) > 0.99 * sum(sizes)
    assert streamed in study["attention"]["LSH"].values()
    step, deeper = study["step"], "reversible" + memory.DEEPER
    large, small, stream = "from forward, large", "from forward, small", 8192 * 256 * 4
    assert abs(step["ordinary"][large] / stream - 7 * 6) < 0.01
    assert [step[way][large] for way in ("reversible", deeper)] == [2 * stream] * 2
    assert step["reversible"]["from backward"] == step[deeper]["from backward"]
    buckets = 2 * memory.HEADS * 2 * 8192  # bytes, heads, rounds, tokens
    assert abs(step[deeper][small] - step["reversible"][small] - 2 * buckets) < 0.1 * buckets
    assert 10 * step["ordinary"]["gradients"] < 2 * step["reversible"]["gradients"]
    for way, parts in study["step"].items():
        predicted = sum(reference("step", Variant())(*memory.step_sizes(Variant(), way)))
        assert 1 < sum(parts.values()) / predicted < 1.4
        assert way.endswith(memory.DEEPER) or max(study["over_time"][way]) == sum(parts.values())


def test_model_and_clock_are_set_side_by_side():
    record = memory.study(Variant())["record"]
    functions = [reference(part, Variant()) for part in ("operations", "crossover")]
    assert [memory.model_crossover(*functions, n) for n in (1, 4)] == [320, 1280]
    assert memory.measured_crossover(record, 1, 1) == "512 or less (no shorter length was measured)"
    assert "a line between 1,024 and 2,048" in memory.measured_crossover(record, 4, 1)
    assert "a line between 2,048 and 4,096" in memory.measured_crossover(record, 4, 2)
