"""Numbers that others have printed, with inputs that can be made again."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from .images import noisy_camera, normal_noise


class Published(NamedTuple):
    """A number that somebody has printed, with an input that can be made again.

    Attributes:
        source: the publisher.
        images: the images that it was computed for.
        value: the number as it is printed.
        tolerance: the one that the source itself compares with, or half of its last digit.
        ours: an expression of ``x`` and ``y``.
        pair: a function that makes both images.
    """

    source: str
    images: str
    value: float
    tolerance: float
    ours: str
    pair: Callable[[], tuple[Tensor, Tensor]]


PUBLISHED = (
    Published(
        "IPOL's imdiff, as scikit-image's test suite has it",
        "camera, noise of RandomState(5)",
        *(0.357959091663361, 1.5e-3, "ssim(x, y).item()", noisy_camera),
    ),
    Published(
        *("MONAI's tests, first image", "normal noise, 16x16", 0.9121, 1e-4 * 0.9121),
        *('SSIMLoss(reduction="none")(x, y)[0].item()', lambda: normal_noise(2, 3, 16, 16)),
    ),
    Published(
        *("MONAI's tests, second image", "normal noise, 16x16", 0.9971, 1e-4 * 0.9971),
        *('SSIMLoss(reduction="none")(x, y)[1].item()', lambda: normal_noise(2, 3, 16, 16)),
    ),
    Published(
        *("MONAI's tests", "normal noise, 16x16", 0.045415, 1e-6, "ssim(x, y).item()"),
        lambda: normal_noise(2, 3, 16, 16),
    ),
    Published(
        *("MONAI's tests", "normal noise, 16x16x16", 0.017644, 1e-6, "ssim(x, y).item()"),
        lambda: normal_noise(2, 3, 16, 16, 16),
    ),
    Published(
        *("MONAI's tests", "normal noise, 64x64", 0.023176, 5e-5),
        *(
            'ms_ssim(x, y, weights=[0.5, 0.5], normalize="relu").item()',
            lambda: normal_noise(1, 1, 64, 64),
        ),
    ),
    Published(
        *("MONAI's tests", "normal noise, 64x64x64", 0.061796, 5e-5),
        *(
            'ms_ssim(x, y, weights=[0.5, 0.5], normalize="relu").item()',
            lambda: normal_noise(1, 1, 64, 64, 64),
        ),
    ),
)
