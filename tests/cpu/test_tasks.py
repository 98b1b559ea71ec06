"""The tasks that threads share: any cut of the images gives the same values and gradients."""

import threading

import numpy as np
import pytest
import torch
from cpu_steps import pair, step

from perceptual_losses import L1SSIMLoss, _evaluator, ms_ssim, ssim
from perceptual_losses._ssim.cpu import tasks

FLOAT64 = np.dtype("float64")


@pytest.fixture
def small_tasks(monkeypatch):
    """Tasks of a few rows and columns, so that windows reach across several."""
    monkeypatch.setattr(tasks, "STRIP", 10)
    monkeypatch.setattr(tasks, "BAND", 3)
    monkeypatch.setattr(tasks, "SIDE_BY_SIDE", 100)
    monkeypatch.setattr(tasks, "BLOCK", (2, 2))
    # Functions with the same options share their plans, which hold tasks.
    _evaluator._evaluator.cache_clear()
    yield
    _evaluator._evaluator.cache_clear()


@pytest.fixture
def poison(monkeypatch):
    """New memory and kept scratch hold NaN."""
    arrays, empty = tasks.Scratch.arrays, np.empty
    empty_like, new_empty = torch.empty_like, torch.Tensor.new_empty

    def poisoned(*arguments):
        parts = arrays(*arguments)
        for part in parts:
            part.fill(float("nan"))
        return parts

    def poisoned_empty(shape, dtype=float):
        array = empty(shape, dtype)
        array.fill(float("nan"))
        return array

    monkeypatch.setattr(tasks.Scratch, "arrays", poisoned)
    monkeypatch.setattr(np, "empty", poisoned_empty)
    monkeypatch.setattr(torch, "empty_like", lambda x: empty_like(x).fill_(float("nan")))
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda x, *shape: new_empty(x, *shape).fill_(float("nan"))
    )


@pytest.mark.parametrize("padding", ["valid", "zeros", "symmetric"])
@pytest.mark.parametrize("window_size", [3, 11])
@pytest.mark.parametrize("masked", [False, True])
def test_tasks_meet_without_a_seam(small_tasks, poison, threads, padding, window_size, masked):
    x, y = pair(2, 1, 41, 53, dtype=torch.float64)
    options = {"padding": padding, "window_size": window_size, "data_range": (-0.5, 1)}
    if masked:
        options["mask"] = torch.rand(41, 53, generator=torch.Generator().manual_seed(1))
    threads(7)
    assert len(tasks.tasks_for_images(x.shape, (window_size,) * 2, 7, FLOAT64).tasks) > 40
    for function in (ssim, lambda *images, **kw: ms_ssim(*images, weights=(0.3, 0.7), **kw)):
        fast = step(function, x, y, backend="numba", **options)
        plain = step(function, x, y, backend="reference", **options)
        for value, expected in zip(fast, plain, strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("padding", ["valid", "zeros", "symmetric"])
@pytest.mark.parametrize("masked", [False, True])
def test_blocks_of_volumes_meet_without_a_seam(small_tasks, poison, threads, padding, masked):
    x, y = pair(2, 1, 14, 13, 17, dtype=torch.float64)
    options = {"padding": padding, "window_size": 3, "data_range": (-0.5, 1)}
    if masked:
        options["mask"] = torch.rand(14, 13, 17, generator=torch.Generator().manual_seed(1))
    threads(7)
    assert len(tasks.tasks_for_volumes(x.shape, (3, 3, 3), 7, FLOAT64).tasks) > 40
    for function in (ssim, lambda *images, **kw: ms_ssim(*images, weights=(0.3, 0.7), **kw)):
        fast = step(function, x, y, backend="numba", **options)
        plain = step(function, x, y, backend="reference", **options)
        for value, expected in zip(fast, plain, strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("padding", ["valid", "zeros", "symmetric"])
@pytest.mark.parametrize("extra", [None, "mask", "valid"])
def test_narrow_planes_side_by_side(poison, threads, padding, extra):
    x, y = pair(3, 3, 23, 25, dtype=torch.float64)
    mask = torch.rand(3, 1, 23, 25, generator=torch.Generator().manual_seed(1))
    valid = mask > 0.3
    valid[1, 0, 4, 4] = True
    extras = {None: {}, "mask": {"mask": mask}, "valid": {"valid": valid}}[extra]
    options = {"padding": padding, **extras}
    threads(2)
    plane_counts = tasks.tasks_for_images(x.shape, (11, 11), 2, FLOAT64).tasks[:, 1]
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


@pytest.mark.parametrize("padding", ["valid", "zeros", "symmetric"])
def test_valid_pixels_in_strips(poison, padding):
    x, y = pair(1, 2, 14, 2500, dtype=torch.float64)
    valid = torch.rand(14, 2500, generator=torch.Generator().manual_seed(1)) > 0.3
    fast, plain = (
        step(ssim, x, y, valid=valid, padding=padding, backend=backend)
        for backend in ("numba", "reference")
    )
    for value, expected in zip(fast, plain, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("shape", [(5, 2, 12, 14), (1, 1, 70, 4200), (1, 2, 13, 70, 250)])
def test_a_mix_for_either_image(shape):
    """Each pixel counts once in planes side by side, in strips and bands, and in blocks."""
    x, y = pair(*shape, dtype=torch.float64)
    exact = step(L1SSIMLoss(0.3, window_size=3, backend="reference"), x, y)
    for wanted in range(2):
        images = [image.clone().requires_grad_(i == wanted) for i, image in enumerate((x, y))]
        value = L1SSIMLoss(0.3, window_size=3, backend="numba")(*images)
        (gradient,) = torch.autograd.grad(value, images[wanted])
        assert abs(value - exact[0]) < 1e-14
        assert (gradient - exact[1 + wanted]).norm() < 1e-13 * exact[1 + wanted].norm()


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
