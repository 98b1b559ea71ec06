"""The command ``perceptual-losses compare``."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import gc
import importlib
import os
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import torch

from .._images.picture import Reading
from .._literals import LPIPSBackbone, VGGPreset
from .._validation import smallest_side
from ..features import LPIPSLoss, VGGLoss
from ..similarity import MS_SSIM_WEIGHTS
from .figures import save_figure
from .files import Pair, Row, find_pairs
from .html import worst_pairs, write_html
from .measure import Comparison, threads_of
from .metrics import BOUND, METRICS, WINDOW, compared_rows, largest_difference
from .options import THRESHOLDS, check_effects, check_outputs, option, parse_arguments
from .output import (
    STDOUT,
    CsvFile,
    escaped,
    format_table,
    print_encodable,
    say,
    value_text,
    write_json,
)

FULL_SIZE = smallest_side(len(MS_SSIM_WEIGHTS), WINDOW)
"""The smallest side of images that have all levels of MS-SSIM."""

SHOWN_IN_PAGE = 12
"""The number of pairs that the page shows, those with the least SSIM."""

INTERRUPTED, CLOSED_PIPE = 130, 141


def compare(options: argparse.Namespace) -> int:
    """Compares two images or two folders of images; returns the exit code."""
    for module in required_modules(options):
        importlib.import_module(module)
    with refusals():
        pairs, problems, other_files = find_pairs(options.a, options.b, by_stem=options.by_stem)
        check_effects(options)
        check_outputs(options)
        unwritten: list[str] = []
        comparison = ready_comparison(options, unwritten)
        labels = column_titles(options)
        fails = ["fails"] * any(getattr(options, name) is not None for name in THRESHOLDS)
        keys = ["file", "width", "height", "channels", *labels, *fails, "notice", "problem"]
        table = CsvFile(options.csv, keys) if options.csv else None
    rows: list[Row] = []
    code = 0
    try:
        with contextlib.closing(
            measured(comparison, pairs, problems, options.jobs or 1)
        ) as new_rows:
            for row in new_rows:
                if fails and "problem" not in row:
                    row["fails"] = reasons_to_fail(row, options)
                rows.append(row)
                if table:
                    table.write(row)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        raise
    except OSError as error:
        unwritten.append(str(error))
    finally:
        if table:
            with contextlib.suppress(OSError):
                table.close()
    complete = len(rows) == len(pairs) + len(problems)
    report(rows, other_files, len(pairs) + len(problems), interrupted=code == INTERRUPTED)
    for text in unwritten:
        say(f"error: {text}")
        code = code or 2
    with refusals():
        if compared_rows(rows) and STDOUT not in (options.csv, options.json):
            print_encodable("\n\n".join([format_table(rows, labels), *remarks(rows, options)]))
        if options.json:
            write_json(options.json, rows, settings(options), complete=complete)
        if options.html and complete:
            title = f"{options.a} and {options.b}"
            worst = list(worst_pairs(rows, pairs, comparison, SHOWN_IN_PAGE))
            write_html(options.html, rows, labels, worst, title=title)
        sys.stdout.flush()
    if code:
        return code
    if any(row.get("fails") for row in rows):
        return 3
    if options.check and not largest_difference(rows) <= BOUND:
        return 3
    return 0 if len(compared_rows(rows)) == len(rows) else 1


def measured(
    comparison: Comparison, pairs: Sequence[Pair], problems: Sequence[Row], jobs: int
) -> Generator[Row, None, None]:
    """The rows of all files in the order of their names, each as soon as it is known."""
    from tqdm import tqdm

    quiet = len(pairs) < 2 or not has_terminal()
    by_name = {row["file"]: row for row in problems}
    with (
        ThreadPoolExecutor(jobs) as pool,
        threads_of(jobs),
        tqdm(total=len(pairs), desc="comparing", unit="file", leave=False, disable=quiet) as bar,
    ):
        # A single job runs in the main thread, which has all of torch's threads already.
        results = (pool.map if jobs > 1 else map)(comparison.row, pairs)
        try:
            for name in sorted([*by_name, *(pair.name for pair in pairs)]):
                if name in by_name:
                    yield by_name[name]
                else:
                    yield next(results)
                    bar.update()
        finally:
            pool.shutdown(cancel_futures=True)


def required_modules(options: argparse.Namespace) -> list[str]:
    """The optional modules that the options need, to find missing ones before any work."""
    modules = ["PIL", "tqdm", "tifffile"]
    figures = bool(options.picture or options.html)
    return modules + ["matplotlib"] * figures + ["skimage"] * options.check


def ready_comparison(options: argparse.Namespace, unwritten: list[str]) -> Comparison:
    """The measurements that the options ask for, with all that they need.

    Args:
        options: the options.
        unwritten: a list that gets the reason for each picture that can't be written.
    """
    return Comparison(
        dtype="float32" if options.float32 else "float64",
        device=check_device(options),
        losses=ready_losses(options),
        check=options.check,
        reading=Reading(options.max_megapixels, options.data_range, options.background),
        crop=options.crop or 0,
        luma=options.luma is not None,
        match_grey=options.match_grey,
        draw=picture_writer(options, unwritten),
        progress=say_progress,
    )


def has_terminal() -> bool:
    """Whether stderr is a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()


def say_progress(text: str) -> None:
    """Prints a step of the work, if stderr is a terminal."""
    if has_terminal():
        from tqdm import tqdm

        with contextlib.suppress(OSError):
            tqdm.write(escaped(text), file=sys.stderr)


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
        found["vgg"] = VGGLoss(vgg_layers(options), weights=options.vgg_weights)
    if options.lpips_weights:
        found["lpips"] = LPIPSLoss(
            lpips_backbone(options),
            weights=options.lpips_weights,
            linear=options.lpips_linear or "lpips",
        )
    for loss in found.values():
        with contextlib.redirect_stdout(sys.stderr):  # Torch prints the downloads' names.
            loss.load()
        loss.to(options.device)
    return found


def vgg_layers(options: argparse.Namespace) -> VGGPreset:
    """The layers of the VGG loss."""
    return options.vgg_layers or "johnson"


def lpips_backbone(options: argparse.Namespace) -> LPIPSBackbone:
    """The network of LPIPS."""
    return options.lpips_backbone or "alexnet"


def picture_writer(options: argparse.Namespace, unwritten: list[str]) -> Any:
    """The function that writes a pair's picture, or ``None`` without ``--picture``.

    The pair keeps its numbers if the picture can't be written: the reason goes to ``unwritten``.
    """
    if options.picture is None:
        return None
    folders = options.a.is_dir()

    def write(pair: Pair, figure: Any) -> None:
        path = options.picture / f"{pair.name}.png" if folders else options.picture
        try:
            save_figure(figure, path)
        except OSError as error:
            unwritten.append(str(error))

    return write


def column_titles(options: argparse.Namespace) -> dict[str, str]:
    """The columns that are shown for each pair: titles by the rows' keys."""
    labels = {"data_range": "range"}
    labels |= {key: METRICS[key] for key in ("psnr", "mse", "ssim", "ms_ssim")}
    labels["levels"] = "levels"
    if options.vgg_weights:
        labels["vgg"] = f"{METRICS['vgg']} {vgg_layers(options)}"
    if options.lpips_weights:
        labels["lpips"] = f"{METRICS['lpips']} {lpips_backbone(options)}"
    if options.check:
        labels |= {"scikit_image": "scikit-image", "difference": "difference"}
    return labels


def reasons_to_fail(row: Row, options: argparse.Namespace) -> str:
    """The thresholds that a pair misses, or an empty text; NaN misses all."""
    reasons = []
    for name, (key, upper) in THRESHOLDS.items():
        bound = getattr(options, name)
        if bound is None or (row[key] <= bound if upper else row[key] >= bound):
            continue
        value = value_text(key, row[key])
        reasons.append(f"{METRICS[key]} is {value} and {option(name)} {bound:g}")
    return "; ".join(reasons)


def report(rows: Sequence[Row], other_files: int, total: int, *, interrupted: bool) -> None:
    """Prints on stderr the pairs that were not compared or fail, and the files left out."""
    for row in rows:
        if "problem" in row:
            say(f"{row['file']}: {row['problem']}")
        elif row["notice"]:
            say(row["notice"])
    for row in rows:
        if row.get("fails"):
            say(f"{row['file']} fails: {row['fails']}")
    if other_files:
        say(f"left out {other_files} files without an image's suffix")
    done = len(compared_rows(rows))
    if done < total:
        before = "interrupted: " if interrupted else ""
        say(f"{before}compared {done} of {total}")


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
        "data_range": options.data_range,
        "background": options.background,
        "crop": options.crop or 0,
        "luma": options.luma,
        "vgg_layers": vgg_layers(options) if options.vgg_weights else None,
        "lpips_backbone": lpips_backbone(options) if options.lpips_weights else None,
    }


class RefusedError(Exception):
    """An option cannot be used; the message says what to pass instead."""


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Turns errors of the work on files into refusals, which have no traceback."""
    try:
        yield
    except BrokenPipeError:
        raise
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise RefusedError(str(error)) from error


def main(argv: Sequence[str] | None = None, *, prog: str = "perceptual-losses") -> int:
    """Runs the command; returns the exit code."""
    options = parse_arguments(argv, prog)
    if sys.stdout is None:
        # The next file to be opened takes the number of stdout, and gets what libraries print.
        with (
            open(os.devnull, "w", encoding="utf-8") as nowhere,
            contextlib.redirect_stdout(nowhere),
        ):
            return main(argv, prog=prog) or CLOSED_PIPE
    try:
        # Torch's objects live until the end. Each search for garbage takes a tenth of a second.
        gc.freeze()
        return compare(options)
    except ModuleNotFoundError as error:
        say(f'{error.name} is not installed: pip install "perceptual-losses[compare]"')
    except RefusedError as error:
        say(f"error: {error}")
    except BrokenPipeError:
        # The interpreter flushes stdout when it ends, which would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED
    finally:
        gc.unfreeze()
    return 2


def run_and_exit() -> NoReturn:
    """Runs the command and ends the process at once.

    The interpreter's own end would take torch's objects apart one by one, for a fraction of a
    second. Argparse still ends that way, with ``--help`` and with wrong options.
    """
    code = main()
    atexit._run_exitfuncs()
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        code = code or CLOSED_PIPE
    except OSError:
        code = code or 2
    with contextlib.suppress(OSError):
        if sys.stderr is not None:
            sys.stderr.flush()
    os._exit(code)
