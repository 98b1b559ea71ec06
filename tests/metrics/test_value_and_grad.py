"""The loss and its gradient in one call, without autograd: the same numbers as with it."""

import copy

import pytest
import torch

from perceptual_losses import L1MSSSIMLoss, L1SSIMLoss, MSSSIMLoss, SSIMLoss

SSIM, LEVELS = {"window_size": 3}, {"window_size": 3, "weights": (0.4, 0.6)}
LOSSES = {
    "ssim": lambda **kw: SSIMLoss(**SSIM, **kw),
    "ms_ssim": lambda **kw: MSSSIMLoss(**LEVELS, **kw),
    "l1_ssim": lambda **kw: L1SSIMLoss(**SSIM, **kw),
    "l1_ms_ssim": lambda **kw: L1MSSSIMLoss(**LEVELS, **kw),
}


def pair(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(shape, generator=generator).to(dtype)
    return x, (0.7 * x + 0.3 * torch.rand(shape, generator=generator)).to(dtype)


def by_autograd(loss, x, y, mask):
    leaf = x.detach().requires_grad_()
    value = loss(leaf, y, mask=mask)
    return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


def assert_the_same(loss, x, y, mask=None):
    expected, expected_gradient = by_autograd(copy.deepcopy(loss), x, y, mask)
    # The first call plans, the second is remembered.
    for _ in range(2):
        value, gradient = loss.value_and_grad(x, y, mask=mask)
        assert torch.equal(value, expected)
        # Gradients of levels are scaled in another order.
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-9)
        assert gradient.dtype == x.dtype
        assert gradient.stride() == torch.empty_like(x).stride()
        assert not value.requires_grad
        assert not gradient.requires_grad


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_the_same_as_with_autograd(backend, sized, name, reduction, masked):
    x, y = pair(2, sized(3, 1), 9, 11)
    mask = torch.rand(9, 11, generator=torch.Generator().manual_seed(1)) if masked else None
    assert_the_same(LOSSES[name](reduction=reduction, backend=backend), x, y, mask)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["ssim", "l1_ms_ssim"])
def test_other_dtypes(backend, sized, name, dtype):
    if backend == "triton" and dtype == torch.float64:
        with pytest.raises(ValueError, match="float64"):
            LOSSES[name](backend=backend).value_and_grad(*pair(1, 1, 9, 11, dtype=dtype))
        return
    assert_the_same(LOSSES[name](backend=backend), *pair(2, sized(3, 1), 9, 11, dtype=dtype))


@pytest.mark.parametrize("name", ["ssim", "l1_ms_ssim"])
def test_layouts(backend, sized, name):
    x, y = pair(2, sized(3, 1), 9, 12)
    loss = LOSSES[name](backend=backend)
    assert_the_same(loss, x.to(memory_format=torch.channels_last), y)
    assert_the_same(loss, x.transpose(2, 3), y.transpose(2, 3).contiguous())
    assert_the_same(loss, x[..., 1::2], y[..., ::2])
    assert_the_same(loss, x.to(memory_format=torch.channels_last), y, torch.rand(9, 12))


@pytest.mark.volumes
@pytest.mark.parametrize("name", LOSSES)
def test_volumes(backend, name):
    assert_the_same(LOSSES[name](backend=backend), *pair(1, 2, 6, 7, 8))


@pytest.mark.parametrize("name", ["ssim", "l1_ms_ssim"])
def test_nothing_is_recorded(backend, sized, name):
    x, y = pair(2, sized(3, 1), 9, 11)
    loss = LOSSES[name](backend=backend)
    expected = loss.value_and_grad(x, y)
    weight = torch.ones(1, requires_grad=True)
    recorded = x * weight, y.clone().requires_grad_()
    for images in (recorded, recorded[::-1]):
        for _ in range(2):
            value, gradient = loss.value_and_grad(*images)
            assert value.grad_fn is None
            assert gradient.grad_fn is None
    value, gradient = loss.value_and_grad(*recorded)
    assert torch.equal(value, expected[0])
    assert torch.equal(gradient, expected[1])
    with torch.no_grad():
        assert torch.equal(loss.value_and_grad(x, y)[1], expected[1])
    assert weight.grad is None
    assert recorded[1].grad is None


def test_a_renderer_goes_back_by_itself(backend):
    x, y = pair(1, 3, 9, 11)
    latent = x.clone().requires_grad_()
    loss = LOSSES["l1_ssim"](backend=backend)
    image = latent.square()
    _, gradient = loss.value_and_grad(image, y)
    image.backward(gradient)
    (expected,) = torch.autograd.grad(loss(latent.square(), y), latent)
    torch.testing.assert_close(latent.grad, expected)


def test_each_loss_keeps_its_own(backend):
    x, y = pair(1, 1, 9, 11)
    loss = LOSSES["ssim"](backend=backend)
    before = loss.value_and_grad(x, y)
    first = before[1].clone()
    loss.k2 = 0.3
    after = loss.value_and_grad(x, y)
    assert not torch.equal(after[1], first)
    assert torch.equal(before[1], first)
    after[1].zero_()
    loss.k2 = 0.03
    assert torch.equal(loss.value_and_grad(x, y)[1], first)


def test_what_has_no_gradient_is_refused(backend):
    x = torch.zeros(1, 1, 9, 11, dtype=torch.uint8)
    loss = LOSSES["ssim"](data_range=255, backend=backend)
    with pytest.raises(TypeError, match=r"x is torch.uint8 and has no gradient: pass x.float\(\)"):
        loss.value_and_grad(x, x)
    with pytest.raises(TypeError, match="x is of type list"):
        loss.value_and_grad([0.0], x)
    value, gradient = loss.value_and_grad(x.float(), x)
    assert value == 0
    assert (gradient == 0).all()


def test_it_warns_as_the_loss_does(backend):
    x, y = pair(1, 1, 16, 16)
    loss = MSSSIMLoss(window_size=3, backend=backend)
    for _ in range(3):
        with pytest.warns(UserWarning, match="fit 3 of 5") as caught:
            loss.value_and_grad(x, y)
        assert caught[0].filename == __file__


@pytest.mark.large
@pytest.mark.parametrize("name", LOSSES)
def test_in_inference_mode(backend, name):
    loss, (x, y) = LOSSES[name](backend=backend), pair(2, 1, 12, 13)
    mask, valid = torch.rand(12, 13), torch.ones(12, 13, dtype=torch.bool)
    for extras in ({}, {"mask": mask, "valid": valid, "data_range": torch.tensor([1.0, 2.0])}):
        expected = loss.value_and_grad(x, y, **extras)
        fresh = copy.deepcopy(loss)
        with torch.inference_mode():
            images = x.clone(), y.clone()
            # The second call is remembered.
            found = [fresh.value_and_grad(*images, **extras) for _ in range(2)]
        found.append(copy.deepcopy(loss).value_and_grad(*images, **extras))
        for got in found:
            assert torch.equal(got[0], expected[0])
            assert torch.equal(got[1], expected[1])
            assert not got[0].is_inference()
            assert not got[1].is_inference()


@pytest.mark.large
def test_what_inference_mode_made_serves_in_training(backend):
    loss, (x, y) = SSIMLoss(window_size=3, backend=backend), pair(2, 1, 12, 13)
    with torch.inference_mode():
        extras = {
            "mask": torch.full((12, 13), 0.5),
            "valid": torch.ones(12, 13, dtype=torch.bool),
            "data_range": torch.ones(2),
        }
    value = loss(x.requires_grad_(), y, **extras)
    value.backward()
    assert value.item() == pytest.approx(loss(x, y).item(), rel=1e-6)
    assert x.grad.abs().max() > 0
