"""NaN and infinity show in the value of their image, and touch no other."""

import pytest
import torch

from perceptual_losses import L1MSSSIMLoss, L1SSIMLoss, MSSSIMLoss, SSIMLoss, ssim, ssim_map

SMALL = {"window_size": 3, "weights": (0.4, 0.6)}
LOSSES = {
    "ssim": lambda **kw: SSIMLoss(window_size=3, **kw),
    "zeros": lambda **kw: SSIMLoss(window_size=3, padding="zeros", **kw),
    "symmetric": lambda **kw: SSIMLoss(window_size=3, padding="symmetric", **kw),
    "floor": lambda **kw: MSSSIMLoss(**SMALL, **kw),
    "relu": lambda **kw: MSSSIMLoss(normalize="relu", **SMALL, **kw),
    "simple": lambda **kw: MSSSIMLoss(normalize="simple", **SMALL, **kw),
    "paper": lambda **kw: MSSSIMLoss(normalize=None, **SMALL, **kw),
    "first_level": lambda **kw: MSSSIMLoss(window_size=3, weights=(1, 0), **kw),
    "last_level": lambda **kw: MSSSIMLoss(window_size=3, weights=(0, 1), **kw),
    "l1_ssim": lambda **kw: L1SSIMLoss(window_size=3, **kw),
    "no_ssim": lambda **kw: L1SSIMLoss(weight=0, window_size=3, **kw),
    "no_l1": lambda **kw: L1SSIMLoss(weight=1, window_size=3, **kw),
    "l1_ms_ssim": lambda **kw: L1MSSSIMLoss(normalize="relu", **SMALL, **kw),
}
VALUES = [torch.nan, torch.inf, -torch.inf]
OTHERS = [0, 2]


def pair(*shape):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(shape, generator=generator)
    return x, 0.7 * x + 0.3 * torch.rand(shape, generator=generator)


def step(loss, x, y, **options):
    """Values, and both gradients."""
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    value = loss(x, y, **options)
    return value.detach(), *torch.autograd.grad(value.sum(), (x, y))


def spoil(image, value, place):
    """Image 1 with such a pixel in its last channel."""
    image = image.clone()
    image[(1, -1, *place)] = value
    return image


def check(loss, x, y, value, place, **options):
    clean = step(loss, x, y, **options)
    for images in ((spoil(x, value, place), y), (x, spoil(y, value, place))):
        got = step(loss, *images, **options)
        assert got[0].isnan().tolist() == [False, True, False]
        for result, expected in zip(got, clean, strict=True):
            assert torch.equal(result[OTHERS], expected[OTHERS])


@pytest.mark.parametrize("value", VALUES)
def test_the_map_is_nan_in_the_windows_that_hold_it(backend, value):
    x, y = pair(2, 1, 9, 10)
    clean = ssim_map(x, y, window_size=3, backend=backend)
    for row in range(9):
        got = ssim_map(spoil(x, value, (row, 4)), y, window_size=3, backend=backend)
        expected = torch.zeros(2, 1, 7, 8, dtype=torch.bool)
        expected[1, 0, max(row - 2, 0) : row + 1, 2:5] = True
        assert torch.equal(got.isnan(), expected)
        torch.testing.assert_close(got[~expected], clean[~expected], rtol=0, atol=1e-5)


@pytest.mark.large
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("name", LOSSES)
def test_one_image_alone(backend, name, value):
    loss = LOSSES[name](reduction="none", backend=backend)
    for place in ((0, 0), (4, 5), (-1, -1)):
        check(loss, *pair(3, 2, 9, 11), value, place)


@pytest.mark.volumes
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("name", LOSSES)
def test_one_volume_alone(backend, name, value):
    loss = LOSSES[name](reduction="none", backend=backend)
    check(loss, *pair(3, 2, 6, 7, 5), value, (3, 6, 0))


@pytest.mark.parametrize(
    "name",
    ["relu", *[pytest.param(name, marks=pytest.mark.large) for name in LOSSES if name != "relu"]],
)
def test_the_mean_shows_it_and_its_gradient_is_clean(backend, name):
    loss = LOSSES[name](backend=backend)
    x, y = pair(3, 1, 9, 11)
    _, *clean = step(loss, x, y)
    value, *gradients = step(loss, spoil(x, torch.nan, (4, 5)), y)
    assert value.isnan()
    for gradient, expected in zip(gradients, clean, strict=True):
        assert torch.equal(gradient[OTHERS], expected[OTHERS])


@pytest.mark.large
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("name", LOSSES)
def test_a_mask_does_not_hide_it(backend, name, value):
    """Weights weigh the map, and windows reach under them: clean such pixels before."""
    loss = LOSSES[name](reduction="none", backend=backend)
    mask = torch.ones(9, 11)
    mask[:, :8] = 0
    check(loss, *pair(3, 2, 9, 11), value, (0, 0), mask=mask)


@pytest.mark.parametrize("normalize", ["floor", "relu", "simple", None])
@pytest.mark.parametrize("level", range(3))
def test_a_mean_of_any_level(normalize, level):
    from perceptual_losses._ssim.reference import _power

    means = [torch.tensor(0.5)] * 3
    means[level] = torch.tensor(torch.nan)
    powers = [_power(mean, 0.3, normalize) for mean in means]
    assert [power.isnan().item() for power in powers] == [i == level for i in range(3)]


@pytest.mark.large
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_of_other_dtypes(backend, dtype):
    x, y = (image.to(dtype) for image in pair(3, 2, 9, 11))
    check(LOSSES["relu"](reduction="none", backend=backend), x, y, torch.nan, (4, 5))


@pytest.mark.large
def test_numbers_too_large_to_square_spoil_their_image_alone(backend):
    x, y = pair(3, 2, 9, 11)
    for loss in (LOSSES["ssim"], LOSSES["relu"], LOSSES["l1_ssim"]):
        loss = loss(reduction="none", backend=backend)
        clean = step(loss, x, y)
        got = step(loss, torch.stack([x[0], 1e30 * x[1], x[2]]), y)
        for result, expected in zip(got, clean, strict=True):
            assert torch.equal(result[OTHERS], expected[OTHERS])


@pytest.mark.large
def test_all_of_a_batch(backend):
    """Nothing hangs, and nothing is left of it in the next call."""
    x, y = pair(3, 2, 40, 300)
    loss = LOSSES["floor"](reduction="none", backend=backend)
    clean = step(loss, x, y)
    for value in VALUES:
        assert step(loss, torch.full_like(x, value), y)[0].isnan().all()
    for result, expected in zip(step(loss, x, y), clean, strict=True):
        assert torch.equal(result, expected)


def test_decibels_of_identical_images(backend):
    """No gradient, as torch has none, and no warning either."""
    x = torch.rand(1, 1, 16, 16, requires_grad=True)
    (-10 * torch.log10(1 - ssim(x, x.detach(), backend=backend))).backward()
    assert x.grad.isnan().all()
