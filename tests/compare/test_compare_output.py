"""The pictures that the command draws, its progress bar, its help and its page."""

import json
import os
import re
import shlex
import sys

import numpy as np
import pytest
import torch
from compared_files import patch, run, tensor, write
from PIL import Image

from perceptual_losses.compare import cli, figures, metrics, options
from perceptual_losses.features import LPIPS_LAYERS


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are written, by their names."""
    drawings, save = {}, figures.save_figure

    def keep(figure, path):
        drawings[path.name] = figure
        save(figure, path)

    monkeypatch.setattr(cli, "save_figure", keep)
    return drawings


def test_pictures(folders, drawn):
    place, images = folders
    for name in ("colour/astronaut.png", "moon.png"):
        (place / "a" / name).unlink()
        (place / "b" / name).unlink()
    flags = ["--picture", place / "new" / "pictures", "--json", place / "out.json"]
    assert run(place / "a", place / "b", *flags) == 0
    record = json.loads((place / "out.json").read_text())
    assert len(record["files"]) == 2
    for row in record["files"]:
        path = place / "new" / "pictures" / f"{row['file']}.png"
        written, figure = np.array(Image.open(path)), drawn[path.name]
        assert min(written.shape[:2]) > 400
        assert written[..., :3].std() > 20
        assert figure.get_suptitle() == row["file"]
        *panels, similarity, bar = figure.axes
        top = row["data_range"]
        for panel, title, values in zip(panels, "AB", images[row["file"]], strict=True):
            (shown,) = panel.images
            assert panel.get_title() == title
            scale = 65535 if values.ndim == 3 and top == 65535 else 1
            np.testing.assert_allclose(shown.get_array(), values / scale, rtol=1e-6)
            assert values.ndim == 3 or shown.get_clim() == (0, top)
        (shown,) = similarity.images
        assert shown.get_array().shape == (160, 165)
        assert shown.get_array().mean() == pytest.approx(row["ssim"], abs=1e-12)
        assert shown.get_extent() == [4.5, 169.5, 164.5, 4.5]
        assert shown.get_clim() == (0, 1)
        assert similarity.get_xlim() == panels[0].get_xlim() == (-0.5, 174.5)
        assert similarity.get_ylim() == panels[0].get_ylim() == (169.5, -0.5)
        assert similarity.get_title() == "\n".join(
            f"{metrics.METRICS[key]} {row[key]:.6f}" for key in ("psnr", "mse", "ssim", "ms_ssim")
        )
        colour = row["channels"] == 3
        assert bar.get_ylabel() == ("SSIM, mean over channels" if colour else "SSIM")


def test_only_regular_files_are_replaced(tmp_path):
    for name, values in zip(("x.png", "y.png"), patch("camera", 20), strict=True):
        write(tmp_path / name, values)
    pair = tmp_path / "x.png", tmp_path / "y.png"
    link, linked, pipe = tmp_path / "link.json", tmp_path / "linked.json", tmp_path / "pipe"
    link.symlink_to(linked)
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    for linked_text in (None, "the last results"):
        if linked_text:
            linked.write_text(linked_text)
        assert run(*pair, "--json", link, "--html", pipe) == 0
        assert link.readlink() == linked
        assert json.loads(linked.read_text())["complete"] is True
        assert pipe.is_fifo()
        assert os.read(reader, 15) == b"<!doctype html>"
        while os.read(reader, 2**16):
            pass
    os.close(reader)


def test_a_defect_is_where_the_map_says(tmp_path, drawn):
    x, _ = patch("camera", 60)
    y = x.copy()
    y[40:44, 20:24] = 255 - y[40:44, 20:24]
    for name, values in (("x.png", x), ("y.png", y)):
        write(tmp_path / name, values)
    assert run(tmp_path / "x.png", tmp_path / "y.png", "--picture", tmp_path / "out.pdf") == 0
    assert (tmp_path / "out.pdf").read_bytes().startswith(b"%PDF")
    _, _, panel, _ = drawn["out.pdf"].axes
    (shown,) = panel.images
    values = shown.get_array()
    assert values.min() < 0
    assert shown.colorbar.extend == "min"
    left, _, _, top = shown.get_extent()
    row, column = np.argwhere(values < 0.3).mean(0)
    assert (top + 0.5 + row, left + 0.5 + column) == pytest.approx((41.5, 21.5), abs=1)


def test_bands_of_the_map_are_the_map(monkeypatch):
    images = patch("astronaut", 60)
    x, y = map(tensor, images)
    expected = figures.ssim_map(x, y, data_range=255).mean(1)[0]
    for values in (1, 65 * 3 * 7, 65 * 3 * 50, 65 * 3 * 51, 10**6):
        monkeypatch.setattr(figures, "BAND", values)
        got = figures.similarity_map(*images, tensor, data_range=255)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_progress_is_shown_on_a_terminal(folders, monkeypatch, capsys):
    place, _ = folders
    assert run(place / "a", place / "b") == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert run(place / "a", place / "b") == 0
    assert re.search(r"comparing: .*0/4 .*\?file/s", capsys.readouterr().err)
    assert run(place / "a" / "moon.png", place / "b" / "moon.png") == 0
    assert capsys.readouterr().err == ""


def test_help_says_the_exit_codes(capsys):
    with pytest.raises(SystemExit) as caught:
        run("--help")
    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert options.EXIT_CODES in said
    assert all(name in said for name in (*LPIPS_LAYERS, "imagenet", "--max-megapixels"))


def test_the_page_shows_what_is_printed(root, tmp_path, monkeypatch, capsys):
    page = (root / "docs" / "compare.md").read_text()
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(code, {})
    shown = re.findall(r"```sh\n(.*?)```\n\n```text\n(.*?)```", page, re.DOTALL)
    assert len(shown) == 5
    rounding = r"\d\.\de-1\d"
    for command, expected in shown:
        start, *flags = shlex.split(command.partition("perceptual-losses ")[2])
        assert start == "compare"
        run(*flags)
        captured = capsys.readouterr()
        assert re.sub(rounding, "", captured.err + captured.out) == re.sub(rounding, "", expected)
    listed = {
        name
        for line in page.splitlines()
        if line.startswith("| `-")
        for name in re.findall(r"`(--[\w-]+)", line.split("|")[1])
    }
    with pytest.raises(SystemExit):
        run("--help")
    assert listed == set(
        re.findall(r"^  (?:-j N, )?(--[\w-]+)", capsys.readouterr().out, re.MULTILINE)
    )
    for line in options.EXIT_CODES.splitlines()[1:]:
        number, meaning = line.split(maxsplit=1)
        assert f"| {number} | {meaning} |" in page
