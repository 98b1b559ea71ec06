"""The SSIM map of a pair, and figures of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .._images.picture import Picture
from .._runtime.output import replacing
from ..similarity import ssim_map
from .files import Row
from .metrics import METRICS, WINDOW

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

BAND = 2**20
"""The most values in a band of the map: plain torch may compute it, with many maps in memory."""


def similarity_map(
    a: NDArray[Any],
    b: NDArray[Any],
    tensor: Callable[[NDArray[Any]], Tensor],
    *,
    data_range: float,
) -> Tensor:
    """The SSIM of each window as a mean over channels, computed in bands of rows.

    Args:
        a: values ``(H, W, C)``.
        b: other values of this shape.
        tensor: a function that makes a batch of one image of values.
        data_range: the highest possible value.
    """
    height, width, channels = a.shape
    rows = max(1, BAND // (width * channels))
    bands = []
    for top in range(0, height - WINDOW + 1, rows):
        band = slice(top, top + rows + WINDOW - 1)
        similarity = ssim_map(tensor(a[band]), tensor(b[band]), data_range=data_range)
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
    # Matplotlib would take a dollar in a file's name for a formula.
    figure.suptitle(row["file"], parse_math=False)
    return figure


def _drawable(picture: Picture) -> NDArray[Any]:
    """The values in a form that Matplotlib shows: grey without channels, or bytes, or floats."""
    values = picture.values
    if values.shape[2] == 1:
        return values[..., 0]
    if values.dtype == np.uint8 and picture.data_range == 255:
        return values
    return values.astype(np.float32) / picture.data_range


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure, and makes its folder first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(), replacing(path) as partial:
        # Matplotlib warns of letters that its font lacks, and draws boxes.
        warnings.filterwarnings("ignore", "Glyph")
        figure.savefig(partial, dpi=100)
