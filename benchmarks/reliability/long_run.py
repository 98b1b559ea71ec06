"""Trains for many steps and records the memory of the process and the losses' distance from the
reference path in float64.

``python -m benchmarks.reliability.long_run`` writes ``docs/reliability/long-run.json``: about
twenty minutes on two cores. The same steps with a mean squared error in place of the losses tell
what growth of memory is torch's.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from perceptual_losses import MSSSIMLoss, SSIMLoss

from ..pages.environment import environment
from .page import RESULTS

SHAPE = (4, 3, 64, 64)

BATCHES = 8
"""The number of batches of targets, which are taken one after the other."""

STRUCTURAL = {
    "SSIM": lambda backend: SSIMLoss(backend=backend),
    "MS-SSIM": lambda backend: MSSSIMLoss(levels=3, backend=backend),
}

Loss = Callable[[Tensor, Tensor], Tensor]


class Options(NamedTuple):
    """How long.

    Attributes:
        steps: of training.
        warm_up: steps after which growth of memory counts.
        memory_every: steps from one reading of the memory to the next.
        check_every: steps from one comparison with the reference path to the next.
        seed: of the targets and of the model.
    """

    steps: int = 20_000
    warm_up: int = 2_000
    memory_every: int = 1_000
    check_every: int = 500
    seed: int = 0


class Autoencoder(nn.Sequential):
    """A small one: the losses are most of a step."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(8, 4, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(4, 12, 3, padding=1),
            nn.PixelShuffle(2),
        )


def train(kind: str, options: Options) -> dict[str, Any]:
    """One training in this process.

    Args:
        kind: ``"structural"``, where SSIM and MS-SSIM take turns, or ``"mse"``.
        options: how long.

    Returns:
        Seconds, readings of the memory in megabytes by step and their growth after the warm-up;
        with the structural losses the comparisons with the reference path too.
    """
    targets = _targets(options.seed)
    torch.manual_seed(options.seed)
    model = Autoencoder()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses: Sequence[Loss] = [nn.MSELoss()]
    if kind == "structural":
        losses = [build("auto") for build in STRUCTURAL.values()]
    kept = _fixed(targets)
    memory, checks = {}, []
    begin = time.perf_counter()
    # The reference path, whose memory would hide that of a training, has a process of its own.
    with _process() as reference:
        for step in tqdm(range(1, options.steps + 1), desc=kind, unit="step", dynamic_ncols=True):
            target = targets[step % BATCHES]
            optimizer.zero_grad()
            output = model(target)
            losses[step % len(losses)](output, target).backward()
            optimizer.step()
            if kind == "structural" and step % options.check_every == 0:
                same = all(map(torch.equal, _fixed(targets), kept))
                ours = _values_and_gradients(output.detach(), target)
                images = output.detach().numpy(), target.numpy()
                found = reference.submit(_deviations, *images, [of.numpy() for of in ours])
                checks.append({"step": step, "repeats": same, **found.result()})
            if step % options.memory_every == 0:
                memory[step] = _resident() / 1e6
    return {
        "seconds": time.perf_counter() - begin,
        "memory_megabytes": memory,
        "growth_megabytes": memory[options.steps] - memory[options.warm_up],
        **(_summary(checks) if checks else {}),
    }


def _process() -> concurrent.futures.Executor:
    spawn = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn)


def _targets(seed: int) -> Tensor:
    """Smooth images with some noise, which have contrast at all scales."""
    images = torch.rand(BATCHES, *SHAPE, generator=torch.Generator().manual_seed(seed))
    for _ in range(3):
        smooth = nn.functional.avg_pool3d(images, (1, 5, 5), 1, (0, 2, 2))
        images = 0.7 * smooth + 0.3 * images
    return images


def _resident() -> int:
    """Bytes of this process in memory."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _fixed(targets: Tensor) -> list[Tensor]:
    """Values and gradients of a pair of images that no step changes."""
    return _values_and_gradients(targets[0], targets[1])


def _values_and_gradients(x: Tensor, y: Tensor, backend: str = "auto") -> list[Tensor]:
    """The value and gradient of each structural loss, one after the other."""
    found = []
    for build in STRUCTURAL.values():
        x = x.detach().requires_grad_()
        value = build(backend)(x, y)
        found += [value.detach(), torch.autograd.grad(value, x)[0]]
    return found


def _deviations(x: Any, y: Any, ours: Sequence[Any]) -> dict[str, dict[str, float]]:
    """The relative deviations of each loss from the reference path in float64."""
    x, y = (torch.from_numpy(image).double() for image in (x, y))
    exact = _values_and_gradients(x, y, "reference")
    apart = [
        ((torch.from_numpy(a) - b).norm() / b.norm()).item()
        for a, b in zip(ours, exact, strict=True)
    ]
    return {
        name: {"loss": value.item(), "value": of_value, "gradient": of_gradient}
        for name, value, of_value, of_gradient in zip(
            STRUCTURAL, exact[::2], apart[::2], apart[1::2], strict=True
        )
    }


def _summary(checks: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "checks": checks,
        "repeats": all(check["repeats"] for check in checks),
        "largest_deviation": {
            of: max(check[name][of] for check in checks for name in STRUCTURAL)
            for of in ("value", "gradient")
        },
    }


def method(options: Options) -> dict[str, Any]:
    """How the numbers came about."""
    return {
        **options._asdict(),
        "shape": SHAPE,
        "definition": "an autoencoder of three convolutions and Adam; SSIM and MS-SSIM of three "
        "levels in turns, with fixed seeds",
        "memory": "resident set (VmRSS) of a process of its own for each training; growth from the "
        "end of the warm-up to the last step",
        "deviation": "of the loss, relative, and of its gradient with respect to the output (norm "
        "of the difference over norm) from the reference path in float64, which "
        "a process of its own computes",
        "repeats": "whether value and gradient of one pair of images stay bit for bit what they "
        "were before the first step",
    }


def main(arguments: Sequence[str] | None = None) -> Path:
    """The command line; returns the path of the file."""
    defaults = Options()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reliability.long_run", description=__doc__
    )
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--out", type=Path, default=RESULTS / "long-run.json")
    given = parser.parse_args(arguments)
    if given.steps <= defaults.warm_up or given.steps % defaults.memory_every:
        parser.error(
            f"--steps is {given.steps}: pass a multiple of {defaults.memory_every} above "
            f"{defaults.warm_up}"
        )
    options = defaults._replace(steps=given.steps, seed=given.seed)
    result = {"environment": environment("cpu"), "method": method(options)}
    for kind in ("structural", "mse"):
        with _process() as process:
            result[kind] = process.submit(train, kind, options).result()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(given.out)
    return given.out


if __name__ == "__main__":
    main()
