"""What `benchmarks.validate` compares: calls of other packages beside ours, on images that anyone
has. A call is text, which the pages show and which is evaluated, so that no page shows another.
"""

from __future__ import annotations

import functools
import importlib
import io
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.ndimage
import scipy.signal
import skimage.data
import torch
from PIL import Image
from skimage.metrics import structural_similarity
from torch import Tensor

import perceptual_losses.compat.fused_ssim
import perceptual_losses.compat.pytorch_msssim

from .contenders import _vgg


class Package(NamedTuple):
    """Something to compare with.

    Attributes:
        name: in headings.
        distribution: what pip calls it.
        modules: what its calls import.
        flat: the module whose names its calls have without the module's.
        of_tensors: whether it takes tensors; else NumPy's arrays of one image.
        optional: whether it may be missing, as the lock does not have it.
    """

    name: str
    distribution: str
    modules: tuple[str, ...] = ()
    flat: str = ""
    of_tensors: bool = True
    optional: bool = False


PACKAGES = {
    package.name: package
    for package in (
        Package("our own float64", "perceptual-losses"),
        Package("scikit-image", "scikit-image", flat="skimage.metrics", of_tensors=False),
        Package("MATLAB", "scipy", of_tensors=False),
        Package("pytorch-msssim", "pytorch-msssim", ("pytorch_msssim",)),
        Package("piq", "piq", ("piq",)),
        Package("piqa", "piqa", ("piqa",)),
        Package("kornia", "kornia", ("kornia.metrics", "kornia.losses")),
        Package("torchmetrics", "torchmetrics", flat="torchmetrics.functional.image"),
        Package("lpips", "lpips", ("lpips",)),
        Package("fused-ssim", "torch"),
        Package(
            "MONAI", "monai", ("monai.losses",), flat="monai.metrics.regression", optional=True
        ),
    )
}


ALSO = (Package("the networks", "torchvision"), Package("JPEG", "pillow"))
"""What the numbers depend on besides."""


class Comparison(NamedTuple):
    """Two calls that are to give the same, or whose difference is to be known.

    Attributes:
        package: of `PACKAGES`.
        theirs: an expression of ``x`` and ``y``.
        ours: the same with this package.
        images: of `IMAGES`.
        dtype: of the images; integers have values to 255, all others to 1.
        compares: ``"values"``, ``"both"`` for the gradient to ``x`` as well, or ``"gradients"``
            where the expressions are gradients.
        note: why they differ, if they do.
        migrating: whether the migration page shows it.
    """

    package: str
    theirs: str
    ours: str
    images: str = "crops"
    dtype: str = "float64"
    compares: str = "both"
    note: str = ""
    migrating: bool = True


class Published(NamedTuple):
    """A number that somebody has printed, with an input that can be made again.

    Attributes:
        source: who.
        images: what it is of.
        value: the number as it is printed.
        tolerance: with which the source itself compares, or half of its last digit.
        ours: an expression of ``x`` and ``y``.
        pair: makes them.
    """

    source: str
    images: str
    value: float
    tolerance: float
    ours: str
    pair: Callable[[], tuple[Tensor, Tensor]]


def _scikit_image(theirs: str, ours: str, note: str = "", **rest: Any) -> Comparison:
    return Comparison("scikit-image", theirs, ours, note=note, migrating=False, **rest)


_SKIMAGE = "structural_similarity(x, y, data_range={}, channel_axis=0{})"
_AS_WANG = ", gaussian_weights=True, use_sample_covariance=False"
_FULL = "structural_similarity_index_measure(x, y, data_range={}{})"
_INNER = "[1][..., 5:-5, 5:-5].mean()"
_TM_MS = "multiscale_structural_similarity_index_measure(x, y, data_range=1.0)"

FLOAT_WINDOW = "its window is built in float32"
ROUNDING = "rounding in float32"
REFLECTED = "its mean includes windows over a reflected border"
TIES = "rounding decides which of equal neighbours, in flat areas, gets a max pooling's gradient"

COMPARISONS = (
    Comparison(
        "our own float64",
        "ssim(x.double(), y.double())",
        "ssim(x, y)",
        dtype="float32",
        migrating=False,
    ),
    Comparison(
        "our own float64",
        "ssim(x.double(), y.double())",
        "ssim(x, y)",
        images="volumes",
        dtype="float32",
        migrating=False,
    ),
    Comparison(
        "our own float64",
        "ms_ssim(x.double(), y.double())",
        "ms_ssim(x, y)",
        dtype="float32",
        migrating=False,
    ),
    _scikit_image(
        _SKIMAGE.format("1.0", _AS_WANG),
        "ssim(x, y)",
        images="photos",
        compares="values",
    ),
    _scikit_image(
        _SKIMAGE.format("255", _AS_WANG),
        "ssim(x, y, data_range=255)",
        "we compute in float32",
        images="photos",
        compares="values",
        dtype="uint8",
    ),
    _scikit_image(
        _SKIMAGE.format("1.0", _AS_WANG),
        "ssim(x, y)",
        ROUNDING,
        images="photos",
        compares="values",
        dtype="float32",
    ),
    _scikit_image(
        _SKIMAGE.format("1.0", _AS_WANG + ", full=True") + "[1]",
        'ssim_map(x, y, padding="symmetric")',
        images="photos",
        compares="values",
    ),
    _scikit_image(
        "skimage_gradient(x, y)",
        "inner_gradient(ssim, x, y)",
        "its `gradient=True`, to `y`, is exact 10 pixels inside the border, and counts pixels for "
        "windows: scaled by their numbers",
        images="gray photos",
        compares="gradients",
    ),
    _scikit_image(
        _SKIMAGE.format("1.0", ""),
        "ssim(x, y)",
        "its defaults are another metric: a uniform 7x7 window and the sample covariance",
        images="photos",
        compares="values",
    ),
    Comparison(
        "MATLAB",
        "ssim_index(x, y)",
        "ssim(x, y)",
        images="crops",
        compares="values",
        migrating=False,
    ),
    Comparison(
        "MATLAB",
        "msssim(x, y)",
        "ms_ssim(x, y)",
        images="crops",
        compares="values",
        migrating=False,
    ),
    Comparison(
        "MATLAB",
        "msssim(x, y)",
        "ms_ssim(x, y)",
        images="odd crops",
        compares="values",
        migrating=False,
    ),
    Comparison(
        "MATLAB",
        "toolbox_ssim(x, y)",
        'ssim(x, y, padding="symmetric")',
        note="the Image Processing Toolbox's `ssim` repeats the edge pixel alone",
        images="crops",
        compares="values",
        migrating=False,
    ),
    Comparison(
        "pytorch-msssim",
        "pytorch_msssim.ssim(x, y, data_range=1)",
        "ssim(x, y)",
        note=FLOAT_WINDOW,
    ),
    Comparison(
        "pytorch-msssim",
        "pytorch_msssim.ssim(x, y, data_range=1)",
        "ssim(x, y)",
        dtype="float32",
        note=ROUNDING,
    ),
    Comparison(
        "pytorch-msssim",
        "pytorch_msssim.ssim(x, y, data_range=1, win=window(x))",
        "ssim(x, y)",
        note="with its window in float64",
        migrating=False,
    ),
    Comparison(
        "pytorch-msssim",
        "pytorch_msssim.ssim(x, y, data_range=1, size_average=False)",
        'ssim(x, y, reduction="none")',
        images="batches",
        note=FLOAT_WINDOW,
    ),
    Comparison(
        "pytorch-msssim",
        "pytorch_msssim.ssim(x, y, data_range=1, nonnegative_ssim=True)",
        "compat.pytorch_msssim.ssim(x, y, data_range=1, nonnegative_ssim=True)",
        images="negatives",
        note="all 0, as both replace negative values",
    ),
    Comparison(
        "pytorch-msssim",
        "pytorch_msssim.SSIM(data_range=1, channel=1, spatial_dims=3)(x, y)",
        "ssim(x, y)",
        images="volumes",
        note=FLOAT_WINDOW,
    ),
    Comparison(
        "pytorch-msssim",
        "pytorch_msssim.ms_ssim(x, y, data_range=1)",
        'ms_ssim(x, y, normalize="relu")',
        note=FLOAT_WINDOW,
    ),
    Comparison(
        "pytorch-msssim",
        "pytorch_msssim.ms_ssim(x, y, data_range=1)",
        'ms_ssim(x, y, normalize="relu")',
        images="odd crops",
        note="pads odd sides with zeros at both ends: darker borders, and other pixels averaged",
    ),
    Comparison(
        "pytorch-msssim",
        "pytorch_msssim.ms_ssim(x, y, data_range=1)",
        "ms_ssim(x, y)",
        images="negatives",
        note="its value and gradient are 0 there; ours are alive",
    ),
    Comparison(
        "pytorch-msssim",
        "pytorch_msssim.ssim(x, y)",
        "ssim(x, y)",
        note="its default range is 255: nearly 1 for all images in [0, 1]",
    ),
    Comparison("piq", "piq.ssim(x, y, downsample=False)", "ssim(x, y)"),
    Comparison(
        "piq",
        "piq.SSIMLoss(downsample=False)(x, y)",
        "SSIMLoss()(x, y)",
        dtype="float32",
        note=ROUNDING,
    ),
    Comparison(
        "piq",
        "piq.ssim(x, y)",
        "ssim(x, y)",
        images="gray photos",
        dtype="float32",
        note="its default averages sides from 384 pixels down to some 256 first",
    ),
    Comparison("piq", "piq.multi_scale_ssim(x, y)", 'ms_ssim(x, y, normalize="relu")'),
    Comparison(
        "piq",
        "piq.multi_scale_ssim(x, y, scale_weights=torch.tensor([0.2, 0.6]))",
        'ms_ssim(x, y, weights=[0.25, 0.75], normalize="relu")',
        images="gray crops",
        note="weights passed are divided by their sum",
    ),
    Comparison(
        "piq",
        "piq.multi_scale_ssim(x, y)",
        'ms_ssim(x, y, normalize="relu")',
        images="odd crops",
        dtype="float32",
        note="repeats the first row and column where a side is odd: other pixels averaged",
    ),
    Comparison(
        "piq",
        'piq.ContentLoss(vgg16, layers=("15",), weights=[1 / 256])(x, y)',
        'VGGLoss({"relu3_3": 1.0}, distance="l2", weights=vgg16)(x, y)',
        images="noisy small crops",
        dtype="float32",
        note=ROUNDING,
    ),
    Comparison(
        "piq",
        'piq.ContentLoss(vgg16, layers=("15",), weights=[1 / 256])(x, y)',
        'VGGLoss({"relu3_3": 1.0}, distance="l2", weights=vgg16)(x, y)',
        images="small crops",
        dtype="float32",
        note=TIES,
    ),
    Comparison(
        "piq",
        'piq.StyleLoss(vgg16, layers=("8",), weights=[1 / 32**4])(x, y)',
        'StyleLoss({"relu2_2": 1.0}, weights=vgg16)(x, y)',
        images="noisy small crops",
        dtype="float32",
        note="its weight stands for the division of the Gram matrix by 32x32 places; rounding",
    ),
    Comparison(
        "piqa",
        "piqa.SSIM(n_channels=x.shape[1]).double()(x, y)",
        "ssim(x, y)",
        note=FLOAT_WINDOW,
        migrating=False,
    ),
    Comparison(
        "piqa",
        "piqa.MS_SSIM(n_channels=x.shape[1]).double()(x, y)",
        'ms_ssim(x, y, normalize="relu")',
        note=FLOAT_WINDOW,
        migrating=False,
    ),
    Comparison(
        "piqa",
        "piqa.MS_SSIM(n_channels=x.shape[1]).double()(x, y)",
        'ms_ssim(x, y, normalize="relu")',
        images="odd crops",
        note=FLOAT_WINDOW,
        migrating=False,
    ),
    Comparison(
        "kornia",
        'kornia.losses.SSIMLoss(11, padding="valid")(x, y)',
        "SSIMLoss()(x, y) / 2",
        note="adds `eps=1e-12` to the denominator",
    ),
    Comparison(
        "kornia",
        'kornia.losses.SSIMLoss(11, eps=0.0, padding="valid")(x, y)',
        "SSIMLoss()(x, y) / 2",
    ),
    Comparison(
        "kornia",
        'kornia.metrics.ssim(x, y, 11, eps=0.0, padding="valid")',
        "ssim_map(x, y)",
        compares="values",
    ),
    Comparison(
        "kornia",
        'kornia.metrics.ssim(x, y, 5, eps=0.0, padding="valid").mean()',
        "ssim(x, y, window_size=5)",
    ),
    Comparison(
        "kornia",
        'kornia.losses.SSIM3DLoss(11, eps=0.0, padding="valid")(x, y)',
        "SSIMLoss()(x, y) / 2",
        images="volumes",
    ),
    Comparison(
        "kornia",
        "kornia.losses.SSIMLoss(11)(x, y)",
        'SSIMLoss(padding="symmetric")(x, y) / 2',
        note="its default mirrors the image without its edge pixel",
    ),
    Comparison(
        "torchmetrics",
        _FULL.format("1.0", ", return_full_image=True") + _INNER,
        "ssim(x, y)",
        note="clamps variances at 0: rounding",
    ),
    Comparison(
        "torchmetrics",
        _FULL.format("1.0", ""),
        "ssim(x, y)",
        dtype="float32",
        note=REFLECTED,
    ),
    Comparison(
        "torchmetrics",
        _FULL.format("1.0", ""),
        'ssim(x, y, padding="symmetric")',
        dtype="float32",
        note=f"{REFLECTED}, mirrored without the edge pixel",
    ),
    Comparison(
        "torchmetrics",
        _FULL.format("None", ""),
        "ssim(x, y)",
        dtype="float32",
        note="its default takes the range off each batch, and the border as above",
    ),
    Comparison(
        "torchmetrics",
        _FULL.format("(-1.0, 1.0)", ", return_full_image=True") + _INNER,
        "ssim(x, y, data_range=2.0)",
        images="tanh crops",
        dtype="float32",
        note="clamps variances at 0: rounding; a pair gives the length and does not shift",
    ),
    Comparison(
        "torchmetrics",
        _FULL.format("(-1.0, 1.0)", ", return_full_image=True") + _INNER,
        "ssim(x, y, data_range=(-1.0, 1.0))",
        images="tanh crops",
        dtype="float32",
        note="we shift -1 to 0, as the same images in [0, 1] would be",
    ),
    Comparison(
        "torchmetrics",
        _TM_MS,
        'ms_ssim(x, y, normalize="relu")',
        images="gray crops",
        dtype="float32",
        note="the reflected border is in the last level's mean",
    ),
    Comparison(
        "torchmetrics",
        _TM_MS,
        'ms_ssim(x, y, normalize="relu")',
        dtype="float32",
        note="the same, and the mean over channels comes before the powers",
    ),
    Comparison(
        "torchmetrics",
        _TM_MS,
        'ms_ssim(x, y, normalize="relu")',
        images="odd crops",
        dtype="float32",
        note="the same, and odd rows and columns are dropped",
    ),
    Comparison(
        "lpips",
        "lpips_vgg(x, y, normalize=True).mean()",
        'LPIPSLoss("vgg16", weights=vgg16)(x, y)',
        images="noisy small crops",
        dtype="float32",
        note=ROUNDING,
    ),
    Comparison(
        "lpips",
        "lpips_vgg(x, y, normalize=True).mean()",
        'LPIPSLoss("vgg16", weights=vgg16)(x, y)',
        images="small crops",
        dtype="float32",
        note=TIES,
    ),
    Comparison(
        "lpips",
        "lpips_vgg(x, y).flatten()",
        'LPIPSLoss("vgg16", weights=vgg16, data_range=(-1, 1), reduction="none")(x, y)',
        images="tanh batches",
        dtype="float32",
        note=TIES,
    ),
    Comparison(
        "lpips",
        "lpips_alex(x, y, normalize=True).mean()",
        'LPIPSLoss("alexnet", weights=alexnet)(x, y)',
        images="small crops",
        dtype="float32",
        note=ROUNDING,
    ),
    Comparison(
        "lpips",
        "lpips_alex(x, y).mean()",
        'LPIPSLoss("alexnet", weights=alexnet)(x, y)',
        images="small crops",
        dtype="float32",
        note="`normalize` forgotten: it takes [0, 1] for a part of [-1, 1]",
    ),
    Comparison(
        "fused-ssim",
        "zero_padded_ssim(x, y)",
        'ssim(x, y, padding="zeros")',
    ),
    Comparison(
        "fused-ssim",
        "zero_padded_ssim(x, y)",
        "compat.fused_ssim.fused_ssim(x, y)",
        dtype="float32",
        note=ROUNDING,
    ),
    Comparison(
        "fused-ssim",
        "0.8 * (x - y).abs().mean() + 0.2 * (1 - zero_padded_ssim(x, y))",
        'L1SSIMLoss(weight=0.2, padding="zeros")(x, y)',
    ),
    Comparison(
        "fused-ssim",
        "zero_padded_ssim(x, y)",
        "ssim(x, y)",
        note='without `padding="zeros"`: the border counts',
    ),
    Comparison(
        "MONAI",
        "monai.losses.SSIMLoss(spatial_dims=2)(x, y)",
        "SSIMLoss()(x, y)",
        note="rounding: it computes in float32, whatever the images are",
    ),
    Comparison(
        "MONAI",
        "monai.losses.SSIMLoss(spatial_dims=3)(x, y)",
        "SSIMLoss()(x, y)",
        images="volumes",
        note="rounding: it computes in float32",
    ),
    Comparison(
        "MONAI",
        "compute_ms_ssim(x, y, spatial_dims=2).mean()",
        'ms_ssim(x, y, normalize="relu")',
        images="gray crops",
        note="rounding: it computes in float32",
    ),
    Comparison(
        "MONAI",
        "compute_ms_ssim(x, y, spatial_dims=2).mean()",
        'ms_ssim(x, y, normalize="relu")',
        note="its mean over channels comes before the powers",
    ),
    Comparison(
        "MONAI",
        "compute_ms_ssim(x, y, spatial_dims=2).mean()",
        'ms_ssim(x, y, normalize="relu")',
        images="odd crops",
        note="the same, and odd rows and columns are dropped",
    ),
)


PHOTOS = ("camera", "astronaut", "chelsea", "coffee")

Pairs = dict[str, tuple[Tensor, Tensor]]


def _noise(photo: np.ndarray) -> np.ndarray:
    return photo + 20 * np.random.RandomState(5).randn(*photo.shape)


def _blur(photo: np.ndarray) -> np.ndarray:
    return scipy.ndimage.gaussian_filter(photo.astype(float), (1.5, 1.5, 0)[: photo.ndim])


def _jpeg(photo: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(photo).save(file, format="JPEG", quality=20)
    return np.asarray(Image.open(file))


def _contrast(photo: np.ndarray) -> np.ndarray:
    return 40 + 0.6 * photo


DISTORTIONS = {"noise": _noise, "blur": _blur, "JPEG": _jpeg, "contrast": _contrast}


@functools.cache
def _photos() -> Pairs:
    """scikit-image's photos, each beside what a distortion makes of it, both with 8 bits."""
    pairs = {}
    for name in PHOTOS:
        photo = getattr(skimage.data, name)()
        for distortion, distort in DISTORTIONS.items():
            other = np.clip(np.round(distort(photo)), 0, 255).astype(np.uint8)
            pairs[f"{name}, {distortion}"] = (_image(other), _image(photo))
    return pairs


def _image(pixels: np.ndarray) -> Tensor:
    planes = np.atleast_3d(pixels).transpose(2, 0, 1)
    return torch.from_numpy(planes[None] / 255)


def _map(pairs: Pairs, function: Callable[[Tensor], Tensor], only: str = "") -> Pairs:
    return {
        name: (function(x), function(y)) for name, (x, y) in pairs.items() if name.startswith(only)
    }


def _cut(height: int, width: int) -> Callable[[Tensor], Tensor]:
    """The middle."""

    def cut(image: Tensor) -> Tensor:
        top, left = (image.shape[-2] - height) // 2, (image.shape[-1] - width) // 2
        return image[..., top : top + height, left : left + width]

    return cut


def _coloured(side: int) -> Pairs:
    crops = _map(_photos(), _cut(side, side))
    return {name: pair for name, pair in crops.items() if pair[0].shape[1] == 3}


def _batches() -> Pairs:
    """All distortions of a photo."""
    pairs = list(_coloured(64).values())
    return {
        photo: tuple(torch.cat(images) for images in zip(*pairs[first : first + 4], strict=True))
        for photo, first in zip(PHOTOS[1:], range(0, len(pairs), 4), strict=True)
    }


def _volumes() -> Pairs:
    """Slices of a plane that moves over a photo."""

    def stack(image: Tensor) -> Tensor:
        slices = [image[..., 2 * i : 2 * i + 32, 3 * i : 3 * i + 36] for i in range(16)]
        return torch.stack(slices, 2)

    return _map(_photos(), stack, "camera")


IMAGES: dict[str, Callable[[], Pairs]] = {
    "photos": _photos,
    "gray photos": lambda: _map(_photos(), lambda image: image, "camera"),
    "crops": lambda: _map(_photos(), _cut(192, 192)),
    "gray crops": lambda: _map(_photos(), _cut(192, 192), "camera"),
    "odd crops": lambda: _map(_photos(), _cut(179, 213)),
    "tanh crops": lambda: _map(_photos(), lambda image: 2 * _cut(192, 192)(image) - 1),
    "negatives": lambda: {
        f"1 - {name.split(',')[0]}": (1 - y, y)
        for name, (_, y) in _map(_photos(), _cut(192, 192)).items()
        if "noise" in name
    },
    "small crops": lambda: _coloured(64),
    "noisy small crops": lambda: {
        name: pair for name, pair in _coloured(64).items() if "noise" in name
    },
    "batches": _batches,
    "tanh batches": lambda: _map(_batches(), lambda image: 2 * image - 1),
    "volumes": _volumes,
}
"""Pairs of images by name, float64: a distorted one and the original."""


def _camera() -> tuple[Tensor, Tensor]:
    camera = skimage.data.camera()
    noisy = np.clip(camera + 20 * np.random.RandomState(5).randn(512, 512), 0, 255)
    return _image(camera), _image(noisy.astype(np.uint8))


def _normal(*shape: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    x, y = torch.randn(shape).abs(), torch.randn(shape).abs()
    return x / x.max(), y / y.max()


def ramp() -> tuple[Tensor, Tensor]:
    """Of TensorFlow's ``testNegative``."""
    steps = torch.arange(0, 256, 16, dtype=torch.uint8).expand(1, 1, 16, 16)
    return steps, steps.flip(-1)


PUBLISHED = (
    Published(
        "IPOL's imdiff, as scikit-image's test suite has it",
        "camera, noise of RandomState(5)",
        *(0.357959091663361, 1.5e-3, "ssim(x, y).item()", _camera),
    ),
    Published(
        *("MONAI's tests, first image", "normal noise, 16x16", 0.9121, 1e-4 * 0.9121),
        *('SSIMLoss(reduction="none")(x, y)[0].item()', lambda: _normal(2, 3, 16, 16)),
    ),
    Published(
        *("MONAI's tests, second image", "normal noise, 16x16", 0.9971, 1e-4 * 0.9971),
        *('SSIMLoss(reduction="none")(x, y)[1].item()', lambda: _normal(2, 3, 16, 16)),
    ),
    Published(
        *("MONAI's tests", "normal noise, 16x16", 0.045415, 1e-6, "ssim(x, y).item()"),
        lambda: _normal(2, 3, 16, 16),
    ),
    Published(
        *("MONAI's tests", "normal noise, 16x16x16", 0.017644, 1e-6, "ssim(x, y).item()"),
        lambda: _normal(2, 3, 16, 16, 16),
    ),
    Published(
        *("MONAI's tests", "normal noise, 64x64", 0.023176, 5e-5),
        *(
            'ms_ssim(x, y, weights=[0.5, 0.5], normalize="relu").item()',
            lambda: _normal(1, 1, 64, 64),
        ),
    ),
    Published(
        *("MONAI's tests", "normal noise, 64x64x64", 0.061796, 5e-5),
        *(
            'ms_ssim(x, y, weights=[0.5, 0.5], normalize="relu").item()',
            lambda: _normal(1, 1, 64, 64, 64),
        ),
    ),
)


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
    """What scikit-image gives, where it is the gradient of its value."""
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
    """To ``y``, without its 10 outer pixels."""
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
    """Its calibrated weights on the backbone that ours gets, which is random: nothing is
    downloaded.
    """
    import lpips

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torchvision, about how it is called
        loss = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    backbone = {"vgg": _vgg, "alex": _alexnet}[net]()
    ours = (module for module in backbone if isinstance(module, torch.nn.Conv2d))
    for module in loss.net.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.load_state_dict(next(ours).state_dict())
    return loss


LAZY = {
    "vgg16": functools.cache(_vgg),
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


def names(expression: str, package: Package | None = None) -> dict[str, Any]:
    """What an expression may use; raises ImportError where the package is missing."""
    found: dict[str, Any] = {
        name: getattr(perceptual_losses, name) for name in perceptual_losses.__all__
    }
    found |= {"torch": torch, "compat": perceptual_losses.compat}
    found |= {helper.__name__: helper for helper in HELPERS}
    for module in package.modules if package else ():
        importlib.import_module(module)
        root = module.partition(".")[0]
        found[root] = importlib.import_module(root)
    if package and package.flat:
        found |= vars(importlib.import_module(package.flat))
    return found | {name: make() for name, make in LAZY.items() if name in expression}
