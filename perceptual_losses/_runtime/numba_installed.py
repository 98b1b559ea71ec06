"""Whether Numba's kernels can run; importing this module doesn't import Numba."""

from __future__ import annotations

import functools
import importlib
import importlib.util

import torch

INSTALLED = importlib.util.find_spec("numba") is not None


def unavailable() -> str | None:
    """The reason why Numba's kernels cannot run, or ``None``."""
    if not INSTALLED:
        return "Numba is not installed"
    # Importing is not traced: a compiled call assumes that what is installed can be imported.
    return None if torch.compiler.is_compiling() else _broken()


@functools.cache
def _broken() -> str | None:
    try:
        importlib.import_module(f"{__package__}.numba_kernels")
    except Exception as error:  # Whatever a broken installation raises is the reason.
        return f"Numba cannot be used ({type(error).__name__}: {error})"
    return None
