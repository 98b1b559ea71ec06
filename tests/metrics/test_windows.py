"""Windows of other kinds: uniform ones, sizes by axis, and sample covariances."""

import functools
import re

import definition
import numpy as np
import pytest
import skimage.data
import torch
import torchmetrics
from metric_steps import (
    LOSSES,
    PADDINGS,
    assert_near,
    every_padding,
    exact_step,
    few,
    pair,
    step,
)
from skimage.metrics import structural_similarity

from perceptual_losses import MSSSIMLoss, SSIMLoss, ms_ssim, ssim, ssim_map

# On the GPU path tests/gpu/test_definitions.py has these, with tiles that images cross.
pytestmark = pytest.mark.large

# The defaults of scikit-image, and fastMRI's.
UNIFORM = {"window": "uniform", "window_size": 7, "sample_covariance": True}
OPTIONS = {
    "uniform": {**UNIFORM, "window_size": 3},
    "population": {"window": "uniform", "window_size": 3},
    "unbiased": {"window_size": 3, "sigma": 0.8, "sample_covariance": True},
    "columns": {"window_size": (3, 1), "sample_covariance": True},
    "by_axis": {"window_size": (3, 5), "sigma": (0.6, 2.0)},
    "sigmas": {"window_size": 3, "sigma": (0.6, 2.0), "sample_covariance": True},
    "box": {"window": "uniform", "window_size": (3, 5), "sample_covariance": True},
}


@pytest.fixture(scope="module")
def camera():
    clean = skimage.data.camera()
    noise = 20 * np.random.RandomState(5).randn(512, 512)
    noisy = np.clip(clean + noise, 0, 255).astype(np.uint8)
    return clean, noisy


def default_of_scikit_image(x, y):
    return structural_similarity(x.astype(np.float64), y.astype(np.float64), data_range=255)


@pytest.mark.large
def test_the_default_of_scikit_image(backend, camera):
    x, y = (torch.from_numpy(image)[None, None].double() for image in camera)
    value = ssim(x, y, data_range=255, backend=backend, **UNIFORM).item()
    assert abs(value - default_of_scikit_image(*camera)) < 1e-10
    # The other definition is not within reach of the tolerance.
    population = ssim(x, y, data_range=255, backend=backend, **{**UNIFORM, **OPTIONS["population"]})
    assert abs(population.item() - value) > 1e-3


def test_the_default_of_scikit_image_in_a_corner(precision, assert_within_budget, camera):
    corner = [image[:30, :41] for image in camera]
    x, y = (torch.from_numpy(image)[None, None].to(precision.dtype) for image in corner)
    function = functools.partial(ssim, x, y, data_range=255, **UNIFORM)
    assert_within_budget(function, default_of_scikit_image(*corner), 1e-10)


@pytest.mark.parametrize(
    ("options", "theirs"),
    [
        ({"window": "uniform", "window_size": 3}, {"gaussian_kernel": False, "kernel_size": 3}),
        (
            {"window": "uniform", "window_size": (3, 5)},
            {"gaussian_kernel": False, "kernel_size": (3, 5)},
        ),
        # It takes the sizes from sigma.
        ({"window_size": (3, 5), "sigma": (0.4, 0.6)}, {"sigma": (0.4, 0.6)}),
    ],
)
def test_windows_are_those_of_torchmetrics(backend, options, theirs):
    """On the windows inside the image: its mean includes a reflected border."""
    x, y = pair(1, 2, 24, 27)
    _, whole = torchmetrics.functional.image.structural_similarity_index_measure(
        x, y, data_range=1.0, return_full_image=True, **theirs
    )
    values = ssim_map(x, y, backend=backend, **options)
    top, left = ((whole.shape[k] - values.shape[k]) // 2 for k in (2, 3))
    inside = whole[..., top : top + values.shape[2], left : left + values.shape[3]]
    torch.testing.assert_close(values, inside, rtol=0, atol=1e-6)


def test_one_window_by_hand(precision, assert_within_budget):
    """NumPy's own means and covariances of an image that is one window."""
    x, y = pair(1, 1, 3, 5, dtype=precision.dtype)
    a, b = (image.double().numpy().ravel() for image in (x, y))
    c1, c2 = 1e-4, 9e-4
    for sample in (False, True):
        (var_a, cov), (_, var_b) = np.cov(a, b, ddof=int(sample))
        luminance = (2 * a.mean() * b.mean() + c1) / (a.mean() ** 2 + b.mean() ** 2 + c1)
        expected = luminance * (2 * cov + c2) / (var_a + var_b + c2)
        options = {"window": "uniform", "window_size": (3, 5), "sample_covariance": sample}
        assert_within_budget(functools.partial(ssim, x, y, **options), expected, 1e-12)


@every_padding
@few("name", OPTIONS, ["uniform", "by_axis"])
def test_maps_are_those_of_brute_force(precision, assert_within_budget, name, padding):
    x, y = pair(1, 2, 8, 10, dtype=precision.dtype)
    options = {**OPTIONS[name], "padding": padding}
    planes = zip(x[0].double().numpy(), y[0].double().numpy(), strict=True)
    expected = np.array([[definition.maps(a, b, **options)[0] for a, b in planes]])
    assert_within_budget(functools.partial(ssim_map, x, y, **options), expected, 1e-11)
    assert_within_budget(functools.partial(ssim, x, y, **options), expected.mean(), 1e-11)


@pytest.mark.parametrize(
    ("name", "window"), [*((name, "by_axis") for name in LOSSES), ("ms_ssim", "columns")]
)
def test_gradients_are_the_references(backend, precision, sized, name, window):
    """Whose derivatives are those of its values, as `test_derivatives` shows."""
    x, y = pair(2, sized(3, 1), 14, 17, dtype=precision.dtype)
    for padding in sized(PADDINGS, ["symmetric"]):
        options = {**OPTIONS[window], "padding": padding}
        got = step(LOSSES[name](backend=backend, **options), x, y)
        assert_near(got, exact_step(LOSSES[name](backend="reference", **options), x, y), precision)


@pytest.mark.float64
@pytest.mark.parametrize("name", OPTIONS)
def test_derivatives(backend, name):
    x, y = (image.requires_grad_() for image in pair(1, 1, 7, 8))
    function = functools.partial(ssim, backend=backend, **OPTIONS[name])
    assert torch.autograd.gradcheck(function, (x, y))
    assert torch.autograd.gradgradcheck(function, (x, y))


def test_equal_sizes_by_axis_are_one_size(backend):
    x, y = pair(1, 2, 12, 13, dtype=torch.float32)
    plain = step(functools.partial(ssim, window_size=3, sigma=1.2, backend=backend), x, y)
    for size, sigma in (((3, 3), 1.2), (3, (1.2, 1.2)), ((3, 3), (1.2, 1.2))):
        options = {"window_size": size, "sigma": sigma, "backend": backend}
        assert all(map(torch.equal, step(functools.partial(ssim, **options), x, y), plain))


def test_the_first_size_is_that_of_rows(backend, precision):
    x, y = pair(1, 1, 12, 15, dtype=precision.dtype)
    options = {"window_size": (3, 5), "sigma": (0.5, 2.0), "backend": backend}
    assert ssim_map(x, y, **options).shape == (1, 1, 10, 11)
    value = ssim(x, y, **options).item()
    options |= {"window_size": (5, 3), "sigma": (2.0, 0.5)}
    assert ssim(x.mT, y.mT, **options).item() == pytest.approx(value, abs=precision.value(1e-14))
    assert abs(ssim(x, y, **options).item() - value) > 1e-4


def test_windows_of_one_row_see_rows_apart(backend, precision):
    x, y = pair(1, 1, 6, 15, dtype=precision.dtype)
    together = ssim(x, y, window_size=(1, 3), backend=backend).item()
    rows = [image.squeeze().unflatten(0, (6, 1, 1)) for image in (x, y)]
    apart = ssim(*rows, window_size=(1, 3), backend=backend).item()
    assert together == pytest.approx(apart, abs=precision.value(1e-14))


@pytest.mark.volumes
@every_padding
def test_windows_of_one_slice_see_slices_apart(backend, padding):
    x, y = pair(1, 1, 4, 9, 11)
    options = {"window": "uniform", "sample_covariance": True, "padding": padding}
    options["backend"] = backend
    values, *gradients = step(functools.partial(ssim_map, window_size=(1, 3, 5), **options), x, y)
    slices = (image[0, 0, :, None] for image in (x, y))
    apart, *of_slices = step(functools.partial(ssim_map, window_size=(3, 5), **options), *slices)
    torch.testing.assert_close(values[0, 0], apart[:, 0], rtol=0, atol=1e-13)
    for gradient, expected in zip(gradients, of_slices, strict=True):
        torch.testing.assert_close(gradient[0, 0], expected[:, 0], rtol=1e-10, atol=1e-13)


@pytest.mark.volumes
def test_volumes_by_axis(backend):
    x, y = pair(1, 1, 7, 8, 11)
    options = {"window_size": (1, 3, 5), "sigma": (1.0, 0.7, 2.0), "sample_covariance": True}
    expected = definition.ms_ssim(x[0, 0].numpy(), y[0, 0].numpy(), (0.4, 0.6), **options)
    value = ms_ssim(x, y, weights=(0.4, 0.6), backend=backend, **options).item()
    assert abs(value - expected) < 1e-12


def test_levels_fit_along_each_axis(backend, precision):
    x, y = pair(1, 1, 9, 40, dtype=precision.dtype)
    options = {"window_size": (3, 5), "weights": (0.5, 0.3, 0.2), "backend": backend}
    planes = [image[0, 0].double().numpy() for image in (x, y)]
    expected = definition.ms_ssim(*planes, (0.5, 0.3, 0.2), window_size=(3, 5))
    value = ms_ssim(x, y, **options).item()
    assert value == pytest.approx(expected, abs=precision.value(1e-12))
    text = "8x40 pixels fit 2 of 3 MS-SSIM levels with window_size=(3, 5).*at least 9x17"
    with pytest.warns(UserWarning, match=pattern(text)):
        ms_ssim(x[..., :8, :], y[..., :8, :], **options)
    text = "levels=3 with window_size=(3, 5) needs images of at least 9x17, and these are 40x9"
    with pytest.raises(ValueError, match=pattern(text)):
        ms_ssim(x.mT, y.mT, levels=3, **options)


def pattern(text):
    return ".*".join(re.escape(part) for part in text.split(".*"))


REFUSED = [
    ({"window": "uniform", "sigma": 2.0}, "sigma=2.0 with window='uniform'.*leave sigma out"),
    ({"window": "uniform", "sigma": (1.5, 1.5)}, "sigma=(1.5, 1.5) with window='uniform'"),
    ({"window_size": 1, "sample_covariance": True}, "with a window of one pixel.*a larger"),
    ({"window_size": (1, 1), "sample_covariance": True}, "has no unbiased covariance"),
    ({"window_size": (3, 3), "sigma": (1.0, 1.0, 1.0)}, "3 entries and window_size 2: pass one"),
    ({"window_size": (3, 3, 3)}, "has 3 entries and x has shape (1, 1, 40, 44): pass one number"),
    ({"sigma": (1.0, 1.0, 1.0)}, "window_size or sigma has 3 entries and x has shape"),
    ({"window_size": (3, 45)}, "window_size=(3, 45) is larger than the image, 40x44: pass a"),
]


@pytest.mark.parametrize(("options", "text"), REFUSED)
def test_what_is_refused(backend, options, text):
    x, y = pair(1, 1, 40, 44, dtype=torch.float32)
    takers = [
        *(functools.partial(function, x, y) for function in (ssim, ssim_map, ms_ssim)),
        *(lambda loss=loss, **kw: loss(**kw)(x, y) for loss in (SSIMLoss, MSSSIMLoss)),
    ]
    for taker in takers:
        with pytest.raises(ValueError, match=pattern(text)):
            taker(backend=backend, **options)


@pytest.mark.volumes
def test_images_options_are_refused_for_volumes(backend):
    x = torch.rand(1, 1, 8, 9, 10)
    with pytest.raises(ValueError, match=pattern("has 2 entries.*pass one number, or 3, one for")):
        ssim(x, x, window_size=(3, 5), backend=backend)


def test_a_window_that_changes_counts(backend, precision):
    x, y = pair(1, 1, 12, 13, dtype=precision.dtype)
    loss = SSIMLoss(window_size=3, backend=backend)
    before = loss(x, y)
    loss.window, loss.sample_covariance = "uniform", True
    after = loss(x, y)
    assert torch.equal(after, SSIMLoss(**OPTIONS["uniform"], backend=backend)(x, y))
    assert abs(after - before) > 1e-4
    loss.sigma = 2.0
    with pytest.raises(ValueError, match="sigma=2.0 with window='uniform'"):
        loss(x, y)
