"""The values of the losses on features, against networks that are run by hand."""

import re

import pytest
import torch
from feature_losses import BACKBONES, LOSSES, close, make, normalized, pair

from perceptual_losses import LPIPSLoss, StyleLoss, VGGLoss, vgg_features
from perceptual_losses._features import backbone as backbones
from perceptual_losses.features import (
    LPIPS_LAYERS,
    STYLE_PRESETS,
    VGG_PRESETS,
)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_layer_against_a_network_run_by_hand(networks, backbone):
    names = [layer.name for layer in backbones.BACKBONES[backbone]]
    x = next(pair(2, 3, 67, 70))
    extract = vgg_features(names, backbone=backbone, weights=networks[backbone])
    features = extract(x)
    assert list(features) == names
    # Only this layer is asked for, with in-place activations all around.
    deepest = vgg_features(names[-1:], backbone=backbone, weights=networks[backbone])(x)
    image = x
    x = normalized(x)
    for name, module in zip(names, networks[backbone], strict=True):
        x = module(x)
        close(features[name], x)
    close(deepest[names[-1]], x)
    torch.testing.assert_close(image, next(pair(2, 3, 67, 70)), rtol=0, atol=0)


def test_names_follow_torchvision():
    names = {layer.position: layer.name for layer in backbones.BACKBONES["vgg19"]}
    assert [names[i] for i in (0, 1, 3, 4, 9, 11, 34, 35, 36)] == [
        *("conv1_1", "relu1_1", "relu1_2", "pool1", "pool2", "relu3_1", "conv5_4", "relu5_4"),
        "pool5",
    ]
    names = {layer.position: layer.name for layer in backbones.BACKBONES["vgg16_bn"]}
    assert [names[i] for i in (0, 1, 2, 6, 7)] == [
        "conv1_1",
        "norm1_1",
        "relu1_1",
        "pool1",
        "conv2_1",
    ]


@pytest.mark.parametrize(("low", "high"), [(0, 255), (-1, 1)])
def test_the_range_of_the_images(networks, low, high):
    x = low + (high - low) * next(pair(1, 3, 16, 16))
    data_range = high if low == 0 else (low, high)
    extract = vgg_features(["conv1_1"], weights=networks["vgg16"], data_range=data_range)
    close(extract(x)["conv1_1"], networks["vgg16"][0](normalized(x, low, high)))


def test_grey_images_are_colour_images_of_equal_channels(networks):
    extract = vgg_features(["relu2_1"], weights=networks["vgg16"], data_range=255)
    x = torch.randint(256, (2, 1, 20, 24), dtype=torch.uint8)
    close(extract(x)["relu2_1"], extract(x.float().expand(-1, 3, -1, -1))["relu2_1"])


def test_layers_of_a_loss_are_its_own(networks):
    loss = VGGLoss("johnson", weights=networks["vgg16"])
    loss.layers["relu2_2"] = 2.0
    assert VGGLoss("johnson", weights=networks["vgg16"]).layers == {"relu2_2": 1.0}


@pytest.mark.parametrize("kind", [VGGLoss, StyleLoss])
def test_weights_of_layers_change_and_layers_do_not(networks, kind):
    loss = kind({"relu1_1": 1.0, "relu1_2": 0.0}, weights=networks["vgg16"])
    x, y = pair(1, 3, 16, 16)
    before = loss(x, y)
    loss.layers["relu1_1"] = 2.0
    close(loss(x, y), 2 * before)
    for layers in ({"relu1_1": 1.0}, {**loss.layers, "relu2_1": 5.0}):
        loss.layers = layers
        with pytest.raises(ValueError, match=r"made for \['relu1_1', 'relu1_2'\]: keep"):
            loss(x, y)


@pytest.mark.parametrize("name", VGG_PRESETS)
def test_presets_of_the_content_loss(networks, name):
    preset = VGG_PRESETS[name]
    network, (x, y) = networks[preset.backbone], pair(2, 3, 32, 36)
    loss = VGGLoss(name, weights=network, reduction="none")
    expected = torch.zeros(2)
    a, b = normalized(x), normalized(y)
    for layer, module in zip(backbones.BACKBONES[preset.backbone], network, strict=True):
        a, b = module(a), module(b)
        if layer.name in preset.layers:
            distance = {"l1": (a - b).abs(), "l2": (a - b) ** 2}[preset.distance]
            expected += preset.layers[layer.name] * distance.mean((1, 2, 3))
    close(loss(x, y), expected)
    close(VGGLoss(name, weights=network)(x, y), expected.mean())


def test_presets_are_those_of_the_papers():
    assert VGG_PRESETS["dfc-345"] == (
        "vgg19",
        "l2",
        {"relu3_1": 0.5, "relu4_1": 0.5, "relu5_1": 0.5},
    )
    assert VGG_PRESETS["esrgan"] == ("vgg19", "l1", {"conv5_4": 1})
    assert VGG_PRESETS["srgan"].layers["relu5_4"] == pytest.approx(0.006, abs=2e-4)
    assert sum(STYLE_PRESETS["gatys"].layers.values()) == pytest.approx(0.25)


@pytest.mark.parametrize("name", STYLE_PRESETS)
def test_presets_of_the_style_loss(networks, name):
    preset = STYLE_PRESETS[name]
    network, (x, y) = networks[preset.backbone], pair(2, 3, 32, 36)
    expected = torch.zeros(2)
    a, b = normalized(x), normalized(y)
    for layer, module in zip(backbones.BACKBONES[preset.backbone], network, strict=True):
        a, b = module(a), module(b)
        if layer.name in preset.layers:
            for i in range(2):
                gram = [f[i].flatten(1) @ f[i].flatten(1).T / f[i].numel() for f in (a, b)]
                expected[i] += preset.layers[layer.name] * ((gram[0] - gram[1]) ** 2).sum()
    close(StyleLoss(name, weights=network, reduction="none")(x, y), expected, 1e-4)


def test_style_knows_no_places(networks):
    loss = StyleLoss({"relu1_1": 1.0}, weights=networks["vgg16"])
    x, y = pair(1, 3, 40, 40)
    assert loss(x, y[..., :24]).isfinite()
    assert loss(x, x.roll(8, 3)) < 0.01 * loss(x, y.square())


@pytest.mark.filterwarnings(
    "ignore:.*pretrained.*:UserWarning", "ignore:.*weight enum.*:UserWarning"
)
@pytest.mark.parametrize(
    ("backbone", "theirs"), [("vgg16", "vgg"), ("alexnet", "alex"), ("squeezenet1_1", "squeeze")]
)
def test_lpips_against_the_package(backbone, theirs):
    import lpips

    torch.manual_seed(3)
    package = lpips.LPIPS(net=theirs, pnet_rand=True, verbose=False)
    network = {
        re.sub(r"net\.slice\d\.", "", key): value
        for key, value in package.state_dict().items()
        if key.startswith("net.")
    }
    ours = LPIPSLoss(backbone, weights=network, data_range=(-1, 1), reduction="none")
    x, y = (2 * image - 1 for image in pair(2, 3, 64, 70))
    torch.testing.assert_close(ours(x, y), package(x, y).flatten(), rtol=1e-6, atol=1e-6)
    # In float32 a rounding decides on which side of zero an activation lies, and its gradient.
    ours, package, x, y = ours.double(), package.double(), x.double(), y.double()
    for image in (x, y):
        image.requires_grad_()
    values = ours(x, y), package(x, y).flatten()
    torch.testing.assert_close(*values, rtol=1e-6, atol=1e-6)
    gradients = [torch.autograd.grad(value.sum(), (x, y)) for value in values]
    for mine, other in zip(*gradients, strict=True):
        close(mine, other)
    # The calibrated weights come from the package's file; nothing of them is learned.
    assert (ours.constant(LPIPS_LAYERS[backbone][0]) >= 0).all()
    assert not list(ours.parameters())


@pytest.mark.parametrize("loss", LOSSES)
def test_identical_images(networks, linear, loss):
    x = next(pair(2, 3, 40, 40)).requires_grad_()
    value = make(loss, networks, linear)(x, x.detach())
    assert value == 0
    (gradient,) = torch.autograd.grad(value, x)
    assert not gradient.any()


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_fall_while_images_come_closer(networks, linear, loss):
    x = next(pair(1, 3, 48, 48))
    module = make(loss, networks, linear)
    values = [module((1 - share) * x, x).item() for share in (0.9, 0.5, 0.2, 0.05, 0)]
    assert values == sorted(values, reverse=True)
    assert values[-1] == 0
