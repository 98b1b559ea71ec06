"""The command ``python -m perceptual_losses compare``."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .._features.presets import LPIPS_LAYERS, VGG_PRESETS
from .._validation import smallest_side
from ..features import LPIPSLoss, VGGLoss
from ..similarity import MS_SSIM_WEIGHTS
from .files import SUFFIXES, Pair, Row, find_pairs
from .measure import (
    BOUND,
    METRICS,
    WINDOW,
    Comparison,
    compared_rows,
    format_table,
    largest_difference,
    save_figure,
    write_csv,
    write_json,
)

DESCRIPTION = """\
Compares two images, or the images of two folders that have the same path in
both, at any depth. SSIM and MS-SSIM are 1 for identical images, VGG and LPIPS 0.
"""

EXIT_CODES = """\
exit codes:
  0  every file was compared
  1  some were not; stderr names them with the reason
  2  wrong usage, or the results could not be written
  3  --check found a difference above the bound, whatever else there was
"""

FULL_SIZE = smallest_side(len(MS_SSIM_WEIGHTS), WINDOW)
"""The smallest side of images that have all levels of MS-SSIM."""


def megapixels(text: str) -> float:
    """The number above 0 that a text spells."""
    number = float(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"{text} is not positive: pass a number above 0")
    return number


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command, or the exit that argparse makes of wrong ones."""
    parser = argparse.ArgumentParser(prog="python -m perceptual_losses")
    commands = parser.add_subparsers(dest="command", required=True)
    compare = commands.add_parser(
        "compare",
        help="SSIM, MS-SSIM, VGG and LPIPS of image files",
        description=DESCRIPTION,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    compare.add_argument("a", type=Path, metavar="A", help="image or folder of images")
    compare.add_argument("b", type=Path, metavar="B", help="what A is compared with")
    _add_loss_options(compare)
    _add_output_options(compare)
    compare.add_argument(
        "--check",
        action="store_true",
        help=f"compares SSIM with scikit-image's: they may differ by {BOUND:g}",
    )
    compare.add_argument(
        "--float32",
        action="store_true",
        help="half the memory of float64; some 1e-7 from scikit-image",
    )
    compare.add_argument("--device", default="cpu", help="to compute on; default: cpu")
    compare.add_argument(
        "--max-megapixels",
        type=megapixels,
        default=200,
        metavar="N",
        help="larger images are left out before they are decoded; default: 200",
    )
    return parser.parse_args(argv)


def _add_loss_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the feature losses."""
    weights = "a file of torchvision's weights, or imagenet, which are fetched"
    parser.add_argument("--vgg-weights", metavar="PATH", help=f"adds the VGG loss: {weights}")
    parser.add_argument(
        "--vgg-layers", choices=VGG_PRESETS, default="johnson", help="default: johnson, of VGG-16"
    )
    parser.add_argument("--lpips-weights", metavar="PATH", help=f"adds LPIPS: {weights}")
    parser.add_argument(
        "--lpips-backbone", choices=LPIPS_LAYERS, default="alexnet", help="default: alexnet"
    )
    parser.add_argument(
        "--lpips-linear",
        metavar="PATH",
        default="lpips",
        help="file of the linear weights; default: that of the installed lpips package",
    )


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that name files to write."""
    parser.add_argument("--csv", type=Path, metavar="FILE", help="writes a line for each file")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes all results")
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="PATH",
        help="draws A, B and their SSIM map: a file for two images, a folder for folders",
    )


def compare(options: argparse.Namespace) -> int:
    """Compares two images or two folders of images; returns the exit code."""
    for module in required_modules(options):
        importlib.import_module(module)
    from tqdm import tqdm

    with refusals():
        pairs, rows, other_files = find_pairs(options.a, options.b)
        check_outputs(options)
        comparison = Comparison(
            dtype="float32" if options.float32 else "float64",
            device=check_device(options),
            losses=ready_losses(options),
            check=options.check,
            megapixels=options.max_megapixels,
            draw=picture_writer(options),
        )
    quiet = len(pairs) < 2 or not sys.stderr.isatty()
    with tqdm(pairs, "comparing", unit="file", leave=False, disable=quiet) as bar:
        rows = sorted([*rows, *map(comparison.row, bar)], key=lambda row: str(row["file"]))
    report_problems(rows, other_files)
    labels = column_titles(options)
    if compared_rows(rows):
        print_encodable("\n\n".join([format_table(rows, labels), *remarks(rows, options)]))
    with refusals():
        if options.csv:
            keys = ["file", "width", "height", "channels", *labels, "notice", "problem"]
            write_csv(options.csv, rows, keys)
        if options.json:
            write_json(options.json, rows, settings(options))
    if options.check and not largest_difference(rows) <= BOUND:
        return 3
    return 0 if len(compared_rows(rows)) == len(rows) else 1


def required_modules(options: argparse.Namespace) -> list[str]:
    """The optional modules that the options need, to find missing ones before any work."""
    modules = ["PIL", "tqdm"]
    return modules + ["matplotlib"] * bool(options.picture) + ["skimage"] * options.check


def check_outputs(options: argparse.Namespace) -> None:
    """Refuses outputs that can't be written, or that would be among the compared files."""
    folders = options.a.is_dir()
    written: dict[Path, str] = {}
    for name in ("csv", "json", "picture"):
        path = getattr(options, name)
        if path is None:
            continue
        if other := written.get(path.resolve()):
            raise ValueError(f"--{name} {path} is where --{other} goes: pass another place")
        written[path.resolve()] = name
        into = name == "picture" and folders
        image = into or path.suffix.lower() in SUFFIXES
        if path.exists() and path.is_dir() != into:
            kind = "a folder" if into else "a file"
            raise ValueError(f"--{name} {path}: pass {kind}, which this is not")
        for given in (options.a, options.b):
            same = path.resolve() == given.resolve()
            if same or (image and path.resolve().is_relative_to(given.resolve())):
                raise ValueError(f"--{name} {path} is in what is compared: pass another place")
        path.parent.mkdir(parents=True, exist_ok=True)
    if options.picture and not folders:
        from matplotlib.figure import Figure

        kinds = sorted(f".{kind}" for kind in Figure().canvas.get_supported_filetypes())
        if options.picture.suffix.lower() not in kinds:
            raise ValueError(
                f"--picture {options.picture}: pass a name that ends in one of {' '.join(kinds)}"
            )


def check_device(options: argparse.Namespace) -> str:
    """The device; refuses one that is not there or lacks the dtype."""
    device = str(options.device)
    try:
        torch.zeros(1, dtype=torch.float32 if options.float32 else torch.float64, device=device)
    except (AssertionError, RuntimeError, TypeError, NotImplementedError) as error:
        raise ValueError(f"--device {device}: {str(error).splitlines()[0]}") from error
    return device


def ready_losses(options: argparse.Namespace) -> dict[str, VGGLoss | LPIPSLoss]:
    """The feature losses that weights are given for, on the device and with their weights."""
    found: dict[str, VGGLoss | LPIPSLoss] = {}
    if options.vgg_weights:
        found["vgg"] = VGGLoss(options.vgg_layers, weights=options.vgg_weights)
    if options.lpips_weights:
        found["lpips"] = LPIPSLoss(
            options.lpips_backbone, weights=options.lpips_weights, linear=options.lpips_linear
        )
    for loss in found.values():
        with contextlib.redirect_stdout(sys.stderr):  # Torch prints the downloads' names.
            loss.load()
        loss.to(options.device)
    return found


def picture_writer(options: argparse.Namespace) -> Any:
    """The function that writes a pair's picture, or ``None`` without ``--picture``."""
    if options.picture is None:
        return None
    folders = options.a.is_dir()

    def write(pair: Pair, figure: Any) -> None:
        save_figure(figure, options.picture / f"{pair.name}.png" if folders else options.picture)

    return write


def column_titles(options: argparse.Namespace) -> dict[str, str]:
    """The columns that are shown for each pair: titles by the rows' keys."""
    labels = {"data_range": "range", "ssim": METRICS["ssim"], "ms_ssim": METRICS["ms_ssim"]}
    labels["levels"] = "levels"
    if options.vgg_weights:
        labels["vgg"] = f"{METRICS['vgg']} {options.vgg_layers}"
    if options.lpips_weights:
        labels["lpips"] = f"{METRICS['lpips']} {options.lpips_backbone}"
    if options.check:
        labels |= {"scikit_image": "scikit-image", "difference": "difference"}
    return labels


def report_problems(rows: Sequence[Row], other_files: int) -> None:
    """Prints on stderr which files were not compared, and which parts of others were left out."""
    for row in rows:
        if "problem" in row:
            print(f"{row['file']}: {row['problem']}", file=sys.stderr)
        elif row["notice"]:
            print(row["notice"], file=sys.stderr)
    if other_files:
        print(f"left out {other_files} files whose names are no images'", file=sys.stderr)
    done = len(compared_rows(rows))
    if done < len(rows):
        print(f"compared {done} of {len(rows)}", file=sys.stderr)


def remarks(rows: Sequence[Row], options: argparse.Namespace) -> Iterator[str]:
    """Explanations below the table: missing levels, and the result of ``--check``."""
    compared = compared_rows(rows)
    if any(row["levels"] < len(MS_SSIM_WEIGHTS) for row in compared):
        yield (
            f"MS-SSIM has {len(MS_SSIM_WEIGHTS)} levels from {FULL_SIZE}x{FULL_SIZE} pixels on. "
            "Smaller images have fewer, whose weights are scaled to the same sum."
        )
    if options.check:
        difference = largest_difference(rows)
        verdict = "agrees" if difference <= BOUND else "does NOT agree"
        yield (
            f"SSIM {verdict} with scikit-image: it differs by {difference:.1e} at most, and "
            f"{BOUND:g} is allowed."
        )


def settings(options: argparse.Namespace) -> Mapping[str, Any]:
    """The options that the numbers depend on."""
    return {
        "a": str(options.a),
        "b": str(options.b),
        "dtype": "float32" if options.float32 else "float64",
        "device": options.device,
        "vgg_layers": options.vgg_layers if options.vgg_weights else None,
        "lpips_backbone": options.lpips_backbone if options.lpips_weights else None,
    }


def print_encodable(text: str) -> None:
    """Prints a text, with escapes for letters that the terminal's encoding lacks."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))


class RefusedError(Exception):
    """An option cannot be used; the message says what to pass instead."""


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Turns errors of the work on files into refusals, which have no traceback."""
    try:
        yield
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise RefusedError(str(error)) from error


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    options = parse_arguments(argv)
    try:
        return compare(options)
    except ModuleNotFoundError as error:
        print(
            f'{error.name} is not installed: pip install "perceptual-losses[compare]"',
            file=sys.stderr,
        )
    except RefusedError as error:
        print(f"error: {error}", file=sys.stderr)
    return 2
