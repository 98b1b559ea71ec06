"""Image files compared from the command line: values, what is refused, what is written."""

import csv
import io
import json
import os
import re
import shlex
import struct
import subprocess
import sys
import unicodedata
import warnings
import zlib

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image, ImageOps
from skimage.metrics import structural_similarity
from torchvision.models import vgg

from perceptual_losses import LPIPSLoss, VGGLoss, __main__, compare, ms_ssim
from perceptual_losses.features import LPIPS_LAYERS

READ = {"megapixels": 200}
HEADER = "file,width,height,channels,data_range,ssim,ms_ssim,levels,notice,problem\n"


def png16(path, values, *, chunk=b""):
    """Of any number of channels, which Pillow does not write."""

    def chunked(kind, data):
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    height, width, channels = values.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    body = chunked(chunk[:4], chunk[4:]) if chunk else b""
    body += chunked(b"IDAT", zlib.compress(rows, 1))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunked(b"IHDR", header) + body + chunked(b"IEND", b""))


def tiff16(path, values, *, sample_format=1):
    """As `png16`; with samples of 2, signed."""
    height, width, channels = values.shape
    tags = {256: width, 257: height, 258: 16, 259: 1, 262: 2 if channels == 3 else 1, 273: 200}
    tags |= {277: channels, 278: height, 279: values.nbytes, 339: sample_format}
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()]
    if channels == 3:
        entries[2] = struct.pack("<HHII", 258, 3, 3, 180)
    data = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + b"".join(entries) + bytes(4)
    data = data.ljust(180, b"\0") + struct.pack("<3H", 16, 16, 16)
    path.write_bytes(data.ljust(200, b"\0") + values.astype("<u2").tobytes())


def patch(name, side=170, bits=8):
    """A part of a photo of scikit-image, and the same with noise, ``(H, W)`` or ``(H, W, 3)``."""
    dtype, top = (np.uint8, 255) if bits == 8 else (np.uint16, 65535)
    photo = getattr(skimage.data, name)()[100 : 100 + side, 150 : 150 + side + 5]
    # More than 8 bits of it count.
    x = photo * (top / 255)
    noise = np.random.RandomState(5).randn(2, *x.shape) * top / 255
    return tuple(
        np.clip(x + s * n, 0, top).astype(dtype) for s, n in zip((1, 8), noise, strict=True)
    )


def write(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    if values.dtype == np.uint16 and values.ndim == 3:
        png16(path, values)
    else:
        Image.fromarray(values).save(path)


def definition(x, y):
    return structural_similarity(
        *(np.asarray(x, np.float64), np.asarray(y, np.float64)),
        data_range=np.iinfo(x.dtype).max,
        channel_axis=-1 if x.ndim == 3 else None,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )


def tensor(values):
    values = values[..., None] if values.ndim == 2 else values
    return torch.from_numpy(np.moveaxis(values.astype(np.float64), -1, 0)[None].copy())


def run(*flags):
    return __main__.main(["compare", *map(str, flags)])


@pytest.fixture
def folders(tmp_path):
    """Two folders with the same four images, of every depth and channel count."""
    images = {
        "camera.png": patch("camera"),
        "colour/astronaut.png": patch("astronaut"),
        "colour/deep.png": patch("astronaut", bits=16),
        "moon.png": patch("moon", bits=16),
    }
    for name, values in images.items():
        for folder, value in zip("ab", values, strict=True):
            write(tmp_path / folder / name, value)
    return tmp_path, images


# The numbers


def test_numbers_are_those_of_scikit_image(folders, capsys):
    place, images = folders
    out = place / "new" / "out.json"
    assert run(place / "a", place / "b", "--json", out, "--csv", place / "out.csv") == 0
    record = json.loads(out.read_text())
    assert [row["file"] for row in record["files"]] == sorted(images)
    for row in record["files"]:
        x, y = images[row["file"]]
        top = 65535 if row["file"] in ("colour/deep.png", "moon.png") else 255
        expected = ms_ssim(tensor(x), tensor(y), data_range=top).item()
        assert row["ssim"] == pytest.approx(definition(x, y), abs=1e-12)
        assert row["ms_ssim"] == pytest.approx(expected, abs=1e-12)
        assert (row["data_range"], row["levels"], row["notice"]) == (top, 5, "")
        assert (row["width"], row["height"]) == (175, 170)
        assert row["channels"] == (3 if "colour" in row["file"] else 1)
    means = {
        key: pytest.approx(np.mean([row[key] for row in record["files"]]), abs=1e-15)
        for key in ("ssim", "ms_ssim")
    }
    assert record["mean"] == means
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = [line.split() for line in captured.out.splitlines()]
    assert lines[0] == ["file", "size", "range", "SSIM", "MS-SSIM", "levels"]
    for line, row in zip(lines[1:5], record["files"], strict=True):
        values = [f"{row['ssim']:.6f}", f"{row['ms_ssim']:.6f}", "5"]
        assert line == [row["file"], "175x170", str(row["data_range"]), *values]
    mean = record["mean"]
    assert lines[5:] == [["mean", "of", "4", f"{mean['ssim']:.6f}", f"{mean['ms_ssim']:.6f}"]]
    with (place / "out.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [{k: v for k, v in row.items() if k != "problem"} for row in written] == [
        {key: str(value) for key, value in row.items()} for row in record["files"]
    ]


def test_the_published_photo(tmp_path, capsys):
    photo = skimage.data.camera()
    noisy = np.clip(photo + 20 * np.random.RandomState(5).randn(512, 512), 0, 255)
    write(tmp_path / "x.png", photo)
    write(tmp_path / "y.tif", noisy.astype(np.uint8))
    assert run(tmp_path / "x.png", tmp_path / "y.tif", "--json", tmp_path / "out.json") == 0
    (row,) = json.loads((tmp_path / "out.json").read_text())["files"]
    assert row["file"] == f"{tmp_path / 'x.png'}, {tmp_path / 'y.tif'}"
    assert row["ssim"] == pytest.approx(0.3579642362365813, abs=1e-12)
    assert row["ms_ssim"] == pytest.approx(0.793391544254753, abs=1e-12)
    # One line: the mean of one number says nothing.
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"{row['file']}  512x512    255  0.357964  0.793392       5"
    ]


def test_float32_is_float32(folders):
    place, _ = folders
    rows = {}
    for flags in ([], ["--float32"]):
        run(place / "a", place / "b", "--json", place / "out.json", *flags)
        record = json.loads((place / "out.json").read_text())
        rows[record["dtype"]] = np.array([row["ssim"] for row in record["files"]])
    error = np.abs(rows["float32"] - rows["float64"])
    assert 1e-12 < error.max() < compare.BOUND
    assert (np.float32(rows["float32"]) == rows["float32"]).all()


def test_identical_files(tmp_path, capsys):
    write(tmp_path / "x.png", patch("astronaut")[0])
    assert run(tmp_path / "x.png", tmp_path / "x.png", "--check") == 0
    assert "1.000000  1.000000       5      1.000000     0.0e+00" in capsys.readouterr().out


def test_the_levels_of_small_images_are_said(tmp_path, capsys):
    for name, side in (("32.png", 32), ("64.png", 64)):
        for folder, value in zip("ab", patch("camera", side), strict=True):
            write(tmp_path / folder / name, value)
    assert run(tmp_path / "a", tmp_path / "b", "--json", tmp_path / "out.json") == 0
    rows = json.loads((tmp_path / "out.json").read_text())["files"]
    x, y = map(tensor, patch("camera", 64))
    expected = ms_ssim(x, y, data_range=255, levels=3).item()
    assert rows[1]["ms_ssim"] == pytest.approx(expected, abs=1e-12)
    out = capsys.readouterr().out
    assert re.search(r"32.png +37x32 .* 2\n64.png +69x64 .* 3\n", out)
    assert "MS-SSIM has 5 levels from 161x161 pixels on. Smaller images have fewer" in out


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Files of random weights: VGG-16, AlexNet, and LPIPS's linear ones."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    states = {"vgg": vgg.make_layers(vgg.cfgs["D"]).state_dict()}
    sizes = [(64, 3, 11), (192, 64, 5), (384, 192, 3), (256, 384, 3), (256, 256, 3)]
    alexnet = {}
    for place, (out, channels, side) in zip((0, 3, 6, 8, 10), sizes, strict=True):
        alexnet[f"{place}.weight"] = torch.randn(out, channels, side, side) / 30
        alexnet[f"{place}.bias"] = torch.zeros(out)
    states["alexnet"] = alexnet
    states["linear"] = {
        f"lin{i}.model.1.weight": torch.rand(1, size[0], 1, 1) for i, size in enumerate(sizes)
    }
    for name, state in states.items():
        torch.save(state, folder / f"{name}.pth")
    return folder


def test_losses_on_features(tmp_path, weights, capsys):
    place, images = tmp_path, {"grey.png": patch("camera", 40), "x.png": patch("coffee", 40, 16)}
    for name, values in images.items():
        for folder, value in zip("ab", values, strict=True):
            write(place / folder / name, value)
    flags = [
        *("--vgg-weights", weights / "vgg.pth", "--lpips-weights", weights / "alexnet.pth"),
        *("--lpips-linear", weights / "linear.pth", "--json", place / "out.json"),
    ]
    assert run(place / "a", place / "b", *flags, "--csv", place / "out.csv") == 0
    losses = {
        "vgg": VGGLoss(weights=weights / "vgg.pth"),
        "lpips": LPIPSLoss(
            "alexnet", weights=weights / "alexnet.pth", linear=weights / "linear.pth"
        ),
    }
    record = json.loads((place / "out.json").read_text())
    assert (record["vgg_layers"], record["lpips_backbone"]) == ("johnson", "alexnet")
    for row in record["files"]:
        unit = [(tensor(v) / row["data_range"]).float() for v in images[row["file"]]]
        for key, loss in losses.items():
            assert row[key] == pytest.approx(loss(*unit).item(), rel=1e-5)
            assert row[key] > 0
    assert record["mean"].keys() == {"ssim", "ms_ssim", "vgg", "lpips"}
    out = capsys.readouterr().out
    assert "levels  VGG johnson  LPIPS alexnet\n" in out
    assert f"{record['mean']['vgg']:.6f}       {record['mean']['lpips']:.6f}\n" in out
    names = (place / "out.csv").read_text().splitlines()[0]
    assert names.endswith(",ms_ssim,levels,vgg,lpips,notice,problem")


def test_weights_that_cannot_be_fetched_are_missed_before_any_work(folders, monkeypatch, capsys):
    def unreachable(*args, **kwargs):
        raise OSError("no network")

    place, _ = folders
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "/nowhere")
    assert run(place / "a", place / "b", "--vgg-weights", "imagenet") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.search(r"^error: .*/nowhere/checkpoints/vgg16", captured.err, re.MULTILINE)


def test_images_too_small_for_a_network(tmp_path, weights, capsys):
    for folder in "ab":
        write(tmp_path / folder / "x.png", patch("camera", 20)[0])
    flags = ["--lpips-weights", weights / "alexnet.pth", "--lpips-linear", weights / "linear.pth"]
    assert run(tmp_path / "a", tmp_path / "b", *flags) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "x.png: ValueError: x has shape (1, 1, 20, 25), too small for relu5" in captured.err


# --check


def test_check(folders, capsys):
    place, images = folders
    assert run(place / "a", place / "b", "--check", "--json", place / "out.json") == 0
    rows = json.loads((place / "out.json").read_text())["files"]
    for row in rows:
        assert row["scikit_image"] == pytest.approx(definition(*images[row["file"]]), abs=1e-12)
        assert row["difference"] == abs(row["ssim"] - row["scikit_image"])
    largest = max(row["difference"] for row in rows)
    assert largest < 1e-12
    out = capsys.readouterr().out
    assert f"agrees with scikit-image: it differs by {largest:.1e} at most, and 1e-06 is" in out
    assert f"{rows[0]['scikit_image']:.6f}     {rows[0]['difference']:.1e}\n" in out


@pytest.mark.parametrize("shift", [5e-7, 2e-6, float("nan")])
def test_a_difference_fails_the_check_alone(folders, monkeypatch, capsys, shift):
    place, _ = folders
    (place / "b" / "moon.png").unlink()
    ssim = compare.ssim
    monkeypatch.setattr(compare, "ssim", lambda *args, **kw: ssim(*args, **kw) + shift)
    within = shift == 5e-7
    assert run(place / "a", place / "b", "--check") == (1 if within else 3)
    assert ("does NOT agree" in capsys.readouterr().out) is not within
    assert run(place / "a", place / "b") == 1


# What cannot be compared


@pytest.fixture
def trouble(tmp_path):
    """Two folders, of whose images two can be compared."""
    x, y = patch("camera")
    a, b = tmp_path / "a", tmp_path / "b"
    for name in ("sub/good.png", "cut.png", "here.png", "size.png", "kind.png", "bits.png"):
        write(a / name, x)
    write(a / "same.png", x)
    write(b / "same.png", x)
    write(b / "sub" / "good.png", y)
    (b / "cut.png").write_bytes((a / "cut.png").read_bytes()[:5000])
    (a / "text.png").write_text("this is text")
    write(b / "text.png", x)
    write(b / "size.png", y[:-1])
    write(b / "kind.png", np.stack([y] * 3, -1))
    write(b / "bits.png", y * np.uint16(257))
    write(b / "there.png", y)
    for folder in (a, b):
        write(folder / "tiny.png", x[:10])
        (folder / "notes.txt").write_text("no image")
    return tmp_path


PROBLEMS = {
    "bits.png": "a/bits.png has 175x170 pixels, 1 channel, 8 bits and b/bits.png 175x170 pixels, "
    "1 channel, 16 bits",
    "cut.png": "b/cut.png cannot be read (OSError: image file is truncated)",
    "here.png": "is in a alone",
    "kind.png": "a/kind.png has 175x170 pixels, 1 channel, 8 bits and b/kind.png 175x170 pixels, "
    "3 channels, 8 bits",
    "size.png": "a/size.png has 175x170 pixels, 1 channel, 8 bits and b/size.png 175x169 pixels, "
    "1 channel, 8 bits",
    "text.png": "a/text.png is not in any of BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP",
    "there.png": "is in b alone",
    "tiny.png": "has 175x10 pixels, 1 channel, 8 bits, less than the window of 11x11",
}


def test_what_is_not_compared_is_named_and_the_rest_is_done(trouble, root):
    command = [sys.executable, "-m", "perceptual_losses", "compare", "a", "b"]
    command += ["--csv", "out/out.csv", "--json", "out/out.json"]
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        command, cwd=trouble, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.stderr.splitlines() == [
        *(f"{name}: {text}" for name, text in PROBLEMS.items()),
        "left out 2 files whose names are no images'",
        "compared 2 of 10",
    ]
    assert done.returncode == 1
    x, y = patch("camera")
    good, good_ms = definition(x, y), ms_ssim(tensor(x), tensor(y), data_range=255).item()
    assert done.stdout == (
        "file             size  range      SSIM   MS-SSIM  levels\n"
        "same.png      175x170    255  1.000000  1.000000       5\n"
        f"sub/good.png  175x170    255  {good:.6f}  {good_ms:.6f}       5\n"
        f"mean of 2                     {(1 + good) / 2:.6f}  {(1 + good_ms) / 2:.6f}\n"
    )
    record = json.loads((trouble / "out" / "out.json").read_text())
    shared = {"width": 175, "height": 170, "channels": 1, "data_range": 255}
    ssim, similarity = record["mean"]["ssim"] * 2 - 1, record["mean"]["ms_ssim"] * 2 - 1
    assert ssim == pytest.approx(good, abs=1e-12)
    rest = {"levels": 5, "notice": ""}
    assert record == {
        "version": compare.__version__,
        "a": "a",
        "b": "b",
        "dtype": "float64",
        "device": "cpu",
        "vgg_layers": None,
        "lpips_backbone": None,
        "files": sorted(
            [
                {"file": "same.png", **shared, "ssim": 1.0, "ms_ssim": 1.0, **rest},
                {
                    "file": "sub/good.png",
                    **shared,
                    "ssim": pytest.approx(ssim, abs=1e-15),
                    "ms_ssim": pytest.approx(similarity, abs=1e-15),
                    **rest,
                },
                *({"file": name, "problem": text} for name, text in PROBLEMS.items()),
            ],
            key=lambda row: row["file"],
        ),
        "mean": record["mean"],
    }
    numbers = {row["file"]: row for row in record["files"]}["sub/good.png"]
    lines = {name: f'{name},,,,,,,,,"{text}"' for name, text in PROBLEMS.items()}
    lines |= {name: f"{name},,,,,,,,,{text}" for name, text in PROBLEMS.items() if "," not in text}
    lines["same.png"] = "same.png,175,170,1,255,1.0,1.0,5,,"
    lines["sub/good.png"] = (
        f"sub/good.png,175,170,1,255,{numbers['ssim']!r},{numbers['ms_ssim']!r},5,,"
    )
    written = (trouble / "out" / "out.csv").read_text()
    assert written == HEADER + "".join(f"{lines[name]}\n" for name in sorted(lines))


def test_nothing_to_compare(tmp_path, capsys):
    write(tmp_path / "a" / "x.png", patch("camera")[0])
    (tmp_path / "b").mkdir()
    assert run(tmp_path / "a", tmp_path / "b", "--json", tmp_path / "out.json") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"x.png: is in {tmp_path / 'a'} alone\ncompared 0 of 1\n"
    assert json.loads((tmp_path / "out.json").read_text())["mean"] is None


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["a/x.png", "absent.png"], "absent.png does not exist: pass two images or two folders"),
        (["a/x.png", "b"], "b is a folder and a/x.png a file: pass two of a kind"),
        (["empty", "empty"], "empty and empty have no images: pass folders with files .bmp .gif"),
        (["a", "b", "--csv", "a"], "--csv a: pass a file, which this is not"),
        (["a", "b", "--picture", "a/x.png"], "--picture a/x.png: pass a folder, which this is not"),
        (["a", "b", "--picture", "a/new"], "--picture a/new is in what is compared"),
        (["a", "b", "--csv", "a/x.png"], "--csv a/x.png is in what is compared"),
        (["a", "b", "--csv", "c", "--json", "./c"], "--json c is where --csv goes: pass another"),
        (["a/x.png", "b/x.png", "--json", "b/x.png"], "--json b/x.png is in what is compared"),
        (["a/x.png", "b/x.png", "--picture", "b"], "--picture b: pass a file, which this is not"),
        (["a/x.png", "b/x.png", "--picture", "c.txt"], "--picture c.txt: pass a name that ends in"),
        (["a", "b", "--device", "no"], "--device no: Expected one of cpu"),
        (["a", "b", "--vgg-weights", "no.pth"], "weights='no.pth': there is no such file"),
        (["a", "b", "--vgg-weights", "a/x.png"], "weights='a/x.png' cannot be read as tensors"),
        (
            ["a", "b", "--lpips-weights", "no.pth", "--lpips-linear", "lin.pth"],
            "linear='lin.pth': there is no such file",
        ),
    ],
)
def test_wrong_usage(tmp_path, monkeypatch, capsys, flags, text):
    monkeypatch.chdir(tmp_path)
    for folder in "ab":
        write(tmp_path / folder / "x.png", patch("camera")[0])
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert run(*flags) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {text}")
    assert captured.out == ""
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["a"], "the following arguments are required: B"),
        (["a", "b", "--max-megapixels", "0"], "0 is not positive: pass a number above 0"),
        (["a", "b", "--vgg-layers", "no"], "invalid choice: 'no'"),
        (["a", "b", "--lpips-backbone", "no"], "invalid choice: 'no'"),
    ],
)
def test_bad_flags(capsys, flags, text):
    with pytest.raises(SystemExit) as caught:
        run(*flags)
    assert caught.value.code == 2
    assert text in capsys.readouterr().err


def test_results_that_cannot_be_written(folders, monkeypatch, capsys):
    place, _ = folders

    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(__main__, "write_csv", full)
    assert run(place / "a", place / "b", "--csv", place / "out.csv") == 2
    captured = capsys.readouterr()
    assert captured.err == "error: No space left on device\n"
    assert "mean of 4" in captured.out


@pytest.mark.parametrize(
    ("module", "flag"), [("PIL", None), ("tqdm", None), ("matplotlib", "p"), ("skimage", "check")]
)
def test_a_package_that_is_missing(tmp_path, monkeypatch, capsys, module, flag):
    flags = {None: [], "p": ["--picture", tmp_path / "x.png"], "check": ["--check"]}[flag]
    monkeypatch.setitem(sys.modules, module, None)
    assert run(tmp_path, tmp_path, *flags) == 2
    said = f'{module} is not installed: pip install "perceptual-losses[compare]"\n'
    assert capsys.readouterr().err == said


# Kinds of files


def pixels(size=(24, 16)):
    return Image.fromarray(patch("astronaut", 40)[0]).resize(size)


def saved(path, image, **options):
    image.save(path, **options)
    return path


def test_kinds_that_are_read_as_they_are(tmp_path):
    colour = pixels()
    grey = colour.convert("L")
    deep = np.array(grey).astype(np.uint16) * 257 + 3
    for image, name, expected in [
        (grey, "x.png", np.array(grey)),
        (grey, "x.pgm", np.array(grey)),
        (grey, "x.tif", np.array(grey)),
        (colour, "x.bmp", np.array(colour)),
        (colour, "x.ppm", np.array(colour)),
        (grey.convert("1"), "1.png", np.array(grey.convert("1"), np.uint8) * 255),
        (colour.quantize(20), "p.png", np.array(colour.quantize(20).convert("RGB"))),
        (colour.quantize(20), "p.gif", np.array(colour.quantize(20).convert("RGB"))),
        (Image.fromarray(deep), "deep.png", deep),
        (Image.fromarray(deep), "deep.tif", deep),
        (Image.fromarray(deep), "deep.pgm", deep),
    ]:
        picture = compare.read(saved(tmp_path / name, image), **READ)
        values = picture.values[..., 0] if expected.ndim == 2 else picture.values
        assert values.dtype == expected.dtype, name
        assert np.array_equal(values, expected), name
        assert picture.notices == ()
        assert picture.data_range == (65535 if "deep" in name else 255)
    lossless = compare.read(saved(tmp_path / "x.webp", colour, lossless=True), **READ)
    assert np.array_equal(lossless.values, np.array(colour))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright(tmp_path, orientation):
    image = pixels()
    exif = Image.Exif()
    exif[274] = orientation
    path = saved(tmp_path / "x.png", image, exif=exif)
    turned = np.array(ImageOps.exif_transpose(Image.open(path)))
    assert (turned.shape == (24, 16, 3)) is (orientation > 4)
    assert np.array_equal(compare.read(path, **READ).values, turned)
    chunk = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    png16(tmp_path / "deep.png", np.array(image).astype(np.uint16) * 257, chunk=chunk)
    deep = compare.read(tmp_path / "deep.png", **READ).values
    assert np.array_equal(deep, turned.astype(np.uint16) * 257)
    grey = Image.fromarray(np.array(image)[..., 0].astype(np.uint16) * 257)
    for kind in (None, "tiff_lzw"):
        path = saved(tmp_path / "deep.tif", grey, exif=exif, compression=kind)
        assert np.array_equal(compare.read(path, **READ).values, deep[..., :1])


def test_alpha_is_left_out_where_it_says_nothing(tmp_path, capsys):
    x = np.array(pixels())
    grey = x[..., 0]
    opaque = np.full_like(grey, 255)
    deep = np.dstack([x, opaque]).astype(np.uint16) * 257
    for mode, values, last in (
        ("RGBA", np.dstack([x, opaque]), -1),
        ("LA", np.dstack([grey, opaque]), -1),
        ("deep", deep, -1),
        ("deep", deep[..., 2:], -1),
    ):
        path = tmp_path / "x.png"
        write(path, values) if mode == "deep" else Image.fromarray(values).save(path)
        picture = compare.read(path, **READ)
        assert np.array_equal(picture.values, values[..., :last])
        assert picture.notices == (f"{path}: its alpha is opaque everywhere and left out",)
        values = values.copy()
        values[3, 4, -1] -= 1
        write(path, values) if mode == "deep" else Image.fromarray(values).save(path)
        with pytest.raises(compare.NotComparedError, match="x.png is transparent in parts: put it"):
            compare.read(path, **READ)
    Image.fromarray(np.dstack([x, opaque])).save(path)
    assert run(path, path, "--csv", tmp_path / "out.csv") == 0
    notice = f"{path}: its alpha is opaque everywhere and left out"
    assert capsys.readouterr().err == f"{notice}; {notice}\n"
    assert f",{notice}; {notice},\n" in (tmp_path / "out.csv").read_text()


def refused_files(folder):
    """Files of no use, and why."""
    image = pixels()
    x = np.array(image)
    clear = image.quantize(20)
    deep = x.astype(np.uint16) * 257
    yield saved(folder / "t.png", clear, transparency=int(np.array(clear)[0, 0])), "is transparent"
    yield saved(folder / "t.gif", clear, transparency=int(np.array(clear)[0, 0])), "is transparent"
    colour = tuple(map(int, x[2, 3]))
    yield saved(folder / "rgb.png", image, transparency=colour), "is transparent in parts"
    png16(folder / "deep.png", deep, chunk=b"tRNS" + struct.pack(">HHH", *deep[2, 3]))
    yield folder / "deep.png", "has a transparent colour"
    more = {"save_all": True, "append_images": [image.rotate(180)]}
    for name in ("many.gif", "many.webp", "many.png", "many.tif"):
        yield saved(folder / name, image, **more), "has 2 frames or pages: save the one that is"
    yield saved(folder / "print.jpg", image.convert("CMYK")), "has pixels of the kind CMYK: save it"
    yield saved(folder / "lab.tif", image.convert("LAB")), "has pixels of the kind LAB"
    yield saved(folder / "float.tif", image.convert("F")), "has pixels of the kind F"
    yield saved(folder / "wide.tif", image.convert("I")), "has pixels of the kind I"
    yield saved(folder / "x.jp2", image), "is not in any of BMP"
    (folder / "deep.ppm").write_bytes(b"P6 24 16 65535\n" + deep.astype(">u2").tobytes())
    yield folder / "deep.ppm", "has more than 8 bits for each colour, which are read from PNG"
    tiff16(folder / "deep.tif", deep)
    yield folder / "deep.tif", "has more than 8 bits for each colour, which are read from PNG"
    tiff16(folder / "signed.tif", deep[..., :1], sample_format=2)
    yield folder / "signed.tif", "has pixels of the kind I"
    whole = io.BytesIO()
    image.save(whole, "JPEG")
    (folder / "cut.jpg").write_bytes(whole.getvalue()[:-200])
    yield folder / "cut.jpg", "cannot be read (OSError: "
    png16(folder / "cut.png", deep)
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:-100])
    yield folder / "cut.png", "cannot be read (RuntimeError"
    (folder / "empty.png").write_bytes(b"")
    yield folder / "empty.png", "is not in any of"


def test_kinds_that_are_refused(tmp_path):
    for path, text in refused_files(tmp_path):
        with pytest.raises(compare.NotComparedError) as caught:
            compare.read(path, **READ)
        assert str(caught.value).startswith(f"{path} {text}")


def test_the_first_picture_of_a_camera(tmp_path):
    image, path = pixels(), tmp_path / "x.jpg"
    image.save(path, "MPO", save_all=True, append_images=[image.rotate(180)])
    picture = compare.read(path, **READ)
    assert np.abs(picture.values - np.array(image, int)).mean() < 10
    assert picture.notices == (f"{path}: the first of its 2 pictures is read",)


def test_what_pillow_warns_of_is_passed_on(tmp_path, monkeypatch):
    def complaining(image):
        warnings.warn("Corrupt EXIF data", UserWarning, stacklevel=2)
        return image

    path = saved(tmp_path / "x.png", pixels())
    monkeypatch.setattr(ImageOps, "exif_transpose", complaining)
    assert compare.read(path, **READ).notices == (f"{path}: Corrupt EXIF data",)


def test_large_images(tmp_path, monkeypatch, capsys):
    path = saved(tmp_path / "x.png", pixels((300, 200)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow refuses from 200 on.
    assert run(path, path, "--max-megapixels", "0.06") == 0
    assert run(path, path, "--max-megapixels", "0.0599") == 1
    assert "x.png has 300x200 pixels, more than 0.0599 million: raise --max-meg" in (
        capsys.readouterr().err
    )
    assert Image.MAX_IMAGE_PIXELS == 100


# Names


def test_names_in_any_script(tmp_path, capsys):
    x, y = patch("camera", 40)
    composed, name = "Café.png", "日本$^$.png"
    decomposed = unicodedata.normalize("NFD", composed)
    assert composed != decomposed
    for folder, first, value in (("a", composed, x), ("b", decomposed, y)):
        write(tmp_path / folder / first, value)
        write(tmp_path / folder / name, value)
    pictures = tmp_path / "pictures"
    assert run(tmp_path / "a", tmp_path / "b", "--picture", pictures) == 0
    assert re.search(rf"{composed} +45x40.*\n{re.escape(name)}  45x40", capsys.readouterr().out)
    assert {path.name for path in pictures.iterdir()} == {f"{composed}.png", f"{name}.png"}
    # Both forms in one folder.
    write(tmp_path / "a" / decomposed, x)
    assert run(tmp_path / "a", tmp_path / "b") == 1
    said = f"{composed}: several files have this name in other characters\n"
    assert said in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes there alone")
def test_names_that_are_no_text(tmp_path, monkeypatch, capsys):
    x, y = patch("camera", 40)
    for folder, value in (("a", x), ("b", y)):
        write(tmp_path / folder / "\udcff.png", value)
    files = ["--csv", tmp_path / "out.csv", "--picture", tmp_path / "pictures"]
    assert run(tmp_path / "a", tmp_path / "b", *files) == 0
    assert "\\udcff.png  45x40" in capsys.readouterr().out
    assert "\n\\udcff.png,45,40," in (tmp_path / "out.csv").read_text()
    write(tmp_path / "b" / "\udcff.png", y[:20])
    assert run(tmp_path / "a", tmp_path / "b", *files) == 1
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    __main__.say("é")
    stdout.flush()
    assert stdout.buffer.getvalue() == b"\\xe9\n"


# What is drawn, and shown meanwhile


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are written, by their names."""
    figures, save = {}, compare.save

    def keep(figure, path):
        figures[path.name] = figure
        save(figure, path)

    monkeypatch.setattr(__main__, "save", keep)
    return figures


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
        assert similarity.get_title() == f"SSIM {row['ssim']:.6f}\nMS-SSIM {row['ms_ssim']:.6f}"
        colour = row["channels"] == 3
        assert bar.get_ylabel() == ("SSIM, mean over channels" if colour else "SSIM")


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
    x, y = map(tensor, patch("astronaut", 60))
    expected = compare.ssim_map(x, y, data_range=255).mean(1)[0]
    for values in (1, 65 * 3 * 7, 65 * 3 * 50, 65 * 3 * 51, 10**6):
        monkeypatch.setattr(compare, "BAND", values)
        got = compare.similarity_map(x, y, data_range=255)
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


# What is said of it


def test_help_says_the_exit_codes(capsys):
    with pytest.raises(SystemExit) as caught:
        run("--help")
    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert __main__.EXIT_CODES in said
    assert all(name in said for name in (*LPIPS_LAYERS, "imagenet", "--max-megapixels"))


def test_the_page_shows_what_is_printed(root, tmp_path, monkeypatch, capsys):
    page = (root / "docs" / "compare.md").read_text()
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(code, {})
    shown = re.findall(r"```sh\n(.*?)```\n\n```text\n(.*?)```", page, re.DOTALL)
    assert len(shown) == 3
    rounding = r"\d\.\de-1\d"
    for command, expected in shown:
        start, *flags = shlex.split(command.partition("python -m perceptual_losses ")[2])
        assert start == "compare"
        run(*flags)
        captured = capsys.readouterr()
        assert re.sub(rounding, "", captured.err + captured.out) == re.sub(rounding, "", expected)
    options = set(re.findall(r"^\| `(--[\w-]+)", page, re.MULTILINE))
    with pytest.raises(SystemExit):
        run("--help")
    assert options == set(re.findall(r"^  (--[\w-]+)", capsys.readouterr().out, re.MULTILINE))
    for line in __main__.EXIT_CODES.splitlines()[1:]:
        number, _, meaning = line.strip().partition("  ")
        assert f"| {number} | {meaning} |" in page
