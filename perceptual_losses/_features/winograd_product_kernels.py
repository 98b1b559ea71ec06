"""Numba kernels of a whole convolution in float32: the products of matrices, and all three steps.

A product is computed in blocks that fill the processor's vector registers. LLVM doesn't arrange
loops in this way, so the instructions of a block are written out.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from .._runtime.numba_kernels import entry, kernel
from .winograd_kernels import C, transform_inputs, transform_outputs


def _registers():
    """The number of values in a vector register, and of rows in a block.

    Each row of a block has its sums in two registers.
    """
    # The cache of compiled kernels has these features in its keys, whatever the processor.
    *_, features = cpu_target.target_context.codegen().magic_tuple()
    names = features.split(",")
    if "+avx512f" in names:
        return 16, 14
    return (8, 6) if "+avx2" in names else (4, 6)


LANES, ROWS = _registers()
# Columns of a block. The matrices of filters are kept in panels of so many columns.
PANEL = 2 * LANES

_VECTOR = ir.VectorType(ir.FloatType(), LANES)


def _address(context, builder, array_type, array, row, column):
    """The address of an element of a contiguous matrix."""
    matrix = context.make_array(array_type)(context, builder, array)
    width = builder.extract_value(matrix.shape, 1)
    return builder.gep(matrix.data, [builder.add(builder.mul(row, width), column)])


def _vector(builder, address, offset=0):
    """The address of a vector, ``offset`` values after this address."""
    shifted = builder.gep(address, [ir.Constant(ir.IntType(64), offset)])
    return builder.bitcast(shifted, _VECTOR.as_pointer())


@intrinsic
def _multiply_block(typing_context, inputs, row, channel, panel, products, column):
    """Adds to ``ROWS`` rows of products, from ``row`` on, those of ``C`` channels of the inputs.

    The sums of the first channels replace what is there. In the products they begin at ``column``.
    """

    def generate(context, builder, signature, arguments):
        inputs, row, channel, panel, products, column = arguments
        kinds, whole = signature.args, ir.IntType(64)
        rows = [builder.add(row, ir.Constant(whole, i)) for i in range(ROWS)]
        zero = ir.Constant(whole, 0)
        values = [_address(context, builder, kinds[0], inputs, i, zero) for i in rows]
        weights = context.make_array(kinds[3])(context, builder, panel)
        end = builder.add(channel, ir.Constant(whole, C))
        sums = [
            cgutils.alloca_once_value(builder, ir.Constant(_VECTOR, [0.0] * LANES))
            for _ in range(2 * ROWS)
        ]
        first = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        with cgutils.for_range(builder, end, start=channel) as loop:
            line = builder.gep(weights.data, [builder.mul(loop.index, ir.Constant(whole, PANEL))])
            pair = [builder.load(_vector(builder, line, j), align=4) for j in (0, LANES)]
            for i in range(ROWS):
                value = builder.load(builder.gep(values[i], [loop.index]))
                lone = builder.insert_element(
                    ir.Constant(_VECTOR, ir.Undefined), value, ir.Constant(ir.IntType(32), 0)
                )
                spread = builder.shuffle_vector(lone, lone, first)
                for j in range(2):
                    product = builder.fmul(spread, pair[j], flags=["contract"])
                    sum_ = sums[2 * i + j]
                    total = builder.fadd(builder.load(sum_), product, flags=["contract"])
                    builder.store(total, sum_)
        is_first = builder.icmp_signed("==", channel, zero)
        for i in range(ROWS):
            out = _address(context, builder, kinds[4], products, rows[i], column)
            for j in range(2):
                place = _vector(builder, out, j * LANES)
                before = builder.load(place, align=4)
                before = builder.select(is_first, ir.Constant(_VECTOR, [0.0] * LANES), before)
                builder.store(builder.fadd(before, builder.load(sums[2 * i + j])), place, align=4)
        return context.get_dummy_value()

    place = types.intp, types.intp
    return types.void(inputs, *place, panel, products, types.intp), generate


@intrinsic
def _transpose_block(typing_context, source, row, column, target, target_row, target_column):
    """Copies a square block of ``LANES`` rows from ``source`` into ``target``, transposed."""

    def generate(context, builder, signature, arguments):
        source, row, column, target, target_row, target_column = arguments
        kinds, whole = signature.args, ir.IntType(64)

        def line(kind, matrix, row, column, i):
            place = builder.add(row, ir.Constant(whole, i))
            return _vector(builder, _address(context, builder, kind, matrix, place, column))

        lines = [
            builder.load(line(kinds[0], source, row, column, i), align=4) for i in range(LANES)
        ]
        # Each pass interleaves the two halves of the block. This rotates the bits of each value's
        # index by one.
        half = LANES // 2
        orders = [
            ir.Constant(
                ir.VectorType(ir.IntType(32), LANES),
                [k // 2 + begin + k % 2 * LANES for k in range(LANES)],
            )
            for begin in (0, half)
        ]
        for _ in range(half.bit_length()):
            lines = [
                builder.shuffle_vector(lines[i], lines[i + half], order)
                for i in range(half)
                for order in orders
            ]
        for i in range(LANES):
            to = line(kinds[3], target, target_row, target_column, i)
            builder.store(lines[i], to, align=4)
        return context.get_dummy_value()

    place = types.intp, types.intp
    return types.void(source, *place, target, *place), generate


@kernel
def _multiply(inputs, matrices, transposed, first_panel, count, scratch, products):
    """Writes the products of ``count`` rows of each input matrix and some panels of filters.

    Whole blocks of rows are computed. Nobody reads the rows after ``count``.
    """
    points, _, depth = inputs.shape
    for point in range(points):
        for index in range(products.shape[2] // PANEL):
            panel = matrices[point, 0] if transposed else matrices[point, first_panel + index]
            if transposed:
                panel = scratch
                row = (first_panel + index) * PANEL
                for k in range(0, depth, LANES):
                    block = matrices[point, k // PANEL]
                    _transpose_block(block, row, k % PANEL, scratch, k, 0)
                    _transpose_block(block, row + LANES, k % PANEL, scratch, k, LANES)
            for row in range(0, count, ROWS):
                # Sums of parts round less than one sum of all channels.
                for k in range(0, depth, C):
                    _multiply_block(inputs[point], row, k, panel, products[point], index * PANEL)


@entry
def convolve(
    images,
    rectified,
    matrices,
    transposed,
    bias,
    rectify,
    size,
    groups,
    begin,
    end,
    point_order,
    factors,
    odd_sign,
    transformed,
    products,
    scratch,
    tile,
    out,
):
    """The convolution of some units. A unit is ``size`` tiles and one group of output channels.

    Args:
        images: the inputs ``(N, H, W, blocks, C)``.
        rectified: None, or in a backward the rectified outputs of the forward.
        matrices: those of the filters, in panels of columns ``(points, panels, in, PANEL)``.
        transposed: whether the matrices are to be transposed.
        bias: None or ``(blocks, C)``.
        rectify: None, or true for a rectifier.
        size: the tiles of a unit.
        groups: the number of groups of the output's channels.
        begin: the first unit.
        end: the unit after the last.
        point_order: as for `transform_inputs`, like the two after it.
        factors: the factor of each point.
        odd_sign: the sign of every other pixel.
        transformed: scratch memory ``(6, 6, tiles, blocks, C)``, the tiles a multiple of ``ROWS``.
        products: scratch memory of that shape, for the blocks of a group.
        scratch: scratch memory for a panel ``(in, PANEL)``.
        tile: scratch memory ``(6, 6, C)``.
        out: the result ``(N, H, W, blocks, C)``.
    """
    n, height, width, _, _ = images.shape
    span, _, rows, blocks, _ = transformed.shape
    step = span - 2
    total = n * -(-height // step) * -(-width // step)
    inputs = transformed.reshape(span * span, rows, blocks * C)
    group_blocks = products.shape[3]
    outputs = products.reshape(span * span, rows, group_blocks * C)
    for unit in range(begin, end):
        first, group = unit // groups * size, unit % groups
        count = min(size, total - first)
        basis = point_order, factors, odd_sign
        if group == 0 or unit == begin:
            transform_inputs(images, rectified, first, 0, count, *basis, transformed, tile)
        first_block = group * group_blocks
        first_panel = first_block * (C // PANEL)
        _multiply(inputs, matrices, transposed, first_panel, count, scratch, outputs)
        transform_outputs(products, bias, rectify, first, 0, count, *basis, first_block, out, tile)
