"""The convolutions of features with fewer products, against torch's."""

import copy
import pickle

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import example, given, settings
from torch.nn import functional

from perceptual_losses import LPIPSLoss, StyleLoss, VGGLoss, vgg_features
from perceptual_losses._features import winograd
from perceptual_losses._features.winograd import BASES, convolution, suits, transform_filters

pytestmark = pytest.mark.filterwarnings("ignore:the features of")

# Of the error relative to all values: several roundings of the products' sums.
TOLERANCE = {torch.float32: 4e-6, torch.bfloat16: 2e-2}


def case(n, channels, height, width, out, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, channels, height, width, generator=generator).relu()
    weight = torch.randn(out, channels, 3, 3, generator=generator) * (2 / (9 * channels)) ** 0.5
    return x.to(dtype), weight.to(dtype), torch.randn(out, generator=generator).to(dtype)


def error(got, exact):
    return ((got.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("dtype", list(BASES))
@settings(max_examples=20)
@given(
    n=st.integers(1, 3),
    height=st.integers(1, 11),
    width=st.integers(1, 11),
    channels=st.sampled_from([64, 128]),
    out=st.sampled_from([64, 192]),
    rectify=st.booleans(),
)
@example(n=1, height=1, width=1, channels=64, out=64, rectify=False)
@example(n=3, height=40, width=41, channels=64, out=64, rectify=True)
def test_values_and_gradients(dtype, n, height, width, channels, out, rectify):
    x, weight, bias = case(n, channels, height, width, out, dtype)
    x.requires_grad_()
    matrices = transform_filters(weight)
    y = convolution(x, weight, matrices, bias, rectify)
    assert y.dtype == dtype
    wide = x.detach().double().requires_grad_()
    exact = functional.conv2d(wide, weight.double(), bias.double(), padding=1)
    assert error(y, exact.relu() if rectify else exact) < TOLERANCE[dtype]
    sent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    (gradient,) = torch.autograd.grad(y, x, sent)
    assert gradient.dtype == dtype
    # Where the output itself says that it was zero: its sign is a matter of rounding.
    through = sent * (y > 0) if rectify else sent
    (expected,) = torch.autograd.grad(exact, wide, through.double())
    if through.any():
        assert error(gradient, expected) < TOLERANCE[dtype]
    else:
        assert not gradient.any()
    with torch.no_grad():
        assert torch.equal(convolution(x, weight, matrices, bias, rectify), y)


def test_many_channels_round_little():
    x, weight, bias = case(2, 512, 20, 20, 512, torch.float32)
    exact = functional.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    plain = functional.conv2d(x, weight, bias, padding=1)
    y = convolution(x, weight, transform_filters(weight), bias, False)
    # Transforms multiply the rounding of products by about 5. One sum of 512 products gives 13.
    assert error(y, exact) < 8 * error(plain, exact)


@pytest.mark.parametrize("dtype", list(BASES))
def test_whole_numbers_are_exact(dtype):
    """A filter that moves the image by a pixel: sums of a few small numbers have no rounding."""
    x = torch.arange(64 * 6 * 7).reshape(1, 64, 6, 7).remainder(5).to(dtype)
    weight = torch.zeros(64, 64, 3, 3, dtype=dtype)
    weight[torch.arange(64), torch.arange(64), 0, 1] = 1
    y = convolution(x, weight, transform_filters(weight), torch.zeros(64, dtype=dtype), False)
    moved = functional.pad(x, (0, 0, 1, 0))[..., :-1, :]
    torch.testing.assert_close(y, moved, rtol=0, atol=1e-5 if dtype == torch.float32 else 0)


def test_layouts_give_the_same():
    x, weight, bias = case(2, 64, 9, 10, 128, torch.float32)
    matrices = transform_filters(weight)
    expected = convolution(x, weight, matrices, bias, True)
    assert expected.is_contiguous(memory_format=torch.channels_last)
    for layout in (
        x.contiguous(memory_format=torch.channels_last),
        torch.cat([x, x], 3)[..., 10:],
        x.mT.contiguous().mT,
    ):
        assert torch.equal(convolution(layout, weight, matrices, bias, True), expected)


@given(
    total=st.integers(1, 2000), blocks=st.sampled_from([1, 2, 3, 4, 8]), threads=st.integers(1, 64)
)
def test_threads_have_equal_shares(total, blocks, threads):
    groups, size = winograd._units(total, blocks, threads)
    units = -(-total // size) * groups
    assert blocks % groups == 0
    assert size <= winograd.MOST_TILES
    longest = -(-units // threads) * size / groups
    assert longest <= max(winograd.LEAST_TILES, -(-total // threads) * 1.5)


def test_channels_are_shared_only_where_tiles_are_few():
    # Two threads have 98 tiles each: groups would only transform them twice.
    assert winograd._units(196, 8, 2) == (1, 98)
    # Half of 64 tiles would be too few for the filters that are read.
    assert winograd._units(64, 8, 2) == (2, 64)


@pytest.mark.parametrize("side", [9, 41])
def test_threads_give_the_same(side):
    """They share the output's channels, or tiles of which the last have less than a block."""
    x, weight, bias = case(2, 64, side, side, 512, torch.float32)
    matrices = transform_filters(weight)
    x.requires_grad_()
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            y = convolution(x, weight, matrices, bias, True)
            found.append((y, *torch.autograd.grad(y.square().sum(), x)))
    finally:
        torch.set_num_threads(before)
    for y, gradient in found[1:]:
        assert torch.equal(y, found[0][0])
        assert torch.equal(gradient, found[0][1])


@pytest.mark.parametrize("rectify", [False, True])
def test_a_nan_stays_in_its_image(rectify):
    x, weight, bias = case(2, 64, 9, 10, 64, torch.float32)
    matrices = transform_filters(weight)
    expected = convolution(x, weight, matrices, bias, rectify)
    x[0, 3, 4, 5] = float("nan")
    y = convolution(x, weight, matrices, bias, rectify)
    assert y[0, :, 3:6, 4:7].isnan().all()
    assert torch.equal(y[1], expected[1])


def test_second_derivatives():
    x, weight, bias = case(1, 64, 6, 6, 64, torch.float32)
    x.requires_grad_()
    sent = torch.randn(1, 64, 6, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
    y = convolution(x, weight, transform_filters(weight), bias, True)
    (gradient,) = torch.autograd.grad(y, x, sent, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), sent)
    ones = functional.conv2d(torch.ones(1, 64, 6, 6).double(), weight.double(), padding=1)
    assert error(second, ones * (y > 0)) < 1e-6


def test_what_it_is_for():
    x, weight, _ = case(1, 64, 32, 32, 64, torch.float32)
    assert suits(x, weight)
    # Of few places the filters take longer than the convolution.
    assert not suits(x[..., :31], weight)
    assert not suits(x.double(), weight.double())
    assert not suits(x.half(), weight.half())
    assert not suits(x, torch.zeros(64, 64, 1, 1))
    assert not suits(x[:, :48], torch.zeros(64, 48, 3, 3))
    assert not suits(x.to("meta"), weight.to("meta"))
    # Half of the time would go into what surrounds the products.
    assert not suits(x.bfloat16(), weight.bfloat16())
    wide = torch.zeros(1, 256, 16, 16, dtype=torch.bfloat16)
    assert suits(wide, torch.zeros(256, 256, 3, 3, dtype=torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16):
        assert not suits(x, weight)


def test_the_matrices_live_and_die_with_the_weights():
    extract = vgg_features(["relu2_2"], weights=None)
    x = torch.rand(2, 3, 64, 64)
    features = extract(x)["relu2_2"]
    names = ["2.weight", "5.weight", "7.weight"]
    assert list(extract._matrices) == names
    kept = {name: extract._matrices[name][1] for name in names}
    extract(x)
    assert all(extract._matrices[name][1] is kept[name] for name in names)
    assert not extract.state_dict()
    extract._keep({key: 2 * extract.constant(key) for key in ("7.weight", "7.bias")})
    torch.testing.assert_close(extract(x)["relu2_2"], 2 * features)
    assert not pickle.loads(pickle.dumps(extract))._matrices
    twin = copy.deepcopy(extract)
    assert not twin._matrices
    assert torch.equal(twin(x)["relu2_2"], extract(x)["relu2_2"])
    assert list(extract.float()._matrices) == names
    assert not extract.double()._matrices


def test_losses_on_the_same_weights_share_the_matrices():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, 1, 3, 64, 64, generator=generator)
    state = vgg_features(["relu5_3"], weights=None)._constants
    del state["scale"], state["shift"]
    losses = [
        VGGLoss({"relu2_2": 1.0}, weights=state),
        StyleLoss({"relu2_2": 1.0}, weights=state),
        LPIPSLoss(weights=state),
    ]
    for loss in losses:
        loss(x, y)
    first, *others = ({k: v[1] for k, v in loss.extractor._matrices.items()} for loss in losses)
    assert list(first) == ["2.weight", "5.weight", "7.weight"]
    for matrices in others:
        assert all(matrices[key] is first[key] for key in first)
    # They go when the last loss does.
    count = len(winograd._SHARED)
    kept = len(others[1])
    del losses, loss, first, others, matrices
    assert len(winograd._SHARED) == count - kept


def test_weights_changed_in_place():
    extract = vgg_features(["conv2_2"], weights=None)
    x = torch.rand(2, 3, 64, 64)
    features = extract(x)["conv2_2"]
    extract.constant("7.weight").mul_(2)
    extract.constant("7.bias").mul_(2)
    torch.testing.assert_close(extract(x)["conv2_2"], 2 * features)


def test_features_changed_in_place():
    extract = vgg_features(["conv2_2"], weights=None)
    x = torch.rand(2, 3, 64, 64, requires_grad=True)
    (expected,) = torch.autograd.grad(extract(x)["conv2_2"].relu().sum(), x)
    (got,) = torch.autograd.grad(functional.relu_(extract(x)["conv2_2"]).sum(), x)
    assert torch.equal(got, expected)


def test_training_after_inference():
    """What the first call makes and keeps can be saved for a backward."""
    loss = VGGLoss({"relu2_2": 1.0}, weights=None)
    x, y = torch.rand(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = loss(x, y)
    value = loss(x.requires_grad_(), y)
    value.backward()
    assert value.item() == expected.item()
    assert x.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_in_them(dtype):
    """Against the same weights in float64, which torch convolves."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, 2, 3, 48, 56, generator=generator)
    torch.manual_seed(0)
    content = VGGLoss({"relu2_2": 1.0, "conv3_2": 1.0}, weights=None, dtype=dtype)
    calibrated = LPIPSLoss(weights=None, dtype=dtype)
    for loss in (content, calibrated):
        exact = copy.deepcopy(loss)
        exact.extractor.dtype = None
        value, expected = loss(x, y), exact.double()(x.double(), y.double())
        assert value.dtype == torch.float32
        close = 1e-5 if dtype == torch.float32 else 2e-2
        assert value.item() == pytest.approx(expected.item(), rel=close)
