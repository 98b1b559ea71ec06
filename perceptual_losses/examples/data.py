"""Labelled images to train on, and others to measure on.

They are patches of scikit-image's photos, for which nothing has to be downloaded, the images of a
folder, or a data set of torchvision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from skimage import color, transform
from skimage import data as photos
from torch import Tensor
from torch.utils.data import Subset, TensorDataset
from torchvision import datasets
from torchvision.transforms import functional

from perceptual_losses._images.folders import SUFFIXES, image_files
from perceptual_losses._images.picture import Reading

from .squares import Form, Images, Squares, read_squares

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
"""The shorter sides that each photo is scaled to: a patch shows a detail or a large part of it.

A patch's label is the index of its photo's shorter side.
"""

HELD_OUT_EVERY = 10
"""One file of so many in a folder is held out, in the order of the paths, the first included."""

HELD_OUT_AT_MOST = 1000
"""The most images that are measured on; they are spread evenly over all that are held out."""

READING = Reading(background="white")

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


class Data(NamedTuple):
    """Images in one form, and how files were read. Nothing is learned from the held-out ones."""

    name: str
    form: Form
    classes: list[str]
    training: Images
    held_out: Images
    reading: Reading = Reading()


class Mirrored(Images):
    """Each image followed by its mirror image."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return 2 * count(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        image, label = self.images[index // 2]
        return (image.flip(-1) if index % 2 else image), label


def count(images: Images) -> int:
    """The number of images: torch leaves it open whether a ``Dataset`` has a length."""
    return len(images)  # type: ignore[arg-type]


def load(name: str, form: Form, root: Path = Path("data"), reading: Reading = READING) -> Data:
    """The data that the commands know by a name, or the images of a folder.

    Args:
        name: ``"photos"``, ``"cifar10"``, ``"celeba"``, ``"mnist"`` or a folder of images.
        form: the form of all images.
        root: the folder where torchvision's data sets are, or are downloaded to.
        reading: the choices that image files leave open.

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
    return folder(Path(name), form, reading)


def embedded(form: Form) -> Data:
    """Overlapping patches of photos and their mirror images.

    The held-out patches belong to other photos and do not overlap.
    """
    size = form.image_size
    if size > min(SHORT_SIDES):
        raise ValueError(
            f"image_size={size} is larger than photos scaled to a side of {min(SHORT_SIDES)}: "
            f"pass at most {min(SHORT_SIDES)}, or a folder of larger images"
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


def folder(path: Path, form: Form, reading: Reading) -> Data:
    """All images of a folder, at any depth; its subfolders are the classes.

    Files are left out, and named on stderr, if they cannot be read exactly or are smaller than
    ``form``. Names that begin with a dot, and thumbnails of other programs, are no images.
    """
    if not path.is_dir():
        kind = "is a file" if path.exists() else "does not exist"
        raise ValueError(f"{path} {kind}: pass a folder of images, 'photos' or {', '.join(WHERE)}")
    found, _ = image_files(path)
    if not found:
        raise ValueError(f"{path} has no images: pass a folder with files {' '.join(SUFFIXES)}")
    files, values = read_squares(found, form, reading)
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
    images = Squares(values, [classes.index(name) for name in names], form)
    held_out = range(0, len(files), HELD_OUT_EVERY)
    training = sorted(set(range(len(files))) - set(held_out))
    return Data(
        str(path),
        form,
        classes,
        Mirrored(Subset(images, training)),
        spread(Subset(images, held_out)),
        reading,
    )


def single(path: Path, form: Form, reading: Reading) -> Data:
    """One image file, to look at what a model makes of it."""
    files, values = read_squares([path], form, reading)
    if not files:
        raise ValueError(f"{path} cannot be used: pass another image, or a folder of images")
    images = Squares(values, [0], form)
    return Data(str(path), form, ["."], images, images, reading)


def spread(images: Images) -> Images:
    """The images, or `HELD_OUT_AT_MOST` of them that are spread evenly over all."""
    chosen = torch.linspace(0, count(images) - 1, min(count(images), HELD_OUT_AT_MOST))
    return Subset(images, chosen.long().tolist())
