"""The reciprocal of the windows' weight over valid pixels."""

from ...._runtime.numba_kernels import entry, kernel
from .arguments import SYMMETRIC, ZEROS
from .filters import add_taps, sum_across, sum_down
from .images import fill, shown_pixel


@entry
def inverse_coverage(valid, down, across, padding, least, scratch, out, begin, end, share):
    """Writes the rows ``begin`` to ``end`` of all images' maps ``out``, ``(N, H', W')``.

    The result is zero for a window whose weight is at most ``least``. ``valid`` is boolean,
    ``(N, H, W)``. Two rows of the map are summed at a time. They share a ring of rows of pixels, so
    that each row is converted to numbers once. ``scratch`` has for each share this ring, which is a
    row longer than the window, and five rows more.
    """
    height, width = valid.shape[1:]
    rows, columns = out.shape[1:]
    size, radius, side_radius = len(down.extent), len(down.extent) // 2, len(across.extent) // 2
    # Rows and columns of pixels before the first of the map.
    top, left = (height - rows) // 2, (width - columns) // 2
    zero, one = out.dtype.type(0), out.dtype.type(1)
    slots, length = size + 1, scratch.shape[2]
    ring, sums = scratch[share, :slots], scratch[share, slots : slots + 2]
    line, slot_taps = scratch[share, slots + 2], scratch[share, slots + 3 : slots + 5]
    # The first window begins this many columns before the image, and so do the sums.
    before = side_radius - left
    index = begin
    while index < end:
        image = index // rows
        i = index - image * rows + top
        count = min(2, end - index, rows + top - i)
        first_row = i - radius if index == begin or i == top else i + radius
        for row in range(first_row, i + radius + 2):
            shown = shown_pixel(row, height, padding)
            # Pixels that zeros add are valid.
            fill(one if padding == ZEROS else zero, length, ring[row % slots])
            if shown >= 0:
                _convert(valid[image, shown], ring[row % slots, before:])
        for k in range(2):
            fill(zero, slots, slot_taps[k])
            add_taps(down, i + k, i + k - radius, i + k + radius + 1, one, slot_taps[k])
        sum_down(down, slot_taps, ring, 0, length, sums[0], sums[1])
        for k in range(count):
            if padding == SYMMETRIC:
                for j in range(before):
                    sums[k, before - 1 - j] = sums[k, before + j]
                    sums[k, before + width + j] = sums[k, before + width - 1 - j]
            sum_across(across, sums[k], columns, line)
            row = out[image, i + k - top]
            for j in range(columns):
                row[j] = one / line[j] if line[j] > least else zero
        index += count


@kernel
def _convert(valid, row):
    for j in range(valid.shape[0]):
        row[j] = row.dtype.type(valid[j])
