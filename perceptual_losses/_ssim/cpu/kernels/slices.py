"""Sums across and down of a volume's slices, which `march_volume` keeps in slots."""

from ...._runtime.numba_kernels import kernel
from .arguments import SYMMETRIC
from .filters import (
    ROWS,
    mirror_columns,
    mirror_rows,
    moments_across,
    ring_slots,
    sum_across,
    sum_down,
)
from .images import copy, fill, load_row


@kernel
def moments_of_slice(
    x, y, plane, height, width, low, offset_d, offset_t, padding, valid, down, across, top, bottom,
    first, count, length, rows, slabs, slot, depth_slots,
):  # fmt: skip
    """Sums across and down of a slice, for rows ``top`` to ``bottom`` of its map, into a slot.

    ``plane`` is -1 for a slice beside the volume. The slabs have ``depth_slots`` slots.
    """
    radius, side_radius, slots = len(down.extent) // 2, len(across.extent) // 2, ring_slots(down)
    images, ring = rows[:2], rows[4:]
    loaded = top - radius
    for i in range(top, bottom, ROWS):
        while loaded < min(i + ROWS, bottom) + radius:
            if plane < 0:
                fill(-offset_d, count + 2 * side_radius, images[0])
                fill(-offset_t, count + 2 * side_radius, images[1])
            else:
                load_row(
                    x, y, plane, height, width, loaded, first - side_radius, low, offset_d,
                    offset_t, padding, valid, 0, count + 2 * side_radius, images[0],
                    images[1],
                )  # fmt: skip
            for m in range(2):
                mean = ring[m * slots + loaded % slots]
                square = ring[(m + 2) * slots + loaded % slots]
                moments_across(across, images[m], length, mean, square)
            loaded += 1
        at = (i - top) * length
        for m in range(4):
            out = slabs[m * depth_slots + slot, at : at + ROWS * length]
            sum_down(down, ring, m * slots, i, length, out.reshape(ROWS, length))


@kernel
def derivatives_of_slice(
    maps, height, width, map_top, padding, down, across, begin, top, bottom, first, count, length,
    left, right, grad_length, rows, slabs, slot, depth_slots,
):  # fmt: skip
    """Sums across and down of a slice's derivatives, for its gradient, into a slot.

    The maps begin at row ``begin`` and column ``first``. The result begins ``ROWS - 1`` rows above
    ``top``, at column ``left``.
    """
    radius, slots = len(down.extent) // 2, ring_slots(down)
    source, ring, zero = rows[3], rows[4 : 4 + slots], rows.dtype.type(0)
    stop = min(height - map_top, bottom + radius)
    # A window that reaches beyond the image sees its mirror image.
    after = max(right + len(across.extent) // 2 - width, 0)
    shift = first - left + len(across.extent) // 2
    for m in range(maps.shape[0]):
        fill(zero, rows.shape[1], source)
        for k in range(slots):
            fill(zero, rows.shape[1], ring[k])
        for i in range(begin, bottom + radius, ROWS):
            for row in range(i, min(i + ROWS, bottom + radius)):
                out = ring[row % slots]
                if row < stop:
                    at = (row - begin) * length
                    copy(maps[m, at : at + count], source[shift : shift + count])
                    if padding == SYMMETRIC:
                        mirror_columns(source, shift, shift + count, shift, after)
                    sum_across(across, source, grad_length, out)
                elif padding != SYMMETRIC:
                    fill(zero, grad_length, out)
                if padding == SYMMETRIC:
                    mirror_rows(ring, 0, slots, row, height, radius, grad_length)
            if i + ROWS - radius <= top:
                continue
            at = (i - radius - top + ROWS - 1) * grad_length
            out = slabs[m * depth_slots + slot, at : at + ROWS * grad_length]
            sum_down(down, ring, 0, i - radius, grad_length, out.reshape(ROWS, grad_length))
