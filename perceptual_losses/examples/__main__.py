"""``python -m perceptual_losses.examples demo``: see two losses train the same model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def positive(text: str) -> int:
    """A whole number from 1 upwards."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive: pass 1 or more")
    return number


def folder(text: str) -> Path:
    """A folder, which need not exist yet."""
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a file: pass a folder")
    return path


def arguments() -> argparse.ArgumentParser:
    """The commands and their options."""
    parser = argparse.ArgumentParser(prog="python -m perceptual_losses.examples")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser(
        "demo",
        help="train a VAE with the mean squared error and with MS-SSIM, and compare them",
        description="Trains a VAE with the mean squared error and again with MS-SSIM, with the "
        "same seed, data and number of steps, and compares them on held-out photos. Exits with 1 "
        "if training with MS-SSIM did not give the better SSIM and MS-SSIM.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument("--steps", type=positive, default=2000, help="updates of each model")
    demo.add_argument("--batch-size", type=positive, default=32, help="images for each update")
    demo.add_argument("--seed", type=int, default=0, help="of the weights, the order and the noise")
    demo.add_argument("--out", type=folder, default="runs/demo", help="folder to write to")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code."""
    options = arguments().parse_args(argv)
    try:
        from .demo import demo, metrics_not_won, table
    except ModuleNotFoundError as error:
        print(
            f'{error.name} is not installed: pip install "perceptual-losses[examples]"',
            file=sys.stderr,
        )
        return 2

    metrics = demo(
        steps=options.steps, batch_size=options.batch_size, seed=options.seed, out=options.out
    )
    print(f"\n{table(metrics)}\n\nPictures, curves and numbers are in {options.out}.")
    if not_won := metrics_not_won(metrics):
        print(
            f"MS-SSIM training did NOT win on {' and '.join(not_won)} after {options.steps} steps.",
            file=sys.stderr,
        )
        return 1
    print("MS-SSIM training won on SSIM and MS-SSIM.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
