r"""The reference path: the specification, in plain torch.

Wang et al. 2004 with window weights ``g``, per plane::

    mu_x = g * x        sigma_x^2 = g * x^2 - mu_x^2        sigma_xy = g * (x y) - mu_x mu_y

    luminance          = (2 mu_x mu_y + C1) / (mu_x^2 + mu_y^2 + C1)
    contrast_structure = (2 sigma_xy + C2) / (sigma_x^2 + sigma_y^2 + C2)
    SSIM               = luminance * contrast_structure

computed from the difference ``d = x - y`` and the total ``t = x + y`` of the images, whose moments
give the paper's: ``2 (sigma_x^2 + sigma_y^2) = sigma_t^2 + sigma_d^2``, ``4 sigma_xy = sigma_t^2 -
sigma_d^2``, and the same for the means. So::

    luminance          = 1 - 2 mu_d^2 / (mu_t^2 + mu_d^2 + 2 C1)
    contrast_structure = 1 - 2 sigma_d^2 / (sigma_t^2 + sigma_d^2 + 2 C2)

The same number in exact arithmetic. In floating point identical images give exactly 1 with a
gradient of exactly 0, and the small gradient of nearly identical ones is not what is left of large
terms that cancel.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._runtime.tracing import exporting
from .backend import Auxiliary
from .pyramid import halve, halve_valid
from .request import (
    FLOOR,
    Definition,
    Request,
    centres,
    compute_dtype,
    num_levels,
    reduce_planes,
)


def evaluate(x: Tensor, y: Tensor, auxiliary: Auxiliary, request: Request) -> Tensor:
    """The requested value of two images."""
    if request.reduction == "map":
        return _similarity_map(x, y, auxiliary, request.definition)
    return combine(level_means(x, y, auxiliary, request), request)


def level_means(x: Tensor, y: Tensor, auxiliary: Auxiliary, request: Request) -> Tensor:
    """The means over each plane of contrast-structure, and of SSIM at the last level.

    Returns:
        ``(levels, N, C)``; for a mix one row more, the mean ``|x - y|`` in units of the image's own
        range, if it has one.
    """
    dtype = compute_dtype(x, y)
    x, y = x.to(dtype), y.to(dtype)
    last_row = []
    if request.mix is not None:
        distance = (x - y).abs().flatten(2).mean(2)
        last_row = [distance / auxiliary.ranges[0][:, None] if auxiliary.ranges else distance]
    means = []
    levels = num_levels(request)
    for level in range(levels):
        luminance, contrast_structure = _factors(x, y, auxiliary, level, request.definition)
        last = level == levels - 1
        values = luminance * contrast_structure if last else contrast_structure
        means.append(_mean(values, auxiliary, level))
        if not last and auxiliary.valid:
            valid = auxiliary.valid[level]
            x, y = halve_valid(x, valid), halve_valid(y, valid)
        elif not last:
            x, y = halve(x), halve(y)
    return torch.stack(means + last_row)


def combine(means: Tensor, request: Request) -> Tensor:
    """The requested value from the `level_means`."""
    if request.reduction == "levels":
        return means
    means, distance = (means, None) if request.mix is None else (means[:-1], means[-1])
    if request.exponents:
        similarity = product(means, request.exponents, request.normalize)
    else:
        similarity = means.squeeze(0)
    return reduce_planes(request, similarity, distance)


def _similarity_map(x: Tensor, y: Tensor, auxiliary: Auxiliary, definition: Definition) -> Tensor:
    """The SSIM of each window, ``(N, C, H', W')``; 1 around centres that are not valid."""
    dtype = compute_dtype(x, y)
    luminance, contrast_structure = _factors(x.to(dtype), y.to(dtype), auxiliary, 0, definition)
    similarity = luminance * contrast_structure
    if auxiliary.valid:
        similarity = torch.where(centres(auxiliary.valid[0], definition), similarity, 1.0)
    return similarity


def _factors(
    x: Tensor, y: Tensor, auxiliary: Auxiliary, level: int, definition: Definition
) -> tuple[Tensor, Tensor]:
    """The maps of the luminance and of the contrast-structure factor at a level of the pyramid."""
    windows, low, length, c1, c2, padding, _ = definition
    scale: Tensor | float = 1.0
    if auxiliary.ranges:
        scale = auxiliary.ranges[0].reshape(-1, *[1] * (x.dim() - 1))
    difference, total = x - y, (x - low) + (y - low)
    valid = auxiliary.valid[level] if auxiliary.valid else None
    if valid is not None:
        difference = torch.where(valid, difference, 0.0)
        total = torch.where(valid, total, 0.0)
    # sigma^2 = E[v^2] - E[v]^2 cancels when the mean is high above the contrast. Variances do not
    # change with a constant, so take one near the mean off first; the means get it back.
    offset_d, offset_t = _offsets(difference, total, length * scale, valid)
    difference = _pad(difference, windows, padding) - offset_d
    total = _pad(total, windows, padding) - offset_t
    if valid is not None:
        padded = _pad_valid(valid, windows, padding)
        difference = torch.where(padded, difference, 0.0)
        total = torch.where(padded, total, 0.0)
    # One batch, because the strides of a stack would compare the batch with 1 in an exported graph.
    moments = torch.cat([difference, total, difference.square(), total.square()])
    moments = _filter(moments, windows).unflatten(0, (4, -1))
    if valid is not None:
        if auxiliary.coverage:
            moments = moments * auxiliary.coverage[level]
        else:
            moments = moments * inverse_coverage(valid, definition, x.dtype)
    mu_d, mu_t, e_dd, e_tt = moments.unbind()
    # Negative ones come from rounding, where pixels lie far from the offset.
    var_d, var_t = (e_dd - mu_d.square()).clamp(min=0), (e_tt - mu_t.square()).clamp(min=0)
    mu_dd, mu_tt = (mu_d + offset_d).square(), (mu_t + offset_t).square()

    luminance = 1 - 2 * mu_dd / (mu_tt + mu_dd + 2 * c1 * scale**2)
    contrast_structure = 1 - 2 * var_d / (var_t + var_d + 2 * c2 * scale**2)
    return luminance, contrast_structure


def inverse_coverage(valid: Tensor, definition: Definition, dtype: torch.dtype) -> Tensor:
    """The reciprocal of the windows' weight over valid pixels, zero where they have none.

    A weight that is not a normal number counts as none: the centre of such a window, which weighs
    more, is not valid.
    """
    padded = _pad_valid(valid, definition.windows, definition.padding).to(dtype)
    covered = _filter(padded, definition.windows)
    return torch.where(covered > torch.finfo(dtype).tiny, 1 / covered, 0.0)


def _mean(values: Tensor, auxiliary: Auxiliary, level: int) -> Tensor:
    if not auxiliary.weights:
        return values.flatten(2).mean(2)
    deficit: Tensor = ((1 - values) * auxiliary.weights[level]).flatten(2).sum(2)
    if auxiliary.totals:
        deficit = deficit / auxiliary.totals[level][:, None]
    # Exactly 1 where all values are, whatever the weights add up to.
    return 1 - deficit


def _offsets(
    difference: Tensor, total: Tensor, length: Tensor | float, valid: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Constants near most pixels of each plane, detached: the result does not depend on them.

    They are means in which pixels far beyond the range count little. Where some pixels are so and
    others are not, the offset is that of the others. Windows far from it lose digits. In most of
    them one image is far away and the other is not, and SSIM is nearly zero whatever they lose.
    """
    d, t = difference.detach(), total.detach()
    weights = 1 / (1 + (d / length).square() + (t / length).square())
    if valid is not None:
        weights = weights * valid
    dims = tuple(range(2, d.dim()))
    whole = weights.sum(dims, keepdim=True)
    offset_d, offset_t = ((weights * v).sum(dims, keepdim=True) / whole for v in (d, t))
    # An offset that is NaN would spread to all windows of the plane.
    return (
        offset_d.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0),
        offset_t.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0),
    )


def _pad(image: Tensor, windows: tuple[tuple[float, ...], ...], padding: str) -> Tensor:
    radii = [len(window) // 2 for window in windows]
    if padding == "zeros":
        return F.pad(image, [radius for radius in reversed(radii) for _ in range(2)])
    if padding == "symmetric":
        for dim, radius in enumerate(radii, start=2):
            size = image.shape[dim]
            first = image.narrow(dim, 0, radius).flip(dim)
            last = image.narrow(dim, size - radius, radius).flip(dim)
            image = torch.cat([first, image, last], dim)
    return image


def _pad_valid(valid: Tensor, windows: tuple[tuple[float, ...], ...], padding: str) -> Tensor:
    """The pixels that exist, with those that the padding adds."""
    if padding == "zeros":
        return ~_pad(~valid, windows, padding)
    return _pad(valid, windows, padding)


def _filter(moments: Tensor, windows: tuple[tuple[float, ...], ...]) -> Tensor:
    for dim, window in zip(range(-len(windows), 0), windows, strict=True):
        moments = _correlate(moments, window, dim)
    return moments


def _correlate(image: Tensor, window: tuple[float, ...], dim: int) -> Tensor:
    """Valid correlation of one axis with the window."""
    if torch.compiler.is_compiling() or exporting():
        # The compiler differentiates the sum itself and fuses both ways. (In torch 2.11 a traced
        # autograd.Function that works in place returns zero gradients.)
        return _shifted_sum(image, window, dim)
    out: Tensor = _Correlate.apply(image, dim, *window)  # type: ignore[no-untyped-call]
    return out


def _shifted_sum(image: Tensor, window: tuple[float, ...], dim: int) -> Tensor:
    # Not a convolution, whose precision autocast, TF32 and oneDNN's setting lower, for its backward
    # as they are set by then. They leave sums and products as they are, on any device.
    size = image.shape[dim] - len(window) + 1
    out = image.narrow(dim, 0, size) * window[0]
    for shift, tap in enumerate(window[1:], start=1):
        out.add_(image.narrow(dim, shift, size), alpha=tap)
    return out


class _Correlate(torch.autograd.Function):
    """The shifted sum with its transpose for a backward, where autograd would add padded slices."""

    generate_vmap_rule = True

    @staticmethod
    def forward(image: Tensor, dim: int, *window: float) -> Tensor:
        # Taps are arguments of their own: torch's batched forward mode does not accept a tuple.
        return _shifted_sum(image, window, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, ctx.dim, *window = inputs
        ctx.window = tuple(window)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return _correlate(tangent, ctx.window, ctx.dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        reach = len(ctx.window) - 1
        padded = F.pad(grad, [0, 0] * (-ctx.dim - 1) + [reach, reach])
        return _correlate(padded, ctx.window[::-1], ctx.dim), None, *[None] * (reach + 1)


def product(means: Tensor, exponents: Sequence[float], normalize: str | None) -> Tensor:
    """The product of the levels' means ``(levels, N, C)``, each normalized and to its power."""
    powers = [
        _power(mean, exponent, normalize)
        for mean, exponent in zip(means.unbind(), exponents, strict=True)
    ]
    return functools.reduce(torch.mul, powers)


def _power(mean: Tensor, exponent: float, normalize: str | None) -> Tensor:
    if normalize == "floor":
        # Clamped so that the branch not taken stays finite, and with it the gradient.
        below = FLOOR**2 / (2 * FLOOR - mean.clamp(max=FLOOR))
        mean = torch.where(mean > FLOOR, mean, below)
    elif normalize in ("relu", "simple"):
        mean = mean if normalize == "relu" else (mean + 1) / 2
        # NaN is not hidden. The slope of a power at zero would be infinite.
        alive = ~(mean <= 0)
        return torch.where(alive, torch.where(alive, mean, 1.0) ** exponent, 0.0)
    return mean**exponent
