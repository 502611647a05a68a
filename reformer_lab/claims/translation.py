"""Translation: the reversible encoder-decoder against an ordinary Transformer with the very same parameters.

The paper trains on WMT'14 English–German, with full attention, since its sentences are shorter than a chunk of LSH
attention. Here sentences are bytes: English ones made by a grammar, with their German translations, or any pairs from a
file. Both models begin with the same weights and see the same batches; one has two streams and keeps no activations.
"""

import torch
from reformer_ref.generation import beam_search
from reformer_ref.model.encoder_decoder import ReformerEncoderDecoder

from reformer_lab.claims.experiment import config_of, options_of, thinned
from reformer_lab.claims.table import data_name, mean_and_range, row
from reformer_lab.data import translation
from reformer_lab.data.translation import VOCAB_SIZE

STREAMS = {"reversible": {}, "ordinary": {"streams": 1, "reversible": False}}
BASELINES = ("word by word", "nearest sentence")
MOST_COUNTED = 100_000  # pairs that the baselines learn from


def sub_runs(config):
    """A reversible and an ordinary model for every seed."""
    shared = {name: config[name] for name in ("data", "encoder", "decoder", "training", "search")}
    runs = {}
    for seed in config["seeds"]:
        for kind in STREAMS:
            runs[f"{kind}-seed{seed}"] = {"kind": kind, "seed": seed, "model": config["model"], **shared}
    return runs


def data(how, path=None):
    """(training pairs, held-out pairs) of texts: of a file of the user's, or made by the grammar."""
    pairs = translation.english_german(how["pairs"]) if path is None else translation.read_pairs(path)
    fitting = translation.fitting(pairs, how["max_length"])
    if len(fitting) <= how["held_out"]:
        raise ValueError(
            f"the data must hold more than {how['held_out']} pairs of at most {how['max_length'] - 2} bytes a side, "
            f"got {len(fitting)} of {len(pairs)}"
        )
    return translation.split(fitting, how["held_out"])


def build(settings):
    """The `ReformerEncoderDecoder` of a sub-run."""
    length = settings["data"]["max_length"]
    shared = {"vocab_size": VOCAB_SIZE, "max_length": length, "seed": settings["seed"], **settings["model"]}
    shared |= STREAMS[settings["kind"]]
    encoder = config_of({**shared, **settings["encoder"]}, causal=False)
    decoder = config_of({**shared, **settings["decoder"]}, causal=True)
    return ReformerEncoderDecoder(encoder, decoder)


def run(settings, context):
    """Train, translate: {"steps", "curve", "bits", "bleu": {who: percent}, "exact": {who: share}, "examples", …}."""
    translation.sacrebleu_module()  # or say now that it is missing, not after the training
    train, held_out = data(settings["data"], context.data)
    model = build(settings)
    batches = translation.Batches(train, settings["training"]["batch"], settings["seed"])
    windows = [tuple(torch.from_numpy(side[0]) for side in translation.padded([pair])) for pair in held_out]
    trained = context.train(
        model, lambda step: tuple(map(torch.from_numpy, batches.at(step))), windows, options_of(settings), predicted
    )  # fmt: skip
    outputs = {"greedy": translate(model, held_out, settings, context, 1)}
    beams = f"{settings['search']['beams']} beams"
    outputs[beams] = translate(model, held_out, settings, context, settings["search"]["beams"])
    table, nearest = (kind(train[:MOST_COUNTED]) for kind in (translation.WordTable, translation.Nearest))
    outputs |= {
        name: [baseline.translate(source) for source, _ in held_out]
        for name, baseline in zip(BASELINES, (table, nearest), strict=True)
    }
    references = [target for _, target in held_out]
    scores = {who: translation.bleu(texts, references) for who, texts in outputs.items()}
    return {
        "parameters": sum(p.numel() for p in model.parameters()), "steps": trained.steps, "tokens": trained.tokens,
        "train_pairs": len(train), "held_out": len(held_out), "train_seconds": round(trained.seconds, 1),
        "bits": round(trained.evaluations[-1]["bits"], 4),
        "curve": thinned([(e["step"], round(e["bits"], 4)) for e in trained.curve]),
        "held_out_curve": [[e["step"], round(e["bits"], 4)] for e in trained.evaluations],
        "bleu": {who: round(score, 2) for who, (score, _) in scores.items()}, "signature": scores["greedy"][1],
        "exact": {who: sum(map(str.__eq__, texts, references)) / len(references) for who, texts in outputs.items()},
        "examples": examples(held_out, outputs, settings["search"]["examples"]), "beams": beams,
    }  # fmt: skip


def predicted(source, target, source_mask, target_mask):
    """The number of tokens that a part of a batch predicts: all of its targets but the first of each."""
    return int(target_mask.sum()) - len(target)


def translate(model, pairs, settings, context, beams, together=50):
    """The sources of pairs, translated: texts. Sentences of similar length are searched together."""
    how, texts = settings["search"], [""] * len(pairs)
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0].encode()))
    penalty = how["length_penalty"] if beams > 1 else 0.0
    limit = settings["data"]["max_length"] - 1
    for start in range(0, len(order), together):
        rows = order[start : start + together]
        source, _, mask, _ = map(torch.from_numpy, translation.padded([pairs[i] for i in rows]))
        outputs = beam_search(
            model, source, mask, start=translation.START, end=translation.END, max_new_tokens=limit, beams=beams,
            length_penalty=penalty, check_stop=context.check_stop,
        )  # fmt: skip
        for i, (tokens, _) in zip(rows, outputs, strict=True):
            texts[i] = translation.to_text(tokens)
    return texts


def examples(held_out, outputs, count):
    """A few held-out sentences with the translation of each: a list of dicts of texts."""
    rows = range(0, len(held_out), max(1, len(held_out) // count))[:count]
    return [
        {"source": held_out[i][0], "reference": held_out[i][1], **{who: texts[i] for who, texts in outputs.items()}}
        for i in rows
    ]


def summarise(config, results):
    """ "bleu": {"reversible, greedy": [of each seed], …, "word by word": [once]}; "bits", "exact" likewise."""
    summary = {"bleu": {}, "exact": {}, "bits": {}}
    for name, result in results.items():
        kind = name.partition("-")[0]
        summary["bits"].setdefault(kind, []).append(result["bits"])
        for measure in ("bleu", "exact"):
            for who, value in result[measure].items():
                if who not in BASELINES:
                    summary[measure].setdefault(f"{kind}, {who}", []).append(value)
    for measure in ("bleu", "exact"):
        for who in BASELINES if results else ():
            summary[measure][who] = [next(iter(results.values()))[measure][who]]
    return summary


def rows(record):
    """BLEU of both models by both searches beside the baselines, bits per byte, and exact translations."""
    config, name = record["config"], data_name(record)

    def scores(measure, form="{:.1f}", times=1.0):
        values = record[measure].items()
        return "; ".join(f"{who} {mean_and_range([times * v for v in value], form)}" for who, value in values)

    lines = (
        (f"Translation: {name}: BLEU", config["paper"], scores("bleu")),
        (f"Translation: {name}: translations without any fault, %", "", scores("exact", times=100.0)),
        (f"Translation: {name}: bits per predicted token, mean of sentences", "", scores("bits", "{:.4f}")),
    )
    return [row(claim, paper, ours) for claim, paper, ours in lines]
