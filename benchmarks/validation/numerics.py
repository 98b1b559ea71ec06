"""Measures what rounding, borders and odd sizes do to the value, here and in other packages."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import piq
import piqa
import pytorch_msssim
import skimage.data
import torch
import torchmetrics.functional.image as torchmetrics
from torch import Tensor
from torchvision.models import vgg

from perceptual_losses import MS_SSIM_WEIGHTS, MSSSIMLoss, SSIMLoss, VGGLoss, ms_ssim, ssim

from ..pages.environment import environment, provenance
from ..pages.fill import ROOT, fill, table
from ..speed.contenders import CONTENDERS

RESULTS = ROOT / "docs" / "numerics" / "results.json"
PAGE = ROOT / "docs" / "numerics.md"

OURS = "perceptual-losses"

SSIM: dict[str, Callable[..., Tensor]] = {
    OURS: lambda x, y, length=1.0: ssim(x, y, data_range=length),
    "pytorch-msssim": lambda x, y, length=1.0: pytorch_msssim.ssim(x, y, data_range=length),
    "piq": lambda x, y, length=1.0: piq.ssim(x, y, data_range=length, downsample=False),
    "piqa": lambda x, y, length=1.0: piqa.ssim.SSIM(value_range=length).to(x)(x, y),
}
MS_SSIM: dict[str, Callable[..., Tensor]] = {
    OURS: ms_ssim,
    "pytorch-msssim": lambda x, y: pytorch_msssim.ms_ssim(x, y, data_range=1),
    "piq": piq.multi_scale_ssim,
    "piqa": lambda x, y: piqa.ssim.MS_SSIM().to(x)(x, y),
    "torchmetrics": lambda x, y: torchmetrics.multiscale_structural_similarity_index_measure(
        x, y, data_range=1.0, betas=MS_SSIM_WEIGHTS
    ),
}


def pair(height: int = 512, width: int = 512) -> tuple[Tensor, Tensor]:
    """A photo, float64 in [0, 1], and the same with noise first."""
    photo = torch.from_numpy(skimage.data.astronaut()).movedim(-1, 0)[None] / 255.0
    y = photo.double()[..., :height, :width]
    noise = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(0))
    return (y + 0.1 * noise).clamp(0, 1), y


def cancellation() -> list[dict[str, Any]]:
    """Little contrast, far above zero: float32 against the reference in float64."""
    rows = []
    for contrast in (20.0, 2.0, 0.2):
        # Values that float32 holds exactly, so that only the computation rounds.
        x, y = (200 + contrast * (image - 0.5).float() for image in pair(192, 192))
        exact = _value_and_gradient(_reference(255.0), x.double(), y.double())
        for name, function in SSIM.items():
            found = _value_and_gradient(lambda x, y, f=function: f(x, y, 255.0), x, y)
            rows.append({"contrast": contrast, "package": name, **_errors(found, exact)})
    return rows


def dtypes() -> list[dict[str, Any]]:
    """Half precision, as a dtype of the images and under autocast."""
    rows = []
    for contrast in (1.0, 0.1):
        images = [0.5 + contrast * (image - 0.5) for image in pair(192, 192)]
        for setting in ("float16", "bfloat16", "bfloat16 autocast"):
            autocast = setting.endswith("autocast")
            dtype = torch.float32 if autocast else getattr(torch, setting)
            x, y = (image.to(dtype) for image in images)
            exact = _reference()(x.double(), y.double()).item()
            for name, function in SSIM.items():
                row = {"contrast": contrast, "setting": setting, "package": name}
                with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    row["value_error"] = abs(function(x, y).item() - exact)
                rows.append(row)
    return rows


def borders() -> list[dict[str, Any]]:
    """The same images with each padding."""
    x, y = pair()
    return [
        {"padding": padding, "size": size, "value": ssim(x[at], y[at], padding=padding).item()}
        for size, at in (("512x512", ...), ("64x64", (..., slice(100, 164), slice(200, 264))))
        for padding in ("valid", "symmetric", "zeros")
    ]


def odd_sizes() -> list[dict[str, Any]]:
    """MS-SSIM where halving meets no odd side, and where it does."""
    rows = []
    for size in ((512, 512), (256, 256), (255, 255), (181, 333)):
        x, y = pair(*size)
        for name, function in MS_SSIM.items():
            value = function(x, y).item()
            rows.append({"size": "{}x{}".format(*size), "package": name, "value": value})
    return rows


def paths() -> list[dict[str, Any]]:
    """float32 of each path against the reference in float64."""
    rows = []
    x, y = (image.float() for image in pair())
    for name, loss in (("SSIM", SSIMLoss), ("MS-SSIM", MSSSIMLoss)):
        exact = _value_and_gradient(loss(backend="reference"), x.double(), y.double())
        for backend in ("reference", "numba"):
            found = _value_and_gradient(loss(backend=backend), x, y)
            rows.append({"loss": name, "path": backend, **_errors(found, exact)})
    weights = _random_weights()
    x, y = x[..., :224, :224], y[..., :224, :224]
    features = VGGLoss({"relu4_3": 1.0}, backbone="vgg16", weights=weights)
    exact = _value_and_gradient(features.double(), x.double(), y.double())
    found = _value_and_gradient(features.float(), x, y)
    rows.append({"loss": "VGG, relu4_3", "path": "Winograd's convolution", **_errors(found, exact)})
    # A compiled network keeps torch's convolutions.
    found = _value_and_gradient(torch.compile(features, backend="eager"), x, y)
    rows.append({"loss": "VGG, relu4_3", "path": "torch's convolution", **_errors(found, exact)})
    return rows


def _random_weights() -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return vgg.make_layers(vgg.cfgs["D"]).state_dict()


def _reference(length: float = 1.0) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, y: ssim(x, y, data_range=length, backend="reference")


def _value_and_gradient(function: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    value = function(x, y)
    (gradient,) = torch.autograd.grad(value, x)
    return value.detach().double(), gradient.double()


def _errors(found: tuple[Tensor, Tensor], exact: tuple[Tensor, Tensor]) -> dict[str, float]:
    (value, gradient), (exact_value, exact_gradient) = found, exact
    return {
        "value_error": (value - exact_value).abs().item(),
        "gradient_error": ((gradient - exact_gradient).norm() / exact_gradient.norm()).item(),
    }


MEASURED = {f.__name__: f for f in (cancellation, dtypes, borders, odd_sizes, paths)}


def pages(result: dict[str, Any], page: Path = PAGE) -> None:
    """Writes the tables into the page.

    Args:
        result: content of a result file.
        page: with a part for each table.
    """
    for name in MEASURED:
        fill(page, name.replace("_", " "), _TABLES[name](result[name]))
    fill(page, "provenance", provenance(result["environment"]))


def _cancellation_table(rows: list[dict[str, Any]]) -> str:
    return _spread(
        rows,
        "package",
        lambda row: f"200 ± {row['contrast'] / 2:g}",
        lambda row: f"{row['value_error']:.0e}, {row['gradient_error']:.0e}",
    )


def _dtypes_table(rows: list[dict[str, Any]]) -> str:
    def column(row: dict[str, Any]) -> str:
        return f"{row['setting']}, contrast {row['contrast']:g}"

    return _spread(rows, "package", column, lambda row: f"{row['value_error']:.0e}")


def _borders_table(rows: list[dict[str, Any]]) -> str:
    return _spread(rows, "padding", lambda row: row["size"], lambda row: f"{row['value']:.5f}")


def _odd_sizes_table(rows: list[dict[str, Any]]) -> str:
    return _spread(rows, "package", lambda row: row["size"], lambda row: f"{row['value']:.6f}")


def _paths_table(rows: list[dict[str, Any]]) -> str:
    cells = [
        [f"{row['loss']}: {row['path']}", *(f"{row[f'{of}_error']:.0e}" for of in _OF)]
        for row in rows
    ]
    return table(["loss and path", "value", "gradient"], cells)


_OF = ("value", "gradient")

_TABLES = {
    "cancellation": _cancellation_table,
    "dtypes": _dtypes_table,
    "borders": _borders_table,
    "odd_sizes": _odd_sizes_table,
    "paths": _paths_table,
}


def _spread(
    rows: list[dict[str, Any]],
    key: str,
    column: Callable[[dict[str, Any]], str],
    cell: Callable[[dict[str, Any]], str],
) -> str:
    """A line for each of what rows have under the key."""
    lines: dict[str, dict[str, str]] = {}
    for row in rows:
        lines.setdefault(row[key], {})[column(row)] = cell(row)
    columns = list(next(iter(lines.values())))
    return table(["", *columns], [[name, *line.values()] for name, line in lines.items()])


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.validation.numerics", description=__doc__
    )
    parser.add_argument(
        "--from-results", action="store_true", help="measure nothing, only write the page"
    )
    if not parser.parse_args(arguments).from_results:
        result = {"environment": environment("cpu", [entry.distribution for entry in CONTENDERS])}
        result |= {name: measure() for name, measure in MEASURED.items()}
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    pages(json.loads(RESULTS.read_text()))


if __name__ == "__main__":
    main()
