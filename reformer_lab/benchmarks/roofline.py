"""How long LSH attention should take on an H200, from what its kernels load, store and multiply.

``python -m reformer_lab.benchmarks.roofline`` writes the record. The kernels run in Triton's interpreter, where loads,
stores and matrix products are counted. Every chunk does the same work, so counts are a straight line over the number of
chunks: they are counted at two lengths, checked at a third, and continued to a million tokens. No time is measured:
seconds are the larger of bytes / rate and operations / rate, once with every load from memory, and once with every
number loaded once per launch, as if caches kept all the rest (qk is loaded twice: as queries and as keys).
"""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import torch
import tyro
from reformer_ref._kernels import INTERPRETED
from reformer_ref.hashing.api import default_n_buckets
from reformer_ref.hashing.spec import factors_of
from reformer_ref.lsh_attention.api import lsh_attention
from reformer_ref.lsh_attention.options import LSHOptions
from tqdm.auto import tqdm

from reformer_lab.benchmarks import record
from reformer_lab.benchmarks.cases import CHUNK, D_HEAD, HEADS
from reformer_lab.kernels.counting import counting

ROUNDS = 4
LENGTHS = tuple(2**k for k in range(12, 21))
COUNTED, CHECKED = (4 * CHUNK, 6 * CHUNK), 8 * CHUNK
PRESETS = ("trax", "paper")
DTYPES = (torch.bfloat16, torch.float32)
# Rates of an H200, quoted: memory copied and bfloat16 products as measured on such a card; PyTorch's causal flash
# attention, forward and backward, d = 64. Products of float32 are three of TF32, at half the rate of bfloat16 (data
# sheet).
BYTES_PER_SECOND = 4.3e12
FLOPS_PER_SECOND = {torch.bfloat16: 788e12, torch.float32: 788e12 / 2 / 3}
DENSE_FLOPS_PER_SECOND = 284e12
QUANTITIES = ("bytes", "distinct_bytes", "operations")


def run(out: Path = Path("records/roofline.json")) -> None:
    """Count, predict and write the record.

    Args:
        out: where the record goes.
    """
    if not INTERPRETED:  # the kernels must be imported anew
        command = [sys.executable, "-m", "reformer_lab.benchmarks.roofline", *sys.argv[1:]]
        sys.exit(subprocess.run(command, env=dict(os.environ) | {"TRITON_INTERPRET": "1"}, check=False).returncode)
    record.require_place("--out", out)
    cases = [(preset, dtype) for preset in PRESETS for dtype in DTYPES]
    lines = [entry for case in tqdm(cases, unit="case") for entry in predictions(*case)]
    words = shlex.join(["python", "-m", "reformer_lab.benchmarks.roofline", *sys.argv[1:]])
    about = record.about(words, torch.get_num_threads()) | {"kind": "predicted", "heads": HEADS, "d": D_HEAD}
    rates = {"bytes_per_second": BYTES_PER_SECOND, "dense_flops_per_second": DENSE_FLOPS_PER_SECOND}
    rates["flops_per_second"] = {name_of(dtype): rate for dtype, rate in FLOPS_PER_SECOND.items()}
    record.write(out, {**about, "rounds": ROUNDS, "chunk": CHUNK, "rates": rates, "predictions": lines})
    print(table(json.loads(out.read_text(encoding="utf-8"))) + f"\nwritten {out}", flush=True)


def predictions(preset, dtype, lengths=LENGTHS):
    """A dict for each length: bytes, operations and seconds of hash, sort, forward and backward together."""
    small, large = (counted(preset, dtype, length) for length in COUNTED)
    checked = counted(preset, dtype, CHECKED)
    if checked != (expected := on_the_line(small, large, CHECKED)):
        raise ArithmeticError(f"counts are no straight line over the length: {checked} counted, {expected} expected")
    lines = []
    for length in lengths:
        total = {name: HEADS * n for name, n in on_the_line(small, large, length).items()}
        for other in (hash_counts(length, dtype), sort_counts(length)):
            total = {name: n + other[name] for name, n in total.items()}
        seconds = {
            way: max(total[name] / BYTES_PER_SECOND, total["operations"] / FLOPS_PER_SECOND[dtype])
            for way, name in (("seconds", "bytes"), ("seconds_with_caches", "distinct_bytes"))
        }
        entry = {"preset": preset, "dtype": name_of(dtype), "length": length, **total, **seconds}
        if dtype == torch.bfloat16:
            entry["dense_seconds"] = dense_flops(length) / DENSE_FLOPS_PER_SECOND
            entry["times_dense"] = entry["dense_seconds"] / entry["seconds"]
            entry["times_dense_with_caches"] = entry["dense_seconds"] / entry["seconds_with_caches"]
        lines.append(entry)
    return lines


def counted(preset, dtype, length):
    """{"bytes", "distinct_bytes", "operations"} of forward and backward, one head."""
    generator = torch.Generator().manual_seed(0)
    qk, v = (torch.randn(1, 1, length, D_HEAD, generator=generator).to(dtype).requires_grad_() for _ in "qv")
    buckets = torch.randint(0, 8, (1, 1, ROUNDS, length), generator=generator, dtype=torch.int16)
    options = LSHOptions.preset(preset, n_hashes=ROUNDS, chunk_length=CHUNK, causal=True)
    with counting(accesses=True) as counts:
        out = lsh_attention(qk, v, buckets, options, backend="triton")
        torch.autograd.grad(out, (qk, v), torch.ones_like(out))
    size = {name: t.bytes // max(1, t.elements) for table in (counts.loads, counts.stores) for name, t in table.items()}
    distinct = {}
    for access in counts.accesses:
        key = access.launch, access.kind, access.argument
        distinct.setdefault(key, set()).update(access.elements.tolist())
    return {
        "bytes": counts.bytes_read + counts.bytes_written,
        "distinct_bytes": sum(len(elements) * size[argument] for (_, _, argument), elements in distinct.items()),
        "operations": counts.dot_operations,
    }


def on_the_line(small, large, length):
    """The counts at ``length`` on the line through those at the two lengths of COUNTED."""
    first, second = COUNTED
    return {n: small[n] + (large[n] - small[n]) * (length - first) // (second - first) for n in QUANTITIES}


def hash_counts(length, dtype):
    """The hash of all heads, from its shapes: vectors read and buckets written (and read) once for each factor."""
    factors = factors_of(default_n_buckets(length, CHUNK))
    vectors = HEADS * length * D_HEAD * dtype.itemsize * len(factors)
    buckets = HEADS * ROUNDS * length * 8 * (2 * len(factors) - 1)
    columns = sum(factors) // 2
    rotations = HEADS * ROUNDS * D_HEAD * columns * dtype.itemsize
    operations = 2 * HEADS * ROUNDS * length * D_HEAD * columns
    blocks = -(-length // 64)  # every program reads all columns
    return {
        "bytes": vectors + buckets + rotations * blocks, "distinct_bytes": vectors + buckets + rotations,
        "operations": operations,
    }  # fmt: skip


def sort_counts(length):
    """The sort of all rounds, from its shapes: narrowing to int16, two passes of 8 bits over keys and int64 positions,
    positions narrowed to int32.
    """
    rows = HEADS * ROUNDS * length
    moved = rows * ((8 + 2) + 2 * 2 * (2 + 8) + (8 + 4))
    return {"bytes": moved, "distinct_bytes": moved, "operations": 0}


def dense_flops(length):
    """Causal attention of all heads, forward and backward: 7 products, of half the pairs."""
    return 7 * length**2 * D_HEAD * HEADS


def name_of(dtype):
    """float32 for torch.float32."""
    return str(dtype).removeprefix("torch.")


def table(data):
    """The record as a table in Markdown; every figure is predicted."""
    lines = [
        "| preset, precision | tokens | moved, GB | with caches, GB | operations, 10⁹ | ms | with caches | dense, ms | "
        "times dense | with caches |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for p in data["predictions"]:
        if p["length"] in (4096, 16384, 65536, 262144, 1048576):
            dense = ["", "", ""]
            if "dense_seconds" in p:
                dense = [f"{1e3 * p['dense_seconds']:,.2f}", f"{p['times_dense']:.1f}",
                         f"{p['times_dense_with_caches']:.1f}"]  # fmt: skip
            cells = [
                f"{p['preset']}, {p['dtype']}", f"{p['length']:,}", f"{p['bytes'] / 1e9:.2f}",
                f"{p['distinct_bytes'] / 1e9:.2f}", f"{p['operations'] / 1e9:,.0f}", f"{1e3 * p['seconds']:.2f}",
                f"{1e3 * p['seconds_with_caches']:.2f}", *dense,
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    tyro.cli(run)
