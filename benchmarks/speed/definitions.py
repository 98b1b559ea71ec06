"""Contenders for the cases of `DEFINITIONS`: other definitions, and options of our own call.

Fast-SSIM, fastMRI and MONAI are not in the lock. They are measured where they are installed:
``pip install --no-deps fast-ssim fastmri h5py monai``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .cases import DEFINITIONS, Case, ranges, valid_pixels
from .contender import Call, Contender, function_call, text

Image = Any
"""An image ``(C, H, W)`` or a plane ``(H, W)`` in NumPy."""


def own(backend: str, case: Case, device: str) -> Call:
    """Our call with the case's options. Images of bytes stay bytes."""
    import perceptual_losses

    options = {**DEFINITIONS[case.metric], "backend": backend}
    if case.metric == "SSIM-map":
        call = function_call(perceptual_losses.ssim_map, **options)
        return call._replace(
            similarity=lambda x, y: call.similarity(x, y).mean(),
            settings=f"{call.settings}.mean()",
        )
    tensors = {}
    if case.metric == "SSIM-ranges":
        tensors["data_range"] = ranges(case, device)
    if case.metric == "SSIM-valid":
        tensors["valid"] = valid_pixels(case, device)
    settings = text(perceptual_losses.ssim, options)
    settings = settings[:-1] + "".join(f", {name}={name}" for name in tensors) + ")"
    dtype = torch.uint8 if case.metric == "SSIM-uint8" else torch.float32
    similarity = functools.partial(perceptual_losses.ssim, **options, **tensors)
    return Call(similarity, settings, dtype=dtype)


def _of_floats(case: Case, device: str) -> Call:
    return own("auto", case, device)._replace(dtype=torch.float32)


def _with_sample_covariance(case: Case, device: str) -> Call:
    import perceptual_losses

    deviation = "121/120 times the covariances"
    return function_call(perceptual_losses.ssim, sample_covariance=True)._replace(
        deviation=deviation
    )


def _with_ranges(case: Case, device: str) -> Call:
    import perceptual_losses

    call = function_call(perceptual_losses.ssim, data_range=ranges(case, device))
    return call._replace(settings="perceptual_losses.ssim(data_range=ranges)")


def _with_valid_pixels(case: Case, device: str) -> Call:
    import perceptual_losses

    exists = torch.ones(case.shape[0], 1, *case.shape[2:], dtype=torch.bool, device=device)
    call = function_call(perceptual_losses.ssim, valid=exists)
    return call._replace(settings="perceptual_losses.ssim(valid=valid)")


def _torchmetrics(case: Case, device: str) -> Call:
    from torchmetrics.functional import image

    options: dict[str, Any] = {"data_range": 1.0, "return_full_image": True}
    border = 5
    if case.metric == "SSIM-uniform":
        options |= {"gaussian_kernel": False, "kernel_size": 7}
        border = 3
    call = function_call(image.structural_similarity_index_measure, **options)
    inside = (..., slice(border, -border), slice(border, -border))
    return Call(
        lambda x, y: call.similarity(x, y)[1][inside].mean(),
        f"{call.settings}[1][..., {border}:-{border}, {border}:-{border}].mean()",
    )


def _kornia(case: Case, device: str) -> Call:
    from kornia import metrics

    call = function_call(metrics.ssim, window_size=11, padding="valid")
    return Call(lambda x, y: call.similarity(x, y).mean(), f"{call.settings}.mean()")


def _monai(case: Case, device: str) -> Call:
    from monai.losses import SSIMLoss

    options = {"spatial_dims": 2, "kernel_type": "uniform", "win_size": 7}
    loss = SSIMLoss(**options)
    return Call(lambda x, y: 1 - loss(x, y), text(SSIMLoss, options), loss=loss)


def _fastmri(case: Case, device: str) -> Call:
    """The call of its users. It takes one channel, so each is passed as an image."""
    from fastmri.losses import SSIMLoss

    loss = SSIMLoss().to(device)
    of_planes = ranges(case, device).repeat_interleave(case.shape[1])

    def of_channels(x: Tensor, y: Tensor) -> Tensor:
        x, y = (image.flatten(0, 1).unsqueeze(1) for image in (x, y))
        value: Tensor = loss(x, y, data_range=of_planes)
        return value

    settings = "fastmri.losses.SSIMLoss()(..., data_range=ranges)"
    return Call(lambda x, y: 1 - of_channels(x, y), settings, loss=of_channels)


def _scikit_image(case: Case, device: str) -> Call:
    from skimage.metrics import structural_similarity

    options = {"data_range": 255 if case.metric == "SSIM-uint8" else 1.0, "channel_axis": 0}
    function = functools.partial(structural_similarity, **options)
    return _on_arrays(case, function, text(structural_similarity, options), channels=True)


def _fast_ssim(case: Case, device: str) -> Call:
    import fast_ssim

    options = {"data_range": 255 if case.metric == "SSIM-uint8" else 1.0}
    function = functools.partial(fast_ssim.ssim, **options)
    return _on_arrays(case, function, text(fast_ssim.ssim, options), channels=False)


def _on_arrays(
    case: Case, function: Callable[[Image, Image], float], settings: str, *, channels: bool
) -> Call:
    """A call of a function on NumPy arrays: whole images if it takes channels, else planes."""
    if case.backward:
        raise NotImplementedError("has no gradient")

    def mean(x: Tensor, y: Tensor) -> Tensor:
        if not channels:
            x, y = x.flatten(0, 1), y.flatten(0, 1)
        values = [function(*pair) for pair in zip(x.numpy(), y.numpy(), strict=True)]
        return torch.tensor(np.mean(values))

    dtype = torch.uint8 if case.metric == "SSIM-uint8" else torch.float32
    return Call(mean, settings, dtype=dtype)


CPU = ("cpu",)
BOTH = ("cpu", "cuda")

CONTENDERS = (
    Contender(
        *("perceptual-losses, float32 images", "perceptual-losses", _of_floats),
        *(BOTH, ("SSIM-uint8",)),
    ),
    *(
        Contender(f"perceptual-losses, {name}", "perceptual-losses", build, BOTH, ("SSIM-options",))
        for name, build in (
            ("sample covariance", _with_sample_covariance),
            ("ranges", _with_ranges),
            ("valid pixels", _with_valid_pixels),
        )
    ),
    Contender(
        "torchmetrics, map", "torchmetrics", _torchmetrics, BOTH, ("SSIM-uniform", "SSIM-map")
    ),
    Contender("kornia, map", "kornia", _kornia, BOTH, ("SSIM-map",)),
    Contender("MONAI", "monai", _monai, BOTH, ("SSIM-uniform",)),
    Contender("fastMRI", "fastmri", _fastmri, BOTH, ("SSIM-sample", "SSIM-ranges")),
    Contender("scikit-image", "scikit-image", _scikit_image, CPU, ("SSIM-sample", "SSIM-uint8")),
    Contender("Fast-SSIM", "fast-ssim", _fast_ssim, CPU, ("SSIM-sample", "SSIM-uint8")),
)
