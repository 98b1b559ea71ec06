"""Conditions of the kernels' tests in Triton's interpreter."""

import pytest
import torch
from backends import INTERPRETED
from kernel_steps import forget_plans

from perceptual_losses._ssim.gpu import backend as gpu
from perceptual_losses._ssim.gpu import combine as gpu_combine
from perceptual_losses._ssim.gpu import levels as gpu_levels
from perceptual_losses._ssim.gpu import programs
from perceptual_losses._ssim.gpu import tiles as gpu_tiles


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Memory that nobody has written holds NaN."""

    def poison(allocate):
        def allocated(*args, **kwargs):
            out = allocate(*args, **kwargs)
            return out.fill_(float("nan")) if out.is_floating_point() else out

        return allocated

    if INTERPRETED:
        for name in ("empty", "empty_like", "empty_strided"):
            monkeypatch.setattr(torch, name, poison(getattr(torch, name)))
        monkeypatch.setattr(torch.Tensor, "new_empty", poison(torch.Tensor.new_empty))


@pytest.fixture
def tiles(monkeypatch):
    """Makes tiles small, so that small images cross their edges: lanes, columns and rows."""

    def small(lanes, columns, rows, fused=True):
        # One row of the image in an iteration of the loop, or two, its pixels stored first or last.
        tiles = (gpu_tiles.Tile(lanes, columns, columns, 8, store_after_read=columns == 2),)
        of_kernels = gpu_tiles.KernelTiles(tiles, tiles if fused else (), tiles, tiles)
        monkeypatch.setattr(gpu_tiles, "TILES", {None: {33: of_kernels}})
        monkeypatch.setattr(programs, "MIN_ROWS", rows)
        monkeypatch.setattr(gpu, "machine_of", lambda device: programs.Machine("cpu", 1000))
        monkeypatch.setattr(gpu_levels, "TILES", 4)
        monkeypatch.setattr(gpu_combine, "ROWS", 4)
        monkeypatch.setattr(gpu_combine, "COLUMNS", 8)
        monkeypatch.setattr(gpu_levels, "HALVED_ROWS", 4)
        monkeypatch.setattr(gpu_levels, "HALVED_COLUMNS", 8)
        forget_plans()

    yield small
    forget_plans()
