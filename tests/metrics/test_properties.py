"""Values on drawn sizes, windows, ranges and constants, against independent definitions."""

import functools

import definition
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage.metrics import structural_similarity

from perceptual_losses import ms_ssim, ssim, ssim_map


def draw_pair(draw, shape, low=0.0, high=1.0):
    """Two images that are related to a drawn degree, some of it beyond the range."""
    rng = np.random.RandomState(draw(st.integers(0, 2**31)))
    x = rng.rand(*shape)
    y = draw(st.floats(-1, 1)) * x + draw(st.floats(0, 0.7)) * rng.randn(*shape)
    return low + (high - low) * x, low + (high - low) * y


@st.composite
def cases(draw, dims=2, window_sizes=(1, 3, 5, 7, 11), most=26):
    window_size = draw(st.sampled_from(window_sizes))
    sides = draw(st.lists(st.integers(window_size, most), min_size=dims, max_size=dims))
    low = draw(st.sampled_from([0.0, -1.0, 3.5]))
    length = draw(st.sampled_from([1.0, 2.0, 255.0]))
    options = {
        "window_size": window_size,
        "sigma": draw(st.floats(0.4, 4)),
        "k1": draw(st.floats(0.005, 0.1)),
        "k2": draw(st.floats(0.005, 0.1)),
        "padding": draw(st.sampled_from(["valid", "zeros", "symmetric"])),
    }
    shape = (draw(st.integers(1, 2)), draw(st.integers(1, 4)), *sides)
    x, y = draw_pair(draw, shape, low, low + length)
    return x, y, low, length, options


def rounded(case, precision):
    """The images as the path takes them."""
    x, y, *rest = case
    return torch.from_numpy(x).to(precision.dtype), torch.from_numpy(y).to(precision.dtype), *rest


@given(case=cases())
def test_ssim_is_the_papers(precision, assert_within_budget, case):
    check_ssim(precision, assert_within_budget, case)


@pytest.mark.volumes
@given(case=cases(dims=3, window_sizes=(1, 3, 5), most=9))
def test_ssim_of_volumes_is_the_papers(precision, assert_within_budget, case):
    check_ssim(precision, assert_within_budget, case)


def check_ssim(precision, assert_within_budget, case):
    x, y, low, length, options = rounded(case, precision)
    expected = np.array(
        [
            [
                definition.maps(a, b, low=low, length=length, **options)[0]
                for a, b in zip(*pair, strict=True)
            ]
            for pair in zip(x.double().numpy(), y.double().numpy(), strict=True)
        ]
    )
    options |= {"data_range": (low, low + length)}
    assert_within_budget(functools.partial(ssim_map, x, y, **options), expected, 1e-10)
    per_image = functools.partial(ssim, x, y, reduction="none", **options)
    assert_within_budget(per_image, expected.mean(tuple(range(1, x.ndim))), 1e-10)
    assert_within_budget(functools.partial(ssim, x, y, **options), expected.mean(), 1e-10)


LEVELS = {"levels": st.integers(1, 3), "seed": st.integers(0, 2**31)}


@given(case=cases(window_sizes=(3,), most=30), **LEVELS)
def test_ms_ssim_is_the_papers(precision, assert_within_budget, case, levels, seed):
    check_ms_ssim(precision, assert_within_budget, case, levels, seed)


@pytest.mark.volumes
@given(case=cases(dims=3, window_sizes=(3,), most=9), **LEVELS)
def test_ms_ssim_of_volumes_is_the_papers(precision, assert_within_budget, case, levels, seed):
    check_ms_ssim(precision, assert_within_budget, case, levels, seed)


def check_ms_ssim(precision, assert_within_budget, case, levels, seed):
    x, y, low, length, options = rounded(case, precision)
    if min(x.shape[2:]) < 2 * 2 ** (levels - 1) + 1:
        levels = 1
    weights = np.random.RandomState(seed).rand(levels).tolist()
    expected = [
        np.mean(
            [
                definition.ms_ssim(a, b, weights, low=low, length=length, **options)
                for a, b in zip(*pair, strict=True)
            ]
        )
        for pair in zip(x.double().numpy(), y.double().numpy(), strict=True)
    ]
    options |= {"data_range": (low, low + length), "weights": weights, "reduction": "none"}
    assert_within_budget(functools.partial(ms_ssim, x, y, **options), expected, 1e-9)


@given(data=st.data(), channels=st.integers(1, 4), sigma=st.floats(0.5, 2.5))
def test_ssim_is_that_of_scikit_image(precision, assert_within_budget, data, channels, sigma):
    # scikit-image takes the window's size from sigma.
    window_size = 2 * int(3.5 * sigma + 0.5) + 1
    sides = data.draw(st.tuples(*[st.integers(window_size, 40)] * 2))
    length = data.draw(st.floats(0.1, 1000))
    k1, k2 = data.draw(st.tuples(*[st.floats(0.001, 0.2)] * 2))
    x, y = rounded(draw_pair(data.draw, (channels, *sides), 0, length), precision)
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
    x, y, low, length, options = rounded(case, precision)
    options |= {"data_range": (low, low + length), "backend": backend}
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
