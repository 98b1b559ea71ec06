"""L1 mixed with structural similarity."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import _ssim, _validation
from .structural import (
    MultiScaleLoss,
    StructuralLoss,
    value,
)


@dataclass(kw_only=True, eq=False, repr=False)
class L1SSIMLoss(StructuralLoss):
    r"""``(1 - weight) * L1 + weight * (1 - SSIM)``: 0 for identical images; falls in training.

    The L1 term is the mean of $|x - y| / L$, in units of the data range, so that the mix does
    not depend on the scale of the images. With the default ``weight=0.2``, values in [0, 1] and
    ``padding="zeros"`` it is the loss of 3D Gaussian splatting.

    Kerbl, Kopanas, Leimkuehler and Drettakis, "3D Gaussian Splatting for Real-Time Radiance Field
    Rendering", ACM Transactions on Graphics 42(4), 2023.

    Args:
        weight: share of the structural term, from 0 to 1.
        data_range: as for `ssim`, like all the options that follow. They are
            attributes too, as is ``weight``, and may change between calls.

    Shapes:
        ``x`` and ``y``: ``(N, C, H, W)`` or ``(N, C, D, H, W)``; ``mask``: broadcastable to
        ``(N, 1, H, W)``, weighs both terms; result: scalar, or ``(N,)`` with
        ``reduction="none"``.

    Gradients flow to ``x`` and ``y``; that of the L1 term is zero where they are equal. Errors are
    those of `ssim`.

    Examples:
        >>> import torch
        >>> x = torch.zeros(1, 3, 16, 16)
        >>> round(L1SSIMLoss()(x, torch.ones_like(x)).item(), 4)
        1.0
        >>> L1SSIMLoss(data_range=(-1, 1))(x, x).item()
        0.0
    """

    weight: float = field(default=0.2, kw_only=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.weight = _share(self.weight)

    def forward(self, x: Tensor, y: Tensor, *, mask: Tensor | None = None) -> Tensor:
        return _mix(self, x, y, mask)


@dataclass(kw_only=True, eq=False, repr=False)
class L1MSSSIMLoss(MultiScaleLoss):
    r"""``(1 - weight) * L1 + weight * (1 - MS-SSIM)``: 0 for identical images; falls in training.

    The L1 term is the mean of $|x - y| / L$, in units of the data range. The default
    ``weight=0.84`` is the paper's; the paper also blurs the L1 term with the coarsest window,
    which in the mean over an image changes the weight of the border alone and is left out here.

    Zhao, Gallo, Frosio and Kautz, "Loss functions for image restoration with neural networks", IEEE
    Transactions on Computational Imaging 3(1), 2017.

    Args:
        weight: share of the structural term, from 0 to 1.
        data_range: as for `ms_ssim`, like all the options that follow. They are
            attributes too, as is ``weight``, and may change between calls.

    Shapes:
        ``x`` and ``y``: ``(N, C, H, W)`` or ``(N, C, D, H, W)``; ``mask``: broadcastable to
        ``(N, 1, H, W)``, weighs both terms; result: scalar, or ``(N,)`` with
        ``reduction="none"``.

    Gradients flow to ``x`` and ``y``; that of the L1 term is zero where they are equal. Errors are
    those of `ms_ssim`.

    Examples:
        >>> import torch
        >>> x = torch.rand(1, 3, 192, 192)
        >>> L1MSSSIMLoss()(x, x).item()
        0.0
    """

    weight: float = field(default=0.84, kw_only=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.weight = _share(self.weight)

    def forward(self, x: Tensor, y: Tensor, *, mask: Tensor | None = None) -> Tensor:
        return _mix(self, x, y, mask)


def _share(weight: float) -> float:
    weight = _validation.number("weight", weight)
    if not 0 <= weight <= 1:
        raise ValueError(f"weight={weight}: pass the share of the structural term, from 0 to 1")
    return weight


def _mix(loss: L1SSIMLoss | L1MSSSIMLoss, x: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
    weight, options = _share(loss.weight), loss.options
    if mask is None:
        return value(x, y, None, weight=weight, **options)
    structural = value(x, y, mask, loss=True, **options)
    distance = _weighted_distance(x, y, mask)
    _, length = _validation.low_and_length(options["data_range"])
    distance = distance if loss.reduction == "none" else distance.mean()
    return torch.lerp(distance / length, structural, weight)


def _weighted_distance(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """Weighted mean of ``|x - y|`` for each image, ``(N,)``."""
    dtype = _ssim.compute_dtype(x, y)
    distance = (x.to(dtype) - y.to(dtype)).abs().mean(1, keepdim=True)
    weights = _validation.mask_weights(mask, x, y)
    total = weights.flatten(1).sum(1)
    _validation.check_total(total)
    total = total.clamp(min=torch.finfo(weights.dtype).tiny)
    return (distance * weights).flatten(1).sum(1) / total
