"""Patches of the photos that come in scikit-image's wheel, so that nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from skimage import color, data, transform
from torch import Tensor
from torch.utils.data import Dataset

PATCH_SIZE = 64

SHORT_SIDES = (256, 224, 192, 160, 128)
"""Each photo is scaled to these: a patch then shows a detail of it, or a good part."""

Photo = Callable[[], Any]

TRAINING_PHOTOS: dict[str, Photo] = {
    "astronaut": data.astronaut,
    "brick": data.brick,
    "camera": data.camera,
    "coins": data.coins,
    "grass": data.grass,
    "gravel": data.gravel,
    "hubble": data.hubble_deep_field,
    "moon": data.moon,
    "motorcycle": lambda: data.stereo_motorcycle()[0],
    "retina": data.retina,
    "rocket": data.rocket,
    "tissue": data.immunohistochemistry,
}

HELD_OUT_PHOTOS: dict[str, Photo] = {"chelsea": data.chelsea, "coffee": data.coffee}


class Mirrored(Dataset[Tensor]):
    """Images ``(N, C, H, W)``, each followed by its mirror image."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return 2 * len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        image = self.images[index // 2]
        return image.flip(-1) if index % 2 else image


def training_patches() -> Mirrored:
    """Overlapping patches ``(3, 64, 64)`` with values in [0, 1], and their mirror images."""
    return Mirrored(cut(TRAINING_PHOTOS.values(), stride=24))


def held_out_patches() -> Tensor:
    """Patches ``(N, 3, 64, 64)`` that do not overlap, of photos that are never trained on."""
    return cut(HELD_OUT_PHOTOS.values(), stride=PATCH_SIZE)


def cut(photos: Iterable[Photo], *, stride: int) -> Tensor:
    """The patches ``(N, 3, 64, 64)`` of each photo at each scale, ``stride`` pixels apart."""
    patches = []
    for photo in photos:
        image = photo()
        if image.ndim == 2:
            image = color.gray2rgb(image)
        height, width, _ = image.shape
        for short_side in SHORT_SIDES:
            scale = short_side / min(height, width)
            size = round(scale * height), round(scale * width)
            # `resize` also takes the integers to [0, 1].
            scaled = torch.from_numpy(transform.resize(image, size, anti_aliasing=True)).float()
            grid = scaled.unfold(0, PATCH_SIZE, stride).unfold(1, PATCH_SIZE, stride)
            patches.append(grid.flatten(0, 1))
    return torch.cat(patches)
