"""What the claims on real text share: a byte-level model of one kind of attention, trained and evaluated.

The text is Shakespeare's plays, or a file of the user's; its last tenth is held out.
"""

import re
from dataclasses import replace

import torch
from reformer_ref._arguments import short_repr
from reformer_ref.model.pytorch import ReformerLM

from reformer_lab.claims.experiment import config_of, options_of
from reformer_lab.data import text
from reformer_lab.data.text import VOCAB_SIZE
from reformer_lab.training.loop import held_out_bits

KINDS = {"full": "dense", "scaled": "dense", "separate": "regular", "ordinary": "regular"}


def model_config(settings):
    """The ReformerConfig of a sub-run's settings: "model" (fields), "attention" (a name), "seed", "data"."""
    length, seed = settings["data"]["length"], settings["seed"]
    config = config_of(settings["model"], vocab_size=VOCAB_SIZE, max_length=length, seed=seed)
    return with_attention(config, settings["attention"])


def train(settings, context):
    """(model, config, windows, result): a model trained in the folder of the sub-run.

    windows: held-out text, int64 (n, L); result: JSON values for the record.
    """
    data, seed = settings["data"], settings["seed"]
    train_part, held_out = text.split(text.read_text(context.data) if context.data else text.shakespeare())
    windows = torch.from_numpy(text.held_out_windows(held_out, data["length"], data["held_out_windows"]))

    def batch_at(step):
        return text.batches(train_part, data["length"], data["batch"], seed, step)

    config = model_config(settings)
    model = ReformerLM(config)
    trained = context.train(model, batch_at, windows, options_of(settings))
    last = trained.curve[-1]
    result = {
        "bits": trained.evaluations[-1]["bits"], "steps": trained.steps, "tokens": trained.tokens,
        "train_seconds": round(trained.seconds, 1), "seconds_per_step": last["seconds"] / trained.steps,
        "parameters": sum(p.numel() for p in model.parameters()),
        "curve": [[e["step"], round(e["bits"], 4)] for e in trained.evaluations],
    }  # fmt: skip
    return model, config, windows, result


def bits_with(model, config, name, windows, context):
    """Held-out bits per byte of the model with attention ``name`` in place of its own."""
    context.check_stop()
    return held_out_bits(carried_over(model, config, name), windows)


def settings_of(config, seed, attention, **model):
    """The settings of a sub-run: what the configuration has for all, with changes of the model."""
    both = {**config["model"], **model}
    return {"attention": attention, "seed": seed, "model": both, "data": config["data"], "training": config["training"]}


def of_seeds(config, results, name):
    """The results of a variant that are there, one for each seed."""
    names = (f"{name}-seed{seed}" for seed in config["seeds"])
    return [results[n] for n in names if n in results]


def spread_of(results):
    """{"bits": […], "parameters", "seconds_per_step": […]} of the results of one variant."""
    return {
        "bits": [r["bits"] for r in results], "parameters": results[0]["parameters"],
        "seconds_per_step": [r["seconds_per_step"] for r in results], "curves": [r["curve"] for r in results],
    }  # fmt: skip


# Attention by the names of the paper's tables: "full", "lsh-4" and so on


def with_attention(config, name):
    """``config`` with this attention in every layer.

    "full": shared queries and keys, k̂ = q/‖q‖, everything visible; "scaled": the same with logits divided by √d;
    "lsh-N": N rounds; "separate": ordinary attention with keys of its own; "ordinary": ordinary attention whose keys
    are the queries as they are, not normalised, the token itself visible, logits divided by √d. ValueError for others.
    """
    if name == "scaled":
        config = replace(config, lsh=replace(config.lsh, scale="rsqrt_d"))
    if name in KINDS:
        return replace(config, pattern=(KINDS[name],))
    word, _, rounds = name.partition("-")
    if word != "lsh" or not re.fullmatch("0*[1-9][0-9]{,8}", rounds):
        raise ValueError(
            f'attention must be "full", "scaled", "separate", "ordinary" or "lsh-N", got {short_repr(name)}'
        )
    return replace(config, pattern=("lsh",), lsh=replace(config.lsh, n_hashes=int(rounds)))


def carried_over(model, config, name):
    """A model of the same weights with other attention, in eval mode. "ordinary" takes its keys from the queries."""
    other = ReformerLM(with_attention(config, name)).to(next(model.parameters()).dtype).eval()
    wanted, weights = other.state_dict(), model.state_dict()
    if name == "ordinary":
        weights |= {k.replace(".q.", ".k."): v for k, v in weights.items() if k.endswith("layers.0.q.weight")}
    names = [k for k in wanted if not k.endswith("rotations")]  # rotations have other shapes
    kept = {k: weights[k] for k in names if k in weights}
    lost = set(names) - kept.keys()
    if lost:
        raise ValueError(f"the model has no weights for {name}: {', '.join(sorted(lost))}")
    other_shapes = [k for k in kept if kept[k].shape != wanted[k].shape]
    if other_shapes:
        raise ValueError(f"config must be that of the model, got other shapes of {', '.join(other_shapes)}")
    other.load_state_dict({**wanted, **kept})
    return other
