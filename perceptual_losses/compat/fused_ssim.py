"""The interface of fused-ssim, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from .._literals import FusedSSIMPadding, Padding
from ..similarity import ssim

__all__ = ["fused_ssim", "fused_ssim3d"]

_PADDINGS: dict[FusedSSIMPadding, Padding] = {"same": "zeros", "valid": "valid"}


def fused_ssim(
    img1: Tensor, img2: Tensor, padding: FusedSSIMPadding = "same", train: bool = True
) -> Tensor:
    """SSIM of images with values in [0, 1] as fused-ssim computes it: 1 for identical images.

    It does more than fused-ssim: the gradient reaches ``img2`` too, any dtype, layout and device
    is read right, and ``train=False`` takes images that require gradients. Images smaller than the
    11-pixel window are refused.

    Args:
        img1: prediction, ``(N, C, H, W)``.
        img2: target, same shape and device.
        padding: ``"same"`` puts zeros around the images, ``"valid"`` counts only windows inside.
        train: whether the result has a gradient.

    Returns:
        A scalar; higher is more similar. The loss is ``1 - fused_ssim(img1, img2)``.

    Raises:
        TypeError, ValueError: as `perceptual_losses.ssim`.

    Examples:
        >>> import torch
        >>> x = torch.rand(1, 3, 32, 32)
        >>> fused_ssim(x, x).item()
        1.0
    """
    _check_dimensions(img1, 4, "images (N, C, H, W)", "fused_ssim3d")
    return _similarity(img1, img2, padding, train)


def fused_ssim3d(
    img1: Tensor, img2: Tensor, padding: FusedSSIMPadding = "same", train: bool = True
) -> Tensor:
    """SSIM of volumes with values in [0, 1] as fused-ssim computes it: 1 for identical volumes.

    The window has 11 voxels along each axis. The rest is as in `fused_ssim`.

    Args:
        img1: prediction, ``(N, C, D, H, W)``.
        img2: target, same shape and device.
        padding: ``"same"`` puts zeros around the volumes, ``"valid"`` counts only windows inside.
        train: whether the result has a gradient.

    Returns:
        A scalar; higher is more similar. The loss is ``1 - fused_ssim3d(img1, img2)``.

    Raises:
        TypeError, ValueError: as `perceptual_losses.ssim`.

    Examples:
        >>> import torch
        >>> x = torch.rand(1, 1, 12, 16, 16)
        >>> fused_ssim3d(x, x).item()
        1.0
    """
    _check_dimensions(img1, 5, "volumes (N, C, D, H, W)", "fused_ssim")
    return _similarity(img1, img2, padding, train)


def _check_dimensions(image: Tensor, dimensions: int, expected: str, other: str) -> None:
    if isinstance(image, Tensor) and image.dim() == 9 - dimensions:
        shape = tuple(image.shape)
        raise ValueError(f"img1 has shape {shape}: pass {expected}, or call {other} for these")


def _similarity(img1: Tensor, img2: Tensor, padding: FusedSSIMPadding, train: bool) -> Tensor:
    if padding not in _PADDINGS:
        raise ValueError(f"padding={padding!r} is unknown: pass one of {tuple(_PADDINGS)}")
    with torch.set_grad_enabled(train and torch.is_grad_enabled()):
        return ssim(img1, img2, padding=_PADDINGS[padding])
