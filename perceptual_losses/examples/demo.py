"""The same VAE trained with the mean squared error and with MS-SSIM, side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.utils import make_grid

from .data import held_out_patches, training_patches
from .train import History, Metrics, evaluate, train
from .vae import MSSSIMVAE, BaseVAE, VanillaVAE

MSE, MS_SSIM = "MSE-trained", "MS-SSIM-trained"
LOSSES = {MSE: "mean squared error", MS_SSIM: "1 - MS-SSIM"}
COLORS = {MSE: "tab:blue", MS_SSIM: "tab:orange"}
METRICS = {"psnr": "PSNR (dB)", "ssim": "SSIM", "ms_ssim": "MS-SSIM"}


def demo(*, steps: int, batch_size: int, seed: int, out: Path) -> dict[str, Metrics]:
    """Trains both models alike, writes what came of it into ``out``, returns the final metrics."""
    out.mkdir(parents=True, exist_ok=True)
    images, held_out = training_patches(), held_out_patches()

    models: dict[str, BaseVAE] = {}
    for name, model_class in ((MSE, VanillaVAE), (MS_SSIM, MSSSIMVAE)):
        torch.manual_seed(seed)
        models[name] = model_class()
    histories = {
        name: train(model, images, held_out, steps=steps, batch_size=batch_size, seed=seed)
        for name, model in models.items()
    }
    metrics = {name: evaluate(model, held_out) for name, model in models.items()}

    plot_reconstructions(models, held_out).savefig(out / "reconstructions.png")
    plot_curves(histories).savefig(out / "curves.png")
    record = {
        "config": {
            "steps": steps,
            "batch_size": batch_size,
            "seed": seed,
            "training_images": len(images),
            "held_out_images": len(held_out),
            "parameters": sum(parameter.numel() for parameter in models[MSE].parameters()),
            "kl_weights": {name: model.kl_weight for name, model in models.items()},
            "torch": torch.__version__,
        },
        "metrics": {name: values._asdict() for name, values in metrics.items()},
        "history": {name: history._asdict() for name, history in histories.items()},
    }
    (out / "metrics.json").write_text(json.dumps(record, indent=2) + "\n")
    return metrics


def table(metrics: Mapping[str, Metrics]) -> str:
    """The metrics as text, with a star after the best of each."""
    best = [max(column) for column in zip(*metrics.values(), strict=True)]
    lines = [f"{'held-out photos':<17}" + "".join(f"{label:>11} " for label in METRICS.values())]
    for name, values in metrics.items():
        line = f"{name:<17}"
        for value, digits, top in zip(values, (2, 4, 4), best, strict=True):
            line += f"{value:>11.{digits}f}" + ("*" if value == top else " ")
        lines.append(line)
    return "\n".join(lines)


def metrics_not_won(metrics: Mapping[str, Metrics]) -> list[str]:
    """Which of SSIM and MS-SSIM are not better after training with MS-SSIM than with the MSE."""
    mse, ms_ssim = metrics[MSE]._asdict(), metrics[MS_SSIM]._asdict()
    return [METRICS[key] for key in ("ssim", "ms_ssim") if not ms_ssim[key] > mse[key]]


@torch.no_grad()
def plot_reconstructions(models: Mapping[str, BaseVAE], images: Tensor, *, rows: int = 8) -> Figure:
    """A row for each of some images, spread evenly: the image, then every model's version."""
    targets = images[torch.linspace(0, len(images) - 1, rows).long()]
    columns = {"target": targets}
    for name, model in models.items():
        columns[name] = model.eval()(targets).reconstruction

    gap, side = 2, images.shape[-1]
    cells = torch.stack(list(columns.values()), dim=1).flatten(0, 1)
    grid = make_grid(cells, nrow=len(columns), padding=gap, pad_value=1.0)
    figure = Figure(figsize=(6, 6 * rows / len(columns) + 0.4), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.imshow(grid.permute(1, 2, 0).numpy(), interpolation="nearest")
    centres = [gap + side / 2 + i * (side + gap) for i in range(len(columns))]
    axes.set_xticks(centres, list(columns), fontsize=12)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    return figure


def plot_curves(histories: Mapping[str, History]) -> Figure:
    """Above what training minimised, each model's own loss and the KL; below held-out metrics."""
    figure = Figure(figsize=(13, 7.5), dpi=100, layout="constrained")
    (*loss_panels, kl_panel), metric_panels = figure.subplots(2, 3)
    for (name, history), loss_panel in zip(histories.items(), loss_panels, strict=True):
        style = {"color": COLORS[name], "label": name}
        steps = [row["step"] for row in history.training]
        loss_panel.plot(steps, [row["reconstruction"] for row in history.training], **style)
        loss_panel.set(title=f"Training: {LOSSES[name]}", ylabel=LOSSES[name], ylim=(0, None))
        kl_panel.plot(steps, [row["kl"] for row in history.training], **style)

        steps = [row["step"] for row in history.held_out]
        for (key, label), panel in zip(METRICS.items(), metric_panels, strict=True):
            panel.plot(steps, [row[key] for row in history.held_out], marker=".", **style)
            panel.set(title=f"Held-out photos: {label}", ylabel=label)
    kl_panel.set(title="Training: KL divergence", ylabel="KL (nats)", ylim=(0, None))
    for panel in (*loss_panels, kl_panel, *metric_panels):
        panel.set_xlabel("step")
        panel.grid(alpha=0.3)
        panel.legend()
    return figure
