"""Image files against each other, for ``python -m perceptual_losses compare``: what it reads, what
it measures, and what it writes.

Matplotlib, Pillow, scikit-image and tqdm are imported where they are needed: the package does
without.
"""

from __future__ import annotations

import contextlib
import csv
import json
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import __version__, _validation
from .structural import MS_SSIM_WEIGHTS, ms_ssim, ssim, ssim_map

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from PIL import Image, ImageFile

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What is read. Of others Pillow may cut off bits without a word."""

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Files that are compared in folders."""

WINDOW = 11
"""Pixels across the window of `ssim`, by default."""

BOUND = 1e-6
"""How far SSIM may be from scikit-image's."""

BAND = 2**20
"""Values of a part of the map: plain torch computes it, with many maps of that size."""

Row = dict[str, Any]
"""What is known of a pair: numbers, or a problem."""

METRICS = {"ssim": "SSIM", "ms_ssim": "MS-SSIM", "vgg": "VGG", "lpips": "LPIPS"}

Loss = Callable[[Tensor, Tensor], Tensor]


class NotComparedError(Exception):
    """Two files that cannot be compared; with the reason."""


class Pair(NamedTuple):
    """Two files that are to be compared.

    Attributes:
        name: in tables.
        a: the first file.
        b: the second.
    """

    name: str
    a: Path
    b: Path


class Picture(NamedTuple):
    """An image as it is in its file, upright.

    Attributes:
        values: ``(H, W, C)``, with one channel or three; uint8 or uint16.
        notices: what has been left out.
    """

    values: NDArray[Any]
    notices: tuple[str, ...] = ()

    @property
    def data_range(self) -> int:
        """The highest value that the bits allow."""
        return int(np.iinfo(self.values.dtype).max)

    def __str__(self) -> str:
        height, width, channels = self.values.shape
        kind = "1 channel" if channels == 1 else f"{channels} channels"
        return f"{width}x{height} pixels, {kind}, {8 * self.values.itemsize} bits"


def pairs(a: Path, b: Path) -> tuple[list[Pair], list[Row], int]:
    """What is to be compared: two files, or the images of two folders that have the same path in
    both, at any depth.

    Returns:
        The pairs in the order of their names, the images that are in one folder alone, and the
        number of other files.

    Raises:
        ValueError: there is nothing to compare, or it is not two of a kind.
    """
    for path in (a, b):
        if not path.exists():
            raise ValueError(f"{path} does not exist: pass two images or two folders of images")
    if a.is_dir() != b.is_dir():
        one, other = (a, b) if a.is_dir() else (b, a)
        raise ValueError(f"{one} is a folder and {other} a file: pass two of a kind")
    if not a.is_dir():
        return [Pair(_printable(a.name if a.name == b.name else f"{a}, {b}"), a, b)], [], 0
    found, others = zip(*map(_images, (a, b)), strict=True)
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
            problems.append(_problem(name, "several files have this name in other characters"))
        else:
            problems.append(_problem(name, f"is in {_printable(a if files[0] else b)} alone"))
    return paired, problems, sum(others)


def _images(folder: Path) -> tuple[dict[str, list[Path]], int]:
    """The images of a folder by what they are called in it, and the number of other files."""
    files = [path for path in folder.rglob("*") if not path.is_dir()]
    found: dict[str, list[Path]] = {}
    for path in files:
        if path.suffix.lower() in SUFFIXES:
            # File systems differ in how they write an accent.
            name = unicodedata.normalize("NFC", path.relative_to(folder).as_posix())
            found.setdefault(_printable(name), []).append(path)
    return found, len(files) - sum(map(len, found.values()))


def _printable(name: str | Path) -> str:
    """A name of any bytes as text that can be written."""
    return str(name).encode("utf-8", "backslashreplace").decode()


def _problem(name: str, text: str) -> Row:
    return {"file": name, "problem": text}


def read(path: Path, *, megapixels: float) -> Picture:
    """An image as it is in its file, upright.

    Palettes become colours. Alpha is left out where it is opaque everywhere.

    Args:
        path: of the file.
        megapixels: that it may have at most.

    Raises:
        NotComparedError: it cannot be read whole and exactly; with the reason.
    """
    from PIL import Image, UnidentifiedImageError

    with _own_limit(), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        try:
            # Of a name Pillow maps the file, and mixes up the pixels of a TIFF that is turned.
            with path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
                picture = _decoded(path, image, megapixels)
        except NotComparedError as error:
            raise NotComparedError(f"{path} {error}") from error
        except UnidentifiedImageError as error:
            raise NotComparedError(f"{path} is not in any of {', '.join(FORMATS)}") from error
        except Exception as error:  # Whatever a broken file raises is the reason.
            text = f"{path} cannot be read ({type(error).__name__}: {error})"
            raise NotComparedError(text) from error
    notices = [*picture.notices, *(str(warning.message) for warning in said)]
    return picture._replace(notices=tuple(f"{path}: {notice}" for notice in notices))


@contextlib.contextmanager
def _own_limit() -> Iterator[None]:
    """Pillow's own limit of pixels is fixed, and warns from half of it."""
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _decoded(path: Path, image: ImageFile.ImageFile, megapixels: float) -> Picture:
    width, height = image.size
    if width * height > megapixels * 1e6:
        raise NotComparedError(
            f"has {width}x{height} pixels, more than {megapixels:g} million: raise --max-megapixels"
        )
    notices: tuple[str, ...] = ()
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        # Cameras put previews and depth maps there.
        if image.format != "MPO":
            raise NotComparedError(f"has {frames} frames or pages: save the one that is meant")
        notices = (f"the first of its {frames} pictures is read",)
    raw, highest = stored(image)
    if image.format == "PNG" and ";16" in raw:
        values = _deep_png(path, image)
    elif deep_grey(image):
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
    return _opaque(values, notices)


def stored(image: Image.Image) -> tuple[str, int]:
    """The kind of the pixels in the file, which may be more than is read, and the highest value
    where a format says it; of an image that is decoded the kind that it has now.
    """
    tiles = getattr(image, "tile", None)
    arguments: Any = tiles[0][3] if tiles else image.mode
    raw, *rest = (arguments,) if isinstance(arguments, str) else arguments
    return str(raw), rest[0] if image.format == "PPM" and rest else 0


def deep_grey(image: Image.Image) -> bool:
    """Whether grey pixels have 16 bits, which Pillow may read as 32. It scales those of a PGM."""
    raw, _ = stored(image)
    deep = image.format == "PPM" or (raw.startswith("I;16") and not raw.endswith("S"))
    return image.mode.startswith("I") and deep


def _true_colour(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        return image.convert("LA" if image.mode == "LA" else "RGBA")
    return image.convert({"1": "L", "P": "RGB", "PA": "RGB"}.get(image.mode, image.mode))


def _array(image: Image.Image) -> NDArray[Any]:
    from PIL import ImageOps

    values = np.asarray(ImageOps.exif_transpose(image))
    return values[..., None] if values.ndim == 2 else values


def _deep_png(path: Path, image: Image.Image) -> NDArray[Any]:
    """With 16 bits, of which Pillow keeps 8 where there is more than one channel."""
    from torchvision.io import decode_image

    if "transparency" in image.info:
        raise NotComparedError("has a transparent colour: save it without")
    data = torch.from_numpy(np.fromfile(path, np.uint8))
    return np.moveaxis(decode_image(data, apply_exif_orientation=True).numpy(), 0, -1)


def _opaque(values: NDArray[Any], notices: tuple[str, ...]) -> Picture:
    """Without the alpha that says nothing."""
    channels = values.shape[2]
    if channels in (1, 3):
        return Picture(values, notices)
    if values[..., -1].min() < np.iinfo(values.dtype).max:
        raise NotComparedError("is transparent in parts: put it on a background first")
    return Picture(values[..., :-1], (*notices, "its alpha is opaque everywhere and left out"))


class Comparison:
    """What is measured of a pair.

    Args:
        dtype: that SSIM and MS-SSIM are computed in, by name.
        device: to compute on.
        losses: on features, by their keys in `METRICS`; for images in [0, 1].
        check: compare SSIM with scikit-image's.
        megapixels: that an image may have at most.
        draw: writes a picture of a pair.
    """

    def __init__(
        self,
        *,
        dtype: str = "float64",
        device: str = "cpu",
        losses: Mapping[str, Loss] | None = None,
        check: bool = False,
        megapixels: float = 200,
        draw: Callable[[Pair, Figure], None] | None = None,
    ) -> None:
        self.dtype, self.device, self.losses = dtype, device, dict(losses or {})
        self.check, self.megapixels, self.draw = check, megapixels, draw

    def row(self, pair: Pair) -> Row:
        """The numbers of a pair, or its problem."""
        try:
            return self._measured(pair)
        except NotComparedError as error:
            return _problem(pair.name, _printable(str(error)))
        except (MemoryError, OSError, RuntimeError, ValueError) as error:
            return _problem(pair.name, _printable(f"{type(error).__name__}: {error}"))

    @torch.inference_mode()
    def _measured(self, pair: Pair) -> Row:
        pictures = [read(path, megapixels=self.megapixels) for path in (pair.a, pair.b)]
        a, b = pictures
        if str(a) != str(b):
            raise NotComparedError(f"{pair.a} has {a} and {pair.b} {b}")
        height, width, channels = a.values.shape
        if min(height, width) < WINDOW:
            raise NotComparedError(f"has {a}, less than the window of {WINDOW}x{WINDOW}")
        x, y = (self._tensor(picture) for picture in pictures)
        options: dict[str, Any] = {"data_range": a.data_range}
        count = levels(x)
        row: Row = {
            "file": pair.name,
            "width": width,
            "height": height,
            "channels": channels,
            **options,
            "ssim": ssim(x, y, **options).item(),
            "ms_ssim": ms_ssim(x, y, levels=count, **options).item(),
            "levels": count,
        }
        for name, loss in self.losses.items():
            unit = ((image / a.data_range).float() for image in (x, y))
            row[name] = loss(*unit).item()
        if self.check:
            row["scikit_image"] = of_scikit_image(a, b)
            row["difference"] = abs(row["ssim"] - row["scikit_image"])
        row["notice"] = _printable("; ".join(a.notices + b.notices))
        if self.draw:
            self.draw(pair, figure(a, b, similarity_map(x, y, **options), row))
        return row

    def _tensor(self, picture: Picture) -> Tensor:
        values = np.moveaxis(picture.values, -1, 0)[None]
        return torch.from_numpy(np.ascontiguousarray(values, self.dtype)).to(self.device)


def levels(x: Tensor) -> int:
    """How many of MS-SSIM's levels fit, as ``levels="auto"`` has it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return len(_validation.fit_levels(MS_SSIM_WEIGHTS, "auto", x, WINDOW)[0])


def of_scikit_image(a: Picture, b: Picture) -> float:
    """SSIM as scikit-image has it."""
    from skimage.metrics import structural_similarity

    similarity = structural_similarity(
        *(a.values, b.values),
        data_range=a.data_range,
        channel_axis=-1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    return float(similarity)


def similarity_map(x: Tensor, y: Tensor, *, data_range: float) -> Tensor:
    """The SSIM of each window, its mean over channels; computed in bands of rows."""
    rows = max(1, BAND // x[0, :, 0].numel())
    bands = []
    for top in range(0, x.shape[2] - WINDOW + 1, rows):
        band = slice(top, top + rows + WINDOW - 1)
        similarity = ssim_map(x[:, :, band], y[:, :, band], data_range=data_range)
        bands.append(similarity.mean(1)[0].cpu())
    return torch.cat(bands)


def figure(a: Picture, b: Picture, similarity: Tensor, row: Row) -> Figure:
    """The two images and the SSIM map beside them, each pixel of which is a window's centre."""
    from matplotlib.figure import Figure

    height, width, _ = a.values.shape
    drawn = Figure(figsize=(15, 1.2 + 4.6 * min(2.5, height / width)), layout="constrained")
    axes = drawn.subplots(1, 3, sharex=True, sharey=True)
    for panel, name, picture in zip(axes, "AB", (a, b), strict=False):
        panel.imshow(_drawable(picture), cmap="gray", vmin=0, vmax=a.data_range)
        panel.set_title(name)
    radius = WINDOW // 2
    extent = (radius - 0.5, width - radius - 0.5, height - radius - 0.5, radius - 0.5)
    shown = axes[2].imshow(similarity.numpy(), vmin=0, vmax=1, extent=extent)
    axes[2].set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    axes[2].set_title(
        "\n".join(f"{METRICS[key]} {row[key]:.6f}" for key in METRICS if key in row), fontsize=10
    )
    extend = "min" if similarity.min() < 0 else "neither"
    label = "SSIM" if row["channels"] == 1 else "SSIM, mean over channels"
    drawn.colorbar(shown, ax=axes[2], label=label, extend=extend)
    # A dollar in a file's name is no mathematics.
    drawn.suptitle(row["file"], parse_math=False)
    return drawn


def _drawable(picture: Picture) -> NDArray[Any]:
    values = picture.values
    if values.shape[2] == 1:
        return values[..., 0]
    return values if values.dtype == np.uint8 else values.astype(np.float32) / picture.data_range


def save(drawn: Figure, path: Path) -> None:
    """Writes a picture, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        # The font has no Chinese, say, and draws boxes.
        warnings.filterwarnings("ignore", "Glyph")
        drawn.savefig(path, dpi=100)


def measured(rows: Sequence[Row]) -> list[Row]:
    """Those that have been compared."""
    return [row for row in rows if "problem" not in row]


def means(rows: Sequence[Row]) -> dict[str, float]:
    """Of each metric, over what has been compared."""
    compared = measured(rows)
    return {
        key: sum(row[key] for row in compared) / len(compared)
        for key in METRICS
        if compared and key in compared[0]
    }


def largest_difference(rows: Sequence[Row]) -> float:
    """From scikit-image."""
    return max((row["difference"] for row in measured(rows)), default=0.0)


def table(rows: Sequence[Row], labels: Mapping[str, str]) -> str:
    """The numbers as text.

    Args:
        rows: of all pairs.
        labels: what stands above the columns, by keys.
    """
    compared = measured(rows)
    lines = [["file", "size", *labels.values()]]
    for row in compared:
        size = f"{row['width']}x{row['height']}"
        lines.append([row["file"], size, *(_text(key, row[key]) for key in labels)])
    if len(compared) > 1:
        mean = means(rows)
        last = (_text(key, mean[key]) if key in mean else "" for key in labels)
        lines.append([f"mean of {len(compared)}", "", *last])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    )


def _text(key: str, value: Any) -> str:
    if key == "difference":
        return f"{value:.1e}"
    return f"{value:.6f}" if isinstance(value, float) else str(value)


def write_csv(path: Path, rows: Sequence[Row], keys: Sequence[str]) -> None:
    """A line for each file, compared or not."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, keys, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_json(path: Path, rows: Sequence[Row], settings: Mapping[str, Any]) -> None:
    """Everything that is known."""
    record: dict[str, Any] = {
        "version": __version__,
        **settings,
        "files": list(rows),
        "mean": means(rows) or None,
    }
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
