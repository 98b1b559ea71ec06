"""Values on drawn sizes, windows, ranges and constants, against independent definitions."""

import functools
from typing import NamedTuple

import definition
import numpy as np
import pytest
import torch
from backends import INTERPRETED
from hypothesis import given
from hypothesis import strategies as st
from skimage.metrics import structural_similarity

from perceptual_losses import ms_ssim, ssim, ssim_map


def draw_pair(draw, shape):
    """Two images that are related to a drawn degree, some of it beyond the range of 1."""
    rng = np.random.RandomState(draw(st.integers(0, 2**31)))
    x = rng.rand(*shape)
    y = draw(st.floats(-1, 1)) * x + draw(st.floats(0, 0.7)) * rng.randn(*shape)
    return x, y


class Case(NamedTuple):
    """A drawn call.

    Attributes:
        x: the first image, float64; NaN, infinity or a large number where pixels are not valid.
        y: the second image alike.
        low: the value that counts as zero.
        lengths: the range of each image.
        own: whether images have ranges of their own.
        options: the options that the definition has too.
        mask: weights of pixels, or ``None``.
        valid: the pixels that exist, or ``None``.
    """

    x: np.ndarray
    y: np.ndarray
    low: float
    lengths: list[float]
    own: bool
    options: dict
    mask: np.ndarray | None
    valid: np.ndarray | None

    def images(self, precision):
        """Both images as the path takes them."""
        return tuple(torch.from_numpy(image).to(precision.dtype) for image in (self.x, self.y))

    def keywords(self, names=("mask", "valid")):
        """The options as our functions take them."""
        data_range = self.low, self.low + self.lengths[0]
        if self.own:
            data_range = torch.tensor(self.lengths, dtype=torch.float64)
        extras = {
            name: torch.from_numpy(value)
            for name in names
            if (value := getattr(self, name)) is not None
        }
        return {**self.options, **extras, "data_range": data_range}

    def planes(self, precision, function, masked=True):
        """A function of the definition, of each plane: ``(N, C, ...)``."""
        x, y = (image.double().numpy() for image in self.images(precision))
        return np.array(
            [
                [function(a, b, **self._of_image(i, masked)) for a, b in zip(*pair, strict=True)]
                for i, pair in enumerate(zip(x, y, strict=True))
            ]
        )

    def _of_image(self, i, masked):
        options = {**self.options, "low": self.low, "length": self.lengths[i]}
        if masked and self.mask is not None:
            options["mask"] = self.mask[i, 0]
        if self.valid is not None:
            options["valid"] = self.valid[i, 0]
        return options


@st.composite
def cases(draw, dims=2, window_sizes=(3,), by_axis=((3, 5),), most=26, channels=4):
    # Few windows, and few sorts of tensors beside the images: Numba takes seconds to compile each.
    beside = draw(st.sampled_from(["nothing", "mask", "everything"]))
    window_size = draw(st.sampled_from([*window_sizes, *by_axis]))
    sizes = window_size if isinstance(window_size, tuple) else (window_size,) * dims
    sides = [draw(st.integers(size, most)) for size in sizes]
    options = {
        "window": draw(st.sampled_from(["gaussian", "gaussian", "uniform"])),
        "window_size": window_size,
        "k1": draw(st.floats(0.005, 0.1)),
        "k2": draw(st.floats(0.005, 0.1)),
        "sample_covariance": max(sizes) > 1 and draw(st.booleans()),
        "padding": draw(st.sampled_from(["valid", "zeros", "symmetric"])),
    }
    if options["window"] == "gaussian":
        sigma = st.floats(0.4, 4)
        options["sigma"] = draw(st.one_of(sigma, st.tuples(*[sigma] * dims)))
    shape = (draw(st.integers(1, 2)), draw(st.integers(1, channels)), *sides)
    own = beside == "everything"
    low = 0.0 if own else draw(st.sampled_from([0.0, -1.0, 3.5]))
    count = shape[0] if own else 1
    length = st.sampled_from([1.0, 2.0, 255.0])
    lengths = draw(st.lists(length, min_size=count, max_size=count)) * (shape[0] // count)
    x, y = draw_pair(draw, shape)
    scale = np.reshape(lengths, (-1, *[1] * (dims + 1)))
    x, y = low + scale * x, low + scale * y
    rng = np.random.RandomState(draw(st.integers(0, 2**31)))
    mask = None if beside == "nothing" else rng.rand(shape[0], 1, *sides)
    valid = None
    if beside == "everything":
        valid = rng.rand(shape[0], 1, *sides) < draw(st.sampled_from([0.0, 0.3, 0.9]))
        # A window is centred there at each level.
        valid[(..., *[slice(max(side // 2 - 1, 0), side // 2 + 1) for side in sides])] = True
        for image in (x, y):
            garbage = draw(st.sampled_from([0.0, np.nan, np.inf, 1e30]))
            image[np.broadcast_to(~valid, shape)] = garbage
    return Case(x, y, low, lengths, own, options, mask, valid)


OF_VOLUMES = {"dims": 3, "by_axis": ((1, 3, 5),), "most": 9}
if INTERPRETED:
    OF_VOLUMES |= {"most": 6, "channels": 1}


@given(case=cases())
def test_ssim_is_the_papers(precision, assert_within_budget, case):
    check_ssim(precision, assert_within_budget, case)


@given(case=cases(window_sizes=(3,), **OF_VOLUMES))
def test_ssim_of_volumes_is_the_papers(precision, assert_within_budget, case):
    check_ssim(precision, assert_within_budget, case)


def check_ssim(precision, assert_within_budget, case):
    x, y = case.images(precision)
    values = case.planes(precision, lambda *pair, **kw: definition.maps(*pair, **kw)[0], False)
    of_map = functools.partial(ssim_map, x, y, **case.keywords(("valid",)))
    assert_within_budget(of_map, values, 1e-10)
    means = case.planes(
        precision, lambda *pair, **kw: definition.level_means(*pair, 1, **kw)[0]
    ).mean(1)
    function = functools.partial(ssim, x, y, **case.keywords())
    assert_within_budget(functools.partial(function, reduction="none"), means, 1e-10)
    assert_within_budget(function, means.mean(), 1e-10)


LEVELS = {"levels": st.integers(1, 3), "seed": st.integers(0, 2**31)}


@given(case=cases(window_sizes=(3,), most=30), **LEVELS)
def test_ms_ssim_is_the_papers(precision, assert_within_budget, case, levels, seed):
    check_ms_ssim(precision, assert_within_budget, case, levels, seed)


@given(case=cases(window_sizes=(3,), **OF_VOLUMES), **LEVELS)
def test_ms_ssim_of_volumes_is_the_papers(precision, assert_within_budget, case, levels, seed):
    check_ms_ssim(precision, assert_within_budget, case, levels, seed)


def check_ms_ssim(precision, assert_within_budget, case, levels, seed):
    x, y = case.images(precision)
    sizes = definition.by_axis(case.options["window_size"], x.dim() - 2)
    least = [(size - 1) * 2 ** (levels - 1) + 1 for size in sizes]
    if any(side < fits for side, fits in zip(x.shape[2:], least, strict=True)):
        levels = 1
    weights = np.random.RandomState(seed).rand(levels).tolist()
    of_plane = functools.partial(definition.ms_ssim, weights=weights)
    expected = case.planes(precision, of_plane).mean(1)
    function = functools.partial(ms_ssim, x, y, weights=weights, **case.keywords())
    assert_within_budget(functools.partial(function, reduction="none"), expected, 1e-9)
    assert_within_budget(function, expected.mean(), 1e-9)


@given(data=st.data(), channels=st.integers(1, 4), sigma=st.sampled_from([0.6, 1.1, 1.5]))
def test_ssim_is_that_of_scikit_image(precision, assert_within_budget, data, channels, sigma):
    # scikit-image takes the window's size from sigma.
    window_size = 2 * int(3.5 * sigma + 0.5) + 1
    sides = data.draw(st.tuples(*[st.integers(window_size, 40)] * 2))
    length = data.draw(st.floats(0.1, 1000))
    k1, k2 = data.draw(st.tuples(*[st.floats(0.001, 0.2)] * 2))
    pair = draw_pair(data.draw, (channels, *sides))
    x, y = (torch.from_numpy(length * image).to(precision.dtype) for image in pair)
    expected = structural_similarity(
        x.double().numpy(),
        y.double().numpy(),
        channel_axis=0,
        data_range=length,
        gaussian_weights=True,
        sigma=sigma,
        use_sample_covariance=False,
        K1=k1,
        K2=k2,
    )
    options = {"data_range": length, "window_size": window_size, "sigma": sigma, "k1": k1, "k2": k2}
    assert_within_budget(functools.partial(ssim, x[None], y[None], **options), expected, 1e-9)


@given(case=cases())
def test_symmetric_in_its_images_and_at_most_one(backend, precision, case):
    x, y = case.images(precision)
    options = {**case.keywords(("valid",)), "backend": backend}
    values = ssim_map(x, y, **options)
    assert torch.equal(values, ssim_map(y, x, **options))
    assert values.max() <= 1 + precision.value(1e-12)
    assert torch.equal(ssim_map(x, x, **options), torch.ones_like(values))


def test_a_negated_ramp_is_minus_one(backend, precision):
    # No luminance, exactly opposite structure, and constants too small to matter.
    x = torch.arange(-8, 8, dtype=precision.dtype).expand(1, 1, 16, 16)
    x = x - x.mean()
    value = ssim_map(x, -x, data_range=16, k1=1e3, k2=1e-9, backend=backend)
    assert value.min() == pytest.approx(-1, abs=1e-6)


@pytest.mark.parametrize("low", [-100.0, -1.0, 300.0])
@pytest.mark.parametrize("padding", ["valid", "zeros", "symmetric"])
def test_a_range_far_from_zero_costs_no_digits(backend, sized, low, padding):
    """A rounding of the total of two pixels would be up to 3 % of this range."""
    shape = (2, 1, 2, *sized((40, 300), (6, 7)))
    x, y = low + torch.rand(shape, generator=torch.Generator().manual_seed(0)).round() / 1000
    options = {"data_range": (low, low + 1e-3), "window_size": 3, "padding": padding}
    expected = ssim(x.double(), y.double(), backend="reference", **options)
    assert ssim(x, y, backend=backend, **options) == pytest.approx(expected.item(), abs=5e-7)


def test_reduction_none_is_one_value_per_image(backend, precision, sized, photo):
    side, channels = sized(192, 36), sized(3, 1)
    options = {"backend": backend, **sized({}, {"window_size": 3})}
    x = photo[:, :channels].to(precision.dtype)
    x = torch.cat([x[..., :side, :side], x[..., 200 : 200 + side, 200 : 200 + side]])
    y = (x + 0.1).sqrt()
    tolerance = precision.value(1e-14)
    for function in (ssim, ms_ssim):
        values = function(x, y, reduction="none", **options)
        alone = [function(x[i : i + 1], y[i : i + 1], **options).item() for i in (0, 1)]
        assert values.tolist() == pytest.approx(alone, abs=tolerance)
        assert function(x, y, **options).item() == pytest.approx(np.mean(alone), abs=tolerance)


@pytest.mark.parametrize("function", [ssim, ms_ssim])
def test_a_nan_pixel_spoils_its_image_alone(backend, sized, function):
    shape, middle = sized((3, 2, 176, 176), (3, 1, 33, 33)), sized(80, 16)
    options = {"reduction": "none", "backend": backend, **sized({}, {"window_size": 3})}
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    y = x.sqrt()
    clean = function(x, y, **options)
    x[1, 0, middle, middle] = torch.nan
    values = function(x, y, **options)
    assert values[1].isnan()
    assert torch.equal(values[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_spoiled_pixel_stays_in_its_windows(backend, value):
    x = torch.rand(1, 1, 40, 40, generator=torch.Generator().manual_seed(0))
    x[0, 0, 20, 20] = value
    finite = ssim_map(x, x.sqrt(), backend=backend)[0, 0].isfinite()
    assert not finite[10:21, 10:21].any()
    assert finite.sum() == finite.numel() - 11 * 11
