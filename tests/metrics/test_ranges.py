"""A range for each image, as a tensor."""

import functools
import re

import numpy as np
import pytest
import torch
from metric_steps import (
    LOSSES,
    MIXES,
    assert_near,
    both_reductions,
    compiles,
    every_loss,
    every_padding,
    exact_step,
    pair,
    step,
)
from torch.nn import functional

from perceptual_losses import L1SSIMLoss, SSIMLoss, ms_ssim, ssim, ssim_map

# On the GPU path tests/gpu/test_definitions.py has these, with tiles that images cross.
pytestmark = pytest.mark.large

LENGTHS = [0.25, 3.0, 700.0]
FUNCTIONS = {
    "ssim": lambda x, y, **kw: ssim(x, y, window_size=3, **kw),
    "ssim_map": lambda x, y, **kw: ssim_map(x, y, window_size=3, **kw),
    "ms_ssim": lambda x, y, **kw: ms_ssim(x, y, window_size=3, weights=(0.4, 0.6), **kw),
}


def scaled(precision, *shape):
    """Two batches with images of very different units, and their ranges."""
    ranges = torch.tensor(LENGTHS[: shape[0]], dtype=precision.dtype)
    scale = ranges.reshape(-1, *[1] * (len(shape) - 1))
    x, y = (image.to(precision.dtype) * scale for image in pair(*shape))
    return x, y, ranges


def fastmri(x, y, data_range):
    """The formula of fastMRI's SSIMLoss, of the batch: uniform 7x7, sample covariance."""
    window = torch.ones(1, 1, 7, 7, dtype=x.dtype) / 49
    length = data_range[:, None, None, None]
    c1, c2 = (0.01 * length) ** 2, (0.03 * length) ** 2
    ux, uy, uxx, uyy, uxy = (
        functional.conv2d(image, window) for image in (x, y, x * x, y * y, x * y)
    )
    vx, vy, vxy = (49 / 48 * v for v in (uxx - ux * ux, uyy - uy * uy, uxy - ux * uy))
    above = (2 * ux * uy + c1) * (2 * vxy + c2)
    below = (ux**2 + uy**2 + c1) * (vx + vy + c2)
    return 1 - (above / below).mean()


def test_the_loss_of_fastmri(backend, precision, sized):
    generator = torch.Generator().manual_seed(0)
    shape = sized((4, 1, 40, 36), (2, 1, 12, 14))
    scale = torch.tensor([1e-3, 1.0, 30.0, 4e-2])[: shape[0], None, None, None]
    y = (scale * torch.rand(shape, generator=generator).square()).to(precision.dtype)
    x = y * (0.9 + 0.2 * torch.rand(shape, generator=generator).to(precision.dtype))
    ranges = y.amax((1, 2, 3))
    loss = SSIMLoss(window="uniform", window_size=7, sample_covariance=True, backend=backend)
    got = step(loss, x, y, data_range=ranges)
    assert_near(got, exact_step(fastmri, x, y, data_range=ranges.double()), precision, 1e-10)


@every_padding
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_equal_a_loop_over_images(backend, precision, name, padding):
    x, y, ranges = scaled(precision, 3, 1, 9, 10)
    options = {"padding": padding, "backend": backend}
    options |= {} if name == "ssim_map" else {"reduction": "none"}
    values, *gradients = step(FUNCTIONS[name], x, y, data_range=ranges, **options)
    for i, length in enumerate(LENGTHS):
        images = x[i : i + 1], y[i : i + 1]
        expected, *of_image = step(FUNCTIONS[name], *images, data_range=length, **options)
        assert (values[i] - expected[0]).abs().max() <= precision.value(1e-13)
        for gradient, alone in zip(gradients, of_image, strict=True):
            error = (gradient[i] - alone[0]).norm()
            assert error <= precision.gradient(1e-11) * alone.norm()


@both_reductions
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_equal_a_loop_over_images(backend, precision, name, masked, reduction):
    x, y, ranges = scaled(precision, 3, 2, 9, 10)
    mask = torch.rand(3, 1, 9, 10, generator=torch.Generator().manual_seed(3))
    masks = {"mask": mask} if masked else {}
    loss = LOSSES[name](backend=backend, reduction=reduction)
    values, *gradients = step(loss, x, y, data_range=ranges, **masks)
    alone, share = [], 1 if reduction == "none" else 1 / 3
    for i, length in enumerate(LENGTHS):
        of_image = LOSSES[name](backend=backend, data_range=length)
        masks = {"mask": mask[i : i + 1]} if masked else {}
        expected, *of_images = step(of_image, x[i : i + 1], y[i : i + 1], **masks)
        alone.append(expected)
        for gradient, exact in zip(gradients, of_images, strict=True):
            error = (gradient[i] - share * exact[0]).norm()
            assert error <= precision.gradient(1e-11) * (share * exact).norm()
    alone = torch.stack(alone) if reduction == "none" else torch.stack(alone).mean()
    assert (values - alone).abs().max() <= precision.value(1e-13)


@pytest.mark.parametrize("name", MIXES)
def test_the_l1_term_is_in_units_of_each_range(backend, precision, name):
    x, y, ranges = scaled(precision, 3, 2, 9, 10)
    loss = LOSSES[name](weight=0, reduction="none", backend=backend)
    expected = (x - y).abs().mean((1, 2, 3)) / ranges
    for options in ({}, {"mask": torch.ones(9, 10)}, {"valid": torch.ones(9, 10) > 0}):
        value = loss(x, y, data_range=ranges, **options)
        torch.testing.assert_close(value, expected, rtol=precision.gradient(1e-13), atol=0)
    # Images in other units have the same loss.
    times = torch.tensor([8.0, 0.5, 4.0], dtype=precision.dtype)
    images = (image * times[:, None, None, None] for image in (x, y))
    value = loss(*images, data_range=ranges * times)
    torch.testing.assert_close(value, expected, rtol=precision.gradient(1e-13), atol=0)


def test_equal_ranges_are_one_range(backend, precision):
    x, y = pair(2, 2, 9, 10, dtype=precision.dtype)
    for name in LOSSES:
        loss = LOSSES[name](data_range=2.0, backend=backend)
        expected = step(loss, x, y)
        got = step(loss, x, y, data_range=torch.tensor([2.0, 2.0]))
        assert_near(got, expected, precision, 1e-12)
        # The loss's own range, and its zero, do not count.
        other = LOSSES[name](data_range=(-5, 80), backend=backend)
        assert_near(step(other, x, y, data_range=torch.full((2,), 2.0)), expected, precision, 1e-12)


@every_loss
def test_ranges_are_those_of_each_call(backend, precision, name):
    """Nothing of a call's ranges is left in the next one of the same layout."""
    x, y = pair(2, 1, 9, 10, dtype=precision.dtype)
    loss = LOSSES[name](reduction="none", backend=backend)
    plain = loss(x, y)
    for lengths in ([1.0, 4.0], [4.0, 1.0]):
        value = loss(x, y, data_range=torch.tensor(lengths))
        i = lengths.index(1.0)
        assert abs(value[i] - plain[i]) <= precision.value(1e-13)
        assert abs(value[1 - i] - plain[1 - i]) > 1e-4
    assert torch.equal(loss(x, y), plain)


def test_dtypes_of_ranges(backend, precision):
    x, y = (255 * image for image in pair(2, 1, 9, 10, dtype=precision.dtype))
    expected = ssim(x, y, window_size=3, data_range=torch.tensor([255.0, 510.0]), backend=backend)
    for dtype in (torch.int64, torch.float16, torch.float64):
        ranges = torch.tensor([255, 510], dtype=dtype)
        value = ssim(x, y, window_size=3, data_range=ranges, backend=backend)
        assert torch.equal(value, expected)
        assert value.dtype == precision.dtype
    as_bytes = [image.to(torch.uint8) for image in (x, y)]
    value = ssim(*as_bytes, window_size=3, data_range=ranges, backend=backend)
    images = [image.to(precision.dtype) for image in as_bytes]
    expected = ssim(*images, window_size=3, data_range=ranges, backend=backend)
    assert value.item() == pytest.approx(expected.item(), abs=1e-6)


def test_no_gradient_reaches_the_ranges(backend):
    x, y = pair(2, 1, 9, 10)
    ranges = torch.tensor([1.0, 2.0], requires_grad=True)
    loss = L1SSIMLoss(backend=backend, window_size=3)
    assert not loss(x, y, data_range=ranges).requires_grad
    x.requires_grad_()
    loss(x, y, data_range=ranges).backward()
    assert ranges.grad is None
    assert x.grad.abs().max() > 0


@every_loss
def test_value_and_grad(backend, precision, name):
    x, y, ranges = scaled(precision, 3, 1, 9, 10)
    for reduction in ("mean", "none"):
        loss = LOSSES[name](backend=backend, reduction=reduction)
        expected = step(loss, x, y, data_range=ranges)[:2]
        for _ in range(2):
            got = loss.value_and_grad(x, y, data_range=ranges)
            assert_near(got, expected, precision, 1e-13)


@pytest.mark.float64
@pytest.mark.parametrize("name", [*FUNCTIONS, *MIXES])
def test_derivatives(backend, name):
    x, y = (image.requires_grad_() for image in pair(2, 1, 5, 6))
    ranges = torch.tensor([0.5, 3.0])
    if name in FUNCTIONS:
        function = functools.partial(FUNCTIONS[name], data_range=ranges, backend=backend)
    else:
        function = functools.partial(LOSSES[name](backend=backend), data_range=ranges)
    assert torch.autograd.gradcheck(function, (x, y), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, (x, y), fast_mode=True)


@pytest.mark.volumes
@pytest.mark.parametrize("name", LOSSES)
def test_volumes(backend, precision, name):
    x, y, ranges = scaled(precision, 2, 1, 5, 6, 7)
    loss = LOSSES[name](reduction="none", backend=backend)
    values, *gradients = step(loss, x, y, data_range=ranges)
    for i, length in enumerate(LENGTHS[:2]):
        alone = LOSSES[name](reduction="none", data_range=length, backend=backend)
        expected = step(alone, x[i : i + 1], y[i : i + 1])
        got = (values[i : i + 1], *[gradient[i : i + 1] for gradient in gradients])
        assert_near(got, expected, precision)


@compiles
@pytest.mark.large
@pytest.mark.parametrize("name", ["ssim", "l1_ms_ssim"])
def test_compiled(backend, precision, name):
    torch.compiler.reset()
    x, y, ranges = (tensor.float() for tensor in scaled(precision, 3, 1, 12, 13))
    loss = LOSSES[name](backend=backend, reduction="none")
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    got = step(compiled, x, y, data_range=ranges)
    assert_near(got, step(loss, x, y, data_range=ranges), precision, 2e-5)


def refuses(error, text, call, *images, **options):
    with pytest.raises(error, match=re.escape(text)):
        call(*images, **options)


def test_numbers_in_other_containers_are_refused(backend):
    x, y = pair(2, 1, 40, 40, dtype=torch.float32)
    for function in (ssim, ssim_map, ms_ssim):
        for given in ([1.0, 2.0], np.ones(2)):
            text = "a tuple (low, high), or torch.tensor([...]) with one L for each image"
            refuses(TypeError, text, function, x, y, data_range=given, backend=backend)
    for name in LOSSES:
        loss = LOSSES[name](backend=backend)
        text = "data_range is of type list: pass a tensor (N,)"
        refuses(TypeError, text, loss, x, y, data_range=[1.0, 2.0])
        refuses(TypeError, "data_range is 255 (int)", loss, x, y, data_range=255)
        refuses(TypeError, "data_range is of type tuple", loss, x, y, data_range=(0, 1))
        text = "so pass it with them, loss(x, y, data_range=ranges)"
        refuses(TypeError, text, LOSSES[name], data_range=torch.ones(2))
        loss.data_range = torch.ones(2)
        refuses(TypeError, text, loss, x, y)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_wrong_ranges_are_refused(backend, name):
    x, y = pair(2, 1, 9, 10, dtype=torch.float32)

    def refused(error, text, given):
        refuses(error, text, FUNCTIONS[name], x, y, data_range=given, backend=backend)

    for shape in ((), (1,), (3,), (2, 1), (1, 2)):
        text = f"data_range has shape {shape} and x (2, 1, 9, 10): pass a tensor of shape (2,)"
        refused(ValueError, text, torch.ones(shape))
    refused(ValueError, "data_range is on meta and x on cpu", torch.ones(2, device="meta"))
    refused(TypeError, "data_range is torch.complex64: pass real values", torch.ones(2) * 1j)
    refused(TypeError, "pass a plain tensor", torch.ones(2).to_sparse())
    for value in (0.0, -1.0, torch.nan, torch.inf, 1e-30, 1e30):
        text = "pass a positive and finite number for each image"
        refused(ValueError, text, torch.tensor([1.0, value]))
