"""Losses on the features of a frozen network: content, style and LPIPS."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import _validation
from ._features import lpips
from ._features.backbone import DEVIATION, MEAN, Extractor, without_autocast
from ._features.loss import ExtractorLoss, Features
from ._features.module import ModuleExtractor
from ._features.presets import (
    LPIPS_LAYERS,
    STYLE_PRESETS,
    VGG_PRESETS,
    layer_weights,
    resolve_layers,
)
from ._features.weights import Weights, read
from ._literals import Backbone, Distance, LPIPSBackbone, Reduction, StylePreset, VGGPreset

DISTANCES = get_args(Distance)


def vgg_features(
    layers: list[str] | tuple[str, ...],
    *,
    backbone: Backbone = "vgg16",
    weights: Weights = "imagenet",
    data_range: float | tuple[float, float] = 1.0,
    dtype: torch.dtype | None = None,
    checkpointing: bool = False,
) -> Extractor:
    r"""A frozen network, cut after the deepest requested layer: images in, features by name out.

    The network stays as it was trained, whatever is done to the model around it. It has no
    parameters or buffers for ``DistributedDataParallel`` to send, adds nothing to a state dict, and
    ignores ``.train()``. It moves with ``.to()``; ``fully_shard`` leaves it where it is. Its values
    outlive ``to_empty()``, so it may be built on the meta device. Gradients flow to the images, and
    cost nothing if the images need none.

    On a CPU, 3x3 convolutions of many values take a quarter of the multiplications in float32 and
    4/9 in bfloat16 (Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR
    2016). Their rounding error is some 1e-6 of the features in float32. The transformed filters
    need up to four times the filters' memory in addition, once for all networks with the same
    weights.

    Simonyan and Zisserman, "Very deep convolutional networks for large-scale image recognition",
    ICLR 2015.

    Args:
        layers: the layers' names. ``"conv3_2"`` is the output of the second convolution of the
            third block, before any other layer; ``"relu3_2"`` and ``"pool3"`` come after it, and
            in a ``_bn`` backbone ``"norm3_2"`` between them. AlexNet has ``"conv1"`` to
            ``"conv5"``, ``"relu1"`` to ``"relu5"``, ``"pool1"``, ``"pool2"`` and ``"pool5"``.
            SqueezeNet has ``"conv1"``, ``"relu1"``, ``"fire2"`` to ``"fire9"``, ``"pool1"``,
            ``"pool3"`` and ``"pool5"``.
        backbone: ``"vgg16"``, ``"vgg19"``, ``"vgg16_bn"``, ``"vgg19_bn"``, ``"alexnet"`` or
            ``"squeezenet1_1"``.
        weights: ``"imagenet"`` for torchvision's weights, fetched by the first call or by
            ``.load()`` and kept in torch's cache; the path of a file of ``torch.save`` or
            safetensors, a state dict or a module; or ``None`` for random weights, with a warning.
            Entries have the names of torchvision, timm or lpips, and are those of the whole model
            or of its features up to the deepest layer. Only ``"imagenet"`` uses the internet.
        data_range: ``L`` for images in ``[0, L]``, or a pair ``(low, high)``; ImageNet's
            normalisation follows inside.
        dtype: the dtype that the network computes in, also under autocast: ``torch.bfloat16`` is
            several times as fast where the hardware supports it. ``None`` stands for float32, or
            for the dtype that autocast and ``.to()`` choose.
        checkpointing: keeps the activations of only one block at a time, and computes them again
            in the backward; for large images.

    Returns:
        A module. Called with images ``(N, 3, H, W)``, or ``(N, 1, H, W)`` for grey images, it
        returns a dict of features ``(N, C', H', W')``, in the order of ``layers``. Each of the
        frames ``(N, C, T, H, W)`` is an image, and their features are ``(N T, C', H', W')``.

    Raises:
        ValueError: a layer or backbone is unknown, weights belong to another network, or images
            have other channels, are too small or on another device.
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


class FeatureLoss(ExtractorLoss):
    r"""Distance between the features of any network for two batches of images.

    It is 0 for identical images, and falls in training. The formula is that of `VGGLoss`, on the
    outputs of submodules, such as the stages of a ConvNeXt or the blocks of a DINO.

    The loss keeps a frozen copy of the network in evaluation mode. As in `vgg_features`, no
    optimizer, checkpoint, ``.train()`` or ``DistributedDataParallel`` finds it. The copy's
    rectifiers don't work in place, so that they don't overwrite the features of other layers.

    Args:
        network: a module that takes images ``(N, 3, H, W)``; or a network of `vgg_features`, which
            is used as it is and has the options from ``data_range`` to ``dtype`` already.
        layers: weights by names of submodules, as ``network.named_modules()`` has them; each must
            give a tensor ``(N, ...)``.
        distance: ``"l1"``, or ``"l2"`` for the squared distance: means over a layer's elements.
        data_range: ``L`` for images in ``[0, L]``, or a pair ``(low, high)``.
        mean: three numbers, one for each colour, which are subtracted from images in [0, 1]; by
            default ImageNet's, as most networks expect.
        std: three numbers that the difference is divided by; by default ImageNet's.
        dtype: the dtype that the network computes in, also under autocast; ``None`` for its own,
            or the one that autocast and ``.to()`` choose.
        chunk_size: the number of images that go through the network at a time. The activations of
            only one chunk are in memory, and a backward computes them again. ``None`` for all.
        reduction: ``"mean"`` over images, or ``"none"``.

    Shapes:
        ``x`` and ``y``: ``(N, 3, H, W)`` or ``(N, 1, H, W)``, or frames ``(N, C, T, H, W)``, each
        an image of its own; ``y`` may also be the result of ``features`` for a target; result:
        scalar, or with ``reduction="none"`` ``(N,)``, and ``(N, T)`` for frames.

    Gradients flow to ``x`` and ``y``.

    Raises:
        ValueError: a layer is unknown or gives no tensor, or the network overwrites its output;
            images are on another device, or have other shapes.

    Examples:
        >>> import torch
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.GELU())
        >>> loss = FeatureLoss(network, {"1": 1.0})
        >>> x, y = torch.rand(2, 1, 3, 32, 32)
        >>> loss(x, x).item(), bool(loss(x, y) > 0)
        (0.0, True)
    """

    layers: dict[str, float]

    def __init__(
        self,
        network: nn.Module,
        layers: Mapping[str, float],
        *,
        distance: Distance = "l1",
        data_range: float | tuple[float, float] = 1.0,
        mean: tuple[float, float, float] = MEAN,
        std: tuple[float, float, float] = DEVIATION,
        dtype: torch.dtype | None = None,
        chunk_size: int | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        _validation.check_choice("distance", distance, DISTANCES)
        weights = layer_weights(layers)
        if not isinstance(network, Extractor):
            network = ModuleExtractor(
                network,
                list(weights),
                data_range=data_range,
                mean=mean,
                deviation=std,
                dtype=dtype,
            )
        elif (data_range, mean, std, dtype) != (1.0, MEAN, DEVIATION, None):
            raise ValueError(
                "network has been made by vgg_features: pass data_range and dtype there, and "
                "leave out mean and std"
            )
        super().__init__(network, reduction, chunk_size)
        self.layers, self.distance = weights, distance

    def layer_distances(self, x: Tensor, y: Tensor | Mapping[str, Tensor]) -> Features:
        _validation.check_choice("distance", self.distance, DISTANCES)
        return super().layer_distances(x, y)

    def _distance(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        if a.shape != b.shape:
            raise ValueError(
                f"the features {name} of x have shape {tuple(a.shape)} and those of y "
                f"{tuple(b.shape)}: pass images of equal shapes; nothing is broadcast"
            )
        difference = _at_least_float32(a) - _at_least_float32(b)
        powered = difference.abs() if self.distance == "l1" else difference.square()
        return self.layers[name] * powered.flatten(1).mean(1)

    def extra_repr(self) -> str:
        return f"layers={self.layers}, distance={self.distance!r}, {super().extra_repr()}"


class VGGLoss(FeatureLoss):
    r"""Distance between the features of VGG for two batches of images.

    It is 0 for identical images, and falls in training.

    $$
    \sum_l w_l \frac{1}{C_l H_l W_l} \sum \left| \phi_l(x) - \phi_l(y) \right|^p
    $$

    with $p = 1$ for ``distance="l1"`` and 2 for ``"l2"``: a mean over the elements of each
    layer, the weighted sum over layers, the mean over images. It has no unit and no upper bound.

    Johnson, Alahi and Fei-Fei, "Perceptual losses for real-time style transfer and
    super-resolution", ECCV 2016.

    Args:
        layers: weights by names of layers as in `vgg_features`, or the layers, network and distance
            of a paper: ``"johnson"`` (relu2_2 of the paper above), ``"dfc-123"`` and ``"dfc-345"``
            (Hou et al. 2017, for VAEs), ``"srgan"`` (Ledig et al. 2017) or ``"esrgan"`` (Wang et
            al. 2018, features before the activation).
        backbone: the network, as for `vgg_features`; by default the paper's, or ``"vgg16"``.
        weights: the network's weights, as for `vgg_features`.
        distance: ``"l1"``, or ``"l2"`` for the squared distance; by default the paper's, or
            ``"l1"``.
        data_range: ``L`` for images in ``[0, L]``, or a pair ``(low, high)``.
        dtype: the dtype that the network computes in; the distance is in float32 or wider.
        checkpointing: trades time for memory.
        chunk_size: the number of images that go through the network at a time; for long videos.
        reduction: ``"mean"`` over images, or ``"none"``.

    Shapes:
        as for `FeatureLoss`.

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

    def __init__(
        self,
        layers: Mapping[str, float] | VGGPreset = "johnson",
        *,
        backbone: Backbone | None = None,
        weights: Weights = "imagenet",
        distance: Distance | None = None,
        data_range: float | tuple[float, float] = 1.0,
        dtype: torch.dtype | None = None,
        checkpointing: bool = False,
        chunk_size: int | None = None,
        reduction: Reduction = "mean",
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
        super().__init__(
            extractor,
            preset.layers,
            distance=cast(Distance, preset.distance),
            chunk_size=chunk_size,
            reduction=reduction,
        )


class StyleLoss(ExtractorLoss):
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
        backbone: the network, as for `vgg_features`; by default the paper's, or ``"vgg16"``.
        weights: the network's weights, as for `vgg_features`.
        data_range: ``L`` for images in ``[0, L]``, or a pair ``(low, high)``.
        dtype: the dtype that the network computes in; Gram matrices are in float32 or wider.
        checkpointing: trades time for memory.
        chunk_size: the number of images that go through the network at a time.
        reduction: ``"mean"`` over images, or ``"none"``.

    Shapes:
        as for `FeatureLoss`, except that ``y`` may have another height and width, and may be one
        image for all; ``features`` returns the Gram matrices ``(N, C', C')``.

    Gradients flow to ``x`` and ``y``. Errors are those of `vgg_features`.

    Examples:
        >>> import torch, warnings
        >>> warnings.simplefilter("ignore")
        >>> loss = StyleLoss({"relu1_1": 1.0}, weights=None)
        >>> x = torch.rand(1, 3, 32, 32)
        >>> loss(x, x).item(), bool(loss(x, x.flip(3)) < loss(x, 0.5 * x))
        (0.0, True)
    """

    layers: dict[str, float]

    def __init__(
        self,
        layers: Mapping[str, float] | StylePreset = "johnson",
        *,
        backbone: Backbone | None = None,
        weights: Weights = "imagenet",
        data_range: float | tuple[float, float] = 1.0,
        dtype: torch.dtype | None = None,
        checkpointing: bool = False,
        chunk_size: int | None = None,
        reduction: Reduction = "mean",
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
        super().__init__(extractor, reduction, chunk_size)
        self.layers = preset.layers

    def _shapes(self, x: Tensor) -> dict[str, tuple[int, ...]]:
        shapes = self.extractor.shapes(x)
        return {name: (n, channels, channels) for name, (n, channels, *_) in shapes.items()}

    def _accepted(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        return shape, (1, *shape[1:])

    def _check_shapes(self, x: Tensor, y: Tensor) -> None:
        counts = [len(image) * (image.shape[2] if image.dim() == 5 else 1) for image in (x, y)]
        if x.shape[1] != y.shape[1] or counts[1] not in (1, counts[0]):
            raise ValueError(
                f"x has shape {tuple(x.shape)} and y {tuple(y.shape)}: pass as many images as x "
                "has, or one for all, with the same number of channels"
            )

    def _representation(self, features: Features) -> Features:
        with without_autocast(next(iter(features.values())).device):
            return {name: _gram(_at_least_float32(feature)) for name, feature in features.items()}

    def _distance(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        return self.layers[name] * (a - b).square().sum((1, 2))

    def extra_repr(self) -> str:
        return f"layers={self.layers}, {super().extra_repr()}"


class LPIPSLoss(ExtractorLoss):
    r"""Learned perceptual image patch similarity (LPIPS), calibrated on people's judgements.

    It is a distance: 0 for identical images, and falls in training.

    $$
    \sum_l \frac{1}{H_l W_l} \sum_{h, w} \sum_c w_{l c}
    \left( \frac{\phi_l(x)}{\|\phi_l(x)\|} - \frac{\phi_l(y)}{\|\phi_l(y)\|} \right)_{c h w}^2
    $$

    with the norm over channels; the mean over images. It equals version 0.1 of the ``lpips``
    package for the same weights, with two exceptions. Where all features of a pixel are zero, the
    gradient is zero, not NaN. Where their squares overflow, the distance is NaN.

    Zhang, Isola, Efros, Shechtman and Wang, "The unreasonable effectiveness of deep features as a
    perceptual metric", CVPR 2018.

    Args:
        backbone: ``"vgg16"``, which the authors advise for training, ``"alexnet"``, for measuring,
            or ``"squeezenet1_1"``.
        weights: the network's weights, as for `vgg_features`.
        linear: the weights $w$, which stay as they are: ``"lpips"`` for the calibrated ones of
            version 0.1, or those that ``weights`` holds beside the network; a path or a state dict
            with lpips's names; or ``None`` for 1, the distance before its calibration.
        data_range: ``L`` for images in ``[0, L]``, or a pair ``(low, high)``.
        dtype: the dtype that the network computes in.
        checkpointing: trades time for memory.
        chunk_size: the number of images that go through the network at a time.
        reduction: ``"mean"`` over images, or ``"none"``.

    Shapes:
        as for `FeatureLoss`.

    Gradients flow to ``x`` and ``y``. Errors are those of `vgg_features`.

    Examples:
        >>> import torch, warnings
        >>> warnings.simplefilter("ignore")
        >>> loss = LPIPSLoss("alexnet", weights=None)
        >>> x, y = torch.rand(2, 1, 3, 64, 64)
        >>> loss(x, x).item(), bool(loss(x, y) > 0)
        (0.0, True)
        >>> tuple(loss.map(x, y).shape)
        (1, 1, 64, 64)
    """

    def __init__(
        self,
        backbone: LPIPSBackbone = "vgg16",
        *,
        weights: Weights = "imagenet",
        linear: str | os.PathLike[str] | Mapping[str, Tensor] | None = "lpips",
        data_range: float | tuple[float, float] = 1.0,
        dtype: torch.dtype | None = None,
        checkpointing: bool = False,
        chunk_size: int | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        _validation.check_choice("backbone", backbone, tuple(LPIPS_LAYERS))
        # One file may hold the linear weights beside the network.
        known = weights is None or (isinstance(weights, str) and weights == "imagenet")
        network = weights if known else read("weights", weights)
        linear_weights = lpips.linear_weights(linear, network, backbone)
        extractor = Extractor(
            LPIPS_LAYERS[backbone],
            backbone=backbone,
            weights=network,
            data_range=data_range,
            dtype=dtype,
            checkpointing=checkpointing,
        )
        super().__init__(extractor, reduction, chunk_size)
        self._keep(linear_weights)

    def map(self, x: Tensor, y: Tensor | Mapping[str, Tensor]) -> Tensor:
        """The distance at each pixel. Its mean is the loss, up to the effect of resizing.

        The map of each layer is resized to the images by bilinear interpolation, as ``lpips`` does
        with ``spatial=True``, and the maps are added up.

        Args:
            x: prediction.
            y: target, or its `features`.

        Returns:
            ``(N, 1, H, W)``, or ``(N, 1, T, H, W)`` for frames.
        """
        total = torch.stack(list(self._layer_maps(x, y).values())).sum(0)
        return total.unflatten(0, (len(x), -1)).movedim(1, 2) if x.dim() == 5 else total

    def _layer_maps(self, x: Tensor, y: Tensor | Mapping[str, Tensor]) -> Features:
        """The terms of the map by layer, each frame as an image."""
        return self._in_chunks(self._maps, x, y)

    def _maps(self, x: Tensor, y: Tensor | Features) -> Features:
        a, b = self.extractor(x), self.extractor(y) if isinstance(y, Tensor) else y
        with without_autocast(x.device):
            return {
                name: functional.interpolate(
                    lpips.pixel_distances(a[name], b[name], self.constant(name)),
                    x.shape[-2:],
                    mode="bilinear",
                    align_corners=False,
                )
                for name in a
            }

    def _distance(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        return lpips.layer_distance(a, b, self.constant(name))


def _at_least_float32(feature: Tensor) -> Tensor:
    """The features in float32, or unchanged if they are float64."""
    wide: Tensor = feature.to(torch.promote_types(feature.dtype, torch.float32))
    return wide


def _gram(feature: Tensor) -> Tensor:
    """The Gram matrices ``(N, C, C)`` of features ``(N, C, H, W)``."""
    rows = feature.flatten(2)
    return rows @ rows.mT / (rows.shape[1] * rows.shape[2])
