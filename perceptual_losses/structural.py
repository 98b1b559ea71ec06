"""SSIM and MS-SSIM, as functions, as losses and mixed with L1."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import _validation
from ._evaluator import NO_EXTRAS, Evaluator, Extras, Options, Terms, evaluator

MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Weights of the five levels, finest first: Wang, Simoncelli and Bovik 2003."""


def ssim(
    x: Tensor,
    y: Tensor,
    *,
    data_range: float | tuple[float, float] | Tensor = 1.0,
    window: str = "gaussian",
    window_size: int | tuple[int, ...] = 11,
    sigma: float | tuple[float, ...] = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
    sample_covariance: bool = False,
    padding: str = "valid",
    mask: Tensor | None = None,
    valid: Tensor | None = None,
    reduction: str = "mean",
    backend: str = "auto",
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
            do. ``"zeros"`` puts ``low`` around the image, as fused-ssim and Gaussian splatting do.
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
    return evaluator(options)(x, y, _extras(mask, valid, ranges))


def ssim_map(
    x: Tensor,
    y: Tensor,
    *,
    data_range: float | tuple[float, float] | Tensor = 1.0,
    window: str = "gaussian",
    window_size: int | tuple[int, ...] = 11,
    sigma: float | tuple[float, ...] = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
    sample_covariance: bool = False,
    padding: str = "valid",
    valid: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """The SSIM of each window, for looking at where two images differ, or for one's own pooling.

    Arguments, definition, dtypes, gradients and errors are those of `ssim`, which is the mean of
    this map.

    Returns:
        ``(N, C, H', W')`` with values from -1 to 1, higher is more similar. With
        ``padding="valid"`` each side is ``window_size - 1`` shorter than the images'; else the
        sizes are equal. Around a centre that is not ``valid`` the value is 1, without gradient.

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
    return evaluator(options)(x, y, _extras(None, valid, ranges))


def ms_ssim(
    x: Tensor,
    y: Tensor,
    *,
    data_range: float | tuple[float, float] | Tensor = 1.0,
    window: str = "gaussian",
    window_size: int | tuple[int, ...] = 11,
    sigma: float | tuple[float, ...] = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
    sample_covariance: bool = False,
    padding: str = "valid",
    mask: Tensor | None = None,
    valid: Tensor | None = None,
    weights: Sequence[float] = MS_SSIM_WEIGHTS,
    levels: int | str = "auto",
    normalize: str | None = "floor",
    reduction: str = "mean",
    backend: str = "auto",
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
            metric. ``None``: ``v``, as the paper has it, which gives NaN for negative means.
        reduction: as for `ssim`.
        backend: as for `ssim`.

    Returns:
        A scalar, or ``(N,)`` with ``reduction="none"``; from 0 to 1 unless ``normalize=None``;
        dtype as for `ssim`.

    Gradients are those of `ssim`, finite and, with ``"floor"``, not zero unless the images are
    equal.

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
    return evaluator(options)(x, y, _extras(mask, valid, ranges))


def _shared_and_own(data_range: Any) -> tuple[Any, Tensor | None]:
    """The range of all images, and a tensor with the range of each, or ``None``."""
    return (1.0, data_range) if isinstance(data_range, Tensor) else (data_range, None)


def _extras(mask: Any, valid: Any, ranges: Any) -> Extras:
    if mask is None and valid is None and ranges is None:
        return NO_EXTRAS
    return Extras(mask, valid, ranges)


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class StructuralLoss(nn.Module):
    """A loss whose options are attributes, which may change between calls."""

    data_range: float | tuple[float, float] = 1.0
    window: str = "gaussian"
    window_size: int | tuple[int, ...] = 11
    sigma: float | tuple[float, ...] = 1.5
    k1: float = 0.01
    k2: float = 0.03
    sample_covariance: bool = False
    padding: str = "valid"
    reduction: str = "mean"
    backend: str = "auto"

    def __post_init__(self) -> None:
        super().__init__()
        self._checked_evaluator()

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        *,
        mask: Tensor | None = None,
        valid: Tensor | None = None,
        data_range: Tensor | None = None,
    ) -> Tensor:
        """The loss of a prediction ``x`` and a target ``y``, as the class documents it."""
        extras = _extras(mask, valid, data_range)
        return (self._evaluator or self._checked_evaluator())(x, y, extras)

    def value_and_grad(
        self,
        x: Tensor,
        y: Tensor,
        *,
        mask: Tensor | None = None,
        valid: Tensor | None = None,
        data_range: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The loss and its gradient with respect to ``x``, in one pass and without autograd.

        For those who write a backward pass of their own, such as a renderer's, or who optimise an
        image directly. It takes a fraction of the time of a recorded step on small images.

        Args:
            x: prediction, of a floating dtype. It is taken as it is: nothing is recorded, whether
                it requires a gradient or not.
            y: target, as for the loss.
            mask: as for the loss.
            valid: as for the loss.
            data_range: as for the loss.

        Returns:
            The loss as the call gives it, and the gradient in the dtype and layout of ``x``; with
            ``reduction="none"`` the losses of all images, and the gradient of their sum. Neither
            has an autograd graph.

        Raises:
            TypeError: as for the loss; ``x`` has an integer dtype.
            ValueError: as for the loss.

        Examples:
            >>> import torch
            >>> x, y = torch.rand(2, 1, 3, 32, 32)
            >>> loss, gradient = SSIMLoss().value_and_grad(x, y)
            >>> gradient.shape, gradient.requires_grad
            (torch.Size([1, 3, 32, 32]), False)
        """
        extras = _extras(mask, valid, data_range)
        return (self._evaluator or self._checked_evaluator()).value_and_grad(x, y, extras)

    @property
    def options(self) -> dict[str, Any]:
        """The options by name, as they are now."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def extra_repr(self) -> str:
        """The options, for `repr`."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())

    # The checked options with the plans of the images so far; no part of a copy or a pickle.
    _evaluator = None

    def _checked_evaluator(self) -> Evaluator:
        options = self.options
        if "weight" in options:
            options["structural_weight"] = _validation.structural_share(options.pop("weight"))
        checked = Evaluator(Options(**options, loss=True))
        if not torch.compiler.is_compiling():
            self.__dict__["_evaluator"] = checked
        return checked

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in self.__dataclass_fields__:
            # The next call checks the new options.
            self.__dict__["_evaluator"] = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_evaluator": None}


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class MultiScaleLoss(StructuralLoss):
    """A structural loss of several levels."""

    weights: Sequence[float] = MS_SSIM_WEIGHTS
    levels: int | str = "auto"
    normalize: str | None = "floor"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.weights = tuple(map(float, self.weights))
        self._checked_evaluator()


class SSIMLoss(StructuralLoss):
    """``1 - ssim(x, y)``: 0 for identical images, at most 2; falls while training.

    The options are those of `ssim`, and attributes of the same names, which may change between
    calls. The module has no parameters and no buffers, and follows the device of the images.

    Shapes:
        ``x`` and ``y``: ``(N, C, H, W)`` or ``(N, C, D, H, W)``; ``mask`` and ``valid``:
        broadcastable to ``(N, 1, H, W)``; ``data_range``, for a range of each image: ``(N,)``;
        result: scalar, or ``(N,)`` with ``reduction="none"``.

    Examples:
        >>> import torch
        >>> x = torch.rand(2, 3, 32, 32, requires_grad=True)
        >>> loss = SSIMLoss()(x, torch.rand(2, 3, 32, 32))
        >>> loss.backward()
        >>> bool(loss > 0) and bool(x.grad.isfinite().all())
        True
    """


class MSSSIMLoss(MultiScaleLoss):
    """``1 - ms_ssim(x, y)``: 0 for identical images, at most 1; falls while training.

    The options are those of `ms_ssim`, and attributes of the same names, which may change between
    calls. The module has no parameters and no buffers, and follows the device of the images.

    Shapes:
        ``x`` and ``y``: ``(N, C, H, W)`` or ``(N, C, D, H, W)``; ``mask`` and ``valid``:
        broadcastable to ``(N, 1, H, W)``; ``data_range``, for a range of each image: ``(N,)``;
        result: scalar, or ``(N,)`` with ``reduction="none"``.

    Examples:
        >>> import torch
        >>> x = torch.rand(2, 3, 192, 192, requires_grad=True)
        >>> loss = MSSSIMLoss(data_range=1.0)(x, torch.rand(2, 3, 192, 192))
        >>> loss.backward()
        >>> bool(0 < loss < 1) and bool(x.grad.isfinite().all())
        True
    """


class MixedLoss(StructuralLoss):
    """A structural loss mixed with L1."""

    def terms(
        self,
        x: Tensor,
        y: Tensor,
        *,
        mask: Tensor | None = None,
        valid: Tensor | None = None,
        data_range: Tensor | None = None,
    ) -> Terms:
        """The loss with the two terms that it is made of, from one pass: to log them, say.

        Args:
            x: prediction.
            y: target.
            mask: as for the loss.
            valid: as for the loss.
            data_range: as for the loss.

        Returns:
            A named tuple: ``loss``, ``l1`` (the mean of ``|x - y|``, in units of the data range)
            and ``structural`` (1 minus the similarity), with ``loss = (1 - weight) * l1 + weight *
            structural``. Each is a scalar, or ``(N,)`` with ``reduction="none"``, and
            differentiable.

        Raises:
            TypeError: as for the loss.
            ValueError: as for the loss.

        Examples:
            >>> import torch
            >>> x = torch.full((1, 3, 16, 16), 0.5, requires_grad=True)
            >>> loss, l1, structural = L1SSIMLoss().terms(x, torch.ones_like(x))
            >>> l1.item(), round(structural.item(), 4)
            (0.5, 0.2)
            >>> loss.backward()
        """
        extras = _extras(mask, valid, data_range)
        return (self._evaluator or self._checked_evaluator()).terms(x, y, extras)


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class L1SSIMLoss(MixedLoss):
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
        ``x`` and ``y``: ``(N, C, H, W)`` or ``(N, C, D, H, W)``; ``mask`` and ``valid``:
        broadcastable to ``(N, 1, H, W)``, for both terms; ``data_range``, for a range of each
        image: ``(N,)``; result: scalar, or ``(N,)`` with ``reduction="none"``.

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

    weight: float = dataclasses.field(default=0.2, kw_only=False)


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class L1MSSSIMLoss(MixedLoss, MultiScaleLoss):
    r"""``(1 - weight) * L1 + weight * (1 - MS-SSIM)``: 0 for identical images; falls in training.

    The L1 term is the mean of $|x - y| / L$, in units of the data range. The default
    ``weight=0.84`` is the paper's; the paper also blurs the L1 term with the coarsest window,
    which in the mean over an image changes only the weight of the border and is left out here.

    Zhao, Gallo, Frosio and Kautz, "Loss functions for image restoration with neural networks", IEEE
    Transactions on Computational Imaging 3(1), 2017.

    Args:
        weight: share of the structural term, from 0 to 1.
        data_range: as for `ms_ssim`, like all the options that follow. They are
            attributes too, as is ``weight``, and may change between calls.

    Shapes:
        ``x`` and ``y``: ``(N, C, H, W)`` or ``(N, C, D, H, W)``; ``mask`` and ``valid``:
        broadcastable to ``(N, 1, H, W)``, for both terms; ``data_range``, for a range of each
        image: ``(N,)``; result: scalar, or ``(N,)`` with ``reduction="none"``.

    Gradients flow to ``x`` and ``y``; that of the L1 term is zero where they are equal. Errors are
    those of `ms_ssim`.

    Examples:
        >>> import torch
        >>> x = torch.rand(1, 3, 192, 192)
        >>> L1MSSSIMLoss()(x, x).item()
        0.0
    """

    weight: float = dataclasses.field(default=0.84, kw_only=False)
