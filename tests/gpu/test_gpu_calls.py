"""The package's functions on the GPU path, mostly in Triton's interpreter."""

import contextlib
import subprocess
import sys

import pytest
import torch
from kernel_steps import needs_triton, pair, settings, step

from perceptual_losses import (
    L1MSSSIMLoss,
    L1SSIMLoss,
    MSSSIMLoss,
    SSIMLoss,
    _validation,
    ms_ssim,
    ssim,
)
from perceptual_losses._ssim import autograd, dispatch
from perceptual_losses._ssim.backend import NO_AUXILIARY

pytestmark = needs_triton


def test_triton_is_imported_with_the_first_launch():
    code = "import sys, perceptual_losses._ssim.gpu.backend; print('triton' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "False\n"


def test_why_not():
    x = torch.rand(1, 1, 16, 16)
    with pytest.raises(ValueError, match="backend='triton' cannot run: the images are on cpu"):
        ssim(x, x, backend="triton")
    assert ssim(x, x) == ssim(x, x, backend="numba")


@pytest.mark.parametrize(
    ("function", "shape", "options", "masked"),
    [
        (ssim, (2, 1, 32, 33), {"padding": "zeros", "data_range": (-1, 1)}, True),
        (ssim, (1, 1, 16, 40), {"window_size": 13, "sigma": 2.0}, False),
        (ms_ssim, (1, 1, 81, 86), {"levels": 4, "normalize": "relu"}, True),
        (ms_ssim, (1, 1, 48, 48), {"window_size": 3, "padding": "symmetric"}, True),
        (ms_ssim, (1, 1, 65, 67), {"window_size": 5, "normalize": "simple"}, False),
        (ms_ssim, (1, 1, 45, 46), {"levels": 3, "normalize": "simple"}, True),
        (ms_ssim, (2, 1, 32, 32), {"levels": 2, "normalize": None}, False),
        (ms_ssim, (1, 1, 32, 32), {"levels": 2, "normalize": None}, True),
        (ms_ssim, (1, 1, 32, 32), {"levels": 2, "normalize": "relu"}, False),
        (ms_ssim, (1, 1, 32, 32), {"levels": 2}, True),
    ],
)
@pytest.mark.interpreted
def test_the_public_functions_in_the_interpreter(wide_tiles, function, shape, options, masked):
    x, y = pair(*shape)
    if masked:
        options = {**options, "mask": torch.rand(shape[2:])}
    # The tiles as they are shipped where they take seconds.
    with wide_tiles() if min(shape[2:]) > 40 else contextlib.nullcontext():
        fast = step(function, x, y, backend="triton", **options)
    exact = step(function, x.double(), y.double(), backend="reference", **options)
    for got, true in zip(fast, exact, strict=True):
        assert (got - true).norm() < 3e-6 * true.norm()


@pytest.mark.interpreted
def test_autograd_in_the_interpreter(tiles):
    tiles(16, 1, 8)
    x, y = pair(1, 1, 12, 13)
    x.requires_grad_()
    value = ssim(x, y, window_size=3, backend="triton")
    (first,) = torch.autograd.grad(value, x, retain_graph=True)
    first = first.clone()
    (again,) = torch.autograd.grad(2 * value, x)
    torch.testing.assert_close(again, 2 * first, rtol=1e-5, atol=0)
    losses = SSIMLoss(window_size=3, backend="triton"), SSIMLoss(window_size=3, backend="reference")
    second = []
    for loss in losses:
        (gradient,) = torch.autograd.grad(loss(x, y), x, create_graph=True)
        second.append(torch.autograd.grad(gradient.square().sum(), x)[0])
    torch.testing.assert_close(*second, rtol=1e-5, atol=1e-9)
    half = x.detach().bfloat16().requires_grad_()
    MSSSIMLoss(levels=2, window_size=3, backend="triton")(half, y).backward()
    assert half.grad.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("loss", "wanted"),
    [
        (SSIMLoss(window_size=3, backend="triton"), ()),
        (SSIMLoss(window_size=3, backend="triton"), (0, 1)),
        (
            MSSSIMLoss(window_size=3, weights=(0.3, 0.7), normalize="simple", backend="triton"),
            (1,),
        ),
        (L1SSIMLoss(window_size=3, backend="triton"), (1,)),
        (L1MSSSIMLoss(window_size=3, weights=(0.3, 0.7), backend="triton"), (0, 1)),
        (L1MSSSIMLoss(window_size=3, weights=(0.3, 0.7), backend="triton"), ()),
    ],
)
@pytest.mark.interpreted
def test_remembered_calls_in_the_interpreter(tiles, monkeypatch, loss, wanted):
    """They check the images no more, and give the same."""
    tiles(64, 1, 64)

    def step(seed):
        images = pair(1, 2, 12, 13, seed=seed)
        for j in wanted:
            images[j].requires_grad_()
        value = loss(*images)
        inputs = [images[j] for j in wanted]
        gradients = torch.autograd.grad(3 * value, inputs, retain_graph=True) if wanted else ()
        again = torch.autograd.grad(value, inputs) if wanted else ()
        return value.detach(), *(gradient.clone() for gradient in (*gradients, *again))

    # An option that is set lets it plan anew.
    loss.backend = "triton"
    new = step(0)
    loss.backend = "triton"
    step(1)
    for module, name in ((_validation, "check_images"), (dispatch, "choose_backend")):
        monkeypatch.setattr(module, name, lambda *arguments: pytest.fail("is remembered"))
    for value, remembered in zip(new, step(0), strict=True):
        assert torch.equal(value, remembered)


@pytest.mark.interpreted
def test_what_makes_another_call_in_the_interpreter(tiles):
    """Whatever decides what is computed, after calls that are known."""
    tiles(64, 1, 64)
    x, y = pair(1, 1, 12, 16)
    options = {"window_size": 3, "data_range": 2.0, "backend": "triton"}
    for _ in range(2):
        assert ssim(x, y, **options) == ssim(x, y, **options)
    rows, mask = x.mT.contiguous().mT, torch.rand(12, 16)
    for images, others in [
        ((rows, y), {}),
        ((x, rows), {}),
        ((x.bfloat16(), y), {}),
        ((x, y.half()), {}),
        (((255 * x).byte(), y), {"data_range": 255}),
        ((x[..., 1:], y[..., 1:]), {}),
        ((x, y), {"mask": mask}),
        ((x, y), {"data_range": (-1, 1)}),
        ((x, y), {"sigma": 1.0}),
        ((x, y), {"k2": 0.1}),
        ((x, y), {"padding": "zeros"}),
        ((x, y), {"reduction": "none"}),
    ]:
        exact = [image.double() for image in images]
        same = {**options, **others}
        true = ssim(*exact, **{**same, "backend": "reference"})
        torch.testing.assert_close(ssim(*images, **same), true.float(), rtol=0, atol=1e-6)
        torch.testing.assert_close(ssim(*images, **same), true.float(), rtol=0, atol=1e-6)
    mixed = L1SSIMLoss(0.2, window_size=3, backend="triton")
    values = []
    for weight in (0.2, 0.7, 0.2):
        mixed.weight = weight
        values.append(mixed(x, y))
    assert values[0] == values[2] < values[1]
    wanting = x.clone().requires_grad_()
    assert ssim(wanting, y, **options).requires_grad
    with torch.no_grad():
        assert not ssim(wanting, y, **options).requires_grad
    for images, others, error in [
        ((x, None), {}, TypeError),
        ((x.to_sparse(), y), {}, TypeError),
        ((x, y[..., 1:]), {}, ValueError),
        ((x.byte(), y), {"data_range": 1.0}, ValueError),
        ((x.double(), y), {}, ValueError),
        ((x, y), {"data_range": True}, TypeError),
        ((x, y), {"window_size": 13}, ValueError),
    ]:
        with pytest.raises(error):
            ssim(*images, **{**options, **others})
    with pytest.raises(ValueError, match=r"a torch\.func transform is active"):
        torch.func.grad(lambda image: ssim(image, y, **options))(x)
    automatic, numba = (ssim(x, y, **{**options, "backend": b}) for b in ("auto", "numba"))
    assert automatic == numba

    levels = {"weights": (0.5, 0.3, 0.2), "window_size": 5, "backend": "triton"}
    for _ in range(2):
        with pytest.warns(UserWarning, match="12x16 pixels fit 2 of 3"):
            automatic = ms_ssim(x, y, **levels)
        assert ms_ssim(x, y, levels=2, **levels) == automatic
        with pytest.raises(ValueError, match="levels=3 with window_size=5"):
            ms_ssim(x, y, levels=3, **levels)
    assert ms_ssim(x, y, levels=1, **levels) != automatic


@pytest.mark.interpreted
def test_the_operations_are_good_citizens_in_the_interpreter(tiles):
    tiles(16, 1, 8)
    x, y = pair(1, 2, 9, 11)
    definition = (*autograd._flattened(x, y, NO_AUXILIARY, settings()),)
    for levels, l1, gradients in ((2, True, 2), (1, False, 1), (1, True, 1)):
        arguments = *definition, levels, l1, gradients, "triton"
        torch.library.opcheck(torch.ops.perceptual_losses.ssim_level_means.default, arguments)
    torch.library.opcheck(
        torch.ops.perceptual_losses.ssim_depends_on.default, (torch.rand(3, 1, 2), [x, y])
    )


@pytest.mark.interpreted
def test_what_is_refused_in_the_interpreter():
    x = torch.rand(1, 1, 16, 16)
    reason = "it computes in float32, and the images are float64"
    with pytest.raises(ValueError, match=f"backend='triton' cannot run: {reason}"):
        ssim(x.double(), x.double(), backend="triton")
    larger = torch.rand(1, 1, 40, 40)
    with pytest.raises(ValueError, match="its windows have at most 33 pixels, not 35"):
        ssim(larger, larger, window_size=35, backend="triton")
