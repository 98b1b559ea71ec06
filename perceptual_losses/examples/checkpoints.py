"""Checkpoints, which are written completely or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from perceptual_losses._runtime.output import reason, replacing

from .vae import MODELS, BaseVAE

KEYS = {
    *("model", "options", "data", "reading", "images", "classes", "batch_size", "seed"),
    *("learning_rate", "step", "weights", "optimizer"),
}
"""The entries of a training's checkpoint."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes a checkpoint of tensors and plain values.

    The last checkpoint stays until the new one is complete, also if the process is killed.

    Raises:
        OSError: the file cannot be written; the last checkpoint is still there.
    """
    with replacing(path) as partial:
        try:
            with partial.open("wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
        except RuntimeError as error:  # Torch raises it on top of the file's own error.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise OSError(str(error).partition("\n")[0]) from error


def load(
    path: Path, *, instead: str = "a checkpoint.pt that `train` has written"
) -> dict[str, Any]:
    """The checkpoint of a training; no code in the file is run.

    Args:
        path: a file that `save` has written.
        instead: the advice in the error for any other file.
    """
    if not path.is_file():
        raise ValueError(f"{path} is no file: pass {instead}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({reason(error)}): pass {instead}") from error
    except Exception:  # Torch's message would advise to unpickle any file, which can run code.
        raise ValueError(
            f"{path} cannot be read as tensors and plain values only, because it is of another "
            f"kind or not complete: pass {instead}"
        ) from None
    if not (isinstance(state, dict) and state.keys() >= KEYS):
        raise ValueError(f"{path} is no checkpoint of a training: pass {instead}")
    return state


def model_of(state: dict[str, Any]) -> BaseVAE:
    """The model of a checkpoint, in evaluation mode."""
    options = dict(state["options"])
    if state["model"] == "dfc":
        # Only a loss needs features: no weights are read or fetched to generate images.
        options["weights"] = "imagenet"
    model = MODELS[state["model"]](**options)
    model.load_state_dict(state["weights"])
    return model.eval()
