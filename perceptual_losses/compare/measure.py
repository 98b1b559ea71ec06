"""The metrics of a pair of images."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .. import _validation
from .._images.picture import NotReadError, Picture, Reading
from .._images.reader import read_picture
from ..similarity import MS_SSIM_WEIGHTS, ssim_and_ms_ssim
from .figures import draw_figure, similarity_map
from .files import NotComparedError, Pair, Row, printable, problem_row
from .metrics import WINDOW

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LARGE = 2**24
"""The most pixels of images whose channels are compared at once; more take too much memory."""

KEPT = 2**22
"""The most values of an image for which a thread keeps memory, 32 MiB in float64."""

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The measurements that are made of each pair, in any thread.

    Attributes:
        dtype: the name of the dtype that all but the feature losses are computed in.
        device: the device that computes.
        losses: feature losses for images in [0, 1], by their keys in `METRICS`.
        check: whether SSIM is compared with scikit-image's.
        reading: the choices that files leave open.
        crop: the pixels to leave out at each border.
        luma: whether PSNR, MSE, SSIM and MS-SSIM are those of the luma of BT.601.
        match_grey: whether an RGB image with three equal channels goes with a grey one.
        draw: a function that writes a picture of a pair.
        progress: a function that takes a line of text for each step of a large image.
    """

    dtype: str = "float64"
    device: str = "cpu"
    losses: Mapping[str, Loss] = field(default_factory=dict)
    check: bool = False
    reading: Reading = field(default_factory=Reading)
    crop: int = 0
    luma: bool = False
    match_grey: bool = False
    draw: Callable[[Pair, Figure], None] | None = None
    progress: Callable[[str], None] = lambda text: None

    def row(self, pair: Pair) -> Row:
        """The numbers of a pair, or the reason why it has none."""
        try:
            return self._measure(pair)
        except (NotComparedError, NotReadError) as error:
            return problem_row(pair.name, printable(str(error)))
        except (MemoryError, OSError, RuntimeError, ValueError) as error:
            return problem_row(pair.name, printable(f"{type(error).__name__}: {error}"))

    def pictures(self, pair: Pair) -> tuple[Picture, Picture]:
        """Both images as they are compared, in colour.

        Raises:
            NotReadError: one of them cannot be read.
            NotComparedError: they differ in their form, or are too small.
        """
        a, b = (read_picture(path, self.reading) for path in (pair.a, pair.b))
        a, b = a._replace(notices=_named(a, pair.a)), b._replace(notices=_named(b, pair.b))
        if a.values.shape[2] != b.values.shape[2] and self.match_grey:
            a, b = _as_grey(a), _as_grey(b)
        if str(a) != str(b):
            channels = {a.values.shape[2], b.values.shape[2]}
            advice = "" if self.match_grey or len(channels) < 2 else "; --match-grey may help"
            raise NotComparedError(f"{pair.a} has {a} and {pair.b} {b}{advice}")
        a, b = (_cropped(picture, self.crop) for picture in (a, b))
        height, width, _ = a.values.shape
        if min(height, width) < WINDOW:
            raise NotComparedError(f"has {a}, less than the window of {WINDOW}x{WINDOW}")
        return a, b

    @torch.inference_mode()
    def similarity_map(self, a: Picture, b: Picture) -> Tensor:
        """The SSIM of each window, as a mean over channels."""
        x, y = self._compared_values(a, b)
        return similarity_map(x, y, self._tensor, data_range=a.data_range)

    @torch.inference_mode()
    def _measure(self, pair: Pair) -> Row:
        a, b = self.pictures(pair)
        height, width, channels = a.values.shape
        row: Row = {"file": pair.name, "width": width, "height": height, "channels": channels}
        row["data_range"] = int(a.data_range) if a.data_range % 1 == 0 else a.data_range
        row |= self._structure(pair.name, a, b)
        for name, loss in self.losses.items():
            unit = (self._tensor(image.values) / image.data_range for image in (a, b))
            row[name] = loss(*(image.float() for image in unit)).item()
        if self.check:
            row["scikit_image"] = self._scikit_image_ssim(a, b)
            row["difference"] = abs(row["ssim"] - row["scikit_image"])
        row["notice"] = printable("; ".join(a.notices + b.notices))
        if self.draw:
            similarity = self.similarity_map(a, b)
            with _one_figure:
                self.draw(pair, draw_figure(a, b, similarity, row))
        return row

    def _structure(self, name: str, a: Picture, b: Picture) -> Row:
        """PSNR, MSE, SSIM and MS-SSIM, as means over channels."""
        sums: dict[str, float] = {"mse": 0.0, "ssim": 0.0, "ms_ssim": 0.0}
        values = self._compared_values(a, b)
        height, width, channels = values[0].shape
        is_large = height * width > LARGE
        step = 1 if is_large else channels
        for first in range(0, channels, step):
            if is_large:
                self.progress(f"{name}: {width}x{height}, channel {first + 1} of {channels}")
            parts = [part[..., first : first + step] for part in values]
            sums["mse"] += step * mean_squared_error(*parts)
            x, y = (self._tensor(part, number) for number, part in enumerate(parts))
            levels = fitting_levels(x)
            ssim, ms_ssim = ssim_and_ms_ssim(x, y, data_range=a.data_range, levels=levels)
            sums["ssim"] += step * ssim.item()
            sums["ms_ssim"] += step * ms_ssim.item()
        means = {key: total / channels for key, total in sums.items()}
        mse = means["mse"]
        psnr = math.inf if mse == 0 else 10 * math.log10(a.data_range**2 / mse)
        return {"psnr": psnr, **means, "levels": levels}

    def _compared_values(self, a: Picture, b: Picture) -> list[Any]:
        """The values of both that PSNR, MSE, SSIM and MS-SSIM compare."""
        return [luma(picture) if self.luma else picture.values for picture in (a, b)]

    def _tensor(self, values: Any, number: int | None = None) -> Tensor:
        """The values ``(H, W, C)`` as a batch of one, ``(1, C, H, W)``.

        The tensor of a small image with a number lies in memory that the thread keeps. The next one
        with this number overwrites it.
        """
        height, width, channels = values.shape
        shape = 1, channels, height, width
        if number is None or values.size > KEPT:
            planes = np.empty(shape, self.dtype)
        else:
            planes = self._kept_array(number, values.size).reshape(shape)
        # NumPy converts one channel faster than three values of each pixel in turn.
        for channel in range(channels):
            planes[0, channel] = values[..., channel]
        return torch.from_numpy(planes).to(self.device)

    def _kept_array(self, number: int, size: int) -> Any:
        """The thread's array of this number; the system clears the pages of a new one first."""
        arrays, key = _memory.arrays, (number, self.dtype)
        if key not in arrays or arrays[key].size < size:
            arrays[key] = np.empty(size, self.dtype)
        return arrays[key][:size]

    def _scikit_image_ssim(self, a: Picture, b: Picture) -> float:
        """SSIM as scikit-image computes it."""
        from skimage.metrics import structural_similarity

        similarity = structural_similarity(
            *self._compared_values(a, b),
            data_range=a.data_range,
            channel_axis=-1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        return float(similarity)


class _Memory(threading.local):
    """The arrays that each thread keeps from pair to pair."""

    def __init__(self) -> None:
        self.arrays: dict[tuple[int, str], Any] = {}


_memory = _Memory()

# Matplotlib is made for one thread at a time.
_one_figure = threading.Lock()


def _named(picture: Picture, path: Any) -> tuple[str, ...]:
    return tuple(f"{path}: {notice}" for notice in picture.notices)


def _as_grey(picture: Picture) -> Picture:
    """The picture with one channel, if its channels are equal."""
    first = picture.values[..., :1]
    return picture._replace(values=first) if (picture.values == first).all() else picture


def _cropped(picture: Picture, crop: int) -> Picture:
    """The picture without so many pixels at each border."""
    height, width, _ = picture.values.shape
    inside = picture.values[crop : height - crop, crop : width - crop]
    if not inside.size:
        raise NotComparedError(f"has {picture}, of which --crop {crop} leaves none")
    return picture._replace(values=inside)


def luma(picture: Picture) -> Any:
    """The luma of BT.601, from 16 to 235 of 255 as in video; a grey picture stays as it is.

    It is that of MATLAB's ``rgb2ycbcr`` without the rounding, scaled to the picture's range.
    """
    values = picture.values
    if values.shape[2] == 1:
        return values
    total: Any = 16 * picture.data_range
    for channel, weight in enumerate((65.481, 128.553, 24.966)):
        total = total + weight * values[..., channel]
    return total[..., None] / 255


def mean_squared_error(a: Any, b: Any) -> float:
    """The mean of the squared differences, in NumPy: it has no threads to keep waiting."""
    # Single precision holds the squared difference of two bytes exactly.
    dtype = np.float32 if a.dtype == np.uint8 == b.dtype else np.float64
    difference = np.subtract(a, b, dtype=dtype)
    return float(np.square(difference, out=difference).mean(dtype=np.float64))


def fitting_levels(x: Tensor) -> int:
    """The number of MS-SSIM's levels that ``levels="auto"`` takes."""
    exponents, _ = _validation.fit_levels(MS_SSIM_WEIGHTS, "auto", x, (WINDOW, WINDOW))
    return len(exponents)


@contextlib.contextmanager
def threads_of(workers: int) -> Iterator[None]:
    """Divides torch's threads among ``workers`` that compute at once."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // workers))
    try:
        yield
    finally:
        torch.set_num_threads(threads)
