"""Weights of networks and of LPIPS, which are recognised by the names of their entries."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError

import torch
from torch import Tensor, nn

from . import safetensors
from .networks import BACKBONES, Layer

Weights = str | os.PathLike[str] | Mapping[str, Tensor] | nn.Module | None

# An entry of the features, with the names of the modules around it.
_NETWORK = re.compile(
    r"(?P<around>(?:[A-Za-z_]\w*\.)*?(?:features\.|(?:net\.)?slice\d+\.)?)(?P<key>\d+\.[a-z]\S*)"
)
_LINEAR = re.compile(r"(?:.*\.)?lins?\.?(?P<index>\d+)\.model\.[01]\.weight")
# Entries of torchvision's, timm's and lpips's networks beside their features.
_BESIDE = re.compile(
    r"(?:.*\.)?(?:(?:classifier|head|pre_logits|lins?\.?\d+|scaling_layer)\..*|num_batches_tracked)"
)


class StateDict(NamedTuple):
    """Entries by name, and their source in words, for errors."""

    entries: Mapping[str, Any]
    source: str


def read(name: str, weights: Any) -> StateDict:
    """The entries of a path, a state dict or a module that was passed as ``name``."""
    if isinstance(weights, (str, os.PathLike)):
        source, found = f"{name}={str(weights)!r}", _read_file(name, weights)
    elif isinstance(weights, nn.Module):
        source, found = f"the module passed as {name}", weights.state_dict()
    elif isinstance(weights, Mapping):
        source, found = f"the state dict passed as {name}", weights
    else:
        known = "'imagenet'" if name == "weights" else "'lpips'"
        also = ", a module, or None for random ones" if name == "weights" else ", or None"
        raise TypeError(
            f"{name} is of type {type(weights).__name__}: pass {known}, a path, a state dict{also}"
        )
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    if not isinstance(found, Mapping) or not all(isinstance(key, str) for key in found):
        raise ValueError(f"{source} is no state dict: pass a dict of tensors by name")
    return StateDict(found, source)


def imagenet(backbone: str) -> StateDict:
    """Torchvision's weights, read from torch's cache, or downloaded and checked by their hash."""
    from torchvision.models import get_model_weights

    weights = get_model_weights(backbone)["IMAGENET1K_V1"]
    file = Path(torch.hub.get_dir()) / "checkpoints" / os.path.basename(weights.url)
    try:
        state = weights.get_state_dict(map_location="cpu", check_hash=True, weights_only=True)
    except (URLError, ConnectionError, TimeoutError) as error:
        raise RuntimeError(
            f"the ImageNet weights of {backbone} could not be downloaded ({error}). On a machine "
            f"with network fetch {weights.url} and put it at {file}, or pass its path as weights="
        ) from error
    except Exception as error:  # Torch's message would advise to unpickle the file.
        kind = _kind(file) if file.exists() else type(error).__name__
        raise RuntimeError(
            f"the ImageNet weights of {backbone} at {file} cannot be read ({kind}). Delete the "
            f"file to have it downloaded again, from {weights.url}"
        ) from None
    return StateDict(state, f"the file {file}")


def network_weights(state: StateDict, backbone: str, network: Sequence[Layer]) -> dict[str, Tensor]:
    """The tensors of a network's layers, by their keys in torchvision's ``features``.

    Args:
        state: entries with the names of torchvision, timm or lpips, of the whole model or of its
            features, which may lie inside other modules.
        backbone: the name of the network.
        network: its layers, up to the deepest that is needed. Weights of later ones may be missing.

    Raises:
        ValueError: an entry is missing, belongs to another network, or is on the meta device.
    """
    entries, source = state
    advice = f"pass the state dict of torchvision.models.{backbone}() or of its .features"
    names: dict[str, str] = {}
    arounds: dict[str, str] = {}
    known = {key: shape for layer in BACKBONES[backbone] for key, shape in layer.tensors()}
    for name, value in entries.items():
        if _BESIDE.fullmatch(name):
            continue
        match = _NETWORK.fullmatch(name)
        if match is None or match["key"] not in known:
            raise ValueError(
                f"{source} does not fit {backbone}: {name!r} is not part of it; {advice}"
            )
        key = match["key"]
        if key in names:
            raise ValueError(f"{source} holds two networks: {names[key]!r} and {name!r}; {advice}")
        if not isinstance(value, Tensor) or tuple(value.shape) != known[key]:
            given = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"{source} does not fit {backbone}: {name!r} is {given} and not {known[key]}; "
                f"{advice}"
            )
        if value.is_meta:
            raise ValueError(
                f"{source} is on the meta device, where {name!r} has no values: pass loaded weights"
            )
        names[key], arounds[match["around"]] = name, name
    if not names and any(map(_LINEAR.fullmatch, entries)):
        raise ValueError(
            f"{source} holds the linear weights of LPIPS, which belong to linear=: as weights= "
            f"{advice}"
        )
    for key, _ in (entry for layer in network for entry in layer.tensors()):
        if key not in names:
            around = next(iter(arounds), "")
            named = key if "slice" in around else f"{around}{key}"
            raise ValueError(f"{source} does not fit {backbone}: {named!r} is missing; {advice}")
    return {key: entries[name] for key, name in names.items()}


def linear_entries(state: StateDict) -> dict[int, tuple[str, Any]]:
    """LPIPS's linear weights by the number of the layer: each entry's name and tensor."""
    found = {}
    for name, value in state.entries.items():
        if match := _LINEAR.fullmatch(name):
            found[int(match["index"])] = name, value
    return found


def _read_file(name: str, path: str | os.PathLike[str]) -> Any:
    """The content of a file that has only tensors."""
    if not os.path.exists(path):
        known = " (or 'imagenet')" if name == "weights" else ""
        raise FileNotFoundError(
            f"{name}={str(path)!r}: there is no such file; pass the path of a file{known}"
        )
    try:
        if os.fspath(path).endswith(".safetensors"):
            return safetensors.read(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # Torch's message would advise to unpickle any file, which can run code.
        raise ValueError(
            f"{name}={str(path)!r} cannot be read as tensors only: it is {_kind(path)}. Pass a "
            "complete file that torch.save has written of a state dict, or a .safetensors file"
        ) from None


def _kind(path: str | os.PathLike[str]) -> str:
    """A file's kind in words, by its first bytes."""
    if os.path.isdir(path):
        return "a folder"
    with open(path, "rb") as file:
        start = file.read(64)
    if start.startswith(b"PK"):
        return _kind_of_archive(path)
    for first, kind in (
        (b"\x80", "a pickle of other objects than tensors, or not complete"),
        (b"version https://git-lfs", "a pointer of Git LFS, not the file itself"),
        (b"\x89HDF", "an HDF5 file"),
        (b"<", "a web page"),
    ):
        if start.startswith(first):
            return kind
    if start[8:9] == b"{":
        return "a safetensors file that is not complete or has another name"
    return "of no known kind" if start else "empty"


def _kind_of_archive(path: str | os.PathLike[str]) -> str:
    """The kind in words of a file that begins as zip files do."""
    if not zipfile.is_zipfile(path):
        return "the beginning of an archive, not complete"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any("/code/" in name for name in names):
        return "a TorchScript archive"
    if any(name.endswith("data.pkl") for name in names):
        return "an archive of torch.save with other objects than tensors, a whole module for one"
    return "an archive of other files"
