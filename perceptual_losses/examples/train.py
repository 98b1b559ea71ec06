"""The training of any model, in one process or in several; it can be killed and resumed.

The order of the images and the samples of the posterior depend only on the seed and the step. So a
checkpoint needs no state of random generators, and several processes, each with its part of every
batch, compute the same as one.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from perceptual_losses._runtime.output import naming, replacing
from perceptual_losses.compare.output import finite

from . import checkpoints, pictures
from .data import Data, count
from .evaluation import EVALUATION, Metrics, evaluate
from .processes import (
    Shares,
    leave_stopping_to_the_trainer,
    process_share,
    quiet_writers,
    stop_signals,
)
from .vae import DFCVAE, MODELS, VAELoss

REPORT_EVERY = 10
"""Steps between reports of the loss, each of which waits for the device."""

EVALUATE_EVERY = 100
"""The fewest steps between evaluations by default: small folders have short epochs."""

NOISE_STREAM = 1
"""The number of the seed's random stream that the noise comes from."""


class StoppedError(KeyboardInterrupt):
    """The training was asked to stop, and has saved what it had; the message says how to go on."""


class DivergedError(Exception):
    """The loss or the weights are not finite; the message says which checkpoint is left."""


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
        options: the model's options, plain values, without the size, the channels and the number
            of classes of the images.
        data: the images to learn from, and others to measure on.
        out: the folder for the checkpoint, metrics and pictures.
        steps: the number of updates, including those before a resumption.
        batch_size: images for each update, of all processes together.
        seed: decides the model's first weights, the order of the images and the noise.
        learning_rate: Adam's learning rate.
        evaluate_every: steps between evaluations, by default those of an epoch and at least
            `EVALUATE_EVERY`; the last step always has one.
        save_every: steps between checkpoints; the last step always has one.
        existing: the treatment of a checkpoint in ``out``: ``"refuse"``, ``"resume"`` or
            ``"replace"``. Without a checkpoint all three start from the beginning. Only
            ``"replace"`` accepts files of these names that no training has written.
        workers: processes that prepare batches for each process that trains.
        init: a checkpoint whose weights the training begins with, of any model and loss with the
            same layers. It has no effect on a training that is resumed.

    Raises:
        ValueError: options that do not go together; ``out`` cannot be written to; ``init`` has
            other layers.
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
        init: Path | None = None,
    ) -> None:
        rank, self.share = process_share(batch_size)
        self.writes = rank == 0
        self.data, self.out, self.steps = data, out, steps
        images = count(data.training)
        options = {**options, "image_size": data.form.image_size, "in_channels": data.form.channels}
        if model == "cvae":
            options["num_classes"] = len(data.classes)
        # The seed decides the first weights, and a resumption's random features of a DFC-VAE.
        torch.manual_seed(seed)
        self.model = MODELS[model](**options)
        self._check_range()
        if isinstance(self.model, DFCVAE):
            self.model.load()
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model.to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=learning_rate)

        self.seed, self.batch_size, self.first = seed, batch_size, 0
        self.evaluate_every = evaluate_every or max(EVALUATE_EVERY, -(-images // batch_size))
        self.save_every, self.workers, self.device = save_every, workers, device
        self.setup = {
            "model": model,
            "options": options,
            "data": data.name,
            "reading": {name: getattr(data.reading, name) for name in ("data_range", "background")},
            "images": images,
            "classes": data.classes,
            "batch_size": batch_size,
            "seed": seed,
            "learning_rate": learning_rate,
        }
        self.checkpoint, self.metrics = out / "checkpoint.pt", out / "metrics.jsonl"
        if self.checkpoint.exists() and existing != "replace":
            self._resume(existing)
        elif init is not None:
            self._begin_with(init)
        if self.writes:
            if existing != "replace":
                self._refuse_other_metrics()
            make_folder(out)

    def _check_range(self) -> None:
        """Refuses data in another range than the model's."""
        made, given = self.model.data_range, self.data.form.data_range
        if made != given:
            raise ValueError(
                f"the model's images have values in {made} and the data's in {given}: pass the "
                "model's as the form's data_range"
            )

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

    def _begin_with(self, init: Path) -> None:
        """Loads the weights of another training; refuses those of other layers."""
        weights = checkpoints.load(init)["weights"]
        own = self.model.state_dict()
        names = [*own, *weights]
        other = [
            name
            for name in names
            if name not in own or name not in weights or own[name].shape != weights[name].shape
        ]
        if other:
            raise ValueError(
                f"{init} has other layers than the model, such as {other[0]}: pass a checkpoint "
                "with the same image size and channels, and with classes for a cvae only"
            )
        self.model.load_state_dict(weights)

    def run(self) -> Metrics:
        """Trains up to the last step and returns the metrics of the trained model.

        It writes these files into ``out``: ``checkpoint.pt``; ``metrics.jsonl`` with a line for
        each evaluation, the held-out `Metrics` and the loss of the step; TensorBoard's events;
        pictures of the last evaluation.

        Raises:
            StoppedError: Ctrl-C was pressed; the last step is saved.
            DivergedError: the loss or the weights are not finite; nothing of that is saved.
            OSError: a file cannot be written; the earlier files are still there.
        """
        if self.first >= self.steps:
            return evaluate(self.model, self.data.held_out)
        if not self.writes:
            self._run(None)
            return evaluate(self.model, self.data.held_out)
        self._forget_what_comes_again()
        with quiet_writers(self.out):
            board = SummaryWriter(self.out, purge_step=self.first + 1)
            try:
                self._run(board)
            except BaseException:
                with contextlib.suppress(Exception):  # The first error is the one to show.
                    board.close()
                raise
            board.close()
        return evaluate(self.model, self.data.held_out)

    def _run(self, board: SummaryWriter | None) -> None:
        """All steps that are left; only the process with a board writes."""
        with (
            stop_signals() as asked,
            tqdm(
                self.updates(),
                desc=type(self.model).__name__,
                unit="step",
                initial=self.first,
                total=self.steps,
                disable=board is None,
            ) as progress,
        ):
            for step, loss in progress:
                last = step == self.steps
                stops = not last and self._agree_to_stop(step, bool(asked))
                saves = last or stops or step % self.save_every == 0
                evaluates = last or step % self.evaluate_every == 0
                if saves or evaluates or step % REPORT_EVERY == 0:
                    terms = self.mean_of_all(loss)
                    self._refuse_infinities(step, terms, weights=saves)
                    progress.set_postfix(terms)
                    if board:
                        for name, value in terms.items():
                            board.add_scalar(f"training/{name}", value, step)
                        if evaluates:
                            self._evaluate(step, terms, board)
                if saves and board:
                    self._save(step)
                if stops:
                    raise StoppedError(
                        f"stopped after step {step} of {self.steps}, which is saved in {self.out}: "
                        "pass --resume to go on"
                    )

    def _agree_to_stop(self, step: int, asked: bool) -> bool:
        """Whether to stop after a step, in all processes alike: signals reach them at any time."""
        if not distributed.is_initialized():
            return asked
        if step % REPORT_EVERY:
            return False
        flag = torch.tensor(float(asked), device=self.device)
        distributed.all_reduce(flag, distributed.ReduceOp.MAX)
        return bool(flag)

    def _refuse_infinities(self, step: int, terms: Mapping[str, float], *, weights: bool) -> None:
        """Refuses to go on with a loss or weights that are not finite."""
        wrong = [f"{name} {value}" for name, value in terms.items() if not math.isfinite(value)]
        if weights and not all(p.isfinite().all() for p in self.model.parameters()):
            wrong.append("some of the weights")
        if not wrong:
            return
        left = f"{self.out} has no checkpoint"
        if self.checkpoint.exists():
            left = f"{self.checkpoint} has step {checkpoints.load(self.checkpoint)['step']}"
        raise DivergedError(
            f"not finite at step {step}: {', '.join(wrong)}. Nothing of it is saved, and {left}: "
            "pass a lower --lr"
        )

    def _save(self, step: int) -> None:
        """Writes the checkpoint."""
        checkpoints.save(
            self.checkpoint,
            {
                **self.setup,
                "step": step,
                "weights": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            },
        )

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
            worker_init_fn=leave_stopping_to_the_trainer,
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
        random = np.random.default_rng([self.seed, NOISE_STREAM, step])
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
                f"{self.metrics} has lines that no training has written: pass another --out"
            )

    def _forget_what_comes_again(self) -> None:
        """Drops the metrics of steps after the checkpoint, which come again, and a line cut off."""
        if not self.first and self.metrics.exists():
            # No line is kept, and the file may be of another kind.
            self.metrics.write_bytes(b"")
        lines = self._lines()
        whole = [line for line in lines if line.endswith("\n")]
        kept = [line for line in whole if json.loads(line)["step"] <= self.first]
        if kept != lines:
            with replacing(self.metrics) as partial:
                partial.write_text("".join(kept))

    def _add_line(self, record: dict[str, Any]) -> None:
        """Adds a line to the metrics, or leaves them as they were."""
        before = self.metrics.stat().st_size if self.metrics.exists() else 0
        try:
            with naming(self.metrics), self.metrics.open("a") as file:
                file.write(json.dumps(finite(record), allow_nan=False) + "\n")
        except OSError:
            os.truncate(self.metrics, before)
            raise

    def _evaluate(self, step: int, terms: dict[str, float], board: SummaryWriter) -> None:
        """Writes the held-out metrics and pictures."""
        metrics = evaluate(self.model, self.data.held_out)._asdict()
        self._add_line({"step": step, **metrics, "training": terms})
        for name, value in metrics.items():
            board.add_scalar(f"held out/{name}", value, step)
        images, labels = pictures.some(self.data, 8)
        for name, picture in {
            "reconstructions": pictures.reconstructions(self.model, images, labels),
            "samples": pictures.samples(self.model),
            "interpolations": pictures.interpolations(self.model, images, labels),
        }.items():
            pictures.save(picture, self.out / f"{name}.png")
            board.add_image(name, picture, step)
