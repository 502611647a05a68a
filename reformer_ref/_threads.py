"""Whole pieces of work on each thread of a CPU, because single operations scale badly."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

from reformer_ref._tensors import has_values


def for_each(work, items, like):
    """Call ``work(item)`` for all items, on the threads that PyTorch may use for ``like``.

    Items must not depend on each other, nor ``work`` on the order; it records no gradients. The
    first exception is raised here, and what has not begun is dropped.
    """
    total = torch.get_num_threads() if _threads_help(like) else 1
    workers = min(total, len(items))
    if workers == 1:
        for item in items:
            work(item)
        return
    inference = torch.is_inference_mode_enabled()

    def work_in_mode(item):  # the mode belongs to a thread
        with torch.inference_mode(inference), torch.no_grad():
            work(item)

    for _ in _pool(workers, total // workers).map(work_in_mode, items):
        pass


def _threads_help(like):
    """Not on other devices, without values, or where a mode watches the operations of a thread."""
    return like.device.type == "cpu" and has_values(like) and _get_current_dispatch_mode() is None


@lru_cache(maxsize=4)
def _pool(workers, threads_each):
    """Threads that wait for work, each with ``threads_each`` threads inside an operation."""
    started = threading.Barrier(workers + 1)
    threads_here = torch.get_num_threads()

    def start():
        torch.get_num_threads()  # takes over the setting of the process, which else happens later
        torch.set_num_threads(threads_each)
        started.wait()

    pool = ThreadPoolExecutor(workers, "attention", initializer=start)
    for _ in range(workers):
        pool.submit(int)  # starts a thread, because the others still wait
    started.wait()
    torch.set_num_threads(threads_here)  # what threads that others start begin with
    return pool


os.register_at_fork(after_in_child=_pool.cache_clear)  # a fork copies no threads
