"""Runs the comparison and writes one JSON file for the device."""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import json
import math
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from ..pages.environment import environment, file_name
from ..pages.fill import ROOT
from . import measure
from .cases import CASES, Case, images
from .contenders import CONTENDERS, OURS, Contender

RESULTS = ROOT / "benchmarks" / "results"

TURN = 0.05
"""Seconds that a turn lasts at least, by repeating the step."""

COST_SHAPE = (16, 3, 256, 256)

MULTIPLY_ADDS = 154 + 40
"""The multiply-adds of SSIM and its gradient for each pixel: eleven taps, two ways, for four
moments and for three maps back; and about 40 for the formulas in between."""

Row = dict[str, Any]


class Options(NamedTuple):
    """How to measure.

    Attributes:
        device: ``"cpu"`` or ``"cuda"``.
        rounds: turns that a contender gets in a case.
        budget: seconds of turns in a case, after which a contender gets no further one.
        seed: the seed of the order in each round.
    """

    device: str = "cpu"
    rounds: int = 7
    budget: float = 2.0
    seed: int = 0


def compare(
    cases: Sequence[Case],
    contenders: Sequence[Contender],
    options: Options,
    save: Callable[[list[dict[str, Any]]], Any] = lambda results: None,
) -> list[dict[str, Any]]:
    """Every contender in every case.

    Args:
        cases: what to measure.
        contenders: those that the device does not have are left out.
        options: how to measure.
        save: gets what there is after each case.

    Returns:
        For each case what it is and a row for each contender: what was measured, or the reason why
        it was not.
    """
    contenders = [contender for contender in contenders if options.device in contender.devices]
    order = random.Random(options.seed)
    results = []
    kept: dict[str, measure.Worker] = {}
    updates = len(cases) * (2 * len(contenders) + options.rounds + 1)
    with tqdm(total=updates, unit="step", dynamic_ncols=True) as progress:
        for case in cases:
            progress.set_description(case.name)
            offered = [contender for contender in contenders if case.metric in contender.metrics]
            results.append(_compare(case, offered, options, order, progress, kept))
            save(results)
            progress.update(2 * (len(contenders) - len(offered)))
    for worker in kept.values():
        worker.close()
    return results


def _compare(
    case: Case,
    contenders: Sequence[Contender],
    options: Options,
    order: random.Random,
    progress: tqdm[Any],
    kept: dict[str, measure.Worker],
) -> dict[str, Any]:
    expected = measure.expected(case._replace(backward=True), options.device)
    rows: dict[str, Row] = {
        contender.name: {"contender": contender.name, "error": None} for contender in contenders
    }
    workers = {
        contender.name: kept.pop(contender.name, None) or measure.Worker(contender, options.device)
        for contender in contenders
    }

    def ready(name: str) -> None:
        row, worker = rows[name], workers[name]
        with _recorded(row):
            row["settings"], row["deviation"] = worker.prepare(case)
            row |= measure.check(*worker.result(), expected, row["deviation"])
            row |= {"calls": 0, "times_ms": []}
        progress.update()

    # Each has CUDA to start, and some have much to compile.
    at_once = max(1, len(rows)) if options.device == "cuda" else 1
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        list(pool.map(ready, rows))

    racing = [name for name, row in rows.items() if row["error"] is None]
    for _ in range(options.rounds + 1):
        order.shuffle(racing)
        for name in list(racing):
            row, again = rows[name], False
            with _recorded(row):
                again = _take_turn(row, workers[name], options)
            if not again:
                racing.remove(name)
        progress.update()

    for contender in contenders:
        row, worker = rows[contender.name], workers[contender.name]
        if row["error"] is None:
            median = row["median_ms"] = statistics.median(row["times_ms"])
            if options.device == "cpu":
                worker.close()
                worker = measure.Worker(contender, options.device)
            with _recorded(row, "memory_error"):
                peak = worker.peak(case, warm_up=median < 1000 * measure.LONG_STEP)
                row["peak_megabytes"] = peak / 1e6
                row["peak_gradients"] = peak / (4 * case.pixels)
        # Memory that CUDA's allocator keeps does not show in the peak of another case.
        if options.device == "cuda" and worker.alive:
            worker.forget()
            kept[contender.name] = worker
        else:
            worker.close()
        progress.update()

    ours = rows.get(OURS.name, {}).get("median_ms")
    for row in rows.values():
        if ours and row["error"] is None:
            row["ratio"] = row["median_ms"] / ours
    return {
        **case._asdict(),
        "name": case.name,
        "size": case.size,
        "pixels": case.pixels,
        "expected": expected.value,
        "rows": list(rows.values()),
    }


@contextlib.contextmanager
def _recorded(row: Row, name: str = "error") -> Iterator[None]:
    try:
        yield
    except Exception as error:
        row[name] = str(error) if isinstance(error, measure.WorkerError) else measure.reason(error)


def _take_turn(row: Row, worker: measure.Worker, options: Options) -> bool:
    """Adds a time to the row; whether the contender gets another turn."""
    calls = row["calls"]
    if calls:
        if calls > 1:
            worker.seconds(1)  # caches and cores are still another contender's
        taken = worker.seconds(calls)
    else:
        taken = worker.seconds(1)
        row["calls"] = math.ceil(TURN / taken)
    times, turn = row["times_ms"], row["calls"] * taken
    in_budget = (len(times) + 2) * turn <= options.budget
    if not calls and row["calls"] > 1 and in_budget:
        return True  # it was too short for a turn, and has told how many calls make one
    times.append(taken * 1000)
    return in_budget and len(times) < options.rounds


def one_thread_cost(shape: tuple[int, ...], repeats: int = 9) -> dict[str, Any]:
    """Nanoseconds per pixel of SSIM and its gradient on one thread, beside the multiply-adds that
    it needs at the rate at which the machine multiplies matrices.
    """
    case = Case("SSIM", shape, backward=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        step = measure.step(OURS.build(case, "cpu"), case, *images(shape, "cpu"))
        matrix = torch.rand(1024, 1024)
        step()
        ours, products = [], []
        for _ in range(repeats):
            ours.append(measure.seconds(step, 1, "cpu"))
            products.append(measure.seconds(lambda: matrix @ matrix, 1, "cpu"))
    except Exception as error:
        return {"name": case.name, "error": measure.reason(error)}
    finally:
        torch.set_num_threads(threads)
    rate = len(matrix) ** 3 / min(products)
    bound = MULTIPLY_ADDS / rate * 1e9
    cost = statistics.median(ours) / case.pixels * 1e9
    return {
        "name": case.name,
        "error": None,
        "times_ms": [1000 * taken for taken in ours],
        "ns_per_pixel": cost,
        "multiply_adds_per_pixel": MULTIPLY_ADDS,
        "multiply_adds_per_second": rate,
        "bound_ns_per_pixel": bound,
        "ratio": cost / bound,
    }


def method(options: Options) -> dict[str, Any]:
    """How the numbers came about, in words and settings."""
    return {
        **options._asdict(),
        "turn": TURN,
        "value_tolerance": measure.VALUE_TOLERANCE,
        "gradient_tolerance": measure.GRADIENT_TOLERANCE,
        "deviation_limit": measure.DEVIATION_LIMIT,
        "definition": "Gaussian window of 11 pixels and sigma 1.5 inside the image, range 1, "
        "population variance; L1-SSIM is 0.8 times the mean of |x - y| and 0.2 times 1 - SSIM; "
        "other names with SSIM are definitions of their own, as the settings say: a uniform window "
        "of 7 pixels, the same with the sample covariance, with a range for each image too, with "
        "30 % of the pixels missing, the mean of the map, images of bytes, and the paper's "
        "beside our own calls with one option each; "
        "VGG is the mean squared distance at relu3_3 of VGG-16 with the same "
        "random weights for all, LPIPS the distance of five layers with its calibrated linear "
        "weights; gradient of 1 - similarity, by the package's own loss where it has one, or of "
        "the distance, with respect to the first image; float32",
        "check": "before it is timed: value (absolute) and gradient (norm of the difference over "
        "norm) against the reference path in float64, a gradient through a network to "
        f"{measure.FEATURE_GRADIENT_TOLERANCE:g}",
        "time": "each contender in a process of its own, on a CPU in a new one for each case; "
        "rounds in which each has one turn, in "
        f"shuffled order; a turn repeats the step for at least {TURN} s, after one that is not "
        f"timed; a contender gets no further turn in a case once it has had {options.budget} s of "
        "them; medians of turns",
        "memory": measure.MEMORY_METHOD[options.device],
    }


def main(arguments: Sequence[str] | None = None) -> Path:
    """The command line; returns the path of the file."""
    defaults = Options()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.run", description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default=defaults.device)
    parser.add_argument("--rounds", type=int, default=defaults.rounds)
    parser.add_argument("--budget", type=float, default=defaults.budget, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument(
        "--cases", nargs="+", default=[""], metavar="TEXT", help="those named with one of these"
    )
    parser.add_argument("--without", nargs="*", default=[], metavar="CONTENDER")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/<device>.json")
    options = parser.parse_args(arguments)

    cases = [
        case for case in CASES[options.device] if any(part in case.name for part in options.cases)
    ]
    if not cases:
        parser.error(f"no case has one of {options.cases} in its name")
    unknown = set(options.without) - {contender.name for contender in CONTENDERS}
    if unknown:
        parser.error(f"no contender is called {sorted(unknown)}")
    contenders = [entry for entry in CONTENDERS if entry.name not in options.without]
    how = Options(options.device, options.rounds, options.budget, options.seed)
    measure.configure(how.device, torch.get_num_threads())
    result = {
        "environment": environment(how.device, [entry.distribution for entry in CONTENDERS]),
        "method": {**method(how), "without": options.without},
        "copy_bytes_per_second": measure.copy_rate() if how.device == "cuda" else None,
        "cost": None,
    }
    path = options.out or RESULTS / file_name(how.device)
    path.parent.mkdir(parents=True, exist_ok=True)

    def save(results: list[dict[str, Any]]) -> None:
        path.write_text(json.dumps({**result, "cases": results}, indent=1) + "\n")

    # After each case, for a run that is ended early to leave what it has measured.
    results = compare(cases, contenders, how, save)
    if how.device == "cpu":
        result["cost"] = one_thread_cost(COST_SHAPE)
        save(results)
    print(path)
    return path


if __name__ == "__main__":
    main()
