"""Random networks, losses on their features, and helpers that several tests share."""

import torch
import torchvision
from torch import nn

from perceptual_losses import LPIPSLoss, StyleLoss, VGGLoss
from perceptual_losses._features import backbone as backbones

BACKBONES = list(backbones.BACKBONES)
CONFIGURATIONS = {"vgg16": "D", "vgg19": "E"}


def torchvision_features(backbone):
    """The ``features`` of torchvision's model, with random weights and statistics."""
    torch.manual_seed(len(backbone))
    if backbone in ("alexnet", "squeezenet1_1"):
        network = getattr(torchvision.models, backbone)(weights=None).features
    else:
        name, _, norm = backbone.partition("_")
        layers = torchvision.models.vgg.cfgs[CONFIGURATIONS[name]]
        network = torchvision.models.vgg.make_layers(layers, batch_norm=bool(norm))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            nn.init.uniform_(module.bias, -0.1, 0.1)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return network.eval().requires_grad_(False)


def pair(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(shape, generator=generator, dtype=dtype) for _ in range(2))


def normalized(x, low=0.0, high=1.0):
    mean = torch.tensor([0.485, 0.456, 0.406], dtype=x.dtype)[:, None, None]
    deviation = torch.tensor([0.229, 0.224, 0.225], dtype=x.dtype)[:, None, None]
    return ((x - low) / (high - low) - mean) / deviation


def close(got, expected, tolerance=1e-5):
    assert got.shape == expected.shape
    assert (got - expected).norm() <= tolerance * expected.norm()


def make(loss, networks, linear, **options):
    """One of the losses, on a shallow network where it has the choice."""
    if loss is LPIPSLoss:
        options = {"linear": linear["alexnet"], **options}
        return LPIPSLoss("alexnet", weights=networks["alexnet"], **options)
    return loss({"relu1_1": 0.5, "conv2_2": 2.0}, weights=networks["vgg16"], **options)


LOSSES = [VGGLoss, StyleLoss, LPIPSLoss]
