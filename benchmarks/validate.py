"""Compares our numbers with those of others, and writes the pages that say so."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import run
from .comparisons import (
    COMPARISONS,
    IMAGES,
    PACKAGES,
    PUBLISHED,
    Comparison,
    Package,
    Published,
    names,
)

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "validation" / "results.json"
PAGE = ROOT / "docs" / "validation.md"
MIGRATING = ROOT / "docs" / "migrating.md"

Row = dict[str, Any]


def measured(comparison: Comparison) -> Row:
    """What both calls give for each pair of images, and how far apart that is."""
    row = {**comparison._asdict(), "cases": [], "error": None}
    package = PACKAGES[comparison.package]
    try:
        theirs = _function(comparison.theirs, package)
    except ImportError as error:
        if not package.optional:
            raise
        return {**row, "error": f"not installed: {error.name}"}
    ours = _function(comparison.ours)
    for name, pair in IMAGES[comparison.images]().items():
        pair = [_converted(image, getattr(torch, comparison.dtype)) for image in pair]
        row["cases"].append({"images": name, **_compared(comparison, theirs, ours, *pair)})
    return row


def _function(expression: str, package: Package | None = None) -> Any:
    """Of two images: NumPy's of one without its batch, where the package knows no tensors."""
    found, code = names(expression, package), compile(expression, expression, "eval")
    in_numpy = package is not None and not package.of_tensors

    def function(x: Tensor, y: Tensor) -> Tensor:
        if not in_numpy:
            return eval(code, {**found, "x": x, "y": y})
        return torch.as_tensor(eval(code, {**found, "x": x[0].numpy(), "y": y[0].numpy()}))[None]

    return function


def _converted(image: Tensor, dtype: torch.dtype) -> Tensor:
    return image.to(dtype) if dtype.is_floating_point else (image * 255).round().to(dtype)


def _compared(comparison: Comparison, theirs: Any, ours: Any, x: Tensor, y: Tensor) -> Row:
    both = comparison.compares == "both"
    values, gradients = [], []
    for function in (theirs, ours):
        image = x.clone().requires_grad_(both)
        value = function(image, y)
        values.append(value.detach().double().squeeze())
        if both:
            gradients += torch.autograd.grad(value.sum(), image)
    if comparison.compares == "gradients":
        return {"gradient_difference": _relative(*values)}
    found = {
        "theirs": values[0].mean().item(),
        "ours": values[1].mean().item(),
        "difference": (values[0] - values[1]).abs().max().item(),
    }
    return found | ({"gradient_difference": _relative(*gradients)} if both else {})


def _relative(theirs: Tensor, ours: Tensor) -> float | None:
    """The norm of the difference over that of theirs, unless theirs is zero and ours is not."""
    difference, norm = ((ours - theirs).double().norm().item(), theirs.double().norm().item())
    if not norm:
        return None if difference else 0.0
    return difference / norm


def published(number: Published) -> Row:
    """Ours beside a published number."""
    x, y = number.pair()
    options = names(number.ours)
    with torch.no_grad():
        value = eval(number.ours, {**options, "x": x, "y": y})
    row = number._asdict()
    del row["pair"]
    return row | {"result": value}


def results() -> Row:
    """All of it, and with what."""
    environment = run.environment("cpu", list(PACKAGES.values()))
    return {
        "environment": environment,
        "published": [published(number) for number in PUBLISHED],
        "comparisons": [measured(comparison) for comparison in COMPARISONS],
    }


def table(rows: Iterable[Row], *, ours: bool = True) -> str:
    """A line for each comparison."""
    lines = [
        ["theirs", "ours", "images", "value", "gradient", "why they differ"],
        ["---", "---", "---", "---:", "---:", "---"],
    ]
    for row in rows:
        cells = [f"`{row['theirs']}`", f"`{row['ours']}`"]
        if row["error"]:
            lines.append([*cells, "", "", "", row["error"]])
            continue
        count = len(row["cases"])
        cells.append(f"{count} {row['images']}, {row['dtype']}")
        cells += [_worst(row["cases"], key) for key in ("difference", "gradient_difference")]
        lines.append([*cells, row["note"]])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _worst(cases: Sequence[Row], key: str) -> str:
    if key not in cases[0]:
        return ""
    found = [case[key] for case in cases]
    return "theirs is 0" if None in found else _number(max(found))


def _number(value: float) -> str:
    return (
        "0"
        if value == 0
        else f"{value:.0e}".replace("e-0", "e-")
        if value < 1e-3
        else f"{value:.2g}"
    )
