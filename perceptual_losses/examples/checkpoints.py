"""Checkpoints that are either whole or not there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from .vae import MODELS, BaseVAE


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes tensors and plain values. A process killed meanwhile leaves the last checkpoint."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def load(path: Path) -> dict[str, Any]:
    """What `save` has written; runs no code of the file."""
    if not path.is_file():
        raise ValueError(f"{path} is no file: pass the checkpoint.pt of a training's folder")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # Whatever a broken file raises is the reason.
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}: {reason}): pass a checkpoint.pt that "
            "`train` has written"
        ) from error
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
