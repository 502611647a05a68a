"""``reformer-ref million``: train a step on a real text as one single sequence of 2^20 bytes, and say what it took."""

import hashlib
import json
import math
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from reformer_ref._arguments import require_float, require_int
from reformer_ref.model.pytorch import ReformerLM
from tqdm.auto import tqdm

from reformer_lab.benchmarks import record
from reformer_lab.data.text import bits, read_text
from reformer_lab.options import set_threads
from reformer_lab.training.loop import step_generator

LONGEST = 1 << 30
UNFOLLOWED = "embedding and loss"  # what no layer does


def run(command, line):
    """``million``: the exit code. ValueError, TypeError for options that do not fit."""
    require_int("--steps", command.steps)
    require_int("--seed", command.seed, 0)
    if require_float("--learning-rate", command.learning_rate, 0.0) == 0.0:
        raise ValueError("--learning-rate must be more than 0, got 0")
    config = model_config(command)
    record.require_place("--out", command.out)
    tokens, about_text = read_tokens(command.text, command.length, command.repeat_text)
    threads = set_threads(command.threads)
    before = record.peak_rss()
    start = time.perf_counter()
    model = ReformerLM(config)
    data = {
        **record.about(line, threads), "text": about_text, "config": json.loads(config.to_json()),
        "preset": command.model.preset, "learning_rate": command.learning_rate,
        "parameters": sum(p.numel() for p in model.parameters()), "build_seconds": time.perf_counter() - start,
        "peak_rss_before_model_bytes": before,
    }  # fmt: skip
    print(
        f"text   {about_text['name']}: {command.length:,} bytes as one sequence\n"
        f"model  {data['parameters']:,} parameters: {config.n_layers} layers ({', '.join(config.pattern)}), d_model "
        f"{config.d_model}, {config.n_heads} heads, d_ff {config.d_ff}, {config.lsh.n_hashes} rounds "
        f"({command.model.preset})",
        flush=True,
    )
    data |= train(model, tokens, command)
    data["peak_rss_bytes"] = record.peak_rss()
    record.write(command.out, data)
    print(summary(data) + f"\nwritten {command.out}", flush=True)
    return 0


def model_config(command):
    """The ReformerConfig that the options describe."""
    length = require_int("--length", command.length, 2)
    return command.model.config(vocab_size=256, max_length=length, seed=command.seed)


def read_tokens(path, length, repeat=False):
    """(tokens int64 (1, length), what the record says about the text). ValueError for a text that is too short."""
    data = read_text(path, "--text")
    length = require_int("length", length, 2, LONGEST)
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


def train(model, tokens, command):
    """Take the steps: {"steps": [per step: bits_per_byte before it, seconds, parts, peak_rss_bytes], …}."""
    optimizer = torch.optim.Adam(model.parameters(), lr=command.learning_rate)
    model.train()
    steps, after = [], {}
    with Clock(model, command.steps, command.no_progress) as clock:
        for number in range(command.steps):
            clock.begin()
            optimizer.zero_grad(set_to_none=True)
            clock.now(f"forward, {UNFOLLOWED}")
            loss = model.loss(tokens, generator=step_generator(command.seed, number))
            value = bits(loss.item())
            if not math.isfinite(value):
                raise FloatingPointError(f"the loss is {value} at step {number + 1}; try a lower --learning-rate")
            clock.now(f"backward, {UNFOLLOWED}")
            loss.backward()
            clock.now("optimiser")
            optimizer.step()
            parts = clock.end()
            seconds = sum(parts.values())
            steps.append(
                {"bits_per_byte": value, "seconds": seconds, "parts": parts, "peak_rss_bytes": record.peak_rss()}
            )
        if command.loss_after:
            clock.begin()
            with torch.no_grad():
                loss = model.loss(tokens, generator=step_generator(command.seed, command.steps))
            after["bits_per_byte_after"] = bits(loss.item())
    return {"steps": steps, **after}


class Clock:
    """Time by part, and a progress bar: one tick for each layer, forward and backward.

    It observes the layers of the model; what is done elsewhere counts for the part that ``now`` has named.
    """

    def __init__(self, model, steps, quiet):
        self.backbone = model.backbone
        often = 0.5 if sys.stderr.isatty() else 20.0  # seconds; a log file needs fewer lines than a terminal
        total = 2 * len(self.backbone.layers()) * steps
        self.bar = tqdm(total=total, unit="layer", disable=quiet, mininterval=often, dynamic_ncols=True)
        self.seconds, self.part, self.since = {}, None, None

    def __enter__(self):
        self.backbone.observe = self.observe
        return self

    def __exit__(self, *error):
        del self.backbone.observe  # the class has the observer that does nothing
        self.bar.close()

    @contextmanager
    def observe(self, direction, layer):
        """Surrounds the work of one layer, ``direction`` "forward" or "backward"."""
        kind = f"{layer.kind} attention" if hasattr(layer, "kind") else "feed-forward"
        before = self.now(f"{direction}, {kind}")
        yield
        self.now(before)
        self.bar.update()

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
