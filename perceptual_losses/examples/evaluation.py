"""Metrics of a model's reconstructions."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader

from perceptual_losses import ms_ssim, ssim

from .squares import Images
from .vae import BaseVAE, levels_that_fit


class Metrics(NamedTuple):
    """Metrics of reconstructions, as means over images; higher is better."""

    psnr: float
    """Peak signal-to-noise ratio in dB."""
    ssim: float
    ms_ssim: float


@torch.no_grad()
def evaluate(model: BaseVAE, images: Images, batch_size: int = 64) -> Metrics:
    """The metrics of the images' reconstructions, whether the model is in training mode or not."""
    device = next(model.parameters()).device
    low, high = model.data_range
    options: dict[str, Any] = {"data_range": model.data_range, "reduction": "none"}
    levels = levels_that_fit(model.image_size)
    columns = []
    for x, labels in DataLoader(images, batch_size):
        x = x.to(device)
        back = model.generate(x, labels.to(device))
        squared_error = ((back - x) / (high - low)).square().flatten(1).mean(1)
        columns.append(
            torch.stack(
                [
                    -10 * squared_error.log10(),
                    ssim(back, x, **options),
                    ms_ssim(back, x, levels=levels, **options),
                ]
            )
        )
    return Metrics(*torch.cat(columns, dim=1).mean(1).tolist())


EVALUATION = {"step", *Metrics._fields, "training"}
"""The entries of a line in a training's file of metrics."""
