"""The processes of a training, their shares of each batch, and the signals to stop it."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed

ORDER_STREAM = 0
"""The number of the seed's random stream that decides the order of the images."""


@contextlib.contextmanager
def processes() -> Iterator[None]:
    """Connects the processes, if torchrun has started several."""
    if "WORLD_SIZE" not in os.environ:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


@contextlib.contextmanager
def first_process_first() -> Iterator[None]:
    """Lets one process go first, for work that is done once, such as a download."""
    together = distributed.is_initialized()
    if together and distributed.get_rank():
        distributed.barrier()
    yield
    if together and not distributed.get_rank():
        distributed.barrier()


def process_share(batch_size: int) -> tuple[int, slice]:
    """This process's rank, and its share of the images of each batch."""
    together = distributed.is_initialized()
    rank = distributed.get_rank() if together else 0
    world = distributed.get_world_size() if together else 1
    if batch_size % world:
        raise ValueError(
            f"batch_size={batch_size} is not a multiple of the {world} processes: pass a multiple"
        )
    part = batch_size // world
    return rank, slice(rank * part, (rank + 1) * part)


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM, so that a step can be finished; a second one ends at once."""
    asked: list[int] = []

    def ask(number: int, _: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    if threading.current_thread() is not threading.main_thread():
        # Only the main thread may handle signals.
        yield asked
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def quiet_writers(out: Path) -> Iterator[None]:
    """Hides tracebacks of threads that can't write into ``out``, and says that its disk is full.

    TensorBoard raises the error in its thread and also here, and names no file.
    """
    show = threading.excepthook

    def show_others(raised: threading.ExceptHookArgs) -> None:
        if not issubclass(raised.exc_type, OSError):
            show(raised)

    threading.excepthook = show_others
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise OSError(f"the disk of {out} is full") from error
    finally:
        threading.excepthook = show


def leave_stopping_to_the_trainer(_: int) -> None:
    """Lets a process that reads images outlive Ctrl-C, which a terminal sends to all."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Shares:
    """The indices of the images that this process takes in each step: its share of the batch.

    The images are drawn without replacement until none are left, and then anew.
    """

    def __init__(self, images: int, batch_size: int, seed: int, steps: range, share: slice) -> None:
        self.images, self.batch_size, self.seed = images, batch_size, seed
        self.steps, self.share = steps, share

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[int]]:
        epoch, order = -1, np.empty(0, int)
        for step in self.steps:
            batch = []
            for place in range(step * self.batch_size, (step + 1) * self.batch_size):
                if place // self.images != epoch:
                    epoch = place // self.images
                    order = np.random.default_rng([self.seed, ORDER_STREAM, epoch]).permutation(
                        self.images
                    )
                batch.append(int(order[place % self.images]))
            yield batch[self.share]
