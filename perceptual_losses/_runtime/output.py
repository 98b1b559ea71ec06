"""Files that are written completely or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to write to, which takes its place when all went well.

    It has the same suffix. After an error it is gone; a process that is killed leaves it.
    """
    partial = path.with_stem(f"{path.stem}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except (Exception, KeyboardInterrupt):
        partial.unlink(missing_ok=True)
        raise
