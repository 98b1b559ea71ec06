"""Requests for memory that a kernel reads soon, which the processor fetches meanwhile."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ...._runtime.numba_kernels import inlined

# In bytes.
CACHE_LINE = 64


@intrinsic
def _prefetch_line(typing_context, array, index):
    """Fetches the cache line of ``array[index]``. It gives nothing, and no address is an error."""

    def generate(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        byte = ir.IntType(8).as_pointer()
        address = builder.bitcast(builder.gep(data, [arguments[1]]), byte)
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        # For reading, into the second-level cache, as data. To fetch into the first-level cache
        # gains nothing: it would hold a row for too short a time.
        builder.call(function, [address, number(0), number(2), number(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@inlined
def prefetch(array, begin, count):
    """Fetches so many values of an array.

    Processors do so by themselves for rows of a thousand pixels, and too late for shorter ones.
    """
    for j in range(begin, begin + count, CACHE_LINE // array.itemsize):
        _prefetch_line(array, j)
