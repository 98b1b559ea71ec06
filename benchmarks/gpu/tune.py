"""Times the Triton kernels with each launch setting on this machine's GPU.

``python -m benchmarks.gpu.tune`` writes ``benchmarks/tuning/<device>.json``: for windows of each
size in the table of ``perceptual_losses/_ssim/gpu/tiles.py``, for the value alone and for the value
with its gradient, the time of each setting at several image sizes. The table has the settings that
are fastest there, and a test compares.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from perceptual_losses import _evaluator, ssim
from perceptual_losses._ssim.gpu import tiles as gpu_tiles

from ..pages.environment import environment, file_name
from ..pages.fill import ROOT
from ..speed import measure
from ..speed.cases import images
from ..speed.contenders import OURS

TUNING = ROOT / "benchmarks" / "tuning"

SIZES = ((64, 3, 64, 64), (8, 3, 256, 256), (1, 3, 1080, 1920), (8, 3, 1080, 1920))


class Setting(NamedTuple):
    """The same tile for every kernel.

    Attributes:
        window: pixels across.
        kernels: ``"plain_value"`` without a gradient, ``"fused"`` with one kernel for it,
            ``"maps"`` with two kernels and maps of derivatives between them.
        lanes: threads of a program.
        columns: columns of a thread.
        rows_per_iteration: rows in one iteration of the loop.
        resident_warps: warps on a multiprocessor at once.
        store_after_read: whether an iteration stores its own pixels last.
    """

    window: int
    kernels: str
    lanes: int
    columns: int
    rows_per_iteration: int
    resident_warps: int
    store_after_read: bool

    def table(self) -> dict[str | None, dict[int, gpu_tiles.KernelTiles]]:
        """A table of tiles like the GPU path's, with only this one."""
        shape = self.lanes, self.columns, self.rows_per_iteration, self.resident_warps
        tiles = (gpu_tiles.Tile(*shape, store_after_read=self.store_after_read),)
        fused = tiles if self.kernels == "fused" else ()
        return {None: {self.window: gpu_tiles.KernelTiles(tiles, fused, tiles, tiles)}}


def _settings(
    window: int,
    kernels: str,
    tiles: Iterable[tuple[int, int, int]],
    orders: Iterable[bool] = (False, True),
) -> Iterable[Setting]:
    for tile, lanes, store_after_read in itertools.product(tiles, (32, 64, 128), orders):
        yield Setting(window, kernels, lanes, *tile, store_after_read)


SETTINGS = (
    *_settings(11, "plain_value", [(4, 1, 8), (2, 1, 12)]),
    *_settings(11, "fused", [(2, 1, 8)]),
    *_settings(11, "fused", [(2, 2, 8)], [False]),
    *_settings(21, "plain_value", [(2, 1, 8), (1, 1, 12)]),
    *_settings(21, "fused", [(1, 1, 8)]),
    *_settings(33, "plain_value", [(1, 1, 8)]),
    *_settings(33, "maps", [(1, 1, 8)], [False]),
)


def _step(pair: tuple[Tensor, Tensor], setting: Setting, device: str) -> Callable[[], Any]:
    """A forward pass, and a backward one if the setting is one for it: on a GPU as a graph, to time
    the kernels and not their launches.
    """
    x, y = pair[0].detach(), pair[1]
    backward = setting.kernels != "plain_value"
    x.requires_grad_(backward)

    def step() -> Any:
        value = 1 - ssim(x, y, window_size=setting.window, backend="triton")
        return torch.autograd.grad(value, x) if backward else value

    step()
    if device == "cpu":
        return step
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def seconds(pair: tuple[Tensor, Tensor], setting: Setting, device: str, calls: int) -> float:
    """The time of a step with a setting: the median of three means."""
    before = gpu_tiles.TILES
    gpu_tiles.TILES = setting.table()
    _evaluator._evaluator.cache_clear()
    try:
        step = _step(pair, setting, device)
        return statistics.median(measure.seconds(step, calls, device) for _ in range(3))
    finally:
        gpu_tiles.TILES = before
        _evaluator._evaluator.cache_clear()


def compiled(setting: Setting) -> str | None:
    """Compiles for a setting, into Triton's cache on disk, or says why not."""
    x = torch.rand(SIZES[-1], device="cuda")
    try:
        seconds((x, x), setting, "cuda", 1)
    except Exception as error:  # A setting that does not fit on the device is a result too.
        return measure.reason(error)
    return None


def tune(
    sizes: Sequence[tuple[int, ...]],
    settings: Sequence[Setting],
    device: str,
    calls: int = 10,
) -> list[dict[str, Any]]:
    """The milliseconds of every setting at every size, or why there are none."""
    failed: dict[Setting, str] = {}
    if device == "cuda":
        # One after the other they would take minutes.
        with multiprocessing.get_context("spawn").Pool() as pool:
            reasons = pool.imap(compiled, settings)
            found = tqdm(reasons, total=len(settings), desc="compiling")
            failed = {s: why for s, why in zip(settings, found, strict=True) if why is not None}
    rows = [{**setting._asdict(), "error": failed.get(setting)} for setting in settings]
    for size in tqdm(sizes, desc="sizes"):
        pair = images(size, device)
        for row, setting in zip(rows, settings, strict=True):
            if row["error"] is None:
                try:
                    taken = seconds(pair, setting, device, calls)
                except Exception as error:
                    row["error"] = measure.reason(error)
                else:
                    row.setdefault("milliseconds", {})["x".join(map(str, size))] = 1000 * taken
    return rows


def fastest(rows: Sequence[dict[str, Any]], window: int, kernels: str, size: str) -> dict[str, Any]:
    """Of the settings for such windows and kernels, at one size."""
    found = [
        row
        for row in rows
        if (row["window"], row["kernels"], row["error"]) == (window, kernels, None)
    ]
    return min(found, key=lambda row: row["milliseconds"][size])


def main(arguments: Sequence[str] | None = None) -> Path:
    """The command line; returns the path of the file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.tune", description=__doc__)
    parser.add_argument("--out", type=Path, help="default: benchmarks/tuning/<device>.json")
    options = parser.parse_args(arguments)
    rows = tune(SIZES, SETTINGS, "cuda")
    path = options.out or TUNING / file_name("cuda")
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {"environment": environment("cuda", [OURS.distribution]), "settings": rows}
    path.write_text(json.dumps(result, indent=1) + "\n")
    for window, kernels in dict.fromkeys((s.window, s.kernels) for s in SETTINGS):
        for size in rows[0].get("milliseconds", {}):
            best = fastest(rows, window, kernels, size)
            tile = [
                best[key] for key in ("lanes", "columns", "rows_per_iteration", "store_after_read")
            ]
            print(window, kernels, size, tile, f"{best['milliseconds'][size]:.4f} ms")
    print(path)
    return path


if __name__ == "__main__":
    main()
