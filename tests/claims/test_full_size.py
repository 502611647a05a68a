"""Operations against a count by hand; bytes against the paper's arithmetic; days from a pace."""

import pytest
import torch
from reformer_lab.claims import full_size
from reformer_lab.claims.experiment import merged, read_config
from reformer_ref.memory.count import Operations


def test_products_count_two_operations_for_a_multiply_add():
    a, b = torch.randn(3, 5, requires_grad=True), torch.randn(5, 7, requires_grad=True)
    with Operations() as counter:
        loss = (a @ b).sum()
    assert counter.count == 2 * 3 * 5 * 7
    with Operations() as counter:
        loss.backward()
    assert counter.count == 2 * 2 * 3 * 5 * 7  # one product for each of the two gradients
    with Operations() as counter:
        torch.nn.functional.relu(a).sum()
    assert counter.count == 0


@pytest.mark.parametrize("length", [64, 128])
@pytest.mark.parametrize("reversible", [False, True])
def test_a_training_step_counts_what_a_count_by_hand_gives(length, reversible):
    """Forward once, backward twice as much; reversible layers and the sliced loss run forward once
    more.
    """
    d, d_ff, vocab_size = 32, 48, 256
    model = {"d_model": d, "n_heads": 2, "d_ff": d_ff, "n_layers": 1, "pattern": ["dense"], "reversible": reversible,
             "vocab_size": vocab_size}  # fmt: skip
    weights = 3 * d * d + 2 * d * d_ff + 2 * d * vocab_size  # shared QK, values, output; the head sees both streams
    attention = 2 * length * d  # scores, weighted values
    forward = 2 * length * (weights + attention)
    counted = full_size.operations({"model": model, "length": length, "batch": 1})
    assert counted == (4 if reversible else 3) * forward


def test_operations_grow_with_the_square_in_full_attention_and_with_the_length_in_lsh_attention():
    model = {"d_model": 32, "n_heads": 2, "d_ff": 32, "n_layers": 1}
    kinds = {"dense": {}, "lsh": {"lsh": {"n_hashes": 1, "chunk_length": 16, "n_buckets": 16}}}
    grown = {}
    for kind, more in kinds.items():
        steps = [
            full_size.operations({"model": {**model, **more, "pattern": [kind]}, "length": n, "batch": 1})
            for n in (1024, 2048)
        ]
        grown[kind] = steps[1] / steps[0]
    assert grown["lsh"] == pytest.approx(2.0, rel=0.02)
    assert grown["dense"] > 3.5


def test_a_batch_counts_as_often_as_it_has_sequences():
    size = read_config("full_size", smoke=True)["sizes"]["translation"]
    assert full_size.operations({**size, "batch": 3}) == 3 * full_size.operations({**size, "batch": 1})


def test_bytes_are_those_of_the_papers_arithmetic():
    config = read_config("full_size")
    result = full_size.run({"bytes": config["bytes"]}, None)["bytes"]
    assert list(result.values()) == [2 * 10**9, 2**31, 2**34, 2**34]


def test_days_follow_from_operations_and_pace():
    config = merged(read_config("full_size", smoke=True), {})
    results = {
        "pace-lsh": {"operations": 10**9, "seconds": [2.0, 1.0, 4.0]},  # median: half a billion a second
        "size-figure4": {"operations": 5 * 10**8 * 86400},  # a day for each step
    }
    summary = full_size.summarise(config, results)
    assert summary["pace"] == {"lsh": 5e8}
    assert summary["days"] == {"figure4": pytest.approx(config["sizes"]["figure4"]["steps"])}
