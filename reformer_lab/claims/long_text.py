"""A text as long as a novel as one sequence: bits per byte of its end against the context in view, and samples.

The first steps train on short windows, the last ones on the whole text before the held-out end as a single sequence,
begun at another byte each time and going round, so that no position belongs to a passage. The end of the text is then
predicted with contexts of growing length, up to all that stands before it.
"""

import numpy as np
import torch
from reformer_ref._tensors import evaluating
from reformer_ref.generation import generate
from reformer_ref.model.pytorch import ReformerLM

from reformer_lab.claims.experiment import config_of
from reformer_lab.claims.table import data_name, mean_and_range, row
from reformer_lab.data import text
from reformer_lab.data.text import VOCAB_SIZE, bits
from reformer_lab.training.schedule import TrainingOptions

SAMPLE_PROMPT = 2000  # bytes of context of the sample that sees little


def sub_runs(config):
    """One for every seed."""
    names = ("data", "model", "training", "contexts", "sample")
    return {f"novel-seed{seed}": {"seed": seed, **{name: config[name] for name in names}} for seed in config["seeds"]}


def model_config(settings, length):
    """The ReformerConfig for sequences of ``length`` bytes: local and strict LSH layers in turn."""
    model = dict(settings["model"])
    width, fast = model["d_model"], model.pop("fast_axis")
    return config_of(
        model, vocab_size=VOCAB_SIZE, max_length=length, seed=settings["seed"],
        axial_shape=(-(-length // fast), fast), axial_dims=(width // 4, width - width // 4),
    )  # fmt: skip


def read(settings, context):
    """(train part, held-out end), uint8: the user's text, or as much of Shakespeare's plays as the settings say."""
    if context.data:
        content = text.read_text(context.data)
    else:
        content = np.frombuffer(text.shakespeare(), dtype=np.uint8)[: settings["data"]["bytes"]]
    return text.split(content)


def run(settings, context):
    """Train, evaluate with every context, write samples."""
    data, seed = settings["data"], settings["seed"]
    train_part, end = read(settings, context)
    model = ReformerLM(model_config(settings, len(train_part) + len(end)))
    with torch.no_grad():
        model.backbone.positions.tables[0].zero_()  # rows that the short windows never reach must not disturb
    short = data["short_steps"]

    def batch_at(step):
        if step < short:
            return text.batches(train_part, data["length"], data["batch"], seed, step)
        return whole_text(train_part, seed, step)[None]

    windows = torch.from_numpy(text.held_out_windows(end, data["length"], data["held_out_windows"]))
    options = TrainingOptions(seed=seed, steps=short + data["whole_steps"], **settings["training"])
    trained = context.train(model, batch_at, windows, options)
    bits = [[n, bits_with_context(model, train_part, end, n, context)] for n in settings["contexts"]]
    bits.append([len(train_part), bits_with_context(model, train_part, end, len(train_part), context)])
    return {
        "train_bytes": len(train_part), "held_out_bytes": len(end), "steps": trained.steps, "tokens": trained.tokens,
        "train_seconds": round(trained.seconds, 1), "parameters": sum(p.numel() for p in model.parameters()),
        "bits_by_context": bits, "zlib": text.zlib_bits_per_byte(end),
        "unigram": text.unigram_bits_per_byte(train_part, end),
        "samples": samples(model, train_part, settings, context),
    }  # fmt: skip


def whole_text(data, seed, step):
    """The whole of ``data`` as one sequence, int64 (n,), from a byte that (seed, step) decide, going round."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, step])))
    return np.roll(data, -int(rng.integers(len(data)))).astype(np.int64)


def bits_with_context(model, before, end, context_length, context):
    """Bits per byte of ``end``, each byte with at least ``context_length`` bytes before it, or all that there are.

    ``end`` is predicted in windows as long as the context (at least 256 bytes), each behind its context; the bytes that
    are predicted are the same for every context.
    """
    both = np.concatenate([before, end])
    first = len(before)
    nats = 0.0
    window = min(max(context_length, 256), len(end))
    with evaluating(model):
        for start in range(first, len(both), window):
            context.check_stop()
            stop = min(start + window, len(both))
            begin = max(0, start - context_length)
            tokens = torch.from_numpy(both[begin:stop].astype(np.int64))[None]
            targets = torch.full_like(tokens, -100)
            asked = start - begin
            targets[0, max(asked - 1, 0) : -1] = tokens[0, max(asked, 1) :]
            nats += model.loss(tokens, targets).item() * (stop - start - (asked == 0))
    return bits(nats / len(end))


def samples(model, before, settings, context):
    """Continuations of the train part with little context and with all of it: [{"context", "text"}]."""
    how, texts = settings["sample"], []
    longest = model.config.max_length - how["bytes"]
    for length in (min(SAMPLE_PROMPT, longest, len(before)), min(len(before), longest)):
        context.check_stop()
        prompt = before[-length:].tobytes()
        generator = torch.Generator().manual_seed(settings["seed"])
        done = generate(model, prompt, how["bytes"], how["temperature"], generator=generator)
        new = bytes(done[length:].tolist()).decode("utf-8", "replace")
        texts.append({"context": length, "prompt": prompt[-100:].decode("utf-8", "replace"), "text": new})
    return texts


def summarise(config, results):
    """ "contexts": [context, bits of every seed, …] by context."""
    by_context = {}
    for result in results.values():
        for length, value in result["bits_by_context"]:
            by_context.setdefault(length, []).append(value)
    return {"contexts": [{"context": n, "bits": bits} for n, bits in sorted(by_context.items())]}


def rows(record):
    """The bits per byte with the shortest and with the longest context."""
    if not record["runs"]:
        return []
    result = record["runs"][0]["result"]
    ours = ", ".join(f"{mean_and_range(c['bits'], '{:.3f}')} with {c['context']:,} or more" for c in record["contexts"])
    size = result["train_bytes"] + result["held_out_bytes"]
    claim = (
        f"A text of {size:,} bytes as one sequence ({data_name(record)}): bits per byte of its end, by the bytes before"
    )
    paper = "a whole novel in one context (announcement); enwik8, 12 layers: 1.05 bits"
    ours += f"; zlib -9 {result['zlib']:.3f}, frequencies of bytes {result['unigram']:.3f}"
    return [row(claim, paper, ours)]
