"""SSIM and its derivatives of a row, its mask, and the gradients of pixels."""

from ...._runtime.numba_kernels import inlined, kernel, ordered
from .images import _place


@ordered
def _variance(square, mean):
    """Zero in a window of one pixel, which a fused multiply-add would miss by a rounding."""
    return square - mean * mean


@kernel
def _similarity(mu_d, mu_t, e_d, e_t, level_d, level_t, c1, c2, contrast, count, out):
    """The map's row, SSIM or its contrast-structure factor."""
    one, two = out.dtype.type(1), out.dtype.type(2)
    for j in range(count):
        var_d = _variance(e_d[j], mu_d[j])
        var_t = _variance(e_t[j], mu_t[j])
        value = one - two * var_d / (var_t + var_d + two * c2)
        if not contrast:
            full_d, full_t = mu_d[j] + level_d[j], mu_t[j] + level_t[j]
            dd = full_d * full_d
            value *= one - two * dd / (full_t * full_t + dd + two * c1)
        out[j] = value


@kernel
def _derivatives(
    mu_d, mu_t, e_d, e_t, level_d, level_t, c1, c2, contrast, sign, inside, count, m_d, m_t, v_d,
    v_t, out,
):  # fmt: skip
    """`_similarity` with M_d, M_t + sign M_d, V_d and V_t."""
    zero, one, two = out.dtype.type(0), out.dtype.type(1), out.dtype.type(2)
    for j in range(count):
        mean_d, mean_t = mu_d[j], mu_t[j]
        var_d = _variance(e_d[j], mean_d)
        var_t = _variance(e_t[j], mean_t)
        inverse = one / (var_t + var_d + two * c2)
        b = var_d * inverse
        value = one - two * b
        from_var_d = -two * (one - b) * inverse
        from_var_t = two * b * inverse
        from_mu_d = from_mu_t = zero
        if not contrast:
            full_d, full_t = mean_d + level_d[j], mean_t + level_t[j]
            dd = full_d * full_d
            inverse = one / (full_t * full_t + dd + two * c1)
            a = dd * inverse
            luminance = one - two * a
            from_mu_d = -two * two * value * full_d * (one - a) * inverse
            from_mu_t = two * two * value * full_t * a * inverse
            from_var_d *= luminance
            from_var_t *= luminance
            value *= luminance
        from_mu_d -= two * mean_d * from_var_d
        from_mu_t -= two * mean_t * from_var_t
        # Chosen, not multiplied: what is not inside may be NaN, from another plane.
        m_d[j] = from_mu_d if inside[j] > zero else zero
        m_t[j] = from_mu_t + sign * from_mu_d if inside[j] > zero else zero
        v_d[j] = from_var_d if inside[j] > zero else zero
        v_t[j] = from_var_t if inside[j] > zero else zero
        out[j] = value


@kernel
def _weigh(weight, a):
    for j in range(weight.shape[0]):
        a[j] *= weight[j]


@kernel
def _weigh_deficits(weight, a):
    """What values are short of 1, weighed: where nothing is missing no rounding shows."""
    for j in range(weight.shape[0]):
        a[j] = weight[j] * (a[j] - a.dtype.type(1))


@inlined
def _total(a):
    total = a.dtype.type(0)
    for j in range(a.shape[0]):
        total += a[j]
    return total


@kernel
def _finish(mean_t, mean_d, v_d, v_t, d, t, sign, apart, count, out):
    """A row of the gradient; ``apart`` says that ``mean_t`` does not hold ``mean_d`` already."""
    two = out.dtype.type(2)
    for j in range(count):
        mean = mean_t[j]
        if apart:
            mean += sign * mean_d[j]
        out[j] = mean + two * (t[j] * v_t[j] + sign * d[j] * v_d[j])


@inlined
def _signed(scale, d):
    """Zero and NaN are their own signs."""
    return scale if d > 0 else (-scale if d < 0 else d)


@kernel
def _add_signs(x, y, scale, out):
    """Adds ``scale`` times the sign of ``x - y``; returns the sum of ``|x - y|``."""
    total = out.dtype.type(0)
    for j in range(out.shape[0]):
        d = x[j] - y[j]
        out[j] += _signed(scale, d)
        total += abs(d)
    return total


@inlined
def _add_signs_of_row(x, y, plane, i, begin, scale, out):
    """`_add_signs` of pixels of a row from column ``begin`` on."""
    x_at, y_at = _place(x, plane, i, begin), _place(y, plane, i, begin)
    if x.column == 1 and y.column == 1:
        return _add_signs(x.flat[x_at:], y.flat[y_at:], scale, out)
    total = out.dtype.type(0)
    for j in range(out.shape[0]):
        d = x.flat[x_at + j * x.column] - y.flat[y_at + j * y.column]
        out[j] += _signed(scale, d)
        total += abs(d)
    return total
