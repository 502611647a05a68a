"""``reformer-ref million``: train a step on a real text as one single sequence of 2^20 bytes, and
say what it took.
"""

import hashlib
import json
import math
import re
import sys
import time
from pathlib import Path

from reformer_ref._arguments import clear_errors, require_bool, require_int, shown

MILLION, LONGEST = 1 << 20, 1 << 30
UNFOLLOWED = "embedding and loss"  # what no half of the model does


def add_million_arguments(parser):
    """Options of the command ``million``."""
    parser.description = (
        "Train a ReformerLM for one step, or a few, on the bytes of a text as one single sequence, by default of 2^20 "
        "bytes, and print the loss, the time of every part and the peak memory of the whole process."
    )
    add = parser.add_argument
    add("--text", metavar="PATH", required=True, help="the text; any file will do, its bytes are the tokens")
    add("--repeat-text", action="store_true", help="begin again where the text is shorter than the sequence")
    add("--length", type=int, default=MILLION, help="bytes in the sequence, from the beginning of the text")
    add("--layers", type=int, default=6, help="number of layers")
    add("--d-model", type=int, default=256, help="width of each of the two residual streams")
    add("--heads", type=int, default=4, help="attention heads")
    add("--d-ff", type=int, default=1024, help="width of the feed-forward layers")
    add("--rounds", type=int, default=2, help="rounds of hashing")
    add("--chunk-length", type=int, default=64, help="tokens in one chunk of attention")
    add("--pattern", default="lsh", help="kinds of attention, repeated over the layers, such as local,lsh")
    add("--preset", default="trax", help="LSH attention as in: paper, trax, huggingface, lucidrains, strict")
    add("--slice", type=int, default=4096, help="positions of feed-forward and loss worked on at a time")
    add("--steps", type=int, default=1, help="training steps, all on the same sequence")
    add("--lr", type=float, default=1e-3, help="learning rate of Adam")
    add("--seed", type=int, default=0, help="of weights and rotations")
    add("--threads", type=int, help="CPU threads (default: all cores)")
    add("--loss-after", action="store_true", help="also the loss after the last step: one more forward pass")
    add("--no-progress", action="store_true", help="no progress bar")
    add("--out", type=Path, default=Path("records/million.json"), help="where the record goes")
    parser.set_defaults(run=run_million, command="reformer-ref million")


def run_million(args):
    """``million``: the exit code, 1 if memory runs out. ValueError, TypeError for arguments that do
    not fit.
    """
    import torch
    from reformer_ref._arguments import require_float
    from reformer_ref.model.pytorch import ReformerLM

    from reformer_lab.benchmarks import record

    require_int("--steps", args.steps), require_int("--seed", args.seed, 0)
    if require_float("--lr", args.lr, 0.0) == 0.0:
        raise ValueError("--lr must be more than 0, got 0")
    threads = record.usable_cores() if args.threads is None else require_int("--threads", args.threads)
    config, _ = million_config(args), record.require_place("--out", args.out)
    tokens, about_text = read_tokens(args.text, args.length, args.repeat_text)
    torch.set_num_threads(threads)
    before, start = record.peak_rss(), time.perf_counter()
    try:
        model = ReformerLM(config)
    except (RuntimeError, MemoryError) as error:
        return _out_of_memory(error)
    data = {
        **record.about(args.command, threads), "text": about_text, "config": json.loads(config.to_json()),
        "preset": args.preset, "learning_rate": args.lr, "parameters": sum(p.numel() for p in model.parameters()),
        "build_seconds": time.perf_counter() - start, "peak_rss_before_model_bytes": before,
    }  # fmt: skip
    print(
        f"text   {about_text['name']}: {args.length:,} bytes as one sequence\n"
        f"model  {data['parameters']:,} parameters: {config.n_layers} layers ({', '.join(config.pattern)}), d_model "
        f"{config.d_model}, {config.n_heads} heads, d_ff {config.d_ff}, {config.lsh.n_hashes} rounds ({args.preset})",
        flush=True,
    )
    try:
        data |= train(model, tokens, args)
    except (RuntimeError, MemoryError) as error:
        return _out_of_memory(error)
    data["peak_rss_bytes"] = record.peak_rss()
    record.write(args.out, data)
    print(summary(data) + f"\nwritten {args.out}", flush=True)
    return 0


def _out_of_memory(error):
    """Say so and return the exit code 1; any other error is raised again."""
    if not (isinstance(error, MemoryError) or re.search("allocate memory|overflow", str(error))):
        raise error
    print(f"reformer-ref: out of memory: {' '.join(str(error).split())}", file=sys.stderr)
    return 1


def million_config(args):
    """The ReformerConfig that the options describe."""
    from reformer_ref.lsh_attention.options import LSHOptions
    from reformer_ref.model.config import ReformerConfig

    return ReformerConfig(
        vocab_size=256, d_model=args.d_model, n_layers=args.layers, n_heads=args.heads, d_ff=args.d_ff,
        pattern=tuple(kind.strip() for kind in args.pattern.split(",")),
        max_length=require_int("--length", args.length, minimum=2), ff_chunk=args.slice, loss_chunk=args.slice,
        lsh=LSHOptions.preset(args.preset, n_hashes=args.rounds, chunk_length=args.chunk_length), seed=args.seed,
    )  # fmt: skip


def read_tokens(path, length, repeat=False):
    """(tokens int64 (1, length), what the record says about the text). ValueError for a text that
    is too short.
    """
    import numpy as np
    import torch

    from reformer_lab.data.text import read_text

    data, length = read_text(path), require_int("length", length, 2, LONGEST)
    if data.size < length and not repeat:
        raise ValueError(
            f"--text {path} has {data.size:,} bytes, the sequence {length:,}; give a longer text, a smaller --length, "
            "or --repeat-text to begin it again"
        )
    about = {
        "name": Path(path).name, "bytes": int(data.size), "sha256": hashlib.sha256(data.tobytes()).hexdigest(),
        "used_bytes": length, "repeated": bool(data.size < length),
    }  # fmt: skip
    return torch.from_numpy(np.resize(data, length).astype(np.int64))[None], about


def train(model, tokens, args):
    """Take the steps: {"steps": [per step: bits_per_byte before it, seconds, parts,
    peak_rss_bytes], …}.
    """
    import torch

    from reformer_lab.benchmarks.record import peak_rss
    from reformer_lab.data.text import bits
    from reformer_lab.training.loop import step_generator

    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    model.train()
    steps, after = [], {}
    with Clock(model, args.steps, args.no_progress) as clock:
        for number in range(args.steps):
            clock.begin()
            optimizer.zero_grad(set_to_none=True)
            clock.now(f"forward, {UNFOLLOWED}")
            loss = model.loss(tokens, generator=step_generator(args.seed, number))
            value = bits(loss.item())
            if not math.isfinite(value):
                raise FloatingPointError(f"the loss is {value} at step {number + 1}; try a lower --lr")
            clock.now(f"backward, {UNFOLLOWED}")
            loss.backward()
            clock.now("optimiser")
            optimizer.step()
            parts = clock.end()
            seconds = sum(parts.values())
            steps.append({"bits_per_byte": value, "seconds": seconds, "parts": parts, "peak_rss_bytes": peak_rss()})
        if args.loss_after:
            clock.begin()
            with torch.no_grad():
                after["bits_per_byte_after"] = bits(
                    model.loss(tokens, generator=step_generator(args.seed, args.steps)).item()
                )
    return {"steps": steps, **after}


class Clock:
    """Time by part, and a progress bar: one tick for each half of each layer, forward and backward.

    It listens where a reversible stack calls its halves, ``add_`` and ``subtract_``; what is done
    elsewhere counts for the part that ``now`` has named.
    """

    def __init__(self, model, steps, quiet):
        from tqdm.auto import tqdm

        if not hasattr(model, "backbone"):
            raise TypeError(f"model must be a ReformerLM, got {shown(model)}")
        require_int("steps", steps), require_bool("quiet", quiet)
        self.layers = [
            layer for block in model.backbone.stack.blocks for layer in block.layers if hasattr(layer, "add_")
        ]
        often = 0.5 if sys.stderr.isatty() else 20.0  # seconds; a log file needs fewer lines than a terminal
        total = 2 * len(self.layers) * steps
        self.bar = tqdm(total=total, unit="half", disable=quiet, mininterval=often, dynamic_ncols=True)
        self.seconds, self.part, self.since = {}, None, None

    def __enter__(self):
        for half in self.layers:
            what = f"{half.kind} attention" if hasattr(half, "kind") else "feed-forward"
            half.add_ = self._timed(f"forward, {what}", half.add_)
            half.subtract_ = self._timed(f"backward, {what}", half.subtract_)
        return self

    def __exit__(self, *error):
        for half in self.layers:
            del half.add_, half.subtract_  # the methods of the class come to light again
        self.bar.close()

    def begin(self):
        """A step begins."""
        self.seconds, self.part, self.since = {}, None, time.perf_counter()

    def now(self, part):
        """From here on time counts for ``part``; the part before is returned."""
        moment, before = time.perf_counter(), self.part
        if before is not None:
            self.seconds[before] = self.seconds.get(before, 0.0) + moment - self.since
        self.part, self.since = part, moment
        self.bar.set_postfix_str(part or "", refresh=False)
        return before

    def end(self):
        """The step is over: {part: seconds}."""
        self.now(None)
        return self.seconds

    def _timed(self, part, function):
        def call(*args, **kwargs):
            before = self.now(part)
            result = function(*args, **kwargs)
            self.now(before)
            self.bar.update()
            return result

        return call


@clear_errors
def summary(data):
    """What came out, as text."""
    lines = []
    for number, step in enumerate(data["steps"], 1):
        lines.append(f"step {number} {step['bits_per_byte']:.3f} bits per byte before it, {step['seconds']:.1f} s:")
        lines += [f"       {seconds:8.1f} s  {part}" for part, seconds in step["parts"].items()]
    if "bits_per_byte_after" in data:
        lines.append(f"after  {data['bits_per_byte_after']:.3f} bits per byte")
    speed = data["text"]["used_bytes"] / data["steps"][-1]["seconds"]
    peak = data["peak_rss_bytes"]
    lines.append(f"speed  {speed:,.0f} tokens/s")
    lines.append(f"memory {peak / 2**30:.2f} GiB at the peak of the whole process, {peak / 1e9:.2f} GB")
    return "\n".join(lines)
