"""The reciprocal of the windows' weight over valid pixels."""

from ...._runtime.numba_kernels import entry, kernel
from .arguments import SYMMETRIC, ZEROS
from .filters import sum_across, sum_down_row
from .images import fill, shown_pixel


@entry
def inverse_coverage(valid, down, across, padding, least, scratch, out, begin, end, share):
    """Writes the rows ``begin`` to ``end`` of all images' maps ``out``, ``(N, H', W')``.

    It is zero for a window whose weight is at most ``least``. ``valid`` is boolean, ``(N, H, W)``.
    ``scratch`` has three rows more than the window for each share. There each row of pixels becomes
    numbers once.
    """
    height, width = valid.shape[1:]
    rows, columns = out.shape[1:]
    size, radius, side_radius = len(down.extent), len(down.extent) // 2, len(across.extent) // 2
    # Rows and columns of pixels before the first of the map.
    top, left = (height - rows) // 2, (width - columns) // 2
    zero, one = out.dtype.type(0), out.dtype.type(1)
    slots = size + 1
    ring, sums, line = scratch[share, :slots], scratch[share, slots], scratch[share, slots + 1]
    # Sums begin as far before the image as the first window does.
    before = side_radius - left
    for index in range(begin, end):
        image = index // rows
        i = index - image * rows + top
        first_row = i - radius if index == begin or i == top else i + radius
        for row in range(first_row, i + radius + 1):
            shown = shown_pixel(row, height, padding)
            # Pixels that zeros add are valid.
            fill(one if padding == ZEROS else zero, scratch.shape[2], ring[row % slots])
            if shown >= 0:
                _convert(valid[image, shown], ring[row % slots, before:])
        sum_down_row(down, ring, 0, i - radius, scratch.shape[2], sums)
        if padding == SYMMETRIC:
            for j in range(before):
                sums[before - 1 - j] = sums[before + j]
                sums[before + width + j] = sums[before + width - 1 - j]
        sum_across(across, sums, columns, line)
        row = out[image, i - top]
        for j in range(columns):
            row[j] = one / line[j] if line[j] > least else zero


@kernel
def _convert(valid, row):
    for j in range(valid.shape[0]):
        row[j] = row.dtype.type(valid[j])
