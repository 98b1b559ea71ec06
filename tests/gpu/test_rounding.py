"""Rounding in the GPU path's kernels, in Triton's interpreter: dtypes, and images whose values lie
far from each other or are not finite.
"""

import pytest
import torch
from kernel_steps import (
    SCHEMES,
    compare,
    expected,
    needs_triton,
    pair,
    run,
    settings,
    step,
    weights_of,
)

from perceptual_losses import ssim
from perceptual_losses._ssim import reference
from perceptual_losses._ssim.backend import NO_AUXILIARY
from perceptual_losses._ssim.request import Request, plane_gradient

pytestmark = needs_triton


@pytest.mark.interpreted
def test_small_means_in_the_interpreter(tiles):
    """Of unrelated images: what rounding 1 - S adds up to would be all of the power's error."""
    tiles(64, 1, 64)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, 3, 1, 19, 39, generator=generator)
    means, true = run(x, y, settings())[0], expected(x, y, settings())[0]
    assert true.abs().max() < 0.05
    assert (means - true).abs().max() < 2e-8


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("other", [torch.float16, torch.float32])
@pytest.mark.interpreted
def test_dtypes_in_the_interpreter(tiles, kind, other):
    tiles(8, 2, 4)
    x, y = pair(1, 1, 9, 13, dtype=kind)
    # One rounding of the gradient, where it is kept in half precision.
    compare(x, y.to(other), settings(), levels=2, tolerance=torch.finfo(kind).eps)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("other", [torch.float16, torch.float32])
@pytest.mark.interpreted
def test_float16_under_a_scale_in_the_interpreter(tiles, fused, other):
    """A part of a mean is too small for float16; times the scale of the loss it is not."""
    tiles(64, 1, 64, fused)
    x, y = (255 * image for image in pair(1, 1, 60, 62, dtype=torch.float16))

    def scaled(x, y, **options):
        return 2.0**16 * ssim(x, y, window_size=3, data_range=255, **options)

    got = step(scaled, x, y.to(other), backend="triton")
    exact = step(scaled, x.double(), y.double(), backend="reference")
    for gradient, true, kind in zip(got[1:], exact[1:], (torch.float16, other), strict=True):
        assert gradient.dtype == kind
        assert (gradient - true).norm() < 0.5 * torch.finfo(torch.float16).eps * true.norm()


@pytest.mark.parametrize("scheme", SCHEMES[1:3])
@pytest.mark.parametrize("padding", ["valid", "symmetric"])
@pytest.mark.interpreted
def test_identical_images_in_the_interpreter(tiles, scheme, padding):
    tiles(*scheme)
    x = pair(1, 1, 7, 12)[0]
    chosen = settings(padding=padding)
    weights = weights_of(x, chosen, 2) if padding == "symmetric" else []
    means, of_x, of_y = run(x, x.clone(), chosen, weights, 2)
    assert torch.equal(means, torch.ones_like(means))
    for gradient in of_x + of_y:
        assert not gradient.any()


@pytest.mark.parametrize("scheme", SCHEMES[1:3])
@pytest.mark.parametrize(("length", "level"), [(255.0, 200), (1.0, 180)])
@pytest.mark.interpreted
def test_a_level_high_above_the_contrast_in_the_interpreter(tiles, scheme, length, level):
    """The error against float64 is at most twice the reference's, plus one rounding."""
    tiles(*scheme)
    x, y = pair(1, 1, 9, 14)
    x, y = 200 + 0.1 * (x - 0.5), level + 0.1 * (y - 0.5)
    chosen = settings(low=0.0, length=length)
    images = x.clone().requires_grad_(), y.clone().requires_grad_()
    plain = reference.level_means(*images, NO_AUXILIARY, Request(chosen))[0]
    plain_gradients = torch.autograd.grad(plain.sum(), images)
    means, of_x, of_y = run(x, y, chosen)
    true, true_x, true_y = expected(x, y, chosen)
    for got, rough, exact in (
        (means[0], plain.detach(), true[0]),
        (of_x[0] / plane_gradient(x.shape), plain_gradients[0], true_x[0]),
        (of_y[0] / plane_gradient(x.shape), plain_gradients[1], true_y[0]),
    ):
        assert (got - exact).norm() <= 2 * (rough - exact).norm() + 6e-8 * exact.norm()


@pytest.mark.parametrize("scheme", SCHEMES[1:3])
@pytest.mark.interpreted
def test_one_bright_pixel_in_the_interpreter(tiles, scheme):
    """Where the level is sampled: the windows that do not hold it do not know of it."""
    tiles(*scheme)
    x, y = pair(1, 1, 9, 14)
    x[..., 0, 0] = 1e5
    weight = torch.ones(1, 1, 7, 12)
    weight[..., :3, :3] = 0
    compare(x, y, settings(), [weight / weight.sum()])


@pytest.mark.parametrize(
    ("scheme", "value"), [(SCHEMES[1], float("nan")), (SCHEMES[2], float("inf"))]
)
@pytest.mark.interpreted
def test_what_is_not_finite_stays_in_its_windows_in_the_interpreter(tiles, scheme, value):
    tiles(*scheme)
    x, y = pair(1, 2, 8, 13)
    means, gradients, _ = run(x, y, settings())
    x[0, 1, 0, 0] = value
    touched, touched_gradients, _ = run(x, y, settings())
    assert touched.isfinite().tolist() == [[[True, False]]]
    assert torch.equal(touched[..., 0], means[..., 0])
    assert torch.equal(touched_gradients[0][:, 0], gradients[0][:, 0])
    plane, before = touched_gradients[0][0, 1], gradients[0][0, 1]
    assert plane[:3, :3].isnan().all()
    plane[:3, :3] = before[:3, :3]
    torch.testing.assert_close(plane, before, rtol=1e-4, atol=1e-7)
