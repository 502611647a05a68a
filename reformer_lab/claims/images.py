"""Images, pixel by pixel: bits per pixel on held-out images, and lower halves completed from the upper ones.

The paper trains on imagenet64, 12,288 tokens an image, and shows learning curves. Here an image has 28 × 28 pixels in a
few levels of grey, axial positions (28, 28), local layers that see this row of pixels and the one above, and LSH layers
in the strict window, so that completions come from a cache that is the training function. Letters drawn from
matplotlib's fonts need no file; the claim ``fashion`` is the same on Fashion-MNIST.
"""

import base64
import hashlib
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from reformer_ref._arguments import UNCLEAR, short_repr
from reformer_ref._tensors import evaluating
from reformer_ref.generation import Decoder, Recomputer, cache_unsupported_reason, sample_token
from reformer_ref.model.pytorch import ReformerLM

from reformer_lab.claims.experiment import config_of, options_of, thinned
from reformer_lab.claims.table import data_name, mean_and_range, row
from reformer_lab.data import images
from reformer_lab.data.text import bits

BASELINE = "table of 10 neighbours"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
FRESH = 10**6  # step of the letters that count for the baseline and of the held-out ones: no training step uses it


def sub_runs(config):
    """One for every seed."""
    settings = {name: config[name] for name in ("data", "model", "training", "gallery")}
    return {f"seed{seed}": {"seed": seed, **settings} for seed in config["seeds"]}


class Data:
    """Images of a sub-run in their levels of grey: batches, held-out ones, and those that the baseline counts."""

    def __init__(self, settings, path=None):
        self.seed, self.batch, how = (settings["seed"], settings["training"]["batch"], settings["data"])
        self.levels, self.letters = how["levels"], path is None and how["kind"] == "letters"
        if self.letters:
            held_out = images.letters(how["held_out"], 0, FRESH, "held_out")  # the same whatever the seed
            counted = images.letters(how["counted"], self.seed, FRESH)
        else:
            parts = _read(DEBIAN if path is None else Path(path))
            self.train, held_out = parts["train"], parts["held_out"][: how["held_out"]]
            counted = self.train[: how["counted"]]
        self.held_out, self.counted = (images.grey_levels(part, self.levels) for part in (held_out, counted))
        self.size = self.held_out.shape[1:]

    def batch_at(self, step):
        """(tokens, targets), int64 (batch, height · width) each; a pure function of the step."""
        if self.letters:
            chosen = images.letters(self.batch, self.seed, step)
        else:
            rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, step])))
            chosen = self.train[rng.integers(len(self.train), size=self.batch)]
        return tuple(map(torch.from_numpy, images.to_tokens(images.grey_levels(chosen, self.levels))))


def _read(path):
    if path.is_dir():
        return images.read_folder(path)
    if not path.exists():
        raise ValueError(
            f"there are no images at {path}: install Debian's package dataset-fashion-mnist, or give a folder with the "
            "files train-images-idx3-ubyte and t10k-images-idx3-ubyte, gzipped or not (--data FOLDER)"
        )
    return dict(zip(images.SUBSETS, images.split(images.read_idx(path)), strict=True))


def model_config(settings, size):
    """The ReformerConfig for images of this size (height, width), one token per pixel."""
    height, width = size
    values = {"vocab_size": settings["data"]["levels"], "max_length": height * width, "axial_shape": (height, width)}
    return config_of(settings["model"], seed=settings["seed"], local={"chunk_length": width}, **values)


def run(settings, context):
    """Train, evaluate, complete: {"steps", "curve", "bits": {who: [whole images, lower halves]}, "gallery", …}."""
    data = Data(settings, context.data)
    config = model_config(settings, data.size)
    model = ReformerLM(config)
    options = options_of(settings)
    windows = list(zip(*map(torch.from_numpy, images.to_tokens(data.held_out)), strict=True))
    trained = context.train(model, data.batch_at, windows[: 4 * options.quick_windows], options)
    context.report("evaluation, and the baselines")
    neighbours = images.Neighbours(data.counted, data.levels)
    bits = {"model": bits_of(model, data.held_out, context), BASELINE: neighbours.bits(data.held_out)}
    bits |= {name: [value, None] for name, value in images.compressed_bits(data.held_out).items()}
    return {
        "parameters": sum(p.numel() for p in model.parameters()), "steps": trained.steps, "size": list(data.size),
        "images_seen": trained.steps * data.batch, "images_counted": len(data.counted), "levels": data.levels,
        "held_out": len(data.held_out), "held_out_sha256": hashlib.sha256(data.held_out.tobytes()).hexdigest(),
        "train_seconds": round(trained.seconds, 1),
        "curve": thinned([(e["step"], round(e["bits"], 4)) for e in trained.curve]),
        "bits": {who: [None if b is None else round(b, 4) for b in both] for who, both in bits.items()},
        "gallery": gallery(model, neighbours, data.held_out, settings, context),
    }  # fmt: skip


def bits_of(model, held_out, context, batch=16):
    """(bits per pixel of whole images, of their lower halves given the upper ones), with the stored rotations."""
    nats = []
    with evaluating(model):
        for start in range(0, len(held_out), batch):
            context.check_stop()
            tokens, targets = map(torch.from_numpy, images.to_tokens(held_out[start : start + batch]))
            p = torch.log_softmax(model(tokens), -1).gather(-1, targets[..., None])[..., 0]  # (batch, height · width)
            nats.append(-p.double().view(len(tokens), *held_out.shape[1:]))
    nats = torch.cat(nats)
    return bits(nats.mean().item()), bits(nats[:, held_out.shape[1] // 2 :].mean().item())


def complete(model, given, samples, temperature=1.0, generator=None, check_stop=lambda: None):
    """Lower halves drawn pixel by pixel: uint8 (n, samples, height, width), the upper halves as in ``given``.

    given: uint8 (n, height, width), in as many levels as the model has tokens; generator: a CPU `torch.Generator`.
    Decodes from a cache where the model has an exact one.
    """
    tokens, targets = map(torch.from_numpy, images.to_tokens(given, "given"))
    n, height, width = given.shape
    start = height // 2 * width  # the first pixel that is drawn
    decoder = Recomputer(model) if cache_unsupported_reason(model.config) else Decoder(model, capacity=height * width)
    out = targets.repeat_interleave(samples, 0)  # (n · samples, height · width)
    logits = decoder.prefill(tokens[:, : start + 1]).repeat_interleave(samples, 0)
    decoder.repeat(samples)
    for place in range(start, height * width):
        check_stop()
        logits = decoder.step(out[:, place - 1]) if place > start else logits
        out[:, place] = sample_token(logits, temperature, generator=generator)
    return out.view(n, samples, height, width).to(torch.uint8).numpy()


def gallery(model, neighbours, held_out, settings, context):
    """Held-out images, evenly chosen, with completions: {"originals", "completions", "by_table"}, each one `packed`."""
    how = settings["gallery"]
    originals = held_out[np.linspace(0, len(held_out) - 1, how["images"]).astype(int)]
    generator = torch.Generator().manual_seed(settings["seed"])
    drawn = complete(model, originals, how["samples"], how["temperature"], generator, context.check_stop)
    others = neighbours.complete(originals, settings["seed"])
    kept = {"originals": originals, "completions": drawn, "by_table": others}
    return {name: packed(array) for name, array in kept.items()} | {"temperature": how["temperature"]}


def summarise(config, results):
    """ "bits": {who: {"whole": [of each seed], "lower": …}}: bits per pixel."""
    bits = {}
    for result in results.values():
        for who, (whole, lower) in result["bits"].items():
            entry = bits.setdefault(who, {"whole": [], "lower": []})
            entry["whole"].append(whole)
            entry["lower"] += [] if lower is None else [lower]
    return {"bits": bits}


def rows(record):
    """Bits per pixel of whole images and of lower halves, the model's beside the baselines'."""
    config, lines = record["config"], []
    for part, area in (("whole", "whole images"), ("lower", "lower halves, the upper ones given")):
        ours = "; ".join(
            f"{'Reformer' if who == 'model' else who} {mean_and_range(entry[part], '{:.3f}')}"
            for who, entry in record["bits"].items()
            if entry[part]
        )
        claim = f"Images: {data_name(record)}, {config['data']['levels']} levels of grey, {area}: bits per pixel"
        lines.append(row(claim, config["paper"], ours))
    return lines


# How the records hold images


def packed(array):
    """An array of uint8 as JSON values: its shape, and its bytes compressed, in base 64."""
    return {"shape": list(array.shape), "zlib64": base64.b64encode(zlib.compress(array.tobytes(), 9)).decode()}


def unpacked(values):
    """The inverse of `packed`. ValueError for what that has not made."""
    try:
        shape, data = values["shape"], base64.b64decode(values["zlib64"], validate=True)
        data = zlib.decompressobj().decompress(data, math.prod(shape) + 1)  # no more than is wanted
        return np.frombuffer(data, np.uint8).reshape(shape)
    except (*UNCLEAR, zlib.error) as error:
        raise ValueError(f"values must be what `packed` returns, got {short_repr(values)}: {error}") from None
