"""The march for volumes, down their slices."""

from ...._runtime.numba_kernels import entry
from .arguments import SYMMETRIC, VALID
from .filters import ROWS, mirror_rows, moments_down, ring_slots, sum_down
from .formulas import derivatives, finish_gradient, similarity, total, write_gradient
from .images import (
    copy,
    fill,
    fill_where,
    load_row,
    local_offsets,
    representable,
    scale_row,
    shown_pixel,
)
from .slices import derivatives_of_slice, moments_of_slice


@entry
def march_volume(
    x, y, grad_x, grad_y, map_weights, weight_factors, ranges, valid, map_out, coverage, shape,
    through, down, across, constants, l1, variant, tasks, rows, slabs, sums,
):  # fmt: skip
    """`march` for volumes: a slice that is summed across and down takes the place of a row.

    Tasks are ``(volume, part, front, back, top, bottom, left, right)``. Maps and valid pixels have
    one axis more than in `march`. ``valid`` needs ``coverage``, ``(N, D', H', W')``: the
    reciprocal of the window's weight over them.
    """
    dtype = rows.dtype.type
    padding, contrast, both, gradients = variant
    low = constants.low
    zero, one = dtype(0), dtype(1)
    slots = ring_slots(through)
    radius, row_radius = len(through.extent) // 2, len(down.extent) // 2
    side_radius = len(across.extent) // 2
    channels, depth, height, width = shape[1], shape[2], shape[3], shape[4]
    # The map of "valid" padding lacks a rim of the volume on each side.
    has_rim = padding == VALID
    map_front, map_top, map_left = radius * has_rim, row_radius * has_rim, side_radius * has_rim
    map_back, map_bottom, map_right = depth - map_front, height - map_top, width - map_left
    scale = constants.gradient_scale
    if weight_factors is None:
        pixels = (map_back - map_front) * (map_bottom - map_top) * (map_right - map_left)
        scale = dtype(scale / pixels)
    # The channels of an image share one volume of weights, or each has its own.
    map_depth, sharing = map_back - map_front, 1
    if map_weights is not None:
        sharing = shape[0] * channels * map_depth // map_weights.starts.shape[0]
    has_gradient = gradients > 0
    halo, row_halo = radius * has_gradient, row_radius * has_gradient
    side_halo = side_radius * has_gradient
    maps = 2 + gradients if gradients else 0
    ring, grad_ring, rest = slabs[: 4 * slots], slabs[4 * slots : 8 * slots], slabs[8 * slots :]
    source, offsets, squared_ranges, values = rest[:4], rest[4:6], rest[6], rest[7]
    covered_slice, weight_slice = rest[8], rest[9]
    # `ROWS` slices for each moment, and for each map of derivatives.
    moments, grad_sums = rest[10 : 10 + 4 * ROWS], rest[10 + 4 * ROWS :]
    # Derivatives need this memory only if there is a gradient.
    ssim_values = source[0]
    d_row, t_row, line = rows[0], rows[1], rows[2]

    for index in range(tasks.shape[0]):
        volume, part, front, back = (
            tasks[index, 0], tasks[index, 1], tasks[index, 2], tasks[index, 3]
        )  # fmt: skip
        top, bottom, left, right = (
            tasks[index, 4], tasks[index, 5], tasks[index, 6], tasks[index, 7]
        )  # fmt: skip
        image = volume // channels
        begin, end = max(top - row_halo, map_top), min(bottom + row_halo, map_bottom)
        first = max(left - side_halo, map_left)
        count = max(min(right + side_halo, map_right) - first, 0)
        length = -(-count // 64) * 64
        grad_length = -(-(right - left) // 64) * 64
        area = max(end - begin, 0) * length
        # The sums come in blocks of `ROWS` rows, which may begin before the task and end after it.
        grad_area = (bottom - top + 2 * (ROWS - 1)) * grad_length
        own_begin = max(left - first, 0)
        own_end = max(min(right - first, count), own_begin)

        columns_begin, columns_end = first - map_left, first - map_left + count
        middle = (front + back) // 2
        mean_d, mean_t = local_offsets(
            x, y, volume * depth + middle, top, bottom, left, right, low,
            constants.length if ranges is None else ranges[image],
            None if valid is None else valid[image, middle],
        )  # fmt: skip
        offset_d, offset_t = dtype(mean_d), representable(dtype(mean_t), low)
        fill(offset_d, area, offsets[0])
        fill(offset_t, area, offsets[1])
        fill(zero, area, squared_ranges)
        fill(zero, area, covered_slice)
        fill(zero, area, weight_slice)
        squared = one if ranges is None else ranges[image] * ranges[image]
        for i in range(end - begin):
            fill(squared, count, squared_ranges[i * length :])
        for k in range(maps * slots):
            fill(zero, grad_area, grad_ring[k])

        sum_of_map = sum_of_ssim = sum_of_differences = 0.0
        start, stop = max(front - halo, map_front), min(back + halo, map_back)
        loaded = start - radius
        for z in range(start, back + halo, ROWS):
            while loaded < min(z + ROWS, stop) + radius:
                shown = shown_pixel(loaded, depth, padding)
                plane = volume * depth + shown if shown >= 0 else -1
                moments_of_slice(
                    x, y, plane, height, width, low, offset_d, offset_t, padding,
                    None if valid is None else valid[image, max(shown, 0)], down, across, begin,
                    end, first, count, length, rows, ring, loaded % slots, slots,
                )  # fmt: skip
                loaded += 1
            if z < stop:
                moments_down(through, ring, z, area, moments)
            for here in range(z, min(z + ROWS, back + halo)):
                if here >= stop:
                    # No windows are centred after the map: the ring gets zeros or mirror images.
                    for m in range(maps):
                        if padding == SYMMETRIC:
                            mirror_rows(grad_ring, m * slots, slots, here, depth, radius, grad_area)
                        else:
                            fill(zero, grad_area, grad_ring[m * slots + here % slots])
                    continue
                k = here - z
                for i in range(begin, end):
                    at, row = (i - begin) * length, i - map_top
                    if coverage is not None:
                        covered = coverage[image, here - map_front, row]
                        copy(covered[columns_begin:columns_end], covered_slice[at : at + count])
                    if weight_factors is not None:
                        factor, weights = weight_factors[image], weight_slice[at : at + count]
                        if map_weights is not None:
                            weight_plane = volume // sharing * map_depth + here - map_front
                            scale_row(
                                map_weights, weight_plane, row, columns_begin, factor, weights
                            )
                        elif valid is not None:
                            centred = valid[image, here, i, first : first + count]
                            fill_where(centred, factor, weights)
                if gradients:
                    derivatives(
                        moments, k, offsets, constants, squared_ranges, contrast, gradients == 2,
                        None if coverage is None else covered_slice,
                        None if weight_factors is None else weight_slice, area, source, 0, values,
                    )  # fmt: skip
                else:
                    similarity(
                        moments, k, offsets, constants,
                        None if ranges is None else squared_ranges, contrast, both,
                        None if coverage is None else covered_slice,
                        None if weight_factors is None else weight_slice, area, values, ssim_values,
                    )  # fmt: skip
                for i in range(begin, end):
                    at = (i - begin) * length
                    own = front <= here < back and top <= i < bottom
                    if map_out is not None and own:
                        out = map_out[volume, here - map_front, i - map_top]
                        out = out[columns_begin + own_begin : columns_begin + own_end]
                        copy(values[at + own_begin :], out)
                    if own:
                        sum_of_map += total(values[at + own_begin : at + own_end])
                        if both:
                            sum_of_ssim += total(ssim_values[at + own_begin : at + own_end])
                if gradients:
                    derivatives_of_slice(
                        source[:maps], height, width, map_top, padding, down, across, begin, top,
                        bottom, first, count, length, left, right, grad_length, rows, grad_ring,
                        here % slots, slots,
                    )  # fmt: skip
                if padding == SYMMETRIC:
                    for m in range(maps):
                        mirror_rows(grad_ring, m * slots, slots, here, depth, radius, grad_area)
            if not gradients or z + ROWS - halo <= front:
                continue
            for m in range(maps):
                out = grad_sums[m * ROWS :]
                sum_down(through, grad_ring, m * slots, z - halo, grad_area, out)
            for done in range(max(z - halo, front), min(z - halo + ROWS, back)):
                k, plane = done - (z - halo), volume * depth + done
                for i in range(top, bottom):
                    at = (i - top + ROWS - 1) * grad_length
                    load_row(
                        x, y, plane, height, width, i, left, low, offset_d, offset_t, padding,
                        None if valid is None else valid[image, done], 0,
                        right - left, d_row, t_row,
                    )  # fmt: skip
                    for g in range(gradients):
                        sign = dtype(1 if g == 0 else -1)
                        finish_gradient(
                            grad_sums, k, at, d_row, t_row, scale, sign, gradients == 2,
                            right - left, line,
                        )  # fmt: skip
                        pixels = line[: right - left]
                        image_range = one if ranges is None else ranges[image]
                        step = None if l1 is None else sign * l1 / image_range
                        kept = None if valid is None else valid[image, done, i, left:right]
                        pixel = plane, i, left
                        if g == 0:
                            sum_of_differences += write_gradient(
                                x, y, grad_x, *pixel, step, kept, pixels
                            )
                        else:
                            write_gradient(x, y, grad_y, *pixel, step, kept, pixels)
        sums[0, volume, part], sums[1, volume, part] = sum_of_map, sum_of_ssim
        sums[2, volume, part] = sum_of_differences
