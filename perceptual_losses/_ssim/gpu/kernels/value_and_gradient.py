"""The kernel for a value and its gradients: both in one march down the rows.

A program owns a strip of columns and a band of rows of one plane, a thread ``COLUMNS`` neighbouring
columns of the strip. Windows share their pixels: each is loaded and combined once and goes through
a row of scratch memory. From there come the horizontal sums under the window, which are added to
the ``DOWN`` rows of the map that are in flight in registers; the first of these is then complete
and becomes S and its derivatives. Those go through the same memory and come back as horizontal sums
for the ``DOWN`` rows of the gradient in flight. Nothing of the size of an image is kept.

While a row of scratch memory is read, the next row of pixels and the derivatives are written to
others, so that one barrier a row is enough. Rows of pixels stay there until the gradient is
complete where they are. Pixels are loaded into registers a row before that.

A position of the map is named by the first row and column of pixels under its window. The gradient
of a pixel sums the windows that hold it, which begin up to one window before it. So the transposed
filter is the filter itself. This holds for symmetric padding too, because the map is mirrored as
the pixels are.
"""

# Constants of a compilation are in capitals, and tuples grow by sums, which Triton compiles.
# ruff: noqa: N803, N806, RUF005

import triton
import triton.language as tl

from . import scratch, sums
from .addresses import auxiliary_of, constants_of, map_begin, plane_of, tile_of, width_hint
from .arguments import Region, Window
from .formulas import add_moments, add_row, gradients_of, row_of_map
from .loads_and_stores import (
    advance,
    first_row,
    local_offsets,
    store_columns,
    valid_columns,
    where_valid,
)


@triton.jit(
    do_not_specialize=[
        *("first_program", "strips", "bands", "rows", "channels", "height", "width"),
        *("sums_stride", "weight_total"),
    ],
    do_not_specialize_on_alignment=["tile_sums", "abs_difference_sums", "result", "arrived"],
)
def fused_kernel(
    x,
    y,
    auxiliary,
    auxiliary_strides,
    x_gradient,
    y_gradient,
    memory,
    tile_sums,
    abs_difference_sums,
    result,
    arrived,
    sums_stride,
    first_program,
    strips,
    bands,
    rows,
    channels,
    height,
    width,
    across,
    down,
    constants,
    gradient_scale,
    abs_difference_scale,
    weight_total,
    totals,
    K: tl.constexpr,
):
    """The gradients of a tile, and the sum of 1 - S over the positions that it owns.

    ``first_program`` is the number of the first program of this level. In a mix the gradients are
    those of each pixel's |x - y| too, ``abs_difference_scale`` times.
    """
    COLUMNS: tl.constexpr = K.COLUMNS
    ABOVE: tl.constexpr = K.DOWN - 1
    HALO: tl.constexpr = K.ACROSS - 1
    MAP_TOP: tl.constexpr = map_begin(K.DOWN, K.PADDING)
    MAP_LEFT: tl.constexpr = map_begin(K.ACROSS, K.PADDING)
    OWN: tl.constexpr = K.LANES * K.COLUMNS - HALO
    MAPS: tl.constexpr = 4 if K.GRADIENTS == 2 else 3
    size = height, width_hint(width, K)
    strip, band, plane = tile_of(tl.program_id(0) - first_program, strips, bands)
    own = band * rows, tl.minimum(band * rows + rows, height)
    top, bottom = own
    left = strip * OWN
    x, y = plane_of(x, plane, channels), plane_of(y, plane, channels)
    x_gradient = plane_of(x_gradient, plane, channels)
    y_gradient = plane_of(y_gradient, plane, channels)
    weight, valid, coverage = auxiliary_of(auxiliary, auxiliary_strides, plane, channels, K)
    constants = constants_of(constants, auxiliary, plane, channels, K)
    # The factor of |x - y|.
    factor = 1 / constants.length if K.RANGED else 1.0
    abs_difference_scale *= factor
    # Rows of pixels, one after the other until the gradient is complete there, and then two of
    # derivatives.
    PIXEL_ROW: tl.constexpr = 2 * K.PITCH
    DERIVATIVES: tl.constexpr = (K.DOWN + 2) * PIXEL_ROW
    DERIVATIVE_ROW: tl.constexpr = MAPS * K.PITCH
    memory = scratch.allocate(memory, DERIVATIVES + 2 * DERIVATIVE_ROW, K.SHARED)
    UNIT: tl.constexpr = 4 if K.SHARED else 1
    map_size = size[0] + 2 * MAP_TOP - ABOVE, size[1] + 2 * MAP_LEFT - HALO
    window = Window(across, down)
    columns = tl.minimum(OWN, size[1] - left)
    offsets = local_offsets(x, y, valid, top, left, bottom - top, columns, constants, K)
    centre = K.DOWN // 2 - MAP_TOP, K.ACROSS // 2 - MAP_LEFT
    region = Region(x, y, weight, valid, coverage, size, map_size, centre, offsets, constants)

    first = tl.arange(0, K.LANES) * K.COLUMNS
    local = first[:, None] + tl.arange(0, K.COLUMNS)[None, :]
    none = (sums.zeros(K),) * (COLUMNS * K.DOWN)
    moments = (none, none, none, none)
    filtered = (none,) * MAPS
    deficits = (sums.zeros(K),) * COLUMNS
    abs_differences = (sums.zeros(K),) * COLUMNS
    # Before the first row the memory holds anything. That only gets into rows of the map before
    # the first that has a use.
    pixels = first_row(region, top - ABOVE, left - HALO, K)
    current, newest = 0, UNIT * PIXEL_ROW
    for ahead in range(K.DOWN):
        tl.debug_barrier()
        abs_differences, pixels = advance(
            *(region, pixels, abs_differences, memory + newest, top - ABOVE + ahead, left - HALO),
            *(own, K),
        )
        moments = add_moments(moments, memory + current, first, window, K)
        current, newest = newest, newest + UNIT * PIXEL_ROW
    row = top
    slot = 0
    # The row of the gradient that is complete is one behind that of the map.
    behind = (top - ABOVE - 2).to(tl.int64)
    x_gradient_row = x_gradient.address + behind * x_gradient.strides[2]
    y_gradient_row = y_gradient.address + behind * y_gradient.strides[2]
    owned = (local < OWN) & (left + local < size[1])
    while row <= bottom + ABOVE:
        for _ in tl.static_range(K.ROWS_PER_ITERATION):
            here = row - ABOVE
            tl.debug_barrier()
            # The row of the gradient's pixels, and the next row's newest.
            is_last = newest == UNIT * (DERIVATIVES - PIXEL_ROW)
            oldest = tl.where(is_last, 0, newest + UNIT * PIXEL_ROW)
            other_slot = UNIT * DERIVATIVE_ROW - slot
            if not K.STORE_AFTER_READ:
                abs_differences, pixels = advance(
                    *(region, pixels, abs_differences, memory + newest, row + 1, left - HALO),
                    *(own, K),
                )
            updated = ()
            for k in tl.static_range(MAPS):
                values = scratch.read(memory + slot, DERIVATIVES + k * K.PITCH, first, K.ACROSS, K)
                updated = updated + (add_row(filtered[k], values, window, K),)
            filtered = updated
            if K.STORE_AFTER_READ:
                abs_differences, pixels = advance(
                    *(region, pixels, abs_differences, memory + newest, row + 1, left - HALO),
                    *(own, K),
                )
                moments = add_moments(moments, memory + current, first, window, K)
            x_gradient_row += x_gradient.strides[2]
            y_gradient_row += y_gradient.strides[2]
            d = scratch.read(memory + oldest, HALO, first, 1, K)
            t = scratch.read(memory + oldest, K.PITCH + HALO, first, 1, K)
            to_x, to_y = gradients_of(
                *(d, t, filtered, -offsets.d * constants.root),
                *(gradient_scale, abs_difference_scale, K),
            )
            if K.PARTIAL:
                places = scratch.split_columns(left + local)
                exists = valid_columns(valid, here - 1, places, size, K)
                to_x, to_y = where_valid(exists, to_x), where_valid(exists, to_y)
            inside = owned & (here > top) & (here <= bottom)
            store_columns(x_gradient_row, x_gradient.strides[3], left + local, to_x, inside, K)
            if K.GRADIENTS == 2:
                store_columns(y_gradient_row, y_gradient.strides[3], left + local, to_y, inside, K)
            if not K.STORE_AFTER_READ:
                moments = add_moments(moments, memory + current, first, window, K)
            counted = ((here >= top) | (band == 0)) & (here < bottom)
            deficits, maps = row_of_map(
                *(region, moments, deficits, counted),
                *(here + MAP_TOP, left - HALO + MAP_LEFT + first, K),
            )
            for k in tl.static_range(MAPS):
                scratch.write(memory + other_slot, DERIVATIVES + k * K.PITCH, maps[k], first, K)
            slot = other_slot
            current, newest = newest, oldest
            row += 1
    place = plane.to(tl.int64) * sums_stride + 2 * (band * strips + strip)
    if not K.MAP:
        # Others are a neighbour's, or beside the map.
        column = left - HALO + MAP_LEFT
        first_column = tl.maximum(tl.where(strip == 0, 0, HALO), -column)
        deficits = sums.select_columns(deficits, first, first_column, map_size[1] - column)
        sums.store_sum(deficits, tile_sums + place, None, 2.0, weight_total, True)
    if K.ABS_DIFFERENCE:
        pixel_total = tl.where(weight_total == 0, 0.0, 1.0 * height * size[1])
        abs_differences = sums.select_columns(abs_differences, first, HALO, size[1] - left + HALO)
        address = abs_difference_sums + place
        sums.store_sum(abs_differences, address, None, factor, pixel_total, False)
    if K.SUM_IN_KERNEL:
        sums.sum_in_last_program(tile_sums, abs_difference_sums, result, arrived, totals, K)
