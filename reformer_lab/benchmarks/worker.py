"""One contender at one point, in its own process: ``python -m reformer_lab.benchmarks.worker``, spoken to by
``reformer_lab.benchmarks.run``.

The first line on stdin is the order, as JSON; every further line asks for one run. Every answer is one line of JSON on
stdout: of the first, uncounted run also the peak memory, then seconds. Freed memory goes back to the system in between.
"""

import ctypes
import gc
import json
import os
import sys
import time
from dataclasses import replace

SMALL = 512  # tokens of the small run that loads libraries and code before anything is measured


def main():
    """Answer orders until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints does not come between the answers
    order = json.loads(sys.stdin.readline())
    _limit_memory(order["memory_limit"])

    def answer(work):
        try:
            reply = work()
        except BaseException as error:
            text = " ".join(str(error).split())
            full = isinstance(error, MemoryError) or "allocate memory" in text or "out of memory" in text
            reply = {"status": "out of memory" if full else "failed", "detail": f"{type(error).__name__}: {text[:300]}"}
        answers.write(json.dumps(reply) + "\n")
        return reply["status"] == "ok"

    made = []
    if answer(lambda: _first(order, made)):
        while sys.stdin.readline() and answer(lambda: _again(made[0], order["device"])):
            pass


def _first(order, made):
    """Make the inputs, and run once: {"status", "seconds", "above_start_bytes"}. The run goes to ``made``."""
    import torch
    from reformer_ref.memory import measure_peak

    from reformer_lab.benchmarks.cases import Point
    from reformer_lab.benchmarks.contenders import build, predicted_bytes

    torch.set_num_threads(order["threads"])
    name, point, device = order["contender"], Point(**order["point"]), order["device"]
    if point.kind != "gemm":
        build(name, replace(point, length=min(SMALL, point.length), flops=point.flops and 1e7), device)()
    run, results = build(name, point, device), []
    release(device)
    start = time.perf_counter()
    memory = measure_peak(lambda: results.extend(run()), device=device)
    reply = {"status": "ok", "seconds": time.perf_counter() - start, "above_start_bytes": memory.above_start_bytes}
    if not all(bool(t.isfinite().all()) for t in results):
        raise FloatingPointError("the result is infinite or not a number")
    if device != "cpu" and (predicted := predicted_bytes(name, point, device)) is not None:
        reply["predicted_bytes"] = predicted
    made.append(run)
    return reply


def _again(run, device):
    release(device)
    return {"status": "ok", "seconds": seconds_of(run, device)}


def seconds_of(function, device):
    """Seconds that ``function()`` takes; on CUDA between two events in its stream: nothing waits but the end."""
    if device == "cpu":
        start = time.perf_counter()
        function()
        return time.perf_counter() - start
    import torch

    begun, done = (torch.cuda.Event(enable_timing=True) for _ in "bd")
    begun.record()
    function()
    done.record()
    torch.cuda.synchronize()
    return begun.elapsed_time(done) / 1000.0  # from milliseconds


def release(device):
    """Give freed memory back to the system, so that processes that wait do not stand in each other's way."""
    gc.collect()
    if device != "cpu":
        import torch

        torch.cuda.empty_cache()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def _limit_memory(limit):
    """A contender that wants more than there is gets an error, instead of the machine getting into trouble."""
    if limit and sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")


if __name__ == "__main__":
    main()
