"""Work for the CPU kernels, on the threads that torch runs its own operations on.

After each operation of torch, OpenMP's threads keep their cores busy for some milliseconds while
they wait for the next one. Threads of our own would share the cores with them, and a loss right
after a model's last operation would wait.
"""

import ctypes
import functools
import itertools
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch


def in_threads(run: Callable[[int, int, int], None], count: int, pixels: int) -> None:
    """Calls ``run(begin, end, share)`` for shares of ``range(count)``, each on a thread."""
    # Handing over work takes as long as a few thousand pixels.
    threads = min(torch.get_num_threads(), count, max(1, pixels // 8192))
    if threads == 1:
        run(0, count, 0)
        return
    shares = enumerate(cut(count, threads))
    errors: list[BaseException] = []

    def work(_: Any = None) -> None:
        try:
            for share, (begin, end) in shares:
                run(begin, end, share)
        except BaseException as error:  # Raised again by the thread that waits for all.
            errors.append(error)

    openmp = _openmp()
    if openmp is not None:
        # Always as many threads as torch uses: for fewer, OpenMP would end some and start them
        # again later.
        openmp(_Callback(work), None, 0, 0)
    else:
        others = [_pool(threads - 1).submit(work) for _ in range(threads - 1)]
        work()
        for other in others:
            other.result()
    if errors:
        raise errors[0]


def cut(size: int, parts: int) -> list[tuple[int, int]]:
    """Begin and end of each of so many parts of ``range(size)``, as equal as they can be."""
    return list(itertools.pairwise(size * i // parts for i in range(parts + 1)))


_Callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@functools.cache
def _openmp() -> Any:
    """GNU OpenMP's entry of a parallel region, or ``None`` where torch runs on something else."""
    if _forked or not sys.platform.startswith("linux") or not torch.backends.openmp.is_available():
        return None
    # `None` stands for all libraries that are loaded globally, as torch loads OpenMP.
    entry = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
    if entry is not None:
        entry.argtypes = _Callback, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint
        entry.restype = None
    return entry


@functools.cache
def _pool(workers: int) -> ThreadPoolExecutor:
    """Threads for a system without GNU OpenMP."""
    return ThreadPoolExecutor(workers, thread_name_prefix="perceptual_losses")


_forked = False
_threads = 1


def _before_fork() -> None:
    """Counts this process's threads, which tells whether OpenMP may have some."""
    global _threads
    _threads = len(os.listdir("/proc/self/task")) if sys.platform.startswith("linux") else 1


def _after_fork() -> None:
    """Gives up OpenMP: a forked process has no threads, and OpenMP would wait for its own."""
    global _forked
    _forked = _forked or _threads > 1
    _openmp.cache_clear()
    _pool.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)
