"""Volumes and the other definitions on a GPU: the compiled kernels' numbers, memory and graphs."""

import pytest
import torch

from perceptual_losses import L1MSSSIMLoss, L1SSIMLoss, SSIMLoss, ms_ssim, ssim, ssim_map

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]

VOLUME = (2, 2, 40, 45, 70)
IMAGE = (2, 3, 96, 131)
LEVELS = (0.3, 0.7)


def pair(*shape, dtype=torch.float32, device="cuda"):
    generator = torch.Generator(device).manual_seed(0)
    x = torch.rand(shape, generator=generator, device=device)
    noise = torch.rand(shape, generator=generator, device=device)
    return x.to(dtype), (0.7 * x + 0.3 * noise).to(dtype)


def step(function, x, y, **options):
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    value = function(x, y, **options)
    return value.detach(), *torch.autograd.grad(value, (x, y))


def check(function, x, y, tolerance=3e-6, **options):
    fast = step(function, x, y, backend="triton", **options)
    exact = step(function, x.double(), y.double(), backend="reference", **options)
    for got, true in zip(fast, exact, strict=True):
        assert (got - true).norm() < tolerance * true.norm()


@pytest.mark.parametrize("padding", ["valid", "zeros", "symmetric"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("levels", [None, LEVELS])
def test_volumes(levels, masked, padding):
    x, y = pair(*VOLUME)
    options = {"padding": padding, "window_size": 7, "data_range": (-0.5, 1)}
    if masked:
        options["mask"] = pair(1, 1, *VOLUME[2:])[1]
    if levels:
        options["weights"] = levels
    check(ms_ssim if levels else ssim, x, y, **options)


@pytest.mark.parametrize("window_size", [1, 5, 11, 21, 33, (3, 11, 7)])
def test_windows_of_volumes(window_size):
    x, y = pair(1, 1, 36, 41, 130)
    # With one tap there is no variance, and two large terms of the gradient cancel.
    check(ssim, x, y, 3e-5 if window_size == 1 else 3e-6, window_size=window_size)


@pytest.mark.parametrize("shape", [IMAGE, VOLUME])
@pytest.mark.parametrize(
    "options",
    [
        {"window": "uniform", "window_size": 7},
        {"window_size": 7, "sample_covariance": True},
        {"window": "uniform", "window_size": 7, "padding": "symmetric", "sample_covariance": True},
    ],
)
def test_definitions(options, shape):
    check(ssim, *pair(*shape), **options)


@pytest.mark.parametrize("shape", [IMAGE, VOLUME])
@pytest.mark.parametrize("padding", ["valid", "zeros", "symmetric"])
def test_valid_pixels_and_ranges(padding, shape):
    x, y = pair(*shape)
    valid = pair(shape[0], 1, *shape[2:])[0] > 0.3
    ranges = torch.tensor([0.7, 1.9], device=x.device)
    options = {"valid": valid, "data_range": ranges, "padding": padding, "window_size": 7}
    check(ssim, x, y, **options)
    expected = step(ssim, x, y, backend="triton", **options)
    garbage = torch.where(valid, x, float("nan")), torch.where(valid, y, float("inf"))
    assert all(map(torch.equal, step(ssim, *garbage, backend="triton", **options), expected))


@pytest.mark.parametrize("shape", [IMAGE, VOLUME])
def test_maps(shape):
    x, y = pair(*shape)
    upstream = pair(*ssim_map(x, y, window_size=7).shape)[0]

    def weighted(x, y, **options):
        return (ssim_map(x, y, window_size=7, **options) * upstream).sum()

    check(weighted, x, y)


@pytest.mark.parametrize("mix", [L1SSIMLoss, L1MSSSIMLoss])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_mixes_of_volumes(dtype, mix):
    x, y = pair(*VOLUME, dtype=dtype)
    options = {"window_size": 7} | ({"weights": LEVELS} if mix is L1MSSSIMLoss else {})
    value, *gradients = step(mix(backend="triton", **options), x, y)
    exact, *expected = step(mix(backend="reference", **options), x.double(), y.double())
    assert abs(value - exact) < 1e-6
    for got, true in zip(gradients, expected, strict=True):
        assert got.dtype == dtype
        # Small gradients are subnormal in float16.
        roundings = 20 if dtype == torch.float32 else 1
        limit = roundings * torch.finfo(dtype).eps * true.abs().max() + 6e-8
        assert (got - true).abs().max() < limit


def test_layouts_of_volumes():
    x, y = pair(*VOLUME)
    loss = SSIMLoss(window_size=7, backend="triton")
    expected = step(loss, x, y)
    last = x.to(memory_format=torch.channels_last_3d)
    turned = x.transpose(2, 4).contiguous().transpose(2, 4)
    for layout in (last, turned, torch.cat([x, x], 4)[..., VOLUME[4] :]):
        for got, same in zip(step(loss, layout, y), expected, strict=True):
            torch.testing.assert_close(got, same, rtol=1e-4, atol=1e-9)


def test_a_volume_in_a_graph():
    x, y = pair(*VOLUME)
    x.requires_grad_()
    loss = SSIMLoss(window_size=7, backend="triton")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            torch.autograd.grad(loss(x, y), x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = loss(x, y)
        gradient = torch.autograd.grad(value, x)[0]
    with torch.no_grad():
        x.mul_(0.9)
    graph.replay()
    expected = loss(x, y)
    assert torch.equal(value, expected)
    assert torch.equal(gradient, torch.autograd.grad(expected, x)[0])


def test_memory_of_a_volume():
    """Four maps, and the gradient."""
    x, y = pair(1, 1, 128, 128, 128)
    x.requires_grad_()
    loss = SSIMLoss(backend="triton")
    loss(x, y).backward()
    x.grad = None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss(x, y).backward()
    peak = torch.cuda.max_memory_allocated() - before
    assert peak < 5.2 * x.numel() * 4


def test_a_volume_beyond_32_bits():
    """More than 2^31 voxels, in bfloat16."""
    shape = (1, 1, 1040, 1440, 1440)
    # A smaller volume would not cross 2^31, which is all that this tests.
    if torch.cuda.get_device_properties("cuda").total_memory < 60e9:
        pytest.skip("the volumes and their maps take 60 GB")
    x = torch.zeros(shape, dtype=torch.bfloat16, device="cuda")
    y = x.clone()
    # Only the last slices differ.
    part = pair(1, 1, 40, *shape[3:], dtype=torch.bfloat16)
    x[:, :, -40:], y[:, :, -40:] = part
    whole = ssim(x, y, backend="triton").double()
    slices = shape[2] - 10
    padded = [torch.cat([torch.zeros_like(a[:, :, :10]), a], 2) for a in part]
    expected = 1 - (1 - ssim(*padded, backend="triton").double()) * 40 / slices
    assert abs(whole - expected) < 1e-6
