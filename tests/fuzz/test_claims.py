"""Hostile calls of what the paper's claims are run with: their data, beam search, configurations,
records and table.
"""

import json
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from reformer_lab.claims import attention_names, claims, command, experiment, image_record, table
from reformer_lab.claims import images as claim_images
from reformer_lab.data import duplication, english_german, images, translation
from reformer_ref.generation import beam
from reformer_ref.model.config import ReformerConfig
from reformer_ref.model.encoder_decoder import ReformerEncoderDecoder
from reformer_ref.model.pytorch import ReformerLM
from tests.fuzz.harness import Registry, assert_covered, fuzz, public_names

CLAIMS, TAKEN = Registry(), set()
TEMPORARY = tempfile.TemporaryDirectory(prefix="fuzz-claims-")  # removed when Python ends
FOLDER = Path(TEMPORARY.name)
PAIRS = [("the red dog sees it", "der rote Hund sieht es"), ("a cat, too", "auch eine Katze"), ("no", "nein")]
TINY = {"vocab_size": 7, "d_model": 8, "n_heads": 2, "n_layers": 1, "max_length": 12}
CLAIM, CONFIG = "figure5_depth", experiment.read_config("figure5_depth", smoke=True)
# said of a file or folder by its name
FILE = (" cannot be read", " does not exist", " must ", " is no ", " is damaged ")
DONE = {"name": "a", "seconds": 1.0, "settings": {"seed": 0}, "result": {"a": 1}, "about": {}}
NOTHING = SimpleNamespace(
    sub_runs=lambda config: {"a": {"seed": 0}},
    run=lambda settings, context: {"a": 1},
    summarise=lambda config, results: {"b": len(results)},
)


@cache
def pair():
    encoder = ReformerConfig(**TINY, pattern=("regular",), causal=False)
    return ReformerEncoderDecoder(encoder, ReformerConfig(**TINY, pattern=("regular",))).eval()


@cache
def lm(**changes):
    return ReformerLM(ReformerConfig(**{**TINY, "pattern": ("dense",), **changes})).eval()


def letters(levels=4):
    return images.grey_levels(images.letters(3, 0, 0)[:, ::7, ::7].copy(), levels)


def written(name, content):
    path = FOLDER / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def add(name, function, /, kept=(), told=(), **arguments):
    """A target and a valid call of it; kept, told: ``keep`` and ``words`` of `Registry.add`."""
    assert name not in TAKEN
    TAKEN.add(name)
    made = lambda value: value.make() if isinstance(value, Fresh) else value  # noqa: E731
    CLAIMS.add((name, function), tensors=False, keep=kept, words=told)(
        lambda draw: {key: made(value) for key, value in arguments.items()}
    )


class Fresh:
    """An argument that a call may change or use up."""

    def __init__(self, make):
        self.make = make


IDX = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (3, 2, 2)) + bytes(12)
for file in images.IDX_NAMES.values():
    written(f"idx/{file}", IDX)
written("pairs.tsv", "".join(f"{a}\t{b}\n" for a, b in PAIRS).encode())
written("done/result.json", json.dumps(DONE).encode())

# data
add("data.duplication.batches", duplication.batches, length=8, vocab_size=5, batch=2, seed=0, step=1)
add("data.duplication.accuracy", duplication.accuracy, predicted=np.array([[1, 2]]), targets=np.array([[1, -100]]))
add("data.duplication.chance", duplication.chance, vocab_size=128)
add("data.images.read_idx", images.read_idx, told=FILE, path=FOLDER / "idx" / images.IDX_NAMES["train"])
add("data.images.read_folder", images.read_folder, told=FILE, folder=FOLDER / "idx")
add("data.images.letters", images.letters, count=1, seed=0, step=0, part="train")
add("data.images.letter_pairs", images.letter_pairs, part="train")
square = np.array([[3.0, 3.0], [9.0, 3.0], [9.0, 8.0], [3.0, 8.0]])
add("data.images.coverage", images.coverage, points=square, ends=(4,))
add("data.images.grey_levels", images.grey_levels, images=letters(256), levels=4)
add("data.images.to_tokens", images.to_tokens, images=letters())
table_of = images.Neighbours(letters(), 4)
add("data.images.Neighbours", images.Neighbours, train=letters(), levels=4)
add("data.images.Neighbours.probabilities", table_of.probabilities, images=letters())
add("data.images.Neighbours.bits", table_of.bits, images=letters())
add("data.images.Neighbours.complete", table_of.complete, images=letters(), seed=0)
add("data.images.compressed_bits", images.compressed_bits, images=letters())
add("data.images.split", images.split, images=letters(), held_out=0.3)
add("data.english_german.pairs", english_german.pairs, count=2, seed=0)
add("data.english_german.Grammar", lambda rng: english_german.Grammar(rng).sentence(),
    rng=Fresh(lambda: np.random.default_rng(0)))  # fmt: skip
add("data.english_german.Grammar.clause", english_german.Grammar(np.random.default_rng(0)).clause, order="question")
add("data.translation.read_pairs", translation.read_pairs, told=FILE, path=FOLDER / "pairs.tsv")
add("data.translation.split", translation.split, pairs=PAIRS, held_out=1, seed=0)
add("data.translation.fitting", translation.fitting, pairs=PAIRS, max_length=20)
add("data.translation.to_tokens", translation.to_tokens, source="a", target="ü")
add("data.translation.to_text", translation.to_text, tokens=[256, 97, 257])
add("data.translation.padded", translation.padded, pairs=PAIRS)
batches = translation.Batches(PAIRS, 2, 0)
add("data.translation.Batches", translation.Batches, pairs=PAIRS, batch=2, seed=0)
add("data.translation.Batches.rows", batches.rows, step=3)
add("data.translation.Batches.at", batches.at, step=3)
add("data.translation.words", translation.words, text="A dog, too.")
add("data.translation.sentence", translation.sentence, words=["a", "dog", "."])
add("data.translation.WordTable", translation.WordTable, pairs=PAIRS, rounds=2)
add("data.translation.WordTable.translate", translation.WordTable(PAIRS).translate, source="the cat")
add("data.translation.Nearest", translation.Nearest, pairs=PAIRS)
add("data.translation.Nearest.translate", translation.Nearest(PAIRS).translate, source="the cat")
if find_spec("sacrebleu"):
    add("data.translation.bleu", translation.bleu, translations=["a b c d"], references=["a b c e"])
# beam search
sources = torch.tensor([[1, 2, 3], [4, 5, 6]])
add("generation.beam.beam_search", beam.beam_search, kept=("check_stop",), told=("padding_mask",), model=pair(),
    source=sources, start=0, end=1, max_new_tokens=3,
    source_padding_mask=sources < 6, beams=2, length_penalty=0.6, check_stop=lambda: None)  # fmt: skip
# configurations, sub-runs, records
config = lm().config
add("reproduce.claims.claim", claims.claim, name="table2")
add(
    "reproduce.attention_names.with_attention",
    attention_names.with_attention,
    told=("attention",),
    config=config,
    name="lsh-2",
)
add("reproduce.attention_names.carried_over", attention_names.carried_over, told=("attention",),
    model=lm(), config=config, name="lsh-2")  # fmt: skip
add("reproduce.experiment.Context", experiment.Context, folder=FOLDER / "run", threads=1, data=None, progress=False)
add("reproduce.experiment.read_config", experiment.read_config, name=CLAIM, smoke=True, seeds=[0, 1])
add("reproduce.experiment.merged", experiment.merged, base={"a": {"b": 1}}, changes={"a": {"c": 2}})
add("reproduce.experiment.planned", experiment.planned, kept=("module",), told=("data",),
    module=NOTHING, config=CONFIG, data=FOLDER / "pairs.tsv")  # fmt: skip
add("reproduce.experiment.checksum", experiment.checksum, path=FOLDER / "pairs.tsv", told=("--data",))
add("reproduce.experiment.finished", experiment.finished, folder=FOLDER / "done", settings={"seed": 0})
add("reproduce.experiment.run_here", experiment.run_here, kept=("module",), module=NOTHING, name="a",
    settings={"seed": 0}, context=Fresh(lambda: experiment.Context(Path(tempfile.mkdtemp(dir=FOLDER)))))  # fmt: skip
add("reproduce.experiment.is_time", experiment.is_time, value=1.0)
add("reproduce.experiment.read_object", experiment.read_object, kept=("keys", "equal"), told=FILE,
    path=FOLDER / "done/result.json", keys={"name": str}, equal={"name": "a"})  # fmt: skip
add("reproduce.images.complete", claim_images.complete, kept=("check_stop",),
    model=lm(vocab_size=4, max_length=16, positions="axial", axial_shape=(4, 4), axial_dims=(4, 4), d_model=8),
    given=letters(), samples=2, temperature=1.0, generator=Fresh(lambda: torch.Generator().manual_seed(0)),
    check_stop=lambda: None)  # fmt: skip
add("reproduce.image_record.packed", image_record.packed, array=letters())
add("reproduce.image_record.unpacked", image_record.unpacked, values=image_record.packed(letters()))
# the table
add("reproduce.table.stored", table.stored, name="table2", folder=FOLDER)
add("reproduce.table.table_rows", table.table_rows, told=("name",), folder=FOLDER, names=("table2", "counts"))
add("reproduce.table.claims_table", table.claims_table, told=("name",), folder=FOLDER, names=("table2", "counts"))
add("reproduce.table.claims_markdown", table.claims_markdown, told=("name",), folder=FOLDER, names=("table2", "counts"))
add("reproduce.table.show", table.show, name="table2", number=0, folder=FOLDER)
add("reproduce.table.as_text", table.as_text, rows=[{"claim": "a", "paper": "1", "ours": "2", "how": "counted"}])
add("reproduce.table.spread", table.spread, values=[1.0, 2.0], form="{:.1f}")
add("reproduce.command.listing", command.listing, folder=FOLDER)

MODULES = {
    *(f"reformer_lab.data.{m}" for m in ("duplication", "images", "english_german", "translation")),
    "reformer_ref.generation.beam",
    *(f"reformer_lab.claims.{m}" for m in ("attention_names", "claims", "command", "experiment", "given",
                                              "image_plots", "image_record", "language", "plots", "table",
                                              "translation_plots", *claims.NAMES)),
}  # fmt: skip
FIVE = ("sub_runs", "run", "summarise", "rows", "pictures")  # of a claim: they take its own configuration and record
WHY = {
    "takes no arguments": "data.translation.sacrebleu_module reproduce.command.write_page",
    "is called by the command alone, with what `planned` and `finished` return": "reproduce.experiment.make_record",
    "is an exception": "reproduce.experiment.Interrupted",
    "needs the extra `reproduce`": "" if find_spec("sacrebleu") else "data.translation.bleu",
    "thins the curve of a run": "reproduce.experiment.thinned",
    "takes the parsed command line: see test_command_line.py": """reproduce.command.add_reproduce_arguments
        reproduce.command.run_reproduce""",
    "takes the record of a claim, which `stored` has read": """reproduce.given.data_name reproduce.given.given_name
        reproduce.given.on_given""",
    "works for one claim, on settings from its configuration": """reproduce.counts.collisions reproduce.counts.recall
        reproduce.counts.queries reproduce.counts.recalled reproduce.counts.reconstruction
        reproduce.counts.gradients_again
        reproduce.figure5_speed.attention reproduce.figure5_speed.table3 reproduce.full_size.operations
        reproduce.headline.predicted reproduce.headline.measured reproduce.headline.recorded reproduce.images.Data
        reproduce.images.model_config reproduce.images.bits_of reproduce.images.gallery reproduce.language.model_config
        reproduce.language.train reproduce.language.bits_with reproduce.language.settings_of reproduce.language.of_seeds
        reproduce.language.spread_of reproduce.long_text.model_config reproduce.long_text.read
        reproduce.long_text.whole_text reproduce.long_text.bits_with_context reproduce.long_text.samples
        reproduce.table2.model_config reproduce.table2.evaluate reproduce.experiment.options_of
        reproduce.full_size.activations reproduce.translation.data
        reproduce.translation.build reproduce.translation.predicted reproduce.translation.translate
        reproduce.translation.examples""",
    "draws the record of a claim": " ".join(
        f"reproduce.{m}.{name.rpartition('.')[2]}"
        for m in ("plots", "image_plots", "translation_plots")
        for name in public_names([f"reformer_lab.claims.{m}"])
    ),
    "is one of the five functions of a claim": " ".join(
        name
        for name in public_names([f"reformer_lab.claims.{claim}" for claim in claims.NAMES])
        if name.rpartition(".")[2] in FIVE
    ),
}


@pytest.mark.parametrize("target", CLAIMS.targets, ids=str)
def test_hostile_arguments(target, counts):
    with torch.random.fork_rng():
        fuzz(target, counts)


def test_nothing_is_missing():
    assert_covered(CLAIMS, MODULES, {name: why for why, names in WHY.items() for name in names.split()})
