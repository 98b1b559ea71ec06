"""Runs the comparison and writes one JSON file for the device."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import math
import platform
import random
import re
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from . import measure
from .cases import CASES, Case, images
from .contenders import CONTENDERS, OURS, Contender

RESULTS = Path(__file__).parent / "results"

TURN = 0.05
"""Seconds that a turn lasts at least, by repeating the step."""

COST_SHAPE = (16, 3, 256, 256)

MULTIPLY_ADDS = 154 + 40
"""Of SSIM and its gradient for each pixel: eleven taps, two ways, for four moments and for three
maps back; and about 40 for the formulas in between."""

OTHER_DISTRIBUTIONS = ("torch", "numpy", "numba", "triton")

Row = dict[str, Any]


class Options(NamedTuple):
    """How to measure.

    Attributes:
        device: ``"cpu"`` or ``"cuda"``.
        rounds: turns that a contender gets in a case.
        budget: seconds of turns in a case, after which a contender gets no further one.
        seed: of the order in each round.
    """

    device: str = "cpu"
    rounds: int = 7
    budget: float = 2.0
    seed: int = 0


def compare(
    cases: Sequence[Case], contenders: Sequence[Contender], options: Options
) -> list[dict[str, Any]]:
    """Every contender in every case.

    Args:
        cases: what to measure.
        contenders: those that the device does not have are left out.
        options: how to measure.

    Returns:
        For each case what it is and a row for each contender: what was measured, or the reason why
        it was not.
    """
    contenders = [contender for contender in contenders if options.device in contender.devices]
    order = random.Random(options.seed)
    results = []
    updates = len(cases) * (2 * len(contenders) + options.rounds + 1)
    with tqdm(total=updates, unit="step", dynamic_ncols=True) as progress:
        for case in cases:
            progress.set_description(case.name)
            results.append(_compare(case, contenders, options, order, progress))
    return results


def _compare(
    case: Case,
    contenders: Sequence[Contender],
    options: Options,
    order: random.Random,
    progress: tqdm[Any],
) -> dict[str, Any]:
    x, y = images(case.shape, options.device)
    expected = measure.expected(case._replace(backward=True), options.device)
    rows: dict[str, Row] = {}
    steps: dict[str, measure.Step] = {}
    for contender in contenders:
        row = rows[contender.name] = {"contender": contender.name, "error": None}
        try:
            call = contender.build(case, options.device)
            row |= {"settings": call.settings, "deviation": call.deviation}
            step = measure.step(call, case, x, y)
            row |= measure.check(step, expected, call.deviation)
            row |= {"calls": 0, "times_ms": []}
            steps[contender.name] = step
        except Exception as error:
            row["error"] = measure.reason(error)
        progress.update()

    for _ in range(options.rounds + 1):
        turns = list(steps)
        order.shuffle(turns)
        for name in turns:
            try:
                if not _take_turn(rows[name], steps[name], options):
                    del steps[name]
            except Exception as error:
                rows[name]["error"] = measure.reason(error)
                del steps[name]
        progress.update()

    for contender in contenders:
        row = rows[contender.name]
        if row["error"] is None:
            median = row["median_ms"] = statistics.median(row["times_ms"])
            row |= _memory(contender, case, options.device, median / 1000)
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


def _take_turn(row: Row, step: measure.Step, options: Options) -> bool:
    """Adds a time to the row; whether the contender gets another turn."""
    calls = row["calls"]
    if calls:
        if calls > 1:
            step()  # caches and threads are still another contender's
        taken = measure.seconds(step, calls, options.device)
    else:
        taken = measure.seconds(step, 1, options.device)
        row["calls"] = math.ceil(TURN / taken)
    times, turn = row["times_ms"], row["calls"] * taken
    in_budget = (len(times) + 2) * turn <= options.budget
    if not calls and row["calls"] > 1 and in_budget:
        return True  # it was too short for a turn, and has told how many calls make one
    times.append(taken * 1000)
    return in_budget and len(times) < options.rounds


def _memory(contender: Contender, case: Case, device: str, seconds: float) -> Row:
    try:
        warm_up = seconds < measure.LONG_STEP
        peak = measure.peak_memory(contender, case, device, warm_up=warm_up)
    except Exception as error:
        return {"memory_error": measure.reason(error)}
    gradient = 4 * case.pixels
    return {"peak_megabytes": peak / 1e6, "peak_gradients": peak / gradient}


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


def environment(device: str, contenders: Sequence[Contender]) -> dict[str, Any]:
    """What the numbers depend on besides the code."""
    names = [*OTHER_DISTRIBUTIONS, *(contender.distribution for contender in contenders)]
    return {
        "device": device_name(device),
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "cuda": torch.version.cuda if device == "cuda" else None,
        "versions": {name: _version(name) for name in dict.fromkeys(names)},
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def device_name(device: str) -> str:
    """What the results are named after."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{processor_name()}, {torch.get_num_threads()} threads"


def processor_name() -> str:
    """The processor as Linux has it."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    match = re.search(r"model name\s*: (.+)", text)
    return match[1] if match else platform.processor() or platform.machine()


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        output = subprocess.run(
            command, cwd=RESULTS.parent, check=True, capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return output.stdout.strip()


def method(options: Options) -> dict[str, Any]:
    """How the numbers came about, in words and settings."""
    return {
        **options._asdict(),
        "turn": TURN,
        "value_tolerance": measure.VALUE_TOLERANCE,
        "gradient_tolerance": measure.GRADIENT_TOLERANCE,
        "deviation_limit": measure.DEVIATION_LIMIT,
        "definition": "Gaussian window of 11 pixels and sigma 1.5 inside the image, range 1, "
        "population variance; gradient with respect to the first image; float32",
        "check": "before it is timed: value (absolute) and gradient (norm of the difference over "
        "norm) against the reference path in float64",
        "time": "rounds in which each contender has one turn, in shuffled order; a turn repeats "
        f"the step for at least {TURN} s, after one that is not timed; a contender gets no further "
        f"turn in a case once it has had {options.budget} s of them; medians of turns",
        "memory": measure.MEMORY_METHOD[options.device],
    }


def main(arguments: Sequence[str] | None = None) -> Path:
    """The command line; returns the path of the file."""
    defaults = Options()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default=defaults.device)
    parser.add_argument("--rounds", type=int, default=defaults.rounds)
    parser.add_argument("--budget", type=float, default=defaults.budget, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--cases", default="", metavar="SUBSTRING", help="of the names of cases")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/<device>.json")
    options = parser.parse_args(arguments)

    cases = [case for case in CASES if options.cases in case.name]
    if not cases:
        parser.error(f"no case has {options.cases!r} in its name")
    how = Options(options.device, options.rounds, options.budget, options.seed)
    measure.configure(how.device, torch.get_num_threads())
    result = {
        "environment": environment(how.device, CONTENDERS),
        "method": method(how),
    }
    with measure.memory_limit(how.device):
        result["cases"] = compare(cases, CONTENDERS, how)
    result["cost"] = one_thread_cost(COST_SHAPE) if how.device == "cpu" else None

    name = re.sub(r"[^a-z0-9]+", "-", device_name(how.device).lower()).strip("-")
    path = options.out or RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(path)
    return path


if __name__ == "__main__":
    main()
