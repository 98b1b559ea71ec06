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

"""

from ...._runtime.numba_kernels import entry
from .constants import VALID, X, Y
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
from .images import _fill, _levels, _load, _representable, _store


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
