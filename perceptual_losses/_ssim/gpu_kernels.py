"""Triton kernels of the GPU path: the mean and its gradient in one march down the rows.

A program owns a strip of columns and a band of rows of one plane, a thread ``E`` neighbouring
columns of the strip. Windows share their pixels: each is loaded and combined once and goes through
a row of scratch memory. From there come the horizontal sums under the window, which are added to
the ``T`` rows of the map that are in flight in registers; the first of these is then complete and
becomes S and its derivatives. Those go through the same memory and come back as horizontal sums for
the ``T`` rows of the gradient in flight. Nothing of the size of an image is kept.

While a row of scratch memory is read, the next row of pixels and the derivatives are written to
others, so that one barrier a row is enough. In `march` rows of pixels stay there until the gradient
is complete where they are. It is shared memory where there is a way to it, else memory that the
caller passes. Pixels are loaded into registers a row before that.

`march` does all of this. Where the sums of both halves do not fit into the registers, `derive`
does the first half and `gather` the second, with the derivatives of a slab of rows in memory in
between. Without a gradient `derive` is all there is to do. Its programs go on in the next strip.

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


@triton.jit
def _place(program, strips, bands):
    """Strip, band and plane of a program."""
    return program % strips, program // strips % bands, program // strips // bands


@triton.jit
def _segment(program, line, end, rows, height, strips):
    """Of all rows of all strips, one strip after the other, those from ``line`` to ``end`` that are
    in one strip, for a program.

    A program has ``rows`` of them, so that all take the same time.

    Returns:
        Strip and plane, the first row and the one after the last, and which of the programs in this
        strip it is.
    """
    column = line // height
    top = line - column * height
    bottom = tl.minimum(top + end - line, height)
    part = program - column * height // rows
    place = column % strips, column // strips
    return place[0].to(tl.int32), place[1].to(tl.int32), top.to(tl.int32), bottom.to(tl.int32), part


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
def _levels(x, y, x_strides, y_strides, top, left, rows, columns, root, low):
    """Difference and total that most of a few pixels of a region are near to.

    The mean without those far from most: one pixel of 1e5 among them would move the level of all
    others so far that their variances cancel. NaN and infinity do not count, to stay in the
    windows that hold them.

    Returns:
        Those levels, and what `_contrasts` adds to a pixel, from which the total's level follows
        without a rounding.
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
    off = -root * (0.5 * zero)
    return level_d, (zero - 2 * low) - 2 * tl.fma(root, 0.5 * zero, off) / root, off


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


@triton.constexpr_function
def _declaration(size):
    return f"{{ .shared .align 16 .b32 scratch[{size}]; mov.u32 $0, scratch; }}"


@triton.constexpr_function
def _vector(count, first):
    """PTX's type and its list of so many registers, the first with that number."""
    registers = ", ".join(f"${first + k}" for k in range(count))
    return ("f32", registers) if count == 1 else (f"v{count}.f32", f"{{{registers}}}")


@triton.constexpr_function
def _writing(offset, count):
    kind, registers = _vector(count, 2)
    # An assembly has to have a result.
    return f"st.shared.{kind} [$1 + {4 * offset}], {registers}; mov.b32 $0, 0;"


@triton.constexpr_function
def _reading(offset, count):
    kind, registers = _vector(count, 0)
    return f"ld.shared.{kind} {registers}, [${count} + {4 * offset}];"


@triton.jit
def _scratch(memory, SIZE: tl.constexpr, SHARED: tl.constexpr):
    """So many values of the program's own: their address in shared memory, or a part of ``memory``.

    What is written to memory is read from the second-level cache, which a warp waits many times as
    long for. Triton's own operations do not address shared memory.
    """
    if SHARED:
        place = tl.inline_asm_elementwise(
            _declaration(SIZE), "=r", [], dtype=tl.int32, is_pure=False, pack=1
        )
    else:
        place = memory + tl.program_id(0).to(tl.int64) * SIZE
    return place


@triton.jit
def _separate(values, COLUMNS: tl.constexpr):
    """Each of a thread's neighbouring columns by itself."""
    if COLUMNS == 1:
        columns = (tl.reshape(values, (values.shape[0],)),)
    elif COLUMNS == 2:
        a, b = tl.split(values)
        columns = (a, b)
    else:
        ac, bd = tl.split(tl.reshape(values, (values.shape[0], 2, 2)))
        a, c = tl.split(ac)
        b, d = tl.split(bd)
        columns = (a, b, c, d)
    return columns


@triton.jit
def _together(columns, COLUMNS: tl.constexpr):
    """What `_separate` takes apart."""
    if COLUMNS == 1:
        values = columns[0][:, None]
    elif COLUMNS == 2:
        values = tl.join(columns[0], columns[1])
    else:
        values = tl.join(tl.join(columns[0], columns[2]), tl.join(columns[1], columns[3]))
        values = tl.reshape(values, (columns[0].shape[0], 4))
    return values


@triton.jit
def _write(row, OFFSET: tl.constexpr, columns, first, COLUMNS: tl.constexpr, SHARED: tl.constexpr):
    """Writes neighbouring columns to scratch memory, from ``OFFSET`` + ``first`` on."""
    if not SHARED:
        places = first[:, None] + tl.arange(0, COLUMNS)[None, :]
        tl.store(row + OFFSET + places, _together(columns, COLUMNS))
    else:
        place = row + 4 * first
        if COLUMNS == 1:
            kinds: tl.constexpr = "=r,r,f"
            operands = [place, columns[0]]
        elif COLUMNS == 2:
            kinds: tl.constexpr = "=r,r,f,f"
            operands = [place, columns[0], columns[1]]
        else:
            kinds: tl.constexpr = "=r,r,f,f,f,f"
            operands = [place, columns[0], columns[1], columns[2], columns[3]]
        tl.inline_asm_elementwise(
            *(_writing(OFFSET, COLUMNS), kinds, operands), dtype=tl.int32, is_pure=False, pack=1
        )


@triton.jit
def _read(
    row,
    OFFSET: tl.constexpr,
    first,
    COLUMNS: tl.constexpr,
    TAPS: tl.constexpr,
    SHARED: tl.constexpr,
):
    """The columns under each thread's windows, from scratch memory."""
    if not SHARED:
        values = _side_by_side(_windows(row + OFFSET, first, COLUMNS), COLUMNS, TAPS)
    else:
        values = ()
        for k in tl.static_range(0, COLUMNS + TAPS - 1, COLUMNS):
            values = values + _read_columns(row + 4 * first, OFFSET + k, COLUMNS)
    return values


@triton.jit
def _read_columns(place, OFFSET: tl.constexpr, COLUMNS: tl.constexpr):
    """As many neighbouring values in one access to shared memory."""
    assembly: tl.constexpr = _reading(OFFSET, COLUMNS)
    if COLUMNS == 1:
        a = tl.inline_asm_elementwise(
            assembly, "=f,r", [place], dtype=tl.float32, is_pure=False, pack=1
        )
        columns = (a,)
    elif COLUMNS == 2:
        columns = tl.inline_asm_elementwise(
            *(assembly, "=f,=f,r", [place]),
            dtype=(tl.float32, tl.float32),
            is_pure=False,
            pack=1,
        )
    else:
        columns = tl.inline_asm_elementwise(
            *(assembly, "=f,=f,=f,=f,r", [place]),
            dtype=(tl.float32, tl.float32, tl.float32, tl.float32),
            is_pure=False,
            pack=1,
        )
    return columns


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
def _columns(left, LANES: tl.constexpr, COLUMNS: tl.constexpr, TAPS: tl.constexpr):
    """Those of each thread, from ``left`` on, and those behind the tile that its windows cover."""
    own = tl.arange(0, LANES)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    beside = LANES * COLUMNS + tl.arange(0, triton.next_power_of_2(max(TAPS - 1, 2)))
    return left + own, left + beside


@triton.jit
def _inside(row, column, height, width):
    return ((column >= 0) & (column < width)) & ((row >= 0) & (row < height))


@triton.jit
def _pixel(address, step, row, column, height, width, PADDING: tl.constexpr):
    """Pixels of a row, as they are."""
    if PADDING == SYMMETRIC:
        found = tl.load(address + _shown(column, width).to(tl.int64) * step)
    else:
        inside = _inside(row, column, height, width)
        found = tl.load(address + column.to(tl.int64) * step, mask=inside, other=0)
    return found


@triton.jit
def _pixels(
    address,
    step,
    row,
    left,
    height,
    width,
    LANES: tl.constexpr,
    COLUMNS: tl.constexpr,
    WHOLE: tl.constexpr,
    DENSE: tl.constexpr,
    TAPS: tl.constexpr,
    PADDING: tl.constexpr,
):
    """A row in `_columns`.

    A thread's columns are loaded at once if ``DENSE``, else one by one, as where they are mirrored:
    of what is no aligned access the compiler may give each column to another thread, and exchange
    them after. Pairs of bfloat16 that are both inside the image or both outside stay pairs until
    `_floats`: the compiler would take them apart here, into registers of their own.
    """
    own, beside = _columns(left, LANES, COLUMNS, TAPS)
    if DENSE and PADDING != SYMMETRIC:
        if WHOLE and COLUMNS > 1 and address.dtype.element_ty == tl.bfloat16:
            pairs = address.to(tl.pointer_type(tl.int32), bitcast=True)
            pair = _columns(left // 2, LANES, COLUMNS // 2, TAPS)[0]
            found = _pixel(pairs, 1, row, pair, height, width // 2, PADDING)
        else:
            found = _pixel(address, step, row, own, height, width, PADDING)
    else:
        columns, pixels = _separate(own, COLUMNS), ()
        for e in tl.static_range(COLUMNS):
            pixels = pixels + (_pixel(address, step, row, columns[e], height, width, PADDING),)
        found = _together(pixels, COLUMNS)
    return found, _pixel(address, step, row, beside, height, width, PADDING)


@triton.jit
def _floats(pixels):
    """Pixels as float32, of pairs of bfloat16 too."""
    if pixels.dtype == tl.int32:
        pairs = tl.join(pixels << 16, pixels & -65536)
        pixels = tl.reshape(pairs, (pixels.shape[0], 2 * pixels.shape[1]))
        pixels = pixels.to(tl.float32, bitcast=True)
    else:
        pixels = pixels.to(tl.float32)
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
    LANES: tl.constexpr,
    COLUMNS: tl.constexpr,
    WHOLE: tl.constexpr,
    DENSE: tl.constexpr,
    TAPS: tl.constexpr,
    PADDING: tl.constexpr,
):
    """The addresses of a row in both images, from those of the row before, and its pixels."""
    x_next = _next_address(x, x_next, x_strides, row, height, PADDING)
    y_next = _next_address(y, y_next, y_strides, row, height, PADDING)
    place = row, left, height, width
    a = _pixels(x_next, x_strides[3], *place, LANES, COLUMNS, WHOLE, DENSE, TAPS, PADDING)
    b = _pixels(y_next, y_strides[3], *place, LANES, COLUMNS, WHOLE, DENSE, TAPS, PADDING)
    return x_next, y_next, a, b


@triton.jit
def _contrasts(a, b, root, level_d, off, MIXED: tl.constexpr):
    """Difference and total of pixels, less their levels, times ``root``; with ``MIXED`` so that the
    difference is that of equal pixels for them alone.
    """
    # What is far from zero and close to each other loses no digits in one rounding.
    total = tl.fma(a, root, off) + tl.fma(b, root, off)
    equal = -level_d * root
    difference = tl.fma(a - b, root, equal)
    if MIXED:
        bit = 2**-23 * tl.abs(equal)
        beside = tl.where(a > b, equal + bit, equal - bit)
        difference = tl.where((difference == equal) & (a != b), beside, difference)
    return difference, total


@triton.jit
def _keep_pixels(
    pixels_x,
    pixels_y,
    scratch_row,
    row,
    left,
    height,
    width,
    root,
    low,
    level_d,
    off,
    LANES: tl.constexpr,
    COLUMNS: tl.constexpr,
    TAPS: tl.constexpr,
    PITCH: tl.constexpr,
    PADDING: tl.constexpr,
    MIXED: tl.constexpr,
    SHARED: tl.constexpr,
):
    """Writes difference and total of a row of `_pixels`."""
    for k in tl.static_range(2):
        # Here and not where they are loaded, which would wait for them.
        a, b = _floats(pixels_x[k]), _floats(pixels_y[k])
        if PADDING == ZEROS:
            inside = _inside(row, _columns(left, LANES, COLUMNS, TAPS)[k], height, width)
            a, b = tl.where(inside, a, low), tl.where(inside, b, low)
        # Those beside the tile are in windows alone.
        difference, total = _contrasts(a, b, root, level_d, off, MIXED and k == 0)
        if k == 0:
            first = tl.arange(0, LANES) * COLUMNS
            _write(scratch_row, 0, _separate(difference, COLUMNS), first, COLUMNS, SHARED)
            _write(scratch_row, PITCH, _separate(total, COLUMNS), first, COLUMNS, SHARED)
        else:
            beside = _columns(0, LANES, COLUMNS, TAPS)[1]
            _write(scratch_row, 0, (difference,), beside, 1, SHARED)
            _write(scratch_row, PITCH, (total,), beside, 1, SHARED)


@triton.jit
def _further(apart, a, b, row, begin, end, height):
    """Adds the distances between pixels of a row to those of each thread's columns, if the row is
    from ``begin`` on, before ``end`` and in the image.
    """
    counted = (row >= tl.maximum(begin, 0)) & (row < tl.minimum(end, height))
    distances = _separate(tl.abs(_floats(a) - _floats(b)), len(apart))
    further = ()
    for e in tl.static_range(len(apart)):
        further = further + (apart[e] + tl.where(counted, distances[e], 0.0),)
    return further


@triton.jit
def _advance(
    pixels_x,
    pixels_y,
    apart,
    scratch_row,
    x,
    y,
    x_next,
    y_next,
    x_strides,
    y_strides,
    row,
    left,
    begin,
    end,
    height,
    width,
    root,
    low,
    level_d,
    off,
    LANES: tl.constexpr,
    COLUMNS: tl.constexpr,
    WHOLE: tl.constexpr,
    DENSE: tl.constexpr,
    TAPS: tl.constexpr,
    PITCH: tl.constexpr,
    PADDING: tl.constexpr,
    DISTANCE: tl.constexpr,
    MIXED: tl.constexpr,
    SHARED: tl.constexpr,
):
    """Keeps a row of `_pixels`, adds their distances if wanted, and loads the next row."""
    if DISTANCE:
        apart = _further(apart, pixels_x[0], pixels_y[0], row, begin, end, height)
    _keep_pixels(
        *(pixels_x, pixels_y, scratch_row, row, left, height, width),
        *(root, low, level_d, off, LANES, COLUMNS, TAPS, PITCH, PADDING, MIXED, SHARED),
    )
    x_next, y_next, pixels_x, pixels_y = _next_pixels(
        *(x, y, x_next, y_next, x_strides, y_strides, row + 1, left),
        *(height, width, LANES, COLUMNS, WHOLE, DENSE, TAPS, PADDING),
    )
    return apart, x_next, y_next, pixels_x, pixels_y


@triton.jit
def _squares(values):
    squares = ()
    for k in tl.static_range(len(values)):
        squares = squares + (values[k] * values[k],)
    return squares


@triton.jit
def _add_row(sums, values, across, down, COLUMNS: tl.constexpr, TAPS: tl.constexpr):
    """Adds a row to the sums in flight: ``TAPS`` of each column, the first of them complete then.

    ``across`` and ``down`` are the half of the taps that the other half mirrors. The sums move up
    by one with each row: a multiply-add has its own destination, so that moving costs next to
    nothing, and the loop over the rows needs no copies of its body.
    """
    moved = ()
    for e in tl.static_range(COLUMNS):
        row = across[TAPS // 2] * values[e + TAPS // 2]
        for k in tl.static_range(TAPS // 2):
            row += across[k] * (values[e + k] + values[e + TAPS - 1 - k])
        for k in tl.static_range(TAPS - 1):
            moved = moved + (sums[e * TAPS + k + 1] + down[min(k, TAPS - 1 - k)] * row,)
        moved = moved + (down[0] * row,)
    return moved


@triton.jit
def _add_moments(
    sums,
    row,
    first,
    across,
    down,
    COLUMNS: tl.constexpr,
    TAPS: tl.constexpr,
    PITCH: tl.constexpr,
    SHARED: tl.constexpr,
):
    """Adds a row of pixels from scratch memory to the sums of d, d^2, t and t^2."""
    added = ()
    for k in tl.static_range(2):
        values = _read(row, k * PITCH, first, COLUMNS, TAPS, SHARED)
        added = added + (
            _add_row(sums[2 * k], values, across, down, COLUMNS, TAPS),
            _add_row(sums[2 * k + 1], _squares(values), across, down, COLUMNS, TAPS),
        )
    return added


@triton.jit
def _inverse(values, ASSEMBLY: tl.constexpr):
    """1 / values, which are positive, to 2 ulp: in PTX one instruction, to which what is beyond
    2^126 is infinite.
    """
    if ASSEMBLY:
        inverse = tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [values], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        root = tl.rsqrt(values)
        inverse = root * root
    return inverse


@triton.jit
def _derivatives(
    d,
    t,
    e_dd,
    e_tt,
    root,
    level_d,
    level_t,
    c1,
    c2,
    row,
    column,
    height,
    width,
    weight,
    weight_strides,
    PADDING: tl.constexpr,
    WANT: tl.constexpr,
    WEIGHTED: tl.constexpr,
    ASSEMBLY: tl.constexpr,
):
    """Half of 1 - S of a row of the map, and M_d, M_t, V_d and V_t, the last two over ``root``,
    zero beside the map; all times their weight.

    ``d`` and ``t`` are means over ``root``: as the pixels are times ``root``, their squares are
    right.

    With an infinite ``c1`` the luminance is 1, and its derivatives are 0.

    ``row`` and ``column`` are those of the map, ``height`` and ``width`` its size.
    """
    inside = _inside(row, column, height, width)
    # Whether what follows has to be zero beside the map.
    MASKED: tl.constexpr = WANT > 0 and PADDING != SYMMETRIC
    square = root * root
    mu_d, mu_t = square * d, square * t
    var_d = e_dd - mu_d * d
    var_t = e_tt - mu_t * t
    # But for roundings they are not negative.
    steep = _inverse(tl.maximum(var_t + var_d, 0.0, tl.PropagateNan.ALL) + 2 * c2, ASSEMBLY)
    if MASKED:
        steep = tl.where(inside, steep, 0.0)
    b = var_d * steep
    value = 1 - 2 * b
    full_d, full_t = root * d + level_d, root * t + level_t
    dd = full_d * full_d
    inverse = _inverse(full_t * full_t + dd + 2 * c1, ASSEMBLY)
    if MASKED:
        inverse = tl.where(inside, inverse, 0.0)
    a = dd * inverse
    scaled = value * inverse
    m_t = a * scaled * full_t
    m_d = (a * scaled - scaled) * full_d
    steep *= 1 / root - 2 / root * a
    v_t = b * steep
    v_d = v_t - steep
    m_d -= mu_d * v_d
    m_t -= mu_t * v_t
    deficit = b + a * value

    if PADDING == SYMMETRIC:
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
def _row_of_map(
    moments,
    total,
    counted,
    root,
    level_d,
    level_t,
    c1,
    c2,
    row,
    left,
    height,
    width,
    weight,
    weight_strides,
    LANES: tl.constexpr,
    COLUMNS: tl.constexpr,
    TAPS: tl.constexpr,
    PADDING: tl.constexpr,
    WANT: tl.constexpr,
    WEIGHTED: tl.constexpr,
    ASSEMBLY: tl.constexpr,
):
    """What complete moments give: half the sums of 1 - S, a row longer where ``counted``, and M
    (M_t if both gradients are wanted), V_d, V_t and then M_d, of each column.

    ``row`` and ``left`` are in the map, of which ``height`` and ``width`` are the size.
    """
    first = tl.arange(0, LANES) * COLUMNS
    totals, of_m, of_v_d, of_v_t, of_m_d = (), (), (), (), ()
    for e in tl.static_range(COLUMNS):
        deficit, m_d, m_t, v_d, v_t = _derivatives(
            *(moments[0][e * TAPS], moments[2][e * TAPS]),
            *(moments[1][e * TAPS], moments[3][e * TAPS]),
            *(root, level_d, level_t, c1, c2),
            *(row, left + first + e, height, width, weight, weight_strides),
            *(PADDING, WANT, WEIGHTED, ASSEMBLY),
        )
        longer = counted & (row >= 0) & (row < height)
        totals = totals + (tl.where(longer, total[e] + deficit, total[e]),)
        of_m = of_m + (m_t if WANT == 3 else m_t + m_d,)
        of_v_d, of_v_t, of_m_d = of_v_d + (v_d,), of_v_t + (v_t,), of_m_d + (m_d,)
    return totals, (of_m, of_v_d, of_v_t, of_m_d)


@triton.jit
def _chosen(columns, first, begin, end):
    """Of each thread's columns those from ``begin`` on and before ``end``, zero for the others."""
    chosen = ()
    for e in tl.static_range(len(columns)):
        inside = (first + e >= begin) & (first + e < end)
        chosen = chosen + (tl.where(inside, columns[e], 0.0),)
    return chosen


@triton.jit
def _added(a, a_rest, b, b_rest):
    """A sum, and what the roundings of its terms lost."""
    total = a + b
    of_b = total - a
    return total, a_rest + b_rest + ((a - (total - of_b)) + (b - of_b))


@triton.jit
def _keep(columns, place, last, whole, DEFICIT: tl.constexpr):
    """Writes a tile's sum and what its roundings lost: a small mean of S, as 1 less that of 1 - S,
    would have few digits without. Or the mean, of a tile that is all of its plane.

    Args:
        columns: sums of each thread, by column; of 1 - S half.
        place: where to.
        last: whether nobody writes the place after it, which has to be zero; or ``None``.
        whole: the sum of all weights, or 0 where sums are added up.
        DEFICIT: whether the sum is one of 1 - S.
    """
    total, rest = columns[0], tl.zeros_like(columns[0])
    for e in tl.static_range(1, len(columns)):
        total, rest = _added(total, rest, columns[e], tl.zeros_like(total))
    total, rest = tl.reduce((total, rest), 0, _added)
    if DEFICIT:
        total, rest = 2 * total, 2 * rest
    if whole == 0:
        tl.store(place, total)
        tl.store(place + 1, rest)
        if last is not None:
            tl.store(place + 2, 0.0, mask=last)
            tl.store(place + 3, 0.0, mask=last)
    else:
        tl.store(place, _mean(total, rest, whole, DEFICIT))


@triton.jit
def _mean(total, rest, whole, DEFICIT: tl.constexpr):
    """From a sum and what its roundings lost; exactly 1 where no 1 - S is more than 0."""
    value = (whole - total) - rest if DEFICIT else total + rest
    # A plain division may miss 1 by a bit.
    return tl.div_rn(value, whole)


@triton.jit
def _total(sums, count, LANES: tl.constexpr):
    """Of so many tiles' sums, with what roundings lost."""
    total = tl.zeros((LANES,), tl.float32)
    rest = tl.zeros((LANES,), tl.float32)
    first = 0
    while first < count:
        # Several are on their way at once.
        for k in tl.static_range(8):
            tile = first + k * LANES + tl.arange(0, LANES)
            more = tl.load(sums + 2 * tile, mask=tile < count, other=0)
            more_rest = tl.load(sums + 2 * tile + 1, mask=tile < count, other=0)
            total, rest = _added(total, rest, more, more_rest)
        first += 8 * LANES
    return tl.reduce((total, rest), 0, _added)


@triton.jit
def _result(
    sums, distances, all_tiles, LANES: tl.constexpr, LOSS: tl.constexpr, MIXED: tl.constexpr
):
    """The mean of S from tiles' sums of 1 - S, exactly 1 for identical images; or 1 less that, for
    a ``LOSS``, which may be ``MIXED`` with the mean of |x - y| from ``distances``.

    ``all_tiles`` are the number of the tiles, the sum of all weights, the number of all pixels, and
    how many times the loss and that mean are in the mix.
    """
    count, whole, pixels, structural, l1 = all_tiles
    total, rest = _total(sums, count, LANES)
    value = _mean(total, rest, whole, True)
    if LOSS:
        value = 1 - value
    if MIXED:
        total, rest = _total(distances, count, LANES)
        value = structural * value + l1 * _mean(total, rest, pixels, False)
    return value


@triton.jit
def _add_up(
    sums,
    distances,
    result,
    arrived,
    all_tiles,
    LANES: tl.constexpr,
    LOSS: tl.constexpr,
    MIXED: tl.constexpr,
):
    """Writes the `_result` of all programs' sums, in whichever program is the last one to come
    here.

    ``arrived`` counts them: it is zero before a launch, and afterwards again.
    """
    # What this program's threads wrote is there before it is counted, and what others did, who were
    # counted before, is there after that.
    tl.debug_barrier()
    before = tl.atomic_add(arrived, 1, sem="acq_rel", scope="gpu")
    if before == tl.num_programs(0) - 1:
        tl.store(arrived, 0)
        tl.store(result, _result(sums, distances, all_tiles, LANES, LOSS, MIXED))


@triton.jit
def _load(row, step, column, inside, COLUMNS: tl.constexpr, DENSE: tl.constexpr):
    """The columns of each thread, zero where not ``inside``; as `_pixels` does."""
    column = column.to(tl.int64)
    if DENSE:
        values = tl.load(row + column * step, mask=inside, other=0)
    else:
        columns, masks, found = _separate(column, COLUMNS), _separate(inside, COLUMNS), ()
        for e in tl.static_range(COLUMNS):
            found = found + (tl.load(row + columns[e] * step, mask=masks[e], other=0),)
        values = _together(found, COLUMNS)
    return values


@triton.jit
def _store(row, step, column, values, inside, COLUMNS: tl.constexpr, DENSE: tl.constexpr):
    """Writes the columns of each thread, as `_load` reads them."""
    column = column.to(tl.int64)
    kind = row.dtype.element_ty
    if DENSE:
        tl.store(row + column * step, _together(values, COLUMNS).to(kind), mask=inside)
    else:
        columns, masks = _separate(column, COLUMNS), _separate(inside, COLUMNS)
        for e in tl.static_range(COLUMNS):
            tl.store(row + columns[e] * step, values[e].to(kind), mask=masks[e])


@triton.jit
def _finish(
    d,
    t,
    gradient_row,
    other_row,
    gradient_strides,
    other_strides,
    column,
    inside,
    sums,
    share,
    apart,
    equal,
    COLUMNS: tl.constexpr,
    DENSE: tl.constexpr,
    TAPS: tl.constexpr,
    WANT: tl.constexpr,
    MIXED: tl.constexpr,
):
    """Writes a row of the gradients from `_contrasts`, of which ``equal`` is the difference of
    equal pixels, and filtered derivatives.
    """
    of_x, of_y = (), ()
    for e in tl.static_range(COLUMNS):
        alike = sums[0][e * TAPS] + t[e] * sums[2][e * TAPS]
        opposed = d[e] * sums[1][e * TAPS]
        if WANT == 3:
            opposed += sums[3][e * TAPS]
        more = 4 * share * (alike + opposed)
        less = 4 * share * (alike - opposed)
        if MIXED:
            sign = tl.where(d[e] > equal, apart, tl.where(d[e] < equal, -apart, 0.0))
            more, less = more + sign, less - sign
        of_x, of_y = of_x + (more,), of_y + (less,)
    _store(gradient_row, gradient_strides[3], column, of_x, inside, COLUMNS, DENSE)
    if WANT == 3:
        _store(other_row, other_strides[3], column, of_y, inside, COLUMNS, DENSE)


@triton.jit(
    do_not_specialize=[
        *("begin", "strips", "bands", "rows", "channels", "height", "width"),
        *("sums_stride", "whole"),
    ],
    do_not_specialize_on_alignment=["sums", "distances", "result", "arrived"],
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
    result,
    arrived,
    x_strides,
    y_strides,
    weight_strides,
    gradient_strides,
    other_strides,
    sums_stride,
    begin,
    strips,
    bands,
    rows,
    channels,
    height,
    width,
    across,
    down,
    root,
    low,
    c1,
    c2,
    share,
    apart_share,
    whole,
    all_tiles,
    LANES: tl.constexpr,
    COLUMNS: tl.constexpr,
    TURN: tl.constexpr,
    LATE: tl.constexpr,
    WHOLE: tl.constexpr,
    DENSE: tl.constexpr,
    TAPS: tl.constexpr,
    PITCH: tl.constexpr,
    PADDING: tl.constexpr,
    WANT: tl.constexpr,
    WEIGHTED: tl.constexpr,
    DISTANCE: tl.constexpr,
    MIXED: tl.constexpr,
    SHARED: tl.constexpr,
    ADDED: tl.constexpr,
    LOSS: tl.constexpr,
):
    """The gradients of a tile, and the sum of 1 - S over the positions that it owns.

    ``WANT`` is 1 for the gradient with respect to x, 3 for that with respect to y in ``other`` too.
    ``begin`` is the number of the first program.
    With ``LATE`` a turn keeps its pixels after it has read derivatives, else before.
    With ``DISTANCE`` |x - y| is summed over the plane in ``distances`` as well, and if ``MIXED``
    each pixel's is in what the gradients are of, ``apart_share`` times.
    If ``ADDED`` the last program goes on with `_add_up`.
    """
    REACH: tl.constexpr = TAPS - 1
    INSET: tl.constexpr = 0 if PADDING == VALID else TAPS // 2
    OWN: tl.constexpr = LANES * COLUMNS - REACH
    MAPS: tl.constexpr = 4 if WANT == 3 else 3
    width = _known(width, COLUMNS, WHOLE)
    strip, band, plane = _place(tl.program_id(0) - begin, strips, bands)
    top = band * rows
    bottom = tl.minimum(top + rows, height)
    left = strip * OWN
    x = _plane(x, x_strides, plane, channels)
    y = _plane(y, y_strides, plane, channels)
    gradient = _plane(gradient, gradient_strides, plane, channels)
    other = _plane(other, other_strides, plane, channels)
    weight += (plane // channels).to(tl.int64) * weight_strides[0]
    # Rows of pixels, one after the other until the gradient is complete there, and then two of
    # derivatives.
    PIXELS: tl.constexpr = 2 * PITCH
    BEHIND: tl.constexpr = (TAPS + 2) * PIXELS
    HALF: tl.constexpr = MAPS * PITCH
    scratch = _scratch(scratch, BEHIND + 2 * HALF, SHARED)
    UNIT: tl.constexpr = 4 if SHARED else 1
    map_height = height + 2 * INSET - REACH
    map_width = width + 2 * INSET - REACH
    level_d, level_t, off = _levels(
        *(x, y, x_strides, y_strides, top, left, bottom - top, tl.minimum(OWN, width - left)),
        *(root, low),
    )

    first = tl.arange(0, LANES) * COLUMNS
    local = first[:, None] + tl.arange(0, COLUMNS)[None, :]
    none = (tl.zeros((LANES,), tl.float32),) * (COLUMNS * TAPS)
    moments = (none, none, none, none)
    filtered = (none,) * MAPS
    total = (tl.zeros((LANES,), tl.float32),) * COLUMNS
    apart = (tl.zeros((LANES,), tl.float32),) * COLUMNS
    # Before the first row the memory holds anything. That only gets into rows of the map before
    # the first that has a use.
    x_next = _row_address(x, x_strides, top - TAPS, height, PADDING)
    y_next = _row_address(y, y_strides, top - TAPS, height, PADDING)
    x_next, y_next, a, b = _next_pixels(
        *(x, y, x_next, y_next, x_strides, y_strides, top - REACH, left - REACH),
        *(height, width, LANES, COLUMNS, WHOLE, DENSE, TAPS, PADDING),
    )
    current, newest = 0, UNIT * PIXELS
    for ahead in range(TAPS):
        tl.debug_barrier()
        apart, x_next, y_next, a, b = _advance(
            *(a, b, apart, scratch + newest, x, y, x_next, y_next, x_strides, y_strides),
            *(top - REACH + ahead, left - REACH, top, bottom, height, width),
            *(root, low, level_d, off, LANES, COLUMNS, WHOLE, DENSE, TAPS, PITCH),
            *(PADDING, DISTANCE, MIXED, SHARED),
        )
        moments = _add_moments(
            moments, scratch + current, first, across, down, COLUMNS, TAPS, PITCH, SHARED
        )
        current, newest = newest, newest + UNIT * PIXELS
    row = top
    slot = 0
    # The row of the gradient that is complete is one behind that of the map.
    behind = (top - REACH - 2).to(tl.int64)
    gradient_row = gradient + behind * gradient_strides[2]
    other_row = other + behind * other_strides[2]
    owned = (local < OWN) & (left + local < width)
    while row <= bottom + REACH:
        for _ in tl.static_range(TURN):
            here = row - REACH
            tl.debug_barrier()
            # The row of the gradient's pixels, and the next turn's newest.
            oldest = tl.where(newest == UNIT * (BEHIND - PIXELS), 0, newest + UNIT * PIXELS)
            other_slot = UNIT * HALF - slot
            if not LATE:
                apart, x_next, y_next, a, b = _advance(
                    *(a, b, apart, scratch + newest, x, y, x_next, y_next, x_strides, y_strides),
                    *(row + 1, left - REACH, top, bottom, height, width),
                    *(root, low, level_d, off, LANES, COLUMNS, WHOLE, DENSE, TAPS, PITCH),
                    *(PADDING, DISTANCE, MIXED, SHARED),
                )
            added = ()
            for k in tl.static_range(MAPS):
                values = _read(scratch + slot, BEHIND + k * PITCH, first, COLUMNS, TAPS, SHARED)
                added = added + (_add_row(filtered[k], values, across, down, COLUMNS, TAPS),)
            filtered = added
            if LATE:
                apart, x_next, y_next, a, b = _advance(
                    *(a, b, apart, scratch + newest, x, y, x_next, y_next, x_strides, y_strides),
                    *(row + 1, left - REACH, top, bottom, height, width),
                    *(root, low, level_d, off, LANES, COLUMNS, WHOLE, DENSE, TAPS, PITCH),
                    *(PADDING, DISTANCE, MIXED, SHARED),
                )
                moments = _add_moments(
                    moments, scratch + current, first, across, down, COLUMNS, TAPS, PITCH, SHARED
                )
            gradient_row += gradient_strides[2]
            other_row += other_strides[2]
            d = _read(scratch + oldest, REACH, first, COLUMNS, 1, SHARED)
            t = _read(scratch + oldest, PITCH + REACH, first, COLUMNS, 1, SHARED)
            _finish(
                *(d, t, gradient_row, other_row, gradient_strides, other_strides),
                *(left + local, owned & (here > top) & (here <= bottom), filtered),
                *(share, apart_share, -level_d * root, COLUMNS, DENSE, TAPS, WANT, MIXED),
            )
            if not LATE:
                moments = _add_moments(
                    moments, scratch + current, first, across, down, COLUMNS, TAPS, PITCH, SHARED
                )
            counted = ((here >= top) | (band == 0)) & (here < bottom)
            total, maps = _row_of_map(
                *(moments, total, counted, root, level_d, level_t, c1, c2),
                *(here + INSET, left - REACH + INSET, map_height, map_width),
                *(weight, weight_strides),
                *(LANES, COLUMNS, TAPS, PADDING, WANT, WEIGHTED, SHARED),
            )
            for k in tl.static_range(MAPS):
                _write(scratch + other_slot, BEHIND + k * PITCH, maps[k], first, COLUMNS, SHARED)
            slot = other_slot
            current, newest = newest, oldest
            row += 1
    place = plane.to(tl.int64) * sums_stride + 2 * (band * strips + strip)
    # Others are a neighbour's, or beside the map.
    column = left - REACH + INSET
    begin = tl.maximum(tl.where(strip == 0, 0, REACH), -column)
    total = _chosen(total, first, begin, map_width - column)
    _keep(total, sums + place, None, whole, True)
    if DISTANCE:
        pixels = tl.where(whole == 0, 0.0, 1.0 * height * width)
        apart = _chosen(apart, first, REACH, width - left + REACH)
        _keep(apart, distances + place, None, pixels, False)
    if ADDED:
        _add_up(sums, distances, result, arrived, all_tiles, LANES, LOSS, DISTANCE)


@triton.jit(
    do_not_specialize=[
        *("begin", "strips", "parts", "rows", "lines", "channels", "height", "width"),
        *("sums_stride", "first_plane", "slab_top", "slab_bottom", "own_top", "whole"),
    ],
    do_not_specialize_on_alignment=["sums", "distances", "result", "arrived"],
)
def derive(
    x_all,
    y_all,
    weight_all,
    maps,
    scratch,
    sums,
    distances,
    result,
    arrived,
    x_strides,
    y_strides,
    weight_strides,
    sums_stride,
    pitch,
    begin,
    strips,
    parts,
    rows,
    lines,
    first_plane,
    slab_top,
    slab_bottom,
    own_top,
    channels,
    height,
    width,
    across,
    down,
    root,
    low,
    c1,
    c2,
    whole,
    all_tiles,
    LANES: tl.constexpr,
    COLUMNS: tl.constexpr,
    TURN: tl.constexpr,
    LATE: tl.constexpr,
    WHOLE: tl.constexpr,
    DENSE: tl.constexpr,
    TAPS: tl.constexpr,
    PITCH: tl.constexpr,
    PADDING: tl.constexpr,
    WANT: tl.constexpr,
    WEIGHTED: tl.constexpr,
    DISTANCE: tl.constexpr,
    SHARED: tl.constexpr,
    ADDED: tl.constexpr,
    LOSS: tl.constexpr,
):
    """The sum of 1 - S over a tile of the map, and its derivatives if a gradient is wanted.

    ``begin`` is the number of the first program.
    With ``LATE`` a turn keeps its pixels last, else first.
    ``maps`` holds them for each plane of the slab: M (M_t if both gradients are wanted), V_d, V_t
    and then M_d, all from ``TAPS - 1`` columns before the image on, in rows of ``pitch`` values.
    With ``DISTANCE`` |x - y| is summed over the plane in ``distances``, each pixel by the program
    that is at its row of the map, or would be where the map is smaller, and loads its column.
    If ``ADDED`` the last program goes on with `_add_up`.
    """
    REACH: tl.constexpr = TAPS - 1
    INSET: tl.constexpr = 0 if PADDING == VALID else TAPS // 2
    # Without a gradient as few columns before the image as the map has, in threads' columns.
    BEFORE: tl.constexpr = (INSET + COLUMNS - 1) // COLUMNS * COLUMNS
    LEFT: tl.constexpr = 1 - TAPS if WANT > 0 else -BEFORE
    MAPS: tl.constexpr = 4 if WANT == 3 else 3
    width = _known(width, COLUMNS, WHOLE)
    HALF: tl.constexpr = 2 * PITCH
    scratch = _scratch(scratch, 2 * HALF, SHARED)
    UNIT: tl.constexpr = 4 if SHARED else 1
    map_height = height + 2 * INSET - REACH
    map_width = width + 2 * INSET - REACH
    first = tl.arange(0, LANES) * COLUMNS
    local = first[:, None] + tl.arange(0, COLUMNS)[None, :]
    none = (tl.zeros((LANES,), tl.float32),) * (COLUMNS * TAPS)
    slab_height = slab_bottom - slab_top
    program = tl.program_id(0) - begin
    line = program.to(lines.dtype) * rows
    end = tl.minimum(line + rows, lines)
    while line < end:
        strip, slab_plane, top, bottom, part = _segment(
            *(program, line, end, rows, slab_height, strips)
        )
        top, bottom = slab_top + top, slab_top + bottom
        plane = first_plane + slab_plane
        x = _plane(x_all, x_strides, plane, channels)
        y = _plane(y_all, y_strides, plane, channels)
        weight = weight_all + (plane // channels).to(tl.int64) * weight_strides[0]
        # The same for the whole plane, because programs filter each other's derivatives.
        level_d, level_t, off = _levels(
            *(x, y, x_strides, y_strides, 0, 0, height, width), *(root, low)
        )
        left = LEFT + strip * (LANES * COLUMNS)
        moments = (none, none, none, none)
        total = (tl.zeros((LANES,), tl.float32),) * COLUMNS
        apart = (tl.zeros((LANES,), tl.float32),) * COLUMNS
        # The rows before the first complete one are no loop of their own: the time to compile
        # grows with the square of the loads in the code. The first turn adds what the memory holds
        # by chance, as in `march`.
        here = top - REACH - 1
        x_next = _row_address(x, x_strides, here + REACH, height, PADDING)
        y_next = _row_address(y, y_strides, here + REACH, height, PADDING)
        x_next, y_next, a, b = _next_pixels(
            *(x, y, x_next, y_next, x_strides, y_strides, here + TAPS, left),
            *(height, width, LANES, COLUMNS, WHOLE, DENSE, TAPS, PADDING),
        )
        slot = 0
        while here < bottom:
            for _ in tl.static_range(TURN):
                tl.debug_barrier()
                other_slot = UNIT * HALF - slot
                begin = tl.maximum(top, own_top)
                if not LATE:
                    apart, x_next, y_next, a, b = _advance(
                        *(a, b, apart, scratch + other_slot, x, y, x_next, y_next),
                        *(x_strides, y_strides, here + TAPS, left),
                        *(begin + INSET, bottom + INSET, height, width),
                        *(root, low, level_d, off, LANES, COLUMNS, WHOLE, DENSE, TAPS, PITCH),
                        *(PADDING, DISTANCE, False, SHARED),
                    )
                moments = _add_moments(
                    moments, scratch + slot, first, across, down, COLUMNS, TAPS, PITCH, SHARED
                )
                # Rows before the first complete one too: a branch around this takes moves of all
                # sums.
                counted = (here >= begin) & (here < bottom)
                total, derivatives = _row_of_map(
                    *(moments, total, counted, root, level_d, level_t, c1, c2),
                    *(here + INSET, left + INSET, map_height, map_width),
                    *(weight, weight_strides),
                    *(LANES, COLUMNS, TAPS, PADDING, WANT, WEIGHTED),
                    # With all derivatives, of the largest windows, it takes one register too many.
                    SHARED and WANT == 0,
                )
                if WANT > 0:
                    kept = (here >= top) & (here < bottom)
                    map_row = slab_plane * MAPS * slab_height.to(tl.int64) + (here - slab_top)
                    target = maps + map_row * pitch + (left - LEFT + local)
                    for k in tl.static_range(MAPS):
                        values = _together(derivatives[k], COLUMNS)
                        tl.store(target + k * slab_height.to(tl.int64) * pitch, values, mask=kept)
                if LATE:
                    apart, x_next, y_next, a, b = _advance(
                        *(a, b, apart, scratch + other_slot, x, y, x_next, y_next),
                        *(x_strides, y_strides, here + TAPS, left),
                        *(begin + INSET, bottom + INSET, height, width),
                        *(root, low, level_d, off, LANES, COLUMNS, WHOLE, DENSE, TAPS, PITCH),
                        *(PADDING, DISTANCE, False, SHARED),
                    )
                slot = other_slot
                here += 1
        place = plane.to(tl.int64) * sums_stride + 2 * (strip * parts + part)
        last = (bottom == slab_bottom) & (part + 1 < parts)
        total = _chosen(total, first, -(left + INSET), map_width - (left + INSET))
        _keep(total, sums + place, last, whole, True)
        if DISTANCE:
            pixels = tl.where(whole == 0, 0.0, 1.0 * height * width)
            _keep(
                _chosen(apart, first, -left, width - left), distances + place, last, pixels, False
            )

        line += bottom - top
    if ADDED:
        _add_up(sums, distances, result, arrived, all_tiles, LANES, LOSS, DISTANCE)


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
    across,
    down,
    root,
    low,
    share,
    apart_share,
    LANES: tl.constexpr,
    COLUMNS: tl.constexpr,
    TURN: tl.constexpr,
    WHOLE: tl.constexpr,
    DENSE: tl.constexpr,
    TAPS: tl.constexpr,
    WANT: tl.constexpr,
    MIXED: tl.constexpr,
):
    """The gradients of a tile from what `derive` left for a slab of rows of the image."""
    REACH: tl.constexpr = TAPS - 1
    MAPS: tl.constexpr = 4 if WANT == 3 else 3
    width = _known(width, COLUMNS, WHOLE)
    strip, band, slab_plane = _place(tl.program_id(0), strips, bands)
    plane = first_plane + slab_plane
    top = slab_top + band * rows
    bottom = tl.minimum(top + rows, slab_bottom)
    x = _plane(x, x_strides, plane, channels)
    y = _plane(y, y_strides, plane, channels)
    gradient = _plane(gradient, gradient_strides, plane, channels)
    other = _plane(other, other_strides, plane, channels)
    level_d, _level_t, off = _levels(x, y, x_strides, y_strides, 0, 0, height, width, root, low)

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
            added = ()
            for k in tl.static_range(MAPS):
                windows = _windows(source + k * step, first, COLUMNS)
                values = _side_by_side(windows, COLUMNS, TAPS)
                added = added + (_add_row(sums[k], values, across, down, COLUMNS, TAPS),)
            sums = added
            inside = (row >= top) & (row < bottom) & (column < width)
            a = _load(x_row, x_strides[3], column, inside, COLUMNS, DENSE)
            b = _load(y_row, y_strides[3], column, inside, COLUMNS, DENSE)
            d, t = _contrasts(a.to(tl.float32), b.to(tl.float32), root, level_d, off, MIXED)
            _finish(
                *(_separate(d, COLUMNS), _separate(t, COLUMNS), gradient_row, other_row),
                *(gradient_strides, other_strides, column, inside, sums, share, apart_share),
                *(-level_d * root, COLUMNS, DENSE, TAPS, WANT, MIXED),
            )
            row += 1
            source += pitch
            x_row, y_row = x_row + x_strides[2], y_row + y_strides[2]
            gradient_row += gradient_strides[2]
            other_row += other_strides[2]


@triton.jit(do_not_specialize=["planes", "pitch"])
def mean(
    sums,
    means,
    counts,
    wholes,
    planes,
    pitch,
    structural,
    l1,
    LANES: tl.constexpr,
    DISTANCE: tl.constexpr,
    LOSS: tl.constexpr,
    MIXED: tl.constexpr,
):
    """The means of S from the tiles' sums of 1 - S, exactly 1 for identical images; or 1 less them,
    for a ``LOSS``.

    ``counts`` are those of the tiles at each level, the first in a row of ``pitch`` values, and
    ``wholes`` the sums of all weights. With ``DISTANCE`` the last are those of |x - y|; a loss is
    ``MIXED`` with their mean, ``structural`` and ``l1`` times.
    """
    place = tl.program_id(0)
    count, whole = counts[0], wholes[0]
    for j in tl.static_range(1, len(counts)):
        count = tl.where(place >= j * planes, counts[j], count)
        whole = tl.where(place >= j * planes, wholes[j], whole)
    sums += place.to(tl.int64) * pitch
    if DISTANCE and not MIXED:
        total, rest = _total(sums, count, LANES)
        apart = place >= (len(counts) - 1) * planes
        value = tl.where(apart, _mean(total, rest, whole, False), _mean(total, rest, whole, True))
    else:
        distances = sums + tl.cast(planes, tl.int64) * pitch
        all_tiles = count, whole, wholes[len(wholes) - 1], structural, l1
        value = _result(sums, distances, all_tiles, LANES, LOSS, MIXED)
    tl.store(means + place, value)
