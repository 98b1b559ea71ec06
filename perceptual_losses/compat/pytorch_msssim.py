"""The interface of pytorch-msssim 1.0.

Values equal pytorch-msssim's up to rounding, except where its definition is not the paper's:

* MS-SSIM differs where a level has an odd side. pytorch-msssim pads it with zeros on both sides,
  which darkens the border of every coarser level. Here the last row or column counts twice, as in
  MATLAB and TensorFlow. On scikit-image's photos at odd sizes from 177 to 449 pixels, with noise,
  blur or darkening, the values differ by 4e-4 (median) and at most 8e-3.
* ``win``, a window tensor, is refused: pass ``win_size`` and ``win_sigma``.
* Images too small for the levels of MS-SSIM raise ValueError, not AssertionError, and the limit
  follows the number of weights.
* A zero in ``K`` is replaced by a constant so small that it changes no digit. The exception are
  windows in which pytorch-msssim divides 0 by 0, black ones with ``K1 = 0`` and flat ones with
  ``K2 = 0``. They make its value NaN. Here they have some value from -1 to 1, which rounding
  decides.
* Half precision is computed in float32, and the result is float32.

Numbers may be tensors of one element. Their values are read at each call, by the modules when they
are constructed.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from .. import _validation, similarity
from .._runtime.warnings import warn
from .._ssim import compute_dtype

__all__ = ["MS_SSIM", "SSIM", "ms_ssim", "ssim"]

# Pytorch-msssim's default. Its identity tells it from the same number passed by a caller.
_UNSAID: Final[float] = float("255")


def ssim(
    X: Tensor,
    Y: Tensor,
    data_range: float | Tensor = _UNSAID,
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
        data_range: ``L`` for values in ``[0, L]``, for all images. It is 255 by default, with a
            warning: on images in [0, 1] this makes every value nearly 1 and every loss nearly 0.
        size_average: whether the result is the mean over the batch, or one value per image.
        win_size: pixels across the Gaussian window. Along an axis with fewer pixels than that the
            images are not blurred, and a warning follows.
        win_sigma: the window's standard deviation.
        win: must be ``None``.
        K: ``(K1, K2)``, each 0 or more.
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
    options = _options(X, Y, data_range, win_size, win_sigma, win, K)
    sides, size = X.shape[2:], options["window_size"]
    if size > min(sides):
        warn(
            f"win_size={size} is larger than the image, {_validation.size_text(X)}: as in "
            "pytorch-msssim it is not blurred along its short sides"
        )
        options["window_size"] = tuple([size if size <= side else 1 for side in sides])
    # Each channel becomes an image, because each is rectified.
    per_channel: Tensor = similarity.ssim(
        X.flatten(0, 1).unsqueeze(1), Y.flatten(0, 1).unsqueeze(1), **options, reduction="none"
    ).unflatten(0, X.shape[:2])
    if nonnegative_ssim:
        per_channel = per_channel.relu()
    return per_channel.mean() if size_average else per_channel.mean(1)


def ms_ssim(
    X: Tensor,
    Y: Tensor,
    data_range: float | Tensor = _UNSAID,
    size_average: bool = True,
    win_size: int = 11,
    win_sigma: float = 1.5,
    win: None = None,
    weights: Sequence[float] | Tensor | None = None,
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
        weights: exponent of each level, finest first, as a list, a tuple or a tensor; the paper's
            five if ``None``.
        K: as for `ssim`.

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
    options = _options(X, Y, data_range, win_size, win_sigma, win, K)
    exponents = _weights(weights)
    side = _validation.smallest_side(len(exponents), options["window_size"])
    if side > min(X.shape[2:]):
        raise ValueError(
            f"{len(exponents)} levels with win_size={win_size} need images of at least "
            f"{_validation.size_text(X, side)}, and these are {_validation.size_text(X)}: pass "
            "fewer weights or a smaller win_size"
        )
    return similarity.ms_ssim(
        X,
        Y,
        **options,
        weights=exponents,
        levels=len(exponents),
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
        data_range: float | Tensor = _UNSAID,
        size_average: bool = True,
        win_size: int = 11,
        win_sigma: float = 1.5,
        channel: int = 3,
        spatial_dims: int = 2,
        K: Sequence[float] = (0.01, 0.03),
        nonnegative_ssim: bool = False,
    ) -> None:
        super().__init__()
        self.data_range = _range(data_range)
        self.size_average = size_average
        self.win_size = _size(win_size)
        self.win_sigma = _sigma(win_sigma)
        self.K = _constants(K)
        self.nonnegative_ssim = nonnegative_ssim

    if TYPE_CHECKING:
        # nn.Module types its own `__call__` as taking and returning anything.
        def __call__(self, X: Tensor, Y: Tensor) -> Tensor: ...

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
        data_range: float | Tensor = _UNSAID,
        size_average: bool = True,
        win_size: int = 11,
        win_sigma: float = 1.5,
        channel: int = 3,
        spatial_dims: int = 2,
        weights: Sequence[float] | Tensor | None = None,
        K: Sequence[float] = (0.01, 0.03),
    ) -> None:
        super().__init__()
        self.data_range = _range(data_range)
        self.size_average = size_average
        self.win_size = _size(win_size)
        self.win_sigma = _sigma(win_sigma)
        self.weights = _weights(weights)
        self.K = _constants(K)

    if TYPE_CHECKING:
        # nn.Module types its own `__call__` as taking and returning anything.
        def __call__(self, X: Tensor, Y: Tensor) -> Tensor: ...

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


def _check_images(X: Tensor, Y: Tensor) -> tuple[Tensor, Tensor]:
    """The images, checked, without sides of one pixel, which pytorch-msssim leaves out too."""
    for name, image in (("X", X), ("Y", Y)):
        _validation.check_plain_tensor(name, image)
    shapes = f"X has shape {tuple(X.shape)} and Y {tuple(Y.shape)}"
    squeezed = [_squeeze(image) for image in (X, Y)]
    if X.shape != Y.shape or squeezed[0].dim() not in (4, 5):
        raise ValueError(
            f"{shapes}: pass images (N, C, H, W) or volumes (N, C, D, H, W) of equal shapes; "
            "nothing is broadcast"
        )
    if 0 in X.shape:
        raise ValueError(f"{shapes}, which hold no image: pass at least one")
    if X.device != Y.device:
        raise ValueError(f"X is on {X.device} and Y on {Y.device}: pass both on one device")
    return squeezed[0], squeezed[1]


def _squeeze(image: Tensor) -> Tensor:
    """The image or volume without its sides of one pixel."""
    for dim in range(image.dim() - 1, 1, -1):
        image = image.squeeze(dim)
    return image


def _options(
    X: Tensor,
    Y: Tensor,
    data_range: float | Tensor,
    win_size: int,
    win_sigma: float,
    win: None,
    K: Sequence[float],
) -> dict[str, Any]:
    """The options under our names, checked under pytorch-msssim's."""
    if win is not None:
        raise ValueError(
            "win is not supported: pass win_size and win_sigma, which give the same Gaussian window"
        )
    length, (k1, k2) = _range(data_range), _constants(K)
    for name, image in (("X", X), ("Y", Y)):
        if length == 1 and not (image.is_floating_point() or image.dtype == torch.bool):
            raise ValueError(
                f"{name} is {image.dtype} and data_range=1: pass the range of integer images, "
                "data_range=255 for uint8, or .float() ones of 0 and 1"
            )
    constants = [_constant(k, length, compute_dtype(X, Y)) for k in (k1, k2)]
    return {
        "data_range": length,
        "window_size": _size(win_size),
        "sigma": _sigma(win_sigma),
        "k1": constants[0],
        "k2": constants[1],
    }


def _constant(k: float, length: float, dtype: torch.dtype) -> float:
    """A number of ``K``; in place of zero one so small that it does the same."""
    limits = torch.finfo(dtype)
    if k == 0:
        # Beside it moments keep all of their digits, and its reciprocal is finite.
        return float(4 * limits.tiny**0.5 / length)
    root = k * length
    if not limits.tiny <= root * root <= limits.max:
        raise ValueError(
            f"K={k} with data_range={length}: (K L)^2 is {root * root:.3g}, beyond {dtype}: pass a "
            "range nearer to 1, and images in its units"
        )
    return k


def _range(data_range: float | Tensor) -> float:
    """The range as a float, after a warning if the caller didn't pass it."""
    if data_range is not _UNSAID:
        return _validation.positive_number("data_range", _scalar("data_range", data_range))
    warn(
        "data_range was left at pytorch-msssim's default of 255. On images in [0, 1] that makes "
        "every value nearly 1 and every loss nearly 0: pass data_range=1, or data_range=255 if "
        "that is the range."
    )
    return 255.0


def _scalar(name: str, value: Any) -> Any:
    """The value of a tensor of one element; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    if value.numel() != 1:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}: pass one number, or a tensor of one element"
        )
    return value.item()


def _size(win_size: int) -> int:
    """The window's size, checked."""
    if isinstance(win_size, bool) or not isinstance(win_size, Integral):
        raise TypeError(
            f"win_size is of type {type(win_size).__name__}: pass an odd int, such as 11"
        )
    if win_size < 1 or win_size % 2 == 0:
        raise ValueError(f"win_size={win_size} is not odd and positive: pass 11, 7 or 5, say")
    return int(win_size)


def _sigma(win_sigma: float) -> float:
    """The window's standard deviation, checked."""
    return _validation.positive_number("win_sigma", _scalar("win_sigma", win_sigma))


def _constants(K: Sequence[float]) -> tuple[float, float]:
    """``K`` as two numbers, checked."""
    try:
        k1, k2 = K
    except (TypeError, ValueError):
        raise ValueError(f"K={K!r}: pass (K1, K2)") from None
    k1, k2 = (_validation.finite_number("K", _scalar("K", k)) for k in (k1, k2))
    if min(k1, k2) < 0:
        raise ValueError(f"K={K!r}: pass (K1, K2), each 0 or more")
    return k1, k2


def _weights(weights: Sequence[float] | Tensor | None) -> tuple[float, ...]:
    """The exponents of the levels, checked."""
    if weights is None:
        return similarity.MS_SSIM_WEIGHTS
    return _validation.level_weights(weights.tolist() if isinstance(weights, Tensor) else weights)
