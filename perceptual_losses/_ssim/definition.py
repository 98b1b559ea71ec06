"""What every path is told, the precision it computes in, and how levels lie on each other."""

import math
import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

SMALLEST_FLOAT = sys.float_info.min

# What a fast path is asked for: the gradient with respect to either image, or their sum for both.
X, Y = 1, 2


# Where normalize="floor" leaves Wang's definition. Smaller floors start training from
# anti-correlated images with gradients so small that they drown in Adam's epsilon.
FLOOR = 0.01


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


class Result(NamedTuple):
    """What becomes of the means of all planes.

    Attributes:
        reduction: ``"none"``, ``"mean"`` over them, or ``"loss"``, which is 1 less that.
        exponents: of the levels' means, which are multiplied before; or none, of one level.
        normalize: what becomes of a mean before the power.
        mix: what a loss and the mean of ``|x - y|`` are multiplied with before they are added; or
            none.
    """

    reduction: str = "none"
    exponents: tuple[float, ...] = ()
    normalize: str | None = None
    mix: tuple[float, ...] = ()

    def of(self, values: Tensor, distances: Tensor | None) -> Tensor:
        """From the planes' similarities, and their distances in a mix."""
        if self.reduction != "none":
            values = values.mean()
        if distances is None:
            return 1 - values if self.reduction == "loss" else values
        structural, l1 = self.mix
        distances = distances if self.reduction == "none" else distances.mean()
        return structural * (1 - values) + l1 * distances

    def usual_scale(self, shape: Sequence[int]) -> float:
        """Of the result, if the gradients of the means have `usual_scale`."""
        if self.reduction == "none":
            return -usual_scale(shape) if self.mix else usual_scale(shape)
        return 1.0 if self.reduction == "loss" else -1.0


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any tensor is; else float32, for half precision and integers too."""
    dtypes = [tensor.dtype for tensor in tensors]
    return torch.float64 if torch.float64 in dtypes else torch.float32


def usual_scale(shape: Sequence[int]) -> float:
    """What a loss that falls with the mean of all planes' means scales each one's gradient with.

    The fast paths write gradients with this scale, which spares most backward passes the
    multiplication.
    """
    return -1 / (shape[0] * shape[1])


def gaussian(size: int, sigma: float) -> tuple[float, ...]:
    """Taps of the one-dimensional window ``exp(-i^2 / (2 sigma^2))``, divided by their sum.

    Python floats: every path hands them to its kernels as arguments, so there is no window
    tensor to copy to a device, to keep in a checkpoint or to cache.
    """
    radius = size // 2
    # Below it the centre is left alone, as it is far above.
    spread = max(2 * sigma * sigma, SMALLEST_FLOAT)
    taps = [math.exp(-i * i / spread) for i in range(-radius, radius + 1)]
    total = sum(taps)
    return tuple(tap / total for tap in taps)
