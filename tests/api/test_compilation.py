"""Kernels that are compiled beforehand, and the message for those who wait for them."""

import importlib
import sys
import types

import numpy as np
import pytest
import torch

from perceptual_losses import (
    FeatureLoss,
    L1MSSSIMLoss,
    L1SSIMLoss,
    MSSSIMLoss,
    SSIMLoss,
    precompile,
    ssim,
)
from perceptual_losses._runtime import compile_notice
from perceptual_losses._ssim import autograd

SOURCE = "def kernel(values):\n    for i in range(len(values)):\n        values[i] += 1\n"


@pytest.mark.parametrize("loss", [SSIMLoss, MSSSIMLoss, L1SSIMLoss, L1MSSSIMLoss])
def test_a_call_afterwards_plans_nothing(backend, sized, monkeypatch, loss):
    options = sized({}, {"window_size": 3})
    if "MSSSIM" in loss.__name__:
        options["weights"] = (0.4, 0.6)
    module = loss(backend=backend, **options)
    shape = sized((2, 3, 24, 26), (1, 1, 6, 7))
    precompile(module, shape)
    if backend != "reference":
        # The plan has been kept for training and for evaluation.
        assert len(module._evaluator._plans) == 2
    monkeypatch.setattr(autograd, "make_plan", lambda *arguments: pytest.fail("is planned anew"))
    x, y = torch.rand(shape), torch.rand(shape)
    assert module(x, y) > 0
    module(x.requires_grad_(), y).backward()
    assert x.grad.norm() > 0


def test_the_loss_is_called_with_a_gradient_and_without():
    calls = []

    def loss(x, y):
        calls.append((x.shape, x.dtype, x.requires_grad, y.requires_grad))
        return torch.stack([x.sum(), x.sum()]) if x.is_floating_point() else x.sum()

    precompile(loss, (2, 3), dtype=torch.float64)
    assert calls == [((2, 3), torch.float64, wanted, False) for wanted in (False, True)]
    calls.clear()
    with torch.inference_mode():
        precompile(loss, (2, 3))
    assert [wanted for _, _, wanted, _ in calls] == [False, True]
    calls.clear()
    precompile(loss, (2, 3), dtype=torch.uint8)
    assert calls == [((2, 3), torch.uint8, False, False)]


def test_functions_and_losses_on_features():
    precompile(ssim, (1, 1, 16, 16))
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3))
    precompile(FeatureLoss(network, {"0": 1.0}), (1, 3, 16, 16))
    with pytest.raises(ValueError, match="window_size=11 is larger than the image"):
        precompile(SSIMLoss(), (1, 1, 8, 8))


@pytest.fixture
def compiled(monkeypatch):
    """Compiles a kernel of a module as the package does, with a notice of its own."""
    numba_kernels = pytest.importorskip("perceptual_losses._runtime.numba_kernels")
    event = numba_kernels.event
    notice = compile_notice.CompileNotice()
    monkeypatch.setattr(numba_kernels, "_notice", notice)
    with event.install_listener("numba:compile", notice):
        yield lambda module: numba_kernels.entry(module.kernel)(np.zeros(1))
    assert notice._timer is None


@pytest.fixture
def stored(monkeypatch, tmp_path):
    """Loads a module with a kernel, whose folder can be written to."""
    config = pytest.importorskip("numba.core.config")
    monkeypatch.setattr(config, "CACHE_DIR", "")  # Kernels are kept beside the module.
    (tmp_path / "stored.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)

    def load():
        monkeypatch.delitem(sys.modules, "stored", raising=False)
        return importlib.import_module("stored")

    yield load
    sys.modules.pop("stored", None)


def nowhere():
    """A module with a kernel, which no file has."""
    module = types.ModuleType("nowhere")
    exec(SOURCE, module.__dict__)
    return module


def test_the_message_for_those_who_wait(compiled, stored, monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(compile_notice, "SECONDS", 0.0)
    compiled(stored())
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("perceptual_losses", "WARNING")
    text = record.getMessage()
    assert text.startswith("perceptual_losses is compiling the CPU kernels of this loss")
    assert text.endswith(f"they are kept in {tmp_path / '__pycache__'}")
    # It is said once.
    compiled(nowhere())
    assert len(caplog.records) == 1


def test_the_message_where_no_folder_can_be_written_to(compiled, monkeypatch, caplog):
    monkeypatch.setattr(compile_notice, "SECONDS", 0.0)
    compiled(nowhere())
    assert "they cannot be kept: set NUMBA_CACHE_DIR" in caplog.text


def test_kernels_are_compiled_again_when_a_module_beside_them_or_the_compiler_changes(
    stored, monkeypatch, tmp_path
):
    numba_kernels = pytest.importorskip("perceptual_losses._runtime.numba_kernels")
    compiler = tmp_path / "compiler"
    compiler.mkdir()
    monkeypatch.setattr(numba_kernels, "__file__", str(compiler / "numba_kernels.py"))

    def stamp():
        numba_kernels._digest.cache_clear()
        return numba_kernels.entry(stored().kernel)._cache._cache_file._source_stamp

    stamps = [stamp()]
    for file in (tmp_path / "callee.py", compiler / "vectors.py"):
        file.write_text("ROWS = 4\n")
        stamps.append(stamp())
    assert len(set(stamps)) == 3
    assert stamp() == stamps[-1]
    numba_kernels._digest.cache_clear()


def test_nothing_is_said_about_a_moment_or_about_kernels_on_disk(
    compiled, stored, monkeypatch, caplog
):
    monkeypatch.setattr(compile_notice, "SECONDS", 1e4)
    compiled(stored())
    monkeypatch.setattr(compile_notice, "SECONDS", 0.0)
    compiled(stored())
    assert not caplog.records


def test_the_wait_for_several_kernels_adds_up(monkeypatch):
    pytest.importorskip("numba")
    waits = []

    class Timer:
        def __init__(self, seconds, function, arguments):
            waits.append(seconds)

        def start(self):
            pass

        cancel = join = start

    times = iter([0.0, 0.7, 5.0, 5.2, 8.0, 9.0])
    monkeypatch.setattr(compile_notice.threading, "Timer", Timer)
    monkeypatch.setattr(compile_notice.time, "monotonic", lambda: next(times))
    notice = compile_notice.CompileNotice()
    notice.watch(nowhere)
    stats = types.SimpleNamespace(cache_path=None)
    dispatcher = types.SimpleNamespace(py_func=nowhere, stats=stats)
    happening = types.SimpleNamespace(data={"dispatcher": dispatcher})
    for _ in range(3):
        notice.on_start(happening)
        notice.on_end(happening)
    assert waits == pytest.approx([1.0, 0.3, 0.1])
