"""The gradients of the losses on features, also where features are zero or overflow."""

import pytest
import torch
from feature_losses import LOSSES, close, make, pair, torchvision_features
from torch import nn

from perceptual_losses import LPIPSLoss, StyleLoss, VGGLoss
from perceptual_losses._features.lpips import layer_distance, layer_distance_formula


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("wanted", [(True, False), (False, True), (True, True)])
def test_gradients_go_where_they_are_wanted(networks, linear, loss, wanted):
    x, y = pair(1, 3, 40, 40)
    both = [image.clone().requires_grad_() for image in (x, y)]
    make(loss, networks, linear)(*both).backward()
    some = [image.clone().requires_grad_(want) for image, want in zip((x, y), wanted, strict=True)]
    make(loss, networks, linear)(*some).backward()
    for image, full, want in zip(some, both, wanted, strict=True):
        assert (image.grad is not None) == want
        if want:
            assert full.grad.abs().max() > 0
            close(image.grad, full.grad)


@pytest.mark.parametrize("loss", [VGGLoss, StyleLoss])
def test_gradcheck(networks, linear, loss):
    layers = {"conv1_1": 1.0, "conv1_2": 0.5}
    options = {"distance": "l2"} if loss is VGGLoss else {}
    module = loss(layers, weights=networks["vgg16"], **options).double()
    x, y = pair(1, 3, 4, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(module, (x.requires_grad_(), y.requires_grad_()))
    assert torch.autograd.gradgradcheck(module, (x, y))


def test_gradcheck_of_a_layers_distance(linear):
    loss = LPIPSLoss("alexnet", weights=torchvision_features("alexnet"), linear=linear["alexnet"])
    a, b = (f.requires_grad_() for f in pair(1, 64, 2, 3, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda a, b: loss._distance("relu1", a, b), (a, b))
    assert torch.autograd.gradgradcheck(lambda a, b: loss._distance("relu1", a, b), (a, b))


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_constant_images(networks, linear, loss, dtype, level):
    module = make(loss, networks, linear, dtype=dtype)
    x = torch.full((1, 3, 36, 36), level, dtype=dtype, requires_grad=True)
    with torch.autograd.detect_anomaly(check_nan=True):
        value = module(x, torch.zeros(1, 3, 36, 36, dtype=dtype))
        value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert x.grad.isfinite().all()
    if level == 0:
        assert value == 0
        assert not x.grad.any()


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_places_without_features_have_no_direction(linear):
    """Where all features are zero the length has no derivative."""
    network = torchvision_features("alexnet")
    for module in network:
        if isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.weight)
            nn.init.constant_(module.bias, -1.0)
    loss = LPIPSLoss("alexnet", weights=network, linear=linear["alexnet"])
    x, y = pair(1, 3, 36, 36)
    x.requires_grad_()
    with torch.autograd.detect_anomaly(check_nan=True):
        loss(x, y).backward()
    assert not x.grad.any()


@pytest.mark.parametrize("distance", [layer_distance_formula, layer_distance])
def test_a_layers_distance_where_features_are_zero(distance):
    """Asked directly: a network hides a NaN there behind its dead activations."""
    a, b = pair(1, 4, 2, 3)
    a[..., 0, :] = 0
    b[..., 0, 0] = 0
    weight = torch.rand(4)
    a.requires_grad_()
    b.requires_grad_()
    value = distance(a, b, weight)
    of_a, of_b = torch.autograd.grad(value.sum(), (a, b))
    expected = [
        (weight * (p / (p.norm() + 1e-10) - q / (q.norm() + 1e-10)).square()).sum()
        for p, q in zip(a.flatten(2)[0].mT, b.flatten(2)[0].mT, strict=True)
    ]
    assert value.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)
    assert not of_a[..., 0, :].any()
    assert not of_b[..., 0, 0].any()
    for gradient in (of_a, of_b):
        assert gradient.isfinite().all()
        assert gradient[..., 1, :].abs().min() > 0


@pytest.mark.parametrize("distance", [layer_distance_formula, layer_distance])
def test_a_layers_distance_where_lengths_overflow(distance):
    """Neither the distance of zero that unit features of zero would have, nor in other images."""
    a, b = (feature.requires_grad_() for feature in pair(2, 4, 2, 3))
    with torch.no_grad():
        expected = distance(a, b, torch.rand(4, generator=torch.Generator().manual_seed(0)))
        for feature in (a, b):
            feature[1, :, 0, 0] *= 1e20
    value = distance(a, b, torch.rand(4, generator=torch.Generator().manual_seed(0)))
    assert value[0] == expected[0]
    assert value[1].isnan()
    for gradient in torch.autograd.grad(value.sum(), (a, b)):
        assert gradient[1, :, 0, 0].isnan().all()
        assert gradient[1, :, 1].isfinite().all()
        assert gradient[0].isfinite().all()


def test_no_nan_is_rounded_to_a_number():
    """All ones in a NaN's lower half would carry over into its sign."""
    a, b = (feature.bfloat16().requires_grad_() for feature in pair(1, 64, 2, 2))
    nan = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)
    (gradient,) = torch.autograd.grad(layer_distance(a, b, torch.ones(64)), a, nan)
    assert gradient.isnan().all()
