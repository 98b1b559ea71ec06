"""Warnings that name the line of the caller's code."""

import sys
import warnings

import torch

_PASSED = ("perceptual_losses.", "torch.")


def warn(text: str, category: type[Warning] = UserWarning) -> None:
    """Warns of the first call on the way here that neither this package nor torch made: a fixed
    number of frames would name the right line for a function, and for a loss one inside.

    A compiled call says nothing.
    """
    if torch.compiler.is_compiling():
        # It would break the graph.
        return
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_PASSED):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, category, stacklevel=level)
