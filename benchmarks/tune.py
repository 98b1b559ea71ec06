"""Times the Triton kernels with each launch setting on this machine's GPU.

``python -m benchmarks.tune`` writes ``benchmarks/tuning/<device>.json``: for each window
size and each image size the time of every setting, fastest first, and the settings that are fastest
over all image sizes (by the geometric mean of their times). Those go into the table in
``perceptual_losses/_ssim/gpu.py``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from perceptual_losses import ssim
from perceptual_losses._ssim import gpu

from . import measure
from .cases import images
from .contenders import CONTENDERS
from .run import device_name, environment

TUNING = Path(__file__).parent / "tuning"

SIZES = ((64, 3, 64, 64), (16, 3, 256, 256), (1, 3, 1080, 1920), (8, 3, 1080, 1920))
WINDOWS = (11, 17, 33)
SETTINGS = tuple(itertools.product([True, False], (32, 64, 128), (1, 2), (1, 2)))
"""Whether one kernel does all, lanes, columns of each, rows in a turn."""

Setting = tuple[bool, int, int, int]


def launches(setting: Setting) -> gpu.Launches:
    """The same tile for every kernel."""
    march, lanes, columns, turn = setting
    tile = gpu.Tile((lanes,), columns, turn, warps=8)
    return gpu.Launches(tile, tile if march else None, tile, tile)


def seconds(
    pair: tuple[Tensor, Tensor], window: int, setting: Setting, device: str, calls: int
) -> float:
    """Of a forward and backward pass with a setting."""
    before = gpu.LAUNCHES
    gpu.LAUNCHES = {None: {window: launches(setting)}}
    gpu._job.cache_clear()
    try:
        x, y = pair[0].detach().requires_grad_(), pair[1]

        def step() -> None:
            ssim(x, y, window_size=window, backend="triton").backward()
            x.grad = None

        step()
        return statistics.median(measure.seconds(step, calls, device) for _ in range(5))
    finally:
        gpu.LAUNCHES = before
        gpu._job.cache_clear()


def tune(
    sizes: Sequence[tuple[int, ...]],
    window: int,
    settings: Iterable[Setting],
    device: str,
    calls: int = 10,
) -> dict[str, Any]:
    """Times of every setting at every size, and the fastest over all of them."""
    found: dict[Setting, list[float]] = {}
    failed: dict[str, str] = {}
    # Once: the processor takes a second for the largest.
    pairs = [images(size, device) for size in sizes]
    for setting in tqdm(list(settings), desc=f"window {window}"):
        try:
            found[setting] = [seconds(pair, window, setting, device, calls) for pair in pairs]
        except Exception as error:  # A setting that does not fit on the device is a result too.
            failed[str(setting)] = measure.reason(error)
    order = sorted(found, key=lambda setting: math.prod(found[setting]))
    return {
        "window": window,
        "setting": ["march", "lanes", "columns", "turn"],
        "sizes": ["x".join(map(str, size)) for size in sizes],
        "fastest": order[:1],
        "milliseconds": [[list(s), [1000 * taken for taken in found[s]]] for s in order],
        "failed": failed,
    }


def main(arguments: Sequence[str] | None = None) -> Path:
    """The command line; returns the path of the file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune", description=__doc__)
    parser.add_argument("--windows", type=int, nargs="+", default=WINDOWS)
    options = parser.parse_args(arguments)
    result = {
        "environment": environment("cuda", CONTENDERS[:1]),
        "windows": [tune(SIZES, window, SETTINGS, "cuda") for window in options.windows],
    }
    name = re.sub(r"[^a-z0-9]+", "-", device_name("cuda").lower()).strip("-")
    path = TUNING / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(path)
    return path


if __name__ == "__main__":
    main()
