"""Warnings name the line of the user's code, and are shown once for each."""

import inspect
import warnings

import pytest
import torch

from perceptual_losses import L1MSSSIMLoss, MSSSIMLoss, VGGLoss, ms_ssim
from perceptual_losses._ssim import dispatch
from perceptual_losses._ssim.cpu import backend as cpu
from perceptual_losses.compat import pytorch_msssim

IMAGE = torch.rand(1, 3, 64, 64)


@pytest.mark.parametrize(
    "call",
    [
        lambda: ms_ssim(IMAGE, IMAGE),
        lambda: MSSSIMLoss()(IMAGE, IMAGE),
        lambda: torch.nn.Sequential(L1MSSSIMLoss())[0](IMAGE, IMAGE),
        lambda: pytorch_msssim.ssim(IMAGE, IMAGE),
        lambda: pytorch_msssim.SSIM(),
        lambda: VGGLoss(weights=None),
    ],
)
def test_the_line_of_the_call(call):
    # What a first call imports makes Python forget what it has warned of.
    ms_ssim(IMAGE, IMAGE, levels=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            call()
    (warning,) = caught
    assert (warning.filename, warning.lineno) == (__file__, inspect.getsourcelines(call)[1])


def test_the_line_of_a_call_that_runs_the_reference(monkeypatch):
    monkeypatch.setattr(cpu, "unavailable", lambda device: "Numba is not there")
    dispatch._warn_of_fallback.cache_clear()
    with pytest.warns(RuntimeWarning, match="Numba is not there") as caught:
        MSSSIMLoss(levels=2)(IMAGE, IMAGE)
    dispatch._warn_of_fallback.cache_clear()
    (warning,) = caught
    assert warning.filename == __file__
