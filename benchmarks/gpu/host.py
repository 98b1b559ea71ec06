"""Processor time of steps on small images on a GPU, measured on stand-ins for CUDA without a GPU.

``python -m tests.gpu.emulator.standins benchmarks.gpu.host`` writes a result file and the page that
shows it. ``--pages`` only writes the page, and needs no stand-ins.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from perceptual_losses import L1SSIMLoss, MSSSIMLoss, SSIMLoss
from tests.gpu.emulator import standins

from ..pages.environment import environment, processor_name, provenance, slug
from ..pages.fill import ROOT, fill, table

RESULTS = ROOT / "benchmarks" / "results" / "host"
PAGE = ROOT / "docs" / "benchmarks" / "host.md"

SHAPE = (1, 3, 64, 64)
VOLUME = (1, 1, 16, 32, 32)

FLOOR = "floor"

LOSSES = {
    "SSIM": (SSIMLoss(), SHAPE),
    "L1-SSIM": (L1SSIMLoss(), SHAPE),
    "MS-SSIM, 3 levels": (MSSSIMLoss(levels=3), SHAPE),
    "SSIM of a volume": (SSIMLoss(), VOLUME),
}

Call = Callable[[], Any]


class Options(NamedTuple):
    """The length of a measurement.

    Attributes:
        turns: the number of turns that each call gets, all calls one after the other.
        repeats: the number of times that a call is made in a turn.
        warm_up: the number of times that it is made before.
    """

    turns: int = 200
    repeats: int = 10
    warm_up: int = 60


class _Floor(torch.autograd.Function):
    """The least that torch takes for a loss that has its gradient ready after the forward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        gradient = torch.empty_like(x)
        ctx.save_for_backward(x, y, gradient)
        return torch.empty((), device=x.device)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return ctx.saved_tensors[2], None


def calls() -> dict[str, Call]:
    """The measured calls by their names: the floor, and for each loss all that it does."""
    images = {
        shape: tuple(torch.rand(shape, device="cuda") for _ in "xy") for shape in (SHAPE, VOLUME)
    }

    def step(function: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...]) -> Call:
        x, y = images[shape][0].clone().requires_grad_(), images[shape][1]
        return lambda: torch.autograd.grad(function(x, y), x)

    def value(function: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...]) -> Call:
        return lambda: function(*images[shape])

    found = {FLOOR: step(_Floor.apply, SHAPE)}
    for name, (loss, shape) in LOSSES.items():
        found[f"{name}: loss and backward"] = step(loss, shape)
        found[f"{name}: `value_and_grad`"] = value(loss.value_and_grad, shape)
        found[f"{name}: value"] = value(loss, shape)
    return found


def measure(options: Options) -> list[dict[str, Any]]:
    """The processor time and the launches of each call, all threads counted.

    It is the processor's time and not the clock's, in which other processes count too.
    """
    torch.set_num_threads(1)
    named = calls()
    for call in named.values():
        for _ in range(options.warm_up):
            call()
    times: dict[str, list[float]] = {name: [] for name in named}
    gc.collect()
    gc.disable()
    for turn in tqdm(range(options.turns), unit="turn", dynamic_ncols=True):
        # Either order in turn, so that none always comes after the same one.
        for name in list(named)[:: -1 if turn % 2 else 1]:
            times[name].append(_microseconds(named[name], options.repeats))
        gc.collect()
    gc.enable()
    return [
        {
            "call": name,
            "median_us": statistics.median(times[name]),
            "tenth_us": statistics.quantiles(times[name], n=10, method="inclusive")[0],
            "ratio": statistics.median(
                ours / floor for ours, floor in zip(times[name], times[FLOOR], strict=True)
            ),
            "launches": _launches(call),
        }
        for name, call in named.items()
    ]


def _microseconds(call: Call, repeats: int) -> float:
    for _ in range(2):
        # The processor's caches are still another call's.
        call()
    before = time.process_time_ns()
    for _ in range(repeats):
        call()
    return (time.process_time_ns() - before) / repeats / 1000


def _launches(call: Call) -> int:
    with standins.record() as recording:
        call()
    return len(recording.launches)


def pages(folder: Path = RESULTS, page: Path = PAGE) -> None:
    """Writes the generated part of the page.

    Args:
        folder: the folder of the result files.
        page: the page, with the part.
    """
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    shown = [part for result in results for part in (times_table(result), source(result))]
    fill(page, "host times", "\n\n".join(shown or ["Not measured yet."]))


def times_table(result: dict[str, Any]) -> str:
    """A line for each call."""
    header = ["processor time", "median", "10th percentile", "to the floor", "launches"]
    rows = [
        [
            row["call"],
            *(f"{row[key]:.1f} µs" for key in ("median_us", "tenth_us")),
            f"{row['ratio']:.2f}x",
            str(row["launches"]),
        ]
        for row in result["rows"]
    ]
    return table(header, rows)


def source(result: dict[str, Any]) -> str:
    """A sentence on where the numbers come from and how many there were."""
    method = result["method"]
    return (
        f"{provenance(result['environment'])} {method['turns']} turns of {method['repeats']} calls."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    defaults = Options()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.host", description=__doc__)
    parser.add_argument("--pages", action="store_true", help="only write the page")
    parser.add_argument("--turns", type=int, default=defaults.turns)
    parser.add_argument("--out", type=Path, help="a file, and then no page is written")
    options = parser.parse_args(arguments)
    if not options.pages:
        if not standins.loaded():
            sys.exit("run it with make bench-host, which loads the stand-ins for CUDA first")
        how = defaults._replace(turns=options.turns)
        rows = measure(how)
        # The stand-in for a GPU is no device: the processor takes the time.
        processor = processor_name()
        result = {
            "environment": {**environment("cpu"), "device": processor},
            "method": {**how._asdict(), "shape": SHAPE, "volume": VOLUME},
            "rows": rows,
        }
        path = options.out or RESULTS / f"{slug(processor)}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")
        print(times_table(result))
        print(path)
    if not options.out:
        pages()


if __name__ == "__main__":
    main()
