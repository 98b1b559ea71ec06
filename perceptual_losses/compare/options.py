"""The options of the command, and the checks of those that do not go together."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .. import __version__
from .._features.presets import LPIPS_LAYERS, VGG_PRESETS
from .._images.folders import SUFFIXES
from .._images.picture import colour
from .metrics import BOUND
from .output import STDOUT

DESCRIPTION = """\
Compares two images, or the images of two folders that have the same path in
both, at any depth. SSIM and MS-SSIM are 1 for identical images, VGG and LPIPS 0.
"""

EXIT_CODES = """\
exit codes:
  0    every file was compared
  1    some were not; stderr names them with the reason
  2    wrong usage, or the results could not be written
  3    a pair fails a threshold or --check, whatever else there was
  130  interrupted; --csv and --json have what was done until then
  141  standard output was closed
"""


class Threshold(NamedTuple):
    """A bound of a metric, by the metric's key: an upper or a lower one."""

    key: str
    upper: bool


THRESHOLDS = {
    "min_ssim": Threshold("ssim", upper=False),
    "min_ms_ssim": Threshold("ms_ssim", upper=False),
    "min_psnr": Threshold("psnr", upper=False),
    "max_lpips": Threshold("lpips", upper=True),
}
"""The thresholds by the names of their options."""

NEEDED = {
    "vgg_layers": "vgg_weights",
    "lpips_backbone": "lpips_weights",
    "lpips_linear": "lpips_weights",
    "max_lpips": "lpips_weights",
}
"""Options that have an effect only with another one."""


def positive(text: str) -> float:
    """The number above 0 that a text spells."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not positive: pass a number above 0")
    return number


def count(text: str) -> int:
    """The whole number from 1 upwards that a text spells."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive: pass 1 or more")
    return number


def bound(text: str) -> float:
    """The number that a text spells, which may be infinite."""
    number = float(text)
    if math.isnan(number):
        raise argparse.ArgumentTypeError(f"{text} bounds nothing: pass a number")
    return number


def background(text: str) -> str:
    """A colour's name, if it is one."""
    try:
        colour(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def parse_arguments(argv: Sequence[str] | None, prog: str) -> argparse.Namespace:
    """The options of the command, or the exit that argparse makes of wrong ones."""
    parser = argparse.ArgumentParser(prog=prog)
    parser.add_argument("--version", action="version", version=f"perceptual-losses {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    compare = commands.add_parser(
        "compare",
        help="PSNR, SSIM, MS-SSIM, VGG and LPIPS of image files",
        description=DESCRIPTION,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    compare.add_argument("a", type=Path, metavar="A", help="image or folder of images")
    compare.add_argument("b", type=Path, metavar="B", help="what A is compared with")
    _add_reading_options(compare)
    _add_measurement_options(compare)
    _add_loss_options(compare)
    _add_output_options(compare)
    _add_thresholds(compare)
    return parser.parse_args(argv)


def _add_reading_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that pair files and read them."""
    parser.add_argument(
        "--by-stem", action="store_true", help="pairs x.png with x.jpg: suffixes do not count"
    )
    parser.add_argument(
        "--match-grey",
        action="store_true",
        help="compares grey with RGB whose three channels are equal",
    )
    parser.add_argument(
        "--data-range",
        type=positive,
        metavar="N",
        help="highest possible value, such as 4095; default: that of the file's bits",
    )
    parser.add_argument(
        "--background",
        type=background,
        metavar="COLOUR",
        help="puts transparent images on white, black or #rrggbb",
    )
    parser.add_argument(
        "--max-megapixels",
        type=positive,
        default=200,
        metavar="N",
        help="larger images are left out before they are decoded; default: 200",
    )


def _add_measurement_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say what is computed and where."""
    parser.add_argument(
        "--crop", type=count, metavar="N", help="leaves out N pixels at each border"
    )
    parser.add_argument(
        "--luma",
        choices=("bt601",),
        help="compares the luma of colours; VGG and LPIPS see the colours",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help=f"compares SSIM with scikit-image's: they may differ by {BOUND:g}",
    )
    parser.add_argument(
        "--float32",
        action="store_true",
        help="half the memory of float64; some 1e-7 from scikit-image",
    )
    parser.add_argument("--device", default="cpu", help="device to compute on; default: cpu")
    parser.add_argument(
        "-j", "--jobs", type=count, metavar="N", help="pairs to compare at once; default: 1"
    )


def _add_loss_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the feature losses."""
    weights = "a file of torchvision's weights, or imagenet to fetch them"
    parser.add_argument("--vgg-weights", metavar="PATH", help=f"adds the VGG loss: {weights}")
    parser.add_argument("--vgg-layers", choices=VGG_PRESETS, help="default: johnson, of VGG-16")
    parser.add_argument("--lpips-weights", metavar="PATH", help=f"adds LPIPS: {weights}")
    parser.add_argument("--lpips-backbone", choices=LPIPS_LAYERS, help="default: alexnet")
    parser.add_argument(
        "--lpips-linear",
        metavar="PATH",
        help="file of the linear weights; default: those that come with this package",
    )


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that name files to write."""
    parser.add_argument(
        "--csv", type=Path, metavar="FILE", help="writes a line for each file; - prints it instead"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="writes all results; - prints them instead"
    )
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="writes a page with the worst pairs' SSIM maps"
    )
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="PATH",
        help="draws A, B and their SSIM map: a file for two images, a folder for folders",
    )


def _add_thresholds(parser: argparse.ArgumentParser) -> None:
    """Adds the bounds that make a pair fail."""
    for name, threshold in THRESHOLDS.items():
        side = "above" if threshold.upper else "below"
        parser.add_argument(
            option(name), type=bound, metavar="X", help=f"fails pairs {side}, with exit code 3"
        )


def option(name: str) -> str:
    """The option as it is typed."""
    return "--" + name.replace("_", "-")


def check_effects(options: argparse.Namespace) -> None:
    """Refuses options that would have no effect."""
    for name, needed in NEEDED.items():
        if getattr(options, name) is not None and getattr(options, needed) is None:
            raise ValueError(f"{option(name)} has no effect without {option(needed)}: pass both")
    if not options.a.is_dir():
        for name in ("by_stem", "jobs"):
            if getattr(options, name):
                raise ValueError(f"{option(name)} is for folders: leave it out with two images")


def check_outputs(options: argparse.Namespace) -> None:
    """Refuses outputs that can't be written, or that would be among the compared files."""
    folders = options.a.is_dir()
    written: dict[Path, str] = {}
    for name in ("csv", "json", "html", "picture"):
        path = getattr(options, name)
        if path is None:
            continue
        if other := written.get(path.resolve()):
            raise ValueError(f"--{name} {path} is where --{other} goes: pass another place")
        written[path.resolve()] = name
        if path == STDOUT and name in ("csv", "json"):
            continue
        into = name == "picture" and folders
        image = into or path.suffix.lower() in SUFFIXES
        if path.exists() and path.is_dir() != into:
            kind = "a folder" if into else "a file"
            raise ValueError(f"--{name} {path}: pass {kind}, which this is not")
        for given in (options.a, options.b):
            same = path.resolve() == given.resolve()
            if same or (image and path.resolve().is_relative_to(given.resolve())):
                raise ValueError(
                    f"--{name} {path} would be among the compared images: pass another place"
                )
        path.parent.mkdir(parents=True, exist_ok=True)
    if options.picture and not folders:
        from matplotlib.figure import Figure

        kinds = sorted(f".{kind}" for kind in Figure().canvas.get_supported_filetypes())
        if options.picture.suffix.lower() not in kinds:
            raise ValueError(
                f"--picture {options.picture}: pass a name that ends in one of {' '.join(kinds)}"
            )
