"""The figures of the README's comparison."""

import piq
import piqa
import pytest
import pytorch_msssim
import torch

from perceptual_losses import ms_ssim, ssim

SSIM = {
    "perceptual-losses": ssim,
    "pytorch-msssim": lambda x, y: pytorch_msssim.ssim(x, y, data_range=1),
    "piq": lambda x, y: piq.ssim(x, y, downsample=False),
    "piqa": lambda x, y: piqa.ssim.SSIM(n_channels=3).to(x.dtype)(x, y),
}
MS_SSIM = {
    "perceptual-losses": ms_ssim,
    "pytorch-msssim": lambda x, y: pytorch_msssim.ms_ssim(x, y, data_range=1),
    "piq": lambda x, y: piq.multi_scale_ssim(x, y),
    "piqa": lambda x, y: piqa.ssim.MS_SSIM(n_channels=3).to(x.dtype)(x, y),
}


def row(root, start):
    """The cells of the row of the README's table that starts so."""
    names, *lines = [
        [cell.strip() for cell in line.strip("|\n").split("|")]
        for line in (root / "README.md").read_text().split("## How it compares")[1].splitlines()
        if line.startswith("|")
    ]
    (cells,) = [cells for cells in lines if cells[0].startswith(start)]
    return dict(zip(names[1:], cells[1:], strict=True))


def pair(contrast, size=64):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, size, size, generator=generator)
    y = 0.7 * x + 0.3 * torch.rand(x.shape, generator=generator)
    return 0.5 + contrast * (x - 0.5), 0.5 + contrast * (y - 0.5)


def test_small_images(root):
    for name, cell in row(root, "MS-SSIM of 64x64").items():
        if cell == "error":
            with pytest.raises((AssertionError, ValueError, RuntimeError)):
                MS_SSIM[name](*pair(1))
        else:
            with pytest.warns(UserWarning, match="fit 3 of 5"):
                MS_SSIM[name](*pair(1))


def test_gradient_at_the_negative(root):
    for name, cell in row(root, "MS-SSIM gradient").items():
        x, _ = pair(1, size=192)
        x.requires_grad_()
        (grad,) = torch.autograd.grad(MS_SSIM[name](x, 1 - x.detach()), x)
        assert bool(grad.any()) == (cell == "alive")


def errors_are(cells, x, y):
    exact = ssim(x.double(), y.double()).item()
    for name, cell in cells.items():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=x.dtype == torch.float32):
            error = abs(SSIM[name](x, y).item() - exact)
        relation, bound = cell.split()
        assert error < float(bound) if relation == "<" else error > float(bound)


def test_bfloat16_images(root):
    x, y = pair(0.1)
    errors_are(row(root, "error of SSIM on low-contrast bfloat16"), x.bfloat16(), y.bfloat16())


def test_autocast(root):
    errors_are(row(root, "the same under bfloat16 autocast"), *pair(0.05))


def test_overshoot(root):
    x, y = pair(1.2)
    for name, cell in row(root, "values beyond").items():
        if cell == "error":
            with pytest.raises(AssertionError):
                SSIM[name](x, y)
        else:
            assert SSIM[name](x, y) < 1


def test_gradient_at_identical_images(root):
    for name, cell in row(root, "gradient at identical").items():
        x = pair(1)[0].requires_grad_()
        (grad,) = torch.autograd.grad(SSIM[name](x, x.detach()), x)
        if cell == "exactly 0":
            assert not grad.any()
        else:
            assert float(cell) / 2 < grad.abs().max() < float(cell) * 2
