"""Turns result files into tables and plots."""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..pages.fill import ROOT, fill
from ..pages.fill import table as markdown_table
from .cases import DEFINITIONS
from .contenders import OURS

Result = dict[str, Any]

HEADER = (
    "",
    "forward, ms",
    "to ours",
    "forward + backward, ms",
    "to ours",
    "memory forward, gradients",
    "memory forward + backward, gradients",
    "remarks",
)

MISSING = "-"

MAIN_METRICS = ("SSIM", "MS-SSIM", "L1-SSIM", "VGG", "LPIPS")
"""The metrics of the README and of the comparison of devices; a report has all."""

METRICS = (*MAIN_METRICS, "LPIPS-AlexNet", "LPIPS-SqueezeNet", *DEFINITIONS)

README_SIZES = {
    "cpu": ("16x3x256x256", "1x3x1080x1920", "4x3x224x224"),
    "cuda": ("64x3x64x64", "1x3x512x512", "8x3x1080x1920"),
}

INK, OURS_COLOR, OTHERS_COLOR = "#333333", "#c44e24", "#8da3b5"


def markdown(result: Result, plots: dict[str, str]) -> str:
    """The whole report of one device.

    Args:
        result: content of a result file.
        plots: for each metric, where its plot lies.
    """
    parts = [f"# {_title(result)}", _conditions(result)]
    if result["cost"]:
        parts.append(_cost(result["cost"]))
    for metric, cases in _groups(_cases([result]), "metric"):
        parts.append(f"## {metric}")
        if metric in plots:
            parts.append(f"![Throughput of {metric}]({plots[metric]})")
        for size, group in _groups(cases, "size"):
            parts += [f"### {metric}, {size}", table(group)]
            if result.get("copy_bytes_per_second"):
                parts.append(_floor(group[0], result["copy_bytes_per_second"]))
    return "\n\n".join(parts) + "\n"


def table(cases: Sequence[Result]) -> str:
    """One metric at one size: a row for each contender, the fastest first.

    Args:
        cases: only forward, forward and backward, or both.
    """
    modes = {
        case["backward"]: {row["contender"]: row for row in case["rows"]}
        for case in sorted(cases, key=lambda case: case["backward"])
    }
    names = dict.fromkeys(itertools.chain.from_iterable(modes.values()))
    fullest = modes[max(modes)]
    lines = [HEADER, ["---", *["---:"] * (len(HEADER) - 2), "---"]]
    for name in sorted(names, key=lambda name: fullest[name].get("median_ms", float("inf"))):
        forward, both = (modes.get(backward, {}).get(name, {}) for backward in (False, True))
        cells = [f"**{name}**" if name == OURS.name else name]
        for row in (forward, both):
            cells += [_number(row.get("median_ms")), _number(row.get("ratio"), "x")]
        cells += [_number(row.get("peak_gradients")) for row in (forward, both)]
        lines.append([*cells, _remarks(forward, both)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def throughput(cases: Sequence[Result], source: str) -> Figure:
    """Forward and backward of one metric: a panel for each size, a bar for each contender.

    Args:
        cases: with backward.
        source: of the numbers.
    """
    names = [row["contender"] for row in cases[0]["rows"]][::-1]
    columns = min(3, len(cases))
    rows = math.ceil(len(cases) / columns)
    size = (2.2 + 2.4 * columns, 0.8 + rows * (0.6 + 0.3 * len(names)))
    figure = Figure(figsize=size, layout="constrained")
    panels = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
    for panel in panels[len(cases) :]:
        panel.set_axis_off()
    for panel, case in zip(panels, cases, strict=False):
        medians = {row["contender"]: row.get("median_ms") for row in case["rows"]}
        rates = [case["pixels"] / 1e3 / medians[name] if medians[name] else 0 for name in names]
        colors = [OURS_COLOR if name == OURS.name else OTHERS_COLOR for name in names]
        bars = panel.barh(names, rates, color=colors)
        labels = [_number(rate) if rate else "not run" for rate in rates]
        panel.bar_label(bars, labels, padding=3, fontsize=8, color=INK)
        panel.set_title(case["size"], fontsize=10)
        panel.set_xlim(0, 1.3 * max(*rates, 1e-9))
        if max(rates) >= 1e4:
            panel.locator_params(axis="x", nbins=4)  # five digits need room
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
    figure.suptitle(f"{cases[0]['metric']}, forward + backward", fontsize=11)
    figure.supxlabel(
        f"megapixels per second, each channel counted (longer is faster)\n{source}", fontsize=9
    )
    return figure


def summary(results: Sequence[Result], sizes: Sequence[str] | None = None) -> str:
    """Forward and backward of each metric and size, against the others at their best and worst.

    Args:
        results: contents of result files.
        sizes: those to show, of the main metrics; all of all by default.
    """
    lines = []
    for case in _cases(results):
        if sizes is not None and not (case["metric"] in MAIN_METRICS and case["size"] in sizes):
            continue
        rows = [row for row in case["rows"] if row.get("median_ms")]
        ours, others = _ours_and_others(rows)
        if not (case["backward"] and ours and others):
            continue
        by_time = sorted(others, key=lambda row: row["median_ms"])
        least = min(others, key=lambda row: row["peak_gradients"])
        cells = [f"{case['metric']}, {case['size']}", f"{_number(ours['median_ms'])} ms"]
        for other in (by_time[0], by_time[-1]):
            cells.append(f"{_number(other['ratio'], 'x')} {other['contender']}")
        cells += [_number(ours["peak_gradients"]), _number(least["peak_gradients"])]
        lines.append(cells)
    header = ["", "ours", "fastest other", "slowest other", "memory, ours", "the others' least"]
    return markdown_table(header, lines)


def devices(results: Sequence[Result]) -> str:
    """Throughput of ours on each device.

    Args:
        results: contents of result files, one for each device.
    """
    rates = _rates(results)
    sizes = _sizes(rates)
    lines = [
        [f"{metric}, {size}", *(_number(device.get((metric, size))) for device in rates.values())]
        for metric, size in sizes
    ]
    return markdown_table(["forward + backward, megapixels per second", *rates], lines)


def devices_plot(results: Sequence[Result]) -> Figure:
    """The same as points, a color for each device.

    Args:
        results: contents of result files, one for each device.
    """
    rates = _rates(results)
    sizes = _sizes(rates)[::-1]
    figure = Figure(figsize=(7, 1.4 + 0.3 * len(sizes)), layout="constrained")
    panel = figure.subplots()
    for name, found in rates.items():
        places = [place for place, size in enumerate(sizes) if size in found]
        values = [found[sizes[place]] for place in places]
        (points,) = panel.semilogx(values, places, "o", label=name)
        for value, place in zip(values, places, strict=True):
            # The slowest device's to the left, where no other's point is.
            there = [device[sizes[place]] for device in rates.values() if sizes[place] in device]
            left = len(there) > 1 and value == min(there)
            panel.annotate(
                _number(value),
                (value, place),
                (-6 if left else 6, -3),
                textcoords="offset points",
                ha="right" if left else "left",
                fontsize=8,
                color=points.get_color(),
            )
    panel.set_yticks(range(len(sizes)), [", ".join(size) for size in sizes], fontsize=8)
    sources = "\n".join(map(source, results))
    panel.set_xlabel(
        f"megapixels per second, each channel counted (right is faster)\n{sources}", fontsize=9
    )
    panel.margins(x=0.12)
    panel.grid(axis="y", color="#e0e0e0")
    panel.spines[["top", "right"]].set_visible(False)
    panel.set_title("perceptual-losses, forward + backward", fontsize=11)
    figure.legend(fontsize=8, loc="outside lower right")
    return figure


def _sizes(rates: dict[str, dict[tuple[str, str], float]]) -> list[tuple[str, str]]:
    """Metrics and sizes of all devices."""
    found = dict.fromkeys(key for device in rates.values() for key in device)
    return sorted(found, key=lambda key: METRICS.index(key[0]))


def _rates(results: Sequence[Result]) -> dict[str, dict[tuple[str, str], float]]:
    rates: dict[str, dict[tuple[str, str], float]] = {}
    for result in results:
        device = rates.setdefault(result["environment"]["device"], {})
        for case in result["cases"]:
            ours, _ = _ours_and_others(case["rows"])
            counts = case["backward"] and case["metric"] in MAIN_METRICS
            if counts and ours and ours.get("median_ms"):
                rate = case["pixels"] / 1e3 / ours["median_ms"]
                device[case["metric"], case["size"]] = rate
    return rates


def _cases(results: Sequence[Result]) -> list[Result]:
    """The cases of all files, metric by metric, each with its sizes in their order."""
    cases = itertools.chain.from_iterable(result["cases"] for result in results)
    return sorted(cases, key=lambda case: METRICS.index(case["metric"]))


def _ours_and_others(rows: Sequence[Result]) -> tuple[Result | None, list[Result]]:
    ours = next((row for row in rows if row["contender"] == OURS.name), None)
    return ours, [row for row in rows if not row["contender"].startswith(OURS.name)]


def source(result: Result) -> str:
    """Where and when a result was measured, in short."""
    environment = result["environment"]
    return (
        f"{environment['device']}, torch {environment['versions']['torch']}, commit "
        f"{environment['commit']}, {environment['date'][:10]}"
    )


def _title(result: Result) -> str:
    metrics = [metric for metric, _ in _groups(_cases([result]), "metric")]
    *others, last = metrics
    title = f"{', '.join(others)} and {last}" if others else last
    if set(metrics) <= set(DEFINITIONS):
        title = "Other definitions of SSIM"
    if all(len(case["shape"]) == 5 for case in result["cases"]):
        title += " of volumes"
    kept = any(name.startswith("MALLOC_") for name in result["environment"]["variables"])
    return f"{title}: {result['environment']['device']}{', memory pages kept' if kept else ''}"


def _conditions(result: Result) -> str:
    environment, method = result["environment"], result["method"]
    versions = ", ".join(
        f"{name} {version}" for name, version in environment["versions"].items() if version
    )
    variables = "".join(
        f"; {name}={value}" for name, value in environment["variables"].items() if value
    )
    return "\n".join(
        [
            f"Commit {environment['commit']}, {environment['date']}; {environment['processor']}, "
            f"{environment['threads']} torch threads; Python {environment['python']}; {versions}"
            f"{variables}.",
            "",
            f"* Computed: {method['definition']}.",
            f"* Checked {method['check']}. A value may be off by {method['value_tolerance']:g}, "
            f"and a gradient by {method['gradient_tolerance']:g}. Where a definition differs, a "
            f"remark says by how much, up to {method['deviation_limit']:g} of the value.",
            f"* Time: {method['time']}; {method['rounds']} rounds at most.",
            f"* To ours: the contender's time divided by that of {OURS.name}. Below 1x the "
            "contender is faster.",
            f"* Memory: {method['memory']}; beside the images, in units of the gradient's size.",
            *([f"* Left out: {', '.join(method['without'])}."] if method.get("without") else []),
        ]
    )


def _cost(cost: Result) -> str:
    if cost["error"]:
        return f"{cost['name']} on one thread: {cost['error']}."
    return (
        f"On one thread {cost['name']} takes {_number(cost['ns_per_pixel'])} ns per pixel, each "
        f"channel counted: {_number(cost['ratio'])} times the {_number(cost['bound_ns_per_pixel'])}"
        f" ns of its {cost['multiply_adds_per_pixel']} multiply-adds at the rate of a 1024x1024 "
        f"matrix product, {_number(cost['multiply_adds_per_second'] / 1e9)} billion per second."
    )


def _floor(case: Result, rate: float) -> str:
    """The time that only moving the memory would take, to compare the times with."""
    read, written = (1e3 * 4 * images * case["pixels"] / rate for images in (2, 3))
    return (
        f"At the {_number(rate / 1e12)} TB/s of a copy in the same run, to read both images takes "
        f"{_number(read)} ms, and to write a gradient as well {_number(written)} ms."
    )


def _remarks(forward: Result, both: Result) -> str:
    remarks = []
    measured = both if "value_error" in both else forward
    if measured.get("deviation"):
        errors = f"value by {_number(measured['value_error'])}"
        if measured["gradient_error"] is not None:
            errors += f", gradient by {_number(measured['gradient_error'])}"
        remarks.append(f"differs: {measured['deviation']} ({errors})")
    remarks += [row.get(key) for key in ("error", "memory_error") for row in (forward, both)]
    distinct = dict.fromkeys(remark for remark in remarks if remark)
    return "; ".join(distinct).replace("|", "\\|")


def _number(value: float | None, unit: str = "") -> str:
    """Three digits, without an exponent where people would not write one."""
    if value is None:
        return MISSING
    return f"{value:.0f}{unit}" if value >= 1000 else f"{value:.3g}{unit}"


def _groups(cases: Sequence[Result], key: str) -> list[tuple[str, list[Result]]]:
    """Cases by what they have under the key, in their order."""
    return [(name, list(group)) for name, group in itertools.groupby(cases, lambda c: c[key])]


def is_usual(result: dict[str, Any]) -> bool:
    """Whether the variables that change speed had no value; with one a result has its own page."""
    return not any(result["environment"]["variables"].values())


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.report", description=__doc__)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True, help="folder")
    parser.add_argument("--pages", action="store_true", help="README, docs/benchmarks.md too")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    results = {path: json.loads(path.read_text()) for path in options.results}
    for path, result in results.items():
        plots = {}
        backward = [case for case in _cases([result]) if case["backward"]]
        for metric, cases in _groups(backward, "metric"):
            plots[metric] = f"{path.stem}-{metric.lower()}.png"
            throughput(cases, source(result)).savefig(options.out / plots[metric], dpi=150)
        report = options.out / f"{path.stem}.md"
        report.write_text(markdown(result, plots))
        print(report)
    if options.pages:
        usual = list(filter(is_usual, results.values()))
        page = ROOT / "docs" / "benchmarks.md"
        for device, sizes in README_SIZES.items():
            there = [result for result in usual if result["method"]["device"] == device]
            sources = "; ".join(map(source, there))
            fill(page, f"summary, {device}", f"{summary(there)}\n\n{sources}.")
            fill(ROOT / "README.md", f"summary, {device}", summary(there, sizes))
        fill(page, "devices", devices(usual))
        devices_plot(usual).savefig(options.out / "devices.png", dpi=150)


if __name__ == "__main__":
    main()
