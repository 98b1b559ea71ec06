"""`march` for volumes."""

from ...._runtime.numba_kernels import entry, kernel
from .constants import SYMMETRIC, VALID, X, Y
from .filters import (
    _add_images,
    _add_taps,
    _mirror_columns,
    _moments_across,
    _sum_across,
    _sum_down,
)
from .formulas import (
    _add_signs_of_row,
    _derivatives,
    _finish,
    _similarity,
    _total,
    _weigh,
    _weigh_deficits,
)
from .images import _copy, _fill, _levels, _load, _representable, _shown, _store


@kernel
def _moments_of_slice(
    x, y, plane, height, width, low, level_d, level_t, padding, extent, window, top, bottom, first,
    count, wide, rows, slabs, slot,
):  # fmt: skip
    """Sums across and down of a slice, for rows ``top`` to ``bottom`` of its map, into a slot.

    ``plane`` is -1 for a slice beside the volume.
    """
    radius, slots = len(extent) // 2, len(extent) + 1
    taps, images, ring = rows[:2], rows[2:4], rows[6:]
    loaded = top - radius
    for i in range(top, bottom, 2):
        while loaded <= i + 1 + radius:
            if plane < 0:
                _fill(-level_d, count + 2 * radius, images[0])
                _fill(-level_t, count + 2 * radius, images[1])
            else:
                _load(
                    x, y, plane, height, width, loaded, first - radius, low, level_d, level_t,
                    padding, 0, count + 2 * radius, images[0], images[1],
                )  # fmt: skip
            for m in range(2):
                mean = ring[m * slots + loaded % slots]
                square = ring[(m + 2) * slots + loaded % slots]
                _moments_across(extent, window, images[m], wide, mean, square)
            loaded += 1
        for k in range(2):
            _fill(taps.dtype.type(0), slots, taps[k])
            _add_taps(window, i + k, i - slots, i + slots, taps.dtype.type(1), taps[k])
        at = (i - top) * wide
        for m in range(4):
            out = slabs[m * slots + slot, at : at + 2 * wide]
            _sum_down(extent, taps, ring, m * slots, wide, out, out[wide:])


@kernel
def _derivatives_of_slice(
    maps, height, width, inset, padding, extent, window, begin, top, bottom, first, count, wide,
    left, right, columns, rows, slabs, slot,
):  # fmt: skip
    """Sums across and down of a slice's derivatives, for its gradient, into a slot.

    ``maps`` begin at row ``begin`` and column ``first``, the result a row above ``top`` and at
    column ``left``.
    """
    radius, slots = len(extent) // 2, len(extent) + 1
    taps, source, ring = rows[:2], rows[4], rows[6 : 6 + slots]
    zero, one = rows.dtype.type(0), rows.dtype.type(1)
    shift = first - left + radius
    for m in range(maps.shape[0]):
        _fill(zero, rows.shape[1], source)
        for k in range(slots):
            _fill(zero, rows.shape[1], ring[k])
        for i in range(begin, bottom + radius, 2):
            for k in range(2):
                if i + k < min(height - inset, bottom + radius):
                    at = (i + k - begin) * wide
                    _copy(maps[m, at : at + count], source[shift : shift + count])
                    across = ring[(i + k) % slots]
                    _sum_across(extent, window, source, columns, across)
                    if padding == SYMMETRIC:
                        _mirror_columns(window, source, 0, left, right, width, across)
            if i + 1 - radius < top:
                continue
            for k in range(2):
                _fill(zero, slots, taps[k])
                _add_images(
                    window, i + k - radius, height, inset, height - inset, padding, one, taps[k]
                )
            at = (i - radius - top + 1) * columns
            out = slabs[m * slots + slot, at : at + 2 * columns]
            _sum_down(extent, taps, ring, 0, columns, out, out[columns:])


@entry
def march_volume(
    x, y, grad_x, grad_y, weight, shape, extent, window, low, c1, c2, usual, l1, padding, mirrored,
    contrast, want, tasks, rows, slabs, out, distances,
):  # fmt: skip
    """`march` through the slices of volumes: a row of it is a slice that is summed across and down.

    Tasks are ``(volume, part, front, back, top, bottom, left, right)``; ``weight`` is
    ``(N, D', H', W')``.
    """
    kind = rows.dtype.type
    zero, one = kind(0), kind(1)
    size = len(extent)
    radius = size // 2
    slots = size + 1
    channels, depth, height, width = shape[1], shape[2], shape[3], shape[4]
    inset = radius if padding == VALID else 0
    map_back, map_bottom, map_right = depth - inset, height - inset, width - inset
    scale = usual
    if weight is None:
        scale = kind(usual / ((map_back - inset) * (map_bottom - inset) * (map_right - inset)))
    reach = radius if want else 0
    maps = (4 if want == X + Y else 3) if want else 0
    sign = kind(1 if want == X else (-1 if want == Y else 0))
    ring, grad_ring, rest = slabs[: 4 * slots], slabs[4 * slots : 8 * slots], slabs[8 * slots :]
    moments, source, grad_sums = rest[:8], rest[8:12], rest[12:20]
    levels_d, levels_t, inside, values = rest[20], rest[21], rest[22], rest[23]
    taps, line = rows[:2], rows[5]

    for index in range(tasks.shape[0]):
        volume, part, front, back = (
            tasks[index, 0], tasks[index, 1], tasks[index, 2], tasks[index, 3]
        )  # fmt: skip
        top, bottom, left, right = (
            tasks[index, 4], tasks[index, 5], tasks[index, 6], tasks[index, 7]
        )  # fmt: skip
        begin, end = max(top - reach, inset), min(bottom + reach, map_bottom)
        first = max(left - reach, inset)
        count = max(min(right + reach, map_right) - first, 0)
        wide = -(-count // 64) * 64
        columns = -(-(right - left) // 64) * 64
        area = max(end - begin, 0) * wide
        grad_area = (bottom - top + 2) * columns
        own_begin = max(left - first, 0)
        own_end = max(min(right - first, count), own_begin)

        middle = volume * depth + (front + back) // 2
        d_base, t_base = _levels(x, y, middle, top, bottom, left, right, low)
        level_d, level_t = kind(d_base), _representable(kind(t_base), low)
        _fill(level_d, area, levels_d)
        _fill(level_t, area, levels_t)
        _fill(zero, area, inside)
        for i in range(end - begin):
            _fill(one, count, inside[i * wide :])
        for k in range(maps * slots):
            _fill(zero, grad_area, grad_ring[k])

        total = apart = 0.0
        start = max(front - reach, inset)
        loaded = start - radius
        for z in range(start, back + reach, 2):
            while z < map_back and loaded <= z + 1 + radius:
                shown = _shown(loaded, depth, padding)
                plane = volume * depth + shown if shown >= 0 else -1
                _moments_of_slice(
                    x, y, plane, height, width, low, level_d, level_t, padding, extent, window,
                    begin, end, first, count, wide, rows, ring, loaded % slots,
                )  # fmt: skip
                loaded += 1
            if z < map_back:
                for i in range(2):
                    _fill(zero, slots, taps[i])
                    _add_taps(window, z + i, z - size, z + slots, one, taps[i])
                for m in range(4):
                    upper, lower = moments[2 * m], moments[2 * m + 1]
                    _sum_down(extent, taps, ring, m * slots, area, upper, lower)
            for k in range(2):
                here = z + k
                if here >= min(map_back, back + reach):
                    break
                if want:
                    _derivatives(
                        moments[k], moments[2 + k], moments[4 + k], moments[6 + k], levels_d,
                        levels_t, c1, c2, contrast, sign, inside, area, source[3], source[0],
                        source[1], source[2], values,
                    )  # fmt: skip
                else:
                    _similarity(
                        moments[k], moments[2 + k], moments[4 + k], moments[6 + k], levels_d,
                        levels_t, c1, c2, contrast, area, values,
                    )  # fmt: skip
                for i in range(begin, end):
                    at = (i - begin) * wide
                    if weight is not None:
                        weights = weight[volume // channels, here - inset, i - inset]
                        weights = weights[first - inset : first - inset + count]
                        _weigh_deficits(weights, values[at:])
                        for m in range(maps):
                            _weigh(weights, source[m, at:])
                    if front <= here < back and top <= i < bottom:
                        total += _total(values[at + own_begin : at + own_end])
                if want:
                    _derivatives_of_slice(
                        source[:maps], height, width, inset, padding, extent, window, begin, top,
                        bottom, first, count, wide, left, right, columns, rows, grad_ring,
                        here % slots,
                    )  # fmt: skip
            if not want or z + 1 - reach < front:
                continue
            for i in range(2):
                _fill(zero, slots, taps[i])
                _add_images(window, z + i - reach, depth, inset, map_back, padding, scale, taps[i])
            for m in range(maps):
                upper, lower = grad_sums[2 * m], grad_sums[2 * m + 1]
                _sum_down(extent, taps, grad_ring, m * slots, grad_area, upper, lower)
            for k in range(2):
                done = z + k - reach
                if not front <= done < back:
                    continue
                plane = volume * depth + done
                for i in range(top, bottom):
                    at = (i - top + 1) * columns
                    _load(
                        x, y, plane, height, width, i, left, low, level_d, level_t, padding, 0,
                        right - left, rows[2], rows[3],
                    )  # fmt: skip
                    for wanted in range(X, Y + 1):
                        if not want & wanted:
                            continue
                        _finish(
                            grad_sums[k, at:], grad_sums[6 + k, at:], grad_sums[2 + k, at:],
                            grad_sums[4 + k, at:], rows[2], rows[3], kind(1 if wanted == X else -1),
                            want == X + Y, right - left, line,
                        )  # fmt: skip
                        image = grad_x if wanted == X else grad_y
                        if l1 is not None:
                            step, pixels = l1 if wanted == X else -l1, line[: right - left]
                            further = _add_signs_of_row(x, y, plane, i, left, step, pixels)
                            if wanted == X or want == Y:
                                apart += further
                        _store(image, plane, i, left, right - left, line)
        out[volume, part] = total
        distances[volume, part] = apart
