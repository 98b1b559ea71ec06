"""The pairs of images that are compared, from photos that anyone has."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable

import numpy as np
import scipy.ndimage
import skimage.data
import torch
from PIL import Image
from torch import Tensor

PHOTOS = ("camera", "astronaut", "chelsea", "coffee")

Pairs = dict[str, tuple[Tensor, Tensor]]


def _noise(photo: np.ndarray) -> np.ndarray:
    return photo + 20 * np.random.RandomState(5).randn(*photo.shape)


def _blur(photo: np.ndarray) -> np.ndarray:
    return scipy.ndimage.gaussian_filter(photo.astype(float), (1.5, 1.5, 0)[: photo.ndim])


def _jpeg(photo: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(photo).save(file, format="JPEG", quality=20)
    return np.asarray(Image.open(file))


def _contrast(photo: np.ndarray) -> np.ndarray:
    return 40 + 0.6 * photo


DISTORTIONS = {"noise": _noise, "blur": _blur, "JPEG": _jpeg, "contrast": _contrast}


@functools.cache
def _photos() -> Pairs:
    """scikit-image's photos, each beside what a distortion makes of it, both with 8 bits."""
    pairs = {}
    for name in PHOTOS:
        photo = getattr(skimage.data, name)()
        for distortion, distort in DISTORTIONS.items():
            other = np.clip(np.round(distort(photo)), 0, 255).astype(np.uint8)
            pairs[f"{name}, {distortion}"] = (_image(other), _image(photo))
    return pairs


def _image(pixels: np.ndarray) -> Tensor:
    planes = np.atleast_3d(pixels).transpose(2, 0, 1)
    return torch.from_numpy(planes[None] / 255)


def _map(pairs: Pairs, function: Callable[[Tensor], Tensor], only: str = "") -> Pairs:
    return {
        name: (function(x), function(y)) for name, (x, y) in pairs.items() if name.startswith(only)
    }


def _cut(height: int, width: int) -> Callable[[Tensor], Tensor]:
    """A function that cuts the middle out of an image."""

    def cut(image: Tensor) -> Tensor:
        top, left = (image.shape[-2] - height) // 2, (image.shape[-1] - width) // 2
        return image[..., top : top + height, left : left + width]

    return cut


def _coloured(side: int) -> Pairs:
    crops = _map(_photos(), _cut(side, side))
    return {name: pair for name, pair in crops.items() if pair[0].shape[1] == 3}


def _batches() -> Pairs:
    """A batch for each photo, of all its distortions."""
    pairs = list(_coloured(64).values())
    return {
        photo: tuple(torch.cat(images) for images in zip(*pairs[first : first + 4], strict=True))
        for photo, first in zip(PHOTOS[1:], range(0, len(pairs), 4), strict=True)
    }


def _volumes() -> Pairs:
    """Volumes whose slices are a plane that moves over a photo."""

    def stack(image: Tensor) -> Tensor:
        slices = [image[..., 2 * i : 2 * i + 32, 3 * i : 3 * i + 36] for i in range(16)]
        return torch.stack(slices, 2)

    return _map(_photos(), stack, "camera")


IMAGES: dict[str, Callable[[], Pairs]] = {
    "photos": _photos,
    "gray photos": lambda: _map(_photos(), lambda image: image, "camera"),
    "crops": lambda: _map(_photos(), _cut(192, 192)),
    "gray crops": lambda: _map(_photos(), _cut(192, 192), "camera"),
    "odd crops": lambda: _map(_photos(), _cut(179, 213)),
    "tanh crops": lambda: _map(_photos(), lambda image: 2 * _cut(192, 192)(image) - 1),
    "negatives": lambda: {
        f"1 - {name.split(',')[0]}": (1 - y, y)
        for name, (_, y) in _map(_photos(), _cut(192, 192)).items()
        if "noise" in name
    },
    "small crops": lambda: _coloured(64),
    "noisy small crops": lambda: {
        name: pair for name, pair in _coloured(64).items() if "noise" in name
    },
    "batches": _batches,
    "tanh batches": lambda: _map(_batches(), lambda image: 2 * image - 1),
    "volumes": _volumes,
}
"""Pairs of images by name, float64: a distorted one and the original."""


def noisy_camera() -> tuple[Tensor, Tensor]:
    """scikit-image's camera, and the same with noise."""
    camera = skimage.data.camera()
    noisy = np.clip(camera + 20 * np.random.RandomState(5).randn(512, 512), 0, 255)
    return _image(camera), _image(noisy.astype(np.uint8))


def normal_noise(*shape: int) -> tuple[Tensor, Tensor]:
    """A pair of random images that MONAI's tests make."""
    torch.manual_seed(0)
    x, y = torch.randn(shape).abs(), torch.randn(shape).abs()
    return x / x.max(), y / y.max()


def ramp() -> tuple[Tensor, Tensor]:
    """The ramp of TensorFlow's ``testNegative``, and its mirror image."""
    steps = torch.arange(0, 256, 16, dtype=torch.uint8).expand(1, 1, 16, 16)
    return steps, steps.flip(-1)
