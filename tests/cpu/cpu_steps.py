"""Images, and steps on them, for the tests of the CPU backend."""

import torch


def pair(*shape, seed=0, dtype=torch.float32):
    """Two related images."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=generator, dtype=dtype)
    return x, 0.7 * x + 0.3 * torch.rand(shape, generator=generator, dtype=dtype)


def step(function, x, y, **options):
    """The value and both gradients."""
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    value = function(x, y, **options)
    return value.detach(), *torch.autograd.grad(value, (x, y))
