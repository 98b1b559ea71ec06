"""Triton kernels of the GPU path: the mean and its gradient in one march down the rows.

A program owns a strip of columns and a band of rows of one plane, a thread ``E`` neighbouring
columns of the strip. Windows share their pixels: each is loaded and combined once and goes through
a row of scratch memory. From there come the horizontal sums under the window, which are added to
the ``T`` rows of the map that are in flight in registers; the first of these is then complete and
becomes S and its derivatives. Those go through the same memory and come back as horizontal sums for
the ``T`` rows of the gradient in flight. Nothing of the size of an image is kept.

The scratch memory has two halves. While one is read, the next row of pixels and the derivatives are
written to the other, so that one barrier a row is enough and loads have a row's time to arrive.

`march` does all of this. Where the sums of both halves do not fit into the registers, `derive`
does the first half and `gather` the second, with the derivatives of a slab of rows in memory in
between. Without a gradient `derive` is all there is to do.

The formulas are those of the reference path. With ``d = x - y`` and ``t = x + y``, less a constant
near their level in the tile (variances do not change with it, means add it back),

    a = mu_d^2 / (mu_t^2 + mu_d^2 + 2 C1)         luminance          = 1 - 2 a
    b = var_d / (var_t + var_d + 2 C2)            contrast_structure = 1 - 2 b

    V_d = 1/2 dS/dE[d^2] = -(1 - b) luminance / (var_t + var_d + 2 C2)
    V_t = 1/2 dS/dE[t^2] = b luminance / (var_t + var_d + 2 C2)
    M_d = 1/4 dS/dmu_d, with what var_d = E[d^2] - mu_d^2 adds              M_t = 1/4 dS/dmu_t alike

    dx = 4 (g * (M_t + M_d) + t (g * V_t) + d (g * V_d))
    dy = 4 (g * (M_t - M_d) + t (g * V_t) - d (g * V_d))

A position of the map is named by the first row and column of pixels under its window. In the
gradient of a pixel meet the positions up to ``T - 1`` before it: so the filter with the window is
its own transpose. For symmetric padding too, if the map is mirrored as the pixels are, which it is
by itself where mirrored pixels are loaded.
"""

# Constants of a compilation are in capitals, and tuples grow by sums, which Triton compiles.
# ruff: noqa: N803, N806, RUF005

import triton
import triton.language as tl

VALID = tl.constexpr(0)
ZEROS = tl.constexpr(1)
SYMMETRIC = tl.constexpr(2)

FLOOR = tl.constexpr(0)
RELU = tl.constexpr(1)
SIMPLE = tl.constexpr(2)
PLAIN = tl.constexpr(3)


@triton.jit
def _place(strips, bands):
    """Strip, band and plane of the program."""
    program = tl.program_id(0)
    return program % strips, program // strips % bands, program // strips // bands


@triton.jit
def _plane(image, strides, plane, channels):
    n, c = plane // channels, plane % channels
    return image + n.to(tl.int64) * strides[0] + c.to(tl.int64) * strides[1]


@triton.jit
def _shown(index, size):
    """The pixel that a position in or beside the image shows, the edge being a mirror."""
    index = tl.maximum(index, -1 - index)
    index = tl.minimum(index, 2 * size - 1 - index)
    # Where the image is smaller than the window, the mirror image of a mirror image.
    index = tl.maximum(index, -1 - index)
    return tl.minimum(index, size - 1)


@triton.jit
def _known(width, COLUMNS: tl.constexpr, WHOLE: tl.constexpr):
    """The width, with ``WHOLE`` for the compiler to see that it is a multiple of ``COLUMNS``."""
    return width // COLUMNS * COLUMNS if WHOLE else width


@triton.jit
def _levels(x, y, x_strides, y_strides, top, left, rows, columns, low):
    """Difference and total that most of a few pixels of a region are near to.

    The mean without those far from most: one pixel of 1e5 among them would move the level of all
    others so far that their variances cancel. NaN and infinity do not count, to stay in the
    windows that hold them. Half of the total's level, with the lowest value, can be taken off each
    pixel without a rounding.
    """
    sample = tl.arange(0, 64)
    row = (top + sample // 8 * rows // 8).to(tl.int64)
    column = (left + sample % 8 * columns // 8).to(tl.int64)
    a = tl.load(x + row * x_strides[2] + column * x_strides[3]).to(tl.float32)
    b = tl.load(y + row * y_strides[2] + column * y_strides[3]).to(tl.float32)
    values = tl.join(a - b, a + b - 2 * low)
    finite = tl.abs(values) < float("inf")
    count = tl.maximum(tl.sum(finite.to(tl.float32), 0), 1.0)
    mean = tl.sum(tl.where(finite, values, 0.0), 0) / count
    off = tl.where(finite, tl.abs(values - mean[None, :]), 0.0)
    near = finite & (off < 3 * (tl.sum(off, 0) / count)[None, :])
    # None where all are equal.
    count = tl.sum(near.to(tl.float32), 0)
    level = tl.sum(tl.where(near, values, 0.0), 0) / tl.maximum(count, 1.0)
    level = tl.where(count > 0, level, mean)
    level_d, level_t = tl.split(tl.where(tl.abs(level) < float("inf"), level, 0.0))
    zero = level_t + 2 * low
    return level_d, zero - 2 * low


@triton.jit
def _row_address(image, strides, row, height, PADDING: tl.constexpr):
    """Of the row that a position shows, or of none where that is not in the image."""
    if PADDING == SYMMETRIC:
        row = _shown(row, height)
    return image + row.to(tl.int64) * strides[2]


@triton.jit
def _next_address(image, address, strides, row, height, PADDING: tl.constexpr):
    """`_row_address` of ``row``, where ``address`` is that of the row before: a step unless it is
    mirrored.
    """
    if PADDING == SYMMETRIC:
        address = _row_address(image, strides, row, height, PADDING)
    else:
        address += strides[2]
    return address


@triton.jit
def _columns(LANES: tl.constexpr, COLUMNS: tl.constexpr, TAPS: tl.constexpr):
    """Those of a tile, a thread's in a row, and those beside it that its windows cover."""
    own = tl.arange(0, LANES)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    return own, LANES * COLUMNS + tl.arange(0, triton.next_power_of_2(max(TAPS - 1, 2)))


@triton.jit
def _pixels(
    address,
    step,
    row,
    left,
    height,
    width,
    low,
    LANES: tl.constexpr,
    COLUMNS: tl.constexpr,
    TAPS: tl.constexpr,
    PADDING: tl.constexpr,
):
    """A row in `_columns` from ``left`` on, in float32."""
    pixels = ()
    for k in tl.static_range(2):
        column = left + _columns(LANES, COLUMNS, TAPS)[k]
        if PADDING == SYMMETRIC:
            found = tl.load(address + _shown(column, width).to(tl.int64) * step).to(tl.float32)
        else:
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            found = tl.load(address + column.to(tl.int64) * step, mask=inside, other=0)
            found = found.to(tl.float32)
            if PADDING == ZEROS:
                found = tl.where(inside, found, low)
        pixels = pixels + (found,)
    return pixels


@triton.jit
def _next_pixels(
    x,
    y,
    x_next,
    y_next,
    x_strides,
    y_strides,
    row,
    left,
    height,
    width,
    low,
    LANES: tl.constexpr,
    COLUMNS: tl.constexpr,
    TAPS: tl.constexpr,
    PADDING: tl.constexpr,
):
    """The addresses of a row in both images, from those of the row before, and its pixels."""
    x_next = _next_address(x, x_next, x_strides, row, height, PADDING)
    y_next = _next_address(y, y_next, y_strides, row, height, PADDING)
    a = _pixels(
        *(x_next, x_strides[3], row, left, height, width, low, LANES, COLUMNS, TAPS, PADDING)
    )
    b = _pixels(
        *(y_next, y_strides[3], row, left, height, width, low, LANES, COLUMNS, TAPS, PADDING)
    )
    return x_next, y_next, a, b


@triton.jit
def _keep_pixels(a, b, own, rest, low, level_d, level_t, PITCH: tl.constexpr):
    """Writes difference and total of two rows of pixels, less their levels."""
    half = 0.5 * level_t + low
    tl.store(own, a[0] - b[0] - level_d)
    tl.store(own + PITCH, (a[0] - half) + (b[0] - half))
    tl.store(rest, a[1] - b[1] - level_d)
    tl.store(rest + PITCH, (a[1] - half) + (b[1] - half))


@triton.jit
def _apart(x, y, x_strides, y_strides, row, column, height, width):
    """The distance between two pixels, zero beside the image."""
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    row, column = row.to(tl.int64), column.to(tl.int64)
    a = tl.load(x + row * x_strides[2] + column * x_strides[3], mask=inside, other=0)
    b = tl.load(y + row * y_strides[2] + column * y_strides[3], mask=inside, other=0)
    return tl.abs(a.to(tl.float32) - b.to(tl.float32))


@triton.jit
def _squares(values):
    squares = ()
    for k in tl.static_range(len(values)):
        squares = squares + (values[k] * values[k],)
    return squares


@triton.jit
def _add_row(sums, values, window, COLUMNS: tl.constexpr, TAPS: tl.constexpr):
    """Adds a row to the sums in flight: ``TAPS`` of each column, the first of them complete then.

    ``window`` is the half of the taps that the other half mirrors. The sums move up by one with
    each row: a multiply-add has its own destination, so that moving costs next to nothing, and the
    loop over the rows needs no copies of its body.
    """
    moved = ()
    for e in tl.static_range(COLUMNS):
        across = window[TAPS // 2] * values[e + TAPS // 2]
        for k in tl.static_range(TAPS // 2):
            across += window[k] * (values[e + k] + values[e + TAPS - 1 - k])
        for k in tl.static_range(TAPS - 1):
            moved = moved + (sums[e * TAPS + k + 1] + window[min(k, TAPS - 1 - k)] * across,)
        moved = moved + (window[0] * across,)
    return moved


@triton.jit
def _add_moments(
    sums, windows, window, COLUMNS: tl.constexpr, TAPS: tl.constexpr, PITCH: tl.constexpr
):
    """Adds a row of pixels from memory to the sums of d, t, d^2 and t^2."""
    d = _side_by_side(windows, COLUMNS, TAPS)
    t = _side_by_side(windows + PITCH, COLUMNS, TAPS)
    return (
        _add_row(sums[0], d, window, COLUMNS, TAPS),
        _add_row(sums[1], t, window, COLUMNS, TAPS),
        _add_row(sums[2], _squares(d), window, COLUMNS, TAPS),
        _add_row(sums[3], _squares(t), window, COLUMNS, TAPS),
    )


@triton.jit
def _complete(sums, LANES: tl.constexpr, COLUMNS: tl.constexpr, TAPS: tl.constexpr):
    """The complete sums of each thread's columns, side by side."""
    if COLUMNS == 1:
        done = sums[0][:, None]
    elif COLUMNS == 2:
        done = tl.join(sums[0], sums[TAPS])
    else:
        done = tl.join(tl.join(sums[0], sums[2 * TAPS]), tl.join(sums[TAPS], sums[3 * TAPS]))
        done = tl.reshape(done, (LANES, 4))
    return done


@triton.jit
def _inverse(values):
    """1 / values, which are positive, in a third of the instructions of a division.

    By PTX's bounds as precise: 2^-22.9 for the root, and 2 ulp for an approximate division.
    """
    root = tl.rsqrt(values)
    return root * root


@triton.jit
def _derivatives(
    mu_d,
    mu_t,
    e_dd,
    e_tt,
    level_d,
    level_t,
    c1,
    c2,
    contrast,
    row,
    column,
    height,
    width,
    weight,
    weight_strides,
    PADDING: tl.constexpr,
    WEIGHTED: tl.constexpr,
):
    """1 - S in a row of the map (zero beside it), M_d, M_t, V_d and V_t, all times their weight.

    ``row`` and ``column`` are those of the map, ``height`` and ``width`` its size.
    """
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    var_d = e_dd - mu_d * mu_d
    var_t = e_tt - mu_t * mu_t
    # But for roundings they are not negative.
    inverse = _inverse(tl.maximum(var_t + var_d, 0.0, tl.PropagateNan.ALL) + 2 * c2)
    if PADDING != SYMMETRIC:
        # All that follows is zero then.
        inverse = tl.where(inside, inverse, 0.0)
    b = var_d * inverse
    value = 1 - 2 * b
    v_t = b * inverse
    v_d = v_t - inverse
    full_d, full_t = mu_d + level_d, mu_t + level_t
    dd = full_d * full_d
    inverse = _inverse(full_t * full_t + dd + 2 * c1)
    # No branch, around which all sums would have to be moved.
    whole = contrast == 0
    if PADDING != SYMMETRIC:
        whole = inside & whole
    a = tl.where(whole, dd * inverse, 0.0)
    luminance = 1 - 2 * a
    scaled = tl.where(whole, value * inverse, 0.0)
    m_t = a * scaled * full_t
    m_d = (a * scaled - scaled) * full_d
    v_d *= luminance
    v_t *= luminance
    value *= luminance
    m_d -= mu_d * v_d
    m_t -= mu_t * v_t
    deficit = 1 - value

    if PADDING == SYMMETRIC:
        deficit = tl.where(inside, deficit, 0.0)
        row, column = _shown(row, height), _shown(column, width)
    if WEIGHTED:
        address = weight + row.to(tl.int64) * weight_strides[2]
        address += column.to(tl.int64) * weight_strides[3]
        here = tl.load(address) if PADDING == SYMMETRIC else tl.load(address, mask=inside, other=0)
        deficit *= here
        m_d *= here
        m_t *= here
        v_d *= here
        v_t *= here
    return deficit, m_d, m_t, v_d, v_t


@triton.jit
def _keep_maps(target, step, m_d, m_t, v_d, v_t, kept, WANT: tl.constexpr):
    """Writes a row of the derivatives, ``step`` values apart, for `_add_maps`."""
    if WANT == 3:
        tl.store(target, m_t, mask=kept)
        tl.store(target + 3 * step, m_d, mask=kept)
    else:
        tl.store(target, m_t + m_d, mask=kept)
    tl.store(target + step, v_d, mask=kept)
    tl.store(target + 2 * step, v_t, mask=kept)


@triton.jit
def _added(a, a_rest, b, b_rest):
    """A sum, and what the roundings of its terms lost."""
    total = a + b
    of_b = total - a
    return total, a_rest + b_rest + ((a - (total - of_b)) + (b - of_b))


@triton.jit
def _keep(values, sums):
    """Writes a tile's sum and what its roundings lost: a small mean of S, as 1 less that of 1 - S,
    would have few digits without.
    """
    columns = tl.reduce((values, tl.zeros_like(values)), 1, _added)
    total, rest = tl.reduce(columns, 0, _added)
    tl.store(sums, total)
    tl.store(sums + 1, rest)


@triton.jit
def _windows(row, first, COLUMNS: tl.constexpr):
    """Where in a row of memory each thread's windows begin; two columns at once where it can."""
    if COLUMNS == 1:
        windows = row + first.to(tl.int64)
    else:
        windows = row + first.to(tl.int64)[:, None] + tl.arange(0, 2)[None, :]
    return windows


@triton.jit
def _side_by_side(windows, COLUMNS: tl.constexpr, TAPS: tl.constexpr):
    """The columns under the windows of each thread."""
    values = ()
    if COLUMNS == 1:
        for k in tl.static_range(TAPS):
            values = values + (tl.load(windows + k),)
    else:
        for k in tl.static_range(0, COLUMNS + TAPS - 1, 2):
            left, right = tl.split(tl.load(windows + k))
            values = values + (left, right)
    return values


@triton.jit
def _add_maps(sums, windows, step, window, COLUMNS: tl.constexpr, TAPS: tl.constexpr):
    """Adds a row of the derivatives, ``step`` values apart in memory, to their sums."""
    added = ()
    for k in tl.static_range(len(sums)):
        values = _side_by_side(windows + k * step, COLUMNS, TAPS)
        added = added + (_add_row(sums[k], values, window, COLUMNS, TAPS),)
    return added


@triton.jit
def _finish(
    x_row,
    y_row,
    gradient_row,
    other_row,
    x_strides,
    y_strides,
    gradient_strides,
    other_strides,
    column,
    inside,
    m,
    v_d,
    v_t,
    m_d,
    low,
    level_d,
    level_t,
    share,
    WANT: tl.constexpr,
):
    """Writes a row of the gradients from the filtered derivatives; returns how far x is from y."""
    column = column.to(tl.int64)
    a = tl.load(x_row + column * x_strides[3], mask=inside, other=0).to(tl.float32)
    b = tl.load(y_row + column * y_strides[3], mask=inside, other=0).to(tl.float32)
    from_d = (a - b - level_d) * v_d
    half = 0.5 * level_t + low
    from_t = ((a - half) + (b - half)) * v_t
    if WANT == 3:
        from_d += m_d
    value = 4 * share * (m + from_t + from_d)
    address = gradient_row + column * gradient_strides[3]
    tl.store(address, value.to(address.dtype.element_ty), mask=inside)
    if WANT == 3:
        value = 4 * share * (m + from_t - from_d)
        address = other_row + column * other_strides[3]
        tl.store(address, value.to(address.dtype.element_ty), mask=inside)
    return tl.abs(a - b)


@triton.jit(
    do_not_specialize=[
        *("strips", "bands", "rows", "channels", "height", "width", "contrast", "sums_stride")
    ],
    do_not_specialize_on_alignment=["sums", "distances"],
)
def march(
    x,
    y,
    weight,
    gradient,
    other,
    scratch,
    sums,
    distances,
    x_strides,
    y_strides,
    weight_strides,
    gradient_strides,
    other_strides,
    sums_stride,
    strips,
    bands,
    rows,
    channels,
    height,
    width,
    window,
    low,
    c1,
    c2,
    share,
    contrast,
    LANES: tl.constexpr,
    COLUMNS: tl.constexpr,
    TURN: tl.constexpr,
    WHOLE: tl.constexpr,
    TAPS: tl.constexpr,
    PITCH: tl.constexpr,
    PADDING: tl.constexpr,
    WANT: tl.constexpr,
    WEIGHTED: tl.constexpr,
    DISTANCE: tl.constexpr,
):
    """The gradients of a tile, and the sum of 1 - S over the positions that it owns.

    ``WANT`` is 1 for the gradient with respect to x, 3 for that with respect to y in ``other`` too.
    With ``DISTANCE`` |x - y| is summed over the plane in ``distances`` as well.
    """
    REACH: tl.constexpr = TAPS - 1
    INSET: tl.constexpr = 0 if PADDING == VALID else TAPS // 2
    OWN: tl.constexpr = LANES * COLUMNS - REACH
    MAPS: tl.constexpr = 4 if WANT == 3 else 3
    width = _known(width, COLUMNS, WHOLE)
    strip, band, plane = _place(strips, bands)
    top = band * rows
    bottom = tl.minimum(top + rows, height)
    left = strip * OWN
    x = _plane(x, x_strides, plane, channels)
    y = _plane(y, y_strides, plane, channels)
    gradient = _plane(gradient, gradient_strides, plane, channels)
    other = _plane(other, other_strides, plane, channels)
    weight += (plane // channels).to(tl.int64) * weight_strides[0]
    # Pixels and then derivatives, of a row.
    HALF: tl.constexpr = (2 + MAPS) * PITCH
    scratch += tl.program_id(0).to(tl.int64) * (2 * HALF)
    map_height = height + 2 * INSET - REACH
    map_width = width + 2 * INSET - REACH
    level_d, level_t = _levels(
        *(x, y, x_strides, y_strides, top, left, bottom - top, tl.minimum(OWN, width - left), low)
    )

    local, beside = _columns(LANES, COLUMNS, TAPS)
    windows = _windows(scratch, tl.arange(0, LANES) * COLUMNS, COLUMNS)
    own, rest = scratch + local, scratch + beside
    owned = (local >= REACH) | (strip == 0)
    none = (tl.zeros((LANES,), tl.float32),) * (COLUMNS * TAPS)
    moments = (none, none, none, none)
    filtered = (none,) * MAPS
    total = tl.zeros((LANES, COLUMNS), tl.float32)
    apart = tl.zeros((LANES, COLUMNS), tl.float32)
    # Before the first row the memory holds anything. That only gets into rows of the map before
    # the first that has a use.
    x_next = _row_address(x, x_strides, top - TAPS, height, PADDING)
    y_next = _row_address(y, y_strides, top - TAPS, height, PADDING)
    slot = 0
    for k in range(TAPS):
        tl.debug_barrier()
        x_next, y_next, a, b = _next_pixels(
            *(x, y, x_next, y_next, x_strides, y_strides, top - REACH + k, left - REACH),
            *(height, width, low, LANES, COLUMNS, TAPS, PADDING),
        )
        moments = _add_moments(moments, windows + slot, window, COLUMNS, TAPS, PITCH)
        slot = HALF - slot
        _keep_pixels(a, b, own + slot, rest + slot, low, level_d, level_t, PITCH)
    row = top
    # The row of the gradient that is complete is one behind that of the map.
    behind = (top - REACH - 2).to(tl.int64)
    x_row, y_row = x + behind * x_strides[2], y + behind * y_strides[2]
    gradient_row = gradient + behind * gradient_strides[2]
    other_row = other + behind * other_strides[2]
    while row <= bottom + REACH:
        for _ in tl.static_range(TURN):
            here = row - REACH
            tl.debug_barrier()
            x_next, y_next, a, b = _next_pixels(
                *(x, y, x_next, y_next, x_strides, y_strides, row + 1, left - REACH),
                *(height, width, low, LANES, COLUMNS, TAPS, PADDING),
            )
            filtered = _add_maps(filtered, windows + slot + 2 * PITCH, PITCH, window, COLUMNS, TAPS)
            x_row, y_row = x_row + x_strides[2], y_row + y_strides[2]
            gradient_row += gradient_strides[2]
            other_row += other_strides[2]
            difference = _finish(
                *(x_row, y_row, gradient_row, other_row),
                *(x_strides, y_strides, gradient_strides, other_strides),
                left + local,
                (here > top) & (here <= bottom) & (local < OWN) & (left + local < width),
                _complete(filtered[0], LANES, COLUMNS, TAPS),
                _complete(filtered[1], LANES, COLUMNS, TAPS),
                _complete(filtered[2], LANES, COLUMNS, TAPS),
                _complete(filtered[MAPS - 1], LANES, COLUMNS, TAPS),
                *(low, level_d, level_t, share, WANT),
            )
            if DISTANCE:
                apart += difference
            moments = _add_moments(moments, windows + slot, window, COLUMNS, TAPS, PITCH)
            deficit, m_d, m_t, v_d, v_t = _derivatives(
                _complete(moments[0], LANES, COLUMNS, TAPS),
                _complete(moments[1], LANES, COLUMNS, TAPS),
                _complete(moments[2], LANES, COLUMNS, TAPS),
                _complete(moments[3], LANES, COLUMNS, TAPS),
                *(level_d, level_t, c1, c2, contrast, here + INSET, left - REACH + local + INSET),
                *(map_height, map_width, weight, weight_strides, PADDING, WEIGHTED),
            )
            counted = owned & ((here >= top) | (band == 0)) & (here < bottom)
            total += tl.where(counted, deficit, 0.0)
            slot = HALF - slot
            _keep_maps(own + slot + 2 * PITCH, PITCH, m_d, m_t, v_d, v_t, True, WANT)
            _keep_pixels(a, b, own + slot, rest + slot, low, level_d, level_t, PITCH)
            row += 1
    place = plane.to(tl.int64) * sums_stride + 2 * (band * strips + strip)
    _keep(total, sums + place)
    if DISTANCE:
        _keep(apart, distances + place)


@triton.jit(
    do_not_specialize=[
        *("strips", "bands", "rows", "channels", "height", "width", "contrast"),
        *("sums_stride", "first_plane", "slab_top", "slab_bottom", "own_top"),
    ],
    do_not_specialize_on_alignment=["sums", "distances"],
)
def derive(
    x,
    y,
    weight,
    maps,
    scratch,
    sums,
    distances,
    x_strides,
    y_strides,
    weight_strides,
    sums_stride,
    pitch,
    strips,
    bands,
    rows,
    first_plane,
    slab_top,
    slab_bottom,
    own_top,
    channels,
    height,
    width,
    window,
    low,
    c1,
    c2,
    contrast,
    LANES: tl.constexpr,
    COLUMNS: tl.constexpr,
    TURN: tl.constexpr,
    WHOLE: tl.constexpr,
    TAPS: tl.constexpr,
    PITCH: tl.constexpr,
    PADDING: tl.constexpr,
    WANT: tl.constexpr,
    WEIGHTED: tl.constexpr,
    DISTANCE: tl.constexpr,
):
    """The sum of 1 - S over a tile of the map, and its derivatives if a gradient is wanted.

    ``maps`` holds them for each plane of the slab: M (M_t if both gradients are wanted), V_d, V_t
    and then M_d, all from ``TAPS - 1`` columns before the image on, in rows of ``pitch`` values.
    With ``DISTANCE`` |x - y| is summed over the plane in ``distances``, each pixel with the
    position of its row and column in the map, or beside the map where that is smaller.
    """
    REACH: tl.constexpr = TAPS - 1
    INSET: tl.constexpr = 0 if PADDING == VALID else TAPS // 2
    LEFT: tl.constexpr = 0 if WANT == 0 and PADDING == VALID else 1 - TAPS
    MAPS: tl.constexpr = 4 if WANT == 3 else 3
    width = _known(width, COLUMNS, WHOLE)
    strip, band, slab_plane = _place(strips, bands)
    plane = first_plane + slab_plane
    top = slab_top + band * rows
    bottom = tl.minimum(top + rows, slab_bottom)
    x = _plane(x, x_strides, plane, channels)
    y = _plane(y, y_strides, plane, channels)
    weight += (plane // channels).to(tl.int64) * weight_strides[0]
    map_height = height + 2 * INSET - REACH
    map_width = width + 2 * INSET - REACH
    # The same for the whole plane, because programs filter each other's derivatives.
    level_d, level_t = _levels(x, y, x_strides, y_strides, 0, 0, height, width, low)

    scratch += tl.program_id(0).to(tl.int64) * (4 * PITCH)
    left = LEFT + strip * (LANES * COLUMNS)
    local, beside = _columns(LANES, COLUMNS, TAPS)
    windows = _windows(scratch, tl.arange(0, LANES) * COLUMNS, COLUMNS)
    own, rest = scratch + local, scratch + beside
    none = (tl.zeros((LANES,), tl.float32),) * (COLUMNS * TAPS)
    moments = (none, none, none, none)
    total = tl.zeros((LANES, COLUMNS), tl.float32)
    apart = tl.zeros((LANES, COLUMNS), tl.float32)
    slab_rows = (slab_bottom - slab_top).to(tl.int64)
    # The rows before the first complete one are no loop of their own: the time to compile grows
    # with the square of the loads in the code. The first turn adds what the memory holds by chance,
    # as in `march`.
    here = top - REACH - 1
    x_next = _row_address(x, x_strides, here + REACH, height, PADDING)
    y_next = _row_address(y, y_strides, here + REACH, height, PADDING)
    slot = 0
    while here < bottom:
        for _ in tl.static_range(TURN):
            tl.debug_barrier()
            x_next, y_next, a, b = _next_pixels(
                *(x, y, x_next, y_next, x_strides, y_strides, here + TAPS, left),
                *(height, width, low, LANES, COLUMNS, TAPS, PADDING),
            )
            moments = _add_moments(moments, windows + slot, window, COLUMNS, TAPS, PITCH)
            # Rows before the first complete one too: a branch around this takes moves of all sums.
            deficit, m_d, m_t, v_d, v_t = _derivatives(
                _complete(moments[0], LANES, COLUMNS, TAPS),
                _complete(moments[1], LANES, COLUMNS, TAPS),
                _complete(moments[2], LANES, COLUMNS, TAPS),
                _complete(moments[3], LANES, COLUMNS, TAPS),
                *(level_d, level_t, c1, c2, contrast, here + INSET, left + INSET + local),
                *(map_height, map_width, weight, weight_strides, PADDING, WEIGHTED),
            )
            counted = (here >= tl.maximum(top, own_top)) & (here < bottom)
            total += tl.where(counted, deficit, 0.0)
            if DISTANCE:
                difference = _apart(
                    *(x, y, x_strides, y_strides),
                    *(here + INSET, left + INSET + local, height, width),
                )
                apart += tl.where(counted, difference, 0.0)
            if WANT > 0:
                kept = (here >= top) & (here < bottom)
                map_row = slab_plane * MAPS * slab_rows + (here - slab_top)
                target = maps + map_row * pitch + (left - LEFT + local)
                _keep_maps(target, slab_rows * pitch, m_d, m_t, v_d, v_t, kept, WANT)
            slot = 2 * PITCH - slot
            _keep_pixels(a, b, own + slot, rest + slot, low, level_d, level_t, PITCH)
            here += 1
    place = plane.to(tl.int64) * sums_stride + 2 * (band * strips + strip)
    _keep(total, sums + place)
    if DISTANCE:
        _keep(apart, distances + place)


@triton.jit(
    do_not_specialize=[
        *("strips", "bands", "rows", "channels", "height", "width"),
        *("first_plane", "slab_top", "slab_bottom"),
    ]
)
def gather(
    x,
    y,
    gradient,
    other,
    maps,
    x_strides,
    y_strides,
    gradient_strides,
    other_strides,
    pitch,
    strips,
    bands,
    rows,
    first_plane,
    slab_top,
    slab_bottom,
    channels,
    height,
    width,
    window,
    low,
    share,
    LANES: tl.constexpr,
    COLUMNS: tl.constexpr,
    TURN: tl.constexpr,
    WHOLE: tl.constexpr,
    TAPS: tl.constexpr,
    WANT: tl.constexpr,
):
    """The gradients of a tile from what `derive` left for a slab of rows of the image."""
    REACH: tl.constexpr = TAPS - 1
    MAPS: tl.constexpr = 4 if WANT == 3 else 3
    width = _known(width, COLUMNS, WHOLE)
    strip, band, slab_plane = _place(strips, bands)
    plane = first_plane + slab_plane
    top = slab_top + band * rows
    bottom = tl.minimum(top + rows, slab_bottom)
    x = _plane(x, x_strides, plane, channels)
    y = _plane(y, y_strides, plane, channels)
    gradient = _plane(gradient, gradient_strides, plane, channels)
    other = _plane(other, other_strides, plane, channels)
    level_d, level_t = _levels(x, y, x_strides, y_strides, 0, 0, height, width, low)

    first = strip * (LANES * COLUMNS) + tl.arange(0, LANES) * COLUMNS
    column = first[:, None] + tl.arange(0, COLUMNS)[None, :]
    step = (slab_bottom - slab_top + REACH).to(tl.int64) * pitch
    maps += slab_plane * MAPS * step
    none = (tl.zeros((LANES,), tl.float32),) * (COLUMNS * TAPS)
    sums = (none,) * MAPS
    # One loop, as in `derive`.
    row = top - REACH
    source = maps + (row - slab_top + REACH).to(tl.int64) * pitch
    x_row, y_row = x + row.to(tl.int64) * x_strides[2], y + row.to(tl.int64) * y_strides[2]
    gradient_row = gradient + row.to(tl.int64) * gradient_strides[2]
    other_row = other + row.to(tl.int64) * other_strides[2]
    while row < bottom:
        for _ in tl.static_range(TURN):
            windows = _windows(source, first, COLUMNS)
            sums = _add_maps(sums, windows, step, window, COLUMNS, TAPS)
            _finish(
                *(x_row, y_row, gradient_row, other_row),
                *(x_strides, y_strides, gradient_strides, other_strides),
                *(column, (row >= top) & (row < bottom) & (column < width)),
                _complete(sums[0], LANES, COLUMNS, TAPS),
                _complete(sums[1], LANES, COLUMNS, TAPS),
                _complete(sums[2], LANES, COLUMNS, TAPS),
                _complete(sums[MAPS - 1], LANES, COLUMNS, TAPS),
                *(low, level_d, level_t, share, WANT),
            )
            row += 1
            source += pitch
            x_row, y_row = x_row + x_strides[2], y_row + y_strides[2]
            gradient_row += gradient_strides[2]
            other_row += other_strides[2]


@triton.jit(do_not_specialize=["planes", "pitch"])
def mean(sums, means, counts, wholes, planes, pitch, LANES: tl.constexpr, DISTANCE: tl.constexpr):
    """The means of S from the tiles' sums of 1 - S, exactly 1 for identical images.

    ``counts`` are those of the tiles at each level, the first in a row of ``pitch`` values, and
    ``wholes`` the sums of all weights. With ``DISTANCE`` the last are those of |x - y|.
    """
    place = tl.program_id(0)
    count, whole = counts[0], wholes[0]
    for j in tl.static_range(1, len(counts)):
        count = tl.where(place >= j * planes, counts[j], count)
        whole = tl.where(place >= j * planes, wholes[j], whole)
    sums += place.to(tl.int64) * pitch
    total = tl.zeros((LANES,), tl.float32)
    rest = tl.zeros((LANES,), tl.float32)
    first = 0
    while first < count:
        tile = first + tl.arange(0, LANES)
        more = tl.load(sums + 2 * tile, mask=tile < count, other=0)
        more_rest = tl.load(sums + 2 * tile + 1, mask=tile < count, other=0)
        total, rest = _added(total, rest, more, more_rest)
        first += LANES
    total, rest = tl.reduce((total, rest), 0, _added)
    value = (whole - total) - rest
    if DISTANCE:
        value = tl.where(place < (len(counts) - 1) * planes, value, total + rest)
    # A plain division may miss 1 by a bit.
    tl.store(means + place, tl.div_rn(value, whole))


@triton.jit
def _raised(base, exponent):
    """A power, of negative numbers too where it is a whole one."""
    size = tl.exp2(exponent * tl.log2(tl.abs(base)))
    half = 0.5 * exponent
    signed = tl.where(half == tl.floor(half), size, -size)
    signed = tl.where(exponent == tl.floor(exponent), signed, float("nan"))
    power = tl.where(base < 0, signed, size)
    # The logarithm of zero times zero is not what its power is.
    return tl.where(exponent == 0, 1.0, tl.where(exponent == 1, base, power))


@triton.jit
def _power(mean, exponent, floor, NORMALIZE: tl.constexpr):
    """A level's factor in the product, and its derivative."""
    base, slope = mean, tl.full(mean.shape, 1.0, tl.float32)
    if NORMALIZE == FLOOR:
        below = floor * floor / (2 * floor - tl.minimum(mean, floor))
        base = tl.where(mean <= floor, below, mean)
        slope = tl.where(mean <= floor, below * below / (floor * floor), 1.0)
    elif NORMALIZE == SIMPLE:
        base, slope = 0.5 * (mean + 1), 0.5 * slope
    elif NORMALIZE == RELU:
        dead = mean <= 0
        base, slope = tl.where(dead, 1.0, mean), tl.where(dead, 0.0, 1.0)
    factor = _raised(base, exponent)
    derivative = exponent * _raised(base, exponent - 1)
    if NORMALIZE == RELU:
        factor = tl.where(dead, 0.0, factor)
    return factor, tl.where(exponent == 0, 0.0, derivative * slope)


@triton.jit(do_not_specialize=["exponents", "floor", "planes"])
def product(
    means,
    value,
    derivatives,
    exponents,
    floor,
    planes,
    NORMALIZE: tl.constexpr,
    LANES: tl.constexpr,
):
    """The product over the levels of their means' powers, and its derivatives by the means.

    ``means`` and ``derivatives`` are of ``planes`` for each level.
    """
    plane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    inside = plane < planes
    factors, slopes = (), ()
    for j in tl.static_range(len(exponents)):
        mean = tl.load(means + j * planes + plane, mask=inside, other=1)
        factor, slope = _power(mean, exponents[j], floor, NORMALIZE)
        factors = factors + (factor,)
        slopes = slopes + (slope,)
    whole = factors[0]
    for j in tl.static_range(1, len(exponents)):
        whole *= factors[j]
    tl.store(value + plane, whole, mask=inside)
    for j in tl.static_range(len(exponents)):
        # Not the whole product divided by the factor, which can be zero.
        derivative = slopes[j]
        for k in tl.static_range(len(exponents)):
            if k != j:
                derivative *= factors[k]
        tl.store(derivatives + j * planes + plane, derivative, mask=inside)


@triton.jit(do_not_specialize=["strips", "bands", "channels", "height", "width"])
def pyramid(
    x,
    y,
    x_halves,
    y_halves,
    pitches,
    x_strides,
    y_strides,
    strips,
    bands,
    channels,
    height,
    width,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Repeated 2x2 means of both images, an odd last row or column counting twice.

    ``x_halves`` and ``y_halves`` are of the levels that a tile gives, each of whole rows of as many
    values as ``pitches`` has.
    """
    strip, band, plane = _place(strips, bands)
    row = (band * ROWS + tl.arange(0, ROWS)[:, None]).to(tl.int64)
    column = (strip * LANES + tl.arange(0, LANES)[None, :]).to(tl.int64)
    inside = (row < height) & (column < width)
    a = _plane(x, x_strides, plane, channels) + row * x_strides[2] + column * x_strides[3]
    b = _plane(y, y_strides, plane, channels) + row * y_strides[2] + column * y_strides[3]
    a = tl.load(a, mask=inside, other=0).to(tl.float32)
    b = tl.load(b, mask=inside, other=0).to(tl.float32)
    for j in tl.static_range(len(pitches)):
        top, left = band * (ROWS >> j), strip * (LANES >> j)
        a = _halve(a, top, left, height, width, ROWS >> j, LANES >> j)
        b = _halve(b, top, left, height, width, ROWS >> j, LANES >> j)
        height, width = (height + 1) // 2, (width + 1) // 2
        row = top // 2 + tl.arange(0, ROWS >> (j + 1))[:, None]
        column = left // 2 + tl.arange(0, LANES >> (j + 1))[None, :]
        inside = (row < height) & (column < width)
        offset = (plane.to(tl.int64) * height + row) * pitches[j] + column
        tl.store(x_halves[j] + offset, a, mask=inside)
        tl.store(y_halves[j] + offset, b, mask=inside)


@triton.jit
def _halve(tile, top, left, height, width, ROWS: tl.constexpr, LANES: tl.constexpr):
    """2x2 means of a tile whose first pixel is at ``top`` and ``left``."""
    first, second = tl.split(tl.reshape(tile, (ROWS, LANES // 2, 2)))
    column = left + 2 * tl.arange(0, LANES // 2)[None, :]
    across = 0.5 * (first + tl.where(column + 1 < width, second, first))
    pairs = tl.permute(tl.reshape(across, (ROWS // 2, 2, LANES // 2)), (0, 2, 1))
    upper, lower = tl.split(pairs)
    row = top + 2 * tl.arange(0, ROWS // 2)[:, None]
    return 0.5 * (upper + tl.where(row + 1 < height, lower, upper))


@triton.jit(do_not_specialize=["strips", "bands", "channels", "height", "width"])
def sweep(
    gradient,
    coarse,
    pitches,
    scale,
    x,
    y,
    strides,
    scale_strides,
    x_strides,
    y_strides,
    strips,
    bands,
    channels,
    height,
    width,
    usual,
    COARSE: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    DISTANCE: tl.constexpr,
):
    """Scales the finest level's gradient and adds what the coarser ones send to each pixel.

    Gradients come with the scale ``usual``. Where that is right and nothing is added, nothing is
    read or written.

    A pixel gets a quarter of the value above it, half of it at an odd edge and all of it in an odd
    corner, at each level on the way. ``coarse`` are of whole rows of as many values as ``pitches``
    has. With ``DISTANCE`` the mean of |x - y| has the last scale.
    """
    strip, band, plane = _place(strips, bands)
    row = band * ROWS + tl.arange(0, ROWS)[:, None]
    column = strip * LANES + tl.arange(0, LANES)[None, :]
    inside = (row < height) & (column < width)
    n, c = plane // channels, plane % channels
    scale += n.to(tl.int64) * scale_strides[1] + c.to(tl.int64) * scale_strides[2]
    address = _plane(gradient, strides, plane, channels)
    address += row.to(tl.int64) * strides[2] + column.to(tl.int64) * strides[3]
    if COARSE == 0 and not DISTANCE:
        inside = inside & (tl.load(scale) != usual)
    total = tl.load(scale) / usual * tl.load(address, mask=inside, other=0).to(tl.float32)
    if DISTANCE:
        share = tl.load(scale + (COARSE + 1) * scale_strides[0]) / (1.0 * height * width)
        a = _plane(x, x_strides, plane, channels)
        a += row.to(tl.int64) * x_strides[2] + column.to(tl.int64) * x_strides[3]
        b = _plane(y, y_strides, plane, channels)
        b += row.to(tl.int64) * y_strides[2] + column.to(tl.int64) * y_strides[3]
        difference = tl.load(a, mask=inside, other=0).to(tl.float32)
        difference -= tl.load(b, mask=inside, other=0).to(tl.float32)
        total += share * tl.where(difference > 0, 1.0, tl.where(difference < 0, -1.0, 0.0))
    down, across = tl.full((ROWS, 1), 1.0, tl.float32), tl.full((1, LANES), 1.0, tl.float32)
    for j in tl.static_range(COARSE):
        down *= tl.where((height % 2 == 1) & (row == height - 1), 1.0, 0.5)
        across *= tl.where((width % 2 == 1) & (column == width - 1), 1.0, 0.5)
        row, column = row // 2, column // 2
        height, width = (height + 1) // 2, (width + 1) // 2
        offset = (plane.to(tl.int64) * height + row) * pitches[j] + column
        scale += scale_strides[0]
        sent = tl.load(scale) / usual * tl.load(coarse[j] + offset, mask=inside, other=0)
        total += sent * (down * across)
    tl.store(address, total.to(gradient.dtype.element_ty), mask=inside)
