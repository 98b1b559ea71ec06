"""What is particular to the CPU path: tasks, threads, processes, its operation, its absence."""

import itertools
import multiprocessing
import os
import subprocess
import sys
import threading

import pytest
import torch

from perceptual_losses import (
    L1MSSSIMLoss,
    L1SSIMLoss,
    MSSSIMLoss,
    SSIMLoss,
    ms_ssim,
    ssim,
)
from perceptual_losses._runtime import numba_installed
from perceptual_losses._ssim import definition as contract
from perceptual_losses._ssim import plans
from perceptual_losses._ssim.cpu import backend as cpu


def pair(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=generator, dtype=dtype)
    return x, 0.7 * x + 0.3 * torch.rand(shape, generator=generator, dtype=dtype)


def step(function, x, y, **options):
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    value = function(x, y, **options)
    return value.detach(), *torch.autograd.grad(value, (x, y))


@pytest.fixture
def small_tasks(monkeypatch):
    """Tasks of a few rows and columns, so that small images cross their edges."""
    monkeypatch.setattr(cpu, "STRIP", 16)
    monkeypatch.setattr(cpu, "BAND", 3)
    monkeypatch.setattr(cpu, "SIDE_BY_SIDE", 100)
    monkeypatch.setattr(cpu, "BLOCK", (5, 7))
    cpu._tasks.cache_clear()
    cpu._blocks.cache_clear()
    yield
    cpu._tasks.cache_clear()
    cpu._blocks.cache_clear()


@pytest.fixture
def poison(monkeypatch):
    """New memory and kept scratch hold NaN."""
    scratch, empty_like, new_empty = cpu._scratch, torch.empty_like, torch.Tensor.new_empty

    def poisoned(*arguments):
        parts = scratch(*arguments)
        for part in parts:
            part.fill(float("nan"))
        return parts

    monkeypatch.setattr(cpu, "_scratch", poisoned)
    monkeypatch.setattr(torch, "empty_like", lambda x: empty_like(x).fill_(float("nan")))
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda x, *shape: new_empty(x, *shape).fill_(float("nan"))
    )


@pytest.fixture
def threads():
    """Sets the number of threads for a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("padding", ["valid", "zeros", "symmetric"])
@pytest.mark.parametrize("window_size", [3, 11, 15])
@pytest.mark.parametrize("masked", [False, True])
def test_tasks_meet_without_a_seam(small_tasks, poison, threads, padding, window_size, masked):
    x, y = pair(2, 1, 41, 53, dtype=torch.float64)
    options = {"padding": padding, "window_size": window_size, "data_range": (-0.5, 1)}
    if masked:
        options["mask"] = torch.rand(41, 53, generator=torch.Generator().manual_seed(1))
    threads(7)
    assert len(cpu._tasks(tuple(x.shape), window_size, 7)[0]) > 40
    for function in (ssim, lambda *images, **kw: ms_ssim(*images, weights=(0.3, 0.7), **kw)):
        fast = step(function, x, y, backend="numba", **options)
        plain = step(function, x, y, backend="reference", **options)
        for value, expected in zip(fast, plain, strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("padding", ["valid", "zeros", "symmetric"])
@pytest.mark.parametrize("masked", [False, True])
def test_blocks_of_volumes_meet_without_a_seam(small_tasks, poison, threads, padding, masked):
    x, y = pair(2, 1, 14, 13, 17, dtype=torch.float64)
    options = {"padding": padding, "window_size": 5, "data_range": (-0.5, 1)}
    if masked:
        options["mask"] = torch.rand(14, 13, 17, generator=torch.Generator().manual_seed(1))
    threads(7)
    assert len(cpu._blocks(tuple(x.shape), 5, 7)[0]) > 40
    for function in (ssim, lambda *images, **kw: ms_ssim(*images, weights=(0.3, 0.7), **kw)):
        fast = step(function, x, y, backend="numba", **options)
        plain = step(function, x, y, backend="reference", **options)
        for value, expected in zip(fast, plain, strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("padding", ["valid", "zeros", "symmetric"])
@pytest.mark.parametrize("masked", [False, True])
def test_narrow_planes_side_by_side(poison, threads, padding, masked):
    x, y = pair(3, 3, 23, 25, dtype=torch.float64)
    mask = torch.rand(3, 1, 23, 25, generator=torch.Generator().manual_seed(1))
    options = {"padding": padding, "mask": mask if masked else None}
    threads(2)
    plane_counts = cpu._tasks(tuple(x.shape), 11, 2)[0][:, 1]
    assert plane_counts.tolist() == [4, 4, 1]
    for x_only in (False, True):
        images = x.clone().requires_grad_(), y.clone().requires_grad_(not x_only)
        wanted = images[: 1 if x_only else 2]
        fast, plain = (
            torch.autograd.grad(ssim(*images, backend=backend, **options), wanted)
            for backend in ("numba", "reference")
        )
        for gradient, expected in zip(fast, plain, strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-14)
    x[1, 2, 4, 4] = float("nan")
    similarity = ssim(x, y, reduction="none", backend="numba", **options)
    assert similarity.isnan().tolist() == [False, True, False]
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(ssim(x, y, backend="numba", **options), x)
    assert gradient[[0, 1, 2], [0, 2, 2]].isnan().flatten(1).any(1).tolist() == [False, True, False]


def hot(x):
    """With a pixel of fire, which each plane's level is sampled at."""
    return x.index_put((torch.tensor(0),) * 4, torch.tensor(1e4))


@pytest.mark.parametrize(
    "related",
    [
        lambda x, y: (x, y),
        lambda x, y: (x, x + 1e-4 * (y - 0.5)),
        lambda x, y: (x, x + 1e-6 * (y - 0.5)),
        lambda x, y: (hot(x), y),
        lambda x, y: (x, hot(y)),
    ],
    ids=["related", "near", "nearest", "hot_x", "hot_y"],
)
def test_the_budget_in_float32(related):
    """The error against float64 is at most twice the reference's, plus one rounding."""
    for seed in range(5):
        x, y = related(*pair(1, 3, 176, 190, seed=seed))
        for function in (ssim, ms_ssim):
            exact = step(function, x.double(), y.double(), backend="reference")
            errors = {}
            for backend in ("numba", "reference"):
                got = step(function, x, y, backend=backend)
                errors[backend] = [
                    ((value.double() - true).norm() / true.norm()).item()
                    for value, true in zip(got, exact, strict=True)
                ]
            for fast, plain in zip(errors["numba"], errors["reference"], strict=True):
                assert fast <= 2 * plain + 6e-8


@pytest.mark.parametrize("shape", [(1, 1, 400, 300), (5, 3, 176, 180)])
def test_repeatable_and_the_same_for_any_number_of_threads(threads, shape):
    x, y = pair(*shape)
    results = {}
    for count in (1, 2, 3, 8):
        threads(count)
        results[count] = step(ms_ssim, x, y, backend="numba")
        again = step(ms_ssim, x, y, backend="numba")
        assert all(map(torch.equal, results[count], again))
    for count in (2, 3, 8):
        for value, single in zip(results[count], results[1], strict=True):
            error = (value - single).norm() / single.norm()
            assert error < 5e-7


def test_calls_from_several_threads():
    pairs = [pair(2, 3, 64, 64 + i, seed=i) for i in range(8)]
    expected = [step(ssim, *images, backend="numba") for images in pairs]
    wrong = []

    def work(images, answer):
        for _ in range(25):
            got = step(ssim, *images, backend="numba")
            if not all(map(torch.equal, got, answer)):
                wrong.append(got)

    workers = [
        threading.Thread(target=work, args=case) for case in zip(pairs, expected, strict=True)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


# Made before the fork: torch's own OpenMP threads do not survive one.
IMAGES = pair(2, 3, 128, 128)


def similarity_in_a_process(queue):
    queue.put(ssim(*IMAGES, backend="numba").item())


# Newer Pythons warn of a fork beside threads: that it works is what is tested.
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


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.mT.contiguous().mT,
    "one image": lambda x: x[:1].expand_as(x),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("loss", [L1SSIMLoss, L1MSSSIMLoss])
def test_the_mixes_in_one_pass(loss, layout):
    x, y = pair(2, 3, 177, 183)
    y[..., :20] = x[..., :20]
    x, y = LAYOUTS[layout](x), y
    fast = step(loss(backend="numba"), x, y)
    plain = step(loss(backend="reference"), x, y)
    exact = step(loss(backend="reference"), x.double(), y.double())
    for got, rough, true in zip(fast, plain, exact, strict=True):
        assert (got - true).norm() <= 2 * (rough - true).norm() + 6e-8 * true.norm()


@pytest.mark.parametrize("shape", [(5, 2, 12, 14), (1, 1, 70, 4200), (1, 2, 13, 70, 250)])
def test_a_mix_for_either_image(shape):
    """Of planes side by side, of strips and bands and of blocks: each pixel counts once."""
    x, y = pair(*shape, dtype=torch.float64)
    exact = step(L1SSIMLoss(0.3, backend="reference"), x, y)
    for wanted in range(2):
        images = [image.clone().requires_grad_(i == wanted) for i, image in enumerate((x, y))]
        value = L1SSIMLoss(0.3, backend="numba")(*images)
        (gradient,) = torch.autograd.grad(value, images[wanted])
        assert abs(value - exact[0]) < 1e-14
        assert (gradient - exact[1 + wanted]).norm() < 1e-13 * exact[1 + wanted].norm()


def test_the_mix_of_volumes_in_one_pass():
    x, y = pair(2, 1, 12, 13, 14, dtype=torch.float64)
    fast, exact = (step(L1SSIMLoss(0.5, backend=b), x, y) for b in ("numba", "reference"))
    for got, true in zip(fast, exact, strict=True):
        assert (got - true).norm() < 1e-13 * true.norm()


def test_what_the_distance_of_the_mixes_sees():
    """Its gradient is the sign of the difference: zero where there is none, NaN where that is."""
    x, y = pair(1, 1, 14, 15, dtype=torch.float64)
    y[0, 0, 3] = x[0, 0, 3]
    _, gradient, opposite = step(L1SSIMLoss(0, backend="numba"), x, y)
    assert torch.equal(gradient, (x - y).sign() / x.numel())
    assert torch.equal(opposite, -gradient)
    x[0, 0, 5, 6] = float("nan")
    value, gradient, _ = step(L1SSIMLoss(0.5, backend="numba"), x, y)
    assert value.isnan()
    assert gradient[0, 0, 5, 6].isnan()


@pytest.mark.parametrize("loss", [L1SSIMLoss, L1MSSSIMLoss])
def test_the_mixes_a_second_time(loss):
    x, y = pair(1, 2, 176, 178, dtype=torch.float64)
    x.requires_grad_()
    y.requires_grad_()
    value = loss(backend="numba")(x, y)
    first = [grad.clone() for grad in torch.autograd.grad(value, (x, y), retain_graph=True)]
    second = torch.autograd.grad(3 * value, (x, y))
    for once, thrice in zip(first, second, strict=True):
        assert (thrice - 3 * once).norm() < 1e-12 * once.norm()


@pytest.mark.parametrize("function", [ssim, ms_ssim])
def test_a_second_backward_through_the_same_graph(function):
    x, y = pair(1, 2, 176, 178)
    x.requires_grad_()
    y.requires_grad_()
    value = function(x, y, backend="numba")
    first = [grad.clone() for grad in torch.autograd.grad(value, (x, y), retain_graph=True)]
    second = torch.autograd.grad(3 * value, (x, y))
    for once, thrice in zip(first, second, strict=True):
        assert (thrice - 3 * once).norm() < 1e-6 * once.norm()


@pytest.mark.parametrize("function", [ssim, ms_ssim])
def test_a_gradient_is_the_callers_own_to_change(function):
    x = pair(1, 2, 176, 178)[0].requires_grad_()
    value = function(x, pair(1, 2, 176, 178)[1], backend="numba")
    (first,) = torch.autograd.grad(value, x, retain_graph=True)
    expected = first.clone()
    first.zero_()
    (second,) = torch.autograd.grad(value, x)
    assert (second - expected).norm() < 1e-6 * expected.norm()


def test_an_image_against_itself_has_second_derivatives():
    x = pair(1, 1, 16, 16, dtype=torch.float64)[0].requires_grad_()
    (first,) = torch.autograd.grad(ssim(x, x, backend="numba"), x, create_graph=True)
    assert not first.any()
    (second,) = torch.autograd.grad(first.sum(), x)
    assert second.abs().max() < 1e-12


@pytest.mark.parametrize("want", [0, contract.X, contract.Y, contract.X + contract.Y])
@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("distance", [False, True])
def test_the_operation_is_a_good_citizen(want, levels, masked, distance):
    x, y = pair(2, 2, 15, 17)
    weights = [torch.rand(2, 1, 11, 13), torch.rand(2, 1, 4, 5)][:levels] if masked else []
    arguments = (x, y, weights, [0.1, 0.2, 0.4, 0.2, 0.1], 0.0, 1e-4, 9e-4, "valid")
    torch.library.opcheck(
        torch.ops.perceptual_losses.ssim_means.default,
        (*arguments, levels, distance, want, "none", [], "numba"),
    )


@pytest.mark.parametrize(("reduction", "mix"), [("mean", []), ("loss", []), ("loss", [0.2, 0.8])])
def test_the_reduced_operation_is_a_good_citizen(reduction, mix):
    x, y = pair(2, 2, 15, 17)
    arguments = x, y, [], [0.2, 0.6, 0.2], 0.0, 1e-4, 9e-4, "valid"
    torch.library.opcheck(
        torch.ops.perceptual_losses.ssim_means.default,
        (*arguments, 1, bool(mix), 1, reduction, mix, "numba"),
    )


def test_the_sweep_is_a_good_citizen():
    gradients = [torch.rand(2, 2, 15, 17), torch.rand(2, 2, 8, 9)]
    images = [torch.rand(2, 2, 15, 17) for _ in range(2)]
    for levels, distance in itertools.product((1, 2), (False, True)):
        torch.library.opcheck(
            torch.ops.perceptual_losses.ssim_sweep.default,
            (
                [gradient.clone() for gradient in gradients[:levels]],
                torch.rand(levels + distance, 2, 2),
                [],
                images * distance,
                -0.25,
                "numba",
            ),
        )
    torch.library.opcheck(
        torch.ops.perceptual_losses.ssim_sweep.default,
        (gradients, torch.rand(()), [torch.rand(2, 2, 2)], [], -0.25, "numba"),
    )


def test_the_scale_of_a_compiled_backward_is_a_good_citizen():
    scale, images = torch.rand(2, 2, 3), [torch.rand(2, 3, 15, 17)]
    assert torch.equal(torch.ops.perceptual_losses.ssim_scale(scale, images), scale)
    torch.library.opcheck(torch.ops.perceptual_losses.ssim_scale.default, (scale, images))


def test_a_plain_loss_has_its_gradient_as_it_was_written(monkeypatch):
    """Scaling it would be a pass over memory."""
    scaled = []
    multiply = cpu._multiply
    monkeypatch.setattr(cpu, "_multiply", lambda *given: (scaled.append(1), multiply(*given)))
    for shape in ((3, 7, 20, 24), (1, 2, 11, 12, 13)):
        x, y = pair(*shape)
        gradients = []
        for backend, times in itertools.product(("reference", "numba"), (1, 0.3)):
            loss = SSIMLoss(backend=backend)(x.requires_grad_(), y)
            gradients += torch.autograd.grad(times * loss, x)
            assert len(scaled) == (backend == "numba" and times != 1)
        scaled.clear()
        for gradient, expected in zip(gradients[2:], gradients[:2], strict=True):
            assert (gradient - expected).norm() < 1e-6 * expected.norm()


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
    """Numba as good as absent, or broken."""
    if request.param == "absent":
        monkeypatch.setattr(numba_installed, "INSTALLED", False)
    else:
        monkeypatch.setitem(sys.modules, "perceptual_losses._runtime.numba_kernels", None)
    numba_installed._broken.cache_clear()
    plans._warn_of_fallback.cache_clear()
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
    """Compiles for the process alone."""
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
