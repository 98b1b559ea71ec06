"""The papers' definitions in NumPy, window by window: slow, and independent of the package.

Arrays hold one plane, ``(H, W)`` or ``(D, H, W)``, in float64; ``valid`` holds booleans. A range of
an image's own is its ``length``.
"""

import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

MODES = {"zeros": "constant", "symmetric": "symmetric"}


def by_axis(option, axes):
    return option if isinstance(option, tuple) else (option,) * axes


def weights_of(window, sizes, sigmas):
    """The weight of each pixel of a window."""
    offsets = np.meshgrid(*[np.arange(size) - size // 2 for size in sizes], indexing="ij")
    weights = np.ones(sizes)
    if window == "gaussian":
        exponents = [(o / s) ** 2 / 2 for o, s in zip(offsets, sigmas, strict=True)]
        weights = np.exp(-sum(exponents))
    return weights / weights.sum()


def maps(
    x,
    y,
    *,
    low=0.0,
    length=1.0,
    window="gaussian",
    window_size=11,
    sigma=1.5,
    k1=0.01,
    k2=0.03,
    sample_covariance=False,
    padding="valid",
    valid=None,
):
    """The SSIM map and the map of its contrast-structure factor.

    Windows have means over their valid pixels; both maps are 1 around the others.
    """
    sizes = by_axis(window_size, x.ndim)
    weights = weights_of(window, sizes, by_axis(sigma, x.ndim))
    valid = np.ones(x.shape, bool) if valid is None else valid
    x, y = np.where(valid, x - low, 0), np.where(valid, y - low, 0)
    counted = centres(valid, sizes, padding)
    if padding != "valid":
        radii = [(size // 2,) * 2 for size in sizes]
        x, y = (np.pad(image, radii, mode=MODES[padding]) for image in (x, y))
        # The zeros exist, whatever lies at the border.
        added = {"constant_values": True} if padding == "zeros" else {}
        valid = np.pad(valid, radii, mode=MODES[padding], **added)
    axes = tuple(range(-x.ndim, 0))
    x, y, valid = (sliding_window_view(image, weights.shape) for image in (x, y, valid))
    weights = weights * valid
    total = weights.sum(axes, keepdims=True)
    weights = weights / np.where(total > 0, total, 1)

    def expect(values):
        return (values * weights).sum(axes, keepdims=True)

    mu_x, mu_y = expect(x), expect(y)
    var_x, var_y = expect((x - mu_x) ** 2), expect((y - mu_y) ** 2)
    cov = expect((x - mu_x) * (y - mu_y))
    if sample_covariance:
        unbiased = math.prod(sizes) / (math.prod(sizes) - 1)
        var_x, var_y, cov = unbiased * var_x, unbiased * var_y, unbiased * cov
    c1, c2 = (k1 * length) ** 2, (k2 * length) ** 2
    luminance = (2 * mu_x * mu_y + c1) / (mu_x**2 + mu_y**2 + c1)
    contrast_structure = (2 * cov + c2) / (var_x + var_y + c2)
    both = luminance * contrast_structure, contrast_structure
    return tuple(np.where(counted, np.squeeze(values, axes), 1.0) for values in both)


def halve(image, valid=None):
    """Means of 2x2 pixels, the last row or column repeated where a side is odd.

    They are means over the valid pixels, zero where there is none.
    """
    valid = np.ones(image.shape, bool) if valid is None else valid
    total, count = np.where(valid, image, 0.0), valid.astype(float)
    return blocks(total) / np.maximum(blocks(count), 1)


def blocks(image):
    """The sums of 2x2 pixels."""
    image = np.pad(image, [(0, side % 2) for side in image.shape], mode="edge")
    for axis in range(image.ndim):
        pairs = [range(first, image.shape[axis], 2) for first in (0, 1)]
        image = sum(image.take(pair, axis) for pair in pairs)
    return image


def level_means(x, y, levels, mask=None, *, valid=None, **options):
    """The mean of contrast-structure at each level but the last, and of SSIM there.

    Windows around pixels that are not valid do not count.
    """
    means = []
    padding, sizes = (
        options.get("padding", "valid"),
        by_axis(options.get("window_size", 11), x.ndim),
    )
    for level in range(levels):
        similarity, contrast_structure = maps(x, y, valid=valid, **options)
        values = similarity if level == levels - 1 else contrast_structure
        weights = np.ones(x.shape) if mask is None else mask
        weights = weights if valid is None else np.where(valid, weights, 0.0)
        means.append(np.average(values, weights=centres(weights, sizes, padding)))
        x, y = halve(x, valid), halve(y, valid)
        mask = None if mask is None else halve(mask, valid)
        valid = None if valid is None else blocks(valid.astype(float)) > 0
    return means


def centres(image, sizes, padding):
    """The pixels on which a window is centred."""
    if padding != "valid":
        return image
    pairs = zip(image.shape, sizes, strict=True)
    return image[tuple(slice(size // 2, side - size // 2) for side, size in pairs)]


def floor(value, epsilon=0.01):
    return value if value >= epsilon else epsilon**2 / (2 * epsilon - value)


def ms_ssim(x, y, weights, normalize=floor, mask=None, **options):
    means = level_means(x, y, len(weights), mask, **options)
    return np.prod([normalize(mean) ** weight for mean, weight in zip(means, weights, strict=True)])
