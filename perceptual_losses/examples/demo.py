"""The same VAE trained with squared error, with MS-SSIM and with L1 + MS-SSIM, side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch.utils.data import Subset

from perceptual_losses import ssim

from .data import Data, count, load
from .evaluation import Metrics
from .pictures import in_unit_range, some
from .squares import Form
from .train import Training
from .vae import BaseVAE


class Case(NamedTuple):
    """A training of the demo, and what its curves are called."""

    model: str
    options: dict[str, Any]
    term: str
    """The loss in the metrics of the training."""
    loss: str
    """The loss in words."""
    color: str


MSE, MS_SSIM, MIX = "MSE", "MS-SSIM", "L1 + MS-SSIM"
# Half of the models' own channels: minutes on a laptop.
NARROW = {"hidden_dims": [16, 32, 64, 128]}
CASES = {
    MSE: Case("vae", NARROW, "mse", "mean squared error", "tab:blue"),
    MS_SSIM: Case("msssim", NARROW, "ms_ssim_loss", "1 - MS-SSIM", "tab:orange"),
    MIX: Case(
        "msssim",
        {**NARROW, "ms_ssim_weight": 0.84},
        "l1_ms_ssim_loss",
        "0.16 L1 + 0.84 (1 - MS-SSIM)",
        "tab:green",
    ),
}
METRICS = {"psnr": "PSNR (dB)", "ssim": "SSIM", "ms_ssim": "MS-SSIM"}
DIGITS = {"psnr": 2, "ssim": 4, "ms_ssim": 4}

EXPECTED = (
    (MS_SSIM, "ssim", MSE),
    (MS_SSIM, "ms_ssim", MSE),
    (MIX, "ms_ssim", MSE),
)
"""A loss, a metric, and the loss that gives less of it."""

SHOWN = (8, 58, 61, 121, 116, 109)
"""Held-out patches that were chosen for their colours, and because one can tell what they show."""


def demo(*, steps: int, batch_size: int, seed: int, out: Path) -> dict[str, Metrics]:
    """Trains all models alike, writes the results into ``out`` and returns the final metrics."""
    data = load("photos", Form())
    trainings = {
        name: Training(
            *(case.model, case.options, data, out / name.replace(" ", "")),
            steps=steps,
            batch_size=batch_size,
            seed=seed,
            evaluate_every=max(20, steps // 10),
            save_every=steps,
            existing="replace",
        )
        for name, case in CASES.items()
    }
    metrics = {name: training.run() for name, training in trainings.items()}
    models = {name: training.model for name, training in trainings.items()}
    histories = {name: history(training.metrics) for name, training in trainings.items()}

    chosen = data._replace(held_out=Subset(data.held_out, SHOWN))
    plot_reconstructions(models, chosen, rows=len(SHOWN)).savefig(out / "reconstructions.png")
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
    best = best_of(metrics)
    lines = [f"{'trained on':<14}" + "".join(f"{label:>11} " for label in METRICS.values())]
    for name, values in metrics.items():
        line = f"{name:<14}"
        for key, value in values._asdict().items():
            line += f"{value:>11.{DIGITS[key]}f}" + ("*" if value == best[key] else " ")
        lines.append(line)
    return "\n".join(lines)


def best_of(metrics: Mapping[str, Metrics]) -> dict[str, float]:
    """The best value of each metric."""
    return {key: max(getattr(values, key) for values in metrics.values()) for key in METRICS}


def losses(metrics: Mapping[str, Metrics]) -> str:
    """The distance of each model from the best of each metric, as text."""
    best = best_of(metrics)
    lines = []
    for name, values in metrics.items():
        behind = [
            f"{best[key] - value:.{DIGITS[key]}f} of {METRICS[key]}"
            for key, value in values._asdict().items()
            if value < best[key]
        ]
        lines.append(f"{name:<14}loses {', '.join(behind) or 'nothing'}")
    return "\n".join(lines)


def unexpected(metrics: Mapping[str, Metrics]) -> list[str]:
    """The expectations that the metrics do not meet, as sentences."""
    return [
        f"{METRICS[key]} of {more} is not above that of {less}"
        for more, key, less in EXPECTED
        if not getattr(metrics[more], key) > getattr(metrics[less], key)
    ]


def plot_reconstructions(models: Mapping[str, BaseVAE], data: Data, *, rows: int = 8) -> Figure:
    """A row for each of some held-out images: the image, and each model's version with its SSIM."""
    targets, labels = some(data, rows)
    columns = {"held out": targets}
    for name, model in models.items():
        device = next(model.parameters()).device
        columns[name] = model.generate(targets.to(device), labels.to(device)).cpu()

    data_range = data.form.data_range
    figure = Figure(figsize=(3 * len(columns), 3.3 * rows + 0.3), dpi=67, layout="constrained")
    panels = figure.subplots(rows, len(columns), squeeze=False)
    for column, (name, images) in zip(panels.T, columns.items(), strict=True):
        similarities = ssim(images, targets, data_range=data_range, reduction="none").tolist()
        column[0].set_title(name, fontsize=14)
        for panel, image, similarity in zip(column, images, similarities, strict=True):
            panel.imshow(in_unit_range(image, data_range).permute(1, 2, 0).numpy())
            panel.set(xticks=[], yticks=[], xlabel=f"SSIM {similarity:.3f}")
            panel.xaxis.label.set_size(12)
            panel.spines[:].set_visible(False)
    for panel in panels[:, 0]:
        panel.set_xlabel("")
    return figure


def plot_curves(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Curves of the training: the models' own losses and the KL, and held-out metrics."""
    figure = Figure(figsize=(17, 7.5), dpi=80, layout="constrained")
    (*loss_panels, kl_panel), (*metric_panels, empty) = figure.subplots(2, 1 + len(CASES))
    empty.remove()
    for (name, rows), loss_panel in zip(histories.items(), loss_panels, strict=True):
        case = CASES[name]
        style = {"color": case.color, "label": name}
        steps = [row["step"] for row in rows]
        loss_panel.plot(steps, [row["training"][case.term] for row in rows], **style)
        loss_panel.set(title=f"Training: {case.loss}", ylabel=case.loss, ylim=(0, None))
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
