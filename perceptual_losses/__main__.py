"""``python -m perceptual_losses``: the metrics of image files."""

from .compare.cli import run

if __name__ == "__main__":
    run(prog="python -m perceptual_losses")
