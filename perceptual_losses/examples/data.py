"""Labelled images to train on, and others to measure on: photos that come with scikit-image, so
that nothing has to be downloaded, a folder of one's own, or a data set of torchvision.
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
"""Each photo is scaled to these: a patch then shows a detail of it, or a good part. Which of them
it was is the label of a patch.
"""

HELD_OUT_EVERY = 10
"""Of the files of a folder in the order of their names, each tenth is held out."""

HELD_OUT_AT_MOST = 1000
"""Images that are measured on; of more, these are spread evenly over all."""

IMAGE_SIZES = {"cifar10": 32, "mnist": 32}
"""Sides that suit a data set. Elsewhere 64 pixels do."""

WHERE = {
    "cifar10": "put https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz at "
    "{root}/cifar-10-python.tar.gz",
    "mnist": "put the four files train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, "
    "t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz of "
    "https://ossci-datasets.s3.amazonaws.com/mnist/ into {root}/MNIST/raw",
    "celeba": "put img_align_celeba.zip, unpacked, and the five .txt files of "
    "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html into {root}/celeba",
}
"""What to do on a machine without network."""


@dataclass(frozen=True)
class Form:
    """What every image is brought to: its side in pixels, its channels and its range."""

    image_size: int = 64
    channels: int = 3
    data_range: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ValueError(f"channels={self.channels}: pass 1 for grey images or 3 for colour")

    def of(self, image: Image.Image) -> Tensor:
        """The middle of an image of any size, upright.

        Args:
            image: in any of Pillow's modes with 8 bits, or with 16 in grey; if it comes from a
                file, not decoded yet, as Pillow then forgets the bits that the file has.

        Raises:
            ValueError: its values have no known range, as floats or integers of 32 bits.
        """
        if problem := without_range(image):
            raise ValueError(f"the image {problem}")
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):
            # Pillow would cut 16 bits off at 255 and make the image white.
            image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
        image = image.convert("L" if self.channels == 1 else "RGB")
        square = functional.center_crop(
            functional.resize(image, [self.image_size]), [self.image_size]
        )
        return self.ranged(functional.to_tensor(square))

    def ranged(self, x: Tensor) -> Tensor:
        """Values in [0, 1], brought to the range."""
        low, high = self.data_range
        return x if (low, high) == (0, 1) else low + (high - low) * x


def without_range(image: Image.Image) -> str | None:
    """What is wrong with an image, not decoded yet, whose values have no known range."""
    if not image.mode.startswith(("I", "F")) or is_deep_grey(image):
        return None
    kind, _ = stored_mode(image)
    return f"has pixels of the kind {kind}: save it with 8 or 16 bits, in grey or RGB"


class Data(NamedTuple):
    """Images in one form. Nothing is learned from those that are held out."""

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
        # Of a name Pillow 13 maps the file, and mixes up the pixels of a TIFF that is turned.
        with self.files[index].open("rb") as file, Image.open(file) as image:
            return self.form.of(image), self.labels[index]


def count(images: Images) -> int:
    """How many there are: torch leaves it open whether a ``Dataset`` has a length."""
    return len(images)  # type: ignore[arg-type]


def load(name: str, form: Form, root: Path = Path("data")) -> Data:
    """The data of a name that the commands know, or of a folder.

    Args:
        name: ``"photos"``, ``"cifar10"``, ``"celeba"``, ``"mnist"`` or a folder of images.
        form: of all images.
        root: where torchvision's data sets are, or are downloaded to.

    Raises:
        ValueError: the folder or the form is of no use; with what is wrong.
        RuntimeError: a download failed; with which file to put where.
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
    """Overlapping patches and their mirror images; the held-out ones are of other photos and do not
    overlap.
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
    if name != "mnist":  # The mirror image of a digit is none.
        training = Mirrored(training)
    return Data(name, form, classes, training, spread(held_out))


def smiling(attributes: Tensor) -> int:
    """One of CelebA's forty attributes."""
    return int(attributes[31])


def folder(path: Path, form: Form) -> Data:
    """All images of a folder, at any depth; its subfolders are the classes.

    Files that cannot be read, have values of no known range or are smaller than ``form`` are left
    out, and named on stderr.
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
    """What is wrong with the files that cannot be used. Decodes each: a header tells too little."""

    def problem(file: Path) -> str | None:
        try:
            with Image.open(file) as image:
                kind = without_range(image)
                image.load()
                width, height = image.size
        except Exception as error:  # Whatever a broken file raises is the reason.
            return f"cannot be read ({type(error).__name__}: {error})"
        if kind:
            return kind
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
    """Whether this is the one that says things, of the processes that torchrun starts."""
    return os.environ.get("RANK", "0") == "0"


def spread(images: Images) -> Images:
    """At most `HELD_OUT_AT_MOST` of some images, evenly."""
    chosen = torch.linspace(0, count(images) - 1, min(count(images), HELD_OUT_AT_MOST))
    return Subset(images, chosen.long().tolist())
