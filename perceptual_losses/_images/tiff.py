"""The reader of TIFF files, whose tags say what their numbers mean."""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from .picture import NotReadError, Picture, Reading, check_size, finished

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tifffile import TiffFile, TiffPage

# The values of the tags, as the TIFF 6.0 specification names them.
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, YCBCR = 0, 1, 2, 3, 6
UNSIGNED, SIGNED, FLOAT, UNDEFINED = 1, 2, 3, 4
SEPARATE = 2
ASSOCIATED_ALPHA, UNASSOCIATED_ALPHA = 1, 2
LZW, JPEG, ZSTANDARD = 5, 7, 50000

AS_GREY = "save it with 8 or 16 bits, in grey or RGB"


def read_tiff(file: BinaryIO, reading: Reading) -> Picture:
    """The picture of a TIFF, whose name is in neither the notices nor the errors.

    Raises:
        NotReadError: the tags describe something else than a grey or RGB image, or one that can't
            be read exactly.
    """
    from tifffile import TiffFile

    with TiffFile(file) as tiff:
        page = _only_page(tiff)
        check_size(page.imagewidth, page.imagelength, reading)
        _check_complete(page, tiff.filehandle.size)
        kind = int(page.photometric)
        bits, form = _number_kind(page)
        if kind not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, YCBCR):
            raise NotReadError(f"has pixels of the kind {_name(page.photometric)}: {AS_GREY}")
        premultiplied = _has_associated_alpha(page, kind)
        if bits < 8 or int(page.compression) == JPEG or kind == YCBCR:
            return finished(_read_with_pillow(file, page, bits), 255, reading)
        values = _upright(_samples(file, page), page)
    if kind == PALETTE:
        values = _coloured(values, page)
        return finished(values, np.iinfo(values.dtype).max, reading)
    if form == FLOAT:
        if kind == WHITE_IS_ZERO or values.shape[2] in (2, 4):
            raise NotReadError("has floats that are inverted or have alpha: save it without")
        return finished(values, None, reading)
    if bits > 16 and reading.data_range is None:
        raise NotReadError(
            f"has {bits} bits, of which few files use all: pass --data-range with the highest "
            "possible value"
        )
    highest = 2**bits - 1
    if kind == WHITE_IS_ZERO:
        values = values.copy()
        values[..., 0] = highest - values[..., 0]
    return finished(values, highest, reading, premultiplied=premultiplied)


def _name(value: int) -> str:
    """A tag's value as the specification names it, or the number of an unknown one."""
    return str(getattr(value, "name", value))


def _only_page(tiff: TiffFile) -> TiffPage:
    """The page of the image, without smaller copies of it."""
    from tifffile import TiffPage

    pages = [page for page in tiff.pages if isinstance(page, TiffPage) and not page.is_reduced]
    if len(pages) != 1:
        raise NotReadError(f"has {len(pages)} frames or pages: save the one that is meant")
    (page,) = pages
    if page.imagedepth > 1:
        raise NotReadError("is a volume: save the slice that is meant")
    return page


def _check_complete(page: TiffPage, size: int) -> None:
    """Refuses a file that ends before its pixels do: tifffile would leave them black."""
    parts = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    if not parts or any(offset + count > size or not count for offset, count in parts):
        raise NotReadError("is cut off: some of its pixels are missing")


def _number_kind(page: TiffPage) -> tuple[int, int]:
    """The bits and the format of every number."""
    tags = [page.tags.get(name) for name in ("BitsPerSample", "SampleFormat")]
    values = [{1} if tag is None else set(np.atleast_1d(tag.value).tolist()) for tag in tags]
    if any(len(found) > 1 for found in values):
        raise NotReadError(f"has channels with different bits: {AS_GREY}")
    (bits,), (form,) = values
    if form == SIGNED:
        raise NotReadError(f"has signed values of {bits} bits: save it with unsigned ones")
    if form not in (UNSIGNED, FLOAT, UNDEFINED):
        raise NotReadError(f"has pixels that are no real numbers: {AS_GREY}")
    return int(bits), int(form)


def _has_associated_alpha(page: TiffPage, kind: int) -> bool:
    """Whether colours are multiplied by alpha; refuses channels that are neither."""
    colours = 3 if kind in (RGB, YCBCR) else 1
    more = [int(extra) for extra in page.extrasamples]
    alpha = [extra in (ASSOCIATED_ALPHA, UNASSOCIATED_ALPHA) for extra in more]
    if page.samplesperpixel == colours:
        return False
    if page.samplesperpixel != colours + 1 or alpha != [True] or kind == PALETTE:
        raise NotReadError(
            f"has {page.samplesperpixel} channels, which its tags don't name as grey or RGB, with "
            "or without alpha: save those that are meant"
        )
    return more == [ASSOCIATED_ALPHA]


def _read_with_pillow(file: BinaryIO, page: TiffPage, bits: int) -> NDArray[Any]:
    """The values of a JPEG in a TIFF, and of pixels that share bytes."""
    from PIL import Image

    from .reader import upright_array

    jpeg = int(page.compression) == JPEG and bits == 8
    if not (jpeg or (bits < 8 and page.samplesperpixel == 1)):
        raise NotReadError(f"has {bits} bits in {_name(page.photometric)}: {AS_GREY}")
    file.seek(0)
    with Image.open(file, formats=["TIFF"]) as image:
        if image.mode not in ("1", "L", "P", "RGB", "YCbCr"):
            raise NotReadError(f"has pixels of the kind {image.mode}: {AS_GREY}")
        channels = {"1": "L", "P": "RGB", "YCbCr": "RGB"}.get(image.mode, image.mode)
        return upright_array(image.convert(channels))


def _samples(file: BinaryIO, page: TiffPage) -> NDArray[Any]:
    """The numbers ``(H, W, C)`` as they are stored."""
    by_pillow = int(page.compression) in (LZW, ZSTANDARD)
    values = _unpacked_by_pillow(file, page) if by_pillow else page.asarray()
    shape = page.samplesperpixel, page.imagelength, page.imagewidth
    if page.samplesperpixel > 1 and page.planarconfig == SEPARATE:
        return np.moveaxis(values.reshape(shape), 0, -1)
    return values.reshape(*shape[1:], shape[0])


def _unpacked_by_pillow(file: BinaryIO, page: TiffPage) -> NDArray[Any]:
    """The numbers of a compression that tifffile needs another package for.

    Pillow would cut off bits of the pixels. So it unpacks the bytes of each strip or tile as a row
    of grey pixels with 8 bits.
    """
    separate = page.planarconfig == SEPARATE and page.samplesperpixel > 1
    planes, channels = (page.samplesperpixel, 1) if separate else (1, page.samplesperpixel)
    height, width = page.imagelength, page.imagewidth
    if page.dtype is None:
        raise NotReadError(f"has {page.bitspersample} bits: {AS_GREY}")
    values = np.zeros((planes, height, width, channels), page.dtype)
    rows, columns = (
        (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, width)
    )
    down, across = -(-height // rows), -(-width // columns)
    compression, page.compression = int(page.compression), 1
    parts = zip(page.dataoffsets, page.databytecounts, strict=True)
    for index, (offset, count) in enumerate(parts):
        plane, place = divmod(index, down * across)
        top, left = place // across * rows, place % across * columns
        tall = rows if page.is_tiled else min(rows, height - top)
        file.seek(offset)
        size = tall * columns * channels * values.itemsize
        data = _unpacked_bytes(file.read(count), size, compression)
        part, _, _ = page.decode(data, index)
        assert part is not None  # It is for parts without bytes, which have been refused.
        target = values[plane, top : top + rows, left : left + columns]
        target[:] = part.reshape(-1, part.shape[-2], channels)[: len(target), : target.shape[1]]
    return values


def _unpacked_bytes(packed: bytes, size: int, compression: int) -> bytes:
    """The ``size`` bytes that have been packed, unpacked by Pillow as a TIFF with one row."""
    from PIL import Image

    tags = {256: size, 257: 1, 258: 8, 259: compression, 262: BLACK_IS_ZERO, 273: 200}
    tags |= {277: 1, 278: 1, 279: len(packed)}
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()]
    header = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + b"".join(entries)
    with Image.open(io.BytesIO(header.ljust(200, b"\0") + packed), formats=["TIFF"]) as image:
        return image.tobytes()


def _upright(values: NDArray[Any], page: TiffPage) -> NDArray[Any]:
    """The values turned and mirrored as the orientation tag says."""
    tag = page.tags.get("Orientation")
    orientation = 1 if tag is None else int(tag.value)
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return values[:, ::-1] if orientation in (2, 3, 6, 7) else values


def _coloured(indices: NDArray[Any], page: TiffPage) -> NDArray[Any]:
    """The colours of a palette. Its entries of 16 bits become 8 bits where these are enough."""
    if page.colormap is None:
        raise NotReadError("has a palette without its colours: save it as RGB")
    palette = np.moveaxis(np.asarray(page.colormap), 0, -1)
    # Programs widen 8 bits by repeating them, or by zeros.
    for factor in (257, 256):
        if not (palette % factor).any():
            palette = (palette // factor).astype(np.uint8)
            break
    coloured: NDArray[Any] = palette[indices[..., 0]]
    return coloured
