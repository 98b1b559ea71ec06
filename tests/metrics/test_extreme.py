"""Images far beyond the range: SSIM stays bounded and right, and gradients finite."""

import functools

import pytest
import pytorch_msssim
import torch
from metric_steps import PADDINGS, every_padding, few, step

from perceptual_losses import (
    L1MSSSIMLoss,
    L1SSIMLoss,
    MSSSIMLoss,
    SSIMLoss,
    ms_ssim,
    ssim,
    ssim_map,
)

OFFSETS = [1e4, 1e5, 1e6, 1e10, 1e17]


def noise(side, seed, channels=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, channels, side, side, generator=generator)


def half_far(side, offset):
    """A noise image with half of it above the range, and another noise image."""
    x = noise(side, 0)
    x[..., side // 2 :] += offset
    return x, noise(side, 1)


def blob(side, height):
    """The same noise with a smooth blob on it, and without."""
    u = torch.linspace(-3, 3, side, dtype=torch.float64)
    above = height * torch.exp(-(u[:, None] ** 2 + u**2))
    return (noise(side, 0).double() + above).float(), noise(side, 0)


WILD = {
    **{f"half {offset:g}": lambda side, o=offset: half_far(side, o) for offset in OFFSETS},
    **{f"below {offset:g}": lambda side, o=offset: half_far(side, -o) for offset in OFFSETS},
    "whole": lambda side: (noise(side, 0) + 1e6, noise(side, 1)),
    "both": lambda side: (noise(side, 0) + 1e6, noise(side, 1) + 1e6),
    "loud": lambda side: (1e6 * (noise(side, 0) - 0.5), noise(side, 1)),
    "loud twice": lambda side: (1e6 * (noise(side, 0) - 0.5), 1e6 * (noise(side, 1) - 0.5)),
    "checkers": lambda side: (noise(side, 0).round() * 1e8, noise(side, 1)),
    "blob": lambda side: blob(side, 1e4),
    "mountain": lambda side: blob(side, 1e9),
    # A similarity of exactly -1, where the power of (v + 1) / 2 has an infinite slope.
    "opposite": lambda side: (noise(side, 0) + 1e6, noise(side, 1) - 1e6),
    "negative": lambda side: (1e6 * (noise(side, 0) - 0.5), -1e6 * (noise(side, 0) - 0.5)),
}
every_wild = few("wild", WILD, ["half 10000", "half 1e+17", "mountain", "opposite"])
LOSSES = {
    "ssim": SSIMLoss,
    "l1_ssim": L1SSIMLoss,
    **{
        f"ms_ssim_{normalize}": functools.partial(MSSSIMLoss, normalize=normalize)
        for normalize in ("floor", "relu", "simple")
    },
    "l1_ms_ssim": L1MSSSIMLoss,
}


@pytest.fixture
def side(sized):
    return sized(192, 40)


@pytest.mark.parametrize("offset", [-1e4, 1e4])
def test_half_of_an_image_far_away(backend, side, offset):
    """The half that is there counts as it would by itself, the other as dissimilar."""
    x, y = half_far(side, offset)
    exact = ssim(x.double(), y.double(), backend="reference").item()
    assert abs(exact) < 0.05
    assert abs(ssim(x, y, backend=backend).item() - exact) < 1e-4
    values = ssim_map(x, y, backend=backend)
    near = ssim_map(x[..., : side // 2], y[..., : side // 2], backend=backend)
    torch.testing.assert_close(values[..., : near.shape[-1]], near, rtol=0, atol=1e-4)
    assert values[..., side // 2 :].abs().max() < 1e-3


@pytest.mark.large
@pytest.mark.parametrize("path", ["reference", "numba"])
def test_the_limits_are_those_of_the_documentation(path):
    """An improvement of them is to be written there: docs/numerics.md."""

    def error(function, x, y):
        return abs(function(x, y, backend=path) - function(x.double(), y.double())).item()

    y = noise(192, 1)
    x = 0.7 * y + 0.3 * noise(192, 0)
    above = torch.zeros_like(x)
    above[..., 96:] = 1e4
    assert 0.02 < error(ms_ssim, x + above, y) < 0.2
    assert 0.2 < error(ssim, x + above / 10, y + above / 10) < 0.4
    functions = (
        functools.partial(ssim, backend=path),
        functools.partial(pytorch_msssim.ssim, data_range=1.0),
    )
    for scale, stated in ((10, 4e-6), (100, 6e-5), (1000, 8e-4)):
        loud = scale * torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
        exact = gradient(ssim, loud.double(), y.double())
        ours, theirs = (
            ((gradient(function, loud, y) - exact).norm() / exact.norm()).item()
            for function in functions
        )
        assert 0.5 < ours / stated < 1.5
        assert 10 < ours / theirs < 30


def gradient(function, x, y):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(function(x, y), x)[0].double()


@every_wild
def test_the_map_is_bounded(backend, side, wild):
    x, y = WILD[wild](side)
    for padding in PADDINGS:
        values = ssim_map(x, y, window_size=3, padding=padding, backend=backend)
        assert values.isfinite().all()
        assert values.abs().max() <= 1 + 1e-6


@every_wild
def test_the_second_factor_is_bounded(backend, side, sized, wild):
    """Its mean at each level: with all weight on one level a product is that level's mean."""
    x, y = WILD[wild](side)
    options = {"normalize": None, "backend": backend, **sized({}, {"window_size": 3})}
    for weights in ((1.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)):
        value = ms_ssim(x, y, weights=weights, **options)
        assert abs(value.item()) <= 1 + 1e-6


@every_wild
@few("name", LOSSES, ["ssim", "ms_ssim_floor", "l1_ms_ssim"])
def test_losses_are_bounded_and_gradients_finite(backend, side, sized, name, wild):
    x, y = WILD[wild](side)
    options = sized({}, {"window_size": 3, **({} if "ms" not in name else {"levels": 2})})
    loss = LOSSES[name](backend=backend, **options)
    value, *gradients = step(loss, x, y)
    assert value.isfinite()
    if "l1" not in name:
        assert 0 <= value <= (2 if name == "ssim" else 1) + 1e-6
    for gradient in gradients:
        assert gradient.isfinite().all()


@every_padding
@few("name", ["ssim", "l1_ssim"], ["ssim"])
def test_the_gradient_on_a_smooth_blob(backend, side, name, padding):
    """Where each pixel lies elsewhere beyond the range, the others keep their digits."""
    x, y = blob(side, 1e4)
    value, *gradients = step(LOSSES[name](backend=backend, padding=padding), x, y)
    exact = step(LOSSES[name](backend="reference", padding=padding), x.double(), y.double())
    assert abs(value - exact[0]) < 1e-5 * max(1, exact[0])
    # Around the corners, which have the most windows outside of "valid", the images are nearly
    # equal, and their gradient is nearly nothing.
    limit = 1e-5 if padding == "valid" else 1e-4
    for gradient, true in zip(gradients, exact[1:], strict=True):
        assert (gradient - true).norm() <= limit * true.norm()


@pytest.mark.parametrize("name", ["ssim", "ms_ssim_floor"])
def test_a_far_pixel_costs_the_others_no_digits(backend, side, sized, name):
    """As a firefly of a renderer, or a dead pixel of a sensor."""
    y = noise(side, 0)
    x = 0.7 * y + 0.3 * noise(side, 1)
    x[..., side // 3, side // 2] = 1e6
    options = sized({}, {"window_size": 3, **({} if name == "ssim" else {"levels": 2})})
    value, *gradients = step(LOSSES[name](backend=backend, **options), x, y)
    exact = step(LOSSES[name](backend="reference", **options), x.double(), y.double())
    assert abs(value - exact[0]) < 1e-5
    for gradient, true in zip(gradients, exact[1:], strict=True):
        assert (gradient - true).norm() <= 1e-4 * true.norm()


def test_far_images_of_their_own_range(backend, precision, sized):
    """The range says what is far: large images of a large range are like all others."""
    x, y = (image.to(precision.dtype) for image in half_far(sized(64, 24), 0.5))
    function = functools.partial(ssim, window_size=3, backend=backend)
    near = step(function, x, y)
    for scale in (2.0**20, 2.0**-20):
        for data_range in (scale, torch.tensor([scale])):
            got = step(
                functools.partial(function, data_range=data_range),
                *(scale * image for image in (x, y)),
            )
            assert abs(got[0] - near[0]) <= precision.value(1e-12)
            for gradient, expected in zip(got[1:], near[1:], strict=True):
                error = (scale * gradient - expected).norm()
                assert error <= precision.gradient(1e-11) * expected.norm()


@pytest.mark.volumes
@pytest.mark.parametrize("offset", OFFSETS)
def test_volumes(backend, offset):
    x, y = (image.expand(12, -1, -1, -1).movedim(0, 2) for image in half_far(24, offset))
    value, *gradients = step(SSIMLoss(window_size=3, backend=backend), x, y)
    assert 0 <= value <= 2
    assert all(gradient.isfinite().all() for gradient in gradients)
    exact = SSIMLoss(window_size=3, backend="reference")(x.double(), y.double())
    if offset < 1e5:
        assert abs(value - exact) < 1e-4


@pytest.mark.training
def test_training_from_far_away(backend):
    """An image far above the range comes back: its gradient is small, and not lost."""
    y = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    x = (y + 1e4).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=1000.0)
    loss = L1SSIMLoss(backend=backend)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97)
    losses = []
    for _ in range(400):
        optimizer.zero_grad()
        value = loss(x, y)
        value.backward()
        assert x.grad.isfinite().all()
        optimizer.step()
        scheduler.step()
        losses.append(value.item())
    assert losses[-1] < 0.1 * losses[0]
