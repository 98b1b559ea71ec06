"""The gallery: its numbers and pictures are those of the losses, and its sentences are true."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.pages import gallery

NUMBER = re.compile(r"\d+\.\d+")


def test_the_numbers_are_those_of_the_losses(tmp_path):
    page = Path(shutil.copy(gallery.PAGE, tmp_path))
    gallery.pages(page)
    now, then = page.read_text(), gallery.PAGE.read_text()
    assert NUMBER.sub("", now) == NUMBER.sub("", then)
    numbers = [[float(number) for number in NUMBER.findall(text)] for text in (now, then)]
    # A unit of the last digit, which rounding decides, and versions of JPEG.
    assert numbers[0] == pytest.approx(numbers[1], abs=1.1e-4, rel=0)


def test_the_states_have_one_squared_error():
    photo, shifted = gallery.photos()
    error = np.mean((shifted - photo) ** 2)
    for state in gallery.distortions().values():
        assert np.mean((state - photo) ** 2) == pytest.approx(error, rel=1e-4)
        assert 0 <= state.min() <= state.max() <= 1


def test_the_pictures_are_drawn_from_the_losses():
    text = gallery.PAGE.read_text()
    drawn = gallery.pictures()
    assert {path.stem for path in gallery.PICTURES.iterdir()} == drawn.keys()
    assert sum(path.stat().st_size for path in gallery.PICTURES.iterdir()) < 1.5e6
    for name, picture in drawn.items():
        assert re.search(rf"!\[.{{20,}}\]\(gallery/{name}\.png\)", text)
        with Image.open(gallery.PICTURES / f"{name}.png") as file:
            stored = np.asarray(file.convert("RGB")) / 255
        # The files have 256 colours.
        assert np.abs(stored - picture).mean() < 0.015


def test_what_the_page_says():
    columns = list(gallery.LOSSES)
    losses = gallery.values(list(gallery.LOSSES.values()))
    ssim, ms_ssim = (
        {name: row[columns.index(title)] for name, row in losses.items()}
        for title in ("SSIM", "MS-SSIM")
    )
    assert max(ssim, key=ssim.get) == max(ms_ssim, key=ms_ssim.get) == "noise"
    assert min(ssim, key=ssim.get) == "grey"
    assert min(ms_ssim, key=ms_ssim.get) == "brighter"
    assert ms_ssim["hole"] > ssim["hole"]
    assert ms_ssim["shift"] < ssim["shift"] / 4
    levels = gallery.values([gallery.MSSSIMLoss(levels=count) for count in gallery.LEVELS])
    for name in ("noise", "blur", "shift", "brighter"):
        assert levels[name] == sorted(levels[name], reverse=True)
    assert min(levels, key=lambda name: levels[name][-1] / levels[name][0]) == "brighter"
