"""Puts what test runs, fuzz runs and the long run counted into ``docs/reliability.md``."""

from __future__ import annotations

import argparse
import json
import platform
import re
import xml.etree.ElementTree
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..pages.environment import commit, provenance
from ..pages.fill import ROOT, fill, table

RESULTS = ROOT / "docs" / "reliability"
PAGE = ROOT / "docs" / "reliability.md"

LOCKS = {
    "oldest": "requirements-oldest.lock",
    "pinned": "requirements.lock",
    "newest": "requirements-newest.lock",
}
OUTCOMES = ("judged", "refused", "unjudged", "failed")


def suite(name: str, reports: Sequence[Path]) -> dict[str, Any]:
    """The counts of a run of the tests, and the versions of its lock.

    Args:
        name: one of `LOCKS`.
        reports: the files of ``pytest --junit-xml``, one for each process of ``make test``.
    """
    runs = [run for file in reports for run in xml.etree.ElementTree.parse(file).iter("testsuite")]
    counts = {
        key: sum(int(run.attrib[key]) for run in runs)
        for key in ("tests", "failures", "errors", "skipped")
    }
    lock = (ROOT / LOCKS[name]).read_text()
    versions = {
        package: locked(lock, package) for package in ("torch", "torchvision", "triton", "numba")
    }
    return {**counts, "versions": versions, "python": platform.python_version(), "commit": commit()}


def locked(lock: str, package: str) -> str:
    """The version in a lock for the newest Python that it distinguishes."""
    return max(re.findall(rf"^{package}==([\d.]+)", lock, re.MULTILINE), key=_numbers)


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def pages(folder: Path = RESULTS, page: Path = PAGE) -> None:
    """Writes the generated parts of the page.

    Args:
        folder: with the result files.
        page: with a part for each.
    """
    suites, fuzz, long_run = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("suites", "fuzz", "long-run")
    )
    fill(page, "suites", suites_table(suites))
    fill(page, "fuzz", fuzz_table(fuzz))
    fill(page, "long run", long_run_table(long_run))


def suites_table(suites: dict[str, dict[str, Any]]) -> str:
    """A line for each run."""
    rows = []
    # Runs without a lock come last.
    for name in sorted(suites, key=lambda name: [*LOCKS, *suites].index(name)):
        run = suites[name]
        failed = run["failures"] + run["errors"]
        passed = run["tests"] - failed - run["skipped"]
        versions = [*run["versions"].values(), run["python"]]
        counts = [str(passed), str(failed), str(run["skipped"])]
        rows.append([name, *versions, *counts, run["commit"]])
    packages = list(next(iter(suites.values()))["versions"])
    header = ["versions", *packages, "Python", "passed", "failed", "skipped", "commit"]
    return table(header, rows)


def fuzz_table(runs: list[dict[str, Any]]) -> str:
    """A line for each path and loss."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for run in runs:
        for case in run["cases"]:
            counts[case["backend"], case["loss"], case["outcome"]] += case["count"]
    pairs = dict.fromkeys((backend, loss) for backend, loss, _ in counts)
    rows = [
        [f"{backend}, {loss}", *(str(counts[backend, loss, outcome]) for outcome in OUTCOMES)]
        for backend, loss in pairs
    ]
    totals = [sum(n for key, n in counts.items() if key[2] == outcome) for outcome in OUTCOMES]
    rows.append(["**all**", *map(str, totals)])
    minutes = sum(run["minutes"] for run in runs)
    violations = sum(len(run["violations"]) for run in runs)
    versions = ", ".join(f"{name} {version}" for name, version in runs[0]["versions"].items())
    return (
        f"{sum(totals)} calls in {minutes:.0f} minutes, {violations} beyond the budget. Python "
        f"{runs[0]['python']}, {versions}.\n\n" + table(["path, loss", *OUTCOMES], rows)
    )


def long_run_table(result: dict[str, Any]) -> str:
    """Memory and deviations."""
    rows = []
    for kind, name in (("structural", "SSIM and MS-SSIM"), ("mse", "squared error")):
        memory = result[kind]["memory_megabytes"]
        warm = str(result["method"]["warm_up"])
        last = str(result["method"]["steps"])
        rows.append([name, *(f"{memory[at]:.2f}" for at in (warm, last))])
        rows[-1].append(f"{result[kind]['growth_megabytes']:.2f}")
    ours = result["structural"]["largest_deviation"]
    repeats = "stayed bit for bit the same" if result["structural"]["repeats"] else "changed"
    return "\n\n".join(
        [
            table(["trained on", "MB after warm-up", "MB at the end", "growth, MB"], rows),
            f"The largest relative deviation from the reference in float64, at "
            f"{len(result['structural']['checks'])} steps: {ours['value']:.0e} of the loss, "
            f"{ours['gradient']:.0e} of the gradient. Value and gradient of one pair of images "
            f"{repeats} throughout.",
            provenance(result["environment"]),
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reliability.page", description=__doc__
    )
    parser.add_argument(
        "--suite",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME", "XML"),
        help="keep the counts of a run of the tests, from the XML of each of its processes; NAME "
        f"is one of {', '.join(LOCKS)}",
    )
    parser.add_argument(
        "--fuzz", nargs="*", type=Path, help="keep these runs instead of those that are there"
    )
    options = parser.parse_args(arguments)
    RESULTS.mkdir(parents=True, exist_ok=True)
    if options.suite:
        file = RESULTS / "suites.json"
        suites = json.loads(file.read_text()) if file.exists() else {}
        suites |= {
            name: suite(name, [Path(file) for file in files]) for name, *files in options.suite
        }
        file.write_text(json.dumps(suites, indent=1) + "\n")
    if options.fuzz:
        runs = [json.loads(path.read_text()) for path in options.fuzz]
        (RESULTS / "fuzz.json").write_text(json.dumps(runs, indent=1) + "\n")
    pages()


if __name__ == "__main__":
    main()
