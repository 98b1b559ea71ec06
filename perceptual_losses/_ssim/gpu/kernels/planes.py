"""Loads and stores of a volume's maps, plane by plane."""

# Constants of a compilation are in capitals, and tuples grow by sums, which Triton compiles.
# ruff: noqa: N803, RUF005

import triton
import triton.language as tl

from .addresses import mirrored
from .arguments import SYMMETRIC, ZEROS


@triton.jit
def next_plane(base, source, step, z, depth, K: tl.constexpr):
    """The address of plane ``z``, where ``source`` is that of the plane before."""
    if K.PADDING == SYMMETRIC:
        source = base + mirrored(z, depth) * step
    else:
        source += step
    return source


@triton.jit
def load_moments(source, size, z, depth, inside, outside, K: tl.constexpr):
    """A plane's value of each map of moments, zero where not ``inside``.

    Beside a volume that is padded with zeros the values are those of ``outside``.
    """
    within = (z >= 0) & (z < depth)
    values = ()
    for k in tl.static_range(len(outside)):
        found = inside if K.PADDING == SYMMETRIC else inside & within
        value = tl.load(source + k * size, mask=found, other=0)
        if K.PADDING == ZEROS:
            value = tl.where(within, value, outside[k])
        values = values + ((value,),)
    return values


@triton.jit
def load_maps(source, size, inside, COUNT: tl.constexpr):
    """A plane's value of the first ``COUNT`` maps, zero where not ``inside``."""
    values = ()
    for k in tl.static_range(COUNT):
        values = values + ((tl.load(source + k * size, mask=inside, other=0),),)
    return values


@triton.jit
def store_maps(target, size, values, inside):
    """Writes the first value of each map, which is complete."""
    for k in tl.static_range(len(values)):
        tl.store(target + k * size, values[k][0], mask=inside)


@triton.jit
def kept_at(m, depth, FRONT: tl.constexpr, K: tl.constexpr):
    """The plane of memory that keeps the derivatives of plane ``m`` of the map until they are
    filtered.

    Symmetric padding reverses the last ``FRONT`` of them. Plane ``depth`` - 1 - i is read a second
    time as the mirrored plane ``depth`` + i, and its moments are not needed after that. The
    derivatives of plane ``depth`` - ``FRONT`` + i are complete then and take its place. They are
    read for the last time just before the result of the plane that they stand in is stored.
    """
    if K.PADDING == SYMMETRIC:
        m = tl.where(m < depth - FRONT, m, 2 * depth - 1 - FRONT - m)
    return m
