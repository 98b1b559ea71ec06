"""The same VAE trained with the mean squared error and with MS-SSIM, side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from .data import Data, count, load
from .evaluation import Metrics
from .pictures import grid, some
from .squares import Form
from .train import Training
from .vae import BaseVAE

MSE, MS_SSIM = "MSE-trained", "MS-SSIM-trained"
# Half of the models' own channels: minutes on a laptop.
NARROW = {"hidden_dims": [16, 32, 64, 128]}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    MSE: ("vae", NARROW),
    MS_SSIM: ("msssim", NARROW),
}
LOSSES = {MSE: "mean squared error", MS_SSIM: "1 - MS-SSIM"}
TERMS = {MSE: "mse", MS_SSIM: "ms_ssim_loss"}
COLORS = {MSE: "tab:blue", MS_SSIM: "tab:orange"}
METRICS = {"psnr": "PSNR (dB)", "ssim": "SSIM", "ms_ssim": "MS-SSIM"}


def demo(*, steps: int, batch_size: int, seed: int, out: Path) -> dict[str, Metrics]:
    """Trains both models alike, writes the results into ``out`` and returns the final metrics."""
    data = load("photos", Form())
    trainings = {
        name: Training(
            *(model, options, data, out / model),
            steps=steps,
            batch_size=batch_size,
            seed=seed,
            evaluate_every=max(10, steps // 20),
            save_every=steps,
            existing="replace",
        )
        for name, (model, options) in MODELS.items()
    }
    metrics = {name: training.run() for name, training in trainings.items()}
    models = {name: training.model for name, training in trainings.items()}
    histories = {name: history(training.metrics) for name, training in trainings.items()}

    plot_reconstructions(models, data).savefig(out / "reconstructions.png")
    plot_curves(histories).savefig(out / "curves.png")
    record = {
        "config": {
            "steps": steps,
            "batch_size": batch_size,
            "seed": seed,
            "training_images": count(data.training),
            "held_out_images": count(data.held_out),
            "parameters": sum(parameter.numel() for parameter in models[MSE].parameters()),
            "weights": {name: model.weights for name, model in models.items()},
            "torch": torch.__version__,
        },
        "metrics": {name: values._asdict() for name, values in metrics.items()},
        "history": histories,
    }
    (out / "metrics.json").write_text(json.dumps(record, indent=2) + "\n")
    return metrics


def history(metrics: Path) -> list[dict[str, Any]]:
    """The evaluations of a training."""
    return [json.loads(line) for line in metrics.read_text().splitlines()]


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
    """The titles of SSIM and MS-SSIM, if training with MS-SSIM did not make them better."""
    mse, ms_ssim = metrics[MSE]._asdict(), metrics[MS_SSIM]._asdict()
    return [METRICS[key] for key in ("ssim", "ms_ssim") if not ms_ssim[key] > mse[key]]


def plot_reconstructions(models: Mapping[str, BaseVAE], data: Data, *, rows: int = 8) -> Figure:
    """A row for each of some held-out images: the image, then every model's version."""
    targets, labels = some(data, rows)
    columns = {"target": targets}
    for name, model in models.items():
        columns[name] = model.generate(targets, labels)

    gap, side = 2, targets.shape[-1]
    cells = torch.stack(list(columns.values()), dim=1).flatten(0, 1)
    picture = grid(next(iter(models.values())), cells, len(columns))
    width = 3 * len(columns)
    figure = Figure(figsize=(width, 3 * rows + 0.4), dpi=67, layout="constrained")
    axes = figure.subplots()
    axes.imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest")
    centres = [gap + side / 2 + i * (side + gap) for i in range(len(columns))]
    axes.set_xticks(centres, list(columns), fontsize=12)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    return figure


def plot_curves(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Curves of the training: the models' own losses and the KL, and below held-out metrics."""
    figure = Figure(figsize=(13, 7.5), dpi=100, layout="constrained")
    (*loss_panels, kl_panel), metric_panels = figure.subplots(2, 3)
    for (name, rows), loss_panel in zip(histories.items(), loss_panels, strict=True):
        style = {"color": COLORS[name], "label": name}
        steps = [row["step"] for row in rows]
        loss_panel.plot(steps, [row["training"][TERMS[name]] for row in rows], **style)
        loss_panel.set(title=f"Training: {LOSSES[name]}", ylabel=LOSSES[name], ylim=(0, None))
        kl_panel.plot(steps, [row["training"]["kl"] for row in rows], **style)
        for (key, label), panel in zip(METRICS.items(), metric_panels, strict=True):
            panel.plot(steps, [row[key] for row in rows], marker=".", **style)
            panel.set(title=f"Held-out photos: {label}", ylabel=label)
    kl_panel.set(title="Training: KL divergence", ylabel="KL (nats)", ylim=(0, None))
    for panel in (*loss_panels, kl_panel, *metric_panels):
        panel.set_xlabel("step")
        panel.grid(alpha=0.3)
        panel.legend()
    return figure
