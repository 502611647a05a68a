"""One more token: from our cache, by computing the forward pass again, and from the cache of transformers.

``reformer-ref bench decoding``: 6 layers (local, lsh in turn), d_model 256, 4 heads, d_ff 1024, 2 rounds, chunks of 64,
one row, float32. Milliseconds per token after different numbers of tokens; whole generations of 4,096 tokens.
"""

import statistics
import time
from importlib.util import find_spec
from pathlib import Path

import torch
from reformer_ref.generation import Decoder
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.model.config import ReformerConfig
from reformer_ref.model.pytorch import ReformerLM

from reformer_lab.benchmarks import record
from reformer_lab.benchmarks.worker import seconds_of

LENGTHS, GENERATED, SAMPLED, STEPS = (1024, 4096, 16384, 65536), 4096, 16, 32
LONGEST_THERE = 16384  # where transformers is no longer asked


def run(command, line):
    """The exit code of ``bench decoding``; writes bench_decoding.json."""
    from reformer_lab.options import set_threads  # it needs tyro, which a bare checkout may lack

    threads = set_threads(command.threads)
    lengths = (64, 128) if command.quick else command.length or LENGTHS
    repeats, generated = (1, 16) if command.quick else (command.repeats or 5, GENERATED)
    result = record.about(line, threads) | {"case": "decoding", "repeats": repeats, "points": []}
    model = ours(max(lengths) + STEPS)
    tokens = random_tokens(max(lengths) + STEPS)
    theirs = None
    if find_spec("transformers") and (not command.only or "huggingface" in command.only):
        theirs = transformers_model(min(max(lengths), LONGEST_THERE) + STEPS)
    for length in lengths:
        point = {"length": length, **decoder_point(model, tokens, length, repeats)}
        if theirs is not None and length <= LONGEST_THERE:
            point["huggingface_seconds"] = their_steps(theirs, tokens, length, repeats)
        result["points"].append(point)
        _print_point(point)
    result["generated"] = whole_generation(ours(generated + 1), tokens, generated)
    _print_point(result["generated"])
    if command.out is not None or not command.quick:
        out = command.out or Path("records")
        path = out if out.suffix == ".json" else out / "bench_decoding.json"
        record.write(path, result)
        print(f"written {path}")
    return 0


def ours(max_length):
    """The model, strictly causal, with positions for ``max_length`` tokens."""
    lsh = LSHOptions.preset("strict", n_hashes=2, chunk_length=64)
    sizes = {"d_model": 256, "n_layers": 6, "n_heads": 4, "d_ff": 1024}
    return ReformerLM(ReformerConfig(**sizes, pattern=("local", "lsh"), lsh=lsh, max_length=max_length)).eval()


def transformers_model(max_length):
    """The same shapes in transformers, whose cached decoding is another function than its forward pass."""
    import transformers

    rows = -(-max_length // 128)
    config = transformers.ReformerConfig(
        attn_layers=["local", "lsh"] * 3, vocab_size=256, hidden_size=256, num_attention_heads=4,
        attention_head_size=64, feed_forward_size=1024, num_hashes=2, num_buckets=128, is_decoder=True,
        axial_pos_shape=(rows, 128), axial_pos_embds_dim=(128, 128), max_position_embeddings=rows * 128, hash_seed=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        return transformers.ReformerModelWithLMHead(config).eval()


def random_tokens(length):
    """(1, length), the same every time."""
    return torch.randint(256, (1, length), generator=torch.Generator().manual_seed(0))


def decoder_point(model, tokens, length, repeats, device="cpu"):
    """Seconds per token after ``length`` tokens, one figure per repeat, and the bytes that are kept."""
    decoder = Decoder(model)
    decoder.prefill(tokens[:, :length])
    steps = STEPS // repeats or 1

    def some_steps():
        for i in range(steps):
            decoder.step(tokens[:, length + i])

    seconds = [seconds_of(some_steps, device) / steps for _ in range(repeats)]
    return {"ours_seconds": seconds, "kept_bytes": sum(x.numel() * x.element_size() for x in decoder.tensors())}


@torch.no_grad()
def their_steps(model, tokens, length, repeats):
    """The same from the cache of transformers."""
    with torch.random.fork_rng():
        past = model(tokens[:, :length], use_cache=True).past_buckets_states
        seconds = []
        for i in range(repeats):
            begin = time.perf_counter()
            past = model(tokens[:, length + i : length + i + 1], past_buckets_states=past, use_cache=True)
            past = past.past_buckets_states
            seconds.append(time.perf_counter() - begin)
    return seconds


@torch.no_grad()
def whole_generation(model, tokens, generated):
    """Seconds for ``generated`` tokens from the cache, measured; by recomputing, from a sample of all the passes."""
    decoder = Decoder(model)
    begin = time.perf_counter()
    logits = decoder.prefill(tokens[:, :1])
    for _ in range(generated - 1):
        logits = decoder.step(logits.argmax(-1))
    cached = time.perf_counter() - begin
    step, again = max(1, generated // SAMPLED), []
    for n in range(step, generated + 1, step):
        begin = time.perf_counter()
        model(tokens[:, :n])
        again.append(time.perf_counter() - begin)
    return {"tokens": generated, "cached_seconds": cached, "recomputed_seconds": statistics.mean(again) * generated,
            "recomputed_from": len(again)}  # fmt: skip


def _print_point(point):
    if "tokens" in point:
        ratio = point["recomputed_seconds"] / point["cached_seconds"]
        print(
            f"{point['tokens']:,} tokens generated: {point['cached_seconds']:.1f} s from the cache; recomputing would "
            f"take "
            f"{point['recomputed_seconds']:.0f} s, {ratio:.0f} times as long (from {point['recomputed_from']} passes)",
            flush=True,
        )
        return
    text = f"after {point['length']:,} tokens: {statistics.median(point['ours_seconds']) * 1e3:.2f} ms per token"
    if "huggingface_seconds" in point:
        text += f", transformers {statistics.median(point['huggingface_seconds']) * 1e3:.2f} ms"
    print(f"{text}; {point['kept_bytes'] / 2**20:.0f} MiB kept", flush=True)
