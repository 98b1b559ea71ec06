"""Prefetching: the processor loads memory into its cache before a kernel reads it."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ...._runtime.numba_kernels import inlined

# The size of a cache line in bytes, on most processors.
CACHE_LINE = 64
# The prefetched row lies this many rows below the one that is read.
ROWS_AHEAD = 4


@intrinsic
def _prefetch_line(typing_context, array, index):
    """Requests the cache line of ``array[index]``, which may lie outside the array."""

    def generate(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        byte = ir.IntType(8).as_pointer()
        address = builder.bitcast(builder.gep(data, [arguments[1]]), byte)
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        # For reading, into the second-level cache, as data. The first-level cache is too small: it
        # would lose the row before it is read.
        builder.call(function, [address, number(0), number(2), number(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@inlined
def prefetch(array, begin, count):
    """Requests the cache lines of ``count`` values, which may lie outside the array.

    If the first value lies inside a line, the last line may be left out. For rows of a thousand
    pixels a processor does this by itself. For shorter rows it begins too late.
    """
    for j in range(begin, begin + count, CACHE_LINE // array.itemsize):
        _prefetch_line(array, j)
