"""The kernel for the moments of a volume within its planes.

`depth_kernel` then sums them through the planes, and `gradient_kernel` comes last.
"""

# Constants of a compilation are in capitals, and tuples grow by sums, which Triton compiles.
# ruff: noqa: N803, N806, RUF005

import triton
import triton.language as tl

from . import scratch, sums
from .addresses import (
    auxiliary_of,
    constants_of,
    map_address,
    map_begin,
    plane_of,
    slice_of,
    tile_of,
    width_hint,
)
from .arguments import VALID, Region, Window
from .formulas import add_moments
from .loads_and_stores import advance, first_row, volume_offsets
from .value import columns_before, store_row


@triton.constexpr_function
def margin(taps, padding, gradients):
    """Zeros before each row of a volume's derivatives, for windows of ``taps``."""
    return taps - 1 if gradients > 0 and padding == VALID.value else 0


@triton.jit(
    do_not_specialize=[
        *("first_volume", "depth", "strips", "bands", "rows", "map_top", "map_bottom"),
        *("channels", "height", "width"),
    ],
    do_not_specialize_on_alignment=["plane_sums"],
)
def plane_moments_kernel(
    all_x,
    all_y,
    auxiliary,
    auxiliary_strides,
    maps,
    memory,
    plane_sums,
    first_volume,
    depth,
    strips,
    bands,
    rows,
    map_top,
    map_bottom,
    channels,
    height,
    width,
    across,
    down,
    constants,
    K: tl.constexpr,
):
    """The sums of d, d^2, t and t^2 under the window within a plane, and the sum of |x - y|.

    The maps are those of the volumes from ``first_volume`` on. The other arguments are those of
    `value_kernel`.
    """
    COLUMNS: tl.constexpr = K.COLUMNS
    MAP_TOP: tl.constexpr = map_begin(K.DOWN, K.PADDING)
    MAP_LEFT: tl.constexpr = map_begin(K.ACROSS, K.PADDING)
    BEFORE: tl.constexpr = columns_before(MAP_LEFT, K.COLUMNS)
    MARGIN: tl.constexpr = margin(K.ACROSS, K.PADDING, K.GRADIENTS)
    PIXEL_ROW: tl.constexpr = 2 * K.PITCH
    memory = scratch.allocate(memory, 2 * PIXEL_ROW, K.SHARED)
    UNIT: tl.constexpr = 4 if K.SHARED else 1
    size = height, width_hint(width, K)
    map_size = size[0] + 2 * MAP_TOP - (K.DOWN - 1), size[1] + 2 * MAP_LEFT - (K.ACROSS - 1)
    strip, band, place = tile_of(tl.program_id(0), strips, bands)
    volume, z = first_volume + place // depth, place % depth
    x, y = plane_of(all_x, volume, channels), plane_of(all_y, volume, channels)
    valid = auxiliary_of(auxiliary, auxiliary_strides, volume, channels, K)[1]
    constants = constants_of(constants, auxiliary, volume, channels, K)
    offsets = volume_offsets(x, y, valid, (depth, size[0], size[1]), constants, K)
    if K.PARTIAL:
        valid = slice_of(valid, z)
    x, y = slice_of(x, z), slice_of(y, z)
    region = Region(x, y, (), valid, (), size, map_size, (0, 0), offsets, constants)
    top = map_top + band * rows
    bottom = tl.minimum(top + rows, map_bottom)
    left = strip * (K.LANES * K.COLUMNS) - BEFORE
    # The rows of pixels that count for |x - y|.
    own = top + MAP_TOP, bottom + MAP_TOP
    first = tl.arange(0, K.LANES) * K.COLUMNS
    none = (sums.zeros(K),) * (COLUMNS * K.DOWN)
    moments = (none, none, none, none)
    abs_differences = (sums.zeros(K),) * COLUMNS
    here = top - K.DOWN
    pixels = first_row(region, here + K.DOWN, left, K)
    slot = 0
    while here < bottom:
        for _ in tl.static_range(K.ROWS_PER_ITERATION):
            tl.debug_barrier()
            other_slot = UNIT * PIXEL_ROW - slot
            abs_differences, pixels = advance(
                *(region, pixels, abs_differences, memory + other_slot),
                *(here + K.DOWN, left, own, K),
            )
            moments = add_moments(moments, memory + slot, first, Window(across, down), K)
            row, column = here + MAP_TOP, left + MAP_LEFT + first
            counted = (here >= top) & (here < bottom) & (row < map_size[0])
            for k in tl.static_range(4):
                complete = ()
                for e in tl.static_range(K.COLUMNS):
                    complete = complete + (moments[k][e * K.DOWN],)
                address = map_address(maps, place, k) + row.to(tl.int64) * maps.pitch + MARGIN
                store_row(address, column, complete, 0, map_size[1], counted)
            slot = other_slot
            here += 1
    if K.ABS_DIFFERENCE:
        abs_differences = sums.select_columns(abs_differences, first, -left, size[1] - left)
        factor = 1 / constants.length if K.RANGED else 1.0
        address = plane_sums + 2 * tl.program_id(0).to(tl.int64)
        sums.store_sum(abs_differences, address, None, factor, 0.0, False)
