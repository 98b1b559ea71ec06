"""Image files to compare, and the command that compares them."""

import struct
import zlib

import numpy as np
import skimage.data
import torch
from PIL import Image
from skimage.metrics import structural_similarity

from perceptual_losses.compare import cli


def png16(path, values, *, chunk=b""):
    """Writes a PNG of 16 bits with any number of channels, which Pillow cannot."""

    def chunked(kind, data):
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    height, width, channels = values.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    body = chunked(chunk[:4], chunk[4:]) if chunk else b""
    body += chunked(b"IDAT", zlib.compress(rows, 1))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunked(b"IHDR", header) + body + chunked(b"IEND", b""))


def patch(name, side=170, bits=8):
    """A part of a photo of scikit-image, and the same with noise, ``(H, W)`` or ``(H, W, 3)``."""
    dtype, top = (np.uint8, 255) if bits == 8 else (np.uint16, 65535)
    photo = getattr(skimage.data, name)()[100 : 100 + side, 150 : 150 + side + 5]
    # More than 8 bits of it count.
    x = photo * (top / 255)
    noise = np.random.RandomState(5).randn(2, *x.shape) * top / 255
    return tuple(
        np.clip(x + s * n, 0, top).astype(dtype) for s, n in zip((1, 8), noise, strict=True)
    )


def write(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    if values.dtype == np.uint16 and values.ndim == 3:
        png16(path, values)
    else:
        Image.fromarray(values).save(path)


def definition(x, y, data_range=None):
    return structural_similarity(
        *(np.asarray(x, np.float64), np.asarray(y, np.float64)),
        data_range=data_range or np.iinfo(x.dtype).max,
        channel_axis=-1 if x.ndim == 3 else None,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )


def tensor(values):
    values = values[..., None] if values.ndim == 2 else values
    return torch.from_numpy(np.moveaxis(values.astype(np.float64), -1, 0)[None].copy())


def run(*flags):
    return cli.main(["compare", *map(str, flags)])
