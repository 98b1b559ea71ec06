"""The models at an equal budget: what each loss does to reconstructions that nobody trained on."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import time
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

import perceptual_losses
from perceptual_losses.examples.data import (
    HELD_OUT_PHOTOS,
    TRAINING_PHOTOS,
    Data,
    Form,
    count,
    load,
)
from perceptual_losses.examples.demo import METRICS, history, plot_reconstructions
from perceptual_losses.examples.train import Training
from perceptual_losses.examples.vae import BaseVAE

from ..pages.environment import processor_name
from ..pages.fill import ROOT, wrapped

MSE, MS_SSIM, EQUAL, VGG, LABELS = "MSE", "MS-SSIM", "MS-SSIM, equal", "VGG, random", "MSE + SSIM"

CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    MSE: ("vae", {}, "the plain VAE"),
    MS_SSIM: (
        "msssim",
        {},
        "the MS-SSIM VAE, with the weights of Wang et al. of the levels that fit",
    ),
    EQUAL: (
        "msssim",
        {"level_weights": [1.0, 1.0, 1.0]},
        "the MS-SSIM VAE, with all weights 1 as the EL-VAE paper has them",
    ),
    VGG: ("dfc", {"weights": None}, "the DFC-VAE, on random features of VGG-19 (dfc-123)"),
    LABELS: ("cvae", {}, "the conditional VAE, which knows the scale that a patch was cut at"),
}
"""The trainings: a model, its options, and a description."""

Results = dict[str, Any]


def study(*, steps: int, batch_size: int, seeds: Sequence[int], runs: Path, out: Path) -> Results:
    """Trains every case with every seed, measures a step, and writes what came of it.

    Args:
        steps: updates of each model.
        batch_size: images for each update.
        seeds: the seeds of the weights, the order of the images and the noise.
        runs: folder for the trainings.
        out: folder for ``results.json`` and pictures; the page is beside it, ``out`` with ``.md``.

    Returns:
        What ``results.json`` holds.
    """
    begin = time.perf_counter()
    data = load("photos", Form())
    records: list[Results] = []
    shown: dict[str, BaseVAE] = {}
    for seed in seeds:
        for name, (model, options, _) in CASES.items():
            training = prepared(
                *(model, options, data, runs / f"{len(records):02}-{model}"),
                steps=steps,
                batch_size=batch_size,
                seed=seed,
                evaluate_every=max(1, steps // 10),
            )
            started = time.perf_counter()
            metrics = training.run()
            records.append(
                {
                    "case": name,
                    "seed": seed,
                    "weights": training.model.weights,
                    "seconds": time.perf_counter() - started,
                    "metrics": metrics._asdict(),
                    "history": history(training.metrics),
                }
            )
            if seed == seeds[0]:
                shown[name] = training.model
    cost = cost_of_the_loss(data, batch_size, runs / "cost")
    results = {
        "environment": environment(),
        "config": {
            "steps": steps,
            "batch_size": batch_size,
            "seeds": list(seeds),
            "image_size": data.form.image_size,
            "training_images": count(data.training),
            "held_out_images": count(data.held_out),
        },
        "cost": cost,
        "runs": records,
        "seconds": time.perf_counter() - begin,
    }
    write(results, out, shown, data)
    return results


def prepared(model: str, options: dict[str, Any], data: Data, out: Path, **rest: Any) -> Training:
    """A training that overwrites ``out``, without the warning that features are random."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the features of vgg19 are random")
        return Training(model, options, data, out, save_every=10**9, existing="replace", **rest)


def cost_of_the_loss(data: Data, batch_size: int, out: Path, *, steps: int = 50) -> dict[str, Any]:
    """The time of the MS-SSIM loss, forward and backward, and of the training step around it.

    Medians of turns, as both vary with whatever else the machine does.
    """
    warm_up = 10
    model, options, _ = CASES[MS_SSIM]
    training = prepared(model, options, data, out, steps=warm_up + steps, batch_size=batch_size)
    updates = training.updates()
    loss = training.model.losses["ms_ssim_loss"]
    x = torch.stack([data.training[i][0] for i in range(batch_size)]).to(training.device)
    step_times, loss_times = [], []
    for _ in range(warm_up + steps):
        begin = time.perf_counter()
        next(updates)
        synchronize(training.device)
        step_times.append(time.perf_counter() - begin)

        back = training.model.generate(x).requires_grad_()
        synchronize(training.device)
        begin = time.perf_counter()
        loss(back, x).backward()
        synchronize(training.device)
        loss_times.append(time.perf_counter() - begin)
    step_ms, loss_ms = (1e3 * statistics.median(t[warm_up:]) for t in (step_times, loss_times))
    return {"step_ms": step_ms, "loss_ms": loss_ms, "share": loss_ms / step_ms}


def synchronize(device: torch.device) -> None:
    """Waits until the device has done all work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def environment() -> dict[str, Any]:
    """Where and with what the numbers were made."""
    found = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True)
    return {
        "commit": found.stdout.strip() if found.returncode == 0 else None,
        "perceptual_losses": perceptual_losses.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else processor_name(),
        "threads": torch.get_num_threads(),
    }


def write(results: Results, out: Path, models: dict[str, BaseVAE], data: Data) -> None:
    """Results, pictures and page."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    plot_reconstructions(models, data, rows=6).savefig(out / "reconstructions.png")
    write_page(results, out)


def write_page(results: Results, out: Path) -> None:
    """Writes the curves and the page, which need only the results."""
    plot_curves(results).savefig(out / "curves.png")
    out.with_suffix(".md").write_text(page(results, out.name))


def seeds_won(results: Results) -> list[bool]:
    """For each seed, whether training on MS-SSIM gave more held-out MS-SSIM than on the MSE."""
    mse, ms_ssim = values(results, MSE, "ms_ssim"), values(results, MS_SSIM, "ms_ssim")
    return [ours > theirs for ours, theirs in zip(ms_ssim, mse, strict=True)]


def values(results: Results, case: str, metric: str) -> list[float]:
    """A metric of a case, for each seed."""
    return [run["metrics"][metric] for run in results["runs"] if run["case"] == case]


def table(results: Results) -> str:
    """A row for each case: each metric's mean over the seeds, its lowest and its highest."""
    digits = {"psnr": 2, "ssim": 4, "ms_ssim": 4}
    best = {
        metric: max(CASES, key=lambda case: statistics.mean(values(results, case, metric)))
        for metric in METRICS
    }
    lines = [
        f"| trained on | {' | '.join(METRICS.values())} | KL (nats) |",
        "|---|" + "---:|" * (len(METRICS) + 1),  # the style sheet does not break such columns
    ]
    for case in CASES:
        cells = [case]
        for metric in METRICS:
            cell = spread(values(results, case, metric), digits[metric])
            cells.append(f"**{cell}**" if best[metric] == case else cell)
        last = [run["history"][-1]["training"] for run in results["runs"] if run["case"] == case]
        cells.append(spread([terms["kl"] for terms in last], 0))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(numbers: Sequence[float], digits: int) -> str:
    """The mean, and the range that it is of."""
    mean, low, high = statistics.mean(numbers), min(numbers), max(numbers)
    return f"{mean:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def verdict(results: Results) -> str:
    """Who won what, in words."""
    won = seeds_won(results)
    pairs = zip(values(results, MS_SSIM, "ms_ssim"), values(results, MSE, "ms_ssim"), strict=True)
    lines = [
        "Training on MS-SSIM gave a higher held-out MS-SSIM than training on the mean squared "
        f"error in {sum(won)} of {len(won)} seeds: "
        + ", ".join(f"{ours:.4f} and {theirs:.4f}" for ours, theirs in pairs)
        + "."
    ]
    for metric, label in METRICS.items():
        means = {case: statistics.mean(values(results, case, metric)) for case in CASES}
        order = sorted(means, key=lambda case: -means[case])
        lines.append(f"By the mean of {label}, from best to worst: {joined(order)}.")
    return "\n\n".join([lines[0], "\n".join(f"* {line}" for line in lines[1:])])


def joined(names: Iterable[str]) -> str:
    """Names that may have commas themselves."""
    return "; ".join(names)


def plot_curves(results: Results) -> Figure:
    """Each held-out metric while training: the mean over the seeds, and between them."""
    figure = Figure(figsize=(13, 4.2), dpi=100, layout="constrained")
    for (metric, label), panel in zip(METRICS.items(), figure.subplots(1, 3), strict=True):
        for case in CASES:
            rows = [run["history"] for run in results["runs"] if run["case"] == case]
            steps = [row["step"] for row in rows[0]]
            at_steps = list(zip(*[[row[metric] for row in run] for run in rows], strict=True))
            (line,) = panel.plot(steps, [statistics.mean(at) for at in at_steps], label=case)
            low, high = [min(at) for at in at_steps], [max(at) for at in at_steps]
            panel.fill_between(steps, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        panel.set(title=f"Held-out photos: {label}", xlabel="step", ylabel=label)
        panel.grid(alpha=0.3)
    panel.legend()
    return figure


def page(results: Results, folder: str) -> str:
    """The page, in Markdown."""
    environment, config, cost = (results[key] for key in ("environment", "config", "cost"))
    cases = "\n".join(f"* **{name}**: {words}" for name, (_, _, words) in CASES.items())
    commit = environment["commit"]
    share = f"{100 * cost['share']:.1f} %"
    text = f"""# What the losses do to a VAE

This page compares VAEs that are trained on different losses between an image and its
reconstruction. Encoder, decoder and budget are the same. `make study` writes the page from [its
results]({folder}/results.json).

{cases}

Each is trained from scratch for {config["steps"]} steps of {config["batch_size"]} images with the
seeds {", ".join(map(str, config["seeds"]))}, which decide the first weights, the order of the
images and the noise, alike for all. The {config["training_images"]} training images are patches of
{config["image_size"]}x{config["image_size"]} pixels of {len(TRAINING_PHOTOS)} photos and their
mirror images; the {config["held_out_images"]} held-out ones are of {len(HELD_OUT_PHOTOS)} other
photos. Each loss has its own weight of the KL divergence. The last column of the table shows how
many nats a code holds at the last step, for a batch of training images.

## Held-out photos

Each cell has the mean over the seeds, and in brackets the lowest and the highest. The best mean is
bold. Higher is better in all columns but the last, which is no score.

{table(results)}

{verdict(results)}

![Held-out metrics while training]({folder}/curves.png)

The lines are means over the seeds. The bands reach from the lowest to the highest.

![Held-out photos and their reconstructions]({folder}/reconstructions.png)

The models of seed {config["seeds"][0]} reconstruct these photos from the mean of the posterior.

## What the loss costs

A training step on MS-SSIM took {cost["step_ms"]:.1f} ms, of which the loss, forward and backward,
is {cost["loss_ms"]:.2f} ms: {share} of the step. Medians, with {config["batch_size"]} images on
{environment["device"]}, {environment["threads"]} threads.

## What this does not show

* The published models. The DFC-VAE has the features of a random network here, because no weights
  are downloaded. So its row says nothing about the paper's model. `train --model dfc` takes
  ImageNet's weights.
* The EL-VAE at its best. The product of the levels' means to the power 1 is small at first, and so
  is its gradient. More steps may change its row.
* Converged models, or good samples. {config["steps"]} steps on patches of {len(TRAINING_PHOTOS)}
  photos are little; more steps can change the order.
* What people see. PSNR, SSIM and MS-SSIM were measured, and each favours the models that were
  trained on it. LPIPS and FID were not measured, and nobody was asked.
* The best that each loss can do. Learning rate and architecture are the same for all and were
  chosen with the plain VAE. The KL weights were set by hand to leave similar codes.
* Whether labels help. The conditional VAE has another loss, and knows more than the others.
* Other machines. Times differ there, and so do the last digits of the metrics.

{environment["device"]}, {environment["threads"]} threads, Python {environment["python"]}, torch
{environment["torch"]}, perceptual-losses {environment["perceptual_losses"]}{
        f", commit {commit[:12]}" if commit else ""
    }; {results["seconds"] / 60:.0f} minutes in all.
"""
    return "\n\n".join(wrapped(part) for part in text.split("\n\n")) + "\n"
