"""The packages, called as their users call them, with the settings that compute the same thing:
Gaussian window of 11 pixels and sigma 1.5, inside the image alone; range 1; population variance.

A package is imported when it is built, so that one that is missing or broken costs its own rows
only. What a package does not have is an exception with the reason.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .cases import Case


class Call(NamedTuple):
    """A contender made ready for a case.

    Attributes:
        similarity: of two images, a scalar.
        settings: the call as one would write it.
        deviation: how its definition differs from the paper's in this case, if it does.
    """

    similarity: Callable[[Tensor, Tensor], Tensor]
    settings: str
    deviation: str = ""


class Contender(NamedTuple):
    """A package, or one path of it.

    Attributes:
        name: in tables.
        distribution: what pip calls it.
        build: makes it ready for a case on a device, or raises.
        devices: where it is offered.
    """

    name: str
    distribution: str
    build: Callable[[Case, str], Call]
    devices: tuple[str, ...] = ("cpu", "cuda")


def _text(target: Any, options: dict[str, Any]) -> str:
    arguments = ", ".join(f"{name}={value!r}" for name, value in options.items())
    return f"{target.__module__.partition('.')[0]}.{target.__name__}({arguments})"


def _function(function: Callable[..., Tensor], **options: Any) -> Call:
    return Call(functools.partial(function, **options), _text(function, options))


def _module(module: Callable[..., Any], device: str, **options: Any) -> Call:
    return Call(module(**options).to(device), _text(module, options))


def _weights(name: str, case: Case, convert: Callable[..., Any] = tuple) -> dict[str, Any]:
    """The level weights under the package's name for them, unless they are its default."""
    return {} if case.weights is None else {name: convert(case.weights)}


def _own(backend: str, case: Case, device: str) -> Call:
    import perceptual_losses

    if case.metric == "SSIM":
        return _function(perceptual_losses.ssim, backend=backend)
    return _function(perceptual_losses.ms_ssim, **_weights("weights", case), backend=backend)


def _pytorch_msssim(case: Case, device: str) -> Call:
    import pytorch_msssim

    channels = {"data_range": 1, "channel": case.shape[1], "spatial_dims": len(case.shape) - 2}
    if case.metric == "SSIM":
        return _module(pytorch_msssim.SSIM, device, **channels)
    call = _module(pytorch_msssim.MS_SSIM, device, **channels, **_weights("weights", case))
    return call._replace(deviation="pads odd sides with zeros" if case.odd_levels else "")


def _piq(case: Case, device: str) -> Call:
    import piq

    if len(case.shape) == 5:
        raise NotImplementedError("takes five dimensions for complex images")
    if case.metric == "SSIM":
        return _function(piq.ssim, downsample=False)
    tensor = functools.partial(torch.tensor, device=device)
    call = _function(piq.multi_scale_ssim, **_weights("scale_weights", case, tensor))
    return call._replace(deviation="repeats the first row and column" if case.odd_levels else "")


def _piqa(case: Case, device: str) -> Call:
    import piqa

    if case.metric == "SSIM":
        return _module(piqa.SSIM, device, n_channels=case.shape[1])
    weights = _weights("weights", case, torch.tensor)
    return _module(piqa.MS_SSIM, device, n_channels=case.shape[1], **weights)


def _kornia(case: Case, device: str) -> Call:
    from kornia import metrics

    if case.metric == "MS-SSIM":
        raise NotImplementedError("its MS-SSIM has no pyramid, and L1 mixed in")
    function = metrics.ssim if len(case.shape) == 4 else metrics.ssim3d
    call = _function(function, window_size=11, padding="valid")
    return Call(lambda x, y: call.similarity(x, y).mean(), f"{call.settings}.mean()")


def _torchmetrics(case: Case, device: str) -> Call:
    from torchmetrics.functional import image

    if case.metric == "SSIM":
        # Its own mean counts windows over a reflected border; those inside are the paper's.
        call = _function(
            image.structural_similarity_index_measure, data_range=1.0, return_full_image=True
        )
        inside = (..., *[slice(5, -5)] * (len(case.shape) - 2))
        cut = ", ".join(["...", *["5:-5"] * (len(case.shape) - 2)])
        return Call(
            lambda x, y: call.similarity(x, y)[1][inside].mean(),
            f"{call.settings}[1][{cut}].mean()",
        )
    call = _function(
        image.multiscale_structural_similarity_index_measure,
        data_range=1.0,
        **_weights("betas", case),
    )
    return call._replace(
        deviation="mean over channels before the powers; reflected border in the last level"
        + "; drops odd rows and columns" * case.odd_levels
    )


def _frame_analytics(case: Case, device: str) -> Call:
    import frame_analytics

    # It compiles for the sizes it sees, and users have one: without this the second case would
    # get kernels for any size, which are slower.
    torch.compiler.reset()
    frame_analytics.set_compile_enabled(True)
    if case.metric == "SSIM":
        return _function(frame_analytics.ssim, data_range=1.0)
    call = _function(frame_analytics.ms_ssim, data_range=1.0, **_weights("weights", case))
    return call._replace(deviation="drops odd rows and columns" if case.odd_levels else "")


def _fused_ssim(case: Case, device: str) -> Call:
    from fused_ssim import fused_ssim

    return _splatting(fused_ssim, case)


def _fussim(case: Case, device: str) -> Call:
    from fussim import fused_ssim

    return _splatting(fused_ssim, case)


def _splatting(function: Callable[..., Tensor], case: Case) -> Call:
    if case.metric == "MS-SSIM":
        raise NotImplementedError("has no MS-SSIM")
    if len(case.shape) == 5:
        raise NotImplementedError("has no volumes")
    return _function(function, padding="valid", train=case.backward)


OURS = Contender("perceptual-losses", "perceptual-losses", functools.partial(_own, "auto"))

CONTENDERS = (
    OURS,
    Contender(
        "perceptual-losses, reference",
        "perceptual-losses",
        functools.partial(_own, "reference"),
    ),
    Contender("pytorch-msssim", "pytorch-msssim", _pytorch_msssim),
    Contender("piq", "piq", _piq),
    Contender("piqa", "piqa", _piqa),
    Contender("kornia", "kornia", _kornia),
    Contender("torchmetrics", "torchmetrics", _torchmetrics),
    Contender("frame-analytics", "frame-analytics", _frame_analytics),
    Contender("fused-ssim", "fused-ssim", _fused_ssim, ("cuda",)),
    Contender("fussim", "fussim", _fussim, ("cuda",)),
)
