"""Numba kernels of the CPU path: the mean and its gradient in one march down the rows.

A task is a band of rows and a strip of columns of one plane, or narrow planes side by side. For
each row of the map the kernel keeps the horizontal sums of the rows under the window in a ring,
sums those vertically, turns the four moments into S and its derivatives, sums the derivatives
horizontally into a second ring and those vertically into a finished row of the gradient. Nothing
of the size of an image is kept.

With ``d = x - y`` and ``t = x + y``, less a constant near their level in the task (variances do not
change with it, means add it back), and the formulas of the reference path,

    a = mu_d^2 / (mu_t^2 + mu_d^2 + 2 C1)         luminance          = 1 - 2 a
    b = var_d / (var_t + var_d + 2 C2)            contrast_structure = 1 - 2 b

    V_d = dS/dE[d^2] = -2 (1 - b) luminance / (var_t + var_d + 2 C2)         V_t = dS/dE[t^2] alike
    M_d = dS/dmu_d, with what var_d = E[d^2] - mu_d^2 adds                   M_t = dS/dmu_t alike

    dx = g * (M_t + M_d) + 2 t (g * V_t) + 2 d (g * V_d)
    dy = g * (M_t - M_d) + 2 t (g * V_t) - 2 d (g * V_d)

All in one file, because Numba's cache on disk looks for changes in the file of an entry alone.
"""

from collections import namedtuple

import numpy as np
from numba import njit

from .._numba import OPTIONS, entry

VALID, ZEROS, SYMMETRIC = 0, 1, 2
X, Y = 1, 2

# A tensor ``(N, C, H, W)`` or ``(N, C, D, H, W)`` with any strides: ``starts`` has the place of the
# first pixel of each plane, a volume's slices in turn, ``row`` and ``column`` the steps from there.
Image = namedtuple("Image", ["flat", "starts", "row", "column"])

# Called by other kernels alone, so that nothing to call them from Python is compiled.
_kernel = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **OPTIONS)
# In the order that is written, where another would round what is exact.
_ordered = njit(
    no_cpython_wrapper=True,
    no_cfunc_wrapper=True,
    forceinline=True,
    **{**OPTIONS, "fastmath": False},
)
# For each plane of a row: where the call would cost as much as the columns of a narrow one.
_inlined = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, forceinline=True, **OPTIONS)


@_inlined
def _place(image, plane, i, j):
    return image.starts[plane] + i * image.row + j * image.column


@_kernel
def _gather(image, place, out):
    """Pixels of a row from a place on, side by side."""
    for j in range(out.shape[0]):
        out[j] = image.flat[place + j * image.column]


@_inlined
def _store(image, plane, i, begin, count, row):
    start = _place(image, plane, i, begin)
    if image.column == 1:
        target = image.flat[start : start + count]
        for j in range(count):
            target[j] = row[j]
    else:
        for j in range(count):
            image.flat[start + j * image.column] = row[j]


@_inlined
def _shown(index, size, padding):
    """The pixel that a position in or beside the image shows; -1 for none."""
    if 0 <= index < size:
        return index
    if padding == SYMMETRIC:
        index = -1 - index if index < 0 else 2 * size - 1 - index
        if 0 <= index < size:
            return index
    return -1


@_ordered
def _difference(a, b, level):
    """The difference of pixels, less its level: nearly equal pixels have an exact one."""
    return (a - b) - level


@_ordered
def _variance(square, mean):
    """Zero in a window of one pixel, which a fused multiply-add would miss by a rounding."""
    return square - mean * mean


@_ordered
def _pixel_total(a, b, half):
    """The total of pixels, less its level: of pixels near to the level an exact one."""
    return (a - half) + (b - half)


@_ordered
def _representable(level, low):
    """A level next to this one: half of it and ``low`` are a number, which each pixel is less."""
    return (level + (low + low)) - (low + low)


@_inlined
def _load(x, y, plane, height, width, i, first, low, level_d, level_t, padding, at, count, d, t):
    """Difference and total of a row from column ``first`` on, less their levels, from ``at`` on."""
    here = _shown(i, height, padding)
    if here < 0:
        _fill(-level_d, count, d[at:])
        _fill(-level_t, count, t[at:])
        return
    begin, end = max(first, 0), min(first + count, width)
    x_at, y_at = _place(x, plane, here, begin), _place(y, plane, here, begin)
    half = d.dtype.type(0.5) * level_t + low
    # What belongs into column 0.
    at -= first
    d_row, t_row = d[at + begin : at + end], t[at + begin : at + end]
    if x.column == 1 and y.column == 1:
        _combine(x.flat[x_at : x_at + end - begin], y.flat[y_at:], level_d, half, d_row, t_row)
    else:
        for j in range(end - begin):
            a, b = x.flat[x_at + j * x.column], y.flat[y_at + j * y.column]
            d_row[j] = _difference(a, b, level_d)
            t_row[j] = _pixel_total(a, b, half)
    for side in range(2):
        beside = range(first, begin) if side == 0 else range(end, first + count)
        for j in beside:
            column = _shown(j, width, padding)
            if column < 0:
                d[at + j] = -level_d
                t[at + j] = -level_t
            else:
                d[at + j] = d[at + column]
                t[at + j] = t[at + column]


@_kernel
def _fill(value, count, out):
    for j in range(count):
        out[j] = value


@_inlined
def _combine(x, y, level_d, half, d, t):
    for j in range(x.shape[0]):
        d[j] = _difference(x[j], y[j], level_d)
        t[j] = _pixel_total(x[j], y[j], half)


@_kernel
def _moments_across(extent, window, a, count, mean, square):
    """Sums of the values and of their squares, each value loaded and weighed once."""
    for j in range(count):
        weighed = window[0] * a[j]
        first = weighed
        second = weighed * a[j]
        for k in range(1, len(extent)):
            weighed = window[k] * a[j + k]
            first += weighed
            second += weighed * a[j + k]
        mean[j] = first
        square[j] = second


@_kernel
def _sum_across(extent, window, a, count, out):
    for j in range(count):
        total = window[0] * a[j]
        for k in range(1, len(extent)):
            total += window[k] * a[j + k]
        out[j] = total


@_kernel
def _sum_down(extent, taps, ring, begin, count, upper, lower):
    """Two rows at once from a ring one row longer than the window: half the loads."""
    for j in range(count):
        value = ring[begin, j]
        first = taps[0, 0] * value
        second = taps[1, 0] * value
        for k in range(1, len(extent) + 1):
            value = ring[begin + k, j]
            first += taps[0, k] * value
            second += taps[1, k] * value
        upper[j] = first
        lower[j] = second


@_kernel
def _similarity(mu_d, mu_t, e_d, e_t, level_d, level_t, c1, c2, contrast, count, out):
    """The map's row, SSIM or its contrast-structure factor."""
    one, two = out.dtype.type(1), out.dtype.type(2)
    for j in range(count):
        var_d = _variance(e_d[j], mu_d[j])
        var_t = _variance(e_t[j], mu_t[j])
        value = one - two * var_d / (var_t + var_d + two * c2)
        if not contrast:
            full_d, full_t = mu_d[j] + level_d[j], mu_t[j] + level_t[j]
            dd = full_d * full_d
            value *= one - two * dd / (full_t * full_t + dd + two * c1)
        out[j] = value


@_kernel
def _derivatives(
    mu_d, mu_t, e_d, e_t, level_d, level_t, c1, c2, contrast, sign, inside, count, m_d, m_t, v_d,
    v_t, out,
):  # fmt: skip
    """`_similarity` with M_d, M_t + sign M_d, V_d and V_t."""
    zero, one, two = out.dtype.type(0), out.dtype.type(1), out.dtype.type(2)
    for j in range(count):
        mean_d, mean_t = mu_d[j], mu_t[j]
        var_d = _variance(e_d[j], mean_d)
        var_t = _variance(e_t[j], mean_t)
        inverse = one / (var_t + var_d + two * c2)
        b = var_d * inverse
        value = one - two * b
        from_var_d = -two * (one - b) * inverse
        from_var_t = two * b * inverse
        from_mu_d = from_mu_t = zero
        if not contrast:
            full_d, full_t = mean_d + level_d[j], mean_t + level_t[j]
            dd = full_d * full_d
            inverse = one / (full_t * full_t + dd + two * c1)
            a = dd * inverse
            luminance = one - two * a
            from_mu_d = -two * two * value * full_d * (one - a) * inverse
            from_mu_t = two * two * value * full_t * a * inverse
            from_var_d *= luminance
            from_var_t *= luminance
            value *= luminance
        from_mu_d -= two * mean_d * from_var_d
        from_mu_t -= two * mean_t * from_var_t
        # Chosen, not multiplied: what is not inside may be NaN, from another plane.
        m_d[j] = from_mu_d if inside[j] > zero else zero
        m_t[j] = from_mu_t + sign * from_mu_d if inside[j] > zero else zero
        v_d[j] = from_var_d if inside[j] > zero else zero
        v_t[j] = from_var_t if inside[j] > zero else zero
        out[j] = value


@_kernel
def _weigh(weight, a):
    for j in range(weight.shape[0]):
        a[j] *= weight[j]


@_kernel
def _weigh_deficits(weight, a):
    """What values are short of 1, weighed: where nothing is missing no rounding shows."""
    for j in range(weight.shape[0]):
        a[j] = weight[j] * (a[j] - a.dtype.type(1))


@_inlined
def _total(a):
    total = a.dtype.type(0)
    for j in range(a.shape[0]):
        total += a[j]
    return total


@_kernel
def _finish(mean_t, mean_d, v_d, v_t, d, t, sign, apart, count, out):
    """A row of the gradient; ``apart`` says that ``mean_t`` does not hold ``mean_d`` already."""
    two = out.dtype.type(2)
    for j in range(count):
        mean = mean_t[j]
        if apart:
            mean += sign * mean_d[j]
        out[j] = mean + two * (t[j] * v_t[j] + sign * d[j] * v_d[j])


@_inlined
def _add_signs_of_row(x, y, plane, i, begin, scale, out):
    """`_add_signs` of pixels of a row from column ``begin`` on."""
    x_at, y_at = _place(x, plane, i, begin), _place(y, plane, i, begin)
    if x.column == 1 and y.column == 1:
        return _add_signs(x.flat[x_at:], y.flat[y_at:], scale, out)
    total = out.dtype.type(0)
    for j in range(out.shape[0]):
        d = x.flat[x_at + j * x.column] - y.flat[y_at + j * y.column]
        out[j] += _signed(scale, d)
        total += abs(d)
    return total


@_inlined
def _signed(scale, d):
    """Zero and NaN are their own signs."""
    return scale if d > 0 else (-scale if d < 0 else d)


@_kernel
def _add_signs(x, y, scale, out):
    """Adds ``scale`` times the sign of ``x - y``; returns the sum of ``|x - y|``."""
    total = out.dtype.type(0)
    for j in range(out.shape[0]):
        d = x[j] - y[j]
        out[j] += _signed(scale, d)
        total += abs(d)
    return total


@_kernel
def _mirror_columns(window, derivative, at, first, last, width, out):
    """Adds what mirrored columns beside the image send back to the pixels that they show.

    From ``at`` on ``derivative`` begins a radius before column ``first``, at which ``out`` begins;
    ``last`` ends it.
    """
    radius = window.shape[0] // 2
    for side in range(2):
        begin = first if side == 0 else max(width - radius, first)
        end = min(radius, last) if side == 0 else last
        for column in range(begin, end):
            image = -1 - column if side == 0 else 2 * width - 1 - column
            for k in range(window.shape[0]):
                source = image + k - radius
                if 0 <= source < width:
                    sent = derivative[at + source - first + radius]
                    out[at + column - first] += window[k] * sent


@_kernel
def _add_taps(window, row, begin, end, scale, taps):
    """Adds the window around a row to the weights of a ring's slots, for rows in it alone."""
    size = window.shape[0]
    slot = (row - size // 2) % (size + 1)
    for k in range(size):
        if begin <= row + k - size // 2 < end:
            taps[slot] += scale * window[k]
        slot = slot + 1 if slot < size else 0


@_kernel
def _add_images(window, row, size, begin, end, padding, scale, taps):
    """`_add_taps` for a row of the gradient, and for what lies beside the map and shows it."""
    radius = window.shape[0] // 2
    for side in range(3 if padding == SYMMETRIC else 1):
        image = row
        if side > 0:
            image = -1 - row if side == 1 else 2 * size - 1 - row
        if -radius <= image < size + radius:
            _add_taps(window, image, begin, end, scale, taps)


@_kernel
def _levels(x, y, plane, top, bottom, left, right, low):
    """Means of the difference and of the total over a few pixels, without those far from most.

    One pixel of 1e5 among them would move the level of all others so far that their variances
    cancel.
    """
    level_d = level_t = 0.0
    reach_d = reach_t = np.inf
    for _ in range(2):
        count_d = count_t = 0
        sum_d = sum_t = squares_d = squares_t = 0.0
        for i in range(top, bottom, max(1, (bottom - top) // 8)):
            for j in range(left, right, max(2, (right - left) // 16)):
                a = x.flat[x.starts[plane] + i * x.row + j * x.column]
                b = y.flat[y.starts[plane] + i * y.row + j * y.column]
                off_d, off_t = a - b - level_d, a + b - level_t
                if abs(off_d) < reach_d:
                    sum_d += off_d
                    squares_d += off_d * off_d
                    count_d += 1
                if abs(off_t) < reach_t:
                    sum_t += off_t
                    squares_t += off_t * off_t
                    count_t += 1
        # None where pixels are flat, or not finite.
        if count_d > 0:
            mean = sum_d / count_d
            level_d += mean
            reach_d = 2 * np.sqrt(max(squares_d / count_d - mean * mean, 0.0))
        if count_t > 0:
            mean = sum_t / count_t
            level_t += mean
            reach_t = 2 * np.sqrt(max(squares_t / count_t - mean * mean, 0.0))
    level_t -= 2 * low
    # So that what is not finite stays in the windows that hold it.
    return (
        level_d if abs(level_d) < np.inf else 0.0,
        level_t if abs(level_t) < np.inf else 0.0,
    )


@entry
def march(
    x,
    y,
    grad_x,
    grad_y,
    weight,
    shape,
    extent,
    window,
    low,
    c1,
    c2,
    usual,
    l1,
    padding,
    mirrored,
    contrast,
    want,
    tasks,
    scratch,
    out,
    distances,
):
    """Runs tasks ``(plane, planes, part, top, bottom, left, right)`` on images of this shape.

    ``extent`` is a tuple as long as ``window``, for loops that are unrolled. ``weight`` is
    ``(N, H', W')``; ``None`` for equal weights, as is ``mirrored`` but for symmetric padding, so
    that less is compiled for what most images need. A gradient is written where ``want`` says so,
    times ``usual``; and that of a mix, where each pixel's ``|x - y|`` has ``l1`` in it, else
    ``None``.
    The sum of a task's part of the map of each of its planes goes into ``out``, a row for each
    plane, and in a mix that of its ``|x - y|`` into ``distances``.
    """
    kind = scratch.dtype.type
    size = len(extent)
    radius = size // 2
    slots = size + 1
    channels, height, width = shape[1], shape[2], shape[3]
    inset = radius if padding == VALID else 0
    map_bottom, map_right = height - inset, width - inset
    zero, one = kind(0), kind(1)
    scale = usual
    if weight is None:
        scale = kind(usual / ((map_bottom - inset) * (map_right - inset)))
    # The gradient of a pixel takes all windows that hold it, also those centred in other tasks.
    reach = radius if want else 0
    maps = (4 if want == X + Y else 3) if want else 0
    sign = kind(1 if want == X else (-1 if want == Y else 0))

    # Differences, then totals.
    rows = scratch[: 2 * slots]
    ring, grad_ring = scratch[2 * slots : 6 * slots], scratch[6 * slots : 10 * slots]
    rest = scratch[10 * slots :]
    moments, source, grad_sums = rest[:8], rest[8:12], rest[12:20]
    level_d, level_t, inside, line = rest[20], rest[21], rest[22], rest[23]
    taps = rest[24:26]

    for index in range(tasks.shape[0]):
        plane, planes, part = tasks[index, 0], tasks[index, 1], tasks[index, 2]
        top, bottom = tasks[index, 3], tasks[index, 4]
        left, right = tasks[index, 5], tasks[index, 6]
        first = max(left - reach, inset)
        count = max(min(right + reach, map_right) - first, 0)
        # Where a plane's part of a row of the map begins in its derivatives' row: the window
        # passes over both its ends and meets zeros there.
        shift = first - left + radius
        # Other tasks add up what is centred in them.
        own_begin = max(left - first, 0)
        own_end = max(min(right - first, count), own_begin)
        pitch = count + 2 * radius
        # Loops are compiled for steps of 64 values: whole steps are faster than a rest.
        wide = -(-planes * pitch // 64) * 64

        _fill(zero, scratch.shape[1], inside)
        for m in range(maps):
            _fill(zero, scratch.shape[1], source[m])
            for slot in range(slots):
                _fill(zero, scratch.shape[1], grad_ring[m * slots + slot])
        for p in range(planes):
            at = p * pitch
            d_base, t_base = _levels(x, y, plane + p, top, bottom, left, right, low)
            _fill(kind(d_base), pitch, level_d[at:])
            _fill(_representable(kind(t_base), low), pitch, level_t[at:])
            _fill(one, count, inside[at:])
            out[plane + p, part] = 0
            if l1 is not None:
                distances[plane + p, part] = 0

        begin = max(top - reach, inset)
        loaded = begin - radius
        for row in range(begin, bottom + reach, 2):
            while row < map_bottom and loaded <= row + 1 + radius:
                slot = loaded % slots
                # Kept for the gradient alone.
                kept = slot if want else 0
                d, t = rows[kept], rows[slots + kept]
                for p in range(planes):
                    at = p * pitch
                    _load(
                        x, y, plane + p, height, width, loaded, first - radius, low, level_d[at],
                        level_t[at], padding, at, pitch, d, t,
                    )  # fmt: skip
                for m in range(2):
                    mean, square = ring[m * slots + slot], ring[(m + 2) * slots + slot]
                    _moments_across(extent, window, rows[m * slots + kept], wide, mean, square)
                loaded += 1
            if row < map_bottom:
                for i in range(2):
                    _fill(zero, slots, taps[i])
                    _add_taps(window, row + i, row - size, row + slots, one, taps[i])
                for m in range(4):
                    upper, lower = moments[2 * m], moments[2 * m + 1]
                    _sum_down(extent, taps, ring, m * slots, wide, upper, lower)
            for i in range(2):
                here = row + i
                if here >= min(map_bottom, bottom + reach):
                    break
                if want:
                    _derivatives(
                        moments[i], moments[2 + i], moments[4 + i], moments[6 + i], level_d,
                        level_t, c1, c2, contrast, sign, inside, wide, source[3, shift:],
                        source[0, shift:], source[1, shift:], source[2, shift:], line,
                    )  # fmt: skip
                else:
                    _similarity(
                        moments[i], moments[2 + i], moments[4 + i], moments[6 + i], level_d,
                        level_t, c1, c2, contrast, wide, line,
                    )  # fmt: skip
                if weight is not None:
                    for p in range(planes):
                        at = p * pitch
                        weights = weight[(plane + p) // channels, here - inset]
                        weights = weights[first - inset : first - inset + count]
                        _weigh_deficits(weights, line[at:])
                        for m in range(maps):
                            _weigh(weights, source[m, shift + at :])
                if top <= here < bottom:
                    for p in range(planes):
                        at = p * pitch
                        out[plane + p, part] += _total(line[at + own_begin : at + own_end])
                for m in range(maps):
                    sums = grad_ring[m * slots + here % slots]
                    _sum_across(extent, window, source[m], wide, sums)
                    if mirrored is not None:
                        for p in range(planes):
                            _mirror_columns(window, source[m], p * pitch, left, right, width, sums)
            if want and row + 1 - reach >= top:
                for i in range(2):
                    _fill(zero, slots, taps[i])
                    _add_images(
                        window, row + i - reach, height, inset, map_bottom, padding, scale, taps[i]
                    )
                for m in range(maps):
                    upper, lower = grad_sums[2 * m], grad_sums[2 * m + 1]
                    _sum_down(extent, taps, grad_ring, m * slots, wide, upper, lower)
                for i in range(2):
                    done = row + i - reach
                    if not top <= done < bottom:
                        continue
                    # The pixels that a plane's gradient is for, in the rows that were loaded.
                    ahead = left - first + radius
                    d, t = rows[done % slots, ahead:], rows[slots + done % slots, ahead:]
                    for wanted in range(X, Y + 1):
                        if not want & wanted:
                            continue
                        _finish(
                            grad_sums[i], grad_sums[6 + i], grad_sums[2 + i], grad_sums[4 + i], d,
                            t, kind(1 if wanted == X else -1), want == X + Y, wide, line,
                        )  # fmt: skip
                        image = grad_x if wanted == X else grad_y
                        for p in range(planes):
                            pixels = line[p * pitch : p * pitch + right - left]
                            if l1 is not None:
                                step = l1 if wanted == X else -l1
                                apart = _add_signs_of_row(x, y, plane + p, done, left, step, pixels)
                                if wanted == X or want == Y:
                                    distances[plane + p, part] += apart
                            _store(image, plane + p, done, left, right - left, pixels)


@_kernel
def _copy(a, out):
    for j in range(out.shape[0]):
        out[j] = a[j]


@_kernel
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


@_kernel
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


@entry
def halve(image, shape, begin, end, rows, out):
    """2x2 means: rows ``begin`` to ``end`` of all planes of ``out``, ``(planes, h, w)``."""
    height, width = shape[2], shape[3]
    for index in range(begin, end):
        plane = index // out.shape[1]
        i = index - plane * out.shape[1]
        upper = _place(image, plane, 2 * i, 0)
        lower = _place(image, plane, min(2 * i + 1, height - 1), 0)
        if image.column == 1:
            _mean(image.flat[upper : upper + width], image.flat[lower : lower + width], rows[0])
        else:
            _gather(image, upper, rows[0])
            _gather(image, lower, rows[1])
            _mean(rows[0], rows[1], rows[0])
        _halve_row(rows[0, :width], out[plane, i])


@_kernel
def _mean(a, b, out):
    half = out.dtype.type(0.5)
    for j in range(a.shape[0]):
        out[j] = half * (a[j] + b[j])


@_kernel
def _halve_row(row, out):
    half = out.dtype.type(0.5)
    for j in range(row.shape[0] // 2):
        out[j] = half * (row[2 * j] + row[2 * j + 1])
    if row.shape[0] % 2:
        out[-1] = row[-1]


@entry
def sweep(gradient, shape, scale, coarse, begin, end, row):
    """Scales rows of a level's gradient and adds what the next coarser level sends back.

    ``scale`` has a number for each plane; ``coarse`` is ``(planes, h, w)``.
    """
    height, width = shape[2], shape[3]
    kind = coarse.dtype.type
    for index in range(begin, end):
        plane = index // height
        i = index - plane * height
        start = _place(gradient, plane, i, 0)
        share = kind(0.5 if i == height - 1 and height % 2 else 0.25)
        if gradient.column == 1:
            here = gradient.flat[start : start + width]
            _scale_and_spread(coarse[plane, i // 2], share, scale[plane], here)
        else:
            _gather(gradient, start, row[:width])
            _scale_and_spread(coarse[plane, i // 2], share, scale[plane], row[:width])
            _store(gradient, plane, i, 0, width, row)


@_kernel
def _scale_and_spread(coarse, share, factor, a):
    for j in range(a.shape[0] // 2):
        sent = coarse[j] * share
        a[2 * j] = a[2 * j] * factor + sent
        a[2 * j + 1] = a[2 * j + 1] * factor + sent
    if a.shape[0] % 2:
        a[-1] = a[-1] * factor + coarse[-1] * (share + share)


@entry
def distance(x, y, height, width, begin, end, out):
    """Sums of ``|x - y|`` over rows ``begin`` to ``end`` of all planes."""
    for index in range(begin, end):
        plane = index // height
        i = index - plane * height
        x_at, y_at = _place(x, plane, i, 0), _place(y, plane, i, 0)
        if x.column == 1 and y.column == 1:
            out[index] = _sum_of_distances(x.flat[x_at : x_at + width], y.flat[y_at:])
        else:
            total = 0.0
            for j in range(width):
                total += abs(x.flat[x_at + j * x.column] - y.flat[y_at + j * y.column])
            out[index] = total


@_kernel
def _sum_of_distances(x, y):
    total = x.dtype.type(0)
    for j in range(x.shape[0]):
        total += abs(x[j] - y[j])
    return total


@entry
def add_sign(gradient, x, y, scale, height, width, begin, end):
    """Adds ``scale`` of each plane times the sign of ``x - y`` to rows of the gradient."""
    for index in range(begin, end):
        plane = index // height
        i = index - plane * height
        at, x_at, y_at = (
            _place(gradient, plane, i, 0),
            _place(x, plane, i, 0),
            _place(y, plane, i, 0),
        )
        if gradient.column == 1 and x.column == 1 and y.column == 1:
            _add_signs(x.flat[x_at:], y.flat[y_at:], scale[plane], gradient.flat[at : at + width])
        else:
            for j in range(width):
                d = x.flat[x_at + j * x.column] - y.flat[y_at + j * y.column]
                gradient.flat[at + j * gradient.column] += _signed(scale[plane], d)
