"""The choice of the GPU path, for images that have no memory."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from perceptual_losses import MSSSIMLoss, SSIMLoss
from perceptual_losses._ssim import dispatch
from perceptual_losses._ssim.gpu import backend as gpu

MISSING = gpu.unavailable(torch.device("cpu"))
pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


class Paths(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.taken = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "perceptual_losses":
            self.taken.append(args[-1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("device", ["cuda", "xpu"])
@pytest.mark.parametrize("loss", [SSIMLoss(), MSSSIMLoss(levels=2)])
def test_auto_takes_the_kernels(monkeypatch, loss, device):
    """Images without memory are enough to see the path that is taken."""
    monkeypatch.setattr(gpu, "_capability", lambda device: (7, 5))
    with FakeTensorMode():
        x, y = (torch.empty(2, 3, 64, 64, device=device) for _ in range(2))
        with Paths() as paths:
            value = loss(x, y)
        assert value.device.type == device
        # And the combination of levels, which has no path.
        assert paths.taken[0] == "triton"
        with Paths() as paths:
            loss(x.double(), y)
        assert paths.taken == []


def test_auto_on_an_old_gpu(monkeypatch):
    old = "cuda:0 has compute capability 7.0, and 7.5 is the oldest it runs on"
    monkeypatch.setattr(gpu, "_capability", lambda device: (7, 0))
    dispatch._warn_of_fallback.cache_clear()
    with FakeTensorMode():
        x = torch.empty(2, 3, 64, 64, device="cuda")
        with pytest.warns(RuntimeWarning, match=f"{old}: the GPU runs the reference path"):
            assert SSIMLoss()(x, x).device.type == "cuda"
        with pytest.raises(ValueError, match=f"backend='triton' cannot run: {old}"):
            SSIMLoss(backend="triton")(x, x)
    dispatch._warn_of_fallback.cache_clear()


def test_no_bfloat16_on_an_old_gpu(monkeypatch):
    monkeypatch.setattr(gpu, "_capability", lambda device: (7, 5))
    with FakeTensorMode():
        x = torch.empty(2, 3, 64, 64, device="cuda", dtype=torch.bfloat16)
        message = "cannot run: cuda:0 has no bfloat16: pass float16 or float32 images"
        with pytest.raises(ValueError, match=message):
            SSIMLoss(backend="triton")(x, x)
        with Paths() as paths:
            assert SSIMLoss()(x, x).device.type == "cuda"
        assert paths.taken == []
