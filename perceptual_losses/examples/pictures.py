"""Pictures ``(3, H, W)`` of a model's images, with values in [0, 1]."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torchvision.utils import make_grid, save_image

from perceptual_losses._runtime.output import replacing

from .data import Data, count
from .vae import BaseVAE


def grid(model: BaseVAE, images: Tensor, columns: int) -> Tensor:
    """One picture of many images, row by row; their range is the model's."""
    picture: Tensor = make_grid(
        in_unit_range(images, model.data_range), nrow=columns, pad_value=1.0
    )
    return picture


def in_unit_range(images: Tensor, data_range: tuple[float, float]) -> Tensor:
    """The images with values in [0, 1], on the CPU."""
    low, high = data_range
    return ((images.cpu() - low) / (high - low)).clamp(0, 1)


def save(picture: Tensor, path: Path) -> None:
    """Writes a picture, and makes its folder first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        save_image(picture, partial)


def some(data: Data, n: int) -> tuple[Tensor, Tensor]:
    """Some held-out images, spread evenly over all, and their labels."""
    places = torch.linspace(0, count(data.held_out) - 1, n).long().tolist()
    chosen = [data.held_out[place] for place in places]
    images, labels = zip(*chosen, strict=True)
    return torch.stack(images), torch.tensor(labels)


def reconstructions(model: BaseVAE, images: Tensor, labels: Tensor) -> Tensor:
    """A row of images, and below each its reconstruction."""
    device = next(model.parameters()).device
    back = model.generate(images.to(device), labels.to(device)).cpu()
    return grid(model, torch.cat([images, back]), len(images))


def samples(model: BaseVAE, *, rows: int = 8, columns: int = 8, seed: int = 0) -> Tensor:
    """New images; a model with classes has a row for each, with the same codes."""
    device = next(model.parameters()).device
    labels, generator = None, torch.Generator().manual_seed(seed)
    if not model.num_classes:
        return grid(model, model.sample(rows * columns, generator=generator), columns)
    made = []
    for label in range(model.num_classes):
        labels = torch.full((columns,), label, device=device)
        made.append(model.sample(columns, labels, generator=generator.manual_seed(seed)))
    return grid(model, torch.cat(made), columns)


@torch.no_grad()
def interpolations(model: BaseVAE, images: Tensor, labels: Tensor, *, columns: int = 8) -> Tensor:
    """A row for each pair of neighbours: images decoded between their codes, in equal steps."""
    device = next(model.parameters()).device
    images, labels = images.to(device), labels.to(device)
    mu, _ = model.encode(images, labels)
    way = torch.linspace(0, 1, columns, device=device)[:, None]
    rows = [
        # There is nothing between two classes: all images have that of the first.
        model.decode(torch.lerp(begin, end, way), label.expand(columns))
        for begin, end, label in zip(mu[::2], mu[1::2], labels[::2], strict=True)
    ]
    return grid(model, torch.cat(rows), columns)
