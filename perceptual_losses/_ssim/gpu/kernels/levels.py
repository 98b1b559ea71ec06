"""Kernels for MS-SSIM's levels: the images at half the size, and all coarser levels in one
launch.
"""

# Constants of a compilation are in capitals, and tuples grow by sums, which Triton compiles.
# ruff: noqa: N803, N806, RUF005

import triton
import triton.language as tl

from .addresses import map_begin, plane_at, tile_of
from .arguments import COLUMNS_PER_ACCESS, Constants, Image, Maps
from .value import columns_before, value_kernel
from .value_and_gradient import fused_kernel


@triton.jit
def _load_tile(image, plane, z, at, inside, channels):
    """Pixels of an image, or of plane ``z`` of a volume, at rows and columns."""
    image = plane_at(image, plane, z, channels)
    address = image.address + at[0] * image.strides[2] + at[1] * image.strides[3]
    return tl.load(address, mask=inside, other=0).to(tl.float32)


@triton.jit
def _load_pair(x, y, valid, plane, z, at, inside, channels):
    """`_load_tile` of both images, zero where not valid; and where they are, as a number."""
    a = _load_tile(x, plane, z, at, inside, channels)
    b = _load_tile(y, plane, z, at, inside, channels)
    exists = tl.full(inside.shape, 1.0, tl.float32)
    if len(valid) > 0:
        exists = _load_tile(Image(valid[0], valid[1]), plane, z, at, inside, channels)
        a, b = tl.where(exists > 0, a, 0.0), tl.where(exists > 0, b, 0.0)
    return a, b, exists


@triton.jit(do_not_specialize=["strips", "bands", "depth", "channels", "height", "width"])
def downsample_kernel(
    x,
    y,
    x_halves,
    y_halves,
    pitches,
    x_strides,
    y_strides,
    valid,
    strips,
    bands,
    depth,
    channels,
    height,
    width,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    ALIGNED_WIDTH: tl.constexpr,
):
    """Repeated 2x2 means of both images, an odd last row or column counting twice; of volumes of a
    ``depth`` 2x2x2 means, once.

    ``x_halves`` and ``y_halves`` are the images of the levels that a tile gives, ``pitches`` the
    lengths of their rows. With ``valid`` pixels, an image's address and strides, they are the means
    over those, zero where there is none. A width is aligned if `COLUMNS_PER_ACCESS` divides it.
    """
    width = width // COLUMNS_PER_ACCESS * COLUMNS_PER_ACCESS if ALIGNED_WIDTH else width
    strip, band, plane = tile_of(tl.program_id(0), strips, bands)
    row = (band * ROWS + tl.arange(0, ROWS)[:, None]).to(tl.int64)
    column = (strip * LANES + tl.arange(0, LANES)[None, :]).to(tl.int64)
    inside = (row < height) & (column < width)
    x, y, planes = Image(x, x_strides), Image(y, y_strides), (depth + 1) // 2
    volume, z = plane // planes, 2 * (plane % planes)
    at = row, column
    a, b, exists = _load_pair(x, y, valid, volume, z, at, inside, channels)
    if len(x_strides) == 5:
        z = tl.minimum(z + 1, depth - 1)
        next_a, next_b, also_exists = _load_pair(x, y, valid, volume, z, at, inside, channels)
        a, b, exists = 0.5 * (a + next_a), 0.5 * (b + next_b), 0.5 * (exists + also_exists)
    for j in tl.static_range(len(pitches)):
        top, left = band * (ROWS >> j), strip * (LANES >> j)
        a = _halve(a, top, left, height, width, ROWS >> j, LANES >> j)
        b = _halve(b, top, left, height, width, ROWS >> j, LANES >> j)
        if len(valid) > 0:
            share = _halve(exists, top, left, height, width, ROWS >> j, LANES >> j)
            a = tl.where(share > 0, a / share, 0.0)
            b = tl.where(share > 0, b / share, 0.0)
            exists = tl.where(share > 0, 1.0, 0.0)
        height, width = (height + 1) // 2, (width + 1) // 2
        row = top // 2 + tl.arange(0, ROWS >> (j + 1))[:, None]
        column = left // 2 + tl.arange(0, LANES >> (j + 1))[None, :]
        # Nobody reads the end of a row beyond its values, and several columns are written at once.
        inside = (row < height) & (column < pitches[j])
        offset = (plane.to(tl.int64) * height + row) * pitches[j] + column
        tl.store(x_halves[j] + offset, a, mask=inside)
        tl.store(y_halves[j] + offset, b, mask=inside)


@triton.jit
def _halve(tile, top, left, height, width, ROWS: tl.constexpr, LANES: tl.constexpr):
    """2x2 means of a tile whose first pixel is at ``top`` and ``left``."""
    first, second = tl.split(tl.reshape(tile, (ROWS, LANES // 2, 2)))
    column = left + 2 * tl.arange(0, LANES // 2)[None, :]
    across = 0.5 * (first + tl.where(column + 1 < width, second, first))
    pairs = tl.permute(tl.reshape(across, (ROWS // 2, 2, LANES // 2)), (0, 2, 1))
    upper, lower = tl.split(pairs)
    row = top + 2 * tl.arange(0, ROWS // 2)[:, None]
    return 0.5 * (upper + tl.where(row + 1 < height, lower, upper))


@triton.jit
def _programs_of(planes, rows, height, width, K: tl.constexpr):
    """Strips of a level, their rows, the rows of a program, and the number of programs."""
    HALO: tl.constexpr = K.ACROSS - 1
    if K.GRADIENTS > 0:
        strips = tl.cdiv(width, K.LANES * K.COLUMNS - HALO)
        programs = planes * strips * tl.cdiv(height, rows)
    else:
        # Columns of the map, and those that `value_kernel` has before it.
        MAP_LEFT: tl.constexpr = map_begin(K.ACROSS, K.PADDING)
        BEFORE: tl.constexpr = columns_before(MAP_LEFT, K.COLUMNS)
        strips = tl.cdiv(width + MAP_LEFT - HALO + BEFORE, K.LANES * K.COLUMNS)
        height += 2 * map_begin(K.DOWN, K.PADDING) - (K.DOWN - 1)
        rows = tl.minimum(rows, height)
        programs = tl.cdiv(planes * strips * height, rows)
    return strips, height, rows, programs


@triton.jit(
    do_not_specialize=["planes", "rows", "channels", "height", "width", "sums_stride"],
    do_not_specialize_on_alignment=["tile_sums"],
)
def coarse_levels_kernel(
    x_levels,
    y_levels,
    auxiliary,
    auxiliary_strides,
    x_gradients,
    y_gradients,
    memory,
    tile_sums,
    sums_stride,
    planes,
    rows,
    channels,
    height,
    width,
    across,
    down,
    constants,
    gradient_scales,
    weight_totals,
    K: tl.constexpr,
):
    """`fused_kernel` of all levels but the finest, or `value_kernel` of their sums, each by its own
    programs.

    The images and gradients are those that `downsample_kernel` writes and the caller allocates,
    ``height`` and ``width`` those of the first level. The last one is of SSIM, the others of its
    contrast-structure factor. A level's programs follow from its size: numbers of them in a tuple,
    which are integers, would be cases for the compiler.
    """
    MAP_TOP: tl.constexpr = map_begin(K.DOWN, K.PADDING)
    # Tensors of each level, after the ranges.
    AUXILIARY: tl.constexpr = (len(auxiliary) - 1) // len(x_levels)
    program = tl.program_id(0)
    x, y = x_levels[0], y_levels[0]
    x_gradient, y_gradient = x_gradients[0], y_gradients[0]
    gradient_scale, weight_total = gradient_scales[0], weight_totals[0]
    own, own_strides = auxiliary, auxiliary_strides
    first_program, level = 0, 0
    level_height, level_width = height, width
    end = _programs_of(planes, rows, level_height, level_width, K)[3]
    for j in tl.static_range(1, len(x_levels)):
        coarser = program >= end
        level_height, level_width = (level_height + 1) // 2, (level_width + 1) // 2
        height = tl.where(coarser, level_height, height)
        width = tl.where(coarser, level_width, width)
        first_program = tl.where(coarser, end, first_program)
        level = tl.where(coarser, j, level)
        x, y = tl.where(coarser, x_levels[j], x), tl.where(coarser, y_levels[j], y)
        x_gradient = tl.where(coarser, x_gradients[j], x_gradient)
        y_gradient = tl.where(coarser, y_gradients[j], y_gradient)
        gradient_scale = tl.where(coarser, gradient_scales[j], gradient_scale)
        weight_total = tl.where(coarser, weight_totals[j], weight_total)
        if len(auxiliary) > 0:
            chosen, strides = (own[0],), ()
            for k in tl.static_range(AUXILIARY):
                chosen = chosen + (tl.where(coarser, auxiliary[AUXILIARY * j + k + 1], own[k + 1]),)
                of_tensor = ()
                for axis in tl.static_range(4):
                    stride = auxiliary_strides[AUXILIARY * j + k][axis]
                    of_tensor = of_tensor + (tl.where(coarser, stride, own_strides[k][axis]),)
                strides = strides + (of_tensor,)
            own, own_strides = chosen, strides
        end += _programs_of(planes, rows, level_height, level_width, K)[3]
    pitch = (width + 15) // 16 * 16
    plane = height.to(tl.int64) * pitch
    strides = channels * plane, plane, pitch, 1
    x, y = Image(x, strides), Image(y, strides)
    x_gradient, y_gradient = Image(x_gradient, strides), Image(y_gradient, strides)
    # Infinite where the luminance is 1.
    c1 = tl.where(level + 1 == len(x_levels), constants.c1, float("inf"))
    constants = Constants(constants.root, constants.low, constants.length, c1, constants.c2)
    place = tile_sums + tl.cast(level, tl.int64) * planes * sums_stride
    strips, strip_height, rows, _ = _programs_of(planes, rows, height, width, K)
    parts = tl.cdiv(strip_height, rows)
    if K.GRADIENTS > 0:
        fused_kernel(
            *(x, y, own, own_strides, x_gradient, y_gradient, memory, place, place, place, place),
            *(sums_stride, first_program, strips, parts, rows, channels, height, width),
            *(across, down, constants, gradient_scale, 0.0, weight_total, (), K),
        )
    else:
        # One more where programs end in a strip that others begin in.
        parts += (strip_height % rows > 0).to(tl.int32)
        value_kernel(
            *(x, y, own, own_strides, Maps(x.address, 0, 0, 1), memory, place, place, place, place),
            *(sums_stride, weight_total, first_program, strips, parts, rows),
            *(planes * strips * strip_height, -MAP_TOP, strip_height - MAP_TOP),
            *(channels, height, width, across, down, constants, (), K),
        )
