"""Hostile calls of every public function above the rooms: models, generation, memory, pictures,
benchmarks.
"""

import json
import tempfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from reformer_lab import figures, notebooks, planner
from reformer_lab.benchmarks import cases, contenders, million, record
from reformer_lab.benchmarks import run as bench_run
from reformer_lab.data import text
from reformer_lab.planner import PARTS
from reformer_lab.plots import attention as attention_plots
from reformer_lab.plots import chunking as chunking_plots
from reformer_lab.plots import drawing
from reformer_lab.plots import feed_forward as feed_forward_plots
from reformer_lab.plots import generation as generation_plots
from reformer_lab.plots import hashing as hashing_plots
from reformer_lab.plots import local_attention as local_plots
from reformer_lab.plots import lsh_attention as lsh_plots
from reformer_lab.plots import measured as measured_plots
from reformer_lab.plots import model as model_plots
from reformer_lab.plots import positions as positions_plots
from reformer_lab.plots import reversible as reversible_plots
from reformer_lab.widgets import axial, buckets, causality, chunks, circle, pattern, reconstruction, slices
from reformer_lab.widgets import memory as memory_explorer
from reformer_lab.widgets import model as model_explorer
from reformer_lab.widgets import rings as rings_explorer
from reformer_ref.generation import options as generation_options
from reformer_ref.generation import pytorch as generation
from reformer_ref.generation import spec as generation_spec
from reformer_ref.huggingface import files as huggingface_files
from reformer_ref.huggingface import weights as huggingface
from reformer_ref.local_attention.options import LocalOptions
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.memory import count as counting
from reformer_ref.memory import measure as memory
from reformer_ref.model import config, encoder_decoder
from reformer_ref.model import layers as halves
from reformer_ref.model import pytorch as model
from reformer_ref.model import spec as model_spec
from reformer_ref.model.checks import random_params, small_config
from tests.fuzz.harness import Registry, assert_covered, fuzz

ABOVE, TAKEN = Registry(), set()
FOLDER = Path(tempfile.mkdtemp(prefix="reformer_ref_fuzz_"))

CONFIG, STRICT, ENCODER = (small_config(), small_config("strict", max_length=16), small_config(causal=False))
BYTES = config.ReformerConfig(
    vocab_size=256, d_model=8, n_layers=1, n_heads=1, max_length=16, pattern=("lsh",),
    lsh=LSHOptions.preset("strict", chunk_length=4),
)  # fmt: skip
THEIRS = small_config("huggingface")
A, B = np.array([0, 1, 1, 0, 1, 0]), np.array([[0, 1, 1, 0, 1, 0]])
ORDER = np.argsort(A, kind="stable")
WEIGHTS = np.tril(np.full((6, 6), 0.1))
MACHINE = {"cpu": "a processor", "cores": 2, "threads": 1, "memory_bytes": 8, "system": "Linux x86_64"}
HEAD = {"command": "reformer-ref bench a", "date": "2026-01-02T03:04", "machine": MACHINE}


@cache
def lm(which="paper"):
    return model.ReformerLM({"paper": CONFIG, "strict": STRICT, "bytes": BYTES, "theirs": THEIRS}[which]).eval()


@cache
def params(which="paper"):
    return random_params(np.random.default_rng(0), CONFIG)


@cache
def pair():
    return encoder_decoder.ReformerEncoderDecoder(ENCODER, CONFIG).eval()


def ids(length=7, rows=2):
    return torch.arange(rows * length).reshape(rows, length) % 11


def mask(length=7, rows=2):
    return torch.arange(length).expand(rows, length) < length - 1


def gen():
    return torch.Generator().manual_seed(0)


def decoder(read=True):
    made = generation.Decoder(lm("strict"))
    if read:
        made.prefill(ids(5))
    return made


def recomputer():
    made = generation.Recomputer(lm())
    made.prefill(ids(5))
    return made


def x(*shape):
    return torch.randn(shape, generator=gen())


def bench(rounds=(4,)):
    names = ("ours-trax", "dense", "matmul", "ours")
    points = [
        {"length": n, "n_hashes": h, "n_layers": 1, "flops": 1e9 * n,
         "results": [{"contender": c, "status": "ok", "median": float(n), "above_start_bytes": n << 20} for c in names]}
        for n in (1024, 2048) for h in rounds
    ]  # fmt: skip
    return {**HEAD, "points": points}


def million_record(length=64):
    steps = [{"seconds": 1.0, "bits_per_byte": 8.0, "parts": {"forward, lsh attention": 0.5, "optimiser": 0.5}}]
    return {**HEAD, "text": {"used_bytes": length}, "steps": steps, "peak_rss_bytes": 3 * 2**30}


def question(**changes):
    return planner.Question(**{"config": CONFIG, "length": 20, "budget": 10**6, **changes})


def entry(n=100):
    return {"name": "as asked", "bytes": n, "fits": True, "parts": dict.fromkeys(PARTS, n), "kind": "predicted"}


def report():
    lengths = [{"length": n, "reversible": 5 * n, "not reversible": 6 * n, "dense": 7 * n} for n in (10, 20)]
    depth = [entry() | {"layers": 2, "reversible": True}]
    asked = {"length": 20, "budget": 1000, "config": {"n_layers": 2, "reversible": True}}
    return {"asked": asked, "peak": entry(), "depth": depth, "length": lengths}


def operations_of(a, b):
    with counting.Operations() as operations:
        torch.nn.functional.linear(a @ b, torch.ones(5, 4))
    return operations.count


METRICS = {
    "command": "reformer-ref train", "text": "a text", "held_out_bits_per_byte": {"zlib": 3.2, "unigram": 4.8},
    "curve": [{"step": 1, "bits": 7.0}], "evaluations": [{"step": 0, "bits": 8.0}],
}  # fmt: skip


def notebook():
    import nbformat

    v4 = nbformat.v4
    output = v4.new_output("stream", text="hello")
    cell = v4.new_code_cell("print(1)", outputs=[output])
    return v4.new_notebook(cells=[v4.new_markdown_cell("# Title\n\nPromise $x^2$"), cell])


def axes():
    return drawing.Picture().add_subplot()


def hf(**changes):
    return SimpleNamespace(**{**huggingface_files.DEFAULTS, "model_type": "reformer", **changes})


POINT = cases.Point("attention", 128, 1, 0, 1e6)
STEP = cases.Point("step", 128, 1, 1, None)
RESULT = {"contender": "ours", "status": "ok", "detail": None, "seconds": [1.0], "median": 1.0, "above_start_bytes": 5}


# Options of ``Registry.add``: other words that a message may use for an argument, and arguments
# that run by themselves
MASKS = {"words": ("padding_mask", "finite")}
NAMED = {"words": (" must ", " cannot "), "keep": ("name",)}  # the name in the message is an argument
OPTIONS = {
    **{f"model.encoder_decoder.ReformerEncoderDecoder.{f}": MASKS for f in ("forward", "loss", "encode", "decode")},
    "model.config.require_config": NAMED, "counting.as_device": NAMED, "data.text.as_bytes": NAMED,
    "drawing.entries": NAMED, "drawing.Range.check": NAMED, "drawing.Choice.check": NAMED, "drawing.Text.check": NAMED,
    "record.require_place": NAMED, "data.text.read_text": {"words": ("text file",)},
    "planner.parse_bytes": {"words": ("a size",)},
    "model.pytorch.check_tokens": {"keep": ("name", "device")}, "drawing.Choice": {"keep": ("first",)},
    **{f"model.{f}": {"keep": ("model_or_state_dict",)}  # the message lists every weight that is wrong
       for f in ("huggingface.carry_over", "pytorch.ReformerLM.from_huggingface")},
    "planner.longest": {"keep": ("peak_bytes",)},  # from a prediction
    "model.huggingface_files.read_pretrained": {"words": ("config.json",)},
    "counting.Operations": {"also": (RuntimeError, TypeError, ValueError, NotImplementedError)},  # PyTorch's own
    "memory.measure_peak": {"keep": ("fn",), "also": (RuntimeError,)}, "memory.count_peak": {"keep": ("fn",)},
    "generation.pytorch.generate": {"keep": ("on_token",)},
    }  # fmt: skip


def add(name, function, /, **arguments):
    """A target and a valid call of it."""
    assert name not in TAKEN
    TAKEN.add(name)
    ABOVE.add((name, function), tensors=False, **OPTIONS.get(name, {}))(lambda draw: dict(arguments))


(FOLDER / "text.txt").write_bytes(b"some text " * 20)
(FOLDER / "run").mkdir()
(FOLDER / "notebooks").mkdir()
(FOLDER / "notebooks" / "00_a.ipynb").write_text(json.dumps(notebook()))
(FOLDER / "weights").mkdir()
(FOLDER / "weights" / "config.json").write_text(json.dumps({"model_type": "reformer"}))
torch.save({"a": torch.ones(2)}, FOLDER / "weights" / "pytorch_model.bin")
(FOLDER / "run" / "metrics.json").write_text(json.dumps(METRICS))

# model
add(
    "model.config.ReformerConfig",
    config.ReformerConfig,
    vocab_size=11,
    d_model=12,
    n_layers=2,
    n_heads=2,
    d_head=6,
    d_v=6,
    d_ff=8,
    pattern=("local", "lsh"),
    max_length=29,
    positions="axial",
    axial_shape=(6, 5),
    axial_dims=(6, 6),
    lsh=LSHOptions(),
    local=LocalOptions(),
    causal=True,
    norm_eps=1e-5,
    activation="relu",
    dropout=0.0,
    tie_head=False,
    reversible=True,
    ff_slice=3,
    loss_slice=3,
    dense_strip=2,
    length_multiple=1,
    seed=0,
)
add("model.config.ReformerConfig.from_json", config.ReformerConfig.from_json, text=CONFIG.to_json())
add("model.config.n_buckets_for", config.n_buckets_for, config=CONFIG, length=20)
add("model.config.require_config", config.require_config, config=CONFIG, name="config")
add("model.config.rotation_width", config.rotation_width, config=CONFIG)
add("model.config.padding_to_multiple", config.padding_to_multiple, config=CONFIG, length=20)
add("model.checks.small_config", small_config, preset="paper", options={"n_hashes": 2})
add("model.checks.random_params", random_params, rng=np.random.default_rng(0), config=CONFIG)
add(
    "model.encoder_decoder.ReformerEncoderDecoder",
    encoder_decoder.ReformerEncoderDecoder,
    encoder_config=ENCODER,
    decoder_config=CONFIG,
)
both = {"source": ids(6), "target": ids(7), "source_padding_mask": mask(6), "target_padding_mask": mask(7)}
add("model.encoder_decoder.ReformerEncoderDecoder.forward", pair().forward, **both, generator=gen())
add("model.encoder_decoder.ReformerEncoderDecoder.loss", pair().loss, **both, generator=gen())
add(
    "model.encoder_decoder.ReformerEncoderDecoder.encode",
    pair().encode,
    source=ids(6),
    source_padding_mask=mask(6),
    generator=gen(),
)
add(
    "model.encoder_decoder.ReformerEncoderDecoder.decode",
    pair().decode,
    target=ids(7),
    memory=x(2, 6, 24),
    source_padding_mask=mask(6),
    target_padding_mask=mask(7),
    generator=gen(),
)
add("model.halves.SelfAttention", halves.SelfAttention, config=CONFIG, kind="lsh", index=0)
add("model.halves.CrossAttention", halves.CrossAttention, config=CONFIG)
add("model.halves.FeedForwardHalf", halves.FeedForwardHalf, config=CONFIG)
add("model.huggingface.config_from_huggingface", huggingface.config_from_huggingface, hf_config=hf(attn_layers=["lsh"]))
add(
    "model.huggingface.carry_over",
    huggingface.carry_over,
    model_class=model.ReformerLM,
    model_or_state_dict=huggingface.to_huggingface(lm("theirs")),
    config=THEIRS,
    add_head_bias=False,
)
add(
    "model.pytorch.ReformerLM.from_huggingface",
    model.ReformerLM.from_huggingface,
    model_or_state_dict=huggingface.to_huggingface(lm("theirs")),
    config=THEIRS,
    add_head_bias=False,
)
add("model.huggingface.to_huggingface", huggingface.to_huggingface, model=lm("theirs"))
add("model.huggingface.weight_names", huggingface.weight_names, config=THEIRS)
add("model.huggingface_files.read_pretrained", huggingface_files.read_pretrained, source=FOLDER / "weights")
add("model.pytorch.Trunk", model.Trunk, config=CONFIG, cross_attention=False)
add("model.pytorch.ReformerLM", model.ReformerLM, config=CONFIG)
add("model.pytorch.ReformerLM.forward", lm().forward, tokens=ids(), padding_mask=mask(), generator=gen())
add("model.pytorch.ReformerLM.hidden", lm().hidden, tokens=ids(), padding_mask=mask(), generator=gen())
add("model.pytorch.ReformerLM.loss", lm().loss, tokens=ids(), targets=ids(), padding_mask=mask(), generator=gen())
add("model.pytorch.read_out", model.read_out, hidden=x(2, 3, 8), weight=x(5, 8), bias=x(5))
add("model.pytorch.count_positions", model.count_positions, tokens=ids(), padding_mask=mask())
add("model.pytorch.next_tokens", model.next_tokens, tokens=ids(), padding_mask=mask())
add("model.pytorch.initialize", model.initialize, model=model.ReformerLM(CONFIG), seed=0)
add(
    "model.pytorch.check_tokens",
    model.check_tokens,
    config=CONFIG,
    tokens=ids(),
    padding_mask=mask(),
    generator=gen(),
    name="tokens",
    device=torch.device("cpu"),
)
add(
    "model.spec.reformer_lm",
    model_spec.reformer_lm,
    params=params(),
    config=CONFIG,
    tokens=ids().numpy(),
    padding_mask=mask().numpy(),
)
add(
    "model.spec.reformer_lm_loss",
    model_spec.reformer_lm_loss,
    params=params(),
    config=CONFIG,
    tokens=ids().numpy(),
    targets=ids().numpy(),
    padding_mask=mask().numpy(),
)
state = {k: v.double().numpy() for k, v in pair().state_dict().items()}
add(
    "model.spec.encoder_decoder",
    model_spec.encoder_decoder,
    params=state,
    encoder_config=ENCODER,
    decoder_config=CONFIG,
    **{k: v.numpy() for k, v in both.items()},
)
add("model.spec.count_positions", model_spec.count_positions, tokens=ids().numpy(), padding_mask=mask().numpy())
add("model.spec.next_tokens", model_spec.next_tokens, tokens=ids().numpy(), padding_mask=mask().numpy())
add("model.plots.data_flow", model_plots.data_flow, layers=("lsh",), d_model=4, vocab_size=5)
add("model.plots.parameter_bars", model_plots.parameter_bars, models={"a": {"head": 5, "body": 7}}, bytes_each=4)
add("model.plots.difference_matrix", model_plots.difference_matrix, names=("a", "b"), differences=np.eye(2))
add("model.plots.reach", model_plots.reach, names=("a", "b"), reached=np.ones((2, 5), bool))
add(
    "model.plots.learning_curve",
    model_plots.learning_curve,
    step=[1, 2],
    train=[7.0, 6.0],
    held_out_step=[0, 2],
    held_out=[8.0, 6.0],
    baselines={"zlib": 3.0},
)
add("model.plots.token_bars", model_plots.token_bars, labels=("a", "b"), settings={"one": [0.5, 0.5]})
add(
    "model.plots.rounds_at_evaluation",
    model_plots.rounds_at_evaluation,
    rounds=(1, 2),
    scores=[[1.0, 2.0]],
    measure="bits",
    trained_with="2 rounds",
)
# generation
lsh, local = LSHOptions.preset("strict", chunk_length=2), LocalOptions(chunk_length=2)
one = {"qk": x(1, 2, 5, 4), "v": x(1, 2, 5, 3), "buckets": torch.zeros(1, 2, 1, 5, dtype=torch.int64)}
spec_one = {k: v.numpy() for k, v in one.items()}
logits = torch.tensor([[1.0, 2.0, 3.0]])
sampling = {"temperature": 0.7, "top_k": 2, "top_p": 0.9}
for part, m, given, seen in (("pytorch", generation, one, logits), ("spec", generation_spec, spec_one, logits.numpy())):
    add(f"generation.{part}.lsh_decode", m.lsh_decode, **given, options=lsh)
    add(f"generation.{part}.local_decode", m.local_decode, q=given["qk"], k=given["qk"], v=given["v"], options=local)
    add(f"generation.{part}.token_probabilities", m.token_probabilities, logits=seen, **sampling)
add("generation.pytorch.sample_token", generation.sample_token, logits=logits, **sampling, generator=gen())
add("generation.pytorch.Decoder", generation.Decoder, model=lm("strict"), capacity=8)
add("generation.pytorch.Decoder.prefill", lambda **k: decoder(False).prefill(**k), tokens=ids(), padding_mask=mask())
add("generation.pytorch.Decoder.step", lambda **k: decoder().step(**k), tokens=torch.tensor([1, 2]))
add("generation.pytorch.Decoder.repeat", lambda **k: decoder().repeat(**k), n=2)
add("generation.pytorch.Recomputer", generation.Recomputer, model=lm())
add("generation.pytorch.Recomputer.prefill", generation.Recomputer(lm()).prefill, tokens=ids(), padding_mask=mask())
add("generation.pytorch.Recomputer.step", lambda **k: recomputer().step(**k), tokens=torch.tensor([1, 2]))
add("generation.pytorch.Recomputer.repeat", lambda **k: recomputer().repeat(**k), n=2)
add("generation.pytorch.why_not", generation.why_not, config=STRICT)
add(
    "generation.pytorch.generate",
    generation.generate,
    model=lm("bytes"),
    prompt=b"ab",
    max_new_tokens=2,
    **sampling,
    generator=gen(),
    samples=2,
    cache=None,
    on_token=lambda t: None,
    progress=False,
)
add("generation.options.check_sampling", generation_options.check_sampling, **sampling)
beams = {"vocab_size": 7, "start": 0, "end": 1, "max_new_tokens": 3, "beams": 2, "length_penalty": 0.6}
add("generation.options.check_beams", generation_options.check_beams, **beams)
add("generation.spec.beam_search", generation_spec.beam_search,
    log_probabilities=lambda prefix: np.log(np.where(np.arange(7) == len(prefix) % 2, 0.4, 0.1)), **beams)  # fmt: skip
add("generation.options.require_strict", generation_options.require_strict, options=lsh)
add("generation.options.require_decodable", generation_options.require_decodable, options=local)
add("generation.options.depends_on_length", generation_options.depends_on_length, options=local)
add(
    "generation.plots.rings",
    generation_plots.rings,
    members=np.full((1, 2, 3), -1),
    counts=np.zeros((1, 2), int),
    buckets=np.array([1]),
    position=4,
    hidden=np.zeros((1, 2, 3), bool),
)
add(
    "generation.plots.kept_by_length",
    generation_plots.kept_by_length,
    lengths=[1, 2],
    series={"a": [3, 4]},
    unit="keys",
)
add("generation.plots.seconds_by_length", generation_plots.seconds_by_length, lengths=[1, 2], series={"a": [3.0, 4.0]})
# data
data = np.frombuffer(b"some text that is long enough" * 3, np.uint8)
add("data.text.as_bytes", text.as_bytes, name="data", data=data)
add("data.text.split", text.split, data=data, held_out=0.1)
add("data.text.batches", text.batches, data=data, length=8, batch=2, seed=0, step=1)
add("data.text.held_out_windows", text.held_out_windows, data=data, length=8, count=2)
add("data.text.unigram_bits_per_byte", text.unigram_bits_per_byte, train=data, held_out=data)
add("data.text.zlib_bits_per_byte", text.zlib_bits_per_byte, held_out=data)
add("data.text.read_text", text.read_text, path=FOLDER / "text.txt")
# memory
add("memory.Peak", memory.Peak, kind="counted", start_bytes=1, above_start_bytes=2, result=None, parts=(), excludes="")
add("memory.measure_peak", memory.measure_peak, fn=lambda: 1, device="cpu")
add("memory.count_peak", memory.count_peak, fn=lambda: torch.ones(3), on="cpu")
add(
    "memory.predict_peak",
    memory.predict_peak,
    config=CONFIG,
    length=20,
    device="cuda",
    batch=1,
    training=True,
    optimizer="adam",
    dtype=torch.float32,
    exact=False,
)
add("memory.lengthened", memory.lengthened, config=CONFIG, length=40)
add("counting.Counter", counting.Counter, on="cpu")
add("counting.as_device", counting.as_device, name="on", device="cpu")
add("counting.Operations", operations_of, a=x(2, 3), b=x(3, 4))
add("counting.tensors_in", lambda value: list(counting.tensors_in(value)), value=[x(2), {"a": x(1)}])
add("planner.format_bytes", planner.format_bytes, n=16384)
add("planner.parse_bytes", planner.parse_bytes, text="16GB")
add(
    "planner.Question",
    planner.Question,
    config=CONFIG,
    length=20,
    budget=10**6,
    device="cuda",
    batch=1,
    optimizer="adam",
    dtype="float32",
)
add("planner.Question.predict", question().predict, length=20, batch=1, dtype="float32", n_hashes=1, reversible=True)
add("planner.Question.entry", question().entry, name="as asked", n_hashes=2)
add("planner.answer", lambda question: next(planner.answer(question)), question=question())
for name in ("changes", "by_depth", "by_length", "headline"):
    add(f"planner.{name}", getattr(planner, name), question=question())
add("planner.longest", planner.longest, question=question(), peak_bytes=10**6)
add("planner.table", planner.table, name="peak", data=entry(), question=question())
add("planner.caption", planner.caption, report=report())
add("planner.draw", planner.draw, report=report())
# record
add("record.about", record.about, command="reformer-ref bench --out /tmp/x", threads=1)
add("record.machine", record.machine, threads=1)
add("record.require_place", record.require_place, name="path", path=FOLDER / "out" / "r.json")
add("record.without_folders", record.without_folders, command="reformer-ref bench --out /tmp/x")
add("record.write", record.write, path=FOLDER / "out" / "r.json", record={"a": 1, "b": [{"c": 2}]})
# drawing
add("drawing.Picture", drawing.Picture, width=4.0, height=2.0)
add("drawing.Picture.tell", lambda **k: drawing.Picture().tell(**k), caption="a caption")
add("drawing.Picture.png", lambda **k: drawing.Picture(1, 1).png(**k), dpi=20)
add("drawing.styled", drawing.styled, draw=lambda: 1)
add("drawing.number", drawing.number, value=1.5)
add("drawing.bucket_colours", drawing.bucket_colours, n_buckets=4)
add("drawing.readable_on", drawing.readable_on, colour="white")
add("drawing.entries", drawing.entries, name="series", named={"a": 1})
add("drawing.strip", drawing.strip, ax=axes(), labels=["a", "b"], colours=["red", "white"], title="t")
add("drawing.side_by_side", lambda function: drawing.side_by_side(function), function=drawing.number)
add("drawing.Range", drawing.Range, low=0, high=3, step=1, start=1)
add("drawing.Range.check", drawing.Range(0, 3).check, name="n", value=2)
add("drawing.Choice", lambda first, start: drawing.Choice(first, 2, start=start), first=1, start=2)
add("drawing.Choice.check", drawing.Choice(1, 2).check, name="n", value=2)
add("drawing.Text", drawing.Text, start="abc", longest=10)
add("drawing.Text.check", drawing.Text("a", 5).check, name="t", value="abc")
add("drawing.controls", lambda n: drawing.controls(n=n)(lambda n: n)(), n=drawing.Range(0, 3))
add("drawing.explore", drawing.explore, draw=drawing.controls(n=drawing.Range(0, 3))(lambda n: drawing.Picture(1, 1)))
# pictures of the rooms
add(
    "attention.plots.attention_matrices",
    attention_plots.attention_matrices,
    matrices={"a": WEIGHTS},
    labels=list("abcdef"),
)
add("attention.plots.growth", attention_plots.growth, lengths=[1, 2], panels={"bytes": {"a": [1, 2]}})
add("attention.plots.mass_of_keys", attention_plots.mass_of_keys, cumulative={"a": [0.5, 1.0]}, share=0.9)
chunk = np.array([[0, 3, 5], [1, 2, 4]])
add(
    "chunking.plots.five_strips",
    chunking_plots.five_strips,
    tokens=list("abcdef"),
    buckets=A,
    order=ORDER,
    slot=np.argsort(ORDER),
    chunks=chunk,
    visible=np.eye(6),
    chunks_before=1,
    upto="undone",
)
add(
    "chunking.plots.four_matrices",
    chunking_plots.four_matrices,
    dense=WEIGHTS,
    bucketed=WEIGHTS,
    chunked=WEIGHTS,
    buckets=A,
    order=ORDER,
    chunk_length=3,
    chunks_before=1,
)
add("chunking.plots.reached_pairs", chunking_plots.reached_pairs, chunks_back=[0, 1], shares=[[0.5, 1.0]], names=["a"])
f = feed_forward_plots
add("feed_forward.plots.slice_layout", f.slice_layout, sizes=[3, 2], width=4, now=0)
add("feed_forward.plots.peak_bars", f.peak_bars, counted={"a": 5.0}, array_bytes=4, array_name="it")
add(
    "feed_forward.plots.slices_and_peaks",
    f.slices_and_peaks,
    sizes=[3, 2],
    width=4,
    counted={"a": 5.0},
    array_bytes=4,
    now=1,
)
add("feed_forward.plots.peak_by_slice", f.peak_by_slice, slice_lengths=[1, 2], counted=[5.0, 6.0], whole=9.0)
add("feed_forward.plots.slice_means", f.slice_means, nats=[1.0, 2.0, 3.0], sizes=[2, 1])
h, around = hashing_plots, np.arange(16)[None] // 4
points = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
add("hashing.plots.scores", h.scores, both=np.eye(3, 4), buckets=np.arange(3))
add("hashing.plots.circles", h.circles, points=points, buckets=np.array([[0, 1, 2]]), ring=around, n_buckets=4)
add(
    "hashing.plots.two_pairs",
    h.two_pairs,
    pairs=points[None, :2],
    buckets=np.array([[[0, 1]]]),
    ring=around,
    n_buckets=4,
)
add(
    "hashing.plots.collision_probability",
    h.collision_probability,
    angles=[0, 90],
    measured={4: [1.0, 0.2]},
    theory={4: [1.0, 0.25]},
    what="n_buckets",
    show=(30,),
)
add("hashing.plots.cost_of_hashing", h.cost_of_hashing, lengths=[64, 128], plain=[2, 4], factorised=[2, 2])
add("hashing.plots.bucket_sizes", h.bucket_sizes, sizes={"a": [3, 4]})
add(
    "local_attention.plots.window_patterns",
    local_plots.window_patterns,
    patterns={"a": np.eye(6, dtype=int)},
    chunk_length=3,
)
add(
    "local_attention.plots.sorted_windows",
    local_plots.sorted_windows,
    rows={"a": (ORDER, A, [0, 1])},
    chunk_length=3,
    query=2,
)
add(
    "local_attention.plots.output_changes",
    local_plots.output_changes,
    changes={"a": np.arange(4.0)},
    changed=np.array([False, False, True, False]),
)
p = lsh_plots
add("lsh_attention.plots.patterns", p.patterns, matrices={"a": WEIGHTS}, unit="weight")
add("lsh_attention.plots.sorted_pattern", p.sorted_pattern, weights=WEIGHTS, order=ORDER, buckets=A, chunk_length=3)
add("lsh_attention.plots.weights_by_key", p.weights_by_key, weights={"a": [0.5, 0.5]}, keys=["x", "y"])
add("lsh_attention.plots.recall", p.recall, rounds=[1, 2], panels={"a": {"b": [0.5, 1.0]}})
add("lsh_attention.plots.active", p.active, lengths=[4, 8], shares={"a": [1.0, 0.5]}, chunk_length=4)
add(
    "lsh_attention.plots.who_sees_whom",
    p.who_sees_whom,
    weights=WEIGHTS,
    dense=WEIGHTS,
    query=2,
    order=ORDER[None],
    buckets=B,
    seen=np.ones((1, 6), bool),
    reasons=[["because"] * 6],
    chunk_length=3,
)
grid = np.stack([np.arange(6) // 3, np.arange(6) % 3], -1)
q = positions_plots
add("positions.plots.index_grid", q.index_grid, coordinates=grid, shape=(2, 3), chosen=1)
add(
    "positions.plots.grid_and_parameters",
    q.grid_and_parameters,
    coordinates=grid,
    shape=(2, 3),
    chosen=1,
    parameters={"a": 5},
)
add("positions.plots.parameter_bars", q.parameter_bars, parameters={"a": 5, "b": 7})
add("positions.plots.similarity_maps", q.similarity_maps, similarities={"a": np.eye(4)}, every=2)
r = reversible_plots
add(
    "reversible.plots.two_streams",
    r.two_streams,
    values=dict.fromkeys(r.VALUES, 1.0),
    gradients=dict.fromkeys(r.GRADIENTS, 1.0),
)
add("reversible.plots.error_by_depth", r.error_by_depth, depths=[1, 2], errors={"a": [1e-7, 1e-6]}, lines="format")
add("reversible.plots.error_by_layer", r.error_by_layer, errors=[1e-7, 1e-6], rounding=1e-8, name="float32")
add("reversible.plots.bytes_by_depth", r.bytes_by_depth, depths=[1, 2], counted={"a": [100, 200]})
add("reversible.plots.buckets_again", r.buckets_again, stored=A, again={"a": A}, n_buckets=2)
# what was measured
m = measured_plots
add("measured_plots.read", m.read, name="million")
add("measured_plots.source", lambda record: m.source(record), record=HEAD)
add("measured_plots.medians", m.medians, records=[bench()], what="median", n_hashes=4)
add("measured_plots.exponent", m.exponent, x=[1, 2], y=[3, 4])
add("measured_plots.attention_by_length", m.attention_by_length, records=[bench()])
add("measured_plots.share_of_matmul", m.share_of_matmul, records=[bench()])
add("measured_plots.attention_by_rounds", m.attention_by_rounds, record=bench((1, 2)))
add("measured_plots.crossover", m.crossover, record=bench((1, 2)))
add("measured_plots.training_step", m.training_step, records=[bench()])
add("measured_plots.million_steps", m.million_steps, records=[million_record(), million_record(128)])
add("measured_plots.memory_parts", m.memory_parts, rows={"a": dict.fromkeys(PARTS, 5)}, budget=10, kind="predicted")
add(
    "measured_plots.memory_lines",
    m.memory_lines,
    x=[1, 2],
    ways={"a": [3, 4]},
    xlabel="layers",
    kind="predicted",
    budget=9,
    log=True,
)
add("measured_plots.memory_over_time", m.memory_over_time, runs={"a": [1, 2]}, kind="counted")
# explorers
for draw in (
    axial.axial,
    buckets.spelling,
    causality.causality,
    chunks.chunks,
    circle.circle,
    memory_explorer.memory,
    model_explorer.parameters,
    model_explorer.next_letter,
    pattern.pattern,
    pattern.dense_pattern,
    reconstruction.reconstruction,
    rings_explorer.rings,
    slices.slices,
):
    name = draw.__module__.rpartition(".")[2]
    add(f"explorers.{name}.{draw.__name__}", draw, **{k: v.first for k, v in draw.controls.items()})
add("explorers.axial.rows_in_use", axial.rows_in_use, shape=(2, 3), length=6)
add("explorers.axial.learned_numbers", axial.learned_numbers, shape=(2, 3), dims=(4, 5))
add("explorers.axial.cosine_similarity", axial.cosine_similarity, vectors=np.eye(3))
add("explorers.buckets.split", buckets.split, text="a b", by="words")
add("explorers.buckets.n_grams", buckets.n_grams, tokens=["a", "b"], by="words")
add("explorers.buckets.embed", buckets.embed, tokens=["a", "b"], by="words")
add("explorers.buckets.strips", buckets.strips, text="a b c", split_by="words", n_buckets=4, seed=0, chunk_length=4)
add("explorers.buckets.buckets_of_model", buckets.buckets_of_model, model=lm("bytes"), text="abc")
add("explorers.buckets.queries", lambda **k: buckets.queries(**k)(), model=lm("bytes"), n_buckets=512, start="abc")
add("explorers.buckets.shared", buckets.shared, buckets=B, alike=A[:, None] == A)
add("explorers.buckets.bucket_lists", buckets.bucket_lists, tokens=list("abcdef"), buckets=B, n_buckets=2)
_, qk, hashed = chunks.sentence_vectors()
add("explorers.chunks.sentence_vectors", chunks.sentence_vectors, seed=9)
add("explorers.chunks.strips", chunks.strips, tokens=list("abcdef"), buckets=B, chunk_length=4, chunks_before=1)
add("explorers.chunks.matrices", chunks.matrices, qk=qk, buckets=hashed, chunk_length=4, chunks_before=1)
add("explorers.chunks.reached", chunks.reached, buckets=B, chunk_length=2, chunks_back=[0, 1])
add("explorers.memory.config_of", memory_explorer.config_of, length=4096, layers=2, heads=1, rounds=1, reversible=True)
add(
    "explorers.memory.peak_parts", memory_explorer.peak_parts, length=4096, layers=2, heads=1, rounds=1, reversible=True
)
add("explorers.memory.train_steps", memory_explorer.train_steps, config=CONFIG, length=9, steps=1)
add("explorers.model.parts_of", model_explorer.parts_of, config=CONFIG)
add("explorers.pattern.tokens", pattern.tokens, seed=90)
add("explorers.pattern.why", pattern.why, query=2, buckets=B, options=LSHOptions(chunk_length=2))
e = reconstruction
signs = torch.ones(e.WIDTH)
add("explorers.reconstruction.StretchHalf", e.StretchHalf, gain=0.5, shift=1, signs=signs, bounded=True)
way = {"gain": 0.5, "halves": "bounded"}
add("explorers.reconstruction.stretching_blocks", e.stretching_blocks, depth=2, **way, seed=0)
add("explorers.reconstruction.up_and_down", e.up_and_down, depth=2, dtype="float32", **way, length=4)
add("explorers.reconstruction.reconstruction_errors", e.reconstruction_errors, depth=2, dtype="float32", **way)
add("explorers.reconstruction.growth_per_half", e.growth_per_half, gain=0.5)
add(
    "explorers.reconstruction.buckets_up_and_down",
    e.buckets_up_and_down,
    depth=2,
    dtype="float32",
    **way,
    length=4,
    n_hashes=2,
    n_buckets=4,
)
add("explorers.reconstruction.feed_forward_stack", e.feed_forward_stack, depth=1, reversible=True, d_model=4, d_ff=8)
add(
    "explorers.reconstruction.training_step",
    lambda **k: e.training_step(**k)(),
    depth=1,
    reversible=True,
    length=8,
    d_model=4,
    backward=True,
)
add("explorers.reconstruction.step_bytes", e.step_bytes, depth=1, reversible=True)
add("explorers.reconstruction.step_operations", e.step_operations, depth=1, reversible=True, backward=True)
add("explorers.slices.slice_sizes", slices.slice_sizes, length=5, slice_length=2)
ways = {"length": 5, "slice_length": 2, "d_model": 4, "device": "cpu"}
add(
    "explorers.slices.feed_forward_ways",
    lambda **k: [w() for w in slices.feed_forward_ways(**k).values()],
    **ways,
    d_ff=8,
)
add("explorers.slices.loss_ways", lambda **k: [w() for w in slices.loss_ways(**k).values()], **ways, vocabulary=7)
add(
    "explorers.slices.count_without_data",
    slices.count_without_data,
    ways=lambda device: {"a": lambda: torch.ones(3, device=device)},
)
# figures, notebooks, million, benchmarks
add("figures.record_run", figures.record_run, folder=FOLDER / "run", out=FOLDER / "figures")
add("figures.curve_data", figures.curve_data, metrics=METRICS)
add("notebooks.clean", notebooks.clean, notebook=notebook())
add("notebooks.gallery", notebooks.gallery, pages=[(Path("a.ipynb"), notebook())], out=FOLDER / "gallery")
add("notebooks.with_mathml", notebooks.with_mathml, source="text $x^2$ `code`")
add("notebooks.read", notebooks.read, path=FOLDER / "notebooks" / "00_a.ipynb")
add("notebooks.walkthrough", notebooks.walkthrough, folder=FOLDER / "notebooks", out=None, only=(), store=False,
    progress=False)  # fmt: skip
add("million.read_tokens", million.read_tokens, path=FOLDER / "text.txt", length=16, repeat=True)
add("million.Clock", million.Clock, model=lm("bytes"), steps=1, quiet=True)
add("million.summary", million.summary, data=million_record() | {"bits_per_byte_after": 7.0})
add("reformer_lab.benchmarks.cases.Contender", cases.Contender, name="ours", module=None, longest=None, growth=1)
add("reformer_lab.benchmarks.cases.attention_flops", cases.attention_flops, length=128, n_hashes=1)
add(
    "reformer_lab.benchmarks.cases.points",
    cases.points,
    name="attention",
    lengths=[128],
    rounds=[1],
    depths=[1],
    quick=True,
)
add("reformer_lab.benchmarks.cases.chosen", cases.chosen, name="attention", only=["ours"])
add("reformer_lab.benchmarks.contenders.axial_shape", contenders.axial_shape, length=128)
add("reformer_lab.benchmarks.contenders.step_config", contenders.step_config, point=STEP)
add("reformer_lab.benchmarks.run.ratios", bench_run.ratios, results=[RESULT])
add("reformer_lab.benchmarks.run.table", bench_run.table, point=POINT, entry={"results": [RESULT], "ratios": {}})


MODULES = {
    *(f"reformer_ref.model.{m}" for m in ("config", "checks", "encoder_decoder", "halves", "huggingface",
                                          "huggingface_files", "plots", "pytorch", "spec")),
    *(f"reformer_ref.generation.{m}" for m in ("caches", "checks", "options", "plots", "pytorch", "spec")),
    *(f"reformer_ref.{room}.plots" for room in ("attention", "chunking", "feed_forward", "hashing", "local_attention",
                                                "lsh_attention", "positions", "reversible")),
    *(f"reformer_lab.widgets.{m}" for m in ("axial", "buckets", "causality", "chunks", "circle", "memory", "model",
                                              "pattern", "reconstruction", "rings", "slices")),
    *(f"reformer_ref.{m}" for m in ("data.text", "memory", "counting", "planner", "record", "drawing", "measured_plots",
                                    "figures", "notebooks", "bench", "million")),
    *(f"benchmarks.{m}" for m in ("cases", "contenders", "decoding", "gpu", "run", "worker")),
}  # fmt: skip
WHY = {
    "takes the function under test; wrong ones are tried in the tests of its room": """
        model.checks.check_reformer_lm model.checks.check_next_tokens generation.checks.check_lsh_decode
        generation.checks.check_local_decode generation.checks.check_token_probabilities""",
    "is made by a Decoder, from what was checked": """generation.caches.StrictCache generation.caches.LocalCache
        generation.caches.DenseCache generation.caches.unit_keys generation.caches.attend_one""",
    "is made by a Counter; sees what PyTorch does": "counting.Storage counting.MetaCounter",
    "takes the parsed command line: see test_command_line.py": """planner.add_memory_arguments planner.run_memory
        bench.add_bench_arguments bench.run_bench bench.main million.add_million_arguments million.run_million
        million.million_config million.train reformer_lab.benchmarks.run.run reformer_lab.benchmarks.decoding.run reformer_lab.benchmarks.gpu.main""",
    "takes no arguments": """record.versions record.usable_cores record.peak_rss data.text.shakespeare figures.claims
        figures.computed figures.recorded explorers.reconstruction.ProductCounter reformer_lab.benchmarks.decoding.random_tokens
        reformer_lab.benchmarks.worker.main""",
    "draws or predicts everything there is, for minutes": "figures.draw_all explorers.memory.write_points",
    "draws what `computed` and `recorded` return": "figures.draw",
    "is made by a Trunk, of blocks that it makes itself": "model.pytorch.ResidualStack",
    "is a str": "drawing.Html",
    "is one division": "data.text.bits",
    "starts a kernel; it reads its notebook by notebooks.read": "notebooks.run",
    "is a constant of the benchmarks": "reformer_lab.benchmarks.cases.Case reformer_lab.benchmarks.cases.Point",
    "does the work of a point of reformer_lab.benchmarks.cases, for seconds or minutes": """reformer_lab.benchmarks.contenders.build
        reformer_lab.benchmarks.contenders.predicted_bytes reformer_lab.benchmarks.contenders.attention reformer_lab.benchmarks.contenders.numbers
        reformer_lab.benchmarks.contenders.ours reformer_lab.benchmarks.contenders.lucidrains reformer_lab.benchmarks.contenders.huggingface
        reformer_lab.benchmarks.contenders.dense reformer_lab.benchmarks.contenders.matmul reformer_lab.benchmarks.contenders.step
        reformer_lab.benchmarks.contenders.our_model reformer_lab.benchmarks.contenders.lucidrains_model reformer_lab.benchmarks.contenders.huggingface_model
        reformer_lab.benchmarks.decoding.ours reformer_lab.benchmarks.decoding.transformers_model reformer_lab.benchmarks.decoding.decoder_point
        reformer_lab.benchmarks.decoding.their_steps reformer_lab.benchmarks.decoding.whole_generation reformer_lab.benchmarks.run.measure
        reformer_lab.benchmarks.run.Worker reformer_lab.benchmarks.worker.seconds_of reformer_lab.benchmarks.worker.release""",
}


@pytest.fixture(autouse=True)
def _nothing_is_fetched(monkeypatch):
    """No network, and no notebook that takes a minute."""
    monkeypatch.setattr(huggingface_files, "_fetch", lambda name: FOLDER)
    monkeypatch.setattr(notebooks, "run", lambda *_, **__: notebook())


@pytest.mark.parametrize("target", ABOVE.targets, ids=str)
def test_hostile_arguments(target, counts):
    with torch.random.fork_rng():
        fuzz(target, counts)


def test_nothing_is_missing():
    assert_covered(ABOVE, MODULES, {name: why for why, names in WHY.items() for name in names.split()})
