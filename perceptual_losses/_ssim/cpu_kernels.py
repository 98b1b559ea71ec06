"""Numba kernels of the CPU path: the mean and its gradient in one march down the rows.

A task is a band of rows and a strip of columns of one plane. For each row of the map the kernel
keeps the horizontal sums of the rows under the window in a ring, sums those vertically, turns the
four moments into S and its derivatives, sums the derivatives horizontally into a second ring and
those vertically into a finished row of the gradient. Nothing of the size of an image is kept.

With ``d = x - y`` and ``t = x + y``, less a constant near their level in the task (variances do not
change with it, means add it back), and the formulas of the reference path,

    a = mu_d^2 / (mu_t^2 + mu_d^2 + 2 C1)         luminance          = 1 - 2 a
    b = var_d / (var_t + var_d + 2 C2)            contrast_structure = 1 - 2 b

    V_d = dS/dE[d^2] = -2 (1 - b) luminance / (var_t + var_d + 2 C2)         V_t = dS/dE[t^2] alike
    M_d = dS/dmu_d, with what var_d = E[d^2] - mu_d^2 adds                   M_t = dS/dmu_t alike

    dx = g * (M_t + M_d) + 2 t (g * V_t) + 2 d (g * V_d)
    dy = g * (M_t - M_d) + 2 t (g * V_t) - 2 d (g * V_d)
"""

from collections import namedtuple

import numpy as np
from numba import njit

VALID, ZEROS, SYMMETRIC = 0, 1, 2
X, Y = 1, 2

# One plane of a tensor with any strides: a pixel is ``flat[offset + i * row + j * column]``.
Plane = namedtuple("Plane", ["flat", "offset", "row", "column"])

# Fused multiply-adds, and sums in any order; NaN and infinity keep their meaning.
FASTMATH = {"contract", "reassoc", "nsz"}


OPTIONS = {"nogil": True, "fastmath": FASTMATH, "error_model": "numpy"}
# Called by other kernels alone, so that nothing to call them from Python is compiled.
_kernel = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **OPTIONS)


def _entry(function):
    kernel = njit(**OPTIONS)(function)
    try:
        kernel.enable_caching()
    except (OSError, RuntimeError):
        # No folder can be written to: each process compiles for itself.
        return njit(**OPTIONS)(function)
    return kernel


@_kernel
def _shown(index, size, padding):
    """The pixel that a position in or beside the image shows; -1 for none."""
    if 0 <= index < size:
        return index
    if padding == SYMMETRIC:
        index = -1 - index if index < 0 else 2 * size - 1 - index
        if 0 <= index < size:
            return index
    return -1


@_kernel
def _pixels(plane, i, begin, end, buffer):
    """Part of a row, side by side: where it lies, or copied if there is a step between pixels."""
    start = plane.offset + i * plane.row + begin * plane.column
    if plane.column == 1:
        return plane.flat[start : start + end - begin]
    for j in range(end - begin):
        buffer[j] = plane.flat[start + j * plane.column]
    return buffer[: end - begin]


@_kernel
def _store(plane, i, begin, pixels):
    start = plane.offset + i * plane.row + begin * plane.column
    if plane.column == 1:
        _copy(pixels, plane.flat[start : start + pixels.shape[0]])
    else:
        for j in range(pixels.shape[0]):
            plane.flat[start + j * plane.column] = pixels[j]


@_kernel
def _copy(a, out):
    for j in range(out.shape[0]):
        out[j] = a[j]


@_kernel
def _load(x, y, height, width, i, first, count, low, level_d, level_t, padding, buffers, d, t):
    """Difference and total of a row from column ``first`` on, less their levels."""
    shown = _shown(i, height, padding)
    if shown < 0:
        d[:count] = -level_d
        t[:count] = -level_t
        return
    begin, end = max(first, 0), min(first + count, width)
    zero = level_t + low + low
    x_row = _pixels(x, shown, begin, end, buffers[0])
    y_row = _pixels(y, shown, begin, end, buffers[1])
    _combine(x_row, y_row, level_d, zero, d[begin - first :], t[begin - first :])
    for side in range(2):
        beside = range(first, begin) if side == 0 else range(end, first + count)
        for j in beside:
            column = _shown(j, width, padding)
            if column < 0:
                d[j - first] = -level_d
                t[j - first] = -level_t
            else:
                d[j - first] = x_row[column - begin] - y_row[column - begin] - level_d
                t[j - first] = x_row[column - begin] + y_row[column - begin] - zero


@_kernel
def _combine(x, y, level_d, level_t, d, t):
    for j in range(x.shape[0]):
        d[j] = x[j] - y[j] - level_d
        t[j] = x[j] + y[j] - level_t


@_kernel
def _sum_across(window, taps, a, out):
    for j in range(out.shape[0]):
        total = taps[0] * a[j]
        for k in range(1, len(window)):
            total += taps[k] * a[j + k]
        out[j] = total


@_kernel
def _moments_across(window, taps, a, mean, square):
    """Sums of the values and of their squares, each value loaded and weighed once."""
    for j in range(mean.shape[0]):
        weighed = taps[0] * a[j]
        first = weighed
        second = weighed * a[j]
        for k in range(1, len(window)):
            weighed = taps[k] * a[j + k]
            first += weighed
            second += weighed * a[j + k]
        mean[j] = first
        square[j] = second


@_kernel
def _sum_down(window, taps, ring, out):
    """Two rows at once from a ring one row longer than the window: half the loads."""
    upper, lower = out[0], out[1]
    for j in range(upper.shape[0]):
        value = ring[0, j]
        first = taps[0, 0] * value
        second = taps[1, 0] * value
        for k in range(1, len(window) + 1):
            value = ring[k, j]
            first += taps[0, k] * value
            second += taps[1, k] * value
        upper[j] = first
        lower[j] = second


@_kernel
def _similarity(mu_d, mu_t, e_d, e_t, level_d, level_t, c1, c2, contrast, out):
    """The map's row: SSIM, or its contrast-structure factor."""
    one, two = out.dtype.type(1), out.dtype.type(2)
    for j in range(out.shape[0]):
        var_d = e_d[j] - mu_d[j] * mu_d[j]
        var_t = e_t[j] - mu_t[j] * mu_t[j]
        value = one - two * var_d / (var_t + var_d + two * c2)
        if not contrast:
            full_d, full_t = mu_d[j] + level_d, mu_t[j] + level_t
            dd = full_d * full_d
            value *= one - two * dd / (full_t * full_t + dd + two * c1)
        out[j] = value


@_kernel
def _derivatives(mu_d, mu_t, e_d, e_t, level_d, level_t, c1, c2, contrast, sign, out):
    """The map's row into ``out``; in place M_d, M_t + sign M_d, V_d and V_t."""
    one, two = out.dtype.type(1), out.dtype.type(2)
    for j in range(out.shape[0]):
        m_d, m_t = mu_d[j], mu_t[j]
        var_d = e_d[j] - m_d * m_d
        var_t = e_t[j] - m_t * m_t
        inverse = one / (var_t + var_d + two * c2)
        b = var_d * inverse
        value = one - two * b
        v_d = -two * (one - b) * inverse
        v_t = two * b * inverse
        from_mu_d = from_mu_t = out.dtype.type(0)
        if not contrast:
            full_d, full_t = m_d + level_d, m_t + level_t
            dd = full_d * full_d
            inverse = one / (full_t * full_t + dd + two * c1)
            a = dd * inverse
            luminance = one - two * a
            from_mu_d = -two * two * value * full_d * (one - a) * inverse
            from_mu_t = two * two * value * full_t * a * inverse
            v_d *= luminance
            v_t *= luminance
            value *= luminance
        out[j] = value
        from_mu_d -= two * m_d * v_d
        mu_d[j] = from_mu_d
        mu_t[j] = from_mu_t - two * m_t * v_t + sign * from_mu_d
        e_d[j] = v_d
        e_t[j] = v_t


@_kernel
def _weigh(weight, a):
    for j in range(weight.shape[0]):
        a[j] *= weight[j]


@_kernel
def _total(a):
    total = a.dtype.type(0)
    for j in range(a.shape[0]):
        total += a[j]
    return total


@_kernel
def _add(a, b, sign, out):
    for j in range(out.shape[0]):
        out[j] = a[j] + sign * b[j]


@_kernel
def _finish(mean, v_d, v_t, d, t, sign, out):
    two = mean.dtype.type(2)
    for j in range(out.shape[0]):
        out[j] = mean[j] + two * (t[j] * v_t[j] + sign * d[j] * v_d[j])


@_kernel
def _mirror_columns(window, taps, derivatives, first, last, width, out):
    """Adds what mirrored columns beside the image send back to the pixels that they show.

    ``derivatives`` begins a radius before column ``first``, at which ``out`` begins; ``last`` ends
    it.
    """
    radius = len(window) // 2
    for side in range(2):
        begin = first if side == 0 else max(width - radius, first)
        end = min(radius, last) if side == 0 else last
        for column in range(begin, end):
            image = -1 - column if side == 0 else 2 * width - 1 - column
            for k in range(len(window)):
                source = image + k - radius
                if 0 <= source < width:
                    out[column - first] += taps[k] * derivatives[source - first + radius]


@_kernel
def _taps_down(window, i, height, begin, end, padding, scale, taps):
    """Weight of each slot of a ring of map rows, begin <= row < end, in row i of the gradient."""
    radius = len(window) // 2
    taps[:] = 0
    for side in range(3):
        image = i if side == 0 else (-1 - i if side == 1 else 2 * height - 1 - i)
        if side > 0 and (padding != SYMMETRIC or not -radius <= image < height + radius):
            continue
        slot = (image - radius) % taps.shape[0]
        for k in range(len(window)):
            if begin <= image + k - radius < end:
                taps[slot] += scale * window[k]
            slot = slot + 1 if slot + 1 < taps.shape[0] else 0


@_kernel
def _levels(x, y, task, low):
    """Mean difference and total of a few pixels of the task."""
    top, bottom, left, right = task
    sum_d = sum_t = 0.0
    count = 0
    for i in range(top, bottom, max(1, (bottom - top) // 8)):
        for j in range(left, right, max(1, (right - left) // 16)):
            a = x.flat[x.offset + i * x.row + j * x.column]
            b = y.flat[y.offset + i * y.row + j * y.column]
            sum_d += a - b
            sum_t += a + b - 2 * low
            count += 1
    level_d = sum_d / count
    level_t = sum_t / count
    return level_d if np.isfinite(level_d) else 0.0, level_t if np.isfinite(level_t) else 0.0


@_kernel
def _aligned(rows, columns, dtype):
    """Zeros whose rows begin at a cache line and fill whole ones."""
    flat = np.zeros(rows * columns + 16, dtype)
    skip = (-flat.ctypes.data % 64) // flat.itemsize
    return flat[skip : skip + rows * columns].reshape(rows, columns)


@_kernel
def _march(
    x, y, weight, grad_x, grad_y, height, width, window, task, low, c1, c2, padding, contrast, want
):
    """The sum of a task's part of the map; writes its part of the gradients of the mean."""
    kind = x.flat.dtype.type
    dtype = x.flat.dtype
    size = len(window)
    radius = size // 2
    slots = size + 1
    top, bottom, left, right = task
    inset = radius if padding == VALID else 0
    map_top, map_bottom, map_left, map_right = inset, height - inset, inset, width - inset
    # The gradient of a pixel takes all windows that hold it, also those centred in other tasks.
    reach = radius if want else 0
    first = max(left - reach, map_left)
    count = max(min(right + reach, map_right) - first, 0)
    own_begin = max(left - first, 0)
    own_end = max(min(right - first, count), own_begin)
    equal = weight.shape[0] == 0
    size_of_map = (map_bottom - map_top) * (map_right - map_left)
    scale = kind(1 / size_of_map) if equal else kind(1)

    level_d, level_t = _levels(x, y, task, low)
    level_d, level_t, low, c1, c2 = kind(level_d), kind(level_t), kind(low), kind(c1), kind(c2)

    # Loops are compiled for steps of 64 values: whole steps are faster than a rest.
    wide = -(-count // 64) * 64
    columns = -(-(right - left) // 64) * 64
    loads = _aligned(4, wide + columns + 4 * size, dtype)
    buffers, d, t = loads[2:], loads[0], loads[1]
    ring = _aligned(4 * slots, wide, dtype).reshape(4, slots, wide)
    moments = _aligned(8, wide, dtype).reshape(4, 2, wide)
    values = _aligned(1, wide, dtype)[0]
    # The derivatives of a row, with room for the window to pass over both ends.
    source = _aligned(1, columns + wide + 4 * size, dtype)[0]
    shift = first - left + radius
    maps = (4 if want == X + Y else 3) if want else 0
    grad_ring = _aligned(maps * slots, columns, dtype).reshape(maps, slots, columns)
    sums = _aligned(2 * maps, columns, dtype).reshape(maps, 2, columns)
    mean = _aligned(1, columns, dtype)[0]
    line = _aligned(1, columns, dtype)[0]
    taps = np.zeros((2, slots), dtype)
    across = np.zeros(slots, dtype)
    for k in range(size):
        across[k] = window[k]
    sign = kind(1 if want == X else (-1 if want == Y else 0))

    total = 0.0
    begin = max(top - reach, map_top)
    loaded = begin - radius
    for row in range(begin, bottom + reach, 2):
        if row < map_bottom:
            while loaded <= row + 1 + radius:
                _load(
                    x,
                    y,
                    height,
                    width,
                    loaded,
                    first - radius,
                    count + 2 * radius,
                    low,
                    level_d,
                    level_t,
                    padding,
                    buffers,
                    d,
                    t,
                )
                slot = loaded % slots
                _moments_across(window, across, d, ring[0, slot], ring[2, slot])
                _moments_across(window, across, t, ring[1, slot], ring[3, slot])
                loaded += 1
            for i in range(2):
                # The one slot that the window leaves out comes last.
                slot = (row + i - radius) % slots
                for k in range(slots):
                    taps[i, slot] = across[k]
                    slot = slot + 1 if slot + 1 < slots else 0
            for i in range(4):
                _sum_down(window, taps, ring[i], moments[i])
        for i in range(2):
            here = row + i
            if here >= min(map_bottom, bottom + reach):
                break
            mu_d, mu_t, e_d, e_t = moments[0, i], moments[1, i], moments[2, i], moments[3, i]
            if want:
                _derivatives(mu_d, mu_t, e_d, e_t, level_d, level_t, c1, c2, contrast, sign, values)
            else:
                _similarity(mu_d, mu_t, e_d, e_t, level_d, level_t, c1, c2, contrast, values)
            if not equal:
                start = first - map_left
                weights = weight[here - map_top, start : start + count]
                _weigh(weights, values)
                for m in range(4 if want else 0):
                    _weigh(weights, moments[m, i])
            if top <= here < bottom:
                total += _total(values[own_begin:own_end])
            for m in range(maps):
                _copy(moments[4 - maps + m, i, :count], source[shift : shift + count])
                slot = here % slots
                _sum_across(window, across, source, grad_ring[m, slot])
                if padding == SYMMETRIC:
                    _mirror_columns(window, across, source, left, right, width, grad_ring[m, slot])
        if want and row + 1 - reach >= top:
            for i in range(2):
                _taps_down(
                    window, row + i - reach, height, map_top, map_bottom, padding, scale, taps[i]
                )
            for m in range(maps):
                _sum_down(window, taps, grad_ring[m], sums[m])
            for i in range(2):
                done = row + i - reach
                if not top <= done < bottom:
                    continue
                x_row = _pixels(x, done, left, right, buffers[0])
                y_row = _pixels(y, done, left, right, buffers[1])
                _combine(x_row, y_row, level_d, level_t + low + low, d, t)
                v_d, v_t = sums[maps - 2, i], sums[maps - 1, i]
                if want == X + Y:
                    _add(sums[1, i], sums[0, i], kind(1), mean)
                    _finish(mean, v_d, v_t, d, t, kind(1), line)
                    _store(grad_x, done, left, line[: right - left])
                    _add(sums[1, i], sums[0, i], kind(-1), mean)
                    _finish(mean, v_d, v_t, d, t, kind(-1), line)
                    _store(grad_y, done, left, line[: right - left])
                else:
                    _finish(sums[0, i], v_d, v_t, d, t, sign, line)
                    _store(grad_x if want == X else grad_y, done, left, line[: right - left])
    return total


@_entry
def run(
    x,
    x_strides,
    y,
    y_strides,
    weight,
    grad_x,
    grad_x_strides,
    grad_y,
    grad_y_strides,
    shape,
    window,
    tasks,
    low,
    c1,
    c2,
    padding,
    contrast,
    want,
    out,
):
    """Runs tasks ``(n, c, top, bottom, left, right)``, the sum of each into ``out``.

    Images are flat arrays with the strides of ``(N, C, H, W)`` beside them; ``weight`` is
    ``(N, H', W')``, empty for equal weights; a gradient is written where ``want`` says so.
    """
    for index in range(tasks.shape[0]):
        n, c = tasks[index, 0], tasks[index, 1]
        task = tasks[index, 2], tasks[index, 3], tasks[index, 4], tasks[index, 5]
        out[index] = _march(
            _plane(x, x_strides, n, c),
            _plane(y, y_strides, n, c),
            weight[n] if weight.shape[0] > 0 else np.empty((0, 0), weight.dtype),
            _plane(grad_x, grad_x_strides, n, c),
            _plane(grad_y, grad_y_strides, n, c),
            shape[2],
            shape[3],
            window,
            task,
            low,
            c1,
            c2,
            padding,
            contrast,
            want,
        )


@_kernel
def _plane(flat, strides, n, c):
    return Plane(flat, n * strides[0] + c * strides[1], strides[2], strides[3])


@_entry
def halve(image, strides, shape, begin, end, out):
    """2x2 means: rows begin <= row < end of the rows of all planes of ``out``, ``(N, C, h, w)``."""
    height, width = shape[2], shape[3]
    rows = out.shape[2]
    buffers = np.empty((2, width), out.dtype)
    for index in range(begin, end):
        plane, i = divmod(index, rows)
        n, c = divmod(plane, shape[1])
        source = _plane(image, strides, n, c)
        upper = _pixels(source, 2 * i, 0, width, buffers[0])
        lower = _pixels(source, min(2 * i + 1, height - 1), 0, width, buffers[1])
        _halve_rows(upper, lower, buffers[0], out[n, c, i])


@_kernel
def _halve_rows(upper, lower, both, out):
    half = out.dtype.type(0.5)
    for j in range(upper.shape[0]):
        both[j] = half * (upper[j] + lower[j])
    for j in range(upper.shape[0] // 2):
        out[j] = half * (both[2 * j] + both[2 * j + 1])
    if upper.shape[0] % 2:
        out[-1] = both[-1]


@_entry
def sweep(gradient, strides, shape, scale, coarse, begin, end):
    """Scales rows of a level's gradient and adds what the next coarser level sends back."""
    height, width = shape[2], shape[3]
    kind = gradient.dtype.type
    line = np.empty(width, gradient.dtype)
    buffer = np.empty(width, gradient.dtype)
    for index in range(begin, end):
        plane, i = divmod(index, height)
        n, c = divmod(plane, shape[1])
        target = _plane(gradient, strides, n, c)
        pixels = _pixels(target, i, 0, width, buffer)
        if coarse.shape[0] == 0:
            _scale(pixels, scale[n, c], line)
        else:
            share = kind(0.5 if i == height - 1 and height % 2 else 0.25)
            _scale_and_spread(pixels, scale[n, c], coarse[n, c, i // 2], share, line)
        _store(target, i, 0, line)


@_kernel
def _scale(a, factor, out):
    for j in range(out.shape[0]):
        out[j] = a[j] * factor


@_kernel
def _scale_and_spread(a, factor, coarse, share, out):
    for j in range(out.shape[0] // 2):
        sent = coarse[j] * share
        out[2 * j] = a[2 * j] * factor + sent
        out[2 * j + 1] = a[2 * j + 1] * factor + sent
    if out.shape[0] % 2:
        out[-1] = a[-1] * factor + coarse[-1] * (share + share)
