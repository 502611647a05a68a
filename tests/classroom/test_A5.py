"""A5, memory and the crossover: answers against the package's counters, the notebook, wrong solutions."""

import math

import numpy as np
import pytest
import torch
from reformer_lab.classroom.answers import answer
from reformer_lab.classroom.exercises import memory
from reformer_lab.classroom.variants import Variant
from reformer_ref.attention.api import shared_qk_attention
from reformer_ref.hashing.api import hash_vectors
from reformer_ref.lsh_attention.api import lsh_attention
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.memory.count import Counter, MetaCounter
from reformer_ref.model.config import ReformerConfig
from reformer_ref.model.pytorch import ReformerLM
from tests.classroom.harness import NOTEBOOKS, cells, lost, marks, variants
from torch.utils.flop_counter import FlopCounterMode

VARIANTS = variants("A5_memory")


@pytest.fixture(params=range(len(VARIANTS)))
def variant(request):
    return VARIANTS[request.param]


def reference(part, variant):
    return answer(f"A5.{part}").reference(variant)


def test_peak_is_that_of_the_packages_counter():
    x = torch.randn(60, 20, requires_grad=True)
    with Counter("cpu") as counter:
        (torch.softmax(x @ x.T, -1) @ x).square().sum().backward()
    end = [-1 if math.isinf(s.died) else s.died for s in counter.seen]
    rows = (range(len(counter.seen)), [s.bytes for s in counter.seen], [s.born for s in counter.seen], end)
    peak, moment = reference("peak", Variant())(*(np.array(row) for row in rows))
    assert (peak, moment) == (counter.peak, counter.peak_at)


def count_operations(run):
    """The floating-point operations of matrix products that PyTorch counts."""
    in_place = {torch.ops.aten.baddbmm_: lambda scores, a, b, **_: 2 * math.prod(a) * b[-1]}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        run()
    return counter.get_total_flops()


def lsh_inputs(n_heads, length, d, n_hashes, c, n_look, **like):
    """Arguments of LSH attention without contents: qk, v, buckets, options."""
    qk, v = (torch.empty(1, n_heads, length, d, device="meta", **like) for _ in "qv")
    buckets = torch.empty(1, n_heads, n_hashes, length, dtype=torch.int64, device="meta")
    options = LSHOptions.preset("trax", n_hashes=n_hashes, chunk_length=c, chunks_before=n_look)
    return qk, v, buckets, options


def test_scores_are_those_of_the_packages_attention(variant):
    for length, n_heads, n_hashes, c in [(1000, 2, 3, 64), (97, 4, 2, 8), (variant.length, 2, 1, 64)]:
        inputs = lsh_inputs(n_heads, length, 1, n_hashes, c, variant.n_look)
        dense, chunked, streamed = reference("scores", variant)(length, n_heads, n_hashes, c)
        assert dense == n_heads * length**2 * variant.number_bytes
        products = count_operations(lambda inputs=inputs: lsh_attention(*inputs, backend="streaming"))
        assert chunked == products / 4 * variant.number_bytes  # two products, with queries and values of one number
        with MetaCounter() as counter:
            lsh_attention(*inputs, backend="streaming", block_size=variant.scores_at_a_time)
        largest = max(s.bytes for s in counter.seen) / 4 * variant.number_bytes  # float32
        assert streamed / 2 < largest <= streamed  # the package makes blocks equally long


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
    qk, v, buckets, options = lsh_inputs(1, length, d, n_hashes, c, n_look, requires_grad=True)

    def operations(attend):
        def step():
            out = attend()
            if variant.operations == "training":
                out.sum().backward()

        return count_operations(step)

    n_buckets = 2 * (length // c)
    rotations = torch.empty(n_hashes, d, n_buckets // 2, device="meta")
    hashing = count_operations(lambda: hash_vectors(qk.detach(), rotations, n_buckets))
    dense, lsh = reference("operations", variant)(length, d, n_hashes, c, n_look)
    streamed = operations(lambda: lsh_attention(qk, v, buckets, options, backend="streaming"))
    assert lsh == streamed + hashing + n_hashes * 4 * length * 9
    fraction = (length + 1) / (2 * length) if variant.dense_pairs == "half" else 1
    assert dense == operations(lambda: shared_qk_attention(qk, v)) * fraction


def test_crossover_is_the_first_of_all_lengths(variant):
    rng = np.random.default_rng(0)
    for _ in range(30):
        costs = [int(n) for n in (rng.integers(1, 20), rng.integers(0, 3), rng.integers(1, 3000), rng.integers(0, 9))]
        c, longest = (int(n) for n in (rng.integers(4, 40), rng.integers(1, 30_000)))
        dense, lsh = memory.cost_functions(*costs)
        lengths = list(range(c, longest + 1, c))[: memory.ASKED]
        paying = [n for n in lengths if variant.margin * lsh(n) < dense(n)]
        expected = paying[0] if paying else 0
        longest = lengths[-1] if lengths else 1
        assert reference("crossover", variant)(*memory.cost_functions(*costs), c, longest) == expected


def test_lists_of_numpy_numbers_are_as_good_as_tuples_of_ints():
    for part in ("peak", "scores", "step", "operations"):
        fn = reference(part, Variant())
        assert lost(f"A5.{part}", lambda *args, fn=fn: [np.int64(n) for n in fn(*args)], Variant()) == []


def test_points_by_hand_and_the_table_of_parts():
    graded = [marks(cell) for cell in NOTEBOOKS["A5_memory"].cells if marks(cell).get("grade")]
    assert [cell["points"] for cell in graded if cell["solution"]] == [4] * 8
    table = cells("A5_memory")["aims"].split("| **together**")[0]
    points = [line.split("|")[-2].strip() for line in table.splitlines() if line.startswith("| ")]
    assert sum(map(int, points[1:])) == 100


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
