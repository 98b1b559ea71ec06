"""Numba kernels of the CPU path: the mean and its gradient in one march down the rows.

A task is a band of rows and a strip of columns of one plane, or narrow planes side by side. For
each row of the map the kernel keeps the horizontal sums of the rows under the window in a ring,
sums those vertically, turns the four moments into S and its derivatives, sums the derivatives
horizontally into a second ring and those vertically into a finished row of the gradient. Nothing
of the size of an image is kept.

With ``d = x - y`` and ``t = x + y``, less an offset near their mean in the task (variances do not
change with it, means add it back), and the formulas of the reference path,

    a = mu_d^2 / (mu_t^2 + mu_d^2 + 2 C1)         luminance          = 1 - 2 a
    b = var_d / (var_t + var_d + 2 C2)            contrast_structure = 1 - 2 b

    V_d = dS/dE[d^2] = -2 (1 - b) luminance / (var_t + var_d + 2 C2)         V_t = dS/dE[t^2] alike
    M_d = dS/dmu_d, with what var_d = E[d^2] - mu_d^2 adds                   M_t = dS/dmu_t alike

    dx = g * (M_t + M_d) + 2 t (g * V_t) + 2 d (g * V_d)
    dy = g * (M_t - M_d) + 2 t (g * V_t) - 2 d (g * V_d)
"""

from ...._runtime.numba_kernels import entry
from .arguments import SYMMETRIC, VALID
from .coverage import inverse_coverage, weights_across
from .filters import (
    ROWS,
    mirror_columns,
    mirror_rows,
    moments_across,
    moments_down,
    ring_slots,
    sum_across,
    sum_down,
)
from .formulas import derivatives, finish_gradient, similarity, total, write_gradient
from .images import (
    copy,
    fill,
    fill_where,
    load_row,
    local_offsets,
    representable,
    scale_row,
)


@entry
def march(
    x, y, grad_x, grad_y, map_weights, weight_factors, ranges, valid, map_out, shape,
    down, across, constants, l1, variant, tasks, scratch, sums,
):  # fmt: skip
    """Runs tasks ``(plane, planes, part, top, bottom, left, right)`` on images of this shape.

    Where an argument is ``None``, nothing is compiled for it:

    * ``weight_factors``, ``(N,)``: factors of the weights of the map's values. Without them all
      values have the same weight.
    * ``map_weights``, an `Image` of the map's size with N or N C planes: these weights. Without
      them the windows that are centred on valid pixels have the weight 1, and the others 0.
    * ``ranges``, ``(N,)``: the range of each image; the constants are multiplied by its square.
    * ``valid``, boolean ``(N, H, W)``: the pixels that exist.
    * ``map_out``, ``(N C, H', W')``: memory for the map.
    * ``l1``: the gradient of a mix with respect to each pixel's ``|x - y|`` in units of the range.

    Writes as many gradients as the variant says, each times ``constants.gradient_scale``. In
    ``sums`` are three arrays with a row for each plane and a column for each of its parts: the sum
    of the map over that part, or of its weighted deficits ``weights (SSIM - 1)``; with ``both`` the
    same sum of SSIM, otherwise 0; with ``l1`` that of ``|x - y|`` without ``ranges``, otherwise 0.
    """
    dtype = scratch.dtype.type
    padding, contrast, both, gradients = variant
    map_sums, ssim_sums, abs_differences = sums[0], sums[1], sums[2]
    low, slots = constants.low, ring_slots(down)
    radius, side_radius = len(down.extent) // 2, len(across.extent) // 2
    channels, height, width = shape[1], shape[2], shape[3]
    map_top, map_left = (radius, side_radius) if padding == VALID else (0, 0)
    map_bottom, map_right = height - map_top, width - map_left
    zero, one, scale = dtype(0), dtype(1), constants.gradient_scale
    if weight_factors is None:
        scale = dtype(scale / ((map_bottom - map_top) * (map_right - map_left)))
    # The gradient of a pixel takes all windows that hold it, also those centred in other tasks.
    halo, side_halo = (radius, side_radius) if gradients else (0, 0)
    # The channels of an image share one plane of weights, or each has its own.
    sharing = 1 if map_weights is None else shape[0] * channels // map_weights.starts.shape[0]
    # One gradient needs the map M_t + M_d, and two need M_t and M_d in maps of their own.
    maps = 2 + gradients if gradients else 0

    # Rows of pixels: their differences, then their totals.
    rows = scratch[: 2 * slots]
    ring, grad_ring = scratch[2 * slots : 6 * slots], scratch[6 * slots : 10 * slots]
    rest = scratch[10 * slots :]
    source, offsets, line = rest[:4], rest[4:6], rest[6]
    ssim_line = source[0]  # Derivatives need this memory only if there is a gradient.
    # Rows for all planes of a task. The first two are zero in columns of no plane's map.
    squared_ranges, weight_row, valid_row = rest[7], rest[8], rest[9]
    # `ROWS` rows for each moment, and for each map of derivatives.
    moments, grad_sums = rest[10 : 10 + 4 * ROWS], rest[10 + 4 * ROWS : 10 + 8 * ROWS]
    coverage, weight_ring = rest[10 + 8 * ROWS : 10 + 9 * ROWS], rest[10 + 9 * ROWS :]

    for index in range(tasks.shape[0]):
        plane, planes, part = tasks[index, 0], tasks[index, 1], tasks[index, 2]
        top, bottom = tasks[index, 3], tasks[index, 4]
        left, right = tasks[index, 5], tasks[index, 6]
        first = max(left - side_halo, map_left)
        count = max(min(right + side_halo, map_right) - first, 0)
        # A plane's part of a row of the map begins this far into its row of derivatives. The
        # window passes over both ends of the part and meets zeros there.
        shift = first - left + side_radius
        # Only windows that are centred in the task count in its sums.
        own_begin = max(left - first, 0)
        own_end = max(min(right - first, count), own_begin)
        pitch = count + 2 * side_radius
        # The columns of a plane's map that the task computes.
        begin, end = first - map_left, first - map_left + count
        # Loops are compiled for steps of 64 values: whole steps are faster than a remainder.
        length = -(-planes * pitch // 64) * 64

        for m in range(2):
            fill(zero, scratch.shape[1], rest[7 + m])
        for m in range(maps):
            fill(zero, scratch.shape[1], source[m])
            for slot in range(slots):
                fill(zero, scratch.shape[1], grad_ring[m * slots + slot])
        for p in range(planes):
            at = p * pitch
            image = (plane + p) // channels
            mean_d, mean_t = local_offsets(
                x, y, plane + p, top, bottom, left, right, low,
                constants.length if ranges is None else ranges[image],
                None if valid is None else valid[image],
            )  # fmt: skip
            fill(dtype(mean_d), pitch, offsets[0, at:])
            fill(representable(dtype(mean_t), low), pitch, offsets[1, at:])
            squared = one if ranges is None else ranges[image] * ranges[image]
            fill(squared, count, squared_ranges[at:])
            for m in range(3):
                sums[m, plane + p, part] = 0

        start, stop = max(top - halo, map_top), min(bottom + halo, map_bottom)
        loaded = start - radius
        for row in range(start, bottom + halo, ROWS):
            while loaded < min(row + ROWS, stop) + radius:
                slot = loaded % slots
                # Only the gradient reads the row again later.
                kept = slot if gradients else 0
                d, t = rows[kept], rows[slots + kept]
                for p in range(planes):
                    at = p * pitch
                    image = (plane + p) // channels
                    load_row(
                        x, y, plane + p, height, width, loaded, first - side_radius, low,
                        offsets[0, at], offsets[1, at], padding,
                        None if valid is None else valid[image], at, pitch, d, t,
                    )  # fmt: skip
                for m in range(2):
                    mean, square = ring[m * slots + slot], ring[(m + 2) * slots + slot]
                    moments_across(across, rows[m * slots + kept], length, mean, square)
                if valid is not None:
                    weights_across(
                        across, valid, plane, planes, channels, loaded, first - side_radius,
                        padding, pitch, valid_row, weight_ring[slot, :length],
                    )  # fmt: skip
                loaded += 1
            if row < stop:
                moments_down(down, ring, row, length, moments)
                if valid is not None:
                    inverse_coverage(down, weight_ring, row, constants, length, coverage)
            for here in range(row, min(row + ROWS, bottom + halo)):
                if here >= stop:
                    # No windows are centred after the map: the ring gets zeros or mirror images.
                    for m in range(maps):
                        if padding == SYMMETRIC:
                            mirror_rows(grad_ring, m * slots, slots, here, height, radius, length)
                        else:
                            fill(zero, length, grad_ring[m * slots + here % slots])
                    continue
                i = here - row
                if weight_factors is not None:
                    for p in range(planes):
                        image = (plane + p) // channels
                        factor = weight_factors[image]
                        weights = weight_row[p * pitch : p * pitch + count]
                        if map_weights is not None:
                            weight_plane = (plane + p) // sharing
                            scale_row(
                                map_weights, weight_plane, here - map_top, begin, factor, weights
                            )
                        elif valid is not None:
                            fill_where(valid[image, here, first : first + count], factor, weights)
                if gradients:
                    derivatives(
                        moments, i, offsets, constants, squared_ranges, contrast, gradients == 2,
                        None if valid is None else coverage[i],
                        None if weight_factors is None else weight_row, length, source, shift, line,
                    )  # fmt: skip
                else:
                    similarity(
                        moments, i, offsets, constants,
                        None if ranges is None else squared_ranges, contrast, both,
                        None if valid is None else coverage[i],
                        None if weight_factors is None else weight_row, length, line, ssim_line,
                    )  # fmt: skip
                own = top <= here < bottom
                if map_out is not None and own:
                    for p in range(planes):
                        out = map_out[plane + p, here - map_top, begin + own_begin : end]
                        copy(line[p * pitch + own_begin :], out[: own_end - own_begin])
                if own:
                    for p in range(planes):
                        at, end_at = p * pitch + own_begin, p * pitch + own_end
                        map_sums[plane + p, part] += total(line[at:end_at])
                        if both:
                            ssim_sums[plane + p, part] += total(ssim_line[at:end_at])
                for m in range(maps):
                    if padding == SYMMETRIC:
                        # A window that reaches beyond the image sees its mirror image.
                        after = max(right + side_radius - width, 0)
                        for p in range(planes):
                            at = p * pitch + shift
                            mirror_columns(source[m], at, at + count, shift, after)
                    sum_across(across, source[m], length, grad_ring[m * slots + here % slots])
                    if padding == SYMMETRIC:
                        mirror_rows(grad_ring, m * slots, slots, here, height, radius, length)
            if not gradients or row + ROWS - halo <= top:
                continue
            for m in range(maps):
                out = grad_sums[m * ROWS :]
                sum_down(down, grad_ring, m * slots, row - halo, length, out)
            for done in range(max(row - halo, top), min(row - halo + ROWS, bottom)):
                i = done - (row - halo)
                # The task's own pixels begin here in the rows that were loaded.
                ahead = left - first + side_radius
                d, t = rows[done % slots, ahead:], rows[slots + done % slots, ahead:]
                for k in range(gradients):
                    sign = dtype(1 if k == 0 else -1)
                    finish_gradient(
                        grad_sums, i, 0, d, t, scale, sign, gradients == 2, length, line
                    )
                    for p in range(planes):
                        pixels = line[p * pitch : p * pitch + right - left]
                        image = (plane + p) // channels
                        image_range = one if ranges is None else ranges[image]
                        step = None if l1 is None else sign * l1 / image_range
                        kept = None if valid is None else valid[image, done, left:right]
                        pixel = plane + p, done, left
                        if k == 0:
                            added = write_gradient(x, y, grad_x, *pixel, step, kept, pixels)
                            abs_differences[plane + p, part] += added
                        else:
                            write_gradient(x, y, grad_y, *pixel, step, kept, pixels)
