"""The interface of pytorch-msssim 1.0.

Values equal pytorch-msssim's up to rounding, except where its definition is not the paper's:

* MS-SSIM differs where a level has an odd side. pytorch-msssim pads it with zeros on both sides,
  which darkens the border of every coarser level. Here the last row or column counts twice, as in
  MATLAB and TensorFlow. On scikit-image's photos at odd sizes from 177 to 449 pixels, with noise,
  blur or darkening, the values differ by 4e-4 (median) and at most 8e-3.
* ``win``, a window tensor, is refused: pass ``win_size`` and ``win_sigma``.
* Images too small for the levels of MS-SSIM raise ValueError, not AssertionError, and the limit
  follows the number of weights.
* Half precision is computed in float32, and the result is float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from torch import Tensor, nn

from .. import _validation, structural
from .._runtime.warnings import warn

__all__ = ["MS_SSIM", "SSIM", "ms_ssim", "ssim"]

# Pytorch-msssim's default. Its identity tells it from the same number passed by a caller.
_UNSAID: Final[float] = float("255")


def ssim(
    X: Tensor,
    Y: Tensor,
    data_range: float = _UNSAID,
    size_average: bool = True,
    win_size: int = 11,
    win_sigma: float = 1.5,
    win: None = None,
    K: Sequence[float] = (0.01, 0.03),
    nonnegative_ssim: bool = False,
) -> Tensor:
    """SSIM as pytorch-msssim computes it: 1 for identical images; higher is more similar.

    Args:
        X: images ``(N, C, H, W)`` or volumes ``(N, C, D, H, W)``.
        Y: images of the same shape and device.
        data_range: ``L`` for values in ``[0, L]``. If it is left at 255, a warning follows: on
            images in [0, 1] it makes every value nearly 1 and every loss nearly 0.
        size_average: whether the result is the mean over the batch, or one value per image.
        win_size: pixels across the Gaussian window.
        win_sigma: the window's standard deviation.
        win: must be ``None``.
        K: ``(k1, k2)``.
        nonnegative_ssim: whether the negative value of a channel is replaced by 0.

    Returns:
        A scalar, or ``(N,)`` without ``size_average``, differentiable with respect to both.

    Raises:
        TypeError, ValueError: as `perceptual_losses.ssim`.

    Examples:
        >>> import torch
        >>> x = torch.rand(2, 3, 32, 32)
        >>> ssim(x, x, data_range=1).item()
        1.0
    """
    X, Y = _check_images(X, Y)
    _check_window(win)
    k1, k2 = _check_pair(K)
    # Each channel becomes an image, because each is rectified.
    per_channel: Tensor = structural.ssim(
        X.flatten(0, 1).unsqueeze(1),
        Y.flatten(0, 1).unsqueeze(1),
        data_range=_warn_of_default(data_range),
        window_size=win_size,
        sigma=win_sigma,
        k1=k1,
        k2=k2,
        reduction="none",
    ).unflatten(0, X.shape[:2])
    if nonnegative_ssim:
        per_channel = per_channel.relu()
    return per_channel.mean() if size_average else per_channel.mean(1)


def ms_ssim(
    X: Tensor,
    Y: Tensor,
    data_range: float = _UNSAID,
    size_average: bool = True,
    win_size: int = 11,
    win_sigma: float = 1.5,
    win: None = None,
    weights: Sequence[float] | None = None,
    K: Sequence[float] = (0.01, 0.03),
) -> Tensor:
    """MS-SSIM as pytorch-msssim computes it: 1 for identical images; higher is more similar.

    Negative means are replaced by 0 (``normalize="relu"``), where the gradient is zero:
    `perceptual_losses.ms_ssim` avoids that by default.

    Args:
        X: as for `ssim`.
        Y: as for `ssim`.
        data_range: as for `ssim`.
        size_average: as for `ssim`.
        win_size: as for `ssim`.
        win_sigma: as for `ssim`.
        win: must be ``None``.
        weights: exponent of each level, finest first; the paper's five if ``None``.
        K: ``(k1, k2)``.

    Returns:
        A scalar, or ``(N,)`` without ``size_average``, differentiable with respect to both.

    Raises:
        TypeError, ValueError: as `perceptual_losses.ms_ssim`.

    Examples:
        >>> import torch
        >>> x = torch.rand(2, 3, 192, 192)
        >>> ms_ssim(x, x, data_range=1).item()
        1.0
    """
    X, Y = _check_images(X, Y)
    _check_window(win)
    k1, k2 = _check_pair(K)
    if weights is None:
        weights = structural.MS_SSIM_WEIGHTS
    weights = _validation.level_weights(weights)
    if isinstance(win_size, int):
        side = _validation.smallest_side(len(weights), win_size)
        if side > min(X.shape[2:]):
            raise ValueError(
                f"{len(weights)} levels with win_size={win_size} need images of at least "
                f"{_validation.size_text(X, side)}, and these are {_validation.size_text(X)}: pass "
                "fewer weights or a smaller win_size"
            )
    return structural.ms_ssim(
        X,
        Y,
        data_range=_warn_of_default(data_range),
        window_size=win_size,
        sigma=win_sigma,
        k1=k1,
        k2=k2,
        weights=weights,
        levels=len(weights),
        normalize="relu",
        reduction="mean" if size_average else "none",
    )


class SSIM(nn.Module):
    """`ssim` as a module; a similarity, not a loss.

    ``channel`` and ``spatial_dims`` are ignored: any number of either works.

    Examples:
        >>> import torch
        >>> x = torch.rand(2, 3, 32, 32)
        >>> SSIM(data_range=1)(x, x).item()
        1.0
    """

    def __init__(
        self,
        data_range: float = _UNSAID,
        size_average: bool = True,
        win_size: int = 11,
        win_sigma: float = 1.5,
        channel: int = 3,
        spatial_dims: int = 2,
        K: Sequence[float] = (0.01, 0.03),
        nonnegative_ssim: bool = False,
    ) -> None:
        super().__init__()
        self.data_range = _warn_of_default(data_range)
        self.size_average = size_average
        self.win_size = win_size
        self.win_sigma = win_sigma
        self.K = K
        self.nonnegative_ssim = nonnegative_ssim

    def forward(self, X: Tensor, Y: Tensor) -> Tensor:
        return ssim(
            X,
            Y,
            data_range=self.data_range,
            size_average=self.size_average,
            win_size=self.win_size,
            win_sigma=self.win_sigma,
            K=self.K,
            nonnegative_ssim=self.nonnegative_ssim,
        )


class MS_SSIM(nn.Module):
    """`ms_ssim` as a module; a similarity, not a loss.

    ``channel`` and ``spatial_dims`` are ignored: any number of either works.

    Examples:
        >>> import torch
        >>> x = torch.rand(2, 3, 192, 192)
        >>> MS_SSIM(data_range=1)(x, x).item()
        1.0
    """

    def __init__(
        self,
        data_range: float = _UNSAID,
        size_average: bool = True,
        win_size: int = 11,
        win_sigma: float = 1.5,
        channel: int = 3,
        spatial_dims: int = 2,
        weights: Sequence[float] | None = None,
        K: Sequence[float] = (0.01, 0.03),
    ) -> None:
        super().__init__()
        self.data_range = _warn_of_default(data_range)
        self.size_average = size_average
        self.win_size = win_size
        self.win_sigma = win_sigma
        self.weights = weights
        self.K = K

    def forward(self, X: Tensor, Y: Tensor) -> Tensor:
        return ms_ssim(
            X,
            Y,
            data_range=self.data_range,
            size_average=self.size_average,
            win_size=self.win_size,
            win_sigma=self.win_sigma,
            weights=self.weights,
            K=self.K,
        )


def _warn_of_default(data_range: float) -> float:
    """The range, after a warning if the caller didn't pass it."""
    if data_range is not _UNSAID:
        return data_range
    warn(
        "data_range was left at pytorch-msssim's default of 255. On images in [0, 1] that makes "
        "every value nearly 1 and every loss nearly 0: pass data_range=1, or data_range=255 if "
        "that is the range."
    )
    return 255.0


def _check_images(X: Tensor, Y: Tensor) -> tuple[Tensor, Tensor]:
    """The images, checked; volumes with a side of one voxel become images, as in pytorch-msssim."""
    for name, image in (("X", X), ("Y", Y)):
        _validation.check_plain_tensor(name, image)
    if X.shape != Y.shape or X.dim() not in (4, 5):
        raise ValueError(
            f"X has shape {tuple(X.shape)} and Y {tuple(Y.shape)}: pass images (N, C, H, W) or "
            "volumes (N, C, D, H, W) of equal shapes; nothing is broadcast"
        )
    return _squeeze(X), _squeeze(Y)


def _squeeze(image: Tensor) -> Tensor:
    """The image or volume without its sides of one voxel."""
    if image.dim() == 5:
        for dim in (4, 3, 2):
            image = image.squeeze(dim)
    return image


def _check_pair(K: Sequence[float]) -> tuple[float, float]:
    """``K`` as two numbers; refuses any other number of them."""
    try:
        k1, k2 = K
    except (TypeError, ValueError):
        raise ValueError(f"K={K!r}: pass (k1, k2)") from None
    return k1, k2


def _check_window(win: object) -> None:
    """Refuses a window tensor."""
    if win is not None:
        raise ValueError(
            "win is not supported: pass win_size and win_sigma, which give the same Gaussian window"
        )
