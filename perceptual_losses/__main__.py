"""``python -m perceptual_losses``: the metrics of image files."""

import sys

from .compare.cli import main

if __name__ == "__main__":
    sys.exit(main(prog="python -m perceptual_losses"))
