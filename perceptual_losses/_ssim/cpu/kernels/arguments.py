"""Arguments of the kernels: paddings as numbers, and tuples with named fields."""

from typing import Any, NamedTuple

VALID, ZEROS, SYMMETRIC = 0, 1, 2


class Image(NamedTuple):
    """A tensor ``(N, C, H, W)`` or ``(N, C, D, H, W)`` with any strides.

    Attributes:
        flat: its memory, from the first pixel to the last.
        starts: the place of the first pixel of each plane, a volume's slices in turn.
        row: the step to the next row.
        column: the step to the next column.
    """

    flat: Any
    starts: Any
    row: int
    column: int


class Window(NamedTuple):
    """The separable window along one axis.

    Attributes:
        extent: a tuple as long as the window; loops over its length are unrolled.
        taps: the weight of each pixel under the window.
    """

    extent: tuple[int, ...]
    taps: Any


class Constants(NamedTuple):
    """The constants of the formulas, in the kernel's dtype.

    Attributes:
        low: the pixel value that counts as zero.
        length: ``L``.
        c1: ``(k1 L)^2``.
        c2: ``(k2 L)^2``, for population covariances.
        gradient_scale: the factor of all gradients that are written.
        least: a window whose weight over valid pixels is not above this counts as having none.
    """

    low: Any
    length: Any
    c1: Any
    c2: Any
    gradient_scale: Any
    least: Any


class Variant(NamedTuple):
    """The choices between the kernel's branches.

    Attributes:
        padding: `VALID`, `ZEROS` or `SYMMETRIC`.
        contrast: whether the mean is that of the contrast-structure factor, not of SSIM.
        both: whether SSIM is summed too, beside the contrast-structure factor; only without
            gradients.
        gradients: the number of gradients: 0, 1 (for the first image) or 2.
    """

    padding: int
    contrast: bool
    both: bool
    gradients: int
