"""SSIM, its map and MS-SSIM, as functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from ._evaluator import Options, evaluator
from ._literals import Backend, Normalization, Padding, Reduction, Window
from ._ssim import replaced

MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Weights of the five levels, finest first: Wang, Simoncelli and Bovik 2003."""


def ssim(
    x: Tensor,
    y: Tensor,
    *,
    data_range: float | tuple[float, float] | Tensor = 1.0,
    window: Window = "gaussian",
    window_size: int | tuple[int, ...] = 11,
    sigma: float | tuple[float, ...] = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
    sample_covariance: bool = False,
    padding: Padding = "valid",
    mask: Tensor | None = None,
    valid: Tensor | None = None,
    reduction: Reduction = "mean",
    backend: Backend = "auto",
) -> Tensor:
    r"""Structural similarity (SSIM) of two batches of images: 1 for identical ones, at least -1.

    $$
    \mathrm{SSIM} = \frac{(2 \mu_x \mu_y + C_1)(2 \sigma_{xy} + C_2)}
    {(\mu_x^2 + \mu_y^2 + C_1)(\sigma_x^2 + \sigma_y^2 + C_2)},
    \qquad C_i = (k_i L)^2
    $$

    with weighted means, variances and covariance in a window around each pixel; the mean over
    pixels and channels. Higher is more similar. By default it equals
    ``skimage.metrics.structural_similarity(gaussian_weights=True, use_sample_covariance=False,
    data_range=L)``. With ``window="uniform", window_size=7, sample_covariance=True`` it equals
    scikit-image's own default.

    Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from error visibility to
    structural similarity", IEEE Transactions on Image Processing 13(4), 2004.

    Args:
        x: prediction, images ``(N, C, H, W)`` or volumes ``(N, C, D, H, W)``, with any number of
            channels, any strides and any real dtype.
        y: target, same shape and device; its dtype may differ.
        data_range: ``L`` for values in ``[0, L]``, or a pair ``(low, high)``: ``(-1, 1)`` for a
            tanh decoder. SSIM changes with the zero level, so that a pair is not the same as its
            length. A tensor ``(N,)`` on the images' device gives each image its own ``L``; a GPU is
            not waited for to look at it. The range is never read off the images; values outside it
            are fine. Integer images need it said.
        window: ``"gaussian"``, or ``"uniform"`` for a box in which all pixels weigh the same.
        window_size: pixels across the window, odd, at most the smallest side of the images; or a
            tuple of them in the order of the axes, (rows, columns) or (depth, rows, columns).
        sigma: standard deviation of the Gaussian window in pixels; or a tuple alike.
        k1: stabilises the luminance where the images are near zero.
        k2: stabilises the contrast where they are flat.
        sample_covariance: whether variances and covariance are the unbiased ones, those of the
            population times ``n / (n - 1)`` for a window of n pixels.
        padding: ``"valid"`` counts only windows inside the image, as the paper and scikit-image
            do. ``"zeros"`` puts ``low`` around the image, as fused-ssim's default and the original
            Gaussian splatting do.
            ``"symmetric"`` mirrors it, edge pixel included, as scikit-image's full map does.
        mask: non-negative weights that broadcast to ``(N, 1, H, W)``, or booleans: the mean is
            weighted with the mask's value at the centre of each window. No gradient flows to it.
            Windows reach into pixels of weight 0. Where pixels are to be left out, pass ``valid``.
        valid: the pixels that exist, booleans that broadcast to ``(N, 1, H, W)``. Windows are
            weighted means over the valid pixels in them, and count where their centre is valid.
            Pixels elsewhere are not read: NaN there changes nothing, and has a gradient of zero.
        reduction: ``"mean"`` over the batch, or ``"none"`` for one value per image.
        backend: ``"auto"`` takes the fastest path that the device and the images allow; a path
            asked for by name (``"reference"``, ``"numba"``, ``"triton"``) runs or raises.

    Returns:
        A scalar, or ``(N,)`` with ``reduction="none"``; float64 if ``x`` or ``y`` is, else
        float32, under autocast too: half precision is read as it is and computed in float32.

    Gradients flow to ``x`` and ``y``, any number of times, in their own dtypes. They are exactly
    zero for identical images.

    Raises:
        TypeError: an argument is of a kind that is not accepted.
        ValueError: an argument has a value, shape or device that is not. On the CPU also: a mask
            without any weight for an image, or ``valid`` without any pixel; elsewhere such an
            image has similarity 1 and no gradient.

    Examples:
        >>> import torch
        >>> x = torch.linspace(0, 1, 256).reshape(1, 1, 16, 16)
        >>> ssim(x, x).item()
        1.0
        >>> round(ssim(x, x.square()).item(), 4)
        0.7792
        >>> ssim(torch.cat([x, x]), torch.cat([x, 1 - x]), reduction="none")
        tensor([ 1.0000, -0.8262])
    """
    data_range, ranges = _shared_and_own(data_range)
    options = Options(
        data_range=data_range,
        window=window,
        window_size=window_size,
        sigma=sigma,
        k1=k1,
        k2=k2,
        sample_covariance=sample_covariance,
        padding=padding,
        reduction=reduction,
        backend=backend,
    )
    return evaluator(options)(x, y, mask, valid, ranges)


def ssim_map(
    x: Tensor,
    y: Tensor,
    *,
    data_range: float | tuple[float, float] | Tensor = 1.0,
    window: Window = "gaussian",
    window_size: int | tuple[int, ...] = 11,
    sigma: float | tuple[float, ...] = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
    sample_covariance: bool = False,
    padding: Padding = "valid",
    valid: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """The SSIM of each window, for looking at where two images differ, or for one's own pooling.

    `ssim`, which has the definition, is the mean of this map. If ``valid`` is given, it is the mean
    over the valid centres. Dtypes and gradients are those of `ssim`.

    Args:
        x: prediction, as for `ssim`.
        y: target, as for `ssim`.
        data_range: as for `ssim`.
        window: as for `ssim`.
        window_size: as for `ssim`.
        sigma: as for `ssim`.
        k1: as for `ssim`.
        k2: as for `ssim`.
        sample_covariance: as for `ssim`.
        padding: as for `ssim`; it decides the size of the map.
        valid: as for `ssim`.
        backend: as for `ssim`.

    Returns:
        ``(N, C, H', W')`` with values from -1 to 1, higher is more similar. With
        ``padding="valid"`` each side is ``window_size - 1`` shorter than the images'; else the
        sizes are equal. Around a centre that is not ``valid`` the value is 1, without gradient.

    Raises:
        TypeError: as for `ssim`.
        ValueError: as for `ssim`.

    Examples:
        >>> import torch
        >>> x = torch.rand(1, 3, 32, 48)
        >>> ssim_map(x, x).shape
        torch.Size([1, 3, 22, 38])
        >>> ssim_map(x, x, padding="symmetric").mean().item()
        1.0
    """
    data_range, ranges = _shared_and_own(data_range)
    options = Options(
        data_range=data_range,
        window=window,
        window_size=window_size,
        sigma=sigma,
        k1=k1,
        k2=k2,
        sample_covariance=sample_covariance,
        padding=padding,
        reduction="none",
        backend=backend,
        as_map=True,
    )
    return evaluator(options)(x, y, None, valid, ranges)


def ms_ssim(
    x: Tensor,
    y: Tensor,
    *,
    data_range: float | tuple[float, float] | Tensor = 1.0,
    window: Window = "gaussian",
    window_size: int | tuple[int, ...] = 11,
    sigma: float | tuple[float, ...] = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
    sample_covariance: bool = False,
    padding: Padding = "valid",
    mask: Tensor | None = None,
    valid: Tensor | None = None,
    weights: Sequence[float] = MS_SSIM_WEIGHTS,
    levels: int | Literal["auto"] = "auto",
    normalize: Normalization | None = "floor",
    reduction: Reduction = "mean",
    backend: Backend = "auto",
) -> Tensor:
    r"""Multi-scale structural similarity (MS-SSIM): 1 for identical images. Higher is more similar.

    $$
    \mathrm{MS\text{-}SSIM} = \bar S_M^{w_M} \prod_{j=1}^{M-1} \overline{cs}_j^{\,w_j}
    $$

    where, for each image and channel, $\overline{cs}_j$ is the mean of the second factor of
    `ssim` (contrast and structure) at level j and $\bar S_M$ the mean SSIM of the last level;
    then the mean over channels. Each level halves the one before by 2x2 means, in which the last
    row or column of an odd side counts twice, as in MATLAB and TensorFlow.

    Wang, Simoncelli and Bovik, "Multiscale structural similarity for image quality assessment",
    Asilomar Conference on Signals, Systems and Computers, 2003. The loss with all weights 1:
    Snell et al., "Learning to generate images with perceptual similarity metrics",
    arXiv:1511.06409.

    Args:
        x: prediction, as for `ssim`.
        y: target, as for `ssim`.
        data_range: as for `ssim`.
        window: as for `ssim`.
        window_size: as for `ssim`, at each level.
        sigma: as for `ssim`.
        k1: as for `ssim`.
        k2: as for `ssim`.
        sample_covariance: as for `ssim`.
        padding: as for `ssim`, at each level.
        mask: as for `ssim`; it is pooled with the images.
        valid: as for `ssim`. Pooling takes the mean over valid pixels; a coarse pixel is valid if
            any of its pixels is.
        weights: exponent of each level, finest first; any number of levels.
        levels: ``"auto"`` takes as many levels as there are weights where the window fits in the
            coarsest, else as many as fit (with five weights and an 11-pixel window: 64 pixels 3
            levels, 128 pixels 4, from 161 on all), with a warning; an int takes that many or
            raises. The weights of the levels that are used are scaled to the sum of all.
        normalize: the treatment of a level's mean ``v`` before the power, which has no real value
            for ``v < 0``. ``"floor"``: ``v`` from ``e = 0.01`` upwards and ``e^2 / (2 e - v)``
            below, which is positive, smooth and increasing, so that anti-correlated images can
            train. ``"relu"``: ``max(v, 0)``, the usual choice elsewhere; value and gradient are
            exactly zero where any level is negative. ``"simple"``: ``(v + 1) / 2``, another
            metric. ``None``: ``v``, as the paper has it, of which negative means have no fractional
            power: NaN.
        reduction: as for `ssim`.
        backend: as for `ssim`.

    Returns:
        A scalar, or ``(N,)`` with ``reduction="none"``; from 0 to 1 unless ``normalize=None``;
        dtype as for `ssim`.

    Gradients are those of `ssim`, and finite unless ``normalize=None``. The floor itself makes none
    of them zero.

    Raises:
        TypeError: as for `ssim`.
        ValueError: as for `ssim`; the images are too small for ``levels``.

    Examples:
        >>> import torch
        >>> x = torch.linspace(0, 1, 192 * 192).reshape(1, 1, 192, 192)
        >>> ms_ssim(x, x).item()
        1.0
        >>> round(ms_ssim(x, x.square()).item(), 4)
        0.9244
        >>> small = x[..., :64, :64]
        >>> ms_ssim(small, small, levels=3).item()
        1.0
    """
    data_range, ranges = _shared_and_own(data_range)
    options = Options(
        data_range=data_range,
        window=window,
        window_size=window_size,
        sigma=sigma,
        k1=k1,
        k2=k2,
        sample_covariance=sample_covariance,
        padding=padding,
        weights=weights,
        levels=levels,
        normalize=normalize,
        reduction=reduction,
        backend=backend,
    )
    return evaluator(options)(x, y, mask, valid, ranges)


def ssim_and_ms_ssim(
    x: Tensor, y: Tensor, *, data_range: float = 1.0, levels: int | Literal["auto"] = "auto"
) -> tuple[Tensor, Tensor]:
    """`ssim` and `ms_ssim` of the same images, with their defaults for all other options.

    On a CPU one pass over the finest level gives SSIM and that level's part of MS-SSIM, unless a
    gradient is recorded. This function is not public: `compare` uses it.
    """
    defaults = ms_ssim.__kwdefaults__ or {}
    options = Options(**{name: defaults[name] for name in Options._fields if name in defaults})
    return evaluator(replaced(options, data_range=data_range, levels=levels)).with_ssim(x, y)


def _shared_and_own(data_range: Any) -> tuple[Any, Tensor | None]:
    """The range of all images, and a tensor with the range of each, or ``None``."""
    return (1.0, data_range) if isinstance(data_range, Tensor) else (data_range, None)
