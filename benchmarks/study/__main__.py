"""Trains every model with the same data and number of steps and writes a page on what came of it.
Exits with 1 if training with MS-SSIM did not give the better held-out MS-SSIM than the mean squared
error with every seed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from perceptual_losses.examples.__main__ import RefusedError, folder, positive, refusals, seed
from perceptual_losses.examples.train import make_folder

from .study import seeds_won, study, table, verdict, write_page


def arguments() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.study",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--steps", type=positive, default=700, help="updates of each model")
    parser.add_argument("--batch-size", type=positive, default=16, help="images for each update")
    parser.add_argument("--seeds", type=seed, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=folder, default=Path("runs/study"), help="for the trainings")
    parser.add_argument(
        "--out", type=folder, default=Path("docs/vae"), help="folder for results; the page is .md"
    )
    parser.add_argument(
        "--from-results", action="store_true", help="train nothing: the page anew from the results"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = arguments().parse_args(argv)
    try:
        with refusals():
            if options.from_results:
                results = json.loads((options.out / "results.json").read_text())
            else:
                make_folder(options.runs)
                make_folder(options.out)
    except RefusedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.from_results:
        write_page(results, options.out)
    else:
        results = study(
            steps=options.steps,
            batch_size=options.batch_size,
            seeds=options.seeds,
            runs=options.runs,
            out=options.out,
        )
    print(f"\n{table(results)}\n\n{verdict(results)}\n\n")
    print(f"The page is {options.out.with_suffix('.md')}, its pictures are in {options.out}.")
    return 0 if all(seeds_won(results)) else 1


if __name__ == "__main__":
    sys.exit(main())
