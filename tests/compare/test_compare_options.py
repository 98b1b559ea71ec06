"""Pairing, thresholds, protocols and outputs of the command that compares image files."""

import base64
import csv
import gc
import html.parser
import io
import json
import os
import re
import sys

import numpy as np
import pytest
import tifffile
from compared_files import definition, patch, run, write
from PIL import Image
from skimage.color import rgb2ycbcr

from perceptual_losses.compare import cli, measure, options
from perceptual_losses.compare.measure import Comparison


@pytest.fixture
def two(tmp_path, monkeypatch):
    """Folders with three pairs of falling likeness; the working directory is theirs."""
    monkeypatch.chdir(tmp_path)
    x, _ = patch("camera", 40)
    noise = np.random.RandomState(0).randn(*x.shape)
    for name, strength in (("1.png", 2), ("2.png", 9), ("3.png", 30)):
        write(tmp_path / "a" / name, x)
        write(tmp_path / "b" / name, np.clip(x + strength * noise, 0, 255).astype(np.uint8))
    return tmp_path


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_pairs_by_stem(tmp_path, capsys):
    x, y = patch("camera", 40)
    write(tmp_path / "a" / "sub" / "x.png", x)
    write(tmp_path / "b" / "sub" / "x.bmp", y)
    write(tmp_path / "a" / "y.png", x)
    folders = tmp_path / "a", tmp_path / "b"
    assert run(*folders) == 1
    advice = "; the other has it with another suffix: pass --by-stem\n"
    assert capsys.readouterr().err == (
        f"sub/x.bmp: is only in {folders[1]}{advice}"
        f"sub/x.png: is only in {folders[0]}{advice}"
        f"y.png: is only in {folders[0]}\ncompared 0 of 3\n"
    )
    assert run(*folders, "--by-stem", "--csv", "-") == 1
    captured = capsys.readouterr()
    found, missing = rows_of(captured.out)
    assert found["file"] == "sub/x"
    assert float(found["ssim"]) == pytest.approx(definition(x, y), abs=1e-12)
    assert (missing["file"], missing["problem"]) == ("y", f"is only in {folders[0]}")
    write(tmp_path / "a" / "sub" / "x.tif", x)
    assert run(*folders, "--by-stem") == 1
    assert "sub/x: several files have this name without its suffix" in capsys.readouterr().err


def test_leftovers_are_left_out_silently(two, capsys):
    for name in ("._1.png", ".ipynb_checkpoints/1.png", "@eaDir/1.png", "__MACOSX/1.png"):
        write(two / "a" / name, patch("camera", 40)[0])
    (two / "b" / "Thumbs.db").write_bytes(b"")
    assert run("a", "b") == 0
    assert capsys.readouterr().err == ""


def test_grey_against_equal_channels(tmp_path, capsys):
    x, y = patch("camera", 40)
    write(tmp_path / "x.png", x)
    write(tmp_path / "y.png", np.stack([y] * 3, -1))
    files = tmp_path / "x.png", tmp_path / "y.png"
    assert run(*files) == 1
    assert "3 channels, 8 bits; --match-grey may help" in capsys.readouterr().err
    assert run(*files, "--match-grey", "--csv", "-") == 0
    (row,) = rows_of(capsys.readouterr().out)
    assert float(row["ssim"]) == pytest.approx(definition(x, y), abs=1e-12)
    assert row["channels"] == "1"
    write(files[1], np.stack([y, y, x], -1))
    assert run(*files, "--match-grey") == 1
    assert "and " + str(files[1]) + " 45x40 pixels, 3 channels" in capsys.readouterr().err


def test_the_protocol_of_super_resolution(tmp_path, capsys):
    """Against the published formulas: scikit-image's luma, a border of 4, and MATLAB's weights."""
    x, y = patch("astronaut", 60)
    write(tmp_path / "x.png", x)
    write(tmp_path / "y.png", y)
    files = tmp_path / "x.png", tmp_path / "y.png"
    assert run(*files, "--crop", 4, "--luma", "bt601", "--csv", "-") == 0
    (row,) = rows_of(capsys.readouterr().out)
    a, b = (rgb2ycbcr(values)[4:-4, 4:-4, 0] for values in (x, y))
    mse = ((a - b) ** 2).mean()
    # The luma of scikit-image rounds its weights to 1e-3.
    assert float(row["mse"]) == pytest.approx(mse, rel=1e-4)
    assert float(row["psnr"]) == pytest.approx(10 * np.log10(255**2 / mse), abs=1e-3)
    assert float(row["ssim"]) == pytest.approx(definition(a, b, data_range=255), abs=1e-5)
    assert (row["width"], row["height"], row["channels"]) == ("57", "52", "3")
    # White is 235 and black 16, in 16 bits too.
    for dtype in (np.uint8, np.uint16):
        top = np.iinfo(dtype).max
        image = measure.Picture(np.array([[[0] * 3, [top] * 3]], dtype), top)
        assert measure.luma(image).ravel() * 255 / top == pytest.approx([16, 235], abs=1e-12)
    assert run(*files, "--crop", 30) == 1
    assert "--crop 30 leaves none" in capsys.readouterr().err


def test_thresholds(two, capsys):
    assert run("a", "b", "--csv", "-") == 0
    rows = {row["file"]: row for row in rows_of(capsys.readouterr().out)}
    for name, key in (("ssim", "ssim"), ("ms-ssim", "ms_ssim"), ("psnr", "psnr")):
        values = sorted(float(row[key]) for row in rows.values())
        assert run("a", "b", f"--min-{name}", values[0]) == 0
        assert capsys.readouterr().err == ""
        assert run("a", "b", f"--min-{name}", values[1]) == 3
        said = capsys.readouterr().err
        assert re.fullmatch(rf"3.png fails: [\w-]+ is \S+ and --min-{name} \S+\n", said)
    (two / "b" / "1.png").unlink()
    assert run("a", "b", "--min-ssim", 0.99) == 3
    fails = {"min_ssim": 0.5, "min_ms_ssim": None, "min_psnr": None, "max_lpips": 0.1}
    row = {"file": "x", "ssim": float("nan"), "lpips": 0.2}
    reasons = cli.reasons_to_fail(row, type("Options", (), fails))
    assert reasons == "SSIM is nan and --min-ssim 0.5; LPIPS is 0.200000 and --max-lpips 0.1"


def test_rows_say_which_thresholds_are_missed(two, capsys):
    (two / "b" / "1.png").unlink()
    outputs = "--csv", "-", "--json", two / "found.json"
    assert run("a", "b", "--min-ssim", 0, "--min-psnr", 99, *outputs) == 3
    one, other, *rest = rows_of(capsys.readouterr().out)
    assert one["problem"]
    assert one["fails"] == ""
    for row in (other, *rest):
        assert re.fullmatch(r"PSNR is [\d.]+ and --min-psnr 99", row["fails"])
    files = json.loads((two / "found.json").read_text())["files"]
    assert [row.get("fails", "") for row in files] == [row["fails"] for row in (one, other, *rest)]
    assert run("a", "b", "--csv", "-") == 1
    assert "fails" not in capsys.readouterr().out


def test_several_jobs_give_the_same(two, capsys):
    for flags in ((), ("-j", 2)):
        assert run("a", "b", "--csv", two / f"{len(flags)}.csv", *flags) == 0
    assert (two / "0.csv").read_text() == (two / "2.csv").read_text()
    table = capsys.readouterr().out.split("file ")
    assert table[1] == table[2]
    assert re.findall(r"^\d.png", table[1], re.MULTILINE) == ["3.png", "2.png", "1.png"]


@pytest.mark.parametrize(("limit", "kept"), [(measure.KEPT, 2), (10, 0)])
def test_memory_is_kept_for_small_images_only(two, monkeypatch, capsys, limit, kept):
    monkeypatch.setattr(measure, "KEPT", limit)
    monkeypatch.setattr(measure, "_memory", measure._Memory())
    assert run(two / "a", two / "b") == 0
    assert len(measure._memory.arrays) == kept


def test_the_collector_rests_only_while_the_command_runs(two, monkeypatch):
    measured, frozen = Comparison.row, []

    def row(self, pair):
        frozen.append(gc.get_freeze_count())
        return measured(self, pair)

    monkeypatch.setattr(Comparison, "row", row)
    assert run("a", "b") == 0
    assert min(frozen) > 1000
    assert gc.get_freeze_count() == 0


def test_results_on_standard_output_only(two, capsys):
    assert run("a", "b", "--json", "-") == 0
    assert [row["file"] for row in json.loads(capsys.readouterr().out)["files"]] == [
        f"{i}.png" for i in (1, 2, 3)
    ]
    assert run("a", "b", "--json", "-", "--csv", "-") == 2
    assert "--json - is where --csv goes" in capsys.readouterr().err


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_interruption_keeps_what_is_done(two, monkeypatch, capsys, jobs):
    measured = Comparison.row

    def interrupted(self, pair):
        if pair.name == "3.png":
            raise KeyboardInterrupt
        return measured(self, pair)

    monkeypatch.setattr(Comparison, "row", interrupted)
    files = ["--csv", "out.csv", "--json", "out.json", "-j", jobs]
    assert run("a", "b", *files) == cli.INTERRUPTED == 130
    captured = capsys.readouterr()
    assert captured.err == "interrupted: compared 2 of 3\n"
    assert "mean of 2" in captured.out
    assert [row["file"] for row in rows_of((two / "out.csv").read_text())] == ["1.png", "2.png"]
    record = json.loads((two / "out.json").read_text())
    assert record["complete"] is False
    assert [row["file"] for row in record["files"]] == ["1.png", "2.png"]


def test_a_full_disk_keeps_what_is_done(two, monkeypatch, capsys):
    write_row = cli.CsvFile.write

    class FullFile(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    def full(self, row):
        if row["file"] == "2.png":
            self.file.close()
            self.file = FullFile()
        write_row(self, row)

    monkeypatch.setattr(cli.CsvFile, "write", full)
    assert run("a", "b", "--csv", "out.csv") == 2
    captured = capsys.readouterr()
    said = "compared 2 of 3\nerror: out.csv cannot be written (the disk is full)\n"
    assert captured.err == said
    assert [row["file"] for row in rows_of((two / "out.csv").read_text())] == ["1.png"]
    assert captured.out.count(".png") == 2


def test_a_closed_pipe_ends_quietly(two, monkeypatch, capsys):
    reads, writes = os.pipe()
    os.close(reads)
    with os.fdopen(writes, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert run("a", "b", "--csv", "-") == cli.CLOSED_PIPE == 141
        monkeypatch.undo()
    assert capsys.readouterr().err == ""


class Page(html.parser.HTMLParser):
    """The cells of a page's rows, its titles of columns, and its images."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.images, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag == "tr":
            self.rows.append([])
        if tag == "img":
            self.images.append(dict(attributes)["src"])
        if tag == "td":
            self.rows[-1].append("")

    def handle_data(self, text):
        self.words.append(text)
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += text.strip()


def test_a_page(two, monkeypatch, capsys):
    for folder in "ab":
        (two / folder / "3.png").rename(two / folder / "<b>.png")
    write(two / "a" / "only.png", patch("camera", 40)[0])
    monkeypatch.setattr(cli, "SHOWN_IN_PAGE", 2)
    assert run("a", "b", "--html", "new/out.html", "--min-psnr", 25) == 3
    text = (two / "new" / "out.html").read_text()
    page = Page(text)
    names = [row[0] for row in page.rows[1:4]]
    assert names == ["<b>.png", "2.png", "1.png"]
    assert [row[0] for row in page.rows[5:]] == ["min", "median", "mean", "worst"]
    # Nothing is fetched.
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", text)
    assert len(page.images) == 2 * 3
    assert "Not compared" in page.words
    assert any(re.match("<b>.png: PSNR is", word) for word in page.words)
    assert text.count('class="failed"') == 1
    assert 'href="#pair-0">&lt;b&gt;.png</a>' in text
    for source in page.images:
        kind, _, data = source.partition(";base64,")
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            assert kind == f"data:image/{image.format.lower()}"
            assert image.size == ((35, 30) if image.format == "PNG" else (45, 40))


def test_a_large_pair_is_compared_by_channels(tmp_path, monkeypatch, capsys):
    x, y = patch("astronaut", 40)
    write(tmp_path / "x.png", x)
    write(tmp_path / "y.png", y)
    files = tmp_path / "x.png", tmp_path / "y.png"
    rows = []
    for large in (10**9, 100):
        monkeypatch.setattr(measure, "LARGE", large)
        assert run(*files, "--json", "-") == 0
        rows += json.loads(capsys.readouterr().out)["files"]
    keys = ("psnr", "mse", "ssim", "ms_ssim", "levels")
    assert [rows[1][key] for key in keys] == pytest.approx(
        [rows[0][key] for key in keys], rel=1e-12
    )
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert run(*files) == 0
    assert capsys.readouterr().err.count("45x40, channel ") == 3


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--vgg-layers", "dfc-123"], "--vgg-layers has no effect without --vgg-weights: pass"),
        (["--lpips-backbone", "vgg16"], "--lpips-backbone has no effect without --lpips-weights"),
        (["--lpips-linear", "x"], "--lpips-linear has no effect without --lpips-weights"),
        (["--max-lpips", "0.1"], "--max-lpips has no effect without --lpips-weights"),
    ],
)
def test_options_without_effect(two, capsys, flags, text):
    assert run("a", "b", *flags) == 2
    assert capsys.readouterr().err.startswith(f"error: {text}")


@pytest.mark.parametrize("flags", [["--by-stem"], ["-j", "2"]])
def test_options_of_folders(two, capsys, flags):
    assert run("a/1.png", "b/1.png", *flags) == 2
    assert "is for folders: leave it out with two images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--background", "green"], "'green' is no colour: pass white, black or #rrggbb"),
        (["--data-range", "0"], "0 is not positive"),
        (["--data-range", "inf"], "inf is not positive"),
        (["--crop", "0"], "0 is not positive: pass 1 or more"),
        (["--luma", "bt709"], "invalid choice: 'bt709'"),
    ],
)
def test_values_of_no_use(capsys, flags, text):
    with pytest.raises(SystemExit) as caught:
        run("a", "b", *flags)
    assert caught.value.code == 2
    assert text in capsys.readouterr().err


def test_a_background(tmp_path, capsys):
    x, _ = patch("astronaut", 40)
    opacity = np.full(x.shape[:2], 255, np.uint8)
    opacity[:20] = 0
    Image.fromarray(np.dstack([x, opacity])).save(tmp_path / "x.png")
    flat = x.copy()
    flat[:20] = (16, 192, 32)
    tifffile.imwrite(tmp_path / "y.tif", flat, photometric="rgb")
    files = tmp_path / "x.png", tmp_path / "y.tif"
    assert run(*files, "--background", "#10c020", "--csv", "-") == 0
    (row,) = rows_of(capsys.readouterr().out)
    assert (row["ssim"], row["mse"]) == ("1.0", "0.0")
    assert row["notice"] == f"{files[0]}: transparent parts are put on #10c020"


def test_the_console_script(root, capsys):
    assert 'perceptual-losses = "perceptual_losses.compare.cli:run_and_exit"' in (
        (root / "pyproject.toml").read_text()
    )
    for prog, flags in (("perceptual-losses", {}), ("python -m x", {"prog": "python -m x"})):
        with pytest.raises(SystemExit):
            cli.main(["--help"], **flags)
        assert capsys.readouterr().out.startswith(f"usage: {prog} [-h] [--version]")
    with pytest.raises(SystemExit):
        options.parse_arguments(["--version"], "x")
    assert re.fullmatch(r"perceptual-losses \d\S+\n", capsys.readouterr().out)
