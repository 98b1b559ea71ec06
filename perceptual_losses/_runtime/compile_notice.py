"""A message for users who wait while kernels are compiled."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from numba.core import event

SECONDS = 1.0
"""The time that a user may wait without a message."""

LOGGER = logging.getLogger("perceptual_losses")


class CompileNotice(event.Listener):
    """Says once in a process that kernels are compiled, as soon as a user has waited for a second.

    Numba calls the listener before and after each compilation. It holds its compiler lock
    meanwhile, so kernels are compiled one at a time.
    """

    def __init__(self) -> None:
        self._watched: set[Callable[..., Any]] = set()
        self._waited = 0.0
        self._began = 0.0
        self._told = False
        self._timer: threading.Timer | None = None

    def watch(self, function: Callable[..., Any]) -> None:
        """Counts the compilation of this kernel as a wait."""
        self._watched.add(function)

    def on_start(self, event: Any) -> None:
        """Begins to wait for a kernel."""
        dispatcher = event.data["dispatcher"]
        if self._told or dispatcher.py_func not in self._watched:
            return
        folder = dispatcher.stats.cache_path
        timer = threading.Timer(max(0.0, SECONDS - self._waited), self._tell, [folder])
        timer.daemon = True
        self._began = time.monotonic()
        # An interpreter that is shutting down starts no threads.
        with contextlib.suppress(RuntimeError):
            timer.start()
            self._timer = timer

    def on_end(self, event: Any) -> None:
        """Ends the wait for a kernel."""
        if self._timer is not None and event.data["dispatcher"].py_func in self._watched:
            self._timer.cancel()
            self._timer.join()
            self._timer = None
            self._waited += time.monotonic() - self._began

    def _tell(self, folder: str | None) -> None:
        self._told = True
        kept = f"they are kept in {folder}"
        if folder is None:
            kept = "they cannot be kept: set NUMBA_CACHE_DIR to a folder that can be written to"
        LOGGER.warning(
            "perceptual_losses is compiling the CPU kernels of this loss, which takes seconds the "
            "first time; %s",
            kept,
        )
