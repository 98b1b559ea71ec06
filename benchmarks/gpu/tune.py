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

from perceptual_losses import ssim
from perceptual_losses._ssim.gpu import backend as gpu
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
        kernels: ``"value"`` without a gradient, ``"march"`` with one kernel for it, ``"slabs"``
            with two.
        lanes: threads of a program.
        columns: of each thread.
        turn: rows in a turn of the loop.
        warps: on a multiprocessor.
        late: whether a turn keeps its own pixels last.
    """

    window: int
    kernels: str
    lanes: int
    columns: int
    turn: int
    warps: int
    late: bool

    def launches(self) -> dict[str | None, dict[int, gpu_tiles.Launches]]:
        """As the table of the GPU path has them."""
        shape = self.lanes, self.columns, self.turn, self.warps
        tiles = (gpu_tiles.Tile(*shape, late=self.late),)
        march = tiles if self.kernels == "march" else ()
        return {None: {self.window: gpu_tiles.Launches(tiles, march, tiles, tiles)}}


def _settings(
    window: int,
    kernels: str,
    tiles: Iterable[tuple[int, int, int]],
    orders: Iterable[bool] = (False, True),
) -> Iterable[Setting]:
    for tile, lanes, late in itertools.product(tiles, (32, 64, 128), orders):
        yield Setting(window, kernels, lanes, *tile, late)


SETTINGS = (
    *_settings(11, "value", [(4, 1, 8), (2, 1, 12)]),
    *_settings(11, "march", [(2, 1, 8)]),
    *_settings(11, "march", [(2, 2, 8)], [False]),
    *_settings(21, "value", [(2, 1, 8), (1, 1, 12)]),
    *_settings(21, "march", [(1, 1, 8)]),
    *_settings(33, "value", [(1, 1, 8)]),
    *_settings(33, "slabs", [(1, 1, 8)], [False]),
)


def _step(pair: tuple[Tensor, Tensor], setting: Setting, device: str) -> Callable[[], Any]:
    """A forward pass, and a backward one if the setting is one for it: on a GPU as a graph, to time
    the kernels and not their launches.
    """
    x, y = pair[0].detach(), pair[1]
    backward = setting.kernels != "value"
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
    """Of a step with a setting: the median of three means."""
    before = gpu_tiles.LAUNCHES
    gpu_tiles.LAUNCHES = setting.launches()
    gpu.forget()
    try:
        step = _step(pair, setting, device)
        return statistics.median(measure.seconds(step, calls, device) for _ in range(3))
    finally:
        gpu_tiles.LAUNCHES = before
        gpu.forget()


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
            tile = [best[key] for key in ("lanes", "columns", "turn", "late")]
            print(window, kernels, size, tile, f"{best['milliseconds'][size]:.4f} ms")
    print(path)
    return path


if __name__ == "__main__":
    main()
