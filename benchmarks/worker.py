"""One contender at one point, in a process of its own: ``python -m benchmarks.worker``, spoken to by ``benchmarks.run``.

The first line on stdin is the order, as JSON; every further line asks for one run. Every answer is one line of JSON on
stdout: of the first, uncounted run also its peak memory, then seconds. Between runs freed memory goes back to the system.
"""

import ctypes
import gc
import json
import os
import sys
import time
from dataclasses import replace

SMALL = 512  # tokens of the model run that loads libraries and code before anything is measured


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
            full = isinstance(error, MemoryError) or "allocate memory" in text
            reply = {"status": "out of memory" if full else "failed", "detail": f"{type(error).__name__}: {text[:300]}"}
        answers.write(json.dumps(reply) + "\n")
        return reply["status"] == "ok"

    made = []
    if answer(lambda: _first(order, made)):
        while sys.stdin.readline() and answer(lambda: _again(made[0])):
            pass


def _first(order, made):
    """Make the inputs, and run once: {"status", "seconds", "above_start_bytes"}. The run goes to ``made``."""
    import torch

    from benchmarks.cases import Point
    from benchmarks.contenders import build
    from reformer_ref.memory import measure_peak

    torch.set_num_threads(order["threads"])
    point = Point(**order["point"])
    if point.kind != "gemm":
        small = min(SMALL, point.length)
        build(order["contender"], replace(point, length=small, flops=point.flops and 1e7))()
        release()
    run = build(order["contender"], point)
    results, start = [], time.perf_counter()
    memory = measure_peak(lambda: results.extend(run()), device="cpu")
    seconds = time.perf_counter() - start
    if not all(bool(t.isfinite().all()) for t in results):
        raise FloatingPointError("the result is infinite or not a number")
    made.append(run)
    return {"status": "ok", "seconds": seconds, "above_start_bytes": memory.above_start_bytes}


def _again(run):
    release()
    start = time.perf_counter()
    run()
    return {"status": "ok", "seconds": time.perf_counter() - start}


def release():
    """Give freed memory back to the system, so that processes that wait do not stand in each other's way."""
    gc.collect()
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
