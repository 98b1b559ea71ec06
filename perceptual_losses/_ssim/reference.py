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
from .definition import FLOOR, Definition, Request, compute_dtype, reduce_planes
from .pyramid import halve


def evaluate(x: Tensor, y: Tensor, weights: Sequence[Tensor], request: Request) -> Tensor:
    """The requested value of two images; ``weights`` as for `Plan.forward`."""
    return combine(level_means(x, y, weights, request), request)


def level_means(x: Tensor, y: Tensor, weights: Sequence[Tensor], request: Request) -> Tensor:
    """The means over each plane of contrast-structure, and of SSIM at the last level.

    Returns:
        ``(levels, N, C)``; for a mix one row more, the mean ``|x - y|``.
    """
    dtype = compute_dtype(x, y)
    x, y = x.to(dtype), y.to(dtype)
    last_row = [] if request.mix is None else [(x - y).abs().flatten(2).mean(2)]
    means = []
    levels = max(1, len(request.exponents))
    for level in range(levels):
        luminance, contrast_structure = _factors(x, y, request.definition)
        last = level == levels - 1
        values = luminance * contrast_structure if last else contrast_structure
        means.append(_mean(values, weights[level] if weights else None))
        if not last:
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


def similarity_map(x: Tensor, y: Tensor, definition: Definition) -> Tensor:
    """The SSIM of each window, ``(N, C, H', W')``."""
    dtype = compute_dtype(x, y)
    x, y = x.to(dtype), y.to(dtype)
    luminance, contrast_structure = _factors(x, y, definition)
    return luminance * contrast_structure


def _factors(x: Tensor, y: Tensor, definition: Definition) -> tuple[Tensor, Tensor]:
    window, low, c1, c2, padding = definition
    difference = _pad(x - y, padding, len(window) // 2)
    total = _pad((x - low) + (y - low), padding, len(window) // 2)

    # sigma^2 = E[v^2] - E[v]^2 cancels when the level is high above the contrast. Variances do not
    # change with a constant, so take one near the level off first; the means get it back.
    level_d, level_t = _level(difference), _level(total)
    difference, total = difference - level_d, total - level_t
    moments = torch.stack([difference, total, difference.square(), total.square()])
    mu_d, mu_t, e_dd, e_tt = _filter(moments, window, x.dim() - 2).unbind()
    var_d, var_t = e_dd - mu_d.square(), e_tt - mu_t.square()
    mu_dd, mu_tt = (mu_d + level_d).square(), (mu_t + level_t).square()

    luminance = 1 - 2 * mu_dd / (mu_tt + mu_dd + 2 * c1)
    contrast_structure = 1 - 2 * var_d / (var_t + var_d + 2 * c2)
    return luminance, contrast_structure


def _mean(values: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return values.flatten(2).mean(2)
    # Exactly 1 where all values are, whatever the weights add up to.
    return 1 - ((1 - values) * weight).flatten(2).sum(2)


def _level(image: Tensor) -> Tensor:
    """A constant near the level of each plane, detached: the result does not depend on it."""
    mean = image.detach().mean(tuple(range(2, image.dim())), keepdim=True)
    # So that a NaN pixel stays in the windows that hold it.
    return mean.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _pad(image: Tensor, padding: str, radius: int) -> Tensor:
    if padding == "zeros":
        return F.pad(image, [radius, radius] * (image.dim() - 2))
    if padding == "symmetric":
        for dim in range(2, image.dim()):
            size = image.shape[dim]
            first = image.narrow(dim, 0, radius).flip(dim)
            last = image.narrow(dim, size - radius, radius).flip(dim)
            image = torch.cat([first, image, last], dim)
    return image


def _filter(moments: Tensor, window: tuple[float, ...], spatial_dims: int) -> Tensor:
    for dim in range(-spatial_dims, 0):
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
    # Not a convolution: that would be lowered by autocast, by TF32 and by oneDNN's precision
    # setting, and its backward by whatever they are set to by then. Sums and products are not, on
    # any device.
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
        # Each tap by itself: of a tuple torch's batched forward mode does not know what to do.
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
    elif normalize == "simple":
        mean = (mean + 1) / 2
    elif normalize == "relu":
        # NaN is not hidden.
        alive = ~(mean <= 0)
        return torch.where(alive, torch.where(alive, mean, 1.0) ** exponent, 0.0)
    return mean**exponent
