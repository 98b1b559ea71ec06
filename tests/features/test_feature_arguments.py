"""Arguments that the losses on features refuse, and the order of their options."""

import inspect

import pytest
import torch
from feature_losses import LOSSES, make, pair

import perceptual_losses
from perceptual_losses import LPIPSLoss, VGGLoss, vgg_features


@pytest.mark.parametrize("loss", LOSSES)
def test_bad_images(networks, linear, loss):
    module = make(loss, networks, linear)
    good = next(pair(1, 3, 40, 40))
    for bad, error, text in (
        (good[0], ValueError, r"x has shape \(3, 40, 40\).*unsqueeze\(0\)"),
        (good[:, :2], ValueError, "with 2 channels.*3 channels, and 1"),
        (good[:0], ValueError, "holds no image"),
        (good.tolist(), TypeError, "x is of type list: pass a torch.Tensor"),
        (good + 1j, TypeError, "x is torch.complex64"),
        ((255 * good).byte(), ValueError, "x is torch.uint8.*data_range=255"),
    ):
        with pytest.raises(error, match=text):
            module(bad, good)
        with pytest.raises(error, match=text.replace("x ", "y ", 1)):
            module(good, bad)
        with pytest.raises(error, match=text.replace("x ", "y ", 1)):
            module.features(bad)
    with pytest.raises(ValueError, match="pass equal shapes; nothing|pass as many images as x"):
        module(good, good.expand(2, 3, 40, 40))
    with pytest.raises(ValueError, match=r"y has features of \['other'\] and the loss compares"):
        module(good, {"other": good})


@pytest.mark.parametrize("loss", LOSSES)
def test_features_of_other_images(networks, linear, monkeypatch, loss):
    module = make(loss, networks, linear)
    x, y = pair(3, 3, 40, 48)
    target = module.features(y)
    name, fitting = next(iter(target.items()))
    assert module._shapes(x) == {name: tuple(kept.shape) for name, kept in target.items()}
    fewer = module.features(y[:2])

    def run(*arguments):
        raise AssertionError("the network has run")

    monkeypatch.setattr(type(module.extractor), "forward", run)
    text = rf"{name} of x have shape \({str(tuple(fitting.shape))[1:-1]}\) and those of y \(2,"
    with pytest.raises(ValueError, match=text):
        module(x, fewer)
    with pytest.raises(TypeError, match=rf"y\['{name}'\] is None .*: pass a torch.Tensor"):
        module(x, {**target, name: None})
    for name, value in (("distance", "l3"), ("reduction", "sum")):
        if hasattr(module, name):
            with monkeypatch.context() as patch:
                patch.setattr(module, name, value)
                with pytest.raises(ValueError, match=f"{name}='{value}' is unknown"):
                    module(x, target)


@pytest.mark.parametrize(
    ("backbone", "layer", "smallest"),
    [
        ("vgg16", "relu1_1", 1),
        ("vgg16", "relu5_3", 16),
        ("vgg19", "pool5", 32),
        ("alexnet", "relu5", 31),
    ],
)
def test_the_smallest_image(networks, backbone, layer, smallest):
    extract = vgg_features([layer], backbone=backbone, weights=networks[backbone])
    assert extract(torch.rand(1, 3, smallest, smallest + 3))[layer].shape[2] == 1
    if smallest > 1:
        text = f"too small for {layer} of {backbone}: pass images of at least {smallest}x{smallest}"
        with pytest.raises(ValueError, match=text):
            extract(torch.rand(1, 3, smallest + 9, smallest - 1))


def test_bad_options(networks):
    network = networks["vgg16"]
    for build, error, text in (
        (
            lambda: vgg_features(["relu9_1"], weights=network),
            ValueError,
            "vgg16 has no layer 'relu9_1'",
        ),
        (lambda: vgg_features([], weights=network), ValueError, "at least one name"),
        (lambda: vgg_features("relu1_1", weights=network), ValueError, "pass a list"),
        (lambda: vgg_features(iter(["relu1_1"]), weights=network), ValueError, "pass a list"),
        (
            lambda: vgg_features(["relu1_1"], backbone="vgg11"),
            ValueError,
            "backbone='vgg11' is unknown",
        ),
        (lambda: vgg_features(["relu1_1"], dtype=torch.int8), TypeError, "pass a floating dtype"),
        (
            lambda: vgg_features(["relu1_1"], data_range=0),
            ValueError,
            "data_range=0.0 is not positive",
        ),
        (lambda: VGGLoss("gatys"), ValueError, "layers='gatys' is unknown: pass one of"),
        (lambda: VGGLoss("srgan", backbone="vgg16"), ValueError, "backbone='vgg19', not 'vgg16'"),
        (lambda: VGGLoss("srgan", distance="l1"), ValueError, "distance='l2', not 'l1'"),
        (lambda: VGGLoss(["relu1_1"]), TypeError, "pass weights by names of layers"),
        (lambda: VGGLoss({"relu1_1": -1}), ValueError, "not negative"),
        (lambda: VGGLoss({"relu1_1": "1"}), TypeError, r"layers\['relu1_1'\] is '1'"),
        (lambda: VGGLoss({"relu1_1": 1}, distance="l3"), ValueError, "distance='l3' is unknown"),
        (lambda: VGGLoss(reduction="sum"), ValueError, "reduction='sum' is unknown"),
        (lambda: LPIPSLoss("vgg19"), ValueError, "backbone='vgg19' is unknown"),
    ):
        with pytest.raises(error, match=text):
            build()


def test_the_options_have_one_order():
    options = [list(inspect.signature(loss).parameters) for loss in LOSSES]
    shared = ["weights", "data_range", "dtype", "checkpointing", "reduction"]
    for names in options:
        assert [name for name in names if name in shared] == shared
    assert {loss.__name__ for loss in LOSSES} <= set(perceptual_losses.__all__)
