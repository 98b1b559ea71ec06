"""Definitions transcribed from other languages, and networks that are alike on both sides. Calls
may use them besides the packages.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import numpy as np
import scipy.ndimage
import scipy.signal
import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from ..speed.features import random_vgg


def _statistics_map(x: np.ndarray, y: np.ndarray, mean: Callable[..., np.ndarray]) -> tuple:
    """Formulas (13) and its second factor, from a function for Gaussian-weighted means."""
    c1, c2 = 0.01**2, 0.03**2
    mu_x, mu_y = mean(x), mean(y)
    var_x, var_y = mean(x * x) - mu_x**2, mean(y * y) - mu_y**2
    contrast = (2 * (mean(x * y) - mu_x * mu_y) + c2) / (var_x + var_y + c2)
    return (2 * mu_x * mu_y + c1) / (mu_x**2 + mu_y**2 + c1) * contrast, contrast


def _fspecial() -> np.ndarray:
    """MATLAB's ``fspecial('gaussian', 11, 1.5)``."""
    v, u = np.mgrid[-5:6, -5:6]
    window = np.exp(-(u * u + v * v) / (2 * 1.5**2))
    return window / window.sum()


def _filter2(image: np.ndarray) -> np.ndarray:
    return scipy.signal.convolve2d(image, _fspecial(), mode="valid")


def ssim_index(x: np.ndarray, y: np.ndarray) -> float:
    """Wang's ``ssim_index.m``, for each channel."""
    return np.mean([_statistics_map(a, b, _filter2)[0] for a, b in zip(x, y, strict=True)])


def msssim(x: np.ndarray, y: np.ndarray) -> float:
    """Wang's ``msssim.m``, for each channel."""
    weights = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
    values = []
    for images in zip(x, y, strict=True):
        value = 1.0
        for level, weight in enumerate(weights):
            similarity, contrast = _statistics_map(*images, _filter2)
            mean = (similarity if level == len(weights) - 1 else contrast).mean()
            value *= mean**weight
            images = [
                scipy.ndimage.correlate(image, np.full((2, 2), 0.25), mode="reflect", origin=-1)
                for image in images
            ]
            images = [image[::2, ::2] for image in images]
        values.append(value)
    return np.mean(values)


def toolbox_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """MATLAB's ``ssim``: a window as large as the image, its edge pixels repeated outside."""
    window = _fspecial()

    def mean(image: np.ndarray) -> np.ndarray:
        return scipy.ndimage.correlate(image, window, mode="nearest")

    return np.mean([_statistics_map(a, b, mean)[0] for a, b in zip(x, y, strict=True)])


def skimage_gradient(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """scikit-image's gradient inside the border, scaled: there it is the gradient of its value."""
    _, gradient = structural_similarity(
        *(x[0], y[0]),
        data_range=1.0,
        gaussian_weights=True,
        use_sample_covariance=False,
        gradient=True,
    )
    height, width = gradient.shape
    return (gradient * height * width / ((height - 10) * (width - 10)))[None, 10:-10, 10:-10]


def inner_gradient(function: Callable[..., Tensor], x: Tensor, y: Tensor) -> Tensor:
    """The gradient with respect to ``y``, without its 10 outer pixels."""
    y = y.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(x, y), y)
    return gradient[..., 10:-10, 10:-10]


def zero_padded_ssim(x: Tensor, y: Tensor) -> Tensor:
    """The formula that fused-ssim's tests check it against, as 3D Gaussian splatting has it."""
    channels = x.shape[1]
    window = torch.from_numpy(_fspecial()).to(x).expand(channels, 1, 11, 11)

    def mean(image: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(image, window, padding=5, groups=channels)

    c1, c2 = 0.01**2, 0.03**2
    mu_x, mu_y = mean(x), mean(y)
    var_x, var_y = mean(x * x) - mu_x**2, mean(y * y) - mu_y**2
    covariance = mean(x * y) - mu_x * mu_y
    luminance = (2 * mu_x * mu_y + c1) / (mu_x**2 + mu_y**2 + c1)
    return (luminance * (2 * covariance + c2) / (var_x + var_y + c2)).mean()


def window(x: Tensor) -> Tensor:
    """pytorch-msssim's window, in the precision of the images."""
    taps = torch.arange(-5, 6).to(x).square().div(-2 * 1.5**2).exp()
    return (taps / taps.sum()).expand(x.shape[1], 1, 1, 11)


@functools.cache
def _alexnet() -> torch.nn.Sequential:
    from torchvision.models import alexnet

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return alexnet(weights=None).features.eval()


@functools.cache
def _lpips(net: str) -> torch.nn.Module:
    """The lpips package's loss, with the same random backbone as ours: nothing is downloaded."""
    import lpips

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torchvision, about how it is called
        loss = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    backbone = {"vgg": random_vgg, "alex": _alexnet}[net]()
    ours = (module for module in backbone if isinstance(module, torch.nn.Conv2d))
    for module in loss.net.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.load_state_dict(next(ours).state_dict())
    return loss


LAZY = {
    "vgg16": functools.cache(random_vgg),
    "alexnet": _alexnet,
    "lpips_vgg": functools.partial(_lpips, "vgg"),
    "lpips_alex": functools.partial(_lpips, "alex"),
}

HELPERS = (
    ssim_index,
    msssim,
    toolbox_ssim,
    skimage_gradient,
    inner_gradient,
    zero_padded_ssim,
    window,
)
