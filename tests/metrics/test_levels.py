"""Levels, weights and normalisation of MS-SSIM."""

import definition
import numpy as np
import pytest
import torch
from backends import BACKENDS

from perceptual_losses import MS_SSIM_WEIGHTS, MSSSIMLoss, ms_ssim
from perceptual_losses._ssim import reference
from perceptual_losses._ssim.cpu import backend as cpu
from perceptual_losses._ssim.gpu import combine as gpu_combine
from perceptual_losses._ssim.gpu.launch import Launches
from perceptual_losses._ssim.request import Definition, Request, reduce_planes


def pair(*shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(shape, generator=generator, dtype=torch.float64)
    y = 0.8 * x + 0.2 * torch.rand(shape, generator=generator, dtype=torch.float64)
    return x.to(dtype), y.to(dtype)


@pytest.fixture
def of_three_taps(sized):
    """Sides and options: for a window of three the sides that take as many levels as of eleven."""

    def smaller(size):
        small = tuple((side - 1) // 5 + 1 for side in size)
        return sized(size, small), sized({}, {"window_size": 3})

    return smaller


def by_definition(x, y, weights, **options):
    return np.mean(
        [
            definition.ms_ssim(a.numpy(), b.numpy(), weights, **options)
            for a, b in zip(x.double().flatten(0, 1), y.double().flatten(0, 1), strict=True)
        ]
    )


@pytest.mark.parametrize(
    ("size", "levels"),
    [
        *(((11, 40), 1), ((20, 21), 1), ((21, 21), 2), ((32, 32), 2)),
        *(((64, 64), 3), ((128, 128), 4)),
    ],
)
def test_as_many_levels_as_fit(backend, precision, of_three_taps, size, levels):
    size, options = of_three_taps(size)
    x, y = pair(1, 2, *size, dtype=precision.dtype)
    with pytest.warns(UserWarning, match=f"fit {levels} of 5 MS-SSIM levels"):
        value = ms_ssim(x, y, backend=backend, **options)
    scale = sum(MS_SSIM_WEIGHTS) / sum(MS_SSIM_WEIGHTS[:levels])
    weights = [weight * scale for weight in MS_SSIM_WEIGHTS[:levels]]
    expected = by_definition(x, y, weights, **options)
    assert value.item() == pytest.approx(expected, abs=precision.value(1e-12))
    assert ms_ssim(x, y, levels=levels, backend=backend, **options) == value


@pytest.mark.parametrize("size", [(161, 161), (161, 177)])
def test_five_levels_without_a_warning(backend, precision, of_three_taps, size):
    size, options = of_three_taps(size)
    x, y = pair(1, 1, *size, dtype=precision.dtype)
    expected = by_definition(x, y, MS_SSIM_WEIGHTS, **options)
    value = ms_ssim(x, y, backend=backend, **options).item()
    assert value == pytest.approx(expected, abs=precision.value(1e-12))


@pytest.mark.filterwarnings("ignore:.* MS-SSIM levels:UserWarning")
@pytest.mark.parametrize("size", [(64, 64), (32, 32), (161, 177)])
@pytest.mark.parametrize("channels", [1, 12])
def test_loss_on_any_size_and_channel_count(backend, sized, of_three_taps, size, channels):
    size, options = of_three_taps(size)
    planes = sized((2, channels), (1, min(channels, 3)))
    x, y = (image.float().requires_grad_() for image in pair(*planes, *size))
    loss = MSSSIMLoss(backend=backend, **options)(x, y)
    loss.backward()
    assert 0.01 < loss < 0.5
    for image in (x, y):
        assert image.grad.isfinite().all()
        assert (image.grad != 0).float().mean() > 0.99


def test_a_level_count_that_does_not_fit_is_refused():
    x, y = pair(1, 1, 16, 16)
    with pytest.raises(ValueError, match="at least 21x21.*16x16.*levels=1.*'auto'.*window_size=7"):
        ms_ssim(x, y, levels=2)
    assert ms_ssim(x, y, levels=1).isfinite()
    assert ms_ssim(x, y, levels=2, window_size=7).isfinite()
    x, y = pair(1, 1, 8, 21, 21)
    with pytest.raises(ValueError, match="at least 11x11x11"):
        ms_ssim(x, y, levels=1)


@pytest.mark.parametrize("weights", [[1, 1, 1, 1, 1], [0.5, 0.5], [1.0], [0, 0.2, 0, 0, 0, 0.8]])
def test_weights_of_any_length(backend, precision, of_three_taps, weights):
    size, options = of_three_taps((330, 328) if len(weights) > 5 else (176, 180))
    x, y = pair(1, 1, *size, dtype=precision.dtype)
    value = ms_ssim(x, y, weights=weights, backend=backend, **options).item()
    expected = by_definition(x, y, weights, **options)
    assert value == pytest.approx(expected, abs=precision.value(1e-12))


@pytest.mark.volumes
def test_volumes(backend):
    x, y = pair(1, 2, 9, 11, 10)
    value = ms_ssim(x, y, window_size=3, weights=[0.2, 0.3, 0.5], backend=backend).item()
    expected = by_definition(x, y, [0.2, 0.3, 0.5], window_size=3)
    assert value == pytest.approx(expected, abs=1e-12)


NORMALIZATIONS = {
    "floor": definition.floor,
    "relu": lambda v: max(v, 0.0),
    "simple": lambda v: (v + 1) / 2,
    None: lambda v: v,
}


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("sign", [1, -1])
def test_normalizations(backend, precision, normalize, sign):
    x, y = pair(1, 1, 24, 24, dtype=precision.dtype)
    y = y if sign > 0 else 1 - y
    options = {"window_size": 3, "weights": (0.4, 0.6)}
    value = ms_ssim(x, y, normalize=normalize, backend=backend, **options).item()
    planes = (image[0, 0].double().numpy() for image in (x, y))
    plain = definition.level_means(*planes, 2, window_size=3)
    assert all(np.sign(plain) == sign)
    if normalize is None and sign < 0:
        assert np.isnan(value)
        return
    expected = by_definition(x, y, (0.4, 0.6), normalize=NORMALIZATIONS[normalize], window_size=3)
    assert value == pytest.approx(expected, abs=precision.value(1e-12))


def test_the_floor_is_smooth_and_increasing():
    means = torch.linspace(-1, 1, 4001, dtype=torch.float64, requires_grad=True)
    from perceptual_losses._ssim.reference import FLOOR, _power

    values = _power(means, 1.0, "floor")
    (slopes,) = torch.autograd.grad(values.sum(), means)
    above = means >= FLOOR
    assert torch.equal(values[above], means[above])
    assert (slopes[above] == 1).all()
    assert (values > 0).all()
    assert (slopes > 0).all()
    assert slopes.max() <= 1
    at_floor = torch.tensor([FLOOR - 1e-9, FLOOR + 1e-9], dtype=torch.float64, requires_grad=True)
    (slopes,) = torch.autograd.grad(_power(at_floor, 1.0, "floor").sum(), at_floor)
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-6, atol=0)


def combine(means, backend, exponents, normalize, reduction="none", mix=None):
    """The value of the levels' means as a fast backend combines them, and its derivatives."""
    request = Request(NOTHING, exponents, normalize, mix, reduction)
    if backend == "triton":
        launch = gpu_combine.combine_launch(means.shape, request)
        run = Launches([launch], means.device, ["means"], ["value", "derivatives"])
        return run(means.contiguous())
    levels = len(exponents)
    similarity, derivatives = cpu.combine_levels(means[:levels], request)
    distance = None if mix is None else means[levels]
    return reduce_planes(request, similarity, distance), derivatives


NOTHING = Definition(((1.0,),), 0.0, 1.0, 1.0, 1.0, "valid")


class Combined(torch.autograd.Function):
    @staticmethod
    def forward(ctx, means, *how):
        value, derivatives = combine(means, *how)
        ctx.save_for_backward(derivatives)
        return value

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0], None, None, None


@pytest.fixture
def product(backend):
    """The product of the levels' means, as the backend computes it."""
    if backend == "reference":
        return reference.product
    return lambda means, *how: Combined.apply(means, backend, *how)


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize(
    "exponents", [(1.0,), (0.3, 0.7), (1.0, 0.0, 0.4, 2.0, 0.1333), (1.0, 2.0, 3.0)]
)
def test_the_product_of_the_levels(product, precision, normalize, exponents):
    generator = torch.Generator().manual_seed(0)
    means = torch.rand(len(exponents), 5, 9, generator=generator)
    # Each level has its turn with means that the normalizations change.
    for j in range(len(exponents)):
        means[j, j % 5, :6] = torch.tensor([-0.9, -1e-3, 0.0, 1e-6, 0.01, 1.0])
    if normalize is None and any(exponent % 1 for exponent in exponents):
        # Of negative numbers only whole powers are real.
        assert product(means, exponents, normalize).isnan().any()
        means.clamp_(min=1e-6)
    exact = means.double().requires_grad_()
    expected = definition_of_product(exact, exponents, normalize)
    (slopes,) = torch.autograd.grad(expected.sum(), exact)
    means = means.to(precision.dtype).requires_grad_()
    found = product(means, exponents, normalize)
    (derivatives,) = torch.autograd.grad(found.sum(), means)
    tolerances = {"rtol": precision.gradient(1e-12), "atol": 1e-12}
    torch.testing.assert_close(found.double(), expected, **tolerances)
    torch.testing.assert_close(derivatives.double(), slopes, **tolerances)
    ones = product(torch.ones_like(means), exponents, normalize)
    assert torch.equal(ones, torch.ones_like(ones))


def definition_of_product(means, exponents, normalize):
    factors = []
    for mean, exponent in zip(means, exponents, strict=True):
        if normalize == "floor":
            mean = torch.where(mean > 0.01, mean, 1e-4 / (0.02 - mean.clamp(max=0.01)))
        elif normalize == "simple":
            mean = 0.5 + 0.5 * mean
        if normalize == "relu":
            dead = mean <= 0
            factors.append(torch.where(dead, 0, torch.where(dead, 1, mean) ** exponent))
        else:
            factors.append(mean**exponent)
    return torch.stack(factors).prod(0)


@pytest.mark.parametrize("planes", [(2, 4), (3, 100)])
@pytest.mark.parametrize("backend", BACKENDS[1:], indirect=True)
def test_the_mean_of_the_products(backend, planes):
    means = torch.rand(3, *planes, generator=torch.Generator().manual_seed(0))
    how = backend, (0.2, 0.3, 0.5), "floor"
    values, expected = combine(means, *how)
    mean, derivatives = combine(means, *how, "mean")
    assert mean == pytest.approx(values.double().mean().item(), abs=1e-7)
    assert torch.equal(derivatives, expected)
    loss, derivatives = combine(means, *how, "loss")
    assert loss == 1 - mean
    assert torch.equal(derivatives, expected)
    assert combine(torch.ones_like(means), *how, "loss")[0] == 0
    distances = torch.rand(1, *planes, generator=torch.Generator().manual_seed(1))
    rows = torch.cat([means, distances])
    mixed, derivatives = combine(rows, *how, "loss", (0.3, 0.5))
    assert abs(mixed - (0.3 * loss + 0.5 * distances.double().mean())) < 1e-7
    torch.testing.assert_close(derivatives[:3], 0.3 * expected, rtol=3e-7, atol=0)
    per_plane = torch.full(planes, 0.5 / (planes[0] * planes[1]))
    torch.testing.assert_close(derivatives[3], per_plane, rtol=1e-7, atol=0)
    of_planes, derivatives = combine(rows, *how, "none", (0.3, 0.5))
    torch.testing.assert_close(of_planes, 0.3 * (1 - values) + 0.5 * distances[0])
    torch.testing.assert_close(derivatives[:3], 0.3 * expected, rtol=3e-7, atol=0)
    assert (derivatives[3] == 0.5).all()
    means[1, -1, -1] = float("nan")
    assert combine(means, *how, "loss")[0].isnan()


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_the_product_of_nan(product, normalize):
    means = torch.full((3, 1, 1), 0.5)
    means[1] = float("nan")
    assert product(means, (0.2, 0.3, 0.5), normalize).isnan()


@pytest.mark.volumes
@pytest.mark.parametrize("depth", [1, 3])
def test_volumes_become_one_slice_thick(backend, depth):
    """A window of one slice fits into every level, and a single slice is its own mean."""
    x, y = torch.rand(2, 1, 2, depth, 24, 25, generator=torch.Generator().manual_seed(0)).double()
    options = {"window_size": (1, 3, 3), "weights": (0.3, 0.3, 0.4), "backend": backend}
    planes = [image[0].numpy() for image in (x, y)]
    exact = np.mean(
        [
            definition.ms_ssim(a, b, (0.3, 0.3, 0.4), window_size=(1, 3, 3))
            for a, b in zip(*planes, strict=True)
        ]
    )
    assert ms_ssim(x, y, **options).item() == pytest.approx(exact, abs=1e-12)
    valid = torch.ones(depth, 24, 25, dtype=torch.bool)
    assert ms_ssim(x, y, valid=valid, **options).item() == pytest.approx(exact, abs=1e-12)
