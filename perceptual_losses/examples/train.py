"""The training of any model, in one process or in several; it can be killed and resumed.

The order of the images and the samples of the posterior depend only on the seed and the step. So a
checkpoint needs no state of random generators, and several processes, each with its part of every
batch, compute the same as one.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from torchvision.utils import save_image
from tqdm import tqdm

from perceptual_losses import ms_ssim, ssim

from . import checkpoints, pictures
from .data import Data, Images, count
from .vae import DFCVAE, MODELS, BaseVAE, VAELoss, levels_that_fit

REPORT_EVERY = 10
"""Steps between looks at the loss, each of which waits for the device."""

ORDER, NOISE = 0, 1
"""The streams of random numbers of a seed."""


class Metrics(NamedTuple):
    """Metrics of reconstructions, as means over images; higher is better."""

    psnr: float
    """Peak signal-to-noise ratio in dB."""
    ssim: float
    ms_ssim: float


@torch.no_grad()
def evaluate(model: BaseVAE, images: Images, batch_size: int = 64) -> Metrics:
    """The metrics of the images' reconstructions. The model stays in its mode."""
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
"""The entries of a line of the metrics' file."""


class Shares:
    """The indices of the images that this process takes in each step: its share of the batch.

    The images are drawn without replacement until none are left, and then anew.
    """

    def __init__(self, images: int, batch_size: int, seed: int, steps: range, share: slice) -> None:
        self.images, self.batch_size, self.seed = images, batch_size, seed
        self.steps, self.share = steps, share

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[int]]:
        epoch, order = -1, np.empty(0, int)
        for step in self.steps:
            batch = []
            for place in range(step * self.batch_size, (step + 1) * self.batch_size):
                if place // self.images != epoch:
                    epoch = place // self.images
                    order = np.random.default_rng([self.seed, ORDER, epoch]).permutation(
                        self.images
                    )
                batch.append(int(order[place % self.images]))
            yield batch[self.share]


@contextlib.contextmanager
def processes() -> Iterator[None]:
    """Connects the processes, if torchrun has started several."""
    if "WORLD_SIZE" not in os.environ:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


@contextlib.contextmanager
def first_process_first() -> Iterator[None]:
    """Lets one process go first, for work that is done once, such as a download."""
    together = distributed.is_initialized()
    if together and distributed.get_rank():
        distributed.barrier()
    yield
    if together and not distributed.get_rank():
        distributed.barrier()


def process_share(batch_size: int) -> tuple[int, slice]:
    """This process's rank, and its share of the images of each batch."""
    together = distributed.is_initialized()
    rank = distributed.get_rank() if together else 0
    world = distributed.get_world_size() if together else 1
    if batch_size % world:
        raise ValueError(
            f"batch_size={batch_size} is not a multiple of the {world} processes: pass one"
        )
    part = batch_size // world
    return rank, slice(rank * part, (rank + 1) * part)


def make_folder(path: Path) -> None:
    """Makes a folder unless it exists, and tries to write a file there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written to ({error.strerror}): pass another folder"
        ) from error


class Training:
    """A training, ready to run: all that can be refused has been checked.

    Args:
        model: a name of `MODELS`.
        options: the model's options, plain values; those that the data decide are added.
        data: the images to learn from, and others to measure on.
        out: the folder for the checkpoint, metrics and pictures.
        steps: the number of updates, including those before a resumption.
        batch_size: images for each update, of all processes together.
        seed: decides the model's first weights, the order of the images and the noise.
        learning_rate: Adam's learning rate.
        evaluate_every: steps between evaluations, by default those of an epoch; the last step
            always has one.
        save_every: steps between checkpoints; the last step always has one.
        existing: the treatment of a checkpoint in ``out``: ``"refuse"``, ``"resume"`` or
            ``"replace"``. Without a checkpoint all three start from the beginning. Only
            ``"replace"`` accepts files of these names that no training has written.
        workers: processes that read images for each process that trains.

    Raises:
        ValueError: options that do not go together; ``out`` cannot be written to.
        RuntimeError: weights that a loss needs cannot be fetched.
    """

    def __init__(
        self,
        model: str,
        options: Mapping[str, Any],
        data: Data,
        out: Path,
        *,
        steps: int,
        batch_size: int = 32,
        seed: int = 0,
        learning_rate: float = 1e-3,
        evaluate_every: int | None = None,
        save_every: int = 500,
        existing: str = "refuse",
        workers: int = 0,
    ) -> None:
        rank, self.share = process_share(batch_size)
        self.writes = rank == 0
        images = count(data.training)
        options = {**options, "image_size": data.form.image_size, "in_channels": data.form.channels}
        if model == "cvae":
            options["num_classes"] = len(data.classes)
        # So a resumption has the same first weights, and the same random features of a DFC-VAE.
        torch.manual_seed(seed)
        self.model = MODELS[model](**options)
        if self.model.data_range != data.form.data_range:
            raise ValueError(
                f"the model's images have values in {self.model.data_range} and the data's in "
                f"{data.form.data_range}: pass the model's as the form's data_range"
            )
        if isinstance(self.model, DFCVAE):
            self.model.load()
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model.to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=learning_rate)

        self.data, self.out, self.steps = data, out, steps
        self.seed, self.batch_size, self.first = seed, batch_size, 0
        self.evaluate_every = evaluate_every or -(-images // batch_size)
        self.save_every, self.workers, self.device = save_every, workers, device
        self.setup = {
            "model": model,
            "options": options,
            "data": data.name,
            "images": images,
            "classes": data.classes,
            "batch_size": batch_size,
            "seed": seed,
            "learning_rate": learning_rate,
        }
        self.checkpoint, self.metrics = out / "checkpoint.pt", out / "metrics.jsonl"
        if self.checkpoint.exists() and existing != "replace":
            self._resume(existing)
        if self.writes:
            if existing != "replace":
                self._refuse_other_metrics()
            make_folder(out)

    def _resume(self, existing: str) -> None:
        """Loads the checkpoint; refuses one of another training, or all if ``existing`` does."""
        state = checkpoints.load(self.checkpoint, instead="another --out")
        if existing == "refuse":
            raise ValueError(
                f"{self.out} has a training of {state['step']} steps: pass --resume to go on with "
                "it, or another --out"
            )
        changed = [name for name, value in self.setup.items() if state[name] != value]
        if changed:
            raise ValueError(
                f"the training in {self.out} cannot go on with other options: "
                + ", ".join(f"{name} was {state[name]}, not {self.setup[name]}" for name in changed)
                + "; pass the same, or another --out"
            )
        self.model.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.first = state["step"]

    def run(self) -> Metrics:
        """Trains up to the last step and returns the metrics of the trained model.

        It writes these files into ``out``: ``checkpoint.pt``; ``metrics.jsonl`` with a line for
        each evaluation, the held-out `Metrics` and the loss of the step; TensorBoard's events;
        pictures of the last evaluation.
        """
        if self.writes:
            self._forget_what_comes_again()
        board = SummaryWriter(self.out, purge_step=self.first + 1) if self.writes else None
        progress = tqdm(
            self.updates(),
            desc=type(self.model).__name__,
            unit="step",
            initial=self.first,
            total=max(self.steps, self.first),
            disable=not self.writes,
        )
        for step, loss in progress:
            last = step == self.steps
            evaluates = last or step % self.evaluate_every == 0
            if evaluates or step % REPORT_EVERY == 0:
                terms = self.mean_of_all(loss)
                progress.set_postfix(terms)
                if board:
                    for name, value in terms.items():
                        board.add_scalar(f"training/{name}", value, step)
                    if evaluates:
                        self._evaluate(step, terms, board)
            if self.writes and (last or step % self.save_every == 0):
                checkpoints.save(
                    self.checkpoint,
                    {
                        **self.setup,
                        "step": step,
                        "weights": self.model.state_dict(),
                        "optimizer": self.optimizer.state_dict(),
                    },
                )
        if board:
            board.close()
        return evaluate(self.model, self.data.held_out)

    def updates(self) -> Iterator[tuple[int, VAELoss]]:
        """Updates the model, and yields the number of each update, from 1 on, and its loss."""
        network = (
            # The losses' frozen features are equal everywhere and need not be sent.
            DistributedDataParallel(self.model, broadcast_buffers=False)
            if distributed.is_initialized()
            else self.model
        )
        on_gpu = self.device.type == "cuda"
        steps = range(self.first, self.steps)
        shares = Shares(count(self.data.training), self.batch_size, self.seed, steps, self.share)
        batches = DataLoader(
            self.data.training,
            batch_sampler=shares,
            num_workers=self.workers,
            pin_memory=on_gpu,
        )
        for step, (x, labels) in zip(steps, batches, strict=True):
            x = x.to(self.device, non_blocking=True)
            labels = labels.to(self.device, non_blocking=True)
            noise = self.noise(step)[self.share].to(self.device)
            self.model.train()
            with torch.autocast(self.device.type, torch.bfloat16, enabled=on_gpu):
                loss = self.model.loss(network(x, labels, noise), x)
            self.optimizer.zero_grad()
            loss.total.backward()
            self.optimizer.step()
            yield step + 1, loss

    def noise(self, step: int) -> Tensor:
        """The noise of the posterior's samples in a step, for the batch of all processes."""
        random = np.random.default_rng([self.seed, NOISE, step])
        shape = self.batch_size, self.model.latent_dim
        return torch.from_numpy(random.standard_normal(shape, dtype=np.float32))

    def mean_of_all(self, loss: VAELoss) -> dict[str, float]:
        """The total and the terms by name, as means over the processes."""
        values = torch.stack([loss.total, *loss.terms.values()]).detach()
        if distributed.is_initialized():
            distributed.all_reduce(values)
            values /= distributed.get_world_size()
        return dict(zip(["total", *loss.terms], values.tolist(), strict=True))

    def _lines(self) -> list[str]:
        """The lines of the metrics."""
        return self.metrics.read_text().splitlines(True) if self.metrics.exists() else []

    def _refuse_other_metrics(self) -> None:
        """Refuses a file of metrics that no training has written."""
        try:
            rows = [json.loads(line) for line in self._lines() if line.endswith("\n")]
        except ValueError:
            rows = [None]
        if not all(isinstance(row, dict) and row.keys() >= EVALUATION for row in rows):
            raise ValueError(
                f"{self.metrics} has lines that are of no training: pass another --out"
            )

    def _forget_what_comes_again(self) -> None:
        """Drops the metrics of steps after the checkpoint, and a line that was cut off."""
        if not self.first:
            # No line is kept, and the file need not be a training's.
            self.metrics.unlink(missing_ok=True)
        lines = self._lines()
        whole = [line for line in lines if line.endswith("\n")]
        kept = [line for line in whole if json.loads(line)["step"] <= self.first]
        if kept != lines:
            partial = self.metrics.with_suffix(".partial")
            partial.write_text("".join(kept))
            os.replace(partial, self.metrics)

    def _evaluate(self, step: int, terms: dict[str, float], board: SummaryWriter) -> None:
        """Writes the held-out metrics and pictures."""
        metrics = evaluate(self.model, self.data.held_out)._asdict()
        with self.metrics.open("a") as file:
            file.write(json.dumps({"step": step, **metrics, "training": terms}) + "\n")
        for name, value in metrics.items():
            board.add_scalar(f"held out/{name}", value, step)
        images, labels = pictures.some(self.data, 8)
        for name, picture in {
            "reconstructions": pictures.reconstructions(self.model, images, labels),
            "samples": pictures.samples(self.model),
            "interpolations": pictures.interpolations(self.model, images, labels),
        }.items():
            save_image(picture, self.out / f"{name}.png")
            board.add_image(name, picture, step)
