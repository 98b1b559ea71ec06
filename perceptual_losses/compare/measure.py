"""The metrics of a pair of images, and all pairs' metrics as a table, figures, CSV or JSON."""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .. import __version__, _validation
from ..similarity import MS_SSIM_WEIGHTS, ms_ssim, ssim, ssim_map
from .files import NotComparedError, Pair, Picture, Row, printable, problem_row, read_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

WINDOW = 11
"""The default window of `ssim` in pixels."""

BOUND = 1e-6
"""The largest accepted difference between SSIM and scikit-image's."""

BAND = 2**20
"""Values in a band of the map: plain torch computes it, with many maps of that size."""

METRICS = {"ssim": "SSIM", "ms_ssim": "MS-SSIM", "vgg": "VGG", "lpips": "LPIPS"}
"""The titles of the metrics by their keys in rows."""

Loss = Callable[[Tensor, Tensor], Tensor]


class Comparison:
    """The measurements that are made of each pair.

    Args:
        dtype: the name of the dtype that SSIM and MS-SSIM are computed in.
        device: the device that computes.
        losses: feature losses for images in [0, 1], by their keys in `METRICS`.
        check: whether SSIM is compared with scikit-image's.
        megapixels: the most that an image may have.
        draw: a function that writes a picture of a pair.
    """

    def __init__(
        self,
        *,
        dtype: str = "float64",
        device: str = "cpu",
        losses: Mapping[str, Loss] | None = None,
        check: bool = False,
        megapixels: float = 200,
        draw: Callable[[Pair, Figure], None] | None = None,
    ) -> None:
        self.dtype, self.device, self.losses = dtype, device, dict(losses or {})
        self.check, self.megapixels, self.draw = check, megapixels, draw

    def row(self, pair: Pair) -> Row:
        """The numbers of a pair, or the reason why it has none."""
        try:
            return self._measure(pair)
        except NotComparedError as error:
            return problem_row(pair.name, printable(str(error)))
        except (MemoryError, OSError, RuntimeError, ValueError) as error:
            return problem_row(pair.name, printable(f"{type(error).__name__}: {error}"))

    @torch.inference_mode()
    def _measure(self, pair: Pair) -> Row:
        pictures = [read_picture(path, megapixels=self.megapixels) for path in (pair.a, pair.b)]
        a, b = pictures
        if str(a) != str(b):
            raise NotComparedError(f"{pair.a} has {a} and {pair.b} {b}")
        height, width, channels = a.values.shape
        if min(height, width) < WINDOW:
            raise NotComparedError(f"has {a}, less than the window of {WINDOW}x{WINDOW}")
        x, y = (self._tensor(picture) for picture in pictures)
        options: dict[str, Any] = {"data_range": a.data_range}
        count = fitting_levels(x)
        row: Row = {
            "file": pair.name,
            "width": width,
            "height": height,
            "channels": channels,
            **options,
            "ssim": ssim(x, y, **options).item(),
            "ms_ssim": ms_ssim(x, y, levels=count, **options).item(),
            "levels": count,
        }
        for name, loss in self.losses.items():
            unit = ((image / a.data_range).float() for image in (x, y))
            row[name] = loss(*unit).item()
        if self.check:
            row["scikit_image"] = scikit_image_ssim(a, b)
            row["difference"] = abs(row["ssim"] - row["scikit_image"])
        row["notice"] = printable("; ".join(a.notices + b.notices))
        if self.draw:
            self.draw(pair, draw_figure(a, b, similarity_map(x, y, **options), row))
        return row

    def _tensor(self, picture: Picture) -> Tensor:
        """The picture as a batch of one, ``(1, C, H, W)``."""
        values = np.moveaxis(picture.values, -1, 0)[None]
        return torch.from_numpy(np.ascontiguousarray(values, self.dtype)).to(self.device)


def fitting_levels(x: Tensor) -> int:
    """The number of MS-SSIM's levels that ``levels="auto"`` takes."""
    exponents, _ = _validation.fit_levels(MS_SSIM_WEIGHTS, "auto", x, (WINDOW, WINDOW))
    return len(exponents)


def scikit_image_ssim(a: Picture, b: Picture) -> float:
    """SSIM as scikit-image computes it."""
    from skimage.metrics import structural_similarity

    similarity = structural_similarity(
        *(a.values, b.values),
        data_range=a.data_range,
        channel_axis=-1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    return float(similarity)


def similarity_map(x: Tensor, y: Tensor, *, data_range: float) -> Tensor:
    """The SSIM of each window as a mean over channels, computed in bands of rows."""
    rows = max(1, BAND // x[0, :, 0].numel())
    bands = []
    for top in range(0, x.shape[2] - WINDOW + 1, rows):
        band = slice(top, top + rows + WINDOW - 1)
        similarity = ssim_map(x[:, :, band], y[:, :, band], data_range=data_range)
        bands.append(similarity.mean(1)[0].cpu())
    return torch.cat(bands)


def draw_figure(a: Picture, b: Picture, similarity: Tensor, row: Row) -> Figure:
    """The two images, and beside them the SSIM map: a pixel at the centre of each window."""
    from matplotlib.figure import Figure

    height, width, _ = a.values.shape
    figure = Figure(figsize=(15, 1.2 + 4.6 * min(2.5, height / width)), layout="constrained")
    axes = figure.subplots(1, 3, sharex=True, sharey=True)
    for panel, name, picture in zip(axes, "AB", (a, b), strict=False):
        panel.imshow(_drawable(picture), cmap="gray", vmin=0, vmax=a.data_range)
        panel.set_title(name)
    radius = WINDOW // 2
    extent = (radius - 0.5, width - radius - 0.5, height - radius - 0.5, radius - 0.5)
    shown = axes[2].imshow(similarity.numpy(), vmin=0, vmax=1, extent=extent)
    axes[2].set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    axes[2].set_title(
        "\n".join(f"{METRICS[key]} {row[key]:.6f}" for key in METRICS if key in row), fontsize=10
    )
    extend = "min" if similarity.min() < 0 else "neither"
    label = "SSIM" if row["channels"] == 1 else "SSIM, mean over channels"
    figure.colorbar(shown, ax=axes[2], label=label, extend=extend)
    # A dollar in a file's name begins no formula.
    figure.suptitle(row["file"], parse_math=False)
    return figure


def _drawable(picture: Picture) -> NDArray[Any]:
    """The values in a form that Matplotlib shows: grey without channels, or bytes, or floats."""
    values = picture.values
    if values.shape[2] == 1:
        return values[..., 0]
    return values if values.dtype == np.uint8 else values.astype(np.float32) / picture.data_range


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure, and makes its folder first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        # The font lacks many scripts, and draws boxes.
        warnings.filterwarnings("ignore", "Glyph")
        figure.savefig(path, dpi=100)


def compared_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows of pairs that have been compared."""
    return [row for row in rows if "problem" not in row]


def mean_metrics(rows: Sequence[Row]) -> dict[str, float]:
    """The mean of each metric over all pairs that have been compared."""
    compared = compared_rows(rows)
    return {
        key: sum(row[key] for row in compared) / len(compared)
        for key in METRICS
        if compared and key in compared[0]
    }


def largest_difference(rows: Sequence[Row]) -> float:
    """The largest difference between SSIM and scikit-image's."""
    return max((row["difference"] for row in compared_rows(rows)), default=0.0)


def format_table(rows: Sequence[Row], labels: Mapping[str, str]) -> str:
    """The numbers as text.

    Args:
        rows: the results of all pairs.
        labels: the columns' titles, by the rows' keys.
    """
    compared = compared_rows(rows)
    lines = [["file", "size", *labels.values()]]
    for row in compared:
        size = f"{row['width']}x{row['height']}"
        lines.append([row["file"], size, *(_text(key, row[key]) for key in labels)])
    if len(compared) > 1:
        mean = mean_metrics(rows)
        last = (_text(key, mean[key]) if key in mean else "" for key in labels)
        lines.append([f"mean of {len(compared)}", "", *last])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    )


def _text(key: str, value: Any) -> str:
    """A value with the digits that its column shows."""
    if key == "difference":
        return f"{value:.1e}"
    return f"{value:.6f}" if isinstance(value, float) else str(value)


def write_csv(path: Path, rows: Sequence[Row], keys: Sequence[str]) -> None:
    """Writes a line for each file, whether it was compared or not."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, keys, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_json(path: Path, rows: Sequence[Row], settings: Mapping[str, Any]) -> None:
    """Writes all results and the settings that they depend on."""
    record: dict[str, Any] = {
        "version": __version__,
        **settings,
        "files": list(rows),
        "mean": mean_metrics(rows) or None,
    }
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
