"""The packages, called as their users call them, with the settings that compute the same thing:
Gaussian window of 11 pixels and sigma 1.5, only inside the image; range 1; population variance.

A package is imported when it is built, so that one that is missing or broken costs its own rows
only. What a package does not have is an exception with the reason.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import definitions, features
from .cases import DEFINITIONS, Case
from .contender import STRUCTURAL, Call, Contender, function_call, text


def _module(module: Callable[..., Any], device: str, **options: Any) -> Call:
    return Call(module(**options).to(device), text(module, options))


def _trained(
    case: Case, call: Call, module: Callable[..., Any], device: str, **options: Any
) -> Call:
    """A call of the package's own loss, in a case with a gradient."""
    if not case.backward:
        return call
    own = _module(module, device, **options)
    return call._replace(settings=own.settings, loss=own.similarity)


def _weights(name: str, case: Case, convert: Callable[..., Any] = tuple) -> dict[str, Any]:
    """The level weights under the package's name for them, unless they are its default."""
    return {} if case.weights is None else {name: convert(case.weights)}


def _mixed(build: Callable[[Case, str], Call]) -> Callable[[Case, str], Call]:
    """For packages without the mix, which their users write out."""

    @functools.wraps(build)
    def with_l1(case: Case, device: str) -> Call:
        if case.metric != "L1-SSIM":
            return build(case, device)
        call = build(case._replace(metric="SSIM"), device)

        def mix(x: Tensor, y: Tensor) -> Tensor:
            structural = call.loss(x, y) if call.loss else 1 - call.similarity(x, y)
            return 0.8 * torch.nn.functional.l1_loss(x, y) + 0.2 * structural

        structural = call.settings if call.loss else f"(1 - {call.settings})"
        settings = f"0.8 * l1_loss + 0.2 * {structural}"
        return call._replace(similarity=mix, loss=None, settings=settings)

    return with_l1


def _own(backend: str, case: Case, device: str) -> Call:
    import perceptual_losses

    if case.metric in DEFINITIONS:
        return definitions.own(backend, case, device)
    if case.metric in features.FEATURES:
        return features.own(case, device)
    if case.metric == "L1-SSIM":
        return _module(perceptual_losses.L1SSIMLoss, device, backend=backend)
    if case.metric == "SSIM":
        call = function_call(perceptual_losses.ssim, backend=backend)
        return _trained(case, call, perceptual_losses.SSIMLoss, device, backend=backend)
    options = {**_weights("weights", case), "backend": backend}
    call = function_call(perceptual_losses.ms_ssim, **options)
    return _trained(case, call, perceptual_losses.MSSSIMLoss, device, **options)


def _of_bfloat16(case: Case, device: str) -> Call:
    call = _own("auto", case, device)
    return call._replace(deviation="images in bfloat16", dtype=torch.bfloat16)


def _compiled(case: Case, device: str) -> Call:
    call = _own("reference", case, device)
    settings = f"torch.compile({call.settings})"
    if call.loss is not None:
        return call._replace(settings=settings, loss=torch.compile(call.loss))
    return call._replace(settings=settings, similarity=torch.compile(call.similarity))


@_mixed
def _pytorch_msssim(case: Case, device: str) -> Call:
    import pytorch_msssim

    channels = {"data_range": 1, "channel": case.shape[1], "spatial_dims": len(case.shape) - 2}
    if case.metric == "SSIM":
        return _module(pytorch_msssim.SSIM, device, **channels)
    call = _module(pytorch_msssim.MS_SSIM, device, **channels, **_weights("weights", case))
    return call._replace(deviation="pads odd sides with zeros" if case.odd_levels else "")


@_mixed
def _piq(case: Case, device: str) -> Call:
    import piq

    if len(case.shape) == 5:
        raise NotImplementedError("takes five dimensions for complex images")
    if case.metric == "SSIM":
        call = function_call(piq.ssim, downsample=False)
        return _trained(case, call, piq.SSIMLoss, device, downsample=False)
    tensor = functools.partial(torch.tensor, device=device)
    weights = _weights("scale_weights", case, tensor)
    call = function_call(piq.multi_scale_ssim, **weights)
    call = _trained(case, call, piq.MultiScaleSSIMLoss, device, **weights)
    return call._replace(deviation="repeats the first row and column" if case.odd_levels else "")


@_mixed
def _piqa(case: Case, device: str) -> Call:
    import piqa

    if case.metric == "SSIM":
        return _module(piqa.SSIM, device, n_channels=case.shape[1])
    weights = _weights("weights", case, torch.tensor)
    return _module(piqa.MS_SSIM, device, n_channels=case.shape[1], **weights)


@_mixed
def _kornia(case: Case, device: str) -> Call:
    from kornia import metrics

    if case.metric == "MS-SSIM":
        raise NotImplementedError("its MS-SSIM has no pyramid, and L1 mixed in")
    function = metrics.ssim if len(case.shape) == 4 else metrics.ssim3d
    call = function_call(function, window_size=11, padding="valid")
    return Call(lambda x, y: call.similarity(x, y).mean(), f"{call.settings}.mean()")


@_mixed
def _torchmetrics(case: Case, device: str) -> Call:
    from torchmetrics.functional import image

    if case.metric == "SSIM":
        # Its own mean counts windows over a reflected border; those inside are the paper's.
        call = function_call(
            image.structural_similarity_index_measure, data_range=1.0, return_full_image=True
        )
        inside = (..., *[slice(5, -5)] * (len(case.shape) - 2))
        cut = ", ".join(["...", *["5:-5"] * (len(case.shape) - 2)])
        return Call(
            lambda x, y: call.similarity(x, y)[1][inside].mean(),
            f"{call.settings}[1][{cut}].mean()",
        )
    call = function_call(
        image.multiscale_structural_similarity_index_measure,
        data_range=1.0,
        **_weights("betas", case),
    )
    return call._replace(
        deviation="mean over channels before the powers; reflected border in the last level"
        + "; drops odd rows and columns" * case.odd_levels
    )


@_mixed
def _monai(case: Case, device: str) -> Call:
    from monai import losses, metrics

    options = {"spatial_dims": len(case.shape) - 2}
    if case.metric == "SSIM":
        loss = losses.SSIMLoss(**options)
        return Call(lambda x, y: 1 - loss(x, y), text(losses.SSIMLoss, options), loss=loss)
    call = function_call(
        metrics.regression.compute_ms_ssim, **options, **_weights("weights", case), data_range=1.0
    )
    deviations = ["mean over channels before the powers"] * (case.shape[1] > 1)
    deviations += ["drops odd rows and columns"] * case.odd_levels
    return call._replace(
        similarity=lambda x, y: call.similarity(x, y).mean(),
        settings=f"{call.settings}.mean()",
        deviation="; ".join(deviations),
    )


@_mixed
def _frame_analytics(case: Case, device: str) -> Call:
    import frame_analytics

    frame_analytics.set_compile_enabled(True)
    if case.metric == "SSIM":
        return function_call(frame_analytics.ssim, data_range=1.0)
    call = function_call(frame_analytics.ms_ssim, data_range=1.0, **_weights("weights", case))
    return call._replace(deviation="drops odd rows and columns" if case.odd_levels else "")


@_mixed
def _fused_ssim(case: Case, device: str) -> Call:
    import fused_ssim

    is_volume = len(case.shape) == 5
    return _splatting(fused_ssim.fused_ssim3d if is_volume else fused_ssim.fused_ssim, case)


@_mixed
def _fussim(case: Case, device: str) -> Call:
    from fussim import fused_ssim

    return _splatting(fused_ssim, case)


def _splatting(function: Callable[..., Tensor], case: Case) -> Call:
    if case.metric == "MS-SSIM":
        raise NotImplementedError("has no MS-SSIM")
    return function_call(function, padding="valid", train=case.backward)


OURS = Contender(
    "perceptual-losses",
    "perceptual-losses",
    functools.partial(_own, "auto"),
    metrics=(*STRUCTURAL, *DEFINITIONS, *features.FEATURES),
)

CONTENDERS = (
    OURS,
    Contender(
        "perceptual-losses, reference",
        "perceptual-losses",
        functools.partial(_own, "reference"),
        metrics=(*STRUCTURAL, *DEFINITIONS),
    ),
    # Only the compiler takes longer than all the others' turns, on a CPU and with several levels.
    Contender(
        *("perceptual-losses, reference compiled", "perceptual-losses", _compiled),
        *(("cuda",), ("SSIM", "L1-SSIM")),
    ),
    Contender("pytorch-msssim", "pytorch-msssim", _pytorch_msssim),
    Contender("piq", "piq", _piq),
    Contender("piqa", "piqa", _piqa),
    Contender("kornia", "kornia", _kornia),
    Contender("torchmetrics", "torchmetrics", _torchmetrics),
    Contender("MONAI", "monai", _monai),
    Contender("frame-analytics", "frame-analytics", _frame_analytics),
    Contender("fused-ssim", "fused-ssim", _fused_ssim, ("cuda",)),
    Contender("fussim", "fussim", _fussim, ("cuda",)),
    Contender("perceptual-losses, bfloat16 images", "perceptual-losses", _of_bfloat16, ("cuda",)),
    *features.CONTENDERS,
    *definitions.CONTENDERS,
)
