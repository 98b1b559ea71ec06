"""The calls of other packages that are compared with ours. ``comparisons.csv`` has them as text,
which the pages show and which is evaluated, so that no page shows another call.
"""

from __future__ import annotations

import csv
import importlib
from pathlib import Path
from typing import Any, NamedTuple

import torch

import perceptual_losses.compat.fused_ssim
import perceptual_losses.compat.pytorch_msssim

from .transcriptions import HELPERS, LAZY


class Package(NamedTuple):
    """Something to compare with.

    Attributes:
        name: in headings.
        distribution: what pip calls it.
        modules: what its calls import.
        flat: the module whose names its calls have without the module's.
        of_tensors: whether it takes tensors; else NumPy's arrays of one image.
        optional: whether it may be missing, as the lock does not have it.
    """

    name: str
    distribution: str
    modules: tuple[str, ...] = ()
    flat: str = ""
    of_tensors: bool = True
    optional: bool = False


PACKAGES = {
    package.name: package
    for package in (
        Package("our own float64", "perceptual-losses"),
        Package("scikit-image", "scikit-image", flat="skimage.metrics", of_tensors=False),
        Package("MATLAB", "scipy", of_tensors=False),
        Package("pytorch-msssim", "pytorch-msssim", ("pytorch_msssim",)),
        Package("piq", "piq", ("piq",)),
        Package("piqa", "piqa", ("piqa",)),
        Package("kornia", "kornia", ("kornia.metrics", "kornia.losses")),
        Package("torchmetrics", "torchmetrics", flat="torchmetrics.functional.image"),
        Package("lpips", "lpips", ("lpips",)),
        Package("fused-ssim", "torch"),
        Package(
            "MONAI", "monai", ("monai.losses",), flat="monai.metrics.regression", optional=True
        ),
    )
}


ALSO = (Package("the networks", "torchvision"), Package("JPEG", "pillow"))
"""Other packages that the numbers depend on."""


class Comparison(NamedTuple):
    """Two calls that are to give the same, or whose difference is to be known.

    Attributes:
        package: a name of `PACKAGES`.
        theirs: an expression of ``x`` and ``y``.
        ours: the same with this package.
        images: a name of `IMAGES`.
        dtype: the images' dtype; integers have values to 255, all others to 1.
        compares: ``"values"``, ``"both"`` for the gradient to ``x`` as well, or ``"gradients"``
            where the expressions are gradients.
        note: why they differ, if they do.
        migrating: whether the migration page shows it.
    """

    package: str
    theirs: str
    ours: str
    images: str
    dtype: str
    compares: str
    note: str
    migrating: bool


def _read(path: Path) -> tuple[Comparison, ...]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file, strict=True))
    return tuple(Comparison(**{**row, "migrating": row["migrating"] == "yes"}) for row in rows)


COMPARISONS = _read(Path(__file__).with_name("comparisons.csv"))


def names(expression: str, package: Package | None = None) -> dict[str, Any]:
    """The names that an expression may use; an ImportError where the package is missing."""
    found: dict[str, Any] = {
        name: getattr(perceptual_losses, name) for name in perceptual_losses.__all__
    }
    found |= {"torch": torch, "compat": perceptual_losses.compat}
    found |= {helper.__name__: helper for helper in HELPERS}
    for module in package.modules if package else ():
        importlib.import_module(module)
        root = module.partition(".")[0]
        found[root] = importlib.import_module(root)
    if package and package.flat:
        found |= vars(importlib.import_module(package.flat))
    return found | {name: make() for name, make in LAZY.items() if name in expression}
