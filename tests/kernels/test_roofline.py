"""The prediction for an H200: what is counted, and what the page says."""

import json
from pathlib import Path

import pytest
import torch
from reformer_lab.benchmarks import roofline
from reformer_lab.kernels.counting import counting
from reformer_lab.records import FOLDER
from reformer_ref.hashing.api import default_n_buckets, hash_vectors, random_rotations

pytestmark = pytest.mark.kernels

RECORD = json.loads((FOLDER / "roofline.json").read_text(encoding="utf-8"))
PAGE = Path(__file__).parents[2] / "docs/gpu.md"


def test_the_record_is_what_is_counted_now():
    lengths = (4096, 1 << 20)
    now = roofline.predictions("trax", torch.bfloat16, lengths)
    wanted = [p for p in RECORD["predictions"] if (p["preset"], p["dtype"]) == ("trax", "bfloat16")]
    assert now == [p for p in wanted if p["length"] in lengths]


@pytest.mark.parametrize("length", [128, 640])
def test_the_hash_as_counted_from_its_loads_and_stores(length):
    n_buckets = default_n_buckets(length, roofline.CHUNK)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, roofline.HEADS, length, roofline.D_HEAD, generator=generator)
    rotations = random_rotations(generator, roofline.ROUNDS, roofline.D_HEAD, n_buckets, roofline.HEADS)
    with counting() as counts:
        hash_vectors(x, rotations, n_buckets, backend="triton")
    expected = roofline.hash_counts(length, torch.float32)
    assert counts.bytes_read + counts.bytes_written == expected["bytes"]


def test_a_kernel_whose_counts_are_no_straight_line_is_refused(monkeypatch):
    numbers = dict.fromkeys(roofline.QUANTITIES, 0)
    monkeypatch.setattr(roofline, "counted", lambda preset, dtype, length: dict.fromkeys(numbers, length**2))
    with pytest.raises(ArithmeticError, match="no straight line"):
        roofline.predictions("trax", torch.bfloat16)


def test_dense_attention_takes_as_long_as_quoted():
    """3.4 ms at 16,384 tokens, 54 ms at 65,536."""
    for length, ms in ((16384, 3.4), (65536, 54)):
        assert 1e3 * roofline.dense_flops(length) / roofline.DENSE_FLOPS_PER_SECOND == pytest.approx(ms, rel=0.01)


def test_the_page_shows_the_record():
    assert RECORD["kind"] == "predicted"
    assert roofline.table(RECORD) in PAGE.read_text(encoding="utf-8")
