"""Losses on the features of any network, by the names of its submodules."""

import copy
import pickle
import threading

import pytest
import torch
from feature_losses import close, pair
from torch import nn

from perceptual_losses import FeatureLoss, VGGLoss, vgg_features


class Network(nn.Module):
    """Layers of several kinds, and one that is never called."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.block = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Dropout(0.5))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.unused = nn.Linear(1, 1)

    def forward(self, x):
        x = self.block(self.stem(x)).flatten(2).mT
        return self.attention(x, x, x)[0] + 1


LAYERS = {"stem": 1.0, "block.0": 0.5, "block": 2.0}


def test_vgg_is_a_case_of_it(networks):
    expected = VGGLoss({"conv1_2": 0.5, "relu2_2": 2.0}, weights=networks["vgg16"], distance="l2")
    layers, network = {"2": 0.5, "8": 2.0}, copy.deepcopy(networks["vgg16"][:9])
    for module in network:
        if isinstance(module, nn.ReLU):
            module.inplace = True
    extract = vgg_features(["conv1_2", "relu2_2"], weights=networks["vgg16"])
    results = []
    for loss in (
        expected,
        FeatureLoss(network, layers, distance="l2"),
        FeatureLoss(extract, expected.layers, distance="l2"),
    ):
        x, y = pair(2, 3, 20, 24)
        value = loss(x.requires_grad_(), y)
        assert torch.equal(loss(x, loss.features(y)), value)
        results.append((value, *torch.autograd.grad(value, x)))
    for result in results[1:]:
        for got, wanted in zip(result, results[0], strict=True):
            close(got, wanted)
    assert isinstance(expected, FeatureLoss)


def test_a_network_of_its_own():
    """Its copy is frozen and in evaluation mode, and the network is what it was."""
    network = Network().train()
    loss = FeatureLoss(network, LAYERS)
    x, y = pair(2, 3, 16, 16)
    value = loss(x, y)
    a, b = (network.eval().stem((image - 0.45) / 0.225) for image in (x, y))
    plain = FeatureLoss(network, {"stem": 1.0}, mean=(0.45,) * 3, std=(0.225,) * 3)
    close(plain(x, y), (a - b).abs().mean())
    assert torch.equal(loss.train()(x, y), value)
    assert network.block[1].inplace
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert not network.stem._forward_hooks
    network.stem.weight.data.zero_()
    for other in (loss, copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(other(x, y), value)
    model = nn.ModuleDict({"net": nn.Linear(2, 2), "loss": loss})
    assert set(model.state_dict()) == {"net.weight", "net.bias"}
    assert len(list(model.parameters())) == 2
    assert not list(model.buffers())
    close(loss(255 * x, 255 * y), FeatureLoss(Network(), LAYERS)(255 * x, 255 * y))


def test_dtypes_of_a_network():
    x, y = pair(2, 3, 16, 16)
    exact = FeatureLoss(Network(), LAYERS)(x, y)
    half = FeatureLoss(Network(), LAYERS, dtype=torch.bfloat16)
    assert half(x, y).dtype == torch.float32
    assert half(x, y).item() == pytest.approx(exact.item(), rel=0.03)
    assert half(x, y) != exact
    with torch.autocast("cpu", torch.bfloat16):
        kept = FeatureLoss(Network(), LAYERS, dtype=torch.float32)(x, y)
    assert torch.equal(kept, exact)
    double = FeatureLoss(Network(), LAYERS).double()(x, y)
    assert double.dtype == torch.float64
    assert double.item() == pytest.approx(exact.item(), rel=1e-5)
    assert half.double()(x, y).dtype == torch.float32


def test_a_network_in_a_compiled_step():
    loss = FeatureLoss(Network(), LAYERS).double()
    x, y = pair(1, 3, 16, 16, dtype=torch.float64)
    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    gradients = []
    for function in (loss, compiled):
        value = function(x.requires_grad_(), y)
        gradients.append(torch.autograd.grad(value, x)[0])
    close(gradients[1], gradients[0], 1e-9)


def test_a_network_in_threads():
    loss = FeatureLoss(Network(), LAYERS)
    images = [tuple(pair(1, 3, 16, 16, seed=seed)) for seed in range(4)]
    expected, found = [loss(*both) for both in images], {}

    def run(index):
        found[index] = [loss(*images[index]) for _ in range(20)]

    threads = [threading.Thread(target=run, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, value in enumerate(expected):
        assert all(torch.equal(other, value) for other in found[index])


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        out = self.conv(x)
        out += x
        return out


def test_wrong_networks_and_layers():
    x, y = pair(1, 3, 16, 16)
    for build, error, text in (
        (lambda: FeatureLoss(Network, LAYERS), TypeError, "network is of type type: pass a torch"),
        (lambda: FeatureLoss(Network(), {}), ValueError, "at least one name"),
        (lambda: FeatureLoss(Network(), ["stem"]), TypeError, "layers is of type list"),
        (lambda: FeatureLoss(Network(), {"stem": -1}), ValueError, "not negative"),
        (lambda: FeatureLoss(Network(), {"a": 1}), ValueError, "no submodule 'a'.*'stem'"),
        (lambda: FeatureLoss(Network(), LAYERS, distance="l3"), ValueError, "distance='l3'"),
        (lambda: FeatureLoss(Network(), LAYERS, std=(1, 1, 0)), ValueError, "std=0"),
        (lambda: FeatureLoss(Network(), LAYERS, mean=0.5), ValueError, "mean=0.5: pass three"),
        (
            lambda: FeatureLoss(Network().to("meta"), LAYERS),
            ValueError,
            "'stem.weight' of the network is on the meta device",
        ),
        (lambda: FeatureLoss(Network(), {"attention": 1})(x, y), ValueError, "gives tuple: pass"),
        (lambda: FeatureLoss(Network(), {"unused": 1})(x, y), ValueError, "it did not run"),
        (lambda: FeatureLoss(Residual(), {"conv": 1})(x, y), ValueError, "of 'conv' in place"),
        (
            lambda: FeatureLoss(Network(), {"stem": 1})(
                x, FeatureLoss(Network(), {"stem": 1}).features(y[..., :8])
            ),
            ValueError,
            "features stem of x have shape",
        ),
        (
            lambda: FeatureLoss(vgg_features(["relu1_1"]), {"relu1_1": 1}, data_range=255),
            ValueError,
            "made by vgg_features",
        ),
    ):
        with pytest.raises(error, match=text):
            build()


@pytest.mark.parametrize("chunk_size", [None, 1, 2])
def test_features_of_other_images_are_not_broadcast(chunk_size):
    network = nn.Sequential(nn.Conv2d(3, 4, 3))
    loss = FeatureLoss(network, {"0": 1.0}, chunk_size=chunk_size)
    x, y = pair(4, 3, 8, 8)
    for count in (1, 2):
        with pytest.raises(
            ValueError, match=r"shape \(4, 4, 6, 6\) and those of y \(\d, 4, 6, 6\)"
        ):
            loss(x, loss.features(y[:count]))
    torch.testing.assert_close(loss(x, loss.features(y)), loss(x, y))


class Odd(nn.Module):
    """Outputs that are no features of images."""

    def __init__(self, function):
        super().__init__()
        self.layer = nn.Identity()
        self.function = function

    def forward(self, x):
        return self.layer(self.function(x))


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (torch.fft.fft2, "values of torch.complex64: pass a layer with real"),
        (lambda x: x.flatten(0, 1), r"the shape \(6, 8, 8\) for 2 images"),
        (torch.sum, r"the shape \(\) for 2 images"),
    ],
)
def test_outputs_that_are_no_features(function, text):
    x, _ = pair(2, 3, 8, 8)
    with pytest.raises(ValueError, match=text):
        FeatureLoss(Odd(function), {"layer": 1.0})(x, x)


def test_a_submodule_with_two_names():
    x, y = pair(2, 3, 8, 8)
    network = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1))
    network.append(network[0])
    assert FeatureLoss(network, {"1": 1.0})(x, y) > 0
