"""Loads of rows of pixels into registers and scratch memory, and stores of gradients."""

# Constants of a compilation are in capitals, and tuples grow by sums, which Triton compiles.
# ruff: noqa: N803, RUF005

import triton
import triton.language as tl

from . import scratch
from .addresses import is_inside, mirrored, next_row_address, row_address, tile_columns
from .arguments import SYMMETRIC, ZEROS, Offsets, Row
from .formulas import contrasts


@triton.jit
def local_offsets(x, y, valid, top, left, rows, columns, constants, K: tl.constexpr):
    """Difference and total near most of a few pixels of a region.

    They are means in which pixels far beyond the range count little: one pixel of 1e5 among others
    would move their offset so far that their variances cancel. NaN and infinity do not count, to
    stay in the windows that hold them.
    """
    sample = tl.arange(0, 64)
    row = (top + sample // 8 * rows // 8).to(tl.int64)
    column = (left + sample % 8 * columns // 8).to(tl.int64)
    a = tl.load(x.address + row * x.strides[2] + column * x.strides[3])
    b = tl.load(y.address + row * y.strides[2] + column * y.strides[3])
    exists = True
    if K.PARTIAL:
        exists = tl.load(valid.address + row * valid.strides[2] + column * valid.strides[3])
    return _offsets_of(a, b, exists, constants, K)


@triton.jit
def volume_offsets(x, y, valid, size, constants, K: tl.constexpr):
    """`local_offsets` of a whole volume: ``size`` is its depth, height and width."""
    sample = tl.arange(0, 64)
    z = (sample // 16 * size[0] // 4).to(tl.int64)
    row = (sample // 4 % 4 * size[1] // 4).to(tl.int64)
    column = (sample % 4 * size[2] // 4).to(tl.int64)
    a = tl.load(x.address + z * x.strides[2] + row * x.strides[3] + column * x.strides[4])
    b = tl.load(y.address + z * y.strides[2] + row * y.strides[3] + column * y.strides[4])
    exists = True
    if K.PARTIAL:
        place = z * valid.strides[2] + row * valid.strides[3] + column * valid.strides[4]
        exists = tl.load(valid.address + place)
    return _offsets_of(a, b, exists, constants, K)


@triton.jit
def _offsets_of(a, b, exists, constants, K: tl.constexpr):
    """`local_offsets` from so many pixels of both images, where they exist."""
    root, low = constants.root, constants.low
    a, b = a.to(tl.float32), b.to(tl.float32)
    total = a + b - 2 * low
    relative_d, relative_t = (a - b) / constants.length, total / constants.length
    weight = 1 / (1 + relative_d * relative_d + relative_t * relative_t)
    values, weights = tl.join(a - b, total), tl.join(weight, weight)
    # Neither where a value is not finite.
    known = weights > 0
    if K.PARTIAL:
        known = known & exists[:, None]
    values, weights = tl.where(known, values, 0.0), tl.where(known, weights, 0.0)
    offset = tl.sum(weights * values, 0) / tl.sum(weights, 0)
    # No weights are left where all pixels are far too large.
    offset_d, offset_t = tl.split(tl.where(tl.abs(offset) < float("inf"), offset, 0.0))
    zero = offset_t + 2 * low
    bias = -root * (0.5 * zero)
    offset_t = (zero - 2 * low) - 2 * tl.fma(root, 0.5 * zero, bias) / root
    return Offsets(offset_d, offset_t, bias)


@triton.jit
def _load_padded(address, step, row, column, size, K: tl.constexpr):
    """Pixels of a row, as they are."""
    if K.PADDING == SYMMETRIC:
        found = tl.load(address + mirrored(column, size[1]).to(tl.int64) * step)
    else:
        inside = is_inside(row, column, size)
        found = tl.load(address + column.to(tl.int64) * step, mask=inside, other=0)
    return found


@triton.jit
def _load_row(address, step, row, left, size, K: tl.constexpr):
    """A row in `tile_columns`.

    A thread's columns are loaded at once if ``DENSE``, else one by one, as where they are mirrored:
    the compiler may give each column of an access that is not aligned to another thread, and
    exchange them after. Pairs of bfloat16 that are both inside the image or both outside stay pairs
    until `_floats`: the compiler would take them apart here, into registers of their own.
    """
    own, halo = tile_columns(left, K.COLUMNS, K)
    if K.DENSE and K.PADDING != SYMMETRIC:
        if K.ALIGNED_WIDTH and K.COLUMNS > 1 and address.dtype.element_ty == tl.bfloat16:
            pairs = address.to(tl.pointer_type(tl.int32), bitcast=True)
            pair = tile_columns(left // 2, K.COLUMNS // 2, K)[0]
            found = _load_padded(pairs, 1, row, pair, (size[0], size[1] // 2), K)
        else:
            found = _load_padded(address, step, row, own, size, K)
    else:
        columns, pixels = scratch.split_columns(own), ()
        for e in tl.static_range(K.COLUMNS):
            pixels = pixels + (_load_padded(address, step, row, columns[e], size, K),)
        found = scratch.join_columns(pixels)
    return found, _load_padded(address, step, row, halo, size, K)


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
def _next_row(region, previous, row, left, K: tl.constexpr):
    """Loads a row of both images, which follows the ``previous`` one."""
    x, y, size = region.x, region.y, region.size
    x_address = next_row_address(x, previous.x_address, row, size[0], K)
    y_address = next_row_address(y, previous.y_address, row, size[0], K)
    a = _load_row(x_address, x.strides[3], row, left, size, K)
    b = _load_row(y_address, y.strides[3], row, left, size, K)
    return Row(x_address, y_address, a, b)


@triton.jit
def first_row(region, row, left, K: tl.constexpr):
    """Loads a row of both images that follows no other."""
    x_address = row_address(region.x, row - 1, region.size[0], K)
    y_address = row_address(region.y, row - 1, region.size[0], K)
    return _next_row(region, Row(x_address, y_address, (), ()), row, left, K)


@triton.jit
def valid_columns(valid, row, columns, size, K: tl.constexpr):
    """Whether pixels of a row exist; those around an image do."""
    address, step = row_address(valid, row, size[0], K), valid.strides[3]
    found = ()
    for e in tl.static_range(len(columns)):
        if K.PADDING == SYMMETRIC:
            exists = tl.load(address + mirrored(columns[e], size[1]).to(tl.int64) * step)
        else:
            inside = is_inside(row, columns[e], size)
            exists = tl.load(address + columns[e].to(tl.int64) * step, mask=inside, other=1)
        found = found + (exists,)
    return found


@triton.jit
def where_valid(exists, columns):
    """Columns of values, zero where a pixel does not exist."""
    selected = ()
    for e in tl.static_range(len(columns)):
        selected = selected + (tl.where(exists[e], columns[e], 0.0),)
    return selected


@triton.jit
def _store_in_scratch(region, pixels, scratch_row, row, left, K: tl.constexpr):
    """Writes difference and total of a `Row` to scratch memory."""
    for k in tl.static_range(2):
        # Here and not where they are loaded, which would wait for them.
        a, b = _floats(pixels.x[k]), _floats(pixels.y[k])
        if K.PADDING == ZEROS:
            inside = is_inside(row, tile_columns(left, K.COLUMNS, K)[k], region.size)
            low = region.constants.low
            a, b = tl.where(inside, a, low), tl.where(inside, b, low)
        # Pixels of the halo are only in windows.
        difference, total = contrasts(
            a, b, region.constants.root, region.offsets, K.MIXED and k == 0
        )
        if k == 0:
            first = tl.arange(0, K.LANES) * K.COLUMNS
            difference, total = scratch.split_columns(difference), scratch.split_columns(total)
        else:
            first = tile_columns(0, K.COLUMNS, K)[1]
            difference, total = (difference,), (total,)
        if K.PARTIAL:
            columns = tile_columns(left, K.COLUMNS, K)[k]
            columns = scratch.split_columns(columns) if k == 0 else (columns,)
            exists = valid_columns(region.valid, row, columns, region.size, K)
            difference, total = where_valid(exists, difference), where_valid(exists, total)
        scratch.write(scratch_row, 0, difference, first, K)
        scratch.write(scratch_row, K.PITCH, total, first, K)


@triton.jit
def _add_abs_differences(sums, a, b, row, own, height):
    """Adds |a - b| of a row to the sums of each thread's columns, if the row is in the image and
    one of the program's ``own``.
    """
    counted = (row >= tl.maximum(own[0], 0)) & (row < tl.minimum(own[1], height))
    differences = scratch.split_columns(tl.abs(_floats(a) - _floats(b)))
    updated = ()
    for e in tl.static_range(len(sums)):
        updated = updated + (sums[e] + tl.where(counted, differences[e], 0.0),)
    return updated


@triton.jit
def advance(region, pixels, abs_differences, scratch_row, row, left, own, K: tl.constexpr):
    """Stores a `Row` in scratch memory, adds its absolute differences if it is among the ``own``
    rows, and loads the next one.
    """
    if K.ABS_DIFFERENCE:
        abs_differences = _add_abs_differences(
            abs_differences, pixels.x[0], pixels.y[0], row, own, region.size[0]
        )
    _store_in_scratch(region, pixels, scratch_row, row, left, K)
    return abs_differences, _next_row(region, pixels, row + 1, left, K)


@triton.jit
def load_columns(row, step, column, inside, K: tl.constexpr):
    """The columns of each thread, zero where not ``inside``; at once or one by one, as `advance`
    loads them.
    """
    column = column.to(tl.int64)
    if K.DENSE:
        values = tl.load(row + column * step, mask=inside, other=0)
    else:
        columns, masks = scratch.split_columns(column), scratch.split_columns(inside)
        found = ()
        for e in tl.static_range(K.COLUMNS):
            found = found + (tl.load(row + columns[e] * step, mask=masks[e], other=0),)
        values = scratch.join_columns(found)
    return values


@triton.jit
def store_columns(row, step, column, values, inside, K: tl.constexpr):
    """Writes the columns of each thread, as `load_columns` reads them."""
    column = column.to(tl.int64)
    dtype = row.dtype.element_ty
    if K.DENSE:
        tl.store(row + column * step, scratch.join_columns(values).to(dtype), mask=inside)
    else:
        columns, masks = scratch.split_columns(column), scratch.split_columns(inside)
        for e in tl.static_range(K.COLUMNS):
            tl.store(row + columns[e] * step, values[e].to(dtype), mask=masks[e])
