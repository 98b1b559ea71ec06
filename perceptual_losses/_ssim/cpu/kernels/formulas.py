"""A row of the map with its derivatives and weights, and a row of the gradient."""

from ...._runtime.numba_kernels import inlined, kernel, ordered
from .filters import ROWS
from .images import place, store_row


@ordered
def _variance(square, mean, zero):
    """The variance of a window. Where rounding makes it negative, it is ``zero``; NaN stays.

    A window of one pixel has exactly zero, which a fused multiply-add would miss.
    """
    variance = square - mean * mean
    return zero if variance < zero else variance


@inlined
def _means_and_variances(mean_d, mean_t, square_d, square_t, covered, zero):
    """The means and the variances of a window, whose moments are divided by its coverage first."""
    if covered is not None:
        mean_d, mean_t = covered * mean_d, covered * mean_t
        square_d, square_t = covered * square_d, covered * square_t
    return mean_d, mean_t, _variance(square_d, mean_d, zero), _variance(square_t, mean_t, zero)


@inlined
def _similarity(
    moments, i, offsets, constants, squared_ranges, contrast, both, coverage, weights, count, out,
    ssim_out,
):  # fmt: skip
    """The loop of `similarity`, which gives it ``contrast`` and ``both`` as constants."""
    mu_d, mu_t, e_d, e_t = _moments_of(moments, i)
    offset_d, offset_t = offsets[0], offsets[1]
    zero, one, two = out.dtype.type(0), out.dtype.type(1), out.dtype.type(2)
    c1, c2 = two * constants.c1, two * constants.c2
    for j in range(count):
        mean_d, mean_t, var_d, var_t = _means_and_variances(
            mu_d[j], mu_t[j], e_d[j], e_t[j], None if coverage is None else coverage[j], zero
        )
        scale = one if squared_ranges is None else squared_ranges[j]
        value = one - two * var_d / (var_t + var_d + scale * c2)
        if both or not contrast:
            full_d, full_t = mean_d + offset_d[j], mean_t + offset_t[j]
            dd = full_d * full_d
            luminance = one - two * dd / (full_t * full_t + dd + scale * c1)
            if both:
                ssim = luminance * value
                ssim_out[j] = ssim if weights is None else weights[j] * (ssim - one)
            else:
                value *= luminance
        out[j] = value if weights is None else weights[j] * (value - one)


@inlined
def _moments_of(moments, i):
    return moments[i], moments[ROWS + i], moments[2 * ROWS + i], moments[3 * ROWS + i]


@kernel
def similarity(
    moments, i, offsets, constants, squared_ranges, contrast, both, coverage, weights, count, out,
    ssim_out,
):  # fmt: skip
    """A row of the map into ``out``: SSIM, or with ``contrast`` its contrast-structure factor.

    ``moments`` has `ROWS` rows for each moment, the ``i``-th of which are used. If ``both``, SSIM
    goes into ``ssim_out`` beside that factor. Unless ``squared_ranges`` is ``None``, the constants
    are multiplied by it: the square of the range of each position's image.

    Unless ``coverage`` is ``None``, the moments are multiplied by it. Unless ``weights`` is
    ``None``, the row holds the weighted deficits ``weights (SSIM - 1)``: their sum makes identical
    images exactly 1, whatever the weights round to.
    """
    # Three loops. In a single one LLVM may store to ``ssim_out`` under a mask that is always false,
    # which takes processors ten times as long where the system has not handed out the page yet.
    if both:
        _similarity(
            moments, i, offsets, constants, squared_ranges, True, True, coverage, weights, count,
            out, ssim_out,
        )  # fmt: skip
    elif contrast:
        _similarity(
            moments, i, offsets, constants, squared_ranges, True, False, coverage, weights, count,
            out, ssim_out,
        )  # fmt: skip
    else:
        _similarity(
            moments, i, offsets, constants, squared_ranges, False, False, coverage, weights, count,
            out, ssim_out,
        )  # fmt: skip


@kernel
def derivatives(
    moments, i, offsets, constants, squared_ranges, contrast, separate, coverage, weights, count,
    source, shift, out,
):  # fmt: skip
    """`similarity`, and the derivatives M_t, 2 V_d, 2 V_t and M_d in rows of ``source``.

    They begin at column ``shift``. Unless ``separate``, the first is M_t + M_d, and the last is not
    written. All are zero where ``squared_ranges`` is zero: between planes. If there are weights,
    the derivatives are multiplied by them, and by the coverage. A coverage needs weights.
    """
    if separate:
        _derivatives(
            moments, i, offsets, constants, squared_ranges, contrast, coverage, weights, count,
            source, shift, source[3, shift:], out,
        )  # fmt: skip
    else:
        _derivatives(
            moments, i, offsets, constants, squared_ranges, contrast, coverage, weights, count,
            source, shift, None, out,
        )  # fmt: skip


@inlined
def _derivatives(
    moments, i, offsets, constants, squared_ranges, contrast, coverage, weights, count, source,
    shift, m_d, out,
):  # fmt: skip
    """The loop of `derivatives`, in which ``m_d`` is ``None`` unless it is separate."""
    mu_d, mu_t, e_d, e_t = _moments_of(moments, i)
    offset_d, offset_t = offsets[0], offsets[1]
    m_t, v_d, v_t = source[0, shift:], source[1, shift:], source[2, shift:]
    zero, one = out.dtype.type(0), out.dtype.type(1)
    two, four = out.dtype.type(2), out.dtype.type(4)
    c1, c2 = two * constants.c1, two * constants.c2
    for j in range(count):
        mean_d, mean_t, var_d, var_t = _means_and_variances(
            mu_d[j], mu_t[j], e_d[j], e_t[j], None if coverage is None else coverage[j], zero
        )
        scale = squared_ranges[j]
        inverse = one / (var_t + var_d + scale * c2)
        b = var_d * inverse
        contrast_structure = value = one - two * b
        slope, from_mu_d, from_mu_t = four * inverse, zero, zero
        if not contrast:
            full_d, full_t = mean_d + offset_d[j], mean_t + offset_t[j]
            dd = full_d * full_d
            inverse = one / (full_t * full_t + dd + scale * c1)
            a = dd * inverse
            luminance = one - two * a
            value *= luminance
            slope *= luminance
            steep = four * inverse * contrast_structure
            from_mu_d = -(steep - steep * a) * full_d
            from_mu_t = steep * a * full_t
        # Twice V_t and V_d. Their common factor is ``slope``.
        from_var_t = slope * b
        from_var_d = from_var_t - slope
        from_mu_d -= mean_d * from_var_d
        from_mu_t -= mean_t * from_var_t
        if weights is not None:
            factor = weights[j]
            value = factor * (value - one)
            if coverage is not None:
                factor *= coverage[j]
            from_mu_d, from_mu_t = factor * from_mu_d, factor * from_mu_t
            from_var_d, from_var_t = factor * from_var_d, factor * from_var_t
        # Below, values are chosen and not multiplied: the moments between two planes may be NaN.
        if m_d is None:
            from_mu_t += from_mu_d
        else:
            m_d[j] = from_mu_d if scale > zero else zero
        m_t[j] = from_mu_t if scale > zero else zero
        v_d[j] = from_var_d if scale > zero else zero
        v_t[j] = from_var_t if scale > zero else zero
        out[j] = value


@inlined
def total(a):
    """The sum of the values."""
    result = a.dtype.type(0)
    for j in range(a.shape[0]):
        result += a[j]
    return result


@kernel
def finish_gradient(grad_sums, i, at, d, t, scale, sign, separate, count, out):
    """A row of the gradient, times ``scale``.

    ``grad_sums`` has `ROWS` rows with the sums of each map of `derivatives`. The ``i``-th are used,
    from column ``at`` on. ``sign`` is -1 for the gradient of the second image.
    """
    mean_t, mean_d = grad_sums[i, at:], grad_sums[3 * ROWS + i, at:]
    v_d, v_t = grad_sums[ROWS + i, at:], grad_sums[2 * ROWS + i, at:]
    for j in range(count):
        mean = mean_t[j]
        if separate:
            mean += sign * mean_d[j]
        out[j] = scale * (mean + t[j] * v_t[j] + sign * d[j] * v_d[j])


@inlined
def signed(scale, d):
    """``scale`` with the sign of ``d``; zero and NaN are their own signs."""
    return scale if d > 0 else (-scale if d < 0 else d)


@kernel
def add_signs(x, y, scale, out):
    """Adds ``scale`` times the sign of ``x - y``; returns the sum of ``|x - y|``."""
    result = out.dtype.type(0)
    for j in range(out.shape[0]):
        d = out.dtype.type(x[j]) - out.dtype.type(y[j])
        out[j] += signed(scale, d)
        result += abs(d)
    return result


@inlined
def write_gradient(x, y, gradient, plane, i, begin, step, valid, row):
    """Writes a row of the gradient from column ``begin`` on, with that of L1 added to it.

    ``step`` is L1's gradient with respect to ``|x - y|``, or ``None`` without L1. Returns the sum
    of ``|x - y|``, or zero without L1.
    """
    added = row.dtype.type(0)
    if step is not None:
        added = _add_signs_of_row(x, y, plane, i, begin, step, row)
    store_row(gradient, plane, i, begin, valid, row)
    return added


@inlined
def _add_signs_of_row(x, y, plane, i, begin, scale, out):
    """`add_signs` for the pixels of a row from column ``begin`` on."""
    x_at, y_at = place(x, plane, i, begin), place(y, plane, i, begin)
    if x.column == 1 and y.column == 1:
        return add_signs(x.flat[x_at:], y.flat[y_at:], scale, out)
    result = out.dtype.type(0)
    for j in range(out.shape[0]):
        d = out.dtype.type(x.flat[x_at + j * x.column])
        d -= out.dtype.type(y.flat[y_at + j * y.column])
        out[j] += signed(scale, d)
        result += abs(d)
    return result
