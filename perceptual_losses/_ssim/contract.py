"""What every path is told, and the precision it computes in."""

from typing import NamedTuple

import torch
from torch import Tensor


class Settings(NamedTuple):
    """What is computed, in the paper's terms.

    Attributes:
        window: taps of the separable window; odd in number.
        low: the pixel value that counts as zero.
        c1: ``(k1 L)^2``.
        c2: ``(k2 L)^2``.
        padding: ``"valid"``, ``"zeros"`` or ``"symmetric"``.
    """

    window: tuple[float, ...]
    low: float
    c1: float
    c2: float
    padding: str


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any tensor is; else float32, for half precision and integers too."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
