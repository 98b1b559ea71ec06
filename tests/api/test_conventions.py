"""What holds for every public name."""

import copy
import inspect
import pickle
import subprocess
import sys

import pytest
import torch

import perceptual_losses
from perceptual_losses import (
    FeatureLoss,
    L1MSSSIMLoss,
    L1SSIMLoss,
    LPIPSLoss,
    MSSSIMLoss,
    SSIMLoss,
    StyleLoss,
    VGGLoss,
    ms_ssim,
    ssim,
    ssim_map,
    vgg_features,
)

FUNCTIONS = [ssim, ssim_map, ms_ssim]
FEATURES = [FeatureLoss, LPIPSLoss, StyleLoss, VGGLoss, vgg_features]
LOSSES = [SSIMLoss, MSSSIMLoss, L1SSIMLoss, L1MSSSIMLoss]
OPTIONS = {"data_range": (-1, 1), "window_size": 3, "sigma": 1.2, "k1": 0.02, "k2": 0.05}
OPTIONS["sample_covariance"] = True
TENSORS = ("mask", "valid")


def images(*shape):
    x = 2 * torch.rand(shape, generator=torch.Generator().manual_seed(0)) - 1
    return x.requires_grad_(), 0.8 * x.detach()


@pytest.fixture
def pair(sized):
    return images(*sized((2, 3, 180, 176), (2, 1, 6, 7)))


@pytest.fixture
def small(sized):
    """The options that go with small images: those of SSIM, and those of levels."""
    return sized({}, {"window_size": 3}), sized({}, {"weights": (0.4, 0.6)})


def test_the_public_names():
    names = perceptual_losses.__all__
    public = {taker.__name__ for taker in FUNCTIONS + LOSSES + FEATURES} | {"MS_SSIM_WEIGHTS"}
    public |= {"precompile"}
    assert set(names) == public
    assert len(names) == len(public)
    assert perceptual_losses.MS_SSIM_WEIGHTS == (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_two_images_by_position_and_options_by_name(function):
    x, y, *options = inspect.signature(function).parameters.values()
    assert (x.name, y.name) == ("x", "y")
    assert all(option.kind is inspect.Parameter.KEYWORD_ONLY for option in options)


@pytest.mark.parametrize(
    ("loss", "function"),
    [(SSIMLoss, ssim), (MSSSIMLoss, ms_ssim), (L1SSIMLoss, ssim), (L1MSSSIMLoss, ms_ssim)],
)
def test_losses_take_the_options_of_their_function(loss, function):
    expected = dict(inspect.signature(function).parameters)
    for name in ("x", "y", *TENSORS):
        del expected[name]
    options = dict(inspect.signature(loss).parameters)
    if "L1" in loss.__name__:
        assert options.pop("weight").default == (0.2 if loss is L1SSIMLoss else 0.84)
    # A range for each image belongs to one call.
    shared, own = options.pop("data_range"), expected.pop("data_range")
    assert f"{shared.annotation} | Tensor" == own.annotation
    assert shared.default == own.default
    assert options == expected
    methods = [loss.forward, loss.value_and_grad, *([loss.terms] if hasattr(loss, "terms") else [])]
    assert ("L1" in loss.__name__) == (len(methods) == 3)
    for method in methods:
        _, x, y, *others = inspect.signature(method).parameters.values()
        assert (x.name, y.name) == ("x", "y")
        assert [other.name for other in others] == [*TENSORS, "data_range"]
        assert all(other.kind is inspect.Parameter.KEYWORD_ONLY for other in others)
        assert all(other.default is None for other in others)


@pytest.mark.parametrize(("loss", "function"), [(SSIMLoss, ssim), (MSSSIMLoss, ms_ssim)])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_loss_is_one_minus_its_function(backend, pair, small, loss, function, reduction):
    mask = torch.rand(pair[0].shape[2:])
    options = {**OPTIONS, "padding": "zeros", "reduction": reduction, "backend": backend}
    options |= small[0] if function is ssim else {**small[0], **small[1]}
    value = loss(**options)(*pair, mask=mask)
    assert torch.equal(value, 1 - function(*pair, mask=mask, **options))


@pytest.mark.parametrize(
    ("loss", "structural"), [(L1SSIMLoss, SSIMLoss), (L1MSSSIMLoss, MSSSIMLoss)]
)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_mix_is_the_weighted_sum_of_its_terms(
    backend, precision, pair, small, loss, structural, reduction
):
    x, y = (image.to(precision.dtype) for image in pair)
    options = {**OPTIONS, "reduction": reduction, "backend": backend}
    options |= small[0] if structural is SSIMLoss else {**small[0], **small[1]}
    value = loss(weight=0.3, **options)(x, y)
    l1 = (x - y).abs().mean((1, 2, 3)) / 2
    l1 = l1.mean() if reduction == "mean" else l1
    expected = 0.7 * l1 + 0.3 * structural(**options)(x, y)
    torch.testing.assert_close(value, expected, rtol=0, atol=precision.value(1e-15))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_carries_no_state(loss):
    pair = images(2, 3, 180, 176)
    model = torch.nn.ModuleDict({"net": torch.nn.Linear(2, 2), "loss": loss(**OPTIONS)})
    assert set(model.state_dict()) == {"net.weight", "net.bias"}
    before = model["loss"](*pair)
    assert set(model.state_dict()) == {"net.weight", "net.bias"}
    assert len(list(model.parameters())) == 2
    assert not list(model["loss"].buffers())
    for copied in (
        copy.deepcopy(model["loss"]),
        pickle.loads(pickle.dumps(model["loss"])),
        model["loss"].half().train(False),
    ):
        assert torch.equal(copied(*pair), before)


@pytest.mark.parametrize("loss", LOSSES)
def test_options_may_change_between_calls(loss):
    pair = images(2, 3, 180, 176)
    changed = loss()
    changed(*pair)
    others = {**OPTIONS, "padding": "zeros", "reduction": "none"}
    others |= {"weights": [0.5, 0.5], "normalize": "relu"} if hasattr(changed, "weights") else {}
    others |= {"weight": 0.5} if hasattr(changed, "weight") else {}
    for name, value in others.items():
        assert hasattr(changed, name)
        setattr(changed, name, value)
    assert torch.equal(changed(*pair), loss(**others)(*pair))


def test_weights_are_the_losss_own():
    weights = [0.5, 0.5]
    loss = MSSSIMLoss(weights=weights)
    weights.append(1.0)
    assert loss.weights == (0.5, 0.5)
    loss.weights = weights
    weights[0] = 9.0
    assert loss.weights == (0.5, 0.5, 1.0)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_prints_its_options(loss):
    text = repr(loss(**OPTIONS))
    assert "data_range=(-1, 1), window='gaussian', window_size=3, sigma=1.2, k1=0.02" in text
    assert "k2=0.05, sample_covariance=True, padding='valid'" in text
    assert "L1" not in loss.__name__ or "weight=" in text


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_fall_while_images_come_closer(backend, pair, small, loss):
    y = pair[1]
    options = small[0] if "MSSSIM" not in loss.__name__ else {**small[0], **small[1]}
    noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    values = [
        loss(backend=backend, data_range=(-1, 1), **options)(y + level * noise, y).item()
        for level in (0.8, 0.4, 0.2, 0.1, 0)
    ]
    assert values == sorted(values, reverse=True)
    assert values[-1] == 0
    assert values[0] > 0.1


@pytest.mark.parametrize("taker", FUNCTIONS + LOSSES + FEATURES)
def test_docstrings_say_what_a_user_needs(taker):
    text = inspect.getdoc(taker)
    assert "Example" in text
    assert "identical" in text or taker in (ssim_map, vgg_features)
    assert ">>>" in text


def test_import_stays_light():
    code = (
        "import sys, torch; before = set(sys.modules); import perceptual_losses;"
        "print(*{name.split('.')[0] for name in set(sys.modules) - before})"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(out.stdout.split()) <= {"perceptual_losses"}
