"""Other packages' names, signatures, defaults and numbers."""

import inspect
import re

import numpy as np
import pytest
import pytorch_msssim
import skimage.data
import skimage.filters
import torch

from perceptual_losses import ms_ssim, ssim, ssim_map
from perceptual_losses.compat import pytorch_msssim as ours
from perceptual_losses.compat.fused_ssim import fused_ssim

NAMES = ["ssim", "ms_ssim", "SSIM", "MS_SSIM"]


@pytest.fixture(scope="module")
def pair():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 176, 192, generator=generator)
    return x, 0.3 * x + 0.7 * torch.rand(x.shape, generator=generator)


@pytest.mark.parametrize("name", NAMES)
def test_signatures(name):
    theirs = inspect.signature(getattr(pytorch_msssim, name)).parameters
    mine = inspect.signature(getattr(ours, name)).parameters
    assert list(mine) == list(theirs)
    for parameter in theirs.values():
        assert mine[parameter.name].default == parameter.default
        assert mine[parameter.name].kind == parameter.kind


OPTIONS = [
    {},
    {"size_average": False},
    {"win_size": 7, "win_sigma": 1.0, "K": (0.03, 0.1)},
    {"weights": [0.2, 0.5, 0.3]},
    {"nonnegative_ssim": True},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", NAMES)
def test_numbers(pair, name, options):
    theirs, mine = getattr(pytorch_msssim, name), getattr(ours, name)
    if set(options) - set(inspect.signature(theirs).parameters):
        with pytest.raises(TypeError):
            mine(*pair, data_range=1, **options)
        return
    for x, y in (pair, (pair[0], 1 - pair[0])):
        if name.isupper():
            expected = theirs(data_range=1, **options)(x, y)
            value = mine(data_range=1, **options)(x, y)
        else:
            expected = theirs(x, y, data_range=1, **options)
            value = mine(x, y, data_range=1, **options)
        torch.testing.assert_close(value, expected, rtol=0, atol=4e-6)


@pytest.mark.parametrize("shape", [(1, 2, 11, 13, 15), (2, 1, 1, 20, 24)])
def test_volumes(shape):
    x, y = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    expected = pytorch_msssim.ssim(x, y, data_range=1)
    torch.testing.assert_close(ours.ssim(x, y, data_range=1), expected, rtol=0, atol=2e-6)


def test_gradients_reach_both_images(pair):
    x, y = (image.clone().requires_grad_() for image in pair)
    ours.ms_ssim(x, y, data_range=1).backward()
    their_x, their_y = (image.double().requires_grad_() for image in pair)
    pytorch_msssim.ms_ssim(their_x, their_y, data_range=1).backward()
    for image, other in ((x, their_x), (y, their_y)):
        assert (image.grad - other.grad).norm() < 2e-5 * other.grad.norm()


def test_the_default_range_stays_and_warns(pair):
    x, y = pair
    for value in (
        lambda: ours.ssim(x, y),
        lambda: ours.SSIM()(x, y),
    ):
        with pytest.warns(UserWarning, match="pass data_range=1, or data_range=255"):
            similarity = value()
        expected = pytorch_msssim.ssim(x, y, data_range=255)
        torch.testing.assert_close(similarity, expected, rtol=0, atol=2e-6)
        assert similarity > 0.99
    with pytest.warns(UserWarning, match="every loss nearly 0"):
        ours.ms_ssim(x, y)
    with pytest.warns(UserWarning, match="every loss nearly 0"):
        ours.MS_SSIM()
    # Said, in whatever type: no warning.
    for said in (255, 255.0):
        assert ours.ssim(x, y, data_range=said) > 0.99


def test_what_is_refused(pair):
    with pytest.raises(ValueError, match="win is not supported: pass win_size and win_sigma"):
        ours.ssim(*pair, data_range=1, win=torch.ones(3, 1, 1, 11))
    small = [image[..., :100, :100] for image in pair]
    with pytest.raises(ValueError, match="5 levels with win_size=11 .*161x161.*pass fewer"):
        ours.ms_ssim(*small, data_range=1)
    expected = pytorch_msssim.ms_ssim(*pair, data_range=1, weights=[0.5, 0.5])
    value = ours.ms_ssim(*pair, data_range=1, weights=[0.5, 0.5])
    torch.testing.assert_close(value, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("function", [ours.ssim, ours.ms_ssim])
def test_images_and_options_of_no_use(function):
    x = torch.rand(2, 3, 176, 176)
    for y in (x.reshape(3, 2, 176, 176), x.reshape(6, 1, 176, 176), x[0], x[..., 1:]):
        shapes = re.escape(f"X has shape (2, 3, 176, 176) and Y {tuple(y.shape)}: pass images")
        with pytest.raises(ValueError, match=shapes):
            function(x, y, data_range=1)
    with pytest.raises(TypeError, match="Y is of type ndarray: pass a torch.Tensor"):
        function(x, x.numpy(), data_range=1)
    with pytest.raises(ValueError, match=r"K=0.01: pass \(k1, k2\)"):
        function(x, x, data_range=1, K=0.01)


def test_odd_sides_differ_by_what_the_docstring_says():
    differences = []
    for name in ("astronaut", "coffee", "chelsea", "rocket", "camera"):
        photo = np.atleast_3d(getattr(skimage.data, name)() / 255.0)
        for height, width in ((177, 177), (183, 189), (255, 255), (257, 257), (299, 449)):
            x = photo[20 : 20 + height, 20 : 20 + width]
            if x.shape[:2] != (height, width):
                continue
            noise = np.random.RandomState(0).randn(*np.moveaxis(x, -1, 0).shape)
            blurred = skimage.filters.gaussian(x, 2, channel_axis=-1)
            for y in (x + 0.1 * np.moveaxis(noise, 0, -1), blurred, 0.7 * x):
                images = [torch.from_numpy(image).movedim(-1, 0)[None] for image in (x, y)]
                theirs = pytorch_msssim.ms_ssim(*images, data_range=1)
                differences.append(abs(ours.ms_ssim(*images, data_range=1) - theirs).item())
    assert 2e-4 < np.median(differences) < 4.5e-4
    assert 6e-3 < max(differences) < 8.5e-3
    assert "4e-4 (median) and at most 8e-3" in ours.__doc__


def test_fused_ssim_is_the_zero_padded_mean(pair):
    x, y = pair
    assert torch.equal(fused_ssim(x, y), ssim(x, y, padding="zeros"))
    cropped = ssim_map(x, y, padding="zeros")[..., 5:-5, 5:-5].mean()
    torch.testing.assert_close(fused_ssim(x, y, padding="valid"), cropped, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="padding='zeros' is unknown: pass one of .*'same'"):
        fused_ssim(x, y, padding="zeros")
    parameters = inspect.signature(fused_ssim).parameters.values()
    assert [p.name for p in parameters] == ["img1", "img2", "padding", "train"]
    assert [p.default for p in parameters][2:] == ["same", True]


def test_fused_ssim_without_training(pair):
    x, y = (image.clone().requires_grad_() for image in pair)
    assert not fused_ssim(x, y, train=False).requires_grad
    fused_ssim(x, y).backward()
    assert (x.grad != 0).float().mean() > 0.99
    with torch.no_grad():
        assert not fused_ssim(x, y).requires_grad


def test_ms_ssim_rectifies(pair):
    x, _ = pair
    assert ours.ms_ssim(x, 1 - x, data_range=1) == 0
    assert ms_ssim(x, 1 - x) > 0
