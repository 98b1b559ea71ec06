"""The GPU path's launches as Triton makes them, up to the driver, which here has no GPU."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from perceptual_losses import MSSSIMLoss, SSIMLoss
from perceptual_losses._ssim.gpu import backend as gpu

EMULATOR = Path(__file__).parent / "emulator"
COMPILER = shutil.which("cc")
MISSING = gpu.missing(torch.device("cpu"))
pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


@pytest.mark.skipif(COMPILER is None, reason="there is no C compiler, which Triton needs to launch")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the driver is Linux's")
def test_parameters_arrive(tmp_path, root):
    import triton

    include = Path(triton.__file__).parent / "backends" / "nvidia" / "include"
    source, library = EMULATOR / "stub_cuda.c", tmp_path / "libcuda.so.1"
    subprocess.run(
        [COMPILER, "-shared", "-fPIC", f"-I{include}", "-o", library, source], check=True
    )
    done = subprocess.run(
        [sys.executable, EMULATOR / "launched.py", "90"],
        env={
            **os.environ,
            "PYTHONPATH": str(root),
            "TRITON_CACHE_DIR": str(tmp_path / "cache"),
            "TRITON_LIBCUDA_PATH": str(tmp_path),
            "LD_LIBRARY_PATH": str(tmp_path),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    kernels = done.stdout.split()
    # SSIM; the L1 and MS-SSIM mix; a window too large for `march`; the L1 and SSIM mix, and values
    # alone of it; two levels; five levels and values alone of them; one tile, whose program writes
    # the mean. What is compiled has a star: the coarser levels share one compilation whatever their
    # sizes, for each number of levels, and so do the means.
    # At first three losses called twice: the launches that are known the second time.
    assert kernels == [
        *("pyramid=", "coarser=", "march=", "mean=", "product=", "sweep=", "sweep="),
        *("march=", "sweep=", "sweep="),
        *("derive=", "gather=", "mean=", "sweep=", "sweep="),
        *("march*", "sweep"),
        *("pyramid", "coarser*", "march*", "mean*", "product", "sweep"),
        *("derive*", "gather*", "mean*", "sweep"),
        *("march*", "sweep"),
        "derive*",
        *("pyramid", "coarser*", "march*", "mean*", "product", "sweep", "sweep"),
        *("pyramid", "coarser*", "march*", "mean*", "product", "sweep"),
        *("pyramid", "coarser*", "derive*", "mean", "product"),
        "derive*",
    ]


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
    monkeypatch.setattr(gpu, "_too_old", lambda device: None)
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
    old = "cuda:0 has compute capability 7.5, not 8.0"
    monkeypatch.setattr(gpu, "_too_old", lambda device: old)
    from perceptual_losses import _ssim

    _ssim._warn.cache_clear()
    with FakeTensorMode():
        x = torch.empty(2, 3, 64, 64, device="cuda")
        with pytest.warns(RuntimeWarning, match=f"{old}: the GPU runs the reference path"):
            assert SSIMLoss()(x, x).device.type == "cuda"
        with pytest.raises(ValueError, match=f"backend='triton' cannot run: {old}"):
            SSIMLoss(backend="triton")(x, x)
    _ssim._warn.cache_clear()
