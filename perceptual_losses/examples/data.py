"""Labelled images to train on, and others to measure on.

They are photos that come with scikit-image, so that nothing has to be downloaded, a folder of
images, or a data set of torchvision.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from skimage import color, transform
from skimage import data as photos
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset
from torchvision import datasets
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import functional
from tqdm import tqdm

from perceptual_losses.compare.files import is_deep_grey, stored_mode

Images = Dataset[Any]
"""Images ``(C, H, W)``, each with the number of its class."""

Photo = Callable[[], Any]

TRAINING_PHOTOS: dict[str, Photo] = {
    "astronaut": photos.astronaut,
    "brick": photos.brick,
    "camera": photos.camera,
    "coins": photos.coins,
    "grass": photos.grass,
    "gravel": photos.gravel,
    "hubble": photos.hubble_deep_field,
    "moon": photos.moon,
    "motorcycle": lambda: photos.stereo_motorcycle()[0],
    "retina": photos.retina,
    "rocket": photos.rocket,
    "tissue": photos.immunohistochemistry,
}

HELD_OUT_PHOTOS: dict[str, Photo] = {"chelsea": photos.chelsea, "coffee": photos.coffee}

SHORT_SIDES = (256, 224, 192, 160, 128)
"""The shorter sides that each photo is scaled to: a patch shows a detail of it, or a good part.

A patch's label is the number of its side in this list.
"""

HELD_OUT_EVERY = 10
"""Each tenth file of a folder is held out, in the order of their names."""

HELD_OUT_AT_MOST = 1000
"""The most images that are measured on; if there are more, these are spread evenly over all."""

IMAGE_SIZES = {"cifar10": 32, "mnist": 32}
"""Sides in pixels that suit a data set; 64 suit all others."""

WHERE = {
    "cifar10": "put https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz at "
    "{root}/cifar-10-python.tar.gz",
    "mnist": "put the four files train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, "
    "t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz of "
    "https://ossci-datasets.s3.amazonaws.com/mnist/ into {root}/MNIST/raw",
    "celeba": "put img_align_celeba.zip, unpacked, and the five .txt files of "
    "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html into {root}/celeba",
}
"""The advice for a machine without internet, by data set."""


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
        """The middle of an image of any size, upright.

        Args:
            image: an image in any of Pillow's modes with 8 bits, or with 16 in grey. One that
                comes from a file must not be decoded yet, because Pillow then forgets how many
                bits the file has.

        Raises:
            ValueError: the values have no known range, such as floats or integers of 32 bits.
        """
        if problem := without_range(image):
            raise ValueError(f"the image {problem}")
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):
            # Pillow would clip 16 bits at 255 and make the image white.
            image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
        image = image.convert("L" if self.channels == 1 else "RGB")
        square = functional.center_crop(
            functional.resize(image, [self.image_size]), [self.image_size]
        )
        return self.ranged(functional.to_tensor(square))

    def ranged(self, x: Tensor) -> Tensor:
        """The values in [0, 1], scaled to the range."""
        low, high = self.data_range
        return x if (low, high) == (0, 1) else low + (high - low) * x


def without_range(image: Image.Image) -> str | None:
    """The problem of an image, not decoded yet, whose values have no known range."""
    if not image.mode.startswith(("I", "F")) or is_deep_grey(image):
        return None
    mode, _ = stored_mode(image)
    return f"has pixels of the kind {mode}: save it with 8 or 16 bits, in grey or RGB"


class Data(NamedTuple):
    """Images in one form. Nothing is learned from the held-out ones."""

    name: str
    form: Form
    classes: list[str]
    training: Images
    held_out: Images


class Mirrored(Images):
    """Each image followed by its mirror image."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return 2 * count(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        image, label = self.images[index // 2]
        return (image.flip(-1) if index % 2 else image), label


class Files(Images):
    """Image files, read when they are asked for."""

    def __init__(self, files: Sequence[Path], labels: Sequence[int], form: Form) -> None:
        self.files, self.labels, self.form = files, labels, form

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        # Given a name, Pillow 13 maps the file, and mixes up the pixels of a rotated TIFF.
        with self.files[index].open("rb") as file, Image.open(file) as image:
            return self.form.of(image), self.labels[index]


def count(images: Images) -> int:
    """The number of images: torch leaves it open whether a ``Dataset`` has a length."""
    return len(images)  # type: ignore[arg-type]


def load(name: str, form: Form, root: Path = Path("data")) -> Data:
    """The data that the commands know by a name, or the images of a folder.

    Args:
        name: ``"photos"``, ``"cifar10"``, ``"celeba"``, ``"mnist"`` or a folder of images.
        form: the form of all images.
        root: the folder where torchvision's data sets are, or are downloaded to.

    Raises:
        ValueError: the folder or the form cannot be used; the message says why.
        RuntimeError: a download failed; the message says which file to put where.
    """
    if name == "photos":
        return embedded(form)
    if name in WHERE:
        try:
            return downloaded(name, form, root)
        except Exception as error:  # Whatever a download fails with is the reason.
            where = WHERE[name].format(root=root)
            raise RuntimeError(
                f"{name} is not at {root} and could not be downloaded "
                f"({type(error).__name__}: {error}): {where}, or pass the --root that has it"
            ) from error
    return folder(Path(name), form)


def embedded(form: Form) -> Data:
    """Overlapping patches of photos and their mirror images.

    The held-out patches belong to other photos and do not overlap.
    """
    size = form.image_size
    if size > min(SHORT_SIDES):
        raise ValueError(
            f"the photos are cut at a height of {min(SHORT_SIDES)} pixels too, and image_size="
            f"{size}: pass at most {min(SHORT_SIDES)}, or a folder of larger images"
        )
    return Data(
        "photos",
        form,
        [f"{side} px" for side in SHORT_SIDES],
        Mirrored(cut(TRAINING_PHOTOS.values(), form, stride=max(1, 3 * size // 8))),
        cut(HELD_OUT_PHOTOS.values(), form, stride=size),
    )


def cut(sources: Iterable[Photo], form: Form, *, stride: int) -> TensorDataset:
    """The patches of each photo at each scale, ``stride`` pixels apart."""
    size = form.image_size
    patches, labels = [], []
    for photo in sources:
        image = photo()
        if image.ndim == 2:
            image = color.gray2rgb(image)
        height, width, _ = image.shape
        for label, short_side in enumerate(SHORT_SIDES):
            scale = short_side / min(height, width)
            shape = round(scale * height), round(scale * width)
            # `resize` also takes the integers to [0, 1].
            scaled = torch.from_numpy(transform.resize(image, shape, anti_aliasing=True)).float()
            grid = scaled.unfold(0, size, stride).unfold(1, size, stride).flatten(0, 1)
            patches.append(grid)
            labels += [label] * len(grid)
    images = torch.cat(patches)
    if form.channels == 1:
        images = functional.rgb_to_grayscale(images)
    return TensorDataset(form.ranged(images), torch.tensor(labels))


def downloaded(name: str, form: Form, root: Path) -> Data:
    """A data set of torchvision, with its own split."""
    options: dict[str, Any] = {"root": root, "download": True, "transform": form.of}
    if name == "celeba":
        training = datasets.CelebA(split="train", target_transform=smiling, **options)
        held_out = datasets.CelebA(split="valid", target_transform=smiling, **options)
        classes = ["not smiling", "smiling"]
    else:
        source = {"cifar10": datasets.CIFAR10, "mnist": datasets.MNIST}[name]
        training, held_out = source(train=True, **options), source(train=False, **options)
        classes = list(training.classes)
    if name != "mnist":  # The mirror image of a digit is no digit.
        training = Mirrored(training)
    return Data(name, form, classes, training, spread(held_out))


def smiling(attributes: Tensor) -> int:
    """The label among CelebA's forty attributes: whether a face smiles."""
    return int(attributes[31])


def folder(path: Path, form: Form) -> Data:
    """All images of a folder, at any depth; its subfolders are the classes.

    Files are left out, and named on stderr, if they cannot be read, have values of no known range
    or are smaller than ``form``.
    """
    if not path.is_dir():
        kind = "is a file" if path.exists() else "does not exist"
        raise ValueError(f"{path} {kind}: pass a folder of images, 'photos' or {', '.join(WHERE)}")
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMG_EXTENSIONS)
    if not found:
        raise ValueError(
            f"{path} has no images: pass a folder with files {' '.join(IMG_EXTENSIONS)}"
        )
    problems = unusable(found, form.image_size)
    if problems and speaks():
        for file, problem in problems.items():
            print(f"{file} {problem}", file=sys.stderr)
        print(f"left out {len(problems)} of {len(found)} images of {path}", file=sys.stderr)
    files = [file for file in found if file not in problems]
    if len(files) < 2:
        raise ValueError(
            f"{path} has {len(files)} images that can be used, of {len(found)}: pass a folder with "
            f"at least 2 of {form.image_size}x{form.image_size} pixels, one of them to measure on"
        )
    names = [
        relative.parts[0] if len(relative.parts) > 1 else "."
        for relative in (file.relative_to(path) for file in files)
    ]
    classes = sorted(set(names))
    images = Files(files, [classes.index(name) for name in names], form)
    held_out = range(0, len(files), HELD_OUT_EVERY)
    training = sorted(set(range(len(files))) - set(held_out))
    return Data(
        str(path),
        form,
        classes,
        Mirrored(Subset(images, training)),
        spread(Subset(images, held_out)),
    )


def unusable(files: Sequence[Path], image_size: int) -> dict[Path, str]:
    """The problems of files that cannot be used. Each is decoded: a header tells too little."""

    def problem(file: Path) -> str | None:
        try:
            with Image.open(file) as image:
                range_problem = without_range(image)
                image.load()
                width, height = image.size
        except Exception as error:  # Whatever a broken file raises is the reason.
            return f"cannot be read ({type(error).__name__}: {error})"
        if range_problem:
            return range_problem
        if min(width, height) < image_size:
            return f"has {width}x{height} pixels, less than {image_size}x{image_size}"
        return None

    with ThreadPoolExecutor() as pool:
        checked = tqdm(
            pool.map(problem, files),
            "checking",
            len(files),
            unit="file",
            leave=False,
            disable=not speaks(),
        )
        return {file: text for file, text in zip(files, checked, strict=True) if text}


def speaks() -> bool:
    """Whether this process prints: only the first one that torchrun starts does."""
    return os.environ.get("RANK", "0") == "0"


def spread(images: Images) -> Images:
    """The images, or `HELD_OUT_AT_MOST` of them that are spread evenly over all."""
    chosen = torch.linspace(0, count(images) - 1, min(count(images), HELD_OUT_AT_MOST))
    return Subset(images, chosen.long().tolist())
