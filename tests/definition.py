"""The papers' definitions in NumPy, window by window: slow, and independent of the package.

Arrays hold one plane, ``(H, W)`` or ``(D, H, W)``, in float64.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


def maps(
    x, y, *, low=0.0, length=1.0, window_size=11, sigma=1.5, k1=0.01, k2=0.03, padding="valid"
):
    """The SSIM map and the map of its contrast-structure factor."""
    x, y = x - low, y - low
    radius = window_size // 2
    if padding != "valid":
        mode = {"zeros": "constant", "symmetric": "symmetric"}[padding]
        x, y = np.pad(x, radius, mode=mode), np.pad(y, radius, mode=mode)
    offsets = np.meshgrid(*[np.arange(-radius, radius + 1)] * x.ndim, indexing="ij")
    window = np.exp(-sum(offset**2 for offset in offsets) / (2 * sigma**2))
    window /= window.sum()
    axes = tuple(range(-x.ndim, 0))

    def expect(values):
        return (values * window).sum(axes, keepdims=True)

    x, y = (sliding_window_view(image, window.shape) for image in (x, y))
    mu_x, mu_y = expect(x), expect(y)
    var_x, var_y = expect((x - mu_x) ** 2), expect((y - mu_y) ** 2)
    cov = expect((x - mu_x) * (y - mu_y))
    c1, c2 = (k1 * length) ** 2, (k2 * length) ** 2
    luminance = (2 * mu_x * mu_y + c1) / (mu_x**2 + mu_y**2 + c1)
    contrast_structure = (2 * cov + c2) / (var_x + var_y + c2)
    return np.squeeze(luminance * contrast_structure, axes), np.squeeze(contrast_structure, axes)


def halve(image):
    """Means of 2x2 pixels, the last row or column repeated where a side is odd."""
    image = np.pad(image, [(0, side % 2) for side in image.shape], mode="edge")
    for axis in range(image.ndim):
        image = (
            image.take(range(0, image.shape[axis], 2), axis)
            + image.take(range(1, image.shape[axis], 2), axis)
        ) / 2
    return image


def level_means(x, y, levels, mask=None, **options):
    """The mean of contrast-structure at each level but the last, and of SSIM there."""
    means = []
    for level in range(levels):
        similarity, contrast_structure = maps(x, y, **options)
        values = similarity if level == levels - 1 else contrast_structure
        means.append(np.average(values, weights=None if mask is None else centres(mask, options)))
        x, y = halve(x), halve(y)
        mask = None if mask is None else halve(mask)
    return means


def centres(mask, options):
    """The mask at the pixels on which a window is centred."""
    if options.get("padding", "valid") != "valid":
        return mask
    radius = options.get("window_size", 11) // 2
    return mask[tuple(slice(radius, side - radius) for side in mask.shape)]


def floor(value, epsilon=0.01):
    return value if value >= epsilon else epsilon**2 / (2 * epsilon - value)


def ms_ssim(x, y, weights, normalize=floor, mask=None, **options):
    means = level_means(x, y, len(weights), mask, **options)
    return np.prod([normalize(mean) ** weight for mean, weight in zip(means, weights, strict=True)])
