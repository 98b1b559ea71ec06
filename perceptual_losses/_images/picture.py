"""A picture that has been read, and the choices that a file leaves open."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

NAMED_COLOURS = {"black": (0, 0, 0), "white": (255, 255, 255)}

USUAL_RANGES = (1023, 4095, 16383)
"""The highest values of 10, 12 and 14 bits, which cameras and scanners store in 16."""

Colour = tuple[int, int, int]


class NotReadError(Exception):
    """A file cannot be read completely and exactly; the message is the reason."""


def colour(text: str) -> Colour:
    """The red, green and blue of a name or of ``#rrggbb``, from 0 to 255.

    Raises:
        ValueError: the text is neither.
    """
    if text in NAMED_COLOURS:
        return NAMED_COLOURS[text]
    if not re.fullmatch("#[0-9a-fA-F]{6}", text):
        raise ValueError(f"{text!r} is no colour: pass white, black or #rrggbb")
    red, green, blue = bytes.fromhex(text[1:])
    return red, green, blue


@dataclass(frozen=True)
class Reading:
    """The choices that files leave open.

    Attributes:
        megapixels: the most million pixels that an image may have.
        data_range: the highest possible value, for files that use fewer bits than they have, and
            for floats; by default the highest value of the bits.
        background: the colour behind transparent images, as `colour` takes it; by default they
            are refused.
    """

    megapixels: float = 200
    data_range: float | None = None
    background: str | None = None


class Picture(NamedTuple):
    """An image as it is in its file, upright.

    Attributes:
        values: ``(H, W, C)``, with one channel or three, from 0 to ``data_range``.
        data_range: the highest possible value.
        notices: remarks on parts of the file that were left out or changed.
    """

    values: NDArray[Any]
    data_range: float
    notices: tuple[str, ...] = ()

    def __str__(self) -> str:
        height, width, channels = self.values.shape
        plural = "" if channels == 1 else "s"
        kind = "bits" if self.values.dtype.kind == "u" else "bits of a float"
        bits = 8 * self.values.itemsize
        return f"{width}x{height} pixels, {channels} channel{plural}, {bits} {kind}"


def check_size(width: int, height: int, reading: Reading) -> None:
    """Refuses an image with more pixels than are allowed, before it is decoded."""
    if width * height > reading.megapixels * 1e6:
        raise NotReadError(
            f"has {width}x{height} pixels, more than {reading.megapixels:g} million: make it "
            "smaller, or pass a larger --max-megapixels to compare"
        )


def finished(
    values: NDArray[Any],
    highest: float | None,
    reading: Reading,
    *,
    premultiplied: bool = False,
    notices: tuple[str, ...] = (),
) -> Picture:
    """The picture of decoded values, without alpha and with its range.

    Args:
        values: ``(H, W, C)``; with two or four channels the last is alpha.
        highest: the highest value of the bits; ``None`` for floats.
        reading: the user's choices.
        premultiplied: whether the colours have been multiplied by alpha.
        notices: earlier remarks.

    Raises:
        NotReadError: the image is transparent and there is no background, or has values outside
            the range, or floats without a range.
    """
    if values.dtype.kind == "f" and reading.data_range is None:
        raise NotReadError(
            f"has floats of {8 * values.itemsize} bits, whose range no tag says: pass --data-range "
            "with their highest possible value"
        )
    data_range = highest if reading.data_range is None else reading.data_range
    assert data_range is not None  # Only floats have no highest value, refused above.
    if values.shape[2] in (2, 4):
        assert highest is not None  # Floats with alpha have been refused by their reader.
        values, notice = _without_alpha(values, highest, data_range, reading, premultiplied)
        notices = (*notices, notice)
    low, top = values.min(), values.max()
    if np.isnan(low):
        raise NotReadError(
            f"has NaN among its values: save it with numbers from 0 to {data_range:g}"
        )
    if not 0 <= low <= top <= data_range:
        raise NotReadError(
            f"has values from {low:g} to {top:g}, which are not all from 0 to {data_range:g}: pass "
            "--data-range with the highest possible value; none may be below 0"
        )
    if reading.data_range is None and values.dtype == np.uint16 and top <= USUAL_RANGES[-1]:
        usual = next(usual for usual in USUAL_RANGES if top <= usual)
        text = f"no value exceeds {usual} of {data_range:g}: pass --data-range {usual} if none can"
        notices = (*notices, text)
    return Picture(values, data_range, notices)


def _without_alpha(
    values: NDArray[Any],
    highest: float,
    data_range: float,
    reading: Reading,
    premultiplied: bool,
) -> tuple[NDArray[Any], str]:
    """The colours, put on the background where they are transparent, and a notice."""
    colours, alpha = values[..., :-1], values[..., -1:]
    if alpha.min() == highest:
        return colours, "alpha is opaque everywhere and left out"
    if reading.background is None:
        raise NotReadError("is transparent in parts: pass --background with a colour to put it on")
    behind = np.array(colour(reading.background)) / 255 * data_range
    if colours.shape[2] == 1:
        if len(set(behind)) > 1:
            raise NotReadError(
                f"is grey and the background {reading.background} is not: pass a grey --background"
            )
        behind = behind[:1]
    opacity = alpha / highest
    shown = colours.astype(np.float64) if premultiplied else opacity * colours
    shown += (1 - opacity) * behind
    # A colour that was multiplied by more than its alpha would exceed the range.
    flat = np.round(shown).clip(0, data_range).astype(values.dtype)
    return flat, f"transparent parts are put on {reading.background}"
