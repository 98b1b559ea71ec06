"""The CPU backend in processes and on threads, its operators, and its absence."""

import multiprocessing
import os
import subprocess
import sys

import pytest
import torch
from cpu_steps import pair, step

from perceptual_losses import MSSSIMLoss, SSIMLoss, _evaluator, ssim
from perceptual_losses._runtime import numba_installed
from perceptual_losses._ssim import autograd, dispatch

# Made before the fork: torch's own OpenMP threads do not survive one.
IMAGES = pair(2, 3, 128, 128)


def similarity_in_a_process(queue):
    queue.put(ssim(*IMAGES, backend="numba").item())


# Newer Pythons warn of a fork beside threads. This test shows that it works.
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_in_other_processes(method):
    expected = ssim(*IMAGES, backend="numba").item()
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=similarity_in_a_process, args=(queue,))
    process.start()
    assert queue.get(timeout=120) == pytest.approx(expected, abs=1e-6)
    process.join(timeout=60)
    assert process.exitcode == 0


@pytest.mark.parametrize("gradients", [0, 1, 2])
@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("l1", [False, True])
def test_the_operator_is_a_good_citizen(gradients, levels, masked, l1):
    x, y = pair(2, 2, 15, 17)
    weights = [torch.rand(2, 1, 13, 15), torch.rand(2, 1, 6, 7)][:levels] if masked else []
    totals = [weight.sum((1, 2, 3)) for weight in weights]
    definition = (2 * [0.2, 0.6, 0.2], [3, 3], 0.0, 1.0, 1e-4, 9e-4, "valid")
    torch.library.opcheck(
        torch.ops.perceptual_losses.ssim_level_means.default,
        (x, y, weights, totals, [], [], [], *definition, levels, l1, gradients, "numba"),
    )


@pytest.mark.parametrize("padding", ["valid", "zeros", "symmetric"])
@pytest.mark.parametrize("shape", [(2, 2, 15, 17), (1, 2, 12, 13, 14)])
@pytest.mark.parametrize("layout", ["contiguous", "channels last", "transposed"])
def test_the_operator_with_other_layouts(padding, shape, layout):
    x, y = pair(*shape)
    if layout == "channels last":
        last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
        x, y = x.contiguous(memory_format=last), y.contiguous(memory_format=last)
    elif layout == "transposed":
        x = x.mT.contiguous().mT
    axes = x.dim() - 2
    definition = axes * [0.2, 0.6, 0.2], axes * [3], -0.5, 1.5, 1e-4, 9e-4, padding
    torch.library.opcheck(
        torch.ops.perceptual_losses.ssim_level_means.default,
        (x, y, [], [], [], [], [], *definition, 2, True, 2, "numba"),
    )


def test_the_operator_keeps_its_plans():
    images = pair(2, 2, 15, 17)
    definition = (2 * [0.2, 0.6, 0.2], [3, 3], 0.0, 1.0, 1e-4, 9e-4, "valid")
    operator = torch.ops.perceptual_losses.ssim_level_means
    options = (*definition, 1, False, 1, "numba")
    autograd._kept_plan.cache_clear()
    first = operator(*images, [], [], [], [], [], *options)
    for other in (images, [images[0].mT.contiguous().mT, images[1]]):
        means, (gradient,) = operator(*other, [], [], [], [], [], *options)
        torch.testing.assert_close(means, first[0])
        torch.testing.assert_close(gradient, first[1][0])
    assert autograd._kept_plan.cache_info()[:2] == (1, 2)


def test_the_dependence_of_a_compiled_backward_is_a_good_citizen():
    grad, images = torch.rand(2, 2, 3), [torch.rand(2, 3, 15, 17)]
    assert torch.equal(torch.ops.perceptual_losses.ssim_depends_on(grad, images), grad)
    torch.library.opcheck(torch.ops.perceptual_losses.ssim_depends_on.default, (grad, images))


def test_transforms_run_the_reference():
    x, y = pair(2, 1, 24, 24)
    expected = step(ssim, x, y, backend="reference")[1]
    assert torch.equal(torch.func.grad(lambda image: ssim(image, y))(x), expected)
    per_image = torch.vmap(lambda a, b: ssim(a[None], b[None]))(x, y)
    torch.testing.assert_close(per_image, ssim(x, y, reduction="none"), rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="cannot run: a torch.func transform is active"):
        torch.func.grad(lambda image: ssim(image, y, backend="numba"))(x)


@pytest.fixture
def no_numba(monkeypatch, request):
    """The state of Numba, which is as good as absent, or broken."""
    if request.param == "absent":
        monkeypatch.setattr(numba_installed, "INSTALLED", False)
    else:
        monkeypatch.setitem(sys.modules, "perceptual_losses._runtime.numba_kernels", None)
    numba_installed._broken.cache_clear()
    dispatch._warn_of_fallback.cache_clear()
    # A function that has met such images would not ask again.
    _evaluator._evaluator.cache_clear()
    yield request.param
    numba_installed._broken.cache_clear()


@pytest.mark.parametrize("no_numba", ["absent", "broken"], indirect=True)
def test_without_numba(no_numba):
    reason = {
        "absent": "Numba is not installed",
        "broken": "Numba cannot be used .ModuleNotFoundError",
    }[no_numba]
    x, y = pair(1, 3, 176, 176)
    with pytest.warns(RuntimeWarning, match=f"{reason}.*runs the reference path"):
        value = SSIMLoss()(x, y)
    assert value == SSIMLoss(backend="reference")(x, y)
    MSSSIMLoss()(x, y)  # A second warning would be an error here.
    with pytest.raises(ValueError, match=f"backend='numba' cannot run.*{reason}"):
        ssim(x, y, backend="numba")


def test_without_a_folder_to_cache_in(tmp_path):
    """Each process then compiles for itself."""
    blocked = tmp_path / "file"
    blocked.touch()
    code = (
        "import torch; from perceptual_losses import ssim;"
        "x = torch.ones(1, 1, 16, 16); print(ssim(x, x, backend='numba').item())"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "NUMBA_CACHE_DIR": str(blocked / "cache")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout == "1.0\n"
