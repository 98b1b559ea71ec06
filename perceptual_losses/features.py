"""Losses on the features of a frozen network: content, style and LPIPS."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from . import _validation
from ._features import lpips
from ._features.backbone import Extractor, Weights, frozen, without_autocast
from ._features.presets import LPIPS_LAYERS, STYLE_PRESETS, VGG_PRESETS, resolve_layers

Features = dict[str, Tensor]


DISTANCES = ("l1", "l2")


def vgg_features(
    layers: list[str] | tuple[str, ...],
    *,
    backbone: str = "vgg16",
    weights: Weights = "imagenet",
    data_range: float | tuple[float, float] = 1.0,
    dtype: torch.dtype | None = None,
    checkpointing: bool = False,
) -> Extractor:
    r"""A frozen network, cut after the deepest requested layer: images in, features by name out.

    The network stays as it was trained, whatever is done to the model around it: it has no
    parameters, adds nothing to a state dict, ignores ``.train()``, and moves with ``.to()``.
    Gradients flow to the images, and cost nothing if the images need none. If
    ``DistributedDataParallel`` wraps a model with the network in it, ``broadcast_buffers=False``
    avoids sending the network at each call.

    On a CPU, 3x3 convolutions of many values take a quarter of the multiplications in float32 and
    4/9 in bfloat16 (Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR
    2016). Their rounding error is some 1e-6 of the features in float32. The transformed filters
    need up to four times the filters' memory in addition.

    Simonyan and Zisserman, "Very deep convolutional networks for large-scale image recognition",
    ICLR 2015.

    Args:
        layers: the layers' names. ``"conv3_2"`` is the output of the second convolution of the
            third block, before any other layer; ``"relu3_2"`` and ``"pool3"`` come after it, and
            in a ``_bn`` backbone ``"norm3_2"`` between them. AlexNet has ``"conv1"`` to
            ``"conv5"``, ``"relu1"`` to ``"relu5"``, ``"pool1"``, ``"pool2"`` and ``"pool5"``.
        backbone: ``"vgg16"``, ``"vgg19"``, ``"vgg16_bn"``, ``"vgg19_bn"`` or ``"alexnet"``.
        weights: ``"imagenet"`` for torchvision's weights, fetched by the first call or by
            ``.load()`` and kept in torch's cache; a path or a state dict of torchvision's whole
            model or of its ``features``; such a module; or ``None`` for random weights, with a
            warning. Only ``"imagenet"`` uses the internet.
        data_range: ``L`` for images in ``[0, L]``, or a pair ``(low, high)``; ImageNet's
            normalisation follows inside.
        dtype: the dtype that the network computes in, also under autocast: ``torch.bfloat16`` is
            several times as fast where the hardware supports it. ``None`` stands for float32, or
            for the dtype that autocast and ``.to()`` choose.
        checkpointing: keeps the activations of only one block at a time, and computes them again
            in the backward; for large images.

    Returns:
        A module. Called with images ``(N, 3, H, W)``, or ``(N, 1, H, W)`` for grey images, it
        returns a dict of features ``(N, C', H', W')``, in the order of ``layers``.

    Raises:
        ValueError: a layer or backbone is unknown, weights belong to another network, or images
            have other channels or are too small; the message says what to pass instead.
        RuntimeError: ImageNet's weights cannot be fetched; the message says where to put the file.

    Examples:
        >>> import torch, warnings
        >>> warnings.simplefilter("ignore")
        >>> extract = vgg_features(["relu1_2", "conv2_1"], weights=None)
        >>> features = extract(torch.rand(2, 3, 32, 32))
        >>> {name: tuple(value.shape) for name, value in features.items()}
        {'relu1_2': (2, 64, 32, 32), 'conv2_1': (2, 128, 16, 16)}
        >>> len(list(extract.parameters())), len(extract.state_dict())
        (0, 0)
    """
    return Extractor(
        layers,
        backbone=backbone,
        weights=weights,
        data_range=data_range,
        dtype=dtype,
        checkpointing=checkpointing,
    )


class _FeatureLoss(nn.Module):
    """A weighted sum of distances between the features of two batches, for each image."""

    _needs_equal_sides = True
    """Whether both batches must have the same height and width."""
    layers: dict[str, float] | None = None
    """Weights of the layers' distances, which may change between calls, or ``None`` for 1 each."""

    def __init__(self, extractor: Extractor, reduction: str) -> None:
        super().__init__()
        _validation.check_choice("reduction", reduction, _validation.REDUCTIONS)
        self.extractor, self.reduction = extractor, reduction

    def load(self) -> None:
        """Fetches ImageNet's weights now, which otherwise the first call does."""
        self.extractor.load()

    def features(self, y: Tensor) -> Features:
        """The features that the loss compares, of one batch.

        Compute them once for a target, and pass them as ``y`` whenever it is compared with.
        """
        self.extractor.check_images("y", y)
        return self._representation(self.extractor(y))

    def forward(self, x: Tensor, y: Tensor | Mapping[str, Tensor]) -> Tensor:
        _validation.check_choice("reduction", self.reduction, _validation.REDUCTIONS)
        names = self.extractor.layers
        if self.layers is not None and self.layers.keys() != set(names):
            raise ValueError(
                f"layers={self.layers}, and the loss was made for {list(names)}: keep a weight for "
                "each of these, which may be 0, or make another loss"
            )
        self.extractor.check_images("x", x)
        if isinstance(y, Mapping):
            target = self._check_features(x, y)
        else:
            self._check_target(x, y)
            target = self.features(y)
        prediction = self._representation(self.extractor(x))
        with without_autocast(x.device):
            distances = [self._distance(name, a, target[name]) for name, a in prediction.items()]
            per_image = torch.stack(distances).sum(0)
        return per_image.mean() if self.reduction == "mean" else per_image

    def _check_features(self, x: Tensor, y: Mapping[str, Tensor]) -> Features:
        """A target's `features`; refuses those that don't belong to images like ``x``."""
        if list(y) != list(self.extractor.layers):
            raise ValueError(
                f"y has features of {list(y)} and the loss compares "
                f"{list(self.extractor.layers)}: pass what this loss's .features() gives"
            )
        for name, shape in self._shapes(x).items():
            _validation.check_plain_tensor(f"y[{name!r}]", y[name])
            if tuple(y[name].shape) != shape:
                raise ValueError(
                    f"the features {name} of x have shape {shape} and those of y "
                    f"{tuple(y[name].shape)}: pass images of equal shapes; nothing is broadcast"
                )
        return dict(y)

    def _check_target(self, x: Tensor, y: Tensor) -> None:
        """Refuses images that ``x`` can't be compared with."""
        self.extractor.check_images("y", y)
        dims = 4 if self._needs_equal_sides else 2
        fits = x.shape[:dims] == y.shape[:dims]
        if not fits or x.device != y.device:
            raise ValueError(
                f"x has shape {tuple(x.shape)} on {x.device} and y {tuple(y.shape)} on {y.device}: "
                "pass equal shapes on one device; nothing is broadcast"
            )

    def _shapes(self, x: Tensor) -> dict[str, tuple[int, ...]]:
        """The shapes of `features` of images like ``x``, by layer."""
        return self.extractor.shapes(x)

    def _representation(self, features: Features) -> Features:
        """The tensors that are compared, made from a network's features."""
        return features

    def _distance(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        """The layer's weighted distance for each image."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"


class VGGLoss(_FeatureLoss):
    r"""Distance between the features of VGG for two batches of images.

    It is 0 for identical images, and falls in training.

    $$
    \sum_l w_l \frac{1}{C_l H_l W_l} \sum \left| \phi_l(x) - \phi_l(y) \right|^p
    $$

    with $p = 1$ for ``distance="l1"`` and 2 for ``"l2"``: a mean over the elements of each
    layer, the weighted sum over layers, the mean over images. It has no unit and no upper bound but
    that of the features.

    Johnson, Alahi and Fei-Fei, "Perceptual losses for real-time style transfer and
    super-resolution", ECCV 2016.

    Args:
        layers: weights by names of layers as in `vgg_features`, or the layers, network and distance
            of a paper: ``"johnson"`` (relu2_2 of the paper above), ``"dfc-123"`` and ``"dfc-345"``
            (Hou et al. 2017, for VAEs), ``"srgan"`` (Ledig et al. 2017) or ``"esrgan"`` (Wang et
            al. 2018, features before the activation).
        backbone: as for `vgg_features`; by default the paper's, or ``"vgg16"``.
        weights: as for `vgg_features`, like ``data_range``, ``dtype`` and ``checkpointing``. The
            distance is computed in float32 or wider.
        distance: ``"l1"``, or ``"l2"`` for the squared distance; by default the paper's, or
            ``"l1"``.
        data_range: ``L`` for images in ``[0, L]``, or a pair ``(low, high)``.
        dtype: the dtype that the network computes in.
        checkpointing: trades time for memory.
        reduction: ``"mean"`` over images, or ``"none"``.

    Shapes:
        ``x`` and ``y``: ``(N, 3, H, W)`` or ``(N, 1, H, W)``; ``y`` may also be the result of
        ``features`` for a target; result: scalar, or ``(N,)`` with ``reduction="none"``.

    Gradients flow to ``x`` and ``y``. A target that needs no gradient passes through the network
    without a graph. Errors are those of `vgg_features`.

    Examples:
        >>> import torch, warnings
        >>> warnings.simplefilter("ignore")
        >>> loss = VGGLoss({"relu1_2": 1.0, "relu2_2": 0.5}, weights=None)
        >>> x, y = torch.rand(2, 1, 3, 32, 32)
        >>> loss(x, x).item(), bool(loss(x, y) > 0)
        (0.0, True)
        >>> target = loss.features(y)
        >>> bool(loss(x, target) == loss(x, y))
        True
    """

    layers: dict[str, float]

    def __init__(
        self,
        layers: Mapping[str, float] | str = "johnson",
        *,
        backbone: str | None = None,
        weights: Weights = "imagenet",
        distance: str | None = None,
        data_range: float | tuple[float, float] = 1.0,
        dtype: torch.dtype | None = None,
        checkpointing: bool = False,
        reduction: str = "mean",
    ) -> None:
        preset = resolve_layers(layers, VGG_PRESETS, backbone, distance, "l1")
        _validation.check_choice("distance", preset.distance, DISTANCES)
        extractor = Extractor(
            list(preset.layers),
            backbone=preset.backbone,
            weights=weights,
            data_range=data_range,
            dtype=dtype,
            checkpointing=checkpointing,
        )
        super().__init__(extractor, reduction)
        self.layers, self.distance = preset.layers, preset.distance

    def forward(self, x: Tensor, y: Tensor | Mapping[str, Tensor]) -> Tensor:
        _validation.check_choice("distance", self.distance, DISTANCES)
        return super().forward(x, y)

    def _distance(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        difference = _at_least_float32(a) - _at_least_float32(b)
        powered = difference.abs() if self.distance == "l1" else difference.square()
        return self.layers[name] * powered.mean((1, 2, 3))

    def extra_repr(self) -> str:
        return f"layers={self.layers}, distance={self.distance!r}, {super().extra_repr()}"


class StyleLoss(_FeatureLoss):
    r"""Distance between the Gram matrices of VGG's features, which describe textures, not places.

    It is 0 for identical images, and falls in training.

    $$
    \sum_l w_l \left\| G_l(x) - G_l(y) \right\|_F^2, \qquad
    G_l = \frac{\phi_l \phi_l^\top}{C_l H_l W_l}
    $$

    with the features as a matrix of channels and pixels; the mean over images.

    Gatys, Ecker and Bethge, "Image style transfer using convolutional neural networks", CVPR 2016;
    Johnson, Alahi and Fei-Fei, ECCV 2016.

    Args:
        layers: weights by names of layers, or the layers and network of a paper: ``"johnson"`` or
            ``"gatys"``.
        backbone: as for `VGGLoss`, like all the options that follow.

    Shapes:
        as for `VGGLoss`, except that ``y`` may have another height and width; ``features`` returns
        the Gram matrices ``(N, C', C')``.

    Gradients flow to ``x`` and ``y``. Errors are those of `vgg_features`.

    Examples:
        >>> import torch, warnings
        >>> warnings.simplefilter("ignore")
        >>> loss = StyleLoss({"relu1_1": 1.0}, weights=None)
        >>> x = torch.rand(1, 3, 32, 32)
        >>> loss(x, x).item(), bool(loss(x, x.flip(3)) < loss(x, 0.5 * x))
        (0.0, True)
    """

    _needs_equal_sides = False
    layers: dict[str, float]

    def __init__(
        self,
        layers: Mapping[str, float] | str = "johnson",
        *,
        backbone: str | None = None,
        weights: Weights = "imagenet",
        data_range: float | tuple[float, float] = 1.0,
        dtype: torch.dtype | None = None,
        checkpointing: bool = False,
        reduction: str = "mean",
    ) -> None:
        preset = resolve_layers(layers, STYLE_PRESETS, backbone, None, "l2")
        extractor = Extractor(
            list(preset.layers),
            backbone=preset.backbone,
            weights=weights,
            data_range=data_range,
            dtype=dtype,
            checkpointing=checkpointing,
        )
        super().__init__(extractor, reduction)
        self.layers = preset.layers

    def _shapes(self, x: Tensor) -> dict[str, tuple[int, ...]]:
        shapes = self.extractor.shapes(x)
        return {name: (n, channels, channels) for name, (n, channels, *_) in shapes.items()}

    def _representation(self, features: Features) -> Features:
        with without_autocast(next(iter(features.values())).device):
            return {name: _gram(_at_least_float32(feature)) for name, feature in features.items()}

    def _distance(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        return self.layers[name] * (a - b).square().sum((1, 2))

    def extra_repr(self) -> str:
        return f"layers={self.layers}, {super().extra_repr()}"


class LPIPSLoss(_FeatureLoss):
    r"""Learned perceptual image patch similarity (LPIPS), calibrated on people's judgements.

    It is a distance: 0 for identical images, and falls in training.

    $$
    \sum_l \frac{1}{H_l W_l} \sum_{h, w} \sum_c w_{l c}
    \left( \frac{\phi_l(x)}{\|\phi_l(x)\|} - \frac{\phi_l(y)}{\|\phi_l(y)\|} \right)_{c h w}^2
    $$

    with the norm over channels; the mean over images. It equals version 0.1 of the ``lpips``
    package for the same weights, with two exceptions. Where all features of a pixel are zero, the
    gradient is zero, not NaN. Where their squares overflow, the distance is NaN, not that of
    features of zero.

    Zhang, Isola, Efros, Shechtman and Wang, "The unreasonable effectiveness of deep features as a
    perceptual metric", CVPR 2018.

    Args:
        backbone: ``"vgg16"``, which the authors advise for training, or ``"alexnet"``, for
            measuring.
        weights: the network's weights, as for `vgg_features`.
        linear: the weights $w$, which stay as they are: ``"lpips"`` for those in the
            installed ``lpips`` package, a path to such a file, or its state dict.
        data_range: as for `vgg_features`, like ``dtype`` and ``checkpointing``.
        dtype: the dtype that the network computes in.
        checkpointing: trades time for memory.
        reduction: ``"mean"`` over images, or ``"none"``.

    Shapes:
        as for `VGGLoss`.

    Gradients flow to ``x`` and ``y``. Errors are those of `vgg_features`.

    Examples:
        >>> import torch, warnings
        >>> warnings.simplefilter("ignore")
        >>> widths = {"relu1": 64, "relu2": 192, "relu3": 384, "relu4": 256, "relu5": 256}
        >>> linear = {
        ...     f"lin{i}.model.1.weight": torch.full((1, width, 1, 1), 0.1)
        ...     for i, width in enumerate(widths.values())
        ... }
        >>> loss = LPIPSLoss("alexnet", weights=None, linear=linear)
        >>> x, y = torch.rand(2, 1, 3, 64, 64)
        >>> loss(x, x).item(), bool(loss(x, y) > 0)
        (0.0, True)
    """

    def __init__(
        self,
        backbone: str = "vgg16",
        *,
        weights: Weights = "imagenet",
        linear: str | os.PathLike[str] | Mapping[str, Tensor] = "lpips",
        data_range: float | tuple[float, float] = 1.0,
        dtype: torch.dtype | None = None,
        checkpointing: bool = False,
        reduction: str = "mean",
    ) -> None:
        _validation.check_choice("backbone", backbone, tuple(LPIPS_LAYERS))
        linear_weights = lpips.linear_weights(linear, backbone)
        extractor = Extractor(
            LPIPS_LAYERS[backbone],
            backbone=backbone,
            weights=weights,
            data_range=data_range,
            dtype=dtype,
            checkpointing=checkpointing,
        )
        super().__init__(extractor, reduction)
        for name, weight in linear_weights.items():
            self.register_buffer(name, weight, persistent=False)

    def _distance(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        return lpips.layer_distance(a, b, frozen(self, name).flatten())


def _at_least_float32(feature: Tensor) -> Tensor:
    """The features in float32, or unchanged if they are float64."""
    wide: Tensor = feature.to(torch.promote_types(feature.dtype, torch.float32))
    return wide


def _gram(feature: Tensor) -> Tensor:
    """The Gram matrices ``(N, C, C)`` of features ``(N, C, H, W)``."""
    rows = feature.flatten(2)
    return rows @ rows.mT / (rows.shape[1] * rows.shape[2])
