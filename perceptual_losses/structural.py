"""SSIM and MS-SSIM as losses, and mixed with L1."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from . import _validation
from ._evaluator import SEQUENCES, Evaluator, Options, Terms
from ._literals import Backend, Normalization, Padding, Reduction, Window
from ._runtime.tracing import refuse_scripting
from .similarity import MS_SSIM_WEIGHTS


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class StructuralLoss(nn.Module):
    """A loss whose options are attributes, which may change between calls."""

    data_range: float | tuple[float, float] = 1.0
    window: Window = "gaussian"
    window_size: int | tuple[int, ...] = 11
    sigma: float | tuple[float, ...] = 1.5
    k1: float = 0.01
    k2: float = 0.03
    sample_covariance: bool = False
    padding: Padding = "valid"
    reduction: Reduction = "mean"
    backend: Backend = "auto"

    def __post_init__(self) -> None:
        super().__init__()
        self._checked_evaluator()

    if TYPE_CHECKING:
        # nn.Module types its own `__call__` as taking and returning anything.
        def __call__(
            self,
            x: Tensor,
            y: Tensor,
            *,
            mask: Tensor | None = None,
            valid: Tensor | None = None,
            data_range: Tensor | None = None,
        ) -> Tensor: ...

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        *,
        mask: Tensor | None = None,
        valid: Tensor | None = None,
        data_range: Tensor | None = None,
    ) -> Tensor:
        """The loss of a prediction and a target: 0 for identical images; lower is more similar.

        `SSIMLoss` computes ``1 - ssim(x, y)`` and `MSSSIMLoss` ``1 - ms_ssim(x, y)``. `L1SSIMLoss`
        and `L1MSSSIMLoss` mix these with L1. The options are the module's attributes. Call the
        module itself, ``loss(x, y)``, like any `torch.nn.Module`.

        Args:
            x: prediction, images ``(N, C, H, W)`` or volumes ``(N, C, D, H, W)``, with any number
                of channels, any strides and any real dtype.
            y: target, same shape and device; its dtype may differ.
            mask: non-negative weights or booleans that broadcast to ``(N, 1, H, W)``: how much
                each pixel counts.
            valid: booleans that broadcast to ``(N, 1, H, W)``: the pixels that exist. The others
                are not read.
            data_range: a tensor ``(N,)`` with the range of each image, in place of the option.

        Returns:
            A scalar, or ``(N,)`` with ``reduction="none"``; float64 if ``x`` or ``y`` is, else
            float32, under autocast too. Gradients flow to ``x`` and ``y``.

        Raises:
            TypeError: an argument is of a kind that is not accepted.
            ValueError: an argument has a value, shape or device that is not.
        """
        return (self._evaluator or self._checked_evaluator())(x, y, mask, valid, data_range)

    def value_and_grad(
        self,
        x: Tensor,
        y: Tensor,
        *,
        mask: Tensor | None = None,
        valid: Tensor | None = None,
        data_range: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The loss and its gradient with respect to ``x``, without an autograd graph.

        For those who write a backward pass of their own, such as a renderer's, or who optimise an
        image directly. A call like an earlier one, without a mask and the like, takes a fraction of
        the time of a recorded step on small images.

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
        return (self._evaluator or self._checked_evaluator()).value_and_grad(
            x, y, mask, valid, data_range
        )

    @property
    def options(self) -> dict[str, Any]:
        """The options by name, as they are now."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def extra_repr(self) -> str:
        """The options, for `repr`."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())

    __prepare_scriptable__ = refuse_scripting

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
        # A list could change later without being set.
        super().__setattr__(name, _validation.as_tuple(value) if name in SEQUENCES else value)
        if name in self.__dataclass_fields__:
            # The next call checks the new options.
            self.__dict__["_evaluator"] = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_evaluator": None}


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class MultiScaleLoss(StructuralLoss):
    """A structural loss of several levels."""

    weights: Sequence[float] = MS_SSIM_WEIGHTS
    levels: int | Literal["auto"] = "auto"
    normalize: Normalization | None = "floor"

    def __post_init__(self) -> None:
        super().__post_init__()
        # Set past `__setattr__`, because the same weights need no new check.
        self.__dict__["weights"] = tuple(map(float, self.weights))


class SSIMLoss(StructuralLoss):
    """``1 - ssim(x, y)``: 0 for identical images, at most 2; falls while training.

    The options are attributes, which may change between calls. The module has no parameters and no
    buffers, and follows the device of the images.

    Args:
        data_range: ``L`` for values in ``[0, L]``, or a pair ``(low, high)``: ``(-1, 1)`` for a
            tanh decoder. Pass a tensor with the range of each image to the call.
        window: ``"gaussian"``, or ``"uniform"`` for a box in which all pixels weigh the same.
        window_size: pixels across the window, odd; or a tuple of them in the order of the axes,
            (rows, columns) or (depth, rows, columns).
        sigma: standard deviation of the Gaussian window in pixels; or a tuple of them.
        k1: stabilises the luminance where the images are near zero.
        k2: stabilises the contrast where they are flat.
        sample_covariance: whether variances and covariance are the unbiased ones.
        padding: ``"valid"`` counts only windows inside the image, ``"zeros"`` puts ``low`` around
            it, and ``"symmetric"`` mirrors it, edge pixel included.
        reduction: ``"mean"`` over the batch, or ``"none"`` for one loss per image.
        backend: ``"auto"`` takes the fastest path that the device and the images allow; a path
            asked for by name (``"reference"``, ``"numba"``, ``"triton"``) runs or raises.

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
    """``1 - ms_ssim(x, y)``: 0 for identical images; falls while training.

    It is at most 1 unless ``normalize=None``.

    The options are attributes, which may change between calls. The module has no parameters and no
    buffers, and follows the device of the images.

    Args:
        data_range: ``L`` for values in ``[0, L]``, or a pair ``(low, high)``: ``(-1, 1)`` for a
            tanh decoder. Pass a tensor with the range of each image to the call.
        window: ``"gaussian"``, or ``"uniform"`` for a box in which all pixels weigh the same.
        window_size: pixels across the window at each level, odd; or a tuple of them in the order of
            the axes, (rows, columns) or (depth, rows, columns).
        sigma: standard deviation of the Gaussian window in pixels; or a tuple of them.
        k1: stabilises the luminance where the images are near zero.
        k2: stabilises the contrast where they are flat.
        sample_covariance: whether variances and covariance are the unbiased ones.
        padding: ``"valid"`` counts only windows inside the image, ``"zeros"`` puts ``low`` around
            it, and ``"symmetric"`` mirrors it, edge pixel included.
        reduction: ``"mean"`` over the batch, or ``"none"`` for one loss per image.
        backend: ``"auto"`` takes the fastest path that the device and the images allow; a path
            asked for by name (``"reference"``, ``"numba"``, ``"triton"``) runs or raises.
        weights: exponent of each level, finest first; any number of levels.
        levels: ``"auto"`` takes as many levels as fit, with a warning if there are more weights;
            an int takes that many or raises.
        normalize: the treatment of a level's mean before the power, because a negative mean has no
            real power: ``"floor"`` (smooth, and always with a gradient), ``"relu"`` (0, without a
            gradient), ``"simple"`` (another metric) or ``None`` (NaN). `ms_ssim` has the formulas.

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
            A named tuple of ``loss``, ``l1`` (the mean of ``|x - y|``, in units of the data range)
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
        return (self._evaluator or self._checked_evaluator()).terms(x, y, mask, valid, data_range)


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class L1SSIMLoss(MixedLoss):
    r"""``(1 - weight) * L1 + weight * (1 - SSIM)``: 0 for identical images; falls in training.

    The L1 term is the mean of $|x - y| / L$, in units of the data range, so that the mix does
    not depend on the scale of the images. With the default ``weight=0.2``, values in [0, 1] and
    ``padding="zeros"`` it is the loss of 3D Gaussian splatting.

    Kerbl, Kopanas, Leimkuehler and Drettakis, "3D Gaussian Splatting for Real-Time Radiance Field
    Rendering", ACM Transactions on Graphics 42(4), 2023.

    The options are attributes, which may change between calls.

    Args:
        weight: share of the structural term, from 0 to 1.
        data_range: ``L`` for values in ``[0, L]``, or a pair ``(low, high)``: ``(-1, 1)`` for a
            tanh decoder. Pass a tensor with the range of each image to the call.
        window: ``"gaussian"``, or ``"uniform"`` for a box in which all pixels weigh the same.
        window_size: pixels across the window, odd; or a tuple of them in the order of the axes,
            (rows, columns) or (depth, rows, columns).
        sigma: standard deviation of the Gaussian window in pixels; or a tuple of them.
        k1: stabilises the luminance where the images are near zero.
        k2: stabilises the contrast where they are flat.
        sample_covariance: whether variances and covariance are the unbiased ones.
        padding: ``"valid"`` counts only windows inside the image, ``"zeros"`` puts ``low`` around
            it, and ``"symmetric"`` mirrors it, edge pixel included.
        reduction: ``"mean"`` over the batch, or ``"none"`` for one loss per image.
        backend: ``"auto"`` takes the fastest path that the device and the images allow; a path
            asked for by name (``"reference"``, ``"numba"``, ``"triton"``) runs or raises.

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

    The options are attributes, which may change between calls.

    Args:
        weight: share of the structural term, from 0 to 1.
        data_range: ``L`` for values in ``[0, L]``, or a pair ``(low, high)``: ``(-1, 1)`` for a
            tanh decoder. Pass a tensor with the range of each image to the call.
        window: ``"gaussian"``, or ``"uniform"`` for a box in which all pixels weigh the same.
        window_size: pixels across the window at each level, odd; or a tuple of them in the order of
            the axes, (rows, columns) or (depth, rows, columns).
        sigma: standard deviation of the Gaussian window in pixels; or a tuple of them.
        k1: stabilises the luminance where the images are near zero.
        k2: stabilises the contrast where they are flat.
        sample_covariance: whether variances and covariance are the unbiased ones.
        padding: ``"valid"`` counts only windows inside the image, ``"zeros"`` puts ``low`` around
            it, and ``"symmetric"`` mirrors it, edge pixel included.
        reduction: ``"mean"`` over the batch, or ``"none"`` for one loss per image.
        backend: ``"auto"`` takes the fastest path that the device and the images allow; a path
            asked for by name (``"reference"``, ``"numba"``, ``"triton"``) runs or raises.
        weights: exponent of each level, finest first; any number of levels.
        levels: ``"auto"`` takes as many levels as fit, with a warning if there are more weights;
            an int takes that many or raises.
        normalize: the treatment of a level's mean before the power, because a negative mean has no
            real power: ``"floor"`` (smooth, and always with a gradient), ``"relu"`` (0, without a
            gradient), ``"simple"`` (another metric) or ``None`` (NaN). `ms_ssim` has the formulas.

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
