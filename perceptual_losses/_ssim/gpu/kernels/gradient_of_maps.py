"""The kernel that filters maps of derivatives, for gradients of large windows and of volumes."""

# Constants of a compilation are in capitals, and tuples grow by sums, which Triton compiles.
# ruff: noqa: N803, N806, RUF005

import triton
import triton.language as tl

from . import scratch, sums
from .addresses import (
    auxiliary_of,
    constants_of,
    in_fours,
    is_inside,
    map_address,
    mirrored,
    plane_at,
    plane_of,
    slice_of,
    tile_columns,
    tile_of,
    width_hint,
)
from .arguments import SYMMETRIC, VALID, Window
from .formulas import add_row, contrasts, gradients_of
from .loads_and_stores import (
    load_columns,
    local_offsets,
    store_columns,
    valid_columns,
    volume_offsets,
    where_valid,
)


@triton.jit
def _load_column(row, line, first, AFTER: tl.constexpr, size, K: tl.constexpr):
    """A row's values, ``AFTER`` columns behind ``first``: mirrored or zero beside the map."""
    column = first + AFTER
    if K.PADDING == SYMMETRIC:
        value = tl.load(row + mirrored(column, size[1]).to(tl.int64))
    else:
        inside = is_inside(line, column, size)
        value = tl.load(row + first.to(tl.int64) + AFTER, mask=inside, other=0)
    return value


@triton.jit
def _load_line(maps, plane, line, left, size, MAPS: tl.constexpr, K: tl.constexpr):
    """A row of each map of a plane: the columns of each thread, from ``left`` on, and the halo's.

    A map has ``size`` rows and columns.
    """
    first, halo = left + tl.arange(0, K.LANES) * K.COLUMNS, tile_columns(left, K.COLUMNS, K)[1]
    shown, found = mirrored(line, size[0]) if K.PADDING == SYMMETRIC else line, ()
    for k in tl.static_range(MAPS):
        row, own = map_address(maps, plane, k) + shown.to(tl.int64) * maps.pitch, ()
        for e in tl.static_range(K.COLUMNS):
            own = own + (_load_column(row, line, first, e, size, K),)
        found = found + ((own, _load_column(row, line, halo, 0, size, K)),)
    return found


@triton.jit
def _write_line(scratch_row, found, K: tl.constexpr):
    """Writes what `_load_line` has found to scratch memory."""
    first, halo = tl.arange(0, K.LANES) * K.COLUMNS, tile_columns(0, K.COLUMNS, K)[1]
    for k in tl.static_range(len(found)):
        scratch.write(scratch_row, k * K.PITCH, found[k][0], first, K)
        scratch.write(scratch_row, k * K.PITCH, (found[k][1],), halo, K)


@triton.jit(
    do_not_specialize=[
        *("first_volume", "depth", "strips", "bands", "rows"),
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
    memory,
    first_volume,
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

    The map of an image has all positions whose windows hold a pixel, and that of a volume the
    positions of S. If windows lie inside the volume, memory holds zeros on both sides of each row,
    and a last row of zeros stands for all rows outside the map. Otherwise each row passes through
    scratch memory, where zeros or mirrored positions are added. The maps are those of the volumes
    from ``first_volume`` on.
    """
    VOLUMES: tl.constexpr = len(x.strides) == 5
    PADDED: tl.constexpr = VOLUMES and K.PADDING != VALID
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
    map_rows = height - ABOVE
    if PADDED:
        MAPS_ROW: tl.constexpr = MAPS * K.PITCH
        UNIT: tl.constexpr = 4 if K.SHARED else 1
        memory = scratch.allocate(memory, 2 * MAPS_ROW, K.SHARED)
        slot, left = 0, strip * (K.LANES * K.COLUMNS) - K.ACROSS // 2
        line = top - K.DOWN // 2
        _write_line(memory, _load_line(maps, place, line, left, (height, width), MAPS, K), K)
        ahead = _load_line(maps, place, line + 1, left, (height, width), MAPS, K)
    elif VOLUMES:
        maps = in_fours(maps)
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
            if PADDED:
                # The next row is written while this one is read.
                tl.debug_barrier()
                line, other_slot = row + K.DOWN // 2, UNIT * MAPS_ROW - slot
                _write_line(memory + other_slot, ahead, K)
                ahead = _load_line(maps, place, line + 2, left, (height, width), MAPS, K)
            elif VOLUMES:
                # The row of zeros behind the map stands for all rows outside it. A window of one
                # row needs none.
                line = tl.where((row >= 0) & (row < map_rows), row, map_rows)
            for k in tl.static_range(MAPS):
                if PADDED:
                    begin = tl.arange(0, K.LANES) * K.COLUMNS
                    values = scratch.read(memory + slot, k * K.PITCH, begin, K.ACROSS, K)
                else:
                    address = map_address(maps, place, k) + line.to(tl.int64) * maps.pitch
                    windows = scratch.window_addresses(address, first, K)
                    values = scratch.read_memory(windows, K.ACROSS, K)
                updated = updated + (add_row(filtered[k], values, window, K),)
            filtered = updated
            if PADDED:
                slot = other_slot
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
