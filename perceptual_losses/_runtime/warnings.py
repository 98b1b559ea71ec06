"""Warnings that name the line of the caller's code."""

import sys
import warnings

import torch

_SKIPPED = ("perceptual_losses.", "torch.")


def warn(text: str, category: type[Warning] = UserWarning) -> None:
    """Warns, and names the innermost calling line that is not in this package or in torch.

    A fixed number of frames would name the caller's line only for a function: that of a loss has
    more frames between. A compiled call gives no warning, which would break the graph.
    """
    if torch.compiler.is_compiling():
        return
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_SKIPPED):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, category, stacklevel=level)
