"""Image files compared from the command line: the values, and their check."""

import csv
import json
import re

import numpy as np
import pytest
import skimage.data
import torch
from compared_files import definition, patch, run, tensor, write
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio
from torchvision.models import vgg

from perceptual_losses import LPIPSLoss, VGGLoss, ms_ssim
from perceptual_losses.compare import measure, metrics


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
        assert row["psnr"] == pytest.approx(peak_signal_noise_ratio(x, y), abs=1e-9)
        assert row["mse"] == pytest.approx(mean_squared_error(x, y), rel=1e-12)
        assert (row["data_range"], row["levels"], row["notice"]) == (top, 5, "")
        assert (row["width"], row["height"]) == (175, 170)
        assert row["channels"] == (3 if "colour" in row["file"] else 1)
    columns = {
        key: np.array([row[key] for row in record["files"]])
        for key in ("psnr", "mse", "ssim", "ms_ssim")
    }
    for name in ("min", "median", "mean"):
        expected = {key: getattr(np, name)(column) for key, column in columns.items()}
        assert record[name] == pytest.approx(expected, rel=1e-15)
    assert record["worst"] == {**record["min"], "mse": columns["mse"].max()}
    assert record["complete"] is True
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = [line.split() for line in captured.out.splitlines()]
    assert lines[0] == ["file", "size", "range", "PSNR", "MSE", "SSIM", "MS-SSIM", "levels"]
    worst_first = sorted(record["files"], key=lambda row: row["ssim"])
    for line, row in zip(lines[1:5], worst_first, strict=True):
        values = [f"{row['psnr']:.3f}", f"{row['mse']:.6g}", f"{row['ssim']:.6f}"]
        values += [f"{row['ms_ssim']:.6f}", "5"]
        assert line == [row["file"], "175x170", str(row["data_range"]), *values]
    for line, name in zip(lines[5:], ("min", "median", "mean", "worst"), strict=True):
        values = record[name]
        digits = [f"{values['psnr']:.3f}", f"{values['mse']:.6g}", f"{values['ssim']:.6f}"]
        assert line == [name, "of", "4", *digits, f"{values['ms_ssim']:.6f}"]
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
        f"{row['file']}  512x512    255  22.409  373.375  0.357964  0.793392       5"
    ]


def test_float32_is_float32(folders):
    place, _ = folders
    rows = {}
    for flags in ([], ["--float32"]):
        run(place / "a", place / "b", "--json", place / "out.json", *flags)
        record = json.loads((place / "out.json").read_text())
        rows[record["dtype"]] = np.array([row["ssim"] for row in record["files"]])
    error = np.abs(rows["float32"] - rows["float64"])
    assert 1e-12 < error.max() < metrics.BOUND
    assert (np.float32(rows["float32"]) == rows["float32"]).all()


def test_identical_files(tmp_path, capsys):
    write(tmp_path / "x.png", patch("astronaut")[0])
    assert run(tmp_path / "x.png", tmp_path / "x.png", "--check") == 0
    assert (
        "inf    0  1.000000  1.000000       5      1.000000     0.0e+00" in capsys.readouterr().out
    )


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
    assert record["mean"].keys() == {"psnr", "mse", "ssim", "ms_ssim", "vgg", "lpips"}
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
    compute = measure.ssim_and_ms_ssim

    def shifted(*args, **kw):
        ssim, ms_ssim = compute(*args, **kw)
        return ssim + shift, ms_ssim

    monkeypatch.setattr(measure, "ssim_and_ms_ssim", shifted)
    within = shift == 5e-7
    assert run(place / "a", place / "b", "--check") == (1 if within else 3)
    assert ("does NOT agree" in capsys.readouterr().out) is not within
    assert run(place / "a", place / "b") == 1
