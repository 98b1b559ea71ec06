"""Images in one form: the middle of each, kept as bytes, so that every file is decoded once."""

from __future__ import annotations

import contextlib
import io
import math
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import functional
from tqdm import tqdm

from perceptual_losses._images.picture import NotReadError, Picture, Reading
from perceptual_losses._images.reader import read_picture

Images = Dataset[Any]
"""Images ``(C, H, W)``, each with the number of its class."""

MAPPED_FROM = 2**28
"""The most bytes of squares that are kept in memory; more are kept in a file."""


@dataclass(frozen=True)
class Form:
    """The form that every image is brought to: side in pixels, channels and range."""

    image_size: int = 64
    channels: int = 3
    data_range: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ValueError(f"channels={self.channels}: pass 1 for grey images or 3 for colour")

    def of(self, image: Image.Image) -> Tensor:
        """The middle of an image with 8 bits, ``(C, H, W)`` in the range."""
        return self.ranged(functional.to_tensor(self._square(image)))

    def bytes_of(self, picture: Picture) -> Tensor:
        """The middle of a picture, ``(C, H, W)`` from 0 to 255."""
        values = picture.values
        if values.dtype != np.uint8 or picture.data_range != 255:
            scaled = values.astype(np.float32) * (255 / picture.data_range)
            values = scaled.round().astype(np.uint8)
        image = Image.fromarray(values[..., 0] if values.shape[2] == 1 else values)
        tensor: Tensor = functional.pil_to_tensor(self._square(image))
        return tensor

    def _square(self, image: Image.Image) -> Image.Image:
        image = image.convert("L" if self.channels == 1 else "RGB")
        size = [self.image_size]
        square: Image.Image = functional.center_crop(functional.resize(image, size), size)
        return square

    def ranged(self, x: Tensor) -> Tensor:
        """The values in [0, 1], scaled to the range."""
        low, high = self.data_range
        return x if (low, high) == (0, 1) else low + (high - low) * x


class Squares(Images):
    """Images that have been read and cut, kept as bytes.

    Args:
        values: ``(N, C, H, W)`` from 0 to 255.
        labels: the number of each image's class.
        form: the form, whose range they get when they are asked for.
    """

    def __init__(self, values: Tensor, labels: Sequence[int], form: Form) -> None:
        self.values, self.labels, self.form = values, labels, form

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        return self.form.ranged(self.values[index].float() / 255), self.labels[index]


def read_squares(files: Sequence[Path], form: Form, reading: Reading) -> tuple[list[Path], Tensor]:
    """The files that can be used, and their middles ``(N, C, H, W)`` as bytes.

    Each file is decoded once. Many squares are kept in a temporary file that is mapped to memory.
    Stderr names the files that are left out, and counts those that are changed.
    """
    shape = form.channels, form.image_size, form.image_size
    used: list[Path] = []
    problems: list[str] = []
    notices: Counter[str] = Counter()
    with contextlib.ExitStack() as stack:
        is_mapped = len(files) * math.prod(shape) > MAPPED_FROM
        opened = tempfile.TemporaryFile if is_mapped else io.BytesIO
        memory = stack.enter_context(opened())
        pool = stack.enter_context(ThreadPoolExecutor())
        # When reading is interrupted, the files that wait are not read.
        stack.callback(pool.shutdown, cancel_futures=True)
        found = pool.map(lambda file: read_square(file, form, reading), files)
        options: dict[str, Any] = {
            "unit": "file",
            "leave": False,
            "disable": None if speaks() else True,
        }
        for file, result in zip(files, tqdm(found, "reading", len(files), **options), strict=True):
            if isinstance(result, str):
                problems.append(result)
                continue
            memory.write(result[0])
            notices.update(result[1])
            used.append(file)
        memory.flush()
        if not used:
            values = np.empty(0, np.uint8)
        elif is_mapped:
            values = np.memmap(memory, np.uint8, "c")
        else:
            memory.seek(0)
            values = np.frombuffer(bytearray(memory.read()), np.uint8)
    if speaks():
        lines = [f"{times} of {len(files)} images: {text}" for text, times in notices.items()]
        for line in (*problems, *lines):
            print(line, file=sys.stderr)
        if problems:
            print(f"left out {len(problems)} of {len(files)} images", file=sys.stderr)
    return used, torch.from_numpy(values.reshape(len(used), *shape))


def read_square(file: Path, form: Form, reading: Reading) -> tuple[bytes, tuple[str, ...]] | str:
    """The middle of an image as bytes and the notices, or the reason why it cannot be used."""
    try:
        picture = read_picture(file, reading, at_least=form.image_size)
    except NotReadError as error:
        return str(error)
    height, width, _ = picture.values.shape
    if min(width, height) < form.image_size:
        size = f"{form.image_size}x{form.image_size}"
        return f"{file} has {width}x{height} pixels, less than {size}"
    return form.bytes_of(picture).numpy().tobytes(), picture.notices


def speaks() -> bool:
    """Whether this process prints: only the first one that torchrun starts does."""
    return os.environ.get("RANK", "0") == "0"
