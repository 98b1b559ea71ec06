"""The kernel for a value without a gradient, which also writes the derivatives of large windows.

Without a gradient the first half of `fused` is all there is to do. Programs go on in the next
strip, so that all have as many rows. Where the sums of both halves do not fit into the registers,
this kernel writes maps of the derivatives, which `gradient` filters.
"""

# Constants of a compilation are in capitals, and tuples grow by sums, which Triton compiles.
# ruff: noqa: N803, N806

import triton
import triton.language as tl

from . import scratch, sums
from .addresses import (
    auxiliary_of,
    constants_of,
    map_address,
    map_begin,
    plane_of,
    segment,
    width_hint,
)
from .arguments import Region, Window
from .formulas import add_moments, row_of_map
from .loads_and_stores import advance, first_row, local_offsets


@triton.constexpr_function
def columns_before(offset, columns):
    """Columns before the image from which a map begins that has so many: all of each thread."""
    return (offset + columns - 1) // columns * columns


@triton.jit
def store_row(address, first, columns, begin, end, counted):
    """Writes a row of a map where ``counted``, from each thread's first column on: the columns from
    ``begin`` on and before ``end``.
    """
    for e in tl.static_range(len(columns)):
        inside = counted & (first + e >= begin) & (first + e < end)
        tl.store(address + (first + e), columns[e], mask=inside)


@triton.jit(
    do_not_specialize=[
        *("first_program", "strips", "parts", "rows", "lines", "map_top", "map_bottom"),
        *("channels", "height", "width", "sums_stride", "weight_total"),
    ],
    do_not_specialize_on_alignment=["tile_sums", "abs_difference_sums", "result", "arrived"],
)
def value_kernel(
    all_x,
    all_y,
    auxiliary,
    auxiliary_strides,
    maps,
    memory,
    tile_sums,
    abs_difference_sums,
    result,
    arrived,
    sums_stride,
    weight_total,
    first_program,
    strips,
    parts,
    rows,
    lines,
    map_top,
    map_bottom,
    channels,
    height,
    width,
    across,
    down,
    constants,
    totals,
    K: tl.constexpr,
):
    """The sum of 1 - S over a tile of the map, and its derivatives if a gradient is wanted; or S.

    ``first_program`` is the number of the first program of this level. The map has the rows from
    ``map_top`` on and before ``map_bottom``. ``maps`` holds the derivatives for each plane: M (M_t
    for two gradients), V_d, V_t and then M_d, all from as many rows and columns before the image on
    as its windows reach; or S, in the rows and columns of the map. A pixel's |x - y| is summed by
    the program that is at its row of the map, or would be where the map is smaller, and loads its
    column.
    """
    COLUMNS: tl.constexpr = K.COLUMNS
    ABOVE: tl.constexpr = K.DOWN - 1
    HALO: tl.constexpr = K.ACROSS - 1
    MAP_TOP: tl.constexpr = map_begin(K.DOWN, K.PADDING)
    MAP_LEFT: tl.constexpr = map_begin(K.ACROSS, K.PADDING)
    # Without a gradient as few columns before the image as the map has.
    BEFORE: tl.constexpr = HALO if K.GRADIENTS > 0 else columns_before(MAP_LEFT, K.COLUMNS)
    size = height, width_hint(width, K)
    PIXEL_ROW: tl.constexpr = 2 * K.PITCH
    memory = scratch.allocate(memory, 2 * PIXEL_ROW, K.SHARED)
    UNIT: tl.constexpr = 4 if K.SHARED else 1
    map_size = size[0] + 2 * MAP_TOP - ABOVE, size[1] + 2 * MAP_LEFT - HALO
    window = Window(across, down)
    first = tl.arange(0, K.LANES) * K.COLUMNS
    local = first[:, None] + tl.arange(0, K.COLUMNS)[None, :]
    none = (sums.zeros(K),) * (COLUMNS * K.DOWN)
    strip_height = map_bottom - map_top
    program = tl.program_id(0) - first_program
    line = program.to(lines.dtype) * rows
    end = tl.minimum(line + rows, lines)
    while line < end:
        strip, plane, top, bottom, part = segment(program, line, end, rows, strip_height, strips)
        top, bottom = map_top + top, map_top + bottom
        place = plane.to(tl.int64) * sums_stride + 2 * (strip * parts + part)
        x, y = plane_of(all_x, plane, channels), plane_of(all_y, plane, channels)
        weight, valid, coverage = auxiliary_of(auxiliary, auxiliary_strides, plane, channels, K)
        own_constants = constants_of(constants, auxiliary, plane, channels, K)
        # The same for the whole plane, because programs filter each other's derivatives.
        offsets = local_offsets(x, y, valid, 0, 0, size[0], size[1], own_constants, K)
        centre = K.DOWN // 2 - MAP_TOP, K.ACROSS // 2 - MAP_LEFT
        region = Region(
            x, y, weight, valid, coverage, size, map_size, centre, offsets, own_constants
        )
        left = strip * (K.LANES * K.COLUMNS) - BEFORE
        own = top + MAP_TOP, bottom + MAP_TOP
        moments = (none, none, none, none)
        deficits = (sums.zeros(K),) * COLUMNS
        abs_differences = (sums.zeros(K),) * COLUMNS
        # The rows before the first complete one are no loop of their own: the time to compile
        # grows with the square of the loads in the code. The first iteration adds what the memory
        # holds by chance, as in `fused_kernel`.
        here = top - ABOVE - 1
        pixels = first_row(region, here + K.DOWN, left, K)
        slot = 0
        while here < bottom:
            for _ in tl.static_range(K.ROWS_PER_ITERATION):
                tl.debug_barrier()
                other_slot = UNIT * PIXEL_ROW - slot
                if not K.STORE_AFTER_READ:
                    abs_differences, pixels = advance(
                        *(region, pixels, abs_differences, memory + other_slot),
                        *(here + K.DOWN, left, own, K),
                    )
                moments = add_moments(moments, memory + slot, first, window, K)
                # Rows before the first complete one too: a branch around this takes moves of all
                # sums.
                counted = (here >= top) & (here < bottom)
                column = left + MAP_LEFT + first
                deficits, values = row_of_map(
                    region, moments, deficits, counted, here + MAP_TOP, column, K
                )
                if K.GRADIENTS > 0:
                    offset = (here - map_top).to(tl.int64) * maps.pitch
                    for k in tl.static_range(len(values)):
                        target = map_address(maps, plane, k) + offset + (left + BEFORE + local)
                        tl.store(target, scratch.join_columns(values[k]), mask=counted)
                elif K.MAP:
                    row = (here + MAP_TOP).to(tl.int64)
                    address = map_address(maps, plane, 0) + row * maps.pitch
                    store_row(address, column, values[0], 0, map_size[1], counted)
                if K.STORE_AFTER_READ:
                    abs_differences, pixels = advance(
                        *(region, pixels, abs_differences, memory + other_slot),
                        *(here + K.DOWN, left, own, K),
                    )
                slot = other_slot
                here += 1
        last = (bottom == map_bottom) & (part + 1 < parts)
        if not K.MAP:
            begin = left + MAP_LEFT
            deficits = sums.select_columns(deficits, first, -begin, map_size[1] - begin)
            sums.store_sum(deficits, tile_sums + place, last, 2.0, weight_total, True)
        if K.ABS_DIFFERENCE:
            pixel_total = tl.where(weight_total == 0, 0.0, 1.0 * height * size[1])
            abs_differences = sums.select_columns(abs_differences, first, -left, size[1] - left)
            factor = 1 / own_constants.length if K.RANGED else 1.0
            address = abs_difference_sums + place
            sums.store_sum(abs_differences, address, last, factor, pixel_total, False)
        line += bottom - top
    if K.SUM_IN_KERNEL:
        sums.sum_in_last_program(tile_sums, abs_difference_sums, result, arrived, totals, K)
