"""Sums across and down of a volume's slices, which `march_volume` keeps in slots."""

from ...._runtime.numba_kernels import kernel
from .arguments import SYMMETRIC
from .filters import (
    add_mirrored_taps,
    add_taps,
    mirror_columns,
    moments_across,
    sum_across,
    sum_down,
    sum_down_row,
)
from .images import copy, fill, load_row


@kernel
def moments_of_slice(
    x, y, plane, height, width, low, offset_d, offset_t, padding, valid, down, across, top, bottom,
    first, count, length, rows, slabs, slot, depth_slots, apart,
):  # fmt: skip
    """Sums across and down of a slice, for rows ``top`` to ``bottom`` of its map, into a slot.

    ``plane`` is -1 for a slice beside the volume. The slabs have ``depth_slots`` slots. ``apart``
    is as for `moments_down`.
    """
    radius, slots = len(down.extent) // 2, len(down.extent) + 1
    side_radius = len(across.extent) // 2
    slot_taps, images, ring = rows[:2], rows[2:4], rows[6:]
    loaded = top - radius
    for i in range(top, bottom, 2):
        while loaded <= i + 1 + radius:
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
        for k in range(2):
            fill(slot_taps.dtype.type(0), slots, slot_taps[k])
            add_taps(down, i + k, i - slots, i + slots, slot_taps.dtype.type(1), slot_taps[k])
        at = (i - top) * length
        for m in range(4):
            out = slabs[m * depth_slots + slot, at : at + 2 * length]
            if apart is None:
                sum_down(down, slot_taps, ring, m * slots, length, out, out[length:])
            else:
                sum_down_row(down, ring, m * slots, i - radius, length, out)
                sum_down_row(down, ring, m * slots, i + 1 - radius, length, out[length:])


@kernel
def derivatives_of_slice(
    maps, height, width, map_top, padding, down, across, begin, top, bottom, first, count, length,
    left, right, grad_length, rows, slabs, slot, depth_slots,
):  # fmt: skip
    """Sums across and down of a slice's derivatives, for its gradient, into a slot.

    ``maps`` begin at row ``begin`` and column ``first``, the result a row above ``top`` and at
    column ``left``.
    """
    radius, slots = len(down.extent) // 2, len(down.extent) + 1
    slot_taps, source, ring = rows[:2], rows[4], rows[6 : 6 + slots]
    zero, one = rows.dtype.type(0), rows.dtype.type(1)
    shift = first - left + len(across.extent) // 2
    for m in range(maps.shape[0]):
        fill(zero, rows.shape[1], source)
        for k in range(slots):
            fill(zero, rows.shape[1], ring[k])
        for i in range(begin, bottom + radius, 2):
            for k in range(2):
                if i + k < min(height - map_top, bottom + radius):
                    at = (i + k - begin) * length
                    copy(maps[m, at : at + count], source[shift : shift + count])
                    out = ring[(i + k) % slots]
                    sum_across(across, source, grad_length, out)
                    if padding == SYMMETRIC:
                        mirror_columns(across, source, 0, left, right, width, out)
            if i + 1 - radius < top:
                continue
            for k in range(2):
                fill(zero, slots, slot_taps[k])
                add_mirrored_taps(
                    down, i + k - radius, height, map_top, height - map_top, padding, one,
                    slot_taps[k],
                )  # fmt: skip
            at = (i - radius - top + 1) * grad_length
            out = slabs[m * depth_slots + slot, at : at + 2 * grad_length]
            sum_down(down, slot_taps, ring, 0, grad_length, out, out[grad_length:])
