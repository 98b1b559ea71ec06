"""The cases that are measured: a metric, a size, with or without the gradient."""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from perceptual_losses.similarity import MS_SSIM_WEIGHTS

THREE_WEIGHTS = tuple(weight / sum(MS_SSIM_WEIGHTS[:3]) for weight in MS_SSIM_WEIGHTS[:3])
"""For images in which five levels do not fit. They sum to one: piq scales any weights so."""


_UNIFORM = {"window": "uniform", "window_size": 7}
_SAMPLE = {**_UNIFORM, "sample_covariance": True}
DEFINITIONS: dict[str, dict[str, Any]] = {
    "SSIM-uniform": _UNIFORM,
    "SSIM-sample": _SAMPLE,
    "SSIM-ranges": _SAMPLE,
    "SSIM-valid": {},
    "SSIM-map": {},
    "SSIM-uint8": {**_SAMPLE, "data_range": 255},
    "SSIM-options": {},
}
"""Definitions beside the paper's, as our options: a uniform window, the same with the sample
covariance (scikit-image's default), with a range for each image too (fastMRI's), valid pixels, the
mean of a map that the caller reduces, and images of bytes. ``"SSIM-options"`` is the paper's. Our
plain call runs beside our calls with one option each."""

HOLES = 0.3
"""The share of pixels that do not exist in ``"SSIM-valid"``, in squares of 8x8."""


class Case(NamedTuple):
    """One comparison.

    Attributes:
        metric: ``"SSIM"``, ``"MS-SSIM"``, ``"L1-SSIM"`` for the loss that Gaussian splatting mixes
            of both, one of `DEFINITIONS`, ``"VGG"``, ``"LPIPS"``, or that with another network.
        shape: the shape of both images.
        backward: whether the gradient with respect to the first image is computed too.
        weights: of the levels of MS-SSIM; ``None`` for the paper's five.
    """

    metric: str
    shape: tuple[int, ...]
    backward: bool
    weights: tuple[float, ...] | None = None

    @property
    def size(self) -> str:
        """The shape as people write it."""
        return "x".join(map(str, self.shape))

    @property
    def name(self) -> str:
        """A unique name, which ``--cases`` searches."""
        return f"{self.metric} {self.size} forward{'+backward' * self.backward}"

    @property
    def pixels(self) -> int:
        """Values in one image, each channel counted."""
        return math.prod(self.shape)

    @property
    def odd_levels(self) -> bool:
        """Whether halving meets an odd side, where packages differ."""
        if self.metric != "MS-SSIM":
            return False
        halvings = len(self.weights or MS_SSIM_WEIGHTS) - 1
        return any(side % 2**halvings for side in self.shape[2:])


def images(shape: tuple[int, ...], device: str) -> tuple[Tensor, Tensor]:
    """A smooth random image with noise, and the same image without it, alike in every call.

    Values are in [0, 1], which some packages insist on, and no level's mean is near zero, where
    packages treat MS-SSIM differently.
    """
    # They are made on the device itself: a processor takes seconds for the largest.
    options: dict[str, Any] = {
        "generator": torch.Generator(device).manual_seed(0),
        "device": device,
    }
    coarse = torch.rand(*shape[:2], *(max(2, side // 8) for side in shape[2:]), **options)
    mode = "bilinear" if len(shape) == 4 else "trilinear"
    y = 0.05 + 0.9 * interpolate(coarse, size=shape[2:], mode=mode)
    noise = torch.rand(shape, **options) - 0.5
    return (y + 0.2 * noise).clamp(0, 1), y


def inputs(case: Case, device: str) -> tuple[Tensor, Tensor]:
    """The images of a case: those of its shape, or their bytes as floats."""
    x, y = images(case.shape, device)
    return ((255 * x).round(), (255 * y).round()) if case.metric == "SSIM-uint8" else (x, y)


def ranges(case: Case, device: str) -> Tensor:
    """The range of each image, ``(N,)``: different ones in ``"SSIM-ranges"``, else 1."""
    if case.metric == "SSIM-ranges":
        return torch.linspace(0.7, 1, case.shape[0], device=device)
    return torch.ones(case.shape[0], device=device)


def valid_pixels(case: Case, device: str) -> Tensor:
    """The pixels that exist, ``(N, 1, H, W)``."""
    size, (height, width) = 8, case.shape[2:]
    squares = (case.shape[0], 1, -(-height // size), -(-width // size))
    exists = torch.rand(squares, generator=torch.Generator().manual_seed(1)) >= HOLES
    exists = exists.repeat_interleave(size, 2).repeat_interleave(size, 3)
    return exists[..., :height, :width].contiguous().to(device)


IMAGES = {
    "cpu": ((64, 3, 64, 64), (16, 3, 256, 256), (1, 3, 1080, 1920), (1, 1, 4320, 7680)),
    "cuda": (
        *((64, 3, 64, 64), (8, 3, 256, 256), (1, 3, 512, 512)),
        *((1, 3, 1080, 1920), (8, 3, 1080, 1920), (1, 3, 2160, 3840)),
    ),
}
DEFINITION_IMAGES = {
    "cpu": ((16, 3, 256, 256), (1, 3, 1080, 1920), (8, 1, 320, 320)),
    "cuda": ((8, 3, 256, 256), (8, 3, 1080, 1920), (8, 1, 320, 320)),
}
"""The sizes for `DEFINITIONS`: two of `IMAGES`, and eight medical slices."""
MIXES = ((64, 3, 64, 64), (1, 3, 1080, 1920))
VOLUMES = {
    "cpu": ((1, 1, 32, 64, 64), (1, 1, 64, 128, 128), (4, 1, 128, 128, 128)),
    "cuda": (
        *((1, 1, 32, 64, 64), (1, 1, 64, 128, 128)),
        *((4, 1, 128, 128, 128), (1, 1, 256, 256, 256)),
    ),
}


def _cases(device: str) -> tuple[Case, ...]:
    shapes = IMAGES[device]
    return (
        *itertools.starmap(Case, itertools.product(["SSIM"], shapes, [False, True])),
        *(
            Case("MS-SSIM", shape, backward, THREE_WEIGHTS if min(shape[2:]) < 161 else None)
            for shape, backward in itertools.product(shapes, [False, True])
        ),
        *(Case("L1-SSIM", shape, backward=True) for shape in MIXES),
        *itertools.starmap(Case, itertools.product(["SSIM"], VOLUMES[device], [False, True])),
        *(
            Case("MS-SSIM", VOLUMES[device][1], backward, THREE_WEIGHTS)
            for backward in (False, True)
        ),
        Case("VGG", (4, 3, 224, 224), backward=True),
        *(
            Case(metric, (4, 3, 224, 224), backward=True)
            for metric in ("LPIPS", "LPIPS-AlexNet", "LPIPS-SqueezeNet")
        ),
        *(
            Case(metric, shape, backward)
            for metric, shape, backward in itertools.product(
                DEFINITIONS, DEFINITION_IMAGES[device], [False, True]
            )
            # Bytes have no gradient.
            if not (backward and metric == "SSIM-uint8")
        ),
    )


CASES = {device: _cases(device) for device in IMAGES}
"""The cases for each kind of device."""
