"""Checkpoints that are either whole or not there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from .vae import MODELS, BaseVAE

KEYS = {
    *("model", "options", "data", "images", "classes", "batch_size", "seed", "learning_rate"),
    *("step", "weights", "optimizer"),
}
"""What a checkpoint of a training holds."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes tensors and plain values. A process killed meanwhile leaves the last checkpoint."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def load(
    path: Path, *, instead: str = "a checkpoint.pt that `train` has written"
) -> dict[str, Any]:
    """The checkpoint of a training; runs no code of the file.

    Args:
        path: what `save` has written.
        instead: of a file that is none, what errors say to pass.
    """
    if not path.is_file():
        raise ValueError(f"{path} is no file: pass {instead}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # Whatever a broken file raises is the reason.
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}: {reason}): pass {instead}"
        ) from error
    if not (isinstance(state, dict) and state.keys() >= KEYS):
        raise ValueError(f"{path} is no checkpoint of a training: pass {instead}")
    return state


def model_of(state: dict[str, Any]) -> BaseVAE:
    """The model of a checkpoint, in evaluation mode, to make images with."""
    options = dict(state["options"])
    if state["model"] == "dfc":
        # Images need no features: nothing is read or fetched for these unless a loss is computed.
        options["weights"] = "imagenet"
    model = MODELS[state["model"]](**options)
    model.load_state_dict(state["weights"])
    return model.eval()
