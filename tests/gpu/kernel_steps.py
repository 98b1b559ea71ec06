"""Images, definitions and plans of the GPU path's kernels, for the tests of this folder."""

import pytest
import torch

from perceptual_losses import _evaluator
from perceptual_losses._ssim import reference
from perceptual_losses._ssim.backend import NO_AUXILIARY, Auxiliary, layout_of
from perceptual_losses._ssim.gpu import backend as gpu
from perceptual_losses._ssim.gpu import combine as gpu_combine
from perceptual_losses._ssim.gpu import launch as gpu_launch
from perceptual_losses._ssim.gpu import planning, programs
from perceptual_losses._ssim.pyramid import halve
from perceptual_losses._ssim.request import Definition, Request, gaussian, plane_gradient

MISSING = gpu.unavailable(torch.device("cpu"))
needs_triton = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))

PADDINGS = ["valid", "zeros", "symmetric"]
# Lanes, columns and rows of a tile, and whether one kernel computes all of a level.
SCHEMES = [(16, 1, 3, True), (8, 2, 5, True), (8, 1, 3, False), (8, 2, 4, False)]


def forget_plans():
    """Lets functions plan anew, for other tiles than before."""
    _evaluator._evaluator.cache_clear()


def pair(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=generator)
    return x.to(dtype), (0.6 * x + 0.4 * torch.rand(shape, generator=generator)).to(dtype)


def settings(taps=3, padding="valid", low=-0.2, length=1.0):
    c1, c2 = (0.01 * length) ** 2, (0.03 * length) ** 2
    return Definition((gaussian(taps, 1.5),) * 2, low, length, c1, c2, padding)


def weights_of(x, settings, levels=1):
    """Random weights of the map's values at each level."""
    generator = torch.Generator().manual_seed(1)
    lost = len(settings.windows[0]) - 1 if settings.padding == "valid" else 0
    (height, width), weights = x.shape[2:], []
    for _ in range(levels):
        shape = (x.shape[0], 1, height - lost, width - lost)
        weight = torch.rand(shape, generator=generator)
        weights.append(weight / weight.sum((2, 3), keepdim=True))
        height, width = (height + 1) // 2, (width + 1) // 2
    return weights


def expected(x, y, settings, weights=(), levels=1):
    """Each level's means and gradients of the reference path in float64."""
    x, y = x.double(), y.double()
    means, of_x, of_y = [], [], []
    for j in range(levels):
        x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
        # The contrast-structure factor is all levels' but the last one's.
        count = min(levels - j, 2)
        here = [weight.double() for weight in weights[j : j + count]]
        request = Request(settings, (1.0,) * count)
        mean = reference.level_means(x, y, Auxiliary(here), request)[0]
        gradients = torch.autograd.grad(mean.sum(), (x, y))
        means.append(mean.detach())
        of_x.append(gradients[0])
        of_y.append(gradients[1])
        x, y = halve(x), halve(y)
    return torch.stack(means), of_x, of_y


def request_of(settings, levels=1, gradients=2, reduction="levels", mix=None):
    exponents = (1.0,) * levels if levels > 1 else ()
    return Request(settings, exponents, None, mix, reduction, gradients)


def run(x, y, settings, weights=(), levels=1, gradients=2, reduction="levels", mix=None):
    """The value, by default the means of each level, and the gradients to x and to y."""
    auxiliary = Auxiliary(weights)
    request = request_of(settings, levels, gradients, reduction, mix)
    plan = gpu.plan(layout_of(x), layout_of(y), auxiliary.layouts, request, x.device)
    value, saved = plan.forward(x, y, auxiliary)
    return value, saved[:levels], saved[levels:]


def accumulate(gradients, grad, derivatives, images, premultiplied_by):
    """Makes the first of the levels' gradients the whole one, in place, as a backward pass does."""
    tensors = grad, *derivatives, *images, *gradients
    layouts = [tuple(map(layout_of, some)) for some in (gradients, [grad], images)]
    launch = gpu_combine.backward_launch(
        *(gpu.machine_of(grad.device), layouts[0], layouts[1][0], layouts[2]),
        auxiliary=NO_AUXILIARY,
        combined=bool(derivatives),
        premultiplied_by=premultiplied_by,
    )
    inputs = ["grad", *["derivatives"] * len(derivatives), *"xy"[: len(images)]]
    inputs += [f"level{j}" for j in range(len(gradients))]
    gpu_launch.Launches([launch], grad.device, inputs, [])(*tensors)


def compare(x, y, settings, weights=(), levels=1, gradients=2, tolerance=2e-6):
    got = run(x, y, settings, weights, levels, gradients)
    true = expected(x, y, settings, weights, levels)
    assert got[0].dtype == torch.float32
    # Coarse levels have fewer positions to take the mean of.
    errors = (got[0] - true[0]).abs().amax((1, 2))
    assert (errors < torch.tensor([1.5e-7, *[4e-7] * (levels - 1)])).all()
    for number, image, found, exact in zip((1, 2), (x, y), got[1:], true[1:], strict=True):
        assert len(found) == (levels if gradients >= number else 0)
        for j, gradient in enumerate(found):
            kept = torch.bfloat16 if image.dtype == torch.bfloat16 and j == 0 else torch.float32
            assert gradient.dtype == kept
            assert gradient.shape == exact[j].shape
            wanted = plane_gradient(x.shape) * exact[j]
            error = (gradient.double() - wanted).norm() / wanted.norm()
            assert error < (tolerance if j == 0 else 1e-5)
    return got


def step(function, x, y, **options):
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    value = function(x, y, **options)
    return value.detach(), *torch.autograd.grad(value, (x, y))


def planned(shapes, gradients, taps=11, padding="valid", multiprocessors=132, **others):
    machine = programs.Machine("sm_90", multiprocessors)
    shapes = tuple(map(tuple, shapes))
    work = programs.Workload(shapes, (taps, taps), padding, gradients, **others)
    return planning.plan_level(work, machine)
