"""Kernel helpers for features of float32 or bfloat16: all arithmetic is in float32.

NumPy has no bfloat16, so kernels see its bits as uint16.
"""

import numpy as np
from numba import types
from numba.extending import overload

# A Python number would turn float32 arithmetic into float64.
ZERO, ONE = np.float32(0), np.float32(1)


def to_float32(value):
    """A float32, or the bits of a bfloat16, as float32."""


@overload(to_float32, inline="always")
def _overload_to_float32(value):
    if value == types.float32:
        return lambda value: value
    return lambda value: np.uint32(np.uint32(value) << np.uint32(16)).view(np.float32)


def from_float32(value, like):
    """A float32 in the type of ``like``: rounded to the nearest bfloat16, ties to even."""


@overload(from_float32, inline="always")
def _overload_from_float32(value, like):
    if like == types.float32:
        return lambda value, like: value

    def rounded(value, like):
        bits = np.float32(value).view(np.uint32)
        up = np.uint32(bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
        # Rounding could carry a NaN over into a number.
        up = up if value == value else np.uint32(bits | np.uint32(0x400000))
        return np.uint16(up >> np.uint32(16))

    return rounded
