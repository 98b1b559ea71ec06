"""Compares our numbers with those of others, and writes the pages that say so."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from perceptual_losses import ssim

from ..pages import fill
from ..pages.environment import environment
from .comparisons import ALSO, COMPARISONS, PACKAGES, Comparison, Package, names
from .images import IMAGES, ramp
from .published import PUBLISHED, Published

RESULTS = fill.ROOT / "docs" / "validation" / "results.json"
PAGE = fill.ROOT / "docs" / "validation.md"
MIGRATING = fill.ROOT / "docs" / "migrating.md"

Row = dict[str, Any]

KEYS = ("package", "theirs", "ours", "images", "dtype", "compares")
"""The fields that a row of the results has of its comparison; the rest is words."""

IMAGES_TEXT = """The images are scikit-image's camera, astronaut, chelsea and coffee. Each one comes
  with noise (sigma 20 of 255), blurred (sigma 1.5), as a JPEG of quality 20, and with 0.6 of its
  contrast, and all are rounded to 8 bits. *Crops* are their middle 192x192 pixels, and *odd crops*
  179x213. *Small crops* and *batches* are 64x64 pixels of those in colour. *tanh* means that values
  are in [-1, 1]. *gray* is the camera. *Negatives* are 1 - y and y. *Volumes* are 16 moving crops
  of the camera."""

SECTIONS = {
    "our own float64": "These rows show our own rounding. A larger difference in a row of "
    "float32 is the other package's.",
    "scikit-image": "Both average colour images over their channels.",
    "MATLAB": "These are NumPy transcriptions of the authors' `ssim_index.m` and `msssim.m`, and "
    "of `ssim` in the Image Processing Toolbox. `tf.image.ssim` and `ssim_multiscale` have the "
    "definition of the first two, with negative levels replaced by 0.",
    "pytorch-msssim": "Its window is a float32 tensor. The third line passes a float64 one.",
    "piq": "Its 2-D window is built in the precision of the images.",
    "piqa": "Its window is a float32 buffer.",
    "kornia": "`kornia.losses.MS_SSIMLoss` has one resolution, five windows and an L1 term. It is "
    "another loss, and is not compared.",
    "torchmetrics": "It crops the windows of a reflected border from the contrast of MS-SSIM, but "
    "not from its SSIM.",
    "lpips": "Both have the same random backbone and the linear weights of the lpips package.",
    "fused-ssim": "`zero_padded_ssim` is the formula that its tests compare it with, and with "
    "which 3D Gaussian splatting trains: `conv2d` with 5 zeros around the images.",
    "MONAI": "MONAI is not in the lock. It is compared if it is installed.",
}
"""The text before the table of each package."""


def measured(comparison: Comparison, only: Sequence[str] = ()) -> Row:
    """The results of both calls and their difference, for all pairs of images or ``only`` some."""
    row = {key: getattr(comparison, key) for key in KEYS} | {"cases": [], "error": None}
    package = PACKAGES[comparison.package]
    try:
        theirs = _function(comparison.theirs, package)
    except ImportError as error:
        if not package.optional:
            raise
        return {**row, "error": f"not installed: {error.name}"}
    ours = _function(comparison.ours)
    for name, pair in IMAGES[comparison.images]().items():
        if only and name not in only:
            continue
        pair = [_converted(image, getattr(torch, comparison.dtype)) for image in pair]
        row["cases"].append({"images": name, **_compared(comparison, theirs, ours, *pair)})
    return row


def _function(expression: str, package: Package | None = None) -> Any:
    """A function of two images that evaluates the expression.

    A package that knows no tensors gets NumPy arrays without the batch.
    """
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
    shapes = [tuple(value.shape) for value in values]
    if shapes[0] != shapes[1] or not torch.stack(values).isfinite().all():
        raise ValueError(f"{comparison.theirs} and {comparison.ours} give {shapes}, or no numbers")
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
    begin = time.perf_counter()
    packages = [*PACKAGES.values(), *ALSO]
    return {
        "environment": environment("cpu", [package.distribution for package in packages]),
        "published": [published(number) for number in PUBLISHED],
        "ramp": ssim(*ramp(), data_range=255).item(),
        "comparisons": [measured(comparison) for comparison in tqdm(COMPARISONS)],
        "seconds": time.perf_counter() - begin,
    }


def rows(found: Row, package: str) -> list[Row]:
    """The results of a package, with the words that go with them."""
    described = []
    for comparison, row in zip(COMPARISONS, found["comparisons"], strict=True):
        if any(row[key] != getattr(comparison, key) for key in KEYS):
            raise ValueError(f"the results are not of {comparison}: compare anew")
        described.append(comparison._asdict() | row)
    return [row for row in described if row["package"] == package]


def table(rows: Iterable[Row]) -> str:
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
        cells.append(f"{len(row['cases'])} {row['images']}, {row['dtype']}")
        cells += [_worst(row["cases"], key) for key in ("difference", "gradient_difference")]
        lines.append([*cells, row["note"]])
    return _lines(lines)


def _lines(cells: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |".replace("  ", " ") for line in cells)


def _worst(cases: Sequence[Row], key: str) -> str:
    if key not in cases[0]:
        return ""
    found = [case[key] for case in cases]
    return "theirs is 0" if None in found else _number(max(found))


def _number(value: float) -> str:
    """The number as text: one digit where it is rounding, two where it is not."""
    if value and value < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:.0f}" if value >= 100 else f"{value:.2g}"


def _published_table(rows: Iterable[Row]) -> str:
    lines = [
        ["published by", "of", "ours", "published", "difference", "tolerance of the source"],
        ["---", "---", "---", "---:", "---:", "---:"],
    ]
    for row in rows:
        difference = abs(row["result"] - row["value"])
        numbers = [f"{row['value']:.9g}", _number(difference), _number(row["tolerance"])]
        lines.append([row["source"], row["images"], f"`{row['ours']}`", *numbers])
    return _lines(lines)


def page(found: Row) -> str:
    """The validation page, in Markdown."""
    where = found["environment"]
    versions = [f"{name} {version}" for name, version in where["versions"].items() if version]
    sections = []
    for name, text in SECTIONS.items():
        version = where["versions"][PACKAGES[name].distribution]
        imported = PACKAGES[name].modules or PACKAGES[name].flat
        heading = f"{name} {version}" if imported and version else name
        sections += [f"### {heading}", text, table(rows(found, name))]
    paragraphs = "\n\n".join(sections)
    text = f"""# Are these the right numbers?

This page compares our values and gradients with those of other packages, with published numbers,
and with transcriptions of the definition. `python -m benchmarks.validation.validate` writes it from
[its results](validation/results.json), which have the value of every pair of images. The
command takes a few minutes and needs no network.

## How to read it

* Each call was evaluated as it stands. `x` is a changed image and `y` the original. With an integer
  dtype they have values up to 255, otherwise up to 1.
* **value** is the largest absolute difference over all pairs of images, and over all pixels of
  a map. **gradient** is the largest relative difference of the gradients with respect to `x`:
  the norm of the difference over the norm of theirs. It is empty where theirs has none.
* If the definitions are the same, only rounding remains: 1e-12 and less in float64, 1e-6 or so in
  float32. If the difference is larger, the last column says why.
* {IMAGES_TEXT}

## Published numbers

Published values whose input images can be reconstructed from the publication.

{_published_table(found["published"])}

Other published values could not be used, because their images are not at hand:

* The values in MATLAB's documentation of `ssim` and `multissim` are of MATLAB's own photos.
* The values in TensorFlow's tests of `tf.image.ssim` and `tf.image.ssim_multiscale` are MATLAB's
  too, of three files with chessboards. One of their tests needs no file: a ramp against its mirror
  has to be negative, and it is {found["ramp"]:.4f}.
* The values of the author's `ssim_index.m` in old versions of scikit-image's tests are of a photo
  that scikit-image has since replaced.

TensorFlow and MATLAB themselves were not run.

## Other implementations

{paragraphs}

## What this does not show

* Trained features. The networks of VGG and LPIPS have random weights, the same for both sides. The
  linear weights of LPIPS are its own.
* fused-ssim's own kernels, which need a GPU. The formula with which its tests compare them stands
  in for them.
* A GPU. All of this ran on a CPU; `tests/gpu/` compares the paths with each other.
* Half precision, masks, flat or tiny images: `tests/` has those.

{where["device"]}; Python {where["python"]}; {", ".join(versions)}; commit
{where["commit"]}; {found["seconds"]:.0f} seconds.
"""
    return "\n\n".join(fill.wrapped(part) for part in text.split("\n\n")) + "\n"


def filled(text: str, found: Row) -> str:
    """The migration page with its tables anew."""
    for name in fill.parts(text):
        shown = [row for row in rows(found, name) if row["migrating"]]
        if not shown:
            raise ValueError(f"nothing is compared with {name!r}")
        text = fill.filled(text, name, table(shown))
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.validation.validate", description=__doc__
    )
    parser.add_argument(
        "--from-results", action="store_true", help="compare nothing: the pages anew"
    )
    options = parser.parse_args(arguments)
    if not options.from_results:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results(), indent=1) + "\n")
    found = json.loads(RESULTS.read_text())
    PAGE.write_text(page(found))
    MIGRATING.write_text(filled(MIGRATING.read_text(), found))


if __name__ == "__main__":
    main()
