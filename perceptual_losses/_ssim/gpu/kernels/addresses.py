"""Places of programs, rows and columns, and their addresses in images."""

# Constants of a compilation are in capitals.
# ruff: noqa: N803

import triton
import triton.language as tl

from .arguments import SYMMETRIC, VALID, Constants, Image, Maps


@triton.jit
def tile_of(program, strips, bands):
    """The strip, the band and the plane of a program."""
    return program % strips, program // strips % bands, program // strips // bands


@triton.jit
def segment(program, line, end, rows, height, strips):
    """The rows of a program, from ``line`` to before ``end``, that lie in the strip of ``line``.

    The rows of all strips are numbered, one strip after the other. Each program has ``rows`` of
    them, so that all take the same time.

    Returns:
        The strip, its plane, the program's first row there, the row after its last, and the
        program's number among those in the strip.
    """
    column = line // height
    top = line - column * height
    bottom = tl.minimum(top + end - line, height)
    part = program - column * height // rows
    place = column % strips, column // strips
    return place[0].to(tl.int32), place[1].to(tl.int32), top.to(tl.int32), bottom.to(tl.int32), part


@triton.jit
def width_hint(width, K: tl.constexpr):
    """The width. If it is a multiple of a thread's columns, its form shows that to the compiler."""
    return width // K.COLUMNS * K.COLUMNS if K.ALIGNED_WIDTH else width


@triton.jit
def plane_of(image, plane, channels):
    """The images or volumes from one channel on: number ``plane`` of all N C channels."""
    n, c = plane // channels, plane % channels
    strides = image.strides
    return Image(image.address + n.to(tl.int64) * strides[0] + c.to(tl.int64) * strides[1], strides)


@triton.jit
def slice_of(volume, z):
    """A plane of a volume, as an image."""
    strides = volume.strides
    address = volume.address + z.to(tl.int64) * strides[2]
    return Image(address, (strides[0], strides[1], strides[3], strides[4]))


@triton.jit
def plane_at(image, plane, z, channels):
    """The result of `plane_of` for an image, or plane ``z`` of a volume as an image."""
    image = plane_of(image, plane, channels)
    if len(image.strides) == 5:
        image = slice_of(image, z)
    return image


@triton.jit
def auxiliary_of(auxiliary, strides, plane, channels, K: tl.constexpr):
    """The weights of a plane's map, its valid pixels and their coverage, each an image or nothing.

    Args:
        auxiliary: addresses of the images' ranges, the weights, the valid pixels and the coverage.
        strides: strides of the last three.
        plane: number of the plane.
        channels: channels of an image.
        K: variant of the kernel.
    """
    weight, valid, coverage = (), (), ()
    if K.WEIGHTED:
        weight = plane_of(Image(auxiliary[1], strides[0]), plane, channels)
    if K.PARTIAL:
        valid = plane_of(Image(auxiliary[2], strides[1]), plane, channels)
        coverage = plane_of(Image(auxiliary[3], strides[2]), plane, channels)
    return weight, valid, coverage


@triton.jit
def constants_of(constants, auxiliary, plane, channels, K: tl.constexpr):
    """The constants of the formulas for a plane, whose image may have a range of its own."""
    if K.RANGED:
        length = tl.load(auxiliary[0] + plane // channels)
        c1, c2 = constants.c1 * length * length, constants.c2 * length * length
        constants = Constants(constants.root, constants.low, length, c1, c2)
    return constants


@triton.jit
def mirrored(index, size):
    """The index of the pixel that a position shows, in the image or mirrored at its edge."""
    index = tl.maximum(index, -1 - index)
    index = tl.minimum(index, 2 * size - 1 - index)
    # Where the image is smaller than the window, the mirror image of a mirror image.
    index = tl.maximum(index, -1 - index)
    return tl.minimum(index, size - 1)


@triton.jit
def row_address(image, row, height, K: tl.constexpr):
    """The address of the row that a position shows, outside the image if the position is."""
    if K.PADDING == SYMMETRIC:
        row = mirrored(row, height)
    return image.address + row.to(tl.int64) * image.strides[2]


@triton.jit
def next_row_address(image, address, row, height, K: tl.constexpr):
    """`row_address` of ``row``, where ``address`` is that of the row before."""
    if K.PADDING == SYMMETRIC:
        address = row_address(image, row, height, K)
    else:
        address += image.strides[2]
    return address


@triton.jit
def tile_columns(left, COLUMNS: tl.constexpr, K: tl.constexpr):
    """The columns of each thread, from ``left`` on, and those of the halo.

    The halo is the columns to the right of the tile that its windows cover.
    """
    own = tl.arange(0, K.LANES)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    halo = K.LANES * COLUMNS + tl.arange(0, triton.next_power_of_2(max(K.ACROSS - 1, 2)))
    return left + own, left + halo


@triton.constexpr_function
def map_begin(taps, padding):
    """Pixels before an image that the first window of its map covers, if it has ``taps``."""
    return 0 if padding == VALID.value else taps // 2


@triton.jit
def map_address(maps, plane, k):
    """The address of map ``k`` of a plane."""
    return maps.address + (plane.to(tl.int64) * maps.count + k) * maps.size


@triton.jit
def in_fours(maps):
    """Maps whose rows are multiples of 4 values, in a form that shows it to the compiler."""
    return Maps(maps.address, maps.pitch // 4 * 4, maps.size // 4 * 4, maps.count)


@triton.jit
def is_inside(row, column, size):
    """Whether a position is in the image."""
    return ((column >= 0) & (column < size[1])) & ((row >= 0) & (row < size[0]))
