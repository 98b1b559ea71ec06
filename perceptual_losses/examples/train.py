"""One training loop for every model, and what is measured on held-out images."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler
from tqdm import tqdm

from perceptual_losses import ms_ssim, ssim

from .data import Mirrored
from .vae import BaseVAE


class Metrics(NamedTuple):
    """Means over images; higher is better."""

    psnr: float
    """Peak signal-to-noise ratio in dB."""
    ssim: float
    ms_ssim: float


class History(NamedTuple):
    """What training recorded, one dictionary for each recorded step, which has it as ``step``."""

    training: list[dict[str, float]]
    """The terms of the objective, by the names of `VAELoss`."""
    held_out: list[dict[str, float]]
    """The names and values of `Metrics`."""


def train(
    model: BaseVAE,
    images: Mirrored,
    held_out: Tensor,
    *,
    steps: int,
    batch_size: int,
    seed: int,
    learning_rate: float = 1e-3,
    record_every: int = 10,
    evaluate_every: int = 100,
) -> History:
    """Trains ``model`` in place; the same seed gives the same numbers on the same machine.

    Args:
        model: a model, in any mode.
        images: drawn in a new order each epoch.
        held_out: images ``(N, C, H, W)`` to measure on; nothing is learned from them.
        steps: number of updates.
        batch_size: images for each update.
        seed: decides the order of the images and the samples of the posterior.
        learning_rate: of Adam.
        record_every: steps from one recorded loss to the next.
        evaluate_every: steps from one evaluation to the next; the last step always has one.
    """
    torch.manual_seed(seed)
    order = RandomSampler(images, num_samples=steps * batch_size)
    batches = DataLoader(images, batch_size, sampler=order)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    history = History([], [])
    model.train()
    progress = tqdm(batches, desc=type(model).__name__, unit="step")
    for step, x in enumerate(progress, start=1):
        loss = model.loss(model(x), x)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()

        if step % record_every == 0 or step == steps:
            terms = {name: term.item() for name, term in loss._asdict().items()}
            progress.set_postfix(terms)
            history.training.append({"step": step, **terms})
        if step % evaluate_every == 0 or step == steps:
            history.held_out.append({"step": step, **evaluate(model, held_out)._asdict()})
            model.train()
    return history


@torch.no_grad()
def evaluate(model: BaseVAE, images: Tensor) -> Metrics:
    """How close the reconstructions of ``images`` are. Leaves the model in evaluation mode."""
    reconstruction = model.eval()(images).reconstruction
    squared_error = (reconstruction - images).square().flatten(1).mean(1)
    return Metrics(
        psnr=-10 * squared_error.log10().mean().item(),
        ssim=ssim(reconstruction, images).item(),
        ms_ssim=ms_ssim(reconstruction, images, levels=3).item(),
    )
