"""Run cases: every contender of a point in its own process, one run each in turn; medians, ratios, tables, records."""

import json
import os
import select
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from statistics import median

from reformer_ref._arguments import require_float, require_int
from tqdm import tqdm

from reformer_lab.benchmarks import cases, record

DATA = Path("records")
START_UP = 120.0  # seconds more than a run may take that the first answer may take: libraries, inputs


def run(command, line):
    """Measure everything that a `BenchCommand` asks for; the exit code: 1 if one of our own runs failed, else 0."""
    threads = record.usable_cores() if command.threads is None else require_int("--threads", command.threads)
    repeats = require_int("--repeats", (1 if command.quick else 5) if command.repeats is None else command.repeats)
    require_float("--limit", command.limit, minimum=1e-3)
    device = command.device
    device_name = _cuda_name() if device == "cuda" else None
    names = list(dict.fromkeys(cases.CASES if "all" in command.case else command.case))
    work = {}
    paths = {}
    for name in names:
        points = cases.points(name, command.length, command.n_hashes, command.n_layers, command.quick)
        work[name] = (points, cases.chosen(name, command.only))
        paths[name] = _path(command.out, name if device == "cpu" else f"cuda_{name}", len(names), command.quick)
    failed = False
    for name, (points, contenders) in work.items():
        settings = {"device": device, "threads": threads, "repeats": repeats, "limit": command.limit}
        settings["memory_limit"] = _free_memory() if device == "cpu" else None
        data = {"case": name, "title": cases.CASES[name].title, **record.about(line, threads), **settings}
        data |= {"device_name": device_name, "complete": False, "points": []}
        _write(paths[name], data)
        history = {}
        for point in points:
            results = measure(point, contenders, settings, history)
            entry = {**asdict(point), "results": results, "ratios": ratios(results)}
            data["points"].append(entry)
            print(table(point, entry), flush=True)
            _write(paths[name], data)
            failed |= any(r["status"] == "failed" for r in results if cases.CONTENDERS[r["contender"]].ours)
        data["complete"] = True
        _write(paths[name], data)
        if paths[name]:
            print(f"written {paths[name]}\n", flush=True)
    return int(failed)


def _cuda_name():
    import torch

    if not torch.cuda.is_available():
        raise ValueError(
            "--device cuda: PyTorch finds no CUDA device here; --device cpu measures on the CPU, and "
            "`reformer-ref memory` predicts the memory on a GPU"
        )
    return torch.cuda.get_device_name()


def measure(point, contenders, settings, history):
    """Results of all contenders at a point, dicts in their order; ``history``: what shorter points took, is updated."""
    results = {c.name: _expected(c, point, settings["limit"], history) for c in contenders}
    workers = {}
    running = [c for c in contenders if results[c.name]["status"] == "ok"]
    try:
        often = 0.5 if sys.stderr.isatty() else 60.0  # seconds; a log file needs fewer lines than a terminal
        total = len(running) * (settings["repeats"] + 1)
        with tqdm(total=total, leave=False, desc=point.label, mininterval=often, delay=often) as bar:
            for turn in range(settings["repeats"] + 1):  # A B C A B C …, so that a slow minute falls on all
                for contender in running:
                    result = results[contender.name]
                    if result["status"] != "ok":
                        continue
                    bar.set_postfix_str(contender.name, refresh=sys.stderr.isatty())
                    if turn == 0:
                        workers[contender.name] = Worker(contender.name, point, settings)
                    reply = workers[contender.name].answer(settings["limit"] + START_UP * (turn == 0))
                    _add_reply(result, reply, turn)
                    bar.update()
    finally:
        for worker in workers.values():
            worker.end()
    for contender in running:
        _remember(contender, point, results[contender.name], settings["limit"], history)
    return list(results.values())


class Worker:
    """A process that does one contender's work at one point, run by run."""

    def __init__(self, contender, point, settings):
        order = {"contender": contender, "point": asdict(point), **settings}
        self.errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (closed by end)
        environment = {
            **os.environ, "OMP_NUM_THREADS": str(settings["threads"]), "MKL_NUM_THREADS": str(settings["threads"]),
            "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore",
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-m", "reformer_lab.benchmarks.worker"], env=environment, text=True, errors="replace",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
        )  # fmt: skip
        self.request = json.dumps(order)

    def answer(self, limit):
        """Ask for one run; {"status": "ok", "seconds", …}, or what went wrong. The process has then ended."""
        try:
            self.process.stdin.write(self.request + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return self._ended()
        self.request = "go"
        if not select.select([self.process.stdout], [], [], limit)[0]:
            self.end()
            return {"status": "timeout", "detail": f"no answer within {limit:.0f} s"}
        line = self.process.stdout.readline()
        return json.loads(line) if line else self._ended()

    def _ended(self):
        code = self.process.wait()
        self.errors.seek(0)
        last = (self.errors.read().strip().splitlines() or ["no message"])[-1]
        if code == -9:
            return {"status": "out of memory", "detail": "ended by the system (signal 9)"}
        return {"status": "failed", "detail": f"ended with code {code}: {last[:300]}"}

    def end(self):
        """Stop the process, whatever it is doing."""
        if not self.errors.closed:
            self.process.kill()
            self.process.wait()
            self.process.stdin.close()
            self.process.stdout.close()
            self.errors.close()


def _expected(contender, point, limit, history):
    """An empty result; its status says if there is no use in trying."""
    result = {"contender": contender.name, "status": "ok", "detail": None, "seconds": []}
    before = history.get((contender.name, point.n_hashes, point.n_layers))
    if contender.absent:
        return result | {"status": "absent", "detail": contender.absent}
    if contender.longest and point.kind != "gemm" and point.length > contender.longest:
        return result | {"status": "skipped", "detail": f"measured up to {contender.longest:,} tokens"}
    if before and before[1] is None:
        return result | {"status": "skipped", "detail": f"out of memory at {before[0]:,} tokens already"}
    if before and before[0] < point.length and point.kind != "gemm":
        seconds = before[1] * (point.length / before[0]) ** contender.growth
        if seconds > limit:
            detail = f"about {seconds:,.0f} s predicted from {before[0]:,} tokens, more than the limit of {limit:g} s"
            return result | {"status": "skipped", "detail": detail}
    return result


def _add_reply(result, reply, turn):
    result["status"], result["detail"] = reply["status"], reply.get("detail")
    if reply["status"] == "ok" and turn == 0:
        result["first_seconds"] = reply["seconds"]
        result |= {name: reply[name] for name in ("above_start_bytes", "predicted_bytes") if name in reply}
    elif reply["status"] == "ok":
        result["seconds"].append(reply["seconds"])
        result["median"] = median(result["seconds"])


def _remember(contender, point, result, limit, history):
    key = contender.name, point.n_hashes, point.n_layers
    if result["status"] == "timeout":
        history[key] = point.length, limit
    elif result["status"] == "out of memory":
        history[key] = point.length, None
    elif result["status"] == "ok":
        history[key] = point.length, result["median"]


def ratios(results):
    """What each of ours that ran compares to: speed, memory and rate of arithmetic.

    A ratio of times is that of the medians; beside it, under its name with "_range", stand the smallest and the largest
    ratio of one turn, since in a turn all contenders run one after the other.
    """
    done = {r["contender"]: r for r in results if r["status"] == "ok"}
    ports = [r for name, r in done.items() if cases.CONTENDERS[name].port]
    comparisons = {"times_faster_than_dense": "dense", "share_of_matmul_rate": "matmul"}
    entries = {}
    for name, ours in done.items():
        if not cases.CONTENDERS[name].ours:
            continue
        entry = entries[name] = {}
        if ports:
            fastest = min(ports, key=lambda r: r["median"])
            smallest = min(ports, key=lambda r: r["above_start_bytes"])
            entry |= {"fastest_port": fastest["contender"], "smallest_port": smallest["contender"]}
            entry |= _ratio("times_faster_than_port", fastest, ours)
            entry["memory_of_port"] = ours["above_start_bytes"] / max(smallest["above_start_bytes"], 1)
        for ratio, other in comparisons.items():
            if other in done:
                entry |= _ratio(ratio, done[other], ours)
    return entries


def _ratio(name, other, ours):
    turns = [b / a for a, b in zip(ours["seconds"], other["seconds"], strict=True)]
    return {name: other["median"] / ours["median"], f"{name}_range": [min(turns), max(turns)]}


def table(point, entry):
    """A point as text: one line per contender, ratios to the best port beside ours, their range in brackets."""
    lines = [f"{point.label}", f"  {'':<18}{'median':>10}{'fastest … slowest':>22}{'peak memory':>14}"]
    for r in entry["results"]:
        if r["status"] != "ok":
            lines.append(f"  {r['contender']:<18}{r['status']:>10}  {r['detail']}")
            continue
        extremes = f"{min(r['seconds']):.3f} … {max(r['seconds']):.3f} s"
        memory = f"{r['above_start_bytes'] / 2**20:,.0f} MiB"
        note = _notes(entry["ratios"].get(r["contender"], {}))
        if "predicted_bytes" in r:
            note = f"(predicted {r['predicted_bytes'] / 2**20:,.0f} MiB) {note}"
        if r["contender"] == "matmul":
            memory = ""
            note = f"{point.flops / r['median'] / 1e9:.0f} GFLOP/s"
            note += ": the arithmetic of plain windows alone" if point.kind == "attention" else ""
        lines.append(f"  {r['contender']:<18}{r['median']:>8.3f} s{extremes:>22}{memory:>14}  {note}".rstrip())
    return "\n".join(lines) + "\n"


def _notes(ratio):
    def speed(name, form="{:.2f}×"):
        low, high = (form.format(value) for value in ratio[f"{name}_range"])
        return f"{form.format(ratio[name])} ({low} – {high})"

    notes = []
    if "fastest_port" in ratio:
        notes.append(f"{speed('times_faster_than_port')} the speed of {ratio['fastest_port']}")
        notes.append(f"{ratio['memory_of_port']:.3f}× the memory of {ratio['smallest_port']}")
    if "times_faster_than_dense" in ratio:
        notes.append(f"{speed('times_faster_than_dense')} the speed of dense")
    if "share_of_matmul_rate" in ratio:
        notes.append(f"{speed('share_of_matmul_rate', '{:.0%}')} of the matmul rate")
    return ", ".join(notes)


def _path(out, name, n_cases, quick):
    """Where the record of a case goes: None for a quick look that asks for no file."""
    if out is None:
        return None if quick else DATA / f"bench_{name}.json"
    if out.suffix == ".json":
        if n_cases > 1:
            raise ValueError(f"--out {out} is one file, but there are {n_cases} cases; give a folder")
        return out
    return out / f"bench_{name}.json"


def _write(path, data):
    if path:
        record.write(path, data)


def _free_memory():
    """Bytes that a process may take without harm: what is free now, less a tenth; None if that is not known."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return int(0.9 * 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")))
