"""What is worth knowing of this package on one GPU, in eight minutes: ``python -m reformer_lab.benchmarks.gpu``.

It runs from a bare checkout with the machine's own PyTorch and Triton. The most valuable comes first: the tests on
CUDA, attention beside dense attention and other Reformers, memory beside its prediction, training steps, decoding, and
Table 2 and a curve of figure 4 as far as minutes are left. Each stage is a process of its own, with a deadline. Each
result is written as soon as it exists, so whatever ends the script, what was measured before is there. A process that
dies, or that CUDA no longer answers, is started again without what killed it. Where the kernels for LSH attention fail,
the stages after attention do without kernels.

``--dry-run`` goes the same way at tiny sizes on the CPU, kernels interpreted: to test the script, not to measure.
"""

import argparse
import json
import math
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from reformer_ref._kernels import switched_off
from reformer_ref.hashing.api import default_n_buckets, hash_vectors, random_rotations
from reformer_ref.lsh_attention.api import lsh_attention
from reformer_ref.lsh_attention.options import LSHOptions
from reformer_ref.memory import count_peak, measure_peak, predict_peak

from reformer_lab.benchmarks import cases, contenders, record
from reformer_lab.benchmarks.worker import release, seconds_of
from reformer_lab.records import FOLDER

ROOT = Path(__file__).parents[2]
# Share of the minutes that a stage may take, most valuable first.
STAGES = {
    "tests": 0.30, "rates": 0.05, "attention": 0.25, "memory": 0.10, "step": 0.10, "decoding": 0.06, "table2": 0.09,
    "figure4": 0.05,
}  # fmt: skip
CHUNK = cases.CHUNK
DEVICE_LOST, RESTARTS = 3, 5  # exit code of a stage that CUDA no longer answers; how often a stage is started again
# Largest relative error, against float64 by the streaming version, of a variant that is worth timing.
ACCEPTED = {torch.float32: 1e-4, torch.bfloat16: 3e-2}


@dataclass(frozen=True)
class Sizes:
    """How large the work is: ``GPU`` or ``DRY``."""

    device: str
    heads: int  # of LSH attention; the others have 8
    rounds: int
    lengths: tuple[int, ...]  # of attention, most valuable first
    checked: int  # longest attention by "plain" and "streaming" that is checked before it is timed; by "triton": all
    steps: tuple[int, ...]  # lengths of a training step
    memory: tuple[int, ...]
    decoding: tuple[int, ...]
    numbers: int  # copied, to find the rate
    matrix: int  # rows of the product, to find the rate
    training_steps: int
    repeats: int


GPU = Sizes(
    device="cuda", heads=8, rounds=4, lengths=(16384, 65536, 4096, 262144, 1 << 20), checked=16384,
    steps=(16384, 65536), memory=(16384, 1 << 20, 65536, 4096), decoding=(4096, 65536), numbers=1 << 29, matrix=8192,
    training_steps=4000, repeats=10,
)  # fmt: skip
DRY = Sizes(
    device="cpu", heads=1, rounds=2, lengths=(128,), checked=128, steps=(128,), memory=(256, 128), decoding=(64,),
    numbers=1 << 12, matrix=64, training_steps=2, repeats=1,
)  # fmt: skip
TESTS = {
    "cuda": ["tests/kernels/test_attention.py", "tests/kernels/test_hashing.py", "tests/cuda"],
    "cpu": ["tests/cuda/test_choice.py"],
}


class Report:
    """The record of a stage, written anew after every entry.

    An entry is written as "running" before its work begins. One that is found so later killed its process.
    """

    def __init__(self, path, about, deadline):
        self.path, self.deadline = path, deadline
        old = json.loads(path.read_text(encoding="utf-8"))["entries"] if path.exists() else []
        self.entries = [e | {"status": "killed the process"} if e["status"] == "running" else e for e in old]
        self.about = about
        self.write()

    def write(self):
        record.write(self.path, {**self.about, "entries": self.entries})

    def left(self):
        """Seconds to the deadline."""
        return self.deadline - time.time()

    def add(self, name, work):
        """Do ``work()``, which returns a dict of numbers, unless it was done or no time is left."""
        if any(entry["name"] == name for entry in self.entries):
            return
        if self.left() <= 0:
            self.entries.append({"name": name, "status": "no time left"})
            self.write()
            return
        self.entries.append({"name": name, "status": "running"})
        self.write()
        try:
            result = {"status": "ok", **work()}
        except torch.OutOfMemoryError as error:
            result = {"status": "out of memory", "detail": str(error)[:300]}
        except Exception as error:
            result = failure(error)
        self.entries[-1] |= result
        self.write()
        print(f"{self.path.stem}: {json.dumps(self.entries[-1], default=str)[:300]}", flush=True)
        if result["status"] == "failed" and not device_answers():
            sys.exit(DEVICE_LOST)

    def median(self, name):
        """The median of seconds of an entry, or None."""
        return next((entry.get("median_seconds") for entry in self.entries if entry["name"] == name), None)


def failure(error):
    """What an entry says of the exception that is being handled."""
    detail = f"{type(error).__name__}: {error}"[:500]
    return {"status": "failed", "detail": detail, "traceback": traceback.format_exc()[-2000:]}


def device_answers():
    """Whether CUDA works in this process; after an illegal access to memory it does not, whatever is called."""
    try:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def timed(function, sizes, seconds=1.0):
    """Median, least and most seconds of a function that ran before; as many repeats as fit ``seconds``."""
    times = [seconds_of(function, sizes.device)]
    repeats = max(1, min(sizes.repeats, int(seconds / max(times[0], 1e-6))))
    times += [seconds_of(function, sizes.device) for _ in range(repeats - 1)]
    return {
        "median_seconds": statistics.median(times), "least_seconds": min(times), "most_seconds": max(times),
        "repeats": repeats,
    }  # fmt: skip


# Stages


def tests(report, sizes):
    """The tests that need a GPU or pretend one."""

    def work():
        # Compilation is what takes time: a worker for each core.
        cores = str(min(16, record.usable_cores()))
        parallel = ["-n", cores] if find_spec("xdist") and sizes.device == "cuda" else []
        return run_tests([*parallel, *TESTS[sizes.device]], max(30.0, report.left()))

    report.add("pytest", work)


def run_tests(words, seconds):
    """Exit code, counts and end of the output of pytest. When time is up it is interrupted, and still says how far it
    came.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    result = {"complete": True}
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        result["complete"] = False
        process.send_signal(signal.SIGINT)
        try:
            output, _ = process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
    last = output.strip().rpartition("\n")[2]
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|errors?|xfailed)", last)}
    return result | {"exit_code": process.returncode, "counts": counts, "tail": output[-8000:]}


def rates(report, sizes):
    """What the card can do at best: bytes copied and multiplications, in a second."""

    def copy():
        a = torch.randn(sizes.numbers, device=sizes.device).bfloat16()  # zeros might be copied faster
        b = torch.empty_like(a)
        b.copy_(a)
        result = timed(lambda: b.copy_(a), sizes)
        return result | {"bytes_per_second": 2 * a.nbytes / result["median_seconds"]}

    def product(dtype):
        a, b = (torch.randn(sizes.matrix, sizes.matrix, device=sizes.device).to(dtype) for _ in range(2))
        a @ b
        result = timed(lambda: a @ b, sizes)
        return result | {"flops_per_second": 2 * sizes.matrix**3 / result["median_seconds"]}

    report.add("copy", copy)
    report.add("matrix product, bfloat16", lambda: product(torch.bfloat16))
    report.add("matrix product, float32", lambda: product(torch.float32))


def attention(report, sizes):
    """Forward and backward of 8 heads, hash and sort included, by length, precision and implementation; hash and sort
    also by themselves.
    """
    for length in sizes.lengths:
        for dtype in (torch.bfloat16, torch.float32):
            label = f"{length} tokens, {str(dtype).removeprefix('torch.')}"
            report.add(f"hash, {label}", partial(hashing, sizes, length, dtype))
            for name in ("triton", "triton forward", "streaming", "huggingface", "plain", "dense"):
                work = partial(attention_entry, sizes, name, length, dtype)
                seconds = expected_seconds(report, name, length, sizes.lengths, dtype)
                if seconds > report.left() / 2:
                    work = partial(dict, status="skipped", expected_seconds=seconds)
                report.add(f"{name}, {label}", work)
            rates_reached(report, label, length, dtype)


def expected_seconds(report, name, length, lengths, dtype):
    """What an entry should take after a shorter one, of dense attention with the square of the length: three runs."""
    growth = 2 if name == "dense" else 1
    dtype = str(dtype).removeprefix("torch.")
    before = {n: report.median(f"{name}, {n} tokens, {dtype}") for n in lengths if n < length}
    return max((3 * seconds * (length / n) ** growth for n, seconds in before.items() if seconds), default=0.0)


def rates_reached(report, label, length, dtype):
    """Beside the time of the kernels: the share of the rates of copies and matrix products, and what was predicted.

    Bytes, every number loaded once per launch, and operations come from the record ``roofline``.
    """
    entry = next(entry for entry in report.entries if entry["name"] == f"triton, {label}")
    prediction = json.loads((FOLDER / "roofline.json").read_text(encoding="utf-8"))["predictions"]
    wanted = {"preset": "trax", "dtype": str(dtype).removeprefix("torch."), "length": length}
    matching = [p for p in prediction if wanted.items() <= p.items()]
    path = report.path.with_name("gpu_rates.json")
    if not matching or entry["status"] != "ok" or not path.exists():
        return
    measured = {e["name"]: e for e in json.loads(path.read_text(encoding="utf-8"))["entries"]}
    (numbers,), seconds = matching, entry["median_seconds"]
    entry["predicted_seconds"] = [numbers["seconds_with_caches"], numbers["seconds"]]
    if copy := measured.get("copy", {}).get("bytes_per_second"):
        entry["share_of_copy_rate"] = numbers["distinct_bytes"] / seconds / copy
    if product := measured.get("matrix product, bfloat16", {}).get("flops_per_second"):
        entry["share_of_bfloat16_matrix_rate"] = numbers["operations"] / seconds / product
    report.write()


def lsh_inputs(sizes, length, dtype):
    """(qk, v, hash function, options) that all LSH variants get."""
    generator = torch.Generator(sizes.device).manual_seed(1)
    shape = (1, length, sizes.heads, cases.D_HEAD)  # the heads of a token side by side, as a projection leaves them
    qk, v = (torch.randn(shape, generator=generator, device=sizes.device).to(dtype).transpose(1, 2) for _ in "qv")
    n_buckets = default_n_buckets(length, CHUNK)
    generator = torch.Generator().manual_seed(2)
    rotations = random_rotations(generator, sizes.rounds, cases.D_HEAD, n_buckets, sizes.heads, device=sizes.device)
    options = LSHOptions.preset("trax", n_hashes=sizes.rounds, chunk_length=CHUNK, causal=True)
    return qk.requires_grad_(), v.requires_grad_(), lambda x: hash_vectors(x, rotations, n_buckets), options


def hashing(sizes, length, dtype):
    """The hash, and the sort."""
    qk, _, hashed, _ = lsh_inputs(sizes, length, dtype)
    narrow = hashed(qk).to(torch.int16)
    torch.sort(narrow, dim=-1, stable=True)
    result = timed(lambda: hashed(qk), sizes, 0.3)
    return result | {"sort": timed(lambda: torch.sort(narrow, dim=-1, stable=True), sizes, 0.3)}


def attention_entry(sizes, name, length, dtype):
    """Check one implementation, then time it."""
    work, _, forward = name.partition(" ")
    backend = {"triton": "triton", "streaming": "streaming", "plain": "plain"}.get(work)
    release(sizes.device)
    run = attention_run(sizes, work, backend, length, dtype, bool(forward))
    if not all(bool(x.isfinite().all()) for x in run()):
        raise ArithmeticError("a result is infinite or not a number")
    result = {}
    if backend and not forward and (backend == "triton" or length <= sizes.checked):
        result["error"] = error_of(sizes, backend, length, dtype)
        if not result["error"] <= ACCEPTED[dtype]:
            raise ArithmeticError(f"relative error {result['error']:.2g}, which is not worth timing")
        release(sizes.device)
    result |= timed(run, sizes)
    return result | {"peak_bytes": peak_of(sizes, run).above_start_bytes}


def attention_run(sizes, work, backend, length, dtype, forward):
    """``run()`` of one implementation: its results."""
    if work == "huggingface":
        point = cases.Point("attention", length, sizes.rounds, 0, None)
        return contenders.huggingface(point, sizes.device, dtype)
    if work == "dense":
        point = cases.Point("attention", length, sizes.rounds, 0, None)
        return contenders.dense(point, sizes.device, dtype)
    qk, v, hashed, options = lsh_inputs(sizes, length, dtype)

    def attend(qk, v):
        return lsh_attention(qk, v, hashed(qk), options, backend=backend)

    if forward:
        return torch.no_grad()(lambda: [attend(qk, v)])
    return contenders.attention(attend, [qk, v])


def error_of(sizes, backend, length, dtype):
    """The largest relative error of output and gradients, against float64 by the streaming version, given the same
    buckets: max |got − wanted| / max |wanted|, found on the device.
    """
    qk, v, hashed, options = lsh_inputs(sizes, length, dtype)
    buckets = hashed(qk)
    d_out = torch.randn(v.shape, device=sizes.device)

    def results(backend, qk, v):
        leaves = [x.detach().requires_grad_() for x in (qk, v)]
        out = lsh_attention(*leaves, buckets, options, backend=backend)
        return [out.detach(), *torch.autograd.grad(out, leaves, d_out.to(out))]

    got = results(backend, qk, v)
    wanted = results("streaming", qk.double(), v.double())
    errors = [(a - b).abs().max() / b.abs().max() for a, b in zip(got, wanted, strict=True)]
    return torch.stack(errors).max().item()


def peak_of(sizes, run):
    """The peak of memory in a run: of the allocator, or counted in a dry run."""
    return measure_peak(run, "cuda") if sizes.device == "cuda" else count_peak(run)


def memory(report, sizes):
    """A training step: bytes at the peak, beside the prediction."""
    first, *others = sizes.memory
    base = cases.Point("step", first, 2, 6, None)
    config = contenders.step_config(base)
    variants = {f"{first} tokens": (config, first), "not reversible": (replace(config, reversible=False), first)}
    variants |= {f"{n} tokens": (contenders.step_config(replace(base, length=n)), n) for n in others}
    variants |= {
        "12 layers": (replace(config, n_layers=12), first),
        "4 rounds": (replace(config, lsh=replace(config.lsh, n_hashes=4)), first),
        "8 heads": (replace(config, n_heads=8, d_head=32, d_v=32), first),
    }
    for name, (config, length) in variants.items():
        report.add(name, lambda c=config, n=length: memory_entry(sizes, c, n))
    differences = {entry["name"]: entry["difference"] for entry in report.entries if "difference" in entry}
    if differences:
        worst = max(differences, key=lambda name: abs(differences[name]))
        report.about["largest_difference"] = {"name": worst, "difference": differences[worst]}
        report.write()


def memory_entry(sizes, config, length):
    """Measured and predicted bytes of a step with Adam, model and optimizer included.

    It is the second step that is measured, like that which is predicted: in the first, the moments of Adam do not exist
    before its end.
    """
    small = min(length, 16 * CHUNK)  # with 16 chunks, for which kernels are compiled as for any multiple of 16
    contenders.step(contenders.model_of(config), cases.Point("step", small, 0, 0, None), sizes.device)()  # libraries
    release(sizes.device)
    before = peak_of(sizes, lambda: None).start_bytes
    run = contenders.step(contenders.model_of(config), cases.Point("step", length, 0, 0, None), sizes.device)
    run()
    peak = peak_of(sizes, run).peak_bytes - before
    predicted = predict_peak(config, length, sizes.device).above_start_bytes
    return {
        "peak_bytes": peak, "predicted_bytes": predicted, "difference": peak / predicted - 1,
        "within_16_gb": peak <= 16 * 10**9,
    }  # fmt: skip


def step(report, sizes):
    """Tokens in a second of a training step, beside transformers."""
    for length in sizes.steps:
        for name in ("ours", "huggingface"):
            for dtype in (torch.float32, torch.bfloat16):
                label = f"{name}, {length} tokens, {str(dtype).removeprefix('torch.')}"
                report.add(label, lambda w=name, n=length, t=dtype: step_entry(sizes, w, n, t))


def step_entry(sizes, name, length, dtype):
    """One step of ours or theirs; half precision by autocast."""
    run = contenders.build(name, cases.Point("step", length, 2, 6, None), sizes.device)

    def under_autocast():
        with torch.autocast(sizes.device, dtype, enabled=dtype != torch.float32):
            return run()

    loss = under_autocast()[0].item()
    if not math.isfinite(loss):
        raise ArithmeticError(f"the loss is {loss}")
    result = timed(under_autocast, sizes, 2.0)
    return result | {"tokens_per_second": length / result["median_seconds"], "loss": loss}


def decoding(report, sizes):
    """Seconds for one more token, after so many."""
    from reformer_lab.benchmarks.decoding import STEPS, decoder_point, ours, random_tokens

    def work(length):
        model, tokens = ours(length + STEPS).to(sizes.device), random_tokens(length + STEPS).to(sizes.device)
        return decoder_point(model, tokens, length, sizes.repeats, sizes.device)

    for length in sizes.decoding:
        report.add(f"after {length} tokens", lambda n=length: work(n))


def table2(report, sizes):
    """The duplication task at full length: trained with LSH, evaluated with every attention."""
    from reformer_lab.claims import table2 as claim
    from reformer_lab.claims.experiment import read_config
    from reformer_lab.claims.language import carried_over
    from reformer_lab.data import duplication

    config = read_config("table2")
    if sizes.device == "cpu":
        config |= {"data": {"length": 256, "vocab_size": 128}}
    length, symbols = config["data"]["length"], config["data"]["vocab_size"]

    def batch_at(step):
        return [torch.from_numpy(x) for x in duplication.batches(length, symbols, config["training"]["batch"], 0, step)]

    def work(name):
        model_config = claim.model_config(claim.sub_runs(config)[f"{name}-seed0"])
        model, result = trained(sizes, model_config, batch_at, report.left() / 2, config["training"])
        tokens, targets = duplication.batches(length, symbols, 16, claim.FRESH, 0)
        accuracy = {}
        for other in config["columns"]:
            judged = carried_over(model, model_config, other).to(sizes.device)
            with torch.no_grad():
                logits = judged(torch.from_numpy(tokens).to(sizes.device))
            accuracy[other] = duplication.accuracy(logits.argmax(-1).cpu().numpy(), targets)
        return result | {"accuracy": accuracy}

    report.add("lsh-4", lambda: work("lsh-4"))
    report.add("full", lambda: work("full"))


def figure4(report, sizes):
    """Curves of training on images (letters), with LSH and with full attention."""
    from reformer_lab.claims import images as claim
    from reformer_lab.claims.experiment import read_config
    from reformer_lab.claims.language import with_attention

    config = read_config("images")
    settings = {"seed": 0, **{name: config[name] for name in ("data", "model", "training")}}
    settings["data"] |= {"held_out": 2, "counted": 2}

    def work(name, seconds):
        data = claim.Data(settings)
        model_config = with_attention(claim.model_config(settings, data.size), name)
        return trained(sizes, model_config, data.batch_at, seconds, settings["training"])[1]

    report.add("lsh-4", lambda: work("lsh-4", report.left() / 2))
    report.add("full", lambda: work("full", report.left()))


def trained(sizes, config, batch_at, seconds, training):
    """(model, result): Adam on batches by step, until seconds or steps are over."""
    from reformer_ref.model.pytorch import ReformerLM

    model = ReformerLM(config).to(sizes.device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=training["learning_rate"], betas=(0.9, 0.98))
    end, losses = time.time() + seconds, []
    for step in range(sizes.training_steps):
        for group in optimizer.param_groups:
            group["lr"] = training["learning_rate"] * min(1.0, (step + 1) / training["warmup"])
        tokens, targets = (x.to(sizes.device) for x in batch_at(step))
        optimizer.zero_grad()
        loss = model.loss(tokens, targets, generator=torch.Generator().manual_seed(step))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), training["clip"])
        optimizer.step()
        losses.append(loss.detach())
        if step % 50 == 49 and time.time() > end:
            break
    bits = torch.stack(losses).cpu() / math.log(2)
    curve = [[n, round(bits[max(0, n - 50) : n].mean().item(), 4)] for n in range(50, len(bits) + 1, 50)]
    return model.eval(), {"steps": len(bits), "last_bits": bits[-50:].mean().item(), "curve": curve}


WORK = {work.__name__: work for work in (tests, rates, attention, memory, step, decoding, table2, figure4)}


# The script


def main(arguments=None):
    """Run the stages one after the other, each in a process of its own."""
    parser = argparse.ArgumentParser(prog="python -m reformer_lab.benchmarks.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=8.0, help="for all stages together (default: 8)")
    parser.add_argument("--out", type=Path, default=None, help="folder of the records (default: records)")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU, kernels interpreted")
    parser.add_argument("--only", nargs="+", choices=STAGES, default=list(STAGES), metavar="STAGE",
                        help=f"some of: {', '.join(STAGES)}")  # fmt: skip
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)  # the process of one stage
    parser.add_argument("--deadline", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not 0 < options.minutes <= 24 * 60:
        parser.error(f"--minutes must be more than 0 and at most a day, got {options.minutes:g}")
    if not options.dry_run and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --dry-run goes the same way on the CPU")
    out = (options.out or Path("runs/gpu" if options.dry_run else "records")).resolve()
    if options.stage:
        return run_stage(options.stage, out, options)
    for name in options.only:  # a stage goes on from its record, which is right within this run alone
        (out / f"gpu_{name}.json").unlink(missing_ok=True)
    begun, budget = time.time(), 60 * options.minutes
    environment = dict(os.environ) | ({"TRITON_INTERPRET": "1"} if options.dry_run else {})
    share_so_far, codes = 0.0, []
    for name in STAGES:
        share_so_far += STAGES[name]
        if name not in options.only:
            continue
        deadline = begun + share_so_far * budget if set(options.only) == set(STAGES) else begun + budget
        command = [
            sys.executable, "-m", "reformer_lab.benchmarks.gpu", "--stage", name, "--out", str(out), "--deadline",
            str(deadline), *(["--dry-run"] if options.dry_run else []),
        ]  # fmt: skip
        if name not in ("tests", "rates", "attention") and not kernels_work(out):
            environment["REFORMER_TRITON"] = "0"
        for _ in range(1 + RESTARTS):  # again, if a fault of the device killed it
            code = _wait(command, environment, deadline)
            if (code != DEVICE_LOST and (code is None or code >= 0)) or time.time() > deadline:
                break
        codes.append(code)
        print(f"{name}: {'stopped at its deadline' if code is None else f'exit code {code}'}, "
              f"{time.time() - begun:.0f} s so far", flush=True)  # fmt: skip
    print(summary(out), flush=True)
    return int(any(codes))


def kernels_work(out):
    """False if the stage "attention" tried the kernels and never timed them."""
    path = out / "gpu_attention.json"
    entries = json.loads(path.read_text(encoding="utf-8"))["entries"] if path.exists() else []
    tried = {e["status"] for e in entries if e["name"].startswith("triton,")} - {"no time left", "skipped"}
    return not tried or "ok" in tried


def _wait(command, environment, deadline):
    """The exit code of a process, or None if it had to be stopped some time after the deadline."""
    try:
        limit = max(10.0, deadline + 15 - time.time())
        return subprocess.run(command, cwd=ROOT, env=environment, check=False, timeout=limit).returncode
    except subprocess.TimeoutExpired:
        return None


def run_stage(name, out, options):
    """The process of one stage."""
    sizes = DRY if options.dry_run else GPU
    words = ["python", "-m", "reformer_lab.benchmarks.gpu", *(["--dry-run"] if options.dry_run else [])]
    about = {**record.about(shlex.join(words), torch.get_num_threads()), "stage": name}
    about["kind"] = "dry run on a CPU, nothing measured" if options.dry_run else "measured"
    if not options.dry_run:
        properties = torch.cuda.get_device_properties(0)
        about["gpu"] = {
            "name": properties.name, "memory_bytes": properties.total_memory, "cuda": torch.version.cuda,
            "capability": f"{properties.major}.{properties.minor}", "driver": driver(),
        }  # fmt: skip
        about["kernels"] = "switched off, since they failed" if switched_off() else "as chosen by the package"
    if find_spec("triton"):
        import triton

        about["versions"]["triton"] = triton.__version__
    torch.manual_seed(0)
    report = Report(out / f"gpu_{name}.json", about, options.deadline or time.time() + 60 * options.minutes)
    try:
        WORK[name](report, sizes)
    except Exception as error:  # outside of any entry: a library that is not there, for example
        report.entries.append({"name": name, **failure(error)})
        report.write()
        print(report.entries[-1]["traceback"], file=sys.stderr, flush=True)
        return 1
    return 0


def driver():
    """The version of NVIDIA's driver, or None."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.partition("\n")[0].strip() or None


def summary(out):
    """A line for each entry of the records in a folder."""
    lines = []
    for name in STAGES:
        path = out / f"gpu_{name}.json"
        if path.exists():
            stage = json.loads(path.read_text(encoding="utf-8"))
            lines += [f"{name} ({stage['kind']})"] + [f"  {_line(entry)}" for entry in stage["entries"]]
    return "\n".join(lines)


def _line(entry):
    text = f"{entry['name']}: {entry['status']}"
    if "median_seconds" in entry:
        text += f", {1e3 * entry['median_seconds']:.3f} ms"
    if "share_of_copy_rate" in entry:
        text += f", {entry['share_of_copy_rate']:.0%} of the rate of a copy"
    if "counts" in entry:
        text += f", {entry['counts']}"
    if "difference" in entry:
        text += f", {entry['peak_bytes']:,} bytes, predicted {entry['predicted_bytes']:,} ({entry['difference']:+.1%})"
    if "last_bits" in entry:
        text += f", {entry['steps']} steps, {entry['last_bits']:.3f} bits per symbol"
    return text


if __name__ == "__main__":
    sys.exit(main())
