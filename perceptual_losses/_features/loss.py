"""The common part of all losses on features: the checks, the frames, the chunks and the sum."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import _validation
from .._runtime import shards
from .backbone import FeatureExtractor, as_images, checkpointed, without_autocast
from .frozen import Frozen

Features = dict[str, Tensor]
Comparison = Callable[[Tensor, Tensor | Features], Features]


class ExtractorLoss(Frozen):
    """A weighted sum of distances between the features of two batches, for each image."""

    layers: dict[str, float] | None = None
    """Weights of the layers' distances, which may change between calls, or ``None`` for 1 each."""

    def __init__(self, extractor: FeatureExtractor, reduction: str, chunk_size: int | None) -> None:
        super().__init__()
        _validation.check_choice("reduction", reduction, _validation.REDUCTIONS)
        self.extractor, self.reduction, self.chunk_size = extractor, reduction, chunk_size
        self._check_chunk_size()

    if TYPE_CHECKING:
        # nn.Module types its own `__call__` as taking and returning anything.
        def __call__(self, x: Tensor, y: Tensor | Mapping[str, Tensor]) -> Tensor: ...

    def load(self) -> None:
        """Fetches ImageNet's weights now, if they are to be used; otherwise the first call does."""
        self.extractor.load()

    def features(self, y: Tensor) -> Features:
        """The features of one batch that the loss compares; each frame is an image of its own.

        Compute them once for a target, and pass them as ``y`` in each comparison with it.
        """
        self._check_chunk_size()
        self.extractor.check_images("y", y)
        images = as_images(y)
        parts = [
            self._representation(self.extractor(part))
            for part in images.split(self.chunk_size or len(images))
        ]
        return parts[0] if len(parts) == 1 else _joined(parts)

    def layer_distances(self, x: Tensor, y: Tensor | Mapping[str, Tensor]) -> Features:
        """The terms of the sum: each layer's weighted distances ``(N,)``, for frames ``(N, T)``.

        Args:
            x: prediction.
            y: target, or its `features`.
        """
        found = self._in_chunks(self._distances, x, y)
        if x.dim() == 5:
            found = {name: value.reshape(len(x), -1) for name, value in found.items()}
        return found

    def forward(self, x: Tensor, y: Tensor | Mapping[str, Tensor]) -> Tensor:
        """The loss: the weighted sum of the distances of all layers, and its mean over images.

        Args:
            x: prediction, ``(N, 3, H, W)`` or ``(N, 1, H, W)``, or frames ``(N, C, T, H, W)``.
            y: target, or its `features`. The shape is that of ``x``; for `StyleLoss` the size may
                differ.

        Returns:
            A scalar, or ``(N,)`` with ``reduction="none"``, which is ``(N, T)`` for frames. It is 0
            for identical images. Gradients flow to ``x`` and ``y``.
        """
        _validation.check_choice("reduction", self.reduction, _validation.REDUCTIONS)
        if shards.is_distributed(x) or shards.is_distributed(y):
            (values,) = shards.evaluate_shards(
                lambda *local: [self._per_image(*local)], self.reduction, x=x, y=y
            )
            return values
        per_image = self._per_image(x, y)
        return per_image.mean() if self.reduction == "mean" else per_image

    def _per_image(self, x: Tensor, y: Tensor | Mapping[str, Tensor]) -> Tensor:
        """The loss of each image, ``(N,)``, or of each frame, ``(N, T)``."""
        distances = list(self.layer_distances(x, y).values())
        with without_autocast(x.device):
            return torch.stack(distances).sum(0)

    def _in_chunks(
        self, compare: Comparison, x: Tensor, y: Tensor | Mapping[str, Tensor]
    ) -> Features:
        """The comparison of a batch after all checks, ``chunk_size`` images at a time."""
        target = self._checked_target(x, y)
        images = as_images(x)
        if isinstance(target, Tensor):
            target = as_images(target)
            if len(target) != len(images):
                # There is one target for all images, whose features are computed only once.
                target = self.features(target)
        size = self.chunk_size or len(images)
        if size >= len(images):
            return compare(images, target)
        parts = []
        for begin in range(0, len(images), size):
            chunk = slice(begin, begin + size)
            if isinstance(target, Tensor):
                part: Tensor | Features = target[chunk]
            else:
                whole = {name: len(value) == len(images) for name, value in target.items()}
                part = {name: v[chunk] if whole[name] else v for name, v in target.items()}
            kept = [images, *([part] if isinstance(part, Tensor) else part.values())]
            if torch.is_grad_enabled() and any(value.requires_grad for value in kept):
                # Only one chunk's activations are in memory: the backward computes them again.
                parts.append(checkpointed(compare, images[chunk], part))
            else:
                parts.append(compare(images[chunk], part))
        return _joined(parts)

    def _distances(self, x: Tensor, y: Tensor | Features) -> Features:
        """Each layer's weighted distances of images from images or their features."""
        target = self._representation(self.extractor(y)) if isinstance(y, Tensor) else y
        prediction = self._representation(self.extractor(x))
        with without_autocast(x.device):
            return {name: self._distance(name, a, target[name]) for name, a in prediction.items()}

    def _checked_target(self, x: Tensor, y: Tensor | Mapping[str, Tensor]) -> Tensor | Features:
        """The target, after all checks."""
        self._check_chunk_size()
        names = self.extractor.layers
        if self.layers is not None and self.layers.keys() != set(names):
            raise ValueError(
                f"layers={self.layers}, and the loss was made for {list(names)}: keep a weight for "
                "each of these, which may be 0, or make another loss"
            )
        self.extractor.check_images("x", x)
        if isinstance(y, Mapping):
            return self._check_features(x, y)
        if isinstance(y, Tensor) and y.device != x.device:
            raise ValueError(f"x is on {x.device} and y on {y.device}: pass both on one device")
        self.extractor.check_images("y", y)
        self._check_shapes(x, y)
        return y

    def _check_features(self, x: Tensor, y: Mapping[str, Tensor]) -> Features:
        """A target's `features`; refuses those that don't belong to images like ``x``."""
        if list(y) != list(self.extractor.layers):
            raise ValueError(
                f"y has features of {list(y)} and the loss compares "
                f"{list(self.extractor.layers)}: pass what this loss's .features() gives"
            )
        for name, feature in y.items():
            _validation.check_plain_tensor(f"y[{name!r}]", feature)
            if feature.device != x.device:
                raise ValueError(
                    f"x is on {x.device} and y[{name!r}] on {feature.device}: pass both on one "
                    "device"
                )
        # Networks that are no record of layers tell only the number of images.
        shapes = self._shapes(x) or {name: (len(as_images(x)), *y[name].shape[1:]) for name in y}
        for name, shape in shapes.items():
            if tuple(y[name].shape) not in self._accepted(shape):
                raise ValueError(
                    f"the features {name} of x have shape {shape} and those of y "
                    f"{tuple(y[name].shape)}: pass images of equal shapes; nothing is broadcast"
                )
        return dict(y)

    def _check_shapes(self, x: Tensor, y: Tensor) -> None:
        """Refuses images that ``x`` can't be compared with."""
        if x.shape != y.shape:
            raise ValueError(
                f"x has shape {tuple(x.shape)} and y {tuple(y.shape)}: pass equal shapes; nothing "
                "is broadcast"
            )

    def _shapes(self, x: Tensor) -> dict[str, tuple[int, ...]]:
        """The shapes of `features` of images like ``x``, by layer."""
        return self.extractor.shapes(x)

    def _accepted(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """The shapes that a target's features may have, where those of ``x`` have ``shape``."""
        return (shape,)

    def _check_chunk_size(self) -> None:
        size = self.chunk_size
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise ValueError(
                f"chunk_size={size!r}: pass the number of images that go through the network at a "
                "time, 1 or more, or None for all"
            )

    def _representation(self, features: Features) -> Features:
        """The tensors that are compared, made from a network's features."""
        return features

    def _distance(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        """The layer's weighted distance for each image."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"chunk_size={self.chunk_size}, reduction={self.reduction!r}"


def _joined(parts: list[Features]) -> Features:
    """The features or distances of several chunks as those of one batch."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
