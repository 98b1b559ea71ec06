"""Losses inside what people train with."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from perceptual_losses import L1MSSSIMLoss, L1SSIMLoss, MSSSIMLoss, SSIMLoss

pytestmark = pytest.mark.large

LOSSES = {
    "ssim": lambda **kw: SSIMLoss(window_size=3, **kw),
    "ms_ssim": lambda **kw: MSSSIMLoss(window_size=3, weights=(0.4, 0.6), **kw),
    "l1_ssim": lambda **kw: L1SSIMLoss(window_size=3, **kw),
    "l1_ms_ssim": lambda **kw: L1MSSSIMLoss(window_size=3, weights=(0.4, 0.6), **kw),
}
every_loss = pytest.mark.parametrize("name", LOSSES)


def pair(*shape):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, *shape, generator=generator).unbind()


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.SiLU(), nn.Conv2d(4, 3, 3, padding=1))


def gradients(module):
    return [parameter.grad.clone() for parameter in module.parameters()]


@every_loss
def test_accumulated_gradients_are_those_of_the_batch(backend, name):
    x, y = pair(4, 3, 16, 18)
    loss, whole, parts = LOSSES[name](backend=backend), model(), model()
    loss(whole(x), y).backward()
    for a, b in zip(x.split(2), y.split(2), strict=True):
        (loss(parts(a), b) / 2).backward()
    for got, expected in zip(gradients(parts), gradients(whole), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("reentrant", [False, True])
@every_loss
def test_in_a_checkpoint(backend, name, reentrant):
    x, y = pair(2, 3, 16, 18)
    loss, plain, recomputed = LOSSES[name](backend=backend), model(), model()
    expected = loss(plain(x), y)
    expected.backward()
    x.requires_grad_()
    value = checkpoint(lambda a: loss(recomputed(a), y), x, use_reentrant=reentrant)
    value.backward()
    assert torch.equal(value, expected)
    for got, wanted in zip(gradients(recomputed), gradients(plain), strict=True):
        assert torch.equal(got, wanted)


@every_loss
def test_scaled_gradients_are_the_plain_ones_once_unscaled(backend, name):
    x, y = pair(2, 3, 16, 18)
    loss, plain, scaled = LOSSES[name](backend=backend), model(), model()
    loss(plain(x), y).backward()
    expected = gradients(plain)
    optimizer = torch.optim.SGD(scaled.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    scaler.scale(loss(scaled(x), y)).backward()
    scaler.unscale_(optimizer)
    for got, wanted in zip(gradients(scaled), expected, strict=True):
        assert torch.equal(got, wanted)
    before = [parameter.detach().clone() for parameter in scaled.parameters()]
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**16
    assert not any(map(torch.equal, before, scaled.parameters()))


@every_loss
def test_a_scaler_skips_a_step_that_is_not_finite(backend, name):
    x, y = pair(2, 3, 16, 18)
    loss, trained = LOSSES[name](backend=backend), model()
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    y[0, 0, 8, 8] = torch.nan
    before = [parameter.detach().clone() for parameter in trained.parameters()]
    scaler.scale(loss(trained(x), y)).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**15
    assert all(map(torch.equal, before, trained.parameters()))


@every_loss
def test_deterministic_algorithms(backend, name):
    x, y = pair(2, 3, 16, 18)
    x.requires_grad_()
    loss = LOSSES[name](backend=backend)
    (expected,) = torch.autograd.grad(loss(x, y), x)
    torch.use_deterministic_algorithms(True)
    try:
        (got,) = torch.autograd.grad(loss(x, y), x)
        (again,) = torch.autograd.grad(loss(x, y), x)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(got, expected)
    assert torch.equal(got, again)


class Judged(nn.Module):
    """A model whose output is its loss."""

    def __init__(self, loss):
        super().__init__()
        self.model, self.loss = model(), loss

    def forward(self, x, y):
        return self.loss(self.model(x), y)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@every_loss
def test_exported_with_the_model(backend, name):
    x, y = pair(2, 3, 16, 18)
    module = Judged(LOSSES[name](backend=backend)).eval()
    with torch.no_grad():
        exported = torch.export.export(module, (x, y))
        torch.testing.assert_close(exported.module()(x, y), module(x, y), rtol=1e-6, atol=0)
    assert set(exported.state_dict) == set(module.state_dict())
