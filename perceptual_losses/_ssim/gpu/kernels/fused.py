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

from typing import Any, NamedTuple

import triton
import triton.language as tl

VALID = tl.constexpr(0)
ZEROS = tl.constexpr(1)
SYMMETRIC = tl.constexpr(2)


class Image(NamedTuple):
    """An image in memory.

    Attributes:
        address: of its first pixel; in a kernel of the first one of a plane.
        strides: of ``(N, C, H, W)``.
    """

    address: Any
    strides: Any


class Window(NamedTuple):
    """The first half of the taps, which the other half mirrors.

    Attributes:
        across: for the sums along rows, the last one being 1.
        down: for the sums along columns, in units of one that is 1.
        root: of the product of both units, by which pixels are multiplied.
    """

    across: Any
    down: Any
    root: Any


class Constants(NamedTuple):
    """Numbers of the formulas: the pixel value that counts as zero, C1 (infinite where the
    luminance is left out) and C2.
    """

    low: Any
    c1: Any
    c2: Any


class Variant(NamedTuple):
    """What a kernel is compiled for.

    Attributes:
        LANES: threads of a program.
        COLUMNS: neighbouring columns of a thread.
        TURN: rows of a turn of the loop.
        LATE: whether a turn stores its pixels after it has read derivatives, else before.
        WHOLE: whether the width is a multiple of ``COLUMNS``.
        DENSE: whether a thread's columns are one aligned access.
        TAPS: of the window.
        PITCH: of a row of scratch memory.
        PADDING: `VALID`, `ZEROS` or `SYMMETRIC`.
        WANT: 1 for the gradient to x, 3 for that to y too, 0 for neither.
        WEIGHTED: whether the mean is a weighted one.
        DISTANCE: whether |x - y| is summed as well.
        MIXED: whether it is in the gradients.
        SHARED: whether there is shared memory.
        ADDED: whether the last program adds up all sums.
        LOSS: whether the result is 1 less the mean.
        FAST: whether a reciprocal is PTX's own.
    """

    LANES: int
    COLUMNS: int
    TURN: int
    LATE: bool
    WHOLE: bool
    DENSE: bool
    TAPS: int
    PITCH: int
    PADDING: int
    WANT: int
    WEIGHTED: bool
    DISTANCE: bool
    MIXED: bool
    SHARED: bool
    ADDED: bool
    LOSS: bool
    FAST: bool

    @classmethod
    def of(cls, **values: Any) -> "Variant":
        """From plain values, each of which is a constant of the compilation."""
        kind = (lambda value: value) if triton.knobs.runtime.interpret else tl.constexpr
        return cls(**{name: kind(value) for name, value in values.items()})


class Levels(NamedTuple):
    """Values near those of most pixels of a region, which are subtracted from all.

    Attributes:
        d: of the difference.
        t: of the total.
        off: what is added to a pixel times the window's root, from which ``t`` follows exactly.
    """

    d: Any
    t: Any
    off: Any


class Row(NamedTuple):
    """A row of both images that has been loaded: addresses, and pixels as they are."""

    x: Any
    y: Any
    a: Any
    b: Any


@triton.jit
def _place(program, strips, bands):
    """Strip, band and plane of a program."""
    return program % strips, program // strips % bands, program // strips // bands


@triton.jit
def _plane(image, plane, channels):
    """The image from its plane's first pixel on."""
    n, c = plane // channels, plane % channels
    strides = image.strides
    return Image(image.address + n.to(tl.int64) * strides[0] + c.to(tl.int64) * strides[1], strides)


@triton.jit
def _row_address(image, row, height, K: tl.constexpr):
    """Of the row that a position shows, or of none where that is not in the image."""
    if K.PADDING == SYMMETRIC:
        row = _shown(row, height)
    return image.address + row.to(tl.int64) * image.strides[2]


@triton.jit
def _next_address(image, address, row, height, K: tl.constexpr):
    """`_row_address` of ``row``, where ``address`` is that of the row before."""
    if K.PADDING == SYMMETRIC:
        address = _row_address(image, row, height, K)
    else:
        address += image.strides[2]
    return address


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
def _shown(index, size):
    """The pixel that a position in or beside the image shows, the edge being a mirror."""
    index = tl.maximum(index, -1 - index)
    index = tl.minimum(index, 2 * size - 1 - index)
    # Where the image is smaller than the window, the mirror image of a mirror image.
    index = tl.maximum(index, -1 - index)
    return tl.minimum(index, size - 1)


@triton.jit
def _known(width, K: tl.constexpr):
    """The width, for the compiler to see where it is a multiple of a thread's columns."""
    return width // K.COLUMNS * K.COLUMNS if K.WHOLE else width


@triton.jit
def _zero(K: tl.constexpr):
    """For each thread."""
    LANES: tl.constexpr = K.LANES
    return tl.zeros((LANES,), tl.float32)


@triton.jit
def _levels(x, y, top, left, rows, columns, root, low):
    """Difference and total that most of a few pixels of a region are near to.

    The mean without those far from most: one pixel of 1e5 among them would move the level of all
    others so far that their variances cancel. NaN and infinity do not count, to stay in the
    windows that hold them.
    """
    sample = tl.arange(0, 64)
    row = (top + sample // 8 * rows // 8).to(tl.int64)
    column = (left + sample % 8 * columns // 8).to(tl.int64)
    a = tl.load(x.address + row * x.strides[2] + column * x.strides[3]).to(tl.float32)
    b = tl.load(y.address + row * y.strides[2] + column * y.strides[3]).to(tl.float32)
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
    return Levels(level_d, (zero - 2 * low) - 2 * tl.fma(root, 0.5 * zero, off) / root, off)


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
def _separate(values):
    """Each of a thread's neighbouring columns by itself."""
    if values.shape[1] == 1:
        columns = (tl.reshape(values, (values.shape[0],)),)
    elif values.shape[1] == 2:
        a, b = tl.split(values)
        columns = (a, b)
    else:
        ac, bd = tl.split(tl.reshape(values, (values.shape[0], 2, 2)))
        a, c = tl.split(ac)
        b, d = tl.split(bd)
        columns = (a, b, c, d)
    return columns


@triton.jit
def _together(columns):
    """What `_separate` takes apart."""
    if len(columns) == 1:
        values = columns[0][:, None]
    elif len(columns) == 2:
        values = tl.join(columns[0], columns[1])
    else:
        values = tl.join(tl.join(columns[0], columns[2]), tl.join(columns[1], columns[3]))
        values = tl.reshape(values, (columns[0].shape[0], 4))
    return values


@triton.jit
def _write(row, OFFSET: tl.constexpr, columns, first, K: tl.constexpr):
    """Writes neighbouring columns to scratch memory, from ``OFFSET`` + ``first`` on."""
    if not K.SHARED:
        places = first[:, None] + tl.arange(0, len(columns))[None, :]
        tl.store(row + OFFSET + places, _together(columns))
    else:
        place = row + 4 * first
        if len(columns) == 1:
            kinds: tl.constexpr = "=r,r,f"
            operands = [place, columns[0]]
        elif len(columns) == 2:
            kinds: tl.constexpr = "=r,r,f,f"
            operands = [place, columns[0], columns[1]]
        else:
            kinds: tl.constexpr = "=r,r,f,f,f,f"
            operands = [place, columns[0], columns[1], columns[2], columns[3]]
        tl.inline_asm_elementwise(
            *(_writing(OFFSET, len(columns)), kinds, operands),
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


@triton.jit
def _read(row, OFFSET: tl.constexpr, first, TAPS: tl.constexpr, K: tl.constexpr):
    """The columns under each thread's windows, from scratch memory."""
    if not K.SHARED:
        values = _side_by_side(_windows(row + OFFSET, first, K), TAPS, K)
    else:
        values = ()
        for k in tl.static_range(0, K.COLUMNS + TAPS - 1, K.COLUMNS):
            values = values + _read_columns(row + 4 * first, OFFSET + k, K.COLUMNS)
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
def _windows(row, first, K: tl.constexpr):
    """Where in a row of memory each thread's windows begin; two columns at once where it can."""
    if K.COLUMNS == 1:
        windows = row + first.to(tl.int64)
    else:
        windows = row + first.to(tl.int64)[:, None] + tl.arange(0, 2)[None, :]
    return windows


@triton.jit
def _side_by_side(windows, TAPS: tl.constexpr, K: tl.constexpr):
    """The columns under the windows of each thread."""
    values = ()
    if K.COLUMNS == 1:
        for k in tl.static_range(TAPS):
            values = values + (tl.load(windows + k),)
    else:
        for k in tl.static_range(0, K.COLUMNS + TAPS - 1, 2):
            left, right = tl.split(tl.load(windows + k))
            values = values + (left, right)
    return values


@triton.jit
def _columns(left, COLUMNS: tl.constexpr, K: tl.constexpr):
    """Those of each thread, from ``left`` on, and those behind the tile that its windows cover."""
    own = tl.arange(0, K.LANES)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    beside = K.LANES * COLUMNS + tl.arange(0, triton.next_power_of_2(max(K.TAPS - 1, 2)))
    return left + own, left + beside


@triton.jit
def _inside(row, column, size):
    return ((column >= 0) & (column < size[1])) & ((row >= 0) & (row < size[0]))


@triton.jit
def _pixel(address, step, row, column, size, K: tl.constexpr):
    """Pixels of a row, as they are."""
    if K.PADDING == SYMMETRIC:
        found = tl.load(address + _shown(column, size[1]).to(tl.int64) * step)
    else:
        inside = _inside(row, column, size)
        found = tl.load(address + column.to(tl.int64) * step, mask=inside, other=0)
    return found


@triton.jit
def _pixels(address, step, row, left, size, K: tl.constexpr):
    """A row in `_columns`.

    A thread's columns are loaded at once if ``DENSE``, else one by one, as where they are mirrored:
    of what is no aligned access the compiler may give each column to another thread, and exchange
    them after. Pairs of bfloat16 that are both inside the image or both outside stay pairs until
    `_floats`: the compiler would take them apart here, into registers of their own.
    """
    own, beside = _columns(left, K.COLUMNS, K)
    if K.DENSE and K.PADDING != SYMMETRIC:
        if K.WHOLE and K.COLUMNS > 1 and address.dtype.element_ty == tl.bfloat16:
            pairs = address.to(tl.pointer_type(tl.int32), bitcast=True)
            pair = _columns(left // 2, K.COLUMNS // 2, K)[0]
            found = _pixel(pairs, 1, row, pair, (size[0], size[1] // 2), K)
        else:
            found = _pixel(address, step, row, own, size, K)
    else:
        columns, pixels = _separate(own), ()
        for e in tl.static_range(K.COLUMNS):
            pixels = pixels + (_pixel(address, step, row, columns[e], size, K),)
        found = _together(pixels)
    return found, _pixel(address, step, row, beside, size, K)


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
def _next_row(x, y, before, row, left, size, K: tl.constexpr):
    """Loads a row of both images, which follows ``before``."""
    x_address = _next_address(x, before.x, row, size[0], K)
    y_address = _next_address(y, before.y, row, size[0], K)
    a = _pixels(x_address, x.strides[3], row, left, size, K)
    b = _pixels(y_address, y.strides[3], row, left, size, K)
    return Row(x_address, y_address, a, b)


@triton.jit
def _first_row(x, y, row, left, size, K: tl.constexpr):
    before = _row_address(x, row - 1, size[0], K), _row_address(y, row - 1, size[0], K)
    return _next_row(x, y, Row(before[0], before[1], (), ()), row, left, size, K)


@triton.jit
def _contrasts(a, b, root, levels, MIXED: tl.constexpr):
    """Difference and total of pixels, less their levels, times ``root``; with ``MIXED`` so that the
    difference is that of equal pixels for them alone.
    """
    # What is far from zero and close to each other loses no digits in one rounding.
    total = tl.fma(a, root, levels.off) + tl.fma(b, root, levels.off)
    equal = -levels.d * root
    difference = tl.fma(a - b, root, equal)
    if MIXED:
        bit = 2**-23 * tl.abs(equal)
        beside = tl.where(a > b, equal + bit, equal - bit)
        difference = tl.where((difference == equal) & (a != b), beside, difference)
    return difference, total


@triton.jit
def _store_pixels(pixels, scratch_row, row, left, size, levels, root, low, K: tl.constexpr):
    """Writes difference and total of a `Row` to scratch memory."""
    for k in tl.static_range(2):
        # Here and not where they are loaded, which would wait for them.
        a, b = _floats(pixels.a[k]), _floats(pixels.b[k])
        if K.PADDING == ZEROS:
            inside = _inside(row, _columns(left, K.COLUMNS, K)[k], size)
            a, b = tl.where(inside, a, low), tl.where(inside, b, low)
        # Those beside the tile are in windows alone.
        difference, total = _contrasts(a, b, root, levels, K.MIXED and k == 0)
        if k == 0:
            first = tl.arange(0, K.LANES) * K.COLUMNS
            _write(scratch_row, 0, _separate(difference), first, K)
            _write(scratch_row, K.PITCH, _separate(total), first, K)
        else:
            beside = _columns(0, K.COLUMNS, K)[1]
            _write(scratch_row, 0, (difference,), beside, K)
            _write(scratch_row, K.PITCH, (total,), beside, K)


@triton.jit
def _further(apart, a, b, row, begin, end, height):
    """Adds the distances between pixels of a row to those of each thread's columns, if the row is
    from ``begin`` on, before ``end`` and in the image.
    """
    counted = (row >= tl.maximum(begin, 0)) & (row < tl.minimum(end, height))
    distances = _separate(tl.abs(_floats(a) - _floats(b)))
    further = ()
    for e in tl.static_range(len(apart)):
        further = further + (apart[e] + tl.where(counted, distances[e], 0.0),)
    return further


@triton.jit
def _advance(
    pixels, apart, scratch_row, x, y, row, left, own, size, levels, root, low, K: tl.constexpr
):
    """Stores a `Row`, adds its distances if it is among the ``own`` rows, and loads the next."""
    if K.DISTANCE:
        apart = _further(apart, pixels.a[0], pixels.b[0], row, own[0], own[1], size[0])
    _store_pixels(pixels, scratch_row, row, left, size, levels, root, low, K)
    return apart, _next_row(x, y, pixels, row + 1, left, size, K)


@triton.jit
def _squares(values):
    squares = ()
    for k in tl.static_range(len(values)):
        squares = squares + (values[k] * values[k],)
    return squares


@triton.jit
def _add_row(sums, values, window, K: tl.constexpr):
    """Adds a row to the sums in flight: ``TAPS`` of each column, the first of them complete then.

    The sums move up by one with each row: a multiply-add has its own destination, so that moving
    costs next to nothing, and the loop over the rows needs no copies of its body.
    """
    moved = ()
    for e in tl.static_range(K.COLUMNS):
        row = window.across[K.TAPS // 2] * values[e + K.TAPS // 2]
        for k in tl.static_range(K.TAPS // 2):
            row += window.across[k] * (values[e + k] + values[e + K.TAPS - 1 - k])
        for k in tl.static_range(K.TAPS - 1):
            tap = window.down[min(k, K.TAPS - 1 - k)]
            moved = moved + (sums[e * K.TAPS + k + 1] + tap * row,)
        moved = moved + (window.down[0] * row,)
    return moved


@triton.jit
def _add_moments(sums, row, first, window, K: tl.constexpr):
    """Adds a row of pixels from scratch memory to the sums of d, d^2, t and t^2."""
    added = ()
    for k in tl.static_range(2):
        values = _read(row, k * K.PITCH, first, K.TAPS, K)
        added = added + (
            _add_row(sums[2 * k], values, window, K),
            _add_row(sums[2 * k + 1], _squares(values), window, K),
        )
    return added


@triton.jit
def _inverse(values, FAST: tl.constexpr):
    """1 / values, which are positive, to 2 ulp: in PTX one instruction, to which what is beyond
    2^126 is infinite.
    """
    if FAST:
        inverse = tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [values], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        root = tl.rsqrt(values)
        inverse = root * root
    return inverse


@triton.jit
def _derivatives(
    d, t, e_dd, e_tt, root, levels, numbers, row, column, size, weight, K: tl.constexpr
):
    """Half of 1 - S of a row of the map, and M_d, M_t, V_d and V_t, the last two over ``root``,
    zero beside the map; all times their weight.

    ``d`` and ``t`` are means over ``root``: as the pixels are times ``root``, their squares are
    right. With an infinite C1 the luminance is 1, and its derivatives are 0. ``row``, ``column``
    and ``size`` are the map's.
    """
    inside = _inside(row, column, size)
    # Whether what follows has to be zero beside the map.
    MASKED: tl.constexpr = K.WANT > 0 and K.PADDING != SYMMETRIC
    square = root * root
    mu_d, mu_t = square * d, square * t
    var_d = e_dd - mu_d * d
    var_t = e_tt - mu_t * t
    # But for roundings they are not negative.
    steep = tl.maximum(var_t + var_d, 0.0, tl.PropagateNan.ALL) + 2 * numbers.c2
    steep = _inverse(steep, K.FAST)
    if MASKED:
        steep = tl.where(inside, steep, 0.0)
    b = var_d * steep
    value = 1 - 2 * b
    full_d, full_t = root * d + levels.d, root * t + levels.t
    dd = full_d * full_d
    inverse = _inverse(full_t * full_t + dd + 2 * numbers.c1, K.FAST)
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

    if K.PADDING == SYMMETRIC:
        row, column = _shown(row, size[0]), _shown(column, size[1])
    if K.WEIGHTED:
        address = weight.address + row.to(tl.int64) * weight.strides[2]
        address += column.to(tl.int64) * weight.strides[3]
        mirrored: tl.constexpr = K.PADDING == SYMMETRIC
        here = tl.load(address) if mirrored else tl.load(address, mask=inside, other=0)
        deficit *= here
        m_d *= here
        m_t *= here
        v_d *= here
        v_t *= here
    return deficit, m_d, m_t, v_d, v_t


@triton.jit
def _row_of_map(
    moments, total, counted, root, levels, numbers, row, left, size, weight, K: tl.constexpr
):
    """What complete moments give: half the sums of 1 - S, a row longer where ``counted``, and M
    (M_t if both gradients are wanted), V_d, V_t and then M_d, of each column.

    ``row``, ``left`` and ``size`` are the map's.
    """
    first = tl.arange(0, K.LANES) * K.COLUMNS
    totals, of_m, of_v_d, of_v_t, of_m_d = (), (), (), (), ()
    for e in tl.static_range(K.COLUMNS):
        deficit, m_d, m_t, v_d, v_t = _derivatives(
            *(moments[0][e * K.TAPS], moments[2][e * K.TAPS]),
            *(moments[1][e * K.TAPS], moments[3][e * K.TAPS]),
            *(root, levels, numbers, row, left + first + e, size, weight, K),
        )
        longer = counted & (row >= 0) & (row < size[0])
        totals = totals + (tl.where(longer, total[e] + deficit, total[e]),)
        of_m = of_m + (m_t if K.WANT == 3 else m_t + m_d,)
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
def _load(row, step, column, inside, K: tl.constexpr):
    """The columns of each thread, zero where not ``inside``; as `_pixels` does."""
    column = column.to(tl.int64)
    if K.DENSE:
        values = tl.load(row + column * step, mask=inside, other=0)
    else:
        columns, masks, found = _separate(column), _separate(inside), ()
        for e in tl.static_range(K.COLUMNS):
            found = found + (tl.load(row + columns[e] * step, mask=masks[e], other=0),)
        values = _together(found)
    return values


@triton.jit
def _store(row, step, column, values, inside, K: tl.constexpr):
    """Writes the columns of each thread, as `_load` reads them."""
    column = column.to(tl.int64)
    kind = row.dtype.element_ty
    if K.DENSE:
        tl.store(row + column * step, _together(values).to(kind), mask=inside)
    else:
        columns, masks = _separate(column), _separate(inside)
        for e in tl.static_range(K.COLUMNS):
            tl.store(row + columns[e] * step, values[e].to(kind), mask=masks[e])


@triton.jit
def _finish(
    d, t, of_x, of_y, x_step, y_step, column, inside, sums, share, apart, equal, K: tl.constexpr
):
    """Writes a row of the gradients from `_contrasts`, of which ``equal`` is the difference of
    equal pixels, and filtered derivatives.
    """
    to_x, to_y = (), ()
    for e in tl.static_range(K.COLUMNS):
        alike = sums[0][e * K.TAPS] + t[e] * sums[2][e * K.TAPS]
        opposed = d[e] * sums[1][e * K.TAPS]
        if K.WANT == 3:
            opposed += sums[3][e * K.TAPS]
        more = 4 * share * (alike + opposed)
        less = 4 * share * (alike - opposed)
        if K.MIXED:
            sign = tl.where(d[e] > equal, apart, tl.where(d[e] < equal, -apart, 0.0))
            more, less = more + sign, less - sign
        to_x, to_y = to_x + (more,), to_y + (less,)
    _store(of_x, x_step, column, to_x, inside, K)
    if K.WANT == 3:
        _store(of_y, y_step, column, to_y, inside, K)


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
    numbers,
    share,
    apart_share,
    whole,
    all_tiles,
    K: tl.constexpr,
):
    """The gradients of a tile, and the sum of 1 - S over the positions that it owns.

    The gradient to y, if wanted, goes to ``other``. ``begin`` is the number of the first program.
    If distances are mixed, each pixel's is in what the gradients are of, ``apart_share`` times.
    """
    COLUMNS: tl.constexpr = K.COLUMNS
    REACH: tl.constexpr = K.TAPS - 1
    INSET: tl.constexpr = 0 if K.PADDING == VALID else K.TAPS // 2
    OWN: tl.constexpr = K.LANES * K.COLUMNS - REACH
    MAPS: tl.constexpr = 4 if K.WANT == 3 else 3
    size = height, _known(width, K)
    strip, band, plane = _place(tl.program_id(0) - begin, strips, bands)
    own = band * rows, tl.minimum(band * rows + rows, height)
    top, bottom = own
    left = strip * OWN
    x, y = _plane(x, plane, channels), _plane(y, plane, channels)
    gradient, other = _plane(gradient, plane, channels), _plane(other, plane, channels)
    weight = _plane(weight, plane // channels * channels, channels)
    # Rows of pixels, one after the other until the gradient is complete there, and then two of
    # derivatives.
    PIXELS: tl.constexpr = 2 * K.PITCH
    BEHIND: tl.constexpr = (K.TAPS + 2) * PIXELS
    HALF: tl.constexpr = MAPS * K.PITCH
    scratch = _scratch(scratch, BEHIND + 2 * HALF, K.SHARED)
    UNIT: tl.constexpr = 4 if K.SHARED else 1
    map_size = size[0] + 2 * INSET - REACH, size[1] + 2 * INSET - REACH
    window, low = Window(across, down, root), numbers.low
    columns = tl.minimum(OWN, size[1] - left)
    levels = _levels(x, y, top, left, bottom - top, columns, root, low)

    first = tl.arange(0, K.LANES) * K.COLUMNS
    local = first[:, None] + tl.arange(0, K.COLUMNS)[None, :]
    none = (_zero(K),) * (COLUMNS * K.TAPS)
    moments = (none, none, none, none)
    filtered = (none,) * MAPS
    total = (_zero(K),) * COLUMNS
    apart = (_zero(K),) * COLUMNS
    # Before the first row the memory holds anything. That only gets into rows of the map before
    # the first that has a use.
    pixels = _first_row(x, y, top - REACH, left - REACH, size, K)
    current, newest = 0, UNIT * PIXELS
    for ahead in range(K.TAPS):
        tl.debug_barrier()
        apart, pixels = _advance(
            *(pixels, apart, scratch + newest, x, y, top - REACH + ahead, left - REACH),
            *(own, size, levels, root, low, K),
        )
        moments = _add_moments(moments, scratch + current, first, window, K)
        current, newest = newest, newest + UNIT * PIXELS
    row = top
    slot = 0
    # The row of the gradient that is complete is one behind that of the map.
    behind = (top - REACH - 2).to(tl.int64)
    gradient_row = gradient.address + behind * gradient.strides[2]
    other_row = other.address + behind * other.strides[2]
    owned = (local < OWN) & (left + local < size[1])
    while row <= bottom + REACH:
        for _ in tl.static_range(K.TURN):
            here = row - REACH
            tl.debug_barrier()
            # The row of the gradient's pixels, and the next turn's newest.
            oldest = tl.where(newest == UNIT * (BEHIND - PIXELS), 0, newest + UNIT * PIXELS)
            other_slot = UNIT * HALF - slot
            if not K.LATE:
                apart, pixels = _advance(
                    *(pixels, apart, scratch + newest, x, y, row + 1, left - REACH),
                    *(own, size, levels, root, low, K),
                )
            added = ()
            for k in tl.static_range(MAPS):
                values = _read(scratch + slot, BEHIND + k * K.PITCH, first, K.TAPS, K)
                added = added + (_add_row(filtered[k], values, window, K),)
            filtered = added
            if K.LATE:
                apart, pixels = _advance(
                    *(pixels, apart, scratch + newest, x, y, row + 1, left - REACH),
                    *(own, size, levels, root, low, K),
                )
                moments = _add_moments(moments, scratch + current, first, window, K)
            gradient_row += gradient.strides[2]
            other_row += other.strides[2]
            d = _read(scratch + oldest, REACH, first, 1, K)
            t = _read(scratch + oldest, K.PITCH + REACH, first, 1, K)
            _finish(
                *(d, t, gradient_row, other_row, gradient.strides[3], other.strides[3]),
                *(left + local, owned & (here > top) & (here <= bottom), filtered),
                *(share, apart_share, -levels.d * root, K),
            )
            if not K.LATE:
                moments = _add_moments(moments, scratch + current, first, window, K)
            counted = ((here >= top) | (band == 0)) & (here < bottom)
            total, maps = _row_of_map(
                *(moments, total, counted, root, levels, numbers),
                *(here + INSET, left - REACH + INSET, map_size, weight, K),
            )
            for k in tl.static_range(MAPS):
                _write(scratch + other_slot, BEHIND + k * K.PITCH, maps[k], first, K)
            slot = other_slot
            current, newest = newest, oldest
            row += 1
    place = plane.to(tl.int64) * sums_stride + 2 * (band * strips + strip)
    # Others are a neighbour's, or beside the map.
    column = left - REACH + INSET
    begin = tl.maximum(tl.where(strip == 0, 0, REACH), -column)
    total = _chosen(total, first, begin, map_size[1] - column)
    _keep(total, sums + place, None, whole, True)
    if K.DISTANCE:
        count = tl.where(whole == 0, 0.0, 1.0 * height * size[1])
        apart = _chosen(apart, first, REACH, size[1] - left + REACH)
        _keep(apart, distances + place, None, count, False)
    if K.ADDED:
        _add_up(sums, distances, result, arrived, all_tiles, K.LANES, K.LOSS, K.DISTANCE)


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
    numbers,
    whole,
    all_tiles,
    K: tl.constexpr,
):
    """The sum of 1 - S over a tile of the map, and its derivatives if a gradient is wanted.

    ``begin`` is the number of the first program.
    ``maps`` holds them for each plane of the slab: M (M_t if both gradients are wanted), V_d, V_t
    and then M_d, all from ``TAPS - 1`` columns before the image on, in rows of ``pitch`` values.
    A distance is summed by the program that is at its row of the map, or would be where the map is
    smaller, and loads its column.
    """
    COLUMNS: tl.constexpr = K.COLUMNS
    REACH: tl.constexpr = K.TAPS - 1
    INSET: tl.constexpr = 0 if K.PADDING == VALID else K.TAPS // 2
    # Without a gradient as few columns before the image as the map has, in threads' columns.
    BEFORE: tl.constexpr = (INSET + K.COLUMNS - 1) // K.COLUMNS * K.COLUMNS
    LEFT: tl.constexpr = 1 - K.TAPS if K.WANT > 0 else -BEFORE
    MAPS: tl.constexpr = 4 if K.WANT == 3 else 3
    size = height, _known(width, K)
    HALF: tl.constexpr = 2 * K.PITCH
    scratch = _scratch(scratch, 2 * HALF, K.SHARED)
    UNIT: tl.constexpr = 4 if K.SHARED else 1
    map_size = size[0] + 2 * INSET - REACH, size[1] + 2 * INSET - REACH
    window, low = Window(across, down, root), numbers.low
    first = tl.arange(0, K.LANES) * K.COLUMNS
    local = first[:, None] + tl.arange(0, K.COLUMNS)[None, :]
    none = (_zero(K),) * (COLUMNS * K.TAPS)
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
        x, y = _plane(x_all, plane, channels), _plane(y_all, plane, channels)
        weight = _plane(weight_all, plane // channels * channels, channels)
        # The same for the whole plane, because programs filter each other's derivatives.
        levels = _levels(x, y, 0, 0, size[0], size[1], root, low)
        left = LEFT + strip * (K.LANES * K.COLUMNS)
        moments = (none, none, none, none)
        total = (_zero(K),) * COLUMNS
        apart = (_zero(K),) * COLUMNS
        # The rows before the first complete one are no loop of their own: the time to compile
        # grows with the square of the loads in the code. The first turn adds what the memory holds
        # by chance, as in `march`.
        here = top - REACH - 1
        pixels = _first_row(x, y, here + K.TAPS, left, size, K)
        slot = 0
        while here < bottom:
            for _ in tl.static_range(K.TURN):
                tl.debug_barrier()
                other_slot = UNIT * HALF - slot
                begin = tl.maximum(top, own_top)
                own = begin + INSET, bottom + INSET
                if not K.LATE:
                    apart, pixels = _advance(
                        *(pixels, apart, scratch + other_slot, x, y, here + K.TAPS, left),
                        *(own, size, levels, root, low, K),
                    )
                moments = _add_moments(moments, scratch + slot, first, window, K)
                # Rows before the first complete one too: a branch around this takes moves of all
                # sums.
                counted = (here >= begin) & (here < bottom)
                total, derivatives = _row_of_map(
                    *(moments, total, counted, root, levels, numbers),
                    *(here + INSET, left + INSET, map_size, weight, K),
                )
                if K.WANT > 0:
                    kept = (here >= top) & (here < bottom)
                    map_row = slab_plane * MAPS * slab_height.to(tl.int64) + (here - slab_top)
                    target = maps + map_row * pitch + (left - LEFT + local)
                    for k in tl.static_range(MAPS):
                        values = _together(derivatives[k])
                        tl.store(target + k * slab_height.to(tl.int64) * pitch, values, mask=kept)
                if K.LATE:
                    apart, pixels = _advance(
                        *(pixels, apart, scratch + other_slot, x, y, here + K.TAPS, left),
                        *(own, size, levels, root, low, K),
                    )
                slot = other_slot
                here += 1
        place = plane.to(tl.int64) * sums_stride + 2 * (strip * parts + part)
        last = (bottom == slab_bottom) & (part + 1 < parts)
        total = _chosen(total, first, -(left + INSET), map_size[1] - (left + INSET))
        _keep(total, sums + place, last, whole, True)
        if K.DISTANCE:
            count = tl.where(whole == 0, 0.0, 1.0 * height * size[1])
            apart = _chosen(apart, first, -left, size[1] - left)
            _keep(apart, distances + place, last, count, False)
        line += bottom - top
    if K.ADDED:
        _add_up(sums, distances, result, arrived, all_tiles, K.LANES, K.LOSS, K.DISTANCE)


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
    numbers,
    share,
    apart_share,
    K: tl.constexpr,
):
    """The gradients of a tile from what `derive` left for a slab of rows of the image."""
    COLUMNS: tl.constexpr = K.COLUMNS
    REACH: tl.constexpr = K.TAPS - 1
    MAPS: tl.constexpr = 4 if K.WANT == 3 else 3
    width = _known(width, K)
    window = Window(across, down, root)
    strip, band, slab_plane = _place(tl.program_id(0), strips, bands)
    plane = first_plane + slab_plane
    top = slab_top + band * rows
    bottom = tl.minimum(top + rows, slab_bottom)
    x, y = _plane(x, plane, channels), _plane(y, plane, channels)
    gradient, other = _plane(gradient, plane, channels), _plane(other, plane, channels)
    levels = _levels(x, y, 0, 0, height, width, root, numbers.low)

    first = strip * (K.LANES * K.COLUMNS) + tl.arange(0, K.LANES) * K.COLUMNS
    column = first[:, None] + tl.arange(0, K.COLUMNS)[None, :]
    step = (slab_bottom - slab_top + REACH).to(tl.int64) * pitch
    maps += slab_plane * MAPS * step
    none = (_zero(K),) * (COLUMNS * K.TAPS)
    sums = (none,) * MAPS
    # One loop, as in `derive`.
    row = top - REACH
    source = maps + (row - slab_top + REACH).to(tl.int64) * pitch
    x_row = x.address + row.to(tl.int64) * x.strides[2]
    y_row = y.address + row.to(tl.int64) * y.strides[2]
    gradient_row = gradient.address + row.to(tl.int64) * gradient.strides[2]
    other_row = other.address + row.to(tl.int64) * other.strides[2]
    while row < bottom:
        for _ in tl.static_range(K.TURN):
            added = ()
            for k in tl.static_range(MAPS):
                values = _side_by_side(_windows(source + k * step, first, K), K.TAPS, K)
                added = added + (_add_row(sums[k], values, window, K),)
            sums = added
            inside = (row >= top) & (row < bottom) & (column < width)
            a = _load(x_row, x.strides[3], column, inside, K).to(tl.float32)
            b = _load(y_row, y.strides[3], column, inside, K).to(tl.float32)
            d, t = _contrasts(a, b, root, levels, K.MIXED)
            _finish(
                *(_separate(d), _separate(t), gradient_row, other_row),
                *(gradient.strides[3], other.strides[3], column, inside, sums),
                *(share, apart_share, -levels.d * root, K),
            )
            row += 1
            source += pitch
            x_row, y_row = x_row + x.strides[2], y_row + y.strides[2]
            gradient_row += gradient.strides[2]
            other_row += other.strides[2]


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
