"""The pyramid over valid pixels: halved images, and the sum of the levels' gradients.

The last three arguments of each kernel are those that `in_threads` passes, as in `levels`.
``valid`` is ``(N, H, W)`` and boolean. Values elsewhere are loaded, but never used.
"""

from ...._runtime.numba_kernels import entry, inlined, kernel
from .images import gather, place


@entry
def halve_valid(x, y, x_half, y_half, valid, channels, size, rows, begin, end, share):
    """Means of both images over the valid pixels of 2x2, zero where there is none.

    Each share has two of ``rows``, as long as those of the images.
    """
    _halve_rows(x, x_half, valid, channels, size, rows[share], begin, end)
    _halve_rows(y, y_half, valid, channels, size, rows[share], begin, end)


@kernel
def _halve_rows(image, out, valid, channels, size, rows, begin, end):
    _, height, width = size
    num_rows, columns = (height + 1) // 2, (width + 1) // 2
    upper, lower = rows[0], rows[1]
    for index in range(begin, end):
        plane = index // num_rows
        i = index - plane * num_rows
        # An odd last row counts twice, which changes no mean.
        below = min(2 * i + 1, height - 1)
        gather(image, place(image, plane, 2 * i, 0), upper[:width])
        gather(image, place(image, plane, below, 0), lower[:width])
        here, start = valid[plane // channels], place(out, plane, i, 0)
        row = out.flat[start : start + columns]
        _halve_row(upper, lower, here[2 * i], here[below], row)


@kernel
def _halve_row(upper, lower, upper_valid, lower_valid, out):
    zero = out.dtype.type(0)
    for j in range(upper_valid.shape[0] // 2):
        out[j] = _mean_of_valid(upper, lower, upper_valid, lower_valid, 2 * j, 2 * j + 1, zero)
    if upper_valid.shape[0] % 2:
        last = upper_valid.shape[0] - 1
        out[-1] = _mean_of_valid(upper, lower, upper_valid, lower_valid, last, last, zero)


@inlined
def _mean_of_valid(upper, lower, upper_valid, lower_valid, left, right, zero):
    one = zero + upper.dtype.type(1)
    total = (upper[left] if upper_valid[left] else zero) + (
        lower[left] if lower_valid[left] else zero
    )
    total += (upper[right] if upper_valid[right] else zero) + (
        lower[right] if lower_valid[right] else zero
    )
    count = (one if upper_valid[left] else zero) + (one if lower_valid[left] else zero)
    count += (one if upper_valid[right] else zero) + (one if lower_valid[right] else zero)
    return total / max(count, one)


@entry
def accumulate_valid(gradient, size, factors, coarse, valid, channels, rows, begin, end, share):
    """Scales rows of a level's gradient, and adds to each valid pixel its part of the next coarser.

    ``factors`` has a number for each plane, ``coarse`` is ``(planes, h, w)``. Each share has a row
    of ``rows``, as long as those of ``coarse``.
    """
    _, height, width = size
    for index in range(begin, end):
        plane = index // height
        i = index - plane * height
        here, sent = valid[plane // channels], rows[share]
        has_both = i // 2 * 2 + 1 < height
        neighbour = min(i // 2 * 4 + 1 - i, height - 1)
        _share_out(coarse[plane, i // 2], here[i], here[neighbour], has_both, sent)
        start, step = place(gradient, plane, i, 0), gradient.column
        if step == 1:
            _scale_and_add(sent, here[i], factors[plane], gradient.flat[start : start + width])
        else:
            for j in range(width):
                at = start + j * step
                added = sent[j // 2] if here[i, j] else sent.dtype.type(0)
                gradient.flat[at] = gradient.flat[at] * factors[plane] + added


@kernel
def _share_out(coarse, valid, neighbours, has_both, out):
    """A row of coarse values divided by the numbers of valid pixels below them."""
    zero, one = out.dtype.type(0), out.dtype.type(1)
    other = one if has_both else zero
    for j in range(valid.shape[0] // 2):
        count = (one if valid[2 * j] else zero) + (one if valid[2 * j + 1] else zero)
        count += (other if neighbours[2 * j] else zero) + (other if neighbours[2 * j + 1] else zero)
        out[j] = coarse[j] / max(count, one)
    if valid.shape[0] % 2:
        count = (one if valid[-1] else zero) + (other if neighbours[-1] else zero)
        out[coarse.shape[0] - 1] = coarse[-1] / max(count, one)


@kernel
def _scale_and_add(sent, valid, factor, a):
    zero = a.dtype.type(0)
    for j in range(a.shape[0] // 2):
        a[2 * j] = a[2 * j] * factor + (sent[j] if valid[2 * j] else zero)
        a[2 * j + 1] = a[2 * j + 1] * factor + (sent[j] if valid[2 * j + 1] else zero)
    if a.shape[0] % 2:
        last = a.shape[0] // 2
        a[-1] = a[-1] * factor + (sent[last] if valid[-1] else zero)
