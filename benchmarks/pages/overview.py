"""Draws the picture of the README: five images that squared error cannot tell apart."""

from __future__ import annotations

import io

import numpy as np
import skimage.data
import skimage.transform
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from skimage.filters import gaussian

from perceptual_losses import ms_ssim, ssim, ssim_map

from .fill import ROOT

PICTURE = ROOT / "docs" / "assets" / "overview.png"

ERROR = 0.004
"""The mean squared error of all of them."""

Photo = NDArray[np.float64]


def scaled(photo: Photo, changed: Photo) -> Photo:
    """The change made as strong as the error asks, without leaving the range."""
    low, high = 0.0, 20.0
    for _ in range(50):
        strength = (low + high) / 2
        result = np.clip(photo + strength * (changed - photo), 0, 1)
        low, high = (low, strength) if np.mean((result - photo) ** 2) > ERROR else (strength, high)
    return result


def distortions(photo: Photo) -> dict[str, Photo]:
    """The photo in five states, all but the first at the same squared error."""
    noise = np.random.default_rng(0).normal(size=photo.shape)
    file = io.BytesIO()
    Image.fromarray((255 * photo).astype(np.uint8)).save(file, "jpeg", quality=4)
    jpeg = np.asarray(Image.open(file)) / 255
    return {
        "target": photo,
        "brighter": scaled(photo, photo + 0.1),
        "noise": scaled(photo, photo + 0.1 * noise),
        "JPEG": scaled(photo, jpeg),
        "blur": scaled(photo, gaussian(photo, 3, channel_axis=-1)),
    }


def picture() -> Figure:
    """The states above, their SSIM maps below."""
    photo = skimage.transform.resize(skimage.data.astronaut(), (256, 256), anti_aliasing=True)
    states = distortions(photo)
    figure = Figure(figsize=(11, 4.9), layout="constrained", facecolor="white")
    panels = figure.subplots(2, len(states))
    y = torch.from_numpy(photo).movedim(-1, 0)[None]
    for (above, below), (name, state) in zip(panels.T, states.items(), strict=True):
        x = torch.from_numpy(state).movedim(-1, 0)[None]
        similarity = ssim_map(x, y, padding="symmetric").mean(1)[0]
        above.imshow(state)
        above.set_title(name, fontsize=12)
        shown = below.imshow(similarity, vmin=0, vmax=1, cmap="magma")
        below.set_title(
            f"MSE {np.mean((state - photo) ** 2):.3f}   SSIM {ssim(x, y):.3f}\n"
            f"MS-SSIM {ms_ssim(x, y):.3f}",
            fontsize=10,
        )
        for panel in (above, below):
            panel.set_axis_off()
    figure.colorbar(shown, ax=panels[1], label="SSIM map", fraction=0.02)
    return figure


if __name__ == "__main__":
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    picture().savefig(file, dpi=110)
    # A third of the size; a few of the odd colours of JPEG fade.
    Image.open(file).convert("RGB").quantize(256).save(PICTURE, optimize=True)
