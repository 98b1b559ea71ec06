"""Writes the gallery: a photo in eight states of equal squared error, and how losses see them.

``python -m benchmarks.pages.gallery`` draws the pictures in ``docs/gallery`` and fills
``docs/gallery.md``.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import torch
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image
from skimage.filters import gaussian
from torch import Tensor
from torch.nn.functional import l1_loss, mse_loss

from perceptual_losses import L1MSSSIMLoss, L1SSIMLoss, MSSSIMLoss, SSIMLoss, ssim_map

from .fill import ROOT, fill, table

PAGE = ROOT / "docs" / "gallery.md"
PICTURES = ROOT / "docs" / "gallery"

TITLES = {
    "brighter": "Brighter",
    "contrast": "Less contrast",
    "grey": "Less colour",
    "noise": "Noise",
    "blur": "Blur",
    "jpeg": "JPEG",
    "hole": "A hole",
    "shift": "A shift",
}
"""The title of each distortion by the name of its picture."""

STRUCTURAL = {
    "SSIM": SSIMLoss(),
    "MS-SSIM": MSSSIMLoss(),
    "L1 + SSIM": L1SSIMLoss(),
    "L1 + MS-SSIM": L1MSSSIMLoss(),
}

Loss = Callable[[Tensor, Tensor], Tensor]

LOSSES: dict[str, Loss] = {"MSE": mse_loss, "L1": l1_loss, **STRUCTURAL}

WINDOWS: dict[str, dict[str, Any]] = {
    "5 pixels": {"window_size": 5, "sigma": 0.75},
    "11 pixels": {},
    "21 pixels": {"window_size": 21, "sigma": 3.0},
    "uniform, 7 pixels": {"window": "uniform", "window_size": 7},
}
"""Options of `SSIMLoss` and `ssim_map` by their title."""

LEVELS = range(1, 6)

HOLE = 58
"""The side of the hole, the smallest with at least the error of the shift."""

GRADIENTS_OF = ("brighter", "blur")
"""The distortions whose gradients are drawn, side by side."""

Photo = NDArray[np.float64]


def photos() -> tuple[Photo, Photo]:
    """The photo, and the same photo with the camera moved by one pixel."""
    whole = skimage.data.astronaut() / 255
    return whole[:256, 96:352], whole[:256, 97:353]


def inside_hole() -> NDArray[np.bool_]:
    """The pixels of the hole, ``(H, W, 1)``."""
    hole = np.zeros((256, 256, 1), bool)
    hole[120 : 120 + HOLE, 140 : 140 + HOLE] = True
    return hole


@functools.cache
def distortions() -> dict[str, Photo]:
    """The photo in eight states with the squared error of a shift by one pixel."""
    photo, shifted = photos()
    error = float(np.mean((shifted - photo) ** 2))
    noise = np.random.default_rng(0).normal(size=photo.shape)
    grey = (photo @ [0.299, 0.587, 0.114])[..., None]
    coarse = compressed(photo, quality=4)
    filled = np.where(inside_hole(), 0.5, photo)
    changes: dict[str, Callable[[float], Photo]] = {
        "brighter": lambda strength: photo + strength,
        "contrast": lambda strength: photo + strength * (photo.mean() - photo),
        "grey": lambda strength: photo + strength * (grey - photo),
        "noise": lambda strength: photo + strength * noise,
        "blur": lambda strength: gaussian(photo, 5 * strength, channel_axis=-1),
        "jpeg": lambda strength: photo + strength * (coarse - photo),
        "hole": lambda strength: photo + strength * (filled - photo),
    }
    states = {name: of_error(error, photo, change) for name, change in changes.items()}
    return {**states, "shift": shifted}


def compressed(photo: Photo, *, quality: int) -> Photo:
    """The photo after JPEG."""
    file = io.BytesIO()
    Image.fromarray((255 * photo).round().astype(np.uint8)).save(file, "jpeg", quality=quality)
    return np.asarray(Image.open(file)) / 255


def of_error(error: float, photo: Photo, change: Callable[[float], Photo]) -> Photo:
    """The change whose strength, from 0 to 1, gives the mean squared error, inside [0, 1]."""
    low, high = 0.0, 1.0
    for _ in range(30):
        strength = (low + high) / 2
        state = np.clip(change(strength), 0, 1)
        low, high = (low, strength) if np.mean((state - photo) ** 2) > error else (strength, high)
    return state


def tensor(photo: Photo) -> Tensor:
    """A batch of one image, in the dtype of most trainings."""
    return torch.from_numpy(photo).movedim(-1, 0)[None].float().contiguous()


def values(losses: Sequence[Loss]) -> dict[str, list[float]]:
    """The losses of each distortion."""
    y = tensor(photos()[0])
    return {
        name: [loss(tensor(state), y).item() for loss in losses]
        for name, state in distortions().items()
    }


def losses_table(losses: Mapping[str, Loss], corner: str = "") -> str:
    """A table of losses by their titles, the largest of each column in bold."""
    found = values(list(losses.values()))
    columns = [[f"{loss:.4f}" for loss in column] for column in zip(*found.values(), strict=True)]
    for column in columns:
        # Squared errors are all equal, and none of them is the largest.
        if len(set(column)) > 1:
            index = column.index(max(column))
            column[index] = f"**{column[index]}**"
    rows = [list(TITLES.values()), *columns]
    return table([corner, *losses], list(zip(*rows, strict=True)))


def error_map(state: Photo, **options: Any) -> Photo:
    """``1 - SSIM`` of the window around each pixel: black for 0, pale yellow from 1 on."""
    x, y = tensor(state), tensor(photos()[0])
    errors = 1 - ssim_map(x, y, padding="symmetric", **options).mean(1)[0]
    return coloured(errors, "magma")


def wished(gradient: Tensor) -> Photo:
    """The step that a gradient asks for, as a mean over channels: red brighter, blue darker."""
    step = -gradient.mean(1)[0]
    step = step / step.abs().quantile(0.99)
    return coloured((1 + step) / 2, "RdBu_r")


def coloured(image: Tensor, name: str) -> Photo:
    """An image of numbers from 0 to 1 in the colours of a colour map."""
    colours: Photo = colormaps[name](image.clamp(0, 1).numpy())
    return colours[..., :3]


def pictures() -> dict[str, Photo]:
    """All pictures by the name of their file."""
    photo, _ = photos()
    states = distortions()
    y = tensor(photo)
    drawn = {"photo": photo}
    for name, state in states.items():
        drawn[name] = beside(state, error_map(state))
    small, usual, large, uniform = (error_map(states["jpeg"], **o) for o in WINDOWS.values())
    drawn["windows-uniform"] = beside(usual, uniform)
    drawn["windows-sizes"] = beside(small, large)
    shown = [tensor(states[name]) for name in GRADIENTS_OF]
    drawn["gradient-states"] = beside(*(states[name] for name in GRADIENTS_OF))
    drawn["gradient-mse"] = beside(*(wished(x - y) for x in shown))
    for title, loss in STRUCTURAL.items():
        file = "gradient-" + title.lower().replace(" + ", "-")
        drawn[file] = beside(*(wished(loss.value_and_grad(x, y)[1]) for x in shown))
    return drawn


def beside(left: Photo, right: Photo) -> Photo:
    """Two pictures with a white line between them."""
    return np.hstack([left, np.ones((len(left), 8, 3)), right])


def write(picture: Photo, path: Path) -> None:
    """Writes a PNG with 256 colours, which takes a third of the size."""
    image = Image.fromarray((255 * picture).round().astype(np.uint8))
    image.quantize(256).save(path, optimize=True)


def figures() -> str:
    """The distortions with their maps, and captions as text, so that a phone shows them large."""
    parts = ['<div class="grid" markdown>']
    for name, losses in values([STRUCTURAL["SSIM"], STRUCTURAL["MS-SSIM"]]).items():
        numbers = "SSIM loss {:.3f}, MS-SSIM loss {:.3f}".format(*losses)
        alt = f"{TITLES[name]}: the image, and its map of SSIM's errors"
        parts.append(
            f"<figure markdown>\n![{alt}](gallery/{name}.png)\n"
            f"<figcaption>{TITLES[name]}<br>{numbers}</figcaption>\n</figure>"
        )
    return "\n\n".join([*parts, "</div>"])


def masks_table() -> str:
    """The loss of the photo with the hole, for each way to treat the hole."""
    outside = torch.from_numpy(~inside_hole()).movedim(-1, 0)[None]
    x, y = tensor(distortions()["hole"]), tensor(photos()[0])
    loss = SSIMLoss()
    found = {
        "loss(x, y)": loss(x, y),
        "loss(x, y, mask=outside)": loss(x, y, mask=outside),
        "loss(x, y, valid=outside)": loss(x, y, valid=outside),
    }
    rows = [[f"`{call}`", f"{value.item():.4f}"] for call, value in found.items()]
    return table(["`loss = SSIMLoss()`", "the hole"], rows)


def pages(page: Path = PAGE) -> None:
    """Fills the generated parts of the page."""
    photo, shifted = photos()
    error = np.mean((shifted - photo) ** 2)
    told = f"It is {error:.5f}, a PSNR of {-10 * math.log10(error):.1f} dB."
    fill(page, "error", told)
    fill(page, "pictures", figures())
    fill(page, "numbers", losses_table(LOSSES))
    windows = {title: SSIMLoss(**options) for title, options in WINDOWS.items()}
    fill(page, "windows", losses_table(windows, "SSIM loss"))
    levels = {str(count): MSSSIMLoss(levels=count) for count in LEVELS}
    fill(page, "levels", losses_table(levels, "levels"))
    fill(page, "masks", masks_table())


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    for name, picture in pictures().items():
        write(picture, PICTURES / f"{name}.png")
    pages()
