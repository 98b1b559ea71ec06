"""Other packages' names, signatures, defaults and numbers."""

import functools
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
from perceptual_losses.compat.fused_ssim import fused_ssim, fused_ssim3d

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


def theirs_of(name, options):
    """A function of theirs, or a module, with options."""
    member = getattr(pytorch_msssim, name)
    return member(**options) if name.isupper() else functools.partial(member, **options)


def ours_of(name, options):
    """A function of ours, or a module, with options; a module checks them at once."""
    member = getattr(ours, name)
    if name.isupper():
        return lambda *images: member(**options)(*images)
    return functools.partial(member, **options)


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


ACCEPTED = [
    {"data_range": torch.tensor(1)},
    {"data_range": torch.tensor([2.0])},
    {"data_range": 1, "K": [0.02, 0.05]},
    {"data_range": 1, "K": torch.tensor([0.02, 0.05])},
    {"data_range": 1, "win_size": np.int64(7), "win_sigma": np.float32(1.25)},
    {"data_range": 1, "weights": (0.4, 0.6)},
    {"data_range": 1, "weights": torch.tensor([0.4, 0.6])},
]


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
@pytest.mark.parametrize(
    ("name", "options"),
    # SSIM has no weights.
    [(n, o) for n in NAMES for o in ACCEPTED if n.lower() != "ssim" or "weights" not in o],
)
def test_what_they_take_is_taken(pair, name, options):
    expected = theirs_of(name, options)(*pair)
    torch.testing.assert_close(ours_of(name, options)(*pair), expected, rtol=0, atol=4e-6)


def test_modules_read_tensors_once(pair):
    data_range, weights = torch.tensor([1.0]), torch.tensor([0.4, 0.6])
    module = ours.MS_SSIM(data_range=data_range, weights=weights)
    before = module(*pair)
    data_range.fill_(255)
    weights.fill_(9)
    assert torch.equal(module(*pair), before)


@pytest.mark.parametrize("constants", [(0, 0.03), (0.01, 0), (0, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_constants(pair, constants, dtype):
    images = [image.to(dtype) for image in pair]
    for name in ("ssim", "ms_ssim"):
        expected = theirs_of(name, {"data_range": 1, "K": constants})(*images)
        x = images[0].clone().requires_grad_()
        value = ours_of(name, {"data_range": 1, "K": constants})(x, images[1])
        # Without a constant more is left of the rounding of their window.
        torch.testing.assert_close(value, expected, rtol=0, atol=2e-5)
        value.backward()
        assert x.grad.isfinite().all()


def test_zero_constants_are_nowhere_felt():
    """The constant in place of a zero changes no bit, down to images of 1e-12."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, 1, 1, 32, 32, generator=generator)
    for scale in (1.0, 2.0**-40):
        pair = (1 + x) * scale, (1 + y) * scale
        values = [
            ssim(*pair, k1=factor * 2**-61, k2=0.03, backend="reference") for factor in (1, 0.5, 4)
        ]
        assert values[0] == values[1] == values[2]


def test_black_windows_without_a_constant(pair):
    x, y = (image.clone() for image in pair)
    x[..., :20], y[..., :20] = 0, 0
    assert pytorch_msssim.ssim(x, y, data_range=1, K=(0, 0.03)).isnan()
    x.requires_grad_()
    value = ours.ssim(x, y, data_range=1, K=(0, 0.03))
    value.backward()
    assert x.grad.isfinite().all()
    assert -1 <= value <= 1


@pytest.mark.parametrize("shape", [(2, 3, 2, 40), (2, 3, 40, 2), (1, 2, 2, 20, 24), (1, 1, 2, 2)])
def test_axes_shorter_than_the_window_are_not_blurred(shape):
    generator, options = torch.Generator().manual_seed(0), {"data_range": 1, "win_size": 3}
    x, y = torch.rand(2, *shape, generator=generator, dtype=torch.float64)
    with pytest.warns(UserWarning, match="win_size=3 is larger than the image, .*not blurred"):
        value = ours.ssim(x, y, **options)
    with pytest.warns(UserWarning, match="Skipping Gaussian Smoothing"):
        expected = pytorch_msssim.ssim(x, y, **options)
    torch.testing.assert_close(value, expected, rtol=0, atol=5e-6)


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
    for y in (x[:, :, :1, :1], x[:0]):
        with pytest.raises(ValueError, match="X has shape .*: pass images|no image: pass"):
            function(y, y, data_range=1)
    with pytest.raises(ValueError, match="X is torch.uint8 and data_range=1: pass the range"):
        function(x.byte(), x, data_range=1)


BAD_OPTIONS = [
    ({"K": 0.01}, ValueError, r"K=0.01: pass \(K1, K2\)"),
    ({"K": (0.01, 0.03, 0.1)}, ValueError, r"K=\(0.01, 0.03, 0.1\): pass \(K1, K2\)"),
    ({"K": (-0.01, 0.03)}, ValueError, r"K=.*: pass \(K1, K2\), each 0 or more"),
    ({"K": (0.01, "0.03")}, TypeError, r"K is .0.03. \(str\): pass a Python number"),
    ({"K": (float("nan"), 0.03)}, ValueError, "K=nan is not finite"),
    ({"K": (1e-30, 0.03)}, ValueError, r"K=1e-30 with data_range=1.0: \(K L\)\^2 is 1e-60, beyond"),
    ({"win_size": 10}, ValueError, "win_size=10 is not odd and positive: pass 11"),
    ({"win_size": -1}, ValueError, "win_size=-1 is not odd and positive"),
    ({"win_size": 11.5}, TypeError, "win_size is of type float: pass an odd int"),
    ({"win_size": (11, 11)}, TypeError, "win_size is of type tuple: pass an odd int"),
    ({"win_sigma": 0}, ValueError, "win_sigma=0 is not positive"),
    ({"win_sigma": (1.5, 1.5)}, TypeError, "win_sigma is of type tuple: pass a Python number"),
    ({"win_sigma": torch.ones(2)}, ValueError, r"win_sigma has shape \(2,\): pass one number"),
    ({"data_range": 0}, ValueError, "data_range=0 is not positive"),
    ({"data_range": (-1, 1)}, TypeError, "data_range is of type tuple: pass a Python number"),
    ({"data_range": torch.ones(2)}, ValueError, r"data_range has shape \(2,\): pass one number"),
    ({"data_range": torch.zeros(1)}, ValueError, "data_range=0.0 is not positive"),
    ({"data_range": 1e-30}, ValueError, r"K=0.01 with data_range=1e-30: \(K L\)\^2 is 1e-64"),
]
OUR_OPTIONS = re.compile(r"window_size|\bsigma|\bk1|\bk2|reduction|\bx\b|\by\b")


@pytest.mark.parametrize(("options", "error", "match"), BAD_OPTIONS)
@pytest.mark.parametrize("name", NAMES)
def test_errors_name_their_options(pair, name, options, error, match):
    options = {"data_range": 1, **options}
    with pytest.raises(error, match=match) as caught:
        ours_of(name, options)(*pair)
    assert not OUR_OPTIONS.search(str(caught.value))


@pytest.mark.parametrize("weights", [0.5, [], [0.5, -0.1], ["a"], torch.zeros(2, 2)])
def test_weights_of_no_use(pair, weights):
    for name in ("ms_ssim", "MS_SSIM"):
        with pytest.raises((TypeError, ValueError), match="^weights"):
            ours_of(name, {"data_range": 1, "weights": weights})(*pair)


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


def zero_padded(x, y):
    """The map of SSIM with an 11-voxel window in zeros, as its paper has it."""
    taps = torch.exp(-torch.arange(-5, 6, dtype=x.dtype).square() / (2 * 1.5**2))
    taps = taps / taps.sum()
    window = torch.einsum("i,j,k->ijk", taps, taps, taps)[None, None]

    def mean(volume):
        return torch.nn.functional.conv3d(volume, window, padding=5)

    mu_x, mu_y = mean(x), mean(y)
    var_x, var_y = mean(x * x) - mu_x**2, mean(y * y) - mu_y**2
    covariance = mean(x * y) - mu_x * mu_y
    luminance = (2 * mu_x * mu_y + 1e-4) / (mu_x**2 + mu_y**2 + 1e-4)
    return luminance * (2 * covariance + 9e-4) / (var_x + var_y + 9e-4)


def test_fused_ssim3d_has_zeros_around_and_constants_of_one():
    x, y = torch.rand(2, 1, 1, 13, 12, 14, generator=torch.Generator().manual_seed(0)).double()
    values = zero_padded(x, y)
    for padding, expected in (("same", values), ("valid", values[..., 5:-5, 5:-5, 5:-5])):
        assert abs(fused_ssim3d(x, y, padding) - expected.mean()) < 1e-12
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(fused_ssim3d(x, y), x)
    (expected,) = torch.autograd.grad(zero_padded(x, y).mean(), x)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-14)
    assert not fused_ssim3d(x, y, train=False).requires_grad
    assert inspect.signature(fused_ssim3d) == inspect.signature(fused_ssim)
    with pytest.raises(
        ValueError, match=r"\(1, 1, 13, 12, 14\): pass images .*or call fused_ssim3d"
    ):
        fused_ssim(x, y)
    with pytest.raises(ValueError, match="pass volumes .*, or call fused_ssim for these"):
        fused_ssim3d(x[0], y[0])
    with pytest.raises(ValueError, match="padding='zeros' is unknown"):
        fused_ssim3d(x, y, "zeros")


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
