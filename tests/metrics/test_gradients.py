"""First and second derivatives, and the corners where gradients die or explode."""

import functools

import pytest
import torch
from metric_steps import few

from perceptual_losses import (
    L1MSSSIMLoss,
    L1SSIMLoss,
    MSSSIMLoss,
    SSIMLoss,
    ms_ssim,
    ssim,
    ssim_map,
)


def images(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=generator, dtype=torch.float64)
    y = 0.6 * x + 0.4 * torch.rand(shape, generator=generator, dtype=torch.float64)
    x, y = x.to(dtype), y.to(dtype)
    return x.requires_grad_(), y.requires_grad_()


FUNCTIONS = {
    "ssim": functools.partial(ssim, window_size=3),
    "ssim_zeros": functools.partial(ssim, window_size=3, padding="zeros", data_range=(-1, 1)),
    "ssim_symmetric": functools.partial(ssim, window_size=3, padding="symmetric"),
    "ssim_map": functools.partial(ssim_map, window_size=3),
    "ms_ssim": functools.partial(ms_ssim, window_size=3, weights=(0.3, 0.7)),
    "ms_ssim_relu": functools.partial(ms_ssim, window_size=3, weights=(0.3, 0.7), normalize="relu"),
    "ms_ssim_simple": functools.partial(
        ms_ssim, window_size=3, weights=(0.3, 0.7), normalize="simple"
    ),
    "l1_ssim": lambda x, y, **kw: L1SSIMLoss(window_size=3, **kw)(x, y),
    "l1_ms_ssim": lambda x, y, **kw: L1MSSSIMLoss(window_size=3, weights=(0.3, 0.7), **kw)(x, y),
}

MEANS = ["ssim", "ssim_zeros", "ssim_symmetric", "ms_ssim", "ms_ssim_relu", "ms_ssim_simple"]


@pytest.mark.float64
@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives(backend, name):
    function = functools.partial(FUNCTIONS[name], backend=backend)
    x, y = images(2, 2, 7, 8)
    assert torch.autograd.gradcheck(function, (x, y))
    x, y = images(1, 1, 5, 6)
    assert torch.autograd.gradgradcheck(function, (x, y))


@pytest.mark.float64
@pytest.mark.parametrize("name", ["ssim", "ms_ssim"])
def test_derivatives_with_a_mask(backend, name):
    x, y = images(1, 1, 5, 6)
    mask = torch.rand(5, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    function = functools.partial(FUNCTIONS[name], mask=mask, backend=backend)
    assert torch.autograd.gradcheck(function, (x, y))
    assert torch.autograd.gradgradcheck(function, (x, y))


@pytest.mark.float64
@pytest.mark.volumes
@pytest.mark.parametrize("name", ["ssim", "ms_ssim"])
def test_derivatives_of_volumes(backend, name):
    function = functools.partial(FUNCTIONS[name], backend=backend, window_size=3)
    x, y = images(1, 1, 5, 6, 5)
    assert torch.autograd.gradcheck(function, (x, y))
    assert torch.autograd.gradgradcheck(function, (x, y), fast_mode=True)


@pytest.mark.float64
def test_derivatives_below_the_floor(backend):
    x, _ = images(1, 1, 9, 9)
    function = functools.partial(FUNCTIONS["ms_ssim"], backend=backend)
    y = (1 - x.detach()).requires_grad_()
    assert torch.autograd.gradcheck(function, (x, y))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", MEANS)
def test_first_derivatives_are_the_references(backend, precision, name, masked):
    """Whose derivatives in float64 are those of its values."""
    x, y = images(2, 1, 9, 10, dtype=precision.dtype)
    generator = torch.Generator().manual_seed(2)
    mask = torch.rand(2, 1, 9, 10, generator=generator) if masked else None
    exact_x, exact_y = (image.detach().double().requires_grad_() for image in (x, y))
    weight = torch.tensor([2.0, -0.5], dtype=precision.dtype)
    options = {"reduction": "none", "mask": mask}
    value = FUNCTIONS[name](x, y, backend=backend, **options) @ weight
    exact = FUNCTIONS[name](exact_x, exact_y, backend="reference", **options) @ weight.double()
    gradients = torch.autograd.grad(value, (x, y))
    for got, true in zip(gradients, torch.autograd.grad(exact, (exact_x, exact_y)), strict=True):
        assert (got - true).norm() <= precision.gradient(1e-12) * true.norm()


def test_reduction_none_weighs_each_image(backend, precision):
    x, y = images(2, 1, 12, 12, dtype=precision.dtype)
    weight = torch.tensor([2.0, -0.5], dtype=precision.dtype)
    (ssim(x, y, reduction="none", backend=backend) * weight).sum().backward()
    for i in (0, 1):
        single = x.detach()[i : i + 1].requires_grad_()
        ssim(single, y[i : i + 1], backend=backend).backward()
        tolerance = precision.gradient(1e-12)
        expected = weight[i] * single.grad
        torch.testing.assert_close(x.grad[i : i + 1], expected, rtol=tolerance, atol=0)


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.float64)]
)
@pytest.mark.parametrize("loss", [SSIMLoss, MSSSIMLoss, L1SSIMLoss, L1MSSSIMLoss])
def test_identical_images_have_no_loss_and_no_gradient(backend, sized, loss, dtype):
    shape, options = sized((2, 3, 177, 190), (2, 1, 33, 34)), sized({}, {"window_size": 3})
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    x[0, 0] = 0.6
    x.requires_grad_()
    y = x.detach().clone().requires_grad_()
    value = loss(backend=backend, **options)(x, y)
    value.backward()
    assert value == 0
    assert not x.grad.any()
    assert not y.grad.any()


def test_flat_images_have_no_gradient(backend):
    x = torch.full((1, 1, 16, 16), 0.25, requires_grad=True)
    ssim(x, torch.full_like(x, 0.25), backend=backend).backward()
    assert not x.grad.any()


CORNERS = {
    "identical": lambda x: (x, x.clone()),
    "inverted": lambda x: (x, 1 - x),
    "black": lambda x: (torch.zeros_like(x), torch.zeros_like(x)),
    "black_white": lambda x: (torch.zeros_like(x), torch.ones_like(x)),
    "black_image": lambda x: (torch.zeros_like(x), x),
    "flat": lambda x: (torch.full_like(x, 0.6), torch.full_like(x, 0.6 + 1e-7)),
    "one_bright_pixel": lambda x: (torch.zeros_like(x).index_fill(3, torch.tensor(7), 1.0), x),
    "overshoot": lambda x: (10 * x - 5, x),
    "denormal": lambda x: (x * 1e-40, x.flip(2) * 1e-40),
    "half_black": lambda x: (x * (x > 0.5), x),
}


@pytest.mark.parametrize("corner", CORNERS)
@few("normalize", ["floor", "relu", "simple"], ["floor"])
def test_corners_are_clean(backend, sized, corner, normalize):
    shape, options = sized((1, 2, 190, 190), (1, 1, 6, 8)), sized({}, {"window_size": 3})
    levels = {"normalize": normalize, **options, **sized({}, {"weights": (0.4, 0.6)})}
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    x, y = (image.detach().requires_grad_() for image in CORNERS[corner](x))
    with torch.autograd.set_detect_anomaly(True):
        for loss in (
            MSSSIMLoss(backend=backend, **levels),
            L1MSSSIMLoss(backend=backend, **levels),
            SSIMLoss(backend=backend, **options),
        ):
            value = loss(x, y)
            value.backward()
            assert value.isfinite()
            assert x.grad.isfinite().all()
            assert y.grad.isfinite().all()


def test_inverted_images_keep_a_gradient(backend, sized):
    side, options = sized(190, 33), sized({}, {"window_size": 3})
    x = torch.rand(1, 1, side, side, generator=torch.Generator().manual_seed(0), requires_grad=True)
    value = ms_ssim(x, 1 - x.detach(), backend=backend, **options)
    (alive,) = torch.autograd.grad(value, x)
    assert 0 < value < 0.01
    assert alive.isfinite().all()
    assert (alive != 0).float().mean() > 0.99

    value = ms_ssim(x, 1 - x.detach(), normalize="relu", backend=backend, **options)
    (dead,) = torch.autograd.grad(value, x)
    assert value == 0
    assert not dead.any()


def adam_from_the_negative(target, loss, steps):
    x = (1 - target).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=2e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(x, target).backward()
        optimizer.step()
    return ms_ssim(x.detach(), target, levels=4).item()


@pytest.mark.training
@pytest.mark.parametrize("kind", ["noise", "smooth", "photo"])
def test_training_from_the_negative(backend, kind, photo):
    target = torch.rand(1, 1, 96, 96, generator=torch.Generator().manual_seed(0))
    if kind == "smooth":
        target = torch.nn.functional.interpolate(target[..., :6, :6], size=96, mode="bicubic")
    elif kind == "photo":
        target = photo[:, :1, 50:242:2, 150:342:2].float()
    assert adam_from_the_negative(target, MSSSIMLoss(levels=4, backend=backend), 150) > 0.95
    # The usual rectification has no gradient there: not one step changes the value.
    relu = MSSSIMLoss(levels=4, normalize="relu", backend=backend)
    x = (1 - target).requires_grad_()
    relu(x, target).backward()
    assert not x.grad.any()
    assert adam_from_the_negative(target, relu, 20) == ms_ssim(1 - target, target, levels=4).item()


def test_second_derivatives_reach_both_images(backend, precision):
    x, y = images(1, 1, 12, 12, dtype=precision.dtype)
    (first,) = torch.autograd.grad(ssim(x, y, backend=backend), x, create_graph=True)
    mixed = torch.autograd.grad(first.square().sum(), (x, y))
    assert all(derivative.abs().max() > 1e-6 for derivative in mixed)
