"""Known answers: published numbers, closed forms and other packages."""

import functools

import numpy as np
import piq
import piqa
import pytest
import pytorch_msssim
import skimage.data
import torch
from skimage.metrics import structural_similarity

from perceptual_losses import SSIMLoss, ms_ssim, ssim, ssim_map
from perceptual_losses._ssim import gaussian

CAMERA_SSIM = 0.3579642362365813
CAMERA_MS_SSIM = 0.793391544254753


@pytest.fixture(scope="module")
def camera():
    clean = skimage.data.camera()
    noise = 20 * np.random.RandomState(5).randn(512, 512)
    noisy = np.clip(clean + noise, 0, 255).astype(np.uint8)
    return torch.from_numpy(clean)[None, None], torch.from_numpy(noisy)[None, None]


# Published for 512x512 pixels.
@pytest.mark.large
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.uint8, 2e-6)],
)
def test_camera_ssim(camera, backend, dtype, tolerance):
    x, y = (image.to(dtype) for image in camera)
    assert abs(ssim(x, y, data_range=255, backend=backend).item() - CAMERA_SSIM) < tolerance


# Published for 512x512 pixels.
@pytest.mark.large
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-6)])
def test_camera_ms_ssim(camera, backend, dtype, tolerance):
    x, y = (image.to(dtype) for image in camera)
    assert abs(ms_ssim(x, y, data_range=255, backend=backend).item() - CAMERA_MS_SSIM) < tolerance


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        pytest.param(torch.float64, 1e-12, marks=pytest.mark.float64),
        *((torch.float32, 2e-6), (torch.uint8, 2e-6)),
    ],
)
def test_a_corner_of_the_camera(camera, backend, dtype, tolerance):
    x, y = (image[..., :24, :40] for image in camera)
    expected = structural_similarity(
        *(x[0, 0].numpy(), y[0, 0].numpy()),
        data_range=255,
        gaussian_weights=True,
        use_sample_covariance=False,
    )
    value = ssim(x.to(dtype), y.to(dtype), data_range=255, backend=backend).item()
    assert abs(value - expected) < tolerance


def test_scikit_image_agrees_on_the_camera(camera):
    x, y = (image[0, 0].numpy() for image in camera)
    value = structural_similarity(
        x, y, data_range=255, gaussian_weights=True, use_sample_covariance=False
    )
    assert abs(value - CAMERA_SSIM) < 1e-12


def test_random_images(backend):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 16, 16).abs()
    y = torch.randn(2, 3, 16, 16).abs()
    loss = SSIMLoss(reduction="none", backend=backend)(x / x.max(), y / y.max())
    assert loss.tolist() == pytest.approx([0.9121107, 0.9970578], abs=1e-6)


def test_ramp_against_its_mirror(backend, precision, assert_within_budget):
    x = torch.arange(0, 256, 16, dtype=precision.dtype).expand(1, 1, 16, 16)
    similarity = functools.partial(ssim, x, x.flip(-1), data_range=255)
    # For a second level there must be room: beside the ramps, where no window counts, and with the
    # sum of theirs. Were it another, that sum's variance, zero, would be luck in float32.
    beside = {"pad": (0, 16, 0, 16), "value": 120}
    larger, mirror = (torch.nn.functional.pad(image, **beside) for image in (x, x.flip(-1)))
    mask = torch.zeros(1, 1, 32, 32, dtype=precision.dtype)
    mask[..., 5:11, 5:11] = 1
    # Only the first level counts, which is the mean of the contrast-structure factor.
    contrast_structure = functools.partial(
        ms_ssim, larger, mirror, data_range=255, mask=mask, weights=(1, 0), normalize="simple"
    )
    assert_within_budget(similarity, -0.8170395325, 1e-10)
    assert_within_budget(contrast_structure, (1 - 0.9030433715) / 2, 1e-10)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [pytest.param(torch.float64, 1e-15, marks=pytest.mark.float64), (torch.float32, 1.2e-7)],
)
def test_white_against_black(backend, dtype, tolerance):
    x = torch.ones(1, 1, 16, 16, dtype=dtype)
    value = ssim(x, torch.zeros_like(x), backend=backend).item()
    assert abs(value - 9.999000099990002e-05) < tolerance


def test_nearly_equal_constants(backend):
    x = torch.full((1, 1, 16, 16), 0.6, requires_grad=True)
    y = torch.full((1, 1, 16, 16), 0.6 + 1e-7)
    value = ssim(x, y, backend=backend)
    value.backward()
    assert 1 - 1e-6 < value <= 1 + 1e-6
    assert x.grad.abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("level", [0.0, 1.0])
@pytest.mark.parametrize("function", [ssim, ms_ssim])
def test_flat_images_under_autocast(backend, sized, dtype, level, function):
    options = {"backend": backend, **sized({}, {"window_size": 3})}
    with torch.autocast("cpu", dtype=dtype):
        x = torch.full(sized((1, 3, 176, 176), (1, 1, 33, 33)), level)
        assert function(x, x.clone(), **options) == 1
        assert function(x.to(dtype), x.clone(), **options) == 1


def test_gradient_of_scikit_image(backend, precision):
    rng = np.random.RandomState(0)
    x, y = torch.from_numpy(rng.rand(2, 1, 1, 48, 61)).to(precision.dtype)
    a, b = (image[0, 0].double().numpy() for image in (x, y))
    _, expected = structural_similarity(
        a, b, data_range=1, gradient=True, gaussian_weights=True, use_sample_covariance=False
    )
    y.requires_grad_()
    ssim(x, y, backend=backend).backward()
    scaled = expected * (48 * 61) / (38 * 51)
    inner = (slice(10, -10), slice(10, -10))
    got, tolerance = y.grad[0, 0].numpy()[inner], precision.gradient(1e-9)
    # Of the largest where the path is rougher than the values near zero.
    least = precision.least_relative * np.abs(scaled).max()
    np.testing.assert_allclose(got, scaled[inner], rtol=tolerance, atol=max(1e-15, least))


def test_full_map_of_scikit_image(precision, assert_within_budget, photo):
    x = photo[..., :64, :75].to(precision.dtype)
    y = (x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    _, expected = structural_similarity(
        x[0].double().numpy(),
        y[0].double().numpy(),
        channel_axis=0,
        data_range=1,
        full=True,
        gaussian_weights=True,
        use_sample_covariance=False,
    )
    values = functools.partial(ssim_map, x, y, padding="symmetric")
    assert_within_budget(values, expected[None], 1e-12)


# Two of the peers build their windows in float32, which alone moves these values by 4e-6: they are
# given the same window in float64. The sides are divisible by 16, where the definitions of MS-SSIM
# agree.
WINDOW = torch.tensor(gaussian(11, 1.5), dtype=torch.float64)


def test_peers_agree_on_ssim(camera, backend, precision, sized):
    side = sized(512, 32)
    x, y = ((image[..., :side, :side] / 255).to(precision.dtype) for image in camera)
    value = ssim(x, y, backend=backend).item()
    value = pytest.approx(value, abs=precision.value(1e-12))
    x, y = x.double(), y.double()
    win = WINDOW.reshape(1, 1, 1, 11)
    assert pytorch_msssim.ssim(x, y, data_range=1, win=win).item() == value
    assert piq.ssim(x, y, downsample=False).item() == value
    metric = piqa.ssim.SSIM(n_channels=1).double()
    metric.kernel.copy_(WINDOW)
    assert metric(x, y).item() == value


def test_peers_agree_on_ms_ssim(camera, backend, precision, sized):
    side = sized(512, 176)
    x, y = ((image[..., :side, :side] / 255).to(precision.dtype) for image in camera)
    value = ms_ssim(x, y, backend=backend).item()
    value = pytest.approx(value, abs=precision.value(1e-12))
    x, y = x.double(), y.double()
    win = WINDOW.reshape(1, 1, 1, 11)
    assert pytorch_msssim.ms_ssim(x, y, data_range=1, win=win).item() == value
    assert piq.multi_scale_ssim(x, y).item() == value
    metric = piqa.ssim.MS_SSIM(n_channels=1).double()
    metric.kernel.copy_(WINDOW)
    # Its level weights are a float32 buffer.
    assert metric(x, y).item() == pytest.approx(value.expected, abs=precision.value(1e-7))
