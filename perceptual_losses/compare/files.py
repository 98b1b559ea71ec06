"""The image files to compare: which belong together, and their pixels as the files have them."""

from __future__ import annotations

import contextlib
import unicodedata
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image, ImageFile

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""The formats that are read. In others Pillow may cut off bits without a word."""

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""The names' endings by which folders are searched."""

Row = dict[str, Any]
"""The results of a pair: its name with numbers, or with a problem."""


class NotComparedError(Exception):
    """Two files cannot be compared; the message is the reason."""


class Pair(NamedTuple):
    """Two files to compare.

    Attributes:
        name: the pair's name in tables.
        a: the first file.
        b: the second file.
    """

    name: str
    a: Path
    b: Path


class Picture(NamedTuple):
    """An image as it is in its file, upright.

    Attributes:
        values: ``(H, W, C)``, with one channel or three; uint8 or uint16.
        notices: remarks on parts of the file that were left out.
    """

    values: NDArray[Any]
    notices: tuple[str, ...] = ()

    @property
    def data_range(self) -> int:
        """The highest value that the bits allow."""
        return int(np.iinfo(self.values.dtype).max)

    def __str__(self) -> str:
        height, width, channels = self.values.shape
        plural = "" if channels == 1 else "s"
        return (
            f"{width}x{height} pixels, {channels} channel{plural}, {8 * self.values.itemsize} bits"
        )


def find_pairs(a: Path, b: Path) -> tuple[list[Pair], list[Row], int]:
    """Two files, or the images of two folders that have the same path in both, at any depth.

    Returns:
        The pairs in the order of their names, the images that are in only one folder, and the
        number of other files.

    Raises:
        ValueError: there is nothing to compare, or a file would be compared with a folder.
    """
    for path in (a, b):
        if not path.exists():
            raise ValueError(f"{path} does not exist: pass two images or two folders of images")
    if a.is_dir() != b.is_dir():
        one, other = (a, b) if a.is_dir() else (b, a)
        raise ValueError(f"{one} is a folder and {other} a file: pass two of a kind")
    if not a.is_dir():
        return [Pair(printable(a.name if a.name == b.name else f"{a}, {b}"), a, b)], [], 0
    found, others = zip(*map(_find_images, (a, b)), strict=True)
    if not (found[0] or found[1]):
        raise ValueError(
            f"{a} and {b} have no images: pass folders with files {' '.join(SUFFIXES)}"
        )
    paired, problems = [], []
    for name in sorted({*found[0], *found[1]}):
        files = [images.get(name, []) for images in found]
        if [len(same) for same in files] == [1, 1]:
            paired.append(Pair(name, files[0][0], files[1][0]))
        elif all(files):
            problems.append(problem_row(name, "several files have this name in other characters"))
        else:
            problems.append(problem_row(name, f"is in {printable(a if files[0] else b)} alone"))
    return paired, problems, sum(others)


def _find_images(folder: Path) -> tuple[dict[str, list[Path]], int]:
    """The images of a folder by their path in it, and the number of other files."""
    files = [path for path in folder.rglob("*") if not path.is_dir()]
    found: dict[str, list[Path]] = {}
    for path in files:
        if path.suffix.lower() in SUFFIXES:
            # File systems differ in how they write an accent.
            name = unicodedata.normalize("NFC", path.relative_to(folder).as_posix())
            found.setdefault(printable(name), []).append(path)
    return found, len(files) - sum(map(len, found.values()))


def printable(name: str | Path) -> str:
    """A name, whatever its bytes, as text that can be written."""
    return str(name).encode("utf-8", "backslashreplace").decode()


def problem_row(name: str, text: str) -> Row:
    """The row of a pair that was not compared."""
    return {"file": name, "problem": text}


def read_picture(path: Path, *, megapixels: float) -> Picture:
    """An image as it is in its file, upright.

    Palettes become colours. Alpha is left out where it is opaque everywhere.

    Args:
        path: the file.
        megapixels: the most that the image may have.

    Raises:
        NotComparedError: the file cannot be read completely and exactly.
    """
    from PIL import Image, UnidentifiedImageError

    with _no_pillow_limit(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        try:
            # Given a name, Pillow maps the file, and mixes up the pixels of a rotated TIFF.
            with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
                picture = _decode(path, image, megapixels)
        except NotComparedError as error:
            raise NotComparedError(f"{path} {error}") from error
        except UnidentifiedImageError as error:
            raise NotComparedError(f"{path} is not in any of {', '.join(FORMATS)}") from error
        except Exception as error:  # Whatever a broken file raises is the reason.
            text = f"{path} cannot be read ({type(error).__name__}: {error})"
            raise NotComparedError(text) from error
    notices = [*picture.notices, *(str(warning.message) for warning in caught)]
    return picture._replace(notices=tuple(f"{path}: {notice}" for notice in notices))


@contextlib.contextmanager
def _no_pillow_limit() -> Iterator[None]:
    """Suspends Pillow's own limit of pixels, which is fixed and warns at half of it."""
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _decode(path: Path, image: ImageFile.ImageFile, megapixels: float) -> Picture:
    width, height = image.size
    if width * height > megapixels * 1e6:
        raise NotComparedError(
            f"has {width}x{height} pixels, more than {megapixels:g} million: raise --max-megapixels"
        )
    notices: tuple[str, ...] = ()
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        # Cameras put previews and depth maps into the other frames.
        if image.format != "MPO":
            raise NotComparedError(f"has {frames} frames or pages: save the one that is meant")
        notices = (f"the first of its {frames} pictures is read",)
    raw, highest = stored_mode(image)
    if image.format == "PNG" and ";16" in raw:
        values = _read_deep_png(path, image)
    elif is_deep_grey(image):
        values = _array(image).astype(np.uint16)
    elif image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
        raise NotComparedError(
            f"has pixels of the kind {image.mode}: save it with 8 or 16 bits, in grey or RGB"
        )
    elif ";16" in raw or highest > 255:
        raise NotComparedError(
            "has more than 8 bits for each colour, which are read from PNG alone: save it as that"
        )
    else:
        values = _array(_true_colour(image))
    return _without_alpha(values, notices)


def stored_mode(image: Image.Image) -> tuple[str, int]:
    """Pillow's mode of the pixels in the file, and their highest value or 0 if it isn't stated.

    The file may have more bits than Pillow reads. A decoded image only knows its present mode.
    """
    tiles = getattr(image, "tile", None)
    arguments: Any = tiles[0][3] if tiles else image.mode
    raw, *rest = (arguments,) if isinstance(arguments, str) else arguments
    return str(raw), rest[0] if image.format == "PPM" and rest else 0


def is_deep_grey(image: Image.Image) -> bool:
    """Whether grey pixels have 16 bits. Pillow may read them as 32, and scales those of a PGM."""
    raw, _ = stored_mode(image)
    deep = image.format == "PPM" or (raw.startswith("I;16") and not raw.endswith("S"))
    return image.mode.startswith("I") and deep


def _true_colour(image: Image.Image) -> Image.Image:
    """The image with channels in place of a palette or of single bits."""
    if image.has_transparency_data:
        return image.convert("LA" if image.mode == "LA" else "RGBA")
    return image.convert({"1": "L", "P": "RGB", "PA": "RGB"}.get(image.mode, image.mode))


def _array(image: Image.Image) -> NDArray[Any]:
    """The values ``(H, W, C)``, upright."""
    from PIL import ImageOps

    values = np.asarray(ImageOps.exif_transpose(image))
    return values[..., None] if values.ndim == 2 else values


def _read_deep_png(path: Path, image: Image.Image) -> NDArray[Any]:
    """The values of a PNG with 16 bits. Pillow keeps only 8 if there is more than one channel."""
    from torchvision.io import decode_image

    if "transparency" in image.info:
        raise NotComparedError("has a transparent colour: save it without")
    data = torch.from_numpy(np.fromfile(path, np.uint8))
    return np.moveaxis(decode_image(data, apply_exif_orientation=True).numpy(), 0, -1)


def _without_alpha(values: NDArray[Any], notices: tuple[str, ...]) -> Picture:
    """The picture without its alpha channel, which must be opaque everywhere."""
    channels = values.shape[2]
    if channels in (1, 3):
        return Picture(values, notices)
    if values[..., -1].min() < np.iinfo(values.dtype).max:
        raise NotComparedError("is transparent in parts: put it on a background first")
    return Picture(values[..., :-1], (*notices, "its alpha is opaque everywhere and left out"))
