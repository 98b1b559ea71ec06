"""The levels of a pyramid on the GPU path, in Triton's interpreter."""

import pytest
import torch
from kernel_steps import (
    accumulate,
    compare,
    needs_triton,
    pair,
    request_of,
    settings,
    step,
    weights_of,
)

from perceptual_losses import MSSSIMLoss
from perceptual_losses._ssim import autograd
from perceptual_losses._ssim.backend import NO_AUXILIARY, layout_of
from perceptual_losses._ssim.gpu import backend as gpu
from perceptual_losses._ssim.gpu import levels as gpu_levels
from perceptual_losses._ssim.pyramid import halve
from perceptual_losses._ssim.request import plane_gradient

pytestmark = needs_triton


@pytest.mark.parametrize(
    ("taps", "levels", "shape"), [(11, 3, (1, 1, 45, 51)), (3, 4, (1, 2, 9, 23))]
)
@pytest.mark.interpreted
def test_levels_in_the_interpreter(tiles, taps, levels, shape):
    tiles(64, 1, 64)
    x, y = pair(*shape)
    chosen = settings(taps, "valid" if taps == 11 else "symmetric")
    weights = weights_of(x, chosen, levels) if taps == 3 else []
    compare(x, y, chosen, weights, levels, 1)


@pytest.mark.parametrize("shape", [(1, 2, 13, 22), (2, 1, 16, 8), (1, 1, 1, 5), (1, 1, 45, 51)])
@pytest.mark.parametrize("levels", [1, 2, 4])
@pytest.mark.interpreted
def test_levels_add_up_in_the_interpreter(tiles, shape, levels):
    tiles(8, 2, 4)
    generator = torch.Generator().manual_seed(2)
    grad = torch.rand((*shape[:2], levels), generator=generator).permute(2, 0, 1)
    image = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    gradients, total, at_level = [], 0, image
    for j in range(levels):
        gradients.append(torch.rand(at_level.shape, generator=generator))
        total = total + (at_level * gradients[j] * grad[j, ..., None, None]).sum()
        at_level = halve(at_level)
    usual = plane_gradient(shape)
    (exact,) = torch.autograd.grad(total / usual, image)
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 0.01)):
        fine = gradients[0].to(dtype, copy=True, memory_format=torch.channels_last)
        accumulate([fine, *gradients[1:]], grad, [], [], usual)
        assert (fine - exact).norm() < tolerance * exact.norm()
    # The upstream gradient of the means' product, times its derivatives by the means.
    fine, factor = gradients[0].clone(), torch.tensor(0.7)
    derivatives = (grad / factor).contiguous()
    accumulate([fine, *gradients[1:]], factor, [derivatives], [], usual)
    assert (fine - exact).norm() < 1e-6 * exact.norm()
    # And as the compiler gets it.
    request = request_of(settings(), levels)
    compiled = autograd._add_up_levels(gradients, grad, (image, image), NO_AUXILIARY, request)
    assert (compiled - exact).norm() < 1e-6 * exact.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.interpreted
def test_levels_of_a_pixel_in_the_interpreter(dtype):
    """Halves of the size of the images are still halves, and in float32."""
    x, y = pair(2, 3, 1, 1, dtype=dtype)
    options = {"window_size": 1, "levels": 3}
    fast = step(MSSSIMLoss(backend="triton", **options), x, y)
    exact = step(MSSSIMLoss(backend="reference", **options), x.double(), y.double())
    for got, true in zip(fast, exact, strict=True):
        assert (got - true).norm() < torch.finfo(dtype).eps * max(true.norm(), 1)


@pytest.mark.interpreted
def test_gradients_that_are_right_are_left_in_the_interpreter(tiles):
    tiles(8, 2, 4)
    gradient = torch.rand(2, 3, 5, 7)
    # A signalling NaN, of which any multiplication makes a quiet one.
    gradient.view(torch.int32)[0, 0, 0, 0] = 0x7F800001
    scaled, grad = gradient.clone(), torch.full((1, 2, 3), plane_gradient(gradient.shape))
    grad[0, 1, 2] *= 2
    accumulate([scaled], grad, [], [], plane_gradient(gradient.shape))
    gradient[1, 2] *= 2
    assert torch.equal(scaled.view(torch.int32), gradient.view(torch.int32))
    accumulate([scaled], torch.tensor(4.0), [grad / 4], [], plane_gradient(gradient.shape))
    gradient[1, 2] *= 2
    assert torch.equal(scaled.view(torch.int32), gradient.view(torch.int32))


@pytest.mark.interpreted
def test_halves_are_gone_where_the_gradients_are_large_in_the_interpreter(tiles):
    tiles(16, 1, 16)
    x = torch.rand(1, 1, 40, 40)
    images, request = (layout_of(x), layout_of(x), NO_AUXILIARY), request_of(settings(), 4, 1)
    held, seen = set(), set()
    for launch in gpu_levels.forward_launches(gpu.machine_of(x.device), x.device, *images, request):
        allocated = [allocation.name for allocation in launch.allocations]
        # One name is one block of memory.
        assert not seen & set(allocated)
        assert len(set(allocated)) == len(allocated)
        held |= set(allocated)
        seen |= held
        assert not ("of_x0" in held and held & {"halves1", "halves3"})
        held -= set(launch.frees)
    assert held == {"means", "of_x0", "of_x1", "of_x2", "of_x3"}
    assert seen == held | {"halves1", "halves3", "scratch0_0", "scratch1_0", "sums"}


@pytest.mark.interpreted
def test_maps_are_gone_after_their_gradients_in_the_interpreter(tiles):
    """Those of each level, before the next one's are there."""
    tiles(16, 1, 16, fused=False)
    x = torch.rand(1, 1, 20, 20)
    images, request = (layout_of(x), layout_of(x), NO_AUXILIARY), request_of(settings(), 3, 2)
    held, most = set(), 0
    launches = gpu_levels.forward_launches(gpu.machine_of(x.device), x.device, *images, request)
    for launch in launches:
        held |= {allocation.name for allocation in launch.allocations}
        most = max(most, sum(name.startswith("maps") for name in held))
        held -= set(launch.frees)
    assert most == 1
    assert held == {"means", *(f"of_{name}{j}" for name in "xy" for j in range(3))}
