"""Files that are written completely or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to write to, which takes its place when all went well.

    It has the same suffix. After an error it is gone; a process that is killed leaves it. A link
    stays, and the file that it leads to is replaced. A device or a pipe can't be replaced: it is
    itself the file to write to.

    Raises:
        OSError: the file cannot be written; the message has its name and the reason.
    """
    with naming(path):
        if path.exists() and not path.is_file():
            yield path
            return
        target = Path(os.path.realpath(path))
        partial = target.with_stem(f"{target.stem}.partial")
        try:
            yield partial
            os.replace(partial, target)
        except (Exception, KeyboardInterrupt):
            partial.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Puts the name of a file into the errors of writing it, except that of a closed pipe."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(f"{path} cannot be written ({reason(error)})") from error


def reason(error: OSError) -> str:
    """An error's reason, without its number."""
    return "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
