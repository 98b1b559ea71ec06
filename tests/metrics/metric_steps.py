"""Images, small losses and steps on them, for the tests of several files."""

import pytest
import torch

from perceptual_losses import L1MSSSIMLoss, L1SSIMLoss, MSSSIMLoss, SSIMLoss

LEVELS = {"window_size": 3, "weights": (0.4, 0.6)}
LOSSES = {
    "ssim": lambda **kw: SSIMLoss(**{"window_size": 3, **kw}),
    "ms_ssim": lambda **kw: MSSSIMLoss(**LEVELS | kw),
    "l1_ssim": lambda **kw: L1SSIMLoss(**{"window_size": 3, **kw}),
    "l1_ms_ssim": lambda **kw: L1MSSSIMLoss(**LEVELS | kw),
}
MIXES = ["l1_ssim", "l1_ms_ssim"]
PADDINGS = ["valid", "zeros", "symmetric"]


def few(name, values, interpreted):
    """A parameter with so many values, and with few in the interpreter, which takes seconds."""
    return pytest.mark.parametrize(
        name,
        [
            pytest.param(value, marks=[pytest.mark.large] * (value not in interpreted))
            for value in values
        ],
    )


every_padding = few("padding", PADDINGS, ["valid", "symmetric"])
every_loss = few("name", LOSSES, ["ssim", "l1_ms_ssim"])
every_mix = few("name", MIXES, ["l1_ms_ssim"])
# How torch.compile itself traces an autograd.Function.
compiles = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
both_reductions = few("reduction", ["mean", "none"], ["mean"])


def pair(*shape, seed=0, dtype=torch.float64):
    """Two related images."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=generator, dtype=torch.float64)
    y = 0.7 * x + 0.3 * torch.rand(shape, generator=generator, dtype=torch.float64)
    return x.to(dtype), y.to(dtype)


def step(function, x, y, upstream=None, **options):
    """The value and both gradients, of its sum or of its product with an upstream gradient."""
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    value = function(x, y, **options)
    upstream = torch.ones_like(value) if upstream is None else upstream.to(value.dtype)
    return value.detach(), *torch.autograd.grad(value, (x, y), upstream)


def exact_step(function, x, y, upstream=None, **options):
    """`step` in float64; ``function`` is to run the reference."""
    return step(function, x.double(), y.double(), upstream, **options)


def assert_near(got, exact, precision, tolerance=1e-11):
    """Compares the results of two steps: values, and gradients by their norm."""
    assert (got[0] - exact[0]).abs().max() <= precision.value(tolerance)
    for gradient, true in zip(got[1:], exact[1:], strict=True):
        assert true.isfinite().all()
        assert (gradient - true).norm() <= precision.gradient(tolerance) * true.norm()
