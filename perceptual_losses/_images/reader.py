"""The reader of image files, for the comparison and for training."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .picture import NotReadError, Picture, Reading, check_size, finished

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image, ImageFile

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "WEBP")
"""The formats that Pillow reads here. In other formats it may cut off bits silently."""

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

DEEP = "has more than 8 bits for each colour, which are read from PNG and TIFF only: save it as one"


def read_picture(
    path: Path, reading: Reading | None = None, *, at_least: int | None = None
) -> Picture:
    """An image as it is in its file, upright.

    Palettes become colours. Alpha is left out where it is opaque everywhere.

    Args:
        path: the file.
        reading: the choices that files leave open.
        at_least: the side in pixels that the caller scales larger images down to. A JPEG is then
            decoded at half, a quarter or an eighth of its size, but with sides of at least twice
            ``at_least``, which takes a fraction of the time.

    Raises:
        NotReadError: the file cannot be read completely and exactly.
    """
    from PIL import UnidentifiedImageError

    reading = reading or Reading()
    with _pillow_settings() as warned:
        try:
            picture = _read(path, reading, at_least)
        except NotReadError as error:
            raise NotReadError(f"{path} {error}") from error
        except UnidentifiedImageError as error:
            text = f"{path} is not in any of {', '.join(FORMATS)}, TIFF"
            raise NotReadError(text) from error
        except Exception as error:  # Whatever a broken file raises is the reason.
            text = f"{path} cannot be read ({type(error).__name__}: {error})"
            raise NotReadError(text) from error
    return picture._replace(notices=(*picture.notices, *warned))


_lock = threading.Lock()
_users = 0
_settings = contextlib.ExitStack()
_thread = threading.local()


@contextlib.contextmanager
def _pillow_settings() -> Iterator[list[str]]:
    """Suspends Pillow's limit of pixels, and collects its warnings in this thread.

    Pillow has the same limit for all, and warns at half of it. The limit and the handling of
    warnings belong to the process: the first thread changes them and the last one restores them.
    """
    global _users
    with _lock:
        if not _users:
            _change_settings()
        _users += 1
    warned: list[str] = []
    _thread.warned = warned
    try:
        yield warned
    finally:
        _thread.warned = None
        with _lock:
            _users -= 1
            if not _users:
                _settings.close()


def _change_settings() -> None:
    from PIL import Image

    _settings.callback(setattr, Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    Image.MAX_IMAGE_PIXELS = None
    _settings.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore")
    warnings.simplefilter("always", UserWarning)
    show = warnings.showwarning

    def keep(message: Warning | str, *details: Any, **more: Any) -> None:
        warned = getattr(_thread, "warned", None)
        if warned is None:
            show(message, *details, **more)
        else:
            warned.append(str(message))

    warnings.showwarning = keep


def _read(path: Path, reading: Reading, at_least: int | None) -> Picture:
    """The picture of a file, whose name is in neither the notices nor the errors."""
    from PIL import Image

    # Given a name, Pillow maps the file to memory, and mixes up the pixels of a rotated image.
    if path.exists() and not path.is_file():
        raise NotReadError("is no regular file: pass one")
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(0)
        if start in TIFF_STARTS:
            from .tiff import read_tiff

            return read_tiff(file, reading)
        with Image.open(file, formats=FORMATS) as image:
            return _decode(path, image, reading, at_least)


def _decode(
    path: Path, image: ImageFile.ImageFile, reading: Reading, at_least: int | None
) -> Picture:
    """The picture of a file that Pillow has opened and not yet decoded."""
    check_size(*image.size, reading)
    notices: tuple[str, ...] = ()
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        # Cameras put previews and depth maps into the other frames.
        if image.format != "MPO":
            raise NotReadError(f"has {frames} frames or pages: save the one that is meant")
        notices = (f"the first of {frames} pictures is read",)
    raw, highest = _stored_mode(image)
    if raw in ("1", "L;2", "L;4") and image.format == "PNG" and "transparency" in image.info:
        # Pillow scales the pixels to 8 bits and looks for the unscaled colour among them.
        raise NotReadError("has a transparent colour in fewer than 8 bits: save it with alpha")
    if at_least is not None:
        # Decoding at twice the size leaves most of the filtering to the scaling.
        image.draft(None, (2 * at_least, 2 * at_least))
    if image.format == "PNG" and ";16" in raw:
        values = _read_deep_png(path, image)
    elif image.mode.startswith("I") and image.format == "PPM":
        # Pillow scales any other highest value to that of 16 bits.
        values = upright_array(image).astype(np.uint16)
    elif image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
        raise NotReadError(
            f"has pixels of the kind {image.mode}: save it with 8 or 16 bits, in grey or RGB"
        )
    elif ";16" in raw or highest > 255:
        raise NotReadError(DEEP)
    else:
        values = upright_array(_true_colour(image))
    return finished(values, np.iinfo(values.dtype).max, reading, notices=notices)


def _stored_mode(image: Image.Image) -> tuple[str, int]:
    """Pillow's mode of the pixels in the file, and their highest value, or 0 if it isn't stated.

    The file may have more bits than Pillow reads. A decoded image knows only the mode it has then.
    """
    tiles = getattr(image, "tile", None)
    arguments: Any = tiles[0][3] if tiles else image.mode
    raw, *rest = (arguments,) if isinstance(arguments, str) else arguments
    return str(raw), rest[0] if image.format == "PPM" and rest else 0


def _true_colour(image: Image.Image) -> Image.Image:
    """The image with channels in place of a palette or of single bits."""
    if image.has_transparency_data:
        return image.convert("LA" if image.mode == "LA" else "RGBA")
    channels = {"1": "L", "P": "RGB", "PA": "RGB"}.get(image.mode, image.mode)
    return image if channels == image.mode else image.convert(channels)


def upright_array(image: Image.Image) -> NDArray[Any]:
    """The values ``(H, W, C)``, upright."""
    from PIL import ImageOps

    # Not in place, it would copy an image that is upright.
    ImageOps.exif_transpose(image, in_place=True)
    values = np.asarray(image)
    return values[..., None] if values.ndim == 2 else values


def _read_deep_png(path: Path, image: Image.Image) -> NDArray[Any]:
    """The values of a PNG with 16 bits. Pillow keeps only 8 if there is more than one channel."""
    from torchvision.io import decode_image

    if "transparency" in image.info:
        raise NotReadError("has a transparent colour: save it without")
    data = torch.from_numpy(np.fromfile(path, np.uint8))
    return np.moveaxis(decode_image(data, apply_exif_orientation=True).numpy(), 0, -1)
