"""Arguments of the kernels, and the groups of values that their helpers pass on."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

VALID = tl.constexpr(0)
ZEROS = tl.constexpr(1)
SYMMETRIC = tl.constexpr(2)

FLOOR = tl.constexpr(0)
RELU = tl.constexpr(1)
SIMPLE = tl.constexpr(2)
PLAIN = tl.constexpr(3)

# Columns of one access in half precision.
COLUMNS_PER_ACCESS = tl.constexpr(8)


class Image(NamedTuple):
    """An image in memory.

    Attributes:
        address: address of its first pixel; in a kernel, of the first pixel of a plane.
        strides: strides of ``(N, C, H, W)``, or of ``(N, C, D, H, W)``.
    """

    address: Any
    strides: Any


class Window(NamedTuple):
    """The first half of the taps, which the other half mirrors.

    Attributes:
        across: taps for the sums along rows, the last one being 1.
        down: taps for the sums along columns, one of them being 1. Pixels are multiplied by the
            square root of the product of both units.
    """

    across: Any
    down: Any


class Constants(NamedTuple):
    """Numbers of the formulas.

    Attributes:
        root: the window's root, by which pixels are multiplied.
        low: the pixel value that counts as zero.
        length: L, the range of the pixels.
        c1: C1, infinite where the luminance is left out.
        c2: C2.
    """

    root: Any
    low: Any
    length: Any
    c1: Any
    c2: Any


class Maps(NamedTuple):
    """Maps in memory, of derivatives or of S.

    Attributes:
        address: address of the first value.
        pitch: values from one row to the next.
        size: values from one map of a plane to the next.
        count: number of the maps of a plane.
    """

    address: Any
    pitch: Any
    size: Any
    count: Any


class Totals(NamedTuple):
    """Numbers that turn the sums of all tiles into the result.

    Attributes:
        tiles: number of the tiles.
        weights: sum of all weights.
        pixels: number of all pixels.
        structural: factor of the loss in a mix.
        l1: factor of the mean of |x - y| in a mix.
    """

    tiles: Any
    weights: Any
    pixels: Any
    structural: Any
    l1: Any


class Variant(NamedTuple):
    """The case that a kernel is compiled for.

    Attributes:
        LANES: threads of a program.
        COLUMNS: neighbouring columns of a thread.
        ROWS_PER_ITERATION: rows in one iteration of the loop over the rows.
        STORE_AFTER_READ: whether a row of pixels is stored after other rows are read, or before.
        ALIGNED_WIDTH: whether the width is a multiple of ``COLUMNS``.
        DENSE: whether a thread's columns are one aligned access.
        DOWN: rows of the window.
        ACROSS: columns of the window.
        PITCH: values from one row of scratch memory to the next.
        PADDING: `VALID`, `ZEROS` or `SYMMETRIC`.
        GRADIENTS: 0 for none, 1 for the gradient to the first image, 2 for those to both.
        MAP: whether the result is the map, and not sums.
        WEIGHTED: whether each value of the map has a weight: that of a weighted mean, or the
            upstream gradient of the map.
        PARTIAL: whether some pixels do not exist.
        RANGED: whether each image has a range of its own. L, C1 and C2 are in units of it then.
        ABS_DIFFERENCE: whether |x - y| is summed too.
        MIXED: whether |x - y| is in the gradients.
        SHARED: whether there is shared memory.
        SUM_IN_KERNEL: whether the last program adds up the sums of all.
        LOSS: whether the result is 1 minus the mean.
        FAST_RECIPROCAL: whether a reciprocal is one instruction of PTX.
    """

    LANES: int
    COLUMNS: int
    ROWS_PER_ITERATION: int
    STORE_AFTER_READ: bool
    ALIGNED_WIDTH: bool
    DENSE: bool
    DOWN: int
    ACROSS: int
    PITCH: int
    PADDING: int
    GRADIENTS: int
    MAP: bool
    WEIGHTED: bool
    PARTIAL: bool
    RANGED: bool
    ABS_DIFFERENCE: bool
    MIXED: bool
    SHARED: bool
    SUM_IN_KERNEL: bool
    LOSS: bool
    FAST_RECIPROCAL: bool

    @classmethod
    def of(cls, **values: Any) -> "Variant":
        """The variant of these values, each of which is a constant of the compilation."""
        constant = (lambda value: value) if triton.knobs.runtime.interpret else tl.constexpr
        return cls(**{name: constant(value) for name, value in values.items()})


class Offsets(NamedTuple):
    """Values near those of most pixels of a region, which are subtracted from all.

    Attributes:
        d: offset of the difference.
        t: offset of the total.
        bias: number that is added to a pixel times the window's root; ``t`` follows from it
            exactly.
    """

    d: Any
    t: Any
    bias: Any


class Region(NamedTuple):
    """The part of a plane that a program computes, and all that its formulas need of it.

    Attributes:
        x: first image of the plane.
        y: second image of the plane.
        weight: weights of the map, or nothing.
        valid: pixels that exist, or nothing.
        coverage: reciprocals of the windows' weights over valid pixels, or nothing.
        size: height and width of the images.
        map_size: height and width of the map.
        centre: rows and columns from a position of the map to the centre of its window.
        offsets: local offsets.
        constants: numbers of the formulas.
    """

    x: Any
    y: Any
    weight: Any
    valid: Any
    coverage: Any
    size: Any
    map_size: Any
    centre: Any
    offsets: Any
    constants: Any


class Row(NamedTuple):
    """A row of both images that has been loaded.

    Attributes:
        x_address: address of the row in the first image.
        y_address: address of the row in the second image.
        x: pixels of the first image: those of each thread, and those of the halo.
        y: pixels of the second image alike.
    """

    x_address: Any
    y_address: Any
    x: Any
    y: Any
