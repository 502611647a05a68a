"""Whole pieces of work on each thread of a CPU, because single operations scale badly."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

from reformer_ref._tensors import has_values


def workers_for(like, n_items):
    """How many threads ``for_each`` uses: 1 on other devices, for tensors without values, and where
    a mode, such as a counter of memory, watches the operations of this thread.
    """
    if (
        like.device.type != "cpu"
        or not has_values(like)
        or _get_current_dispatch_mode() is not None
    ):
        return 1
    return min(torch.get_num_threads(), n_items)


def for_each(work, items, like):
    """Call ``work(item)`` for all items, on the threads that PyTorch may use for ``like``.

    Items must not depend on each other, nor ``work`` on the order; it records no gradients. The
    first exception is raised here, and what has not begun is dropped.
    """
    workers = workers_for(like, len(items))
    if workers == 1:
        for item in items:
            work(item)
        return
    inference = torch.is_inference_mode_enabled()

    def work_in_mode(item):  # the mode belongs to a thread
        with torch.inference_mode(inference), torch.no_grad():
            work(item)

    for _ in _pool(workers, torch.get_num_threads() // workers).map(work_in_mode, items):
        pass


@lru_cache(maxsize=4)
def _pool(workers, threads_each):
    """Threads that wait for work, each with ``threads_each`` threads inside an operation."""
    started = threading.Barrier(workers + 1)
    thread_count = torch.get_num_threads()

    def start():
        torch.get_num_threads()  # takes over the setting of the process, which else happens later
        torch.set_num_threads(threads_each)
        started.wait()

    pool = ThreadPoolExecutor(workers, "attention", initializer=start)
    for _ in range(workers):
        pool.submit(int)  # starts a thread, because the others still wait
    started.wait()
    torch.set_num_threads(thread_count)  # what threads that others start begin with
    return pool


os.register_at_fork(after_in_child=_pool.cache_clear)  # a fork copies no threads
