"""`march` for volumes."""

from ...._runtime.numba_kernels import entry, kernel
from .arguments import SYMMETRIC, VALID
from .filters import (
    add_mirrored_taps,
    add_taps,
    mirror_columns,
    moments_across,
    sum_across,
    sum_down,
)
from .formulas import (
    add_signs_of_row,
    derivatives,
    finish_gradient,
    similarity,
    total,
    weigh,
    weigh_deficits,
)
from .images import copy, fill, load_row, local_offsets, representable, shown_pixel, store_row


@kernel
def _moments_of_slice(
    x, y, plane, height, width, low, offset_d, offset_t, padding, window, top, bottom, first, count,
    length, rows, slabs, slot,
):  # fmt: skip
    """Sums across and down of a slice, for rows ``top`` to ``bottom`` of its map, into a slot.

    ``plane`` is -1 for a slice beside the volume.
    """
    radius, slots = len(window.extent) // 2, len(window.extent) + 1
    slot_taps, images, ring = rows[:2], rows[2:4], rows[6:]
    loaded = top - radius
    for i in range(top, bottom, 2):
        while loaded <= i + 1 + radius:
            if plane < 0:
                fill(-offset_d, count + 2 * radius, images[0])
                fill(-offset_t, count + 2 * radius, images[1])
            else:
                load_row(
                    x, y, plane, height, width, loaded, first - radius, low, offset_d, offset_t,
                    padding, 0, count + 2 * radius, images[0], images[1],
                )  # fmt: skip
            for m in range(2):
                mean = ring[m * slots + loaded % slots]
                square = ring[(m + 2) * slots + loaded % slots]
                moments_across(window, images[m], length, mean, square)
            loaded += 1
        for k in range(2):
            fill(slot_taps.dtype.type(0), slots, slot_taps[k])
            add_taps(window, i + k, i - slots, i + slots, slot_taps.dtype.type(1), slot_taps[k])
        at = (i - top) * length
        for m in range(4):
            out = slabs[m * slots + slot, at : at + 2 * length]
            sum_down(window, slot_taps, ring, m * slots, length, out, out[length:])


@kernel
def _derivatives_of_slice(
    maps, height, width, map_offset, padding, window, begin, top, bottom, first, count, length,
    left, right, grad_length, rows, slabs, slot,
):  # fmt: skip
    """Sums across and down of a slice's derivatives, for its gradient, into a slot.

    ``maps`` begin at row ``begin`` and column ``first``, the result a row above ``top`` and at
    column ``left``.
    """
    radius, slots = len(window.extent) // 2, len(window.extent) + 1
    slot_taps, source, ring = rows[:2], rows[4], rows[6 : 6 + slots]
    zero, one = rows.dtype.type(0), rows.dtype.type(1)
    shift = first - left + radius
    for m in range(maps.shape[0]):
        fill(zero, rows.shape[1], source)
        for k in range(slots):
            fill(zero, rows.shape[1], ring[k])
        for i in range(begin, bottom + radius, 2):
            for k in range(2):
                if i + k < min(height - map_offset, bottom + radius):
                    at = (i + k - begin) * length
                    copy(maps[m, at : at + count], source[shift : shift + count])
                    across = ring[(i + k) % slots]
                    sum_across(window, source, grad_length, across)
                    if padding == SYMMETRIC:
                        mirror_columns(window, source, 0, left, right, width, across)
            if i + 1 - radius < top:
                continue
            for k in range(2):
                fill(zero, slots, slot_taps[k])
                add_mirrored_taps(
                    window, i + k - radius, height, map_offset, height - map_offset, padding, one,
                    slot_taps[k],
                )  # fmt: skip
            at = (i - radius - top + 1) * grad_length
            out = slabs[m * slots + slot, at : at + 2 * grad_length]
            sum_down(window, slot_taps, ring, 0, grad_length, out, out[grad_length:])


@entry
def march_volume(
    x, y, grad_x, grad_y, map_weights, shape, window, constants, l1, variant, tasks, rows, slabs,
    sums, abs_differences,
):  # fmt: skip
    """`march` through the slices of volumes: a row of it is a slice that is summed across and down.

    Tasks are ``(volume, part, front, back, top, bottom, left, right)``; ``map_weights`` is
    ``(N, D', H', W')``.
    """
    dtype = rows.dtype.type
    padding, contrast, gradients = variant.padding, variant.contrast, variant.gradients
    low = constants.low
    zero, one = dtype(0), dtype(1)
    size = len(window.extent)
    radius = size // 2
    slots = size + 1
    channels, depth, height, width = shape[1], shape[2], shape[3], shape[4]
    map_offset = radius if padding == VALID else 0
    map_back, map_bottom, map_right = depth - map_offset, height - map_offset, width - map_offset
    scale = constants.plane_gradient
    if map_weights is None:
        pixels = (map_back - map_offset) * (map_bottom - map_offset) * (map_right - map_offset)
        scale = dtype(scale / pixels)
    halo = radius if gradients else 0
    maps = 2 + gradients if gradients else 0
    sign = dtype(1 if gradients == 1 else 0)
    ring, grad_ring, rest = slabs[: 4 * slots], slabs[4 * slots : 8 * slots], slabs[8 * slots :]
    moments, source, grad_sums = rest[:8], rest[8:12], rest[12:20]
    offsets_d, offsets_t, inside, values = rest[20], rest[21], rest[22], rest[23]
    slot_taps, line = rows[:2], rows[5]

    for index in range(tasks.shape[0]):
        volume, part, front, back = (
            tasks[index, 0], tasks[index, 1], tasks[index, 2], tasks[index, 3]
        )  # fmt: skip
        top, bottom, left, right = (
            tasks[index, 4], tasks[index, 5], tasks[index, 6], tasks[index, 7]
        )  # fmt: skip
        begin, end = max(top - halo, map_offset), min(bottom + halo, map_bottom)
        first = max(left - halo, map_offset)
        count = max(min(right + halo, map_right) - first, 0)
        length = -(-count // 64) * 64
        grad_length = -(-(right - left) // 64) * 64
        area = max(end - begin, 0) * length
        grad_area = (bottom - top + 2) * grad_length
        own_begin = max(left - first, 0)
        own_end = max(min(right - first, count), own_begin)

        middle = volume * depth + (front + back) // 2
        mean_d, mean_t = local_offsets(x, y, middle, top, bottom, left, right, low)
        offset_d, offset_t = dtype(mean_d), representable(dtype(mean_t), low)
        fill(offset_d, area, offsets_d)
        fill(offset_t, area, offsets_t)
        fill(zero, area, inside)
        for i in range(end - begin):
            fill(one, count, inside[i * length :])
        for k in range(maps * slots):
            fill(zero, grad_area, grad_ring[k])

        sum_of_map = sum_of_differences = 0.0
        start = max(front - halo, map_offset)
        loaded = start - radius
        for z in range(start, back + halo, 2):
            while z < map_back and loaded <= z + 1 + radius:
                shown = shown_pixel(loaded, depth, padding)
                plane = volume * depth + shown if shown >= 0 else -1
                _moments_of_slice(
                    x, y, plane, height, width, low, offset_d, offset_t, padding, window, begin,
                    end, first, count, length, rows, ring, loaded % slots,
                )  # fmt: skip
                loaded += 1
            if z < map_back:
                for i in range(2):
                    fill(zero, slots, slot_taps[i])
                    add_taps(window, z + i, z - size, z + slots, one, slot_taps[i])
                for m in range(4):
                    upper, lower = moments[2 * m], moments[2 * m + 1]
                    sum_down(window, slot_taps, ring, m * slots, area, upper, lower)
            for k in range(2):
                here = z + k
                if here >= min(map_back, back + halo):
                    break
                if gradients:
                    derivatives(
                        moments[k], moments[2 + k], moments[4 + k], moments[6 + k], offsets_d,
                        offsets_t, constants, contrast, sign, inside, area, source[3], source[0],
                        source[1], source[2], values,
                    )  # fmt: skip
                else:
                    similarity(
                        moments[k], moments[2 + k], moments[4 + k], moments[6 + k], offsets_d,
                        offsets_t, constants, contrast, area, values,
                    )  # fmt: skip
                for i in range(begin, end):
                    at = (i - begin) * length
                    if map_weights is not None:
                        weights = map_weights[volume // channels, here - map_offset, i - map_offset]
                        weights = weights[first - map_offset : first - map_offset + count]
                        weigh_deficits(weights, values[at:])
                        for m in range(maps):
                            weigh(weights, source[m, at:])
                    if front <= here < back and top <= i < bottom:
                        sum_of_map += total(values[at + own_begin : at + own_end])
                if gradients:
                    _derivatives_of_slice(
                        source[:maps], height, width, map_offset, padding, window, begin, top,
                        bottom, first, count, length, left, right, grad_length, rows, grad_ring,
                        here % slots,
                    )  # fmt: skip
            if not gradients or z + 1 - halo < front:
                continue
            for i in range(2):
                fill(zero, slots, slot_taps[i])
                add_mirrored_taps(
                    window, z + i - halo, depth, map_offset, map_back, padding, scale, slot_taps[i]
                )
            for m in range(maps):
                upper, lower = grad_sums[2 * m], grad_sums[2 * m + 1]
                sum_down(window, slot_taps, grad_ring, m * slots, grad_area, upper, lower)
            for k in range(2):
                done = z + k - halo
                if not front <= done < back:
                    continue
                plane = volume * depth + done
                for i in range(top, bottom):
                    at = (i - top + 1) * grad_length
                    load_row(
                        x, y, plane, height, width, i, left, low, offset_d, offset_t, padding, 0,
                        right - left, rows[2], rows[3],
                    )  # fmt: skip
                    for g in range(gradients):
                        finish_gradient(
                            grad_sums[k, at:], grad_sums[6 + k, at:], grad_sums[2 + k, at:],
                            grad_sums[4 + k, at:], rows[2], rows[3], dtype(1 if g == 0 else -1),
                            gradients == 2, right - left, line,
                        )  # fmt: skip
                        image = grad_x if g == 0 else grad_y
                        if l1 is not None:
                            step, pixels = l1 if g == 0 else -l1, line[: right - left]
                            added = add_signs_of_row(x, y, plane, i, left, step, pixels)
                            if g == 0:
                                sum_of_differences += added
                        store_row(image, plane, i, left, right - left, line)
        sums[volume, part] = sum_of_map
        if l1 is not None:
            abs_differences[volume, part] = sum_of_differences
