"""Instructions on vector registers, for kernels whose loops LLVM does not arrange well by itself.

They are written in LLVM's language, inside functions that Numba calls intrinsics.
"""

from llvmlite import ir
from numba.core import cgutils
from numba.core.registry import cpu_target

INDEX = ir.IntType(64)
_NUMBER = ir.IntType(32)


def _has_feature(name):
    """Whether kernels are compiled for a processor with this feature, as LLVM names it."""
    # The keys of the cache of compiled kernels contain these features.
    *_, features = cpu_target.target_context.codegen().magic_tuple()
    return f"+{name}" in features.split(",")


# The number of bytes in a vector register.
BYTES = 64 if _has_feature("avx512f") else 32 if _has_feature("avx2") else 16


class Vectors:
    """Builds instructions on vectors of one dtype, for the body of an intrinsic.

    Addresses are those of single values. Products and sums may become fused multiply-adds.

    Attributes:
        lanes: the number of values in a vector.
        zero: the vector of zeros.
    """

    def __init__(self, context, builder, dtype):
        """Prepares for values of this Numba type."""
        self._context, self._builder = context, builder
        self._value, self._value_bytes = context.get_value_type(dtype), dtype.bitwidth // 8
        self.lanes = BYTES * 8 // dtype.bitwidth
        self._type = ir.VectorType(self._value, self.lanes)
        self.zero = ir.Constant(self._type, [0.0] * self.lanes)

    def array(self, kind, value):
        """An array, whose Numba type is given too, with its address and strides as attributes."""
        return self._context.make_array(kind)(self._context, self._builder, value)

    def row(self, array, row):
        """The address of the first value in a row of an array."""
        step = self._builder.extract_value(array.strides, 0)
        start = self._builder.bitcast(array.data, cgutils.voidptr_t)
        start = self._builder.gep(start, [self._builder.mul(row, step)])
        return self._builder.bitcast(start, self._value.as_pointer())

    def load(self, address, index):
        """The vector that begins ``index`` values after the address."""
        return self._builder.load(self._place(address, index), align=self._value_bytes)

    def store(self, vector, address, index):
        """Writes a vector to the place that `load` reads."""
        self._builder.store(vector, self._place(address, index), align=self._value_bytes)

    def spread(self, address, index):
        """The value at ``index`` after the address, in all lanes of a vector."""
        value = self._builder.load(self._builder.gep(address, [index]))
        lone = self._builder.insert_element(
            ir.Constant(self._type, ir.Undefined), value, _NUMBER(0)
        )
        return self._shuffle(lone, lone, [0] * self.lanes)

    def add(self, a, b):
        """The sum of two vectors."""
        return self._builder.fadd(a, b, flags=["contract"])

    def multiply(self, a, b):
        """The product of two vectors."""
        return self._builder.fmul(a, b, flags=["contract"])

    def window(self, address, index, size):
        """The vectors at ``size`` successive indices, the first of which is aligned.

        Loads of 64 bytes that are not aligned cross the border of a cache line, and take twice as
        long. Every other vector is put together from two aligned ones instead: the units that
        shuffle work beside those that load. Values up to the end of the next aligned vector are
        read too.
        """
        aligned = {}

        def whole(i):
            if i not in aligned:
                aligned[i] = self.load(address, self._builder.add(index, INDEX(i * self.lanes)))
            return aligned[i]

        vectors = []
        for k in range(size):
            register, lane = divmod(k, self.lanes)
            if lane == 0:
                vectors.append(whole(register))
            elif BYTES == 64 and k % 2:
                order = list(range(lane, lane + self.lanes))
                vectors.append(self._shuffle(whole(register), whole(register + 1), order))
            else:
                vectors.append(self.load(address, self._builder.add(index, INDEX(k))))
        return vectors

    def transpose(self, rows):
        """The columns of a square block, whose rows are given."""
        half = self.lanes // 2
        # Each pass interleaves the two halves of the block. This rotates the bits of each value's
        # index by one.
        orders = [
            [k // 2 + begin + k % 2 * self.lanes for k in range(self.lanes)] for begin in (0, half)
        ]
        for _ in range(half.bit_length()):
            rows = [
                self._shuffle(rows[i], rows[i + half], order)
                for i in range(half)
                for order in orders
            ]
        return rows

    def _place(self, address, index):
        return self._builder.bitcast(self._builder.gep(address, [index]), self._type.as_pointer())

    def _shuffle(self, a, b, order):
        indices = ir.Constant(ir.VectorType(_NUMBER, self.lanes), order)
        return self._builder.shuffle_vector(a, b, indices)
