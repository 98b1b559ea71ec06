"""Masks weigh the mean; they do not touch the windows."""

import definition
import numpy as np
import pytest
import torch

from perceptual_losses import (
    L1MSSSIMLoss,
    L1SSIMLoss,
    MSSSIMLoss,
    SSIMLoss,
    ms_ssim,
    ssim,
    ssim_map,
)


@pytest.fixture(scope="module")
def images(precision):
    generator = torch.Generator().manual_seed(0)
    # The interpreter takes seconds for a plane.
    channels = 3 if precision.dtype == torch.float64 else 1
    x = torch.rand(2, channels, 40, 45, generator=generator, dtype=torch.float64)
    y = 0.7 * x + 0.3 * torch.rand(x.shape, generator=generator, dtype=torch.float64)
    mask = torch.rand(2, 1, 40, 45, generator=generator, dtype=torch.float64)
    return x.to(precision.dtype), y.to(precision.dtype), mask.to(precision.dtype)


@pytest.mark.parametrize("padding", ["valid", "zeros", "symmetric"])
def test_the_mean_is_weighted_at_the_centres(backend, precision, images, padding):
    x, y, mask = images
    options = {"window_size": 3, "padding": padding, "backend": backend}
    values = ssim_map(x, y, **options).mean(1).numpy()
    centres = [definition.centres(m[0].numpy(), (3, 3), padding) for m in mask]
    expected = [np.average(v, weights=w) for v, w in zip(values, centres, strict=True)]
    value = ssim(x, y, mask=mask, reduction="none", **options)
    np.testing.assert_allclose(value.numpy(), expected, rtol=precision.value(1e-12))


@pytest.mark.parametrize("padding", ["valid", "symmetric"])
def test_ms_ssim_pools_the_mask(backend, precision, images, padding):
    x, y, mask = images
    options = {"window_size": 3, "padding": padding, "weights": (0.2, 0.3, 0.5)}
    expected = [
        np.mean(
            [
                definition.ms_ssim(a.numpy(), b.numpy(), mask=m[0].numpy(), **options)
                for a, b in zip(*pair, strict=True)
            ]
        )
        for *pair, m in zip(x.double(), y.double(), mask.double(), strict=True)
    ]
    value = ms_ssim(x, y, mask=mask, reduction="none", backend=backend, **options)
    np.testing.assert_allclose(value.numpy(), expected, rtol=precision.value(1e-12))


@pytest.mark.parametrize("function", [ssim, ms_ssim])
def test_equal_weights_change_nothing(backend, precision, sized, images, function):
    x, y, _ = images
    options = {"backend": backend, "window_size": 3}
    if function is ms_ssim:
        options["levels"] = 2
    value = pytest.approx(function(x, y, **options).item(), abs=precision.value(1e-14))
    for mask in (torch.ones(40, 45), torch.full((2, 1, 1, 1), 7.0), torch.tensor([True])):
        assert function(x, y, mask=mask, **options).item() == value


@pytest.mark.parametrize("loss", [SSIMLoss, MSSSIMLoss])
def test_identical_images_have_no_loss_under_any_mask(backend, images, loss):
    x, _, mask = (image.float() for image in images)
    options = {"window_size": 3} | ({"levels": 2} if loss is MSSSIMLoss else {})
    x = x.clone().requires_grad_()
    value = loss(reduction="none", backend=backend, **options)(x, x.detach().clone(), mask=mask)
    assert value.tolist() == [0, 0]
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert not gradient.any()


@pytest.mark.volumes
def test_identical_volumes_have_no_loss_under_any_mask(backend):
    generator = torch.Generator().manual_seed(0)
    x, mask = torch.rand(2, 2, 1, 12, 14, 13, generator=generator, dtype=torch.float64)
    loss = SSIMLoss(window_size=3, reduction="none", backend=backend)
    assert loss(x, x, mask=mask).tolist() == [0, 0]


def test_the_scale_of_a_mask_does_not_matter(backend, precision, sized, images):
    x, y, mask = images
    options = {"backend": backend, "window_size": 3}
    value = ssim(x, y, mask=mask, **options).item()
    scaled = ssim(x, y, mask=mask * 1000, **options).item()
    assert scaled == pytest.approx(value, abs=precision.value(1e-14))
    levels = (mask * 255).round()
    as_bytes = ssim(x, y, mask=levels.to(torch.uint8), **options)
    assert as_bytes == ssim(x, y, mask=levels.float(), **options)


def test_half_a_mask_is_that_half_of_the_map(backend, precision, images):
    x, y, _ = images
    mask = torch.zeros(40, 45, dtype=torch.bool)
    mask[:, 20:] = True
    value = ssim(x, y, mask=mask, backend=backend)
    expected = ssim_map(x, y, backend=backend)[..., 15:].mean()
    assert value.item() == pytest.approx(expected.item(), abs=precision.value(1e-14))


def test_pixels_out_of_reach_have_no_gradient(backend, images):
    x, y, _ = images
    mask = torch.zeros(40, 45)
    mask[20, 20] = 1
    x = x.clone().requires_grad_()
    SSIMLoss(backend=backend)(x, y, mask=mask).backward()
    reached = torch.zeros(40, 45, dtype=torch.bool)
    reached[15:26, 15:26] = True
    assert not x.grad[..., ~reached].any()
    assert (x.grad[..., reached] != 0).all()


def test_no_gradient_reaches_the_mask(backend, images):
    x, y, mask = images
    mask = mask.clone().requires_grad_()
    assert not ssim(x, y, mask=mask, backend=backend).requires_grad


def test_the_l1_term_is_weighted_too(backend, precision, images):
    x, y, mask = images
    loss = L1SSIMLoss(weight=0, data_range=(-1, 1), backend=backend)
    distance = (x - y).abs().mean(1) / 2
    expected = (distance * mask[:, 0]).sum((1, 2)) / mask.sum((1, 2, 3))
    value = pytest.approx(expected.mean().item(), abs=precision.value(1e-15))
    assert loss(x, y, mask=mask).item() == value


@pytest.mark.parametrize("loss", [SSIMLoss, MSSSIMLoss, L1SSIMLoss])
def test_a_mask_without_weight_is_refused(loss):
    x = torch.rand(3, 1, 176, 176)
    mask = torch.ones(3, 1, 176, 176)
    mask[1] = 0
    with pytest.raises(ValueError, match=r"total weight of \[0.0\] to image \[1\]"):
        loss()(x, x, mask=mask)


@pytest.mark.parametrize("weight", [3e38, 1e-43, float("inf")])
def test_a_mask_whose_total_divides_nothing_is_refused(weight):
    x, y = torch.rand(2, 1, 1, 16, 16)
    with pytest.raises(ValueError, match=r"total weight of .* to image \[0\].*positive and finite"):
        ssim(x, y, mask=torch.full((16, 16), weight))


@pytest.mark.parametrize("loss", [SSIMLoss, MSSSIMLoss, L1SSIMLoss, L1MSSSIMLoss])
@pytest.mark.parametrize("weight", [-1e-3, float("nan")])
def test_a_mask_with_a_weight_that_is_none_is_refused(loss, weight):
    """Wherever it is: in the mean of |x - y| those near the border count too."""
    x, y = torch.rand(2, 1, 1, 176, 176)
    mask = torch.ones(176, 176)
    for row in (0, 88):
        with pytest.raises(ValueError, match="mask has weights that are negative or NaN: pass 0"):
            loss()(x, y, mask=mask.index_fill(0, torch.tensor(row), weight))


def test_a_mask_too_heavy_for_the_mean_distance_is_refused():
    x, y = torch.rand(2, 1, 1, 40, 40)
    mask = torch.full((40, 40), 3e35)
    assert ssim(x, y, mask=mask).item() == pytest.approx(ssim(x, y).item(), abs=1e-6)
    with pytest.raises(ValueError, match=r"total weight of \[inf\] to image \[0\]"):
        L1SSIMLoss()(x, y, mask=mask)


def test_a_mask_on_the_border_alone_is_refused():
    x = torch.rand(1, 1, 32, 32)
    mask = torch.zeros(32, 32)
    mask[:1] = 1
    with pytest.raises(ValueError, match="centres of windows.*padding='symmetric'"):
        ssim(x, x, mask=mask, window_size=3)
    value = ssim(x, x, mask=mask, window_size=3, padding="symmetric")
    assert value.item() == pytest.approx(1, abs=1e-6)


@pytest.mark.volumes
def test_volumes_take_masks(backend):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, 1, 2, 7, 8, 9, generator=generator, dtype=torch.float64)
    mask = torch.rand(7, 8, 9, generator=generator, dtype=torch.float64)
    values = ssim_map(x, y, window_size=3, backend=backend).mean((0, 1)).numpy()
    expected = np.average(values, weights=mask[1:-1, 1:-1, 1:-1].numpy())
    value = ssim(x, y, window_size=3, mask=mask, backend=backend)
    assert value.item() == pytest.approx(expected, abs=1e-14)
