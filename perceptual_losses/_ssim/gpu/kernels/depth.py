"""The kernel that goes through the planes of volumes, for their values and their derivatives.

It has one thread for each column of positions. The thread keeps in registers all sums that are not
complete yet: those of the moments and those of the derivatives. So threads exchange nothing. The
filtered derivatives replace the moments, in planes that have been read.

If the padding is symmetric, the thread reads the moments of mirrored planes a second time. Before
the volume it also computes their derivatives a second time. Behind the volume this is impossible,
because results have replaced the moments. So the derivatives of the last planes are kept, in planes
whose moments are not needed any more (`kept_at`).
"""

# Constants of a compilation are in capitals, and tuples grow by sums, which Triton compiles.
# ruff: noqa: N803, N806, RUF005

import triton
import triton.language as tl

from . import sums
from .addresses import (
    auxiliary_of,
    constants_of,
    map_address,
    map_begin,
    mirrored,
    plane_of,
    slice_of,
)
from .arguments import SYMMETRIC, Region, Window
from .formulas import add_row, contrasts, row_of_map
from .loads_and_stores import volume_offsets
from .plane_moments import margin
from .planes import kept_at, load_maps, load_moments, next_plane, store_maps

# The most sums of moments and of derivatives that fit into the registers together.
MOST_SUMS = tl.constexpr(150)


@triton.jit
def _add_maps(all_sums, values, window, K: tl.constexpr):
    """Adds a plane's value of each map to the map's sums, and completes the first of them."""
    updated = ()
    for k in tl.static_range(len(all_sums)):
        updated = updated + (add_row(all_sums[k], values[k], window, K),)
    return updated


@triton.jit
def _region_at(region, row, m, depth, centre, K: tl.constexpr):
    """The region of plane ``m`` of the map, which has ``depth`` planes, and ``row``.

    The row is -1 if the plane is outside the map. Symmetric padding mirrors the plane instead.
    """
    if K.PADDING == SYMMETRIC:
        m = mirrored(m, depth)
    else:
        row = tl.where((m >= 0) & (m < depth), row, -1)
    x, y, weight, valid, coverage, size, map_size, in_plane, offsets, constants = region
    if K.WEIGHTED:
        weight = slice_of(weight, m)
    if K.PARTIAL:
        valid, coverage = slice_of(valid, m + centre), slice_of(coverage, m)
    at = Region(x, y, weight, valid, coverage, size, map_size, in_plane, offsets, constants)
    return at, row


@triton.jit(
    do_not_specialize=[
        *("sums_stride", "first_volume", "tiles", "plane_tiles", "depth"),
        *("channels", "height", "width", "weight_total"),
    ],
    do_not_specialize_on_alignment=[
        *("tile_sums", "abs_difference_sums", "plane_sums", "result", "arrived"),
    ],
)
def depth_kernel(
    all_x,
    all_y,
    auxiliary,
    auxiliary_strides,
    maps,
    similarity_map,
    tile_sums,
    abs_difference_sums,
    plane_sums,
    result,
    arrived,
    sums_stride,
    first_volume,
    tiles,
    plane_tiles,
    depth,
    channels,
    height,
    width,
    across,
    down,
    through,
    constants,
    plane_total,
    weight_total,
    totals,
    K: tl.constexpr,
):
    """The sum of 1 - S over columns of positions, and the derivatives filtered along depth; or S.

    The variant's ``DOWN`` is the depth of the window. A volume has ``tiles`` programs. Each also
    adds up its part of the volume's ``plane_tiles`` sums of |x - y|.
    """
    ABOVE: tl.constexpr = K.DOWN - 1
    FRONT: tl.constexpr = map_begin(K.DOWN, K.PADDING)
    ROWS: tl.constexpr = 2 * len(down) - 1
    COLUMNS: tl.constexpr = 2 * len(across) - 1
    MAP_TOP: tl.constexpr = map_begin(ROWS, K.PADDING)
    MAP_LEFT: tl.constexpr = map_begin(COLUMNS, K.PADDING)
    MAPS: tl.constexpr = 4 if K.GRADIENTS == 2 else 3
    TOGETHER: tl.constexpr = K.GRADIENTS > 0 and (4 + MAPS) * K.DOWN <= MOST_SUMS
    tile, place = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    volume = first_volume + place
    map_size = height + 2 * MAP_TOP - (ROWS - 1), width + 2 * MAP_LEFT - (COLUMNS - 1)
    map_depth = depth + 2 * FRONT - ABOVE
    x, y = plane_of(all_x, volume, channels), plane_of(all_y, volume, channels)
    weight, valid, coverage = auxiliary_of(auxiliary, auxiliary_strides, volume, channels, K)
    constants = constants_of(constants, auxiliary, volume, channels, K)
    offsets = volume_offsets(x, y, valid, (depth, height, width), constants, K)
    d, t = contrasts(constants.low, constants.low, constants.root, offsets, False)
    outside = plane_total * d, plane_total * (d * d), plane_total * t, plane_total * (t * t)
    centre = ROWS // 2 - MAP_TOP, COLUMNS // 2 - MAP_LEFT
    volume_region = Region(
        x, y, weight, valid, coverage, (height, width), map_size, centre, offsets, constants
    )
    position = tile * K.LANES + tl.arange(0, K.LANES)
    in_memory = position < maps.size
    MARGIN: tl.constexpr = margin(COLUMNS, K.PADDING, K.GRADIENTS)
    row, column = position // maps.pitch, position % maps.pitch - MARGIN
    inside = (row < map_size[0]) & (column >= 0) & (column < map_size[1])
    # A plane of the map has the number of the first plane under its window. Planes outside the map
    # have derivatives too: zeros, or those of mirrored planes.
    MIRRORED: tl.constexpr = K.GRADIENTS > 0 and K.PADDING == SYMMETRIC
    last = map_depth - FRONT
    begin, end = -FRONT, last
    if MIRRORED and TOGETHER:
        begin = -ABOVE
    elif TOGETHER:
        end = depth
    size = maps.size.to(tl.int64)
    step = maps.count * size
    base = map_address(maps, place * depth, 0) + position
    window = Window((1,), through)
    none = (sums.zeros(K),) * K.DOWN
    moments = (none, none, none, none)
    deficits = (sums.zeros(K),)
    filtered = (none,) * MAPS
    # The plane that is being loaded while the one before it is added.
    ahead = begin
    source = next_plane(base, base + (begin - 1) * step, step, ahead, depth, K)
    values = load_moments(source, size, ahead, depth, inside, outside, K)
    for _ in range(ABOVE):
        ahead += 1
        source = next_plane(base, source, step, ahead, depth, K)
        moments = _add_maps(moments, values, window, K)
        values = load_moments(source, size, ahead, depth, inside, outside, K)
    z = begin
    while z < end:
        ahead += 1
        source = next_plane(base, source, step, ahead, depth, K)
        moments = _add_maps(moments, values, window, K)
        values = load_moments(source, size, ahead, depth, inside, outside, K)
        m = z + FRONT
        region, line = _region_at(volume_region, row, m, map_depth, K.DOWN // 2 - FRONT, K)
        counted = inside & (m >= 0) & (m < map_depth)
        deficits, derivatives = row_of_map(region, moments, deficits, counted, line, column, K)
        if TOGETHER:
            filtered = _add_maps(filtered, derivatives, window, K)
            store_maps(base + z * step, size, filtered, in_memory & (z >= 0))
        if MIRRORED or (K.GRADIENTS > 0 and not TOGETHER):
            # A second pass needs the derivatives of all planes, and else the last ones are enough.
            kept = in_memory if not TOGETHER else in_memory & (m >= depth - FRONT)
            target = base + kept_at(m, depth, FRONT, K) * step
            store_maps(target, size, derivatives, kept)
        elif K.MAP and K.GRADIENTS == 0:
            place_in_map = ((volume.to(tl.int64) * map_depth + m) * map_size[0] + row) * map_size[1]
            tl.store(similarity_map + (place_in_map + column), derivatives[0][0], mask=counted)
        z += 1
    if MIRRORED or (K.GRADIENTS > 0 and not TOGETHER):
        # This pass reads derivatives that the same thread has kept: those of all planes, or of the
        # planes that are mirrored behind the volume.
        if not TOGETHER:
            filtered = (none,) * MAPS
            z = -ABOVE if MIRRORED else begin
        while z < depth:
            m = mirrored(z + FRONT, depth) if MIRRORED else z + FRONT
            kept = base + kept_at(m, depth, FRONT, K) * step
            unfiltered = load_maps(kept, size, in_memory & (m < map_depth), MAPS)
            filtered = _add_maps(filtered, unfiltered, window, K)
            store_maps(base + z * step, size, filtered, in_memory & (z >= 0))
            z += 1
    sum_place = volume.to(tl.int64) * sums_stride + 2 * tile
    if not K.MAP:
        sums.store_sum(deficits, tile_sums + sum_place, None, 2.0, weight_total, True)
    if K.ABS_DIFFERENCE:
        share = tl.cdiv(plane_tiles, tiles)
        own = tl.minimum(share, tl.maximum(plane_tiles - tile * share, 0))
        first_sum = place.to(tl.int64) * plane_tiles + tile * share
        pixel_total = tl.where(weight_total == 0, 0.0, 1.0 * depth * height * width)
        sums.store_sum_of_tiles(
            plane_sums + 2 * first_sum, own, abs_difference_sums + sum_place, pixel_total, K
        )
    if K.SUM_IN_KERNEL:
        sums.sum_in_last_program(tile_sums, abs_difference_sums, result, arrived, totals, K)
