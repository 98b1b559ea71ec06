"""Mistakes of code that people paste. Each would pass a glance, and fails here."""

import math

import definition
import numpy as np
import pytest
import torch

from perceptual_losses import MS_SSIM_WEIGHTS, MSSSIMLoss, ms_ssim, ssim
from perceptual_losses._ssim.request import gaussian


@pytest.fixture(scope="module")
def pair(sized, precision):
    generator = torch.Generator().manual_seed(0)
    shape = sized((2, 3, 176, 176), (2, 2, 33, 33))
    x = torch.rand(shape, generator=generator, dtype=torch.float64)
    noise = torch.rand(x.shape, generator=generator, dtype=torch.float64)
    # The second pair is far closer than the first, one channel far closer than the others.
    share = torch.tensor([0.9, 0.1], dtype=x.dtype).reshape(2, 1, 1, 1).repeat(1, x.shape[1], 1, 1)
    share[:, 0] /= 9
    return x.to(precision.dtype), ((1 - share) * x + share * noise).to(precision.dtype)


@pytest.fixture(scope="module")
def small(sized):
    """The options that go with small images."""
    return sized({}, {"window_size": 3})


@pytest.mark.parametrize(("size", "sigma"), [(11, 1.5), (7, 0.8), (33, 5.0), (1, 1.0)])
def test_the_window_peaks_in_its_centre(size, sigma):
    """Without the minus sign in the exponent, 72 % of the weight lies in the four corners."""
    taps = np.array(gaussian(size, sigma))
    window = np.outer(taps, taps)
    assert taps.argmax() == size // 2
    assert window.sum() == pytest.approx(1, abs=1e-14)
    assert np.array_equal(taps, taps[::-1])
    assert (np.diff(taps[size // 2 :]) < 0).all()
    if size == 11:
        # exp(-25 / 2.25) of the centre.
        assert window[0, 0] / window[5, 5] == pytest.approx(math.exp(-25 / 2.25), rel=1e-12)
        assert window[[0, 0, -1, -1], [0, -1, 0, -1]].sum() < 5e-6


def test_each_level_is_raised_to_its_own_weight_once(backend, precision, pair, small):
    """Pasted versions multiply the whole product by the last level's power four times."""
    x, y = (image[:1, :1] for image in pair)
    planes = (image[0, 0].double().numpy() for image in (x, y))
    *contrast, similarity = definition.level_means(*planes, 5, **small)
    expected = similarity ** MS_SSIM_WEIGHTS[4]
    for mean, weight in zip(contrast, MS_SSIM_WEIGHTS, strict=False):
        expected *= mean**weight
    value = ms_ssim(x, y, backend=backend, **small).item()
    assert value == pytest.approx(expected, abs=precision.value(1e-12))
    four_times = expected * similarity ** (3 * MS_SSIM_WEIGHTS[4])
    assert abs(expected - four_times) > 1e-3


def test_the_power_is_taken_per_image_and_channel(backend, precision, pair, small):
    """Pasted versions average contrast over the whole batch before the power."""
    value = ms_ssim(*pair, backend=backend, **small).item()
    planes = [
        ms_ssim(x[None, None], y[None, None], backend=backend, **small).item()
        for x, y in zip(*(image.flatten(0, 1) for image in pair), strict=True)
    ]
    assert value == pytest.approx(np.mean(planes), abs=precision.value(1e-14))
    means = np.mean(
        [
            definition.level_means(x.numpy(), y.numpy(), 5, **small)
            for x, y in zip(*(image.double().flatten(0, 1) for image in pair), strict=True)
        ],
        axis=0,
    )
    assert abs(value - np.prod(means**MS_SSIM_WEIGHTS)) > 1e-3


def test_tanh_outputs_are_not_taken_for_zero_to_one(backend, precision, pair, small):
    """L = 1 on values in [-1, 1] takes a quarter of the constants and a wrong zero."""
    x, y = (2 * image - 1 for image in pair)
    value = ssim(x, y, data_range=(-1, 1), backend=backend, **small).item()
    expected = ssim(*pair, backend=backend, **small).item()
    assert value == pytest.approx(expected, abs=precision.value(1e-13))
    assert abs(value - ssim(x, y, backend=backend, **small).item()) > 1e-3


def test_a_loss_in_a_model_follows_it_without_a_copy():
    """Pasted versions build the window on the CPU at each call, or keep it as a buffer that a
    checkpoint then demands."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), MSSSIMLoss())
    model.load_state_dict(torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1)).state_dict(), strict=True)
    model.to("meta")
    x = torch.empty(2, 3, 176, 176, device="meta")
    assert model[1](x, x).device.type == "meta"
