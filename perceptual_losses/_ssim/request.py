"""The definition of a similarity, and a request for its value."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

# Read here, because torch 2.7 does not trace the attributes of sys.float_info.
SMALLEST_FLOAT = sys.float_info.min

# Where normalize="floor" leaves Wang's definition. Smaller floors start training from
# anti-correlated images with gradients so small that they drown in Adam's epsilon.
FLOOR = 0.01

Record = TypeVar("Record")


class Definition(NamedTuple):
    """One definition of SSIM, in the paper's terms.

    Attributes:
        windows: the taps of the separable window along each axis, odd in number. A definition that
            has not met images yet may have one for all axes; `for_axes` repeats it.
        low: the pixel value that counts as zero.
        length: ``L``, or 1 if each image has its own range.
        c1: ``(k1 L)^2``.
        c2: ``(k2 L)^2``; `for_axes` divides it by the factor of the unbiased covariance.
        padding: ``"valid"``, ``"zeros"`` or ``"symmetric"``.
        sample_covariance: whether the covariance is the unbiased one; `for_axes` puts it in ``c2``.
    """

    windows: tuple[tuple[float, ...], ...]
    low: float
    length: float
    c1: float
    c2: float
    padding: str
    sample_covariance: bool = False


def for_axes(definition: Definition, axes: int) -> Definition:
    """The definition for images of so many axes, with population covariances.

    The unbiased covariance of n pixels is ``n / (n - 1)`` times the population's. In the formula
    of the contrast-structure factor this is the same as dividing ``c2`` by that factor.
    """
    windows, low, length, c1, c2, padding, sample_covariance = definition
    if len(windows) == 1:
        windows = windows * axes
    if sample_covariance:
        pixels = math.prod([len(window) for window in windows])
        c2 = c2 * (pixels - 1) / pixels
    return Definition(windows, low, length, c1, c2, padding)


class Request(NamedTuple):
    """Everything that decides what is computed, except the tensors.

    Attributes:
        definition: the definition of SSIM at each level.
        exponents: the exponents of MS-SSIM's levels, finest first; empty for SSIM.
        normalize: the treatment of a level's mean before its power: ``"floor"``, ``"relu"``,
            ``"simple"`` or ``None``.
        mix: the weights of ``1 - similarity`` and of the mean ``|x - y|`` in a loss, or ``None``
            without L1.
        reduction: ``"none"`` for one value per plane, ``(N, C)``; ``"mean"`` for their mean;
            ``"loss"`` for 1 minus it; ``"levels"`` for the means of each level before they are
            combined, ``(levels, N, C)``, followed in a mix by a row with the mean ``|x - y|``;
            ``"map"`` for the similarity of each window, ``(N, C, H', W')``; ``"both"`` for the
            means of SSIM and of MS-SSIM, ``(2,)``. Only the march on a CPU computes it, without
            gradients; `dispatch` makes two requests of it for all others.
        gradients: the number of gradients: 0, 1 (for the first image) or 2.
    """

    definition: Definition
    exponents: tuple[float, ...] = ()
    normalize: str | None = None
    mix: tuple[float, float] | None = None
    reduction: str = "mean"
    gradients: int = 0


def num_levels(request: Request) -> int:
    """The number of levels of the pyramid. A property would not trace in older torch.compile."""
    return max(1, len(request.exponents))


def halves(request: Request) -> tuple[Request, Request]:
    """The two requests that ``"both"`` stands for: SSIM's and MS-SSIM's means."""
    mean = replaced(request, reduction="mean")
    return replaced(mean, exponents=()), mean


def replaced(record: Record, **changes: Any) -> Record:
    """A named tuple with fields changed. Older releases of torch.compile trace no `_replace`."""
    kind: Any = type(record)
    replacement: Record = kind(*[changes.get(name, getattr(record, name)) for name in kind._fields])
    return replacement


def reduce_planes(request: Request, similarity: Tensor, distance: Tensor | None) -> Tensor:
    """The requested value, from each plane's similarity and in a mix its mean ``|x - y|``.

    That mean is in units of the image's own range, if it has one.
    """
    if request.reduction != "none":
        similarity = similarity.mean()
    if request.mix is None or distance is None:
        return 1 - similarity if request.reduction == "loss" else similarity
    structural, l1 = request.mix
    distance = distance if request.reduction == "none" else distance.mean()
    return structural * (1 - similarity) + l1 * distance


def centres(image: Tensor, definition: Definition) -> Tensor:
    """The pixels of ``(N, C, H, W)`` on which windows are centred."""
    if definition.padding == "valid":
        for dim, window in enumerate(definition.windows, start=2):
            image = image.narrow(dim, len(window) // 2, image.shape[dim] - len(window) + 1)
    return image


def gaussian(size: int, sigma: float) -> tuple[float, ...]:
    """Taps of the one-dimensional window ``exp(-i^2 / (2 sigma^2))``, divided by their sum.

    Python floats: every backend passes them to its kernels as arguments. So no window tensor has to
    be copied to a device, stored in a checkpoint or cached.
    """
    radius = size // 2
    # A smaller sigma than this leaves only the centre, as a somewhat larger one does already.
    spread = max(2 * sigma * sigma, SMALLEST_FLOAT)
    taps = [math.exp(-i * i / spread) for i in range(-radius, radius + 1)]
    total = sum(taps)
    return tuple(tap / total for tap in taps)


def uniform(size: int) -> tuple[float, ...]:
    """Taps of the one-dimensional window in which all pixels weigh the same."""
    return (1 / size,) * size


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype of all computation: float64 if any tensor is, else float32.

    Half precision and integers are computed in float32.
    """
    dtypes = [tensor.dtype for tensor in tensors]
    return torch.float64 if torch.float64 in dtypes else torch.float32


def plane_gradient(shape: Sequence[int]) -> float:
    """The upstream gradient -1 / (N C) that ``1 - mean`` sends to the similarity of each plane."""
    return -1 / (shape[0] * shape[1])
