"""L1 mixed with structural similarity."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _arguments, _ssim
from .structural import (
    MS_SSIM_WEIGHTS,
    StructuralLoss,
    ms_ssim_settings,
    reduce,
    terms,
    value,
)


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

    def __init__(
        self,
        weight: float = 0.2,
        *,
        data_range: float | tuple[float, float] = 1.0,
        window_size: int = 11,
        sigma: float = 1.5,
        k1: float = 0.01,
        k2: float = 0.03,
        padding: str = "valid",
        reduction: str = "mean",
        backend: str = "auto",
    ) -> None:
        super().__init__(
            data_range=data_range,
            window_size=window_size,
            sigma=sigma,
            k1=k1,
            k2=k2,
            padding=padding,
            reduction=reduction,
            backend=backend,
        )
        _arguments.settings(**self.options)
        self.weight = _share(weight)

    def forward(self, x: Tensor, y: Tensor, *, mask: Tensor | None = None) -> Tensor:
        return _mix(self, x, y, mask)

    def extra_repr(self) -> str:
        return f"weight={self.weight}, {super().extra_repr()}"


class L1MSSSIMLoss(StructuralLoss):
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

    weights: Sequence[float]
    levels: int | str
    normalize: str | None

    def __init__(
        self,
        weight: float = 0.84,
        *,
        data_range: float | tuple[float, float] = 1.0,
        window_size: int = 11,
        sigma: float = 1.5,
        k1: float = 0.01,
        k2: float = 0.03,
        padding: str = "valid",
        weights: Sequence[float] = MS_SSIM_WEIGHTS,
        levels: int | str = "auto",
        normalize: str | None = "floor",
        reduction: str = "mean",
        backend: str = "auto",
    ) -> None:
        super().__init__(
            data_range=data_range,
            window_size=window_size,
            sigma=sigma,
            k1=k1,
            k2=k2,
            padding=padding,
            weights=weights,
            levels=levels,
            normalize=normalize,
            reduction=reduction,
            backend=backend,
        )
        _, self.weights = ms_ssim_settings(**self.options)
        self.weight = _share(weight)

    def forward(self, x: Tensor, y: Tensor, *, mask: Tensor | None = None) -> Tensor:
        return _mix(self, x, y, mask)

    def extra_repr(self) -> str:
        return f"weight={self.weight}, {super().extra_repr()}"


def _share(weight: float) -> float:
    weight = _arguments.number("weight", weight)
    if not 0 <= weight <= 1:
        raise ValueError(f"weight={weight}: pass the share of the structural term, from 0 to 1")
    return weight


def _mix(loss: L1SSIMLoss | L1MSSSIMLoss, x: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
    weight, options = _share(loss.weight), loss.options
    if mask is None and loss.reduction == "mean":
        return value(x, y, None, weight=weight, **options)
    # Without a mask, both terms in one pass over the images.
    similarity, *fused = terms(x, y, mask, options, distance=mask is None)
    weights = _arguments.mask_weights(mask, x, y)
    distance = fused[0] if weights is None else _weighted_distance(x, y, weights)
    _, length = _arguments.low_and_length(options["data_range"])
    distance, similarity = (reduce(values, loss.reduction) for values in (distance, similarity))
    return torch.lerp(distance / length, 1 - similarity, weight)


def _weighted_distance(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of ``|x - y|`` for each image, ``(N, 1)``."""
    dtype = _ssim.compute_dtype(x, y)
    distance = (x.to(dtype) - y.to(dtype)).abs().mean(1, keepdim=True)
    total = weights.flatten(1).sum(1)
    _arguments.check_total(total)
    total = total.clamp(min=torch.finfo(weights.dtype).tiny)
    return ((distance * weights).flatten(1).sum(1) / total)[:, None]
