"""The kernel that filters maps of derivatives, for gradients of large windows and of volumes."""

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
    plane_at,
    plane_of,
    slice_of,
    tile_of,
    width_hint,
)
from .arguments import SYMMETRIC, Window
from .formulas import add_row, contrasts, gradients_of
from .loads_and_stores import (
    load_columns,
    local_offsets,
    store_columns,
    valid_columns,
    volume_offsets,
    where_valid,
)


@triton.jit(
    do_not_specialize=[
        *("first_volume", "planes", "depth", "strips", "bands", "rows"),
        *("channels", "height", "width"),
    ]
)
def gradient_kernel(
    x,
    y,
    auxiliary,
    auxiliary_strides,
    x_gradient,
    y_gradient,
    maps,
    first_volume,
    planes,
    depth,
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
    K: tl.constexpr,
):
    """The gradients of a tile from the maps that `value_kernel` or `depth_kernel` wrote.

    An image's map has all positions whose windows hold a pixel. So does a volume's map with
    symmetric padding. Else it has the positions of S, zeros on both sides of each row, and a last
    row of zeros, which stands for all rows outside it. Each volume from ``first_volume`` on has
    maps of ``planes`` planes.
    """
    VOLUMES: tl.constexpr = len(x.strides) == 5
    COLUMNS: tl.constexpr = K.COLUMNS
    ABOVE: tl.constexpr = K.DOWN - 1
    MAPS: tl.constexpr = 4 if K.GRADIENTS == 2 else 3
    width = width_hint(width, K)
    window = Window(across, down)
    strip, band, place = tile_of(tl.program_id(0), strips, bands)
    top = band * rows
    bottom = tl.minimum(top + rows, height)
    volume, z = place // depth, place % depth
    plane = first_volume + volume
    x, y = plane_of(x, plane, channels), plane_of(y, plane, channels)
    x_gradient = plane_at(x_gradient, plane, z, channels)
    y_gradient = plane_at(y_gradient, plane, z, channels)
    constants = constants_of(constants, auxiliary, plane, channels, K)
    if K.RANGED:
        abs_difference_scale /= constants.length
    valid = auxiliary_of(auxiliary, auxiliary_strides, plane, channels, K)[1]
    if VOLUMES:
        offsets = volume_offsets(x, y, valid, (depth, height, width), constants, K)
        x, y = slice_of(x, z), slice_of(y, z)
        if K.PARTIAL:
            valid = slice_of(valid, z)
    else:
        offsets = local_offsets(x, y, valid, 0, 0, height, width, constants, K)

    first = strip * (K.LANES * K.COLUMNS) + tl.arange(0, K.LANES) * K.COLUMNS
    column = first[:, None] + tl.arange(0, K.COLUMNS)[None, :]
    none = (sums.zeros(K),) * (COLUMNS * K.DOWN)
    filtered = (none,) * MAPS
    map_plane = volume * planes + z
    map_rows = height + 2 * map_begin(K.DOWN, K.PADDING) - ABOVE
    # One loop, as in `value_kernel`.
    row = top - ABOVE
    x_row = x.address + row.to(tl.int64) * x.strides[2]
    y_row = y.address + row.to(tl.int64) * y.strides[2]
    x_gradient_row = x_gradient.address + row.to(tl.int64) * x_gradient.strides[2]
    y_gradient_row = y_gradient.address + row.to(tl.int64) * y_gradient.strides[2]
    while row < bottom:
        for _ in tl.static_range(K.ROWS_PER_ITERATION):
            updated = ()
            line = row + ABOVE
            if VOLUMES and K.PADDING != SYMMETRIC:
                # The row of zeros behind the map stands for all rows outside it.
                line = row + map_begin(K.DOWN, K.PADDING)
                line = tl.where((line >= 0) & (line < map_rows), line, map_rows)
            for k in tl.static_range(MAPS):
                address = map_address(maps, map_plane, k) + line.to(tl.int64) * maps.pitch
                windows = scratch.window_addresses(address, first, K)
                values = scratch.read_memory(windows, K.ACROSS, K)
                updated = updated + (add_row(filtered[k], values, window, K),)
            filtered = updated
            inside = (row >= top) & (row < bottom) & (column < width)
            a = load_columns(x_row, x.strides[3], column, inside, K).to(tl.float32)
            b = load_columns(y_row, y.strides[3], column, inside, K).to(tl.float32)
            d, t = contrasts(a, b, constants.root, offsets, K.MIXED)
            to_x, to_y = gradients_of(
                *(scratch.split_columns(d), scratch.split_columns(t), filtered),
                *(-offsets.d * constants.root, gradient_scale, abs_difference_scale, K),
            )
            if K.PARTIAL:
                columns = scratch.split_columns(column)
                exists = valid_columns(valid, row, columns, (height, width), K)
                to_x, to_y = where_valid(exists, to_x), where_valid(exists, to_y)
            store_columns(x_gradient_row, x_gradient.strides[3], column, to_x, inside, K)
            if K.GRADIENTS == 2:
                store_columns(y_gradient_row, y_gradient.strides[3], column, to_y, inside, K)
            row += 1
            x_row, y_row = x_row + x.strides[2], y_row + y.strides[2]
            x_gradient_row += x_gradient.strides[2]
            y_gradient_row += y_gradient.strides[2]
