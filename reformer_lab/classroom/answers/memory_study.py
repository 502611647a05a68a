"""What the package counts at the sizes of a variant of A5, as one JSON text that is recorded for students.

Tensors have shapes and no contents, so that any size can be counted anywhere, with the same result.
"""

import json
from functools import partial

import numpy as np
import torch
from reformer_ref.attention.api import shared_qk_attention
from reformer_ref.lsh_attention.api import lsh_attention
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.lsh_attention.streaming import use_block_size
from reformer_ref.memory.count import MetaCounter
from reformer_ref.model.config import ReformerConfig
from reformer_ref.model.pytorch import ReformerLM

from reformer_lab.classroom.exercises.memory import CHUNK, DEEPER, HEADS, step_sizes
from reformer_lab.plots.measured import read

MOMENTS = 200  # moments of a run that a picture shows
BLOCK = 1 << 20  # scores in a block of a whole model
LARGEST = 9  # tensors that are listed one by one
MADE = ("from forward, large", "from forward, small", "from backward")  # large: a stream at least
DTYPES = {2: torch.bfloat16, 4: torch.float32, 8: torch.float64}


def study(variant):
    """Counts of attention and of a training step, live bytes over time, and the record of speeds; see the exercises."""
    steps = {way: count_step(variant, way) for way in ("ordinary", "reversible", "reversible" + DEEPER)}
    record = read("bench_crossover")
    return json.dumps(
        {
            "attention": count_attention(variant),
            "step": {way: sizes for way, (sizes, _) in steps.items()},
            "over_time": {way: live for way, (_, live) in steps.items() if not way.endswith(DEEPER)},
            "record": {name: record[name] for name in ("command", "date", "machine", "points")},
        }
    )


def count_attention(variant):
    """{"dense" | "LSH": {tensor: bytes}}: what is alive at the peak of one forward pass of all heads."""
    shape, counts = (1, HEADS, variant.length), {}
    dtype = DTYPES[variant.number_bytes]
    qk, v = (torch.empty(*shape, variant.d_model // HEADS, dtype=dtype, device="meta") for _ in "qv")
    buckets = torch.empty(1, HEADS, variant.n_hashes, variant.length, dtype=torch.int64, device="meta")
    lsh = partial(
        lsh_attention,
        buckets=buckets,
        options=_options(variant),
        block_size=variant.scores_at_a_time,
        backend="streaming",
    )
    for name, attend in {"dense": shared_qk_attention, "LSH": lsh}.items():
        with MetaCounter() as counter:
            attend(qk, v)
        alive = sorted(((s.bytes, str(s.label).split(".")[1]) for s in counter.at_peak()), reverse=True)
        sizes = {f"{n}. made by {made}": size for n, (size, made) in enumerate(alive[:LARGEST], start=1)}
        counts[name] = {**sizes, "all others": counter.peak - sum(sizes.values())}
    return counts


def count_step(variant, way):
    """({part: bytes} at the peak of forward and backward, live bytes over time) of a whole language model."""
    length, n_layers, d_model, d_ff, vocab_size, reversible = step_sizes(variant, way)
    config = ReformerConfig(
        vocab_size=vocab_size, d_model=d_model, d_ff=d_ff, n_layers=n_layers, n_heads=HEADS, pattern=("lsh",),
        max_length=length, tie_head=variant.tied, reversible=reversible, ff_chunk=variant.ff_chunk,
        loss_chunk=variant.ff_chunk, lsh=_options(variant),
    )  # fmt: skip
    with MetaCounter() as counter, use_block_size(BLOCK):
        with torch.device("meta"):
            model = ReformerLM(config).to(DTYPES[variant.number_bytes])
            tokens = torch.zeros(1, variant.length, dtype=torch.int64)
            states = [torch.zeros_like(p) for p in model.parameters() for _ in range(variant.optimizer_states)]
        counter.tag([*model.parameters(), *model.buffers()], "weights")
        counter.tag(states, "optimizer")
        counter.forget_peak()
        start = counter.clock
        loss = model.loss(tokens)
        turn = counter.clock
        loss.backward()
        counter.tag([p.grad for p in model.parameters()], "gradients")
    stream = variant.length * variant.d_model * variant.number_bytes
    sizes = dict.fromkeys(("weights", "gradients", "optimizer", *MADE), 0)
    change = np.zeros(counter.clock + 1, dtype=np.int64)
    for s in counter.at_peak():
        made = MADE[2 if s.born > turn else s.bytes < stream]
        sizes[s.label if s.label in sizes else made] += s.bytes
    for s in counter.seen:
        change[s.born] += s.bytes
        if s.died <= counter.clock:
            change[s.died] -= s.bytes
    live = change.cumsum()[start:]
    return sizes, [int(chunk_of_moments.max()) for chunk_of_moments in np.array_split(live, min(MOMENTS, live.size))]


def _options(variant):
    return LSHOptions.preset("trax", n_hashes=variant.n_hashes, chunk_length=CHUNK, chunks_before=variant.n_look)
