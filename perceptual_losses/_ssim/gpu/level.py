"""The computation of one level of the pyramid, and the places of all that it reads and writes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..backend import Auxiliary, Layout
from ..request import Definition
from .launch import Allocation, Buffer, Counter, Image


@functools.cache
def load_kernels() -> Any:
    """The kernels; importing them imports Triton, which not every system has."""
    from . import kernels

    return kernels


class Total(NamedTuple):
    """The result that the last program of a launch makes of the sums of all.

    Attributes:
        in_kernel: whether it adds them up; if not, the rest has no meaning.
        loss: whether the result is 1 minus the mean.
        totals: the kernels' ``totals``.
        result: the place of the result.
        arrived: the place of the integer that counts the programs.
    """

    in_kernel: bool
    loss: bool
    totals: Any
    result: Buffer
    arrived: Buffer


def no_total(name: str) -> Total:
    """A total that nobody reads: arguments that are no other case for the compiler."""
    return Total(False, False, load_kernels().Totals(*[0.0] * 5), Buffer(name), Buffer(name))


class Beside(NamedTuple):
    """The places of the tensors beside a level's images, or ``None``.

    Attributes:
        ranges: ranges of the images.
        weight: weights of the map's values.
        valid: pixels that exist.
        coverage: reciprocals of the windows' weights over valid pixels.
    """

    ranges: Buffer | None
    weight: Image | None
    valid: Image | None
    coverage: Image | None

    @property
    def images(self) -> tuple[Image | None, ...]:
        """All but the ranges."""
        return self.weight, self.valid, self.coverage


class Level(NamedTuple):
    """The computation of a level, and the places of all that it reads and writes.

    Attributes:
        number: number of the level.
        images: both images.
        beside: the tensors beside the images.
        gradients: as many gradients as are requested.
        sums: the place of the first program's sum.
        abs_difference_sums: the place of the first sum of |x - y|, or ``None``.
        pitch: values from a plane's first sum to the next one's.
        weight_total: sum of a plane's weights, or 0 where sums are added up later.
        gradient_scale: share of each of the map's values in the result.
        abs_difference_scale: share of each pixel's |x - y| in the result of a mix, or ``None``.
        contrast_only: whether the map is the contrast-structure factor: the luminance of the
            formulas is 1 with an infinite ``c1``.
        total: the result that its launch makes of all sums.
        allocations: memory that its first launch allocates beside its own.
        frees: names of tensors that nothing needs after it.
        is_map: whether the result is the map, "map", and not sums.
    """

    number: int
    images: list[Image]
    beside: Beside
    gradients: list[Image]
    sums: Buffer
    abs_difference_sums: Buffer | None
    pitch: int
    weight_total: float
    gradient_scale: float
    abs_difference_scale: float | None
    contrast_only: bool
    total: Total
    allocations: tuple[Allocation | Counter, ...]
    frees: tuple[str, ...]
    is_map: bool = False

    @property
    def arguments(self) -> tuple[Image, Image, Image, Image]:
        """Both images and both gradients; where there are none, arguments that are no other case
        for the compiler.
        """
        x, y = self.images
        gradients = self.gradients or [x]
        return x, y, gradients[0], gradients[-1]

    @property
    def dense(self) -> bool:
        """Whether neighbouring columns are one access, in the images and in the gradients."""
        return all(image.dense for image in (*self.images, *self.gradients))


def window_size(settings: Definition) -> tuple[int, int]:
    """The rows and the columns of a window."""
    *_, down, across = map(len, settings.windows)
    return down, across


def map_shape(shape: Sequence[int], settings: Definition) -> tuple[int, ...]:
    """The shape of the map of images of this shape."""
    sides = shape[2:]
    if settings.padding == "valid":
        windows = settings.windows
        sides = [side - len(window) + 1 for side, window in zip(sides, windows, strict=True)]
    return (*shape[:2], *sides)


def beside(j: int, auxiliary: Auxiliary) -> Beside:
    """The places of the tensors beside a level's images."""
    weight, valid, coverage = (
        _of_all_channels(f"{field}{j}", layouts[j]) if layouts else None
        for field, layouts in (
            *(("weights", auxiliary.weights), ("valid", auxiliary.valid)),
            ("coverage", auxiliary.coverage),
        )
    )
    return Beside(Buffer("ranges0") if auxiliary.ranges else None, weight, valid, coverage)


def _of_all_channels(name: str, layout: Layout) -> Image:
    """The place of a tensor whose channel is that of all of the images'."""
    n, _, *others = layout.strides
    return Image(Buffer(name), layout.shape, (n, 0, *others))
